package fat

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"lifeboat/disk/crash"
)

const folder = "loader/entries"

// entries is an ESP with what systemd-boot's folder has, and n files more in it.
func entries(t testing.TB, n int) stick {
	s := newStick(t, 34<<20, "-F", "16", "-s", "8")
	s.mkdir("loader")
	s.mkdir(folder)
	for i := range n {
		s.put(fmt.Sprintf("%s/other number %d.conf", folder, i), noise(byte(i), 700))
	}
	for _, name := range []string{"50-A.conf", "50-B+3-0.conf", "a.off", "b of another length.off"} {
		s.put(folder+"/"+name, []byte(name))
	}
	return s
}

func medium(t testing.TB, s stick) *crash.Image {
	img, err := crash.LoadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// contentsOf maps the names of the folder to what the files hold.
func contentsOf(t testing.TB, d interface {
	ReadAt([]byte, int64) (int, error)
	Size() int64
},
) map[string]string {
	f, err := Open(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	list, err := f.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if _, there := m[e.Name]; there {
			t.Fatalf("%s is there twice", e.Name)
		}
		b, err := read(f, folder+"/"+e.Name)
		if err != nil {
			t.Fatal(err)
		}
		m[e.Name] = string(b)
	}
	return m
}

// Names of all lengths come and go; nothing else in the folder changes, and fsck.fat and mtools agree.
func TestRename(t *testing.T) {
	for _, more := range []int{0, 3, 10} {
		s := entries(t, more)
		d := crash.Record(medium(t, s))
		want := contentsOf(t, d)
		rng := rand.New(rand.NewPCG(3, uint64(more)))
		for i := range 300 {
			f, err := Open(d, d.Size())
			if err != nil {
				t.Fatal(err)
			}
			names := make([]string, 0, len(want))
			for name := range want {
				names = append(names, name)
			}
			slices.Sort(names)
			from := names[rng.IntN(len(names))]
			to := fmt.Sprintf("%d-%s.conf", i, strings.Repeat("x", rng.IntN(40)))
			if err := f.Rename("/"+folder, strings.ToUpper(from), to); err != nil {
				t.Fatal(i, err)
			}
			want[to] = want[from]
			delete(want, from)
			if got := contentsOf(t, d); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%q to %q: %q", from, to, got)
			}
		}
		if err := d.Image().SaveFile(s.path); err != nil {
			t.Fatal(err)
		}
		s.run("fsck.fat", "-n", s.path)
		for name := range want {
			s.run("mtype", "-i", s.path, "::"+folder+"/"+name)
		}
	}
}

func TestRenameRefuses(t *testing.T) {
	s := entries(t, 0)
	d := medium(t, s)
	before := d.Hash()
	f, err := Open(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir, from, to string
		want          error
	}{
		{folder, "C.conf", "D.conf", fs.ErrNotExist},
		{folder, "50-A.conf", "A.OFF", fs.ErrExist},
		{folder, "50-A.conf", "a/b", nil},
		{folder, "50-A.conf", "", nil},
		{folder, "50-A.conf", "é", nil},
		{folder, "50-A.conf", strings.Repeat("x", 256), nil},
		{"loader", "entries", "elsewhere", fs.ErrNotExist}, // a folder
		{"nowhere", "x", "y", fs.ErrNotExist},
	} {
		if err := f.Rename(c.dir, c.from, c.to); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s/%s to %s: %v", c.dir, c.from, c.to, err)
		}
	}
	if d.Hash() != before {
		t.Error("a rename that was refused has changed the medium")
	}
	if err := s.open().Rename(folder, "50-A.conf", "60-A.conf"); err == nil {
		t.Error("a medium without Flush was written")
	}
}

// A cut leaves the old name, the new one or both, and the next Rename makes one of both. A sector is written or not: what
// a medium makes of it else, is about all files in it.
func TestRenameCut(t *testing.T) {
	for _, c := range []struct {
		name, to       string
		more           int
		writes, states int
	}{
		{"same length", "60-B+2-1.conf", 0, 1, 2},
		{"shorter", "60-B.conf", 0, 1, 2},
		{"longer", "60-B with a name of four parts, which has room.conf", 0, 1, 2},
		{"to another sector", "60-B with a name of four parts, which has room.conf", 7, 2, 2},
		{"out of two sectors", "60-B.conf", 9, 2, 2},
		{"into a hole", "60-B of two parts.conf", 7, 2, 3},
	} {
		s := entries(t, c.more)
		if c.name == "into a hole" {
			s.remove(folder + "/other number 0.conf")
		}
		var mu sync.Mutex
		seen := map[string]bool{}
		res := crash.Crash(t, crash.Test{
			Name: c.name, Start: medium(t, s),
			Update: func(r *crash.Recorder) error {
				f, err := Open(r, r.Size())
				if err != nil {
					return err
				}
				return f.Rename(folder, "50-B+3-0.conf", c.to)
			},
			Check: func(c2 crash.State) error {
				if torn(c2) {
					return nil
				}
				f, err := Open(c2.Image, c2.Image.Size())
				if err != nil {
					return err
				}
				old, err1 := read(f, folder+"/50-B+3-0.conf")
				now, err2 := read(f, folder+"/"+c.to)
				if string(old)+string(now) == "" || err1 == nil && string(old) != "50-B+3-0.conf" || err2 == nil && string(now) != "50-B+3-0.conf" {
					return fmt.Errorf("old %q %v, new %q %v", old, err1, now, err2)
				}
				mu.Lock()
				seen[fmt.Sprint(err1 == nil, err2 == nil)] = true
				mu.Unlock()
				if err1 == nil {
					img := c2.Image.Clone()
					f, err := Open(img, img.Size())
					if err != nil {
						return err
					}
					if err := f.Rename(folder, "50-B+3-0.conf", c.to); err != nil {
						return err
					}
					if _, err := f.Open(folder + "/50-B+3-0.conf"); !errors.Is(err, fs.ErrNotExist) {
						return fmt.Errorf("the old name is still there: %v", err)
					}
					if now, err := read(f, folder+"/"+c.to); string(now) != "50-B+3-0.conf" {
						return fmt.Errorf("done again: %q, %v", now, err)
					}
				}
				return nil
			},
		})
		if res.Writes != c.writes || len(seen) != c.states {
			t.Errorf("%s: %d writes, seen %v", c.name, res.Writes, seen)
		}
	}
}

// torn says that a sector is neither what it was nor what was written.
func torn(s crash.State) bool {
	return strings.HasSuffix(s.How, " zero") || strings.HasSuffix(s.How, " garbage") || strings.HasSuffix(s.How, " half")
}

func FuzzRename(f *testing.F) {
	s := newStick(f, 64<<10, "-F", "12", "-r", "16", "-s", "1")
	s.mkdir("e")
	s.put("e/50-B+3-0.conf", []byte("x"))
	b := s.bytes()
	f.Add(b, "60-B.conf")
	f.Fuzz(func(t *testing.T, b []byte, to string) {
		if len(b) > 1<<20 {
			return
		}
		d := crash.NewImage(int64(len(b)))
		d.WriteAt(b, 0)
		fsys, err := Open(d, d.Size())
		if err != nil {
			return
		}
		fsys.Rename("e", "50-B+3-0.conf", to)
	})
}
