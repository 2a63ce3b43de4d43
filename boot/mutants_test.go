package boot

import (
	"slices"
	"testing"

	"lifeboat/status"
)

// TestModelMutants breaks the decisions, or the order of writes, one at a time: the model has to notice each. With -v it
// prints the shortest way to where it does.
func TestModelMutants(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(2, 1, m.secure, 2)
			w.faults, w.memory, w.most = m.faults, m.memory, 30_000
			if m.grown {
				w.grown, w.sick = true, 3
			}
			w.PowerLosses = m.losses
			m.change(&w.machine)
			g := w.explore()
			if g.broken == nil {
				t.Fatalf("not noticed: %s", g)
			}
			t.Logf("%s: noticed by %s after %d steps (%d states)\n%s", m.name, g.broken.name, len(g.path(g.broken.node)), len(g.keys), g.story())
		})
	}
}

type mutant struct {
	name   string
	secure bool
	memory bool
	grown  bool
	faults int
	losses uint8
	change func(*machine)
}

// decided changes what Decide returns.
func decided(m *machine, change func(s State, f Facts, d *Decision)) {
	m.Decide = func(s State, f Facts, p Policy) Decision {
		d := Decide(s, f, p)
		if d.Action == Boot || d.Action == GoRescue {
			change(s, f, &d)
		}
		return d
	}
}

// judging changes what Judge is given.
func judging(m *machine, change func(s *State, rescue *bool)) {
	m.Judge = func(s State, o Offer, rescue bool, p Policy) Verdict {
		s = s.Clone()
		change(&s, &rescue)
		return Judge(s, o, rescue, p)
	}
}

// settling changes what Settle and Decide are given.
func settling(m *machine, change func(s *State, f *Facts, p Policy)) {
	m.Settle = func(s State, f Facts, p Policy) (State, []string, []string) {
		s = s.Clone()
		change(&s, &f, p)
		return Settle(s, f, p)
	}
	m.Decide = func(s State, f Facts, p Policy) Decision {
		s = s.Clone()
		change(&s, &f, p)
		return Decide(s, f, p)
	}
}

// believed takes every slot for right that was not read whole, but one that bears the offered bundle.
func believed(f *Facts, p Policy, offered Hash) {
	all := map[string]Seal{}
	for _, slot := range p.Slots {
		seal := f.Seals[slot]
		if seal.Whole == WholeUnread && (seal.Manifest != offered || offered == Hash{}) {
			seal.Whole = WholeRight
		}
		all[slot] = seal
	}
	f.Seals = all
}

var mutants = []mutant{
	{name: "tries are not decremented", change: func(m *machine) {
		decided(m, func(_ State, _ Facts, d *Decision) {
			if d.Action == Boot {
				d.State.Slots[d.State.index(d.Slot)].Tries++
			}
		})
	}},
	{name: "the try is counted after the slot was started", change: func(m *machine) { m.late = true }},
	{name: "the record is written in place of the newest copy", change: func(m *machine) { m.inPlace = true }},
	{name: "what excludes or raises a floor is in one copy", secure: true, change: func(m *machine) {
		m.Stricter = func(State, State) bool { return false }
	}},
	{name: "a stick is looked at before the record says so", change: func(m *machine) { m.blindLook = true }},
	{name: "USB is never skipped", memory: true, change: func(m *machine) {
		m.Begin = func(s State, end status.Reason, outside bool, p Policy) (State, bool) {
			s, _ = Begin(s, end, outside, p)
			if outside {
				s.Mark = MarkUSB
			}
			return s, outside
		}
	}},
	{name: "the old seal is wiped before the install is noted", change: func(m *machine) { m.noteLate = true }},
	{name: "the note replaces the entry", change: func(m *machine) {
		m.Note = func(s State, target string, o Offer, p Policy) State {
			s = Note(s, target, o, p)
			s.set(fresh(target, Seal{Manifest: o.Manifest, Version: o.Version, Epoch: o.Epoch}, p))
			return s
		}
	}},
	{name: "a cut before the wipe gives the old system its tries again", change: func(m *machine) {
		settling(m, func(s *State, _ *Facts, p Policy) {
			if i := s.index(s.Install.Target); i >= 0 && !s.Slots[i].Good {
				s.Slots[i].Tries = p.Attempts
			}
		})
	}},
	{name: "an update that was cut before its commit is adopted last", change: func(m *machine) {
		m.Decide = func(s State, f Facts, p Policy) Decision {
			if next, look, attest := Settle(s, f, p); len(look)+len(attest) == 0 {
				if t := s.Install.Target; t != "" && next.Install.Target == "" && next.Entry(t).Manifest == s.Install.Manifest {
					next.toBack(t)
				}
				s = next
			}
			return Decide(s, f, p)
		}
	}},
	{name: "the only good slot is a target", change: func(m *machine) {
		m.Target = func(s State, f Facts, o Offer, running string, p Policy) TargetChoice {
			s = s.Clone()
			for i := range s.Slots {
				s.Slots[i].Good = false
			}
			return Target(s, f, o, running, p)
		}
	}},
	{name: "the running slot is a target", change: func(m *machine) {
		m.Target = func(s State, f Facts, o Offer, _ string, p Policy) TargetChoice { return Target(s, f, o, "", p) }
	}},
	{name: "the slot that stays is not read before a good one is overwritten", grown: true, faults: 1, change: func(m *machine) {
		m.Target = func(s State, f Facts, o Offer, running string, p Policy) TargetChoice {
			believed(&f, p, o.Manifest)
			return Target(s, f, o, running, p)
		}
	}},
	{name: "a bundle is accused without its slot being read", faults: 1, change: func(m *machine) {
		settling(m, func(_ *State, f *Facts, p Policy) { believed(f, p, Hash{}) })
	}},
	{name: "a refused install stays noted", change: func(m *machine) {
		m.Refuse = func(s State, o Offer, wiped, seen bool, code int, p Policy) State {
			next := Refuse(s, o, wiped, seen, code, p)
			next.Install = s.Install
			return next
		}
	}},
	{name: "a bundle that fell back is taken again at once", change: func(m *machine) {
		judging(m, func(s *State, _ *bool) { s.Falls = nil })
	}},
	{name: "a bundle that was told bad is not remembered", change: func(m *machine) {
		m.Bad = func(s State, slot string, force bool, p Policy) (State, error) {
			next, err := Bad(s, slot, force, p)
			next.Falls = s.Falls
			return next, err
		}
	}},
	{name: "the guard is ignored", memory: true, change: func(m *machine) {
		judging(m, func(s *State, _ *bool) { s.Guards = nil })
	}},
	{name: "bad gives up the only good slot without being forced", change: func(m *machine) {
		m.Bad = func(s State, slot string, _ bool, p Policy) (State, error) { return Bad(s, slot, true, p) }
	}},
	{name: "good excludes a trial, too", secure: true, change: func(m *machine) {
		m.Good = func(s State, slot string, p Policy) (State, error) {
			s, err := Good(s, slot, p)
			for i := range s.Slots {
				s.Slots[i].Excluded = s.Slots[i].Slot != slot && !s.Slots[i].Empty()
			}
			return s, err
		}
	}},
	{name: "the floor rises when a bundle is installed", change: func(m *machine) {
		m.Installed = func(s State, target string, seal Seal, p Policy) State {
			s = Installed(s, target, seal, p)
			s.Floors = Floors{Version: seal.Version, Epoch: seal.Epoch}
			return s
		}
	}},
	{name: "good raises the floor above the slot to fall back on", change: func(m *machine) {
		m.Good = func(s State, slot string, p Policy) (State, error) {
			s, err := Good(s, slot, p)
			if e := s.Entry(slot); e.Version > s.Floors.Version {
				s.Floors.Version = e.Version
			}
			return s, err
		}
	}},
	{name: "rescue always retries the best slot", change: func(m *machine) {
		settling(m, func(s *State, _ *Facts, _ Policy) { s.Rescue.Slot = "" })
	}},
	{name: "rescue retries nothing", change: func(m *machine) {
		settling(m, func(_ *State, f *Facts, _ Policy) { f.Retry = false })
	}},
	{name: "rescue takes only what is newer", memory: true, change: func(m *machine) {
		judging(m, func(_ *State, rescue *bool) { *rescue = false })
	}},
	{name: "an install before a slot is known to be good", faults: 1, change: func(m *machine) {
		judging(m, func(s *State, _ *bool) { s.Unproven = false })
	}},
	{name: "what is rebuilt from the seals is taken for good", faults: 1, change: func(m *machine) {
		m.Rebuild = func(found map[string]Seal, p Policy) State {
			s := Rebuild(found, p)
			s.Slots[0].Good = true
			return s
		}
	}},
	{name: "a trial is booted though it cannot be counted", faults: 1, change: func(m *machine) {
		settling(m, func(_ *State, f *Facts, _ Policy) { f.ReadOnly = f.Blind })
	}},
	{name: "the wish is not cleared", change: func(m *machine) {
		decided(m, func(s State, _ Facts, d *Decision) { d.State.Wish = s.Wish })
	}},
	{name: "a wish is honoured for a slot that does not qualify", secure: true, change: func(m *machine) {
		m.Next = func(s State, slot string, _ Policy) (State, error) {
			s.Wish = slot
			return s, nil
		}
		decided(m, func(s State, _ Facts, d *Decision) {
			if e := s.Entry(s.Wish); d.Action == Boot && !e.Empty() && e.Tries > 0 {
				d.Slot = e.Slot
				d.State.Slots[d.State.index(e.Slot)].Tries = e.Tries - 1
				d.State.Last = Last{Slot: e.Slot, Trial: !e.Good}
			}
		})
	}},
	{name: "power losses are given back without a bound", losses: 1, change: func(m *machine) {
		m.Begin = func(s State, end status.Reason, outside bool, p Policy) (State, bool) {
			s = s.Clone()
			for i := range s.Slots {
				s.Slots[i].Back = 0
			}
			return Begin(s, end, outside, p)
		}
	}},
	{name: "a try is given back whatever ended it", losses: 1, change: func(m *machine) {
		m.Begin = func(s State, end status.Reason, outside bool, p Policy) (State, bool) {
			return Begin(s, status.None, outside, p)
		}
	}},
	{name: "a try is given back though the system went down in order", losses: 1, change: func(m *machine) {
		m.Begin = func(s State, end status.Reason, outside bool, p Policy) (State, bool) {
			s = s.Clone()
			s.Last.Orderly = false
			return Begin(s, end, outside, p)
		}
	}},
	{name: "the event of a cut is lost", memory: true, change: func(m *machine) {
		m.Begin = func(s State, end status.Reason, outside bool, p Policy) (State, bool) {
			s, look := Begin(s, end, outside, p)
			s.Events = slices.DeleteFunc(s.Events, func(e Event) bool { return e.Kind == status.EventCut })
			return s, look
		}
	}},
}
