// Package raspberrypi speaks with the boot loader of the Raspberry Pi: autoboot.txt in the first FAT partition says from
// which partition it loads firmware configuration, kernel and initramfs, and from which one when the system asked for
// "tryboot" as it restarted. It does not count and writes nothing; a try is one-shot because a restart of any other kind
// forgets it. The file has at most 512 bytes and is written over where it lies, in one sector, after the file that is kept
// beside it holds what was there before. docs/formats.md has an example.
package raspberrypi

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"

	"lifeboat/boot"
	"lifeboat/disk"
)

const (
	File = "/autoboot.txt" // in the first FAT partition
	Kept = "/autoboot.old" // what was there before
	Size = 512             // bytes of both: the boot loader reads no more
)

// Firmware is what the boot loader says of this boot in the device tree's /chosen/bootloader.
type Firmware struct {
	Partition int    // from which it started the kernel; 0: not said
	Tried     bool   // it did so because tryboot was asked for
	Boot      string // the kernel's identity of this boot, at least its first 8 characters
}

// Loader is a boot.Loader over autoboot.txt.
type Loader struct {
	copies []disk.Device
	names  []string
	parts  []int
	fw     Firmware
}

// New returns the Loader for slots with these bootnames, whose kernels lie in the partitions with these numbers. copies are
// autoboot.txt, and the file that keeps what was there before.
func New(copies []disk.Device, names []string, parts []int, fw Firmware) *Loader {
	return &Loader{copies, names, parts, fw}
}

// Most: it does not count.
func (l *Loader) Most() uint8 { return 0 }

// Started returns the bootname of the slot whose partition was started, "" where that is not known.
func (l *Loader) Started() string {
	for i, n := range l.parts {
		if n == l.fw.Partition && n > 0 {
			return l.names[i]
		}
	}
	return ""
}

// Reboot returns what the restart has to say so that Next is started.
func (l *Loader) Reboot() string { return "0 tryboot" }

// Read returns what autoboot.txt says, or what was there before where it says nothing.
func (l *Loader) Read() (boot.Vars, error) {
	b, err := l.load()
	if err != nil {
		return boot.Vars{}, err
	}
	v, _ := l.parse(b)
	return v, nil
}

func (l *Loader) load() ([]byte, error) {
	failed := error(nil)
	for _, c := range l.copies {
		b, err := read(c)
		if err != nil {
			failed = err
		} else if v, _ := l.parse(b); len(v.Order) > 0 {
			return b, nil
		}
	}
	if failed != nil {
		return nil, failed
	}
	return nil, boot.ErrNoVars
}

func read(c disk.Device) ([]byte, error) {
	b := make([]byte, min(c.Size(), Size))
	if n, err := c.ReadAt(b, 0); n < len(b) || n == 0 {
		return nil, errors.Join(errors.New("autoboot.txt cannot be read"), err)
	}
	return b, nil
}

// Write writes what was there to the file that is kept, then autoboot.txt.
func (l *Loader) Write(v boot.Vars) error {
	old, err := l.load()
	if err != nil && err != boot.ErrNoVars {
		return err
	}
	var next []byte
	if next, err = l.format(v, old); err != nil {
		return err
	}
	if now, err := read(l.copies[0]); err == nil && len(l.copies) > 1 && bytes.Equal(now, old) {
		_ = write(l.copies[1], old) // what is not kept costs no update
	}
	if err := write(l.copies[0], next); err != nil {
		return err
	}
	now, err := read(l.copies[0])
	if err == nil && !bytes.Equal(bytes.TrimRight(now, "\n"), bytes.TrimRight(next, "\n")) {
		err = errors.New("autoboot.txt was written and reads differently")
	}
	return err
}

// write fills a file up with line breaks: its size cannot change.
func write(c disk.Device, b []byte) error {
	b = bytes.TrimRight(b, "\n")
	size := int(min(c.Size(), Size))
	if len(b)+1 > size {
		return errors.New("autoboot.txt has " + strconv.Itoa(size) + " bytes: it needs 512 that are allocated, fill it up with line breaks")
	}
	b = append(bytes.Clone(b), bytes.Repeat([]byte("\n"), size-len(b))...)
	if _, err := c.WriteAt(b, 0); err != nil {
		return err
	}
	return c.Flush()
}

// ours begins the comment that keeps what the boot loader has no place for: the boot that asked for a try, and the order.
const ours = "#lifeboat "

// parse returns what a file says, with no Order where it names no slot's partition; and the lines that are not ours.
func (l *Loader) parse(b []byte) (v boot.Vars, kept []string) {
	section, first, try := "[all]", "", ""
	names := l.names
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	for _, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		number, is := strings.CutPrefix(line, "boot_partition=")
		note, noted := strings.CutPrefix(line, ours)
		switch {
		case noted:
			if f := strings.Fields(note); len(f) > 0 {
				names = f[1:]
				if l.fw.Tried && !strings.HasPrefix(l.fw.Boot, f[0]) {
					try = "-" // this boot is the one that was asked for
				}
			}
		case is && section == "[all]":
			first = l.of(number)
		case is && section == "[tryboot]" && try == "":
			try = l.of(number)
		case is && section == "[tryboot]", line == "", strings.HasPrefix(line, "tryboot_a_b="):
		default:
			if strings.HasPrefix(line, "[") {
				section = line
			}
			kept = append(kept, line)
		}
	}
	if first == "" {
		return v, kept
	}
	if try != "-" && try != first {
		v.Next = try
	}
	v.Order = []boot.Turn{{Name: first}}
	for _, n := range names {
		if l.part(n) > 0 && !slices.Contains(v.Order, boot.Turn{Name: n}) {
			v.Order = append(v.Order, boot.Turn{Name: n})
		}
	}
	return v, kept
}

// of returns the slot of a partition.
func (l *Loader) of(number string) string {
	for i, n := range l.parts {
		if strconv.Itoa(n) == number {
			return l.names[i]
		}
	}
	return ""
}

// part returns the partition of a slot, 0 where it has none.
func (l *Loader) part(name string) int {
	for i, n := range l.names {
		if n == name {
			return l.parts[i]
		}
	}
	return 0
}

// format returns the file: what is ours in its first half, so that a sector of which only half was written says all of it,
// then what was kept of the old one.
func (l *Loader) format(v boot.Vars, old []byte) ([]byte, error) {
	if len(v.Order) == 0 || l.part(v.Order[0].Name) == 0 || v.Next != "" && l.part(v.Next) == 0 {
		return nil, errors.New("autoboot.txt has to name a partition")
	}
	s := ours + l.fw.Boot[:min(8, len(l.fw.Boot))]
	if len(l.fw.Boot) == 0 {
		s = ours + "-"
	}
	for _, t := range v.Order {
		s += " " + t.Name
	}
	s += "\n[all]\ntryboot_a_b=1\nboot_partition=" + strconv.Itoa(l.part(v.Order[0].Name)) + "\n"
	if v.Next != "" {
		s += "[tryboot]\nboot_partition=" + strconv.Itoa(l.part(v.Next)) + "\n"
	}
	_, kept := l.parse(old)
	section := "[all]"
	for i, line := range kept {
		if strings.HasPrefix(line, "[") {
			section = line
			if i+1 == len(kept) || strings.HasPrefix(kept[i+1], "[") {
				section = "[all]" // nothing is left in it
			}
			continue
		}
		if section != "" {
			s += section + "\n"
			section = ""
		}
		s += line + "\n"
	}
	return []byte(s), nil
}
