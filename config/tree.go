package config

import (
	"fmt"
	"slices"
)

// Trees reports whether a slot takes archives.
func (c *Config) Trees() bool {
	return slices.ContainsFunc(c.Slots, func(s Slot) bool { return s.Tree != nil })
}

// Ext4 is what every file system that is made on the device has.
type Ext4 struct {
	Journal  int64 // bytes of the journal
	Reserved int   // percent of the blocks that are root's
}

func (c *Config) ext4(e entry) error {
	switch e.key {
	case "journal-size":
		if err := size(&c.Ext4.Journal, e.value); err != nil || c.Ext4.Journal < 4<<20 || c.Ext4.Journal > 1<<30 {
			return fmt.Errorf("%q is no number of bytes from 4M to 1G", clip(e.value))
		}
		return nil
	case "reserved":
		return number(&c.Ext4.Reserved, e.value, 0, 50)
	}
	return errUnknownKey
}

// Integrities are the kinds of dm-integrity that writable devices have, without "none".
func (c *Config) Integrities() (all []string) {
	for _, s := range c.Slots {
		if s.Tree != nil && s.Tree.Integrity != "none" && !slices.Contains(all, s.Tree.Integrity) {
			all = append(all, s.Tree.Integrity)
		}
	}
	if i := c.Data.Integrity; i != "" && i != "none" && !slices.Contains(all, i) {
		all = append(all, i)
	}
	return all
}

// Keyed is the kind that needs [Config.IntegrityKey].
const Keyed = "hmac-sha256"

func (s *Slot) treeKey(e entry) error {
	if s.Tree == nil {
		s.Tree = &Tree{Setuid: true}
	}
	switch e.key {
	case "integrity":
		return choice(&s.Tree.Integrity, e.value, "none", "crc32c", "sha256", "hmac-sha256")
	case "allow-devices":
		return boolean(&s.Tree.Devices, e.value)
	case "allow-setuid":
		return boolean(&s.Tree.Setuid, e.value)
	}
	return text(&s.Tree.Label, e.value, 16)
}

// checkTrees looks at the slots that take archives: an archive that fits one fits all of its class.
func (c *Config) checkTrees(lines map[string]int) error {
	first := map[string]Slot{}
	for _, s := range c.Slots {
		f, ok := first[s.Class]
		if !ok {
			first[s.Class], f = s, s
		}
		switch t := s.Tree; {
		case (t == nil) != (f.Tree == nil), t != nil && (t.Integrity != f.Tree.Integrity || t.Devices != f.Tree.Devices || t.Setuid != f.Tree.Setuid):
			return fmt.Errorf("line %d: [slot.%s] and [slot.%s] differ in integrity=, allow-devices= or allow-setuid=: a bundle fits only where they are the same", lines[s.Name], s.Name, f.Name)
		case t == nil:
		case t.Integrity == "":
			return fmt.Errorf("line %d: [slot.%s] has no integrity=: with none, crc32c, sha256 or hmac-sha256 it takes archives", lines[s.Name], s.Name)
		case s.Type != "ext4" || s.Bootname == "" && s.Parent == "":
			return fmt.Errorf("line %d: [slot.%s] has integrity=: that is for slots of type=ext4 with bootname= or parent=", lines[s.Name], s.Name)
		}
	}
	return nil
}
