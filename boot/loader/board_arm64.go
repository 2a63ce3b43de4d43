//go:build !raw

package loader

import (
	"lifeboat/boot"
	"lifeboat/boot/barebox"
	"lifeboat/boot/raspberrypi"
	"lifeboat/config"
	"lifeboat/disk"
)

// board opens what the boot loaders of boards keep, whose own words stand in the device tree.
func board(c *config.Config, at Place, names []string) (boot.Loader, error) {
	if c.Bootloader == "raspberrypi" {
		files, err := copies(c, at, []string{raspberrypi.File, raspberrypi.Kept}, raspberrypi.Size)
		var parts []int
		for _, n := range names {
			parts = append(parts, kernelOf(c, at, n).Part)
		}
		if err != nil {
			return nil, err
		}
		return raspberrypi.New(files, names, parts, raspberrypi.ReadFirmware("/proc")), nil
	}
	layout, err := barebox.ReadLayout("/proc/device-tree", "state")
	if err != nil {
		return nil, err
	}
	dev, err := disk.Open(at.Block.Path(), true)
	if err != nil {
		return nil, err
	}
	off := int64(0)
	if len(c.Loader.Offsets) > 0 {
		off = c.Loader.Offsets[0]
	}
	if dev.EraseSize() > 0 {
		return barebox.NewFlash(dev, layout, names)
	}
	return barebox.New(disk.Section(dev, off, dev.Size()), layout, names)
}
