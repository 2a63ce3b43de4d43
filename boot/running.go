package boot

import (
	"errors"
	"fmt"
	"slices"

	"lifeboat/status"
	"lifeboat/version"
)

// ErrOnlyGood means that a slot is the only one that ever said good; giving it up has to be asked for twice.
var ErrOnlyGood = errors.New("it is the only slot that ever said good")

// Good records that the system in a slot is well: its count is cleared, what is remembered against its bundle is
// forgotten, the floors rise as far as rule 17 allows, and under fallback=secure the other slots are excluded, except
// one that is on trial and has tries left (rule 16).
func Good(s State, slot string, p Policy) (State, error) {
	s = s.Clone()
	s.arrange(p)
	i := s.index(slot)
	if i < 0 || s.Slots[i].Empty() {
		return s, fmt.Errorf("slot %s has no entry in the state record", slot)
	}
	e := &s.Slots[i]
	news := !e.Good || e.Reason != status.None || e.Excluded || s.Unproven // else a boot like any other, which must not fill the history
	e.Good, e.Excluded, e.Tries, e.Reason = true, false, p.ConfirmedAttempts, status.None
	e.Ends, e.EndedSo, e.LastEnd, e.Back = 0, false, status.None, 0
	s.Falls = slices.DeleteFunc(s.Falls, func(f Fall) bool { return f.Manifest == e.Manifest })
	s.Rescue, s.Unproven = Rescue{}, false
	if s.Last.Slot == slot {
		s.Last.Trial = false
	}
	if p.Secure {
		for j := range s.Slots {
			if o := &s.Slots[j]; j != i && !o.Empty() && (o.Good || !s.Qualifies(*o, p)) {
				o.Excluded = true
			}
		}
	}
	s.raiseFloors(p)
	s.raiseTime(s.Slots[i].Created, p)
	s.Trust.settle()
	if news {
		s.log(p, status.EventGood, slot, status.None, 0, s.Slots[i].Manifest)
	}
	return s, nil
}

// raiseFloors lifts version and epoch to the lowest of the slots that qualify or that rescue may retry (rule 17).
func (s *State) raiseFloors(p Policy) {
	first := true
	var low Floors
	for _, e := range s.Slots {
		if !s.Qualifies(e, p) && !s.retryable(e, p) {
			continue
		}
		if first || version.Compare(e.Version, low.Version) < 0 {
			low.Version = e.Version
		}
		if first || e.Epoch < low.Epoch {
			low.Epoch = e.Epoch
		}
		first = false
	}
	if first {
		return
	}
	if version.Compare(low.Version, s.Floors.Version) > 0 {
		s.Floors.Version = low.Version
	}
	s.Floors.Epoch = max(s.Floors.Epoch, low.Epoch)
}

// Bad gives a slot up. Its bundle is remembered unless it ever said good here. Without force, the only slot that ever
// said good is refused with ErrOnlyGood (rule 12).
func Bad(s State, slot string, force bool, p Policy) (State, error) {
	s = s.Clone()
	s.arrange(p)
	i := s.index(slot)
	if i < 0 || s.Slots[i].Empty() {
		return s, fmt.Errorf("slot %s is empty", slot)
	}
	e := &s.Slots[i]
	others := slices.ContainsFunc(s.Slots, func(o Entry) bool { return o.Slot != slot && o.Good && s.Qualifies(o, p) })
	if e.Good && !others && !force {
		return s, ErrOnlyGood
	}
	e.Reason, e.Tries = status.ToldBad, 0
	if !s.wasGood(e.Manifest) {
		s.remember(e.Manifest, status.ToldBad)
	}
	if s.Wish == slot {
		s.Wish = ""
	}
	return s, nil
}

// Next wishes that a slot is booted once (rule 21).
func Next(s State, slot string, p Policy) (State, error) {
	s = s.Clone()
	s.arrange(p)
	if e := s.Entry(slot); !s.Qualifies(e, p) {
		why := e.Reason.String()
		if why == "" {
			why = "it is empty, excluded or has no tries left"
		}
		return s, fmt.Errorf("slot %s does not qualify: %s", slot, why)
	}
	s.Wish = slot
	return s, nil
}

// Deadline records that the running system's trial is over: it did not say good in time. The caller reboots.
func Deadline(s State, slot string, p Policy) (State, error) {
	s = s.Clone()
	s.arrange(p)
	i := s.index(slot)
	if i < 0 || s.Last.Slot != slot || !s.Last.Trial {
		return s, fmt.Errorf("slot %s is not on trial", slot)
	}
	e := &s.Slots[i]
	e.Ends, e.EndedSo, e.LastEnd = e.Ends+1, true, status.TrialDeadline
	s.log(p, status.EventEnd, slot, status.TrialDeadline, 0, e.Manifest)
	s.Last = Last{}
	return s, nil
}

// Ended records that the running system goes down in order, which is neither evidence against it nor a power loss. changed
// is false where nothing is to be recorded: the system is not on trial, or has said so.
func Ended(s State, slot string) (next State, changed bool) {
	if s.Last.Slot != slot || !s.Last.Trial || s.Last.Orderly {
		return s, false
	}
	s = s.Clone()
	s.Last.Orderly = true
	return s, true
}
