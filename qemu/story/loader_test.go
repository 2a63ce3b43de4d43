package story

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/boot"
	"lifeboat/boot/grub"
	"lifeboat/disk"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// loaderDevice is a device that GRUB or U-Boot starts, with system 1.0 in slot A, nothing in B, blank variables, and two
// tries for a slot. An update that is good and one that falls back is what qemu/powercut records, and starts again from what
// power cuts leave of it.
type loaderDevice struct {
	*staged
	*scene.Device
	t     *testing.T
	image string
	with  scene.BundleOptions
}

func startLoader(t *testing.T, firmware scene.Firmware) *loaderDevice {
	t.Helper()
	return startImage(t, firmware, func(s *scene.Scene) (string, error) { return s.BootImage("boot.img", "") })
}

// startImage is startLoader with boot slots that hold the image that boot makes, and flags for the script that starts it.
func startImage(t *testing.T, firmware scene.Firmware, boot func(*scene.Scene) (string, error), flags ...string) *loaderDevice {
	t.Helper()
	qemu.NeedKernel(t, "generic")
	name := "grub"
	if firmware == scene.UBoot {
		name = "uboot"
	}
	conf := scene.LoaderConfig(name)
	conf["system boot-attempts"] = "2"
	s, err := scene.New(filepath.Join(workDir, fileName(t)), scene.Options{Config: conf})
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := boot(s)
	if err != nil {
		t.Fatal(err)
	}
	d := &loaderDevice{staged: &staged{Scene: s}, t: t, with: scene.BundleOptions{With: map[string]string{"boot": kernel}}}
	first := d.bundle(t, "1.0.raucb", "1.0", testsystem.Good, testsystem.Options{}, d.with)
	if d.image, err = s.StartedBy(firmware, "disk.img", map[string]string{"A": first}, map[string]int64{"rootfs": slotSize}, flags...); err != nil {
		t.Fatal(err)
	}
	m, err := s.FirmwareMachine(firmware, d.image)
	if err != nil {
		t.Fatal(err)
	}
	d.Device = scene.Start(t, m)
	d.starts("A", "1.0", "")
	d.ready("1.0")
	return d
}

// chosen waits until the boot loader starts a slot's kernel.
func (d *loaderDevice) chosen(slot string) {
	d.t.Helper()
	d.Expect(scene.Patience, fmt.Sprintf(`lifeboat: (GRUB|U-Boot) starts slot %s\n`, slot))
}

func (d *loaderDevice) starts(slot, version, how string) {
	d.t.Helper()
	d.chosen(slot)
	d.Expect(scene.Patience, fmt.Sprintf(`lifeboat: boot \d+ slot rootfs\.%d \(%s\) version %s %s`, slot[0]-'A', slot, version, how))
}

func (d *loaderDevice) ready(version string) {
	d.t.Helper()
	if v := d.Ready(); v != version {
		d.t.Fatalf("version %s", v)
	}
}

// installs plugs a stick in, by which a version comes into slot B.
func (d *loaderDevice) installs(version string, does testsystem.Behaviour, with scene.BundleOptions) {
	d.t.Helper()
	d.PlugStick(qemu.Stick{Name: "bad", File: d.update(d.t, version, does, testsystem.Options{}, with)})
	d.Reset()
	d.chosen("A")
	d.Expect(2*scene.Patience, `lifeboat: installed `+version+` to rootfs\.1 \(B\)\n`)
}

// fallsBack waits until 1.0 runs again.
func (d *loaderDevice) fallsBack(reason string) {
	d.t.Helper()
	d.chosen("A")
	d.Expect(scene.Patience, "lifeboat: fallback from B to A reason="+reason+"\n")
	d.ready("1.0")
	d.PullStick("bad")
}

// A slot whose kernel hangs before there is an early boot, and one whose system hangs or crashes after the hand-over, are
// left when the boot loader has counted their tries. Nothing watches a boot loader's kernel here: a person switches the
// device off and on. LIFEBOAT_LOADERS=all: each of them with each boot loader.
func TestLoaderHangs(t *testing.T) {
	all := os.Getenv("LIFEBOAT_LOADERS") == "all"
	kernel := func(d *loaderDevice) {
		d.installs("2.0", testsystem.Good, scene.BundleOptions{With: map[string]string{"boot": d.deadKernel()}})
		for range 2 {
			d.chosen("B")
			time.Sleep(2 * time.Second) // it is in its loop
			d.Cut()
			d.PowerOn()
		}
		d.fallsBack("exhausted")
	}
	system := func(d *loaderDevice) {
		d.installs("3.0", testsystem.Hang, d.with)
		for tries := range 2 {
			d.starts("B", "3.0", fmt.Sprintf("trial tries=%d\n", 1-tries))
			d.Expect(scene.Patience, `SYSTEM HANGS: <nil>\n`)
			d.Event(scene.Patience, "WATCHDOG")
		}
		d.fallsBack("watchdog")
	}
	crash := func(d *loaderDevice) {
		d.installs("4.0", testsystem.Panic, d.with)
		for tries := range 2 {
			d.starts("B", "4.0", fmt.Sprintf("trial tries=%d\n", 1-tries))
		}
		d.fallsBack("panic")
	}
	for firmware, some := range map[scene.Firmware]func(*loaderDevice){scene.SeaBIOS: kernel, scene.UBoot: system} {
		t.Run(string(firmware), func(t *testing.T) {
			t.Parallel()
			d := startLoader(t, firmware)
			if all {
				kernel(d)
				system(d)
				crash(d)
			} else {
				some(d)
			}
			d.Cut()
			for _, slot := range []string{"rootfs.0", "rootfs.1"} {
				edit(t, d.image, slot, func(b []byte) { clear(b[len(b)-128<<10:]) })
			}
			d.PowerOn()
			d.Expect(scene.Patience, `lifeboat: rescue reason=`)
		})
	}
}

// Kernel and initramfs in a FIT image, which U-Boot checks: an update, and then one that is damaged. U-Boot goes on with the
// other slot, which boots when asking for the good one twice has not helped.
func TestUBootFIT(t *testing.T) {
	t.Parallel()
	d := startImage(t, scene.UBoot, func(s *scene.Scene) (string, error) { return s.FIT("boot.itb") }, "--fit")
	d.installs("2.0", testsystem.Good, d.with)
	d.starts("B", "2.0", "trial tries=1\n")
	d.ready("2.0")
	d.PullStick("bad")
	d.Cut()
	edit(t, d.image, "boot.1", func(b []byte) { b[4<<20] ^= 1 })
	d.PowerOn()
	d.Expect(scene.Patience, `Bad hash value for 'hash-1' hash node in 'kernel' image node`)
	d.Expect(scene.Patience, `lifeboat: restarting into slot B`)
	d.Expect(scene.Patience, `lifeboat: restarting into slot B`)
	d.starts("A", "1.0", "")
}

// deadKernel makes the image of a boot slot whose kernel is a loop of one instruction, at its 32-bit entry.
func (d *loaderDevice) deadKernel() string {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join(d.Kernel.Root, "vmlinuz"))
	if err != nil {
		d.t.Fatal(err)
	}
	const setupSects = 0x1f1 // Linux's boot protocol: so many sectors follow the first one, then comes the entry
	copy(b[(int(b[setupSects])+1)*512:], []byte{0xeb, 0xfe})
	image, err := d.FAT("dead.img", 16<<20, map[string][]byte{scene.KernelFile: b, scene.InitrdFile: []byte("none")})
	if err != nil {
		d.t.Fatal(err)
	}
	return image
}

// GRUB on UEFI: a system that crashes is left, and the kernel of a slot that cannot be loaded costs no more than a try.
func TestGRUBonUEFI(t *testing.T) {
	t.Parallel()
	d := startLoader(t, scene.OVMF)
	d.installs("2.0", testsystem.Panic, d.with)
	d.starts("B", "2.0", "trial tries=1\n")
	d.starts("B", "2.0", "trial tries=0\n")
	d.fallsBack("panic")
	d.Cut()

	// Somebody wants B, whose kernel is gone.
	edit(t, d.image, "boot.1", func(b []byte) { clear(b[:1<<20]) })
	m := disk.NewMemory(grub.Size)
	l, err := grub.New([]disk.Device{m}, []string{"A", "B"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Write(boot.Vars{Order: []boot.Turn{{Name: "B", Tries: 2}, {Name: "A", Tries: 2}}}); err != nil {
		t.Fatal(err)
	}
	env := make([]byte, grub.Size)
	if _, err := m.ReadAt(env, 0); err != nil {
		t.Fatal(err)
	}
	if err := scene.WriteFAT(d.image, "esp", map[string][]byte{"grub/grubenv": env, "grub/grubenv.2": env}); err != nil {
		t.Fatal(err)
	}
	d.PowerOn()
	d.Expect(scene.Patience, `lifeboat: slot B cannot be loaded\n`)
	d.starts("A", "1.0", "")
	d.ready("1.0")
}
