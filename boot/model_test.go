package boot

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/status"
)

// TestModel explores every state that a device can get into: breadth first over the functions of this package in the
// sequence in which update calls them, with the power cut before and after each write, until no state is new. After
// each step the predicates of predicates_test.go are asserted, and of every state that the device comes back
// (TestModel's live). Power cuts, resets, bundles and what users say are unlimited; faults of the hardware (a copy of
// the record lost, both lost, a record that cannot be read or written, a slot that cannot be read, decays, loses its
// seal or does not start) and the kernel command line are limited to so many on a path, which is printed.
// LIFEBOAT_MODEL=full lifts the limits of states. -v prints the numbers.
//
// A state is kept as a key (node.key), which leaves out or folds what no function of this package reads, or reads only
// so far, so that the space is finite:
//
//   - Sequence, Events, Names, Entry.Booted, Rescue.Waits, times: written, never decided by.
//   - Boot: only Next-Boot is ever looked at, of which the key holds whether it has come. What has not come yet may come
//     at any time between two boots (a step of its own), which allows all that counting allows.
//   - Fall.Rounds and the counts of Guards only say how far away Next is; they are taken as past their limits.
//   - What is held against bundles and sticks (Falls, Guards, Mark, Cuts, Rescue.Stick) can only keep a stick from being
//     looked at or a bundle from being taken, and that may happen anyway: where world.memory is not set it is forgotten
//     after each step. Where it is, Falls and Guards are kept of the bundle that never says good.
//   - Reasons: those that decide alike are one (reasonClass). The evidence of ends likewise; Ends from 2 on.
//   - Ends of a system that was good, or was given up: they only choose between reasons that are one. Last of a good one.
//   - Mark: whether there is one. Cuts from 2 on, and none without a Mark: Begin asks no more.
//   - An empty entry's reason and tries. What was given back to one with a reason, which gets no more until its next round.
//   - Hashes and versions: three bundles, by number; 16 falls and 8 guards are never full.
//   - The older copy of the record: it is found only after the newest was lost. Losing it commutes with all that is not
//     a commit, so that it is lost at once, or never.
func TestModel(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var mu sync.Mutex
	var states, transitions, closed int
	all := worlds()
	t.Cleanup(func() {
		t.Logf("figure: model: %d worlds, %d of them closed, %d states, %d transitions", len(all), closed, states, transitions)
	})
	for _, w := range all {
		t.Run(w.String(), func(t *testing.T) {
			t.Parallel()
			g := w.explore()
			t.Log(g)
			mu.Lock()
			defer mu.Unlock()
			states, transitions = states+len(g.keys), transitions+g.transitions
			if !g.open {
				closed++
			}
			if g.broken != nil {
				t.Errorf("%v\n%s", g.broken.err, g.story())
			}
		})
	}
}

func full() bool { return os.Getenv("LIFEBOAT_MODEL") == "full" }

// world is one configuration to be explored.
type world struct {
	Policy
	sick   uint8 // bundle that never says good
	memory bool  // what is held against bundles and sticks is explored too
	grown  bool  // it starts with version 1 and 2 in two slots, both good; else with version 1 as the factory left it
	faults int   // limit on a path
	most   int   // states, 0: no limit
	machine
}

const bundles = 3 // versions "1" (from the factory) to "3"

func (w *world) String() string {
	policy := "available"
	if w.Secure {
		policy = "secure"
	}
	more := ""
	if w.Different {
		more += "/different"
	}
	if w.memory {
		more += "/memory"
	}
	if w.grown {
		more += "/grown"
	}
	if w.PowerLosses > 0 {
		more += fmt.Sprintf("/losses=%d", w.PowerLosses)
	}
	return fmt.Sprintf("%s/slots=%d/attempts=%d/faults=%d%s", policy, len(w.Slots), w.Attempts, w.faults, more)
}

func newWorld(slots int, attempts uint8, secure bool, sick uint8) *world {
	return &world{Policy: Policy{
		Slots: []string{a, b, "rootfs.2"}[:slots], Attempts: attempts, ConfirmedAttempts: 2, Secure: secure,
	}, sick: sick, machine: real}
}

// worlds are the configurations: each policy, 2 and 3 slots, 1 to 3 attempts without a fault of the hardware; with one
// fault; with what is held against bundles and sticks; and with a policy that takes what is different. Their limits of states are those of `make test`.
func worlds() (ws []*world) {
	for _, secure := range []bool{false, true} {
		for _, limit := range []struct {
			slots    int
			attempts uint8
			faults   int
			memory   bool
			grown    bool
			most     int
			losses   uint8 // tries that are given back; an orderly end is only told from a power loss where there are some
		}{
			{2, 1, 0, false, false, 0, 0},
			{2, 2, 0, false, false, 25_000, 0},
			{2, 3, 0, false, false, 25_000, 0},
			{3, 1, 0, false, false, 15_000, 0},
			{3, 2, 0, false, false, 15_000, 0},
			{3, 3, 0, false, false, 15_000, 0},
			{2, 1, 1, false, false, 8_000, 0},
			{2, 1, 1, false, true, 6_000, 0},
			{3, 2, 1, false, false, 4_000, 0},
			{2, 1, 0, true, false, 25_000, 0},
			{2, 2, 1, true, false, 6_000, 0},
			{2, 2, 2, false, true, 3_000, 0},
			{2, 1, 0, false, false, 12_000, 1},
			{2, 2, 0, false, false, 8_000, 2},
			{2, 1, 1, true, false, 3_000, 1},
		} {
			w := newWorld(limit.slots, limit.attempts, secure, 2)
			w.faults, w.memory, w.most, w.PowerLosses = limit.faults, limit.memory, limit.most, limit.losses
			if limit.grown {
				w.grown, w.sick = true, 3
			}
			if full() {
				w.most = 0
			}
			ws = append(ws, w)
		}
	}
	// A policy that takes older bundles by itself.
	w := newWorld(2, 1, false, 3)
	w.Different, w.grown, w.faults, w.most = true, true, 1, 6_000
	if full() {
		w.most = 0
	}
	return append(ws, w)
}

// machine is what is explored: the functions of this package, and the order of writes. Mutants replace parts of it.
type machine struct {
	Begin     func(State, status.Reason, bool, Policy) (State, bool)
	Settle    func(State, Facts, Policy) (State, []string, []string)
	Decide    func(State, Facts, Policy) Decision
	Retries   func(State, Facts, Policy) bool
	Rebuild   func(map[string]Seal, Policy) State
	Judge     func(State, Offer, bool, Policy) Verdict
	Target    func(State, Facts, Offer, string, Policy) TargetChoice
	Note      func(State, string, Offer, Policy) State
	Installed func(State, string, Seal, Policy) State
	Refuse    func(State, Offer, bool, bool, int, Policy) State
	Good      func(State, string, Policy) (State, error)
	Bad       func(State, string, bool, Policy) (State, error)
	Next      func(State, string, Policy) (State, error)
	Deadline  func(State, string, Policy) (State, error)
	Ended     func(State, string) (State, bool)
	Stricter  func(old, next State) bool

	inPlace   bool // the newest copy of the record is written over
	late      bool // a slot is started before its try is durable
	noteLate  bool // the old seal is wiped before the install is noted
	blindLook bool // sticks are looked at before the record says so
}

var real = machine{
	Begin: Begin, Settle: Settle, Decide: Decide, Retries: Retries, Rebuild: Rebuild, Judge: Judge, Target: Target,
	Note: Note, Installed: Installed, Refuse: Refuse, Good: Good, Bad: Bad, Next: Next, Deadline: Deadline, Ended: Ended,
	Stricter: Stricter,
}

// found is what lies on a slot.
type found struct {
	status  SealStatus // SealValid, SealMissing or SealFalse
	bundle  uint8      // of a valid seal
	damaged bool       // what a valid seal vouches for is not what it says
}

func (f found) seal() Seal {
	if f.status != SealValid {
		return Seal{Status: f.status}
	}
	s := seals3[f.bundle]
	s.Whole = WholeRight
	if f.damaged {
		s.Whole = WholeDamaged
	}
	return s
}

// What is known of the bundles, by number.
var (
	seals3  = [bundles + 1]Seal{{}, sealOf("1"), sealOf("2"), sealOf("3")}
	offers3 = [bundles + 1]Offer{{}, offerOf("1"), offerOf("2"), offerOf("3")}
)

func number(h Hash) uint8 {
	if h == (Hash{}) {
		return 0
	}
	return h[len("manifest of ")] - '0'
}

type place uint8

const (
	isOff place = iota
	isRunning
	inRescue
)

// node is a device between two steps.
type node struct {
	record State  // the newest copy
	older  *State // the other one, where the machine needs it
	lost   bool   // both copies
	medium [3]found
	booted [3]uint8 // boots of the slot's unconfirmed system in this round (oracle)
	at     place
	slot   uint8 // that runs
}

type key [40]byte

const modelBoot = 1 << 20 // the boot number of every decoded record

func slotNumber(slot string) uint8 { // "": 0, rootfs.0: 1
	if slot == "" {
		return 0
	}
	return slot[len(slot)-1] - '0' + 1
}

// reasonClass folds reasons that no decision tells apart.
func reasonClass(r status.Reason) status.Reason {
	switch {
	case r == status.SealFalse:
		return status.SealMissing
	case r.Evidence():
		return status.Exhausted
	}
	return r
}

func flag(on bool, b byte) byte { return bit(on, b) }

func (w *world) putState(s *State, k []byte) int {
	k[0] = flag(s.Unproven, 1)
	if w.memory {
		k[0] |= flag(s.Mark != MarkNone, 2) | flag(s.Rescue.Stick, 4)
		if s.Mark != MarkNone {
			k[0] |= min(s.Cuts, 2) << 4
		}
		k[4] = w.remembered(s)
	}
	k[1] = slotNumber(s.Install.Target) | number(s.Install.Manifest)<<4
	k[2] = slotNumber(s.Wish)
	if s.Floors.Version != "" {
		k[2] |= (s.Floors.Version[0] - '0') << 4
	}
	k[3] = slotNumber(s.Rescue.Slot)
	if e := s.Entry(s.Last.Slot); s.Last.Slot != "" && !e.Good {
		k[3] |= slotNumber(s.Last.Slot)<<4 | flag(s.Last.Trial, 128)
		if w.PowerLosses > 0 {
			k[3] |= flag(s.Last.Orderly, 64)
		}
	}
	n := 5
	for i := range s.Slots {
		e := &s.Slots[i]
		k[n] = slotNumber(e.Slot)
		if !e.Empty() {
			k[n] |= number(e.Manifest)<<2 | e.Tries<<4
			k[n+1] = flag(e.Good, 1) | flag(e.Excluded, 2)
			if !e.Good && !(e.Tries == 0 && e.Reason != status.None) {
				k[n+1] |= flag(e.EndedSo, 4) | flag(e.LastEnd != status.None, 8) | min(e.Ends, 2)<<4
				if e.Reason == status.None {
					k[n+1] |= e.Back << 6
				}
			}
			k[n+2] = byte(reasonClass(e.Reason))
		}
		n += 3
	}
	return n
}

// remembered is what is held against the sick bundle.
func (w *world) remembered(s *State) (v byte) {
	if f, ok := fall(s, seals3[w.sick].Manifest); ok { // 1 due, 2 not yet, 3 evidence
		switch {
		case f.Evidence != status.None:
			v = 3
		case f.Next > s.Boot:
			v = 2
		default:
			v = 1
		}
	}
	for _, g := range s.Guards {
		v |= flag(g.ID == GuardID(seals3[w.sick].Manifest) && g.Next > s.Boot, 16)
	}
	return v
}

func (w *world) getState(k []byte) (State, int) {
	s := State{Boot: modelBoot, Unproven: k[0]&1 != 0, Cuts: k[0] >> 4}
	if k[0]&2 != 0 {
		s.Mark = MarkUSB
	}
	name := func(n byte) string {
		if n == 0 {
			return ""
		}
		return w.Slots[n-1]
	}
	s.Rescue = Rescue{Slot: name(k[3] & 15), Stick: k[0]&4 != 0}
	s.Install = Install{name(k[1] & 15), seals3[k[1]>>4].Manifest}
	s.Wish = name(k[2] & 15)
	if v := k[2] >> 4; v > 0 {
		s.Floors = Floors{Version: seals3[v].Version, Epoch: 1}
	}
	s.Last = Last{Slot: name(k[3] >> 4 & 3), Trial: k[3]&128 != 0, Orderly: k[3]&64 != 0}
	const far = modelBoot * 2
	f := Fall{Manifest: seals3[w.sick].Manifest, Rounds: freeRounds}
	switch k[4] & 3 {
	case 1:
		s.Falls = []Fall{f}
	case 2:
		f.Next = far
		s.Falls = []Fall{f}
	case 3:
		f.Evidence = status.Watchdog
		s.Falls = []Fall{f}
	}
	g := Guard{ID: GuardID(f.Manifest), Seen: seenLimit, Unexplained: unexplainedLimit}
	if k[4]&16 != 0 {
		g.Next = far
	}
	s.Guards = []Guard{g}
	n := 5
	s.Slots = make([]Entry, 0, len(w.Slots))
	for range w.Slots {
		e := Entry{Slot: name(k[n] & 3)}
		if v := k[n] >> 2 & 3; v > 0 {
			e = fresh(e.Slot, seals3[v], w.Policy)
			e.Tries = k[n] >> 4
			e.Good, e.Excluded, e.EndedSo, e.Ends = k[n+1]&1 != 0, k[n+1]&2 != 0, k[n+1]&4 != 0, k[n+1]>>4&3
			e.Back = k[n+1] >> 6
			if k[n+1]&8 != 0 {
				e.LastEnd = status.Watchdog
			}
			e.Reason = status.Reason(k[n+2])
		}
		s.Slots = append(s.Slots, e)
		n += 3
	}
	return s, n
}

func (w *world) key(n *node) (k key) {
	k[0] = byte(n.at) | n.slot<<2 | flag(n.lost, 16)
	at := 1
	for i := range w.Slots {
		m := n.medium[i]
		k[at] = byte(m.status) | m.bundle<<3 | flag(m.damaged, 64)
		at++
	}
	if n.lost {
		return k
	}
	for i := range w.Slots {
		if e := n.record.Entry(w.Slots[i]); !e.Good {
			k[1+i/2+len(w.Slots)] |= n.booted[i] << (4 * (i % 2))
		}
	}
	at += 2
	at += w.putState(&n.record, k[at:])
	if n.older != nil {
		w.putState(n.older, k[at:])
	}
	return k
}

func (w *world) node(k key) node {
	n := node{at: place(k[0] & 3), slot: k[0] >> 2 & 3, lost: k[0]&16 != 0}
	at := 1
	for i := range w.Slots {
		n.medium[i] = found{status: SealStatus(k[at] & 7), bundle: k[at] >> 3 & 7, damaged: k[at]&64 != 0}
		at++
	}
	if n.lost {
		return n
	}
	for i := range w.Slots {
		n.booted[i] = k[1+i/2+len(w.Slots)] >> (4 * (i % 2)) & 15
	}
	at += 2
	var used int
	n.record, used = w.getState(k[at:])
	if w.inPlace && k[at+used] != 0 {
		s, _ := w.getState(k[at+used:])
		n.older = &s
	}
	return n
}

// run is one step from a node, with one choice wherever something may happen or not. It is update.Device without
// hardware; comments there say why.
type run struct {
	*world
	node
	faults int
	choice *chooser
	emit   func(n *node, faults int, last *run)
	see    func(*moment)

	mem     State
	f       Facts
	first   State    // the record when the step began
	wasLost bool     // there was none
	was     State    // the copy of the record that is not the newest
	wasBoot [3]uint8 // booted, when that was the newest
	dark    [3]int8  // slots that cannot be read in this boot: 1 yes, -1 no
	plain   bool     // nothing happened that need not: no fault, no cut, no stick
	helped  bool     // the same, but a stick with all bundles is plugged in and the best one is taken
	tracing bool
	lines   []string
	shown   moment
}

func (r *run) say(format string, args ...any) {
	if r.tracing {
		r.lines = append(r.lines, fmt.Sprintf(format, args...))
	}
}

// chooser goes through all sequences of choices.
type chooser struct {
	picks, limits []int
	at, changed   int
}

func (c *chooser) pick(n int) int {
	if c.at == len(c.picks) {
		c.picks, c.limits = append(c.picks, 0), append(c.limits, n)
	}
	c.at++
	return c.picks[c.at-1]
}

// next goes on to the next sequence, false after the last one.
func (c *chooser) next() bool {
	for i := len(c.picks) - 1; i >= 0; i-- {
		if c.picks[i]+1 < c.limits[i] {
			c.picks[i]++
			c.picks, c.limits = c.picks[:i+1], c.limits[:i+1]
			c.at, c.changed = 0, i
			return true
		}
	}
	return false
}

// fresh reports whether what happens now did not happen already with the sequence before.
func (c *chooser) fresh() bool { return c.at > c.changed }

// may returns which of n things happens; 0 is what happens by itself.
func (r *run) may(n int) int {
	i := r.choice.pick(n)
	if i > 0 {
		r.plain, r.helped = false, false
	}
	return i
}

// stick is may for what a stick does: who helps takes best.
func (r *run) stick(n, best int) int {
	i := r.choice.pick(n)
	r.plain = r.plain && i == 0
	r.helped = r.helped && i == best
	return i
}

// fault reports whether the hardware fails here.
func (r *run) fault(format string, args ...any) bool {
	if r.faults >= r.world.faults || r.may(2) == 0 {
		return false
	}
	r.faults++
	r.say("! "+format, args...)
	return true
}

func (r *run) moment(k kind) *moment {
	r.shown = moment{kind: k, Policy: r.Policy, before: &r.record, after: &r.mem, durable: &r.record, facts: r.f, medium: r.medium, rescue: r.at == inRescue}
	return &r.shown
}

// watch shows a moment to the predicates.
func (r *run) watch(m *moment) {
	if r.choice.fresh() {
		r.see(m)
	}
}

// cut is what is found when the power goes away now.
func (r *run) cut(where string) {
	if !r.choice.fresh() {
		return
	}
	n := r.node
	n.at, n.slot = isOff, 0
	keep := len(r.lines)
	r.say("the power is cut %s", where)
	m := r.moment(hasCut)
	m.before, m.after, m.lost = &r.first, &n.record, n.lost && !r.wasLost
	r.watch(m)
	r.emit(&n, r.faults, nil)
	if r.faults < r.world.faults {
		n.record, n.booted = r.was, r.wasBoot
		r.say("! the newest copy of the record is lost")
		r.emit(&n, r.faults+1, nil)
	}
	r.lines = r.lines[:keep]
}

// end ends the step.
func (r *run) end(at place, slot string) {
	r.at, r.slot = at, slotNumber(slot)
	if !r.lost {
		m := r.moment(hasReturned)
		m.before, m.after = &r.was, &r.record
		r.watch(m)
	}
	r.cut("")
	if at != isOff {
		if r.choice.fresh() || r.plain || r.helped {
			r.emit(&r.node, r.faults, r)
		}
		return
	}
	n := r.node
	n.slot = 0
	r.emit(&n, r.faults, r)
}

// commit makes a state durable; false when it cannot be written.
func (r *run) commit(s State, cause string) bool {
	if r.f.ReadOnly {
		return false
	}
	if r.at != isRunning && r.fault("the record cannot be written") {
		r.f.ReadOnly = true
		r.f.Chance = uint64(r.may(chances(len(r.Slots))))
		return false
	}
	m := r.moment(hasCommitted)
	m.after, m.cause, m.lost = &s, cause, r.lost
	r.watch(m)
	times := 1
	if !r.lost && r.Stricter(r.record, s) {
		times = 2
	}
	for range times {
		old := r.record
		if r.inPlace && !r.lost {
			// Torn, and the other copy is all that is left.
			n := r.node
			if r.older != nil {
				r.record, r.older = *r.older, nil
			} else {
				r.record, r.lost = State{}, true
			}
			r.cut("while the record is written")
			r.node = n
		}
		s.Sequence++
		if r.was, r.wasBoot = old, r.booted; r.lost {
			r.was = s
		}
		switch cause { // a new round
		case "good":
			r.booted[r.slot-1] = 0
		case "noted": // is due where the bundle is there already and right (rules 8, 9)
			if i := slotNumber(s.Install.Target) - 1; r.medium[i].status == SealValid && r.medium[i].bundle == number(s.Install.Manifest) {
				r.booted[i] = 0
			}
		case "installed":
			r.booted[slotNumber(s.Slots[0].Slot)-1] = 0
		}
		if r.inPlace && r.older == nil {
			r.older = &old
		}
		r.record, r.lost = s, false
		r.cut("after the record: " + cause)
	}
	r.mem = r.record
	return true
}

// chances is how many values of Chance draw alike from each number of slots up to n.
func chances(n int) int { return []int{1, 1, 2, 6}[n] }

func (r *run) step() {
	r.first, r.wasLost, r.was, r.wasBoot = r.record, r.lost, r.record, r.booted
	r.plain, r.helped = true, true
	switch r.at {
	case isOff:
		r.off()
	case isRunning:
		r.runs()
	case inRescue:
		r.begin()
		r.mem = r.record
		r.waits()
	}
}

func (r *run) begin() {
	r.f = Facts{Seals: map[string]Seal{}, Failed: map[string]status.Reason{}}
}

// off is what happens to a device without power, and then its boot.
func (r *run) off() {
	type mishap struct {
		what  string
		fault bool
		do    func()
	}
	var may []mishap
	for i := range r.record.Falls {
		if f := r.record.Falls[i]; f.Evidence == status.None && f.Next > r.record.Boot {
			may = append(may, mishap{fmt.Sprintf("many boots later bundle %d is due again", number(f.Manifest)), false, func() {
				r.record = r.record.Clone()
				r.record.Falls[i].Next = 0
			}})
		}
	}
	for i := range r.record.Guards {
		if g := r.record.Guards[i]; g.Next > r.record.Boot {
			may = append(may, mishap{"many boots later a guard is due", false, func() {
				r.record = r.record.Clone()
				r.record.Guards[i].Next = 0
			}})
		}
	}
	if r.faults < r.world.faults {
		for i, slot := range r.Slots {
			if r.medium[i].status != SealValid {
				continue
			}
			if !r.medium[i].damaged {
				may = append(may, mishap{slot + " decays", true, func() { r.medium[i].damaged = true }})
			}
			may = append(may, mishap{slot + " loses its seal", true, func() { r.medium[i] = found{status: SealMissing} }},
				mishap{"the seal of " + slot + " is false", true, func() { r.medium[i] = found{status: SealFalse} }})
		}
		if !r.lost {
			may = append(may, mishap{"both copies of the record are lost", true, func() {
				r.record, r.lost, r.older, r.booted = State{}, true, nil, [3]uint8{}
			}})
		}
	}
	if i := r.may(1 + len(may)); i > 0 {
		if may[i-1].fault {
			r.faults++
			r.say("! %s", may[i-1].what)
		} else {
			r.say("%s", may[i-1].what)
		}
		may[i-1].do()
		n := r.node
		r.emit(&n, r.faults, r)
		return
	}
	r.boot()
}

// boot is update.Device.Boot.
func (r *run) boot() {
	r.begin()
	how := status.None
	if !r.lost && r.record.Last.Slot != "" && r.may(2) == 1 {
		how = status.Watchdog
		r.say("the watchdog or a panic ended %s", r.record.Last.Slot)
	}
	r.mem = r.record
	readable := true
	if !r.lost && r.fault("the record cannot be read, nor written") {
		readable, r.f.ReadOnly, r.f.Blind, r.f.Chance = false, true, true, uint64(r.may(chances(len(r.Slots))))
	}
	if r.lost || !readable {
		r.look(r.Slots)
		r.mem = r.Rebuild(r.f.Seals, r.Policy)
		r.mem.Boot = modelBoot
	}
	outside := readable && r.stick(2, 1) == 1
	begun := r.mem
	var look bool
	r.mem, look = r.Begin(r.mem, how, outside, r.Policy)
	r.say("boot, a stick is plugged in: %t, looked at: %t", outside, look)
	m := r.moment(hasBegun)
	m.before, m.end, m.look, m.lost = &begun, how, look, r.lost
	r.watch(m)
	if !r.lost && r.faults < r.world.faults {
		switch n := r.may(2 + len(r.Slots)); {
		case n == 1:
			r.faults++
			r.say("! the command line asks for rescue")
			r.f.Rescue = true
		case n > 1:
			r.faults++
			r.f.Prefer = r.Slots[n-2]
			r.say("! the command line asks for %s", r.f.Prefer)
		}
	}
	if look && (r.blindLook || r.commit(r.mem, "mark")) {
		r.outside(false)
	}
	r.try()
}

// look reads seals.
func (r *run) look(slots []string) {
	for _, slot := range slots {
		i := slotNumber(slot) - 1
		seal := r.medium[i].seal()
		seal.Whole = WholeUnread
		if r.isDark(i) {
			seal = Seal{Status: SealUnreadable}
		}
		if old := r.f.Seals[slot]; old.Manifest == seal.Manifest {
			seal.Whole = old.Whole
		}
		r.f.Seals[slot] = seal
	}
}

// whole reads slots whole.
func (r *run) whole(slots []string) {
	for _, slot := range slots {
		i := slotNumber(slot) - 1
		seal := r.medium[i].seal()
		switch {
		case r.isDark(i):
			seal = Seal{Status: SealUnreadable, Whole: WholeDamaged}
		case seal.Status != SealValid:
			seal.Whole = WholeDamaged
		case !r.medium[i].damaged && r.fault("%s cannot be read to its end", slot):
			seal.Whole = WholeDamaged
		}
		r.say("%s is read whole: right %t", slot, seal.Whole == WholeRight)
		r.f.Seals[slot] = seal
	}
}

func (r *run) isDark(i uint8) bool {
	if r.dark[i] == 0 {
		r.dark[i] = -1
		if r.fault("%s cannot be read in this boot", r.Slots[i]) {
			r.dark[i] = 1
		}
	}
	return r.dark[i] > 0
}

// outside is update.Device.from with a stick of all bundles, of which one is wanted.
func (r *run) outside(rescue bool) bool {
	r.settle()
	var take []uint8
	for i := uint8(1); i <= bundles; i++ {
		v := r.Judge(r.mem, offers3[i], rescue, r.Policy)
		m := r.moment(hasJudged)
		m.offer, m.verdict, m.rescue = offers3[i], v, rescue
		r.watch(m)
		if v.Take {
			take = append(take, i)
		}
	}
	best := len(take)
	if best > 0 && take[best-1] == r.sick {
		best--
	}
	i := r.stick(1+len(take), best)
	return i > 0 && r.install(take[i-1], rescue, "")
}

func (r *run) settle() {
	for range 20 {
		s, look, attest := r.Settle(r.mem, r.f, r.Policy)
		switch {
		case len(look) > 0:
			r.look(look)
		case len(attest) > 0:
			r.whole(attest)
		default:
			r.mem = s
			return
		}
	}
	r.watch(r.moment(isStuck))
}

func (r *run) target(o Offer, running string) TargetChoice {
	for range 20 {
		for _, slot := range r.Slots {
			if r.f.Seals[slot].Status == SealUnknown {
				r.look([]string{slot})
			}
		}
		r.settle()
		t := r.Target(r.mem, r.f, o, running, r.Policy)
		if len(t.Attest) == 0 {
			return t
		}
		r.whole(t.Attest)
	}
	r.watch(r.moment(isStuck))
	return TargetChoice{}
}

// install is update.Device.install.
func (r *run) install(bundle uint8, rescue bool, running string) bool {
	o := offers3[bundle]
	t := r.target(o, running)
	m := r.moment(hasTarget)
	m.slot, m.offer, m.rescue, m.running, m.target = t.Slot, o, rescue, running, t
	r.watch(m)
	if t.Slot == "" {
		r.say("no slot for bundle %d", bundle)
		return false
	}
	if !t.Present {
		if n := r.may(3); n > 0 {
			r.refuse(o, false, n == 2)
			return false
		}
		r.say("bundle %d goes to %s", bundle, t.Slot)
		noted := r.Note(r.mem, t.Slot, o, r.Policy)
		if !r.noteLate && !r.keep(noted, "noted", rescue) {
			return false
		}
		if !r.write(bundle, t.Slot, rescue, running, noted) {
			return false
		}
	}
	if !r.keep(r.Installed(r.mem, t.Slot, r.f.Seals[t.Slot], r.Policy), "installed", rescue) {
		return false
	}
	delete(r.f.Failed, t.Slot)
	if rescue {
		r.f.Fresh = t.Slot
	}
	r.say("bundle %d is installed in %s", bundle, t.Slot)
	return true
}

// write does flush points 2 to 4.
func (r *run) write(bundle uint8, slot string, rescue bool, running string, noted State) bool {
	o, i := offers3[bundle], slotNumber(slot)-1
	m := r.moment(isWriting)
	m.slot, m.offer, m.rescue, m.running = slot, o, rescue, running
	r.watch(m)
	put := func(f found, what string) {
		r.medium[i] = f
		r.cut(what)
	}
	put(found{status: SealFalse}, "while the seal is wiped")
	put(found{status: SealMissing}, "after the wipe")
	r.f.Seals[slot] = Seal{Status: SealMissing}
	r.booted[i], r.wasBoot[i] = 0, 0
	if r.noteLate {
		r.keep(noted, "noted", rescue)
	}
	if n := r.may(3); n > 0 {
		return r.refuse(o, true, n == 2)
	}
	put(found{status: SealFalse}, "while the seal is written")
	put(found{status: SealValid, bundle: bundle}, "after the seal")
	r.f.Seals[slot] = r.medium[i].seal()
	return true
}

func (r *run) refuse(o Offer, wiped, seen bool) bool {
	r.say("the bundle is refused, its worker died: %t", seen)
	s := r.Refuse(r.mem, o, wiped, seen, 30, r.Policy)
	if !(wiped || seen) || !r.commit(s, "refused") {
		r.mem = s
	}
	return false
}

func (r *run) keep(s State, cause string, rescue bool) bool {
	if r.commit(s, cause) {
		return true
	}
	if rescue {
		r.mem = s
	}
	return rescue
}

// try is update.Device.try, and what comes after it.
func (r *run) try() {
	for range 60 {
		before := r.mem
		d := r.Decide(r.mem, r.f, r.Policy)
		switch d.Action {
		case Look:
			r.look(d.Slots)
			continue
		case Attest:
			r.whole(d.Slots)
			continue
		}
		if r.late && d.Action == Boot && r.f.Seals[d.Slot].Status == SealValid {
			r.started(d, before)
			return
		}
		if !r.commit(d.State, "decide") {
			again := r.Decide(r.mem, r.f, r.Policy)
			if again.Action == Look || again.Action == Attest {
				continue
			}
			d = again
			r.mem = d.State
		}
		m := r.moment(hasDecided)
		m.before, m.decision, m.slot = &before, d, d.Slot
		r.watch(m)
		retry := r.f.Retry
		r.f.Retry = false
		if d.Action == GoRescue {
			r.say("rescue: %s", d.Reason)
			r.rescued()
			return
		}
		if r.start(d, before, retry) {
			return
		}
		if retry {
			r.rescued()
			return
		}
	}
	r.watch(r.moment(isStuck))
}

// start is update.Device.start.
func (r *run) start(d Decision, before State, retry bool) bool {
	i := slotNumber(d.Slot) - 1
	if s := r.f.Seals[d.Slot]; s.Status != SealValid {
		r.look([]string{d.Slot})
	}
	seal := r.f.Seals[d.Slot]
	e := r.mem.Entry(d.Slot)
	if seal.Status != SealValid || seal.Manifest != e.Manifest || !r.mem.Admits(seal, r.Policy) {
		if seal.Status == SealValid && seal.Manifest == e.Manifest {
			r.f.Failed[d.Slot] = status.BelowFloor
		}
		return false
	}
	if r.medium[i].damaged && r.may(2) == 0 {
		r.say("%s does not start: it is damaged", d.Slot)
		r.f.Failed[d.Slot] = status.VerityError
		return false
	}
	if r.fault("%s does not start", d.Slot) {
		r.f.Failed[d.Slot] = status.Unreadable
		return false
	}
	m := r.moment(hasStarted)
	m.before, m.decision, m.slot, m.retry = &before, d, d.Slot, retry
	turn := r.f.ReadOnly || e.Reason != status.None // a turn in rescue belongs to no round
	if d.Trial && !turn {
		r.booted[i]++
	}
	m.booted = r.booted[i]
	m.turn = turn
	r.watch(m)
	r.say("%s runs version %s, trial %t, tries left %d", d.Slot, e.Version, d.Trial, e.Tries)
	r.end(isRunning, d.Slot)
	return true
}

// started is start before its try is durable: a mutant's.
func (r *run) started(d Decision, before State) {
	r.mem = d.State
	r.start(d, before, false)
}

// rescued ends the step in rescue. What cannot be written is not kept: rescue goes on in the same step then.
func (r *run) rescued() {
	if !r.f.ReadOnly {
		r.end(inRescue, "")
		return
	}
	if r.at == inRescue {
		r.end(isOff, "")
		return
	}
	r.at = inRescue
	switch r.may(3) {
	case 0:
		r.end(isOff, "")
	default:
		r.waits()
	}
}

// waits is update.Device.wait.
func (r *run) waits() {
	r.look(r.Slots)
	retries := r.Retries(r.mem, r.f, r.Policy)
	if !(r.mem.Rescue.Stick && retries) {
		s := r.mem.Clone()
		s.Mark, s.Rescue.Stick = MarkRescue, true
		r.commit(s, "stick")
		if r.outside(true) {
			r.f.Rescue, r.f.Failed = false, map[string]status.Reason{}
			r.try()
			return
		}
		s = r.mem.Clone()
		s.Mark, s.Rescue.Stick = MarkNone, false
		r.commit(s, "clear")
	} else {
		r.mem.Rescue.Stick = false
	}
	r.say("it is a slot's turn")
	r.f.Retry = !r.f.Rescue
	r.f.Rescue, r.f.Failed = false, map[string]status.Reason{}
	r.f.Chance++
	r.try()
}

// runs is what the running system does, or its users.
func (r *run) runs() {
	slot := r.Slots[r.slot-1]
	r.begin()
	r.mem = r.record
	type act struct {
		what string
		do   func() (State, error)
	}
	var acts []act
	e := r.record.Entry(slot)
	if !r.lost {
		if _, err := r.Good(r.record, slot, r.Policy); err == nil && r.medium[r.slot-1].bundle != r.sick {
			acts = append(acts, act{"good", func() (State, error) { return r.Good(r.record, slot, r.Policy) }})
		}
	}
	acts = append(acts, act{"off", nil})
	if e.Good && e.Tries == r.ConfirmedAttempts {
		slices.Reverse(acts) // it has said so
	}
	if !r.lost {
		for _, s := range r.Slots {
			acts = append(acts,
				act{"bad " + s, func() (State, error) { return r.Bad(r.record, s, false, r.Policy) }},
				act{"force " + s, func() (State, error) { return r.Bad(r.record, s, true, r.Policy) }},
				act{"next " + s, func() (State, error) { return r.Next(r.record, s, r.Policy) }})
		}
		acts = append(acts, act{"deadline", func() (State, error) { return r.Deadline(r.record, slot, r.Policy) }})
		if r.PowerLosses > 0 {
			acts = append(acts, act{"ended", func() (State, error) {
				s, changed := r.Ended(r.record, slot)
				if !changed {
					return s, errors.New("nothing to record")
				}
				return s, nil
			}})
		}
		if e.Good && e.Manifest == r.medium[r.slot-1].seal().Manifest {
			acts = append(acts, act{"install", nil})
		}
	}
	chosen := acts[r.may(len(acts))]
	switch chosen.what {
	case "off":
		r.say("%s goes down without a word", slot)
		r.end(isOff, "")
		return
	case "install":
		r.settle()
		bundle := uint8(1 + r.may(bundles))
		if r.mem.Admits(seals3[bundle], r.Policy) {
			r.install(bundle, false, slot)
		}
		if r.f.ReadOnly {
			r.end(isOff, "")
			return
		}
		r.end(isRunning, slot)
		return
	}
	s, err := chosen.do()
	m := r.moment(wasTold)
	m.cause, m.after, m.err = chosen.what, &s, err
	m.slot = slot
	if _, other, ok := strings.Cut(chosen.what, " "); ok {
		m.slot = other
	}
	r.watch(m)
	if err != nil {
		r.end(isRunning, slot)
		return
	}
	r.say("%s says: %s", slot, chosen.what)
	r.commit(s, chosen.what)
	switch chosen.what {
	case "deadline", "ended":
		r.end(isOff, "")
	default:
		r.end(isRunning, slot)
	}
}

// graph is what was explored.
type graph struct {
	*world
	keys   []key
	index  map[key]int32
	meta   []meta
	queues [][]int32 // nodes to be expanded, by steps

	transitions int
	open        bool // the limit of states was reached
	broken      *broken
	took        time.Duration
}

type meta struct {
	parent, next, fix int32 // -1: none
	depth             uint16
	faults            uint8
	flags             uint8
}

const (
	isDone uint8 = 1 << iota
	isHome       // a healthy system runs and is confirmed
	isAble       // in rescue, and a slot holds a healthy system that may be booted
)

type broken struct {
	node int32
	name string
	err  error
	then []int32 // liveness: where the device went from there
}

func (g *graph) String() string {
	closed := "closed"
	if g.open {
		closed = "limit of states reached"
	}
	var by []int
	deep := 0
	for _, m := range g.meta {
		for len(by) <= int(m.faults) {
			by = append(by, 0)
		}
		by[m.faults]++
		deep = max(deep, int(m.depth))
	}
	return fmt.Sprintf("%d states, %d transitions, %d steps deep, at most %d faults on a path (states by faults: %v), %s, %s", len(g.keys), g.transitions, deep, g.faults, by, closed, g.took.Round(time.Millisecond))
}

func (w *world) explore() *graph {
	start := time.Now()
	g := &graph{world: w, index: map[key]int32{}}
	n := node{record: Factory(map[string]Seal{a: seals3[1]}, w.Policy), medium: [3]found{{status: SealValid, bundle: 1}}}
	for i := range w.Slots[1:] {
		n.medium[1+i].status = SealMissing
	}
	if w.grown {
		n.medium[1] = found{status: SealValid, bundle: 2}
		n.record = state(entry(b, "2", good), entry(a, "1", good))
		n.record.arrange(w.Policy)
		n.record.Slots[0].Tries, n.record.Slots[1].Tries = w.ConfirmedAttempts, w.ConfirmedAttempts
		n.record.Floors = Floors{Version: "1", Epoch: 1}
	}
	n.record.Boot = modelBoot
	g.add(&n, -1, 0, 0)
	for d := 0; d < len(g.queues); d++ {
		for i := 0; i < len(g.queues[d]); i++ {
			at := g.queues[d][i]
			if g.meta[at].flags&isDone != 0 {
				continue
			}
			g.meta[at].flags |= isDone
			g.expand(at, d)
			g.open = g.most > 0 && len(g.keys) >= g.most
			if g.broken != nil || g.open {
				g.took = time.Since(start)
				return g
			}
		}
		g.queues[d] = nil
	}
	if g.broken == nil {
		g.live()
	}
	g.took = time.Since(start)
	return g
}

// add enters a node, or a way to it with fewer faults.
func (g *graph) add(n *node, parent int32, faults, depth int) int32 {
	k := g.key(n)
	i, known := g.index[k]
	if known {
		m := &g.meta[i]
		if int(m.faults) <= faults {
			return i
		}
		m.parent, m.faults, m.depth, m.flags = parent, uint8(faults), uint16(depth), m.flags&^isDone // and once more, with more faults to come
	} else {
		i = int32(len(g.keys))
		g.index[k] = i
		g.keys = append(g.keys, k)
		g.meta = append(g.meta, meta{parent: parent, next: -1, fix: -1, faults: uint8(faults), depth: uint16(depth), flags: g.flags(n)})
		if !n.lost && g.broken == nil {
			if err := sameRecord(n.record); err != nil && parent >= 0 {
				g.broken = &broken{node: parent, name: "R1", err: err}
			}
		}
	}
	for len(g.queues) <= depth {
		g.queues = append(g.queues, nil)
	}
	g.queues[depth] = append(g.queues[depth], i)
	return i
}

func (g *graph) flags(n *node) (f uint8) {
	healthy := func(i int) bool { return n.medium[i].status == SealValid && n.medium[i].bundle != g.sick }
	switch {
	case n.at == isRunning && !n.lost && healthy(int(n.slot-1)):
		if e := n.record.Entry(g.Slots[n.slot-1]); e.Good && e.Manifest == n.medium[n.slot-1].seal().Manifest && e.Tries == g.ConfirmedAttempts {
			f |= isHome
		}
	case n.at == inRescue:
		for i, slot := range g.Slots {
			e, seal := n.record.Entry(slot), n.medium[i].seal()
			if healthy(i) && !n.medium[i].damaged && n.record.Admits(seal, g.Policy) && !(e.Excluded && e.Manifest == seal.Manifest) {
				f |= isAble
			}
		}
	}
	return f
}

func (g *graph) expand(at int32, depth int) {
	c := &chooser{changed: -1}
	for {
		r := g.run(at, c)
		r.see = func(m *moment) {
			if g.broken == nil {
				if p, err := judge(m); err != nil {
					g.broken = &broken{node: at, name: p, err: err}
				}
			}
		}
		r.emit = func(n *node, faults int, last *run) {
			g.transitions++
			i := g.add(n, at, faults, depth+1)
			if last != nil && last.plain {
				g.meta[at].next = i
			}
			if last != nil && last.helped {
				g.meta[at].fix = i
			}
		}
		r.step()
		if g.broken != nil || !c.next() {
			return
		}
	}
}

func (g *graph) run(at int32, c *chooser) *run {
	return &run{world: g.world, node: g.node(g.keys[at]), faults: int(g.meta[at].faults), choice: c}
}

// live asserts of every state that the device comes back: by itself (I6, I10), with a stick (I7, I10).
func (g *graph) live() {
	most := int(max(g.Attempts+g.PowerLosses, g.ConfirmedAttempts))*len(g.Slots) + 2
	best := uint8(bundles)
	if best == g.sick {
		best--
	}
	for i := range g.keys {
		// I6: at most so many boots to a confirmed system or to rescue.
		at, boots := int32(i), 0
		way := []int32{}
		for g.meta[at].flags&isHome == 0 && place(g.keys[at][0]&3) != inRescue {
			if place(g.keys[at][0]&3) == isOff {
				boots++
			}
			if boots > most || len(way) > 4*most {
				g.broken = &broken{int32(i), "I6", fmt.Errorf("I6: neither a confirmed system nor rescue after %d boots", most), way}
				return
			}
			at = g.meta[at].next
			way = append(way, at)
		}
		// I10: rescue finds what may be booted.
		if g.meta[i].flags&isAble != 0 {
			at, way = int32(i), nil
			for steps := 0; g.meta[at].flags&isHome == 0; steps++ {
				if steps > 4*most {
					g.broken = &broken{int32(i), "I10", errors.New("I10: a slot holds a healthy system, and rescue does not find it"), way[:min(len(way), 16)]}
					return
				}
				at = g.meta[at].next
				way = append(way, at)
			}
		}
		// I7, I10: a stick that stays plugged in is installed and runs, or it is said why not.
		at, way = int32(i), nil
		for steps := 0; ; steps++ {
			if g.meta[at].flags&isHome != 0 {
				n := g.node(g.keys[at])
				if n.medium[n.slot-1].bundle == best {
					break
				}
				if v := g.Judge(n.record, offers3[best], false, g.Policy); !v.Take && v.Why != "" {
					break
				}
			}
			if steps > 8*most {
				g.broken = &broken{int32(i), "I7", fmt.Errorf("I7: with a stick with version %d plugged in it comes neither to that nor to a refusal", best), way[:min(len(way), 24)]}
				return
			}
			at = g.meta[at].fix
			way = append(way, at)
		}
	}
}

// sameRecord is rule 1: what is written is what is read.
func sameRecord(s State) error {
	raw, err := s.Encode()
	if err != nil {
		return fmt.Errorf("rule 1: %w", err)
	}
	got, err := Decode(raw)
	if err != nil {
		return fmt.Errorf("rule 1: %w", err)
	}
	again, err := got.Encode()
	if err != nil || string(again) != string(raw) {
		return fmt.Errorf("rule 1: a record that is read is not the one that was written: %v", err)
	}
	return nil
}

// path returns the nodes from the first to at.
func (g *graph) path(at int32) (way []int32) {
	for ; at >= 0; at = g.meta[at].parent {
		way = append(way, at)
	}
	slices.Reverse(way)
	return way
}

// story tells how the device got to where a predicate broke: the steps, and after each what the record says.
func (g *graph) story() string {
	var out strings.Builder
	way := g.path(g.broken.node)
	first := g.node(g.keys[0])
	fmt.Fprintf(&out, "%s, after %d steps:\n  0  %s\n", g.world, len(way), g.show(&first))
	for i, at := range way[1:] {
		g.tell(&out, i+1, way[i], at)
	}
	if g.broken.then == nil {
		g.tell(&out, len(way), g.broken.node, -1)
	} else {
		fmt.Fprintf(&out, "and from there, without a fault or a cut:\n")
		at := g.broken.node
		for i, next := range g.broken.then {
			g.tell(&out, len(way)+i, at, next)
			at = next
		}
	}
	fmt.Fprintf(&out, "  => %v\n", g.broken.err)
	return out.String()
}

// tell repeats the step from one node to the next, or to the broken predicate.
func (g *graph) tell(out *strings.Builder, number int, from, to int32) {
	c := &chooser{changed: -1}
	for {
		r := g.run(from, c)
		r.tracing = true
		var lines []string
		state := ""
		r.see = func(m *moment) {
			if to >= 0 || lines != nil {
				return
			}
			if p, err := judge(m); err != nil && p == g.broken.name {
				lines, state = slices.Clone(r.lines), g.show(&r.node)
			}
		}
		r.emit = func(n *node, faults int, last *run) {
			if to >= 0 && lines == nil && g.key(n) == g.keys[to] {
				lines, state = append([]string{}, r.lines...), g.show(n)
			}
		}
		r.step()
		if lines != nil {
			fmt.Fprintf(out, "%3d  %s\n     %s\n", number, strings.Join(lines, "\n     "), state)
			return
		}
		if !c.next() {
			return
		}
	}
}

// show says in a line what a device is like.
func (g *graph) show(n *node) string {
	if n.lost {
		return "[no record]"
	}
	var parts []string
	for _, e := range n.record.Slots {
		m := n.medium[slotNumber(e.Slot)-1]
		on := "no seal"
		switch {
		case m.status == SealFalse:
			on = "false seal"
		case m.status == SealValid:
			on = fmt.Sprintf("v%d", m.bundle)
			if m.damaged {
				on += " damaged"
			}
		}
		says := "empty"
		if !e.Empty() {
			says = fmt.Sprintf("v%d tries=%d", number(e.Manifest), e.Tries)
		}
		for what, is := range maps.All(map[string]bool{" good": e.Good, " excluded": e.Excluded}) {
			if is {
				says += what
			}
		}
		if e.Reason != status.None {
			says += " " + e.Reason.String()
		}
		parts = append(parts, fmt.Sprintf("%s: %s, record: %s", e.Slot, on, says))
	}
	s := n.record
	if s.Install.Target != "" {
		parts = append(parts, fmt.Sprintf("v%d noted for %s", number(s.Install.Manifest), s.Install.Target))
	}
	if s.Wish != "" {
		parts = append(parts, "wish: "+s.Wish)
	}
	if s.Floors.Version != "" {
		parts = append(parts, "floor "+s.Floors.Version)
	}
	if s.Unproven {
		parts = append(parts, "unproven")
	}
	for _, f := range s.Falls {
		parts = append(parts, fmt.Sprintf("v%d fell back %s", number(f.Manifest), f.Evidence))
	}
	return "[" + strings.Join(parts, "; ") + "]"
}
