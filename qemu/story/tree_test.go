package story

import (
	"testing"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// treeConfig makes the slots of [scene.Config] take archives.
func treeConfig(integrity string) map[string]string {
	c := map[string]string{}
	for _, slot := range []string{"slot.rootfs.0", "slot.rootfs.1"} {
		c[slot+" type"] = "ext4"
		c[slot+" integrity"] = integrity
	}
	return c
}

// A stick brings an archive: the slot holds a file system of it, which its system may write to, and what it writes is there at
// the next boot, and after a power cut.
func TestTree(t *testing.T) {
	for _, tt := range []struct{ integrity, format, auth string }{
		{"none", "tar.zst", "at install only"},
		{"hmac-sha256", "tar.xz", "keyed integrity"},
	} {
		t.Run(tt.integrity, func(t *testing.T) {
			d := special(t, scene.Options{Config: treeConfig(tt.integrity)})
			stick := d.update(t, "2.0", testsystem.Good, testsystem.Options{Format: tt.format}, scene.BundleOptions{ImageName: "rootfs." + tt.format})
			vm := scene.Start(t, d.Machine(d.disk(t, "tree"), stick))
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
		})
	}
}
