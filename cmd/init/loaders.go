package main

import (
	"lifeboat/disk"
	"lifeboat/update"
	"lifeboat/update/crew"
)

// loaders wires the slots of the boot loader itself.
func (d *device) loaders(u *update.Device) {
	u.Loaders = update.LoadersOf(d.cfg, crew.BootSize)
	if len(u.Loaders) == 0 {
		return
	}
	c := &crew.Copies{Config: d.cfg}
	if blocks, err := disk.Blocks(sysfs); err == nil && u.Policy.Loader {
		c.Vars, _ = beside(d.cfg.Loader.Device, blocks, d.found)
	}
	u.Copies, d.copies = c, c.Path
}
