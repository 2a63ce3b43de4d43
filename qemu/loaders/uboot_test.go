package loaders

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/boot/uboot"
	"lifeboat/config"
	"lifeboat/image/bootloader"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
)

// copySize is small, so that what is random hits what matters.
const copySize = 1024

// state is what U-Boot's script finds.
type state struct {
	what   string
	copies [2][]byte // nil: no such file
}

func copyOf(flag byte, vars ...string) []byte {
	e := uboot.Env{Vars: map[string]string{}, Flag: flag}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		e.Vars[name] = value
	}
	return e.Encode(copySize, true)
}

func left(order, a, b string) []string {
	return []string{"BOOT_ORDER=" + order, "BOOT_A_LEFT=" + a, "BOOT_B_LEFT=" + b}
}

// states are those that differ in what the script does with them, and random ones.
func states(rng *rand.Rand, random int) (all []state) {
	one := copyOf(1, left("A B", "3", "3")...)
	two := copyOf(2, left("B A", "2", "9")...)
	torn := bytes.Clone(two)
	copy(torn[512:], make([]byte, 512))
	torn[600] = 'x'
	add := func(what string, a, b []byte) { all = append(all, state{what, [2][]byte{a, b}}) }
	add("missing", nil, nil)
	add("first alone", one, nil)
	add("second alone", nil, two)
	add("second newer", one, two)
	add("first newer", two, one)
	add("equal flags", one, copyOf(1, left("B A", "3", "3")...))
	add("wrapped", copyOf(255, left("A B", "3", "3")...), copyOf(0, left("B A", "3", "3")...))
	add("wrapped before", copyOf(0, left("A B", "3", "3")...), copyOf(255, left("B A", "3", "3")...))
	add("about to wrap", copyOf(254, left("A B", "3", "3")...), copyOf(255, left("B A", "3", "3")...))
	add("flags of NOR flash", copyOf(0, left("A B", "3", "3")...), copyOf(1, left("B A", "3", "3")...))
	add("second torn", one, torn)
	add("first torn", torn, one)
	add("both torn", torn, torn)
	add("zeros", make([]byte, copySize), make([]byte, copySize))
	add("ones", bytes.Repeat([]byte{255}, copySize), bytes.Repeat([]byte{255}, copySize))
	add("empty file", []byte{}, one)
	add("short", one[:512], nil)
	add("long", append(bytes.Clone(two), 0), one)
	add("no variables", copyOf(1), copyOf(0))
	for _, order := range []string{"A B", "B A", "A", "B", "B C A", "C D", "A A B", "  B   A ", "AB", "a b", "A;B", "${BOOT_A_LEFT}"} {
		for _, n := range [][2]string{{"3", "3"}, {"0", "3"}, {"1", "0"}, {"0", "0"}} {
			add(order+" "+n[0]+" "+n[1], one, copyOf(2, left(order, n[0], n[1])...))
		}
	}
	for _, n := range []string{"", "00", "1", "4", "8", "9", "a", "F", "10", "03", "0x3", "-1", "ffffffff", "100000000", "zz", "3 4", "*0", "$(x)", "9z"} {
		add("counter "+n, copyOf(7, left("A B", n, "3")...), one)
	}
	for range random {
		a, b := bytes.Clone(one), bytes.Clone(two)
		for _, c := range [][]byte{a, b} {
			switch rng.IntN(4) {
			case 0: // all random
				for i := range c {
					c[i] = byte(rng.Uint32())
				}
			case 1: // a flipped bit
				c[rng.IntN(len(c))] ^= 1 << rng.IntN(8)
			case 2: // cut off in the middle of a write
				n := rng.IntN(100)
				copy(c[n:], one[n:])
			}
		}
		add("random", a, b)
	}
	return all
}

const conf = `[system]
compatible=x
bootloader=uboot
[bootloader]
size=1024
[keyring]
path=k
[slot.rootfs.0]
device=PARTLABEL=rootfs.0
bootname=A
[slot.rootfs.1]
device=PARTLABEL=rootfs.1
bootname=B
[slot.boot.0]
device=PARTLABEL=boot.0
parent=rootfs.0
[slot.boot.1]
device=PARTLABEL=boot.1
parent=rootfs.1
`

// needUBoot takes a place for the virtual device and returns U-Boot and the configuration of its device.
func needUBoot(t *testing.T) (rom string, c *config.Config) {
	t.Helper()
	qemu.NeedKernel(t, "cloud")
	loaders, err := scene.Loaders()
	if err != nil {
		t.Fatal(err)
	}
	rom = filepath.Join(loaders, "usr/lib/u-boot/qemu-x86/u-boot.rom")
	if _, err := os.Stat(rom); err != nil {
		t.Skip("there is no U-Boot: make setup")
	}
	if c, err = config.Parse([]byte(conf)); err != nil {
		t.Fatal(err)
	}
	qemu.Reserve(t)
	return rom, c
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// The real U-Boot and its model agree: which slot is started, and what stands in the files afterwards.
func TestUBootModel(t *testing.T) {
	rom, c := needUBoot(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	all := states(rand.New(rand.NewPCG(seed, 1)), 100)
	if os.Getenv("LIFEBOAT_FAULTS") != "all" {
		for i := range all { // those that are different from each other, and some random ones
			if i%3 > 0 && i > 30 {
				all[i].what = ""
			}
		}
		all = slices.DeleteFunc(all, func(s state) bool { return s.what == "" })
	}
	const chain = 24
	for _, kernels := range []string{"AB", "B", "A"} {
		some := all
		if kernels != "AB" {
			some = all[:min(len(all), 106)] // what is random is about the files
			if os.Getenv("LIFEBOAT_FAULTS") != "all" {
				some = all[9:33]
			}
		}
		for part := range slices.Chunk(some, chain) {
			agree(t, rom, c, kernels, part)
		}
		t.Logf("kernels of %s: %d states", kernels, len(some))
	}
}

// agree runs U-Boot over states and compares with the model.
func agree(t *testing.T, rom string, c *config.Config, kernels string, some []state) {
	t.Helper()
	script := func(start string) string {
		main, err := bootloader.UBoot(c, bootloader.UBootOptions{Start: start})
		if err != nil {
			t.Fatal(err)
		}
		return main
	}
	var before [][][]byte
	for _, s := range some {
		before = append(before, s.copies[:])
	}
	started, left := through(t, rom, kernels, script, uboot.Files, before)
	for i, s := range some {
		want, after := uboot.Run(s.copies, copySize, []string{"A", "B"}, func(name string) bool { return strings.Contains(kernels, name) })
		if started[i] != want {
			t.Errorf("%s, kernels of %s: U-Boot starts %q, its model %s", s.what, kernels, started[i], want)
		}
		for k := range 2 {
			if b := left[i][k]; !bytes.Equal(b, after[k]) {
				t.Errorf("%s, kernels of %s: after it copy %d is\n%.90q\nand that of the model\n%.90q", s.what, kernels, k+1, b, after[k])
			}
		}
	}
}

// The script for boards that keep their environment themselves decides as the other one does. QEMU's U-Boot has no saveenv, as
// a board whose saveenv fails: what would be saved is what it has then.
func TestUBootSaveEnv(t *testing.T) {
	rom, c := needUBoot(t)
	names := []string{"A", "B"}
	known := []string{"BOOT_ORDER", "BOOT_A_LEFT", "BOOT_B_LEFT"}
	script := func(start string) string {
		main, err := bootloader.UBoot(c, bootloader.UBootOptions{SaveEnv: true, Start: fmt.Sprintf(
			"env export -c -s %x 7a00000 %s; fatwrite ${devtype} ${devnum}:1 7a00000 uboot.env %[1]x; %[3]s", copySize, strings.Join(known, " "), start)})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("setenv BOOT_ORDER; setenv BOOT_A_LEFT; setenv BOOT_B_LEFT\nif load ${devtype} ${devnum}:1 7900000 uboot.env; then env import -c 7900000 %x; fi\n%s", copySize, main)
	}
	all := states(rand.New(rand.NewPCG(1, 1)), 0)
	all = slices.DeleteFunc(all, func(s state) bool { // one copy that is whole, or none
		_, ok := uboot.Parse(s.copies[1], true)
		return !ok
	})
	var before [][][]byte
	for _, s := range all {
		e, _ := uboot.Parse(s.copies[1], true)
		before = append(before, [][]byte{e.Encode(copySize, false)})
	}
	for part := range 2 { // as many as fit into one run
		from, to := part*len(all)/2, (part+1)*len(all)/2
		started, after := through(t, rom, "AB", script, []string{"uboot.env"}, before[from:to])
		for i, s := range all[from:to] {
			want, left := uboot.Run([2][]byte{s.copies[1], s.copies[1]}, copySize, names, func(string) bool { return true })
			if started[i] != want {
				t.Errorf("%s: U-Boot starts %q, its model %s", s.what, started[i], want)
			}
			e, _ := uboot.Parse(left[0], true)
			if f, _ := uboot.Parse(left[1], true); f.Flag != s.copies[1][4] {
				e = f
			}
			for _, name := range known[1:] {
				if e.Vars[name] == "" {
					e.Vars[name] = "3"
				}
			}
			if got, ok := uboot.Parse(after[i][0], false); !ok || !maps.Equal(got.Vars, e.Vars) {
				t.Errorf("%s: U-Boot has %v, its model %v", s.what, got.Vars, e.Vars)
			}
		}
	}
	t.Logf("%d states", len(all))
}

// through runs U-Boot over states of some files on its boot partition (nil: no such file), one after the other in one run, and
// returns the slot lb_s that it starts in each, and the files afterwards. script has start in the place of the kernel's
// start, which goes on to the next state.
func through(t *testing.T, rom, kernels string, script func(start string) string, names []string, states [][][]byte) (started []string, after [][][]byte) {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(at(name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := func(name, text string) {
		t.Helper()
		b, err := bootloader.UBootImage(text, "")
		if err != nil {
			t.Fatal(err)
		}
		write(name, b)
	}
	image("main.scr", script("echo started ${lb_s} in ${t_n}; load ${devtype} ${devnum}:1 7800000 step${t_n}.scr; source 7800000"))
	image("boot.scr", "load ${devtype} ${devnum}:1 7800000 step0.scr; source 7800000\n")
	files := []string{"main.scr", "boot.scr"}
	for i := range len(states) + 1 {
		var b strings.Builder
		for k, name := range names {
			if i > 0 {
				fmt.Fprintf(&b, "if load ${devtype} ${devnum}:1 7900000 %s; then fatwrite ${devtype} ${devnum}:1 7900000 after%d.%d ${filesize}; fi\n", name, i-1, k)
			}
			if i == len(states) {
				continue
			}
			fmt.Fprintf(&b, "fatrm ${devtype} ${devnum}:1 %s\n", name)
			if content := states[i][k]; content != nil {
				in := fmt.Sprintf("before%d.%d", i, k)
				write(in, content)
				files = append(files, in)
				if len(content) == 0 {
					fmt.Fprintf(&b, "fatwrite ${devtype} ${devnum}:1 7900000 %s 0\n", name)
				} else {
					fmt.Fprintf(&b, "load ${devtype} ${devnum}:1 7900000 %s; fatwrite ${devtype} ${devnum}:1 7900000 %s ${filesize}\n", in, name)
				}
			}
		}
		if i < len(states) {
			fmt.Fprintf(&b, "setenv t_n %d; echo state %d; load ${devtype} ${devnum}:1 7000000 main.scr; source 7000000\n", i+1, i)
		} else {
			b.WriteString("echo all done; reset\n")
		}
		name := fmt.Sprintf("step%d.scr", i)
		image(name, b.String())
		files = append(files, name)
	}
	disk := ubootDisk(t, dir, kernels, files)
	console := ubootRun(t, rom, disk)
	if !strings.Contains(console, "all done") {
		t.Fatalf("U-Boot ended in between:\n%s", console)
	}
	for i := range states {
		_, rest, _ := strings.Cut(console, fmt.Sprintf("state %d\r\n", i))
		_, got, _ := strings.Cut(rest, "started ")
		slot, _, ok := strings.Cut(got, fmt.Sprintf(" in %d\r\n", i+1))
		if !ok {
			t.Errorf("state %d: U-Boot says %.20q", i, got)
		}
		started, after = append(started, slot), append(after, nil)
		for k := range names {
			after[i] = append(after[i], readFAT(disk, fmt.Sprintf("after%d.%d", i, k)))
		}
	}
	return started, after
}

// ubootDisk makes a disk with the files of a folder on its ESP, at 1 MiB, and kernels of some slots.
func ubootDisk(t *testing.T, dir, kernels string, files []string) (disk string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"vmlinuz", "initramfs"} {
		if err := os.WriteFile(at(name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	disk = at("disk.img")
	run(t, "truncate", "-s", "24M", disk)
	run(t, "sgdisk", "-n", "1:2048:+16M", "-t", "1:ef00", "-c", "1:esp", "-n", "2:0:+1M", "-c", "2:boot.0", "-n", "3:0:+1M", "-c", "3:boot.1", disk)
	put := func(offset, size int, files ...string) {
		t.Helper()
		part := at("part.img")
		run(t, "truncate", "-s", "0", part)
		run(t, "truncate", "-s", fmt.Sprint(size<<20), part)
		run(t, "mkfs.fat", part)
		if size<<20 == espSize {
			run(t, "mmd", "-i", part, "::env1", "::env2")
		}
		for _, f := range files {
			to := "::"
			if strings.HasSuffix(f, ".env") {
				to += f[:4]
			}
			run(t, "mcopy", "-i", part, at(f), to)
		}
		run(t, "dd", "if="+part, "of="+disk, "bs=1M", fmt.Sprintf("seek=%d", offset), "conv=notrunc", "status=none")
	}
	put(1, espSize>>20, files...)
	for i, name := range []string{"A", "B"} {
		if strings.Contains(kernels, name) {
			put(17+i, 1, "vmlinuz", "initramfs")
		} else {
			put(17+i, 1, "initramfs")
		}
	}
	return disk
}

const (
	espStart = 1 << 20
	espSize  = 16 << 20
)

func readFAT(disk, name string) []byte {
	cmd := exec.Command("mtype", "-i", disk+"@@1M", "::"+name)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	b, err := cmd.Output()
	if err != nil {
		return nil
	}
	return b
}

// ubootRun runs U-Boot until it resets and returns its console.
func ubootRun(t *testing.T, rom, disk string) string {
	t.Helper()
	return ubootOn(t, rom, "-drive", "if=none,id=d,format=raw,file="+disk)
}

// ubootOn is ubootRun with the disk that arguments describe, with the id d.
func ubootOn(t *testing.T, rom string, disk ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(disk, "-M", "pc", "-bios", rom, "-m", "512", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-monitor", "none", "-no-reboot", "-device", "virtio-blk-pci,drive=d")...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, out)
	}
	return string(out)
}
