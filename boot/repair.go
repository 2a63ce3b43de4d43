package boot

import (
	"slices"

	"lifeboat/status"
)

// guardRepair stands for the copying of slots.
var guardRepair = [8]byte{'r', 'e', 'p', 'a', 'i', 'r'}

// damaged reports whether a slot is known to hold a system that was admitted and is there no more as its seal said:
// what a repair may write over, if its image proves to be wrong.
func (s State) damaged(e Entry, p Policy) bool {
	return (e.Reason == status.SealMissing || e.Reason == status.SealFalse || e.Reason == status.VerityError) && !e.Empty() && !e.Excluded && s.admits(e, p)
}

// Repair returns a damaged slot and another that holds the same bundle and qualifies, from which it may be copied; ""
// while there are none, or where repairs ended badly and wait for their turn (rule 22).
func Repair(s State, f Facts, p Policy) (target, source string) {
	if !p.Repair || f.ReadOnly || f.Rescue || s.Unproven || s.Guarded(guardRepair) {
		return "", ""
	}
	for _, e := range s.Slots {
		if !s.damaged(e, p) {
			continue
		}
		for _, o := range s.Slots {
			if o.Slot != e.Slot && o.Manifest == e.Manifest && s.Qualifies(o, p) {
				return e.Slot, o.Slot
			}
		}
	}
	return "", ""
}

// Holds returns a slot that should hold an offered bundle and that may have to be repaired with it; "" if there is none.
func Holds(s State, o Offer, p Policy) string {
	if i := slices.IndexFunc(s.Slots, func(e Entry) bool { return e.Manifest == o.Manifest }); i >= 0 && p.Repair {
		return s.Slots[i].Slot
	}
	return ""
}

// repairs returns the damaged slot that an offered bundle is what it was; "" if there is none.
func (s State) repairs(o Offer, p Policy) string {
	if !p.Repair || s.Unproven || s.Guarded(GuardID(o.Manifest)) || slices.ContainsFunc(s.Falls, func(f Fall) bool { return f.Manifest == o.Manifest }) {
		return ""
	}
	if i := slices.IndexFunc(s.Slots, func(e Entry) bool { return e.Manifest == o.Manifest && s.damaged(e, p) }); i >= 0 {
		return s.Slots[i].Slot
	}
	return ""
}

// RepairBegun says that slots are about to be read whole for a repair: a boot that ends then ended by that.
func RepairBegun(s State) State {
	s = s.Clone()
	s.Mark = MarkRepair
	return s
}

// NoteRepair notes a repair as an install is noted: it must be durable before the old seal is wiped.
func NoteRepair(s State, target string, p Policy) State {
	s = s.Clone()
	m := s.Entry(target).Manifest
	s.Install = Install{Target: target, Manifest: m}
	s.log(p, status.EventRepair, target, s.Entry(target).Reason, 0, m)
	return s
}

// Repaired takes a slot in again that holds what its entry says: as it was, with another round of tries, behind all others.
func Repaired(s State, target string, p Policy) State {
	s = s.Clone()
	s.set(s.again(s.Entry(target), p))
	s.toBack(target)
	s.Install, s.Mark = Install{}, MarkNone
	s.unguard(guardRepair)
	if m := s.Entry(target).Manifest; s.isStaged(m) {
		s.Staged = Staged{}
	}
	s.unguard(GuardID(s.Entry(target).Manifest))
	s.log(p, status.EventRepaired, target, status.None, 0, s.Entry(target).Manifest)
	return s
}

// RepairEnded takes a repair back that came to nothing. The next ones come ever more rarely.
func RepairEnded(s State, wiped bool) State {
	s = s.Clone()
	if e := s.Entry(s.Install.Target); wiped && e.Slot != "" {
		e.Reason = status.SealMissing
		s.set(e)
	}
	s.Install, s.Mark = Install{}, MarkNone
	s.guardRepair(true)
	return s
}

// guardRepair counts an end of a repair. The boot after an end that nobody saw always starts without one.
func (s *State) guardRepair(seen bool) {
	s.guard(guardRepair, seen)
	g := &s.Guards[len(s.Guards)-1]
	g.Next = s.Boot + 1<<min(max(g.Seen, g.Unexplained)-1, 10)
	if seen {
		g.Next++
	}
}
