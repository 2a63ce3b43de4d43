package story

import (
	"fmt"
	"maps"
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

// ubootScene is a device that U-Boot starts, with system 1.0 in slot A.
func ubootScene(t *testing.T) (d *staged, boot string) {
	t.Helper()
	qemu.NeedKernel(t, "generic")
	config := scene.LoaderConfig("uboot")
	config["system boot-attempts"] = "2"
	s, err := scene.New(filepath.Join(workDir, fileName(t)), scene.Options{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	d = &staged{Scene: s}
	if boot, err = s.BootImage("boot.img", ""); err != nil {
		t.Fatal(err)
	}
	script := s.Path("boot.scr")
	cmd := exec.Command(filepath.Join(s.Bin, "lifeboat"), "bootloader", "boot.scr", "--config", s.Conf, "--cmdline", scene.Cmdline, "--out", script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	b, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	first := d.bundle(t, "1.0.raucb", "1.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{With: map[string]string{"boot": boot}})
	d.Disk, err = s.LoaderDisk("template.img", map[string][]byte{"boot.scr": b, uboot.Files[0][1:]: make([]byte, uboot.Size), uboot.Files[1][1:]: make([]byte, uboot.Size)}, map[string]string{"A": first}, map[string]int64{"rootfs": slotSize})
	if err != nil {
		t.Fatal(err)
	}
	return d, boot
}

// ubootSays looks at the variables on a disk, of which both copies have to be whole.
func ubootSays(t *testing.T, disk, order, a, b string) {
	t.Helper()
	var vars map[string]string
	var newest byte
	for _, name := range uboot.Files {
		b, err := scene.ReadFAT(disk, "esp", name[1:])
		if err != nil {
			t.Fatal(err)
		}
		e, ok := uboot.Parse(b, true)
		if !ok {
			t.Errorf("%s is damaged", name)
		} else if vars == nil || e.Flag == newest+1 { // of a chain of writes
			vars, newest = e.Vars, e.Flag
		}
	}
	want := map[string]string{"BOOT_ORDER": order, "BOOT_A_LEFT": a, "BOOT_B_LEFT": b}
	if !maps.Equal(vars, want) {
		t.Errorf("the variables are %v, want %v", vars, want)
	}
}

// U-Boot chooses and counts, and each slot goes on with its own kernel: an update that is good, one that never says so,
// the variables lost, both slots dead.
func TestUBoot(t *testing.T) {
	t.Parallel()
	d, boot := ubootScene(t)
	image := d.disk(t, "uboot")
	m, err := d.FirmwareMachine(scene.UBoot, image)
	if err != nil {
		t.Fatal(err)
	}
	with := scene.BundleOptions{With: map[string]string{"boot": boot}}
	vm := scene.Start(t, m)
	started := func(slot, version, how string) {
		t.Helper()
		vm.Expect(scene.Patience, fmt.Sprintf(`lifeboat: boot \d+ slot rootfs\.%d \(%s\) version %s %s`, slot[0]-'A', slot, version, how))
	}
	ready := func(version string) {
		t.Helper()
		if v := vm.Ready(); v != version {
			t.Fatalf("version %s", v)
		}
		if line := vm.Run("cat", "/proc/cmdline"); !strings.Contains(line, "rauc.slot=") {
			t.Errorf("the command line is %q", line)
		}
	}
	started("A", "1.0", "")
	ready("1.0")
	vm.PlugStick(qemu.Stick{Name: "good", File: d.update(t, "2.0", testsystem.Good, testsystem.Options{}, with)})
	vm.Reset()
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	started("B", "2.0", "trial tries=1\n")
	ready("2.0")
	vm.PullStick("good")

	vm.PlugStick(qemu.Stick{Name: "bad", File: d.update(t, "3.0", testsystem.Silent, testsystem.Options{}, with)})
	vm.Reset()
	for tries := 1; tries >= 0; tries-- {
		started("A", "3.0", fmt.Sprintf("trial tries=%d\n", tries))
	}
	vm.Expect(scene.Patience, `lifeboat: fallback from A to B reason=exhausted\n`)
	started("B", "2.0", "confirmed")
	ready("2.0")
	vm.PullStick("bad")
	vm.Cut()
	ubootSays(t, image, "B A", "0", "8") // the loader has taken one for this boot

	// The variables are lost: U-Boot starts A's kernel, early boot knows better and says so, and B boots.
	garbage := []byte(strings.Repeat("garbage ", 2048))
	if err := scene.WriteFAT(image, "esp", map[string][]byte{uboot.Files[0][1:]: garbage, uboot.Files[1][1:]: garbage}); err != nil {
		t.Fatal(err)
	}
	vm.PowerOn()
	vm.Expect(scene.Patience, `lifeboat: the boot loader's variables: U-Boot's environment: .*lost\n`)
	vm.Expect(scene.Patience, `lifeboat: restarting into slot B`)
	started("B", "2.0", "confirmed")
	ready("2.0")
	vm.Cut()
	ubootSays(t, image, "B A", "0", "8") // the loader has taken one for this boot

	edit(t, image, "rootfs.1", func(b []byte) { clear(b[len(b)-128<<10:]) })
	vm.PowerOn()
	vm.Expect(scene.Patience, `lifeboat: rescue reason=`)
}
