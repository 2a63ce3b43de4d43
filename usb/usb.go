// Package usb finds sticks: disks behind a USB host controller. It reads sysfs only; what is on a stick
// is not looked at.
package usb

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"

	"lifeboat/disk"
)

// Stick is a disk behind USB.
type Stick struct {
	Block disk.Block
	Parts []disk.Block // its partitions as the kernel has found them, by number; maybe none
	// ID is 16 hexadecimal characters that stay the same for a stick in whatever port, boot after boot: a hash of its USB vendor,
	// product and serial number, the logical unit, and its size. Sticks of one make without a serial number share it.
	ID    string
	Label string // for people: "sda: QEMU HARDDISK 64 MiB"
}

// Sticks lists the disks behind USB with their partitions, in the order of disk.Blocks.
func Sticks(sysfs string) ([]Stick, error) {
	blocks, err := disk.Blocks(sysfs)
	if err != nil {
		return nil, fmt.Errorf("look for sticks: %w", err)
	}
	var sticks []Stick
	for _, b := range blocks {
		switch n := len(sticks); {
		case !b.USB:
		case b.Part == 0:
			sticks = append(sticks, describe(sysfs, b))
		case n > 0 && sticks[n-1].Block.Name == b.Disk: // partitions follow their disk
			sticks[n-1].Parts = append(sticks[n-1].Parts, b)
		}
	}
	return sticks, nil
}

func describe(sysfs string, b disk.Block) Stick {
	s := Stick{Block: b, Label: b.Name + ": " + size(b.Size)}
	dir, err := filepath.EvalSymlinks(filepath.Join(sysfs, "class/block", b.Name))
	if err != nil {
		return s // just pulled out: opening it will fail and say so
	}
	device := usbDevice(dir)
	attr := func(dir, name string) string {
		if dir == "" {
			return ""
		}
		text, _ := disk.Attr(dir, name) // many sticks have no serial number
		return text
	}
	scsi, err := filepath.EvalSymlinks(filepath.Join(dir, "device")) // .../H:C:T:L
	unit := ""
	if err == nil {
		unit = filepath.Base(scsi)
		unit = unit[strings.LastIndexByte(unit, ':')+1:]
	}
	// %q, so that no choice of strings by one stick makes the text of another.
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %d", attr(device, "idVendor"), attr(device, "idProduct"),
		attr(device, "serial"), unit, b.Size))
	s.ID = hex.EncodeToString(sum[:8])

	vendor := cmp.Or(printable(attr(scsi, "vendor")), printable(attr(device, "manufacturer")))
	model := cmp.Or(printable(attr(scsi, "model")), printable(attr(device, "product")))
	name := model
	if !strings.HasPrefix(model, vendor) {
		name = vendor + " " + model
	}
	if name = strings.TrimSpace(name); name != "" {
		s.Label = b.Name + ": " + name + " " + size(b.Size)
	}
	return s
}

// usbDevice is the USB device that dir lies under: the deepest element like 2-1 or 2-1.4 below the bus.
func usbDevice(dir string) string {
	root, ok := disk.USBPath(dir)
	if !ok {
		return dir
	}
	device := root
	for at := root; ; {
		name, _, _ := strings.Cut(strings.TrimPrefix(dir[len(at):], "/"), "/")
		if !isDevice(name) {
			return device
		}
		at = filepath.Join(at, name)
		device = at
	}
}

// isDevice is true for "2-1" and "2-1.4.2", not for a bus ("usb2") or an interface ("2-1:1.0").
func isDevice(name string) bool {
	bus, ports, ok := strings.Cut(name, "-")
	return ok && digits(bus, "") && digits(ports, ".")
}

func digits(s, others string) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && !strings.ContainsRune(others, c) {
			return false
		}
	}
	return s != ""
}

// printable keeps of a stick's own words what can't confuse a console: ASCII, at most 32 characters.
func printable(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < 0x20 || c > 0x7e {
			return '?'
		}
		return c
	}, strings.TrimSpace(s))
	return s[:min(len(s), 32)]
}

func size(n int64) string {
	if n >= 10<<30 {
		return fmt.Sprintf("%d GiB", n>>30)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
