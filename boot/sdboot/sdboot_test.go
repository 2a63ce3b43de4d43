package sdboot

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lifeboat/boot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/fat"
)

// memory is a folder in which each name holds a file's content.
type memory struct {
	m    map[string]string
	ops  int
	left int // renames until the power goes, -1: it stays
}

var errCut = errors.New("the power is gone")

func (m *memory) Names() ([]string, error) { return slices.Collect(maps.Keys(m.m)), nil }

func (m *memory) Rename(from, to string) error {
	if m.left == 0 {
		return errCut
	}
	m.left--
	m.ops++
	if _, there := m.m[from]; !there {
		return fs.ErrNotExist
	}
	if _, there := m.m[to]; there {
		return fs.ErrExist
	}
	m.m[to] = m.m[from]
	delete(m.m, from)
	return nil
}

func (m *memory) clone() *memory { return &memory{m: maps.Clone(m.m), left: -1} }

var names = []string{"A", "B", "recovery"}

func folder(files ...string) *memory {
	m := &memory{m: map[string]string{"notes.txt": "", "other.conf": "", "loader.conf": "", ".conf": "", "9-.conf": "", "50-A+.conf": "", "50-A+x.conf": "", "50-A+1-.conf": ""}, left: -1}
	for _, f := range files {
		_, name, _ := strings.Cut(f, "-")
		m.m[f] = strings.ToUpper(name[:1])
	}
	return m
}

// full is a folder in which each slot has an entry and a spare.
func full() *memory {
	return folder("52-A.conf", "51-B.conf", "50-recovery.conf", "00-A.off", "00-B.off", "00-recovery.off")
}

func order(turns ...boot.Turn) boot.Vars { return boot.Vars{Order: turns} }

func turn(name string, tries uint8) boot.Turn { return boot.Turn{Name: name, Tries: tries} }
func good(name string) boot.Turn              { return boot.Turn{Name: name, Tries: most, Good: true} }

// all are the orders of up to three slots, each of them counted or not.
func all() (list []boot.Vars) {
	for _, o := range [][]string{{"A"}, {"B"}, {"A", "B"}, {"B", "A"}, {"recovery", "A"}, {"B", "recovery", "A"}, {"A", "B", "recovery"}} {
		for n := range 4 {
			v := boot.Vars{}
			for i, name := range o {
				v.Order = append(v.Order, []boot.Turn{good(name), turn(name, 3), turn(name, 0), turn(name, most)}[(n+i)%4])
			}
			list = append(list, v)
		}
	}
	return list
}

// plain is v without what Read may not know.
func plain(v boot.Vars) boot.Vars {
	v.Order = slices.Clone(v.Order)
	for i := range v.Order {
		v.Order[i].Good = false
	}
	return v
}

func TestWriteThenRead(t *testing.T) {
	for name, m := range map[string]*memory{"spares": full(), "none": folder("52-A.conf", "51-B.conf", "50-recovery.conf"), "nothing is on": folder("00-A.off", "00-B.off", "00-recovery.off")} {
		l := New(m, nil, names)
		files := len(m.m)
		for range 30 { // places run up to 99 and start again
			for _, v := range all() {
				if err := l.Write(v); err != nil {
					t.Fatal(name, v, err, m.m)
				}
				got, err := l.Read()
				if diff := gocmp.Diff(plain(v), plain(got)); diff != "" || err != nil {
					t.Fatalf("%s: %v: %s%v", name, v, diff, err)
				}
				m.ops = 0
				if err := l.Write(v); err != nil || m.ops != 0 {
					t.Fatalf("%s: %v again: %d renames, %v", name, v, m.ops, err)
				}
				m.run()
				if err := l.Write(v); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(m.m) != files {
			t.Errorf("%s: %d files are now %q", name, files, slices.Sorted(maps.Keys(m.m)))
		}
	}
}

// run starts what systemd-boot would, and returns the content of the entry.
func (m *memory) run() string {
	files, _ := m.Names()
	slices.Sort(files)
	started, after := Run(files, names)
	if started == "" {
		return ""
	}
	for i, file := range files {
		if after[i] != file {
			m.Rename(file, after[i])
		}
	}
	return strings.ToUpper(started[:1])
}

// The tries of a slot are what it gets, and then the next slot's turn comes; of one that is good there is no end.
func TestCounting(t *testing.T) {
	for want, v := range map[string]boot.Vars{
		"BBBAAAAA": order(turn("B", 3), good("A")),
		"BBAAABBB": order(turn("B", 2), turn("A", 3)), // then all are exhausted, and the first in place goes on
		"AAAAAAAA": order(turn("B", 0), good("A")),
		"BBBBBBBB": order(good("B"), good("A")),
		"RABBBBBB": order(turn("recovery", 1), turn("A", 1), good("B")),
	} {
		m := full()
		l := New(m, nil, names)
		if err := l.Write(v); err != nil {
			t.Fatal(err)
		}
		got := ""
		for range 8 {
			got += m.run()
			if got == "B" && want[1] == 'B' && v.Order[0].Tries == 3 {
				if now, _ := l.Read(); now.Order[0].Tries != 2 {
					t.Errorf("after one start: %v", now)
				}
			}
		}
		if got != want {
			t.Errorf("%v starts %s, want %s", v, got, want)
		}
	}
}

// After a cut between any two renames each slot is as it was or as it was to be, and written again all is.
func TestCut(t *testing.T) {
	for _, start := range []*memory{full(), folder("52-A.conf", "51-B.conf", "50-recovery.conf")} {
		for _, from := range all() {
			for _, to := range all() {
				if err := New(start, nil, names).Write(from); err != nil {
					t.Fatal(err)
				}
				changed := 0
				for _, name := range names {
					if !gocmp.Equal(of(from, name), of(to, name)) {
						changed++
					}
				}
				for left := 0; ; left++ {
					m := start.clone()
					m.left = left
					err := New(m, nil, names).Write(to)
					m.left = -1
					got, rerr := New(m, nil, names).Read()
					if rerr != nil {
						t.Fatalf("%v, then %v, cut at %d: %v", from, to, left, rerr)
					}
					for _, name := range names {
						if g := of(got, name); !gocmp.Equal(g, of(from, name)) && !gocmp.Equal(g, of(to, name)) {
							t.Fatalf("%v, then %v, cut at %d: %s is %v", from, to, left, name, g)
						}
					}
					if changed == 1 && len(from.Order) == len(to.Order) && from.Order[0].Name == to.Order[0].Name && !gocmp.Equal(plain(got), plain(from)) && !gocmp.Equal(plain(got), plain(to)) {
						t.Fatalf("%v, then %v, cut at %d: %v", from, to, left, got)
					}
					if e := New(m, nil, names).Write(to); e != nil {
						t.Fatal(e)
					}
					if got, e := New(m, nil, names).Read(); e != nil || !gocmp.Equal(plain(got), plain(to)) {
						t.Fatalf("%v, then %v, cut at %d and written again: %v, %v", from, to, left, got, e)
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
}

// Whatever a cut leaves of a change, however often systemd-boot had started something before: it counts, until the tries of
// what it starts are used up.
func TestCutCounts(t *testing.T) {
	for _, from := range all() {
		for runs := range 3 {
			for _, to := range all() {
				for left := range 9 {
					m := full()
					if err := New(m, nil, names).Write(from); err != nil {
						t.Fatal(err)
					}
					for range runs {
						m.run()
					}
					m.left = left
					if err := New(m, nil, names).Write(to); err != nil && !errors.Is(err, errCut) {
						t.Fatal(err)
					}
					m.left = -1
					for {
						before := slices.Sorted(maps.Keys(m.m))
						first := &entry{tries: -1, place: -1}
						for _, file := range before {
							if e := New(nil, nil, names).parse(file); e != nil && e.on && e.before(first) {
								first = e
							}
						}
						if first.tries <= 0 {
							break
						}
						m.run()
						if slices.Equal(before, slices.Sorted(maps.Keys(m.m))) {
							t.Fatalf("%v, %d starts, then %v, cut at %d: of %q it starts %s, and does not count", from, runs, to, left, before, first.file)
						}
					}
				}
			}
		}
	}
}

// of is a slot's turn without Good.
func of(v boot.Vars, name string) (t boot.Turn) {
	for _, t := range plain(v).Order {
		if t.Name == name {
			return t
		}
	}
	return t
}

// What the product does is one rename where there is no spare, two where there is.
func TestRenames(t *testing.T) {
	for _, start := range []*memory{full(), folder("52-A.conf", "51-B.conf", "50-recovery.conf")} {
		l := New(start, nil, names)
		if err := l.Write(order(good("A"), good("B"))); err != nil {
			t.Fatal(err)
		}
		for _, v := range []boot.Vars{
			order(good("A")), order(turn("B", 3), good("A")), order(turn("B", 2), good("A")), order(good("B"), good("A")),
			order(good("A"), good("B")), order(turn("A", 9), good("B")),
		} {
			start.ops = 0
			most := 1
			if len(start.m) == len(full().m) {
				most = 2
			}
			if err := l.Write(v); err != nil || start.ops > most {
				t.Errorf("%v: %d renames, %v", v, start.ops, err)
			}
		}
	}
}

func TestLostAndTwice(t *testing.T) {
	v := order(turn("B", 3), good("A"))
	for _, c := range []struct {
		name  string
		files []string
		read  boot.Vars
		lost  bool
	}{
		{"both names", []string{"53-B+3-0.conf", "51-B.conf", "52-A.conf"}, v, false},
		{"both names and a spare", []string{"53-B+3-0.conf", "51-B.conf", "52-A.conf", "00-B.off"}, v, false},
		{"the new one has run out, the old one is started", []string{"53-B+0-3.conf", "51-B.conf", "52-A.conf"}, order(good("A"), good("B")), false},
		{"B is lost", []string{"00-B.off", "52-A.conf"}, order(good("A")), false},
		{"A is lost", []string{"53-B+3-0.conf", "00-A.off"}, order(turn("B", 3)), false},
		{"all is lost", []string{"00-B.off", "00-A.off"}, boot.Vars{}, false},
		{"B and its spare are lost", []string{"52-A.conf"}, order(good("A")), true},
		{"started a thousand times when none was left", []string{"53-B+0-1000.conf", "52-A.conf"}, order(turn("B", 0), good("A")), false},
		{"older counters", []string{"53-b+03.CONF", "52-a.conf"}, v, false},
	} {
		m := folder(c.files...)
		l := New(m, nil, names)
		got, err := l.Read()
		if (err != nil) != (c.read.Order == nil) || err != nil && !errors.Is(err, boot.ErrNoVars) || !gocmp.Equal(plain(got), plain(c.read)) {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
		if err := l.Write(v); (err != nil) != c.lost {
			t.Errorf("%s: %v", c.name, err)
		}
		if got, err := l.Read(); !c.lost && (err != nil || !gocmp.Equal(plain(got), plain(v))) || c.lost && len(got.Order) != 1 {
			t.Errorf("%s, written: %v, %v", c.name, got, err)
		}
	}
	if err := New(full(), nil, names).Write(boot.Vars{Next: "A"}); err == nil {
		t.Error("Next was written")
	}
	if err := New(full(), nil, names).Write(order(turn("C", 1))); err == nil {
		t.Error("a slot that there is not was written")
	}
}

// esp is an ESP whose folder of entries has these files.
func esp(t testing.TB, files ...string) *crash.Image {
	name := filepath.Join(t.TempDir(), "esp")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	if err := os.WriteFile(name, make([]byte, 34<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	run("/usr/sbin/mkfs.fat", "-s", "4", name)
	run("mmd", "-i", name, "::loader", "::loader/entries")
	for _, f := range files {
		from := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(from, []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
		run("mcopy", "-i", name, from, "::loader/entries/"+f)
	}
	img, err := crash.LoadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func unmounted(t testing.TB, d disk.Device) *Loader {
	t.Helper()
	f, err := fat.Open(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	return New(Unmounted{f}, nil, names)
}

// Whatever a cut leaves of an update on FAT, old or new is read, and written again all is new: if a sector is what a medium
// writes or not.
func TestCutOnFAT(t *testing.T) {
	for _, files := range [][]string{
		{"52-A.conf", "51-B.conf", "00-A.off", "00-B.off"},
		{"52-A.conf", "51-B.conf"},
		{"52-A.conf", "something with a long name that fills a sector.txt", "more with a long name that fills it.txt", "51-B.conf", "00-B.off"},
	} {
		steps := []boot.Vars{order(good("A")), order(turn("B", 3), good("A")), order(turn("B", 2), good("A")), order(good("B"), good("A")), order(good("A"))}
		start := crash.Record(esp(t, files...))
		if err := unmounted(t, start).Write(order(good("A"), good("B"))); err != nil {
			t.Fatal(err)
		}
		res := crash.Crash(t, crash.Test{
			Name: "update", Start: start.Image(),
			Update: func(r *crash.Recorder) error {
				for i, v := range steps {
					if err := unmounted(t, r).Write(v); err != nil {
						return err
					}
					r.Mark(i)
				}
				return nil
			},
			Check: func(c crash.State) error {
				if strings.HasSuffix(c.How, " zero") || strings.HasSuffix(c.How, " garbage") || strings.HasSuffix(c.How, " half") {
					return nil
				}
				old, next := order(good("A"), good("B")), steps[0]
				if n, ok := c.Mark.(int); ok {
					old, next = steps[n], steps[min(n+1, len(steps)-1)]
				}
				img := c.Image.Clone()
				got, err := unmounted(t, img).Read()
				if err != nil || !gocmp.Equal(plain(got), plain(old)) && !gocmp.Equal(plain(got), plain(next)) {
					return fmt.Errorf("%v between %v and %v, %w", got, old, next, err)
				}
				if err := unmounted(t, img).Write(next); err != nil {
					return err
				}
				if got, err := unmounted(t, img).Read(); err != nil || !gocmp.Equal(plain(got), plain(next)) {
					return fmt.Errorf("%v, written again: %v, %w", next, got, err)
				}
				return nil
			},
		})
		if limit := 2 * len(steps); res.Writes > limit {
			t.Errorf("%d changes are %d writes", len(steps), res.Writes)
		}
	}
}

// A folder of the running system.
func TestMounted(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, Dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name := range full().m {
		if err := os.WriteFile(filepath.Join(dir, Dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := New(Mounted(dir), nil, names)
	for _, v := range all() {
		if err := l.Write(v); err != nil {
			t.Fatal(err)
		}
		if got, err := l.Read(); err != nil || !gocmp.Equal(plain(got), plain(v)) {
			t.Fatalf("%v: %v, %v", v, got, err)
		}
	}
	if err := Mounted(dir).Rename("notes.txt", "other.conf"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another file: %v", err)
	}
	if _, err := New(Mounted("/nowhere"), nil, names).Read(); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, boot.ErrNoVars) {
		t.Errorf("no folder: %v", err)
	}
}

type variables map[string][]byte

func (v variables) Get(name string) ([]byte, error) {
	if b, ok := v[name]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}
func (v variables) Set(string, []byte) error { return nil }
func (v variables) Delete(string) error      { return nil }

func TestStarted(t *testing.T) {
	for id, want := range map[string]string{"53-b+3-0.conf": "B", "53-recovery.conf": "recovery", "auto-efi-shell": "", "": "", "53-b": ""} {
		b := []byte{6, 0, 0, 0}
		for i := range len(id) {
			b = append(b, id[i], 0)
		}
		if got := New(full(), variables{selected: append(b, 0, 0)}, names).Started(); got != want {
			t.Errorf("%q: %q", id, got)
		}
	}
	if got := New(full(), variables{}, names).Started(); got != "" {
		t.Errorf("nothing said: %q", got)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("52-A.conf\n51-B+3-0.conf\n00-A.off", []byte("\x06\x00\x00\x00A\x00"))
	f.Add("51-B+3-0.conf\n51-B+2-0.conf\n00-B.off\n9-+.off\n-.off\n+-.conf", bytes.Repeat([]byte("1-+"), 400))
	f.Fuzz(func(t *testing.T, files string, started []byte) {
		m := &memory{m: map[string]string{}, left: -1}
		for name := range strings.SplitSeq(files, "\n") {
			m.m[name] = "x"
		}
		l := New(m, variables{selected: started}, names)
		l.Started()
		v, err := l.Read()
		if err != nil {
			return
		}
		if err := l.Write(v); err != nil {
			t.Fatal(v, err)
		}
		if got, err := l.Read(); err != nil || !gocmp.Equal(plain(got), plain(v)) {
			t.Fatal(v, got, err)
		}
	})
}

// bootctl sees the slots in the order of Read, with their tries.
func TestBootctl(t *testing.T) {
	loaders, err := filepath.Abs("../../build/loaders")
	if err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(loaders, "usr/bin/bootctl")
	if _, err := os.Stat(tool); err != nil {
		t.Skip("bootctl is not there: make setup")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil { // bootctl wants the root of a file system
		t.Skipf("mount a tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := os.MkdirAll(filepath.Join(dir, Dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name := range full().m {
		if New(nil, nil, names).parse(name) != nil {
			if err := os.WriteFile(filepath.Join(dir, Dir, name), []byte("linux /k\nsort-key 0\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "k"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l := New(Mounted(dir), nil, names)
	for _, v := range all() {
		if err := l.Write(v); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(tool, "--esp-path="+dir, "list", "--json=short")
		cmd.Env = append(os.Environ(), "SYSTEMD_RELAX_ESP_CHECKS=1", "LD_LIBRARY_PATH="+filepath.Join(loaders, "usr/lib/x86_64-linux-gnu/systemd"))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("bootctl: %v\n%s", err, out)
		}
		var got boot.Vars
		for d := json.NewDecoder(bytes.NewReader(out)); ; {
			e := struct {
				ID        string
				TriesLeft *uint8
			}{}
			if err := d.Decode(&e); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("bootctl says %s: %v", out, err)
			}
			name := strings.TrimSuffix(e.ID[3:], ".conf")
			turn := good(name) // counted by nobody
			if e.TriesLeft != nil {
				turn = boot.Turn{Name: name, Tries: *e.TriesLeft}
			}
			got.Order = append(got.Order, turn)
		}
		want := boot.Vars{Order: slices.Clone(v.Order)} // those without tries are last
		slices.SortStableFunc(want.Order, func(a, b boot.Turn) int { return cmp.Compare(min(b.Tries, 1), min(a.Tries, 1)) })
		if diff := gocmp.Diff(plain(want), plain(got)); diff != "" {
			t.Errorf("%v: bootctl sees %s", v, diff)
		}
	}
}
