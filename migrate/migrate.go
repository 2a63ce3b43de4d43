// Package migrate makes a system.conf of what the configuration of another updater says, for a device that moves over. It
// runs on a developer's machine over a copy of the device's root file system, or of its /etc alone.
package migrate

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"lifeboat/config"
	"lifeboat/verify"
)

// Options say what the device's files do not.
type Options struct {
	Compatible string   // what this device is; "": what the files say
	Slots      []string // devices of the copies of the system; nil: what the files say
}

// Result is what became of a configuration.
type Result struct {
	Conf  []byte // a system.conf that config.Parse accepts
	Notes []Note
}

// Note is one thing that the system.conf does not say as the other configuration did.
type Note struct {
	Kind string // Lost, Other or ByHand
	Text string // one line
}

const (
	Lost   = "lost"    // it has no counterpart
	Other  = "other"   // it is so in another way
	ByHand = "by hand" // it remains to be done
)

func (n Note) String() string { return n.Kind + ": " + n.Text }

// Import reads the configuration of "rauc", "mender" or "swupdate" below dir. Where no system.conf comes of it, the notes
// are there beside the error.
func Import(from, dir string, o Options) (Result, error) {
	d := &draft{dir: dir, options: o}
	var err error
	switch from {
	case "rauc":
		err = d.rauc()
	case "mender":
		err = d.mender()
	case "swupdate":
		err = d.swupdate()
	default:
		return Result{}, fmt.Errorf("%q is none of rauc, mender and swupdate", from)
	}
	if err != nil {
		return Result{Notes: d.notes}, err
	}
	d.compatible = cmp.Or(o.Compatible, d.compatible)
	if d.compatible == "" {
		return Result{Notes: d.notes}, errors.New("nothing below " + dir + " says what this device is: --compatible NAME does")
	}
	d.always()
	r := Result{Conf: d.render(from), Notes: d.notes}
	if _, err := config.Parse(r.Conf); err != nil {
		return Result{Notes: d.notes}, fmt.Errorf("what the configuration says cannot be done here: %w", err)
	}
	return r, nil
}

// draft is a system.conf that comes to be.
type draft struct {
	dir     string
	options Options
	notes   []Note

	compatible, bootloader            string
	system, keyring, loader, fallback []pair
	slots                             []slot
}

type pair struct{ key, value string }

type slot struct {
	name string // "rootfs.0"
	keys []pair
}

func (s slot) get(key string) string {
	for _, p := range s.keys {
		if p.key == key {
			return p.value
		}
	}
	return ""
}

func (d *draft) note(kind, format string, args ...any) {
	d.notes = append(d.notes, Note{kind, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ")})
}

// always says what no other updater has and every device here needs.
func (d *draft) always() {
	d.note(ByHand, "a partition of at least 8 MiB without a file system with the label state: the record of boots lies there ([state] device=)")
	d.note(ByHand, "each slot needs room behind its image for the hash tree and the seal, about 1 %% of it and 128 KiB (docs/system.md); a file system in it must not be grown to the slot's end")
	d.note(ByHand, "the slots have no seal yet: the first install makes one, or \"lifeboat image disk\" for a new device")
}

func (d *draft) render(from string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Made by \"lifeboat config import %s\". docs/system.conf.example has all that can be said here.\n", from)
	section := func(name string, keys []pair) {
		if len(keys) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n[%s]\n", name)
		for _, p := range keys {
			fmt.Fprintf(&b, "%s=%s\n", p.key, strings.ReplaceAll(p.value, `\`, `\\`))
		}
	}
	section("system", append([]pair{{"compatible", d.compatible}, {"bootloader", d.bootloader}}, d.system...))
	section("keyring", d.keyring)
	section("state", []pair{{"device", "PARTLABEL=state"}})
	for _, s := range d.slots {
		section("slot."+s.name, s.keys)
	}
	section("bootloader", d.loader)
	section("fallback", d.fallback)
	return b.Bytes()
}

// maxFile bounds what is read of a file: no configuration is larger.
const maxFile = 256 << 10

// first returns the first of these files that is there.
func (d *draft) first(names ...string) (file string, b []byte, err error) {
	for _, file := range names {
		if b, err := d.read(file); b != nil || err != nil {
			return file, b, err
		}
	}
	return "", nil, errors.New("there is no " + names[0] + " below " + d.dir)
}

// read returns a file below dir, nil where it is not there.
func (d *draft) read(name string) ([]byte, error) {
	root, err := os.OpenRoot(d.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(follow(root, strings.TrimPrefix(name, "/")))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return b, err
}

// follow goes along absolute links, which start at the device's root and not at this machine's.
func follow(root *os.Root, name string) string {
	parts := strings.Split(filepath.Clean(name), "/")
	for i, links := 1, 0; i <= len(parts) && links < 16; i++ {
		to, err := root.Readlink(filepath.Join(parts[:i]...))
		if err == nil && filepath.IsAbs(to) {
			parts = append(strings.Split(strings.TrimPrefix(filepath.Clean(to), "/"), "/"), parts[i:]...)
			i, links = 0, links+1
		}
	}
	return filepath.Join(parts...)
}

// device returns how early boot finds a device. One that it cannot find by that name gets a label instead.
func (d *draft) device(where, device, label string) string {
	test := "[system]\ncompatible=x\nbootloader=raw\n[state]\ndevice=PARTLABEL=state\n" +
		"[slot.a.0]\nbootname=A\ndevice=" + device + "\n[slot.a.1]\nbootname=B\ndevice=PARTLABEL=_\n"
	if _, err := config.Parse([]byte(test)); err == nil {
		return device
	}
	d.note(ByHand, "%s: early boot finds %s by its label only: sgdisk --change-name=N:%s", where, device, label)
	return "PARTLABEL=" + label
}

// mount is a line of /etc/fstab.
type mount struct{ device, at, kind string }

func (d *draft) mounts() []mount {
	b, _ := d.read("etc/fstab")
	var all []mount
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) >= 3 && !strings.HasPrefix(f[0], "#") && strings.HasPrefix(f[1], "/") {
			all = append(all, mount{f[0], filepath.Clean(f[1]), f[2]})
		}
	}
	slices.SortStableFunc(all, func(a, b mount) int { return len(b.at) - len(a.at) })
	return all
}

// onFAT finds the FAT file system that a file of the running system lies in, by /etc/fstab: its device, and the file's
// path in it.
func (d *draft) onFAT(file string) (device, inside string, ok bool) {
	for _, m := range d.mounts() {
		if rest, below := strings.CutPrefix(file, strings.TrimSuffix(m.at, "/")+"/"); below {
			fat := m.kind == "vfat" || m.kind == "msdos"
			if m.kind == "auto" {
				fat = m.at != "/"
			}
			return m.device, "/" + rest, fat
		}
	}
	return "", "", false
}

// files says where the boot loader's variables lie, by paths of the running system.
func (d *draft) files(where string, paths ...string) {
	var inside []string
	device := ""
	for _, p := range paths {
		dev, in, ok := d.onFAT(p)
		if !ok {
			d.note(ByHand, "%s: /etc/fstab does not say in which FAT file system %s lies: [bootloader] device= and files= do, and it must be FAT", where, p)
			return
		}
		if device != "" && dev != device {
			d.note(Lost, "%s: %s lies on another device: both copies must lie on one", where, p)
			continue
		}
		device = dev
		inside = append(inside, in)
	}
	d.loader = append(d.loader, pair{"device", d.device(where, device, "esp")}, pair{"files", strings.Join(inside, " ")})
}

// environment reads fw_env.config: where U-Boot's variables lie.
func (d *draft) environment() error {
	const where = "/etc/fw_env.config"
	b, err := d.read(where)
	if err != nil {
		return err
	}
	if b == nil {
		d.note(ByHand, "%s is not there: [bootloader] device=, offsets= or files=, and size= say where U-Boot keeps its variables", where)
		return nil
	}
	var devices, files, offsets []string
	var size int64
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 3 {
			return fmt.Errorf("%s: %q is not DEVICE OFFSET SIZE", where, strings.TrimSpace(line))
		}
		offset, err1 := strconv.ParseInt(f[1], 0, 64)
		n, err2 := strconv.ParseInt(f[2], 0, 64)
		switch {
		case err1 != nil || err2 != nil || n <= 0:
			return fmt.Errorf("%s: %q is not DEVICE OFFSET SIZE", where, strings.TrimSpace(line))
		case offset < 0:
			d.note(ByHand, "%s: the offset %s counts from the end of %s: write it as bytes from its start into [bootloader] offsets=", where, f[1], f[0])
			return nil
		case size != 0 && n != size:
			return fmt.Errorf("%s: the copies have %d and %d bytes", where, size, n)
		}
		size = n
		if strings.HasPrefix(f[0], "/dev/") {
			devices, offsets = append(devices, f[0]), append(offsets, fmt.Sprintf("%#x", offset))
		} else {
			files = append(files, f[0])
		}
	}
	switch {
	case size == 0:
		return fmt.Errorf("%s names no place", where)
	case len(files) > 0 && len(devices) > 0:
		return fmt.Errorf("%s has a copy in a file and one on a device", where)
	case len(files)+len(devices) > 2:
		return fmt.Errorf("%s has %d copies", where, len(files)+len(devices))
	case len(files)+len(devices) == 1:
		d.note(ByHand, "%s has one copy: a power cut while it is written loses it. Build U-Boot with CONFIG_SYS_REDUNDAND_ENVIRONMENT and give it a second", where)
	}
	if len(files) > 0 {
		d.files(where, files...)
	} else {
		if len(devices) == 2 && devices[0] != devices[1] {
			d.note(Lost, "%s: the second copy lies on %s: both copies must lie on one device", where, devices[1])
			offsets = offsets[:1]
		}
		d.loader = append(d.loader, pair{"device", d.device(where, devices[0], "env")}, pair{"offsets", strings.Join(offsets, " ")})
	}
	d.loader = append(d.loader, pair{"size", fmt.Sprintf("%#x", size)})
	return nil
}

// trusts looks at the file whose certificates the other updater trusts.
func (d *draft) trusts(where, file string) {
	b, err := d.read(file)
	if err != nil || b == nil {
		d.note(ByHand, "%s: %s goes into the initramfs: lifeboat initramfs build --keyring (PEM certificates are taken as they are)", where, file)
		return
	}
	k, err := verify.ParseKeyring(b)
	if err != nil {
		d.note(ByHand, "%s: %s is no keyring (%v): bundles are signed with certificates, \"lifeboat keys\" makes them", where, file, err)
		return
	}
	d.note(ByHand, "%s: %s is taken as it is, with %d anchors: lifeboat initramfs build --keyring %s", where, file, len(k.Anchors), filepath.Join(d.dir, file))
}

// twoSlots makes the slots of a device that has two copies of its system.
func (d *draft) twoSlots(where string, devices []string, names [2]string) error {
	if d.options.Slots != nil {
		devices = d.options.Slots
	}
	if len(devices) == 0 {
		devices = []string{"PARTLABEL=rootfs.0", "PARTLABEL=rootfs.1"}
		d.note(ByHand, "%s does not say where the copies of the system lie: give their partitions the labels rootfs.0 and rootfs.1, or say --slot DEVICE twice", where)
	}
	if len(devices) != 2 {
		return fmt.Errorf("%s: %d copies of the system, two are expected", where, len(devices))
	}
	for i, dev := range devices {
		name := fmt.Sprintf("rootfs.%d", i)
		d.slots = append(d.slots, slot{name, []pair{{"device", d.device(where, dev, name)}, {"bootname", names[i]}}})
	}
	return nil
}
