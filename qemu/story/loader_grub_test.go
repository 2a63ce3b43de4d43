package story

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/boot"
	"lifeboat/boot/grub"
	"lifeboat/disk"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// grubDevice is a device that GRUB starts, with system 1.0 in slot A, 2.0 in B where both are, and blank environments.
type grubDevice struct {
	*staged
	*scene.Device
	t     *testing.T
	image string
	with  scene.BundleOptions
}

func startGRUB(t *testing.T, firmware scene.Firmware, both bool) *grubDevice {
	t.Helper()
	qemu.NeedKernel(t, "generic")
	conf := scene.LoaderConfig("grub")
	conf["system boot-attempts"] = "2"
	s, err := scene.New(filepath.Join(workDir, fileName(t)), scene.Options{Config: conf})
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := s.BootImage("boot.img", "")
	if err != nil {
		t.Fatal(err)
	}
	d := &grubDevice{staged: &staged{Scene: s}, t: t, with: scene.BundleOptions{With: map[string]string{"boot": kernel}}}
	fill := map[string]string{"A": d.bundle(t, "1.0.raucb", "1.0", testsystem.Good, testsystem.Options{}, d.with)}
	if both {
		fill["B"] = d.bundle(t, "2.0.raucb", "2.0", testsystem.Good, testsystem.Options{}, d.with)
	}
	d.image, err = s.LoaderDisk("disk.img", nil, fill, map[string]int64{"rootfs": slotSize})
	if err != nil {
		t.Fatal(err)
	}
	script, err := exec.Command(filepath.Join(s.Bin, "lifeboat"), "bootloader", "grub.cfg", "--config", s.Conf, "--disk", d.image, "--cmdline", scene.FirmwareCmdline).Output()
	if err != nil {
		t.Fatalf("lifeboat bootloader grub.cfg: %v", err)
	}
	blank := s.Path("grubenv")
	if out, err := exec.Command("grub-editenv", blank, "create").CombinedOutput(); err != nil {
		t.Fatalf("grub-editenv: %v\n%s", err, out)
	}
	env, err := os.ReadFile(blank)
	if err != nil {
		t.Fatal(err)
	}
	d.write(map[string][]byte{"grub/grub.cfg": script, "grub/grubenv": env, "grub/grubenv.2": env})
	if err := s.GRUB(d.image, firmware); err != nil {
		t.Fatal(err)
	}
	m, err := s.FirmwareMachine(firmware, d.image)
	if err != nil {
		t.Fatal(err)
	}
	d.Device = scene.Start(t, m)
	return d
}

func (d *grubDevice) write(files map[string][]byte) {
	d.t.Helper()
	if err := scene.WriteFAT(d.image, "esp", files); err != nil {
		d.t.Fatal(err)
	}
}

func (d *grubDevice) starts(slot, version, how string) {
	d.t.Helper()
	d.Expect(scene.Patience, fmt.Sprintf(`lifeboat: GRUB starts slot %s\n`, slot))
	d.Expect(scene.Patience, fmt.Sprintf(`lifeboat: boot \d+ slot rootfs\.%d \(%s\) version %s %s`, slot[0]-'A', slot, version, how))
}

func (d *grubDevice) ready(version string) {
	d.t.Helper()
	if v := d.Ready(); v != version {
		d.t.Fatalf("version %s", v)
	}
}

// list is what grub-editenv says of a copy, one line each.
func (d *grubDevice) list(name string) string {
	d.t.Helper()
	b, err := scene.ReadFAT(d.image, "esp", "grub/"+name)
	if err != nil {
		d.t.Fatal(err)
	}
	file := d.Path("list-" + name)
	if err := os.WriteFile(file, b, 0o644); err != nil {
		d.t.Fatal(err)
	}
	out, err := exec.Command("grub-editenv", file, "list").Output()
	if err != nil {
		d.t.Fatalf("grub-editenv list: %v", err)
	}
	return string(out)
}

// fallsBack brings a system that fails on a stick: it is installed beside the one that runs, started twice, and left for that.
func (d *grubDevice) fallsBack(version string, fails testsystem.Behaviour, slot, runs, installed, fallback string) {
	d.t.Helper()
	other := map[string]string{"A": "B", "B": "A"}[slot]
	d.PlugStick(qemu.Stick{Name: "bad", File: d.update(d.t, version, fails, testsystem.Options{}, d.with)})
	d.Reset()
	d.Expect(scene.Patience, "lifeboat: GRUB starts slot "+slot+"\n")
	d.Expect(scene.Patience, "lifeboat: "+installed+"\n")
	d.starts(other, version, "trial tries=1\n")
	d.starts(other, version, "trial tries=0\n")
	d.Expect(scene.Patience, "lifeboat: GRUB starts slot "+slot+"\n")
	d.Expect(scene.Patience, "lifeboat: "+fallback+"\n")
	d.ready(runs)
}

// GRUB on BIOS chooses and counts, and each slot goes on with its own kernel: an update that is good, one that never says so,
// and what grub-editenv sees of it.
func TestGRUB(t *testing.T) {
	t.Parallel()
	d := startGRUB(t, scene.SeaBIOS, false)
	d.starts("A", "1.0", "")
	d.ready("1.0")
	d.PlugStick(qemu.Stick{Name: "good", File: d.update(t, "2.0", testsystem.Good, testsystem.Options{}, d.with)})
	d.Reset()
	d.Expect(scene.Patience, `lifeboat: GRUB starts slot A\n`)
	d.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	d.starts("B", "2.0", "trial tries=1\n")
	d.ready("2.0")
	if line := d.Run("cat", "/proc/cmdline"); !strings.Contains(line, "rauc.slot=B") {
		t.Errorf("the command line is %q", line)
	}
	d.PullStick("good")

	d.fallsBack("3.0", testsystem.Silent, "B", "2.0", `installed 3\.0 to rootfs\.0 \(A\)`, "fallback from A to B reason=exhausted")
	d.PullStick("bad")
	d.Cut()
	list := d.list("grubenv")
	if !strings.Contains(list, "\nORDER=B A\n") || !strings.Contains(list, "\nB_OK=1\nB_TRY=0\n") || strings.Contains(list, "\nA_OK=1\nA_TRY=0\n") {
		t.Errorf("grub-editenv lists\n%s", list)
	}
	if shadow := d.list("grubenv.2"); shadow != list {
		t.Errorf("the copies differ after `good`:\n%s\n%s", list, shadow)
	}
}

// env is a copy of the environment in which B comes first.
func (d *grubDevice) env() []byte {
	d.t.Helper()
	m := disk.NewMemory(grub.Size)
	l, err := grub.New([]disk.Device{m}, []string{"A", "B"})
	if err != nil {
		d.t.Fatal(err)
	}
	if err := l.Write(boot.Vars{Order: []boot.Turn{{Name: "B", Tries: 2}, {Name: "A", Tries: 2}}}); err != nil {
		d.t.Fatal(err)
	}
	b := make([]byte, grub.Size)
	if _, err := m.ReadAt(b, 0); err != nil {
		d.t.Fatal(err)
	}
	return b
}

// Of the environments one is damaged, then both, then both slots: a slot that is right boots while there is one, and only one
// restart more comes of it.
func TestGRUBLost(t *testing.T) {
	t.Parallel()
	d := startGRUB(t, scene.SeaBIOS, true)
	d.starts("A", "1.0", "")
	d.ready("1.0")
	d.Cut()
	garbage := bytes.Repeat([]byte("garbage "), grub.Size/8)
	d.write(map[string][]byte{"grub/grubenv": garbage, "grub/grubenv.2": d.env()})
	d.PowerOn()
	d.starts("B", "2.0", "")
	d.ready("2.0")
	d.Cut()
	if list := d.list("grubenv"); !strings.Contains(list, "\nORDER=B A\n") || list != d.list("grubenv.2") {
		t.Errorf("the copies are not whole again:\n%s", list)
	}

	// Both: GRUB starts A, and early boot knows better.
	d.write(map[string][]byte{"grub/grubenv": garbage, "grub/grubenv.2": garbage})
	d.PowerOn()
	d.Expect(scene.Patience, `lifeboat: GRUB starts slot A\n`)
	d.starts("B", "2.0", "confirmed")
	d.ready("2.0")
	d.Cut()

	for _, slot := range []string{"rootfs.0", "rootfs.1"} {
		edit(t, d.image, slot, func(b []byte) { clear(b[len(b)-128<<10:]) })
	}
	d.PowerOn()
	d.Expect(scene.Patience, `lifeboat: rescue reason=`)
}

// GRUB on UEFI: a system that crashes is left, and the kernel of a slot that cannot be loaded costs no more than a try.
func TestGRUBonUEFI(t *testing.T) {
	t.Parallel()
	d := startGRUB(t, scene.OVMF, false)
	d.starts("A", "1.0", "")
	d.ready("1.0")
	d.fallsBack("2.0", testsystem.Panic, "A", "1.0", `installed 2\.0 to rootfs\.1 \(B\)`, "fallback from B to A reason=panic")
	d.Cut()

	// Somebody wants B, whose kernel is gone.
	edit(t, d.image, "boot.1", func(b []byte) { clear(b[:1<<20]) })
	env := d.env()
	d.write(map[string][]byte{"grub/grubenv": env, "grub/grubenv.2": env})
	d.PowerOn()
	d.Expect(scene.Patience, `lifeboat: slot B cannot be loaded\n`)
	d.starts("A", "1.0", "")
	d.ready("1.0")
}
