package barebox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/boot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
)

var slots = []string{"system0", "system1"}

func vars(turns ...boot.Turn) boot.Vars { return boot.Vars{Order: turns} }

func same(v, w boot.Vars) bool { return v.Next == w.Next && slices.Equal(v.Order, w.Order) }

func turn(name string, tries uint8) boot.Turn { return boot.Turn{Name: name, Tries: tries} }

// layout is that of testdata/state.dts.
func layout(stride int64) Layout {
	fresh := make([]byte, 0x30)
	for at, v := range map[int]uint32{0: 3, 4: 20, 8: 3, 0xc: 10, 0x2c: 2} {
		le.PutUint32(fresh[at:], v)
	}
	copy(fresh[0x14:], "none")
	fresh[0x24], fresh[0x29], fresh[0x2a] = 2, 1, 7
	return Layout{Magic: 0x4d433230, Stride: stride, Fresh: fresh, At: map[string]int{
		"bootstate.system0.remaining_attempts": 0, "bootstate.system0.priority": 4,
		"bootstate.system1.remaining_attempts": 8, "bootstate.system1.priority": 0xc,
		"bootstate.last_chosen": 0x10, "color": 0x2c,
	}}
}

// nor is a Flash over another device.
type nor struct {
	disk.Device
	erase, write int64
}

func (n nor) EraseSize() int64 { return n.erase }
func (n nor) WriteSize() int64 { return n.write }

func (n nor) Erase(off, size int64) error {
	if off%n.erase != 0 || size%n.erase != 0 {
		return errors.New("no whole blocks")
	}
	if _, err := n.WriteAt(bytes.Repeat([]byte{0xff}, int(size)), off); err != nil {
		return err
	}
	return n.Flush()
}

// media are the ways in which the copies may lie.
var media = map[string]struct {
	layout Layout
	of     func(disk.Device) disk.Device
	env    []string
}{
	"direct":          {layout(4096), func(d disk.Device) disk.Device { return d }, nil},
	"narrow":          {layout(96), func(d disk.Device) disk.Device { return d }, nil},
	"circular, NOR":   {layout(0), func(d disk.Device) disk.Device { return nor{d, 4096, 1} }, []string{"ERASESIZE=4096", "WRITESIZE=1"}},
	"circular, pages": {layout(0), func(d disk.Device) disk.Device { return nor{d, 16384, 512} }, []string{"ERASESIZE=16384", "WRITESIZE=512"}},
}

func open(dev disk.Device, l Layout, names []string) (*Loader, error) {
	if f, ok := dev.(Flash); ok {
		return NewFlash(f, l, names)
	}
	return New(dev, l, names)
}

func TestReadsWhatItWrote(t *testing.T) {
	for name, m := range media {
		t.Run(name, func(t *testing.T) {
			l, err := open(m.of(disk.NewMemory(0x10000)), m.layout, slots)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Read(); !errors.Is(err, boot.ErrNoVars) {
				t.Errorf("nothing was written and %v", err)
			}
			for _, v := range []boot.Vars{
				vars(turn("system1", 3), turn("system0", 9)), vars(turn("system0", 1), turn("system1", 0)), vars(turn("system1", 255)), vars(),
			} {
				if err := l.Write(v); err != nil {
					t.Fatal(err)
				}
				if got, err := l.Read(); err != nil || !same(got, v) {
					t.Errorf("%+v after %+v, %v", got, v, err)
				}
			}
		})
	}
}

// Of slots that have the same priority barebox starts the one that is named first; RAUC leaves 10 to all but one.
func TestPriorities(t *testing.T) {
	three := layout(4096)
	for i, n := range []string{"a", "b", "c"} {
		three.At["bootstate."+n+".remaining_attempts"], three.At["bootstate."+n+".priority"] = 8*i, 8*i+4
	}
	dev := disk.NewMemory(3 * 4096)
	l, err := New(dev, three, []string{"a", "b", "c"})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Clone(three.Fresh)
	for i, n := range []uint32{10, 10, 20} {
		le.PutUint32(data[8*i:], 1)
		le.PutUint32(data[8*i+4:], n)
	}
	if err := l.m.write(0, l.pack(data)); err != nil {
		t.Fatal(err)
	}
	if got, err := l.Read(); err != nil || !same(got, vars(turn("c", 1), turn("a", 1), turn("b", 1))) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Whatever a cut leaves of a write, what was there before or the new one is found. So it is where one or two of the copies
// were damaged before.
func TestWriteIsAtomic(t *testing.T) {
	old, next := vars(turn("system0", 9), turn("system1", 0)), vars(turn("system1", 3), turn("system0", 9))
	for name, m := range media {
		if name == "narrow" {
			continue // three copies in one sector: nothing keeps them apart
		}
		for damaged := range 7 {
			image := crash.NewImage(0x10000)
			size := m.layout.Stride
			l, err := open(m.of(image), m.layout, slots)
			if err != nil {
				t.Fatal(err)
			}
			if c, ok := l.m.(circular); ok {
				size = c.block
			}
			for _, v := range []boot.Vars{next, old} {
				if err := l.Write(v); err != nil {
					t.Fatal(err)
				}
			}
			for i := range copies {
				if damaged>>i&1 == 1 {
					if _, err := image.WriteAt([]byte("damaged!damaged!damaged!"), int64(i)*size); err != nil {
						t.Fatal(err)
					}
				}
			}
			crash.Crash(t, crash.Test{
				Name: fmt.Sprintf("%s, damaged %03b", name, damaged), Start: image,
				Options: crash.Options{Random: 50},
				Update: func(r *crash.Recorder) error {
					l, err := open(m.of(r), m.layout, slots)
					if err != nil {
						return err
					}
					if err := l.Write(next); err != nil {
						return err
					}
					r.Mark("written")
					return nil
				},
				Check: func(s crash.State) error {
					l, err := open(m.of(s.Image), m.layout, slots)
					if err != nil {
						return err
					}
					v, err := l.Read()
					switch {
					case err != nil:
						return err
					case !same(v, next) && (s.Mark != nil || !same(v, old)):
						return fmt.Errorf("neither old nor new: %+v", v)
					case s.Mark == nil:
						return nil
					}
					for i := range copies { // all are whole
						p, err := l.m.read(i)
						if err != nil || l.unpack(p) == nil {
							return fmt.Errorf("copy %d: %v", i, err)
						}
					}
					return nil
				},
			})
		}
	}
}

// A copy that cannot be written costs nothing; with two of them the third is left alone.
func TestBrokenCopies(t *testing.T) {
	old, next := vars(turn("system0", 9), turn("system1", 0)), vars(turn("system1", 3), turn("system0", 9))
	for broken, want := range []boot.Vars{next, next, old} {
		r := crash.Record(crash.NewImage(3 * 4096))
		l, err := New(r, layout(4096), slots)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Write(old); err != nil {
			t.Fatal(err)
		}
		r.Fault = func(k crash.Kind, _ int, off, _ int64) error {
			if k == crash.Write && off >= int64(3-broken)*4096 {
				return crash.ErrInjected
			}
			return nil
		}
		err = l.Write(next)
		if (err == nil) != same(want, next) {
			t.Errorf("%d broken: %v", broken, err)
		}
		if got, err := l.Read(); err != nil || !same(got, want) {
			t.Errorf("%d broken: %+v, %v", broken, got, err)
		}
	}
}

func zeroEnded(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// tree writes a device tree as Linux shows it, from a flattened one.
func tree(t testing.TB, dtb []byte) string {
	t.Helper()
	be := binary.BigEndian
	nodes, names := dtb[be.Uint32(dtb[8:]):], dtb[be.Uint32(dtb[12:]):]
	top := t.TempDir()
	dir := top
	for at := 0; ; {
		token := be.Uint32(nodes[at:])
		at += 4
		switch token {
		case 1:
			name := zeroEnded(nodes[at:])
			at += (len(name) + 4) &^ 3
			dir = filepath.Join(dir, name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		case 2:
			dir = filepath.Dir(dir)
		case 3:
			n, name := int(be.Uint32(nodes[at:])), zeroEnded(names[be.Uint32(nodes[at+4:]):])
			if err := os.WriteFile(filepath.Join(dir, name), nodes[at+8:at+8+n], 0o644); err != nil {
				t.Fatal(err)
			}
			at += 8 + (n+3)&^3
		case 9:
			return top
		}
	}
}

// oracle is dt-utils' barebox-state on a file.
type oracle struct {
	t                  testing.TB
	dtb, shim, backend string
	env                []string
}

func newOracle(t testing.TB, stride int64, env []string) *oracle {
	t.Helper()
	for _, tool := range []string{"barebox-state", "dtc", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (make setup)", tool)
		}
	}
	dir := t.TempDir()
	o := &oracle{t, filepath.Join(dir, "state.dtb"), filepath.Join(dir, "backend.so"), filepath.Join(dir, "backend"), env}
	storage := "direct"
	if env != nil {
		storage = "circular"
	}
	dts, err := os.ReadFile("testdata/state.dts")
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "state.dts")
	dts = []byte(strings.NewReplacer("STORAGE", storage, "STRIDE", strconv.FormatInt(stride, 10)).Replace(string(dts)))
	if err := os.WriteFile(source, dts, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"dtc", "-q", "-I", "dts", "-O", "dtb", "-o", o.dtb, source}, {"gcc", "-shared", "-fPIC", "-o", o.shim, "testdata/backend.c"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
	}
	return o
}

// run runs barebox-state and returns what it prints to standard output.
func (o *oracle) run(args ...string) (string, error) {
	cmd := exec.Command("barebox-state", append([]string{"-i", o.dtb}, args...)...)
	cmd.Env = append(append(os.Environ(), "LD_PRELOAD="+o.shim, "BACKEND="+o.backend), o.env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%v: %w\n%s", args, err, stderr.Bytes())
	}
	return string(out), err
}

func (o *oracle) load() *disk.Memory {
	o.t.Helper()
	b, err := os.ReadFile(o.backend)
	if err != nil {
		o.t.Fatal(err)
	}
	dev := disk.NewMemory(int64(len(b)))
	if _, err := dev.WriteAt(b, 0); err != nil {
		o.t.Fatal(err)
	}
	return dev
}

func (o *oracle) save(dev disk.Device) []byte {
	o.t.Helper()
	b := make([]byte, dev.Size())
	if _, err := dev.ReadAt(b, 0); err != nil {
		o.t.Fatal(err)
	}
	if err := os.WriteFile(o.backend, b, 0o644); err != nil {
		o.t.Fatal(err)
	}
	return b
}

// What barebox-state writes is read, what is written here it reads, and for the same values the bytes are the same (on
// flash: those of the copies that count).
func TestAgreesWithBareboxState(t *testing.T) {
	for name, m := range media {
		t.Run(name, func(t *testing.T) {
			o := newOracle(t, m.layout.Stride, m.env)
			dtb, err := os.ReadFile(o.dtb)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ReadLayout(tree(t, dtb), "state")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(m.layout, got); diff != "" {
				t.Fatal(diff)
			}
			erased := disk.NewMemory(0x10000)
			if m.env != nil {
				if _, err := erased.WriteAt(bytes.Repeat([]byte{0xff}, 0x10000), 0); err != nil {
					t.Fatal(err)
				}
			}
			o.save(erased)

			// Theirs, read by ours.
			if _, err := o.run("-s", "bootstate.system0.priority=11", "-s", "bootstate.system1.priority=21", "-s", "bootstate.system1.remaining_attempts=2", "-s", "color=blue", "-s", "serial=X42"); err != nil {
				t.Fatal(err)
			}
			theirs := o.load()
			l, err := open(m.of(theirs), m.layout, slots)
			if err != nil {
				t.Fatal(err)
			}
			want := vars(turn("system1", 2), turn("system0", 3))
			if v, err := l.Read(); err != nil || !same(v, want) {
				t.Fatalf("%+v, %v", v, err)
			}
			data, _, err := l.load()
			if err != nil {
				t.Fatal(err)
			}

			// Ours with the same values: the same bytes.
			fresh := disk.NewMemory(0x10000)
			f, err := open(m.of(fresh), Layout{Magic: m.layout.Magic, Stride: m.layout.Stride, Fresh: data, At: m.layout.At}, slots)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Write(want); err != nil {
				t.Fatal(err)
			}
			for i := range copies {
				a, err1 := l.m.read(i)
				b, err2 := f.m.read(i)
				if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
					t.Errorf("copy %d: %x\nof barebox-state: %x", i, b, a)
				}
			}
			if m.env == nil {
				ours, of := o.save(fresh), make([]byte, 0x10000)
				if _, err := theirs.ReadAt(of, 0); err != nil || !bytes.Equal(ours, of) {
					t.Errorf("bytes differ: %v", err)
				}
			}

			// Ours over theirs, read by theirs; what is not ours has stayed.
			if err := l.Write(vars(turn("system0", 7))); err != nil {
				t.Fatal(err)
			}
			o.save(theirs)
			for variable, want := range map[string]string{
				"bootstate.system0.priority": "21", "bootstate.system0.remaining_attempts": "7", "bootstate.system1.priority": "0",
				"bootstate.system1.remaining_attempts": "0", "color": "blue", "serial": "X42", "mac": "02:00:00:00:00:01", "level": "7",
			} {
				if got, err := o.run("-g", variable); err != nil || strings.TrimSpace(got) != want {
					t.Errorf("%s=%q, %v", variable, got, err)
				}
			}

			// A counter that barebox takes down is seen, and several of their writes in one block.
			for n := 6; n >= 4; n-- {
				if _, err := o.run("-s", "bootstate.system0.remaining_attempts="+strconv.Itoa(n)); err != nil {
					t.Fatal(err)
				}
				l, err := open(m.of(o.load()), m.layout, slots)
				if err != nil {
					t.Fatal(err)
				}
				if v, err := l.Read(); err != nil || !same(v, vars(turn("system0", uint8(n)))) {
					t.Errorf("%+v, %v", v, err)
				}
			}
		})
	}
}

// Each of the states that a cut leaves of a write is read by barebox-state as it is read here.
func TestCutAgreesWithBareboxState(t *testing.T) {
	m := media["direct"]
	o := newOracle(t, m.layout.Stride, nil)
	old, next := vars(turn("system0", 9), turn("system1", 0)), vars(turn("system1", 3), turn("system0", 9))
	image := crash.NewImage(0x10000)
	l, err := New(image, m.layout, slots)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Write(old); err != nil {
		t.Fatal(err)
	}
	r := crash.Record(image)
	if l, err = New(r, m.layout, slots); err != nil {
		t.Fatal(err)
	}
	if err := l.Write(next); err != nil {
		t.Fatal(err)
	}
	n := 0
	r.Trace().States(crash.Options{}, func(s crash.State) bool {
		l, err := New(s.Image, m.layout, slots)
		if err != nil {
			t.Fatal(err)
		}
		v, err := l.Read()
		if err != nil {
			t.Fatal(err)
		}
		o.save(s.Image)
		got, err := o.run("-g", "bootstate.system0.priority")
		if want := map[bool]string{true: "21", false: "11"}[v.Order[0].Name == "system0"]; err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s: %q, not %s: %v", s, got, want, err)
		}
		n++
		return true
	})
	if n < 10 {
		t.Errorf("only %d states", n)
	}
}

func TestLayoutIsRefused(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"no node":     func(dir string) error { return os.RemoveAll(dir) },
		"dtb":         func(dir string) error { return os.WriteFile(dir+"/backend-type", []byte("dtb\x00"), 0o644) },
		"signed":      func(dir string) error { return os.WriteFile(dir+"/algo", []byte("hmac(sha256)\x00"), 0o644) },
		"far":         func(dir string) error { return os.WriteFile(dir+"/v@0/reg", []byte{0, 0, 0x10, 0, 0, 0, 0, 4}, 0o644) },
		"wrapped":     func(dir string) error { return os.WriteFile(dir+"/v@0/reg", bytes.Repeat([]byte{0xff}, 8), 0o644) },
		"no place":    func(dir string) error { return os.Remove(dir + "/v@0/reg") },
		"no variable": func(dir string) error { return os.RemoveAll(dir + "/v@0") },
	} {
		top := t.TempDir()
		dir := top + "/state"
		if err := os.MkdirAll(dir+"/v@0", 0o755); err != nil {
			t.Fatal(err)
		}
		for file, b := range map[string][]byte{"magic": {1, 2, 3, 4}, "backend-type": []byte("raw\x00"), "v@0/type": []byte("uint32\x00"), "v@0/reg": {0, 0, 0, 0, 0, 0, 0, 4}} {
			if err := os.WriteFile(dir+"/"+file, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if l, err := ReadLayout(top, "state"); err != nil || l.Magic != 0x01020304 || l.At["v"] != 0 || len(l.Fresh) != 4 {
			t.Fatalf("%+v, %v", l, err)
		}
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		if l, err := ReadLayout(top, "state"); err == nil {
			t.Errorf("%s: %+v", name, l)
		}
	}
	if _, err := New(disk.NewMemory(0x10000), layout(4096), []string{"system2"}); err == nil {
		t.Error("a slot without variables was taken")
	}
	if _, err := New(disk.NewMemory(0x10000), layout(64), slots); err == nil {
		t.Error("a stride without room for what stands before the data was taken")
	}
	if _, err := New(disk.NewMemory(0x2000), layout(4096), slots); err == nil {
		t.Error("three copies were taken where two fit")
	}
}

func FuzzRead(f *testing.F) {
	for _, m := range media {
		dev := disk.NewMemory(0x10000)
		l, err := open(m.of(dev), m.layout, slots)
		if err != nil {
			f.Fatal(err)
		}
		if err := l.Write(vars(turn("system0", 3), turn("system1", 1))); err != nil {
			f.Fatal(err)
		}
		b := make([]byte, 512)
		if _, err := dev.ReadAt(b, 0); err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, m := range media {
			dev := disk.NewMemory(0x10000)
			for i := range copies {
				at := int64(i) * max(m.layout.Stride, 4096)
				if _, err := dev.WriteAt(b[:min(len(b), 4096)], at); err != nil {
					t.Fatal(err)
				}
			}
			l, err := open(m.of(dev), m.layout, slots)
			if err != nil {
				t.Fatal(err)
			}
			if v, err := l.Read(); err != nil && !errors.Is(err, boot.ErrNoVars) || len(v.Order) > 2 {
				t.Errorf("%s: %+v, %v", name, v, err)
			}
		}
	})
}

// What barebox starts, and what it leaves, for what ours wrote and for what nobody did.
func TestRun(t *testing.T) {
	all := func(string) bool { return true }
	for name, c := range map[string]struct {
		before  *boot.Vars
		loads   func(string) bool
		started string
		after   boot.Vars // empty: what is left counts as lost
	}{
		"counts":               {&boot.Vars{Order: []boot.Turn{turn("system1", 3), turn("system0", 9)}}, all, "system1", vars(turn("system1", 2), turn("system0", 9))},
		"the first is used up": {&boot.Vars{Order: []boot.Turn{turn("system1", 0), turn("system0", 9)}}, all, "system0", vars(turn("system1", 0), turn("system0", 8))},
		"all are used up":      {&boot.Vars{Order: []boot.Turn{turn("system1", 0), turn("system0", 0)}}, all, "system1", vars(turn("system1", 2), turn("system0", 3))},
		"one is not started":   {&boot.Vars{Order: []boot.Turn{turn("system1", 1)}}, all, "system1", vars(turn("system1", 0))},
		"no slot":              {&boot.Vars{}, all, "system0", vars()},
		"lost":                 {nil, all, "system0", vars()},
		"does not load":        {&boot.Vars{Order: []boot.Turn{turn("system1", 2), turn("system0", 9)}}, func(n string) bool { return n == "system0" }, "system0", vars(turn("system1", 0), turn("system0", 8))},
		"nothing loads":        {&boot.Vars{Order: []boot.Turn{turn("system1", 1)}}, func(string) bool { return false }, "", vars(turn("system1", 0))},
	} {
		dev := disk.NewMemory(3 * 4096)
		l, err := New(dev, layout(4096), slots)
		if err != nil {
			t.Fatal(err)
		}
		if c.before != nil {
			if err := l.Write(*c.before); err != nil {
				t.Fatal(err)
			}
		}
		started, err := Run(dev, layout(4096), slots, c.loads)
		if v, e := l.Read(); err != nil || (e != nil) != (len(c.after.Order) == 0) || started != c.started || !same(v, c.after) {
			t.Errorf("%s: starts %q, leaves %+v; %v, %v", name, started, v, err, e)
		}
	}
}
