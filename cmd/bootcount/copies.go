package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"lifeboat/boot/halves"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/update/crew"
)

// loaderSlot is a slot of the boot loader itself.
type loaderSlot struct {
	Slot   string `json:"slot"`
	Type   string `json:"type"`
	Active *int   `json:"active,omitempty"` // the copy that is started; left out where it is the first that has a header
	Error  string `json:"error,omitempty"`
}

// loaderSlots says which copies of the boot loader are started.
func loaderSlots(c *config.Config) []loaderSlot {
	var all []loaderSlot
	copies := &crew.Copies{Config: c}
	for _, s := range c.Loaders() {
		l := loaderSlot{Slot: s.Name, Type: s.Type}
		switch n, err := copies.Active(s.Name); {
		case err != nil:
			l.Error = err.Error()
		case n >= 0:
			l.Active = &n
		}
		all = append(all, l)
	}
	return all
}

func (l loaderSlot) String() string {
	switch {
	case l.Error != "":
		return l.Slot + ": " + l.Error
	case l.Active == nil:
		return l.Slot + ": the first copy with a header is started"
	}
	return fmt.Sprintf("%s: copy %d is started", l.Slot, *l.Active)
}

// bootloaders looks whether the boot loader could be updated.
func (p *patient) bootloaders() finding {
	f := finding{level: isOK, what: "boot"}
	var texts []string
	for _, l := range loaderSlots(p.cfg) {
		texts = append(texts, l.String())
		if s, _ := p.cfg.SlotByName(l.Slot); p.moves(s) {
			f.level, f.text = isBad, "the boot loader's variables lie in the first partition of "+s.Device+", which an update of the boot loader moves: it is refused"
			f.fix = "give them a partition of their own ([bootloader] device=)"
			return f
		}
		if l.Error != "" {
			f.level, f.fix = isBad, "device=, region-start= and region-size= say where its two copies lie (docs/bootloaders.md)"
		}
	}
	if len(texts) == 0 {
		return finding{}
	}
	f.text = strings.Join(texts, "; ")
	return f
}

// moves reports whether the boot loader's variables lie in the partition that a slot of the boot loader switches.
func (p *patient) moves(s config.Slot) bool {
	if !p.policy.Loader || s.Type != halves.MBRSwitch && s.Type != halves.GPTSwitch {
		return false
	}
	blocks, _ := disk.Blocks(filepath.Join(p.root, "sys"))
	b, err := beside(p.cfg.Loader.Device, blocks, p.report.Booted)
	return err == nil && "/dev/"+b.Disk == s.Device && b.Part == 1
}
