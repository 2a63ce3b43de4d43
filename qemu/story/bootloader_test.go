package story

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/update"
)

// The boot loader lies in the first partition, which the table moves between two halves of a region: GRUB's grub.cfg is what
// a bundle brings. An update from a stick, in early boot, and one in the running system: GRUB starts from the other half each
// time, whatever the kernel thought of the first partition until then.
func TestBootloaderSwitch(t *testing.T) {
	t.Parallel()
	qemu.NeedKernel(t, "generic")
	const half = 2 << 20
	dir := filepath.Join(workDir, fileName(t))
	conf := map[string]string{
		"slot.bootloader.0 device": "/dev/vda", "slot.bootloader.0 type": "boot-gpt-switch",
		"slot.bootloader.0 region-start": "1M", "slot.bootloader.0 region-size": "4M", // mended below
	}
	s, err := scene.New(dir, scene.Options{Config: conf})
	if err != nil {
		t.Fatal(err)
	}
	d := &staged{Scene: s}
	image, err := s.Disk("disk.img", map[string]string{"A": d.bundle(t, "first.raucb", "1.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})},
		map[string]int64{"rootfs": 2 * slotSize})
	if err != nil {
		t.Fatal(err)
	}
	// Behind what the image has there are the kernel's partition, which nothing changes, and the region.
	info, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	tool := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	if err := os.Truncate(image, info.Size()+52<<20); err != nil {
		t.Fatal(err)
	}
	tool("sgdisk", "-e", "-n", "20:0:+40M", "-c", "20:kernel", "-n", "21:0:+2M", "-c", "21:esp", "-r", "1:21", image)
	start, kernel := place(t, image, "esp"), place(t, image, "kernel")
	if start.Index != 1 || start.Size != half {
		t.Fatalf("%+v", start)
	}
	text := strings.Replace(scene.Config(conf), "region-start=1M", fmt.Sprintf("region-start=%d", start.Start), 1)
	if err := errors.Join(os.WriteFile(s.Conf, []byte(text), 0o644), s.MakeInitrd(s.Initrd)); err != nil {
		t.Fatal(err)
	}
	vmlinuz, err := os.ReadFile(filepath.Join(s.Kernel.Root, "vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	initramfs, err := os.ReadFile(s.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := s.FAT("kernel.fat", kernel.Size, map[string][]byte{scene.KernelFile: vmlinuz, scene.InitrdFile: initramfs})
	if err != nil {
		t.Fatal(err)
	}
	loader := func(version string) string {
		t.Helper()
		from := fmt.Sprintf("(hd0,gpt%d)/", kernel.Index)
		script := "echo boot loader " + version + " starts\nlinux " + from + scene.KernelFile + " " + scene.FirmwareCmdline + "\ninitrd " + from + scene.InitrdFile + "\nboot\n"
		f, err := s.FAT("loader-"+version+".fat", 1<<20, map[string][]byte{"grub/grub.cfg": []byte(script)})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	put := func(file string, at int64) {
		t.Helper()
		tool("dd", "if="+file, "of="+image, "bs=1M", fmt.Sprintf("seek=%d", at), "oflag=seek_bytes", "conv=notrunc,sparse")
	}
	put(fs, kernel.Start)
	put(loader("1"), start.Start)
	if err := s.GRUB(image, scene.SeaBIOS); err != nil {
		t.Fatal(err)
	}
	with := func(version string) scene.BundleOptions {
		return scene.BundleOptions{With: map[string]string{"bootloader": loader(version)}}
	}
	third := d.bundle(t, "third.raucb", "3.0", testsystem.Good, testsystem.Options{}, with("3"))
	second := d.update(t, "2.0", testsystem.Good, testsystem.Options{Files: map[string]string{"third.raucb": third}}, with("2"))
	active := func(half int64) {
		t.Helper()
		if at := place(t, image, "esp"); at.Index != 1 || at.Start != start.Start+half || at.Size != start.Size {
			t.Errorf("the first partition is %+v", at)
		}
		if out := tool("sgdisk", "-v", image); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk: %s", out)
		}
	}

	m, err := s.FirmwareMachine(scene.SeaBIOS, image, second)
	if err != nil {
		t.Fatal(err)
	}
	vm := scene.Start(t, m)
	starts := func(loader string) {
		t.Helper()
		vm.Expect(scene.Patience, "boot loader "+loader+" starts")
	}
	ready := func(version string) {
		t.Helper()
		if v := vm.Ready(); v != version {
			t.Fatalf("version %s", v)
		}
	}
	starts("1")
	vm.Expect(scene.Patience, `lifeboat: writing the boot loader bootloader\.0/1 of version 2\.0\n`)
	vm.Expect(scene.Patience, `lifeboat: switching to the boot loader bootloader\.0/1\n`)
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	ready("2.0")
	active(half)
	// The kernel knows already where the first partition is now, and the one that was made for writing is gone.
	sectors := vm.Run("cat", "/sys/class/block/vda1/start")
	if want := fmt.Sprint((start.Start + half) / 512); strings.TrimSpace(sectors) != want {
		t.Errorf("vda1 begins at %s, want %s", sectors, want)
	}
	exits(t, vm, -1, "no such file", "cat", "/sys/class/block/vda255/start")
	seen := 0
	for _, w := range vm.Status().Workers {
		if w.Role == update.RoleLoader || w.Role == update.RoleLoaded {
			t.Logf("worker %s: %d KiB", w.Role, w.MaxRSSKiB)
			seen++
		}
		if w.MaxRSSKiB > 24<<10 {
			t.Errorf("worker %s had %d KiB", w.Role, w.MaxRSSKiB)
		}
	}
	if seen != 4 { // what is started, what is to be written; written; read back
		t.Errorf("%d workers for the boot loader", seen)
	}

	// The second half is started; the running system writes the first one.
	vm.PullStick("stick0")
	vm.Reset()
	starts("2")
	ready("2.0")
	exits(t, vm, 0, `switching to the boot loader bootloader\.0/0`, "/usr/bin/bootcount", "install", "/third.raucb")
	active(0)
	exits(t, vm, 0, `(?m)^Loader +bootloader\.0: copy 0 is started`, "/usr/bin/bootcount", "status")
	if out, _, err := testsystem.Run(vm.VM, scene.Patience, "/usr/bin/bootcount", "doctor"); err != nil || !strings.Contains(out, "ok    boot      bootloader.0: copy 0 is started") {
		t.Errorf("doctor (%v): %s", err, out)
	}
	vm.Reset()
	starts("3")
	if os.Getenv("LIFEBOAT_LOADERS") == "all" {
		ready("3.0")
	}
}

func place(t *testing.T, image, label string) disk.Partition {
	t.Helper()
	p, err := scene.Place(image, label)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
