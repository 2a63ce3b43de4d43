package story

import (
	"strings"
	"testing"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// A distribution comes as an archive, runs from a file system on dm-integrity with a key, says good, and writes to its root.
func TestDebianTree(t *testing.T) {
	t.Parallel()
	qemu.NeedKernel(t, "generic")
	d := special(t, scene.Options{Config: treeConfig("hmac-sha256")})
	image, size := d.debian(t, "debian.tar.zst", testsystem.DebianOptions{Watchdog: "off", Archive: true})
	update, err := d.Bundle("update.raucb", image, scene.BundleOptions{Version: "2.0", ImageName: "rootfs.tar.zst"})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := d.Scene.Disk("large.img", map[string]string{"A": d.Path("1.0.raucb")}, map[string]int64{"rootfs": 400 << 20})
	if err != nil {
		t.Fatal(err)
	}
	m := d.Machine(disk, d.stick(t, "2.0", update))
	m.CPU, m.Append = "max", m.Append+" systemd.show_status=error"
	vm := scene.Start(t, m)
	vm.Expect(debianPatience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	if v := vm.ReadyIn(debianPatience); v != "2.0" {
		t.Fatalf("version %s", v)
	}
	if got := vm.RunIn(debianPatience, "systemctl", "is-system-running", "--wait"); got != "running" {
		t.Errorf("the system is %s\n%s", got, vm.Run("systemctl", "--failed", "--no-pager"))
	}
	r := vm.Status()
	b := slot(r, "B")
	if r.Booted.Slot != "rootfs.1" || r.Booted.Authenticity != "keyed integrity" || !b.Good || b.Version != "2.0" {
		t.Errorf("booted %+v, B %+v", r.Booted, b)
	}
	if got := vm.Run("findmnt", "-no", "FSTYPE,OPTIONS", "/"); !strings.HasPrefix(strings.Join(strings.Fields(got), " "), "ext4 rw,relatime,errors=remount-ro") {
		t.Errorf("/ is %q", got)
	}
	for _, w := range r.Workers {
		t.Logf("%s took %d KiB", w.Role, w.MaxRSSKiB)
	}
	for _, p := range r.Phases {
		if p.Name == "update" {
			t.Logf("figure: a Debian of %d MiB, packed, installed as a tree on dm-integrity in %.0f s", size>>20, p.MS/1000)
		}
	}
	vm.Run("dpkg-divert", "--local", "--add", "/etc/written") // writes to /var/lib
	vm.Reset()
	vm.Expect(debianPatience, `lifeboat: boot 2 slot rootfs\.1 \(B\) version 2\.0 confirmed\n`)
	if v := vm.ReadyIn(debianPatience); v != "2.0" {
		t.Fatalf("version %s", v)
	}
	if out := vm.Run("bootcount", "status"); strings.Contains(out, "Damage") {
		t.Error(out)
	}
}
