package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/image"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/verify"
)

// contender is an initramfs that starts the system in the first slot.
type contender struct {
	name   string
	initrd string
	total  sample            // seconds from the kernel's start of /init to the system's first act
	phases map[string]sample // of boot.json, milliseconds
	order  []string
}

// boots measures the time from the kernel's start of /init to the system's: no stick, cloud kernel, dm-verity. All
// contenders start the same system on a copy of the same disk, with the same modules in the same order.
func boots(b *bench) error {
	s, err := scene.New(filepath.Join(b.dir, "boot"), scene.Options{Flavour: "cloud", Config: map[string]string{"system require-signed-verity": "true"}})
	if err != nil {
		return err
	}
	factory, err := b.bootDisk(s, nil)
	if err != nil {
		return err
	}
	floor, err := b.floorInitrd(s, factory)
	if err != nil {
		return err
	}
	script, err := b.scriptInitrd(s, factory)
	if err != nil {
		return err
	}
	all := []*contender{{name: "lifeboat", initrd: s.Initrd}, {name: "floor: static Go, nothing checked", initrd: floor}, {name: "busybox + dmsetup script, nothing checked", initrd: script}}
	for i := range b.repeat {
		for j := range all {
			c := all[(i+j)%len(all)]
			if err := b.boot(s, factory, c); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			b.say("boot %d of %d, %s: %.3f s", i+1, b.repeat, c.name, c.total[len(c.total)-1])
		}
	}
	ours, base, busybox := all[0], all[1], all[2]
	r := ours.total.ratio(base.total)
	b.seconds("boot", ours.name, ours.total, fmt.Sprintf("%.2f x floor, %.2f x script", r, ours.total.ratio(busybox.total)), &goal{r, 2, "2 x floor"})
	b.seconds("boot", base.name, base.total, "")
	b.seconds("boot", busybox.name, busybox.total, fmt.Sprintf("%.2f x floor", busybox.total.ratio(base.total)))
	for _, name := range ours.order {
		p := ours.phases[name]
		b.rows = append(b.rows, row{
			part: "boot", what: "  phase " + name, value: fmt.Sprintf("%.0f ms", p.median()),
			spread: fmt.Sprintf("%.0f to %.0f", slices.Min(p), slices.Max(p)),
		})
	}
	return nil
}

// bootDisk is a disk with the witness in its first slot. sizes are those of the slots where they are not to be as small
// as can be.
func (b *bench) bootDisk(s *scene.Scene, sizes map[string]int64) (string, error) {
	tree := s.Path("witness")
	for _, dir := range []string{"dev", "proc", "sys", "run", "sbin"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := b.build(filepath.Join(tree, "sbin/init"), "./qemu/measure/witness", "-E main.witness"); err != nil {
		return "", err
	}
	// Small blocks: reading the few pages of the witness must not weigh in the result.
	if err := command(b.root, "mksquashfs", tree, s.Path("witness.img"), "-quiet", "-no-progress", "-all-root", "-b", "4096", "-comp", "zstd"); err != nil {
		return "", err
	}
	file, err := s.Bundle("witness.raucb", s.Path("witness.img"), scene.BundleOptions{Version: "1"})
	if err != nil {
		return "", err
	}
	return s.Disk("factory.img", map[string]string{"rootfs.0": file}, sizes)
}

// build compiles a static program.
func (b *bench) build(out, pkg, ldflags string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w "+ldflags, "-o", out, pkg)
	cmd.Dir, cmd.Env = b.root, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

func command(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, text)
	}
	return nil
}

// slotOf reads what the seal of the first slot says, and which partition of the disk it is.
func slotOf(s *scene.Scene, file string) (facts slots.Facts, partition int, err error) {
	conf, err := os.ReadFile(s.Conf)
	if err != nil {
		return facts, 0, err
	}
	c, err := config.Parse(conf)
	if err != nil {
		return facts, 0, err
	}
	pem, err := os.ReadFile(s.Key("release.keyring.pem"))
	if err != nil {
		return facts, 0, err
	}
	keyring, err := verify.ParseKeyring(pem)
	if err != nil {
		return facts, 0, err
	}
	d, err := disk.Open(file, false)
	if err != nil {
		return facts, 0, err
	}
	defer d.Close()
	parts, err := disk.Partitions(d, d.Size())
	if err != nil {
		return facts, 0, err
	}
	for _, p := range parts {
		if p.Name != "rootfs.0" {
			continue
		}
		seal, err := slots.ReadSeal(io.NewSectionReader(d, p.Start, p.Size), p.Size)
		if err != nil {
			return facts, 0, err
		}
		facts, err = seal.Verify(verify.Rules{Keyring: keyring, Purpose: c.CheckPurpose, AtBoot: true}, c.Compatible)
		return facts, p.Index, err
	}
	return facts, 0, errors.New("the disk has no rootfs.0")
}

// initrd makes an initramfs with lifeboat's modules and a spec of its own.
func initrd(s *scene.Scene, name, init, spec string) (string, error) {
	out := s.Path(name)
	_, err := image.Initramfs(context.Background(), image.InitramfsOptions{
		Config: s.Conf, Keyring: s.Key("release.keyring.pem"), Init: init, Kernel: s.Kernel.Root, Spec: spec,
	}, out)
	return out, err
}

func (b *bench) floorInitrd(s *scene.Scene, factory string) (string, error) {
	facts, index, err := slotOf(s, factory)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("/dev/vda%d %d %x %x\n", index, facts.DataBlocks, facts.RootHash, facts.Salt)
	if err := os.WriteFile(s.Path("floor.txt"), []byte(text), 0o644); err != nil {
		return "", err
	}
	if err := b.build(s.Path("floor"), "./qemu/measure/floor", ""); err != nil {
		return "", err
	}
	return initrd(s, "floor.initrd", s.Path("floor"), image.DefaultSpec+"\nfile /etc/floor "+s.Path("floor.txt")+" 0644 0 0\n")
}

// scriptInitrd is what people put together by hand: Debian's static busybox, dmsetup and its libraries.
func (b *bench) scriptInitrd(s *scene.Scene, factory string) (string, error) {
	facts, index, err := slotOf(s, factory)
	if err != nil {
		return "", err
	}
	peers := filepath.Join(b.root, "build/peers")
	busybox, dmsetup := filepath.Join(peers, "bin/busybox"), filepath.Join(peers, "sbin/dmsetup")
	slot, n := fmt.Sprintf("/dev/vda%d", index), facts.DataBlocks
	script := fmt.Sprintf(`#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc # the shell finds its other commands by /proc/self/exe
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
while read -r module options; do
	insmod $module $options 2>/dev/null
done </etc/lifeboat/modules
while [ ! -b %s ]; do sleep 0.01; done
DM_DISABLE_UDEV=1 /sbin/dmsetup create root --readonly --table '0 %d verity 1 %s %s 4096 4096 %d %d sha256 %x %x'
mount -t squashfs -o ro /dev/mapper/root /newroot
for dir in proc sys dev run; do
	/bin/busybox mount --move /$dir /newroot/$dir
done
exec /bin/busybox switch_root /newroot /sbin/init
`, slot, n*8, slot, slot, n, n, facts.RootHash, facts.Salt)
	if err := os.WriteFile(s.Path("script"), []byte(script), 0o755); err != nil {
		return "", err
	}
	libs, err := libraries(peers, dmsetup)
	if err != nil {
		return "", err
	}
	spec := strings.Replace(image.DefaultSpec, "file /init ${INIT} 0755 0 0", "file /bin/busybox ${INIT} 0755 0 0", 1)
	spec += "\nfile /init " + s.Path("script") + " 0755 0 0\nfile /sbin/dmsetup " + dmsetup + " 0755 0 0\n"
	for _, l := range libs {
		spec += fmt.Sprintf("file %s %s 0755 0 0\n", l.name, l.file)
	}
	return initrd(s, "script.initrd", busybox, spec)
}

type library struct{ name, file string }

var lddLine = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

// libraries returns what a dynamic program needs, at the places where its loader looks.
func libraries(peers, program string) ([]library, error) {
	dirs, _ := filepath.Glob(filepath.Join(peers, "lib/*-linux-gnu"))
	more, _ := filepath.Glob(filepath.Join(peers, "usr/lib/*-linux-gnu"))
	dirs = append(dirs, more...)
	cmd := exec.Command("ldd", program)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(dirs, ":"))
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", program, err)
	}
	var libs []library
	for _, m := range lddLine.FindAllStringSubmatch(string(out), -1) {
		name := m[1]
		if rest, ok := strings.CutPrefix(name, peers); ok {
			name = rest
		}
		libs = append(libs, library{name, m[1]})
	}
	return libs, nil
}

var (
	runInit = regexp.MustCompile(`(?m)^<\d+>\[ *(\d+\.\d+)\] Run /init as init process`)
	started = regexp.MustCompile(`(?m)^<\d+>\[ *(\d+\.\d+)\] WITNESS STARTS`)
)

// boot starts the device once on a fresh copy of its disk.
func (b *bench) boot(s *scene.Scene, factory string, c *contender) error {
	file := s.Path("disk.img")
	if err := command(b.root, "cp", "--sparse=always", factory, file); err != nil {
		return err
	}
	m := s.Machine(file)
	m.Initrd, m.NoReboot, m.Append = c.initrd, true, qemu.FastArgs+" console=ttyS0 quiet panic=-1"
	text, err := b.console(m, 2*time.Minute)
	if b.keep != "" {
		name := fmt.Sprintf("%.8s-%d.log", strings.Map(letters, c.name), len(c.total))
		if err := errors.Join(os.MkdirAll(b.keep, 0o755), os.WriteFile(filepath.Join(b.keep, name), []byte(text), 0o644)); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	from, err1 := stamp(runInit, text)
	to, err2 := stamp(started, text)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("%w; the console:\n%s", err, tail(text))
	}
	c.total = append(c.total, to-from)
	if r, err := report(text); err == nil { // the others leave none
		if c.phases == nil {
			c.phases = map[string]sample{}
		}
		for _, p := range r.Phases {
			if c.phases[p.Name] == nil {
				c.order = append(c.order, p.Name)
			}
			c.phases[p.Name] = append(c.phases[p.Name], p.MS)
		}
	}
	return nil
}

// console starts a machine, waits until the witness has switched it off and returns all that it wrote.
func (b *bench) console(m qemu.Machine, patience time.Duration) (string, error) {
	vm, err := qemu.Start(context.Background(), m)
	if err != nil {
		return "", err
	}
	defer vm.Close()
	err = vm.Wait(patience)
	text := vm.Console()
	if err != nil {
		err = fmt.Errorf("%w; the console:\n%s", err, tail(text))
	}
	return text, err
}

func tail(text string) string { return text[max(0, len(text)-4000):] }

// report finds the boot.json that the witness printed.
func report(console string) (r status.Report, err error) {
	_, text, found := strings.Cut(console, "\n{")
	if !found {
		return r, fmt.Errorf("no boot.json; the console:\n%s", tail(console))
	}
	if err := json.NewDecoder(strings.NewReader("{" + text)).Decode(&r); err != nil {
		return r, fmt.Errorf("boot.json: %w", err)
	}
	return r, nil
}

func letters(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r
	}
	return -1
}

// stamp returns the kernel's time of a line in its log, in seconds.
func stamp(re *regexp.Regexp, log string) (float64, error) {
	m := re.FindStringSubmatch(log)
	if m == nil {
		return 0, fmt.Errorf("no line %s in the kernel log", re)
	}
	return strconv.ParseFloat(m[1], 64)
}
