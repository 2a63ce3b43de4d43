package update

import (
	"cmp"
	"context"

	"lifeboat/boot"
	"lifeboat/config"
	"lifeboat/slots"
	"lifeboat/status"
)

// Child is a class of slots that goes with the boot slots: one bundle fills both, and a boot slot is what it says only
// if each slot that goes with it bears a seal of the same manifest.
type Child struct {
	Class string
	Room  int64             // bytes of the smallest
	Slots map[string]string // by the boot slot that each goes with
	Tree  *config.Tree      // as [config.Slot] has it
}

// ChildrenOf returns what a configuration says of groups. size is that of a slot in bytes, 0 where it is not known.
func ChildrenOf(c *config.Config, size func(slot string) int64) []Child {
	var all []Child
	for n, b := range c.BootSlots() {
		for i, s := range c.Group(b.Name) { // the same classes in the same order with each
			if n == 0 {
				all = append(all, Child{Class: s.Class, Slots: map[string]string{}, Tree: s.Tree})
			}
			all[i].Slots[b.Name] = s.Name
			if r := size(s.Name); r > 0 && (all[i].Room == 0 || r < all[i].Room) {
				all[i].Room = r
			}
		}
	}
	return all
}

// Member is a slot that goes with a boot slot, and what its seal says.
type Member struct {
	Slot, Class string
	Facts       slots.Facts
}

// members returns a boot slot and those that go with it.
func (d *Device) members(slot string) []string {
	all := []string{slot}
	for _, c := range d.Children {
		all = append(all, c.Slots[slot])
	}
	return all
}

// with returns what goes with a slot whose group was judged.
func (d *Device) with(slot string) []Member {
	var all []Member
	for _, c := range d.Children {
		s := c.Slots[slot]
		all = append(all, Member{s, c.Class, d.geometry[s]})
	}
	return all
}

// class returns the image class of a slot.
func (d *Device) class(slot string) string {
	for _, c := range d.Children {
		for _, s := range c.Slots {
			if s == slot {
				return c.Class
			}
		}
	}
	if !config.Slim {
		return cmp.Or(d.loaderClass(slot), d.Class)
	}
	return d.Class
}

// parts is what a bundle for this device holds.
func (d *Device) parts() []part {
	all := []part{{d.Class, d.Room, d.Tree}}
	for _, c := range d.Children {
		all = append(all, part{c.Class, c.Room, c.Tree})
	}
	return all
}

// judgeGroup reads the seals of a boot slot and of those that go with it, or all of them whole. What is known of the
// boot slot is what is known of the worst.
func (d *Device) judgeGroup(ctx context.Context, slot string, whole bool) boot.Seal {
	a, _ := d.attest(ctx, slot, whole, nil)
	d.geometry[slot] = a.Facts
	s := a.Seal
	for _, c := range d.Children {
		if s.Status != boot.SealValid || s.Whole == boot.WholeDamaged {
			break // it gets no worse
		}
		m := c.Slots[slot]
		a, _ := d.attest(ctx, m, whole, nil)
		d.geometry[m] = a.Facts
		var why string
		if s, why = joined(s, a.Seal); why != "" {
			d.note("slot " + d.Name(slot) + ": " + d.Name(m) + " " + why)
		}
	}
	return s
}

// joined is what is known of a slot together with another that goes with it. why is in words, where that is less.
func joined(s, with boot.Seal) (both boot.Seal, why string) {
	switch {
	case with.Status != boot.SealValid:
		return boot.Seal{Status: with.Status}, "reason=" + with.Reason().String()
	case with.Manifest != s.Manifest:
		return boot.Seal{Status: boot.SealFalse}, "is of another bundle reason=" + status.SealFalse.String()
	case with.Whole == boot.WholeDamaged:
		why = "reason=" + status.VerityError.String()
	}
	s.Local = s.Local || with.Local
	if with.Whole == boot.WholeDamaged || with.Whole == boot.WholeUnread {
		s.Whole = with.Whole
	}
	return s, why
}
