package boot

import (
	"errors"
	"slices"
)

// Vars is what a boot loader is told about the slots: what it would do next. Slots go by their bootnames. Loaders are of
// two kinds (Loader.Most): those that count tries go through Order and start the first slot that has some left, one
// less each time; those that do not count start Next once, and otherwise the first of Order.
type Vars struct {
	Next  string // started once, at the next boot; "": nothing is. Only loaders that do not count have it
	Order []Turn // first tried first; a slot that is missing is not started
}

// Turn is one slot in the order of a boot loader.
type Turn struct {
	Name  string // bootname
	Tries uint8  // left, at most Loader.Most; 0 for loaders that do not count
	Good  bool   // has said good. It decides nothing; Read may leave it false
}

// ErrNoVars means that a boot loader's own place holds nothing that it would go by: it starts what it does by default.
var ErrNoVars = errors.New("the boot loader's variables are lost")

// ErrUntold means that a State is durable, and the boot loader could not be told.
var ErrUntold = errors.New("the boot loader could not be told")

// Loader is the place where one boot loader keeps its variables, in its own format.
type Loader interface {
	// Read returns what the loader will do next. Errors wrap ErrNoVars where nothing valid is there; any other error: the
	// medium could not be read.
	Read() (Vars, error)
	// Write makes v true in one transaction and returns when it is durable and was read back. After a power cut within
	// it the loader finds what was there before, or v. What else is kept in that place stays. Copies that are damaged are
	// whole again afterwards.
	Write(v Vars) error
	// Most is the highest count of tries that the loader keeps for a slot; 0: it does not count.
	Most() uint8
}

// Equal reports whether a loader that keeps so many tries (Loader.Most) does the same with v and w.
func (v Vars) Equal(w Vars, most uint8) bool {
	return v.Next == w.Next && slices.Equal(v.live(most), w.live(most))
}

// live are those that may be started, in their order.
func (v Vars) live(most uint8) (out []Turn) {
	for _, t := range v.Order {
		if t.Tries > 0 || most == 0 {
			out = append(out, Turn{Name: t.Name, Tries: t.Tries})
		}
	}
	return out
}

// used returns how many tries of each slot a loader has used up between v and seen; ok is false when it cannot have come
// from the one to the other by itself.
func (v Vars) used(seen Vars, most uint8) (used map[string]uint8, ok bool) {
	used = map[string]uint8{}
	if v.Next != seen.Next && seen.Next == "" {
		used[v.Next] = 1
		v.Next = ""
	}
	v.Order = slices.Clone(v.Order)
	for i, t := range v.Order {
		left := uint8(0)
		if k := slices.IndexFunc(seen.Order, func(s Turn) bool { return s.Name == t.Name }); k >= 0 {
			left = seen.Order[k].Tries
		}
		if left < t.Tries {
			used[t.Name] += t.Tries - left
			v.Order[i].Tries = left
		}
	}
	return used, v.Equal(seen, most)
}

// Vars returns what the boot loader has to be told, so that it does what Decide would. All slots are in it, those that do
// not qualify without tries, so that there is always one whose kernel may start rescue. The target of an install that is
// under way is not started.
func (s *State) Vars(p Policy) (v Vars) {
	once := s.Turn
	may := func(e Entry) bool { return s.Qualifies(e, p) && e.Slot != s.Install.Target }
	if once == "" && may(s.Entry(s.Wish)) {
		once = s.Wish
	}
	add := func(e Entry, tries uint8) {
		v.Order = append(v.Order, Turn{Name: p.Bootname(e.Slot), Tries: min(tries, p.Most), Good: e.Good && may(e)})
	}
	if p.Most == 0 {
		// It starts what stands first for ever: that has to be one that was good.
		for rank := range 3 {
			for _, e := range s.Slots {
				if r := s.rank(e, may(e)); r == rank {
					add(e, 0)
				}
			}
		}
		for _, e := range s.Slots {
			if once == "" && may(e) && (s.pending != e.Slot || e.Good) {
				once = e.Slot
			}
		}
		if len(v.Order) > 0 && once != "" && v.Order[0].Name != p.Bootname(once) && s.pending != once {
			v.Next = p.Bootname(once)
		}
		return v
	}
	if once != "" {
		add(s.Entry(once), s.left(once, 1))
	}
	for _, e := range s.Slots {
		tries := uint8(0)
		if may(e) {
			tries = s.left(e.Slot, min(e.Tries, p.Most))
		}
		if e.Slot != once {
			add(e, tries)
		}
	}
	return v
}

// left is what the loader has left of a slot's tries: it may have counted one more than the record.
func (s *State) left(slot string, tries uint8) uint8 {
	if slot == s.pending && tries > 0 {
		tries--
	}
	return tries
}

// rank says how far back a slot stands in the order of a loader that does not count.
func (s *State) rank(e Entry, may bool) int {
	switch {
	case may && e.Good:
		return 0
	case may:
		return 1
	}
	return 2
}

// Heard says what a boot loader's variables were when a boot began.
type Heard uint8

const (
	HeardNothing Heard = iota // there is no loader, or its variables are lost
	HeardRight                // as they were written, less what the loader counted
	HeardStale                // as they were before the record that they belong to: the power was cut in between
	HeardForeign              // somebody else has written them
)

// Hear brings a State in line with what the boot loader says, before Begin (rule 24). Tries that the loader used up without
// this program having seen a boot are gone, but not the last one of the last slot. What somebody else wrote is taken over:
// the order, and that a slot has fewer tries.
func Hear(s State, view LoaderView, p Policy) (State, Heard) {
	if !p.Loader || view.Vars == nil {
		return s, HeardNothing
	}
	s = s.Clone()
	s.arrange(p)
	seen := *view.Vars
	heard := HeardRight
	started := p.Bootname(view.Started)
	lost := func(used map[string]uint8) (n int) {
		for name, k := range used {
			if n += int(k); name == started {
				n-- // this boot
			}
		}
		return n
	}
	used, ok := s.Vars(p).used(seen, p.Most)
	before, fits := s.Told.used(seen, p.Most)
	fits = fits && len(s.Told.Order) > 0
	if started != "" && before[started] == 0 && slices.ContainsFunc(s.Told.Order, func(t Turn) bool { return t.Tries > 0 }) {
		fits = false // it counts each start
	}
	if fits && (!ok || lost(before) < lost(used)) {
		used, ok, heard = before, true, HeardStale
	}
	could := slices.ContainsFunc(s.Slots, func(e Entry) bool { return s.Qualifies(e, p) })
	if ok {
		s.count(used, view.Started, p)
	} else {
		heard = HeardForeign
		s.follow(seen, view.Started, p)
	}
	if could && !slices.ContainsFunc(s.Slots, func(e Entry) bool { return s.Qualifies(e, p) }) {
		if i := s.index(view.Started); i >= 0 && s.Slots[i].Tries == 0 {
			s.Slots[i].Tries = 1 // it has come this far
		}
	}
	return s, heard
}

// count takes off what the loader used up. One try of the slot that runs is this boot's, which Decide counts; one was that
// of a boot that ended before it came to that, which costs nothing (rule 2).
func (s *State) count(used map[string]uint8, started string, p Policy) {
	cut := s.Mark != MarkNone
	for i := range s.Slots {
		e := &s.Slots[i]
		n := used[p.Bootname(e.Slot)]
		if n == 0 {
			continue
		}
		if e.Slot != started {
			if s.Wish == e.Slot {
				s.Wish = ""
			}
			if s.Turn == e.Slot {
				s.Turn = ""
			}
		} else {
			s.pending, n = started, n-1
		}
		if n > 0 && cut {
			n, cut = n-1, false
		}
		e.Tries -= min(n, e.Tries)
	}
}

// follow takes over what somebody else told the loader.
func (s *State) follow(seen Vars, started string, p Policy) {
	for _, t := range slices.Backward(seen.Order) {
		i := slices.Index(p.Bootnames, t.Name)
		if i < 0 || i >= len(p.Slots) {
			continue
		}
		e := s.Entry(p.Slots[i])
		if p.Most > 0 {
			left := t.Tries
			if e.Slot == started {
				s.pending, left = started, left+1
			}
			if left < p.Most {
				e.Tries = min(e.Tries, left)
			}
			s.set(e)
			if left == 0 {
				continue
			}
		}
		if s.Qualifies(e, p) {
			s.toFront(e.Slot)
		}
	}
}
