package story

import (
	"bytes"
	"debug/pe"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lifeboat/boot/sdboot"
	"lifeboat/fat"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// espDevice is a device that OVMF starts, whose slots' kernels are unified images in files of the ESP. Each version's image
// says on its command line whose it is.
type espDevice struct {
	*staged
	*scene.Device
	t     *testing.T
	image string
	files map[string]string // in each system
}

// startESP starts one with system 1.0 in slot A. With first, a stick with a 2.0 of it is in from the beginning. more says what
// else is in 1.0.
func startESP(t *testing.T, loader string, first testsystem.Behaviour, more func(d *espDevice) testsystem.Options) *espDevice {
	t.Helper()
	qemu.NeedKernel(t, "generic")
	conf := scene.FileConfig(loader)
	conf["system boot-attempts"] = "1"
	s, err := scene.New(filepath.Join(workDir, fileName(t)), scene.Options{Config: conf})
	if err != nil {
		t.Fatal(err)
	}
	d := &espDevice{staged: &staged{Scene: s}, t: t}
	esp := map[string][]byte{}
	if loader == "sdboot" {
		esp = d.sdboot()
	}
	for _, slot := range []string{"A", "B"} {
		esp[scene.UKIFile(slot)[1:]] = make([]byte, scene.UKISize)
	}
	if loader == "efi" {
		kernel, err := s.UKI("removable.efi", "", scene.FirmwareCmdline+" rauc.slot=A")
		if err == nil {
			esp["EFI/BOOT/BOOTX64.EFI"], err = os.ReadFile(kernel)
		}
		if err != nil {
			t.Fatal(err)
		}
		d.files = withLibraries(t, "/usr/bin/efibootmgr")
	}
	o := testsystem.Options{}
	if more != nil {
		o = more(d)
	}
	fill := d.brings("1.0", testsystem.Good, o)
	if d.image, err = s.LoaderDisk("disk.img", esp, map[string]string{"A": fill}, map[string]int64{"rootfs": 2 * slotSize}); err != nil {
		t.Fatal(err)
	}
	m, err := s.FirmwareMachine(scene.OVMF, d.image)
	if err != nil {
		t.Fatal(err)
	}
	if first != "" {
		m.Sticks = []qemu.Stick{{Name: "first", File: d.stick(t, "first", d.brings("2.0", first, testsystem.Options{}))}}
	}
	d.Device = scene.Start(t, m)
	return d
}

// brings makes a bundle of a system and its kernel.
func (d *espDevice) brings(version string, how testsystem.Behaviour, o testsystem.Options) string {
	d.t.Helper()
	kernel, err := d.UKI(version+".efi", "", scene.FirmwareCmdline+" uki="+version)
	if err != nil {
		d.t.Fatal(err)
	}
	if o.Files == nil {
		o.Files = d.files
	}
	return d.bundle(d.t, version+".raucb", version, how, o, scene.BundleOptions{With: map[string]string{"boot": kernel}})
}

// sdboot are the files by which OVMF starts systemd-boot, with entries made by `lifeboat bootloader sdboot`.
func (d *espDevice) sdboot() map[string][]byte {
	d.t.Helper()
	loaders, err := scene.Loaders()
	if err != nil {
		d.t.Fatal(err)
	}
	out := d.Path("entries")
	if text, err := exec.Command(filepath.Join(d.Bin, "lifeboat"), "bootloader", "sdboot", "--config", d.Conf, "--out", out).CombinedOutput(); err != nil {
		d.t.Fatalf("lifeboat bootloader sdboot: %v\n%s", err, text)
	}
	from := map[string]string{"EFI/BOOT/BOOTX64.EFI": filepath.Join(loaders, "usr/lib/systemd/boot/efi/systemd-bootx64.efi")}
	err = filepath.WalkDir(out, func(file string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			name, _ := filepath.Rel(out, file)
			from[name] = file
		}
		return err
	})
	esp := map[string][]byte{}
	for name, file := range from {
		if err == nil {
			esp[name], err = os.ReadFile(file)
		}
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return esp
}

// runs waits until a version runs from a slot, with the kernel that came with it.
func (d *espDevice) runs(slot, version, how string) {
	d.t.Helper()
	d.Expect(scene.Patience, fmt.Sprintf(`lifeboat: boot \d+ slot rootfs\.%d \(%s\) version %s %s\n`, slot[0]-'A', slot, version, how))
	if v := d.Ready(); v != version {
		d.t.Fatalf("version %s", v)
	}
	if line := d.Run("cat", "/proc/cmdline"); !strings.HasSuffix(line, " uki="+version) {
		d.t.Errorf("version %s has the command line %q", version, line)
	}
}

// falls waits until a system that says nothing has had its only try.
func (d *espDevice) falls(slot, version, runs, with, how string) {
	d.t.Helper()
	d.Expect(scene.Patience, `lifeboat: restarting into slot `+slot)
	d.Expect(scene.Patience, fmt.Sprintf(`lifeboat: boot \d+ slot rootfs\.%d \(%s\) version %s trial tries=0\n`, slot[0]-'A', slot, version))
	d.Expect(scene.Patience, fmt.Sprintf(`lifeboat: fallback from %s to %s reason=exhausted\n`, slot, runs))
	d.runs(runs, with, how)
}

// told is what systemd-boot goes by.
func (d *espDevice) told() string {
	d.t.Helper()
	esp, err := scene.Partition(d.image, "esp")
	if err != nil {
		d.t.Fatal(err)
	}
	f, err := fat.Open(bytes.NewReader(esp), int64(len(esp)))
	if err != nil {
		d.t.Fatal(err)
	}
	v, err := sdboot.New(sdboot.Unmounted{FS: f}, nil, []string{"A", "B"}).Read()
	if err != nil {
		d.t.Fatal(err)
	}
	text := ""
	for _, turn := range v.Order {
		text += fmt.Sprintf("%s%d", turn.Name, turn.Tries)
	}
	return text
}

// needTime skips what takes minutes, unless it is asked for.
func needTime(t *testing.T) {
	t.Helper()
	if os.Getenv("LIFEBOAT_LOADERS") != "all" {
		t.Skip("this takes minutes under emulation: LIFEBOAT_LOADERS=all")
	}
}

// systemd-boot counts, and each slot goes on with its own kernel, which the bundle has put into its file on the ESP: an update
// that never says good.
func TestSdboot(t *testing.T) {
	t.Parallel()
	d := startESP(t, "sdboot", testsystem.Silent, nil)
	d.falls("B", "2.0", "A", "1.0", "trial tries=0")
	if told := d.told(); told != "A8B0" {
		t.Errorf("systemd-boot is told %s", told)
	}
}

// `bootcount install` in the system that runs writes the other slot's file: where nobody has mounted the ESP, and below its
// mount point. systemd-boot then starts the last one.
func TestSdbootRunning(t *testing.T) {
	needTime(t)
	busybox, err := filepath.Abs("../../build/peers/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("there is no busybox: make setup")
	}
	d := startESP(t, "sdboot", "", func(d *espDevice) testsystem.Options {
		return testsystem.Options{
			Files: map[string]string{
				"bin/busybox": busybox, "2.0.raucb": d.brings("2.0", testsystem.Good, testsystem.Options{}), "3.0.raucb": d.brings("3.0", testsystem.Good, testsystem.Options{}),
			},
			KernelRoot: d.Kernel.Root, Modules: []string{"vfat", "nls_cp437", "nls_ascii"},
		}
	})
	d.runs("A", "1.0", "trial tries=0")
	const bootcount = "/usr/bin/bootcount"
	if out := d.Run(bootcount, "status"); !strings.Contains(out, "With     boot.0 (a file on /dev/vda2)") {
		t.Errorf("status says\n%s", out)
	}
	mount := []string{"/bin/busybox", "mount", "-t", "vfat", "-o", "iocharset=ascii,ro", "/dev/vda2", "/tmp"}
	d.Run(mount...)
	exits(t, d.Device, 40, "(?i)busy", bootcount, "install", "/2.0.raucb")
	d.Run("/bin/busybox", "umount", "/tmp")
	exits(t, d.Device, 0, `version 2\.0 is in rootfs\.1 \(B\)`, bootcount, "install", "/2.0.raucb")
	mount[5] = "iocharset=ascii" // early boot and bootcount have let go of it
	d.Run(mount...)
	exits(t, d.Device, 0, `version 3\.0 is in rootfs\.1 \(B\)`, bootcount, "install", "/3.0.raucb")
	if out := exits(t, d.Device, 0, `ok    disk `, bootcount, "doctor"); !strings.Contains(out, "5 partitions, aligned") {
		t.Errorf("the doctor says\n%s", out)
	}
	d.Run("/bin/busybox", "umount", "/tmp")
	d.Reset()
	d.runs("B", "3.0", "trial tries=0")
}

// The firmware alone starts the kernel in a slot's file: once by BootNext, for good by BootOrder. It starts the first time from
// its removable path, and the entries are made then.
func TestEFI(t *testing.T) {
	t.Parallel()
	d := startESP(t, "efi", testsystem.Good, nil)
	d.Expect(scene.Patience, `starting Boot\d{4} "UEFI Misc Device"`)
	d.Expect(scene.Patience, `lifeboat: restarting into slot B`)
	d.Expect(scene.Patience, `starting Boot\d{4} "B" from HD\(`)
	d.runs("B", "2.0", "trial tries=0")
	if out := d.Run("/usr/bin/efibootmgr"); !regexp.MustCompile(`BootCurrent: (\w{4})\n(?s:.*)BootOrder: (\w{4}),(\w{4})`).MatchString(out) ||
		!regexp.MustCompile(`(?m)^Boot0003\* A\b`).MatchString(out) || !regexp.MustCompile(`(?m)^Boot0004\* B\b`).MatchString(out) {
		t.Errorf("efibootmgr says\n%s", out)
	}
}

// installs has a version come from a stick into a slot, with its own kernel or another one, and restarts into it.
func (d *espDevice) installs(slot, version string, how testsystem.Behaviour, kernel string) {
	d.t.Helper()
	b := d.brings(version, how, testsystem.Options{})
	if kernel != "" {
		b = d.bundle(d.t, version+".raucb", version, how, testsystem.Options{}, scene.BundleOptions{With: map[string]string{"boot": kernel}})
	}
	d.PlugStick(qemu.Stick{Name: "v" + version[:1], File: d.stick(d.t, version, b)})
	d.Reset()
	d.Expect(2*scene.Patience, fmt.Sprintf(`lifeboat: installed %s to rootfs\.%d \(%s\)\n`, version, slot[0]-'A', slot))
	d.Expect(scene.Patience, `lifeboat: restarting into slot `+slot)
}

// fallsBack waits until a system runs again in which nothing has changed.
func (d *espDevice) fallsBack(from, to, version, reason string) {
	d.t.Helper()
	d.Expect(2*scene.Patience, fmt.Sprintf(`lifeboat: fallback from %s to %s reason=%s\n`, from, to, reason))
	d.runs(to, version, ".*")
}

// deadUKI is a unified image whose first instruction is a loop.
func (d *espDevice) deadUKI() string {
	d.t.Helper()
	file, err := d.UKI("dead.efi", "", "none")
	if err != nil {
		d.t.Fatal(err)
	}
	p, err := pe.Open(file)
	if err != nil {
		d.t.Fatal(err)
	}
	defer p.Close()
	entry := p.OptionalHeader.(*pe.OptionalHeader64).AddressOfEntryPoint
	b, err := os.ReadFile(file)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, s := range p.Sections {
		if entry >= s.VirtualAddress && entry < s.VirtualAddress+s.Size {
			copy(b[s.Offset+entry-s.VirtualAddress:], []byte{0xeb, 0xfe})
		}
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		d.t.Fatal(err)
	}
	return file
}

// hangs waits until a kernel is in its loop, and a person has switched the device off and on.
func (d *espDevice) hangs() {
	d.t.Helper()
	d.Expect(scene.Patience, `BdsDxe: starting Boot\d{4}`)
	time.Sleep(5 * time.Second)
	d.Cut()
}

// misfortunes are what is to become of the slot that is not B, in which a version runs and stays: a system that crashes, a kernel that
// hangs before there is an early boot, a system that hangs after the hand-over. Then both slots are lost, and a stick comes.
func (d *espDevice) misfortunes(runs string, hung func()) {
	d.t.Helper()
	d.installs("A", "3.0", testsystem.Panic, "")
	d.Expect(scene.Patience, `SYSTEM UP version=3\.0`)
	d.fallsBack("A", "B", runs, "panic")
	d.PullStick("v3")

	d.installs("A", "4.0", testsystem.Good, d.deadUKI())
	d.hangs()
	hung()
	d.PowerOn()
	d.fallsBack("A", "B", runs, "exhausted")
	d.PullStick("v4")

	d.installs("A", "5.0", testsystem.Hang, "")
	d.Expect(scene.Patience, `SYSTEM HANGS: <nil>\n`)
	d.Event(scene.Patience, "WATCHDOG")
	d.fallsBack("A", "B", runs, "watchdog")
	d.PullStick("v5")

	d.Cut()
	for _, slot := range []string{"rootfs.0", "rootfs.1"} {
		edit(d.t, d.image, slot, func(b []byte) { clear(b[len(b)-128<<10:]) })
	}
	d.PowerOn()
	d.Expect(scene.Patience, `lifeboat: rescue reason=`)
	d.PlugStick(qemu.Stick{Name: "repair", File: d.stick(d.t, "repair", d.brings("6.0", testsystem.Good, testsystem.Options{}))})
	d.Expect(2*scene.Patience, `lifeboat: installed 6\.0 to rootfs\.\d \(([AB])\)\n`)
	if v := d.Ready(); v != "6.0" {
		d.t.Fatalf("version %s", v)
	}
}

// An update that is good, and all that may happen to the next ones, with systemd-boot.
func TestSdbootMisfortunes(t *testing.T) {
	needTime(t)
	t.Parallel()
	d := startESP(t, "sdboot", "", nil)
	d.runs("A", "1.0", ".*")
	d.installs("B", "2.0", testsystem.Good, "")
	d.runs("B", "2.0", "trial tries=0")
	d.PullStick("v2")
	if told := d.told(); told != "B8A8" {
		t.Errorf("when B is good systemd-boot is told %s", told)
	}
	d.misfortunes("2.0", func() {
		if told := d.told(); !strings.HasPrefix(told, "A0B") {
			t.Errorf("when A's kernel hangs systemd-boot has %s", told)
		}
	})
}

// The same with the firmware alone. Variables that are lost are made again.
func TestEFIMisfortunes(t *testing.T) {
	needTime(t)
	t.Parallel()
	d := startESP(t, "efi", testsystem.Silent, nil)
	d.falls("B", "2.0", "A", "1.0", ".*")
	d.PullStick("first")
	first := func(slot string) {
		t.Helper()
		out := d.Run("/usr/bin/efibootmgr")
		m := regexp.MustCompile(`(?m)^BootOrder: (\w{4})`).FindStringSubmatch(out)
		if m == nil || !regexp.MustCompile(`(?m)^Boot`+m[1]+`\* `+slot+`\b`).MatchString(out) || strings.Contains(out, "BootNext") {
			t.Errorf("of %s efibootmgr says\n%s", slot, out)
		}
	}
	first("A")
	d.installs("B", "2.1", testsystem.Good, "")
	d.runs("B", "2.1", "trial tries=0")
	first("B")
	d.PullStick("v2")
	d.Cut()
	if err := os.Remove(d.image + ".vars"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.FirmwareMachine(scene.OVMF, d.image); err != nil { // as they leave the factory
		t.Fatal(err)
	}
	d.PowerOn()
	d.runs("B", "2.1", ".*")
	first("B")
	d.misfortunes("2.1", func() {})
}
