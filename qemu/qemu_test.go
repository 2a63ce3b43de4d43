package qemu_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/testsystem"
)

// patience is for what takes a few seconds on an idle machine.
const patience = 90 * time.Second

var (
	virtioBlk = []string{"virtio_pci", "virtio_blk"}
	usb       = []string{"crct10dif_generic", "sd_mod", "xhci_pci", "usb_storage"}
)

// machine is a device that boots the test system from an initramfs.
func machine(t *testing.T, k qemu.Kernel, modules ...string) qemu.Machine {
	t.Helper()
	initrd := filepath.Join(t.TempDir(), "initramfs")
	err := testsystem.Initramfs(initrd, testsystem.Options{Version: "7", KernelRoot: k.Root, Modules: modules})
	if err != nil {
		t.Fatal(err)
	}
	return qemu.Machine{
		Kernel: k.Image, Initrd: initrd,
		Append: qemu.FastArgs + " console=ttyS0 panic=1 rdinit=/init",
	}
}

func image(t *testing.T, name, begin string, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(begin), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	return file
}

func run(t *testing.T, vm *qemu.Device, command ...string) string {
	t.Helper()
	out, status, err := testsystem.Run(vm.VM, patience, command...)
	if err != nil {
		t.Fatal(err)
	}
	if status != 0 {
		t.Fatalf("%q: exit %d: %s", command, status, out)
	}
	return out
}

func TestLifeOfADevice(t *testing.T) {
	t.Parallel()
	k := qemu.NeedKernel(t, "cloud")
	m := machine(t, k, virtioBlk...)
	m.Disk = image(t, "disk.img", "", 1<<20)
	start := time.Now()
	vm := qemu.Test(t, m)
	if match := vm.Expect(patience, `SYSTEM UP version=(\S+)`); match[1] != "7" {
		t.Errorf("version %q, want 7", match[1])
	}
	t.Logf("cold boot %v", time.Since(start))
	vm.Expect(patience, `SYSTEM READY`)

	if got := run(t, vm, "cat", "/proc/sys/kernel/osrelease"); got != k.Release {
		t.Errorf("kernel %q, want %q", got, k.Release)
	}
	run(t, vm, "write", "/dev/vda", "written-by-the-guest")
	vm.Cut()
	got, err := os.ReadFile(m.Disk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(got, []byte("written-by-the-guest")) {
		t.Errorf("disk begins with %q after the power cut", got[:20])
	}
	if _, err := vm.VM.Expect(patience, `SYSTEM UP`); !errors.Is(err, qemu.ErrEnded) {
		t.Errorf("expect without power: %v, want ErrEnded", err)
	}
	if err := vm.VM.Reset(); !errors.Is(err, qemu.ErrEnded) {
		t.Errorf("reset without power: %v, want ErrEnded", err)
	}

	vm.PowerOn()
	vm.Expect(patience, `SYSTEM READY`)
	vm.Reset()
	if e := vm.Event(patience, "RESET"); e.Reason() != "host-qmp-system-reset" {
		t.Errorf("reset by the host: reason %q", e.Reason())
	}
	vm.Expect(patience, `SYSTEM READY`)
	vm.Type("reboot\n")
	if e := vm.Event(patience, "RESET"); e.Reason() != "guest-reset" {
		t.Errorf("reset by the guest: reason %q", e.Reason())
	}
	vm.Expect(patience, `SYSTEM READY`)
	if _, err := vm.VM.Expect(time.Millisecond, `SYSTEM UP`); !errors.Is(err, qemu.ErrTimeout) {
		t.Errorf("expect what was read already: %v, want ErrTimeout", err)
	}
	vm.Type("poweroff\n")
	if e := vm.Event(patience, "SHUTDOWN"); e.Reason() != "guest-shutdown" {
		t.Errorf("power off: reason %q", e.Reason())
	}
	vm.Off(patience)
	if n := strings.Count(vm.Console(), "SYSTEM UP version=7\n"); n != 4 {
		t.Errorf("console shows %d boots, want 4", n)
	}
}

func TestSticks(t *testing.T) {
	t.Parallel()
	k := qemu.NeedKernel(t, "generic")
	m := machine(t, k, usb...)
	first, second := image(t, "first.img", "FIRST", 1<<20), image(t, "second.img", "SECOND", 2<<20)
	m.Sticks = []qemu.Stick{{Name: "first", File: first}}
	start := time.Now()
	vm := qemu.Test(t, m)
	vm.Expect(patience, `SYSTEM UP`)
	t.Logf("cold boot %v", time.Since(start))
	vm.Expect(patience, `\[sda\] Attached SCSI`)
	if got := run(t, vm, "head", "5", "/dev/sda"); got != "4649525354" {
		t.Errorf("first stick begins with %s", got)
	}
	vm.PullStick("first")
	vm.Expect(patience, `USB disconnect`)
	plugged := time.Now()
	vm.PlugStick(qemu.Stick{Name: "second", File: second})
	vm.Expect(patience, `\[sda\] Attached SCSI`)
	t.Logf("plugged in to attached %v", time.Since(plugged))
	if got := run(t, vm, "head", "6", "/dev/sda"); got != "5345434f4e44" {
		t.Errorf("second stick begins with %s", got)
	}
	run(t, vm, "write", "/dev/sda", "thanks")
	vm.PullStick("second")
	if err := vm.VM.PullStick("second"); err == nil {
		t.Error("a stick was pulled out twice")
	}
	if got, err := os.ReadFile(second); err != nil || !bytes.HasPrefix(got, []byte("thanks")) {
		t.Errorf("second stick begins with %q, %v", got[:6], err)
	}
	// The same name is free again, and survives a power cut.
	vm.PlugStick(qemu.Stick{Name: "second", File: second, ReadOnly: true})
	vm.Expect(patience, `\[sda\] Attached SCSI`)
	vm.Cut()
	vm.PowerOn()
	vm.Expect(patience, `\[sda\] Attached SCSI`)
}

func TestWatchdog(t *testing.T) {
	t.Parallel()
	k := qemu.NeedKernel(t, "generic")
	vm := qemu.Test(t, machine(t, k, "i6300esb"))
	vm.Expect(patience, `SYSTEM READY`)
	vm.Type("hang\n")
	vm.Expect(patience, `SYSTEM HANGS: <nil>`)
	armed := time.Now()
	if e := vm.Event(patience, "WATCHDOG"); e.Data["action"] != "reset" {
		t.Errorf("watchdog: %v", e.Data)
	}
	t.Logf("reset %v after the last sign of life", time.Since(armed))
	vm.Expect(patience, `SYSTEM READY`)
}

// A panic's last words are in the error record storage at the next boot, on both kernels, even after a power cut.
func TestPanicIsKept(t *testing.T) {
	for _, flavour := range []string{"cloud", "generic"} {
		t.Run(flavour, func(t *testing.T) {
			t.Parallel()
			vm := qemu.Test(t, machine(t, qemu.NeedKernel(t, flavour)))
			vm.Expect(patience, `SYSTEM READY`)
			if got := run(t, vm, "ls", "/sys/fs/pstore"); got != "" {
				t.Errorf("pstore of a new machine holds %q", got)
			}
			vm.Type("panic\n")
			vm.Event(patience, "RESET")
			vm.Cut()
			vm.PowerOn()
			vm.Expect(patience, `SYSTEM READY`)
			files := strings.Fields(run(t, vm, "ls", "/sys/fs/pstore"))
			if len(files) == 0 {
				t.Fatal("pstore is empty after a panic")
			}
			t.Logf("%q", files)
			if got := run(t, vm, "cat", "/sys/fs/pstore/"+files[0]); !strings.Contains(got, "Panic#1") {
				t.Errorf("%s:\n%s", files[0], got)
			}
		})
	}
}

func TestStartRefuses(t *testing.T) {
	k := qemu.NeedKernel(t, "cloud")
	for name, m := range map[string]qemu.Machine{
		"no kernel":     {},
		"kernel absent": {Kernel: "/absent"},
		"disk absent":   {Kernel: k.Image, Disk: "/absent"},
		"stick's name":  {Kernel: k.Image, Sticks: []qemu.Stick{{Name: "a,b", File: k.Image}}},
		"QEMU's option": {Kernel: k.Image, Args: []string{"-device", "no-such-device"}},
	} {
		t.Run(name, func(t *testing.T) {
			vm, err := qemu.Start(t.Context(), m)
			if err == nil {
				vm.Close()
				t.Fatal("started")
			}
			if name == "QEMU's option" && !strings.Contains(err.Error(), "no-such-device") {
				t.Errorf("error without QEMU's reason: %v", err)
			}
		})
	}
}
