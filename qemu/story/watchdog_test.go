package story

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// Wherever early boot hangs, the watchdog resets the device, which says so afterwards; a worker that hangs is ended by PID 1,
// which goes on feeding. And a system that never takes the watchdog over is reset, too.
func TestWatchdogPhases(t *testing.T) {
	t.Parallel()
	qemu.NeedKernel(t, "generic")
	d, err := makeHostile("dog", scene.Options{Config: map[string]string{"watchdog timeout": "5"}})
	if err != nil {
		t.Fatal(err)
	}
	honest := d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	m := d.Machine(d.disk(t, "phases"), d.order(t, honest, "spin", "scan", "spin"))
	phases := []string{"watchdog", "mark", "seal", "hand-over"}
	m.Append += " lifeboat.hang=" + strings.Join(phases, ",")
	vm := scene.Start(t, m)
	for _, phase := range phases {
		vm.Expect(scene.Patience, `lifeboat: watchdog /dev/watchdog0 \(i6300ESB timer\) timeout 5s\n`)
		if phase == "seal" { // the first boot that gets as far as the stick
			vm.Expect(scene.Patience, `sd\w+ could not be looked at: .*worker (used up its CPU time of 10s|made no progress for 30s)`) // the latter on a busy machine
			vm.PullStick("stick0")
		}
		vm.Expect(scene.Patience, `lifeboat: hangs in `+phase+`\n`)
		vm.Event(scene.Patience, "WATCHDOG")
	}
	boots(t, vm, 4, "A", "1.0", "trial tries=0") // the first hung before the record, the second before a slot was chosen
	vm.Event(scene.Patience, "WATCHDOG")         // between the hand-over and a system that does not take it over
	vm.Expect(scene.Patience, `lifeboat: boot \d+ slot rootfs\.0 \(A\) version 1\.0 confirmed\n`)
	vm.Ready()
	r := vm.Status()
	var ends []string
	for _, e := range r.State.Events {
		if e.Event == "end" || e.Event == "cut" {
			ends = append(ends, e.Event+" "+e.Reason)
		}
	}
	// A cut: USB was looked at. Two ends on trial, and one of a system that had said good.
	if diff := cmp.Diff([]string{"cut watchdog", "end watchdog", "end watchdog", "end watchdog"}, ends); diff != "" {
		t.Errorf("ends (-want +got):\n%s", diff)
	}
}

// Every way in which a trial can end is told apart; a power loss gives its try back, the others do not; and the device falls
// back in the end.
func TestResetReasons(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"watchdog timeout": "10", "watchdog pretimeout": "4", "fallback count": "failures"}})
	stick := d.update(t, "2.0", testsystem.Wait, testsystem.Options{Text: map[string]string{"/etc/feeds": "yes"}}, scene.BundleOptions{})
	m := d.Machine(d.disk(t, "reasons"), stick)
	m.Append += " panic=1"
	vm := scene.Start(t, m)
	boots(t, vm, 1, "B", "2.0", "trial tries=2")
	if r := vm.Status(); r.Watchdog == nil || r.Watchdog.Timeout != 10 || r.Watchdog.Pretimeout != 4 || r.Watchdog.Identity != "i6300ESB timer" {
		t.Errorf("watchdog %+v", r.Watchdog)
	}
	if out, _, err := testsystem.Run(vm.VM, scene.Patience, "/usr/bin/bootcount", "doctor"); err != nil || !regexp.MustCompile(`(?m)^ok +watchdog +/dev/watchdog0 \(i6300ESB timer\) 10 s, fed by init \(1\)$`).MatchString(out) {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	vm.PullStick("stick0")
	vm.Cut()
	vm.PowerOn()
	boots(t, vm, 2, "B", "2.0", "trial tries=2") // given back
	if out := vm.Run("/usr/bin/bootcount", "ended"); out != "rootfs.1 (B) goes down in order" {
		t.Errorf("%q", out)
	}
	vm.Reset()
	boots(t, vm, 3, "B", "2.0", "trial tries=1")
	vm.Type("panic\n")
	boots(t, vm, 4, "B", "2.0", "trial tries=0")
	vm.Type("starve\n")
	vm.Expect(scene.Patience, `Kernel panic - not syncing: watchdog pretimeout event`)
	vm.Expect(scene.Patience, `lifeboat: fallback from B to A reason=watchdog\n`)
	boots(t, vm, 5, "A", "1.0", "trial tries=2")
	r := vm.Status()
	var ends []string
	for _, e := range r.State.Events {
		if e.Event == "end" {
			ends = append(ends, e.Reason)
		}
	}
	if diff := cmp.Diff([]string{"power-loss", "reboot", "panic", "watchdog"}, ends); diff != "" {
		t.Errorf("ends (-want +got):\n%s", diff)
	}
	if b := slot(r, "B"); b.Reason != "watchdog" || b.Back != 1 {
		t.Errorf("B %+v", b)
	}
}

// Where there is no hardware the kernel's own timer does, if it may. Its end is a panic, and is said to be the watchdog's.
func TestSoftdog(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Flavour: "cloud", Config: map[string]string{"watchdog timeout": "5", "watchdog softdog": "true", "rescue retry": "8s"}})
	m := d.Machine(d.disk(t, "softdog"))
	m.Append += " panic=1 lifeboat.rescue" // where waiting is fed
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `lifeboat: watchdog /dev/watchdog0 \(Software Watchdog\) timeout 5s\n`)
	vm.Expect(scene.Patience, `lifeboat: rescue reason=requested\n`)
	boots(t, vm, 1, "A", "1.0", "trial tries=2") // says good, and does not feed
	boots(t, vm, 2, "A", "1.0", "confirmed")
	r := vm.Status()
	for _, e := range r.State.Events {
		if e.Event == "end" && e.Reason == "watchdog" {
			return
		}
	}
	t.Errorf("no end by the watchdog in the history: %+v", r.State.Events)
}
