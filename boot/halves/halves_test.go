package halves

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/verify"
)

const (
	size = 16 << 20
	half = 2 << 20
)

var region = Region{Start: 1 << 20, Size: 2 * half, Sector: 512}

// script makes the two kinds of table with the region's first half as the first partition.
var script = map[string]string{
	"dos": "label: dos\nlabel-id: 0x11febea7\nstart=2048, size=4096, type=c, bootable\nstart=10240, size=2048, type=83\nstart=12288, size=18432, type=5\nstart=14336, size=2048, type=83\n",
	"gpt": "label: gpt\nlabel-id: 11FEBEA7-0000-4000-8000-000000000001\nstart=2048, size=4096, type=U, name=boot, uuid=11FEBEA7-0000-4000-8000-000000000002\n" +
		"start=10240, size=2048, type=L, name=state\nstart=12288, size=8192, type=L, name=rootfs.0\n",
}

var disks = map[string]*crash.Image{} // by script

// made is a disk with a table that sfdisk made.
func made(t testing.TB, label string) *crash.Image {
	t.Helper()
	if i := disks[script[label]]; i != nil {
		return i.Clone()
	}
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "-q", file)
	cmd.Stdin = strings.NewReader(script[label])
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	i, err := crash.LoadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	disks[script[label]] = i
	return i.Clone()
}

// tool runs a program on an image as a file.
func tool(t *testing.T, i *crash.Image, name string, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := i.SaveFile(file); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(name, append(args, file)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return strings.ReplaceAll(string(out), file, "disk")
}

var kinds = map[string]func(disk.Device, Region) Switch{"dos": MBR, "gpt": GPT}

func active(t *testing.T, s Switch, want int) {
	t.Helper()
	if n, err := s.Active(); err != nil || n != want {
		t.Fatalf("copy %d is started (%v), want %d", n, err, want)
	}
}

func changed(a, b *crash.Image) (at []int64) {
	x, y := make([]byte, size), make([]byte, size)
	a.ReadAt(x, 0)
	b.ReadAt(y, 0)
	for i := range x {
		if x[i] != y[i] {
			at = append(at, int64(i))
		}
	}
	return at
}

// A switch changes where the first partition lies and nothing else; sfdisk and sgdisk read what is meant; and back again
// every byte is as it was.
func TestSwitch(t *testing.T) {
	for label, open := range kinds {
		t.Run(label, func(t *testing.T) {
			first := made(t, label)
			now := first.Clone()
			s := open(now, region)
			active(t, s, 0)
			if err := s.Point(1); err != nil {
				t.Fatal(err)
			}
			active(t, s, 1)
			before, after := tool(t, first, "sfdisk", "-d"), tool(t, now, "sfdisk", "-d")
			if want := strings.Replace(before, "start=        2048, size=        4096", "start=        6144, size=        4096", 1); after != want || want == before {
				t.Errorf("sfdisk sees\n%s\nbefore it was\n%s", after, before)
			}
			last := int64(size - 512)
			for _, at := range changed(first, now) {
				ok := label == "dos" && (at >= 446+1 && at < 446+4 || at >= 446+5 && at < 446+16)
				for _, t := range [][2]int64{{512, 1024}, {last, last - 32*512}} { // header, entries
					ok = ok || label == "gpt" && (at >= t[0]+16 && at < t[0]+20 || at >= t[0]+88 && at < t[0]+92 || at >= t[1]+32 && at < t[1]+48)
				}
				if !ok {
					t.Errorf("byte %d was changed", at)
				}
			}
			if label == "gpt" {
				if out := tool(t, now, "sgdisk", "-v"); !strings.Contains(out, "No problems found") {
					t.Errorf("sgdisk: %s", out)
				}
			}
			if err := s.Point(0); err != nil {
				t.Fatal(err)
			}
			if at := changed(first, now); len(at) > 0 {
				t.Errorf("back again, and the bytes %v differ", at)
			}
		})
	}
}

// reader is what a firmware or the kernel takes from a GPT: the primary copy where that is right, else the backup in the last sector.
func reader(i *crash.Image) (start uint64, err error) {
	g := &gpt{i, region}
	for _, lba := range []uint64{1, size/512 - 1} {
		if t, err := g.read(lba); err == nil && t != nil {
			return uint64(t.entries[atStart]) | uint64(t.entries[atStart+1])<<8, nil
		}
	}
	return 0, errors.New("no copy is right")
}

// Whatever a cut leaves of a switch, one of the halves is the one that is started, and the next run switches again. Of an MBR
// this holds where its sector is written whole or not at all; a GPT has two copies, and survives anything.
func TestSwitchCut(t *testing.T) {
	for label, open := range kinds {
		for from := range 2 {
			start := made(t, label)
			if err := open(start, region).Point(from); err != nil {
				t.Fatal(err)
			}
			res := crash.Crash(t, crash.Test{
				Name: fmt.Sprintf("%s from %d", label, from), Start: start, Options: crash.Options{Random: 50},
				Update: func(r *crash.Recorder) error { return open(r, region).Point(1 - from) },
				Check: func(c crash.State) error {
					if label == "dos" && (strings.HasSuffix(c.How, " zero") || strings.HasSuffix(c.How, " garbage")) {
						return nil
					}
					i := c.Image.Clone()
					s := open(i, region)
					n, err := s.Active()
					if err != nil {
						return err
					}
					if label == "gpt" {
						if lba, err := reader(i); err != nil || lba != uint64(2048+n*4096) {
							return fmt.Errorf("who reads the table finds sector %d (%v), and copy %d was said", lba, err, n)
						}
					}
					if err := s.Point(1 - from); err != nil {
						return fmt.Errorf("again: %w", err)
					}
					if m, err := s.Active(); err != nil || m != 1-from {
						return fmt.Errorf("again: copy %d, %w", m, err)
					}
					want := start.Clone()
					if err := open(want, region).Point(1 - from); err != nil || i.Hash() != want.Hash() {
						return fmt.Errorf("after it the disk is another one than without a cut (%w)", err)
					}
					return nil
				},
			})
			if want := map[string]int{"dos": 2, "gpt": 20}[label]; res.Distinct < want {
				t.Errorf("%d distinct states", res.Distinct)
			}
		}
	}
}

// What is not understood is refused with its code, and not one byte is written.
func TestForeign(t *testing.T) {
	at := func(label string, off int64, b ...byte) func(*testing.T) *crash.Image {
		return func(t *testing.T) *crash.Image {
			i := made(t, label)
			i.WriteAt(b, off)
			return i
		}
	}
	with := func(label, line string) func(*testing.T) *crash.Image {
		return func(t *testing.T) *crash.Image {
			script["other"] = line
			if !strings.HasPrefix(line, "label") {
				script["other"] = script[label] + line
			}
			return made(t, "other")
		}
	}
	last := int64(size - 512)
	for name, test := range map[string]struct {
		kind   string
		disk   func(*testing.T) *crash.Image
		region Region
		text   string
	}{
		"an empty disk":               {"dos", func(*testing.T) *crash.Image { return crash.NewImage(size) }, region, "there is no MBR"},
		"a file system":               {"dos", at("dos", 446, 0x41), region, "there is no MBR"},
		"a GPT as MBR":                {"dos", at("gpt", 0), region, "one of a GPT"},
		"an MBR as GPT":               {"gpt", at("dos", 0), region, "there is no GPT"},
		"a hybrid":                    {"gpt", at("gpt", 446+16+4, 0x83), region, "hybrid"},
		"no first partition":          {"dos", at("dos", 446+4, 0), region, "no first partition"},
		"no first GPT partition":      {"gpt", with("", "label: gpt\n2 : start=2048, size=4096, type=U\n"), region, "no first partition"},
		"elsewhere":                   {"dos", at("dos", 446+8, 1), region, "neither half"},
		"longer than a half":          {"dos", at("dos", 446+12, 1, 0x10), region, "neither half"},
		"of no size":                  {"dos", at("dos", 446+12, 0, 0), region, "neither half"},
		"elsewhere in a GPT":          {"gpt", at("gpt", 0), Region{2 << 20, 2 * half, 512}, "neither half"},
		"a neighbour in the region":   {"dos", at("dos", 446+16+8, 0, 0x20), region, "another partition"},
		"a neighbour in a GPT":        {"gpt", at("gpt", 0), Region{1 << 20, 6 << 20, 512}, "another partition"},
		"a neighbour in half 1":       {"gpt", with("gpt", "start=6144, size=2048, type=L\n"), region, "another partition"},
		"both copies damaged":         {"gpt", func(t *testing.T) *crash.Image { i := at("gpt", 600, 1)(t); i.WriteAt([]byte{1}, last+60); return i }, region, "both copies"},
		"no protective entry":         {"gpt", at("gpt", 446+4, 0), region, "there is no GPT"},
		"the region over the table":   {"gpt", at("gpt", 0), Region{0, 2 * half, 512}, "does not lie"},
		"the region over the MBR":     {"dos", at("dos", 0), Region{0, 2 * half, 512}, "does not lie"},
		"the region behind the end":   {"dos", at("dos", 0), Region{1 << 20, 16 << 20, 512}, "does not lie"},
		"the region in half a sector": {"dos", at("dos", 0), Region{1<<20 + 8, 2 * half, 512}, "does not lie"},
		"the region over the backup":  {"gpt", at("gpt", 0), Region{size - 64<<10, 64 << 10, 512}, "does not lie"},
		"a region of no size":         {"dos", at("dos", 0), Region{1 << 20, 0, 512}, "does not lie"},
		"a region that overflows":     {"dos", at("dos", 0), Region{1 << 62, 1 << 62, 512}, "does not lie"},
	} {
		t.Run(name, func(t *testing.T) {
			i := test.disk(t)
			before := i.Hash()
			s := kinds[test.kind](i, test.region)
			_, err := s.Active()
			if verify.CodeOf(err) != verify.Policy || !strings.Contains(fmt.Sprint(err), test.text) {
				t.Errorf("Active: code %d, %v", verify.CodeOf(err), err)
			}
			for to := range 2 {
				if perr := s.Point(to); fmt.Sprint(perr) != fmt.Sprint(err) {
					t.Errorf("Point: %v", perr)
				}
			}
			if i.Hash() != before {
				t.Error("it was written")
			}
		})
	}
}

// A copy of the GPT that is damaged is made again from the other one by the next switch.
func TestGPTRepair(t *testing.T) {
	for name, off := range map[string]int64{"primary header": 512 + 20, "primary entries": 1024 + 60, "backup header": size - 512 + 20, "backup entries": size - 33*512 + 60} {
		first := made(t, "gpt")
		i := first.Clone()
		i.WriteAt([]byte("damage"), off)
		active(t, GPT(i, region), 0)
		if err := GPT(i, region).Point(0); err != nil || i.Hash() != first.Hash() {
			t.Errorf("%s: %v, bytes %v", name, err, changed(first, i))
		}
	}
}

// fakeCard is an eMMC that loses what was written where the kernel keeps its own idea of the register.
type fakeCard struct {
	config byte
	writes []byte
	loses  bool
	err    error
}

func (c *fakeCard) ExtCSD() (csd [512]byte, err error) {
	csd[179] = c.config
	return csd, c.err
}

func (c *fakeCard) SetPartConfig(v byte) error {
	c.writes = append(c.writes, v)
	if !c.loses {
		c.config = v
	}
	return nil
}

func TestEMMC(t *testing.T) {
	for config, want := range map[byte]int{0x00: 1, 0x08: 0, 0x10: 1, 0x48: 0, 0x51: 1, 0x4a: 0} {
		c := &fakeCard{config: config}
		s := EMMCSwitch(c)
		active(t, s, want)
		for _, to := range []int{0, 1, 1, 0} {
			if err := s.Point(to); err != nil {
				t.Fatal(err)
			}
			active(t, s, to)
			if c.config&0xc0 != config&0x40 {
				t.Errorf("%#02x became %#02x: BOOT_ACK is lost", config, c.config)
			}
		}
		if want := 2 + want; len(c.writes) != want { // only where it changes
			t.Errorf("%#02x: %d writes, want %d", config, len(c.writes), want)
		}
	}
	for name, c := range map[string]*fakeCard{"user area": {config: 0x38}, "reserved": {config: 0x18}} {
		if err := EMMCSwitch(c).Point(0); verify.CodeOf(err) != verify.Policy || len(c.writes) > 0 {
			t.Errorf("%s: %v, %d writes", name, err, len(c.writes))
		}
	}
	for name, c := range map[string]*fakeCard{"a kernel that loses it": {config: 0x08, loses: true}, "no answer": {err: io.ErrUnexpectedEOF}} {
		if err := EMMCSwitch(c).Point(1); verify.CodeOf(err) != verify.IO {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// loader is an image with a header that a ROM knows.
func loader(n byte, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{n}).Read(b)
	copy(b, "ROM HEADER")
	return b
}

func put(image []byte) func(io.Writer) error {
	return func(w io.Writer) error { // in odd parts
		for len(image) > 0 {
			n := min(len(image), 1000)
			if _, err := w.Write(image[:n]); err != nil {
				return err
			}
			image = image[n:]
		}
		return nil
	}
}

// rom is a ROM that looks at the headers alone: it starts the first copy that has the header of one of the images, and nobody
// helps where the rest is not of the same.
func rom(i disk.Device, images ...[]byte) error {
	for n := range 2 {
		off, size := small.Half(n)
		b := make([]byte, size)
		i.ReadAt(b, off)
		for _, image := range images {
			if bytes.Equal(b[:512], image[:512]) {
				if !bytes.Equal(b[:len(image)], image) {
					return fmt.Errorf("the ROM starts copy %d, which is not whole", n)
				}
				return nil
			}
		}
	}
	return errors.New("the ROM finds no copy")
}

var small = Region{Start: 32 << 10, Size: 16 << 10, Sector: 512}

// fallback updates both copies, as update.Device does.
func fallback(d disk.Device, image []byte) error {
	var copies [2]disk.Device
	for n := range 2 {
		off, size := small.Half(n)
		copies[n] = disk.Section(d, off, size)
	}
	first, err := First(copies, small.Sector)
	if err != nil {
		return err
	}
	for _, n := range []int{first, 1 - first} {
		b := make([]byte, len(image))
		if _, err := copies[n].ReadAt(b, 0); err == nil && bytes.Equal(b, image) {
			continue
		}
		if err := Write(copies[n], small.Sector, int64(len(image)), put(image), nil); err != nil {
			return err
		}
	}
	return nil
}

// At every cut of an update the ROM starts a whole copy, old or new, also where only one was there before; and so it does at every
// cut of the next update, of another image, that begins where the first was cut.
func TestFallbackCut(t *testing.T) {
	old, now, third := loader(1, 4000), loader(2, 5000), loader(3, 4500)
	for name, blank := range map[string]int{"both": -1, "only copy 1": 0, "only copy 0": 1} {
		start := crash.NewImage(64 << 10)
		if err := fallback(start, old); err != nil {
			t.Fatal(err)
		}
		random := 10
		if blank >= 0 {
			off, size := small.Half(blank)
			start.WriteAt(bytes.Repeat([]byte{0xff}, int(size)), off)
			random = 0
		}
		res := crash.Crash(t, crash.Test{
			Name: name, Start: start, Options: crash.Options{Random: random, Limit: 100 * random},
			Update: func(r *crash.Recorder) error { return fallback(r, now) },
			Check: func(c crash.State) error {
				if err := rom(c.Image, old, now); err != nil || blank >= 0 {
					return err
				}
				again, err := crash.Test{
					Name: "again", Start: c.Image.Clone(), Options: crash.Options{Limit: 25, Random: 2},
					Update: func(r *crash.Recorder) error { return fallback(r, third) },
					Check:  func(c crash.State) error { return rom(c.Image, old, now, third) },
				}.Run()
				if err == nil && len(again.Failures) > 0 {
					err = errors.New(again.Failures[0].String())
				}
				return err
			},
		})
		if res.Distinct < 100 {
			t.Errorf("%d distinct states", res.Distinct)
		}
	}
}

// What is written is the image and nothing behind it, whatever its length; where the image turns out not to be what it should
// be, there is no header.
func TestWrite(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, n := range []int{1, 511, 512, 513, 4096, 300<<10 + 7, 512<<10 - 4096, 512 << 10} {
			dev := disk.NewMemory(512 << 10)
			image := loader(1, max(n, 10))[:n]
			var last int64
			if err := Write(dev, sector, int64(n), put(image), func(done, total int64) {
				if last = done; done > total || total != int64(n) {
					t.Errorf("progress %d of %d", done, total)
				}
			}); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 512<<10)
			dev.ReadAt(b, 0)
			if !bytes.Equal(b[:n], image) || len(bytes.Trim(b[n:], "\x00")) > 0 || last != int64(n) {
				t.Errorf("%d bytes in sectors of %d: another image, or more; progress %d", n, sector, last)
			}
		}
	}
	dev := disk.NewMemory(8192)
	wrong := errors.New("another digest")
	if err := Write(dev, 512, 2000, func(w io.Writer) error { w.Write(loader(1, 2000)); return wrong }, nil); !errors.Is(err, wrong) {
		t.Errorf("%v", err)
	}
	b := make([]byte, 8192)
	if dev.ReadAt(b, 0); !bytes.Equal(b[:512], make([]byte, 512)) || !bytes.HasPrefix(b[8192-512:], mark) {
		t.Error("it has a header, or no mark")
	}
	for _, n := range []int64{0, 8193} {
		if err := Write(dev, 512, n, put(nil), nil); verify.CodeOf(err) != verify.Policy {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// FuzzTable: whatever lies where a table should be, nothing outside the two tables is ever written, and what was switched
// can be switched back to the byte.
func FuzzTable(f *testing.F) {
	for _, label := range []string{"dos", "gpt"} {
		b := make([]byte, 34*512)
		made(f, label).ReadAt(b, 0)
		f.Add(label == "gpt", b, []byte(nil))
		b2 := make([]byte, 33*512)
		made(f, label).ReadAt(b2, size-33*512)
		f.Add(label == "gpt", b[:512], b2)
	}
	f.Fuzz(func(t *testing.T, isGPT bool, front, back []byte) {
		front, back = front[:min(len(front), 34*512)], back[:min(len(back), 33*512)]
		i := crash.NewImage(size)
		i.WriteAt(front, 0)
		i.WriteAt(back, size-int64(len(back)))
		r := crash.Record(i)
		open, head, tail := MBR, int64(512), int64(size)
		if isGPT {
			open, head, tail = GPT, 1<<20, size-1<<20
		}
		n, err := open(r, region).Active()
		perr := open(r, region).Point(1)
		if (err == nil) != (perr == nil) {
			t.Fatalf("Active %d, %v; Point %v", n, err, perr)
		}
		for _, op := range r.Trace().Ops {
			if op.Kind == crash.Write && (err != nil || op.Off+op.Len > head && op.Off < tail) {
				t.Fatalf("%d bytes at %d were written (%v)", op.Len, op.Off, err)
			}
		}
		if err == nil {
			if n, err := open(r, region).Active(); n != 1 || err != nil {
				t.Fatalf("copy %d, %v", n, err)
			}
		}
	})
}
