package powercut

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/boot/halves"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/update"
)

// switching is a configuration with a slot of the boot loader.
func switching(kind string) map[string]string {
	start := "32K"
	if kind == halves.RawFallback {
		start = "8K"
	}
	return map[string]string{
		"slot.bootloader.0 device": "/dev/flash", "slot.bootloader.0 type": kind, "slot.bootloader.0 region-start": start, "slot.bootloader.0 region-size": "8K",
	}
}

const flashSize = 128 << 10

// loaderDisks gives the image of a disk a partition that is the disk of the boot loader, with a table where it needs one.
func (k *kit) loaderDisks(file string) {
	k.t.Helper()
	for _, s := range k.cfg.Loaders() {
		label := strings.TrimPrefix(s.Device, "/dev/")
		info, err := os.Stat(file)
		k.must(err)
		k.must(os.Truncate(file, info.Size()+4<<20))
		k.tool("", "sgdisk", "-e", "-n", fmt.Sprintf("0:0:+%dK", flashSize>>10), file)
		i := k.read(file)
		table, err := disk.Partitions(i, i.Size())
		k.must(err)
		last := table[len(table)-1]
		k.tool("", "sgdisk", "-c", fmt.Sprintf("%d:%s", last.Index, label), file)
		inner := filepath.Join(k.dir, label)
		k.must(errors.Join(os.WriteFile(inner, nil, 0o644), os.Truncate(inner, flashSize)))
		switch s.Type {
		case halves.MBRSwitch:
			k.tool("label: dos\nlabel-id: 1\nstart=64, size=8, type=c\nstart=100, size=20, type=83\n", "sfdisk", "-q", inner)
		case halves.GPTSwitch:
			k.tool("label: gpt\nfirst-lba: 34\nstart=64, size=8, type=L\nstart=100, size=20, type=L\n", "sfdisk", "-q", inner)
		}
		b, err := os.ReadFile(inner)
		k.must(err)
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		k.must(err)
		_, err = f.WriteAt(b, last.Start)
		k.must(errors.Join(err, f.Close()))
	}
}

func (k *kit) tool(input, name string, args ...string) {
	k.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		k.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// factory puts a version's boot loader into the copies that a device comes with.
func (k *kit) factory(d *Device, i *crash.Image, version string) {
	k.t.Helper()
	for _, s := range d.Config.Loaders() {
		b, err := os.ReadFile(filepath.Join(k.dir, "in-"+version, s.Class+".img"))
		k.must(err)
		for n := range 2 {
			if n == 0 || s.Type == halves.RawFallback {
				_, err = i.WriteAt(b, d.Part(update.CopyName(s.Name, n)).Off)
				k.must(err)
			}
		}
	}
}

// switchable is a device with version 1 of system and boot loader, confirmed, and a stick.
func switchable(t *testing.T, kind string, sticks ...string) (*kit, *Device, *crash.Image) {
	k := newKit(t, switching(kind))
	disk := k.disk(map[string]string{"A": k.bundle("1", 0, Healthy)})
	d := k.device(disk, nil)
	k.factory(d, disk, "1")
	disk = k.settled(d, disk, "1")
	for n, version := range sticks {
		sticks[n] = k.bundle(version, 0, Healthy)
	}
	if len(sticks) > 0 {
		d.Stick = k.stick(sticks...)
	}
	return k, d, disk
}

var switchKinds = []string{halves.MBRSwitch, halves.GPTSwitch, halves.RawFallback}

// tornMBR is a state that no medium may leave on which an MBR can be changed at all: its sector is neither old nor new.
func tornMBR(d *Device, c crash.State) bool {
	s := d.Config.Loaders()[0]
	if s.Type != halves.MBRSwitch {
		return false
	}
	_, err := d.switcher(c.Image, s).Active()
	return err != nil
}

// TestLoaderCut: at every cut of an update that brings a boot loader too, the one that is started is whole, the device boots, and
// the update completes: system and boot loader are the new ones in the end.
func TestLoaderCut(t *testing.T) {
	for _, kind := range switchKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			_, d, disk := switchable(t, kind, "2")
			s := scenario{name: "install with " + kind, device: d, start: disk, want: Want{Version: "2", Loaders: true}}
			torn, old, now := 0, 0, 0
			check := s.test(crash.Options{}).Check
			s.check = func(c crash.State) error {
				if tornMBR(d, c) {
					return nil
				}
				v, err := d.StartedLoader(c.Image, "bootloader.0")
				if err != nil {
					return err
				}
				if err := check(c); err != nil {
					return fmt.Errorf("loader %s: %w", v, err)
				}
				return nil
			}
			c := s.test(crash.Options{Random: 5, Wide: 5, Limit: 40})
			res := crash.Crash(t, c)
			res.Trace.States(c.Options, func(s crash.State) bool {
				switch v, _ := d.StartedLoader(s.Image, "bootloader.0"); {
				case tornMBR(d, s):
					torn++
				case v == "1":
					old++
				case v == "2":
					now++
				}
				return true
			})
			t.Logf("%d distinct states; the old boot loader is started in %d, the new one in %d, an MBR was torn in %d", res.Distinct, old, now, torn)
			if old == 0 || now == 0 || kind != halves.MBRSwitch && torn > 0 {
				t.Error("no cut came between the boot loaders")
			}
		})
	}
}

// TestLoaderRunning: the same from the running system; and where a bundle brings what is there already, or no boot loader,
// nothing of it is written.
func TestLoaderRunning(t *testing.T) {
	for _, kind := range switchKinds {
		t.Run(kind, func(t *testing.T) {
			k, d, disk := switchable(t, kind, "2")
			l := &life{k, d, disk}
			started := func(want string) {
				t.Helper()
				if v, err := d.StartedLoader(l.disk, "bootloader.0"); err != nil || v != want {
					t.Errorf("the boot loader of version %s is started (%v), want %s", v, err, want)
				}
			}
			install := func(file string) (writes []int64) {
				t.Helper()
				r := crash.Record(l.disk)
				lines, err := d.Install(r, "rootfs.0", k.read(file), nil, nil)
				if err != nil {
					t.Fatalf("%v\n%s", err, strings.Join(lines, "\n"))
				}
				for _, op := range r.Trace().Ops {
					if p := d.Part("bootloader.0"); op.Kind == crash.Write && op.Off >= p.Off && op.Off < p.Off+p.Len {
						writes = append(writes, op.Off-p.Off)
					}
				}
				l.disk = r.Image()
				return writes
			}
			d.Stick = nil
			if w := install(k.dir + "/2.raucb"); len(w) == 0 {
				t.Error("no write")
			}
			started("2")
			// Installed again it is there.
			if w := install(k.dir + "/2.raucb"); len(w) > 0 {
				t.Errorf("what is there was written: %v", w)
			}
			k.noLoader = true
			three := k.bundle("3", 0, Healthy)
			if w := install(three); len(w) > 0 {
				t.Errorf("a bundle without a boot loader wrote %v", w)
			}
			started("2")
			b, _ := l.boot()
			l.runs(b, "3")
		})
	}
}

// TestLoaderLost: a boot loader that does not arrive is not switched to, and its bundle is not installed.
func TestLoaderLost(t *testing.T) {
	for _, kind := range switchKinds {
		k, d, disk := switchable(t, kind, "2")
		d.LosesLoader = true
		l := &life{k, d, disk}
		b, s := l.boot(k.dir + "/2.raucb")
		l.refused(b, 40, "what was read back is not what was written")
		l.runs(b, "1")
		if _, sealed := d.sealed(l.disk, "rootfs.1"); sealed || s.Install.Target != "" {
			t.Errorf("%s: it counts as installed: %+v", kind, s.Install)
		}
		if v, err := d.StartedLoader(l.disk, "bootloader.0"); err != nil || v != "1" {
			t.Errorf("%s: the boot loader of version %s is started (%v)", kind, v, err)
		}
		// The same bundle again, on a disk that keeps what is written.
		d.LosesLoader = false
		for range 3 {
			b, _ = l.boot(k.dir + "/2.raucb")
		}
		l.runs(b, "2")
		if v, _ := d.StartedLoader(l.disk, "bootloader.0"); v != "2" {
			t.Errorf("%s: the boot loader of version %s is started", kind, v)
		}
	}
}

// TestLoaderRefused: what cannot be installed is refused before a slot or a copy is touched.
func TestLoaderRefused(t *testing.T) {
	spoil := map[string]func(k *kit, d *Device, i *crash.Image){
		"neither half of the region": func(k *kit, d *Device, i *crash.Image) {
			i.WriteAt([]byte{65}, d.Part("bootloader.0").Off+446+8)
		},
		"there is no MBR": func(k *kit, d *Device, i *crash.Image) {
			i.WriteAt(make([]byte, 512), d.Part("bootloader.0").Off)
		},
		"image bootloader has 3000 bytes, the boot loader's slot takes 2999": func(k *kit, d *Device, i *crash.Image) {
			n := slices.IndexFunc(d.Config.Slots, func(s config.Slot) bool { return s.Name == "bootloader.0" })
			d.Config.Slots[n].Region.Size = 2 * 2999
		},
	}
	for text, spoil := range spoil {
		t.Run(text, func(t *testing.T) {
			k, d, disk := switchable(t, halves.MBRSwitch, "2")
			spoil(k, d, disk)
			before := disk.Clone()
			l := &life{k, d, disk}
			r := crash.Record(l.disk)
			b, err := d.Boot(r, 0, Observer{})
			k.must(err)
			l.refused(b, 31, text)
			l.disk = r.Image()
			for _, name := range []string{"rootfs.1", "rootfs.0", "bootloader.0"} {
				if !sameBytes(before, l.disk, d.Part(name)) {
					t.Errorf("%s was written", name)
				}
			}
			l.runs(b, "1")
		})
	}
}
