package story

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/fat"
	"lifeboat/image"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/status"
)

// A technician in front of a device whose slots are both dead: the screen of the machine says what is wrong in plain
// words, sees the sticks, shows how far the update is, and how it ended. The light says so too.
func TestTechnician(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"usb led": "input0::capslock"}})
	disk := d.disk(t, "technician")
	edit(t, disk, "rootfs.0", func(b []byte) { clear(b[len(b)-128<<10:]) })
	foreign, stick := d.Path("foreign.stick"), d.Path("right.stick")
	for file, bundle := range map[string]string{
		foreign: d.bundle(t, "update.raucb", "1.9", testsystem.Good, testsystem.Options{}, scene.BundleOptions{Compatible: "another-device"}),
		stick:   d.bundle(t, "good.raucb", "2026.11-2", testsystem.Good, testsystem.Options{}, scene.BundleOptions{}),
	} {
		if err := image.Stick(file, image.StickOptions{Report: true}, []string{bundle}); err != nil {
			t.Fatal(err)
		}
	}
	m := d.Machine(disk)
	m.Kernel = filepath.Join(d.Kernel.Root, "vmlinuz") // vmlinux gets no word of a screen
	m.Args = []string{"-device", "VGA", "-smbios", "type=1,serial=SN-4711"}
	vm := scene.Start(t, m)
	see := func(lines ...string) string {
		t.Helper()
		var screen string
		for end := time.Now().Add(scene.Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			var err error
			if screen, err = vm.Screen(); err != nil {
				t.Fatal(err)
			}
			missing := 0
			for _, l := range lines {
				if !strings.Contains(screen, l) {
					missing++
				}
			}
			if missing == 0 {
				return screen
			}
		}
		t.Fatalf("the screen does not show %q but\n%s", lines, screen)
		return ""
	}
	vm.Expect(scene.Patience, `lifeboat: rescue reason=no-slot\n`)
	vm.Expect(scene.Patience, `Serial number: SN-4711\n`)
	vm.Expect(scene.Patience, `rootfs\.0 \(A\)  version 1\.0: it holds no complete system\n`)
	see("this device needs an update stick", "Device: lifeboat-demo", "Serial number: SN-4711", "rootfs.0 (A)  version 1.0: it holds no complete system",
		"rootfs.1 (B)  version (none): ", "Sticks: none seen", "What to do: plug in a USB stick")
	vm.PlugStick(qemu.Stick{Name: "foreign", File: foreign})
	vm.Expect(scene.Patience, `update\.raucb was refused \(code 27\): `)
	see("Stick: sda: QEMU HARDDISK", "update.raucb was refused (code 27): ", "It is for another device.")
	vm.PlugStick(qemu.Stick{Name: "right", File: stick})
	see("Version 2026.11-2 goes to rootfs.", "Step 2 of 3: writing", " % of ")
	vm.Expect(scene.Patience, `lifeboat: update to 2026\.11-2 finished, remove the stick\n`)
	if v := vm.Ready(); v != "2026.11-2" {
		t.Fatalf("version %s", v)
	}
	see("update to 2026.11-2 finished, remove the stick")
	if got := vm.Run("cat", "/sys/class/leds/input0::capslock/brightness"); got != "1" {
		t.Errorf("the light is %s at the end", got)
	}
	vm.Cut()
	report := leftOn(t, stick)
	for _, want := range []string{
		"Device: lifeboat-demo", "Serial number: SN-4711", "Update to 2026.11-2 finished, remove the stick (good.raucb to rootfs.",
		"code 27: update.raucb was refused: ", "rootfs.0 (A)  version ", "installed",
	} {
		if !strings.Contains(report, want) {
			t.Errorf("no %q in the report:\n%s", want, report)
		}
	}
	if other := leftOn(t, foreign); other != report {
		t.Errorf("the other stick has another report:\n%s", other)
	}
}

// leftOn is the report on a stick, without the blanks at its end.
func leftOn(t *testing.T, stick string) string {
	t.Helper()
	f, err := os.Open(stick)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const start = 1 << 20 // where image.Stick puts the file system
	fs, err := fat.Open(io.NewSectionReader(f, start, info.Size()-start), info.Size()-start)
	if err != nil {
		t.Fatal(err)
	}
	report, err := fs.Open(status.ReportFile)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, report.Size())
	if _, err := report.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(strings.ReplaceAll(string(b), "\r", ""), " \n")
}

// A disk in rescue that is taken out and comes back, repaired, is taken up at once.
func TestDiskComesBack(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	dead := d.disk(t, "dead")
	edit(t, dead, "rootfs.0", func(b []byte) { clear(b[len(b)-128<<10:]) })
	m := d.Machine("")
	m.Bay, m.Sticks = true, []qemu.Stick{{Name: "dead", File: dead, Bay: true}}
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `lifeboat: rescue reason=no-slot\n`)
	vm.PullStick("dead")
	vm.PlugStick(qemu.Stick{Name: "repaired", File: d.disk(t, "repaired"), Bay: true})
	vm.Expect(scene.Patience, `lifeboat: more of this device's disk has appeared: starting over\n`)
	boots(t, vm, 1, "A", "1.0", "trial tries=2")
}
