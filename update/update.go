// Package update is the sequence of a boot, over interfaces: look at what lies outside, choose a bundle and a target,
// install, attest, seal; then decide, commit, try. PID 1, the running system, the crash simulator and the power-cut
// campaign all run this code; what it touches they put in.
//
// Every write that matters is one of the five flush points of an install or one commit of the boot state; a power cut
// before any of them loses what was not yet done, and the next boot does it again.
package update

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"lifeboat/boot"
	"lifeboat/config"
	"lifeboat/slots"
	"lifeboat/status"
)

// Outside brings sources in.
type Outside interface {
	// Sources says what is plugged in. The first call loads what is needed to see it.
	Sources(ctx context.Context) []Source
	// Wait returns true when something was plugged in or out, false after d.
	Wait(ctx context.Context, d time.Duration) bool
}

// Slots are the effects on slots that PID 1 has itself. Each returns only when it is durable.
type Slots interface {
	Wipe(slot string) error              // the old seal vouches for nothing any more
	Sync(slot string) error              // what an installer wrote is on the medium, and no cache answers for it
	Seal(slot string, seal []byte) error // opaque bytes
	// Start opens and mounts the slot's system and what goes with it. Its error is a Fault when the slot is to blame.
	Start(slot string, f slots.Facts, with []Member) error
}

// Clock is what waiting in rescue goes by.
type Clock interface {
	Now() time.Time
	Sleep(ctx context.Context, d time.Duration)
}

type machineClock struct{}

func (machineClock) Now() time.Time { return time.Now() }

func (machineClock) Sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(max(d, 0)):
	}
}

// Fault is an error of Slots.Start with what the slot is accused of.
type Fault struct {
	Reason status.Reason
	Err    error
}

func (f *Fault) Error() string { return f.Err.Error() }
func (f *Fault) Unwrap() error { return f.Err }

// Device is one device as the sequence sees it.
type Device struct {
	Store  boot.Store
	Policy boot.Policy
	Trust  Trust
	Class  string       // image class of the boot slots
	Room   int64        // bytes of the smallest boot slot
	Tree   *config.Tree // as the boot slots have it
	// Children are the classes of slots that go with the boot slots.
	Children []Child
	// Loaders are the slots of the boot loader itself, Copies what PID 1 does to them; nil where there are none.
	Loaders []Loader
	Copies  Copies
	Crew    Crew
	Outside Outside  // nil: nothing outside can be looked at
	Waits   bool     // only rescue looks at it
	Files   []string // path patterns of the bundles on a stick; nil: the default
	Require string   // a file without which a stick brings nothing; "": none
	// Staging opens the partition where a bundle may be staged: ID, Name and Path. It is asked only when the record says that
	// something is staged, and in rescue. nil: there is none.
	Staging func() (Source, error)
	Slots   Slots

	Name     func(slot string) string           // "rootfs.0 (A)"
	Bootname func(slot string) string           // "A"
	Say      func(line string)                  // to console and kernel log
	Step     func(s Step, version, slot string) // what is done with what lies outside; may be nil
	Progress func(done, total int64)            // of an install's step, bytes; may be nil
	Letter   func(boot.State) string            // the report that is left on sticks that have room for it; may be nil
	Screen   func(Rescue)                       // shows the rescue screen; may be nil
	Phase    func(name string)                  // a phase of the boot has ended; may be nil

	Prefer      string        // lifeboat.slot=
	Rescue      bool          // lifeboat.rescue
	RescueRetry time.Duration // first wait in rescue
	Replug      time.Duration // how long an install waits for its stick when that was pulled out
	Chance      uint64        // drawn at each boot
	Words       []byte        // the last words of the last boot's kernel, where it panicked and left some

	Report *status.Report // what happened is added to it
	Clock  Clock          // nil: the machine's

	// Lock keeps other writers of the record away until unlock is called; nil where there are none, in early boot.
	Lock func() (unlock func(), err error)
	Rate int64 // bytes per second that a worker reads or writes at most; 0: as fast as it goes

	// SkipOver bytes are the largest image that is written without a look at what the slot holds already.
	SkipOver int64

	running  string        // slot whose system runs; "" in early boot
	reports  []report      // on the sticks that were looked at
	away     []Source      // were pulled out, and waited for in vain
	reason   status.Reason // why the device is in rescue
	sector   int64         // of the disk of the boot loader that is written
	same     int64         // bytes that an install did not have to write
	state    boot.State
	facts    boot.Facts
	geometry map[string]slots.Facts
	untold   bool  // the boot loader may start what the record does not want
	readErr  error // why the record could not be loaded, nil when it was
}

// Started is the system that was started: opened, mounted and noted in the record.
type Started struct {
	Restart bool // nothing was: the device has to restart, so that the boot loader starts Slot
	Slot    string
	Trial   bool
	Facts   slots.Facts
	With    []Member
	State   boot.State
}

// Boot runs the whole sequence and returns when a slot has been started, or ctx has ended. end is how the last boot
// ended as far as the hardware knows.
func (d *Device) Boot(ctx context.Context, end status.Reason) (Started, error) {
	d.prepare()
	d.load(ctx)
	var look bool
	d.state, look = boot.Begin(d.state, end, d.Outside != nil && !d.Waits && d.readErr == nil, d.Policy)
	staged := d.state.Mark == boot.MarkStaged
	if d.Outside != nil && !d.Waits && !look {
		d.note("USB is skipped in this boot: it ended the last ones, or the state cannot be read")
	}
	d.phase("state")
	if (look || staged) && d.commit(d.state) {
		d.phase("mark")
		// What was asked for goes first and needs no USB; once it is installed, sticks have their turn in the next boot.
		if staged && d.staged(ctx, false) {
			look = false
		}
		if look && (!staged || d.commit(boot.Looking(d.state))) {
			d.outside(ctx, false)
		}
	}
	if len(d.Report.Installed) == 0 {
		d.repair(ctx)
	}
	for ctx.Err() == nil {
		if s, ok := d.try(ctx); ok {
			d.keepWords()
			return s, nil
		}
		d.wait(ctx)
	}
	return Started{}, ctx.Err()
}

// keepWords keeps what the kernel of the boot before this one said in the end. It is for people: a failure is said, no more.
func (d *Device) keepWords() {
	if len(d.Words) == 0 || d.facts.ReadOnly {
		return
	}
	if err := d.Store.SaveWords(boot.Words{Boot: d.state.Boot - 1, Text: d.Words}); err != nil {
		d.note(err.Error())
	}
}

func (d *Device) prepare() {
	d.facts = boot.Facts{Seals: map[string]boot.Seal{}, Failed: map[string]status.Reason{}, Prefer: d.Prefer, Rescue: d.Rescue, Chance: d.Chance}
	d.geometry = map[string]slots.Facts{}
	if d.Clock == nil {
		d.Clock = machineClock{}
	}
}

func (d *Device) phase(name string) {
	if d.Phase != nil {
		d.Phase(name)
	}
}

func (d *Device) note(line string) {
	d.Say(line)
	d.Report.Notes = append(d.Report.Notes, line)
}

// load reads the record; when both copies are lost it is rebuilt from the seals (rule 19).
func (d *Device) load(ctx context.Context) {
	s, view, err := d.Store.Load()
	d.facts.Started = view.Started
	if err == nil {
		d.hear(s, view)
		d.loadTrust()
		return
	}
	d.note(fmt.Sprintf("the boot state is lost: %v reason=%s", err, status.StateLost))
	if !errors.Is(err, boot.ErrLost) {
		d.readErr = err
		d.facts.ReadOnly, d.facts.Blind = true, true
	}
	d.findTrust()
	d.look(ctx, d.Policy.Slots)
	d.hear(boot.Rebuild(d.facts.Seals, d.Policy), view)
	d.keepTrust(ctx)
}

// hear takes in what the boot loader says (rule 24).
func (d *Device) hear(s boot.State, view boot.LoaderView) {
	var heard boot.Heard
	if d.state, heard = boot.Hear(s, view, d.Policy); heard == boot.HeardForeign {
		d.note("somebody else has told the boot loader which slots to start: that is taken over")
	}
}

// commit makes s durable and current; false when it cannot be written (rule 20).
func (d *Device) commit(s boot.State) bool {
	if d.facts.ReadOnly {
		return false
	}
	next, err := d.Store.Commit(boot.Stamp(s, d.Clock.Now()))
	if d.untold = errors.Is(err, boot.ErrUntold); d.untold {
		d.note(err.Error())
		err = nil
	}
	if err != nil {
		d.note(fmt.Sprintf("the boot state cannot be written: %v", err))
		d.facts.ReadOnly = true
		return false
	}
	d.state = next
	return true
}

// binds is commit, and false too where s notes an install of which the boot loader could not be told: it may still start the
// target, which must not be touched then.
func (d *Device) binds(s boot.State) bool {
	return d.commit(s) && (!d.untold || s.Install.Target == "")
}

// look reads seals; whole reads slots whole.
func (d *Device) look(ctx context.Context, names []string) {
	for _, slot := range names {
		d.learn(slot, d.judgeGroup(ctx, slot, false))
	}
}

func (d *Device) whole(ctx context.Context, names []string) {
	for _, slot := range names {
		d.Say("reading slot " + d.Name(slot) + " whole")
		s := d.judgeGroup(ctx, slot, true)
		if s.Whole == boot.WholeUnread {
			s.Whole = boot.WholeDamaged // could not be read to the end
		}
		d.learn(slot, s)
	}
}

func (d *Device) learn(slot string, s boot.Seal) {
	if old := d.facts.Seals[slot]; s.Whole == boot.WholeUnread && old.Manifest == s.Manifest {
		s.Whole = old.Whole
	}
	d.facts.Seals[slot] = s
}

// settle brings the entries in line with the slots, reading what has to be read.
func (d *Device) settle(ctx context.Context) {
	for {
		s, look, attest := d.settled(d.state)
		switch {
		case len(look) > 0:
			d.look(ctx, look)
		case len(attest) > 0:
			d.whole(ctx, attest)
		default:
			d.state = s
			return
		}
	}
}

// try decides, commits and starts until a slot runs; false when rescue is all that is left.
func (d *Device) try(ctx context.Context) (Started, bool) {
	for ctx.Err() == nil {
		dec := boot.Decide(d.state, d.facts, d.Policy)
		switch dec.Action {
		case boot.Look:
			d.look(ctx, dec.Slots)
			continue
		case boot.Attest:
			d.whole(ctx, dec.Slots)
			continue
		}
		if !d.commit(dec.State) {
			if !d.facts.ReadOnly {
				continue
			}
			again := boot.Decide(d.state, d.facts, d.Policy)
			if again.Action == boot.Look || again.Action == boot.Attest {
				continue
			}
			dec = again
			d.state = dec.State
		}
		if dec.Action == boot.GoRescue {
			d.Say(status.RescueLine(dec.Reason))
			d.reason, d.facts.Retry = dec.Reason, false
			return Started{}, false
		}
		if dec.Action == boot.Restart {
			d.Say(status.RestartLine(d.Bootname(dec.Slot)))
			return Started{Restart: true, Slot: dec.Slot, State: d.state}, true
		}
		d.phase("commit")
		if f := dec.Fallback; f != nil {
			d.Say(status.FallbackLine(d.Bootname(f.From), d.Bootname(f.To), f.Reason))
			d.Report.Fallback = f.Reason.String()
		}
		retry := d.facts.Retry
		d.facts.Retry = false
		if s, ok := d.start(ctx, dec); ok {
			return s, true
		}
		if retry {
			return Started{}, false
		}
	}
	return Started{}, false
}

// start checks the seal of the slot whose try was just counted, and starts it. A failure is a new fact.
func (d *Device) start(ctx context.Context, dec boot.Decision) (Started, bool) {
	slot, e := dec.Slot, d.state.Entry(dec.Slot)
	if s := d.facts.Seals[slot]; s.Status != boot.SealValid {
		d.look(ctx, []string{slot})
	}
	d.phase("seal")
	seal := d.facts.Seals[slot]
	if seal.Status != boot.SealValid || seal.Manifest != e.Manifest || !d.admits(seal) {
		// What Absorb makes of it is the next decision's business, unless that could not tell the difference.
		if seal.Status == boot.SealValid && seal.Manifest == e.Manifest {
			d.facts.Failed[slot] = status.BelowFloor
		}
		return Started{}, false
	}
	d.Say(status.BootLine(d.state.Boot, d.Name(slot), e.Version, dec.Trial, int(e.Tries)))
	with := d.with(slot)
	if err := d.Slots.Start(slot, d.geometry[slot], with); err != nil {
		r := status.Unreadable
		var f *Fault
		if errors.As(err, &f) {
			r = f.Reason
		}
		d.note(fmt.Sprintf("slot %s did not start: %v reason=%s", d.Name(slot), err, r))
		d.facts.Failed[slot] = r
		return Started{}, false
	}
	return Started{Slot: slot, Trial: dec.Trial, Facts: d.geometry[slot], With: with, State: d.state}, true
}

// admits checks the seal itself against the floors: the record's copy of version and epoch is not signed.
func (d *Device) admits(s boot.Seal) bool {
	return d.state.Admits(s, d.Policy)
}

// outside looks at everything that is plugged in and installs the best bundle that is taken.
func (d *Device) outside(ctx context.Context, rescue bool) (installed bool) {
	sources := d.Outside.Sources(ctx)
	d.phase("sources")
	defer d.phase("update")
	return d.from(ctx, sources, rescue)
}

type offer struct {
	src Source
	Found
	have int64 // bytes of its images that lie in the slots already
}

// from installs the best bundle of the sources that is taken, and tells people how that went.
func (d *Device) from(ctx context.Context, sources []Source, rescue bool) bool {
	before := len(d.Report.Refused)
	d.reports, d.away = nil, nil
	installed := d.choose(ctx, sources, rescue)
	d.ended(ctx, installed, len(d.Report.Refused) > before)
	return installed
}

func (d *Device) choose(ctx context.Context, sources []Source, rescue bool) bool {
	offers := d.offers(ctx, sources, rescue)
	if len(offers) == 0 {
		return false
	}
	for _, o := range offers {
		if slot := boot.Holds(d.state, o.Offer, d.Policy); slot != "" && d.facts.Seals[slot].Status == boot.SealUnknown {
			d.look(ctx, []string{slot}) // it may need the bundle
		}
	}
	d.settle(ctx)
	// Of equals the first by name is taken, then by the name of its stick.
	sort.SliceStable(offers, func(i, j int) bool {
		return cmp.Or(strings.Compare(offers[i].Path, offers[j].Path), strings.Compare(offers[i].src.Name, offers[j].src.Name)) < 0
	})
	for said := false; len(offers) > 0; said = true {
		held := make([]boot.Offer, len(offers))
		for i, o := range offers {
			held[i] = o.Offer
		}
		best, verdicts := boot.Choose(d.state, held, rescue, d.Policy)
		for i, v := range verdicts {
			if !v.Take && !said {
				d.declines(offers[i], v)
			}
		}
		if best < 0 {
			return false
		}
		if d.install(ctx, offers[best], rescue) {
			return true
		}
		offers = slices.Delete(offers, best, best+1)
	}
	return false
}

// declines says why a bundle is not taken.
func (d *Device) declines(o offer, v boot.Verdict) {
	if v.Code != 0 {
		d.refuse(o.Path, v.Code, v.Why)
	} else {
		d.Say(o.Path + ": nothing to do: " + v.Why)
	}
	if o.src.Lone {
		d.judgeStaged(v.Code, v.Wait)
	}
}

// offers scans the sources.
func (d *Device) offers(ctx context.Context, sources []Source, rescue bool) []offer {
	var out []offer
	for _, src := range sources {
		if !rescue && d.state.Guarded(src.ID) {
			d.note(src.Name + " is left alone in this boot: it ended its reader too often")
			continue
		}
		if !src.Lone {
			d.step(Looking, src.Name, "")
		}
		a, err := d.scan(ctx, src)
		if err != nil {
			d.note(fmt.Sprintf("%s could not be looked at: %v", src.Name, err))
			d.state = boot.Suspect(d.state, src.ID)
			continue
		}
		if !src.Lone { // what is counted against a bundle only its install or its refusal clears
			d.state = boot.Clear(d.state, src.ID)
			if a.report != nil {
				d.reports = append(d.reports, report{src, *a.report})
			}
		}
		for _, r := range a.refused {
			d.refuse(r.Path, r.Code, withHint(r))
		}
		if src.Lone {
			d.foundStaged(a)
		}
		d.renewTrust(ctx, a.trust)
		for _, f := range a.found {
			d.Say(status.FoundLine(f.Path, f.Offer.Version, src.Name))
			f.Offer.Asked = src.Asked
			out = append(out, offer{src: src, Found: f})
		}
	}
	return out
}

func withHint(r Refusal) string {
	if r.Hint == "" {
		return r.Text
	}
	return r.Text + " (" + r.Hint + ")"
}

func (d *Device) refuse(file string, code int, why string) {
	d.Say(status.RefusedLine(code, file, why))
	d.Report.Refused = append(d.Report.Refused, status.Refused{File: file, Code: code, Text: why})
}

// target chooses where a bundle goes, reading slots whole where the rules ask for it.
func (d *Device) target(ctx context.Context, o boot.Offer) boot.TargetChoice {
	for {
		var unseen []string
		for _, slot := range d.Policy.Slots {
			if d.facts.Seals[slot].Status == boot.SealUnknown {
				unseen = append(unseen, slot)
			}
		}
		d.look(ctx, unseen)
		d.settle(ctx)
		t := boot.Target(d.state, d.facts, o, d.running, d.Policy)
		if len(t.Attest) == 0 || ctx.Err() != nil {
			return t
		}
		d.whole(ctx, t.Attest)
	}
}
