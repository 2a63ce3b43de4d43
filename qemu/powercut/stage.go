package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// stage is everything that recording and replay need: programs, keys, systems, disks, sticks, a template.
type stage struct {
	*scene.Scene
	Template *qemu.Template
	Loader   string // boot loader that starts the device, "": none, QEMU starts the kernel
}

// firmware starts each boot loader that there may be.
var firmware = map[string]scene.Firmware{"grub": scene.SeaBIOS, "uboot": scene.UBoot}

const (
	slotSize  = 5 << 20         // bytes; small, so that there are few states
	dataSize  = 1 << 20         // of staging and data, which nobody looks at
	firstWait = 3 * time.Minute // for anything in the virtual device on a busy machine
)

// systems are the versions that exist, and what each does once it runs.
var systems = map[string]testsystem.Behaviour{
	"1.0": testsystem.Good, "2.0": testsystem.Good, "3.0": testsystem.Silent, "4.0": testsystem.Good,
	"2.1": testsystem.Hang,
}

func (s *stage) stick(version string) string { return s.Path("stick-" + version + ".img") }

// bundle is the update to a version.
func (s *stage) bundle(version string) string { return s.Path("update-" + version + ".raucb") }

// image is what a bundle brings for a slot of a class: "rootfs", and with a boot loader "boot".
func (s *stage) image(class, version string) string {
	return s.Path("image-" + class + "-" + version + ".img")
}

// openStage returns the stage of today's programs and of a boot loader ("": none) below the source tree's out/powercut;
// what exists is used again. A stage that was not used for a day is removed.
func openStage(loader string, say func(format string, args ...any)) (*stage, error) {
	if firmware[loader] == "" && loader != "" {
		return nil, fmt.Errorf("there is no device with the boot loader %q", loader)
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return nil, fmt.Errorf("no virtual device: %w: run make setup", err)
	}
	root, err := scene.Build()
	if err != nil {
		return nil, err
	}
	kernel, err := qemu.FindKernel("generic")
	if err != nil {
		return nil, err
	}
	key, err := stageKey(root, kernel)
	if err != nil {
		return nil, err
	}
	all := filepath.Join(root, "out", "powercut", "stage")
	if err := os.MkdirAll(all, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(all, "lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // and so unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if loader != "" {
		key += "-" + loader
	}
	dir := filepath.Join(all, key)
	if err := removeOld(all, key); err != nil {
		return nil, err
	}
	ready := filepath.Join(dir, "ready")
	if _, err := os.Stat(ready); err != nil {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
		say("staging keys, systems, disks, sticks and a template in %s", dir)
		s, err := newStage(dir, loader)
		if err != nil {
			return nil, err
		}
		for _, story := range s.stories() {
			say("recording %s", story.name)
			if err := s.record(story); err != nil {
				return nil, fmt.Errorf("record %s: %w", story.name, err)
			}
		}
		if err := os.WriteFile(ready, nil, 0o644); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	if err := os.Chtimes(ready, now, now); err != nil {
		return nil, err
	}
	s := &stage{Scene: scene.At(dir, root, kernel), Loader: loader}
	s.Template = &qemu.Template{State: s.Path("template.state"), RAM: s.Path("template.ram")}
	return s, nil
}

// stageKey identifies what a stage is made of.
func stageKey(root string, kernel qemu.Kernel) (string, error) {
	h := sha256.New()
	add := func(file string) error {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Fprintf(h, "%s\n", filepath.Base(file))
		_, err = io.Copy(h, f)
		return err
	}
	files := []string{filepath.Join(root, "bin/init"), filepath.Join(root, "bin/bootcount")}
	for _, pattern := range []string{"qemu/powercut/stage.go", "qemu/powercut/record.go", "qemu/powercut/template/*.go", "qemu/testsystem/system/*.go", "image/initramfs.go", "image/bootloader/*.go", "cmd/lifeboat/bootloader_*.go", "qemu/scene/loader.go"} {
		some, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", err
		}
		files = append(files, some...)
	}
	for _, f := range files {
		if err := add(f); err != nil {
			return "", err
		}
	}
	fmt.Fprintf(h, "%s %s\n", kernel.Release, qemu.DefaultCPU)
	return hex.EncodeToString(h.Sum(nil)[:6]), nil
}

func removeOld(all, key string) error {
	entries, err := os.ReadDir(all)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(all, e.Name(), "ready"))
		old := err == nil && time.Since(info.ModTime()) > 24*time.Hour
		if e.IsDir() && e.Name() != key && (old || errors.Is(err, fs.ErrNotExist)) {
			if err := os.RemoveAll(filepath.Join(all, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func newStage(dir, loader string) (*stage, error) {
	options := scene.Options{Config: map[string]string{}}
	if loader != "" {
		options.Config = scene.LoaderConfig(loader)
		options.Config["system boot-attempts"] = "2"
	}
	options.Config["rescue retry"] = "5s"
	sc, err := scene.New(dir, options)
	if err != nil {
		return nil, err
	}
	s := &stage{Scene: sc, Loader: loader}
	for version, how := range systems {
		with := map[string]string{}
		if loader != "" { // each version has its own, so that one can be told from another
			if with["boot"], err = s.BootImage(filepath.Base(s.image("boot", version)), version); err != nil {
				return nil, err
			}
		}
		image, err := s.System(filepath.Base(s.image("rootfs", version)), testsystem.Options{Version: version, Behaviour: how})
		if err != nil {
			return nil, err
		}
		b, err := s.Bundle(filepath.Base(s.bundle(version)), image, scene.BundleOptions{Version: version, With: with})
		if err != nil {
			return nil, err
		}
		if _, err := s.Stick(filepath.Base(s.stick(version)), b); err != nil {
			return nil, err
		}
	}
	if loader != "" {
		return s, nil
	}
	return s, s.makeTemplate()
}

// factory makes a disk with 1.0 in slot A.
func (s *stage) factory(name string) (string, error) {
	fill := map[string]string{"A": s.bundle("1.0")}
	sizes := map[string]int64{"rootfs": slotSize, "staging": dataSize, "data": dataSize}
	if s.Loader != "" {
		return s.StartedBy(firmware[s.Loader], name, fill, sizes)
	}
	return s.Disk(name, fill, sizes)
}

// machine is the virtual device of all of this.
func (s *stage) machine(disk string) (qemu.Machine, error) {
	if s.Loader == "" {
		return s.Machine(disk), nil
	}
	return s.FirmwareMachine(firmware[s.Loader], disk)
}

// device is that with a disk that may be lost.
func (s *stage) device(disk string) (qemu.Machine, error) {
	m, err := s.machine(disk)
	m.Scratch = true
	return m, err
}

// makeTemplate saves the device where its kernel is up and its modules are loaded.
func (s *stage) makeTemplate() error {
	program := s.Path("template")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", program, "lifeboat/qemu/powercut/template")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	initrd := s.Path("template.cpio")
	if err := s.MakeInitrd(initrd, "file /template "+program+" 0755 0 0"); err != nil {
		return err
	}
	blank := s.Path("blank.img")
	if err := os.WriteFile(blank, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(blank, 1<<20); err != nil {
		return err
	}
	m, err := s.device(blank)
	if err != nil {
		return err
	}
	m.Initrd, m.RAM = initrd, s.Path("template.ram")
	m.Append += " rdinit=/template"
	return run(m, func(vm *qemu.VM) error {
		if _, err := vm.Expect(firstWait, `TEMPLATE READY\n`); err != nil {
			return err
		}
		_, err := vm.Save(s.Path("template.state"))
		return err
	})
}

// copyFile copies an image, holes as holes.
func copyFile(from, to string) error {
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

func readJSON(file string, v any) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func writeJSON(file string, v any) error {
	raw, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(raw, '\n'), 0o644)
}

// lastLines is the end of a console, for an error.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(slices.Clone(lines[max(0, len(lines)-n):]), "\n")
}
