package story

import (
	"bytes"
	"os"
	"testing"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// treeConfig makes the slots of [scene.Config] take archives.
func treeConfig(integrity string) map[string]string {
	c := map[string]string{}
	for _, slot := range []string{"slot.rootfs.0", "slot.rootfs.1"} {
		c[slot+" type"] = "ext4"
		c[slot+" integrity"] = integrity
		c[slot+" label"] = treeLabel
	}
	return c
}

const treeLabel = "a-label-of-trees"

// treeDisk is a disk with system 1.0 whose slots have room for the smallest file system. It stays until the end.
func treeDisk(t *testing.T, d *staged) string {
	t.Helper()
	image, err := d.Scene.Disk("trees.img", map[string]string{"A": d.Path("1.0.raucb")}, map[string]int64{"rootfs": 40 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// A stick brings an archive: the slot holds a file system of it, which its system may write to, and what it writes is there at
// the next boot, and after a power cut.
func TestTree(t *testing.T) {
	t.Parallel()
	var damaged *staged
	var disk, stick string // of the last one
	for _, tt := range []struct {
		integrity, format string
		rauc              bool // makes the bundle
		auth              string
	}{
		{"none", "tar.gz", true, "at install only"},
		{"hmac-sha256", "tar.xz", false, "keyed integrity"},
	} {
		t.Run(tt.integrity, func(t *testing.T) {
			d := special(t, scene.Options{Config: treeConfig(tt.integrity)})
			stick = d.update(t, "2.0", testsystem.Good, testsystem.Options{Format: tt.format}, scene.BundleOptions{ImageName: "rootfs." + tt.format, Rauc: tt.rauc})
			image := treeDisk(t, d)
			vm := scene.Start(t, d.Machine(image, stick))
			vm.Expect(scene.Patience, `lifeboat: installing 2\.0 to rootfs\.1 \(B\)\n`)
			vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
			vm.Expect(scene.Patience, `lifeboat: boot 1 slot rootfs\.1 \(B\) version 2\.0 trial tries=2\n`)
			if v := vm.Ready(); v != "2.0" {
				t.Fatalf("version %s", v)
			}
			r := vm.Status()
			if r.Booted.Authenticity != tt.auth {
				t.Errorf("status %+v", r)
			}
			for _, w := range r.Workers {
				t.Logf("%s took %d KiB, PID 1 %d", w.Role, w.MaxRSSKiB, r.InitRSS)
				if w.MaxRSSKiB > 20<<10 { // the program itself, 5 MiB, is in the memory once
					t.Errorf("%s took %d KiB", w.Role, w.MaxRSSKiB)
				}
			}
			vm.Run("write", "/etc/written", "by-the-system")
			vm.Reset()
			vm.Expect(scene.Patience, `nothing to do: already installed in rootfs\.1\n`)
			if v := vm.Ready(); v != "2.0" {
				t.Fatalf("version %s", v)
			}
			if got := vm.Run("cat", "/etc/written"); got != "by-the-system" {
				t.Errorf("the file has %q", got)
			}
			vm.Cut()
			damaged, disk = d, image
		})
	}
	if disk != "" {
		treeDamage(t, damaged, disk, stick)
	}
}

// treeDamage boots a disk whose slot B, a tree on dm-integrity with a key, was damaged while the device was off: A boots where B
// cannot be mounted, and a file that cannot be read is told.
func treeDamage(t *testing.T, d *staged, image, stick string) {
	other := *d.Scene
	other.Dir = d.Path("other")
	if err := os.Mkdir(other.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other.Path("integrity.key"), bytes.Repeat([]byte("other"), 6), 0o600); err != nil {
		t.Fatal(err)
	}
	other.Initrd = other.Path("initramfs")
	if err := other.MakeInitrd(other.Initrd); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, reason string
		key          *scene.Scene
		flip         string // a bit in each place that has this
	}{
		{"superblock of dm-integrity", "unreadable", d.Scene, "integrt\x00"},
		{"superblock of the file system", "verity-error", d.Scene, treeLabel},
		{"another key", "unreadable", &other, ""},
		{"a file", "", d.Scene, "by-the-system"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk, err := d.Copy(fileName(t)+".img", image)
			if err != nil {
				t.Fatal(err)
			}
			at, err := scene.Place(disk, "rootfs.1")
			if err != nil {
				t.Fatal(err)
			}
			slot, err := scene.Partition(disk, "rootfs.1")
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(disk, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			// What lies in a journal too is damaged there as well.
			for n := 0; tt.flip != ""; n++ {
				next := bytes.Index(slot[n:], []byte(tt.flip))
				if next < 0 {
					break
				}
				n += next
				if _, err := f.WriteAt([]byte{slot[n] ^ 1}, at.Start+int64(n)); err != nil {
					t.Fatal(err)
				}
			}
			vm := scene.Start(t, tt.key.Machine(disk))
			if tt.reason != "" {
				vm.Expect(scene.Patience, `lifeboat: fallback from B to A reason=`+tt.reason+`\n`)
				if v := vm.Ready(); v != "1.0" {
					t.Errorf("version %s", v)
				}
				if tt.key == d.Scene { // a stick brings it back
					vm.PlugStick(qemu.Stick{Name: "again", File: stick})
					vm.Reset()
					vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
					vm.Expect(scene.Patience, `lifeboat: boot \d+ slot rootfs\.1 \(B\) version 2\.0 `)
					if v := vm.Ready(); v != "2.0" {
						t.Errorf("version %s", v)
					}
				}
				return
			}
			if v := vm.Ready(); v != "2.0" {
				t.Errorf("version %s", v)
			}
			exits(t, vm, -1, "input/output error", "cat", "/etc/written")
			exits(t, vm, 0, `Damage   \d+ reads`, "/usr/bin/bootcount", "status")
		})
	}
}
