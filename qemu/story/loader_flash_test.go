package story

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/boot/uboot"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// U-Boot's variables on a raw flash, behind the kernel's own MTD: a simulated NAND flash, which fw_setenv and fw_printenv in the
// running system know too; and a flash that outlives a power cut, a disk as the kernel's block2mtd makes one of it, read and
// changed by them from outside, as U-Boot does.
func TestFlash(t *testing.T) {
	t.Parallel()
	qemu.NeedKernel(t, "generic")
	busybox, err := filepath.Abs("../../build/peers/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	s, err := scene.New(filepath.Join(workDir, fileName(t)), scene.Options{Config: map[string]string{
		"system bootloader": "uboot", "bootloader device": "/dev/mtd0", "bootloader offsets": "0x0 0x10000", "bootloader size": "0x4000",
	}})
	if err != nil {
		t.Fatal(err)
	}
	d := &staged{Scene: s}
	files := programs(t, "/usr/bin/fw_setenv", "/usr/bin/fw_printenv")
	files["bin/busybox"] = busybox
	first := d.bundle(t, "1.0.raucb", "1.0", testsystem.Good, testsystem.Options{Files: files, Text: map[string]string{
		"etc/fw_env.config": "/dev/mtd0 0x0 0x4000 0x4000\n/dev/mtd0 0x10000 0x4000 0x4000\n", "var/lock/file": "",
	}}, scene.BundleOptions{})
	if d.Disk, err = s.Disk("template.img", map[string]string{"A": first}, map[string]int64{"rootfs": slotSize}); err != nil {
		t.Fatal(err)
	}
	start := func(t *testing.T, module string, args ...string) *scene.Device {
		t.Helper()
		m := d.Machine(d.disk(t, strings.Fields(module)[0]))
		s.Modules, m.Initrd = []string{module}, s.Path(strings.Fields(module)[0]+".initramfs")
		if err := s.MakeInitrd(m.Initrd); err != nil {
			t.Fatal(err)
		}
		m.Append += " rauc.slot=A"
		m.Args = args
		vm := scene.Start(t, m)
		vm.Expect(scene.Patience, `lifeboat: the boot loader's variables: U-Boot's environment: .*lost\n`)
		if v := vm.Ready(); v != "1.0" {
			t.Fatalf("version %s", v)
		}
		return vm
	}

	t.Run("NAND", func(t *testing.T) {
		// 16 MiB, blocks of 16 KiB, pages of 512 bytes.
		vm := start(t, "nandsim first_id_byte=0x20 second_id_byte=0x33")
		exits(t, vm, 0, "", "/bin/busybox", "mount", "-t", "tmpfs", "none", "/var/lock")
		exits(t, vm, 0, `(?s)BOOT_A_LEFT=8\nBOOT_B_LEFT=0\nBOOT_ORDER=A B`, "/usr/bin/fw_printenv")
		exits(t, vm, 0, "", "/usr/bin/fw_setenv", "serial", "LB01")
		exits(t, vm, 0, "", "/usr/bin/fw_setenv", "BOOT_A_LEFT", "4")
		exits(t, vm, 0, `uboot: A 4 tries; it differs from the record, which says A 8 tries`, "/usr/bin/bootcount", "status")
		exits(t, vm, 0, "", "/usr/bin/bootcount", "good")
		exits(t, vm, 0, `(?s)BOOT_A_LEFT=8\nBOOT_B_LEFT=0\nBOOT_ORDER=A B\nserial=LB01`, "/usr/bin/fw_printenv")
	})
	t.Run("kept", func(t *testing.T) {
		flash := s.Path("flash")
		if err := os.WriteFile(flash, bytes.Repeat([]byte{0xff}, 256<<10), 0o644); err != nil {
			t.Fatal(err)
		}
		vm := start(t, "block2mtd block2mtd=/dev/vdb,65536", "-drive", "if=none,id=flash,format=raw,file="+flash, "-device", "virtio-blk-pci,drive=flash")
		vm.Cut()
		config := s.Path("fw_env.config")
		if err := os.WriteFile(config, fmt.Appendf(nil, "%[1]s 0x0 0x4000\n%[1]s 0x10000 0x4000\n", flash), 0o644); err != nil {
			t.Fatal(err)
		}
		tool := func(name string, args ...string) string {
			t.Helper()
			out, err := exec.Command(name, append([]string{"-c", config}, args...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s %q: %v\n%s", name, args, err, out)
			}
			return string(out)
		}
		if out := tool("fw_printenv"); !strings.Contains(out, "BOOT_A_LEFT=8\nBOOT_B_LEFT=0\nBOOT_ORDER=A B\n") {
			t.Errorf("fw_printenv says:\n%s", out)
		}
		tool("fw_setenv", "BOOT_A_LEFT", "7") // U-Boot starts A
		vm.PowerOn()
		vm.Expect(scene.Patience, `lifeboat: boot \d+ slot rootfs\.0 \(A\) version 1\.0 confirmed\n`)
		vm.Ready()
		exits(t, vm, 0, `uboot: A 8 tries\n`, "/usr/bin/bootcount", "status") // told good again
		vm.Cut()
		b, err := os.ReadFile(flash)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, 0x10000} {
			if _, ok := uboot.Parse(b[at:at+0x4000], true); !ok {
				t.Errorf("the copy at %#x is damaged", at)
			}
		}
	})
}
