package boot

import (
	"testing"

	"lifeboat/status"
)

// staged is a device with system 1, good, and bundle 2 staged.
func staged(t *testing.T) *rig {
	p := available
	p.Staging = true
	r := newRig(t, p, sealOf("1"), Seal{Status: SealMissing}, entry(a, "1", good), Entry{Slot: b})
	r.commit(Stage(r.durable, Staged{Offset: 1 << 20, Size: 5, Manifest: hash("2"), Version: "2"}, p))
	return r
}

func TestRule02_MarkBeforeStaged(t *testing.T) {
	r := staged(t)
	for _, outside := range []bool{false, true} {
		if s, look := Begin(r.durable, status.None, outside, r.p); s.Mark != MarkStaged || look != outside {
			t.Errorf("outside %t: mark %d, look %t", outside, s.Mark, look)
		}
	}
	// Nothing is staged, or there is no place for it: no mark, and so no record.
	if s, _ := Begin(Unstage(r.durable, 0, r.p), status.None, false, r.p); s.Mark != MarkNone {
		t.Error("a mark, and nothing is staged")
	}
	if s, _ := Begin(r.durable, status.None, false, available); s.Mark != MarkNone {
		t.Error("a mark, and there is no staging partition")
	}
	s, _ := Begin(r.durable, status.None, true, r.p)
	if s = Looking(s); s.Mark != MarkUSB {
		t.Error("sticks are looked at after it, and the mark does not say so")
	}
}

// Boots that end while it is looked at count against the staged bundle, not against USB; after two the slots have their
// turn, after eight it waits ever longer, and nothing is given up.
func TestRule15_StagedEndsTheBoot(t *testing.T) {
	r := staged(t)
	looked, skipped, waited := 0, 0, 0
	for range 200 {
		s, look := Begin(r.durable, status.None, true, r.p)
		guarded := s.Guarded(GuardID(hash("2")))
		switch {
		case s.Mark == MarkStaged:
			looked++
			r.commit(s) // and the power goes
			continue
		case look && !guarded:
			t.Fatal("USB is looked at, and not what is staged")
		case guarded && look:
			waited++
		default:
			skipped++
		}
		wantBoot(t, r.decide(s), a)
		r.good(a)
	}
	if looked < 10 || looked > 20 || skipped < 3 || waited < 100 {
		t.Errorf("looked at %d times, left out %d times, waited %d boots", looked, skipped, waited)
	}
	if r.durable.Staged.None() || r.durable.Guarded(guardUSB) {
		t.Error("it is given up, or USB is accused")
	}
	// Staged anew by somebody, it is tried at once.
	r.commit(Stage(r.durable, r.durable.Staged, r.p))
	if s, _ := Begin(r.durable, status.None, true, r.p); s.Mark != MarkStaged {
		t.Error("staged anew, it waits")
	}
}

func TestStagedGoesWhenItIsDone(t *testing.T) {
	o := offerOf("2")
	for name, test := range map[string]struct {
		how  func(r *rig) State
		gone bool
		kind status.Kind
	}{
		"installed":         {func(r *rig) State { return Installed(r.durable, b, right(sealOf("2")), r.p) }, true, status.EventInstalled},
		"another installed": {func(r *rig) State { return Installed(r.durable, b, right(sealOf("3")), r.p) }, false, status.EventInstalled},
		"refused":           {func(r *rig) State { return Refuse(r.durable, o, false, false, 30, r.p) }, true, status.EventRefused},
		"another refused":   {func(r *rig) State { return Refuse(r.durable, offerOf("3"), false, false, 30, r.p) }, false, status.EventRefused},
		"medium failed":     {func(r *rig) State { return Refuse(r.durable, o, false, false, 40, r.p) }, false, status.EventRefused},
		"no keyring":        {func(r *rig) State { return Refuse(r.durable, o, false, false, 32, r.p) }, false, status.EventRefused},
		"ended its worker":  {func(r *rig) State { return Refuse(r.durable, o, false, true, 40, r.p) }, false, status.EventRefused},
		"taken back":        {func(r *rig) State { return Unstage(r.durable, 0, r.p) }, true, status.EventUnstaged},
		"refused unseen":    {func(r *rig) State { return Unstage(r.durable, 21, r.p) }, true, status.EventRefused},
	} {
		r := staged(t)
		s := test.how(r)
		if s.Staged.None() != test.gone {
			t.Errorf("%s: staged %+v", name, s.Staged)
		}
		if e, ok := lastEvent(s, test.kind); !ok || len(s.Events) == 0 || s.Events[len(s.Events)-1] != e {
			t.Errorf("%s: the history does not say so", name)
		}
		if (s.Status(r.p).Staged == nil) != test.gone {
			t.Errorf("%s: status %+v", name, s.Status(r.p).Staged)
		}
	}
	// A medium that goes on failing is asked ever more rarely.
	r := staged(t)
	for range 2 {
		r.durable = Refuse(r.durable, o, false, false, 40, r.p)
	}
	if s, _ := Begin(r.durable, status.None, false, r.p); s.Mark != MarkNone {
		t.Error("asked at every boot")
	}
	if !r.durable.Status(r.p).Staged.Waits {
		t.Error("status does not say that it waits")
	}
	if Unstage(State{Boot: 3}, 0, r.p).Events != nil {
		t.Error("nothing was staged, and the history says that it was taken back")
	}
}
