package story

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"testing"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// A system that does not prove itself is left after three tries, for the slot before and with the right reason.
func TestFallback(t *testing.T) {
	for _, tt := range []struct {
		how    testsystem.Behaviour
		reason string
		again  bool // without evidence the same bundle gets another round
	}{
		{testsystem.Silent, "exhausted", true},
		{testsystem.Panic, "panic", false},
		{testsystem.Hang, "watchdog", false},
	} {
		t.Run(string(tt.how), func(t *testing.T) {
			t.Parallel()
			d := needDevice(t)
			image := d.disk(t, "fallback")
			vm := scene.Start(t, d.Machine(image))
			if v := vm.Ready(); v != "1.0" { // and says good
				t.Fatalf("version %s", v)
			}
			vm.PlugStick(qemu.Stick{Name: "update", File: d.update(t, "2.0", tt.how, testsystem.Options{}, scene.BundleOptions{})})
			vm.Reset()
			for tries := 2; tries >= 0; tries-- {
				vm.Expect(scene.Patience, fmt.Sprintf(`lifeboat: boot \d+ slot rootfs\.1 \(B\) version 2\.0 trial tries=%d\n`, tries))
			}
			vm.Expect(scene.Patience, `lifeboat: refused code=31 update\.raucb: it fell back here`)
			vm.Expect(scene.Patience, `lifeboat: fallback from B to A reason=`+tt.reason+`\n`)
			vm.Expect(scene.Patience, `lifeboat: boot 5 slot rootfs\.0 \(A\) version 1\.0 confirmed\n`)
			if v := vm.Ready(); v != "1.0" {
				t.Fatalf("version %s", v)
			}
			r := vm.Status()
			if b := slot(r, "B"); b.Reason != tt.reason || b.Good || r.Fallback != tt.reason {
				t.Errorf("fallback %q, B %+v", r.Fallback, b)
			}
			if tt.how == testsystem.Panic {
				h := vm.Run("/usr/bin/bootcount", "history")
				if t.Log(h); !regexp.MustCompile(`(?s)in boot 4, which ended in a panic:\n.*Kernel panic - not syncing: sysrq triggered crash\n`).MatchString(h) {
					t.Error("the history has no last words of the kernel")
				}
			}
			vm.Reset()
			if tt.again {
				vm.Expect(scene.Patience, `lifeboat: boot 6 slot rootfs\.1 \(B\) version 2\.0 trial tries=2\n`)
			} else {
				vm.Expect(scene.Patience, `lifeboat: refused code=31 update\.raucb: it fell back here \(`+tt.reason+`\)`)
				vm.Expect(scene.Patience, `lifeboat: boot 6 slot rootfs\.0 \(A\) version 1\.0 confirmed\n`)
			}
		})
	}
}

// Slot B on the disk is damaged while the device is off: A boots, and the reason is the right one.
func TestDamagedSlot(t *testing.T) {
	for _, tt := range []struct {
		name, reason string
		damage       func(b []byte)
	}{
		{"seal wiped", "seal-missing", func(b []byte) { clear(b[len(b)-128<<10:]) }},
		{"seal torn", "seal-false", func(b []byte) { clear(b[len(b)-128<<10+512 : len(b)-128<<10+1024]) }},
		{"first block", "verity-error", func(b []byte) { b[100] ^= 1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := needDevice(t)
			image := d.disk(t, "damaged")
			vm := scene.Start(t, d.Machine(image, d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})))
			if v := vm.Ready(); v != "2.0" {
				t.Fatalf("version %s", v)
			}
			vm.PullStick("stick0")
			vm.Run("/usr/bin/bootcount", "status")
			vm.Cut()
			edit(t, image, "rootfs.1", tt.damage)
			if err := vm.VM.PowerOn(); err != nil {
				t.Fatal(err)
			}
			vm.Expect(scene.Patience, `lifeboat: fallback from B to A reason=`+tt.reason+`\n`)
			if v := vm.Ready(); v != "1.0" {
				t.Fatalf("version %s", v)
			}
			if b := slot(vm.Status(), "B"); b.Reason != tt.reason {
				t.Errorf("B %+v", b)
			}
		})
	}
}

// A block in the middle of an image decays. It is only found when the running system reads it: the device restarts, the
// slot is read whole before its bundle is accused, and the other slot boots. The same bundle repairs the slot.
func TestDecayedBlock(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"system boot-attempts": "2"}})
	noise := make([]byte, 256<<10) // two blocks of squashfs, stored as they are
	random := rand.NewChaCha8([32]byte{2})
	_, _ = random.Read(noise)
	file := d.Path("noise")
	if err := os.WriteFile(file, noise, 0o644); err != nil {
		t.Fatal(err)
	}
	stick := d.update(t, "2.0", testsystem.Wait, testsystem.Options{Files: map[string]string{"/usr/noise": file}}, scene.BundleOptions{})
	image := d.disk(t, "decay")
	vm := scene.Start(t, d.Machine(image, stick))
	boots(t, vm, 1, "B", "2.0", "trial tries=1")
	vm.PullStick("stick0")
	vm.Cut()
	edit(t, image, "rootfs.1", func(b []byte) {
		at := bytes.Index(b, noise[len(noise)/2:][:64])
		if at < 0 {
			t.Fatal("the file is not found in the slot")
		}
		b[at] ^= 1
	})
	vm.PowerOn()
	boots(t, vm, 2, "B", "2.0", "trial tries=0")
	if err := vm.VM.Type("run read head 262144 /usr/noise\n"); err != nil {
		t.Fatal(err)
	}
	vm.Expect(scene.Patience, `verity: .*data block \d+ is corrupted`)
	for e := vm.Event(scene.Patience, "RESET"); e.Reason() != "guest-reset"; e = vm.Event(scene.Patience, "RESET") {
	}
	vm.Expect(scene.Patience, `lifeboat: reading slot rootfs\.1 \(B\) whole\n`)
	vm.Expect(scene.Patience, `lifeboat: fallback from B to A reason=verity-error\n`)
	boots(t, vm, 3, "A", "1.0", "trial tries=1")
	if b := slot(vm.Status(), "B"); b.Reason != "verity-error" {
		t.Errorf("B %+v", b)
	}
	vm.PlugStick(qemu.Stick{Name: "again", File: stick})
	vm.Reset()
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	boots(t, vm, 4, "B", "2.0", "trial tries=1")
	if got := vm.Run("head", "262144", "/usr/noise"); got != hex.EncodeToString(noise) {
		t.Error("what is read now is not what was installed")
	}
}

// Both slots dead: the device waits in rescue, and a stick that is plugged in there repairs it.
func TestRescue(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	image := d.disk(t, "rescue")
	edit(t, image, "rootfs.0", func(b []byte) { clear(b[len(b)-128<<10:]) })
	vm := scene.Start(t, d.Machine(image))
	vm.Expect(scene.Patience, `lifeboat: rescue reason=no-slot\n`)
	vm.Expect(scene.Patience, `What to do: plug in a USB stick`)
	vm.PlugStick(qemu.Stick{Name: "repair", File: d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})})
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.`)
	if v := vm.Ready(); v != "2.0" {
		t.Fatalf("version %s", v)
	}
}

// Both copies of the state record are lost: the device boots what its seals vouch for.
func TestStateLost(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	image := d.disk(t, "lost")
	edit(t, image, "state", func(b []byte) { clear(b) })
	vm := scene.Start(t, d.Machine(image))
	vm.Expect(scene.Patience, `lifeboat: the boot state is lost: .* reason=state-lost\n`)
	vm.Expect(scene.Patience, `lifeboat: boot 1 slot rootfs\.0 \(A\) version 1\.0 trial tries=2\n`)
	if v := vm.Ready(); v != "1.0" {
		t.Fatalf("version %s", v)
	}
}

// edit changes a partition of a disk image.
func edit(t *testing.T, image, label string, f func(b []byte)) {
	t.Helper()
	if err := scene.EditPartition(image, label, f); err != nil {
		t.Fatal(err)
	}
}

// The power is cut at 30 random moments of an update; the same disk boots every time, and in the end is updated.
func TestPowerCuts(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const chains, cuts = 2, 15 // 30 in all
	for chain := range uint64(chains) {
		t.Run(fmt.Sprint(chain), func(t *testing.T) {
			t.Parallel()
			d := needDevice(t)
			random := rand.New(rand.NewPCG(seed, chain))
			image := d.disk(t, "cuts")
			m := d.Machine(image, d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{}))
			m.WriteRate = 2 << 20
			vm := scene.Start(t, m)
			for cut := range cuts {
				// From the start of /init until an undisturbed update is through.
				time.Sleep(1500*time.Millisecond + time.Duration(random.Int64N(int64(5*time.Second))))
				vm.Cut()
				vm.Expect(scene.Patience, `(?s).*`) // what was said before the cut is over
				if err := vm.VM.PowerOn(); err != nil {
					t.Fatalf("after cut %d: %v", cut, err)
				}
			}
			for boots := 0; ; boots++ {
				if v := vm.Ready(); v == "2.0" {
					break
				}
				if boots == 20 {
					t.Fatalf("not updated after %d boots; state %+v", boots, vm.Status().State)
				}
				vm.Reset()
			}
			if b := slot(vm.Status(), "B"); !b.Good || b.Version != "2.0" {
				t.Errorf("B %+v", b)
			}
		})
	}
}

// The smallest machines: 96 MiB boot on the cloud kernel.
func TestMemoryCloud96(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Flavour: "cloud"})
	m := d.Machine(d.disk(t, "small"))
	m.Memory = 96
	vm := scene.Start(t, m)
	if v := vm.Ready(); v != "1.0" {
		t.Fatalf("version %s", v)
	}
}

// 128 MiB update from a stick on the generic kernel.
func TestMemoryGeneric128(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	noise := make([]byte, 8<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise)
	file := d.Path("noise")
	if err := os.WriteFile(file, noise, 0o644); err != nil {
		t.Fatal(err)
	}
	stick := d.update(t, "2.0", testsystem.Good, testsystem.Options{Files: map[string]string{"/usr/noise": file}}, scene.BundleOptions{})
	m := d.Machine(d.disk(t, "small"), stick)
	m.Memory = 128
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	if v := vm.Ready(); v != "2.0" {
		t.Fatalf("version %s", v)
	}
}
