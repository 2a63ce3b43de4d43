package uboot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/boot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
)

const size = 1024

var names = []string{"A", "B"}

func open(t testing.TB, schema string, names []string, copies ...disk.Device) *Loader {
	t.Helper()
	l, err := New(copies, names, schema)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func turns(words ...string) (order []boot.Turn) {
	for _, w := range words {
		name, tries, _ := strings.Cut(w, ":")
		n := byte(0)
		if tries != "" {
			n = tries[0] - '0'
		}
		order = append(order, boot.Turn{Name: name, Tries: n})
	}
	return order
}

// What is written is read, in every schema, and what else is there stays.
func TestReadGivesWhatWasWritten(t *testing.T) {
	for _, test := range []struct {
		schema string
		names  []string
		v      []boot.Vars
	}{
		{RAUC, names, []boot.Vars{
			{Order: turns("A:3", "B:9")}, {Order: turns("B:1", "A:9")}, {Order: turns("B:0", "A:0")}, {Order: turns("A:2")},
		}},
		{RAUC, []string{"system0", "system1", "x"}, []boot.Vars{{Order: turns("x:1", "system1:2", "system0:3")}, {Order: turns("system1:2")}}},
		{Mender, []string{"2", "11"}, []boot.Vars{
			{Order: turns("2", "11")}, {Next: "11", Order: turns("2", "11")}, {Order: turns("11", "2")}, {Next: "2", Order: turns("11", "2")},
		}},
		{SWUpdate, names, []boot.Vars{
			{Order: turns("A", "B")}, {Next: "B", Order: turns("A", "B")}, {Order: turns("B", "A")}, {Next: "A", Order: turns("B", "A")},
		}},
	} {
		for copies := 1; copies <= 2; copies++ {
			var d []disk.Device
			for range copies {
				d = append(d, disk.NewMemory(size))
			}
			l := open(t, test.schema, test.names, d...)
			if _, err := l.Read(); !errors.Is(err, boot.ErrNoVars) {
				t.Errorf("zeros: %v", err)
			}
			first := Env{Vars: map[string]string{"ethaddr": "02:00:5e:10:20:30", "bootcount": "7"}}
			d[0].WriteAt(first.Encode(size, copies == 2), 0)
			for _, v := range test.v {
				if err := l.Write(v); err != nil {
					t.Fatal(err)
				}
				got, err := open(t, test.schema, test.names, d...).Read()
				if diff := cmp.Diff(v, got); err != nil || diff != "" {
					t.Errorf("%s, %d copies: %v\n%s", test.schema, copies, err, diff)
				}
				if f, _ := l.load(); !f.whole || f.env.Vars["ethaddr"] == "" {
					t.Errorf("%s: whole: %v, with %v", test.schema, f.whole, f.env.Vars)
				}
			}
		}
	}
}

// The variables have the values that RAUC, Mender and SWUpdate write.
func TestVariables(t *testing.T) {
	for _, test := range []struct {
		schema       string
		names        []string
		before, want map[string]string
		v            boot.Vars
	}{
		{
			RAUC, names, nil,
			map[string]string{"BOOT_ORDER": "B A", "BOOT_A_LEFT": "9", "BOOT_B_LEFT": "3"},
			boot.Vars{Order: turns("B:3", "A:9")},
		},
		{ // bad: the slot is out
			RAUC, names,
			map[string]string{"BOOT_ORDER": "B A", "BOOT_A_LEFT": "a", "BOOT_B_LEFT": "3"},
			map[string]string{"BOOT_ORDER": "A", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "0"},
			boot.Vars{Order: turns("A:3")},
		},
		{ // never an empty order
			RAUC, names, nil,
			map[string]string{"BOOT_ORDER": "A B", "BOOT_A_LEFT": "0", "BOOT_B_LEFT": "0"},
			boot.Vars{},
		},
		{ // a rootfs-image is installed
			Mender,
			[]string{"2", "10"},
			map[string]string{"mender_boot_part": "2", "mender_boot_part_hex": "2", "upgrade_available": "0", "bootcount": "1", "bootlimit": "1"},
			map[string]string{"mender_boot_part": "10", "mender_boot_part_hex": "a", "upgrade_available": "1", "bootcount": "0", "bootlimit": "1"},
			boot.Vars{Next: "10", Order: turns("2", "10")},
		},
		{ // and committed
			Mender,
			[]string{"2", "10"},
			map[string]string{"mender_boot_part": "10", "mender_boot_part_hex": "a", "upgrade_available": "1", "bootcount": "1"},
			map[string]string{"mender_boot_part": "10", "mender_boot_part_hex": "a", "upgrade_available": "0", "bootcount": "1"},
			boot.Vars{Order: turns("10", "2")},
		},
		{
			SWUpdate, names,
			map[string]string{"rootpart": "A", "ustate": "7", "recovery_status": "in_progress"},
			map[string]string{"rootpart": "B", "ustate": "1", "bootcount": "0"},
			boot.Vars{Next: "B", Order: turns("A", "B")},
		},
	} {
		d := disk.NewMemory(size)
		d.WriteAt(Env{Vars: test.before}.Encode(size, false), 0)
		l := open(t, test.schema, test.names, d)
		if err := l.Write(test.v); err != nil {
			t.Fatal(err)
		}
		f, _ := l.load()
		if diff := cmp.Diff(test.want, f.env.Vars); diff != "" {
			t.Errorf("%s %v:\n%s", test.schema, test.v, diff)
		}
	}
}

// What loaders and other tools leave is read as they mean it.
func TestReadForeign(t *testing.T) {
	for _, test := range []struct {
		schema string
		names  []string
		vars   map[string]string
		want   boot.Vars
		lost   bool
	}{
		{RAUC, names, map[string]string{"x": "y", "BOOT_A_LEFT": "2"}, boot.Vars{}, true},
		{RAUC, names, map[string]string{"BOOT_ORDER": "B C B A", "BOOT_A_LEFT": "a", "BOOT_B_LEFT": "0"}, boot.Vars{Order: turns("B:0", "A:9")}, false},
		{RAUC, names, map[string]string{"BOOT_ORDER": "B", "BOOT_B_LEFT": "junk"}, boot.Vars{Order: turns("B:0")}, false},
		{RAUC, names, map[string]string{"BOOT_ORDER": "C"}, boot.Vars{}, true},
		// Mender's loader after the first boot of a trial, and after it went back.
		{Mender, []string{"2", "3"}, map[string]string{"mender_boot_part": "3", "upgrade_available": "1", "bootcount": "1", "bootlimit": "1"}, boot.Vars{Order: turns("2", "3")}, false},
		{Mender, []string{"2", "3"}, map[string]string{"mender_boot_part": "2", "upgrade_available": "0", "bootcount": "2"}, boot.Vars{Order: turns("2", "3")}, false},
		{Mender, []string{"2", "3"}, map[string]string{"mender_boot_part": "7"}, boot.Vars{}, true},
		{SWUpdate, names, map[string]string{"bootslot": "B", "ustate": "1", "bootcount": "2", "bootlimit": "3"}, boot.Vars{Next: "B", Order: turns("A", "B")}, false},
		{SWUpdate, names, map[string]string{"bootslot": "B", "ustate": "1", "bootcount": "3", "bootlimit": "3"}, boot.Vars{Order: turns("A", "B")}, false},
		{SWUpdate, names, map[string]string{"bootslot": "A", "ustate": "3"}, boot.Vars{Order: turns("A", "B")}, false},
	} {
		d := disk.NewMemory(size)
		d.WriteAt(Env{Vars: test.vars}.Encode(size, false), 0)
		got, err := open(t, test.schema, test.names, d).Read()
		if diff := cmp.Diff(test.want, got); diff != "" || errors.Is(err, boot.ErrNoVars) != test.lost || !test.lost && err != nil {
			t.Errorf("%s %v: %v\n%s", test.schema, test.vars, err, diff)
		}
	}
}

// SWUpdate's boards call the slot's variable what they like: the configuration names it, else it is a known one that holds a
// bootname.
func TestSlotVariable(t *testing.T) {
	for _, test := range []struct{ variable, vars, want string }{
		{"", "rpipart=B", "rpipart=A"},
		{"", "mmcpart=7 rootpart=B", "rootpart=A"},
		{"", "x=B", "bootslot=A"},
		{"active", "active=B bootslot=B", "active=A"},
		{"active", "bootslot=B", "active=A"},
	} {
		d := disk.NewMemory(size)
		e := Env{Vars: map[string]string{"ustate": "0"}}
		for _, word := range strings.Fields(test.vars) {
			name, value, _ := strings.Cut(word, "=")
			e.Vars[name] = value
		}
		d.WriteAt(e.Encode(size, false), 0)
		l := open(t, SWUpdate, names, d)
		l.SlotVar = test.variable
		if err := l.Write(boot.Vars{Order: turns("A", "B")}); err != nil {
			t.Fatal(err)
		}
		after, _ := Parse(content(d), false)
		name, value, _ := strings.Cut(test.want, "=")
		if e.Vars[name] = value; !cmp.Equal(after.Vars, e.Vars) {
			t.Errorf("%q, %s: %v, want %v", test.variable, test.vars, after.Vars, e.Vars)
		}
	}
}

// Of two copies, one after the other is damaged or lost: the other one counts, and the next write makes both whole.
func TestRepair(t *testing.T) {
	for bad := range 2 {
		copies := []disk.Device{disk.NewMemory(size), disk.NewMemory(size)}
		l := open(t, RAUC, names, copies...)
		for _, v := range []boot.Vars{{Order: turns("A:1", "B:1")}, {Order: turns("A:2", "B:1")}} {
			if err := l.Write(v); err != nil {
				t.Fatal(err)
			}
		}
		copies[bad].WriteAt([]byte("garbage"), 100)
		v, err := l.Read()
		if err != nil || v.Order[1].Tries != 1 {
			t.Fatalf("copy %d is damaged: %v, %v", bad, v, err)
		}
		if err := l.Write(v); err != nil { // nothing new to say, and a copy to make whole
			t.Fatal(err)
		}
		if f, _ := l.load(); !f.whole {
			t.Errorf("copy %d is damaged, and after a write still one is", bad)
		}
		if got, err := l.Read(); err != nil || !cmp.Equal(v, got) {
			t.Errorf("%v becomes %v, %v", v, got, err)
		}
	}
}

// block is that of the flashes here.
const block = 4096

// flash is what a disk.File does on a raw flash, over another device: the blocks that a write touches are erased and written
// anew; one byte alone makes zeros of ones where it stands.
type flash struct{ disk.Device }

func (d flash) WriteAt(p []byte, off int64) (int, error) {
	if len(p) == 1 {
		was := []byte{0}
		if _, err := d.ReadAt(was, off); err != nil {
			return 0, err
		}
		return d.program([]byte{was[0] & p[0]}, off)
	}
	from := off / block * block
	b := make([]byte, (off+int64(len(p))-from+block-1)/block*block)
	if _, err := d.ReadAt(b, from); err != nil {
		return 0, err
	}
	copy(b[off-from:], p)
	if _, err := d.program(bytes.Repeat([]byte{0xff}, len(b)), from); err != nil {
		return 0, err
	}
	if _, err := d.program(b, from); err != nil {
		return 0, err
	}
	return len(p), nil
}

// program lasts when it returns.
func (d flash) program(p []byte, off int64) (int, error) {
	if n, err := d.Device.WriteAt(p, off); err != nil {
		return n, err
	}
	return len(p), d.Device.Flush()
}

// media are those on which two copies may lie.
var media = map[string]struct {
	gap int64 // from copy to copy
	on  func(disk.Device) disk.Device
	nor bool
	// What is random in an erased block is mostly alike.
	random int
}{
	"sectors": {size, func(d disk.Device) disk.Device { return d }, false, 20},
	"NOR":     {block, func(d disk.Device) disk.Device { return flash{d} }, true, 2},
	"NAND":    {block, func(d disk.Device) disk.Device { return flash{d} }, false, 2},
}

// Whatever a cut leaves of writes, boots in between and a first damaged copy, what was there before is read, or what was
// written, and can be written over. Two copies: one write and two flushes for each change; nothing for what is so already.
func TestWriteIsAtomic(t *testing.T) {
	states := []boot.Vars{
		{Order: turns("A:3", "B:0")}, {Order: turns("B:3", "A:3")}, {Order: turns("B:2", "A:3")}, {Order: turns("B:9", "A:9")}, {Order: turns("A:1")},
	}
	for name, m := range media {
		on := func(d disk.Device) *Loader {
			d = m.on(d)
			l := open(t, RAUC, names, disk.Section(d, 0, size), disk.Section(d, m.gap, size))
			l.NOR = m.nor
			return l
		}
		for _, damaged := range []bool{false, true} {
			start := crash.NewImage(2 * m.gap)
			e := Env{Vars: map[string]string{"BOOT_ORDER": "A B", "serial#": strings.Repeat("LB0001234", 70)}, Flag: 254}
			if m.nor {
				e.Flag = 0
			}
			start.WriteAt(e.Encode(size, true), 0)
			if e.Flag++; !damaged {
				start.WriteAt(e.Encode(size, true), m.gap)
			}
			res := crash.Crash(t, crash.Test{
				Name: name, Start: start, Options: crash.Options{Random: m.random},
				Update: func(r *crash.Recorder) error {
					for i, v := range states {
						for range 2 {
							if err := on(r).Write(v); err != nil {
								return err
							}
						}
						r.Mark(i + 1)
					}
					return nil
				},
				Check: func(c crash.State) error {
					n, _ := c.Mark.(int)
					l := on(recorded(c))
					got, err := l.Read()
					if err != nil {
						return err
					}
					fits := false
					for _, i := range []int{n, n + 1} {
						want := boot.Vars{Order: turns("A:3", "B:3")}
						if i > 0 && i <= len(states) {
							want = states[i-1]
						}
						fits = fits || cmp.Equal(got, want)
					}
					if !fits {
						return fmt.Errorf("%v is found after %d writes", got, n)
					}
					next := boot.Vars{Order: turns("B:7", "A:4")}
					if err := l.Write(next); err != nil {
						return err
					}
					if got, err := l.Read(); err != nil || !cmp.Equal(got, next) {
						return fmt.Errorf("the next write gives %v, %v", got, err)
					}
					return nil
				},
			})
			if name == "sectors" && (res.Writes != len(states) || res.Flushes != 2*len(states)) {
				t.Errorf("%d changes are %d writes and %d flushes", len(states), res.Writes, res.Flushes)
			}
		}
	}
}

func recorded(c crash.State) disk.Device { return crash.Record(c.Image) }

// One copy: as long as sectors are written whole, a cut leaves the old variables or the new ones.
func TestOneCopyIsOneSector(t *testing.T) {
	r := crash.Record(crash.NewImage(16 << 10))
	e := Env{Vars: map[string]string{"BOOT_ORDER": "A B", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "3", "bootcmd": strings.Repeat("x", 4000)}}
	r.WriteAt(e.Encode(16<<10, false), 0)
	if err := open(t, RAUC, names, r).Write(boot.Vars{Order: turns("B:2", "A:9")}); err != nil {
		t.Fatal(err)
	}
	for _, o := range r.Trace().Ops[1:] {
		if o.Kind == crash.Write && (o.Off != 0 || o.Len != 512) {
			t.Errorf("%d bytes at %d are written", o.Len, o.Off)
		}
	}
}

// A file that is missing or too short is a damaged copy.
func TestMissingFile(t *testing.T) {
	whole, short := disk.NewMemory(size), disk.NewMemory(0)
	v := boot.Vars{Order: turns("B:1", "A:2")}
	if err := open(t, RAUC, names, whole, disk.NewMemory(size)).Write(v); err != nil {
		t.Fatal(err)
	}
	for _, copies := range [][]disk.Device{{whole, short}, {short, whole}} {
		if got, err := open(t, RAUC, names, copies...).Read(); err != nil || !cmp.Equal(got, v) {
			t.Errorf("%v, %v", got, err)
		}
		next := boot.Vars{Order: turns("A:2", "B:0")}
		if err := open(t, RAUC, names, copies...).Write(next); err != nil {
			t.Error(err)
		}
		if got, err := open(t, RAUC, names, copies...).Read(); err != nil || !cmp.Equal(got, next) {
			t.Errorf("%v, %v", got, err)
		}
		if err := open(t, RAUC, names, copies...).Write(v); err != nil {
			t.Error(err)
		}
	}
	if err := open(t, RAUC, names, short, disk.NewMemory(size)).Write(v); err != nil {
		t.Errorf("nothing is there, and one of the files: %v", err)
	}
	if _, err := open(t, RAUC, names, short, short).Read(); !errors.Is(err, boot.ErrNoVars) {
		t.Errorf("none is there: %v", err)
	}
}

// A medium that fails is not a loss of the variables; a copy that fails is none either.
func TestFaults(t *testing.T) {
	r := crash.Record(crash.NewImage(2 * size))
	l := open(t, RAUC, names, disk.Section(r, 0, size), disk.Section(r, size, size))
	v := boot.Vars{Order: turns("A:1")}
	if err := l.Write(v); err != nil {
		t.Fatal(err)
	}
	bad := int64(0)
	r.Fault = func(k crash.Kind, _ int, off, _ int64) error {
		if k != crash.Flush && off/size == bad {
			return crash.ErrInjected
		}
		return nil
	}
	for bad = range 2 {
		if got, err := l.Read(); err != nil || !cmp.Equal(got, v) {
			t.Errorf("copy %d fails: %v, %v", bad, got, err)
		}
	}
	r.Fault = func(k crash.Kind, _ int, _, _ int64) error { return crash.ErrInjected }
	if _, err := l.Read(); !errors.Is(err, crash.ErrInjected) || errors.Is(err, boot.ErrNoVars) {
		t.Errorf("both fail: %v", err)
	}
	r.Fault = nil
	r.Lost = func(int, int64, int64) bool { return true }
	if err := l.Write(boot.Vars{Order: turns("B:1")}); err == nil {
		t.Error("a write that was never done is reported as durable")
	}
	full := disk.NewMemory(minSize)
	e := Env{Vars: map[string]string{"x": strings.Repeat("x", 50)}}
	full.WriteAt(e.Encode(minSize, false), 0)
	before, _ := io.ReadAll(io.NewSectionReader(full, 0, minSize))
	err := open(t, RAUC, names, full).Write(boot.Vars{})
	if after, _ := io.ReadAll(io.NewSectionReader(full, 0, minSize)); err == nil || !bytes.Equal(before, after) {
		t.Errorf("a full environment: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	small := disk.NewMemory(size)
	for _, copies := range [][]disk.Device{
		nil, {small, small, small}, {disk.NewMemory(MaxSize + 1)},
	} {
		if _, err := New(copies, names, RAUC); err == nil {
			t.Errorf("%d copies are taken", len(copies))
		}
	}
}

// tools is a folder with the two copies of an environment for fw_setenv and fw_printenv of libubootenv.
type tools struct {
	t      *testing.T
	dir    string
	copies int
	env    []string // further environment of the programs
}

func newTools(t *testing.T, copies int) tools {
	t.Helper()
	if _, err := exec.LookPath("fw_setenv"); err != nil {
		t.Skip("fw_setenv is not there: make setup")
	}
	f := tools{t: t, dir: t.TempDir(), copies: copies}
	var config string
	for i := range copies {
		config += fmt.Sprintf("%s 0x0 %#x\n", f.file(i), size)
		if err := os.WriteFile(f.file(i), make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"config": config, "default": ""} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f tools) file(i int) string { return filepath.Join(f.dir, fmt.Sprintf("uboot.env.%d", i)) }

// run runs fw_setenv or fw_printenv.
func (f tools) run(stdin, name string, args ...string) string {
	f.t.Helper()
	cmd := exec.Command(name, append([]string{"-c", filepath.Join(f.dir, "config"), "-f", filepath.Join(f.dir, "default")}, args...)...)
	cmd.Env = append(os.Environ(), f.env...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		f.t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

func (f tools) load() (copies []disk.Device) {
	f.t.Helper()
	for i := range f.copies {
		b, err := os.ReadFile(f.file(i))
		if err != nil || len(b) != size {
			f.t.Fatalf("%d bytes, %v", len(b), err)
		}
		d := disk.NewMemory(size)
		d.WriteAt(b, 0)
		copies = append(copies, d)
	}
	return copies
}

func (f tools) store(copies []disk.Device) {
	f.t.Helper()
	for i, c := range copies {
		if err := os.WriteFile(f.file(i), content(c), 0o644); err != nil {
			f.t.Fatal(err)
		}
	}
}

func content(d disk.Device) []byte {
	b := make([]byte, d.Size())
	d.ReadAt(b, 0)
	return b
}

// fw_setenv and Write make the same bytes of the same environment, over and over in turn, with one copy and with two; each
// reads what the other wrote.
func TestTools(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for copies := 1; copies <= 2; copies++ {
		f := newTools(t, copies)
		f.run("serial#=LB0001234\nBOOT_ORDER=A B\nBOOT_A_LEFT=3\nBOOT_B_LEFT=3\nbootcmd=run x; echo a=b\n_z=1\n", "fw_setenv", "-s", "-")
		for n := range 300 {
			v := boot.Vars{Order: []boot.Turn{{Name: "A", Tries: uint8(rng.IntN(10))}, {Name: "B", Tries: uint8(rng.IntN(10))}}}
			if rng.IntN(2) == 0 {
				slices.Reverse(v.Order)
			}
			left := map[string]uint8{v.Order[0].Name: v.Order[0].Tries, v.Order[1].Name: v.Order[1].Tries}
			script := fmt.Sprintf("BOOT_ORDER=%s %s\nBOOT_A_LEFT=%d\nBOOT_B_LEFT=%d\n", v.Order[0].Name, v.Order[1].Name, left["A"], left["B"])
			ours := f.load()
			l := open(t, RAUC, names, ours...)
			if old, err := l.Read(); err != nil || cmp.Equal(old, v) {
				if err != nil {
					t.Fatalf("what fw_setenv wrote: %v", err)
				}
				continue // fw_setenv writes also what is so already
			}
			if err := l.Write(v); err != nil {
				t.Fatal(err)
			}
			f.run(script, "fw_setenv", "-s", "-")
			for i, theirs := range f.load() {
				if !bytes.Equal(content(theirs), content(ours[i])) {
					t.Fatalf("step %d: copy %d is not that of fw_setenv", n, i)
				}
			}
			if n%10 > 0 {
				continue
			}
			if n%20 == 0 { // a damaged copy
				ours[rng.IntN(copies)%2].WriteAt([]byte("x"), size-1)
				if copies == 1 {
					continue
				}
			}
			f.store(ours)
			printed := f.run("", "fw_printenv")
			want, err := l.Read()
			if err != nil {
				t.Fatal(err)
			}
			for _, turn := range want.Order {
				if line := fmt.Sprintf("BOOT_%s_LEFT=%d\n", turn.Name, turn.Tries); !strings.Contains(printed, line) {
					t.Fatalf("fw_printenv does not say %q:\n%s", line, printed)
				}
			}
			if !strings.Contains(printed, "serial#=LB0001234\n") {
				t.Fatalf("fw_printenv has lost what else was there:\n%s", printed)
			}
		}
	}
}

// The same on flash, of whose kind fw_setenv keeps the flags: every byte of it is equal, and each reads what the other wrote.
func TestFlashTools(t *testing.T) {
	shim := filepath.Join(t.TempDir(), "mtd.so")
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", shim, "testdata/mtd.c").CombinedOutput(); err != nil {
		t.Skipf("gcc: %v\n%s", err, out)
	}
	for kind, nor := range map[string]bool{"3": true, "4": false} {
		f := newTools(t, 2)
		image := filepath.Join(f.dir, "flash")
		f.env = []string{"LD_PRELOAD=" + shim, "FLASH=" + image, "KIND=" + kind}
		config := fmt.Sprintf("/dev/mtd0 0x0 %#x %#x\n/dev/mtd0 %#x %#x %#x\n", size, block, block, size, block)
		for name, b := range map[string][]byte{"config": []byte(config), "flash": bytes.Repeat([]byte{0xff}, 2*block)} {
			if err := os.WriteFile(filepath.Join(f.dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		f.run("serial#=LB0001234\nBOOT_ORDER=A B\nBOOT_A_LEFT=3\nBOOT_B_LEFT=3\n", "fw_setenv", "-s", "-")
		for n := range 24 {
			b, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			d := disk.NewMemory(int64(len(b)))
			d.WriteAt(b, 0)
			m := flash{d}
			l := open(t, RAUC, names, disk.Section(m, 0, size), disk.Section(m, block, size))
			l.NOR = nor
			v := boot.Vars{Order: turns("A:3", "B:"+string(rune('0'+n%9+1)))}
			if old, err := l.Read(); err != nil || n > 0 && cmp.Equal(old, v) {
				t.Fatalf("what fw_setenv wrote: %v, %v", old, err)
			}
			if n%6 == 5 { // a cut while fw_setenv wrote: ours makes it whole, and goes on beside it
				m.WriteAt(make([]byte, 100), int64(n/6%2)*block)
				if err := os.WriteFile(image, content(d), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Write(v); err != nil {
				t.Fatal(err)
			}
			f.run(fmt.Sprintf("BOOT_ORDER=A B\nBOOT_A_LEFT=3\nBOOT_B_LEFT=%d\n", n%9+1), "fw_setenv", "-s", "-")
			theirs, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(theirs, content(d)) {
				t.Fatalf("kind %s, step %d: ours\n%.60q %.60q\nfw_setenv's\n%.60q %.60q", kind, n, content(d), content(d)[block:], theirs, theirs[block:])
			}
			if got := f.run("", "fw_printenv", "-n", "BOOT_B_LEFT"); strings.TrimSpace(got) != fmt.Sprint(n%9+1) {
				t.Fatalf("fw_printenv says %s", got)
			}
		}
	}
}

// Of two copies with any flags fw_printenv and we take the same one. The flags that never stand beside each other are
// those that are further apart than one.
func TestFlags(t *testing.T) {
	f := newTools(t, 2)
	for _, pair := range [][2]byte{{0, 0}, {1, 0}, {0, 1}, {1, 1}, {1, 2}, {2, 1}, {254, 255}, {255, 254}, {255, 0}, {0, 255}, {7, 200}, {200, 7}} {
		var copies []disk.Device
		for i, flag := range pair {
			d := disk.NewMemory(size)
			d.WriteAt(Env{Vars: map[string]string{"BOOT_ORDER": names[i]}, Flag: flag}.Encode(size, true), 0)
			copies = append(copies, d)
		}
		f.store(copies)
		v, err := open(t, RAUC, names, copies...).Read()
		if err != nil {
			t.Fatal(err)
		}
		if got := f.run("", "fw_printenv", "-n", "BOOT_ORDER"); strings.TrimSpace(got) != v.Order[0].Name {
			t.Errorf("flags %v: we take %s, fw_printenv %s", pair, v.Order[0].Name, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, e := range []Env{
		{Vars: map[string]string{"BOOT_ORDER": "B A", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "a"}, Flag: 3},
		{Vars: map[string]string{"mender_boot_part": "2", "upgrade_available": "1", "bootcount": "1"}},
		{Vars: map[string]string{"rootpart": "3", "ustate": "1"}},
	} {
		f.Add(e.Encode(size, true)[4:], byte(1))
		f.Add(e.Encode(size, false)[4:], byte(0))
	}
	f.Add([]byte("\x01=x\x00y\x00BOOT_ORDER=\x00BOOT_ORDER=A A\x00z=1"), byte(1))
	f.Fuzz(func(t *testing.T, b []byte, copies byte) {
		// The checksum is made right: past it is where the parser works.
		b = append(make([]byte, 4), b...)
		if len(b) < minSize || len(b) > MaxSize {
			return
		}
		redundant := copies&1 == 1
		sum(b, redundant)
		e, ok := Parse(b, redundant)
		if !ok {
			t.Fatal("the checksum is right and is refused")
		}
		if again := e.Encode(len(b), redundant); again != nil {
			if back, ok := Parse(again, redundant); !ok || !cmp.Equal(back.Vars, e.Vars) {
				t.Fatalf("%v becomes %v", e.Vars, back.Vars)
			}
		}
		for _, schema := range []string{RAUC, Mender, SWUpdate} {
			var d []disk.Device
			for range int(copies&1) + 1 {
				m := disk.NewMemory(int64(len(b)))
				m.WriteAt(b, 0)
				d = append(d, m)
			}
			l := open(t, schema, []string{"2", "3"}, d...)
			v, err := l.Read()
			if err != nil {
				if !errors.Is(err, boot.ErrNoVars) {
					t.Fatal(err)
				}
				continue
			}
			if err := l.Write(v); err != nil {
				continue // full
			}
			got, err := l.Read()
			if err != nil {
				t.Fatal(err)
			}
			if len(v.Order) > 0 && !cmp.Equal(v, got) {
				t.Fatalf("%v is read, written, and read as %v", v, got)
			}
		}
	})
}
