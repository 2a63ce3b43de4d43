package scene

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"lifeboat/boot/grub"
	"lifeboat/boot/uboot"
	"lifeboat/disk"
	"lifeboat/qemu"
)

// Firmware starts a device that has a boot loader.
type Firmware string

const (
	SeaBIOS Firmware = "seabios" // the disk's first sector
	OVMF    Firmware = "ovmf"    // /EFI/BOOT/BOOTX64.EFI on the ESP, and what its variables say
	UBoot   Firmware = "u-boot"  // qemu-x86: boot.scr on the ESP
)

// KernelFile and InitrdFile are what a boot slot holds.
const (
	KernelFile = "vmlinuz"
	InitrdFile = "initramfs"
)

// LoaderConfig returns what makes a configuration of [Options.Config] one of a device with that boot loader: beside each
// rootfs.N a slot boot.N, with kernel and initramfs.
func LoaderConfig(loader string) map[string]string {
	c := map[string]string{"system bootloader": loader}
	for _, n := range []string{"0", "1"} {
		c["slot.boot."+n+" device"] = "PARTLABEL=boot." + n
		c["slot.boot."+n+" parent"] = "rootfs." + n
	}
	return c
}

// FileConfig is [LoaderConfig] where the slots boot.N are files of the ESP, of [UKISize] bytes each.
func FileConfig(loader string) map[string]string {
	c := LoaderConfig(loader)
	for n, name := range map[string]string{"0": "A", "1": "B"} {
		c["slot.boot."+n+" device"] = "PARTLABEL=esp"
		c["slot.boot."+n+" file"] = UKIFile(name)
	}
	return c
}

// UKISize is how many bytes a slot in a file has: a unified image of the scene's, hash tree and seal.
const UKISize = 14 << 20

// UKIFile is the file of the slot that goes with the one of that bootname. Each has a folder of its own: the kernel writes
// the time into its sector when the running system writes the file.
func UKIFile(bootname string) string { return "/EFI/lifeboat/" + bootname + "/linux.efi" }

// UKI makes a unified image of the scene's kernel and an initramfs, the scene's own where initrd is "".
func (s *Scene) UKI(name, initrd, cmdline string) (string, error) {
	loaders, err := Loaders()
	if err != nil {
		return "", err
	}
	if initrd == "" {
		initrd = s.Initrd
	}
	out := s.Path(name)
	if text, err := exec.Command(filepath.Join(s.Bin, "lifeboat"), "bootloader", "uki", "--stub", filepath.Join(loaders, "usr/lib/systemd/boot/efi/linuxx64.efi.stub"),
		"--linux", filepath.Join(s.Kernel.Root, "vmlinuz"), "--initrd", initrd, "--cmdline", cmdline, "--os-release", "/etc/os-release", "--out", out).CombinedOutput(); err != nil {
		return "", fmt.Errorf("lifeboat bootloader uki: %w\n%s", err, text)
	}
	return out, nil
}

// BootImage makes the image of a boot slot: a FAT file system with the scene's kernel and initramfs, and a file that says
// version. It goes into a bundle as BundleOptions.With["boot"].
func (s *Scene) BootImage(name, version string) (string, error) {
	kernel, err := os.ReadFile(filepath.Join(s.Kernel.Root, "vmlinuz")) // a bzImage; Image is for QEMU
	if err != nil {
		return "", err
	}
	initramfs, err := os.ReadFile(s.Initrd)
	if err != nil {
		return "", err
	}
	return s.FAT(name, int64(len(kernel)+len(initramfs))+2<<20, map[string][]byte{KernelFile: kernel, InitrdFile: initramfs, "version": []byte(version)})
}

// FIT makes the other image of a boot slot that U-Boot knows: a flattened image tree, each part with its checksum.
func (s *Scene) FIT(name string) (string, error) {
	kernel, err := os.ReadFile(filepath.Join(s.Kernel.Root, "vmlinuz"))
	if err != nil {
		return "", err
	}
	const at = 0x1f1 // in a bzImage: how many sectors of code for real mode stand before the kernel and after the first one
	if len(kernel) < 0x8000 || kernel[at] == 0 {
		return "", errors.New("the kernel is no bzImage")
	}
	setup := (int(kernel[at]) + 1) * 512
	source := "/dts-v1/;\n/ { description = \"lifeboat\"; #address-cells = <1>; images {\n"
	for _, part := range []struct {
		name, kind, more string
		content          []byte
	}{
		{"kernel", "kernel", "load = <0x1000000>; entry = <0>;", kernel[setup:]},
		{"setup", "x86_setup", "load = <0x90000>; entry = <0x90000>;", kernel[:setup]},
		{"initramfs", "ramdisk", "", nil},
	} {
		file := s.Initrd
		if part.content != nil {
			file = s.Path(name + "." + part.name)
			if err := os.WriteFile(file, part.content, 0o644); err != nil {
				return "", err
			}
		}
		source += fmt.Sprintf("%s { data = /incbin/(%q); type = %q; arch = \"x86\"; os = \"linux\"; compression = \"none\"; %s hash-1 { algo = \"crc32\"; }; };\n",
			part.name, file, part.kind, part.more)
	}
	source += "}; configurations { default = \"it\"; it { kernel = \"kernel\"; setup = \"setup\"; ramdisk = \"initramfs\"; }; }; };\n"
	its, out := s.Path(name+".its"), s.Path(name)
	if err := os.WriteFile(its, []byte(source), 0o644); err != nil {
		return "", err
	}
	if text, err := exec.Command("mkimage", "-f", its, out).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mkimage: %w\n%s", err, text)
	}
	return out, nil
}

// FAT makes a FAT file system of at least size bytes, in which path (with "/" between) has content.
func (s *Scene) FAT(name string, size int64, files map[string][]byte) (string, error) {
	out := s.Path(name)
	size = (size + 1<<20 - 1) >> 20 << 20
	if err := os.RemoveAll(out); err != nil {
		return "", err
	}
	if err := os.WriteFile(out, nil, 0o644); err != nil {
		return "", err
	}
	if err := os.Truncate(out, size); err != nil {
		return "", err
	}
	// -i: the same input gives the same image. -s: slots that are files lie in whole blocks of 4096 bytes.
	if text, err := exec.Command("mkfs.fat", "-s", "8", "-i", "11febea7", "-n", "BOOT", out).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mkfs.fat: %w\n%s", err, text)
	}
	return out, writeFAT(out, files)
}

// writeFAT puts files into a FAT file system; image is what mtools take: FILE or FILE@@OFFSET. Folders are made.
func writeFAT(image string, files map[string][]byte) error {
	if len(files) == 0 {
		return nil
	}
	tree, err := os.MkdirTemp("", "lifeboat-fat-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	for name, content := range files {
		name = filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return err
		}
	}
	top, err := filepath.Glob(filepath.Join(tree, "*"))
	if err != nil {
		return err
	}
	return mtool("mcopy", append(append([]string{"-s", "-o", "-Q", "-i", image}, top...), "::/")...)
}

func mtool(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "SOURCE_DATE_EPOCH=315619200")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, text)
	}
	return nil
}

// WriteFAT puts files into the FAT file system of a partition of a disk image, over those of the same name.
func WriteFAT(image, label string, files map[string][]byte) error {
	at, err := Place(image, label)
	if err != nil {
		return err
	}
	return writeFAT(image+"@@"+strconv.FormatInt(at.Start, 10), files)
}

// ReadFAT returns a file of the FAT file system in a partition of a disk image.
func ReadFAT(image, label, file string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "lifeboat-fat-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := CopyFAT(image, label, file, dir); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, filepath.Base(file)))
}

// CopyFAT copies a file or a folder of the FAT file system in a partition of a disk image into the folder dir; file "" is
// all that there is.
func CopyFAT(image, label, file, dir string) error {
	at, err := Place(image, label)
	if err != nil {
		return err
	}
	return mtool("mcopy", "-s", "-n", "-Q", "-i", image+"@@"+strconv.FormatInt(at.Start, 10), "::/"+file, dir)
}

// Place returns where the partition with a label lies in a disk image.
func Place(image, label string) (disk.Partition, error) {
	f, err := os.Open(image)
	if err != nil {
		return disk.Partition{}, err
	}
	defer f.Close()
	return partition(f, label)
}

// GRUB makes GRUB 2.06 start from a disk: for OVMF as /EFI/BOOT/BOOTX64.EFI in the partition esp, for SeaBIOS in the first
// sector and in the gap before the first partition. Its configuration is /grub/grub.cfg in esp.
func (s *Scene) GRUB(image string, firmware Firmware) error {
	at, err := Place(image, "esp")
	if err != nil {
		return err
	}
	modules := []string{
		"part_gpt", "part_msdos", "fat", "normal", "linux", "loadenv", "configfile", "echo", "test", "serial", "terminal", "reboot", "regexp", "cat", "halt", "sleep",
	}
	format, prefix := "x86_64-efi", "/grub"
	if firmware == SeaBIOS {
		format, prefix = "i386-pc", fmt.Sprintf("(,gpt%d)/grub", at.Index)
		modules = append(modules, "biosdisk")
	}
	core := s.Path("grub-" + format + ".core")
	// The serial port is the only console of the virtual device.
	early := core + ".cfg"
	if err := os.WriteFile(early, []byte("serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\nset gfxpayload=text\n"), 0o644); err != nil {
		return err
	}
	args := append([]string{"-O", format, "-o", core, "-p", prefix, "-c", early}, modules...)
	if text, err := exec.Command("grub-mkimage", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("grub-mkimage: %w\n%s", err, text)
	}
	b, err := os.ReadFile(core)
	if err != nil {
		return err
	}
	if firmware != SeaBIOS {
		return WriteFAT(image, "esp", map[string][]byte{"EFI/BOOT/BOOTX64.EFI": b})
	}
	boot, err := os.ReadFile("/usr/lib/grub/i386-pc/boot.img")
	if err != nil {
		return err
	}
	return grubSectors(image, boot, b)
}

// grubSectors does what grub-bios-setup does: boot.img finds core.img, whose first sector finds the rest.
func grubSectors(image string, boot, core []byte) error {
	const (
		start  = 2048 // sector of core.img: 1 MiB, before the first partition
		table  = 440  // of boot.img so many bytes are code
		first  = 0x5c // le64 in boot.img: sector of core.img
		drive  = 0x66 // in boot.img: the check of the drive, not needed for a hard disk
		blocks = 0x1f4
	)
	if len(boot) != 512 || len(core) < 1024 || len(core) > 2<<20 {
		return errors.New("grub's boot.img or core.img has another size")
	}
	put := func(b []byte, n uint64) {
		for i := range 8 {
			b[i] = byte(n >> (8 * i))
		}
	}
	boot, core = slices.Clone(boot[:table]), slices.Clone(core)
	put(boot[first:], start)
	boot[drive], boot[drive+1] = 0x90, 0x90
	put(core[blocks:], start+1)
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(boot, 0)
	_, err2 := f.WriteAt(core, start*512)
	return errors.Join(err, err2, f.Close())
}

// FirmwareCmdline is [Cmdline] for what firmware starts: GRUB on OVMF needs a TSC, the kernel must not go by it
// ([qemu.Machine] says why).
const FirmwareCmdline = Cmdline + " clearcpuid=tsc"

// Loaders is the folder where `make setup` unpacked boot loaders and firmware, below it usr/lib, usr/share.
func Loaders() (string, error) {
	root, err := Build()
	return filepath.Join(root, "build", "loaders"), err
}

// FirmwareMachine describes the virtual device that starts from its disk by a firmware. OVMF's variables lie in a file of
// their own beside the disk, DISK.vars, which is made where it is missing; see [Scene.Copy].
func (s *Scene) FirmwareMachine(firmware Firmware, image string, sticks ...string) (qemu.Machine, error) {
	m := s.Machine(image, sticks...)
	m.Kernel, m.Initrd, m.Append = "", "", ""
	loaders, err := Loaders()
	if err != nil {
		return m, err
	}
	switch firmware {
	case SeaBIOS:
		m.Args = []string{"-boot", "strict=off"}
	case OVMF:
		vars := image + ".vars"
		if _, err := os.Stat(vars); err != nil {
			b, err := os.ReadFile(filepath.Join(loaders, "usr/share/OVMF/OVMF_VARS_4M.fd"))
			if err != nil {
				return m, err
			}
			if err := os.WriteFile(vars, b, 0o644); err != nil {
				return m, err
			}
		}
		m.Memory = 512                    // the firmware leaves GRUB too little of 256
		m.CPU = qemu.DefaultCPU + ",+tsc" // without it GRUB does not start
		m.Args = []string{
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + filepath.Join(loaders, "usr/share/OVMF/OVMF_CODE_4M.fd"),
			"-drive", "if=pflash,unit=1,format=raw,file=" + vars,
		}
	case UBoot:
		m.Memory = 512
		m.Args = []string{"-machine", "pc", "-bios", filepath.Join(loaders, "usr/lib/u-boot/qemu-x86/u-boot.rom")}
	default:
		return m, fmt.Errorf("there is no firmware %q", firmware)
	}
	return m, nil
}

// LoaderDisk is [Scene.Disk] of a device with a boot loader. esp maps a path in the boot loader's partition to content.
func (s *Scene) LoaderDisk(name string, esp map[string][]byte, fill map[string]string, sizes map[string]int64) (string, error) {
	size := int64(8 << 20)
	for _, content := range esp {
		size += int64(len(content))
	}
	image, err := s.FAT(name+".esp", max(40<<20, size), esp)
	if err != nil {
		return "", err
	}
	defer os.Remove(image)
	return s.disk(name, image, fill, sizes)
}

// StartedBy is [Scene.Disk] of a device that GRUB (SeaBIOS, OVMF) or U-Boot starts by lifeboat's script: all that
// lies beside the slots is there, and the variables are blank, with room for both copies. flags go to the command that makes
// the script.
func (s *Scene) StartedBy(firmware Firmware, name string, fill map[string]string, sizes map[string]int64, flags ...string) (image string, err error) {
	script := func(args ...string) ([]byte, error) {
		args = slices.Concat([]string{"bootloader", args[0], "--config", s.Conf}, args[1:], flags)
		out, err := exec.Command(filepath.Join(s.Bin, "lifeboat"), args...).Output()
		if err != nil {
			return nil, fmt.Errorf("lifeboat %s: %w", strings.Join(args, " "), err)
		}
		return out, nil
	}
	if firmware == UBoot {
		file := s.Path("boot.scr")
		if _, err = script("boot.scr", "--cmdline", Cmdline, "--out", file); err != nil {
			return "", err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		files := map[string][]byte{"boot.scr": text}
		for _, env := range uboot.Files {
			files[env[1:]] = make([]byte, uboot.Size)
		}
		return s.LoaderDisk(name, files, fill, sizes)
	}
	if image, err = s.LoaderDisk(name, nil, fill, sizes); err != nil {
		return "", err
	}
	text, err := script("grub.cfg", "--disk", image, "--cmdline", FirmwareCmdline)
	if err != nil {
		return "", err
	}
	blank := bytes.Repeat([]byte("#"), grub.Size)
	copy(blank, "# GRUB Environment Block\n")
	err = WriteFAT(image, "esp", map[string][]byte{"grub/grub.cfg": text, grub.File[1:]: blank, grub.Shadow[1:]: blank})
	if err != nil {
		return "", err
	}
	return image, s.GRUB(image, firmware)
}
