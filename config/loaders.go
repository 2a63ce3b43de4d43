package config

import (
	"fmt"
	"slices"
	"strings"
)

// Loaders returns the slots of the boot loader itself, which have two copies each and go with no other slot.
func (c *Config) Loaders() []Slot {
	var all []Slot
	for _, s := range c.Slots {
		if strings.HasPrefix(s.Type, "boot-") {
			all = append(all, s)
		}
	}
	return all
}

func (s *Slot) loaderKey(e entry) error {
	if s.Region == nil {
		s.Region = &Region{}
	}
	switch e.key {
	case "region-start":
		return size(&s.Region.Start, e.value)
	case "region-size":
		return size(&s.Region.Size, e.value)
	}
	return size(&s.Region.Limit, e.value)
}

// MaxLoaders is how many slots of the boot loader there may be.
const MaxLoaders = 3

// checkLoaders looks at the slots of the boot loader. booted has the classes that are booted.
func (c *Config) checkLoaders(lines map[string]int, booted map[string]int) error {
	if all := c.Loaders(); len(all) > MaxLoaders {
		return fmt.Errorf("%d slots of the boot loader, at most %d can be", len(all), MaxLoaders)
	}
	for i := range c.Slots {
		if s := &c.Slots[i]; !strings.HasPrefix(s.Type, "boot-") {
			s.Region = nil
		} else if s.Region == nil {
			s.Region = &Region{}
		}
	}
	all := c.Loaders()
	for i, s := range all {
		region, why := s.Type != "boot-emmc", ""
		if _, label := PartLabel(s.Device); label {
			why = "device= is the disk, /dev/NAME, and no partition"
		} else if s.Parent != "" {
			why = "it goes with no other slot: parent= is wrong here"
		} else if region && (s.Region.Size <= 0 || s.Region.Start%512 != 0 || s.Region.Size%1024 != 0) {
			why = "region-start= and region-size= are two halves of whole sectors of 512 bytes"
		} else if booted[s.Class] > 0 || slices.ContainsFunc(c.Slots, func(o Slot) bool { return o.Class == s.Class && o.Name != s.Name }) {
			why = "there is one slot of its class: it has its copies itself"
		} else if slices.ContainsFunc(all[:i], func(o Slot) bool {
			return o.Device == s.Device && (o.Type == s.Type && s.Type != "boot-raw-fallback" || o.Region.Start < s.Region.Start+s.Region.Size && s.Region.Start < o.Region.Start+o.Region.Size)
		}) {
			why = "it lies where another one does"
		}
		if why != "" {
			return fmt.Errorf("line %d: [slot.%s] is of type %s: %s", lines[s.Name], s.Name, s.Type, why)
		}
	}
	return nil
}
