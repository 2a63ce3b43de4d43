package story

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// build makes a program of this source tree.
func build(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", args[0], err, out)
	}
}

// The tests of confine, under the kernel of a device and with a real disk: hostile code as the worker gets nowhere.
func TestConfine(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	program, initrd := d.Path("confine.test"), d.Path("confine.cpio")
	build(t, "test", "-c", "-ldflags=-s -w", "-o", program, "lifeboat/confine")
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
	out, _, err := testsystem.Run(vm.VM, 5*time.Minute, "/usr/bin/confine.test", "-test.v", "-partition", "/dev/vda3", "-test.skip", "TestKilledFromOutside")
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

// parts reads all partitions of a disk. The third is rootfs.1.
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

// hostile is the device with an /init whose workers do what a stick tells them.
func hostile(t *testing.T) *staged {
	t.Helper()
	d := needDevice(t)
	bin := d.Path("hostile")
	build(t, "build", "-tags", "hostile", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(bin, "init"), "lifeboat/cmd/init")
	bad := *d.Scene
	bad.Bin = bin
	initrd := d.Path("hostile.initramfs")
	if err := bad.MakeInitrd(initrd); err != nil {
		t.Fatal(err)
	}
	bad.Bin, bad.Initrd = d.Bin, initrd
	return &staged{&bad, d.Disk}
}

// Whatever the worker does that a stick took over: its end has a name, slot A boots, now and in the next boots, and
// the same stick updates the device when it has become honest.
func TestHostileWorker(t *testing.T) {
	t.Parallel()
	d := hostile(t)
	honest := d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	for _, tt := range []struct {
		role, does string
		memory     int
		says       string
	}{
		{"scan", "spin", 256, `sda could not be looked at: .*worker used up its CPU time of 10s`},
		{"scan", "garbage", 256, `sda could not be looked at: .*malformed`},
		{"scan", "eat", 256, `sda could not be looked at: .*worker ran out of memory`},
		{"check", "eat", 112, `refused code=40 update\.raucb: .*worker ran out of memory`},
		{"install", "eat", 128, `refused code=40 update\.raucb: .*worker ran out of memory`},
		{"install", "eat", 112, `refused code=40 update\.raucb: .*worker ran out of memory`},
		{"install", "forge", 256, `refused code=40 update\.raucb: what was read back from the slot is not what was written`},
		{"check", "mute", 256, `refused code=40 update\.raucb: .*worker made no progress for 30s`},
		{"install", "flood", 256, `refused code=40 update\.raucb: .*worker answered badly`},
	} {
		t.Run(fmt.Sprintf("%s %s %d", tt.role, tt.does, tt.memory), func(t *testing.T) {
			raw, err := os.ReadFile(honest)
			if err != nil {
				t.Fatal(err)
			}
			stick := d.Path(fileName(t) + ".stick")
			order := make([]byte, 4096)
			copy(order[4096-512:], "HOSTILE "+tt.role+" "+tt.does)
			if err := os.WriteFile(stick, append(raw, order...), 0o644); err != nil {
				t.Fatal(err)
			}
			image := d.disk(t, "hostile")
			before := parts(t, image)
			m := d.Machine(image, stick)
			m.Memory = tt.memory
			vm := scene.Start(t, m)
			start := time.Now()
			vm.Expect(scene.Patience, `lifeboat: `+tt.says)
			boots(t, vm, 1, "A", "1.0", "trial tries=2")
			first := time.Since(start)
			vm.Reset()
			boots(t, vm, 2, "A", "1.0", "confirmed")
			t.Logf("figure: hostile worker, %s %s with %d MiB: first boot %.1f s, second %.1f s", tt.role, tt.does, tt.memory,
				first.Seconds(), (time.Since(start) - first).Seconds())
			vm.Cut()
			if after := parts(t, image); !bytes.Equal(before["rootfs.0"], after["rootfs.0"]) {
				t.Error("slot A was touched")
			}
			f, err := os.OpenFile(stick, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt(make([]byte, 4096), int64(len(raw)))
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			vm.PowerOn()
			boots(t, vm, 3, "B", "2.0", "trial tries=2")
		})
	}
}

// A stick that ends its reader in every boot costs five boots no more than a minute (threat I7).
func TestHostileStickStays(t *testing.T) {
	t.Parallel()
	d := hostile(t)
	raw, err := os.ReadFile(d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	stick := d.Path(fileName(t) + ".stick")
	order := make([]byte, 512)
	copy(order, "HOSTILE scan spin")
	if err := os.WriteFile(stick, append(raw, order...), 0o644); err != nil {
		t.Fatal(err)
	}
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
