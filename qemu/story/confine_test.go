package story

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// build makes a program of this source tree.
func build(args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// The tests of confine, under the kernel of a device and with a real disk: hostile code as the worker gets nowhere.
func TestConfine(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	program, initrd := d.Path("confine.test"), d.Path("confine.cpio")
	if err := build("test", "-c", "-ldflags=-s -w", "-o", program, "lifeboat/confine"); err != nil {
		t.Fatal(err)
	}
	err := testsystem.Initramfs(initrd, testsystem.Options{
		Version: "confine", Files: map[string]string{"usr/bin/confine.test": program},
		KernelRoot: d.Kernel.Root, Modules: []string{"virtio_pci", "virtio_blk"},
	})
	if err != nil {
		t.Fatal(err)
	}
	image := d.disk(t, "confine")
	before := parts(t, image)
	m := d.Machine(image)
	m.Initrd, m.Memory = initrd, 512
	vm := scene.Start(t, m)
	vm.Ready()
	out, _, err := testsystem.Run(vm.VM, 5*time.Minute, "/usr/bin/confine.test", "-test.v", "-partition", "/dev/vda4", "-test.skip", "TestKilledFromOutside")
	if err != nil {
		t.Fatal(err)
	}
	passed := len(regexp.MustCompile(`(?m)^--- PASS`).FindAllString(out, -1))
	t.Logf("%d tests passed in the device", passed)
	for line := range strings.Lines(out) {
		if strings.Contains(line, "--- SKIP") || strings.Contains(line, "--- FAIL") {
			t.Error(line)
		}
	}
	if passed < 17 || !strings.Contains(out, "--- PASS: TestBreakIn ") {
		t.Errorf("only %d tests passed:\n%s", passed, out)
	}
	vm.Cut()
	for name, b := range parts(t, image) {
		if same := bytes.Equal(b, before[name]); same != (name != "rootfs.1") {
			t.Errorf("partition %s is as it was: %v", name, same)
		}
	}
}

// parts reads the partitions of a disk; the second is for staging, the fourth rootfs.1.
func parts(t *testing.T, image string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, name := range []string{"state", "rootfs.0", "rootfs.1"} {
		b, err := scene.Partition(image, name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = b
	}
	return all
}

// patient is a device that stays in rescue for the time of a test.
var patient = scene.Options{Config: map[string]string{"rescue retry": "1h"}}

// hostileDevice is the device with an /init whose workers do what a stick tells them (cmd/init/hostile.go).
var hostileDevice = sync.OnceValues(func() (*staged, error) { return makeHostile("hostile", patient) })

func makeHostile(name string, o scene.Options) (*staged, error) {
	s, err := scene.New(filepath.Join(workDir, name), o)
	if err != nil {
		return nil, err
	}
	d, err := stage(s)
	if err != nil {
		return nil, err
	}
	bad := *d.Scene
	bad.Bin, bad.Initrd = d.Path("hostile"), d.Path("hostile.initramfs")
	if err := build("build", "-tags", "hostile", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(bad.Bin, "init"), "lifeboat/cmd/init"); err != nil {
		return nil, err
	}
	if err := bad.MakeInitrd(bad.Initrd); err != nil {
		return nil, err
	}
	bad.Bin = d.Bin
	return &staged{&bad, d.Disk}, nil
}

func needHostile(t *testing.T) *staged {
	t.Helper()
	qemu.NeedKernel(t, "generic")
	d, err := hostileDevice()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// order makes a copy of a stick that tells a worker what to do.
func (d *staged) order(t *testing.T, stick, name, role, does string) string {
	t.Helper()
	words := make([]byte, 4096)
	copy(words[4096-512:], "HOSTILE "+role+" "+does)
	file := d.Path(fileName(t) + "-" + name + ".stick")
	if err := os.WriteFile(file, append(read(t, stick), words...), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// Whatever a worker does that a stick took over, its end has a name, and the next stick is looked at as if nothing had been.
func TestHostileWorker(t *testing.T) {
	t.Parallel()
	d := needHostile(t)
	honest := d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	image := d.disk(t, "hostile")
	before := parts(t, image)
	m := d.Machine(image)
	m.Append += " lifeboat.rescue"
	vm := scene.Start(t, m)
	for i, tt := range []struct{ role, does, says string }{
		{"scan", "spin", `sd\w+ could not be looked at: .*worker (used up its CPU time of 10s|made no progress for 30s)`}, // the latter on a busy machine
		{"scan", "garbage", `sd\w+ could not be looked at: .*malformed`},
		{"scan", "eat", `sd\w+ could not be looked at: .*worker ran out of memory`},
		{"check", "eat", `refused code=40 update\.raucb: .*worker ran out of memory`},
		{"check", "mute", `refused code=40 update\.raucb: .*worker made no progress for 30s`},
		{"install", "panic", `refused code=40 update\.raucb: .*panic: for a test`},
		{"install", "flood", `refused code=40 update\.raucb: .*worker answered badly: .*a flood of progress`},
		{"install", "eat", `refused code=40 update\.raucb: .*worker ran out of memory`},
		{"install", "forge", `refused code=40 update\.raucb: what was read back from the slot is not what was written`},
	} {
		vm.Expect(scene.Patience, `Sticks: none seen`)
		name := fmt.Sprintf("s%d", i)
		vm.PlugStick(qemu.Stick{Name: name, File: d.order(t, honest, name, tt.role, tt.does)})
		start := time.Now()
		vm.Expect(scene.Patience, `lifeboat: `+tt.says)
		t.Logf("%s %s: ended after %.1f s", tt.role, tt.does, time.Since(start).Seconds())
		vm.PullStick(name)
	}
	vm.Expect(scene.Patience, `Sticks: none seen`)
	if after := parts(t, image); !bytes.Equal(before["rootfs.0"], after["rootfs.0"]) {
		t.Error("slot A was touched")
	}
	vm.PlugStick(qemu.Stick{Name: "honest", File: honest})
	boots(t, vm, 1, "B", "2.0", "trial tries=2")
}

// An installer that takes all memory there is, in a device that has little: a refusal, no more. This boot is a
// normal one, and in the next the same stick without the hog updates the device.
func TestMemoryHog(t *testing.T) {
	for _, memory := range []int{128, 112} {
		t.Run(fmt.Sprint(memory), func(t *testing.T) {
			t.Parallel()
			d := needHostile(t)
			honest := d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
			stick := d.order(t, honest, "hog", "install", "eat")
			m := d.Machine(d.disk(t, "hog"), stick)
			m.Memory = memory
			vm := scene.Start(t, m)
			vm.Expect(scene.Patience, `lifeboat: refused code=40 update\.raucb: .*worker ran out of memory`)
			boots(t, vm, 1, "A", "1.0", "trial tries=2")
			vm.Cut()
			write(t, stick, make([]byte, 512), len(read(t, stick))-512)
			vm.PowerOn()
			boots(t, vm, 2, "B", "2.0", "trial tries=2")
		})
	}
}

// A stick that ends its reader in every boot costs five boots no more than a minute (threat I7).
func TestHostileStickStays(t *testing.T) {
	t.Parallel()
	d := needHostile(t)
	honest := d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	stick := d.order(t, honest, "spin", "scan", "spin")
	vm := scene.Start(t, d.Machine(d.disk(t, "stays"), stick))
	extra := 0.0
	for boot := 1; boot <= 5; boot++ {
		how := "confirmed"
		if boot == 1 {
			how = "trial tries=2"
		}
		boots(t, vm, boot, "A", "1.0", how)
		extra += phase(vm.Status(), "update") / 1000
		vm.Reset()
	}
	t.Logf("figure: a stick that ends its reader: five boots were %.1f s longer", extra)
	if extra > 60 {
		t.Errorf("five boots took %.1f s longer, want 60 s at most", extra)
	}
}
