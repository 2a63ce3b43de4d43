// Package scene makes what a virtual device needs for a story: keys, systems, bundles, a disk, an initramfs, sticks. Demo,
// tests and benchmarks stage their stories with it, with the same code that `lifeboat` runs for a user.
package scene

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/image"
	"lifeboat/qemu"
	"lifeboat/qemu/testsystem"
	"lifeboat/verify"
	"lifeboat/verify/keys"
)

// Compatible is what the scene's device is.
const Compatible = "lifeboat-demo"

// Options of a scene.
type Options struct {
	Flavour string            // of the kernel: "generic" (default: it has USB) or "cloud"
	Config  map[string]string // "section key" to value, added to or replacing those of the configuration
	RSA     int               // bits of RSA keys, 0: EC P-256
	Keys    string            // folder of keys that is used; default: one is made
	Keyring string            // file of the built-in keyring; default: release.keyring.pem of Keys
}

// Scene is a folder with what was staged. Its methods may be called by several goroutines at once; names of files are
// the caller's and must differ.
type Scene struct {
	Dir    string
	Kernel qemu.Kernel
	Keys   string // folder that `lifeboat keys init` made
	Bin    string // folder of bin/init, bin/bootcount, bin/lifeboat
	Conf   string // system.conf
	Ring   string // file of the built-in keyring
	Initrd string

	Modules []string // further ones for MakeInitrd, each with its options after a space
}

// New stages keys, configuration and initramfs in dir. It builds the programs first. Keys that are there are kept.
func New(dir string, o Options) (*Scene, error) {
	if o.Flavour == "" {
		o.Flavour = "generic"
	}
	kernel, err := qemu.FindKernel(o.Flavour)
	if err != nil {
		return nil, err
	}
	root, err := Build()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	s := At(dir, root, kernel)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if o.Keys != "" {
		s.Keys = o.Keys
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	if err := os.WriteFile(s.Path("integrity.key"), key, 0o600); err != nil {
		return nil, err
	}
	s.Ring = s.Key("release.keyring.pem")
	if o.Keyring != "" {
		s.Ring = o.Keyring
	}
	if err := keys.Init(s.Keys, keys.Options{RSA: o.RSA}); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := os.WriteFile(s.Conf, []byte(Config(o.Config)), 0o644); err != nil {
		return nil, err
	}
	return s, s.MakeInitrd(s.Initrd)
}

// At is the scene that was staged in dir. root is that of the source tree.
func At(dir, root string, kernel qemu.Kernel) *Scene {
	return &Scene{
		Dir: dir, Kernel: kernel, Keys: filepath.Join(dir, "keys"), Ring: filepath.Join(dir, "keys", "release.keyring.pem"), Bin: filepath.Join(root, "bin"),
		Conf: filepath.Join(dir, "system.conf"), Initrd: filepath.Join(dir, "initramfs"),
	}
}

// MakeInitrd writes an initramfs of the scene's configuration. more are further lines for its initramfs.cpio.spec.
func (s *Scene) MakeInitrd(out string, more ...string) error {
	keyring, err := s.keyring()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(s.Conf)
	if err != nil {
		return err
	}
	init := "init" // the one of most devices, whatever bootloader= says
	if c, err := config.Parse(b); err == nil && image.InitFor(c) == "init-full" {
		init = "init-full"
	}
	_, err = image.Initramfs(context.Background(), image.InitramfsOptions{
		Config: s.Conf, Keyring: s.Ring, Init: filepath.Join(s.Bin, init), Kernel: s.Kernel.Root,
		IntegrityKey: s.Path("integrity.key"), Modules: s.Modules, Build: keyring.NewestNotBefore(), Spec: strings.Join(append([]string{image.DefaultSpec}, more...), "\n"),
	}, out)
	return err
}

func (s *Scene) keyring() (*verify.Keyring, error) {
	pem, err := os.ReadFile(s.Ring)
	if err != nil {
		return nil, err
	}
	return verify.ParseKeyring(pem)
}

// Key returns the path of a file in Keys.
func (s *Scene) Key(name string) string { return filepath.Join(s.Keys, name) }

// Path returns the path of a file of the scene.
func (s *Scene) Path(name string) string { return filepath.Join(s.Dir, name) }

// Config is a system.conf with two slots that takes bundles of stock rauc.
func Config(changes map[string]string) string {
	values := []struct{ section, key, value string }{
		{"system", "compatible", Compatible},
		{"system", "bootloader", "raw"},
		{"system", "require-signed-verity", "false"},
		{"keyring", "path", "keyring.pem"},
		{"slot.rootfs.0", "device", "PARTLABEL=rootfs.0"},
		{"slot.rootfs.0", "bootname", "A"},
		{"slot.rootfs.1", "device", "PARTLABEL=rootfs.1"},
		{"slot.rootfs.1", "bootname", "B"},
	}
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		section, key, _ := strings.Cut(name, " ")
		value := changes[name]
		found := false
		for i := range values {
			if values[i].section == section && values[i].key == key {
				values[i].value, found = value, true
			}
		}
		if !found {
			values = append(values, struct{ section, key, value string }{section, key, value})
		}
	}
	var order []string
	lines := map[string]string{}
	for _, v := range values {
		if lines[v.section] == "" {
			order = append(order, v.section)
		}
		lines[v.section] += v.key + "=" + v.value + "\n"
	}
	var b strings.Builder
	for _, section := range order {
		fmt.Fprintf(&b, "[%s]\n%s", section, lines[section])
	}
	return b.String()
}

var (
	buildOnce sync.Once
	buildRoot string
	buildErr  error
)

// Build makes the programs as `make build` does, once in a process and in one process at a time, and returns the root of
// the source tree.
func Build() (root string, err error) {
	buildOnce.Do(func() {
		out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
		if err != nil {
			buildErr = fmt.Errorf("find the source tree: %w", err)
			return
		}
		buildRoot = strings.TrimSpace(string(out))
		lock, err := os.OpenFile(filepath.Join(buildRoot, "build", "make.lock"), os.O_CREATE|os.O_RDWR, 0o666)
		if err != nil {
			buildErr = err
			return
		}
		defer lock.Close() // and so unlocks
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			buildErr = fmt.Errorf("lock %s: %w", lock.Name(), err)
			return
		}
		cmd := exec.Command("make", "-s", "-C", buildRoot, "build-amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("make build-amd64: %w\n%s", err, out)
		}
	})
	return buildRoot, buildErr
}

// System writes the image of a small test system, /usr/bin/bootcount in it.
func (s *Scene) System(name string, o testsystem.Options) (string, error) {
	if o.Bootcount == "" {
		o.Bootcount = filepath.Join(s.Bin, "bootcount")
	}
	out := s.Path(name)
	return out, testsystem.Build(out, o)
}

// BundleOptions say how a bundle is made.
type BundleOptions struct {
	Version     string
	Compatible  string // default: Compatible
	Format      string // default: verity
	Rauc        bool   // by Debian's rauc instead of ours
	Compression string // of the payload: gzip, xz, zstd (default), lz4
	Keys        string // folder of the signer's keys; default: the scene's
	Signer      string // name of certificate and key in Keys, default "release"
	Bring       string // name of an intermediate certificate that the bundle brings, for example "develop-ca"
	Epoch       int
	Meta        string            // a further line of [meta.lifeboat]; Epoch must not be 0
	ImageName   string            // file name in the bundle, default "rootfs.img"
	With        map[string]string // further images: class to file
}

// Bundle makes a bundle of an image for the class rootfs.
func (s *Scene) Bundle(name, imageFile string, o BundleOptions) (string, error) {
	for _, d := range []struct {
		v   *string
		def string
	}{{&o.Compatible, Compatible}, {&o.Format, "verity"}, {&o.Compression, "zstd"}, {&o.Signer, "release"}, {&o.ImageName, "rootfs.img"}} {
		if *d.v == "" {
			*d.v = d.def
		}
	}
	in, err := os.MkdirTemp(s.Dir, ".bundle-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(in)
	manifest := fmt.Sprintf("[update]\ncompatible=%s\nversion=%s\n\n[bundle]\nformat=%s\n\n[image.rootfs]\nfilename=%s\n", o.Compatible, o.Version, o.Format, o.ImageName)
	for _, class := range slices.Sorted(maps.Keys(o.With)) {
		manifest += fmt.Sprintf("\n[image.%[1]s]\nfilename=%[1]s.img\n", class)
		if err := os.Link(o.With[class], filepath.Join(in, class+".img")); err != nil {
			return "", err
		}
	}
	if o.Epoch > 0 {
		manifest += fmt.Sprintf("\n[meta.lifeboat]\nsecurity-epoch=%d\n%s\n", o.Epoch, o.Meta)
	}
	if err := os.WriteFile(filepath.Join(in, "manifest.raucm"), []byte(manifest), 0o644); err != nil {
		return "", err
	}
	if err := os.Link(imageFile, filepath.Join(in, o.ImageName)); err != nil {
		return "", err
	}
	out := s.Path(name)
	if err := os.Remove(out); err != nil && !os.IsNotExist(err) {
		return "", err
	}
	if o.Keys == "" {
		o.Keys = s.Keys
	}
	cert, key := filepath.Join(o.Keys, o.Signer+".cert.pem"), filepath.Join(o.Keys, o.Signer+".key.pem")
	if o.Rauc {
		args := []string{"--cert", cert, "--key", key}
		if o.Bring != "" {
			args = append(args, "--intermediate", s.Key(o.Bring+".cert.pem"))
		}
		args = append(args, "bundle", "--mksquashfs-args=-comp "+o.Compression, in, out)
		if text, err := exec.Command("rauc", args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("rauc bundle: %w\n%s", err, text)
		}
		return out, nil
	}
	args := []string{"bundle", "create", "--cert", cert, "--key", key}
	if o.Bring != "" {
		args = append(args, "--intermediate", s.Key(o.Bring+".cert.pem"))
	}
	if o.Compression != "zstd" {
		args = append(args, "--mksquashfs-args", "-comp "+o.Compression)
	}
	if text, err := exec.Command(filepath.Join(s.Bin, "lifeboat"), append(args, in, out)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("lifeboat bundle create: %w\n%s", err, text)
	}
	return out, nil
}

// Disk makes a disk as it leaves the factory: fill maps a slot to a bundle.
func (s *Scene) Disk(name string, fill map[string]string, sizes map[string]int64) (string, error) {
	return s.disk(name, "", fill, sizes)
}

func (s *Scene) disk(name, esp string, fill map[string]string, sizes map[string]int64) (string, error) {
	raw, err := os.ReadFile(s.Conf)
	if err != nil {
		return "", err
	}
	cfg, err := config.Parse(raw)
	if err != nil {
		return "", err
	}
	keyring, err := s.keyring()
	if err != nil {
		return "", err
	}
	o := image.DiskOptions{Config: cfg, Keyring: keyring, ESP: esp, Sizes: sizes, Now: time.Now()}
	for slot, file := range fill {
		o.Fill = append(o.Fill, image.Fill{Slot: slot, File: file})
	}
	out := s.Path(name)
	_, err = image.Disk(context.Background(), o, out)
	return out, err
}

// Stick makes a FAT32 stick with a partition table.
func (s *Scene) Stick(name string, files ...string) (string, error) {
	out := s.Path(name)
	return out, image.Stick(out, image.StickOptions{}, files)
}

// Cmdline is fast, and shows all that lifeboat says and of the kernel what is wrong.
const Cmdline = qemu.FastArgs + " console=ttyS0 loglevel=4"

// Machine describes the virtual device with a disk, with [Cmdline].
func (s *Scene) Machine(disk string, sticks ...string) qemu.Machine {
	m := qemu.Machine{Kernel: s.Kernel.Image, Initrd: s.Initrd, Disk: disk, Append: Cmdline}
	for i, f := range sticks {
		m.Sticks = append(m.Sticks, qemu.Stick{Name: fmt.Sprintf("stick%d", i), File: f})
	}
	return m
}

// Manifest returns the manifest hash of a bundle in hex, read without judging it.
func Manifest(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	b, err := bundle.Peek(f, info.Size())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", b.Manifest.Hash()), nil
}
