package bootloader

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path"
	"strings"

	"lifeboat/boot/uboot"
	"lifeboat/config"
)

// Names of the files in the file system of a slot's kernel.
const (
	kernelFile = "vmlinuz"
	initrdFile = "initramfs"
)

// UBootOptions say for which board a boot.scr is.
type UBootOptions struct {
	Arch    string   // "x86" (default), "arm" or "arm64": how a kernel is started
	SaveEnv bool     // U-Boot keeps its environment itself (saveenv); else the script does, in files
	Scratch uint64   // address of 8 MiB of RAM that the script may use where it keeps the environment; 0: the architecture's default
	Keep    []string // further variables that stay in the files
	Append  string   // put on the kernel command line before rauc.slot=
	// FIT: a boot slot is a flattened image tree (FIT) with kernel, initramfs and device tree, read whole and checked by
	// U-Boot; else a FAT file system with vmlinuz and initramfs.
	FIT bool
	// Start, if not "", stands in the place of the command that starts the kernel. For tests.
	Start string
}

// ubootArch is what differs between architectures. Addresses are hexadecimal, or variables that boards have.
type ubootArch struct {
	scratch        uint64
	kernel, initrd string
	code           byte // in the header of an image
	start          string
}

var ubootArchs = map[string]ubootArch{
	"x86":   {0x1000000, "2000000", "8000000", 5, "zboot 2000000 ${lb_size} 8000000 ${filesize}"},
	"arm":   {0x44000000, "${kernel_addr_r}", "${ramdisk_addr_r}", 2, "bootz ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}"},
	"arm64": {0x48000000, "${kernel_addr_r}", "${ramdisk_addr_r}", 22, "booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}"},
}

// UBoot returns boot.scr for the variables of RAUC. The script goes through BOOT_ORDER and starts the first slot that has
// tries left and whose kernel can be loaded; the try is counted and saved before. Where there is none it starts the first
// one whose kernel can be loaded, without counting; then it resets. Variables that are lost are all slots with three tries
// each, in the order of the configuration; they are counted, but no BOOT_ORDER is saved, so that early boot sees that they
// were lost. A save that fails stops nothing.
//
// Without SaveEnv the environment is two files in the format of U-Boot and fw_setenv for two copies: the valid one with
// the newer flag is read, the other one is written; one that is missing or damaged is
// made anew.
func UBoot(c *config.Config, o UBootOptions) (string, error) {
	arch, ok := ubootArchs[cmp.Or(o.Arch, "x86")]
	if !ok {
		return "", fmt.Errorf("no boot.scr for %s: x86, arm or arm64", o.Arch)
	}
	if c.Loader.Schema != uboot.RAUC {
		return "", fmt.Errorf("a device with the variables of %s keeps the script that it has", c.Loader.Schema)
	}
	s := ubootScript{arch: arch, o: o, size: cmp.Or(c.Loader.Size, uboot.Size), files: c.Loader.Files}
	for _, slot := range c.BootSlots() {
		kernel, err := kernelSlot(c, slot)
		if err != nil {
			return "", err
		}
		part, err := ubootPartition(kernel.Device)
		if err != nil {
			return "", err
		}
		s.names, s.parts = append(s.names, slot.Bootname), append(s.parts, part)
		s.vars = append(s.vars, "BOOT_"+slot.Bootname+"_LEFT")
	}
	s.vars = append(append([]string{"BOOT_ORDER"}, s.vars...), o.Keep...)
	for _, word := range append(append(s.names[:len(s.names):len(s.names)], o.Keep...), s.files...) {
		if !plain(word) {
			return "", fmt.Errorf("%q can't stand in a script of U-Boot", word)
		}
	}
	if strings.ContainsAny(o.Append, "'\"\\\n${};&|") {
		return "", errors.New("the kernel's arguments have characters that can't stand in a script of U-Boot")
	}
	if !o.SaveEnv {
		if len(c.Loader.Offsets) > 0 {
			return "", errors.New("the script keeps the environment in files; in a raw area U-Boot must do it itself (--saveenv)")
		}
		switch len(s.files) {
		case 0:
			s.files = uboot.Files
		case 1:
			return "", errors.New("[bootloader] files= has one copy, which a power cut can take: name two")
		}
		if a, b := path.Dir(s.files[0]), path.Dir(s.files[1]); a == b || a == "/" || b == "/" {
			return "", errors.New("[bootloader] files=: U-Boot writes the sector of a folder with each file in it, and a power cut then loses what else it names: each copy needs a folder of its own")
		}
		var err error
		if s.env, err = ubootPartition(c.Loader.Device); err != nil {
			return "", err
		}
		s.at = cmp.Or(o.Scratch, arch.scratch)
	}
	return s.text(), nil
}

// ubootPartition returns a partition's label, or its number in hexadecimal.
func ubootPartition(device string) (string, error) {
	if label, ok := config.PartLabel(device); ok {
		if plain(label) && strings.Trim(label, "0123456789abcdefABCDEF") != "" {
			return label, nil
		}
		return "", fmt.Errorf("the partition's label %q can't stand in a script of U-Boot", label)
	}
	n, err := partitionNumber(device)
	return fmt.Sprintf("%x", n), err
}

// plain reports whether a word means itself in U-Boot's shell.
func plain(word string) bool {
	return word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-") == ""
}

// ubootScript writes a script for U-Boot's own shell, which has no arithmetic, no break, and on some boards no setexpr.
// Its variables begin with lb_.
type ubootScript struct {
	arch  ubootArch
	o     UBootOptions
	size  int64
	names []string // bootnames
	parts []string // of the kernels: labels or numbers
	vars  []string // that stay in the files
	files []string
	env   string // partition of the files
	at    uint64 // scratch memory
	b     strings.Builder
}

// add writes lines, which have a margin.
func (s *ubootScript) add(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		s.b.WriteString(strings.TrimSpace(line) + "\n")
	}
}

// find sets lb_part to the number of a partition on the disk that the script came from.
func find(part string) string {
	if strings.Trim(part, "0123456789abcdef") == "" {
		return "setenv lb_part " + part
	}
	return "setenv lb_part; part number ${devtype} ${devnum} " + part + " lb_part"
}

func (s *ubootScript) text() string {
	s.add("# boot.scr of lifeboat: which slot is started. Made by lifeboat bootloader boot.scr.")
	if !s.o.SaveEnv {
		s.load()
	}
	s.add(`setenv lb_order ${BOOT_ORDER}
		if test -z "${lb_order}"; then setenv lb_order %s; fi`, strings.Join(s.names, " "))
	for _, name := range s.names {
		s.add(`if test -z "${BOOT_%s_LEFT}"; then setenv BOOT_%s_LEFT 3; fi`, name, name)
	}
	// A copy that is missing or damaged is written as well, once.
	save := "run lb_save\nif test -z \"${lb_ok1}\" -o -z \"${lb_ok2}\"; then run lb_save; setenv lb_ok1 1; setenv lb_ok2 1; fi"
	if s.o.SaveEnv {
		save = "setenv lb_part\nsetenv lb_start\nsetenv lb_new\nsetenv lb_size\nsaveenv"
	}
	s.add("%s", "for lb_s in ${lb_order}; do")
	for i, name := range s.names {
		s.add(`if test "${lb_s}" = "%s"; then
			setenv lb_new`, name)
		for n := range 9 {
			s.add(`if itest "0x${BOOT_%s_LEFT}" -eq %d; then setenv lb_new %d; fi`, name, n+1, n)
		}
		s.add(`if itest "0x${BOOT_%s_LEFT}" -gt 9; then setenv lb_new 8; fi
			if test -n "${lb_new}"; then
			setenv BOOT_%s_LEFT ${lb_new}
			%s
			%s
			fi
			fi`, name, name, save, s.start(i))
	}
	s.add(`done
		echo No slot has tries left and a kernel: the first one that has a kernel.
		for lb_s in ${lb_order} %s; do`, strings.Join(s.names, " "))
	for i, name := range s.names {
		s.add(`if test "${lb_s}" = "%s"; then
			%s
			fi`, name, s.start(i))
	}
	s.add(`done
		echo No slot has a kernel.
		sleep 10
		reset`)
	return s.b.String()
}

func space(s string) string {
	if s != "" {
		s += " "
	}
	return s
}

// start is how slot i is started; where that fails, the script goes on.
func (s *ubootScript) start(i int) string {
	if s.o.FIT {
		return fmt.Sprintf(`%s
			if part start ${devtype} ${devnum} ${lb_part} lb_start; then
			part size ${devtype} ${devnum} ${lb_part} lb_size
			${devtype} dev ${devnum}
			if ${devtype} read %s ${lb_start} ${lb_size}; then
			setenv bootargs "%srauc.slot=%s"
			echo "lifeboat: U-Boot starts slot %[4]s"
			%[5]s
			fi
			fi`, find(s.parts[i]), s.arch.initrd, space(s.o.Append), s.names[i], cmp.Or(s.o.Start, "bootm "+s.arch.initrd))
	}
	return fmt.Sprintf(`%s
		if load ${devtype} ${devnum}:${lb_part} %s /%s; then
		setenv lb_size ${filesize}
		if load ${devtype} ${devnum}:${lb_part} %s /%s; then
		setenv bootargs "%srauc.slot=%s"
		echo "lifeboat: U-Boot starts slot %s"
		%s
		fi
		fi`, find(s.parts[i]), s.arch.kernel, kernelFile, s.arch.initrd, initrdFile, space(s.o.Append), s.names[i], s.names[i],
		cmp.Or(s.o.Start, s.arch.start))
}

// load reads the environment and makes lb_save. In the scratch memory: two copies at 0 and 2 MiB, the one that is written
// at 4 MiB; at 6 MiB a checksum, in the order of bytes that U-Boot's crc32 stores and behind it turned round, and the flag
// that was written last.
func (s *ubootScript) load() {
	file := [2]uint64{s.at, s.at + 2<<20}
	out, crc, flag := s.at+4<<20, s.at+6<<20, s.at+6<<20+16
	// sum leaves the checksum of a copy at crc+4, as it stands in the file.
	sum := func(at uint64) string {
		text := fmt.Sprintf("crc32 %x %x %x", at+5, s.size-5, crc)
		for i := range uint64(4) {
			text += fmt.Sprintf("; cp.b %x %x 1", crc+3-i, crc+4+i)
		}
		return text
	}
	s.add("%s", find(s.env))
	s.add(`if test -z "${lb_part}"; then setenv lb_part ${distro_bootpart}; fi
		setenv lb_env ${lb_part}
		setenv lb_use
		mw.b %x 0 1`, flag)
	for _, v := range s.vars {
		s.add("setenv %s", v)
	}
	for i, name := range s.files {
		s.add(`setenv lb_ok%d
			if load ${devtype} ${devnum}:${lb_env} %x %s %x; then
			if test "${filesize}" = "%x"; then
			%s
			if cmp.b %x %x 4; then setenv lb_ok%d 1; setenv lb_use %d; fi
			fi
			fi`, i+1, file[i], name, s.size+1, s.size, sum(file[i]), file[i], crc+4, i+1, i+1)
	}
	s.add(`if test -n "${lb_ok1}"; then
		if test -n "${lb_ok2}"; then
		if itest.b *%[2]x -gt *%[1]x; then setenv lb_use 2; else setenv lb_use 1; fi
		if itest.b *%[1]x -eq ff; then if itest.b *%[2]x -eq 0; then setenv lb_use 2; fi; fi
		if itest.b *%[1]x -eq 0; then if itest.b *%[2]x -eq ff; then setenv lb_use 1; fi; fi
		fi
		fi`, file[0]+4, file[1]+4)
	for i := range s.files {
		s.add(`if test "${lb_use}" = "%d"; then env import -b %x %x %s; cp.b %x %x 1; fi`,
			i+1, file[i]+5, s.size-5, strings.Join(s.vars, " "), file[i]+4, flag)
	}
	// Without arithmetic the next flag is the one behind this one in a list of all.
	var flags strings.Builder
	for n := range 257 {
		fmt.Fprintf(&flags, " %x", n%256)
	}
	s.add("%s", "setenv lb_save '"+fmt.Sprintf(
		`setenv lb_hit; for lb_f in%s; do if test -n "${lb_hit}"; then setenv lb_next ${lb_f}; setenv lb_hit; fi; `+
			"if itest.b *%x -eq ${lb_f}; then setenv lb_hit 1; fi; done; "+
			"env export -b -s %x %x %s; mw.b %x ${lb_next} 1; cp.b %x %x 1; %s; cp.b %x %x 4; "+
			`if test "${lb_use}" = "1"; then setenv lb_use 2; else setenv lb_use 1; fi; `+
			`if test "${lb_use}" = "2"; then fatwrite ${devtype} ${devnum}:${lb_env} %x %s %x; else fatwrite ${devtype} ${devnum}:${lb_env} %x %s %x; fi'`,
		flags.String(), flag,
		s.size-5, out+5, strings.Join(s.vars, " "), out+4, out+4, flag, sum(out), crc+4, out,
		out, s.files[1], s.size, out, s.files[0], s.size))
}

// UBootImage wraps a script as `mkimage -T script` does: a header of 64 bytes, big endian, then the script's length, 0, and
// the script.
func UBootImage(script, arch string) ([]byte, error) {
	a, ok := ubootArchs[cmp.Or(arch, "x86")]
	if !ok {
		return nil, fmt.Errorf("no boot.scr for %s: x86, arm or arm64", arch)
	}
	be := binary.BigEndian
	body := append(be.AppendUint32(nil, uint32(len(script))), 0, 0, 0, 0)
	body = append(body, script...)
	h := make([]byte, 64)
	be.PutUint32(h, 0x27051956)
	be.PutUint32(h[12:], uint32(len(body)))
	be.PutUint32(h[24:], crc32.ChecksumIEEE(body))
	copy(h[28:], []byte{5, a.code, 6, 0}) // Linux, architecture, script, not compressed
	copy(h[32:], "lifeboat")
	be.PutUint32(h[4:], crc32.ChecksumIEEE(h))
	return append(h, body...), nil
}
