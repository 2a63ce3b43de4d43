package powercut

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"lifeboat/boot"
	"lifeboat/boot/raw"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/status"
	"lifeboat/version"
)

// Law is one of the promises of docs/powercut.md that are asserted in every state.
type Law string

const (
	I1  Law = "I1: only bytes equal to a signed image are booted"
	I2  Law = "I2: what is booted is at or above the floors"
	I3  Law = "I3: an install never changes a slot that is not its target, nor the only intact one that was ever good"
	I4  Law = "I4: an unconfirmed system is booted at most boot-attempts times a round while another slot qualifies"
	I5  Law = "I5: what was answered stays: counters and floors never go back"
	I6  Law = "I6: without further cuts a confirmed system runs soon"
	I7  Law = "I7: without further cuts the update completes, or is refused with a reason"
	I8  Law = "I8: nothing is written that is not ours"
	I9  Law = "I9: the record is readable after every cut"
	I10 Law = "I10: no state needs a human"
	I11 Law = "I11: a slot's system is started by that slot's kernel"
	I12 Law = "I12: the boot loader that is started is whole"
)

// Memory is what whoever watches a device knows at one moment: what was answered, what was seen to run. It is the mark of
// a trace, and is never changed.
type Memory struct {
	State  boot.State // as the last commit that was answered left it
	Trials map[boot.Hash]int
	Events string // what became true, for people
}

// Watch sees all that a device does and judges it by the laws. It stands between the device and its disk.
type Watch struct {
	d    *Device
	rec  *crash.Recorder
	mem  Memory
	now  boot.State // as it was seen last, answered or not
	errs []error

	looked  bool // at what the seals vouch for
	staging bool // the running system writes to the staging partition

	// Collateral is set where a cut may spoil neighbours of what was being written, as the image beside a seal; Decayed
	// where slots lose content by themselves; Loose where the disk does what no cut may do (flushes that were lies,
	// operations that fail): the record may then be lost or old, too.
	Collateral, Decayed, Loose bool
}

// Over begins to watch what is done to a disk. mem is what is known from before; nil: what
// the disk says.
func (d *Device) Over(rec *crash.Recorder, mem *Memory) *Watch {
	w := &Watch{d: d, rec: rec}
	if mem == nil {
		mem = &Memory{}
		mem.State, _ = d.State(rec.Peek())
	}
	w.mem, w.now = *mem, mem.State
	rec.Mark(mem)
	return w
}

func (w *Watch) broken(l Law, format string, args ...any) {
	w.errs = append(w.errs, fmt.Errorf("%s: %s", l, fmt.Sprintf(format, args...)))
}

// Err returns what was wrong so far.
func (w *Watch) Err() error { return errors.Join(w.errs...) }

// Size, ReadAt, Flush and WriteAt make Watch the device's disk.
func (w *Watch) Size() int64                             { return w.rec.Size() }
func (w *Watch) ReadAt(p []byte, off int64) (int, error) { return w.rec.ReadAt(p, off) }
func (w *Watch) Flush() error                            { return w.rec.Flush() }

func (w *Watch) WriteAt(p []byte, off int64) (int, error) {
	p0, n := w.d.parts[stagingPart], int64(len(p))
	s := w.now.Staged
	switch slot, ok := w.d.allowed(off, n); {
	case w.staging && p0.Len > 0 && off >= p0.Off && off+n <= p0.Off+p0.Len:
		if at := p0.Off + s.Offset; !s.None() && off < at+s.Size && off+n > at && !w.Loose {
			w.broken(I3, "%d bytes at %d in what is staged", n, off)
		}
	case !ok && !w.d.mayWriteLoader(w.rec.Peek(), off, n):
		w.broken(I8, "%d bytes at %d", len(p), off)
	case slot != "" && w.now.Install.Target != slot && !w.Loose:
		w.broken(I3, "%d bytes at %d in %s; the noted target is %q", len(p), off, slot, w.now.Install.Target)
	}
	return w.rec.WriteAt(p, off)
}

var _ disk.Device = (*Watch)(nil)

// Known returns what is known now.
func (w *Watch) Known() *Memory {
	m := w.mem
	m.Trials = maps.Clone(w.mem.Trials)
	return &m
}

// mark makes what is known now part of the trace.
func (w *Watch) mark(event string) {
	w.mem.Events = event
	w.rec.Mark(w.Known())
}

// committed is told about every commit that was answered.
func (w *Watch) committed(s boot.State) {
	w.learn(s)
	w.mem.State = s
	w.mark(fmt.Sprintf("record %d", s.Sequence))
}

// learn takes a record for known and judges what changed. It may not be durable yet: after a reset, without a cut, a
// disk still shows what it only has in its cache.
func (w *Watch) learn(s boot.State) {
	old := w.now
	if f, g := s.Floors, old.Floors; version.Compare(f.Version, g.Version) < 0 || f.Epoch < g.Epoch || f.Time < g.Time || s.Boot < old.Boot {
		w.broken(I5, "floors %+v boot %d after %+v boot %d", f, s.Boot, g, old.Boot)
	}
	trials := map[boot.Hash]int{}
	for _, e := range s.Slots {
		// More tries than before are another round.
		if before := old.Entry(e.Slot); before.Manifest == e.Manifest && e.Tries <= before.Tries {
			trials[e.Manifest] = w.mem.Trials[e.Manifest]
		}
	}
	for _, e := range s.Slots {
		// What a record vouches for anew is there.
		if before := old.Entry(e.Slot); e.Manifest != before.Manifest && !e.Empty() && e.Reason == status.None && !w.Loose {
			if m, ok := w.d.intact(w.rec.Peek(), e.Slot); !ok || m != e.Manifest {
				w.broken(I1, "record %d vouches for version %s in %s, which is not there", s.Sequence, e.Version, e.Slot)
			}
		}
	}
	if s.Staged != old.Staged && !s.Staged.None() {
		w.whole(s)
	}
	w.now, w.mem.Trials = s, trials
	if t := s.Install.Target; t != "" && old.Install != s.Install {
		w.guard(s, t)
	}
}

// whole asserts that what a record says is staged is there, where it is known what that is.
func (w *Watch) whole(s boot.State) {
	sum, known := w.d.Bundles[s.Staged.Manifest]
	if !known || w.Loose || w.Decayed || w.Collateral {
		return
	}
	b := make([]byte, s.Staged.Size)
	if _, err := w.d.section(w.rec.Peek(), stagingPart).ReadAt(b, s.Staged.Offset); err != nil || sha256.Sum256(b) != sum {
		w.broken(I1, "record %d says that version %s is staged, which is not there: %v", s.Sequence, s.Staged.Version, err)
	}
}

// Stage is `bootcount stage` in the running system, Unstage `bootcount unstage`.
func (w *Watch) Stage(bundle Medium, replace bool) error {
	w.staging = true
	defer func() { w.staging = false }()
	return w.d.Stage(w, bundle, replace, w.committed)
}

func (w *Watch) Unstage() error {
	w.staging = true
	defer func() { w.staging = false }()
	return w.d.Unstage(w, w.committed)
}

// guard asserts that a target may be overwritten.
func (w *Watch) guard(s boot.State, target string) {
	e := s.Entry(target)
	if m, ok := w.d.intact(w.rec.Peek(), target); !e.Good || !ok || m != e.Manifest {
		return
	}
	for _, slot := range w.d.others(target) {
		o := s.Entry(slot)
		m, ok := w.d.intact(w.rec.Peek(), slot)
		if ok && m == o.Manifest && s.Admits(boot.Seal{Version: o.Version, Epoch: o.Epoch}, w.d.policy) {
			return
		}
	}
	w.broken(I3, "%s is to be overwritten: %s", target, names(s))
}

// Boot boots the device once and lets the system that comes up do what it does. It returns how the boot ended as far as
// the next one can know, and whether a healthy system ran and said good.
func (w *Watch) Boot(end status.Reason) (b *Boot, next status.Reason, well bool) {
	w.found()
	for restarts := 0; ; restarts++ {
		if b, next, well = w.once(end); !b.Restart {
			return b, next, well
		}
		if end = status.None; restarts > 4 {
			w.broken(I10, "the device restarts again and again: %s", names(w.now))
			return b, next, false
		}
	}
}

// once is one start of the machine.
func (w *Watch) once(end status.Reason) (b *Boot, next status.Reason, well bool) {
	w.loaders()
	b, err := w.d.Boot(w, end, Observer{Committed: w.committed, Outside: w.outside, Starts: w.starts})
	if err != nil {
		w.broken(I10, "%v", err)
		return &Boot{Rescue: true}, status.None, false
	}
	if len(b.Damaged) > 0 && !w.Loose && !w.Decayed {
		w.broken(I1, "the seal of %v vouches for what is not there", b.Damaged)
	}
	if b.Rescue || b.Restart {
		return b, status.None, false
	}
	if b.Kernel != "" && b.Kernel != b.Slot {
		w.broken(I11, "%s was started by the kernel of %s", b.Slot, b.Kernel)
	}
	next, well = w.ran(b)
	return b, next, well
}

// found compares the record on the disk with what had been answered before. From now on what was found is known.
func (w *Watch) found() {
	for _, slot := range w.d.policy.Slots {
		if w.Loose || w.Decayed || w.Collateral || w.looked {
			break // once: what is written from here on is watched
		}
		if _, sealed := w.d.sealed(w.rec.Peek(), slot); sealed {
			if _, ok := w.d.intact(w.rec.Peek(), slot); !ok {
				w.broken(I1, "the seal of %s vouches for what is not there", slot)
			}
		}
	}
	w.looked = true
	s, err := w.d.State(w.rec.Peek())
	a := w.mem.State
	switch {
	case w.Loose:
		w.mem.State, w.now = s, s
	case a.Sequence == 0:
		w.now = s
	case err != nil:
		w.broken(I9, "after record %d was answered: %v", a.Sequence, err)
	case s.Sequence < a.Sequence:
		w.broken(I5, "record %d was found after %d was answered", s.Sequence, a.Sequence)
	case s.Sequence == a.Sequence && !same(s, a):
		w.broken(I5, "record %d is not what was answered", s.Sequence)
	case s.Sequence > w.now.Sequence:
		w.learn(s)
	}
	if !s.Staged.None() && err == nil {
		w.whole(s)
	}
	if store, err := raw.New(w.d.section(w.rec.Peek(), "state")); err == nil && !w.Loose && !w.Decayed {
		if words, ok := store.LoadWords(); ok && string(words.Text) != lastWords {
			w.broken(I9, "the kernel's last words are %q", words.Text)
		}
		for _, file := range []boot.Hash{s.Trust.File, s.Trust.Pending} {
			if _, err := store.LoadTrust(file); file != (boot.Hash{}) && err != nil {
				w.broken(I9, "%v", err)
			}
		}
	}
}

func same(a, b boot.State) bool {
	x, err1 := a.Encode()
	y, err2 := b.Encode()
	return err1 == nil && err2 == nil && slices.Equal(x, y)
}

// outside is told that bytes from outside are about to be read: the record says so, in case they end the boot.
func (w *Watch) outside() {
	if w.now.Mark == boot.MarkNone && !w.Loose {
		w.broken(I9, "a stick is read, and the record does not say so")
	}
}

// starts is told that a slot is about to be opened: from now on its system may have run.
func (w *Watch) starts(slot string) {
	s := w.now
	m, ok := w.d.sealed(w.rec.Peek(), slot)
	e := s.Entry(slot)
	if !ok || e.Good && e.Manifest == m {
		return
	}
	w.mem.Trials = maps.Clone(w.mem.Trials)
	if w.mem.Trials == nil {
		w.mem.Trials = map[boot.Hash]int{}
	}
	w.mem.Trials[m]++
	others := slices.ContainsFunc(s.Slots, func(o boot.Entry) bool { return o.Slot != slot && s.Qualifies(o, w.d.policy) })
	if n := w.mem.Trials[m]; others && n > int(w.d.policy.Attempts)+int(w.d.policy.PowerLosses) {
		w.broken(I4, "version %s is started %d times in one round", w.d.Systems[m].Version, n)
	}
	w.mark("version " + w.d.Systems[m].Version + " is started")
}

// ran judges what was started, and is its system.
func (w *Watch) ran(b *Boot) (next status.Reason, well bool) {
	m := boot.Hash(b.Started.Facts.Manifest)
	sys, known := w.d.Systems[m]
	if now, ok := w.d.intact(w.rec.Peek(), b.Slot); !known || !ok || now != m {
		w.broken(I1, "%s was started, version %s", b.Slot, b.Started.Facts.Version)
		return status.None, false
	}
	if s := w.now; !s.Admits(boot.Seal{Version: sys.Version, Epoch: sys.Epoch}, w.d.policy) {
		w.broken(I2, "version %s epoch %d was started, floors %+v", sys.Version, sys.Epoch, s.Floors)
	}
	w.mark("version " + sys.Version + " runs")
	switch sys.Behaviour {
	case Panics:
		return status.Panic, false
	case Hangs:
		return status.Watchdog, false
	case Leaves:
		if err := w.d.SayEnded(w, b.Slot, w.committed); err != nil && b.Started.Trial {
			w.broken(I9, "bootcount ended: %v", err)
		}
		return status.None, false
	case SaysBad:
		if err := w.d.SayBad(w, b.Slot, w.committed); err != nil && !errors.Is(err, boot.ErrOnlyGood) {
			w.broken(I10, "bootcount bad: %v", err)
		}
		return status.None, false
	case Healthy:
		err := w.d.SayGood(w, b.Slot, w.committed)
		if err != nil && !w.Loose {
			w.broken(I10, "bootcount good: %v", err)
		}
		return status.None, err == nil
	}
	return status.None, false
}

// Want is what has to become of a device when nothing disturbs it any more.
type Want struct {
	Version string // that runs and is confirmed in the end; "*": any
	// Or is a version that is all right too: the update was refused with a reason, and this one goes on.
	Or string
	// Rescue says that rescue is all right, where nothing is left that could be started.
	Rescue bool
	// More is how many boots may pass beyond those of law I6, where the update has to wait for its turn (rules 13, 15).
	More int
	// As in Watch.
	Collateral, Decayed, Loose bool
	Intact                     []string // slots that hold in the end what their seals say
	Loaders                    bool     // the boot loaders that are started in the end are of Version
}

// most is how many boots a device may need without further cuts (law I6).
func (d *Device) most(want Want) int {
	return (int(d.policy.Attempts)+int(d.policy.PowerLosses))*len(d.policy.Slots) + 2 + want.More
}

// Settle boots the device until it is as wanted, at most as often as law I6 allows.
func (w *Watch) Settle(want Want) (boots int) {
	w.Loose, w.Decayed, w.Collateral = w.Loose || want.Loose, w.Decayed || want.Decayed, w.Collateral || want.Collateral
	end := status.None
	last, ran := "", false
	refused := false
	for boots = 1; boots <= w.d.most(want); boots++ {
		b, next, well := w.Boot(end)
		if len(w.errs) > 0 {
			return boots
		}
		end = next
		refused = refused || len(b.Report.Refused) > 0
		switch {
		case b.Rescue && want.Rescue:
			return boots
		case b.Rescue:
			w.broken(I10, "the device is in rescue: %s; %q", names(w.now), b.Lines)
			return boots
		case well:
			last, ran = b.Started.Facts.Version, true
			if slices.ContainsFunc(want.Intact, func(slot string) bool { _, ok := w.d.intact(w.rec.Peek(), slot); return !ok }) {
				continue
			}
			for _, l := range w.d.Config.Loaders() {
				if v, err := w.d.StartedLoader(w.rec.Peek(), l.Name); want.Loaders && last == want.Version && v != last {
					w.broken(I7, "version %s runs, and the boot loader of %s would be started (%v)", last, v, err)
				}
			}
			if want.Version == "*" || last == want.Version || want.Or != "" && last == want.Or && refused {
				return boots
			}
		}
	}
	if !ran {
		w.broken(I6, "no confirmed system after %d boots: %s", boots-1, names(w.now))
	} else {
		w.broken(I7, "version %s runs after %d boots instead of %s: %s", last, boots-1, want.Version, names(w.now))
	}
	return boots
}

// Check is the verdict on what a cut left: the device boots by itself, lawfully, until it is as wanted.
func (d *Device) Check(s crash.State, want Want) error {
	mem, _ := s.Mark.(*Memory)
	w := d.Over(crash.Record(s.Image), mem)
	w.Settle(want)
	if err := w.Err(); err != nil || mem == nil || len(mem.State.Slots) == 0 || d.Stick == nil || want.Loose || want.Decayed {
		return err
	}
	// What was installed needs its stick no more, unless cuts use up its tries.
	if e := mem.State.Slots[0]; !e.Good && e.Tries < 2 || e.Version != want.Version || e.Reason != status.None || mem.State.Install.Target != "" || e.Excluded {
		return nil
	}
	alone := *d
	alone.Stick = nil
	w = alone.Over(crash.Record(s.Image), mem)
	w.Settle(want)
	if err := w.Err(); err != nil {
		return fmt.Errorf("without the stick: %w", err)
	}
	return nil
}
