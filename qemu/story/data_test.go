package story

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// A root behind dm-verity has a data partition with dm-integrity and an /etc that can be written: made at the first boot, there
// after a power cut, cleared by an update; with another key, damaged or erased it is never made again, and said.
func TestData(t *testing.T) {
	t.Parallel()
	conf := map[string]string{
		"data device": "PARTLABEL=data", "data integrity": "hmac-sha256", "data mount": "/var", "data label": "data",
		"overlay /etc": "shared", "overlay on-update": "clear",
	}
	d := special(t, scene.Options{Config: conf})
	image := d.disk(t, "data")
	stick := d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	const says = `lifeboat: data partition: .*on-error=%s\n`
	t.Run("is made", func(t *testing.T) {
		vm := scene.Start(t, d.Machine(image))
		vm.Expect(scene.Patience, `lifeboat: made the data partition\n`)
		vm.Ready()
		vm.Run("write", "/etc/mine", "kept")
		vm.Run("write", "/var/data", "kept")
		vm.Type("reboot\n")
		vm.Ready()
		vm.Run("write", "/var/late", "lost-or-not")
		vm.Cut()
		vm.PowerOn()
		vm.Ready()
		for _, f := range []string{"/etc/mine", "/var/data"} {
			if got := vm.Run("cat", f); got != "kept" {
				t.Errorf("%s holds %q", f, got)
			}
		}
		if notes := vm.Status().Notes; len(notes) > 0 {
			t.Errorf("%q", notes)
		}
		if n := strings.Count(vm.Console(), "made the data partition"); n != 1 {
			t.Errorf("made %d times", n)
		}
		vm.Cut()
	})
	t.Run("outlives an update", func(t *testing.T) {
		vm := scene.Start(t, d.Machine(image, stick))
		if v := vm.Ready(); v != "2.0" {
			t.Fatalf("version %s", v)
		}
		if list := vm.Run("ls", "/etc"); strings.Contains(list, "mine") {
			t.Errorf("/etc of the new system: %q", list)
		}
		if got := vm.Run("cat", "/var/data"); got != "kept" {
			t.Errorf("data after an update: %q", got)
		}
		vm.Cut()
		// dm-integrity's superblock and then all of the partition is gone: the system starts, and an overlay lasts as long as it does.
		for _, n := range []int64{4096, 64 << 20} {
			erase(t, image, n)
			vm.PowerOn()
			vm.Expect(scene.Patience, fmt.Sprintf(says, "continue"))
			vm.Ready()
			vm.Run("write", "/etc/mine", "new")
			vm.Cut()
		}
	})
	// Whoever cannot do without it has the device wait in rescue.
	strict := *d.Scene
	strict.Conf, strict.Initrd = d.Path("strict.conf"), d.Path("strict.initramfs")
	conf["data on-error"] = "rescue"
	if err := os.WriteFile(strict.Conf, []byte(scene.Config(conf)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := strict.MakeInitrd(strict.Initrd); err != nil {
		t.Fatal(err)
	}
	t.Run("is needed", func(t *testing.T) {
		vm := scene.Start(t, strict.Machine(image))
		vm.Expect(scene.Patience, fmt.Sprintf(says, "rescue"))
		vm.Expect(scene.Patience, `lifeboat: rescue reason=no-slot\n`)
	})
}

// erase writes zeros over the first n bytes of the data partition.
func erase(t *testing.T, image string, n int64) {
	t.Helper()
	at, err := scene.Place(image, "data")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, min(n, at.Size)), at.Start); err != nil {
		t.Fatal(err)
	}
}
