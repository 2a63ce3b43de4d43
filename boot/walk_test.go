package boot

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"lifeboat/status"
	"lifeboat/version"
)

// TestWalk walks at random through what happens to a device and asserts after each step what docs/powercut.md calls I2
// (floors hold, something can always be booted or repaired), I4 (an unconfirmed system is booted at most Attempts times
// a round while another slot qualifies), I5 (nothing that counts goes back) and I10 (no state needs a human), and that
// the only intact slot that was ever good is never overwritten. LIFEBOAT_SEED repeats a walk.
func TestWalk(t *testing.T) {
	seed := rand.Uint64()
	if v := os.Getenv("LIFEBOAT_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	walks := 8
	if os.Getenv("LIFEBOAT_MODEL") == "full" {
		walks = 1000
	}
	t.Logf("LIFEBOAT_SEED=%d", seed)
	forgiving := available
	forgiving.PowerLosses = 3
	different := available
	different.Different = true
	for _, p := range []Policy{available, secure, forgiving, different} {
		p.Staging = true
		for i := range uint64(walks) {
			w := &walk{rig: newRig(t, p, sealOf("1"), Seal{Status: SealMissing}), rng: rand.New(rand.NewPCG(seed, i)), healthy: map[Hash]bool{hash("1"): true}, next: 2, count: map[string]int{}}
			w.durable = Factory(map[string]Seal{a: sealOf("1")}, p)
			w.durable.arrange(p)
			for range 1000 {
				w.step()
				if t.Failed() {
					t.Fatalf("LIFEBOAT_SEED=%d secure=%t different=%t walk %d, last steps:\n%s\n%+v\nmedium %+v", seed, p.Secure, p.Different, i, strings.Join(w.trace[max(0, len(w.trace)-30):], "\n"), w.durable.Slots, w.medium)
				}
			}
		}
	}
}

type walk struct {
	*rig
	rng     *rand.Rand
	healthy map[Hash]bool // systems that say good
	next    int           // version of the next new bundle
	stick   string        // version of the bundle that is plugged in, "": none
	staged  Offer         // what was staged last
	count   map[string]int
	truth   map[string]Seal // the medium as it was before this boot, which may be unable to read it
	trace   []string
}

func (w *walk) say(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%4d ", w.durable.Boot)+fmt.Sprintf(format, args...))
}

func (w *walk) chance(percent int) bool { return w.rng.IntN(100) < percent }

func (w *walk) step() {
	before := w.durable
	lost := false
	switch n := w.rng.IntN(100); {
	case n < 4 && w.p.Different && w.chance(50):
		w.stick = fmt.Sprint(1 + w.rng.IntN(w.next)) // an old one again
		w.say("a stick with %s, again", w.stick)
	case n < 4:
		w.stick = fmt.Sprint(w.next)
		w.next++
		w.healthy[hash(w.stick)] = w.chance(60)
		w.say("a stick with %s, healthy %t", w.stick, w.healthy[hash(w.stick)])
	case n < 6:
		w.stick = ""
	case n < 8:
		slot := w.p.Slots[w.rng.IntN(2)]
		if w.medium[slot].Status == SealValid {
			w.say("%s decays", slot)
			w.medium[slot] = damaged(w.medium[slot])
		}
	case n < 9:
		slot := w.p.Slots[w.rng.IntN(2)]
		w.say("the seal of %s is lost", slot)
		w.medium[slot] = Seal{Status: []SealStatus{SealMissing, SealFalse}[w.rng.IntN(2)]}
	case n < 10:
		w.say("both copies of the record are lost")
		w.staged = Offer{}
		sequence := w.durable.Sequence
		w.durable = Rebuild(w.medium, w.p)
		w.durable.Sequence = sequence
		w.count, lost = map[string]int{}, true
	case n < 14 && w.durable.Boot > 0:
		w.staged = Offer{Manifest: hash(fmt.Sprint(1 + w.rng.IntN(w.next))), Epoch: 1}
		w.staged.Version = strings.TrimRight(string(w.staged.Manifest[len("manifest of "):]), "\x00")
		w.staged.Asked = true
		w.say("%s is staged", w.staged.Version)
		w.commit(Stage(w.durable, Staged{Offset: 1 << 20, Size: 1, Manifest: w.staged.Manifest, Version: w.staged.Version}, w.p))
	default:
		w.oneBoot()
	}
	if !lost {
		if w.durable.Boot < before.Boot || w.durable.Sequence < before.Sequence {
			w.t.Errorf("I5: boot %d after %d", w.durable.Boot, before.Boot)
		}
		f, g := w.durable.Floors, before.Floors
		if version.Compare(f.Version, g.Version) < 0 || f.Epoch < g.Epoch || f.Time < g.Time {
			w.t.Errorf("I5: floors %+v after %+v", f, g)
		}
	}
	if w.chance(10) {
		w.probe()
	}
}

func (w *walk) oneBoot() {
	w.truth = maps.Clone(w.medium)
	if w.chance(4) {
		slot := w.p.Slots[w.rng.IntN(2)]
		w.say("%s cannot be read in this boot", slot)
		w.medium[slot] = Seal{Status: SealUnreadable, Whole: WholeDamaged}
		defer func() {
			if w.medium[slot].Status == SealUnreadable {
				w.medium[slot] = w.truth[slot]
			}
		}()
	}
	w.broken = nil
	for _, slot := range w.p.Slots {
		if w.medium[slot].Whole == WholeDamaged && w.chance(50) {
			w.broken = map[string]status.Reason{slot: status.VerityError}
		}
	}
	end := []status.Reason{status.None, status.None, status.Watchdog, status.Panic}[w.rng.IntN(4)]
	s, look := Begin(w.durable, end, w.stick != "", w.p)
	w.facts = Facts{ReadOnly: w.chance(2), Chance: w.rng.Uint64()}
	if s.Mark == MarkStaged && !w.facts.ReadOnly {
		w.commit(s)
		installed, ok := w.lookStaged()
		if !ok {
			return
		}
		if s = w.durable; installed {
			look = false
		} else if look {
			s = Looking(s)
		}
	}
	if look && !w.facts.ReadOnly {
		w.commit(s)
		if w.chance(10) {
			w.say("cut while USB is looked at")
			return
		}
		if !w.update(offerOf(w.stick), false) {
			return
		}
		s = w.durable
	}
	if w.chance(5) {
		w.say("cut before the commit")
		return
	}
	d := w.decide(s)
	if d.Action == GoRescue {
		w.say("rescue reason=%s", d.Reason)
		if w.stick != "" && !w.facts.ReadOnly && w.chance(50) {
			if !w.update(offerOf(w.stick), true) {
				return
			}
			d = w.decide(w.durable)
		} else {
			w.facts.Retry = true
			d = w.decide(w.durable)
		}
	}
	if d.Action == Boot {
		w.run(d)
	}
}

// run is what the started system does.
func (w *walk) run(d Decision) {
	e, seal := d.State.Entry(d.Slot), w.medium[d.Slot]
	w.say("boot of %s version %s trial %t tries %d retry %t readonly %t", d.Slot, e.Version, d.Trial, e.Tries, w.facts.Retry, w.facts.ReadOnly)
	if seal.Status != SealValid || !d.State.floors(w.p).Admit(seal.Version, seal.Epoch) {
		w.t.Errorf("I2: booted %+v, floors %+v", seal, d.State.Floors)
	}
	if d.Trial {
		if w.facts.ReadOnly && !w.facts.Retry {
			w.t.Errorf("rule 20: a trial while nothing can be counted")
		}
		others := false
		for _, o := range d.State.Slots {
			others = others || o.Slot != d.Slot && d.State.Qualifies(o, w.p)
		}
		if w.facts.ReadOnly || e.Reason != status.None {
			others = false // a turn in rescue (rule 18) belongs to no round
		} else {
			w.count[d.Slot]++
		}
		if others && w.count[d.Slot] > int(w.p.Attempts+w.p.PowerLosses) {
			w.t.Errorf("I4: %s was booted %d times in one round", d.Slot, w.count[d.Slot])
		}
	}
	if w.facts.ReadOnly {
		return
	}
	switch {
	case w.healthy[e.Manifest] && seal.Whole == WholeRight && w.chance(80):
		s, err := Good(w.durable, d.Slot, w.p)
		if err != nil {
			w.t.Error(err)
		}
		w.commit(s)
		w.say("good")
		w.count[d.Slot] = 0
	case w.chance(10):
		if s, err := Bad(w.durable, d.Slot, w.chance(20), w.p); err == nil {
			w.commit(s)
			w.say("bad")
		}
	case d.Trial && w.chance(20):
		if s, err := Deadline(w.durable, d.Slot, w.p); err == nil {
			w.commit(s)
			w.say("deadline")
		}
	case w.chance(20):
		if s, changed := Ended(w.durable, d.Slot); changed {
			w.commit(s)
			w.say("goes down in order")
		}
	case w.chance(5):
		if s, err := Next(w.durable, w.p.Slots[w.rng.IntN(2)], w.p); err == nil {
			w.commit(s)
			w.say("wish for %s", s.Wish)
		}
	}
}

// lookStaged looks at what is staged, as update.Device does; false: the power was cut. What a boot without a cut leaves is
// installed or refused, or waits with a reason.
func (w *walk) lookStaged() (installed, ok bool) {
	if w.chance(20) {
		w.say("cut while the staging partition is looked at")
		return false, false
	}
	if w.chance(5) {
		w.say("the staging partition cannot be read")
		w.durable = Suspect(w.durable, GuardID(w.staged.Manifest))
		return false, true
	}
	if v := Judge(w.durable, w.staged, false, w.p); !v.Take {
		w.say("what is staged is not taken: %s", v.Why)
		if !v.Wait {
			w.durable = Unstage(w.durable, v.Code, w.p)
		}
		if !w.durable.Staged.None() && v.Why == "" {
			w.t.Error("what is staged is not taken, stays and nobody says why")
		}
		return false, true
	}
	if !w.update(w.staged, false) {
		return false, false
	}
	if s := w.durable.Staged; !s.None() && !w.durable.Guarded(GuardID(s.Manifest)) && len(w.durable.Guards) == 0 {
		w.t.Errorf("what is staged was taken, and still is staged: %+v", s)
	}
	return w.durable.Staged.None(), true
}

// update looks at a bundle as update.Device does; false: the power was cut.
func (w *walk) update(o Offer, rescue bool) bool {
	if v := Judge(w.durable, o, rescue, w.p); !v.Take {
		return true
	}
	s := w.durable
	f := Facts{Seals: map[string]Seal{}}
	for slot, seal := range w.medium {
		if seal.Status == SealValid {
			seal.Whole = WholeUnread
		}
		f.Seals[slot] = seal
	}
	t := w.target(&s, f, o)
	if t.Slot == "" {
		return true
	}
	cut := func(where string) bool {
		if !w.chance(8) {
			return false
		}
		w.say("cut %s", where)
		return true
	}
	if !t.Present {
		w.guardTarget(s, t.Slot)
		w.commit(Note(s, t.Slot, o, w.p))
		w.say("install of %s to %s", o.Version, t.Slot)
		if w.truth[t.Slot].Manifest == o.Manifest {
			w.count[t.Slot] = 0 // it bears the bundle already, and gets a round if it is right (rules 8, 9)
		}
		if cut("after the note") {
			return false
		}
		w.medium[t.Slot] = Seal{Status: []SealStatus{SealMissing, SealMissing, SealFalse}[w.rng.IntN(3)]}
		if cut("after the wipe") {
			return false
		}
		if w.chance(10) {
			w.medium[t.Slot] = Seal{Status: SealMissing}
			w.commit(Refuse(w.durable, o, true, w.chance(50), 30, w.p))
			w.say("refused")
			return true
		}
		w.medium[t.Slot] = right(sealOf(o.Version))
		w.count[t.Slot] = 0
		if cut("after the seal") {
			return false
		}
		s = w.durable
	}
	w.commit(Installed(s, t.Slot, w.medium[t.Slot], w.p))
	w.count[t.Slot] = 0
	w.say("installed %s to %s, present %t", o.Version, t.Slot, t.Present)
	return true
}

// guardTarget asserts that an intact slot that was ever good is overwritten only where another one stays that is intact.
func (w *walk) guardTarget(s State, target string) {
	intact := func(slot string) bool {
		e, seal := s.Entry(slot), w.medium[slot]
		return seal.Status == SealValid && seal.Whole == WholeRight && seal.Manifest == e.Manifest && s.admits(e, w.p)
	}
	if !s.Entry(target).Good || !intact(target) {
		return
	}
	for _, slot := range w.p.Slots {
		if slot != target && intact(slot) {
			return
		}
	}
	w.t.Errorf("rule 5: %s is to be overwritten, the only intact slot, and it was good", target)
}

// probe asserts on a copy that without further faults the device comes back by itself, or with a stick, and that the
// stick is not needed where a slot holds a healthy system that may be booted.
func (w *walk) probe() {
	able := ""
	for _, slot := range w.p.Slots {
		e, seal := w.durable.Entry(slot), w.medium[slot]
		if seal.Status == SealValid && seal.Whole == WholeRight && w.healthy[seal.Manifest] && w.durable.floors(w.p).Admit(seal.Version, seal.Epoch) &&
			!(e.Excluded && e.Manifest == seal.Manifest) {
			able = slot
		}
	}
	c := &rig{t: w.t, p: w.p, durable: w.durable.Clone(), medium: maps.Clone(w.medium)}
	runs := func(d Decision) bool {
		seal := c.medium[d.Slot]
		return d.Action == Boot && seal.Whole == WholeRight && w.healthy[seal.Manifest]
	}
	most := 3*2 + 8*2 + 2 + 2 + 2*int(w.p.PowerLosses) // tries of two slots, and each its turn in rescue
	came := false
	for range most {
		c.facts.Retry = false
		d := c.boot(status.None)
		if d.Action == GoRescue {
			c.facts.Retry = true
			d = c.decide(c.durable)
		}
		if came = runs(d); came {
			break
		}
	}
	if able != "" && !came {
		w.t.Errorf("I10: %s holds a healthy system, and it is not booted", able)
	}
	if came {
		return
	}
	// With a stick, in rescue.
	o := offerOf("1000000")
	if v := Judge(c.durable, o, true, c.p); !v.Take {
		w.t.Errorf("I10: rescue refuses a newer bundle: %s", v.Why)
	}
	slot := c.install("1000000")
	if slot == "" {
		w.t.Error("I10: there is no slot for a bundle")
		return
	}
	c.facts.Retry = false
	if d := c.boot(status.None); d.Action != Boot || d.Slot != slot {
		w.t.Errorf("I10: what rescue installed to %s is not booted: %+v", slot, d)
	}
}
