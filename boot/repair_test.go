package boot

import (
	"testing"

	"lifeboat/status"
)

func twins() (State, Policy) {
	p := Policy{Slots: []string{"a", "b"}, Bootnames: []string{"A", "B"}, Attempts: 3, ConfirmedAttempts: 8, Repair: true}
	s := State{Boot: 10, Slots: []Entry{
		{Slot: "b", Manifest: Hash{1}, Version: "1", Good: true, Tries: 8},
		{Slot: "a", Manifest: Hash{1}, Version: "1", Good: true, Tries: 2, Reason: status.VerityError},
	}}
	s.arrange(p)
	return s, p
}

// Rule 22: which slot is repaired, and from which.
func TestRule22Which(t *testing.T) {
	for name, test := range map[string]struct {
		change func(s *State, f *Facts, p *Policy)
		want   string
	}{
		"twin":                      {func(*State, *Facts, *Policy) {}, "a"},
		"seal missing":              {func(s *State, _ *Facts, _ *Policy) { s.Slots[1].Reason = status.SealMissing }, "a"},
		"seal false":                {func(s *State, _ *Facts, _ *Policy) { s.Slots[1].Reason = status.SealFalse }, "a"},
		"cannot be read today":      {func(s *State, _ *Facts, _ *Policy) { s.Slots[1].Reason = status.Unreadable }, ""},
		"nothing is wrong":          {func(s *State, _ *Facts, _ *Policy) { s.Slots[1].Reason = status.None }, ""},
		"told bad":                  {func(s *State, _ *Facts, _ *Policy) { s.Slots[1].Reason = status.ToldBad }, ""},
		"another bundle":            {func(s *State, _ *Facts, _ *Policy) { s.Slots[0].Manifest = Hash{2} }, ""},
		"empty":                     {func(s *State, _ *Facts, _ *Policy) { s.Slots[1].Manifest, s.Slots[0].Manifest = Hash{}, Hash{} }, ""},
		"excluded":                  {func(s *State, _ *Facts, _ *Policy) { s.Slots[1].Excluded = true }, ""},
		"below the floor":           {func(s *State, _ *Facts, _ *Policy) { s.Floors.Version = "2" }, ""},
		"the twin does not qualify": {func(s *State, _ *Facts, _ *Policy) { s.Slots[0].Tries = 0 }, ""},
		"not asked for":             {func(_ *State, _ *Facts, p *Policy) { p.Repair = false }, ""},
		"nothing can be recorded":   {func(_ *State, f *Facts, _ *Policy) { f.ReadOnly = true }, ""},
		"rescue is asked for":       {func(_ *State, f *Facts, _ *Policy) { f.Rescue = true }, ""},
		"the record was lost":       {func(s *State, _ *Facts, _ *Policy) { s.Unproven = true }, ""},
		"the last one ended badly":  {func(s *State, _ *Facts, _ *Policy) { *s = RepairEnded(*s, false) }, ""},
		"and that was some boots ago": {func(s *State, _ *Facts, _ *Policy) {
			*s = RepairEnded(*s, false)
			s.Boot += 2
		}, "a"},
	} {
		s, p := twins()
		var f Facts
		test.change(&s, &f, &p)
		target, source := Repair(s, f, p)
		if target != test.want || (source != "") != (target != "") {
			t.Errorf("%s: %q from %q", name, target, source)
		}
	}
}

// A boot that ended in a repair is followed by one without, and they come ever more rarely but never not at all.
func TestRule22Guard(t *testing.T) {
	s, p := twins()
	var boots []uint64
	for range 100 {
		s, _ = Begin(s, status.None, false, p)
		if target, _ := Repair(s, Facts{}, p); target != "" {
			s = RepairBegun(s) // and the power is cut
			boots = append(boots, s.Boot)
		} else {
			s = Decide(s, Facts{Seals: map[string]Seal{"b": {Status: SealValid, Manifest: Hash{1}, Version: "1"}}}, p).State
			s, _ = Good(s, "b", p)
		}
	}
	for i := 1; i < len(boots); i++ {
		if gap := boots[i] - boots[i-1]; gap < 2 || i > 1 && gap < boots[i-1]-boots[i-2] {
			t.Errorf("repairs in boots %d", boots)
			break
		}
	}
	if len(boots) < 5 || len(boots) > 8 {
		t.Errorf("repairs in boots %d", boots)
	}
	// An end that PID 1 saw counts too, and what was repaired has a clean record.
	ended := RepairEnded(NoteRepair(s, "a", p), true)
	if e := ended.Entry("a"); e.Manifest != (Hash{1}) || e.Reason != status.SealMissing || ended.Install.Target != "" || ended.Mark != MarkNone {
		t.Errorf("after a failed repair: %+v", e)
	}
	done := Repaired(NoteRepair(s, "a", p), "a", p)
	if e := done.Slots[1]; e.Slot != "a" || e.Reason != status.None || e.Tries != 8 || !e.Good || len(done.Guards) > 0 || done.Install.Target != "" {
		t.Errorf("after a repair: %+v, guards %+v", e, done.Guards)
	}
}

// A repair that was cut after its wipe is not forgotten, and one that was cut after its seal is taken in where it stood.
func TestRule22Cut(t *testing.T) {
	s, p := twins()
	s = NoteRepair(RepairBegun(s), "a", p)
	wiped, _, _ := Absorb(s, Facts{Seals: map[string]Seal{"a": {Status: SealMissing}}}, p)
	if e := wiped.Entry("a"); e.Manifest != (Hash{1}) || e.Reason != status.SealMissing || wiped.Install.Target != "" {
		t.Errorf("cut after the wipe: %+v", e)
	}
	if target, _ := Repair(wiped, Facts{}, p); target != "a" {
		t.Error("it is not repaired again")
	}
	seal := Seal{Status: SealValid, Manifest: Hash{1}, Version: "1"}
	if _, _, attest := Absorb(s, Facts{Seals: map[string]Seal{"a": seal}}, p); len(attest) != 1 {
		t.Error("cut before the record: the slot is not read whole")
	}
	seal.Whole = WholeRight
	sealed, _, _ := Absorb(s, Facts{Seals: map[string]Seal{"a": seal}}, p)
	if e := sealed.Slots[1]; e.Slot != "a" || e.Reason != status.None || e.Tries != 8 || sealed.Install.Target != "" {
		t.Errorf("cut before the record: %+v", e)
	}
}

// A bundle that is no newer is taken for the slot that should hold it, and for no other.
func TestRule22Offer(t *testing.T) {
	s, p := twins()
	s.Slots[0].Version, s.Slots[0].Manifest = "2", Hash{2}
	if v := Judge(s, Offer{Manifest: Hash{1}, Version: "1"}, false, p); !v.Take || v.Repair != "a" {
		t.Errorf("%+v", v)
	}
	if v := Judge(s, Offer{Manifest: Hash{3}, Version: "1"}, false, p); v.Take {
		t.Errorf("another bundle of that version: %+v", v)
	}
	if v := Judge(s, Offer{Manifest: Hash{3}, Version: "3"}, false, p); !v.Take || v.Repair != "" {
		t.Errorf("an update: %+v", v)
	}
	for name, bad := range map[string]State{
		"fell back":           {Falls: []Fall{{Manifest: Hash{1}, Evidence: status.Panic}}},
		"ended its installer": {Guards: []Guard{{ID: GuardID(Hash{1}), Seen: 2, Next: 20}}},
	} {
		bad.Boot, bad.Slots = s.Boot, s.Slots
		if v := Judge(bad, Offer{Manifest: Hash{1}, Version: "1"}, false, p); v.Take {
			t.Errorf("one that %s: %+v", name, v)
		}
	}
	s.Staged = Staged{Size: 1, Manifest: Hash{1}}
	if done := Repaired(NoteRepair(s, "a", p), "a", p); !done.Staged.None() {
		t.Error("what is staged stays")
	}
	p.Repair = false
	if v := Judge(s, Offer{Manifest: Hash{1}, Version: "1"}, false, p); v.Take {
		t.Errorf("not asked for: %+v", v)
	}
}

// A confirmed system that ended three times before it said good has its slot read whole, once.
func TestRule22Unwell(t *testing.T) {
	s, p := twins()
	s.Slots[1].Reason = status.None
	right := map[string]Seal{"a": {Status: SealValid, Manifest: Hash{1}, Version: "1"}, "b": {Status: SealValid, Manifest: Hash{1}, Version: "1"}}
	read := 0
	for range 7 {
		f := Facts{Seals: map[string]Seal{"a": right["a"], "b": right["b"]}}
		s, _ = Begin(s, status.None, false, p)
		d := Decide(s, f, p)
		for d.Action == Attest {
			for _, slot := range d.Slots {
				seal := f.Seals[slot]
				seal.Whole = WholeRight
				f.Seals[slot] = seal
			}
			read += len(d.Slots)
			d = Decide(s, f, p)
		}
		if d.Action != Boot || d.Slot != "b" {
			t.Fatalf("%+v", d)
		}
		s = d.State
	}
	if read != 1 {
		t.Errorf("read whole %d times in 7 boots", read)
	}
}
