package efi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/boot"
	"lifeboat/disk"
)

// memory is a firmware that keeps its variables, and loses its power before the operation that left counts down to.
type memory struct {
	m    map[string][]byte
	ops  int
	left int // operations until the cut, -1: none comes
	deaf string
}

var errCut = errors.New("the power is gone")

func (m *memory) cut() error {
	if m.left == 0 {
		return errCut
	}
	m.left--
	m.ops++
	return nil
}

func (m *memory) Get(name string) ([]byte, error) {
	if b, ok := m.m[name]; ok {
		return bytes.Clone(b), nil
	}
	return nil, fs.ErrNotExist
}

func (m *memory) Set(name string, b []byte) error {
	if err := m.cut(); err != nil || name == m.deaf {
		return err
	}
	m.m[name] = bytes.Clone(b)
	return nil
}

func (m *memory) Delete(name string) error {
	if err := m.cut(); err != nil || name == m.deaf {
		return err
	}
	if _, ok := m.m[name]; !ok {
		return fs.ErrNotExist
	}
	delete(m.m, name)
	return nil
}

func (m *memory) clone() *memory { return &memory{m: maps.Clone(m.m), left: -1} }

func global(name string) string { return name + Global }

var (
	slots = []Slot{{Name: "A", File: `\EFI\Linux\A.efi`}, {Name: "B", File: `\EFI\Linux\B.efi`, Args: "rauc.slot=B"}, {Name: "recovery", File: `\r.efi`}}
	esp   = Partition{Number: 1, Start: 2048, Size: 131072, GUID: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}
)

func open(v Vars) *Loader { return New(v, slots, func(string) (Partition, error) { return esp, nil }) }

// factory is what OVMF has before anything of ours: a setup menu, a disk, a shell; the disk is started.
func factory() *memory {
	m := &memory{m: map[string][]byte{}, left: -1}
	for n, name := range []string{"UiApp", "UEFI Misc Device", "EFI Internal Shell"} {
		m.m[global(number(uint16(n)))] = append([]byte(head), option(Slot{Name: name, File: `\` + name}, esp)...)
	}
	m.m[global("BootOrder")] = []byte{7, 0, 0, 0, 0, 0, 1, 0, 2, 0}
	m.m[global("BootCurrent")] = []byte{6, 0, 0, 0, 1, 0}
	m.m["Lang"+Global] = []byte{7, 0, 0, 0, 'e', 'n', 'g', 0}
	return m
}

func vars(next string, order ...string) boot.Vars {
	v := boot.Vars{Next: next}
	for _, name := range order {
		v.Order = append(v.Order, boot.Turn{Name: name})
	}
	return v
}

// all are the orders and nexts of up to three slots.
func all() (list []boot.Vars) {
	names := []string{"A", "B", "recovery"}
	for _, next := range append(names, "") {
		for _, order := range [][]string{
			{}, {"A"}, {"B"}, {"recovery"}, {"A", "B"}, {"B", "A"}, {"A", "B", "recovery"}, {"recovery", "A"}, {"B", "recovery", "A"},
		} {
			if next != "" || len(order) > 0 {
				list = append(list, vars(next, order...))
			}
		}
	}
	return list
}

func TestWriteThenRead(t *testing.T) {
	m := factory()
	l := open(m)
	if _, err := l.Read(); !errors.Is(err, boot.ErrNoVars) {
		t.Fatalf("a firmware that knows no slot: %v", err)
	}
	for _, v := range all() {
		if err := l.Write(v); err != nil {
			t.Fatal(v, err)
		}
		got, err := l.Read()
		if diff := cmp.Diff(v, got); diff != "" || err != nil {
			t.Errorf("%v: %s%v", v, diff, err)
		}
		m.ops = 0
		if err := l.Write(v); err != nil || m.ops != 0 {
			t.Errorf("%v again: %d operations, %v", v, m.ops, err)
		}
		order, _ := l.numbers("BootOrder")
		if foreign := order[len(v.Order):]; !slices.Equal(foreign, []uint16{0, 1, 2}) {
			t.Errorf("%v: what is no slot's is now %v", v, foreign)
		}
	}
	if len(m.m) != len(factory().m)+len(slots) {
		t.Errorf("left: %q", slices.Sorted(maps.Keys(m.m)))
	}
}

// After a cut anywhere in a Write the firmware finds old, new, or the new order without Next.
func TestCut(t *testing.T) {
	for _, from := range all() {
		for _, to := range all() {
			start := factory()
			if err := open(start).Write(from); err != nil {
				t.Fatal(err)
			}
			for left := 0; ; left++ {
				m := start.clone()
				m.left = left
				err := open(m).Write(to)
				got, rerr := open(m).Read()
				without, old := to, from
				without.Next, old.Next = "", ""
				if rerr != nil && (len(to.Order) > 0 && len(from.Order) > 0 || !errors.Is(rerr, boot.ErrNoVars)) {
					t.Fatalf("%v, then %v, cut at %d: %v", from, to, left, rerr)
				}
				if !cmp.Equal(got, from) && !cmp.Equal(got, to) && !cmp.Equal(got, without) && !cmp.Equal(got, old) {
					t.Fatalf("%v, then %v, cut at %d: %v", from, to, left, got)
				}
				m.left = -1
				may := []string{first(from), first(old), first(to), first(without)}
				if s := starts(t, m); !slices.Contains(may, s) && (s != "" || len(from.Order) > 0 && len(to.Order) > 0) {
					t.Fatalf("%v, then %v, cut at %d: the firmware starts %q", from, to, left, s)
				}
				if err := open(m).Write(to); err != nil {
					t.Fatal(err)
				}
				if got, err := open(m).Read(); err != nil || !cmp.Equal(got, to) {
					t.Fatalf("%v, then %v, cut at %d and written again: %v, %v", from, to, left, got, err)
				}
				if err == nil {
					break
				}
				if !errors.Is(err, errCut) {
					t.Fatal(err)
				}
			}
		}
	}
}

// starts is what the firmware would start, of slots that all load.
func starts(t *testing.T, m *memory) string {
	t.Helper()
	s, err := Run(m.clone(), func(name string) bool { return slices.ContainsFunc(slots, func(s Slot) bool { return s.Name == name }) })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func first(v boot.Vars) string {
	if v.Next != "" || len(v.Order) == 0 {
		return v.Next
	}
	return v.Order[0].Name
}

// The firmware starts what was written: BootNext once, then the first of BootOrder that loads.
func TestRun(t *testing.T) {
	for _, v := range all() {
		m := factory()
		if err := open(m).Write(v); err != nil {
			t.Fatal(err)
		}
		then := v
		then.Next = ""
		for n, want := range []string{first(v), first(then)} {
			if got, err := Run(m, func(name string) bool { return name != "UEFI Misc Device" }); err != nil || got != want && (want != "" || got != "UiApp" && got != "EFI Internal Shell") {
				t.Errorf("%v, start %d: %q, %v, want %q", v, n, got, err, want)
			}
		}
		if got, err := open(m).Read(); !cmp.Equal(got, then) || err != nil && len(then.Order) > 0 {
			t.Errorf("%v leaves %v, %v", v, got, err)
		}
		if len(v.Order) > 1 {
			if got, err := Run(m, func(name string) bool { return name == v.Order[1].Name }); err != nil || got != v.Order[1].Name {
				t.Errorf("%v, and the first is dead: %q, %v", v, got, err)
			}
		}
	}
}

// What the product does, an install and a slot that has said good, changes one variable, and so is whole or not at all.
func TestOneVariable(t *testing.T) {
	m := factory()
	l := open(m)
	if err := l.Write(vars("", "A", "B")); err != nil {
		t.Fatal(err)
	}
	for _, v := range []boot.Vars{vars("B", "A", "B"), vars("", "A", "B"), vars("", "B", "A"), vars("", "B")} {
		m.ops = 0
		if err := l.Write(v); err != nil || m.ops != 1 {
			t.Errorf("%v: %d operations, %v", v, m.ops, err)
		}
	}
}

func TestLostAndFound(t *testing.T) {
	m := factory()
	l := open(m)
	if err := l.Write(vars("", "B", "A")); err != nil {
		t.Fatal(err)
	}
	order, _ := l.numbers("BootOrder")
	b := global(number(order[0]))
	want := bytes.Clone(m.m[b])
	lost := func(name string, take func(), read boot.Vars) {
		t.Helper()
		take()
		if got, _ := l.Read(); !cmp.Equal(got, read) {
			t.Errorf("%s: %v is read", name, got)
		}
		if err := l.Write(vars("", "B", "A")); err != nil {
			t.Fatal(name, err)
		}
		if got, err := l.Read(); err != nil || !cmp.Equal(got, vars("", "B", "A")) {
			t.Errorf("%s: %v is read after a repair, %v", name, got, err)
		}
	}
	lost("the entry of B", func() { delete(m.m, b) }, vars("", "A"))
	now, _ := l.numbers("BootOrder")
	if got := m.m[global(number(now[0]))]; !bytes.Equal(got, want) || now[0] == order[0] {
		t.Errorf("the entry that was lost is now %04X: %x", now[0], got)
	}
	b = global(number(now[0]))
	lost("B is not active", func() { m.m[b] = bytes.Clone(m.m[b]); m.m[b][4] = 0 }, vars("", "A"))
	lost("the order", func() { delete(m.m, global("BootOrder")) }, boot.Vars{})
	lost("the order's second half", func() { m.m[global("BootOrder")] = m.m[global("BootOrder")][:6] }, vars("", "B"))
	lost("all", func() { clear(m.m) }, boot.Vars{})

	now, _ = l.numbers("BootOrder")
	m.m[global("BootCurrent")] = []byte{6, 0, 0, 0, byte(now[1]), byte(now[1] >> 8)}
	if s := l.Started(); s != "A" {
		t.Errorf("started: %q", s)
	}
	for _, deaf := range []string{"BootOrder", "BootNext"} {
		m.deaf = global(deaf)
		if err := l.Write(vars("A", "A")); err == nil || !strings.Contains(err.Error(), deaf) {
			t.Errorf("a firmware that does not keep %s: %v", deaf, err)
		}
	}
	if err := l.Write(vars("C")); err == nil {
		t.Error("a slot that there is not was written")
	}
	m.deaf = ""
	if err := New(m, slots, func(string) (Partition, error) { return esp, errCut }).Write(vars("recovery")); !errors.Is(err, errCut) {
		t.Errorf("an entry without its partition: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	m := factory()
	if err := open(m).Write(vars("A", "B", "A")); err != nil {
		f.Fatal(err)
	}
	f.Add(m.m[global("BootOrder")], m.m[global("BootNext")], m.m[global("Boot0003")], m.m[global("Boot0001")])
	f.Fuzz(func(t *testing.T, order, next, three, one []byte) {
		m := &memory{left: -1, m: map[string][]byte{
			global("BootOrder"): order, global("BootNext"): next, global("BootCurrent"): next, global("Boot0003"): three, global("Boot0001"): one,
		}}
		l := open(m)
		l.Started()
		l.Read()
		if err := l.Write(vars("B", "A", "B")); err != nil {
			t.Fatal(err)
		}
		if v, err := l.Read(); err != nil || !cmp.Equal(v, vars("B", "A", "B")) {
			t.Fatal(v, err)
		}
	})
}

func TestFindPartition(t *testing.T) {
	le := binary.LittleEndian
	for _, sector := range []int64{512, 4096} {
		d := disk.NewMemory(1 << 20)
		h := make([]byte, 92)
		copy(h, "EFI PART")
		le.PutUint64(h[72:], 2)
		le.PutUint32(h[80:], 128)
		le.PutUint32(h[84:], 128)
		e := make([]byte, 128)
		e[0] = 1
		copy(e[16:], esp.GUID[:])
		le.PutUint64(e[32:], esp.Start)
		le.PutUint64(e[40:], esp.Start+esp.Size-1)
		d.WriteAt(h, sector)
		d.WriteAt(e, 2*sector+128)
		want := esp
		want.Number = 2
		if p, err := FindPartition(d, sector, 2); err != nil || p != want {
			t.Errorf("%+v, %v", p, err)
		}
		for _, n := range []int{0, 1, 3, 129} {
			if p, err := FindPartition(d, sector, n); err == nil {
				t.Errorf("partition %d is %+v", n, p)
			}
		}
	}
	if _, err := FindPartition(disk.NewMemory(1<<20), 512, 1); err == nil {
		t.Error("a disk without a table has a partition")
	}
}

// efibootmgr reads what we wrote, and we what it wrote, in a folder that it takes for efivarfs.
func TestEfibootmgr(t *testing.T) {
	tool, err := exec.LookPath("efibootmgr")
	if err != nil {
		t.Skip("efibootmgr is not installed: make setup")
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(tool, args...)
		cmd.Env = append(os.Environ(), "EFIVARFS_PATH="+dir+"/", "LIBEFIVAR_OPS=efivarfs")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("efibootmgr %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	m := factory()
	l := open(m)
	store := func() {
		t.Helper()
		for name, b := range m.m {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	load := func() {
		t.Helper()
		clear(m.m)
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if m.m[f.Name()], err = Dir(dir).Get(f.Name()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Write(vars("B", "A", "B")); err != nil {
		t.Fatal(err)
	}
	store()
	out := run("-v")
	for _, want := range []string{
		"BootNext: 0004\n", "BootOrder: 0003,0004,0000,0001,0002\n", "Boot0003* A\t", `File(\EFI\Linux\A.efi)`,
		"HD(1,GPT,04030201-0605-0807-090a-0b0c0d0e0f10,0x800,0x20000)", "Boot0004* B\t",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("efibootmgr does not say %q:\n%s", want, out)
		}
	}
	run("-o", "1,4,3")
	run("-N")
	load()
	if v, err := l.Read(); err != nil || !cmp.Equal(v, vars("", "B", "A")) {
		t.Errorf("after efibootmgr -o 1,4,3 -N: %v, %v", v, err)
	}
	run("-n", "3")
	run("-b", "4", "-A")
	load()
	if v, err := l.Read(); err != nil || !cmp.Equal(v, vars("A", "A")) {
		t.Errorf("after efibootmgr -n 3, -b 4 -A: %v, %v", v, err)
	}
	run("-b", "4", "-B")
	load()
	if err := l.Write(vars("", "B", "A")); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(dir)
	os.Mkdir(dir, 0o755)
	store()
	if out := run(); !strings.Contains(out, "BootOrder: 0004,0003,0001,") { // in a folder, shorter values keep their old ends
		t.Errorf("after the repair:\n%s", out)
	}
}

// A folder is enough for all but the flag.
func TestDir(t *testing.T) {
	d := Dir(t.TempDir())
	l := open(d)
	if err := l.Write(vars("A", "B", "A")); err != nil {
		t.Fatal(err)
	}
	if v, err := l.Read(); err != nil || !cmp.Equal(v, vars("A", "B", "A")) {
		t.Errorf("%v, %v", v, err)
	}
	if err := l.Write(vars("", "B", "A")); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(string(d)); err != nil || len(names) != 3 {
		t.Errorf("%q, %v", names, err)
	}
}
