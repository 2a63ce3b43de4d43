package story

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// An application goes with each system, in a slot of its own: both come in one bundle, run together and fall back together.
func TestGroups(t *testing.T) {
	qemu.NeedKernel(t, "generic")
	s, err := scene.New(filepath.Join(workDir, fileName(t)), scene.Options{Config: map[string]string{
		"slot.appfs.0 device": "PARTLABEL=appfs.0", "slot.appfs.0 parent": "rootfs.0", "slot.appfs.0 mount": "/opt/app",
		"slot.appfs.1 device": "PARTLABEL=appfs.1", "slot.appfs.1 parent": "rootfs.1", "slot.appfs.1 mount": "/opt/app",
		"system require-signed-verity": "true",
	}})
	if err != nil {
		t.Fatal(err)
	}
	d := &staged{Scene: s}
	app := func(version string) string {
		tree := d.Path("app-" + version)
		out := tree + ".img"
		content := make([]byte, 8<<20)
		rand.NewChaCha8([32]byte{version[0]}).Read(content)
		for name, b := range map[string][]byte{"version": []byte("app " + version + "\n"), "content": content} {
			if err := os.MkdirAll(tree, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(tree, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if text, err := exec.Command("mksquashfs", tree, out, "-noappend", "-quiet", "-no-progress", "-all-root").CombinedOutput(); err != nil {
			t.Fatalf("mksquashfs: %v\n%s", err, text)
		}
		return out
	}
	bundle := func(version string) string {
		system := testsystem.Options{Text: map[string]string{"opt/app/README": "the application is mounted here\n"}}
		return d.bundle(t, version+".raucb", version, testsystem.Good, system, scene.BundleOptions{With: map[string]string{"appfs": app(version)}})
	}
	disk, err := s.Disk("groups.img", map[string]string{"A": bundle("1.0")}, map[string]int64{"rootfs": slotSize, "appfs": 12 << 20})
	if err != nil {
		t.Fatal(err)
	}
	two, three := d.stick(t, "2", bundle("2.0")), d.stick(t, "3", bundle("3.0"))
	runs := func(vm *scene.Device, version, device string) {
		t.Helper()
		if v := vm.Ready(); v != version {
			t.Fatalf("version %s", v)
		}
		if got := vm.Run("cat", "/opt/app/version"); strings.TrimSpace(got) != "app "+version {
			t.Errorf("with system %s runs %q", version, got)
		}
		with := vm.Status().Booted.With
		if len(with) != 1 || with[0].Mapped != "/dev/mapper/lifeboat-appfs" || with[0].Mount != "/opt/app" || with[0].Slot != device {
			t.Errorf("boot.json says of the application: %+v", with)
		}
		if got := vm.Run("head", "4", "/dev/mapper/lifeboat-appfs"); !strings.Contains(got, "68737173") {
			t.Errorf("the verified device begins with %q", got)
		}
		if got := vm.Run("cat", "/proc/mounts"); !strings.Contains(got, " /opt/app squashfs ro,") {
			t.Errorf("mounts:\n%s", got)
		}
	}
	t.Run("installed, and cut in the middle", func(t *testing.T) {
		vm := scene.Start(t, s.Machine(disk, two))
		vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
		runs(vm, "2.0", "appfs.1")
		vm.PullStick("stick0")
		vm.PlugStick(qemu.Stick{Name: "three", File: three})
		vm.Reset()
		vm.Expect(scene.Patience, `lifeboat: installing 3\.0 to rootfs\.0 \(A\)\n`)
		time.Sleep(150 * time.Millisecond)
		vm.Cut()
	})
	t.Run("falls back together", func(t *testing.T) {
		// The stick is gone: the half-written group is none, and the other one runs, both of it.
		vm := scene.Start(t, s.Machine(disk))
		vm.Expect(scene.Patience, `lifeboat: boot \d+ slot rootfs\.1 \(B\) version 2\.0 confirmed\n`)
		runs(vm, "2.0", "appfs.1")
		vm.Cut()
	})
	t.Run("installed after the cut", func(t *testing.T) {
		vm := scene.Start(t, s.Machine(disk, three))
		vm.Expect(scene.Patience, `lifeboat: installed 3\.0 to rootfs\.0 \(A\)\n`)
		runs(vm, "3.0", "appfs.0")
		vm.Cut()
	})
	// The application's content decays: the device restarts when that is read, and its first block is told at once.
	decay := func(at int) {
		t.Helper()
		if err := scene.EditPartition(disk, "appfs.0", func(b []byte) {
			if bytes.Equal(b[at:at+16], make([]byte, 16)) {
				t.Errorf("nothing lies at %d", at)
			}
			b[at] ^= 1
		}); err != nil {
			t.Fatal(err)
		}
	}
	decay(4 << 20)
	t.Run("decayed", func(t *testing.T) {
		vm := scene.Start(t, s.Machine(disk))
		runs(vm, "3.0", "appfs.0")
		vm.Type("run x cat /opt/app/content\n")
		vm.Expect(scene.Patience, `lifeboat: boot \d+ slot rootfs\.0 \(A\) version 3\.0 confirmed\n`)
		vm.Cut()
	})
	decay(0)
	t.Run("first block", func(t *testing.T) {
		vm := scene.Start(t, s.Machine(disk))
		vm.Expect(scene.Patience, `lifeboat: slot rootfs\.0 \(A\) did not start: slot appfs\.0: read the first block: .* reason=verity-error\n`)
		vm.Expect(scene.Patience, `lifeboat: fallback from A to B reason=verity-error\n`)
		runs(vm, "2.0", "appfs.1")
	})
}
