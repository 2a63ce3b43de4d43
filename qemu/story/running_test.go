package story

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// exits runs a command in the device and checks how it ended.
func exits(t *testing.T, vm *scene.Device, want int, says string, command ...string) string {
	t.Helper()
	out, exit, err := testsystem.Run(vm.VM, scene.Patience, command...)
	if err != nil || exit != want || !regexp.MustCompile(says).MatchString(out) {
		t.Errorf("%q: exit %d, want %d, %v: %s", command, exit, want, err, out)
	}
	return out
}

// until asks for a file in the device until it says something.
func until(t *testing.T, vm *scene.Device, file, says string) string {
	t.Helper()
	for end := time.Now().Add(scene.Patience); ; time.Sleep(200 * time.Millisecond) {
		out := vm.Run("cat", file)
		if regexp.MustCompile(says).MatchString(out) {
			return out
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not say %q: %s", file, says, out)
		}
	}
}

// `bootcount install` in the system that runs: refused while that is on trial, refused with the code of what is wrong with the
// bundle, one at a time, stopped and killed without harm, from a file and through a pipe; the next boot tries what it wrote.
func TestInstallRunning(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"staging device": "PARTLABEL=staging"}})
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
	first := d.bundle(t, "first.raucb", "1.0", testsystem.Wait, testsystem.Options{
		Files: map[string]string{"update.raucb": update, "damaged.raucb": damaged},
	}, scene.BundleOptions{})
	disk, err := d.Scene.Disk(fileName(t)+".img", map[string]string{"A": first}, map[string]int64{"rootfs": 2 * slotSize})
	if err != nil {
		t.Fatal(err)
	}
	const bootcount = "/usr/bin/bootcount"
	vm := scene.Start(t, d.Machine(disk))
	boots(t, vm, 1, "A", "1.0", "trial tries=2")

	exits(t, vm, 31, "on trial", bootcount, "install", "/update.raucb")
	exits(t, vm, 0, "is good", bootcount, "good")
	exits(t, vm, 40, "no such file", bootcount, "install", "/nothing.raucb")
	exits(t, vm, 20, "refused code=20", bootcount, "install", bootcount)
	exits(t, vm, 30, "refused code=30", bootcount, "install", "/damaged.raucb")
	exits(t, vm, 2, "usage", bootcount, "install", "--rate=9", "/update.raucb")
	if e := slot(vm.Status(), "B"); e.Reason != "" {
		t.Errorf("what was refused cost B something: %+v", e)
	}

	// Stopped while it writes; meanwhile the system says good, and a second install has to wait its turn.
	slow := []string{bootcount, "install", "--json", "--rate=1M", "/update.raucb"}
	pid := vm.Run(append([]string{"begin", "/run/stopped"}, slow...)...)
	until(t, vm, "/run/stopped", `"step":"writing"`)
	began := time.Now()
	exits(t, vm, 0, "is good", bootcount, "good")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("good took %v while an image was written", took)
	}
	exits(t, vm, 1, "another install is running", bootcount, "install", "/update.raucb")
	vm.Run("signal", "2", pid)
	until(t, vm, "/run/stopped", `(?s)"event":"stopped".*\nexit 130`)
	r := vm.Status()
	if a, b := slot(r, "A"), slot(r, "B"); !a.Good || a.Reason != "" || b.Reason != "seal-missing" || b.ManifestHash != "" {
		t.Errorf("A %+v\nB %+v", a, b)
	}

	// Killed while it writes, and the power goes.
	pid = vm.Run(append([]string{"begin", "/run/killed"}, slow...)...)
	until(t, vm, "/run/killed", `"step":"writing"`)
	vm.Run("signal", "9", pid)
	vm.Reset()
	boots(t, vm, 2, "A", "1.0", "confirmed")

	// Through a pipe, by way of the staging partition, where no record says that anything is staged.
	out := exits(t, vm, 0, `version 2\.0 is in rootfs\.1 \(B\): the next boot tries it`, "feed", "/update.raucb", bootcount, "install", "-")
	if !regexp.MustCompile(`writing +\[#* *\] +\d+ %`).MatchString(out) {
		t.Errorf("no progress: %s", out)
	}
	if s := vm.Status().State.Staged; s != nil {
		t.Errorf("staged: %+v", s)
	}
	out = exits(t, vm, 0, `"event":"nothing to do"`, bootcount, "install", "--json", "/update.raucb")
	if peak := regexp.MustCompile(`"peak_kib":(\d+)`).FindStringSubmatch(out); peak == nil {
		t.Errorf("no peak: %s", out)
	} else if n, _ := strconv.Atoi(peak[1]); n > 24<<10 {
		t.Errorf("a worker took %d KiB", n)
	} else {
		t.Logf("peak of a worker: %d KiB", n)
	}
	vm.Reset()
	boots(t, vm, 3, "B", "2.0", "trial tries=2")

	history := vm.Run(bootcount, "history")
	t.Log(history)
	year := fmt.Sprintf(` +%d-\d\d-\d\dT\d\d:\d\d:\d\dZ +`, time.Now().UTC().Year())
	for _, line := range []string{
		`1` + year + `boot +rootfs\.0 \(A\)`, `1` + year + `refused +code 31`, `1` + year + `refused +code 30 +[0-9a-f]{16}`,
		`1` + year + `install +rootfs\.1 \(B\)`, `1` + year + `refused +rootfs\.1 \(B\) +code 40`,
		`2` + year + `installed +rootfs\.1 \(B\)`, `3` + year + `boot +rootfs\.1 \(B\)`, `3` + year + `good +rootfs\.1 \(B\)`,
	} {
		if !regexp.MustCompile(`(?m)^` + line).MatchString(history) {
			t.Errorf("the history has no line %s", line)
		}
	}
	if out := vm.Run(bootcount, "history", "--json"); !strings.Contains(out, `"event": "installed"`) || !strings.Contains(out, `"time": 1`) {
		t.Errorf("history --json: %s", out)
	}
}
