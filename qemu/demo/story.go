package main

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/status"
)

// patience is for one boot with an update in it: it takes 8 s on an idle machine.
const patience = 90 * time.Second

// play makes the product and tells its story.
func play(ctx context.Context, t *teller, dir string) error {
	t.step("The factory: keys, an initramfs, three systems; bundle 2.0 is made by Debian's rauc, 3.0 by lifeboat")
	p, err := manufacture(dir, "good")
	if err != nil {
		return err
	}
	m := p.Machine(p.disk)
	m.Dir, m.Output = filepath.Join(dir, "device"), t
	t.step("Power on. Slot A holds version 1.0, slot B is empty, no stick is plugged in")
	t.powered()
	vm, err := qemu.Start(ctx, m)
	if err != nil {
		return err
	}
	defer vm.Close()
	d := &device{t: t, vm: vm}

	d.expect(`boot 1 slot rootfs\.0 \(A\) version 1\.0 trial tries=2`)
	d.expect(`starting /sbin/init`)
	t.step("System 1.0 runs from slot A through dm-verity, and says that it is good")
	d.up("1.0", `rootfs\.0 \(A\) is good`)
	d.status("A is booted, and good", func(r *status.Report) bool {
		return r.Booted.Slot == "rootfs.0" && r.Booted.Version == "1.0" && entry(r, "rootfs.0").Good && entry(r, "rootfs.1").ManifestHash == ""
	})

	t.step("Somebody plugs in a stick with update-2.0.raucb, made by rauc 1.8, and reboots the device")
	d.plug("stick1", p.stick1)
	d.reboot()
	d.expect(`found update-2\.0\.raucb version 2\.0 on sda`)
	d.expect(`installing 2\.0 to rootfs\.1 \(B\)`)
	t.step("The bundle is verified; it is written to slot B, read back and sealed")
	d.expect(`installed 2\.0 to rootfs\.1 \(B\)`)
	d.expect(`boot 2 slot rootfs\.1 \(B\) version 2\.0 trial tries=2`)
	d.expect(`starting /sbin/init`)
	t.step("System 2.0 runs from slot B through dm-verity, and says that it is good")
	d.up("2.0", `rootfs\.1 \(B\) is good`)
	hash := d.manifest(filepath.Join(dir, "update-2.0.raucb"))
	d.status("B is booted, was installed from the stick and is good; A is still there", func(r *status.Report) bool {
		return r.Booted.Slot == "rootfs.1" && r.Booted.Authenticity == "at install only" && len(r.Installed) == 1 && r.Installed[0].ManifestHash == hash &&
			entry(r, "rootfs.1").Good && entry(r, "rootfs.1").ManifestHash == hash && entry(r, "rootfs.0").Good
	})

	t.step("The stick is left in, and the device reboots: there is nothing to do, so it does nothing")
	d.reboot()
	d.expect(`update-2\.0\.raucb: nothing to do: already installed in rootfs\.1`)
	d.expect(`boot 3 slot rootfs\.1 \(B\) version 2\.0 confirmed`)
	d.up("2.0", `rootfs\.1 \(B\) is good`)

	t.step("Another stick: update-3.0.raucb, made by lifeboat, whose system never says that it is good")
	d.pull("stick1")
	d.plug("stick2", p.stick2)
	d.reboot()
	d.expect(`installing 3\.0 to rootfs\.0 \(A\)`)
	d.expect(`installed 3\.0 to rootfs\.0 \(A\)`)
	for try := range 3 {
		d.expect(fmt.Sprintf(`boot %d slot rootfs\.0 \(A\) version 3\.0 trial tries=%d`, 4+try, 2-try))
		d.expect(`SYSTEM UP version=3\.0`)
		t.step("Try %d of 3: system 3.0 runs from slot A, says nothing and reboots", try+1)
		if try == 0 {
			d.pull("stick2")
		}
		d.reset()
	}
	d.expect(`fallback from A to B reason=exhausted`)
	t.step("The tries are used up: the device falls back to slot B")
	d.expect(`boot 7 slot rootfs\.1 \(B\) version 2\.0 confirmed`)
	d.up("2.0", `rootfs\.1 \(B\) is good`)
	d.status("B is booted, still good; A is exhausted", func(r *status.Report) bool {
		return r.Booted.Slot == "rootfs.1" && r.Fallback == "exhausted" && entry(r, "rootfs.1").Good && entry(r, "rootfs.1").ManifestHash == hash &&
			entry(r, "rootfs.0").Reason == "exhausted" && entry(r, "rootfs.0").Tries == 0
	})
	if d.err != nil {
		return d.err
	}
	if err := vm.Type("poweroff\n"); err != nil {
		return err
	}
	return vm.Wait(patience)
}

func entry(r *status.Report, slot string) status.Slot {
	for _, s := range r.State.Slots {
		if s.Slot == slot {
			return s
		}
	}
	return status.Slot{}
}

// device is the virtual device as the story handles it. After the first thing that did not happen nothing more is done;
// err says what it was.
type device struct {
	t   *teller
	vm  *qemu.VM
	err error
}

func (d *device) do(what string, f func() error) {
	if d.err != nil {
		return
	}
	if err := f(); err != nil {
		d.err = fmt.Errorf("%s: %w", what, err)
	}
}

// expect waits for a line of the device's console that begins with pattern, after "lifeboat: " where that is.
func (d *device) expect(pattern string) {
	d.do("not observed", func() error {
		m, err := d.vm.Expect(patience, `(?m)^(?:lifeboat: )?`+pattern)
		if err == nil {
			d.t.seen(m[0])
		}
		return err
	})
}

// up waits until the system has said that it is up, has said good, and obeys.
func (d *device) up(version, good string) {
	d.expect(`SYSTEM UP version=` + regexp.QuoteMeta(version) + `$`)
	d.expect(good)
	d.expect(`SYSTEM READY$`)
}

func (d *device) status(what string, right func(*status.Report) bool) {
	d.do("bootcount status", func() error {
		r, err := scene.Status(d.vm, patience)
		if err != nil {
			return err
		}
		if !right(r) {
			return fmt.Errorf("it does not say that %s: %s", what, r.JSON())
		}
		d.t.seen("bootcount status --json: " + what)
		return nil
	})
}

func (d *device) plug(name, file string) {
	d.do("plug in", func() error { return d.vm.PlugStick(qemu.Stick{Name: name, File: file}) })
}

func (d *device) pull(name string) {
	d.do("pull out", func() error { return d.vm.PullStick(name) })
}

// reboot tells the running system to reboot and waits until it does.
func (d *device) reboot() {
	d.do("reboot", func() error { return d.vm.Type("reboot\n") })
	d.reset()
}

// reset waits until the device resets itself.
func (d *device) reset() { d.expect(`.*reboot: Restarting system`) }

func (d *device) manifest(file string) (hash string) {
	d.do("manifest hash", func() (err error) {
		hash, err = scene.Manifest(file)
		return err
	})
	return hash
}
