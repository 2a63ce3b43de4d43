package boot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/status"
)

// Each rule of docs/boot-rules.md has a test of its number. Rules 3 and 4 are raw's, and update has more of 2, 7 to 11
// and 18 to 20.

func TestRule01_OneRecordHoldsEverything(t *testing.T) {
	s := fullState()
	raw, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) != RecordSize {
		t.Fatalf("%d bytes", len(raw))
	}
	got, err := Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, got, sameState); diff != "" {
		t.Error(diff)
	}
}

func TestRule01_RingKeepsTheLast48(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), entry(b, "2", good))
	for i := range 200 {
		// Boots that change sides, so that none is folded into the one before.
		r.durable.Wish = []string{a, b}[i%2]
		r.boot(status.None)
		r.good(r.durable.Last.Slot)
	}
	if n := len(r.durable.Events); n != MaxEvents {
		t.Fatalf("%d events", n)
	}
	if e := r.durable.Events[MaxEvents-1]; e.Boot != 200 {
		t.Errorf("newest event is of boot %d", e.Boot)
	}
}

func TestRule01_OrdinaryBootsDoNotFillTheRing(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1"), entry(b, "2"))
	for range 100 {
		r.boot(status.None)
		r.good(a)
	}
	if n := len(r.durable.Events); n > 3 {
		t.Errorf("%d events of 100 ordinary boots: %v", n, r.durable.Events)
	}
}

// Cuts during a long install cost no tries, and the boot is counted before anything outside is touched.
func TestRule02_CutsDuringInstallCostNoTries(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), entry(b, "2", good, tries(5)))
	looked := 0
	for i := range 50 {
		s, look := Begin(r.durable, status.None, true, r.p)
		if s.Boot != uint64(i+1) {
			t.Fatalf("boot %d counted as %d", i+1, s.Boot)
		}
		if !look {
			wantBoot(t, r.decide(s), a)
			r.good(a)
			continue
		}
		looked++
		if s.Mark != MarkUSB {
			t.Fatal("no mark in the record that is durable before USB is touched")
		}
		r.commit(s)
		r.commit(Note(r.durable, b, offerOf("3"), r.p)) // and cut
	}
	if looked < 30 {
		t.Errorf("looked at USB in %d of 50 boots only", looked)
	}
	if e := r.entry(b); e.Tries != 5 || !e.Good || e.Manifest != hash("2") {
		t.Errorf("entry of the target: %+v", e)
	}
	if e := r.entry(a); e.Tries != 8 {
		t.Errorf("entry of the other slot: %+v", e)
	}
}

func TestRule02_OneRecordWhereNothingIsOutside(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1"), entry(b, "2"))
	wantBoot(t, r.boot(status.None), a)
	if len(r.commits) != 1 {
		t.Fatalf("%d records for one boot", len(r.commits))
	}
	if r.durable.Boot != 1 || r.entry(a).Tries != 2 {
		t.Errorf("boot %d, tries %d", r.durable.Boot, r.entry(a).Tries)
	}
}

// The trace: A is good, was cut twice before `good` and is so exhausted; B's trial runs out; a bundle comes.
func TestRule05_ExhaustedOnlyGoodIsNoTarget(t *testing.T) {
	p := available
	p.ConfirmedAttempts = 2
	r := newRig(t, p, sealOf("1"), sealOf("2"), entry(a, "1"), entry(b, "2"))
	r.boot(status.None)
	r.good(a)
	r.boots(2, status.None) // two boots of A that are cut before good
	if d := r.boot(status.None); d.Slot != b || d.Fallback == nil || d.Fallback.Reason != status.Exhausted {
		t.Fatalf("%+v", d)
	}
	r.boots(2, status.None)
	wantRescue(t, r.boot(status.None))
	if got := r.install("3"); got != b {
		t.Errorf("the bundle went over %s, the only one that was ever good", got)
	}
	if e := r.entry(a); !e.Good || e.Manifest != hash("1") {
		t.Errorf("A: %+v", e)
	}
}

func TestRule05_Target(t *testing.T) {
	empty := Entry{Slot: b}
	for _, test := range []struct {
		name    string
		s       State
		seals   map[string]Seal
		running string
		want    string
	}{
		{"the empty one", state(entry(a, "1", good), empty), seals(sealOf("1"), Seal{Status: SealMissing}), "", b},
		{"never the running one", state(entry(a, "1", good), entry(b, "2", good)), seals(right(sealOf("1")), right(sealOf("2"))), a, b},
		{"no slot beside the only good one", state(entry(a, "1", good)), map[string]Seal{a: sealOf("1")}, "", ""},
		{"one that does not qualify before one that does", state(entry(a, "1"), entry(b, "2", tries(0))), seals(sealOf("1"), sealOf("2")), "", b},
		{"the lowest version", state(entry(a, "1"), entry(b, "2")), seals(sealOf("1"), sealOf("2")), "", a},
		{"the lowest version, the other way round", state(entry(b, "1"), entry(a, "2")), seals(sealOf("2"), sealOf("1")), "", b},
		{"on a tie the one not booted first", state(entry(b, "1"), entry(a, "1", func(e *Entry) { e.Manifest = hash("1 again") })), seals(Seal{Status: SealValid, Manifest: hash("1 again"), Version: "1", Epoch: 1}, sealOf("1")), "", a},
		{"told bad, the only good one stays protected", state(entry(b, "2"), entry(a, "1", good, tries(0), because(status.ToldBad))), seals(sealOf("1"), sealOf("2")), "", b},
		{"good below the floor is not protected", func() State {
			s := state(entry(b, "2"), entry(a, "1", good))
			s.Floors.Version = "2"
			return s
		}(), seals(sealOf("1"), right(sealOf("2"))), "", a},
		{"the only good one cannot be read today", state(entry(a, "1", good), entry(b, "2")), seals(Seal{Status: SealUnreadable}, sealOf("2")), "", b},
		{"the only good one was read and is damaged", state(entry(a, "1", good), entry(b, "2")), seals(damaged(sealOf("1")), right(sealOf("2"))), "", a},
		{"the only good one lost its seal", state(entry(a, "1", good, because(status.SealMissing)), entry(b, "2")), seals(Seal{Status: SealMissing}, right(sealOf("2"))), "", a},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Target(test.s, Facts{Seals: test.seals}, offerOf("9"), test.running, available)
			if len(got.Attest) > 0 || got.Slot != test.want {
				t.Errorf("%+v, want %q", got, test.want)
			}
		})
	}
}

// What is kept because it was good must be what it says: else the slot that works would be given for it.
func TestRule05_DamagedOnlyGoodIsReadBeforeItIsKept(t *testing.T) {
	for _, test := range []struct {
		name  string
		truth func(Seal) Seal
		want  string
	}{{"still damaged", damaged, a}, {"right after all", right, b}} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2"), entry(a, "1", good, because(status.VerityError)))
			r.medium[a] = test.truth(sealOf("1"))
			if got := r.install("3"); got != test.want {
				t.Errorf("target %s, want %s", got, test.want)
			}
		})
	}
}

// The trace: B decays silently, then an update over intact A.
func TestRule06_TheSlotThatStaysIsReadWhole(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2", good), entry(a, "1", good))
	r.medium[b] = damaged(sealOf("2"))
	if got := r.install("3"); got != b {
		t.Errorf("target %s: A is the only slot that is whole", got)
	}
	if len(r.whole) == 0 || r.whole[0] != b {
		t.Errorf("read whole: %v", r.whole)
	}
	if e := r.entry(a); !e.Good || e.Manifest != hash("1") {
		t.Errorf("A: %+v", e)
	}

	r = newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2", good), entry(a, "1", good))
	if got := r.install("3"); got != a || !slices.Equal(r.whole, []string{b}) {
		t.Errorf("nothing is damaged: target %s, read whole %v", got, r.whole)
	}
}

// The trace: B runs, has decayed and cannot be read any more; a running system's install would overwrite intact A.
func TestRule06_NothingStays(t *testing.T) {
	s := state(entry(b, "2", good), entry(a, "1", good))
	for _, inB := range []Seal{{Status: SealUnreadable, Whole: WholeDamaged}, damaged(sealOf("2"))} {
		if got := Target(s, Facts{Seals: seals(sealOf("1"), inB)}, offerOf("3"), b, available); got.Slot != "" || len(got.Attest) > 0 {
			t.Errorf("%+v", got)
		}
	}
}

// The trace: the note replaces the entry; cut before the wipe; the old bundle is adopted with fresh tries, again and
// again.
func TestRule07_NoteStandsBesideTheEntry(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), entry(b, "2", tries(1)))
	for range 20 {
		before := r.entry(b)
		r.commit(Note(r.durable, b, offerOf("3"), r.p)) // cut before the wipe
		wantBoot(t, r.boot(status.None), a)
		r.good(a)
		if diff := cmp.Diff(before, r.entry(b)); diff != "" {
			t.Fatal(diff)
		}
		if r.durable.Install != (Install{}) {
			t.Fatalf("install still noted: %+v", r.durable.Install)
		}
	}
}

func TestRule07_CutAfterEachFlush(t *testing.T) {
	for _, test := range []struct {
		name   string
		found  Seal
		booted string
		entryB Entry
	}{
		{"noted", right(sealOf("0")), a, entry(b, "0", tries(2))},
		{"wiped", Seal{Status: SealMissing}, a, Entry{Slot: b, Reason: status.SealMissing}},
		{"image written", Seal{Status: SealMissing}, a, Entry{Slot: b, Reason: status.SealMissing}},
		{"seal torn", Seal{Status: SealFalse}, a, Entry{Slot: b, Reason: status.SealFalse}},
		{"sealed", right(sealOf("2")), b, entry(b, "2", tries(2), func(e *Entry) { e.Booted = 1 })},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, available, sealOf("1"), sealOf("0"), entry(a, "1", good), entry(b, "0", tries(2)))
			r.commit(Note(r.durable, b, offerOf("2"), r.p))
			r.medium[b] = test.found
			wantBoot(t, r.boot(status.None), test.booted)
			if diff := cmp.Diff(test.entryB, r.entry(b)); diff != "" {
				t.Error(diff)
			}
			if r.durable.Install != (Install{}) {
				t.Errorf("install still noted: %+v", r.durable.Install)
			}
		})
	}
}

// The trace: sealed and cut before the commit; the update is in limbo: not booted, and "already there".
func TestRule08_SealWithTheNotedHashIsAdopted(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), Entry{Slot: b})
	r.commit(Note(r.durable, b, offerOf("2"), r.p))
	d := r.boot(status.None)
	wantBoot(t, d, b)
	if !d.Trial || r.entry(b).Tries != 2 || !slices.Equal(r.whole, []string{b}) {
		t.Errorf("trial %t tries %d read whole %v", d.Trial, r.entry(b).Tries, r.whole)
	}
	if e, ok := lastEvent(r.durable, status.EventAdopted); !ok || e.Slot != 1 {
		t.Errorf("no event of the adoption: %v", r.durable.Events)
	}
}

func TestRule08_NotNewerIsAdoptedButNotFirst(t *testing.T) {
	r := newRig(t, available, sealOf("3"), sealOf("2"), entry(a, "3", good), Entry{Slot: b})
	r.commit(Note(r.durable, b, offerOf("2"), r.p))
	wantBoot(t, r.boot(status.None), a)
	if e := r.entry(b); e.Manifest != hash("2") || e.Tries != 3 || e.Good {
		t.Errorf("%+v", e)
	}
}

func TestRule08_NotedButDamagedIsNotBooted(t *testing.T) {
	r := newRig(t, available, sealOf("1"), Seal{}, entry(a, "1", good), Entry{Slot: b})
	r.medium[b] = damaged(sealOf("2"))
	r.commit(Note(r.durable, b, offerOf("2"), r.p))
	wantBoot(t, r.boot(status.None), a)
	if e := r.entry(b); r.durable.Qualifies(e, r.p) || e.Reason != status.VerityError {
		t.Fatalf("%+v", e)
	}
	// It is not taken in by the back door either, when A is given up and all slots are looked at.
	s, err := Bad(r.durable, a, true, r.p)
	if err != nil {
		t.Fatal(err)
	}
	r.commit(s)
	wantRescue(t, r.boot(status.None))
}

func TestRule08_EntryStandsWhileTheSealBearsItsHash(t *testing.T) {
	for _, e := range []Entry{
		entry(b, "2"), entry(b, "2", good), entry(b, "2", tries(1)), entry(b, "2", good, excluded),
		entry(b, "2", tries(0), because(status.ToldBad)), entry(b, "2", because(status.VerityError)),
	} {
		got, look, attest := Absorb(state(entry(a, "1", good), e), Facts{Seals: seals(sealOf("1"), sealOf("2"))}, available)
		if len(look)+len(attest) > 0 {
			t.Fatal(look, attest)
		}
		if diff := cmp.Diff(e, got.Entry(b)); diff != "" {
			t.Error(diff)
		}
	}
}

// A slot whose seal was not there, or could not be read, has nothing against it once the seal is back: nobody would
// ever say so otherwise. It gets no tries for it.
func TestRule08_SealThatComesBack(t *testing.T) {
	for _, reason := range []status.Reason{status.SealMissing, status.SealFalse, status.Unreadable} {
		for left, want := range map[uint8]status.Reason{0: status.Exhausted, 2: status.None} {
			s := state(entry(a, "1", good), entry(b, "2", tries(left), because(reason)))
			got, _, _ := Absorb(s, Facts{Seals: seals(sealOf("1"), sealOf("2"))}, available)
			if e := got.Entry(b); e.Reason != want || e.Tries != left {
				t.Errorf("%s, %d tries: reason %s tries %d", reason, left, e.Reason, e.Tries)
			}
			if len(got.Falls) > 0 {
				t.Errorf("%s: the bundle was accused", reason)
			}
		}
	}
}

func TestRule08_AnyOtherSealGoesToTheEnd(t *testing.T) {
	s := state(entry(b, "2", good), entry(a, "1", good))
	got, _, _ := Absorb(s, Facts{Seals: seals(sealOf("1"), sealOf("7"))}, available)
	if !slices.Equal(order(got), []string{a, b}) {
		t.Errorf("order %v", order(got))
	}
	if e := got.Entry(b); e.Good || e.Tries != 3 || e.Manifest != hash("7") {
		t.Errorf("%+v", e)
	}
}

// Cut between the seal and its record, the bundle that was to repair its own slot would else stay behind an older system
// and be called installed.
func TestRule08_RepairThatWasCutIsFirst(t *testing.T) {
	s := state(entry(a, "1", good), entry(b, "2", good, because(status.VerityError)))
	s.Install = Install{Target: b, Manifest: hash("2")}
	d := Decide(s, Facts{Seals: seals(right(sealOf("1")), right(sealOf("2")))}, available)
	if d.Action != Boot || d.Slot != b || d.State.Slots[0].Slot != b {
		t.Errorf("%+v", d)
	}
}

// The same bundle is written again over a damaged copy of it and the commit is cut off: the entry's hash and the noted
// one are the same, and what stood against the old copy does not stand against the new one.
func TestRule08_SameBundleWrittenAgain(t *testing.T) {
	for _, test := range []struct {
		name  string
		found Seal
		slot  string
	}{{"cut before the wipe", damaged(sealOf("2")), a}, {"sealed", right(sealOf("2")), b}} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, available, sealOf("1"), Seal{}, entry(b, "2", tries(0), because(status.VerityError)), entry(a, "1", good))
			r.medium[b] = test.found
			r.commit(Note(r.durable, b, offerOf("2"), r.p))
			wantBoot(t, r.boot(status.None), test.slot)
		})
	}
}

func TestRule09_PresentIsReadAndGetsARound(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2", tries(0), because(status.Exhausted)), entry(a, "1", good))
	if got := r.install("2"); got != b || !slices.Equal(r.whole, []string{b}) {
		t.Fatalf("target %s, read whole %v", got, r.whole)
	}
	if e := r.entry(b); e.Tries != 3 || e.Reason != status.None || e.Good {
		t.Errorf("%+v", e)
	}
	if _, written := lastEvent(r.durable, status.EventInstall); written {
		t.Error("the slot was written")
	}
	wantBoot(t, r.boot(status.None), b)
}

// The seal of an install could not be read back once: the next boot finds it, behind the older system. The bundle that is
// still there brings it to the front.
func TestRule09_AdoptedLastIsBroughtToTheFront(t *testing.T) {
	s := state(entry(a, "1", good), entry(b, "2"))
	if v := Judge(s, offerOf("2"), false, available); !v.Take {
		t.Fatal(v)
	}
	f := Facts{Seals: seals(sealOf("1"), sealOf("2"))}
	for slot, seal := range f.Seals {
		seal.Whole = WholeRight
		f.Seals[slot] = seal
	}
	c := Target(s, f, offerOf("2"), "", available)
	if !c.Present || c.Slot != b {
		t.Fatal(c)
	}
	s = Installed(s, b, f.Seals[b], available)
	if s.Slots[0].Slot != b || Judge(s, offerOf("2"), false, available).Take {
		t.Error(s.Slots)
	}
	started := state(entry(a, "1", good), entry(b, "2"))
	started.Slots[1].Booted = 3
	if Judge(started, offerOf("2"), false, available).Take {
		t.Error("one that was started is taken again")
	}
}

func TestRule09_PresentButWrongIsWritten(t *testing.T) {
	r := newRig(t, available, sealOf("1"), Seal{}, entry(b, "2", tries(0), because(status.Exhausted)), entry(a, "1", good))
	r.medium[b] = damaged(sealOf("2"))
	if got := r.install("2"); got != b {
		t.Fatalf("target %s", got)
	}
	if _, written := lastEvent(r.durable, status.EventInstall); !written {
		t.Error("the slot was not written")
	}
	wantBoot(t, r.boot(status.None), b)
}

func TestRule09_PresentAndGoodStaysGood(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2", good, tries(0), because(status.Exhausted)), entry(a, "1", good))
	r.install("2")
	if e := r.entry(b); !e.Good || e.Tries != 8 {
		t.Errorf("%+v", e)
	}
}

func TestRule10_RefusedLeavesEmptyWithAReason(t *testing.T) {
	s := Note(state(entry(a, "1", good), entry(b, "0", good)), b, offerOf("2"), available)
	if got := s.Status(available).Slots[1].Reason; got != "installing" {
		t.Errorf("while it is noted: %q", got)
	}
	got := Refuse(s, offerOf("2"), true, false, 30, available)
	want := Entry{Slot: b, Reason: status.SealMissing}
	if diff := cmp.Diff(want, got.Entry(b)); diff != "" {
		t.Error(diff)
	}
	if got.Install != (Install{}) {
		t.Error("still noted")
	}
	if e, ok := lastEvent(got, status.EventRefused); !ok || e.Code != 30 || e.Slot != 1 {
		t.Errorf("event %+v", e)
	}
	// Refused before the wipe, the entry stands.
	got = Refuse(s, offerOf("2"), false, false, 30, available)
	if diff := cmp.Diff(s.Entry(b), got.Entry(b)); diff != "" {
		t.Error(diff)
	}
	for _, v := range got.Status(available).Slots {
		if v.Reason == "installing" {
			t.Error("installing")
		}
	}
}

// The trace: B is sealed with 2 and cut before the commit; it cannot be read in the next boot, in which another bundle is
// refused; with the note gone, 2 would be in limbo: adopted last and not booted (rule 8).
func TestRule10_RefusalLeavesAnOlderNoteAlone(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), entry(b, "0"))
	r.commit(Note(r.durable, b, offerOf("2"), r.p))
	r.medium[b] = Seal{Status: SealUnreadable, Whole: WholeDamaged}
	s, _, _ := Settle(r.durable, Facts{Seals: r.medium}, r.p)
	r.commit(Refuse(s, offerOf("3"), false, true, 30, r.p))
	wantBoot(t, r.boot(status.None), a)
	r.medium[b] = right(sealOf("2"))
	wantBoot(t, r.boot(status.None), b)
}

func TestRule11_WhatIsTaken(t *testing.T) {
	floor := func(s State) State { s.Floors = Floors{Version: "2", Epoch: 1}; return s }
	both := state(entry(a, "3", good), entry(b, "2", good))
	for _, test := range []struct {
		name   string
		s      State
		o      Offer
		rescue bool
		take   bool
		code   int
		why    string
	}{
		{"newer than both", both, offerOf("4"), false, true, 0, ""},
		{"newer than one of them", both, offerOf("2.5"), false, false, 0, "not newer"},
		{"the same", both, offerOf("3"), false, false, 0, "already installed"},
		{"older, in rescue", both, offerOf("2"), true, true, 0, ""},
		{"below the floor", floor(both), offerOf("1"), false, false, 28, "below the floor"},
		{"below the floor, in rescue", floor(both), offerOf("1"), true, false, 28, "below the floor"},
		{"epoch below the floor", floor(both), Offer{Manifest: hash("9"), Version: "9"}, true, false, 28, "below the floor"},
		{"newer than what qualifies, older than what does not", state(entry(a, "3", good, because(status.VerityError)), entry(b, "2", good)), offerOf("2.5"), false, true, 0, ""},
		{"at the floor, nothing qualifies", floor(state(Entry{Slot: a}, Entry{Slot: b})), offerOf("2"), false, true, 0, ""},
		{"no version is never chosen by itself", state(Entry{Slot: a}), Offer{Manifest: hash("x"), Epoch: 1}, false, false, 0, "no version"},
		{"no version, in rescue", state(Entry{Slot: a}), Offer{Manifest: hash("x"), Epoch: 1}, true, true, 0, ""},
		{"a version that no record can hold", both, offerOf("9" + strings.Repeat("9", MaxVersion)), false, false, 31, "bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Judge(test.s, test.o, test.rescue, available)
			if got.Take != test.take || got.Code != test.code || !strings.Contains(got.Why, test.why) || got.Take != (got.Why == "") {
				t.Errorf("%+v", got)
			}
		})
	}
}

// What was asked for may be older, without a version, or have fallen back; what is "different" may be older only.
func TestRule11_AskedFor(t *testing.T) {
	different := available
	different.Different = true
	asked := func(o Offer) Offer { o.Asked = true; return o }
	both := state(entry(a, "3", good), entry(b, "2", good))
	fell := func(v string) State {
		s := both.Clone()
		s.Falls = []Fall{{Manifest: hash(v), Evidence: status.ToldBad}}
		return s
	}
	floor := both.Clone()
	floor.Floors.Version = "2"
	nameless := Offer{Manifest: hash("x"), Epoch: 1}
	for _, test := range []struct {
		name string
		s    State
		o    Offer
		p    Policy
		take bool
		why  string
	}{
		{"older, by itself", both, offerOf("1"), available, false, "not newer"},
		{"older, different", both, offerOf("1"), different, true, ""},
		{"older, asked for", both, asked(offerOf("1")), available, true, ""},
		{"what runs, different", both, offerOf("3"), different, false, "already installed"},
		{"what runs, asked for", both, asked(offerOf("3")), available, false, "already installed"},
		{"what lies behind, different", both, offerOf("2"), different, false, "already installed"},
		{"what lies behind, asked for", both, asked(offerOf("2")), available, true, ""},
		{"no version, different", both, nameless, different, false, "no version"},
		{"no version, asked for", both, asked(nameless), available, true, ""},
		{"fell back, different", fell("1"), offerOf("1"), different, false, "told-bad"},
		{"fell back, asked for", fell("1"), asked(offerOf("1")), available, true, ""},
		{"below the floor, asked for", floor, asked(offerOf("1")), available, false, "below the floor"},
		{"state lost, asked for", func() State { s := both.Clone(); s.Unproven = true; return s }(), asked(offerOf("9")), available, false, "said good"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Judge(test.s, test.o, false, test.p); got.Take != test.take || !strings.Contains(got.Why, test.why) || got.Take != (got.Why == "") {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestRule12_NoInstallWhileTheRunningSystemIsOnTrial(t *testing.T) {
	asked := offerOf("3")
	asked.Asked = true
	for _, tt := range []struct {
		name    string
		s       State
		o       Offer
		running string
		take    bool
		why     string
	}{
		{"on trial", state(entry(b, "2"), entry(a, "1", good)), asked, b, false, "on trial"},
		{"confirmed", state(entry(b, "2", good), entry(a, "1", good)), asked, b, true, ""},
		{"the other one is on trial, which is nobody's business", state(entry(b, "2"), entry(a, "1", good)), asked, a, true, ""},
		{"no entry speaks about it", state(entry(a, "1", good)), asked, b, false, "on trial"},
		{"what runs itself", state(entry(b, "3", good), entry(a, "1", good)), asked, b, false, "already installed in " + b},
	} {
		v := JudgeRunning(tt.s, tt.o, tt.running, available)
		if v.Take != tt.take || !strings.Contains(v.Why, tt.why) {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
	// What is refused is a line of history and nothing else.
	s := state(entry(b, "2", good), entry(a, "1", good))
	s.Install, s.Guards = Install{Target: a, Manifest: hash("3")}, []Guard{{ID: GuardID(asked.Manifest), Seen: 1}}
	got := Denied(s, asked, 21, available)
	e := got.Events[len(got.Events)-1]
	if got.Events = got.Events[:len(got.Events)-1]; e.Kind != status.EventRefused || e.Code != 21 || e.Slot != NoSlot || cmp.Diff(s, got, sameState) != "" {
		t.Errorf("%+v: %s", e, cmp.Diff(s, got, sameState))
	}
}

func TestRule12_BadOnTheOnlyGoodAsksForForce(t *testing.T) {
	s := state(entry(a, "1", good), entry(b, "2"))
	if _, err := Bad(s, a, false, available); !errors.Is(err, ErrOnlyGood) {
		t.Fatalf("error %v", err)
	}
	got, err := Bad(s, a, true, available)
	if err != nil {
		t.Fatal(err)
	}
	if e := got.Entry(a); e.Reason != status.ToldBad || e.Tries != 0 || !e.Good || len(got.Falls) > 0 {
		t.Errorf("%+v, falls %v", e, got.Falls)
	}
	// As a target it stays protected.
	if c := Target(got, Facts{Seals: seals(sealOf("1"), sealOf("2"))}, offerOf("3"), "", available); c.Slot != b {
		t.Errorf("target %+v", c)
	}
	// Where another good one qualifies nobody is asked.
	if _, err := Bad(state(entry(a, "1", good), entry(b, "2", good)), a, false, available); err != nil {
		t.Error(err)
	}
	// One on trial is given up without asking.
	if got, err = Bad(s, b, false, available); err != nil || len(got.Falls) != 1 {
		t.Errorf("error %v, falls %v", err, got.Falls)
	}
}

// trial runs all tries of the system in B; ends says how each of them ended.
func trial(r *rig, ends ...status.Reason) Decision {
	d := r.boot(status.None)
	wantBoot(r.t, d, b)
	for _, end := range ends[:len(ends)-1] {
		if end == status.TrialDeadline {
			s, err := Deadline(r.durable, b, r.p)
			if err != nil {
				r.t.Fatal(err)
			}
			r.commit(s)
			end = status.None
		}
		wantBoot(r.t, r.boot(end), b)
	}
	end := ends[len(ends)-1]
	if end == status.TrialDeadline {
		s, err := Deadline(r.durable, b, r.p)
		if err != nil {
			r.t.Fatal(err)
		}
		r.commit(s)
		end = status.None
	}
	return r.boot(end)
}

func TestRule13_Evidence(t *testing.T) {
	none, dog, panics, deadline := status.None, status.Watchdog, status.Panic, status.TrialDeadline
	for _, test := range []struct {
		ends   []status.Reason
		want   status.Reason // evidence that is remembered
		reason status.Reason // of the slot
	}{
		{[]status.Reason{none, none, none}, none, status.Exhausted},
		{[]status.Reason{dog, none, none}, none, status.Exhausted},
		{[]status.Reason{none, none, dog}, dog, dog},
		{[]status.Reason{panics, panics, none}, panics, panics},
		{[]status.Reason{dog, none, panics}, panics, panics},
		{[]status.Reason{deadline, deadline, none}, deadline, deadline},
		{[]status.Reason{none, none, deadline}, deadline, deadline},
		{[]status.Reason{deadline, none, none}, none, status.Exhausted},
	} {
		t.Run(fmt.Sprint(test.ends), func(t *testing.T) {
			r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), Entry{Slot: b})
			r.install("2")
			d := trial(r, test.ends...)
			wantBoot(t, d, a)
			if d.Fallback == nil || d.Fallback.Reason != test.reason {
				t.Errorf("fallback %+v, want reason %s", d.Fallback, test.reason)
			}
			if f := r.durable.Falls; len(f) != 1 || f[0].Evidence != test.want || f[0].Rounds != 1 || f[0].Manifest != hash("2") {
				t.Errorf("falls %+v", f)
			}
			// The slot that it fell back to has its turn first.
			if v := Judge(r.durable, offerOf("2"), false, r.p); v.Take || v.Code != 31 {
				t.Errorf("offered in the boot that fell back: %+v", v)
			}
			wantBoot(t, r.boot(status.None), a)
			v := Judge(r.durable, offerOf("2"), false, r.p)
			if v.Take != (test.want == none) || !v.Take && v.Code != 31 {
				t.Errorf("offered again: %+v", v)
			}
			if v := Judge(r.durable, offerOf("2"), true, r.p); !v.Take {
				t.Errorf("offered in rescue: %+v", v)
			}
		})
	}
}

// count=failures: a power loss gives the try back, so many times a round; an orderly end and one with evidence do not.
func TestRule13_PowerLosses(t *testing.T) {
	none, dog, panics, orderly := status.None, status.Watchdog, status.Panic, status.Reboot
	repeat := func(n int, ends ...status.Reason) []status.Reason {
		return append(slices.Repeat([]status.Reason{none}, n), ends...)
	}
	for _, test := range []struct {
		name   string
		losses uint8
		ends   []status.Reason // of the tries of B; the boot after them takes A
		reason status.Reason
	}{
		{"all count", 0, repeat(3), status.Exhausted},
		{"all are given back but for the last", 2, repeat(5), status.Exhausted},
		{"eight at most", 8, repeat(11), status.Exhausted},
		{"orderly ends count", 2, []status.Reason{orderly, orderly, orderly}, status.Exhausted},
		{"evidence counts", 2, []status.Reason{dog, none, panics, none, dog}, dog},
		{"what was given back is no evidence", 8, repeat(8, orderly, orderly, dog), dog},
		{"one in between", 1, []status.Reason{orderly, none, orderly, orderly}, status.Exhausted},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := available
			p.PowerLosses = test.losses
			r := newRig(t, p, sealOf("1"), sealOf("2"), entry(a, "1", good), Entry{Slot: b})
			round := func() {
				t.Helper()
				r.install("2")
				end := status.None
				for i, next := range test.ends {
					d := r.boot(end)
					if d.Slot != b {
						t.Fatalf("try %d: %s is booted: %+v", i, d.Slot, r.durable.Slots)
					}
					if end = next; next == orderly {
						s, changed := Ended(r.durable, b)
						if _, again := Ended(s, b); !changed || again {
							t.Fatalf("changed %t, again %t", changed, again)
						}
						r.commit(s)
						end = status.None
					}
				}
				d := r.boot(end)
				wantBoot(t, d, a)
				if d.Fallback == nil || d.Fallback.Reason != test.reason {
					t.Errorf("fallback %+v, want %s", d.Fallback, test.reason)
				}
			}
			round()
			ends := 0
			for _, e := range r.durable.Events {
				if e.Kind == status.EventEnd {
					want := test.ends[ends]
					if want == none {
						want = status.PowerLoss
					}
					if e.Reason != want {
						t.Errorf("end %d is said to be %s, want %s", ends, e.Reason, want)
					}
					ends++
				}
			}
			if ends != len(test.ends) {
				t.Errorf("%d ends in the history, want %d", ends, len(test.ends))
			}
			if test.reason == status.Exhausted {
				r.boot(status.None)
				round() // the next round has as many
			}
		})
	}
}

// A machine may restart by its watchdog: what the system said of its end counts for more, but for a panic.
func TestRule13_Ends(t *testing.T) {
	for _, test := range []struct {
		orderly     bool
		found, want status.Reason
	}{
		{false, status.None, status.PowerLoss},
		{false, status.Watchdog, status.Watchdog},
		{false, status.Panic, status.Panic},
		{true, status.None, status.Reboot},
		{true, status.Watchdog, status.Reboot},
		{true, status.Panic, status.Panic},
	} {
		if got := (Last{Orderly: test.orderly}).end(test.found); got != test.want {
			t.Errorf("orderly %t, found %s: %s, want %s", test.orderly, test.found, got, test.want)
		}
	}
}

// Only a trial's end is recorded; a confirmed system's shutdown writes nothing.
func TestEndedWritesOnlyInATrial(t *testing.T) {
	p := available
	p.PowerLosses = 2
	r := newRig(t, p, sealOf("1"), sealOf("2"), entry(a, "1", good), entry(b, "2"))
	wantBoot(t, r.boot(status.None), a)
	if _, changed := Ended(r.durable, a); changed {
		t.Error("of a confirmed system")
	}
	r = newRig(t, p, sealOf("1"), sealOf("2"), entry(b, "2"), entry(a, "1", good))
	wantBoot(t, r.boot(status.None), b)
	if _, changed := Ended(r.durable, a); changed {
		t.Error("of a slot that does not run")
	}
	r.good(b)
	if _, changed := Ended(r.durable, b); changed {
		t.Error("of a system that said good")
	}
}

// A turn in rescue used up no try, so none is given back.
func TestRule18_ATurnGivesNothingBack(t *testing.T) {
	p := available
	p.PowerLosses = 8
	r := newRig(t, p, sealOf("1"), Seal{Status: SealMissing}, entry(a, "1", tries(0), because(status.Exhausted)))
	r.facts.Retry = true
	for range 3 {
		wantBoot(t, r.boot(status.None), a)
		if e := r.entry(a); e.Tries != 0 || e.Back != 0 || e.Reason != status.Exhausted {
			t.Fatalf("%+v", e)
		}
	}
}

func TestRule13_BadIsEvidence(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), Entry{Slot: b})
	r.install("2")
	wantBoot(t, r.boot(status.None), b)
	s, err := Bad(r.durable, b, false, r.p)
	if err != nil {
		t.Fatal(err)
	}
	r.commit(s)
	d := r.boot(status.None)
	wantBoot(t, d, a)
	if d.Fallback == nil || d.Fallback.Reason != status.ToldBad {
		t.Errorf("fallback %+v", d.Fallback)
	}
	if v := Judge(r.durable, offerOf("2"), false, r.p); v.Take || v.Code != 31 || !strings.Contains(v.Why, "told-bad") {
		t.Errorf("%+v", v)
	}
}

// Without evidence: two more rounds, then one more ever more rarely, and never given up.
func TestRule13_RoundsWithoutEvidence(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), Entry{Slot: b})
	var pauses []uint64
	last := uint64(0)
	for len(pauses) < 14 {
		if v := Judge(r.durable, offerOf("2"), false, r.p); !v.Take {
			if v.Code != 31 || v.Why == "" {
				t.Fatalf("refused in silence: %+v", v)
			}
			wantBoot(t, r.boot(status.None), a)
			r.good(a)
			continue
		}
		pauses = append(pauses, r.durable.Boot-last)
		r.install("2")
		wantBoot(t, trial(r, status.None, status.None, status.None), a)
		r.good(a)
		last = r.durable.Boot
	}
	want := []uint64{0, 1, 1, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024, 1024}
	if diff := cmp.Diff(want, pauses); diff != "" {
		t.Error(diff)
	}
}

func TestRule13_GoodClearsWhatIsRemembered(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), Entry{Slot: b})
	r.install("2")
	trial(r, status.None, status.None, status.Watchdog)
	r.durable.Falls = append(r.durable.Falls, Fall{Manifest: hash("7"), Evidence: status.Panic, Rounds: 1})
	r.install("2") // asked for by hand
	wantBoot(t, r.boot(status.None), b)
	r.good(b)
	if f := r.durable.Falls; len(f) != 1 || f[0].Manifest != hash("7") {
		t.Errorf("falls %+v", f)
	}
}

// The trace: V5's image decays during its trial; V5 would never be installed again.
func TestRule14_DecayIsNotTheBundlesFault(t *testing.T) {
	r := newRig(t, available, sealOf("4"), sealOf("5"), entry(a, "4", good), Entry{Slot: b})
	r.install("5")
	r.medium[b] = damaged(sealOf("5"))
	r.whole = nil
	d := trial(r, status.Watchdog, status.Watchdog, status.Watchdog)
	wantBoot(t, d, a)
	if !slices.Equal(r.whole, []string{b}) {
		t.Errorf("read whole before the bundle is accused: %v", r.whole)
	}
	if len(r.durable.Falls) > 0 {
		t.Errorf("the bundle is accused: %+v", r.durable.Falls)
	}
	if e := r.entry(b); e.Reason != status.VerityError || d.Fallback == nil || d.Fallback.Reason != status.VerityError {
		t.Errorf("%+v, fallback %+v", e, d.Fallback)
	}
	if v := Judge(r.durable, offerOf("5"), false, r.p); !v.Take {
		t.Errorf("V5 is not installed again: %s", v.Why)
	}
	if got := r.install("5"); got != b {
		t.Errorf("target %s", got)
	}
}

func TestRule14_OnceGoodIsCountedNeverAccused(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2", good), entry(a, "1", good))
	wantBoot(t, r.boots(8, status.Watchdog), b)
	wantBoot(t, r.boot(status.Watchdog), a)
	if f := r.durable.Falls; len(f) != 1 || f[0].Evidence != status.None {
		t.Errorf("falls %+v", f)
	}
	if e := r.entry(b); e.Reason != status.Watchdog || e.Tries != 0 {
		t.Errorf("%+v", e)
	}
}

// The trace: 1 is good in A, which cannot be read to its end in one boot, and is installed in B too, where its tries run
// out: it was good here all the same.
func TestRule14_OnceGoodInAnotherSlot(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("1"), entry(b, "1", tries(0)), entry(a, "1", good, because(status.VerityError)))
	r.durable.Slots[0].Ends = 2
	r.durable.Slots[0].LastEnd = status.Panic
	r.boot(status.None)
	if f := r.durable.Falls; len(f) != 1 || f[0].Evidence != status.None {
		t.Errorf("falls %+v", f)
	}
	s, err := Bad(state(entry(b, "1"), entry(a, "1", good)), b, false, r.p)
	if err != nil || len(s.Falls) > 0 {
		t.Errorf("told bad: error %v, falls %+v", err, s.Falls)
	}
}

// The trace: B was good and fails from one day on; the stick that it came from is still plugged in, and gives it its
// tries again in the boot that would fall back to A, for ever.
func TestRule14_OnceGoodDoesNotStarveTheOther(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2", good), entry(a, "1", good))
	ran := 0
	for range 100 {
		s, _ := Begin(r.durable, status.Watchdog, true, r.p)
		r.commit(s)
		if s, _, attest := Settle(s, Facts{Seals: map[string]Seal{b: r.medium[b]}}, r.p); len(attest) == 0 {
			r.commit(s)
		}
		if Judge(r.durable, offerOf("2"), false, r.p).Take {
			r.install("2")
		}
		if r.decide(r.durable).Slot == a {
			ran++
			r.good(a)
		}
	}
	if ran < 50 {
		t.Errorf("A ran in %d of 100 boots", ran)
	}
}

func TestRule14_UnreadableIsNotTheBundlesFault(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2", tries(0)), entry(a, "1", good))
	r.medium[b] = Seal{Status: SealUnreadable, Whole: WholeDamaged}
	wantBoot(t, r.boot(status.Watchdog), a)
	if e := r.entry(b); e.Reason != status.Unreadable || len(r.durable.Falls) > 0 {
		t.Errorf("%+v, falls %v", e, r.durable.Falls)
	}
}

func TestRule15_TwoCutsSkipUSBOnce(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), entry(b, "2", good))
	var looks string
	for range 9 {
		s, look := Begin(r.durable, status.None, true, r.p)
		if look {
			looks += "L"
			r.commit(s) // USB ends the boot
			continue
		}
		looks += "-"
		wantBoot(t, r.decide(s), a)
		r.good(a)
	}
	if looks != "LL-LL-LL-" {
		t.Errorf("looked at USB: %s", looks)
	}
}

func TestRule15_Guard(t *testing.T) {
	id := GuardID(hash("2"))
	s := State{Boot: 100}
	s = Suspect(s, id)
	if s.Guarded(id) {
		t.Error("after one end that PID 1 saw")
	}
	s = Suspect(s, id)
	if !s.Guarded(id) {
		t.Error("not after two")
	}
	var pauses []uint64
	for range 10 {
		next := s.Guards[0].Next
		pauses = append(pauses, next-s.Boot)
		s.Boot = next
		if s.Guarded(id) {
			t.Fatal("given up")
		}
		s = Suspect(s, id)
	}
	if diff := cmp.Diff([]uint64{8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024}, pauses); diff != "" {
		t.Error(diff)
	}
	if v := Judge(s, offerOf("2"), false, available); v.Take || v.Code != 31 {
		t.Errorf("%+v", v)
	}
	if v := Judge(s, offerOf("2"), true, available); !v.Take {
		t.Errorf("in rescue: %+v", v)
	}
	for name, reset := range map[string]State{
		"seal":             Installed(Note(s, b, offerOf("2"), available), b, sealOf("2"), available),
		"finished refusal": Refuse(Note(s, b, offerOf("2"), available), offerOf("2"), true, false, 30, available),
	} {
		if len(reset.Guards) > 0 {
			t.Errorf("%s does not reset: %+v", name, reset.Guards)
		}
	}
	if r := Refuse(s, offerOf("2"), false, true, 40, available); len(r.Guards) != 1 || r.Guards[0].Seen != s.Guards[0].Seen+1 {
		t.Errorf("a bad end: %+v", r.Guards)
	}
}

// Unexplained ends of an install: limit 8, charged to the bundle that was noted.
func TestRule15_UnexplainedEnds(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(a, "1", good), entry(b, "0", good))
	cuts := 0
	for range 40 {
		s, look := Begin(r.durable, status.None, true, r.p)
		if look {
			r.commit(s)
			if Judge(r.durable, offerOf("2"), false, r.p).Take {
				cuts++
				r.medium[b] = Seal{Status: SealMissing}
				r.commit(Note(r.durable, b, offerOf("2"), r.p))
				continue
			}
		}
		wantBoot(t, r.decide(s), a)
		r.good(a)
	}
	if cuts < 8 || cuts > 13 {
		t.Errorf("the installer was cut off %d times in 40 boots", cuts)
	}
}

func TestRule15_SkippedBootStillRuns(t *testing.T) {
	s := state(entry(a, "1", good))
	s.Mark, s.Cuts = MarkUSB, 1
	next, look := Begin(s, status.None, true, available)
	if look || next.Mark != MarkNone || next.Cuts != 0 {
		t.Errorf("look %t, %+v", look, next)
	}
}

// The trace: the user installs V2 into B, then the boot service says `good` for A.
func TestRule16_GoodSparesTheTrial(t *testing.T) {
	s := state(entry(b, "2"), entry(a, "1"))
	got, err := Good(s, a, secure)
	if err != nil {
		t.Fatal(err)
	}
	if e := got.Entry(b); e.Excluded || !got.Qualifies(e, secure) {
		t.Errorf("the trial is excluded: %+v", e)
	}
	r := newRig(t, secure, sealOf("1"), sealOf("2"))
	r.durable = got
	wantBoot(t, r.boot(status.None), b)
}

func TestRule16_Good(t *testing.T) {
	for _, test := range []struct {
		name     string
		p        Policy
		other    Entry
		excluded bool
	}{
		{"available, once good", available, entry(b, "2", good), false},
		{"secure, once good", secure, entry(b, "2", good), true},
		{"secure, trial ran out", secure, entry(b, "2", tries(0), because(status.Exhausted)), true},
		{"secure, trial with tries left", secure, entry(b, "2", tries(1)), false},
		{"secure, empty", secure, Entry{Slot: b}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Good(state(entry(a, "1", tries(1), because(status.Exhausted)), test.other), a, test.p)
			if err != nil {
				t.Fatal(err)
			}
			if e := got.Entry(a); !e.Good || e.Tries != 8 || e.Reason != status.None || e.Ends != 0 {
				t.Errorf("%+v", e)
			}
			if e := got.Entry(b); e.Excluded != test.excluded {
				t.Errorf("other: %+v", e)
			}
		})
	}
}

func TestRule16_FallbackPolicy(t *testing.T) {
	for _, test := range []struct {
		p      Policy
		rescue bool
	}{{available, false}, {secure, true}} {
		r := newRig(t, test.p, sealOf("1"), sealOf("2"), entry(b, "2"), entry(a, "1", good))
		wantBoot(t, r.boot(status.None), b)
		r.good(b)
		d := r.boots(9, status.None)
		if test.rescue {
			wantRescue(t, d)
			if Retries(r.durable, Facts{}, r.p) != true {
				t.Error("the confirmed slot is not retried")
			}
			continue
		}
		wantBoot(t, d, a)
	}
}

func TestRule17_Floors(t *testing.T) {
	for _, test := range []struct {
		name  string
		p     Policy
		s     State
		floor string
	}{
		{"the other may be booted", available, state(entry(b, "2"), entry(a, "1", good)), "1"},
		{"rescue may retry the other", available, state(entry(b, "2"), entry(a, "1", good, tries(0), because(status.Exhausted))), "1"},
		{"the other is excluded", secure, state(entry(b, "2"), entry(a, "1", good)), "2"},
		{"the other has no seal", available, state(entry(b, "2"), entry(a, "1", good, because(status.SealMissing))), "2"},
		{"the other is on trial and newer", secure, state(entry(b, "2"), entry(a, "3")), "2"},
		{"never down", available, func() State {
			s := state(entry(b, "2"), entry(a, "1"))
			s.Floors.Version = "1.5"
			return s
		}(), "2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Good(test.s, b, test.p)
			if err != nil {
				t.Fatal(err)
			}
			if got.Floors.Version != test.floor {
				t.Errorf("floor %q, want %q", got.Floors.Version, test.floor)
			}
		})
	}
	// Nothing else raises one.
	r := newRig(t, available, sealOf("1"), Seal{Status: SealMissing}, entry(a, "1", good), Entry{Slot: b})
	r.install("5")
	r.boots(2, status.None)
	if diff := cmp.Diff(Floors{}, r.durable.Floors); diff != "" {
		t.Error(diff)
	}
}

func TestRule17_TimeAndEpoch(t *testing.T) {
	s := state(entry(b, "2", func(e *Entry) { e.Epoch, e.Created = 7, 5000 }), entry(a, "1", good, func(e *Entry) { e.Epoch, e.Created = 3, 9000 }))
	got, err := Good(s, b, secure)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Floors{Version: "2", Epoch: 7, Time: 5000}, got.Floors); diff != "" {
		t.Error(diff)
	}
	if got, err = Good(s, b, available); err != nil || got.Floors.Epoch != 3 {
		t.Errorf("epoch %d, error %v", got.Floors.Epoch, err)
	}
}

// The trace: a fixed "best" retries a broken slot for ever.
func TestRule18_SlotsInTurn(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"),
		entry(b, "2", tries(0), because(status.Watchdog)), entry(a, "1", good, tries(0), because(status.Exhausted)))
	var got []string
	for range 6 {
		wantRescue(t, r.boot(status.None))
		r.facts.Retry = true
		d := r.decide(r.durable)
		r.facts.Retry = false
		if d.Action != Boot || r.durable.Rescue.Slot != d.Slot {
			t.Fatalf("%+v: whose turn it was is not in the record: %+v", d, r.durable.Rescue)
		}
		got = append(got, d.Slot)
	}
	if diff := cmp.Diff([]string{a, b, a, b, a, b}, got); diff != "" {
		t.Error(diff)
	}
	if r.durable.Rescue.Waits != 6 {
		t.Errorf("waits %d", r.durable.Rescue.Waits)
	}
	r.good(b)
	if r.durable.Rescue != (Rescue{}) {
		t.Errorf("after good: %+v", r.durable.Rescue)
	}
}

func TestRule18_WhatIsRetried(t *testing.T) {
	floor := state(entry(a, "1", tries(0), because(status.BelowFloor)), Entry{Slot: b})
	floor.Floors.Version = "2"
	for _, test := range []struct {
		name string
		s    State
		want bool
	}{
		{"exhausted", state(entry(a, "1", tries(0), because(status.Exhausted)), Entry{Slot: b}), true},
		{"damaged", state(entry(a, "1", because(status.VerityError)), Entry{Slot: b}), true},
		{"told bad", state(entry(a, "1", tries(0), because(status.ToldBad)), Entry{Slot: b}), true},
		{"excluded", state(entry(a, "1", good, excluded), Entry{Slot: b}), false},
		{"without seal", state(entry(a, "1", because(status.SealMissing)), Entry{Slot: b}), false},
		{"below the floor", floor, false},
		{"empty", state(Entry{Slot: a}, Entry{Slot: b}), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			inA := sealOf("1")
			if e := test.s.Entry(a); e.Empty() || e.Reason == status.SealMissing {
				inA = Seal{Status: SealMissing}
			}
			f := Facts{Seals: seals(inA, Seal{Status: SealMissing}), Retry: true}
			if got := Retries(test.s, f, available); got != test.want {
				t.Errorf("Retries: %t", got)
			}
			if d := Decide(test.s, f, available); (d.Action == Boot) != test.want {
				t.Errorf("%+v", d)
			}
		})
	}
}

// A slot that qualifies again while rescue waited is booted by the rules, and counted.
func TestRule18_RetryYieldsToWhatQualifies(t *testing.T) {
	s := state(entry(a, "1", tries(2), because(status.Unreadable)), entry(b, "2", tries(0), because(status.ToldBad)))
	d := Decide(s, Facts{Seals: seals(sealOf("1"), sealOf("2")), Retry: true}, available)
	wantBoot(t, d, a)
	if d.State.Entry(a).Tries != 1 {
		t.Errorf("tries %d", d.State.Entry(a).Tries)
	}
}

func TestRule18_RescueIgnoresGuardAndFalls(t *testing.T) {
	s := State{Guards: []Guard{{ID: GuardID(hash("2")), Seen: 9, Next: 1 << 40}}, Falls: []Fall{{Manifest: hash("2"), Evidence: status.Panic, Rounds: 9, Next: 1 << 40}}}
	if v := Judge(s, offerOf("2"), true, available); !v.Take {
		t.Errorf("%+v", v)
	}
	if v := Judge(s, offerOf("2"), false, available); v.Take {
		t.Error("taken outside rescue")
	}
}

func TestRule19_Rebuild(t *testing.T) {
	built := available
	built.Floors = Floors{Version: "0.5", Epoch: 1}
	for _, test := range []struct {
		name  string
		seals map[string]Seal
		order []string
		floor string
	}{
		{"newest first", seals(sealOf("1"), sealOf("2")), []string{b, a}, "1"},
		{"one was never installed", seals(sealOf("2"), Seal{Status: SealMissing}), []string{a, b}, "2"},
		{"one cannot be read", seals(sealOf("2"), Seal{Status: SealUnreadable}), []string{a, b}, "0.5"},
		{"one is torn", seals(Seal{Status: SealFalse}, sealOf("2")), []string{b, a}, "0.5"},
		{"none", seals(Seal{Status: SealMissing}, Seal{Status: SealMissing}), []string{a, b}, "0.5"},
		{"the lowest is below what is built in", seals(sealOf("0.1"), sealOf("2")), []string{b, a}, "0.5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := Rebuild(test.seals, built)
			if !slices.Equal(order(s), test.order) {
				t.Errorf("order %v", order(s))
			}
			for _, e := range s.Slots {
				if e.Good {
					t.Errorf("%s is good", e.Slot)
				}
			}
			if got := s.floors(built).Version; got != test.floor {
				t.Errorf("floor %q, want %q", got, test.floor)
			}
			if !s.Unproven {
				t.Error("not unproven")
			}
			if _, ok := lastEvent(s, status.EventStateLost); !ok {
				t.Error("no event")
			}
		})
	}
}

// The trace: B is a bad trial, the state is lost, a stick is there: the good older A would be the target.
func TestRule19_TheOlderIsNotTheTarget(t *testing.T) {
	s := Rebuild(seals(sealOf("1"), sealOf("2")), available)
	if v := Judge(s, offerOf("3"), false, available); v.Take || !strings.Contains(v.Why, "good") {
		t.Errorf("%+v", v)
	}
	if v := Judge(s, offerOf("3"), true, available); !v.Take {
		t.Errorf("in rescue: %+v", v)
	}
	f := Facts{Seals: seals(sealOf("1"), sealOf("2"))}
	if c := Target(s, f, offerOf("3"), "", available); c.Slot != b {
		t.Errorf("target %+v", c)
	}
	// Also when it is the older one that does not qualify.
	s.Slots[1].Tries, s.Slots[1].Reason = 0, status.Exhausted
	if c := Target(s, f, offerOf("3"), "", available); c.Slot != b {
		t.Errorf("older exhausted: target %+v", c)
	}
	s, err := Good(s, a, available)
	if err != nil {
		t.Fatal(err)
	}
	if v := Judge(s, offerOf("3"), false, available); !v.Take {
		t.Errorf("after good: %+v", v)
	}
}

func TestRule20_ReadOnlyBootsTheConfirmedOne(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2"), entry(a, "1", good, tries(0)))
	r.facts.ReadOnly = true
	before := r.durable
	wantBoot(t, r.boot(status.None), a)
	if diff := cmp.Diff(before, r.durable, sameState); diff != "" {
		t.Errorf("written:\n%s", diff)
	}
	r = newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2"), entry(a, "1"))
	r.facts.ReadOnly = true
	wantRescue(t, r.boot(status.None)) // never a trial
}

func TestRule20_BlindDrawsByChance(t *testing.T) {
	seen := map[string]int{}
	for chance := range uint64(64) {
		r := newRig(t, available, sealOf("1"), sealOf("2"))
		r.durable = Rebuild(r.medium, r.p)
		d := r.decideWith(r.durable, Facts{Seals: seals(sealOf("1"), sealOf("2")), Failed: map[string]status.Reason{}, ReadOnly: true, Blind: true, Chance: chance})
		if d.Action != Boot {
			t.Fatal(d)
		}
		seen[d.Slot]++
		// The one that does not start is not drawn again in this boot.
		r.broken = map[string]status.Reason{a: status.VerityError}
		d = r.decideWith(r.durable, Facts{Seals: seals(sealOf("1"), sealOf("2")), Failed: map[string]status.Reason{}, ReadOnly: true, Blind: true, Chance: chance})
		wantBoot(t, d, b)
	}
	if seen[a] != 32 || seen[b] != 32 {
		t.Errorf("drawn: %v", seen)
	}
	// Built-in floors hold.
	p := available
	p.Floors.Version = "2"
	s := Rebuild(seals(sealOf("1"), sealOf("2")), p)
	for chance := range uint64(8) {
		d := Decide(s, Facts{Seals: seals(sealOf("1"), sealOf("2")), ReadOnly: true, Blind: true, Chance: chance}, p)
		wantBoot(t, d, b)
	}
}

// Whose turn it was cannot be recorded, so that it is drawn.
func TestRule20_RetryByChance(t *testing.T) {
	s := state(entry(b, "2", tries(0), because(status.Exhausted)), entry(a, "1", good, tries(0), because(status.Exhausted)))
	seen := map[string]bool{}
	for chance := range uint64(4) {
		d := Decide(s, Facts{Seals: seals(sealOf("1"), sealOf("2")), ReadOnly: true, Retry: true, Chance: chance}, available)
		seen[d.Slot] = true
	}
	if !seen[a] || !seen[b] {
		t.Errorf("retried: %v", seen)
	}
}

// A dead state partition does not keep a stick from repairing the device.
func TestRule20_WhatRescueInstalledIsStarted(t *testing.T) {
	for _, blind := range []bool{false, true} {
		s := state(entry(a, "1", tries(0), because(status.Exhausted)), entry(b, "2"))
		for chance := range uint64(4) {
			wantBoot(t, Decide(s, Facts{Seals: seals(sealOf("1"), sealOf("2")), ReadOnly: true, Blind: blind, Fresh: b, Chance: chance}, available), b)
		}
	}
	// Where a confirmed one can be started, that is.
	s := state(entry(a, "1", good), entry(b, "2"))
	wantBoot(t, Decide(s, Facts{Seals: seals(sealOf("1"), sealOf("2")), ReadOnly: true, Fresh: b}, available), a)
}

func TestRule21_WishIsClearedBeforeItIsHonoured(t *testing.T) {
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2", good), entry(a, "1", good))
	s, err := Next(r.durable, a, r.p)
	if err != nil {
		t.Fatal(err)
	}
	r.commit(s)
	d := r.boot(status.None)
	wantBoot(t, d, a)
	if d.State.Wish != "" || r.durable.Wish != "" || r.entry(a).Tries != 7 {
		t.Errorf("wish %q, tries %d", d.State.Wish, r.entry(a).Tries)
	}
	if !slices.Equal(order(r.durable), []string{b, a}) || d.Fallback != nil {
		t.Errorf("order %v fallback %v", order(r.durable), d.Fallback)
	}
	wantBoot(t, r.boot(status.None), b)
}

func TestRule21_OnlyForAQualifyingSlot(t *testing.T) {
	for _, e := range []Entry{
		entry(a, "1", tries(0)), entry(a, "1", because(status.VerityError)), entry(a, "1", excluded), {Slot: a},
	} {
		s := state(entry(b, "2", good), e)
		if _, err := Next(s, a, available); err == nil {
			t.Errorf("%+v: wished for", e)
		}
		s.Wish = a
		inA := right(sealOf("1"))
		if e.Reason != status.None {
			inA.Whole = WholeUnread
		}
		if e.Empty() {
			inA = Seal{Status: SealMissing}
		}
		d := Decide(s, Facts{Seals: seals(inA, sealOf("2"))}, available)
		wantBoot(t, d, b)
		if d.State.Wish != "" {
			t.Error("not cleared")
		}
	}
	// The command line's preference is counted in the same way, and gives way when the tries are used up.
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2", good), entry(a, "1"))
	r.facts.Prefer = a
	wantBoot(t, r.boots(3, status.None), a)
	wantBoot(t, r.boot(status.None), b)
}

// Of all that is plugged in, the newest that is acceptable is taken; of equals the first.
func TestRule11_TheBest(t *testing.T) {
	different := available
	different.Different = true
	asked := func(o Offer) Offer { o.Asked = true; return o }
	both := state(entry(a, "5", good), entry(b, "4", good))
	trial := state(entry(b, "5"), entry(a, "4", good))
	fell := both.Clone()
	fell.Falls = []Fall{{Manifest: hash("3"), Evidence: status.ToldBad}}
	floor := both.Clone()
	floor.Floors.Version = "2"
	for _, test := range []struct {
		name   string
		s      State
		p      Policy
		rescue bool
		offers []Offer
		want   int
		why    string // of the first
	}{
		{"nothing", both, available, false, nil, -1, ""},
		{"the newest", both, available, false, []Offer{offerOf("6"), offerOf("8"), offerOf("7")}, 1, ""},
		{"the first of equals", both, available, false, []Offer{{Manifest: hash("x"), Version: "6", Epoch: 1}, offerOf("6")}, 0, ""},
		{"none is newer", both, available, false, []Offer{offerOf("4"), offerOf("5"), offerOf("3")}, -1, "not newer"},
		{"the newest is too new", both, available, false, []Offer{{Manifest: hash("9"), Version: "9", Epoch: 99}, offerOf("6")}, 1, "epoch"},
		{"rescue", both, available, true, []Offer{offerOf("2"), offerOf("3"), offerOf("1")}, 1, ""},
		{"rescue, of different ones", both, different, true, []Offer{offerOf("2"), offerOf("5"), offerOf("1")}, 1, ""},

		{"the newest of different ones", both, different, false, []Offer{offerOf("2"), offerOf("3"), offerOf("1")}, 1, "counts"},
		{"the newest is there", both, different, false, []Offer{offerOf("3"), offerOf("5")}, -1, `version "5" counts`},
		{"the newest lies behind", both, different, false, []Offer{offerOf("3"), offerOf("4")}, -1, `version "4" counts`},
		{"the newest fell back", fell, different, false, []Offer{offerOf("2"), offerOf("3")}, 0, ""},
		{"what is below the floor does not count", floor, different, false, []Offer{offerOf("1"), offerOf("2")}, 1, "floor"},
		{"an older one, asked for", both, different, false, []Offer{asked(offerOf("3")), offerOf("5")}, 0, ""},
		{"a newer one than what is on trial", trial, different, false, []Offer{offerOf("6"), offerOf("3")}, 0, ""},
		{"an older one than what is on trial", trial, different, false, []Offer{offerOf("3")}, -1, "on trial"},
		{"what is on trial", trial, different, false, []Offer{offerOf("5"), offerOf("3")}, -1, "already installed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, verdicts := Choose(test.s, test.offers, test.rescue, test.p)
			if got != test.want || len(verdicts) != len(test.offers) {
				t.Fatalf("took %d, want %d: %+v", got, test.want, verdicts)
			}
			for i, v := range verdicts {
				if v.Take != (v.Why == "") || i == got && !v.Take {
					t.Errorf("%d: %+v", i, v)
				}
			}
			if len(verdicts) > 0 && !strings.Contains(verdicts[0].Why, test.why) {
				t.Errorf("%+v, want %q", verdicts[0], test.why)
			}
		})
	}
}

// TestRule11_SticksThatStay: whatever a device holds and whatever sticks stay in it, it comes to rest, under each policy. Every
// combination of the versions in its slots, of up to three bundles and of how their systems fare is played: of those that
// say good one is installed at most, of those that leave evidence against them each once; those that end without a word come
// ever more rarely.
func TestRule11_SticksThatStay(t *testing.T) {
	const boots = 60
	type fate byte
	const (
		well fate = iota
		accused
		mute
		fateCount
	)
	versions := []string{"1", "2", "3"}
	if full() {
		versions = append(versions, "4")
	}
	games, installs, most := 0, 0, 0
	play := func(p Policy, inA, inB string, sticks []string, how func(i int) fate) {
		games++
		s := Factory(map[string]Seal{a: sealOf(inA), b: sealOf(inB)}, p)
		if inB == "" {
			s = Factory(map[string]Seal{a: sealOf(inA)}, p)
		}
		fates := map[Hash]fate{}
		var offers []Offer
		for i, v := range sticks {
			offers = append(offers, offerOf(v))
			fates[hash(v)] = how(i)
		}
		fates[hash(inA)], fates[hash(inB)] = well, well // they were delivered
		r := newRig(t, p, sealOf(inA), Seal{Status: SealMissing})
		if inB != "" {
			r.medium[b] = right(sealOf(inB))
		}
		r.durable = s
		r.durable.arrange(p)
		r.good(r.boot(status.None).Slot)
		count, silent, late := map[string]int{}, false, 0
		for _, f := range fates {
			silent = silent || f == mute
		}
		for i := range boots {
			s, look := Begin(r.durable, status.None, true, p)
			if look {
				r.commit(r.settle(s))
				if best, _ := Choose(r.durable, offers, false, p); best >= 0 {
					v := sticks[best]
					if r.install(v) != "" {
						count[v]++
						installs++
						if i >= boots/2 {
							late++
						}
					}
				}
				s = r.durable
			}
			d := r.decide(s)
			if d.Action != Boot {
				t.Fatalf("secure %t, slots %q %q, sticks %v: rescue: %+v", p.Secure, inA, inB, sticks, r.durable)
			}
			switch e := r.entry(d.Slot); fates[e.Manifest] {
			case well:
				r.good(d.Slot)
			case accused:
				if s, err := Bad(r.durable, d.Slot, false, p); err == nil {
					r.commit(s)
				}
			}
		}
		total, settled := 0, 0
		for v, n := range count {
			total += n
			if fates[hash(v)] == well {
				settled += n
			}
			if n > 1 && !silent {
				t.Errorf("different %t secure %t, slots %s and %s, sticks %v: %s was installed %d times", p.Different, p.Secure, inA, inB, sticks, v, n)
			}
		}
		if settled > 1 && !silent {
			t.Errorf("different %t secure %t, slots %s and %s, sticks %v: healthy systems replaced each other: %v", p.Different, p.Secure, inA, inB, sticks, count)
		}
		if most = max(most, total); late > 2*len(sticks) || late > 0 && !silent {
			t.Errorf("different %t secure %t, slots %s and %s, sticks %v: %d installs in the second half of %d boots: %v", p.Different, p.Secure, inA, inB, sticks, late, boots, count)
		}
	}
	for _, p := range []Policy{available, secure} {
		for _, p.Different = range []bool{false, true} {
			for _, inA := range versions {
				for _, inB := range append([]string{""}, versions...) {
					for set := 1; set < 1<<len(versions); set++ {
						var sticks []string
						for i, v := range versions {
							if set>>i&1 == 1 {
								sticks = append(sticks, v)
							}
						}
						all := 1
						for range sticks {
							all *= int(fateCount)
						}
						if len(sticks) > 3 || inB == inA {
							continue
						}
						for how := range all {
							play(p, inA, inB, sticks, func(i int) fate {
								n := how
								for range i {
									n /= int(fateCount)
								}
								return fate(n % int(fateCount))
							})
						}
					}
				}
			}
		}
	}
	t.Logf("figure: sticks that stay: %d devices, %d boots each, %d installs, at most %d of one device", games, boots, installs, most)
}
