package story

import (
	"path/filepath"
	"testing"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// A slot whose seal is gone is copied from the other, which holds the same system, also when that is cut; then it boots.
func TestRepair(t *testing.T) {
	qemu.NeedKernel(t, "generic")
	s, err := scene.New(filepath.Join(workDir, fileName(t)), scene.Options{Config: map[string]string{"rescue repair": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	d := &staged{Scene: s}
	b := d.bundle(t, "1.raucb", "1.0", testsystem.Good, testsystem.Options{Format: "ext4", Size: 16 << 20}, scene.BundleOptions{})
	disk, err := s.Disk("twins.img", map[string]string{"A": b, "B": b}, map[string]int64{"rootfs": slotSize})
	if err != nil {
		t.Fatal(err)
	}
	wreck := func(part string, edit func(b []byte)) {
		t.Helper()
		if err := scene.EditPartition(disk, part, edit); err != nil {
			t.Fatal(err)
		}
	}
	wreck("rootfs.0", func(b []byte) {
		clear(b[len(b)-128<<10:]) // the seal
		clear(b[1<<20 : 9<<20])   // and half of the image
	})
	t.Run("repaired", func(t *testing.T) {
		vm := scene.Start(t, s.Machine(disk))
		vm.Expect(scene.Patience, `lifeboat: fallback from A to B reason=seal-missing\n`)
		vm.Ready()
		vm.Reset()
		vm.Expect(scene.Patience, `lifeboat: repairing rootfs\.0 \(A\) from rootfs\.1 \(B\)\n`)
		time.Sleep(20 * time.Millisecond)
		vm.Reset()
		// The boot after a cut starts without a repair, the one after that goes on.
		vm.Expect(scene.Patience, `lifeboat: boot 3 slot rootfs\.1 \(B\) version 1\.0 confirmed\n`)
		vm.Ready()
		vm.Reset()
		vm.Expect(scene.Patience, `lifeboat: repaired rootfs\.0 \(A\)\n`)
		vm.Expect(scene.Patience, `lifeboat: boot 4 slot rootfs\.1 \(B\) version 1\.0 confirmed\n`)
		vm.Ready()
		r := vm.Status()
		if a := slot(r, "A"); a.Reason != "" || a.Tries == 0 || r.State.Slots[1].Bootname != "A" {
			t.Errorf("slots %+v", r.State.Slots)
		}
		peak := int64(0)
		for _, w := range r.Workers {
			peak = max(peak, w.MaxRSSKiB)
		}
		t.Logf("peak of PID 1 %d KiB, of a worker %d KiB; phases %+v", r.InitRSS, peak, r.Phases)
		if r.InitRSS > 24<<10 || peak > 24<<10 {
			t.Errorf("PID 1 took %d KiB, a worker %d KiB: more than 24 MiB", r.InitRSS, peak)
		}
		vm.Cut()
	})
	wreck("rootfs.1", func(b []byte) { b[100] ^= 1 })
	t.Run("boots", func(t *testing.T) {
		vm := scene.Start(t, s.Machine(disk))
		vm.Expect(scene.Patience, `lifeboat: fallback from B to A reason=verity-error\n`)
		if v := vm.Ready(); v != "1.0" {
			t.Fatalf("version %s", v)
		}
	})
}
