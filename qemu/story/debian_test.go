package story

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// debianPatience is for a distribution's boot on an emulated CPU that is shared.
const debianPatience = 5 * time.Minute

// A real distribution is updated to from a stick and is told good by its own units; the same system that gets stuck in
// emergency mode is rebooted by its deadline, and left.
func TestDebian(t *testing.T) {
	qemu.NeedKernel(t, "generic")
	d := special(t, scene.Options{Config: map[string]string{"watchdog timeout": "60"}})
	image, _ := d.debian(t, "debian.img", testsystem.DebianOptions{Watchdog: "60"})
	update, err := d.Bundle("update.raucb", image, scene.BundleOptions{Version: "2.0"})
	if err != nil {
		t.Fatal(err)
	}
	stick := d.stick(t, "2.0", update)
	if d.Disk, err = d.Scene.Disk("large.img", map[string]string{"A": d.Path("1.0.raucb")}, map[string]int64{"rootfs": 64 << 20}); err != nil {
		t.Fatal(err)
	}
	start := func(t *testing.T, initrd, more string) *scene.Device {
		own := stick + "-" + filepath.Base(fileName(t))
		if err := os.Link(stick, own); err != nil { // nobody writes to it
			t.Fatal(err)
		}
		m := d.Machine(d.disk(t, "debian"), own)
		m.Initrd, m.CPU, m.Append = initrd, "max", m.Append+" "+testsystem.DebianCmdline+more
		m.Sticks[0].ReadOnly = true
		vm := scene.Start(t, m)
		vm.Expect(debianPatience, `lifeboat: found update\.raucb version 2\.0 on sda\n`)
		vm.Expect(debianPatience, `lifeboat: installing 2\.0 to rootfs\.1 \(B\)\n`)
		vm.Expect(debianPatience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
		return vm
	}

	t.Run("says good", func(t *testing.T) {
		t.Parallel()
		vm := start(t, d.Initrd, "")
		vm.Expect(debianPatience, `lifeboat: boot 1 slot rootfs\.1 \(B\) version 2\.0 trial tries=2\n`)
		vm.Expect(debianPatience, `lifeboat: starting /sbin/init\n`)
		vm.Expect(debianPatience, `HEALTH CHECKED`)
		if v := vm.ReadyIn(debianPatience); v != "2.0" {
			t.Fatalf("version %s", v)
		}
		if got := vm.RunIn(debianPatience, "systemctl", "is-system-running", "--wait"); got != "running" {
			t.Errorf("the system is %s\n%s", got, vm.Run("systemctl", "--failed", "--no-pager"))
		}
		r := vm.Status()
		b := slot(r, "B")
		if r.Booted.Slot != "rootfs.1" || !r.Booted.Trial || r.Booted.Authenticity != "every boot" || !b.Good || b.Version != "2.0" || b.Tries != 8 {
			t.Errorf("booted %+v, B %+v", r.Booted, b)
		}
		if got := vm.Run("findmnt", "-no", "SOURCE,FSTYPE,OPTIONS", "/"); got != "/dev/dm-0 squashfs ro,relatime,errors=continue" {
			t.Errorf("/ is %q", got)
		}
		vm.Run("systemctl", "is-active", "lifeboat-good.service", "lifeboat-ended.service")
		// systemd has taken the watchdog over, and all else is as a device needs it; but for A, which is still on trial.
		if got := vm.RunIn(debianPatience, "bootcount", "doctor"); !strings.Contains(got, "60 s, fed by systemd (1)\n") || !strings.Contains(got, "ok    systemd") {
			t.Error(got)
		}
		vm.Reset()
		vm.Expect(debianPatience, `lifeboat: update\.raucb: nothing to do: already installed in rootfs\.1\n`)
		vm.Expect(debianPatience, `lifeboat: boot 2 slot rootfs\.1 \(B\) version 2\.0 confirmed\n`)
		vm.Expect(debianPatience, `lifeboat: starting /sbin/init\n`)
	})

	t.Run("deadline", func(t *testing.T) {
		t.Parallel()
		conf := *d.Scene
		conf.Conf = d.Path("deadline.conf")
		text := scene.Config(map[string]string{"system boot-attempts": "1", "fallback trial-deadline": "30s"})
		if err := os.WriteFile(conf.Conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		initrd := d.Path("deadline.initramfs")
		if err := conf.MakeInitrd(initrd); err != nil {
			t.Fatal(err)
		}
		vm := start(t, initrd, " "+testsystem.DebianSick)
		vm.Expect(debianPatience, `lifeboat: boot 1 slot rootfs\.1 \(B\) version 2\.0 trial tries=0\n`)
		vm.Expect(debianPatience, `lifeboat: starting /sbin/init\n`)
		vm.Expect(debianPatience, `lifeboat: refused code=31 update\.raucb: it fell back here \(trial-deadline\)`)
		vm.Expect(debianPatience, `lifeboat: fallback from B to A reason=trial-deadline\n`)
		vm.Expect(debianPatience, `lifeboat: boot 2 slot rootfs\.0 \(A\) version 1\.0 trial tries=2\n`) // as it left the factory
		if v := vm.Ready(); v != "1.0" {
			t.Fatalf("version %s", v)
		}
		if b := slot(vm.Status(), "B"); b.Good || b.Reason != "trial-deadline" {
			t.Errorf("B %+v", b)
		}
	})
}

// debian makes version 2.0 of a Debian and returns its file and how many bytes that has.
func (d *staged) debian(t *testing.T, name string, o testsystem.DebianOptions) (file string, size int64) {
	t.Helper()
	root := filepath.Dir(d.Bin)
	o.Version, o.Bootcount, o.Units, o.Cache = "2.0", filepath.Join(d.Bin, "bootcount"), filepath.Join(root, "systemd"), filepath.Join(root, "build/test")
	file = d.Path(name)
	err := testsystem.Debian(file, o)
	if errors.Is(err, testsystem.ErrNoDebian) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the image has %.1f MiB", float64(info.Size())/(1<<20))
	return file, info.Size()
}
