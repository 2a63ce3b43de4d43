package raspberrypi

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
)

var (
	names = []string{"A", "B", "C"}
	parts = []int{2, 3, 5}
	here  = Firmware{Partition: 2, Boot: "0123456789"}
)

func vars(next string, order ...string) boot.Vars {
	v := boot.Vars{Next: next}
	for _, n := range order {
		v.Order = append(v.Order, boot.Turn{Name: n})
	}
	return v
}

func same(v, w boot.Vars) bool { return v.Next == w.Next && slices.Equal(v.Order, w.Order) }

// files are autoboot.txt with that text, and the one that is kept.
func files(text string) []disk.Device {
	dev := disk.NewMemory(2 * 4096)
	copies := onDisk(dev)
	if _, err := copies[0].WriteAt([]byte(text+strings.Repeat("\n", Size-len(text))), 0); err != nil {
		panic(err)
	}
	return copies
}

func onDisk(d disk.Device) []disk.Device {
	return []disk.Device{disk.Section(d, 0, Size), disk.Section(d, 4096, Size)}
}

func content(d disk.Device) string {
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		panic(err)
	}
	return strings.TrimRight(string(b), "\n")
}

func TestReadsWhatItWrote(t *testing.T) {
	l := New(files(""), names, parts, here)
	if _, err := l.Read(); !errors.Is(err, boot.ErrNoVars) {
		t.Error(err)
	}
	for _, v := range []boot.Vars{vars("", "A", "B", "C"), vars("B", "A", "C", "B"), vars("C", "B"), vars("", "C", "A"), vars("A", "C", "B", "A")} {
		if err := l.Write(v); err != nil {
			t.Fatal(err)
		}
		if got, err := l.Read(); err != nil || !same(got, v) {
			t.Errorf("%+v after %+v, %v", got, v, err)
		}
	}
	want := "#lifeboat 01234567 C B A\n[all]\ntryboot_a_b=1\nboot_partition=5\n[tryboot]\nboot_partition=2"
	if got := content(l.copies[0]); got != want {
		t.Errorf("%s", got)
	}
	if got, want := content(l.copies[1]), "#lifeboat 01234567 C A\n[all]\ntryboot_a_b=1\nboot_partition=5"; got != want {
		t.Errorf("kept: %s", got)
	}
	for _, v := range []boot.Vars{vars(""), vars("D", "A"), vars("", "D")} {
		if err := l.Write(v); err == nil {
			t.Errorf("%+v was written", v)
		}
	}
}

// A try is over in the boot that it asked for, and in no other.
func TestTry(t *testing.T) {
	copies := files("")
	if err := New(copies, names, parts, here).Write(vars("B", "A", "B")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name          string
		fw            Firmware
		next, started string
	}{
		{"the same boot", here, "B", "A"},
		{"the power was cut before the restart", Firmware{Partition: 2, Boot: "abcdefgh"}, "B", "A"},
		{"it was asked for", Firmware{Partition: 3, Tried: true, Boot: "abcdefgh"}, "", "B"},
		{"it was asked for in vain", Firmware{Partition: 2, Tried: true, Boot: "abcdefgh"}, "", "A"},
		{"nothing is known", Firmware{}, "B", ""},
	} {
		l := New(copies, names, parts, c.fw)
		if v, err := l.Read(); err != nil || !same(v, vars(c.next, "A", "B")) || l.Started() != c.started {
			t.Errorf("%s: %+v, started %q, %v", c.name, v, l.Started(), err)
		}
	}
	// In the boot that was a try somebody asks for another.
	l := New(copies, names, parts, Firmware{Partition: 3, Tried: true, Boot: "abcdefgh"})
	if err := l.Write(vars("B", "A", "B")); err != nil {
		t.Fatal(err)
	}
	if v, err := l.Read(); err != nil || v.Next != "B" {
		t.Errorf("%+v, %v", v, err)
	}
}

// What others wrote is understood, and what is not ours stays.
func TestOthers(t *testing.T) {
	for text, want := range map[string]boot.Vars{
		"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n": vars("B", "A", "B", "C"),
		"boot_partition=3": vars("", "B", "A", "C"),
		"[tryboot]\r\nboot_partition=3\r\n[all]\r\nboot_partition=5\r\n":                                                 vars("B", "C", "A", "B"),
		"#lifeboat 1 A B\n[all]\nboot_partition=3\n":                                                                     vars("", "B", "A"),
		"[all]\nboot_partition=2\nboot_partition=3":                                                                      vars("", "B", "A", "C"),
		"[partition=1]\nboot_partition=5\n[all]\nboot_partition=2\n[tryboot]\nboot_partition=2":                          vars("", "A", "B", "C"),
		"#lifeboat 1 A A Z B\n[all]\nboot_partition=2\n[tryboot]\nboot_partition=9\n[board-type=0x11]\nboot_partition=3": vars("", "A", "B"),
	} {
		l := New(files(text), names, parts, here)
		if v, err := l.Read(); err != nil || !same(v, want) {
			t.Errorf("%q: %+v, %v", text, v, err)
		}
	}
	for _, text := range []string{"", "boot_partition=9", "[tryboot]\nboot_partition=2", "\x00boot_partition=2", "boot_partition=2x"} {
		if v, err := New(files(text), names, parts, here).Read(); !errors.Is(err, boot.ErrNoVars) {
			t.Errorf("%q: %+v, %v", text, v, err)
		}
	}

	l := New(files("# mine\nboot_partition=2\nother=1\n[tryboot]\nboot_partition=3\n[gpio4=1]\nx=1\n[none]\n[all]\ntryboot_a_b=0\ny=2\n"), names, parts, here)
	for range 2 { // it does not grow
		if err := l.Write(vars("", "B", "A")); err != nil {
			t.Fatal(err)
		}
	}
	want := "#lifeboat 01234567 B A\n[all]\ntryboot_a_b=1\nboot_partition=3\n[all]\n# mine\nother=1\n[gpio4=1]\nx=1\n[all]\ny=2"
	if got := content(l.copies[0]); got != want {
		t.Errorf("%s", got)
	}
	if err := New(files("boot_partition=2\na="+strings.Repeat("x", 450)), names, parts, here).Write(vars("", "A")); err == nil || !strings.Contains(err.Error(), "512") {
		t.Error(err)
	}
	short := []disk.Device{disk.NewMemory(20)}
	if err := New(short, names, parts, here).Write(vars("", "A")); err == nil || !strings.Contains(err.Error(), "512") {
		t.Error(err)
	}
}

// Whatever a cut leaves, what was there before or the new one is found; the file that is kept is it where autoboot.txt is
// not readable any more. Where a sector is written whole or not at all the boot loader itself finds one of both.
func TestWriteIsAtomic(t *testing.T) {
	old, next := vars("", "A", "B", "C"), vars("B", "A", "B", "C")
	for name, damage := range map[string]string{"": "", "damaged": "garbage"} {
		image := crash.NewImage(2 * 4096)
		l := New(onDisk(image), names, parts, here)
		for _, v := range []boot.Vars{next, old, old} {
			if err := l.Write(v); err != nil {
				t.Fatal(err)
			}
		}
		if damage != "" {
			if _, err := image.WriteAt(bytes.Repeat([]byte(damage), 80)[:Size], 0); err != nil {
				t.Fatal(err)
			}
		}
		crash.Crash(t, crash.Test{
			Name: "autoboot.txt " + name, Start: image, Options: crash.Options{Random: 50},
			Update: func(r *crash.Recorder) error {
				if err := New(onDisk(r), names, parts, here).Write(next); err != nil {
					return err
				}
				r.Mark("written")
				return nil
			},
			Check: func(s crash.State) error {
				v, err := New(onDisk(s.Image), names, parts, here).Read()
				if err != nil || !same(v, next) && (s.Mark != nil || !same(v, old)) {
					return fmt.Errorf("%+v, %w", v, err)
				}
				return nil
			},
		})
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("#lifeboat 01234567 C B A\n[all]\ntryboot_a_b=1\nboot_partition=5\n[tryboot]\nboot_partition=2"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dev := disk.NewMemory(Size)
		if _, err := dev.WriteAt(b[:min(len(b), Size)], 0); err != nil {
			t.Fatal(err)
		}
		l := New([]disk.Device{dev, disk.NewMemory(Size)}, names, parts, here)
		before, err := l.Read()
		if err != nil && !errors.Is(err, boot.ErrNoVars) {
			t.Fatal(err)
		}
		want := vars("C", "B", "A")
		if err := l.Write(want); err != nil {
			return // no room
		}
		if v, err := l.Read(); err != nil || !same(v, want) {
			t.Errorf("%+v after %+v: %v", v, before, err)
		}
	})
}

func TestReadFirmware(t *testing.T) {
	dir := t.TempDir()
	for name, b := range map[string]string{
		"device-tree/chosen/bootloader/partition": "\x00\x00\x00\x03", "device-tree/chosen/bootloader/tryboot": "\x00\x00\x00\x01",
		"sys/kernel/random/boot_id": "0a1b2c3d-1234-4321-aaaa-000000000000\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if f := ReadFirmware(dir); f != (Firmware{3, true, "0a1b2c3d"}) {
		t.Errorf("%+v", f)
	}
	if f := ReadFirmware(t.TempDir()); f != (Firmware{}) {
		t.Errorf("%+v", f)
	}
}
