package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/update"
)

// staged is a device with a staging partition, no USB, and system 1 in slot A, confirmed.
func staged(t *testing.T) (*kit, *Device, *crash.Image) {
	k := newKit(t, map[string]string{"staging device": "PARTLABEL=staging"})
	d, disk := one(k)
	d.NoSource = true
	return k, d, disk
}

// file is a bundle to be staged.
func (k *kit) file(name string) Medium {
	k.t.Helper()
	b, err := os.ReadFile(name)
	k.must(err)
	m := disk.NewMemory(int64(len(b)))
	_, err = m.WriteAt(b, 0)
	k.must(err)
	return m
}

// stagingScenarios stage, replace and take back, and boot what is staged. Whatever a cut leaves, the device goes on with
// what the last record that was answered says, and staging the same again leads to the end.
func stagingScenarios(t *testing.T) (all []scenario) {
	// The check of a state: what becomes of it by itself, and of it when the bundle is staged again.
	check := func(d *Device, bundle Medium, version string) func(c crash.State) error {
		return func(c crash.State) error {
			mem, _ := c.Mark.(*Memory)
			w := d.Over(crash.Record(c.Image), mem)
			w.found()
			want := Want{Version: "*"}
			if s := w.now.Staged; !s.None() {
				want.Version = s.Version
			} else if len(w.now.Slots) > 0 && !w.now.Slots[0].Good && w.now.Slots[0].Tries > 0 {
				want.Version = w.now.Slots[0].Version // it was installed
			}
			w.Settle(want)
			if w.Err() != nil || w.now.Slots[0].Version == version {
				return w.Err()
			}
			if err := w.Stage(bundle, false); err != nil {
				return fmt.Errorf("stage again: %w", err)
			}
			w.Settle(Want{Version: version})
			return w.Err()
		}
	}
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	{
		k, d, disk := staged(t)
		two := k.file(k.bundle("2", 0, Healthy))
		all = append(all, scenario{name: "staged and installed", device: d, start: disk, check: check(d, two, "2"), run: func(w *Watch) {
			must(w.Stage(two, false))
			w.Settle(Want{Version: "2"})
			if !w.now.Staged.None() {
				t.Error("it is installed, and still staged")
			}
		}})

		// From where a cut left it half written.
		half := crash.Record(disk)
		w := d.Over(half, nil)
		w.staging = true
		half.Fault = func(k crash.Kind, n int, off, _ int64) error {
			if k == crash.Write && n > 0 && off > d.Part("staging").Off+1<<20 {
				return crash.ErrInjected
			}
			return nil
		}
		b := make([]byte, two.Size()/2)
		two.ReadAt(b, 0)
		_ = w.d.Stage(w, newMedium(t, b, two.Size()), false, w.committed)
		half.Fault = nil
		all = append(all, scenario{name: "staging goes on", device: d, start: half.Image(), check: check(d, two, "2"), run: func(w *Watch) {
			must(w.Stage(two, false))
		}})

		three := k.file(k.bundle("3", 0, Healthy))
		full := crash.Record(disk)
		w = d.Over(full, nil)
		must(w.Stage(two, false))
		waiting := full.Image()
		all = append(all, scenario{name: "what is staged is replaced", device: d, start: waiting, check: check(d, three, "3"), run: func(w *Watch) {
			if err := w.Stage(three, false); !errors.Is(err, update.ErrStaged) {
				t.Errorf("staged over what is staged: %v", err)
			}
			must(w.Stage(three, true))
			w.Settle(Want{Version: "3"})
		}})
		all = append(all, scenario{name: "what is staged is taken back", device: d, start: waiting, check: check(d, two, "2"), run: func(w *Watch) {
			must(w.Unstage())
			w.Settle(Want{Version: "1"})
		}})
	}
	{
		k, d, disk := staged(t)
		two := k.file(k.bundle("2", 0, Healthy))
		poison := *d
		poison.BadWorker = true
		w := (&poison).Over(crash.Record(disk), nil)
		must(w.Stage(two, false))
		start := w.rec.Image()
		// The bundle's installer may come to its end in the check: then it is installed when its turn has come.
		all = append(all, scenario{name: "what is staged ends its installer", device: &poison, start: start, run: func(w *Watch) {
			for range 5 {
				w.Boot(status.None)
			}
			if w.now.Staged.None() || !w.now.Guarded(boot.GuardID(w.now.Staged.Manifest)) {
				t.Error("it is not guarded, or forgotten")
			}
		}, check: func(c crash.State) error {
			mem, _ := c.Mark.(*Memory)
			w := (&poison).Over(crash.Record(c.Image), mem)
			w.Settle(Want{Version: "1"})
			if err := w.Err(); err != nil {
				return err
			}
			w.d = d
			w.Settle(Want{Version: "2", More: 20})
			return w.Err()
		}})
	}
	return all
}

// newMedium is a medium that has less than it says.
func newMedium(t *testing.T, b []byte, size int64) Medium {
	t.Helper()
	return &short{bytes.NewReader(b), size}
}

type short struct {
	*bytes.Reader
	size int64
}

func (s *short) Size() int64 { return s.size }

// What is staged is refused for ever and gone, by one record; what is not there yet waits.
func TestStagedRefused(t *testing.T) {
	k, d, disk := staged(t)
	two := k.file(k.bundle("2", 0, Healthy))
	r := crash.Record(disk)
	w := d.Over(r, nil)
	k.must(w.Stage(two, false))
	waiting := r.Image()

	damaged := crash.Record(waiting)
	at := d.Part("staging").Off + w.now.Staged.Offset
	b := make([]byte, 64<<10)
	damaged.ReadAt(b, at)
	for i := range b[1<<10:] {
		b[1<<10+i] ^= 1
	}
	damaged.WriteAt(b, at)
	w = d.Over(crash.Record(damaged.Image()), nil)
	w.Decayed = true
	before := w.now.Sequence
	got, _, well := w.Boot(status.None)
	if !well || len(got.Report.Refused) != 1 || got.Report.Refused[0].Code != 30 || !w.now.Staged.None() {
		t.Errorf("damaged: %+v, staged %+v, %q", got.Report.Refused, w.now.Staged, got.Lines)
	}
	if n := w.now.Sequence - before; n != 3 {
		t.Errorf("%d records in a boot that refuses what is staged and says good, want 3: mark, try, good", n)
	}

	// The medium fails: it stays, and is tried ever more rarely.
	rec := crash.Record(waiting)
	w = d.Over(rec, nil)
	rec.Fault = func(k crash.Kind, _ int, off, _ int64) error {
		if p := d.Part("staging"); k == crash.Read && off >= p.Off && off < p.Off+p.Len {
			return crash.ErrInjected
		}
		return nil
	}
	looked := 0
	for range 12 {
		b, _, _ := w.Boot(status.None)
		if len(b.Report.Refused) > 0 {
			looked++
		}
	}
	if looked < 2 || looked > 4 || w.now.Staged.None() {
		t.Errorf("looked at %d times in 12 boots, staged %+v", looked, w.now.Staged)
	}
	rec.Fault = nil
	w.Settle(Want{Version: "2", More: 20})
	k.must(w.Err())
}

// An older bundle is taken when it is staged, never below the floors, and a stick's when nothing is.
func TestStagedIsAskedFor(t *testing.T) {
	k := newKit(t, map[string]string{"staging device": "PARTLABEL=staging"})
	d, disk := updates(k)
	older := k.file(k.bundle("1.5", 0, Healthy))
	r := crash.Record(disk)
	w := d.Over(r, nil)
	k.must(w.Stage(older, false))
	w.Settle(Want{Version: "1.5"})
	k.must(w.Err())
	if v := w.now.Slots[0].Version; v != "1.5" || !w.now.Staged.None() {
		t.Errorf("first is %s, staged %+v", v, w.now.Staged)
	}
	below := k.file(k.bundle("0.5", 0, Healthy))
	var refusal update.Refusal
	if err := w.Stage(below, false); !errors.As(err, &refusal) || refusal.Code != 28 {
		t.Errorf("below the floor: %v", err)
	}
	if err := w.Stage(older, false); !errors.Is(err, update.ErrNothing) {
		t.Errorf("what runs: %v", err)
	}
	before := w.now.Sequence
	b, _, _ := w.Boot(status.None)
	if n := w.now.Sequence - before; n != 3 || contains(b.Lines, "staged") {
		t.Errorf("%d records in a boot with nothing staged, want 3: mark, try, good; %q", n, b.Lines)
	}

	// What is staged goes first, and the stick in the next boot.
	three, four := k.bundle("3", 0, Healthy), k.bundle("4", 0, Healthy)
	d.Stick = k.stick(four)
	k.must(w.Stage(k.file(three), false))
	b, _, _ = w.Boot(status.None)
	if b.Started.Facts.Version != "3" || contains(b.Lines, "4.raucb") {
		t.Errorf("version %s runs: %q", b.Started.Facts.Version, b.Lines)
	}
	w.Settle(Want{Version: "4"})
	k.must(w.Err())
}

// A device that lost its slots and its record is repaired by what lies on the staging partition, without a stick; also when
// that was installed before. Where slots are left whose turn could come, those have it.
func TestStagedInRescue(t *testing.T) {
	k, d, disk := staged(t)
	two := k.file(k.bundle("2", 0, Healthy))
	r := crash.Record(disk)
	w := d.Over(r, nil)
	k.must(w.Stage(two, false))
	waiting := r.Image()
	w.Settle(Want{Version: "2"})
	k.must(w.Err())
	for name, image := range map[string]*crash.Image{"staged": waiting, "installed before": r.Image()} {
		for _, lost := range [][]string{{"rootfs.0", "rootfs.1"}, {"rootfs.0", "rootfs.1", "state"}} {
			broken := image.Clone()
			for _, part := range lost {
				p := d.Part(part)
				n := int64(4096)
				if part == "state" {
					n = p.Len
				} else {
					p.Off += p.Len - slots.SealSize
				}
				broken.WriteAt(make([]byte, n), p.Off)
			}
			rec := crash.Record(broken)
			w := d.Over(rec, nil)
			w.Loose = slices.Contains(lost, "state")
			w.Settle(Want{Version: "2", Loose: w.Loose})
			if err := w.Err(); err != nil {
				t.Errorf("%s, lost %v: %v", name, lost, err)
			}
		}
	}

	// Taken back, it is none.
	rec := crash.Record(waiting)
	w = d.Over(rec, nil)
	k.must(w.Unstage())
	broken := rec.Image().Clone()
	for _, part := range d.policy.Slots {
		broken.WriteAt(make([]byte, 4096), d.Part(part).Off+d.Part(part).Len-slots.SealSize)
	}
	w = d.Over(crash.Record(broken), nil)
	if b, _, _ := w.Boot(status.None); !b.Rescue {
		t.Errorf("what was taken back is installed: %q", b.Lines)
	}
}
