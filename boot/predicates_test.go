package boot

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"lifeboat/status"
	"lifeboat/version"
)

// kind says what a moment is about.
type kind uint8

const (
	hasBegun     kind = iota // a boot has begun: before what was loaded, after what Begin made of it
	hasJudged                // a bundle was judged
	hasTarget                // a target was chosen
	isWriting                // the target's old seal is about to be wiped
	hasCommitted             // after is about to be made durable over before
	hasReturned              // what was made durable has come back to who asked: before is the other copy
	hasCut                   // the power is gone: before is the record when the step began, after what is found
	hasDecided               // Decide wants a slot or rescue, and its State is durable
	hasStarted               // a slot runs: before is what was decided from, after what is in memory
	wasTold                  // good, bad, next or deadline was said: before and after
	isStuck                  // neither a slot nor rescue after many questions
	kinds
)

// moment is one thing that happens in a step.
type moment struct {
	kind kind
	Policy
	before, after *State
	durable       *State
	lost          bool // both copies of the record were
	facts         Facts
	medium        [3]found // what lies on the slots in truth
	slot          string
	cause         string // of a commit; what was told
	err           error  // that it was answered with
	end           status.Reason
	look          bool
	offer         Offer
	verdict       Verdict
	target        TargetChoice
	rescue        bool
	running       string // slot of the system that installs
	decision      Decision
	retry, turn   bool // started because it is a slot's turn in rescue
	booted        uint8
}

// truth is what lies on a slot.
func (m *moment) truth(slot string) Seal { return m.medium[slotNumber(slot)-1].seal() }

// intact reports whether a slot is in truth what its entry says, and may be booted.
func (m *moment) intact(s *State, slot string) bool {
	e, seal := s.Entry(slot), m.truth(slot)
	return !e.Empty() && seal.Status == SealValid && seal.Whole == WholeRight && seal.Manifest == e.Manifest && s.admits(e, m.Policy)
}

// predicate is one law: of the oracle in docs/powercut.md (I) or a rule of docs/boot-rules.md (R). What it asserts
// after a whole path (I6, I7, I10) is graph.live's; I8 speaks of bytes and R1 of records (graph.add).
type predicate struct {
	name  string
	text  string
	at    []kind
	check func(*moment) error
	fails func() *moment // a moment that breaks it
}

func events(s *State, k status.Kind) (n int) {
	for _, e := range s.Events {
		if e.Kind == k {
			n++
		}
	}
	return n
}

func fall(s *State, m Hash) (Fall, bool) {
	i := slices.IndexFunc(s.Falls, func(f Fall) bool { return f.Manifest == m })
	if i < 0 {
		return Fall{}, false
	}
	return s.Falls[i], true
}

func givenUp(e Entry) bool { return reasonClass(e.Reason) == status.Exhausted }

func says(format string, args ...any) error { return fmt.Errorf(format, args...) }

var predicates = []predicate{
	{
		name: "I1", text: "what is started bears the seal that its entry speaks about",
		at: []kind{hasStarted},
		check: func(m *moment) error {
			if seal := m.truth(m.slot); seal.Status != SealValid || seal.Manifest != m.after.Entry(m.slot).Manifest {
				return says("%s is started with %s on it", m.slot, seal.Version)
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasStarted, slot: a, medium: [3]found{{status: SealFalse}}, after: one(entry(a, "1"))}
		},
	},
	{
		name: "I2", text: "what is started is at or above the floors, and each boot ends in a slot or in rescue",
		at: []kind{hasStarted, isStuck},
		check: func(m *moment) error {
			if m.kind == isStuck {
				return errors.New("no decision")
			}
			if !m.after.Admits(m.truth(m.slot), m.Policy) {
				return says("%s is below the floor", m.slot)
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasStarted, slot: a, medium: [3]found{{status: SealValid, bundle: 1}}, after: &State{Floors: Floors{Version: "2"}}}
		},
	},
	{
		name: "I3", text: "an install never writes to the running slot, nor to the only intact one that was ever good",
		at: []kind{isWriting},
		check: func(m *moment) error {
			if m.slot == m.running {
				return says("%s runs and is written", m.slot)
			}
			if !m.after.Entry(m.slot).Good || !m.intact(m.after, m.slot) || m.facts.Seals[m.slot].Whole == WholeDamaged {
				return nil // or it could not be read to its end, which counts as damage
			}
			dark := func(slot string) bool { return m.facts.Seals[slot].Status == SealUnreadable }
			for _, slot := range m.Slots {
				if slot == m.slot || !m.after.Entry(slot).Good {
					continue
				}
				if m.intact(m.after, slot) || dark(slot) && dark(m.slot) { // known and accepted: nobody can tell which is
					return nil
				}
			}
			return says("%s is written, the only good one", m.slot)
		},
		fails: func() *moment {
			return &moment{kind: isWriting, slot: a, medium: [3]found{{status: SealValid, bundle: 1}}, after: one(entry(a, "1", good))}
		},
	},
	{
		name: "I4", text: "while another slot qualifies, an unconfirmed one is booted at most boot-attempts times a round, and once more for each power loss that is forgiven",
		at: []kind{hasStarted},
		check: func(m *moment) error {
			if m.turn || !m.decision.Trial || m.booted <= m.Attempts+m.PowerLosses {
				return nil
			}
			for _, e := range m.after.Slots {
				if e.Slot != m.slot && m.after.Qualifies(e, m.Policy) {
					return says("%s was booted %d times", m.slot, m.booted)
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasStarted, slot: a, decision: Decision{Trial: true}, booted: 4, after: one(entry(a, "1"), entry(b, "2"))}
		},
	},
	{
		name: "I5", text: "counters and floors never go back, and no cut resets them",
		at: []kind{hasCommitted, hasCut},
		check: func(m *moment) error {
			if m.kind == hasCut {
				if m.lost || m.after.Boot < m.before.Boot {
					return errors.New("the cut lost a record that was durable")
				}
				return nil
			}
			if m.lost {
				return nil
			}
			f, g := m.after.Floors, m.before.Floors
			if m.after.Boot < m.before.Boot || version.Compare(f.Version, g.Version) < 0 || f.Epoch < g.Epoch || f.Time < g.Time {
				return errors.New("boot number or floors go back")
			}
			for _, e := range m.after.Slots {
				old := m.before.Entry(e.Slot)
				again := m.cause == "good" || m.cause == "installed" || m.before.Install == (Install{e.Slot, e.Manifest})
				back := e.Back - old.Back // given back after a power loss
				if e.Manifest == old.Manifest && !again && (e.Back < old.Back || e.Back > m.PowerLosses || e.Tries > old.Tries+back || old.Excluded && !e.Excluded) {
					return says("%s has %d tries, and had %d", e.Slot, e.Tries, old.Tries)
				}
			}
			for _, f := range m.before.Falls {
				if _, still := fall(m.after, f.Manifest); !still && m.cause != "good" {
					return errors.New("a bundle that fell back is forgotten")
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasCommitted, cause: "decide", before: one(entry(a, "1", tries(1))), after: one(entry(a, "1"))}
		},
	},
	{
		name: "I9", text: "each cut that a boot can see, each end of a trial, fallback and rescue is in the history",
		at: []kind{hasBegun, hasDecided},
		check: func(m *moment) error {
			switch {
			case m.kind == hasBegun && m.before.Mark != MarkNone && events(m.after, status.EventCut) == 0:
				return errors.New("no event of a cut")
			case m.kind == hasBegun && m.before.Last.Trial && events(m.after, status.EventEnd) == 0:
				return errors.New("no event of the end of a trial")
			case m.kind == hasDecided && m.decision.Fallback != nil && events(m.after, status.EventFallback) == 0:
				return errors.New("no event of a fallback")
			case m.kind == hasDecided && m.decision.Action == GoRescue && (m.decision.Reason == status.None || events(m.after, status.EventRescue) == 0):
				return errors.New("no event of rescue, or no reason for it")
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasBegun, before: &State{Mark: MarkUSB}, after: &State{}}
		},
	},
	{
		name: "R2", text: "the boot and the try are durable before the slot is touched, the mark before a stick is",
		at: []kind{hasStarted, hasJudged},
		check: func(m *moment) error {
			if m.facts.ReadOnly {
				return nil
			}
			if m.kind == hasJudged {
				if m.durable.Mark == MarkNone {
					return errors.New("a stick is looked at without a mark")
				}
				return nil
			}
			if m.durable.Last.Slot != m.slot || m.durable.Boot != m.after.Boot {
				return says("%s is started before the record says so", m.slot)
			}
			e, old := m.durable.Entry(m.slot), m.before.Entry(m.slot)
			if !m.turn && e.Manifest == old.Manifest && m.before.Install.Target != m.slot && e.Tries >= old.Tries {
				return says("%s is started and has %d tries as before", m.slot, e.Tries)
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasStarted, slot: a, before: one(entry(a, "1")), after: &State{}, durable: &State{Slots: []Entry{entry(a, "1")}, Last: Last{Slot: a}}}
		},
	},
	{
		name: "R3", text: "what excludes a slot or raises a floor is in both copies when it returns",
		at: []kind{hasReturned},
		check: func(m *moment) error {
			if Stricter(*m.before, *m.after) {
				return errors.New("only one copy is strict")
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasReturned, before: one(entry(a, "1")), after: one(entry(a, "1", excluded))}
		},
	},
	{
		name: "R4", text: "a record is made from the newest one",
		at: []kind{hasCommitted},
		check: func(m *moment) error {
			if !m.lost && m.before.Sequence != m.after.Sequence {
				return says("sequence %d over %d", m.after.Sequence, m.before.Sequence)
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasCommitted, before: &State{Sequence: 2}, after: &State{Sequence: 1}}
		},
	},
	{
		name: "R5", text: "a slot that qualifies is written only where all that may be written qualify",
		at: []kind{hasTarget},
		check: func(m *moment) error {
			if m.target.Present || m.slot == "" || !m.after.Qualifies(m.after.Entry(m.slot), m.Policy) || m.after.Unproven {
				return nil
			}
			good := 0
			for _, e := range m.after.Slots {
				if e.Good && sealed(e) && m.after.admits(e, m.Policy) {
					good++
				}
			}
			for _, e := range m.after.Slots {
				if e.Slot != m.slot && e.Slot != m.running && !(e.Good && good == 1) && !m.after.Qualifies(e, m.Policy) && m.facts.Seals[e.Slot].Status != SealUnreadable {
					return says("%s is written, and %s does not qualify", m.slot, e.Slot)
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasTarget, slot: a, after: one(entry(a, "1"), entry(b, "2", tries(0)))}
		},
	},
	{
		name: "R6", text: "an intact slot that was ever good is written only where another intact one stays",
		at: []kind{isWriting},
		check: func(m *moment) error {
			if !m.after.Entry(m.slot).Good || !m.intact(m.after, m.slot) || m.facts.Seals[m.slot].Whole == WholeDamaged {
				return nil // or it could not be read to its end, which counts as damage
			}
			dark := func(slot string) bool { return m.facts.Seals[slot].Status == SealUnreadable }
			for _, slot := range m.Slots {
				if slot != m.slot && (m.intact(m.after, slot) || m.after.Entry(slot).Good && dark(slot) && dark(m.slot)) {
					return nil
				}
			}
			return says("%s is written, the only intact one", m.slot)
		},
		fails: func() *moment {
			return &moment{kind: isWriting, slot: a, medium: [3]found{{status: SealValid, bundle: 1}, {status: SealValid, bundle: 2, damaged: true}}, after: one(entry(a, "1", good), entry(b, "2", good))}
		},
	},
	{
		name: "R7", text: "the install is noted beside the entry before the wipe, and the entry replaced after the seal",
		at: []kind{isWriting, hasCommitted},
		check: func(m *moment) error {
			if m.kind == isWriting {
				if m.facts.ReadOnly {
					return nil
				}
				if m.durable.Install != (Install{m.slot, m.offer.Manifest}) {
					return says("%s is wiped and nothing is noted", m.slot)
				}
				if e := m.durable.Entry(m.slot); m.facts.Seals[m.slot].Status != SealUnreadable && e.Manifest == m.offer.Manifest && m.truth(m.slot).Status == SealValid && m.truth(m.slot).Manifest != e.Manifest {
					return says("the entry of %s speaks of what is not there yet", m.slot)
				}
				return nil
			}
			if m.cause != "installed" {
				return nil
			}
			if seal := m.truth(m.after.Slots[0].Slot); seal.Status != SealValid || seal.Whole != WholeRight || seal.Manifest != m.after.Slots[0].Manifest {
				return errors.New("installed is what is not there")
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: isWriting, slot: a, offer: offerOf("2"), durable: one(entry(a, "1"))}
		},
	},
	{
		name: "R8", text: "what is adopted is never good; nothing older that qualifies comes before what was noted",
		at: []kind{hasCommitted},
		check: func(m *moment) error {
			for _, e := range m.after.Slots {
				if old := m.before.Entry(e.Slot); e.Good && m.cause != "good" && (m.lost || !old.Good || e.Manifest != old.Manifest) {
					return says("%s is good all at once", e.Slot)
				}
				noted := m.before.Install == (Install{e.Slot, e.Manifest}) && m.before.Entry(e.Slot).Manifest != e.Manifest && !e.Empty()
				before := m.after.Slots[:m.after.index(e.Slot)]
				if noted && m.cause != "installed" && e.Reason == status.None && m.after.newest(e.Slot, m.Policy) && slices.ContainsFunc(before, func(o Entry) bool { return m.after.Qualifies(o, m.Policy) }) {
					return says("%s is sealed and in limbo", e.Slot)
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasCommitted, cause: "decide", before: one(entry(a, "1")), after: one(entry(a, "1", good))}
		},
	},
	{
		name: "R9", text: "a slot that bears the offered bundle and is right is not written",
		at: []kind{isWriting},
		check: func(m *moment) error {
			seal, known := m.truth(m.slot), m.facts.Seals[m.slot]
			if seal.Status == SealValid && seal.Manifest == m.offer.Manifest && seal.Whole == WholeRight && known.Status == SealValid && known.Whole != WholeDamaged {
				return says("%s is written again", m.slot)
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: isWriting, slot: a, offer: offerOf("1"), medium: [3]found{{status: SealValid, bundle: 1}}, facts: Facts{Seals: seals(sealOf("1"), Seal{})}}
		},
	},
	{
		name: "R10", text: "a refused install leaves an empty entry with a reason",
		at: []kind{hasCommitted},
		check: func(m *moment) error {
			if m.cause != "refused" {
				return nil
			}
			if t := m.after.Install.Target; t != "" && m.after.Entry(t).Reason != status.Unreadable {
				return errors.New("still noted")
			}
			if t := m.before.Install.Target; t != "" && m.after.Install == (Install{}) && m.truth(t).Status == SealMissing {
				if e := m.after.Entry(t); !e.Empty() || e.Reason == status.None {
					return says("%s has no seal and is not empty", t)
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasCommitted, cause: "refused", before: &State{}, after: &State{Install: Install{Target: a}}}
		},
	},
	{
		name: "R11", text: "taken by itself is only what is newer than every slot that qualifies, or different and not older than a trial; in rescue all at or above the floors",
		at: []kind{hasTarget, hasJudged},
		check: func(m *moment) error {
			if m.kind == hasJudged {
				if m.rescue && !m.verdict.Take && m.after.floors(m.Policy).Admit(m.offer.Version, m.offer.Epoch) {
					return says("rescue does not take %s: %s", m.offer.Version, m.verdict.Why)
				}
				return nil
			}
			if m.rescue || m.running != "" || m.target.Present {
				return nil
			}
			first := true
			for _, e := range m.after.Slots {
				old := m.durable.Entry(e.Slot) // of what the record did not know nobody asked before the target was looked for
				if m.Different && m.after.Qualifies(e, m.Policy) {
					trial := first && !e.Good
					if first = false; !trial && e.Manifest != m.offer.Manifest {
						continue
					}
				}
				if m.after.Qualifies(e, m.Policy) && version.Compare(m.offer.Version, e.Version) <= 0 && old.Manifest == e.Manifest && old.Reason == status.None {
					return says("%s is taken, %s in %s qualifies", m.offer.Version, e.Version, e.Slot)
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasTarget, offer: offerOf("1"), durable: one(entry(a, "2")), after: one(entry(a, "2"))}
		},
	},
	{
		name: "R12", text: "bad on the only good slot wants force",
		at: []kind{wasTold},
		check: func(m *moment) error {
			if m.cause != "bad "+m.slot || m.err != nil || !m.before.Entry(m.slot).Good {
				return nil
			}
			for _, e := range m.before.Slots {
				if e.Slot != m.slot && e.Good && m.before.Qualifies(e, m.Policy) {
					return nil
				}
			}
			return says("%s was given up, the only good one", m.slot)
		},
		fails: func() *moment {
			return &moment{kind: wasTold, cause: "bad " + a, slot: a, before: one(entry(a, "1", good), entry(b, "2"))}
		},
	},
	{
		name: "R13", text: "what fell back is remembered, with the evidence that there is, and is not installed by itself before its time",
		at: []kind{hasTarget, hasCommitted},
		check: func(m *moment) error {
			if m.kind == hasTarget {
				if f, ok := fall(m.after, m.offer.Manifest); ok && !m.rescue && m.running == "" && (f.Evidence != status.None || m.after.Boot < f.Next) {
					return says("%s is taken, and it fell back", m.offer.Version)
				}
				return nil
			}
			for _, e := range m.after.Slots {
				old := m.before.Entry(e.Slot)
				if m.lost || m.after.wasGood(e.Manifest) || e.Empty() || e.Manifest != old.Manifest || !givenUp(e) || givenUp(old) || accused(old.Reason) {
					continue
				}
				f, ok := fall(m.after, e.Manifest)
				if evidence := e.Ends >= 2 || e.EndedSo || e.Reason == status.ToldBad; !ok || evidence && f.Evidence == status.None {
					return says("%s was given up, and its bundle is not remembered for it", e.Slot)
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasTarget, offer: offerOf("2"), after: &State{Falls: []Fall{{Manifest: hash("2"), Evidence: status.Panic}}}}
		},
	},
	{
		name: "R13b", text: "a try is given back where the power was lost in it, once, and nowhere else",
		at: []kind{hasBegun},
		check: func(m *moment) error {
			for _, e := range m.after.Slots {
				old := m.before.Entry(e.Slot)
				switch last := m.before.Last; {
				case e.Tries == old.Tries && e.Back == old.Back:
				case e.Slot != last.Slot || !last.Trial || last.Orderly || m.end != status.None || old.Reason != status.None:
					return says("%s gets a try, and no power loss took it", e.Slot)
				case e.Tries != old.Tries+1 || e.Back != old.Back+1 || e.Back > m.PowerLosses:
					return says("%s has %d tries and %d given back, and had %d and %d", e.Slot, e.Tries, e.Back, old.Tries, old.Back)
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasBegun, end: status.Watchdog, before: &State{Slots: []Entry{entry(a, "1", tries(1))}, Last: Last{Slot: a, Trial: true}}, after: one(entry(a, "1", tries(2)))}
		},
	},
	{
		name: "R14", text: "a bundle is accused only of what its slot, read whole and right, has done, and never when it was good",
		at: []kind{hasCommitted},
		check: func(m *moment) error {
			for _, f := range m.after.Falls {
				old, known := fall(m.before, f.Manifest)
				if m.lost || known && f.Rounds == old.Rounds {
					continue
				}
				if f.Evidence != old.Evidence && m.after.wasGood(f.Manifest) {
					return says("bundle %d is accused, and was good", number(f.Manifest))
				}
				ran := func(e Entry) bool {
					return e.Manifest == f.Manifest && givenUp(e) && !givenUp(m.before.Entry(e.Slot))
				}
				proven := func(e Entry) bool {
					return ran(e) && (e.Reason == status.ToldBad || m.intact(m.after, e.Slot) || !m.after.admits(e, m.Policy))
				}
				if slices.ContainsFunc(m.after.Slots, ran) && !slices.ContainsFunc(m.after.Slots, proven) {
					return says("bundle %d is accused, and its slot is damaged", number(f.Manifest))
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasCommitted, before: one(entry(a, "1", tries(0))), medium: [3]found{{status: SealValid, bundle: 1, damaged: true}}, after: &State{Slots: []Entry{entry(a, "1", tries(0), because(status.Exhausted))}, Falls: []Fall{{Manifest: hash("1"), Rounds: 1}}}}
		},
	},
	{
		name: "R15", text: "what ended its worker or the boot too often is left alone outside rescue, and each such end is counted",
		at: []kind{hasTarget, hasBegun},
		check: func(m *moment) error {
			if m.kind == hasTarget {
				if !m.rescue && m.running == "" && m.after.Guarded(GuardID(m.offer.Manifest)) {
					return says("%s is guarded and taken", m.offer.Version)
				}
				return nil
			}
			if m.before.Mark == MarkNone {
				return nil
			}
			if m.look && m.before.Cuts > 0 {
				return errors.New("the third boot in a row looks at USB")
			}
			if t := m.before.Install.Target; t != "" && !slices.ContainsFunc(m.after.Guards, func(g Guard) bool { return g.ID == GuardID(m.before.Install.Manifest) && g.Unexplained > 0 }) {
				return errors.New("the end of an install is not counted")
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasBegun, before: &State{Mark: MarkUSB, Cuts: 1}, after: &State{}, look: true}
		},
	},
	{
		name: "R16", text: "good clears the count of its slot, and under secure excludes all others but a trial with tries left",
		at: []kind{wasTold},
		check: func(m *moment) error {
			if m.cause != "good" || m.err != nil {
				return nil
			}
			for _, e := range m.after.Slots {
				old := m.before.Entry(e.Slot)
				switch {
				case e.Slot == m.slot:
					if !e.Good || e.Excluded || e.Tries != m.ConfirmedAttempts || e.Reason != status.None {
						return says("%s is not as new", e.Slot)
					}
				case e.Excluded && !old.Excluded && (!m.Secure || !old.Good && m.before.Qualifies(old, m.Policy)):
					return says("%s is excluded", e.Slot)
				case m.Secure && !e.Empty() && !e.Excluded && (old.Good || !m.before.Qualifies(old, m.Policy)):
					return says("%s is not excluded", e.Slot)
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: wasTold, cause: "good", slot: a, before: one(entry(a, "1"), entry(b, "2")), after: one(entry(a, "1", good), entry(b, "2", excluded))}
		},
	},
	{
		name: "R17", text: "a floor rises only by good, never above what qualifies or rescue may retry",
		at: []kind{hasCommitted},
		check: func(m *moment) error {
			if m.lost || m.after.Floors == m.before.Floors {
				return nil
			}
			if m.cause != "good" {
				return says("a floor rises with %s", m.cause)
			}
			for _, e := range m.after.Slots {
				if (m.before.Qualifies(m.before.Entry(e.Slot), m.Policy) || m.before.retryable(m.before.Entry(e.Slot), m.Policy)) && !e.Excluded && !m.after.admits(e, m.Policy) {
					return says("the floor is above %s", e.Slot)
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasCommitted, cause: "decide", before: &State{}, after: &State{Floors: Floors{Version: "1"}}}
		},
	},
	{
		name: "R18", text: "rescue is where nothing qualifies; its slots have their turns, and the record says whose it is",
		at: []kind{hasDecided, hasStarted},
		check: func(m *moment) error {
			if m.facts.ReadOnly {
				return nil
			}
			if m.kind == hasDecided {
				if m.decision.Action == GoRescue && m.facts.Retry && len(m.before.turns(m.facts, m.Policy)) > 0 {
					return errors.New("it is a slot's turn, and none is started")
				}
				for _, e := range m.after.Slots {
					if m.decision.Action == GoRescue && m.decision.Reason != status.Requested && m.after.Qualifies(e, m.Policy) {
						return says("rescue, and %s qualifies", e.Slot)
					}
				}
				return nil
			}
			if !m.turn {
				return nil
			}
			turns := m.after.turns(m.facts, m.Policy)
			if m.durable.Rescue.Slot != m.slot || m.before.Rescue.Slot == m.slot && len(turns) > 1 {
				return says("it is not %s's turn, or the record does not say so", m.slot)
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasDecided, decision: Decision{Action: GoRescue, Reason: status.NoSlot}, after: one(entry(a, "1"))}
		},
	},
	{
		name: "R19", text: "after the record was lost nothing is good, nothing is installed outside rescue, and the older is never the target",
		at: []kind{hasBegun, hasTarget, isWriting},
		check: func(m *moment) error {
			switch {
			case m.kind == hasBegun:
				if m.lost && (!m.after.Unproven || slices.ContainsFunc(m.after.Slots, func(e Entry) bool { return e.Good })) {
					return errors.New("a slot is good that nobody knows")
				}
			case !m.after.Unproven:
			case m.kind == hasTarget:
				if !m.rescue && m.running == "" {
					return errors.New("an install outside rescue")
				}
			default:
				old := m.after.Entry(m.slot)
				if !m.intact(m.after, m.slot) || old.Reason == status.Unreadable || old.Reason == status.VerityError {
					return nil
				}
				for _, e := range m.after.Slots {
					if e.Good {
						return nil
					}
				}
				for _, e := range m.after.Slots {
					if e.Slot != m.slot && m.intact(m.after, e.Slot) && m.facts.Seals[e.Slot].Status == SealValid && m.facts.Seals[e.Slot].Whole != WholeDamaged && version.Compare(e.Version, old.Version) > 0 {
						return says("%s is the target, and older than %s", m.slot, e.Slot)
					}
				}
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasTarget, after: &State{Unproven: true}}
		},
	},
	{
		name: "R20", text: "where nothing can be counted no trial is booted",
		at: []kind{hasStarted},
		check: func(m *moment) error {
			if m.facts.ReadOnly && !m.facts.Blind && m.decision.Trial && !m.retry && m.facts.Fresh != m.slot {
				return says("%s is a trial", m.slot)
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasStarted, slot: a, decision: Decision{Trial: true}, facts: Facts{ReadOnly: true}}
		},
	},
	{
		name: "R21", text: "a wish is cleared before it is honoured, and honoured only for a slot that qualifies",
		at: []kind{hasStarted, hasDecided},
		check: func(m *moment) error {
			if m.facts.ReadOnly {
				return nil
			}
			if m.kind == hasStarted {
				if m.durable.Wish != "" {
					return says("the wish for %s is still there", m.durable.Wish)
				}
				return nil
			}
			if e := m.after.Entry(m.slot); m.decision.Action == Boot && m.slot == m.before.Wish && !m.facts.Retry && (e.Excluded || e.Reason != status.None) {
				return says("a wish for %s, which does not qualify", m.slot)
			}
			return nil
		},
		fails: func() *moment {
			return &moment{kind: hasStarted, slot: a, durable: &State{Wish: a}}
		},
	},
}

var byKind = func() (by [kinds][]*predicate) {
	for i := range predicates {
		for _, k := range predicates[i].at {
			by[k] = append(by[k], &predicates[i])
		}
	}
	return by
}()

// judge asks all predicates that speak of such a moment.
func judge(m *moment) (name string, err error) {
	for _, p := range byKind[m.kind] {
		if err := p.check(m); err != nil {
			return p.name, fmt.Errorf("%s (%s): %w", p.name, p.text, err)
		}
	}
	return "", nil
}

func one(entries ...Entry) *State { s := state(entries...); return &s }

// A predicate that cannot fail proves nothing.
func TestPredicates(t *testing.T) {
	for _, p := range predicates {
		t.Run(p.name, func(t *testing.T) {
			m := p.fails()
			if m.ConfirmedAttempts == 0 {
				m.Policy = available
			}
			if err := p.check(m); err == nil {
				t.Errorf("holds of a moment that breaks it: %s", p.text)
			} else {
				t.Log(p.text+":", err)
			}
		})
	}
}
