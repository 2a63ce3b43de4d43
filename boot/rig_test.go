package boot

import (
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"lifeboat/status"
)

const (
	a = "rootfs.0"
	b = "rootfs.1"
)

var (
	available = Policy{Slots: []string{a, b}, Attempts: 3, ConfirmedAttempts: 8}
	secure    = Policy{Slots: []string{a, b}, Attempts: 3, ConfirmedAttempts: 8, Secure: true}
)

var sameState = cmp.Options{cmp.AllowUnexported(State{}), cmpopts.EquateEmpty()}

// hash is the manifest hash of a system of that version: one system for each version.
func hash(version string) (h Hash) {
	copy(h[:], "manifest of "+version)
	return h
}

// sealOf is the seal of a slot with a system of that version, in epoch 1 and whole.
func sealOf(version string) Seal {
	return Seal{Status: SealValid, Manifest: hash(version), Version: version, Epoch: 1}
}

func offerOf(version string) Offer { return Offer{Manifest: hash(version), Version: version, Epoch: 1} }

func seals(inA, inB Seal) map[string]Seal { return map[string]Seal{a: inA, b: inB} }

// right and damaged are seals of slots that were read whole.
func right(s Seal) Seal   { s.Whole = WholeRight; return s }
func damaged(s Seal) Seal { s.Whole = WholeDamaged; return s }

// entry is one for a system of that version; mods change it.
func entry(slot, version string, mods ...func(*Entry)) Entry {
	e := fresh(slot, sealOf(version), available)
	for _, m := range mods {
		m(&e)
	}
	return e
}

func good(e *Entry)     { e.Good, e.Tries = true, 8 }
func excluded(e *Entry) { e.Excluded = true }
func tries(n uint8) func(*Entry) {
	return func(e *Entry) { e.Tries = n }
}

func because(r status.Reason) func(*Entry) {
	return func(e *Entry) { e.Reason = r }
}

func state(entries ...Entry) State { return State{Slots: entries} }

// rig is a device without hardware: one durable record, and slots on a medium that is looked at when Decide asks.
type rig struct {
	t       testing.TB
	p       Policy
	durable State
	medium  map[string]Seal          // what would be found; Whole is WholeRight or WholeDamaged
	broken  map[string]status.Reason // slots that do not start
	facts   Facts                    // of every boot: Rescue, ReadOnly, Prefer ...

	commits []State
	whole   []string // slots that were read whole, in order
}

func newRig(t testing.TB, p Policy, inA, inB Seal, entries ...Entry) *rig {
	return &rig{t: t, p: p, durable: state(entries...), medium: seals(right(inA), right(inB))}
}

func (r *rig) commit(s State) {
	s.Sequence = r.durable.Sequence + 1
	raw, err := s.Encode()
	if err != nil {
		r.t.Fatalf("a state that cannot be written: %v", err)
	}
	if r.durable, err = Decode(raw); err != nil {
		r.t.Fatalf("a state that cannot be read: %v", err)
	}
	r.commits = append(r.commits, r.durable)
}

// boot is one boot without anything outside, up to a slot that starts or to rescue.
func (r *rig) boot(end status.Reason) Decision {
	s, _ := Begin(r.durable, end, false, r.p)
	return r.decide(s)
}

// boots is n boots that end without a word, and what the last of them started.
func (r *rig) boots(n int, end status.Reason) (d Decision) {
	for range n {
		d = r.boot(end)
	}
	return d
}

func (r *rig) decide(s State) Decision {
	f := r.facts
	f.Seals, f.Failed = map[string]Seal{}, map[string]status.Reason{}
	return r.decideWith(s, f)
}

func (r *rig) decideWith(s State, f Facts) Decision {
	for step := 0; ; step++ {
		if step > 40 {
			r.t.Fatalf("no decision after %d steps: %+v", step, s)
		}
		before := s.Clone()
		d := Decide(s, f, r.p)
		if !reflect.DeepEqual(before, s) {
			r.t.Fatalf("Decide changed what it was given:\n%s", cmp.Diff(before, s, sameState))
		}
		switch d.Action {
		case Look, Attest:
			for _, slot := range d.Slots {
				seal := r.medium[slot]
				if d.Action == Look {
					seal.Whole = f.Seals[slot].Whole
				} else {
					r.whole = append(r.whole, slot)
				}
				f.Seals[slot] = seal
			}
			continue
		case GoRescue:
			if !f.ReadOnly {
				r.commit(d.State)
			}
			return d
		}
		if !f.ReadOnly {
			r.commit(d.State)
			s = r.durable
		} else {
			s = d.State
		}
		f.Retry = false // its turn is over, whether it starts or not
		seal := r.medium[d.Slot]
		seal.Whole = f.Seals[d.Slot].Whole
		f.Seals[d.Slot] = seal
		if seal.Status != SealValid || seal.Manifest != s.Entry(d.Slot).Manifest {
			continue
		}
		if why, bad := r.broken[d.Slot]; bad {
			f.Failed[d.Slot] = why
			continue
		}
		return d
	}
}

// install is an install that comes to its end, as update does it, and returns its target.
func (r *rig) install(version string) string {
	o := offerOf(version)
	s := r.durable
	f := Facts{Seals: maps.Clone(r.medium)}
	for slot, seal := range f.Seals {
		seal.Whole = WholeUnread
		f.Seals[slot] = seal
	}
	t := r.target(&s, f, o)
	if t.Slot == "" {
		return ""
	}
	if !t.Present {
		r.commit(Note(s, t.Slot, o, r.p))
		r.medium[t.Slot] = right(sealOf(version))
	}
	r.commit(Installed(r.durable, t.Slot, r.medium[t.Slot], r.p))
	return t.Slot
}

// settle brings the entries in line with the slots, as update does before it judges a bundle.
func (r *rig) settle(s State) State {
	f := Facts{Seals: map[string]Seal{}}
	for range 20 {
		next, look, attest := Settle(s, f, r.p)
		if len(look)+len(attest) == 0 {
			return next
		}
		for _, slot := range look {
			seal := r.medium[slot]
			seal.Whole = f.Seals[slot].Whole
			f.Seals[slot] = seal
		}
		for _, slot := range attest {
			f.Seals[slot] = r.medium[slot]
		}
	}
	r.t.Fatal("not settled after 20 questions")
	return s
}

func (r *rig) target(s *State, f Facts, o Offer) TargetChoice {
	for range 20 {
		next, _, attest := Absorb(*s, f, r.p)
		if len(attest) == 0 {
			*s = next
			t := Target(*s, f, o, "", r.p)
			if len(t.Attest) == 0 {
				return t
			}
			attest = t.Attest
		}
		for _, slot := range attest {
			r.whole = append(r.whole, slot)
			f.Seals[slot] = r.medium[slot]
		}
	}
	r.t.Fatal("no target after 20 questions")
	return TargetChoice{}
}

func (r *rig) good(slot string) {
	s, err := Good(r.durable, slot, r.p)
	if err != nil {
		r.t.Fatal(err)
	}
	r.commit(s)
}

func (r *rig) entry(slot string) Entry { return r.durable.Entry(slot) }

func wantBoot(t testing.TB, d Decision, slot string) {
	t.Helper()
	if d.Action != Boot || d.Slot != slot {
		t.Fatalf("action %d slot %q reason %q, want boot of %s", d.Action, d.Slot, d.Reason, slot)
	}
}

func wantRescue(t testing.TB, d Decision) {
	t.Helper()
	if d.Action != GoRescue {
		t.Fatalf("action %d slot %q, want rescue", d.Action, d.Slot)
	}
}

func order(s State) (out []string) {
	for _, e := range s.Slots {
		out = append(out, e.Slot)
	}
	return out
}

func lastEvent(s State, k status.Kind) (Event, bool) {
	for _, e := range slices.Backward(s.Events) {
		if e.Kind == k {
			return e, true
		}
	}
	return Event{}, false
}
