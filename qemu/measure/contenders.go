package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/image"
	"lifeboat/qemu/scene"
	"lifeboat/slots"
	"lifeboat/verify"
)

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
