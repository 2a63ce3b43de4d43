package story

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	_ "lifeboat/dm" // what is tested: without this its result would be taken from go's cache
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// What package dm says of dm-integrity is so in the kernel of a device, with a disk to write to.
func TestIntegrity(t *testing.T) {
	t.Parallel()
	k := qemu.NeedKernel(t, "cloud")
	dir := t.TempDir()
	program, initrd, disk := filepath.Join(dir, "test"), filepath.Join(dir, "cpio"), filepath.Join(dir, "disk")
	if err := build("test", "-c", "-ldflags=-s -w", "-o", program, "lifeboat/dm"); err != nil {
		t.Fatal(err)
	}
	err := testsystem.Initramfs(initrd, testsystem.Options{
		Version: "integrity", Files: map[string]string{"usr/bin/test": program},
		KernelRoot: k.Root, Modules: []string{"virtio_pci", "virtio_blk", "dm_integrity"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, nil, 0o644); err != nil || os.Truncate(disk, 64<<20) != nil {
		t.Fatal(err)
	}
	vm := scene.Start(t, qemu.Machine{Kernel: k.Image, Initrd: initrd, Disk: disk, Append: scene.Cmdline + " rdinit=/init"})
	vm.Ready()
	out, _, err := testsystem.Run(vm.VM, 2*time.Minute, "/usr/bin/test", "-test.v", "-test.run", "TestIntegrity$", "-scratch", "/dev/vda")
	if err != nil || !strings.Contains(out, "--- PASS: TestIntegrity ") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, f := range regexp.MustCompile(`figure: .*`).FindAllString(out, -1) {
		t.Log(f)
	}
}
