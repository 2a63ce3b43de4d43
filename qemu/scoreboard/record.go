package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"lifeboat/disk/crash"
	"lifeboat/qemu"
	"lifeboat/qemu/testsystem"
	"lifeboat/qemu/writelog"
)

// Op is one operation on a boot state, small enough that it means one thing to the device.
type Op struct {
	Name   string
	Script string // what Linux runs for it (busybox sh); the boot loader's operations have none
	// Unproven is the slot whose content may be bad while the operation runs: just installed, or being installed.
	// Empty: both slots hold systems that work.
	Unproven string
}

// Step is one run of the virtual device: a boot loader that does the one operation it does, or Linux with several.
type Step struct {
	By  string // "linux", "grub", "uboot", "systemd-boot"
	Ops []Op
	Run string // the boot loader's script
}

// Recorded is an operation as the disk saw it.
type Recorded struct {
	Op
	By    string
	Trace *crash.Trace
	After *crash.Image // everything durable
}

// apply returns what is on the disk when all of ops is durable.
func apply(base *crash.Image, ops []crash.Op) (*crash.Image, error) {
	img := base.Clone()
	for _, o := range ops {
		data := o.Data
		switch o.Kind {
		case crash.Discard:
			data = make([]byte, o.Len)
		case crash.Write:
		default:
			continue
		}
		if _, err := img.WriteAt(data, o.Off); err != nil {
			return nil, err
		}
	}
	flat, err := crash.ReadImage(img, img.Size())
	return flat, err
}

// lab is where the virtual device runs.
type lab struct {
	dir    string // scratch
	build  string // what make setup unpacked
	kernel qemu.Kernel
	logf   func(format string, args ...any)
}

// patience with a machine that others use too.
const patience = 3 * time.Minute

// record runs all steps of a peer one after the other on one disk.
func (l *lab) record(ctx context.Context, p *Peer, base *crash.Image) ([]Recorded, error) {
	var all []Recorded
	initrd := ""
	for i, s := range p.Steps {
		disk, log := filepath.Join(l.dir, "disk.img"), filepath.Join(l.dir, "writes.log")
		if err := base.SaveFile(disk); err != nil {
			return nil, err
		}
		if err := os.WriteFile(log, nil, 0o644); err != nil {
			return nil, err
		}
		m := machineOn(disk, log)
		var ends []int64
		var err error
		switch s.By {
		case "linux":
			if initrd == "" {
				initrd = filepath.Join(l.dir, "initramfs")
				if err := l.initramfs(initrd, p); err != nil {
					return nil, err
				}
			}
			ends, err = l.linux(ctx, m, p, i, initrd, log)
		case "grub":
			if _, err = l.bootGRUB(ctx, m, s.Run); err == nil {
				ends = []int64{size(log)}
			}
		case "uboot":
			ends, err = l.uboot(ctx, m, s, log)
		case "systemd-boot":
			ends, err = l.systemdBoot(ctx, m, p, i, log)
		default:
			err = fmt.Errorf("nobody is called %q", s.By)
		}
		if err != nil {
			return nil, fmt.Errorf("%s, step %d (%s): %w", p.Name, i+1, s.By, err)
		}
		writes, err := readLog(log, base.Size())
		if err != nil {
			return nil, err
		}
		from := 0
		for k, end := range ends {
			to := from
			for to < len(writes.Ops) && writes.End[to] <= end {
				to++
			}
			ops := writes.Ops[from:to]
			from = to
			r := Recorded{Op: s.Ops[k], By: s.By, Trace: &crash.Trace{Base: base, Ops: ops}}
			if r.After, err = apply(base, ops); err != nil {
				return nil, err
			}
			l.logf("%s: %s: %d writes, %d flushes", p.Name, r.Name, r.Trace.Writes(), r.Trace.Flushes())
			all = append(all, r)
			base = r.After
		}
	}
	return all, nil
}

func readLog(name string, diskSize int64) (*writelog.Log, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := writelog.Read(f, size(name), diskSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return l, nil
}

// machineOn is a virtual device with a disk whose writes go into a log too.
func machineOn(disk, log string) qemu.Machine {
	return qemu.Machine{NoReboot: true, Args: []string{
		"-blockdev", "driver=blklogwrites,node-name=medium,log-sector-size=512" +
			",file.driver=file,file.filename=" + disk + ",log.driver=file,log.filename=" + log,
		"-device", "virtio-blk-pci,drive=medium",
	}}
}

func size(name string) int64 {
	info, err := os.Stat(name)
	if err != nil {
		return 0
	}
	return info.Size()
}

// initramfs makes the Linux that runs a peer's operations: busybox, the peer's tools and their libraries, one script for
// each operation.
func (l *lab) initramfs(out string, p *Peer) error {
	o := testsystem.Options{
		Version: "scoreboard", KernelRoot: l.kernel.Root, Files: map[string]string{}, Text: map[string]string{},
		Modules: []string{"virtio_pci", "virtio_blk", "vfat", "nls_cp437", "nls_ascii", "ext4", "efivarfs"},
	}
	for _, tool := range append([]string{filepath.Join(l.build, "peers/bin/busybox")}, p.Tools...) {
		path, err := l.tool(tool)
		if err != nil {
			return err
		}
		o.Files["bin/"+filepath.Base(path)] = path
		libs, err := l.libraries(path)
		if err != nil {
			return err
		}
		for to, from := range libs {
			o.Files[to] = from
		}
	}
	for to, content := range p.Text {
		o.Text[to] = content
	}
	for to, from := range p.Files {
		o.Files[to] = from
	}
	for i, s := range p.Steps {
		for k, op := range s.Ops {
			if op.Script != "" {
				o.Text[fmt.Sprintf("ops/%d.%d", i, k)] = "set -e\nexport PATH=/bin\n" + op.Script + "\nsync\n"
			}
		}
	}
	return testsystem.Initramfs(out, o)
}

// tool finds a program by its path, below build/, or in the usual places.
func (l *lab) tool(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range []string{l.build, "/usr/bin", "/usr/sbin", "/bin", "/sbin"} {
		if p := filepath.Join(dir, name); size(p) > 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s not found: run make setup", name)
}

// libraryPath is where the libraries of unpacked programs are.
func (l *lab) libraryPath() string {
	var dirs []string
	for _, d := range []string{"peers/usr/lib/*-linux-gnu", "loaders/usr/lib/*-linux-gnu/systemd", "loaders/lib/*-linux-gnu/systemd"} {
		found, _ := filepath.Glob(filepath.Join(l.build, d)) // the pattern is good
		dirs = append(dirs, found...)
	}
	return strings.Join(dirs, ":")
}

var ldd = regexp.MustCompile(`(/\S+) \(0x`)

// libraries returns what a program loads: path in the system to file here.
func (l *lab) libraries(program string) (map[string]string, error) {
	cmd := exec.Command("ldd", program)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+l.libraryPath(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("not a dynamic executable")) {
			return nil, nil
		}
		return nil, fmt.Errorf("ldd %s: %w: %s", program, err, out)
	}
	if bytes.Contains(out, []byte("not found")) {
		return nil, fmt.Errorf("ldd %s: %s", program, out)
	}
	libs := map[string]string{}
	for _, m := range ldd.FindAllStringSubmatch(string(out), -1) {
		to := strings.TrimPrefix(m[1], "/")
		if !strings.HasPrefix(to, "lib64/ld-") {
			to = "lib/x86_64-linux-gnu/" + filepath.Base(to)
		}
		libs[to] = m[1]
	}
	return libs, nil
}

// linux runs the operations of a step and returns how long the log was after each.
func (l *lab) linux(ctx context.Context, m qemu.Machine, p *Peer, step int, initrd, log string) ([]int64, error) {
	m.Kernel, m.Initrd = l.kernel.Image, initrd
	m.Append = qemu.FastArgs + " console=ttyS0 quiet " + p.Cmdline
	if p.Second > 0 {
		second := filepath.Join(l.dir, "second.img")
		if err := crash.NewImage(p.Second).SaveFile(second); err != nil {
			return nil, err
		}
		m.Args = append(m.Args, "-drive", "if=none,id=second,format=raw,file="+second, "-device", "virtio-blk-pci,drive=second")
	}
	vm, err := qemu.Start(ctx, m)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	if _, err := vm.Expect(patience, `SYSTEM READY\n`); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, vm.Console())
	}
	return l.operate(vm, p, step, log)
}

func (l *lab) operate(vm *qemu.VM, p *Peer, step int, log string) (ends []int64, err error) {
	for k, op := range p.Steps[step].Ops {
		if op.Script == "" {
			ends = append(ends, size(log))
			continue
		}
		out, status, err := testsystem.Run(vm, patience, "busybox", "timeout", "100", "busybox", "sh", fmt.Sprintf("/ops/%d.%d", step, k))
		if err == nil && status != 0 {
			err = fmt.Errorf("exit status %d: %s", status, out)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", op.Name, err)
		}
		if out != "" {
			l.logf("%s: %s: %s", p.Name, op.Name, out)
		}
		ends = append(ends, size(log))
	}
	return ends, nil
}

// bootGRUB starts GRUB for a BIOS from a disk of its own; its script sees the medium as (hd1), and ends with
// "BOOT slot=X", which is returned.
func (l *lab) bootGRUB(ctx context.Context, m qemu.Machine, config string) (slot string, err error) {
	const modules = "/usr/lib/grub/i386-pc"
	cfg, tar, core := filepath.Join(l.dir, "grub.cfg"), filepath.Join(l.dir, "grub.tar"), filepath.Join(l.dir, "core.img")
	script := "serial --unit=0\nterminal_input serial\nterminal_output serial\n" + config + "\nhalt\n"
	if err := os.WriteFile(cfg, []byte(script), 0o644); err != nil {
		return "", err
	}
	if err := run("tar", "-C", l.dir, "-cf", tar, "grub.cfg"); err != nil {
		return "", err
	}
	if err := run("grub-mkimage", "-d", modules, "-O", "i386-pc", "-o", core, "-m", tar, "-p", "(memdisk)/",
		"memdisk", "tar", "biosdisk", "fat", "ext2", "normal", "loadenv", "test", "serial", "terminal", "halt", "echo", "true"); err != nil {
		return "", err
	}
	boot, err := os.ReadFile(filepath.Join(modules, "boot.img"))
	if err != nil {
		return "", err
	}
	rest, err := os.ReadFile(core)
	if err != nil {
		return "", err
	}
	copy(boot[0x66:], []byte{0x90, 0x90}) // boot from the drive that the BIOS names
	boot = append(boot, rest...)
	boot = append(boot, make([]byte, 1<<20-len(boot))...)
	disk := filepath.Join(l.dir, "grub.img")
	if err := os.WriteFile(disk, boot, 0o644); err != nil {
		return "", err
	}
	m.Args[len(m.Args)-1] += ",bootindex=1"
	m.Args = append(m.Args, "-drive", "if=none,id=grub,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=grub,bootindex=0")
	vm, err := qemu.Start(ctx, m)
	if err != nil {
		return "", err
	}
	defer vm.Close()
	got, err := vm.Expect(patience, `BOOT slot=(\S+)`)
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, vm.Console())
	}
	return got[1], nil
}

// uboot starts Debian's U-Boot for QEMU's PC, which reads boot.scr from a disk of its own (virtio 1); the medium is
// virtio 0.
func (l *lab) uboot(ctx context.Context, m qemu.Machine, s Step, log string) ([]int64, error) {
	rom, err := l.tool("loaders/usr/lib/u-boot/qemu-x86/u-boot.rom")
	if err != nil {
		return nil, err
	}
	m.Args = append(m.Args, "-machine", "pc", "-bios", rom, "-m", "512M")
	vm, err := qemu.Start(ctx, m)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	if _, err := vm.Expect(patience, `Hit any key`); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, vm.Console())
	}
	if err := vm.Type("\n\n"); err != nil {
		return nil, err
	}
	for line := range strings.Lines(s.Run) {
		if _, err := vm.Expect(patience, `=> `); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, vm.Console())
		}
		if err := vm.Type(line); err != nil {
			return nil, err
		}
	}
	if _, err := vm.Expect(patience, `\nBOOT slot=\w`); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, vm.Console())
	}
	l.logf("%s", vm.Console())
	return []int64{size(log)}, nil
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}
