package boot

import (
	"slices"

	"lifeboat/status"
	"lifeboat/version"
)

// rescue says that nothing qualifies, or takes a slot when it is a slot's turn.
func (s State) rescue(f Facts, p Policy) Decision {
	if f.Retry && !f.Rescue {
		if d, ok := s.retry(f, p); ok {
			return d
		}
	}
	s.pending = ""
	d := Decision{Action: GoRescue, Reason: status.NoSlot}
	if f.Rescue {
		d.Reason = status.Requested
	}
	if n := len(s.Events) - 1; n < 0 || s.Events[n].Kind != status.EventRescue {
		s.log(p, status.EventRescue, "", d.Reason, 0, Hash{})
	}
	d.State = s
	return d
}

// Retries reports whether there is a slot that rescue may try in its turn (rule 18).
func Retries(s State, f Facts, p Policy) bool {
	s, _, _ = Absorb(s, f, p)
	return len(s.turns(f, p)) > 0
}

func (s *State) turns(f Facts, p Policy) []Entry {
	var turns []Entry
	for _, e := range s.Slots {
		seal := f.Seals[e.Slot]
		if s.retryable(e, p) && (seal.Status == SealUnknown || seal.Status == SealValid || seal.Status == SealUnreadable) {
			turns = append(turns, e)
		}
	}
	sortEntries(turns, func(a, b Entry) int {
		if a.Good != b.Good {
			if a.Good {
				return -1
			}
			return 1
		}
		return version.Compare(b.Version, a.Version)
	})
	return turns
}

// retry takes the next slot in turn, best first. Where the turn cannot be recorded, it is drawn by chance: a broken
// best slot would else be retried for ever.
func (s State) retry(f Facts, p Policy) (Decision, bool) {
	turns := s.turns(f, p)
	if len(turns) == 0 {
		return Decision{}, false
	}
	at := slices.IndexFunc(turns, func(e Entry) bool { return e.Slot == s.Rescue.Slot })
	slot := turns[(at+1)%len(turns)].Slot
	if f.ReadOnly {
		slot = turns[f.Chance%uint64(len(turns))].Slot
	}
	s.Rescue.Slot, s.Rescue.Stick = slot, false
	if s.Rescue.Waits < 8 {
		s.Rescue.Waits++
	}
	s.Mark = MarkNone
	if f.Started != "" && slot != f.Started {
		s.Turn, s.pending = slot, ""
		return Decision{Action: Restart, Slot: slot, State: s}, true
	}
	return s.start(Decision{Action: Boot, Slot: slot}, p), true
}

// readOnly decides when nothing can be counted (rule 20).
func (s State) readOnly(f Facts, p Policy) Decision {
	var may []Entry
	for _, e := range s.Slots {
		if e.Empty() || !s.admits(e, p) || e.Excluded {
			continue
		}
		_, failed := f.Failed[e.Slot]
		if f.Blind && f.Seals[e.Slot].Status == SealValid && !failed || e.Good && e.Reason == status.None {
			may = append(may, e)
		}
	}
	if f.Started != "" {
		// Nothing that is told to the boot loader would last; its own count brings the other slot in the end.
		may = slices.DeleteFunc(may, func(e Entry) bool { return e.Slot != f.Started })
		if f.Fresh != f.Started {
			f.Fresh = ""
		}
	}
	if i := s.index(f.Fresh); i >= 0 && (f.Blind || len(may) == 0) {
		// Somebody stands there with a stick, and nothing else can be vouched for.
		if _, failed := f.Failed[f.Fresh]; !failed && f.Seals[f.Fresh].Status == SealValid && s.admits(s.Slots[i], p) {
			return s.start(Decision{Action: Boot, Slot: f.Fresh}, p)
		}
	}
	if f.Rescue {
		return s.rescue(f, p)
	}
	if len(may) == 0 {
		if unseen := s.unseen(f, p); f.Blind && len(unseen) > 0 {
			return Decision{Action: Look, Slots: unseen}
		}
		return s.rescue(f, p)
	}
	e := may[0]
	if f.Blind {
		e = may[f.Chance%uint64(len(may))]
	}
	return s.start(Decision{Action: Boot, Slot: e.Slot}, p)
}

// Rebuild makes a State from the seals when both copies of the record are lost (rule 19).
func Rebuild(seals map[string]Seal, p Policy) State {
	var s State
	all := true
	for _, slot := range p.Slots {
		switch seal := seals[slot]; seal.Status {
		case SealValid:
			s.Slots = append(s.Slots, fresh(slot, seal, p))
		case SealMissing:
			// Readable: nothing is there that could be lower.
		default:
			all = false
		}
	}
	sortEntries(s.Slots, func(a, b Entry) int { return version.Compare(b.Version, a.Version) })
	if all && len(s.Slots) > 0 {
		low := s.Slots[len(s.Slots)-1]
		s.Floors.Version, s.Floors.Epoch = low.Version, low.Epoch
		for _, e := range s.Slots {
			s.Floors.Epoch = min(s.Floors.Epoch, e.Epoch)
		}
	}
	s.arrange(p)
	s.Unproven = true
	s.log(p, status.EventStateLost, "", status.StateLost, 0, Hash{})
	return s
}
