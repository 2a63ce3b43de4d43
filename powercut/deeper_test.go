package powercut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"lifeboat/boot"
	"lifeboat/boot/raw"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/version"
)

// key is what a verdict depends on.
func key(s crash.State) string {
	m, _ := s.Mark.(*Memory)
	if m == nil {
		m = &Memory{}
	}
	return fmt.Sprint(s.Image.Hash(), m.State.Sequence, m.Trials)
}

// TestNested cuts the recovery from a cut: every state that a cut leaves, and of what is written from there every state
// again. Epochs of a record or a seal are taken whole where -states allows, those of an image in samples.
func TestNested(t *testing.T) {
	k := newKit(t, nil)
	d, disk := one(k, k.bundle("2", 0, Healthy))
	s := scenario{"first install", d, disk, nil, Want{Version: "2", More: 4}, nil}
	limit := max(4, *states/80_000)
	if testing.Short() {
		limit = 3
	}
	inner := crash.Options{Limit: limit, Seed: 2}
	var seen sync.Map
	var generated, distinct atomic.Int64
	c := s.test(crash.Options{Limit: 2 * limit, Seed: 3})
	c.Check = func(first crash.State) error {
		rec := crash.Record(first.Image)
		mem, _ := first.Mark.(*Memory)
		w := d.Over(rec, mem)
		w.Settle(s.want)
		if err := w.Err(); err != nil {
			return err
		}
		var bad error
		rec.Trace().States(inner, func(second crash.State) bool {
			generated.Add(1)
			if _, old := seen.LoadOrStore(key(second), true); old {
				return true
			}
			distinct.Add(1)
			if err := d.Check(second, s.want); err != nil {
				bad = fmt.Errorf("then %s: %w", second, err)
			}
			return bad == nil
		})
		return bad
	}
	crash.Crash(t, c)
	t.Logf("depth 2: %d states, %d distinct", generated.Load(), distinct.Load())
}

// chain cuts a device again and again at random moments, with one boot between two cuts, and returns what is left.
func chain(d *Device, disk *crash.Image, mem *Memory, depth int, rng *rand.Rand, o crash.Options, loose bool) (*crash.Image, *Memory, []string, error) {
	var how []string
	for range depth {
		rec := crash.Record(disk)
		w := d.Over(rec, mem)
		w.Loose = loose
		w.Boot(status.None)
		if err := w.Err(); err != nil {
			return nil, nil, how, err
		}
		s := rec.Trace().Pick(rng, o)
		how = append(how, s.String())
		disk = s.Image
		if m, ok := s.Mark.(*Memory); ok {
			mem = m
		}
	}
	return disk, mem, how, nil
}

// TestRandomDepth cuts up to eight boots in a row, then leaves the device alone.
func TestRandomDepth(t *testing.T) {
	k := newKit(t, nil)
	d, disk := one(k, k.bundle("2", 0, Healthy))
	k = newKit(t, nil)
	falls, fallDisk := one(k, k.bundle("2", 0, Panics))
	n := max(20, *states/5000)
	if testing.Short() {
		n = 20
	}
	for _, s := range []scenario{
		{"healthy update", d, disk, nil, Want{Version: "2", More: 40}, nil},
		{"update that falls back", falls, fallDisk, nil, Want{Version: "1", More: 8}, nil},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(n) {
				rng := rand.New(rand.NewPCG(4, seed))
				image, mem, how, err := chain(s.device, s.start, nil, 2+rng.IntN(7), rng, crash.Options{}, false)
				if err == nil {
					err = s.device.Check(crash.State{Image: image, Mark: mem}, s.want)
				}
				if err != nil {
					t.Fatalf("seed %d: %q: %v", seed, how, err)
				}
			}
		})
	}
}

// Fifty cuts in a row while a system is on trial: it is not booted for ever, nor is the good one lost.
func TestFiftyCuts(t *testing.T) {
	k := newKit(t, nil)
	d, disk := one(k, k.bundle("2", 0, Silent))
	rec := crash.Record(disk)
	w := d.Over(rec, nil)
	w.Boot(status.None) // installs and tries
	k.must(w.Err())
	for seed := range uint64(4) {
		image, mem, how, err := chain(d, rec.Image(), w.Known(), 50, rand.New(rand.NewPCG(5, seed)), crash.Options{}, false)
		if err == nil {
			err = d.Check(crash.State{Image: image, Mark: mem}, Want{Version: "1", More: 4})
		}
		if err != nil {
			t.Errorf("seed %d: %q: %v", seed, how, err)
		}
	}
}

// A cut may spoil sectors around the one that is being written: erase blocks, paired pages. What lies further apart than
// that keeps all its promises.
func TestCollateral(t *testing.T) {
	k := newKit(t, nil)
	d, disk := updates(k, k.bundle("3", 0, Healthy))
	for _, distance := range []int64{64 << 10, 4 << 20} {
		s := scenario{fmt.Sprintf("install, %d KiB around a write are lost", distance>>10), d, disk, nil, Want{Version: "3", Collateral: true}, nil}
		crash.Crash(t, s.test(crash.Options{Collateral: distance, Limit: 300, Seed: 6}))
	}
}

// A disk that says it flushed and did not: no promise is made, and this is what is left of them. Only what was signed
// runs, and some confirmed system comes up.
func TestLyingDisk(t *testing.T) {
	k := newKit(t, nil)
	d, disk := updates(k, k.bundle("3", 0, Healthy))
	s := scenario{"install on a disk that lies about flushes", d, disk, nil, Want{Version: "*", Loose: true, More: 2}, nil}
	c := s.test(crash.Options{Lying: true, Random: max(200, *states/2000), Limit: max(200, *states/2000), Seed: 7})
	if testing.Short() {
		c.Random, c.Limit = 100, 100
	}
	crash.Crash(t, c)
	// What is lost is measured: how many of these states break a law that holds on an honest disk.
	strict := s
	strict.want = Want{Version: "3"}
	broken := map[string]int{}
	var mu sync.Mutex
	n := 0
	c.Check = func(c crash.State) error {
		err := d.Check(c, strict.want)
		mu.Lock()
		defer mu.Unlock()
		n++
		for _, l := range []Law{I1, I2, I3, I4, I5, I6, I7, I8, I9, I10} {
			if err != nil && contains([]string{err.Error()}, string(l)) {
				broken[string(l)]++
			}
		}
		return nil
	}
	if _, err := c.Run(); err != nil {
		t.Fatal(err)
	}
	t.Logf("of %d states with lost flushes these break a law of an honest disk: %v", n, broken)
}

// TestNewestLost loses the newest copy of the record, or both, on top of a cut: what was forbidden stays forbidden with
// one copy (rule 3), and a confirmed system comes up with none. Row 112 of the bad inputs.
func TestNewestLost(t *testing.T) {
	k := newKit(t, map[string]string{"fallback policy": "secure"})
	d, disk := updates(k, k.bundle("3", 1, Healthy))
	s := scenario{"install and newest record lost", d, disk, nil, Want{Version: "*", Loose: true, More: 2}, nil}
	c := s.test(crash.Options{Limit: 150})
	c.Check = func(c crash.State) error {
		mem, _ := c.Mark.(*Memory)
		part := d.Part("state")
		copies := []int64{part.Off, part.Off + part.Len - boot.RecordSize}
		newest, found := -1, uint64(0)
		for i, off := range copies {
			b := make([]byte, boot.RecordSize)
			c.Image.ReadAt(b, off)
			if st, err := boot.Decode(b); err == nil && st.Sequence >= found {
				newest, found = i, st.Sequence
			}
		}
		if newest < 0 {
			return errors.New("no record is valid")
		}
		lost := c.Image.Clone()
		lost.WriteAt(make([]byte, boot.RecordSize), copies[newest])
		// A cut that tears the other copy at the same time leaves none: two faults.
		if st, err := d.State(lost); mem != nil && !errors.Is(err, boot.ErrLost) {
			f := mem.State.Floors
			if err != nil || version.Compare(st.Floors.Version, f.Version) < 0 || st.Floors.Epoch < f.Epoch || st.Floors.Time < f.Time {
				return fmt.Errorf("%s: floors %+v after %+v were answered, %v", I5, st.Floors, f, err)
			}
			for _, e := range mem.State.Slots {
				if now := st.Entry(e.Slot); e.Excluded && now.Manifest == e.Manifest && !now.Excluded {
					return fmt.Errorf("%s: %s is not excluded any more", I5, e.Slot)
				}
			}
		}
		if err := d.Check(crash.State{Image: lost}, s.want); err != nil {
			return fmt.Errorf("newest copy lost: %w", err)
		}
		both := lost.Clone()
		both.WriteAt(make([]byte, boot.RecordSize), copies[1-newest])
		if err := d.Check(crash.State{Image: both}, s.want); err != nil {
			return fmt.Errorf("both copies lost: %w", err)
		}
		return nil
	}
	crash.Crash(t, c)
}

// TestFaults lets the k-th operation on the disk fail, once or from then on: the device boots a confirmed system or waits
// in rescue while that lasts, and is updated when it is over.
func TestFaults(t *testing.T) {
	k := newKit(t, nil)
	d, disk := updates(k, k.bundle("3", 0, Healthy))
	for _, kind := range []struct {
		name string
		kind crash.Kind
	}{{"write", crash.Write}, {"flush", crash.Flush}, {"read", crash.Read}} {
		for _, once := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s once=%t", kind.name, once), func(t *testing.T) {
				t.Parallel()
				for n := 0; ; n++ {
					if kind.kind == crash.Read && n > 20 {
						n += n / 6
					}
					hit := false
					rec := crash.Record(disk)
					rec.Fault = func(k crash.Kind, i int, _, _ int64) error {
						if k == kind.kind && (i == n || i > n && !once) {
							hit = true
							return crash.ErrInjected
						}
						return nil
					}
					w := d.Over(rec, nil)
					w.Loose = kind.kind == crash.Read // what cannot be read counts as damaged or lost
					end := status.None
					for range 3 {
						_, end, _ = w.Boot(end)
					}
					if err := w.Err(); err != nil && !errors.Is(err, crash.ErrInjected) && !contains([]string{err.Error()}, crash.ErrInjected.Error()) {
						t.Fatalf("%s %d fails: %v", kind.name, n, err)
					}
					if !hit {
						t.Logf("%d operations", n)
						return
					}
					if kind.kind != crash.Read {
						// The same, and a cut.
						c := crash.Test{Name: "fault and cut", Options: crash.Options{Limit: 5}}
						c.Check = func(s crash.State) error { return d.Check(s, Want{Version: "3", More: 6}) }
						if res := c.Judge(rec.Trace()); len(res.Failures) > 0 {
							t.Fatalf("%s %d failed, and a cut: %s", kind.name, n, res.Failures[0])
						}
					}
					after := crash.State{Image: rec.Image(), Mark: w.Known()}
					if err := d.Check(after, Want{Version: "3", More: 6, Loose: w.Loose}); err != nil {
						t.Fatalf("%s %d failed, and now: %v", kind.name, n, err)
					}
				}
			})
		}
	}
}

// A reset ends a boot after its k-th operation: nothing more is done, and the disk keeps its cache. The next boot sees
// what is not durable yet; then the power is cut.
func TestReset(t *testing.T) {
	k := newKit(t, nil)
	d, disk := updates(k, k.bundle("3", 0, Healthy))
	limit := 12
	if testing.Short() {
		limit = 4
	}
	states := 0
	for n, hit := 0, true; hit; n++ {
		hit = false
		rec := crash.Record(disk)
		ops := 0
		rec.Fault = func(k crash.Kind, _ int, _, _ int64) error {
			if k != crash.Read {
				ops++
			}
			if ops > n {
				hit = true
				return crash.ErrInjected
			}
			return nil
		}
		ended := d.Over(rec, nil)
		ended.Boot(status.None)
		rec.Fault = nil
		w := d.Over(rec, ended.Known())
		w.Boot(status.None)
		if err := w.Err(); err != nil {
			t.Fatalf("reset after operation %d: %v", n, err)
		}
		c := crash.Test{Name: fmt.Sprintf("reset after operation %d, and a cut", n), Options: crash.Options{Limit: limit}}
		c.Check = func(s crash.State) error { return d.Check(s, Want{Version: "3", More: 6}) }
		res := c.Judge(rec.Trace())
		states += res.Distinct
		for _, f := range res.Failures {
			t.Fatal(f)
		}
	}
	t.Logf("%d distinct states", states)
}

// A disk that says it wrote and did not, for a write to a slot: reading back notices.
func TestLostWrite(t *testing.T) {
	for _, changes := range []map[string]string{nil, grouped(nil)} {
		lostWrite(t, newKit(t, changes))
	}
}

func lostWrite(t *testing.T, k *kit) {
	t.Helper()
	d, disk := updates(k, k.bundle("3", 0, Healthy))
	for n, hit := 0, true; hit; n++ {
		hit = false
		rec := crash.Record(disk)
		rec.Lost = func(i int, off, length int64) bool {
			slot, _ := d.allowed(off, length)
			hit = hit || i >= n && slot != ""
			return i == n && slot != ""
		}
		w := d.Over(rec, nil)
		w.Boot(status.None)
		if err := w.Err(); err != nil {
			t.Fatalf("write %d is lost: %v", n, err)
		}
		if err := d.Check(crash.State{Image: rec.Image(), Mark: w.Known()}, Want{Version: "3", More: 4}); err != nil {
			t.Fatalf("write %d was lost: %v", n, err)
		}
	}
}

// The disk is shorter all of a sudden: what lies behind the middle of the target can be reached no more.
func TestShrunk(t *testing.T) {
	k := newKit(t, nil)
	d, disk := one(k, k.bundle("2", 0, Healthy))
	part := d.Part("rootfs.1")
	for n := 0; ; n++ {
		hit := false
		rec := crash.Record(disk)
		writes := 0
		rec.Fault = func(k crash.Kind, i int, off, length int64) error {
			if k == crash.Write {
				writes = i
			}
			if writes >= n && off+length > part.Off+imageSize/2 {
				hit = true
				return crash.ErrInjected
			}
			return nil
		}
		w := d.Over(rec, nil)
		w.Loose = true
		w.Settle(Want{Version: "*", More: 4})
		if err := w.Err(); err != nil {
			t.Fatalf("shrunk after %d writes: %v", n, err)
		}
		if !hit {
			t.Logf("%d writes", n)
			return
		}
	}
}

// The record wears: ten thousand updates of it, and a cut in any of the last ones loses nothing.
func TestRecordWear(t *testing.T) {
	k := newKit(t, nil)
	d, disk := updates(k)
	rec := crash.Record(disk)
	store, err := raw.New(statePart(d, rec))
	k.must(err)
	s, _, err := store.Load()
	k.must(err)
	const most, looked = 10_000, 20
	for n := range most {
		if n == most-looked {
			rec = crash.Record(rec.Image())
			store, err = raw.New(statePart(d, rec))
			k.must(err)
			if s, _, err = store.Load(); err != nil {
				t.Fatal(err)
			}
		}
		s, _ = boot.Begin(s, status.None, true, d.Policy())
		s, err = store.Commit(s)
		k.must(err)
		rec.Mark(&Memory{State: s})
	}
	if s.Boot < most {
		t.Errorf("boot %d", s.Boot)
	}
	c := crash.Test{Name: "record wear", Check: func(c crash.State) error { return d.Check(c, Want{Version: "2"}) }}
	res := c.Judge(rec.Trace())
	t.Log(res)
	for _, f := range res.Failures {
		t.Error(f)
	}
}

func statePart(d *Device, on disk.Device) disk.Device { return d.section(on, "state") }

// Every law can be broken, and is then named.
func TestLawsCanBeBroken(t *testing.T) {
	k := newKit(t, nil)
	d, disk := updates(k)
	newest := d.Policy().Slots[1]
	known := func() *Memory {
		s, err := d.State(disk)
		k.must(err)
		return &Memory{State: s}
	}
	started := func(w *Watch, slot string) *Boot {
		b := &Boot{Slot: slot, Trial: true}
		m, _ := d.intact(disk, slot)
		b.Started.Facts.Manifest = m
		return b
	}
	for law, breaks := range map[Law]func(w *Watch){
		I1: func(w *Watch) { w.ran(&Boot{Slot: newest}) },
		I2: func(w *Watch) { w.now.Floors.Version = "99"; w.ran(started(w, newest)) },
		I3: func(w *Watch) { w.WriteAt([]byte{1}, d.Part(newest).Off) },
		I4: func(w *Watch) {
			w.now.Slots[0].Good, w.now.Slots[1].Good = false, false
			for range 4 {
				w.starts(newest)
			}
		},
		I5: func(w *Watch) { s := w.now; s.Boot--; w.committed(s) },
		I6: func(w *Watch) {
			for m, sys := range d.Systems {
				sys.Behaviour = Silent
				w.d.Systems[m] = sys
			}
			w.Settle(Want{Version: "2"})
		},
		I7: func(w *Watch) { w.Settle(Want{Version: "3"}) },
		I8: func(w *Watch) { w.WriteAt([]byte{1}, 0) },
		I9: func(w *Watch) {
			w.rec.WriteAt(make([]byte, d.Part("state").Len), d.Part("state").Off)
			w.found()
		},
		I10: func(w *Watch) { w.Settle(Want{Version: "3"}) },
	} {
		dd := *d
		dd.Systems = map[boot.Hash]System{}
		for m, sys := range d.Systems {
			dd.Systems[m] = sys
		}
		image := disk
		if law == I10 {
			gone := disk.Clone()
			for _, slot := range d.Policy().Slots {
				gone.WriteAt(make([]byte, 4096), d.Part(slot).Off+d.Part(slot).Len-slots.SealSize)
			}
			image = gone
		}
		w := dd.Over(crash.Record(image), known())
		breaks(w)
		if err := w.Err(); err == nil || !contains([]string{err.Error()}, string(law)) {
			t.Errorf("%s: %v", law, err)
		}
	}
}
