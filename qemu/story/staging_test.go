package story

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// harbour is a device with a staging partition and without any USB; its system 1.0 says good and brings along what a test
// stages: 2.0, 2.0 damaged, one of a foreign signer.
func harbour(t *testing.T) (d *staged, disk string) {
	t.Helper()
	d = special(t, scene.Options{Flavour: "cloud", Config: map[string]string{"staging device": "PARTLABEL=staging"}})
	update := d.bundle(t, "update.raucb", "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	b, err := os.ReadFile(update)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 1
	damaged := d.Path(fileName(t) + "/damaged.raucb")
	if err := os.WriteFile(damaged, b, 0o644); err != nil {
		t.Fatal(err)
	}
	foreign := d.bundle(t, "foreign.raucb", "2.1", testsystem.Good, testsystem.Options{}, scene.BundleOptions{Signer: "develop"})
	first := d.bundle(t, "first.raucb", "1.0", testsystem.Good, testsystem.Options{
		Files: map[string]string{"update.raucb": update, "damaged.raucb": damaged, "foreign.raucb": foreign},
	}, scene.BundleOptions{})
	disk, err = d.Scene.Disk(fileName(t)+".img", map[string]string{"A": first}, map[string]int64{"rootfs": 2 * slotSize, "staging": 1<<20 + int64(len(b)) + 8<<10})
	if err != nil {
		t.Fatal(err)
	}
	return d, disk
}

const bootcount = "/usr/bin/bootcount"

// A system leaves a bundle for the next boot: judged before, from a file and through a pipe, taken back and staged again;
// the boot after installs it without any USB, and it is staged no more.
func TestStaged(t *testing.T) {
	t.Parallel()
	d, disk := harbour(t)
	vm := scene.Start(t, d.Machine(disk))
	boots(t, vm, 1, "A", "1.0", "trial tries=2")
	exits(t, vm, 0, "nothing is staged", bootcount, "unstage")
	exits(t, vm, 30, "refused code=30 /damaged.raucb", bootcount, "stage", "/damaged.raucb")
	exits(t, vm, 22, `"event":"refused".*"code":22`, bootcount, "stage", "--json", "/foreign.raucb")
	exits(t, vm, 1, "too little room", bootcount, "stage", bootcount)
	exits(t, vm, 20, "refused code=20", "feed", "/etc/version", bootcount, "stage", "-")
	if g := vm.Status().State.Staged; g != nil {
		t.Errorf("what was refused is staged: %+v", g)
	}
	exits(t, vm, 0, `version 2\.0 is staged: the next boot installs it`, "feed", "/update.raucb", bootcount, "stage", "-")
	exits(t, vm, 0, `version 2\.0 is staged: the next boot installs it`, bootcount, "stage", "/update.raucb") // the same
	exits(t, vm, 1, `a bundle is staged already: version 2\.0; --replace`, bootcount, "stage", "/foreign.raucb")
	exits(t, vm, 1, `too little room`, bootcount, "stage", "--replace", "/update.raucb")
	exits(t, vm, 0, `Staged   version 2\.0, \d+ bytes: the next boot installs it`, bootcount, "status")
	exits(t, vm, 0, `version 2\.0 is staged no more`, bootcount, "unstage")
	out := exits(t, vm, 0, `"event":"staged","version":"2\.0","manifest_hash":"[0-9a-f]{64}"`, bootcount, "stage", "--json", "/update.raucb")
	t.Log(out)
	if g := vm.Status().State.Staged; g == nil || g.Version != "2.0" || g.Waits {
		t.Errorf("staged: %+v", g)
	}

	vm.Reset()
	vm.Expect(scene.Patience, `lifeboat: found staged bundle version 2\.0 on staging\n`)
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	vm.Expect(scene.Patience, `lifeboat: update to 2\.0 finished\n`)
	boots(t, vm, 2, "B", "2.0", "trial tries=2")
	r := vm.Status()
	if b := slot(r, "B"); !b.Good || r.State.Staged != nil || len(r.Installed) != 1 || len(r.Refused) != 0 {
		t.Errorf("B %+v, staged %+v, installed %+v, refused %+v", b, r.State.Staged, r.Installed, r.Refused)
	}
	for _, w := range r.Workers {
		if r.InitRSS+w.MaxRSSKiB > 24<<10 {
			t.Errorf("PID 1 and the %s worker took %d KiB", w.Role, r.InitRSS+w.MaxRSSKiB)
		}
	}
	vm.Reset()
	boots(t, vm, 3, "B", "2.0", "confirmed")
	if phases := vm.Status().Phases; len(phases) == 0 {
		t.Error("no phases")
	} else {
		for _, p := range phases {
			if p.Name == "staged" || p.Name == "mark" {
				t.Errorf("nothing is staged, and the boot has a phase %q", p.Name)
			}
		}
	}
}

// The power is cut at random moments while a bundle is staged and installed, LIFEBOAT_CUTS of them (2); said again and again,
// it gets there.
func TestStagedPowerCuts(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	cuts := 2
	if n, err := strconv.Atoi(os.Getenv("LIFEBOAT_CUTS")); err == nil {
		cuts = n
	}
	t.Logf("seed %d, %d cuts", seed, cuts)
	random := rand.New(rand.NewPCG(seed, 1))
	d, disk := harbour(t)
	factory, err := d.Copy(fileName(t)+"-factory.img", disk)
	if err != nil {
		t.Fatal(err)
	}
	m := d.Machine(disk)
	m.WriteRate = 2 << 20
	vm := scene.Start(t, m)
	on := func() {
		t.Helper()
		vm.Expect(scene.Patience, `(?s).*`) // what was said before the cut is over
		if err := vm.VM.PowerOn(); err != nil {
			t.Fatal(err)
		}
	}
	updates := 0
	settled := false // since the last cut
	for n, boots := 0, 0; n < cuts || !settled; boots++ {
		if boots > 3*cuts+6 {
			t.Fatalf("not updated after %d boots; %+v", boots, vm.Status().State)
		}
		if v := vm.Ready(); v == "2.0" {
			r := vm.Status()
			if r.State.Staged != nil || !slot(r, "B").Good {
				t.Fatalf("staged %+v, B %+v", r.State.Staged, slot(r, "B"))
			}
			updates++
			settled = true
			vm.Cut()
			if n < cuts { // once more, from where it began
				if _, err := d.Copy(filepath.Base(disk), factory); err != nil {
					t.Fatal(err)
				}
				on()
			}
			continue
		}
		waiting := vm.Status().State.Staged != nil
		if !waiting {
			vm.Run("begin", "/run/stage", bootcount, "stage", "/update.raucb")
		}
		if n < cuts && random.IntN(2) == 0 && !waiting { // cut while it is staged
			n, settled = n+1, false
			time.Sleep(time.Duration(random.Int64N(int64(4 * time.Second))))
			vm.Cut()
			on()
			continue
		}
		if !waiting {
			until(t, vm, "/run/stage", `(?s)is staged.*exit 0`)
		}
		vm.Reset()
		if n < cuts { // cut while it is installed
			n, settled = n+1, false
			vm.Expect(scene.Patience, `lifeboat: found staged bundle`)
			time.Sleep(time.Duration(random.Int64N(int64(6 * time.Second))))
			vm.Cut()
			on()
		}
	}
	t.Logf("%d cuts, %d updates", cuts, updates)
}

// A staged bundle that ends its installer is tried twice and then left alone; A boots every time, and to stage it anew
// has it tried again.
func TestStagedPoison(t *testing.T) {
	t.Parallel()
	d, disk := harbour(t)
	bad := *d.Scene
	bad.Bin, bad.Initrd = d.Path("hostile"), d.Path("hostile.initramfs")
	if err := build("build", "-tags", "hostile", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(bad.Bin, "init"), "lifeboat/cmd/init"); err != nil {
		t.Fatal(err)
	}
	if err := bad.MakeInitrd(bad.Initrd); err != nil {
		t.Fatal(err)
	}
	orders := func(words string) {
		t.Helper()
		err := scene.EditPartition(disk, "staging", func(b []byte) { copy(b[len(b)-512:], words+string(make([]byte, 100))) })
		if err != nil {
			t.Fatal(err)
		}
	}
	orders("HOSTILE install panic")
	vm := scene.Start(t, bad.Machine(disk))
	boots(t, vm, 1, "A", "1.0", "trial tries=2")
	exits(t, vm, 0, "is staged", bootcount, "stage", "/update.raucb")
	for boot := range 2 {
		vm.Reset()
		vm.Expect(scene.Patience, `lifeboat: refused code=40 staged bundle: the worker did not finish`)
		boots(t, vm, 2+boot, "A", "1.0", "confirmed")
	}
	vm.Reset()
	boots(t, vm, 4, "A", "1.0", "confirmed")
	r := vm.Status()
	if g := r.State.Staged; g == nil || !g.Waits || len(r.Refused) != 0 {
		t.Errorf("staged %+v, refused %+v", g, r.Refused)
	}
	exits(t, vm, 0, `Staged   version 2\.0, \d+ bytes: it ended its installer too often and waits`, bootcount, "status")
	vm.Run(bootcount, "unstage")
	vm.Run(bootcount, "stage", "/update.raucb")
	vm.Cut()
	orders("")
	vm.Expect(scene.Patience, `(?s).*`)
	if err := vm.VM.PowerOn(); err != nil {
		t.Fatal(err)
	}
	boots(t, vm, 5, "B", "2.0", "trial tries=2")
}
