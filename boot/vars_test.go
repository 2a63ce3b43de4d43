package boot

import (
	"testing"

	"lifeboat/status"
)

// chosen is a policy under which a boot loader chooses that keeps so many tries.
func chosen(most uint8) Policy {
	p := available
	p.Bootnames, p.Loader, p.Most = []string{"A", "B"}, true, most
	return p
}

func vars(next string, turns ...Turn) *Vars { return &Vars{Next: next, Order: turns} }

func turn(name string, tries uint8) Turn { return Turn{Name: name, Tries: tries} }

// A slot is started by its own kernel or not at all; a loader that does not listen has its way if its slot qualifies.
func TestRule23OwnKernel(t *testing.T) {
	p := chosen(9)
	s := state(entry(b, "2"), entry(a, "1", good))
	f := Facts{Seals: seals(right(sealOf("1")), right(sealOf("2"))), Started: a}
	for asked := range maxAsked {
		d := Decide(s, f, p)
		if d.Action != Restart || d.Slot != b || d.State.Entry(b).Tries != 3 {
			t.Fatalf("asked %d times: action %d slot %q tries %d", asked, d.Action, d.Slot, d.State.Entry(b).Tries)
		}
		s = d.State
	}
	wantBoot(t, Decide(s, f, p), a)
	f.Started = b
	wantBoot(t, Decide(s, f, p), b)

	// Where the other one does not qualify either it is rescue, whose turn asks again.
	s = state(entry(b, "2"), entry(a, "1", good, tries(0), because(status.Exhausted)))
	s.Asked, f.Started = maxAsked, a
	wantRescue(t, Decide(s, f, p))
	f.Retry = true
	d := Decide(s, f, p)
	wantBoot(t, d, a)
	s.Rescue.Slot = a
	if d = Decide(s, f, p); d.Action != Restart || d.Slot != b || d.State.Turn != b {
		t.Fatalf("the next turn: action %d slot %q, asked for %q", d.Action, d.Slot, d.State.Turn)
	}
	f.Started, f.Retry = b, false
	wantBoot(t, Decide(d.State, f, p), b)
}

// Where nothing can be recorded only the slot that was started may run.
func TestRule23ReadOnly(t *testing.T) {
	s := state(entry(b, "2"), entry(a, "1", good))
	f := Facts{Seals: seals(right(sealOf("1")), right(sealOf("2"))), ReadOnly: true, Started: a}
	wantBoot(t, Decide(s, f, chosen(9)), a)
	f.Started = b
	wantRescue(t, Decide(s, f, chosen(9)))
}

// What a loader says is what it was told, less what it counted; or what it was told before a cut; or somebody else's.
func TestRule24Hear(t *testing.T) {
	for name, test := range map[string]struct {
		most    uint8
		told    *Vars // in the record; nil: nothing
		seen    *Vars
		started string
		change  func(*State)
		heard   Heard
		tries   [2]uint8 // of A, which has 8 and is good, and of B, which has 3
		first   string
	}{
		"lost":                  {most: 9, started: a, tries: [2]uint8{8, 3}, first: b},
		"this boot":             {most: 9, seen: vars("", turn("B", 2), turn("A", 8)), started: b, heard: HeardRight, tries: [2]uint8{8, 3}, first: b},
		"one that did not come": {most: 9, seen: vars("", turn("B", 1), turn("A", 8)), started: b, heard: HeardRight, tries: [2]uint8{8, 2}, first: b},
		"none came":             {most: 9, seen: vars("", turn("B", 0), turn("A", 7)), started: a, heard: HeardRight, tries: [2]uint8{8, 0}, first: b},
		"cut between mark and commit": {
			most: 9, seen: vars("", turn("B", 1), turn("A", 8)), started: b, heard: HeardRight, tries: [2]uint8{8, 3}, first: b,
			change: func(s *State) { s.Mark = MarkUSB },
		},
		"cut before it was told": {most: 9, told: vars("", turn("A", 8), turn("B", 0)), seen: vars("", turn("A", 7), turn("B", 0)), started: a, heard: HeardStale, tries: [2]uint8{8, 3}, first: b},
		"somebody made A first":  {most: 9, seen: vars("", turn("A", 7), turn("B", 3)), started: a, heard: HeardForeign, tries: [2]uint8{8, 3}, first: a},
		"somebody gave B up":     {most: 9, seen: vars("", turn("A", 9)), started: a, heard: HeardForeign, tries: [2]uint8{8, 3}, first: a},
		"nothing is left":        {most: 9, seen: vars("", turn("B", 0), turn("A", 0)), started: a, heard: HeardRight, tries: [2]uint8{1, 0}, first: b},
		"no count, its turn":     {seen: vars("", turn("A", 0), turn("B", 0)), started: b, heard: HeardRight, tries: [2]uint8{8, 3}, first: b},
		"no count, it went back": {seen: vars("", turn("A", 0), turn("B", 0)), started: a, heard: HeardRight, tries: [2]uint8{8, 2}, first: b},
	} {
		t.Run(name, func(t *testing.T) {
			s := state(entry(b, "2"), entry(a, "1", good))
			if test.told != nil {
				s.Told = *test.told
			}
			if test.change != nil {
				test.change(&s)
			}
			s, heard := Hear(s, LoaderView{Started: test.started, Vars: test.seen}, chosen(test.most))
			if got := [2]uint8{s.Entry(a).Tries, s.Entry(b).Tries}; heard != test.heard || got != test.tries || s.Slots[0].Slot != test.first {
				t.Errorf("heard %d, tries %v, first %s", heard, got, s.Slots[0].Slot)
			}
		})
	}
}

// What a loader is told follows from the record: never a slot that is being installed, wished for or not.
func TestRule24Told(t *testing.T) {
	s := state(entry(b, "2"), entry(a, "1", good))
	for name, test := range map[string]struct {
		most   uint8
		change func(*State)
		want   *Vars
	}{
		"order and tries":         {9, func(*State) {}, vars("", turn("B", 3), turn("A", 8))},
		"RAUC's one try":          {1, func(*State) {}, vars("", turn("B", 1), turn("A", 1))},
		"no count":                {0, func(*State) {}, vars("B", turn("A", 0), turn("B", 0))},
		"no count, B is good":     {0, func(s *State) { s.Slots[0].Good = true }, vars("", turn("B", 0), turn("A", 0))},
		"being installed":         {9, func(s *State) { s.Install.Target = b }, vars("", turn("A", 8))},
		"being installed, wished": {9, func(s *State) { s.Install.Target, s.Wish = b, b }, vars("", turn("A", 8))},
		"wished":                  {9, func(s *State) { s.Wish = a }, vars("", turn("A", 1), turn("B", 3))},
		"given up":                {9, func(s *State) { s.Slots[0].Reason = status.ToldBad }, vars("", turn("A", 8))},
		"rescue's turn":           {9, func(s *State) { s.Slots[0].Reason, s.Turn = status.Exhausted, b }, vars("", turn("B", 1), turn("A", 8))},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.Clone()
			test.change(&s)
			if got := s.Vars(chosen(test.most)); !got.Equal(*test.want, test.most) || len(got.Order) != 2 {
				t.Errorf("told %+v, want %+v", got, *test.want)
			}
		})
	}
}
