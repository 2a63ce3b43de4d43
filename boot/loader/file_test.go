package loader

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/dm"
)

// esp makes a FAT file system; files are put into it in their order, of n bytes each, and those of 0 bytes are taken out.
func esp(t testing.TB, clusters string, files ...any) *disk.Memory {
	t.Helper()
	image := filepath.Join(t.TempDir(), "esp")
	tool := func(name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	if _, err := exec.LookPath("mcopy"); err != nil {
		t.Skip("mtools are not installed: make setup")
	}
	if err := os.WriteFile(image, make([]byte, 5<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	tool("mkfs.fat", "-s", clusters, image)
	for i := 0; i < len(files); i += 2 {
		name, n := files[i].(string), files[i+1].(int)
		if n == 0 {
			tool("mdel", "-i", image, "::"+name)
			continue
		}
		content := filepath.Join(t.TempDir(), "content")
		if err := os.WriteFile(content, bytes.Repeat([]byte(name[:1]), n), 0o644); err != nil {
			t.Fatal(err)
		}
		tool("mcopy", "-i", image, content, "::"+name)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	m := disk.NewMemory(int64(len(b)))
	if _, err := m.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return m
}

// holes are files with every second one taken out again, so that what comes next lies in n+1 pieces.
func holes(n int) (files []any) {
	for i := range 2 * n {
		files = append(files, fmt.Sprintf("x%d", i), 4096)
	}
	for i := range n {
		files = append(files, fmt.Sprintf("x%d", 2*i), 0)
	}
	return files
}

func all(t testing.TB, d disk.Device) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// through is the bytes that a table of the device-mapper shows of a device, and how many of them lie where nothing else does.
func through(t testing.TB, b []byte, table []dm.Target) (out []byte) {
	t.Helper()
	seen := map[int]bool{}
	for _, w := range table {
		var on, at int
		if _, err := fmt.Sscanf(strings.Replace(w.Args, ":", " ", 1), "%d %d", &on, &at); err != nil || w.Type != "linear" || on != 7 {
			t.Fatalf("target %+v: %v", w, err)
		}
		if int(w.Start)*512 != len(out) || at%8 != 0 || w.Sectors%8 != 0 || w.Sectors == 0 || (at+int(w.Sectors))*512 > len(b) {
			t.Fatalf("target %+v behind %d bytes of %d", w, len(out), len(b))
		}
		for s := at; s < at+int(w.Sectors); s += 8 {
			if seen[s] {
				t.Fatalf("sector %d is there twice", s)
			}
			seen[s] = true
		}
		out = append(out, b[at*512:][:w.Sectors*512]...)
	}
	return out
}

// The device that a file becomes has the file's bytes, whatever pieces they lie in, and nothing else does.
func TestFileTable(t *testing.T) {
	for pieces := range 4 {
		files := append(holes(pieces), "A.EFI", 200<<10)
		d := esp(t, "8", files...)
		before := all(t, d)
		table, err := tableOf(d, "7 ", "/a.efi")
		if err != nil {
			t.Fatal(err)
		}
		if len(table) != pieces+1 {
			t.Errorf("%d pieces, not %d", len(table), pieces+1)
		}
		if got := through(t, before, table); !bytes.Equal(got, bytes.Repeat([]byte("A"), 200<<10)) {
			t.Errorf("%d pieces: the device has other bytes than the file", pieces)
		}
		f, err := FileIn(d, "A.EFI")
		if err != nil || f.Size() != sizeOf(table) {
			t.Fatalf("%v, %v", f, err)
		}
		fresh := make([]byte, f.Size())
		for i := range fresh {
			fresh[i] = byte(rand.Int())
		}
		if _, err := f.WriteAt(fresh, 0); err != nil {
			t.Fatal(err)
		}
		after := all(t, d)
		if got := through(t, after, table); !bytes.Equal(got, fresh) {
			t.Errorf("%d pieces: what was written to the file is not on its device", pieces)
		}
		kept := 0
		for i := range before {
			if before[i] == after[i] {
				kept++
			}
		}
		if changed := len(before) - kept; changed > len(fresh) {
			t.Errorf("%d bytes changed by writing %d", changed, len(fresh))
		}
	}
}

func TestFileTableRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		d    disk.Device
		file string
		want string
	}{
		{"not there", esp(t, "8"), "/A.EFI", "not exist"},
		{"another size", esp(t, "8", "A.EFI", 4097), "/A.EFI", "whole blocks"},
		{"small clusters", esp(t, "1", "B.EFI", 512, "A.EFI", 8192), "/A.EFI", "whole blocks"},
		{"too many pieces", esp(t, "8", append(holes(maxRuns), "A.EFI", 1<<20)...), "/A.EFI", "64 pieces"},
		{"no file system", disk.NewMemory(1 << 20), "/A.EFI", "no FAT"},
	} {
		if table, err := tableOf(c.d, "7 ", c.file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", c.name, table, err)
		}
	}
	if _, err := tableOf(esp(t, "8", append(holes(maxRuns-1), "A.EFI", 1<<20)...), "7 ", "/A.EFI"); err != nil {
		t.Errorf("as many pieces as may be: %v", err)
	}
	d := esp(t, "8", "A.EFI", 4096)
	b := all(t, d) // its size in the folder becomes 0
	i := bytes.Index(b, []byte("A       EFI"))
	clear(b[i+26 : i+32])
	if _, err := d.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := tableOf(d, "7 ", "/A.EFI"); err == nil {
		t.Error("an empty file has a device")
	}
}

// Whatever lies in the boot loader's partition, a device of a file is within it, and no part of it is there twice.
func FuzzFileTable(f *testing.F) {
	image := all(f, esp(f, "8", append(holes(3), "A.EFI", 64<<10)...))
	f.Add(0, []byte{})
	f.Add(bytes.Index(image, []byte("A       EFI"))+26, []byte{3, 0, 0xff, 0xff, 0xff, 0x7f})
	f.Add(512, []byte{0xf8, 0xff, 0xff, 3, 0x40, 0, 3, 0x40, 0})
	f.Add(11, []byte{0, 2, 1})
	f.Fuzz(func(t *testing.T, at int, change []byte) {
		b := bytes.Clone(image)
		if at < 0 || at > len(b) {
			return
		}
		copy(b[at:], change)
		d := disk.NewMemory(int64(len(b)))
		if _, err := d.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if table, err := tableOf(d, "7 ", "/A.EFI"); err == nil {
			through(t, b, table)
		}
	})
}
