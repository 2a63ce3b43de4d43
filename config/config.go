// Package config reads what a device is told about itself: system.conf and the kernel command line.
//
// system.conf has RAUC's key file form and RAUC's names wherever RAUC has the concept. It lies in the initramfs as
// [Dir]/system.conf, so whatever protects the kernel protects it. It is read strictly: an unknown section or key, or one
// that stands twice, is an error with its line. Keys that RAUC knows and that mean nothing here are a warning; a RAUC
// key that narrows what is accepted, and that would be lost if it were ignored, is an error.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Dir is where the initramfs holds system.conf and the keyring. A relative keyring path starts here.
const Dir = "/etc/lifeboat"

// MaxBootSlots is how many slots may have a bootname: so many have room in the state record.
const MaxBootSlots = 4

// MaxChildren is how many classes may go with that of the boot slots.
const MaxChildren = 3

// Config is one system.conf with the defaults filled in.
type Config struct {
	Compatible          string
	MinVersion          string   // RAUC's min-bundle-version: older bundles are not installed, "": any are
	Bootloader          string   // "raw", "grub", "uboot", "sdboot", "efi", "barebox", "raspberrypi" or "custom"
	BootAttempts        int      // tries of a slot on trial, 1..9
	BundleFormats       []string // formats that are taken, in the order plain, verity, crypt
	RequireSignedVerity bool     // refuse a bundle whose images have no signed root hash
	Init                string   // absolute path of the system's init in its root file system

	KeyringPath string // absolute path in the initramfs
	// IntegrityKey is the absolute path in the initramfs of the key for integrity=hmac-sha256: a file of 16 to 64 bytes.
	IntegrityKey string
	CheckPurpose string // "codesign", "smimesign" or "any"
	CheckCRL     bool   // every issuer between signer and anchor must have a revocation list
	Role         string // "release" or "dev": whose signatures install

	Slots         []Slot // by class and index
	StateDevice   string
	StagingDevice string // "" if there is none
	SkipOver      int64  // images of more bytes are compared with what the slot holds, and what is there already is not written

	Fallback          string // "available" or "secure"
	ConfirmedAttempts int    // boots of a confirmed slot without "good" before it counts as failed, 1..255
	TrialDeadline     time.Duration

	PowerLossFree bool // count=failures: a try of a trial that ended without evidence against the system is given back

	USB      USB
	Watchdog Watchdog
	Rescue   Rescue
	Loader   Loader
	Data     Data
	Ext4     Ext4

	Raw      []byte   // the file as it was read
	Warnings []string // each with its line
}

// USB is what [usb] says.
type USB struct {
	// Settle is the longest time that early boot waits for USB buses to say what is plugged in. It waits less when they
	// have.
	Settle  time.Duration
	Policy  string        // "newer", "different", "rescue-only" or "off": which bundles of a stick are taken by themselves
	Files   []string      // path patterns of bundles on a stick, relative to its root, in the form of path.Match; nil: *.raucb in / and /updates
	Require string        // a stick without that file brings nothing; "" for none
	Replug  time.Duration // how long an install waits for its stick to come back; 0: not at all
	LED     string        // name below /sys/class/leds, "" for none
}

// Watchdog is what [watchdog] says.
type Watchdog struct {
	Timeout      time.Duration // whole seconds; 0: none is used
	Pretimeout   time.Duration // before Timeout, 0: none
	Device       string        // "/dev/watchdogN", "": the first that the kernel has
	Softdog      bool          // load softdog where the kernel has none
	StopsAtClose bool          // take one too that stops when /init hands over (no nowayout, no magic close)
}

// Rescue is what [rescue] says.
type Rescue struct {
	Retry  time.Duration // first pause before it tries a slot again
	Repair bool          // a damaged slot is copied from one of the same version
	GPIO   string        // "gpiochip0:17" or "gpiochip0:17:low": held at boot it asks for rescue; "" for none
	Key    int           // code of a key (linux/input-event-codes.h) that held at boot asks for rescue; 0 for none
}

// Loader is what [bootloader] says: where the boot loader keeps its variables. Which of it is used depends on Bootloader.
type Loader struct {
	Device  string   // partition or disk, as written; see [PartLabel]. "PARTLABEL=esp" by default
	Files   []string // absolute paths of one or two copies in the FAT file system on Device; nil: the loader's default
	Offsets []int64  // of one or two copies in a raw area of Device, bytes; nil: files are used
	Size    int64    // of one copy, bytes; 0: the loader's default
	Schema  string   // uboot: whose variables, "rauc", "swupdate" or "mender"
	SlotVar string   // uboot with swupdate: the variable that names the slot; "": the first known one that does
	Program string   // custom: absolute path of the program in the running system
}

// PartLabel returns the partition label that a device= names, and false if it names a kernel device like /dev/vda2.
func PartLabel(device string) (string, bool) {
	if label, ok := strings.CutPrefix(device, "PARTLABEL="); ok {
		return label, true
	}
	return strings.CutPrefix(device, "/dev/disk/by-partlabel/")
}

// Parse reads a system.conf of at most 64 KiB. An error says the line ("line 7: ...") where one is to blame.
func Parse(raw []byte) (*Config, error) {
	sections, err := readKeyFile(raw)
	if err != nil {
		return nil, err
	}
	c := &Config{
		BootAttempts:        3,
		BundleFormats:       []string{"verity"},
		RequireSignedVerity: true,
		Init:                "/sbin/init",
		KeyringPath:         Dir + "/keyring.pem",
		IntegrityKey:        Dir + "/integrity.key",
		Ext4:                Ext4{Journal: 4 << 20},
		CheckPurpose:        "codesign",
		Role:                "release",
		StateDevice:         "PARTLABEL=state",
		Fallback:            "available",
		ConfirmedAttempts:   8,
		TrialDeadline:       10 * time.Minute,
		USB:                 USB{Settle: 5 * time.Second, Policy: "newer", Replug: 30 * time.Second},
		Rescue:              Rescue{Retry: 120 * time.Second},
		SkipOver:            skipAuto,
		Raw:                 slices.Clone(raw),
	}
	lines := map[string]int{} // of slots, for errors about several of them
	for _, s := range sections {
		if name, ok := strings.CutPrefix(s.name, "slot."); ok {
			slot, err := c.slot(name, s)
			if err != nil {
				return nil, err
			}
			lines[slot.Name] = s.line
			c.Slots = append(c.Slots, slot)
			continue
		}
		set := c.setter(s.name)
		if set == nil {
			if !raucSection(s.name) {
				return nil, fmt.Errorf("line %d: unknown section [%s]", s.line, clip(s.name))
			}
			c.warn(s.line, "section [%s] means nothing here", clip(s.name))
			continue
		}
		for _, e := range s.keys {
			if err := set(e); err != nil {
				return nil, fmt.Errorf("line %d: [%s] %s: %w", e.line, s.name, clip(e.key), err)
			}
		}
	}
	if c.Compatible == "" {
		return nil, errors.New("[system] compatible= is missing")
	}
	if c.Bootloader == "" {
		return nil, errors.New("[system] bootloader= is missing")
	}
	sort.SliceStable(c.Slots, func(i, j int) bool { // as small as it gets in /init
		a, b := &c.Slots[i], &c.Slots[j]
		return cmp.Or(strings.Compare(a.Class, b.Class), a.Index-b.Index) < 0
	})
	if err := c.checkSlots(lines); err != nil {
		return nil, err
	}
	if c.Bootloader != "raw" {
		c.Loader.Device, c.Loader.Schema = cmp.Or(c.Loader.Device, "PARTLABEL=esp"), cmp.Or(c.Loader.Schema, "rauc")
	}
	if c.Watchdog.Timeout > 0 && c.Watchdog.Pretimeout >= c.Watchdog.Timeout {
		return nil, errors.New("[watchdog] pretimeout= is not below timeout=")
	}
	return c, nil
}

var errUnknownKey = errors.New("unknown key")

func (c *Config) warn(line int, format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf("line %d: ", line)+fmt.Sprintf(format, args...))
}

// setter returns what takes the keys of a section, nil for one that isn't ours.
func (c *Config) setter(name string) func(entry) error {
	switch name {
	case "system":
		return c.system
	case "keyring":
		return c.keyring
	case "ext4":
		if Slim { // it concerns who makes the initramfs
			return func(entry) error { return nil }
		}
		return c.ext4
	case "integrity":
		return one("key", func(v string) error { return inDir(&c.IntegrityKey, v) })
	case "state":
		return one("device", func(v string) error { return device(&c.StateDevice, v) })
	case "staging":
		return one("device", func(v string) error { return device(&c.StagingDevice, v) })
	case "install":
		return one("skip-unchanged", c.skipUnchanged)
	case "bootloader":
		return c.loader
	case "usb":
		return c.usb
	case "watchdog":
		return c.watchdog
	case "rescue":
		return c.rescue
	case "fallback":
		return c.fallback
	case "data", "overlay":
		if Slim {
			return func(entry) error { return nil } // of a program that has no data partition
		}
		if name == "data" {
			return c.data
		}
		return c.overlay
	}
	return nil
}

// one takes the only key of a section.
func one(key string, set func(string) error) func(entry) error {
	return func(e entry) error {
		if e.key != key {
			return errUnknownKey
		}
		return set(e.value)
	}
}

// skipAuto is where reading what is there costs less than writing what need not be.
const skipAuto = 64 << 20

func (c *Config) skipUnchanged(v string) error {
	var word string
	err := choice(&word, v, "auto", "yes", "no")
	switch word {
	case "yes":
		c.SkipOver = -1
	case "no":
		c.SkipOver = math.MaxInt64
	case "auto":
		c.SkipOver = skipAuto
	}
	return err
}

func (c *Config) system(e entry) error {
	switch e.key {
	case "compatible":
		return text(&c.Compatible, e.value, 255)
	case "bootloader":
		switch e.value {
		case "raw", "grub", "uboot", "sdboot", "efi", "barebox", "raspberrypi", "custom":
			c.Bootloader = e.value
			return nil
		case "noop":
			return errors.New("RAUC's noop has no counterpart here, use raw")
		}
		return fmt.Errorf("unknown boot loader %q, use raw", clip(e.value))
	case "boot-attempts":
		return number(&c.BootAttempts, e.value, 1, 9)
	case "bundle-formats":
		formats, err := ParseFormats(e.value)
		if err != nil {
			return err
		}
		if slices.Contains(formats, "crypt") {
			c.warn(e.line, "crypt bundles are not read yet")
		}
		c.BundleFormats = formats
		return nil
	case "require-signed-verity":
		return boolean(&c.RequireSignedVerity, e.value)
	case "init":
		return absolute(&c.Init, e.value)
	case "min-bundle-version":
		return text(&c.MinVersion, e.value, 64)
	case "mountprefix", "grubenv", "barebox-statename", "barebox-dtbpath", "boot-attempts-primary", "efi-use-bootnext",
		"activate-installed", "statusfile", "data-directory", "max-bundle-download-size", "max-bundle-signature-size",
		"variant-name", "variant-file", "variant-dtb", "perform-pre-check":
		c.warn(e.line, "[system] %s means nothing here", e.key)
		return nil
	case "prevent-late-fallback":
		c.warn(e.line, "[system] %s means nothing here, [fallback] policy=secure is its counterpart", e.key)
		return nil
	}
	return errUnknownKey
}

// inDir sets the path of a file in the initramfs, below [Dir] where it is relative.
func inDir(path *string, v string) error {
	if !strings.HasPrefix(v, "/") && v != "" {
		v = Dir + "/" + v
	}
	return absolute(path, v)
}

func (c *Config) keyring(e entry) error {
	switch e.key {
	case "path":
		return inDir(&c.KeyringPath, e.value)
	case "check-purpose":
		return choice(&c.CheckPurpose, e.value, "codesign", "smimesign", "any")
	case "check-crl":
		return boolean(&c.CheckCRL, e.value)
	case "role":
		return choice(&c.Role, e.value, "release", "dev")
	case "allowed-signer-cns":
		return errors.New("not supported: ignoring it would trust more signers; put only the right certificates into the keyring")
	case "directory":
		return errors.New("a keyring is one file here, use path=")
	case "use-bundle-signing-time", "allow-partial-chain":
		c.warn(e.line, "[keyring] %s means nothing here", e.key)
		return nil
	}
	return errUnknownKey
}

func (c *Config) loader(e entry) error {
	l := &c.Loader
	switch e.key {
	case "device":
		return device(&l.Device, e.value)
	case "files":
		for _, f := range strings.Fields(e.value) {
			if err := absolute(&f, f); err != nil {
				return err
			}
			l.Files = append(l.Files, f)
		}
		return upToTwo(len(l.Files))
	case "offsets":
		for _, f := range strings.Fields(e.value) {
			n, err := strconv.ParseInt(f, 0, 64)
			if err != nil || n < 0 {
				return fmt.Errorf("%q is no offset in bytes", clip(f))
			}
			l.Offsets = append(l.Offsets, n)
		}
		return upToTwo(len(l.Offsets))
	case "size":
		n, err := strconv.ParseInt(e.value, 0, 64)
		if err != nil || n < 512 || n > 1<<20 {
			return errors.New("a size in bytes from 512 to 1048576 is expected")
		}
		l.Size = n
		return nil
	case "schema":
		return choice(&l.Schema, e.value, "rauc", "swupdate", "mender")
	case "slot-variable":
		return text(&l.SlotVar, e.value, 64)
	case "program":
		return absolute(&l.Program, e.value)
	}
	return errUnknownKey
}

func (c *Config) fallback(e entry) error {
	switch e.key {
	case "policy":
		return choice(&c.Fallback, e.value, "available", "secure")
	case "confirmed-attempts":
		return number(&c.ConfirmedAttempts, e.value, 1, math.MaxUint8)
	case "trial-deadline":
		return duration(&c.TrialDeadline, e.value, 10*time.Second, 24*time.Hour)
	case "count":
		var count string
		err := choice(&count, e.value, "all", "failures")
		c.PowerLossFree = count == "failures"
		return err
	}
	return errUnknownKey
}

func (c *Config) usb(e entry) error {
	switch u := &c.USB; e.key {
	case "settle":
		return duration(&u.Settle, e.value, 0, time.Minute)
	case "policy":
		return choice(&u.Policy, e.value, "newer", "different", "rescue-only", "off")
	case "files":
		return patterns(&u.Files, e.value)
	case "require":
		return inside(&u.Require, e.value)
	case "replug":
		return duration(&u.Replug, e.value, 0, time.Hour)
	case "led":
		return sysName(&u.LED, e.value)
	}
	return errUnknownKey
}

func (c *Config) watchdog(e entry) error {
	switch w := &c.Watchdog; e.key {
	case "timeout":
		if e.value == "0" || e.value == "off" {
			w.Timeout = 0
			return nil
		}
		return wholeSeconds(&w.Timeout, e.value, 5*time.Second)
	case "pretimeout":
		return wholeSeconds(&w.Pretimeout, e.value, 0)
	case "device":
		if n, ok := strings.CutPrefix(e.value, "/dev/watchdog"); !ok || n != "" && !digits(n) {
			return fmt.Errorf("%q is not /dev/watchdogN", clip(e.value))
		}
		w.Device = e.value
		return nil
	case "softdog":
		return boolean(&w.Softdog, e.value)
	case "stops-at-close":
		var v string
		err := choice(&v, e.value, "refuse", "allow")
		w.StopsAtClose = v == "allow"
		return err
	}
	return errUnknownKey
}

func (c *Config) rescue(e entry) error {
	switch r := &c.Rescue; e.key {
	case "retry":
		return duration(&r.Retry, e.value, time.Second, time.Hour)
	case "repair":
		return boolean(&r.Repair, e.value)
	case "gpio":
		chip, rest, _ := strings.Cut(e.value, ":")
		line, low, hasLow := strings.Cut(rest, ":")
		if !isName(chip) || !strings.HasPrefix(chip, "gpiochip") || !digits(line) || hasLow && low != "low" {
			return fmt.Errorf("%q is not like gpiochip0:17 or gpiochip0:17:low", clip(e.value))
		}
		r.GPIO = e.value
		return nil
	case "key":
		return number(&r.Key, e.value, 1, 0x2ff)
	}
	return errUnknownKey
}

// maxPatterns is how many patterns files= may have.
const maxPatterns = 8

// Flash says whether a device is a raw flash, /dev/mtdN. Programs that are Slim know none.
func Flash(device string) bool {
	const mtd = "/dev/mtd"
	return !Slim && len(device) > len(mtd) && device[:len(mtd)] == mtd && device[len(mtd)] <= '9'
}

// ParseFormats reads a value of bundle-formats=: names of formats with spaces between them, or +NAME and -NAME, which
// change the default (verity).
func ParseFormats(value string) ([]string, error) {
	on := map[string]bool{}
	words := strings.Fields(value)
	relative := len(words) > 0 && (words[0][0] == '+' || words[0][0] == '-')
	if relative {
		on["verity"] = true
	}
	for _, w := range words {
		name := strings.TrimLeft(w[:1], "+-") + w[1:]
		if (name != w) != relative {
			return nil, fmt.Errorf("%q: either all formats have + or - or none", clip(value))
		}
		if name != "plain" && name != "verity" && name != "crypt" {
			return nil, fmt.Errorf("unknown bundle format %q, there are plain, verity and crypt", clip(name))
		}
		on[name] = w[0] != '-'
	}
	var formats []string
	for _, f := range []string{"plain", "verity", "crypt"} {
		if on[f] {
			formats = append(formats, f)
		}
	}
	if formats == nil {
		return nil, errors.New("no bundle format is left")
	}
	return formats, nil
}
