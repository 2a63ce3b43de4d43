package powercut

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk/crash"
	"lifeboat/status"
	"lifeboat/update"
)

// runningScenarios are those of `bootcount install`. After a cut the device runs, as it was or as it was to be, and the same
// command succeeds.
func runningScenarios(t *testing.T) (all []scenario) {
	add := func(name string, d *Device, start *crash.Image, run func(*Watch)) {
		want := Want{Version: "*", Decayed: strings.HasPrefix(name, "RAUC")}
		all = append(all, scenario{name, d, start, run, want, func(c crash.State) error {
			if err := d.Check(c, want); err != nil {
				return err
			}
			mem, _ := c.Mark.(*Memory)
			w := d.Over(crash.Record(c.Image), mem)
			w.Settle(want)
			run(w)
			return w.Err()
		}})
	}
	install := func(bundle Medium, meanwhile func(w *Watch, slot string)) func(*Watch) {
		return func(w *Watch) {
			slot := runs(w)
			between := func() {}
			if meanwhile != nil {
				between = func() { meanwhile(w, slot) }
			}
			if lines, err := w.d.Install(w, slot, bundle, w.committed, between); err != nil {
				w.broken(I7, "bootcount install: %v: %q", err, lines)
			}
			w.Settle(Want{Version: "3"})
		}
	}
	good := func(w *Watch, slot string) {
		if err := w.d.SayGood(w, slot, w.committed); err != nil {
			w.broken(I10, "good while an image is written: %v", err)
		}
	}
	k := newKit(t, nil)
	three := k.file(k.bundle("3", 0, Healthy))
	d, disk := updates(k)
	add("bootcount install", d, disk, install(three, nil))
	add("bootcount install and good meanwhile", d, disk, install(three, good))

	for name, changes := range map[string]map[string]string{"RAUC writes a slot, bootcount seal": nil, "RAUC writes two slots, bootcount seal": grouped(nil)} {
		k := newKit(t, changes)
		three := k.bundle("3", 0, Healthy)
		d, disk := updates(k)
		// Until then RAUC's bytes lie under the old seal: such a slot is left as one that decayed.
		add(name, d, disk, func(w *Watch) {
			w.Decayed = true
			running := runs(w)
			slot := map[string]string{"rootfs.0": "rootfs.1", "rootfs.1": "rootfs.0"}[running]
			if running == "" {
				return
			}
			k.written(w, d, slot, "3")
			if lines, err := d.Seal(w, slot, running, k.file(three), w.committed); err != nil {
				w.broken(I7, "bootcount seal: %v: %q", err, lines)
			}
			w.Settle(Want{Version: "3", Decayed: true})
		})
	}

	k = newKit(t, map[string]string{"fallback policy": "secure"})
	three = k.file(k.bundle("3", 0, Healthy))
	d, disk = one(k)
	add("bootcount install with fallback=secure and good meanwhile", d, disk, install(three, good))

	k = newKit(t, grouped(nil))
	three = k.file(k.bundle("3", 0, Healthy))
	d, disk = updates(k)
	add("bootcount install of two images", d, disk, install(three, nil))
	return all
}

// written puts the images of a bundle into a slot and those that go with it as RAUC does: no tree, no seal, a flush at the
// end.
func (k *kit) written(w *Watch, d *Device, slot, version string) {
	k.t.Helper()
	for _, s := range d.members(slot) {
		b, err := os.ReadFile(filepath.Join(k.dir, "in-"+version, s.Class+".img"))
		k.must(err)
		_, err = w.rec.WriteAt(b, d.Part(s.Name).Off)
		k.must(err)
		k.must(w.rec.Flush())
	}
}

// What is not what RAUC wrote is not sealed, and loses nothing.
func TestSealRefusals(t *testing.T) {
	k := newKit(t, nil)
	three := k.bundle("3", 0, Healthy)
	d, disk := updates(k) // 1 in A, 2 in B, which runs
	for name, c := range map[string]struct {
		slot    string
		prepare func(w *Watch)
		code    int
		says    string
	}{
		"nothing was written": {"rootfs.0", nil, 30, "does not hold the image rootfs of this bundle"},
		"the one that runs":   {"rootfs.1", nil, 0, ""},
		"resized": {"rootfs.0", func(w *Watch) {
			k.written(w, d, "rootfs.0", "3")
			w.rec.WriteAt([]byte("resized"), d.Part("rootfs.0").Off+1024)
		}, 30, "no resize=true"},
		"the last block differs": {"rootfs.0", func(w *Watch) {
			k.written(w, d, "rootfs.0", "3")
			w.rec.WriteAt([]byte("x"), d.Part("rootfs.0").Off+imageSize-1)
		}, 30, "does not hold"},
		"on trial": {"rootfs.0", func(w *Watch) { k.written(w, d, "rootfs.0", "3"); unproven(w, "rootfs.1") }, 31, "on trial"},
	} {
		t.Run(name, func(t *testing.T) {
			w := d.Over(crash.Record(disk), nil)
			w.Decayed = true
			if c.prepare != nil {
				c.prepare(w)
			}
			before := w.rec.Image()
			lines, err := d.Seal(w, c.slot, "rootfs.1", k.file(three), w.committed)
			var r update.Refusal
			if errors.As(err, &r); err == nil || r.Code != c.code || !contains(lines, c.says) {
				t.Errorf("%v (code %d, want %d): %q", err, r.Code, c.code, lines)
			}
			for _, slot := range d.policy.Slots {
				p := d.Part(slot)
				a, b := make([]byte, p.Len), make([]byte, p.Len)
				before.ReadAt(a, p.Off)
				w.ReadAt(b, p.Off)
				if !bytes.Equal(a, b) {
					t.Errorf("%s was changed", slot)
				}
			}
		})
	}
}

// runs returns the slot whose system was started last and is confirmed.
func runs(w *Watch) string {
	s := w.now
	for _, e := range s.Slots {
		if e.Good && e.Booted == s.Boot {
			return e.Slot
		}
	}
	w.broken(I10, "no confirmed system runs: %s", names(s))
	return ""
}

// What `bootcount install` refuses costs no slot anything, and its code is that of the refusal.
func TestRunningInstallRefusals(t *testing.T) {
	k := newKit(t, nil)
	v3 := k.bundle("3", 0, Healthy)
	d, disk := updates(k) // 1 in A, 2 in B, which runs
	spoilt := k.read(v3)
	spoil(t, spoilt)
	old := k.file(k.dir + "/1.raucb")
	for name, c := range map[string]struct {
		bundle  Medium
		running string
		prepare func(w *Watch)
		code    int
		says    string
	}{
		"no bundle":                             {bytes.NewReader(bytes.Repeat([]byte("x"), 9000)), "rootfs.1", nil, 20, "refused code=20"},
		"empty":                                 {bytes.NewReader(nil), "rootfs.1", nil, 20, "refused code=20"},
		"damaged":                               {spoilt, "rootfs.1", nil, 30, "refused code=30"},
		"on trial":                              {k.file(v3), "rootfs.1", func(w *Watch) { unproven(w, "rootfs.1") }, 31, "on trial"},
		"runs already":                          {k.file(k.dir + "/2.raucb"), "rootfs.1", nil, 0, "nothing to do: already installed in rootfs.1"},
		"below the floor":                       {old, "rootfs.1", func(w *Watch) { raise(w, "1.5") }, 28, "below the floor"},
		"the only other one that was ever good": {k.file(v3), "rootfs.1", func(w *Watch) { wear(w, "rootfs.1") }, 31, "the only other one"},
	} {
		t.Run(name, func(t *testing.T) {
			w := d.Over(crash.Record(disk), nil)
			if c.prepare != nil {
				c.prepare(w)
			}
			before := w.rec.Image()
			lines, err := d.Install(w, c.running, c.bundle, w.committed, nil)
			var r update.Refusal
			if errors.As(err, &r); r.Code != c.code || !contains(lines, c.says) {
				t.Errorf("%v (code %d, want %d): %q", err, r.Code, c.code, lines)
			}
			for _, slot := range d.policy.Slots {
				p := d.Part(slot)
				a, b := make([]byte, p.Len), make([]byte, p.Len)
				before.ReadAt(a, p.Off)
				w.ReadAt(b, p.Off)
				if !bytes.Equal(a, b) {
					t.Errorf("%s was changed", slot)
				}
			}
			s, err := d.State(w)
			k.must(err)
			if e := s.Events[len(s.Events)-1]; c.code != 0 && (e.Kind != status.EventRefused || int(e.Code) != c.code) {
				t.Errorf("the history says %+v", e)
			}
			if err := w.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// rewrite changes the record as no command does.
func rewrite(w *Watch, change func(s *boot.State)) {
	err := w.d.change(w, nil, func(s boot.State) (boot.State, error) {
		s = s.Clone()
		change(&s)
		return s, nil
	})
	if err != nil {
		panic(err)
	}
	w.mem.State, _ = w.d.State(w)
	w.now = w.mem.State
}

func entryOf(s *boot.State, slot string) *boot.Entry {
	for i := range s.Slots {
		if s.Slots[i].Slot == slot {
			return &s.Slots[i]
		}
	}
	return nil
}

func unproven(w *Watch, slot string) {
	rewrite(w, func(s *boot.State) { entryOf(s, slot).Good = false })
}

func raise(w *Watch, version string) { rewrite(w, func(s *boot.State) { s.Floors.Version = version }) }

// wear damages the slot that runs where nobody has read it yet.
func wear(w *Watch, slot string) {
	p := w.d.Part(slot)
	w.rec.WriteAt([]byte("decay"), p.Off+imageSize/2)
	w.Decayed = true
}

// An install that is stopped, or whose worker is killed, leaves what runs as it was and nobody accused; the slot is empty,
// and the next one succeeds.
func TestRunningInstallStopped(t *testing.T) {
	k := newKit(t, nil)
	three := k.file(k.bundle("3", 0, Healthy))
	d, disk := updates(k)
	for _, c := range []struct {
		at    string
		times int // that role's worker
		wrote bool
	}{
		{update.RoleScan, 1, false},
		{update.RoleAttest, 1, false}, // of the slot that stays
		{update.RoleCheck, 1, false},
		{update.RoleInstall, 1, true},
		{update.RoleAttest, 2, true},
	} {
		t.Run(fmt.Sprint(c.at, c.times), func(t *testing.T) {
			w := d.Over(crash.Record(disk), nil)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			lines, err := d.install(ctx, &doors{d: d, on: w, file: three, told: Observer{Committed: w.committed}, ends: func(role string) error {
				if role != c.at {
					return nil
				}
				if c.times--; c.times != 0 {
					return nil
				}
				cancel()
				return fmt.Errorf("%w: signal: killed", ctx.Err())
			}}, "rootfs.1")
			if err == nil {
				t.Fatalf("it was installed: %q", lines)
			}
			s, _ := d.State(w)
			if len(s.Guards) != 0 || s.Install.Target != "" {
				t.Errorf("guards %+v, install %+v", s.Guards, s.Install)
			}
			if e := s.Entry("rootfs.0"); c.wrote != (e.Reason == status.SealMissing) || !c.wrote && e.Version != "1" {
				t.Errorf("%+v", e)
			}
			if e := s.Entry("rootfs.1"); e.Version != "2" || !e.Good || e.Reason != status.None {
				t.Errorf("%+v", e)
			}
			if lines, err := d.Install(w, "rootfs.1", three, w.committed, nil); err != nil {
				t.Errorf("again: %v: %q", err, lines)
			}
			w.Settle(Want{Version: "3"})
			if err := w.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What was changed by others while an image was written stands.
func TestRunningInstallKeepsWhatOthersWrote(t *testing.T) {
	k := newKit(t, nil)
	three := k.file(k.bundle("3", 0, Healthy))
	d, disk := updates(k)
	w := d.Over(crash.Record(disk), nil)
	calls := 0
	lines, err := d.Install(w, "rootfs.1", three, w.committed, func() {
		if calls++; calls > 1 {
			return
		}
		if err := d.SayBad(w, "rootfs.1", w.committed); err != nil && !strings.Contains(err.Error(), "only slot") {
			t.Error(err)
		}
		rewrite(w, func(s *boot.State) { s.Rescue.Waits = 7 })
	})
	if err != nil || calls == 0 {
		t.Fatalf("%v, %d calls: %q", err, calls, lines)
	}
	s, _ := d.State(w)
	if s.Rescue.Waits != 7 || s.Slots[0].Version != "3" || s.Install.Target != "" {
		t.Errorf("waits %d, %s", s.Rescue.Waits, names(s))
	}
	w.Settle(Want{Version: "3"})
	if err := w.Err(); err != nil {
		t.Error(err)
	}
}
