// Package bootloader makes the scripts by which boot loaders choose a slot. They are made on the PC, for one
// configuration, and installed beside the boot loader.
package bootloader

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"lifeboat/config"
	"lifeboat/disk"
)

// ErrLabel says that a loader knows partitions by their number and the configuration by their label: a disk is needed.
var ErrLabel = errors.New("partitions are known by their number")

// partition is where the kernel and the initramfs of a slot lie.
type partition struct {
	name  string // bootname of the slot that it goes with
	label string // "" where it goes by its number alone
	index int    // as the kernel numbers it, 0: not known
}

// partitions returns where the kernels of all boot slots lie, in the order of the configuration: the slots of class boot that
// go with them. file is an image or a device in which labels are looked up, "" if none is at hand.
func partitions(c *config.Config, file string) ([]partition, error) {
	known := map[string]int{}
	if file != "" {
		d, err := disk.Open(file, false)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		parts, err := disk.Partitions(d, d.Size())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, p := range parts {
			known[p.Name] = p.Index
		}
	}
	var all []partition
	for _, slot := range c.BootSlots() {
		kernel, err := kernelSlot(c, slot)
		if err != nil {
			return nil, err
		}
		p := partition{name: slot.Bootname}
		if label, ok := config.PartLabel(kernel.Device); ok {
			p.label, p.index = label, known[label]
			if file != "" && p.index == 0 {
				return nil, fmt.Errorf("%s has no partition %s", file, label)
			}
		} else if p.index, err = partitionNumber(kernel.Device); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// kernelSlot returns the slot of class boot that goes with a boot slot: where its kernel and its initramfs lie.
func kernelSlot(c *config.Config, slot config.Slot) (config.Slot, error) {
	for _, g := range c.Group(slot.Name) {
		if g.Class == "boot" {
			return g, nil
		}
	}
	return config.Slot{}, fmt.Errorf("slot %s has no boot slot: [slot.boot.%d] with parent=%s, a FAT image with vmlinuz and initramfs", slot.Name, slot.Index, slot.Name)
}

// partitionNumber returns the number at the end of /dev/vda3, /dev/nvme0n1p3, /dev/mmcblk0p3, from 1 to 128.
func partitionNumber(device string) (int, error) {
	n, err := strconv.Atoi(device[len(strings.TrimRight(device, "0123456789")):])
	if err != nil || n < 1 || n > 128 {
		return 0, fmt.Errorf("%s is not a partition", device)
	}
	return n, nil
}
