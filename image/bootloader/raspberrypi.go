package bootloader

import (
	"fmt"

	"lifeboat/boot"
	"lifeboat/boot/raspberrypi"
	"lifeboat/config"
	"lifeboat/disk"
)

// Autoboot returns the autoboot.txt of a Raspberry Pi that leaves the factory, as long as it will ever be. file is as in
// [GRUB].
func Autoboot(c *config.Config, file string) ([]byte, error) {
	parts, err := partitions(c, file)
	if err != nil {
		return nil, err
	}
	var names []string
	var numbers []int
	var v boot.Vars
	for _, p := range parts {
		if p.index == 0 {
			return nil, fmt.Errorf("%w, and %s has only a label", ErrLabel, p.label)
		}
		names, numbers, v.Order = append(names, p.name), append(numbers, p.index), append(v.Order, boot.Turn{Name: p.name})
	}
	memory := disk.NewMemory(raspberrypi.Size)
	if err := raspberrypi.New([]disk.Device{memory}, names, numbers, raspberrypi.Firmware{}).Write(v); err != nil {
		return nil, err
	}
	b := make([]byte, memory.Size())
	_, err = memory.ReadAt(b, 0)
	return b, err
}
