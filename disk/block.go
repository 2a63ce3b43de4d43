package disk

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Block is a disk or a partition as the kernel shows it in sysfs.
type Block struct {
	Name         string // "vda2"
	Disk         string // "vda"; the same as Name for a whole disk
	PartName     string // the partition's label (PARTNAME), "" where there is none
	Part         int    // number of the partition, 0 for a whole disk
	Size         int64  // bytes, never 0
	Major, Minor uint32
	USB          bool // somewhere behind a USB host controller
	ReadOnly     bool
}

// Path is the device node as devtmpfs names it.
func (b Block) Path() string { return "/dev/" + strings.ReplaceAll(b.Name, "!", "/") }

// Blocks lists what storage the kernel has, disk by disk, each followed by its partitions by number. sysfs is where
// sysfs is mounted ("/sys"). Left out are devices without a size (an empty card reader), loop, RAM,
// device-mapper, optical and floppy drives: a slot is on none of them. A device that goes away while it is
// being looked at is left out too.
//
// Nothing is opened and nothing on a medium is parsed here; labels are those that the kernel found. USB is
// judged by the device's place (an element usb1, usb2 ... in its path), because `removable` is 0 for many sticks.
func Blocks(sysfs string) ([]Block, error) {
	class := filepath.Join(sysfs, "class/block")
	entries, err := os.ReadDir(class)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no block driver loaded yet
	}
	if err != nil {
		return nil, fmt.Errorf("list block devices: %w", err)
	}
	var blocks []Block
	for _, e := range entries {
		if virtual(e.Name()) {
			continue
		}
		b, err := readBlock(class, e.Name())
		if err != nil {
			if gone(err) {
				continue
			}
			return nil, fmt.Errorf("look at block device %s: %w", e.Name(), err)
		}
		if b.Size > 0 {
			blocks = append(blocks, b)
		}
	}
	sort.SliceStable(blocks, func(i, j int) bool { // as small as it gets in /init
		a, b := &blocks[i], &blocks[j]
		return cmp.Or(len(a.Disk)-len(b.Disk), // sdb before sdaa
			strings.Compare(a.Disk, b.Disk), a.Part-b.Part, strings.Compare(a.Name, b.Name)) < 0
	})
	return blocks, nil
}

// virtual is true for names of devices that are made of others or hold no lasting data.
func virtual(name string) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			return true
		}
	}
	return false
}

// gone is true for errors that an attribute gives when its device has been removed.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOTDIR)
}

func readBlock(class, name string) (Block, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(class, name))
	if err != nil {
		return Block{}, err
	}
	b := Block{Name: name, Disk: name}
	dev, err := Attr(dir, "dev")
	if err != nil {
		return b, err // hidden paths of a multipath NVMe have no number and can't be opened
	}
	major, minor, ok := strings.Cut(dev, ":")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return b, fmt.Errorf("device number %q", dev)
	}
	b.Major, b.Minor = uint32(ma), uint32(mi)

	text, err := Attr(dir, "size")
	if err != nil {
		return b, err
	}
	sectors, err := strconv.ParseUint(text, 10, 63-9) // of 512 bytes, whatever the device's own sector size
	if err != nil {
		return b, fmt.Errorf("size %q", text)
	}
	b.Size = int64(sectors) * 512

	// What follows is not there at once, or only on some: absent is not an error.
	if text, err := Attr(dir, "partition"); err == nil {
		if b.Part, err = strconv.Atoi(text); err != nil {
			return b, fmt.Errorf("partition number %q", text)
		}
		b.Disk = filepath.Base(filepath.Dir(dir))
	}
	if text, err := Attr(dir, "ro"); err == nil {
		b.ReadOnly = text == "1"
	}
	if text, err := Attr(dir, "uevent"); err == nil {
		for line := range strings.SplitSeq(text, "\n") {
			if label, ok := strings.CutPrefix(line, "PARTNAME="); ok {
				b.PartName = label
				break
			}
		}
	}
	_, b.USB = USBPath(dir)
	return b, nil
}

// Attr reads a sysfs attribute: at most 4 KiB, which is what sysfs gives, without the newline at its end.
func Attr(dir, name string) (string, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	var buf [4096]byte
	n, err := readSome(f, buf[:])
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(buf[:n]), "\n"), nil
}

// USBPath looks for a USB bus (an element usb1, usb2 ...) in the resolved sysfs path of a device. root is
// the path down to and including it.
func USBPath(dir string) (root string, ok bool) {
	for at := 0; at < len(dir); {
		end := at + 1
		for end < len(dir) && dir[end] != '/' {
			end++
		}
		if n, ok := strings.CutPrefix(strings.TrimPrefix(dir[at:end], "/"), "usb"); ok && n != "" {
			if _, err := strconv.ParseUint(n, 10, 16); err == nil {
				return dir[:end], true
			}
		}
		at = end
	}
	return "", false
}

// Find returns all blocks that a configured device string names: a node (/dev/vda2) or a label
// (PARTLABEL=rootfs.0, or /dev/disk/by-partlabel/rootfs.0 with udev's \x20 escapes). Labels are compared
// byte by byte. More than one match is for the caller to refuse; so is a match behind USB.
func Find(blocks []Block, device string) []Block {
	match := func(b Block) bool { return b.Path() == device }
	label, byLabel := strings.CutPrefix(device, "PARTLABEL=")
	if !byLabel {
		if label, byLabel = strings.CutPrefix(device, "/dev/disk/by-partlabel/"); byLabel {
			label = unescape(label)
		}
	}
	if byLabel {
		match = func(b Block) bool { return label != "" && b.PartName == label }
	}
	var found []Block
	for _, b := range blocks {
		if match(b) {
			found = append(found, b)
		}
	}
	return found
}

// unescape undoes udev's \xHH.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) && s[i+1] == 'x' {
			if c, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
