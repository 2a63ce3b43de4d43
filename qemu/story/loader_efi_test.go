package story

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

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
		d.files = efibootmgr(t)
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

// efibootmgr is the tool of this machine with its libraries.
func efibootmgr(t *testing.T) map[string]string {
	t.Helper()
	out, err := exec.Command("ldd", "/usr/bin/efibootmgr").Output()
	if err != nil {
		t.Skipf("efibootmgr is not installed: make setup (%v)", err)
	}
	files := map[string]string{"/usr/bin/efibootmgr": "/usr/bin/efibootmgr"}
	for _, lib := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
		files[lib[1]] = lib[1]
	}
	return files
}

// The real systemd-boot starts what the model does, and leaves the names that it does: in what this program writes, and in
// what a cut, a person or other tools leave.
func TestSdbootModel(t *testing.T) {
	needTime(t)
	qemu.NeedKernel(t, "generic")
	s := scene.At(t.TempDir(), "", qemu.Kernel{})
	loaders, err := scene.Loaders()
	if err != nil {
		t.Fatal(err)
	}
	loader, err := os.ReadFile(filepath.Join(loaders, "usr/lib/systemd/boot/efi/systemd-bootx64.efi"))
	if err != nil {
		t.Fatal(err)
	}
	esp := map[string][]byte{"EFI/BOOT/BOOTX64.EFI": loader, "loader/loader.conf": []byte("timeout 0\n")}
	names := []string{"A", "B"}
	for _, slot := range names { // what is started says so, and restarts
		cfg, out := s.Path(slot+".cfg"), s.Path(slot+".efi")
		text := "serial --unit=0 --speed=115200\nterminal_output serial\necho STARTED " + slot + "\nreboot\n"
		if err := os.WriteFile(cfg, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if text, err := exec.Command("grub-mkimage", "-O", "x86_64-efi", "-o", out, "-p", "/", "-c", cfg, "echo", "serial", "terminal", "reboot").CombinedOutput(); err != nil {
			t.Fatalf("grub-mkimage: %v\n%s", err, text)
		}
		if esp["EFI/lifeboat/"+slot+".efi"], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
	}
	chains := []struct {
		starts int
		files  []string
	}{
		{2, []string{"53-B+3-0.conf", "53-B+2-1.conf", "52-A+2-0.conf"}},        // the next name is taken: it does not count
		{4, []string{"53-B+3-1.conf", "53-B+3-0.conf", "52-A+2-0.conf"}},        // what is written instead
		{6, []string{"53-B+3-0.conf", "52-A+2-0.conf", "00-A.off", "00-B.off"}}, // and on when nothing has tries left
		{4, []string{"53-B+1-0.conf", "51-B.conf", "52-A+1-0.conf", "00-B.off"}},
		{3, []string{"52-A.conf", "53-B+0-3.conf"}},
		{7, []string{"52-A+2.conf", "53-b+4-7.conf"}},
		{9, []string{"99-A+1-0.conf", "00-B+9-0.conf", "00-A.off"}},
		{3, []string{"52-A+2-1.conf", "53-B+3-0.off"}},
		{5, []string{"10-A+2-9.conf", "09-B+2-99.conf"}},
		{4, []string{"53-B+0-1.conf", "54-A+0-1.conf"}},
		{12, []string{"50-A+9-0.conf", "60-B+2-0.conf"}},
	}
	states := 0
	for i, chain := range chains {
		for _, f := range chain.files {
			slot := strings.ToUpper(f[3:4])
			esp["loader/entries/"+f] = []byte("title " + slot + "\nsort-key 0\nefi /EFI/lifeboat/" + slot + ".efi\n")
		}
		image, err := s.FAT(fmt.Sprintf("esp.%d", i), 40<<20, esp)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range chain.files {
			delete(esp, "loader/entries/"+f)
		}
		m, err := s.FirmwareMachine(scene.OVMF, image)
		if err != nil {
			t.Fatal(err)
		}
		m.NoReboot = true
		var vm *qemu.Device
		files := chain.files
		for range chain.starts {
			want, after := sdboot.Run(files, names)
			if vm == nil {
				vm = qemu.Test(t, m)
			} else {
				vm.PowerOn()
			}
			got := vm.Expect(scene.Patience, `STARTED ([AB])`)[1]
			vm.Off(scene.Patience)
			b, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			f, err := fat.Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			now, err := sdboot.Unmounted{FS: f}.Names()
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(now)
			after = slices.Sorted(slices.Values(after))
			if got != want || !slices.EqualFunc(now, after, strings.EqualFold) {
				t.Errorf("%q: starts %s and leaves %q, the model %s and %q", files, got, now, want, after)
			}
			states++
			files = now
		}
		t.Logf("%q and on: %d states", chain.files, chain.starts)
	}
	t.Logf("figure: systemd-boot: %d states as its model says", states)
}
