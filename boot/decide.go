package boot

import (
	"slices"

	"lifeboat/status"
	"lifeboat/version"
)

// SealStatus is what was found at the end of a slot's partition.
type SealStatus uint8

const (
	SealUnknown    SealStatus = iota // not looked at
	SealValid                        // whole, and signed by somebody in the keyring for this device
	SealMissing                      // no seal: never installed, or wiped
	SealFalse                        // a seal that is torn, forged or of another device
	SealUnreadable                   // an I/O error
)

// Whole says whether a slot was read whole against its root hash.
type Whole uint8

const (
	WholeUnread Whole = iota
	WholeRight
	WholeDamaged
)

// Seal is what is known of a slot's seal and, if Status is SealValid, what it says.
type Seal struct {
	Status   SealStatus
	Whole    Whole
	Manifest Hash
	Version  string
	Epoch    uint32
	Created  int64
	Local    bool // the root hash is not signed
}

// Reason says why a slot with this seal is not booted.
func (s Seal) Reason() status.Reason {
	switch {
	case s.Status == SealMissing:
		return status.SealMissing
	case s.Status == SealFalse:
		return status.SealFalse
	case s.Status == SealUnreadable:
		return status.Unreadable
	case s.Whole == WholeDamaged:
		return status.VerityError
	}
	return status.None
}

// Facts are what was found in this boot. The zero Facts say that nothing was looked at.
type Facts struct {
	Seals    map[string]Seal          // by slot
	Failed   map[string]status.Reason // slots that were tried in this boot and did not start
	Prefer   string                   // slot that the kernel command line prefers
	Rescue   bool                     // rescue is asked for
	Retry    bool                     // in rescue: it is a slot's turn
	Fresh    string                   // slot that rescue filled in this boot
	ReadOnly bool                     // the record cannot be written
	Blind    bool                     // the record cannot be read either
	Chance   uint64                   // drawn anew at each boot; used when Blind
	Started  string                   // slot that the boot loader chose and whose kernel runs; "": the choice is ours
}

// Action is what Decide wants.
type Action uint8

const (
	Look     Action = iota // read the seals of Slots, then decide again
	Attest                 // read Slots whole, then decide again
	Boot                   // make State durable, then start Slot
	GoRescue               // make State durable, then wait for a stick or for the next turn
	Restart                // make State durable, then restart, so that the boot loader starts Slot
)

// Fallback is the change from a slot that was given up to the one that is started instead.
type Fallback struct {
	From, To string
	Reason   status.Reason
}

// Decision is what to do next. State must be durable before Boot or GoRescue is acted on; when that fails the caller
// sets Facts.ReadOnly and decides again.
type Decision struct {
	Action   Action
	State    State
	Slots    []string // Look, Attest
	Slot     string   // Boot, Restart
	Trial    bool     // Boot: the slot has not said good
	Fallback *Fallback
	Reason   status.Reason // GoRescue
}

// Begin opens a boot: it counts it, accounts for how the last one ended and says whether sources outside may be
// looked at in this one. end is how the last boot ended as far as hardware and kernel know: status.Watchdog,
// status.Panic or status.None. Where look is true and outside is, the State must be durable before anything from
// outside is touched (rule 2). Where the State's Mark is MarkStaged, what is staged is looked at first, and the State must
// be durable before that; [Looking] is what has to be before sticks are looked at then.
func Begin(s State, end status.Reason, outside bool, p Policy) (next State, look bool) {
	s = s.Clone()
	s.arrange(p)
	s.Boot++
	if i := s.index(s.Last.Slot); i >= 0 {
		e, how := &s.Slots[i], s.Last.end(end)
		e.EndedSo = how.Evidence()
		if e.EndedSo {
			e.Ends, e.LastEnd = e.Ends+1, how
		}
		// A slot with a reason against it had its turn in rescue, which used up no try.
		if s.Last.Trial && how == status.PowerLoss && e.Reason == status.None && e.Back < p.PowerLosses {
			e.Tries, e.Back = e.Tries+1, e.Back+1
		}
		if s.Last.Trial || e.EndedSo {
			s.log(p, status.EventEnd, e.Slot, how, 0, e.Manifest)
		}
	}
	s.Last = Last{}
	switch s.Mark {
	case MarkNone:
		s.Cuts = 0
	case MarkRepair:
		s.Cuts = 0
		s.guardRepair(false)
		s.log(p, status.EventCut, s.Install.Target, Last{}.end(end), 0, s.Install.Manifest)
	default:
		s.Cuts++
		id := guardUSB
		switch {
		case s.Install.Target != "":
			id = GuardID(s.Install.Manifest)
		case s.Mark == MarkStaged && !s.Staged.None():
			id = GuardID(s.Staged.Manifest)
		}
		s.guard(id, false)
		s.log(p, status.EventCut, s.Install.Target, Last{}.end(end), 0, s.Install.Manifest)
	}
	look = outside
	staged := s.looksStaged(p)
	if (look || staged) && s.Cuts >= 2 {
		// What kills the boot before it commits must not starve it: the slots come first, once (rule 15).
		look, staged, s.Cuts = false, false, 0
	}
	if look && s.Guarded(guardUSB) {
		look = false
		if !staged {
			s.Cuts = 0
		}
	}
	s.Mark = MarkNone
	switch {
	case staged:
		s.Mark = MarkStaged
	case look:
		s.Mark = MarkUSB
	}
	return s, look
}

// Looking says that sticks are looked at from now on, after what was staged.
func Looking(s State) State {
	s = s.Clone()
	s.Mark = MarkUSB
	return s
}

// Absorb brings the entries in line with what was found on the slots (rules 8, 10, 14). look and attest name slots
// of which more has to be known first.
func Absorb(s State, f Facts, p Policy) (next State, look, attest []string) {
	s = s.Clone()
	s.arrange(p)
	for _, slot := range p.Slots {
		e := s.Entry(slot)
		seal := f.Seals[slot]
		noted := s.Install.Target == slot
		switch {
		case seal.Status == SealUnknown:
			if noted {
				look = append(look, slot)
			}
			continue
		case seal.Status == SealUnreadable:
			// The medium may come back; a noted install stays noted.
			e.Reason = status.Unreadable
			s.set(e)
			continue
		case seal.Status != SealValid:
			if noted && !(p.Repair && e.Manifest == s.Install.Manifest) {
				// Cut after the wipe: nothing is left of what was there. What was to be repaired is not forgotten.
				e = Entry{Slot: slot}
			}
			if !e.Empty() || noted {
				e.Reason = seal.Reason()
			}
		case seal.Manifest == e.Manifest:
			// The entry stands as it was, also when an install was cut before its wipe.
			repaired := noted && seal.Manifest == s.Install.Manifest && accused(e.Reason)
			if repaired && seal.Whole == WholeUnread {
				// The same bundle was to be written over what was damaged; nobody knows how far that came.
				attest = append(attest, slot)
				continue
			}
			switch r := seal.Reason(); {
			case r != status.None:
				e.Reason = r
			case repaired:
				e = s.again(e, p)
			case accused(e.Reason) && (e.Reason != status.VerityError || seal.Whole == WholeRight):
				// What stood against the slot does so no more.
				e.Reason = status.None
				if e.Tries == 0 {
					e.Reason = status.Exhausted
				}
			}
			e.Local = seal.Local
			if s.set(e); repaired && seal.Whole == WholeRight && s.newest(slot, p) {
				// Else it were in limbo: not booted, and already there.
				s.toFront(slot)
			}
		case noted && seal.Manifest == s.Install.Manifest:
			if seal.Whole == WholeUnread {
				attest = append(attest, slot)
				continue
			}
			s = s.adopt(slot, seal, p)
			if seal.Whole == WholeRight && s.newest(slot, p) {
				s.toFront(slot)
			}
			s.Install = Install{}
			continue
		default:
			s = s.adopt(slot, seal, p)
			s.toBack(slot)
			if noted {
				s.Install = Install{}
			}
			continue
		}
		s.set(e)
		if noted {
			s.Install = Install{}
		}
	}
	for slot, r := range f.Failed {
		if e := s.Entry(slot); e.Slot != "" && slices.Contains(p.Slots, slot) {
			e.Reason = r
			s.set(e)
		}
	}
	return s, look, attest
}

// accused reports whether a reason speaks about what was found on the slot, not about the system in it.
func accused(r status.Reason) bool {
	return r == status.SealMissing || r == status.SealFalse || r == status.Unreadable || r == status.VerityError
}

// again gives an entry its tries again: another round (rules 9, 13).
func (s State) again(e Entry, p Policy) Entry {
	e.Tries, e.Back, e.Ends, e.EndedSo, e.LastEnd, e.Reason, e.Excluded = p.Attempts, 0, 0, false, status.None, status.None, false
	if e.Good {
		e.Tries = p.ConfirmedAttempts
	}
	return e
}

// adopt makes the entry speak about what the seal says: as new, never good, and with what stands against the slot.
func (s State) adopt(slot string, seal Seal, p Policy) State {
	e := fresh(slot, seal, p)
	e.Reason = seal.Reason()
	s.set(e)
	s.log(p, status.EventAdopted, slot, status.None, 0, seal.Manifest)
	return s
}

func fresh(slot string, seal Seal, p Policy) Entry {
	return Entry{
		Slot: slot, Manifest: seal.Manifest, Version: seal.Version[:min(len(seal.Version), MaxVersion)], Epoch: seal.Epoch, Created: seal.Created,
		Local: seal.Local, Tries: p.Attempts,
	}
}

// newest reports whether a slot's version is above that of every other one that may still be booted.
func (s *State) newest(slot string, p Policy) bool {
	v := s.Entry(slot).Version
	for _, e := range s.Slots {
		if e.Slot != slot && (s.Qualifies(e, p) || s.retryable(e, p)) && version.Compare(v, e.Version) <= 0 {
			return false
		}
	}
	return true
}

// retryable reports whether rescue may try the slot: sealed, at or above the floors, not excluded (rule 18).
func (s *State) retryable(e Entry, p Policy) bool {
	return sealed(e) && s.admits(e, p) && !e.Excluded
}

// sealed reports whether the entry's seal vouches for it as far as is known.
func sealed(e Entry) bool {
	return !e.Empty() && e.Reason != status.SealMissing && e.Reason != status.SealFalse
}

// Settle is Absorb, and then judges the slots whose tries ran out.
func Settle(s State, f Facts, p Policy) (next State, look, attest []string) {
	if s, look, attest = Absorb(s, f, p); len(look) > 0 {
		return s, look, nil
	}
	for i, e := range s.Slots {
		if e.Empty() || e.Reason != status.None {
			continue
		}
		if !s.admits(e, p) {
			s.Slots[i].Reason = status.BelowFloor
		}
		if p.Repair && e.Good && e.Tries == p.ConfirmedAttempts-unwell && p.ConfirmedAttempts > unwell && f.Seals[e.Slot].Whole == WholeUnread && !f.ReadOnly {
			// It was well once. A block that decayed restarts the device and leaves no other trace.
			attest = append(attest, e.Slot)
			continue
		}
		if e.Tries > 0 || f.ReadOnly {
			continue
		}
		// Before the bundle is accused its slot is read whole (rule 14).
		if f.Seals[e.Slot].Whole == WholeUnread && s.Slots[i].Reason == status.None {
			attest = append(attest, e.Slot)
			continue
		}
		s.exhaust(i, p)
	}
	return s, nil, attest
}

// unwell is after how many boots without "good" in a row the slot of a confirmed system is read whole, once, where what is
// damaged can be repaired.
const unwell = 3

// Decide says which slot to start. It never touches anything: the caller makes Decision.State durable, acts, and
// calls again with new facts when the slot did not start.
func Decide(s State, f Facts, p Policy) Decision {
	s, look, attest := Settle(s, f, p)
	if len(look) > 0 {
		return Decision{Action: Look, Slots: look}
	}
	if len(attest) > 0 {
		return Decision{Action: Attest, Slots: attest}
	}
	first := slices.IndexFunc(s.Slots, func(e Entry) bool { return !e.Empty() || e.Reason != status.None })
	wish := s.Wish
	s.Wish = ""
	turn := s.Turn
	s.Turn = ""
	if f.ReadOnly {
		return s.readOnly(f, p)
	}
	slot := ""
	ordered := false
	if !f.Rescue {
		if f.Started != "" && f.Prefer != f.Started {
			f.Prefer = "" // the kernel that runs is another one's
		}
		slot, ordered = s.choose([]string{f.Prefer, wish}, p)
		if slot == "" {
			if unseen := s.unseen(f, p); len(unseen) > 0 {
				return Decision{Action: Look, Slots: unseen}
			}
		}
	}
	s.Mark, s.Guards = MarkNone, slices.DeleteFunc(s.Guards, func(g Guard) bool { return g.ID == guardUSB })
	if f.Started != "" && slot != "" && slot != f.Started {
		if s.Asked < maxAsked {
			return s.restart(slot, wish)
		}
		// The boot loader does not listen.
		slot, ordered = f.Started, false
		if !s.Qualifies(s.Entry(slot), p) {
			slot = ""
		}
	}
	if slot == "" && turn != "" && turn == f.Started && s.retryable(s.Entry(turn), p) && !f.Rescue && f.Failed[turn] == status.None {
		return s.start(Decision{Action: Boot, Slot: turn}, p)
	}
	if slot == "" {
		return s.rescue(f, p)
	}
	d := Decision{Action: Boot, Slot: slot}
	i := s.index(slot)
	s.Slots[i].Tries--
	if ordered && first >= 0 && i > first && s.Slots[first].Reason != status.None {
		from := s.Slots[first]
		d.Fallback = &Fallback{From: from.Slot, To: slot, Reason: from.Reason}
		s.log(p, status.EventFallback, from.Slot, from.Reason, 0, from.Manifest)
	}
	if ordered {
		s.toFront(slot)
	}
	return s.start(d, p)
}

// maxAsked is how often in a row the boot loader is asked for a slot before what it starts has to do.
const maxAsked = 2

// restart asks the boot loader for a slot: it is that one's kernel that has to run (rule 23). A wish stands until it is
// honoured.
func (s State) restart(slot, wish string) Decision {
	s.Asked++
	s.pending = ""
	if slot == wish {
		s.Wish = wish
	}
	return Decision{Action: Restart, Slot: slot, State: s}
}

// start notes in the record that a slot is about to be started.
func (s State) start(d Decision, p Policy) Decision {
	i := s.index(d.Slot)
	e := &s.Slots[i]
	d.Trial = !e.Good
	e.Booted = s.Boot
	s.Last = Last{Slot: d.Slot, Trial: d.Trial}
	s.pending, s.Asked = "", 0
	if n := len(s.Events) - 1; !d.Trial && n >= 0 && s.Events[n].Kind == status.EventBoot && s.Events[n].Slot == p.Ordinal(d.Slot) {
		// Ordinary boots in a row take one place of the ring.
		s.Events[n].Boot, s.Events[n].Time = uint32(s.Boot), 0
	} else {
		s.log(p, status.EventBoot, d.Slot, status.None, 0, e.Manifest)
	}
	d.State = s
	return d
}

// choose returns the slot to boot, "" if none qualifies; ordered is false when a wish was honoured.
func (s *State) choose(wishes []string, p Policy) (slot string, ordered bool) {
	for _, w := range wishes {
		if w != "" && s.Qualifies(s.Entry(w), p) {
			return w, false
		}
	}
	for _, e := range s.Slots {
		if s.Qualifies(e, p) {
			return e.Slot, true
		}
	}
	return "", false
}

func (s *State) unseen(f Facts, p Policy) []string {
	var out []string
	for _, slot := range p.Slots {
		if f.Seals[slot].Status == SealUnknown {
			out = append(out, slot)
		}
	}
	return out
}

// exhaust judges a system whose tries ran out and whose slot was read whole and is right (rules 13, 14).
func (s *State) exhaust(i int, p Policy) {
	e := &s.Slots[i]
	if e.Reason != status.None {
		return
	}
	evidence := status.None
	if e.Ends >= 2 || e.EndedSo {
		evidence = e.LastEnd
	}
	e.Reason = status.Exhausted
	if evidence != status.None {
		e.Reason = evidence
	}
	if s.wasGood(e.Manifest) {
		evidence = status.None // counted, never accused
	}
	s.remember(e.Manifest, evidence)
	s.Trust.Pending = Hash{} // it may be what the system could not live with
}

// wasGood reports whether a bundle ever said good here, in whichever slot.
func (s *State) wasGood(m Hash) bool {
	return slices.ContainsFunc(s.Slots, func(e Entry) bool { return e.Good && e.Manifest == m })
}

// remember counts a round of a bundle that ran out (rule 13).
func (s *State) remember(m Hash, evidence status.Reason) {
	f := Fall{Manifest: m}
	if i := slices.IndexFunc(s.Falls, func(f Fall) bool { return f.Manifest == m }); i >= 0 {
		f = s.Falls[i]
		s.Falls = slices.Delete(s.Falls, i, i+1)
	}
	if f.Rounds < 255 {
		f.Rounds++
	}
	if evidence != status.None {
		f.Evidence = evidence
	}
	f.Next = s.Boot + 1 // the slot that it falls back to has its turn first
	if f.Rounds >= freeRounds {
		f.Next = s.Boot + backoff(f.Rounds-freeRounds)
	}
	s.Falls = append(s.Falls, f)
	if n := len(s.Falls) - MaxFalls; n > 0 {
		s.Falls = slices.Delete(s.Falls, 0, n)
	}
}

// freeRounds is how many rounds a bundle gets before they come ever more rarely.
const freeRounds = 3

// backoff returns how many boots pass until the next try: 8, 16, ... 1024.
func backoff(n uint8) uint64 { return 8 << min(n, 7) }

// Factory makes the State of a device that leaves the factory with these slots filled, to be tried in the order of the
// configuration. None is good yet.
func Factory(filled map[string]Seal, p Policy) State {
	var s State
	for _, slot := range p.Slots {
		if seal, ok := filled[slot]; ok {
			s.Slots = append(s.Slots, fresh(slot, seal, p))
		}
	}
	s.arrange(p)
	return s
}

// Admits reports whether what a seal says is at or above the floors.
func (s *State) Admits(seal Seal, p Policy) bool {
	return s.floors(p).Admit(seal.Version, seal.Epoch)
}
