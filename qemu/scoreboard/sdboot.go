package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"lifeboat/fat"
	"lifeboat/qemu"
)

// sdBoot is systemd-boot's boot counting: NAME+LEFT-DONE.conf is renamed by the boot loader before each start and to
// NAME.conf by systemd-bless-boot. Entries without tries come last; of the others the highest version is first.
type sdBoot struct{}

const (
	entryDir  = "loader/entries"
	loaderEFI = "EFI/BOOT/BOOTX64.EFI"
)

var counter = regexp.MustCompile(`^(.*)\+(\d+)(?:-(\d+))?\.conf$`)

// entry is a boot loader entry that systemd-boot would show.
type entry struct {
	file       string
	name       string // without counter
	left, done int    // left -1: not counted
	slot       string
	version    string
}

func (sdBoot) entries(c Content) (list []entry) {
	for file, text := range c {
		file, ok := strings.CutPrefix(file, entryDir+"/")
		if !ok || strings.HasPrefix(text, unreadable) || !strings.HasSuffix(file, ".conf") {
			continue
		}
		e := entry{file: file, name: file, left: -1}
		if m := counter.FindStringSubmatch(file); m != nil {
			e.name, e.left, e.done = m[1]+".conf", number(m[2]), number(m[3])
		}
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch key {
			case "version":
				e.version = value
			case "options":
				_, e.slot, _ = strings.Cut(value, "slot=")
			case "linux", "initrd":
				if k, known := c[strings.TrimPrefix(value, "/")]; !known || strings.HasPrefix(k, unreadable) {
					e.slot = "" // the loader drops an entry whose kernel is not there
				}
			}
		}
		if e.slot != "" {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b entry) int {
		if (a.left == 0) != (b.left == 0) {
			if a.left == 0 {
				return 1
			}
			return -1
		}
		if c := strings.Compare(b.version, a.version); c != 0 {
			return c
		}
		return b.left - a.left
	})
	return list
}

func (s sdBoot) Boot(v View) (slot, stop string, next View) {
	if strings.HasPrefix(v.Loader[loaderEFI], unreadable) {
		return "", "stops: the firmware finds no boot loader", v
	}
	list := s.entries(v.Loader)
	if len(list) == 0 {
		return "", "stops: systemd-boot finds no entry", v
	}
	e := list[0]
	if e.left > 0 {
		to := fmt.Sprintf("%s+%d-%d.conf", strings.TrimSuffix(e.name, ".conf"), e.left-1, e.done+1)
		if _, there := v.Loader[entryDir+"/"+to]; !there { // else the rename fails and the entry is started all the same
			v = s.rename(v, e.file, to)
		}
	}
	return e.slot, "", v
}

func (sdBoot) rename(v View, from, to string) View {
	c := maps.Clone(v.System)
	c[entryDir+"/"+to] = c[entryDir+"/"+from]
	delete(c, entryDir+"/"+from)
	return View{c, maps.Clone(c)}
}

// Up is systemd-bless-boot good on the entry that was started.
func (s sdBoot) Up(v View, slot string) (View, string) {
	for _, e := range s.entries(v.System) {
		if e.slot != slot || e.left < 0 {
			continue
		}
		if _, there := v.System[entryDir+"/"+e.name]; there {
			return v, "systemd-bless-boot fails: " + e.name + " is there already"
		}
		return s.rename(v, e.file, e.name), ""
	}
	return v, ""
}

func (s sdBoot) Health(v View) string {
	seen := map[string]int{}
	for _, e := range s.entries(v.System) {
		seen[e.slot]++
	}
	for _, slot := range []string{"A", "B"} {
		switch seen[slot] {
		case 0:
			return "the entry of " + slot + " is gone"
		case 1:
		default:
			return slot + " has two entries"
		}
	}
	return ""
}

// readESP reads what systemd-boot needs of an ESP: its own file, the entries, and whether kernels can be read.
func readESP(file string) (View, error) {
	c := Content{}
	err := onFAT(file, func(f *fat.FS, err error) {
		if err != nil {
			c[loaderEFI] = absent(err)
			return
		}
		for _, name := range []string{loaderEFI, "linux", "initrd"} {
			c[name] = "readable"
			if _, err := f.Open(name); err != nil {
				c[name] = absent(err)
			}
		}
		list, err := f.ReadDir(entryDir)
		if err != nil {
			c[entryDir] = absent(err)
			return
		}
		for _, e := range list {
			c[entryDir+"/"+e.Name] = fatFile(f, nil, entryDir+"/"+e.Name)
		}
	})
	return View{c, maps.Clone(c)}, err
}

func sdEntry(slot, version string) string {
	return "title " + slot + "\nsort-key device\nversion " + version +
		"\nlinux /linux\ninitrd /initrd\noptions console=ttyS0 quiet " + qemu.FastArgs + " slot=" + slot + "\n"
}

// makeESP makes an ESP with systemd-boot, the kernel, and Linux with the peer's tools in both slots' entries.
func makeESP(l *lab, p *Peer, name string) error {
	initrd := filepath.Join(l.dir, "initramfs")
	if err := l.initramfs(initrd, p); err != nil {
		return err
	}
	if err := run("zstd", "-q", "-f", "-3", initrd, "-o", initrd+".zst"); err != nil {
		return err
	}
	loader, err := l.tool("loaders/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
	if err != nil {
		return err
	}
	files := map[string]string{
		"loader/loader.conf":     "timeout 0\n",
		entryDir + "/a.conf":     sdEntry("A", "1"),
		entryDir + "/b+3.conf":   sdEntry("B", "2"),
		entryDir + "/notes.text": "",
	}
	for to, from := range map[string]string{loaderEFI: loader, "linux": filepath.Join(l.kernel.Root, "vmlinuz"), "initrd": initrd + ".zst"} {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		files[to] = string(b)
	}
	return makeFATSize(name, 96<<20, 1, files, "EFI", "EFI/BOOT", "loader", "loader/entries")
}

// systemdBoot starts OVMF and with it systemd-boot from the medium, which then starts Linux from it. The step's first
// operation is the boot loader's.
func (l *lab) systemdBoot(ctx context.Context, m qemu.Machine, p *Peer, step int, log string) ([]int64, error) {
	code, err := l.tool("loaders/usr/share/OVMF/OVMF_CODE_4M.fd")
	if err != nil {
		return nil, err
	}
	vars := filepath.Join(l.dir, "vars.fd")
	if step == 0 {
		fresh, err := l.tool("loaders/usr/share/OVMF/OVMF_VARS_4M.fd")
		if err != nil {
			return nil, err
		}
		if err := run("cp", fresh, vars); err != nil {
			return nil, err
		}
	}
	m.Memory = 512
	m.Args = append(m.Args, "-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+code,
		"-drive", "if=pflash,unit=1,format=raw,file="+vars)
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
