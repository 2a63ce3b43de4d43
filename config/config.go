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

	KeyringPath  string // absolute path in the initramfs
	CheckPurpose string // "codesign", "smimesign" or "any"
	CheckCRL     bool   // every issuer between signer and anchor must have a revocation list
	Role         string // "release" or "dev": whose signatures install

	Slots         []Slot // by class and index
	StateDevice   string
	StagingDevice string // "" if there is none

	Fallback          string // "available" or "secure"
	ConfirmedAttempts int    // boots of a confirmed slot without "good" before it counts as failed, 1..255
	TrialDeadline     time.Duration

	PowerLossFree bool // count=failures: a try of a trial that ended without evidence against the system is given back

	USB      USB
	Watchdog Watchdog
	Rescue   Rescue
	Loader   Loader

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

// Slot is one [slot.CLASS.INDEX].
type Slot struct {
	Name        string // "rootfs.0"
	Class       string // "rootfs"
	Index       int
	Device      string // as written; see [PartLabel]
	File        string // absolute path in the FAT file system on Device; "": the slot is all of Device
	Type        string // RAUC's slot type, "raw" by default
	Bootname    string // "" if the slot isn't booted itself
	Parent      string // Name of the slot that this one goes with, or ""
	Mount       string // where early boot mounts a slot with a parent, below the new root; "": it does not
	Description string
	ReadOnly    bool

	Region *Region // of a slot of the boot loader itself ([Config.Loaders]); nil for others

	// bootloader=efi: the file that the firmware starts, and what it is told. The file is in the partition of the slot that
	// goes with this one and is not mounted, by default vmlinuz, or that slot's File; where there is none, on the boot
	// loader's Device.
	EFILoader, EFICmdline string
}

// Region is where the two copies of a boot loader lie on a disk, and the most that an image may have in a boot partition of an
// eMMC, which has no region; bytes.
type Region struct{ Start, Size, Limit int64 }

// SlotByName finds a slot by its name ("rootfs.0") or its bootname ("A").
func (c *Config) SlotByName(name string) (Slot, bool) {
	if name == "" {
		return Slot{}, false
	}
	for _, s := range c.Slots {
		if s.Name == name || s.Bootname == name {
			return s, true
		}
	}
	return Slot{}, false
}

// BootSlots returns the slots that have a bootname, by class and index.
func (c *Config) BootSlots() []Slot {
	var boot []Slot
	for _, s := range c.Slots {
		if s.Bootname != "" {
			boot = append(boot, s)
		}
	}
	return boot
}

// Group returns the slots that go with a boot slot, by class: one bundle fills all of them.
func (c *Config) Group(parent string) []Slot {
	var group []Slot
	for _, s := range c.Slots {
		if s.Parent == parent {
			group = append(group, s)
		}
	}
	return group
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
		CheckPurpose:        "codesign",
		Role:                "release",
		StateDevice:         "PARTLABEL=state",
		Fallback:            "available",
		ConfirmedAttempts:   8,
		TrialDeadline:       10 * time.Minute,
		USB:                 USB{Settle: 5 * time.Second, Policy: "newer", Replug: 30 * time.Second},
		Rescue:              Rescue{Retry: 120 * time.Second},
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
	case "state":
		return one("device", func(v string) error { return device(&c.StateDevice, v) })
	case "staging":
		return one("device", func(v string) error { return device(&c.StagingDevice, v) })
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

func (c *Config) keyring(e entry) error {
	switch e.key {
	case "path":
		if !strings.HasPrefix(e.value, "/") && e.value != "" {
			e.value = Dir + "/" + e.value
		}
		return absolute(&c.KeyringPath, e.value)
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

// raucSection tells sections that RAUC knows and that mean nothing here.
func raucSection(name string) bool {
	switch name {
	case "streaming", "polling", "encryption", "casync", "autoinstall", "handlers":
		return true
	}
	return strings.HasPrefix(name, "log.") || strings.HasPrefix(name, "artifacts.")
}

func (c *Config) slot(name string, s section) (Slot, error) {
	slot := Slot{Name: name, Type: "raw"}
	class, index, ok := strings.Cut(name, ".")
	n, err := strconv.Atoi(index)
	if !ok || !isName(class) || err != nil || n < 0 || n > 99 || strconv.Itoa(n) != index {
		return slot, fmt.Errorf("line %d: [%s] is not [slot.CLASS.N] with a class of 1 to 16 of A-Z a-z 0-9 _ - and N of 0 to 99", s.line, clip(s.name))
	}
	slot.Class, slot.Index = class, n
	for _, e := range s.keys {
		if err := c.slotKey(&slot, e); err != nil {
			return slot, fmt.Errorf("line %d: [%s] %s: %w", e.line, s.name, clip(e.key), err)
		}
	}
	if slot.Device == "" {
		return slot, fmt.Errorf("line %d: [%s] has no device=", s.line, s.name)
	}
	if slot.Bootname != "" && slot.Parent != "" {
		return slot, fmt.Errorf("line %d: [%s] has both bootname= and parent=", s.line, s.name)
	}
	if slot.Mount != "" && slot.Parent == "" {
		return slot, fmt.Errorf("line %d: [%s] has mount= and no parent=: what is booted is the root", s.line, s.name)
	}
	if slot.Bootname != "" && slot.Type != "raw" && slot.Type != "ext4" {
		return slot, fmt.Errorf("line %d: [%s] is booted and can't be of type %s, use raw", s.line, s.name, slot.Type)
	}
	return slot, nil
}

func (c *Config) slotKey(slot *Slot, e entry) error {
	switch e.key {
	case "device":
		return device(&slot.Device, e.value)
	case "type":
		return choice(&slot.Type, e.value, "raw", "ext4", "vfat", "nand", "nor", "ubivol", "ubifs", "jffs2",
			"boot-emmc", "boot-mbr-switch", "boot-gpt-switch", "boot-raw-fallback")
	case "bootname":
		if !isName(e.value) {
			return fmt.Errorf("%q is not 1 to 16 of A-Z a-z 0-9 _ -", clip(e.value))
		}
		slot.Bootname = e.value
		return nil
	case "file":
		return absolute(&slot.File, e.value)
	case "parent":
		return text(&slot.Parent, e.value, 32)
	case "mount":
		return absolute(&slot.Mount, e.value)
	case "description":
		return text(&slot.Description, e.value, 255)
	case "readonly":
		return boolean(&slot.ReadOnly, e.value)
	case "efi-loader":
		return text(&slot.EFILoader, e.value, 255)
	case "efi-cmdline":
		return text(&slot.EFICmdline, e.value, 2048)
	case "region-start", "region-size", "size-limit":
		if Slim {
			return nil
		}
		return slot.loaderKey(e)
	case "allow-mounted", "extra-mkfs-opts", "extra-mount-opts", "install-same", "force-install-same", "ignore-checksum", "resize":
		c.warn(e.line, "[slot.%s] %s means nothing here", slot.Name, e.key)
		return nil
	}
	return errUnknownKey
}

// checkSlots looks at what concerns several slots. lines has each slot's.
func (c *Config) checkSlots(lines map[string]int) error {
	bootnames := map[string]string{}
	devices := map[string]string{}
	perClass := map[string]int{}
	boot, most := 0, 0
	for _, taken := range []struct{ device, by string }{{c.StateDevice, "[state]"}, {c.StagingDevice, "[staging]"}} {
		if taken.device == "" {
			continue
		}
		if by, dup := devices[deviceKey(taken.device)]; dup {
			return fmt.Errorf("%s and %s both have device %s", by, taken.by, taken.device)
		}
		devices[deviceKey(taken.device)] = taken.by
	}
	for _, s := range c.Slots {
		line := lines[s.Name]
		if strings.HasPrefix(s.Type, "boot-") {
			continue // a slot of the boot loader: on the disk of all the others
		}
		key := deviceKey(s.Device)
		by, dup := devices[key]
		if s.File != "" {
			if s.Parent == "" || s.Mount != "" || s.Type != "raw" || c.Bootloader != "sdboot" && c.Bootloader != "efi" {
				return fmt.Errorf("line %d: [slot.%s] has file=: that is for sdboot and efi, with parent=, of type raw, without mount=", line, s.Name)
			}
			if !dup {
				devices[key] = files
			}
			dup = dup && by != files
			if !dup {
				key += strings.ToLower(s.File)
				by, dup = devices[key]
			}
		}
		if dup {
			return fmt.Errorf("line %d: %s and [slot.%s] both have device %s", line, by, s.Name, s.Device+s.File)
		}
		devices[key] = "[slot." + s.Name + "]"
		if s.Parent != "" {
			p, ok := c.SlotByName(s.Parent)
			if !ok || p.Name != s.Parent {
				return fmt.Errorf("line %d: parent %q of [slot.%s] is no slot", line, clip(s.Parent), s.Name)
			}
			if p.Parent != "" {
				return fmt.Errorf("line %d: parent %q of [slot.%s] has a parent itself", line, clip(s.Parent), s.Name)
			}
		}
		if s.Bootname == "" {
			continue
		}
		if by, dup := bootnames[s.Bootname]; dup {
			return fmt.Errorf("line %d: bootname %s of [slot.%s] is taken by [slot.%s]", line, s.Bootname, s.Name, by)
		}
		bootnames[s.Bootname] = s.Name
		boot++
		perClass[s.Class]++
		most = max(most, perClass[s.Class])
	}
	if most < 2 {
		return errors.New("fewer than two slots of one class have a bootname: an update needs one to boot and one to write")
	}
	if boot > MaxBootSlots {
		return fmt.Errorf("%d slots have a bootname, at most %d can", boot, MaxBootSlots)
	}
	if len(perClass) > 1 {
		return fmt.Errorf("slots of %d classes have a bootname: a bundle's image for one could not be booted in the other", len(perClass))
	}
	if !Slim {
		if err := c.checkLoaders(lines, perClass); err != nil {
			return err
		}
	}
	return c.checkGroups(lines)
}

// checkGroups sees to it that a bundle for one boot slot's group is one for every other's.
func (c *Config) checkGroups(lines map[string]int) error {
	classes := func(group []Slot) (all []string) {
		for _, s := range group {
			all = append(all, s.Class)
		}
		return all
	}
	var first []string
	for i, b := range c.BootSlots() {
		group := c.Group(b.Name)
		for j, s := range group {
			line := lines[s.Name]
			switch {
			case s.Class == b.Class:
				return fmt.Errorf("line %d: [slot.%s] is of its parent's class", line, s.Name)
			case s.Class == "root":
				return fmt.Errorf("line %d: [slot.%s]: the class root would be the mapped device lifeboat-root, which is the parent's", line, s.Name)
			case slices.ContainsFunc(group[:j], func(o Slot) bool { return o.Class == s.Class }):
				return fmt.Errorf("line %d: [slot.%s] is the second of its class with the parent %s", line, s.Name, b.Name)
			case s.Mount != "" && slices.ContainsFunc(group, func(o Slot) bool {
				return o.Name != s.Name && strings.HasPrefix(s.Mount+"/", o.Mount+"/") && o.Mount != ""
			}):
				return fmt.Errorf("line %d: [slot.%s] has mount=%s in the place of another", line, s.Name, s.Mount)
			case s.Type != "raw" && s.Type != "ext4" && s.Type != "vfat":
				return fmt.Errorf("line %d: [slot.%s] goes with a slot that is booted and can't be of type %s, use raw", line, s.Name, s.Type)
			}
		}
		if len(group) > MaxChildren {
			return fmt.Errorf("%d slots have the parent %s, at most %d can", len(group), b.Name, MaxChildren)
		}
		if i == 0 {
			first = classes(group)
		} else if !slices.Equal(classes(group), first) {
			return fmt.Errorf("line %d: with [slot.%s] go the classes %q, with [slot.%s] %q: a bundle fits only where they are the same",
				lines[b.Name], b.Name, classes(group), c.BootSlots()[0].Name, first)
		}
	}
	return nil
}

// files says who has a device whose files are slots.
const files = "slots in files"

// deviceKey makes both ways to name a partition label equal.
func deviceKey(device string) string {
	if label, ok := PartLabel(device); ok {
		return "PARTLABEL=" + label
	}
	return device
}

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
