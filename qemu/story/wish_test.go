package story

import (
	"fmt"
	"strings"
	"testing"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// two is a disk with 1.0 in slot A, which says good, and 2.0 in slot B, which does nothing of itself.
func (d *staged) two(t *testing.T) string {
	t.Helper()
	b := d.bundle(t, "b.raucb", "2.0", testsystem.Wait, testsystem.Options{}, scene.BundleOptions{})
	disk, err := d.Scene.Disk(fileName(t)+"-two.img", map[string]string{"A": d.Path("1.0.raucb"), "B": b}, map[string]int64{"rootfs": slotSize})
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// boots waits until the system of a slot obeys in a boot of that number.
func boots(t *testing.T, vm *scene.Device, boot int, slot, version, how string) {
	t.Helper()
	name := map[string]string{"A": `rootfs\.0 \(A\)`, "B": `rootfs\.1 \(B\)`}[slot]
	vm.Expect(scene.Patience, fmt.Sprintf(`lifeboat: boot %d slot %s version %s %s\n`, boot, name, strings.ReplaceAll(version, ".", `\.`), how))
	if v := vm.Ready(); v != version {
		t.Fatalf("version %s, want %s", v, version)
	}
}

// A system that tells that it is bad is left for the other slot, and its bundle is not taken again.
func TestToldBad(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	vm := scene.Start(t, d.Machine(d.disk(t, "bad"), d.update(t, "2.0", testsystem.Wait, testsystem.Options{}, scene.BundleOptions{})))
	boots(t, vm, 1, "B", "2.0", "trial tries=2")
	if got := vm.Run("/usr/bin/bootcount", "bad"); got != "rootfs.1 (B) is given up" {
		t.Errorf("bootcount bad: %q", got)
	}
	vm.Reset()
	vm.Expect(scene.Patience, `lifeboat: refused code=31 update\.raucb: it fell back here \(told-bad\)`)
	vm.Expect(scene.Patience, `lifeboat: fallback from B to A reason=told-bad\n`)
	boots(t, vm, 2, "A", "1.0", "trial tries=2")
	r := vm.Status()
	if b := slot(r, "B"); b.Reason != "told-bad" || b.Good || r.Fallback != "told-bad" {
		t.Errorf("fallback %q, B %+v", r.Fallback, b)
	}
	// 1.0 has said good and is all there is: it is not given up by a slip of the hand.
	if out, exit, err := testsystem.Run(vm.VM, scene.Patience, "/usr/bin/bootcount", "bad"); err != nil || exit != 1 || !strings.Contains(out, "--force") {
		t.Errorf("bootcount bad of the only good slot: exit %d %v: %s", exit, err, out)
	}
}

// A trial that is not ended by good is ended by its deadline. One try is all it has here, so the next boot is the other slot's.
func TestTrialDeadline(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"system boot-attempts": "1", "fallback trial-deadline": "10s"}})
	stick := d.update(t, "2.0", testsystem.Wait, testsystem.Options{}, scene.BundleOptions{})
	vm := scene.Start(t, d.Machine(d.disk(t, "deadline"), stick))
	boots(t, vm, 1, "B", "2.0", "trial tries=0")
	for asked := 0; ; asked++ { // as lifeboat-trial.timer does
		if err := vm.VM.Type("run deadline /usr/bin/bootcount deadline --reboot\n"); err != nil {
			t.Fatal(err)
		}
		if got := vm.Expect(scene.Patience, `the trial of rootfs\.1 \(B\) ends in \d+s\n|lifeboat: fallback from B to A reason=trial-deadline\n`); strings.HasPrefix(got[0], "lifeboat") {
			if asked == 0 {
				t.Log("the machine was too slow to see the deadline ahead")
			}
			break
		}
	}
	boots(t, vm, 2, "A", "1.0", "trial tries=0")
	if b := slot(vm.Status(), "B"); b.Reason != "trial-deadline" || b.Good {
		t.Errorf("B %+v", b)
	}
}

// `bootcount next` boots a slot once, counted, and the boot after it goes back.
func TestNext(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	vm := scene.Start(t, d.Machine(d.two(t)))
	boots(t, vm, 1, "A", "1.0", "trial tries=2") // and says good
	if got := vm.Run("/usr/bin/bootcount", "next", "B"); got != "rootfs.1 (B) is booted once, next time" {
		t.Errorf("bootcount next: %q", got)
	}
	vm.Reset()
	boots(t, vm, 2, "B", "2.0", "trial tries=2")
	vm.Reset()
	boots(t, vm, 3, "A", "1.0", "confirmed")
	r := vm.Status()
	if b := slot(r, "B"); b.Tries != 2 || b.Reason != "" || r.Fallback != "" || r.State.Slots[0].Bootname != "A" {
		t.Errorf("fallback %q, slots %+v", r.Fallback, r.State.Slots)
	}
}

// `lifeboat.slot=` prefers a slot in every boot that has it, counts, and prefers nothing that does not qualify.
func TestPreferredSlot(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"system boot-attempts": "2"}})
	m := d.Machine(d.two(t))
	m.Append += " lifeboat.slot=B"
	vm := scene.Start(t, m)
	boots(t, vm, 1, "B", "2.0", "trial tries=1")
	vm.Reset()
	boots(t, vm, 2, "B", "2.0", "trial tries=0")
	vm.Reset()
	boots(t, vm, 3, "A", "1.0", "trial tries=1")
	if b := slot(vm.Status(), "B"); b.Tries != 0 || b.Reason != "exhausted" {
		t.Errorf("B %+v", b)
	}
}

// `lifeboat.rescue` asks for the rescue first; nobody has to come for the device to go on.
func TestRescueRequested(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"rescue retry": "5s"}})
	m := d.Machine(d.disk(t, "rescue"))
	m.Append += " lifeboat.rescue"
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `lifeboat: rescue reason=requested\n`)
	vm.Expect(scene.Patience, `What to do: plug in a USB stick`)
	boots(t, vm, 1, "A", "1.0", "trial tries=2")
}
