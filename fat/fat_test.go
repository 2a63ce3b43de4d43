package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/disk"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/google/go-cmp/cmp"

	"lifeboat/badinputs"
)

// stick is a FAT image made by mkfs.fat and filled by mtools.
type stick struct {
	t    testing.TB
	path string
}

func (s stick) run(name string, args ...string) {
	s.t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			s.t.Skipf("no %s: %v", name, err)
		}
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func newStick(t testing.TB, size int64, mkfs ...string) stick {
	t.Helper()
	s := stick{t, filepath.Join(t.TempDir(), "stick")}
	if err := os.WriteFile(s.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.path, size); err != nil {
		t.Fatal(err)
	}
	s.run("mkfs.fat", append(mkfs, "-I", s.path)...)
	return s
}

func (s stick) put(name string, b []byte) {
	s.t.Helper()
	from := filepath.Join(s.t.TempDir(), "file")
	if err := os.WriteFile(from, b, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.run("mcopy", "-i", s.path, from, "::"+name)
}

func (s stick) mkdir(name string)  { s.t.Helper(); s.run("mmd", "-i", s.path, "::"+name) }
func (s stick) remove(name string) { s.t.Helper(); s.run("mdel", "-i", s.path, "::"+name) }

func (s stick) bytes() []byte {
	s.t.Helper()
	b, err := os.ReadFile(s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s stick) open() *FS {
	s.t.Helper()
	f, err := os.Open(s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		s.t.Fatal(err)
	}
	fsys, err := Open(f, st.Size())
	if err != nil {
		s.t.Fatal(err)
	}
	return fsys
}

func open(t testing.TB, b []byte) *FS {
	t.Helper()
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func read(f *FS, name string) ([]byte, error) {
	file, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(file, 0, file.Size()))
}

func TestReadsWhatOthersWrite(t *testing.T) {
	for _, c := range []struct {
		name string
		size int64
		mkfs []string
		bits int
	}{
		{"FAT12", 1 << 20, []string{"-F", "12"}, 12},
		{"FAT12 of odd clusters", 2 << 20, []string{"-F", "12", "-s", "1"}, 12},
		{"FAT16", 16 << 20, []string{"-F", "16"}, 16},
		{"FAT32", 64 << 20, []string{"-F", "32"}, 32},
		{"FAT32, clusters of one sector", 34 << 20, []string{"-F", "32", "-s", "1"}, 32},
		{"FAT32, one table", 64 << 20, []string{"-F", "32", "-f", "1"}, 32},
		{"FAT32, sectors of 4096", 512 << 20, []string{"-F", "32", "-S", "4096"}, 32},
		{"FAT32, clusters of 32 KiB", 2200 << 20, []string{"-F", "32", "-s", "64"}, 32},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStick(t, c.size, append(c.mkfs, "-n", "STICK")...)
			files := map[string][]byte{
				"update.raucb": noise(1, 200_001),
				"README.TXT":   []byte("hello"),
				"lower.txt":    []byte("case bits"),
				"empty":        nil,
				"a rather long name, with blanks and ümläuts 日本語.raucb": noise(2, 65_536),
				strings.Repeat("x", 130): []byte("longest"),
			}
			for name, b := range files {
				s.put("/"+name, b)
			}
			s.mkdir("/Updates")
			s.put("/Updates/v2.raucb", noise(3, 3333))
			s.put("/gone.raucb", noise(4, 100))
			s.remove("/gone.raucb")

			f := s.open()
			if f.bits != c.bits {
				t.Fatalf("FAT%d", f.bits)
			}
			entries, err := f.ReadDir("/")
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"Updates/ 0"}
			for name, b := range files {
				want = append(want, fmt.Sprintf("%s %d", name, len(b)))
			}
			var got []string
			for _, e := range entries {
				if e.Dir {
					e.Name += "/"
				}
				got = append(got, fmt.Sprintf("%s %d", e.Name, e.Size))
			}
			slices.Sort(want)
			slices.Sort(got)
			if d := cmp.Diff(want, got); d != "" {
				t.Fatal(d)
			}
			files["/UPDATES/V2.RAUCB"] = noise(3, 3333)
			files["updates//v2.raucb"] = noise(3, 3333)
			files["A RATHER LONG NAME, WITH BLANKS AND ÜMLÄUTS 日本語.raucb"] = noise(2, 65_536)
			for name, want := range files {
				got, err := read(f, name)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			for _, name := range []string{"gone.raucb", "STICK", "updates/v3", "update.raucb/x", "Updates/..", "updates/../README.TXT", ".", "a/b/c/d/e/f/g/h/i"} {
				if _, err := f.Open(name); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("open %s: %v", name, err)
				}
			}
			if _, err := f.Open("updates"); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("open a folder: %v", err)
			}
			if _, err := f.ReadDir("README.TXT"); err == nil {
				t.Error("a file was listed")
			}
			in, err := f.ReadDir("updates")
			if err != nil || len(in) != 1 || in[0].Name != "v2.raucb" {
				t.Errorf("updates: %v, %v", in, err)
			}
		})
	}
}

func TestReadsGoDiskfs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stick")
	d, err := diskfs.Create(path, 64<<20, diskfs.SectorSizeDefault)
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := d.CreateFilesystem(disk.FilesystemSpec{FSType: filesystem.TypeFat32})
	if err != nil {
		t.Fatal(err)
	}
	if err := fsys.Mkdir("/updates"); err != nil {
		t.Fatal(err)
	}
	w, err := fsys.OpenFile("/updates/a long name.raucb", os.O_CREATE|os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	want := noise(5, 1<<20+1)
	if _, err := w.Write(want); err != nil {
		t.Fatal(err)
	}
	w.Close()
	d.Close()
	got, err := read(stick{t, path}.open(), "updates/a long name.raucb")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// fragmented fills a stick with small files, removes every other and copies a file into the gaps.
func fragmented(t testing.TB) (stick, []byte) {
	t.Helper()
	s := newStick(t, 8<<20, "-F", "16", "-s", "1")
	dir := t.TempDir()
	var fill, drop []string
	for i := range 400 {
		name := filepath.Join(dir, fmt.Sprintf("f%03d", i))
		if err := os.WriteFile(name, noise(byte(i), 1000+i), 0o600); err != nil {
			t.Fatal(err)
		}
		fill = append(fill, name)
		if i%2 == 0 {
			drop = append(drop, "::"+filepath.Base(name))
		}
	}
	s.run("mcopy", append(append([]string{"-i", s.path}, fill...), "::")...)
	s.run("mdel", append([]string{"-i", s.path}, drop...)...)
	want := noise(7, 180_000)
	s.put("big", want)
	return s, want
}

func TestFragmentedFile(t *testing.T) {
	s, want := fragmented(t)
	f := s.open()
	file, err := f.Open("big")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pieces", len(file.extents))
	if len(file.extents) < 50 {
		t.Fatalf("only %d pieces: the test makes no fragments", len(file.extents))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, len(want)+100)
	for range 5000 {
		off, n := rng.IntN(len(want)+50), rng.IntN(4000)
		if rng.IntN(50) == 0 {
			n = rng.IntN(len(buf))
		}
		got, err := file.ReadAt(buf[:n], int64(off))
		rest := want[min(off, len(want)):]
		rest = rest[:min(n, len(rest))]
		if got != len(rest) || !bytes.Equal(buf[:got], rest) || (err == io.EOF) != (got < n || off >= len(want)) || err != nil && err != io.EOF {
			t.Fatalf("read %d at %d: %d, %v", n, off, got, err)
		}
	}
	if _, err := file.ReadAt(buf, -1); err == nil || err == io.EOF {
		t.Errorf("read at -1: %v", err)
	}
}

// TestWritesInPlace: only the bytes of the file change, wherever they lie, and nothing beyond its end.
func TestWritesInPlace(t *testing.T) {
	s, want := fragmented(t)
	clean := s.bytes()
	medium, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer medium.Close()
	f, err := Open(medium, int64(len(clean)))
	if err != nil {
		t.Fatal(err)
	}
	file, err := f.Open("BIG")
	if err != nil {
		t.Fatal(err)
	}
	owned := map[int64]bool{} // sectors of the file
	for i := range int64(len(want)) {
		file.pieces(1, i, func(_, _ int, at int64) bool { owned[at] = true; return true })
	}
	if len(owned) != len(want) {
		t.Fatalf("%d bytes in %d places", len(want), len(owned))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		off := rng.IntN(len(want))
		p := noise(byte(i), rng.IntN(min(9000, len(want)-off)+1))
		n, err := file.WriteAt(p, int64(off))
		if n != len(p) || err != nil {
			t.Fatalf("write %d at %d: %d, %v", len(p), off, n, err)
		}
		copy(want[off:], p)
	}
	for _, c := range [][2]int{{0, len(want) + 1}, {len(want), 1}, {len(want) - 1, 2}, {-1, 1}, {len(want) + 1, 0}} {
		if n, err := file.WriteAt(make([]byte, c[1]), int64(c[0])); n != 0 || !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("write %d at %d of %d: %d, %v", c[1], c[0], len(want), n, err)
		}
	}
	if got, err := read(s.open(), "big"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read again: %d bytes, %v", len(got), err)
	}
	after := s.bytes()
	for i := range after {
		if after[i] != clean[i] && !owned[int64(i)] {
			t.Fatalf("byte %d of the medium is not the file's and has changed", i)
		}
	}
	s.run("fsck.fat", "-n", s.path)

	for name, medium := range map[string]io.ReaderAt{"no writer": bytes.NewReader(clean), "broken": brokenWriter{bytes.NewReader(clean)}} {
		f, err := Open(medium, int64(len(clean)))
		if err != nil {
			t.Fatal(err)
		}
		file, err := f.Open("big")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := file.WriteAt([]byte("x"), 0); n != 0 || err == nil || (name == "broken") != errors.Is(err, errMedium) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

type brokenWriter struct{ io.ReaderAt }

func (brokenWriter) WriteAt([]byte, int64) (int, error) { return 0, errMedium }

// sparse is a reader of zeros with some bytes set, for file systems that are too large to make.
type sparse struct {
	size int64
	head []byte // from 0
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	if off < int64(len(s.head)) {
		copy(p[:n], s.head[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// large is a FAT32 of clusters of 4 KiB with one file BIG of size bytes, whose clusters follow each other as next says.
func large(clusters uint32, size uint32, first uint32, next func(i, at uint32) uint32) (sparse, int64) {
	const sector, per, reserved = 512, 8, 32
	le := binary.LittleEndian
	tableSectors := (clusters + 2 + 127) / 128
	data := int64(reserved+tableSectors) * sector
	total := uint32(reserved) + tableSectors + clusters*per
	head := make([]byte, data+4096)
	copy(head, "\xeb\x58\x90")
	le.PutUint16(head[11:], sector)
	head[13] = per
	le.PutUint16(head[14:], reserved)
	head[16] = 1
	head[21] = 0xf8
	le.PutUint32(head[32:], total)
	le.PutUint32(head[36:], tableSectors)
	le.PutUint32(head[44:], 2)
	head[510], head[511] = 0x55, 0xaa
	table := head[reserved*sector:]
	le.PutUint32(table[8:], 0x0fffffff)
	at := first
	for i := uint32(1); i < (size+4095)/4096; i++ {
		to := next(i, at)
		le.PutUint32(table[4*at:], to)
		at = to
	}
	if le.Uint32(table[4*at:]) == 0 { // it may lead back into itself
		le.PutUint32(table[4*at:], 0x0fffffff)
	}
	e := head[data:]
	copy(e, "BIG        ")
	le.PutUint16(e[20:], uint16(first>>16))
	le.PutUint16(e[26:], uint16(first))
	le.PutUint32(e[28:], size)
	total64 := int64(total) * sector
	return sparse{total64, head}, total64
}

// A file of 1 GiB of which no cluster follows the one before, forwards and backwards.
func TestLargeFragmentedFileIsFast(t *testing.T) {
	const n = 1 << 18
	for name, c := range map[string]struct {
		first uint32
		next  func(i, at uint32) uint32
	}{
		"every other cluster": {3, func(_, at uint32) uint32 { return at + 2 }},
		"backwards":           {n + 10, func(_, at uint32) uint32 { return at - 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			r, size := large(2*n+10, 1<<30, c.first, c.next)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			start := time.Now()
			f, err := Open(r, size)
			if err != nil {
				t.Fatal(err)
			}
			file, err := f.Open("big")
			if err != nil {
				t.Fatal(err)
			}
			opened := time.Since(start)
			runtime.GC()
			runtime.ReadMemStats(&after)
			start = time.Now()
			if n, err := io.Copy(io.Discard, io.NewSectionReader(file, 0, file.Size())); n != 1<<30 || err != nil {
				t.Fatalf("%d bytes, %v", n, err)
			}
			t.Logf("%d pieces, opened in %v, read in %v, %d KiB live", len(file.extents), opened, time.Since(start), (after.HeapAlloc-before.HeapAlloc)>>10)
			if opened > 2*time.Second || time.Since(start) > 20*time.Second {
				t.Error("too slow")
			}
			if after.HeapAlloc > before.HeapAlloc+8<<20 {
				t.Error("too much memory")
			}
		})
	}
}

func TestHostileChainOfLargeFile(t *testing.T) {
	for name, c := range map[string]struct {
		clusters, size uint32
		next           func(i, at uint32) uint32
	}{
		"loop of one":                         {1 << 16, 1 << 27, func(_, at uint32) uint32 { return at }},
		"loop over a part":                    {1 << 16, 1 << 27, func(i, _ uint32) uint32 { return 3 + i%1000 }},
		"loop back at the last cluster":       {1 << 16, 4096 * 10, func(i, _ uint32) uint32 { return []uint32{0, 4, 5, 6, 7, 8, 9, 10, 11, 5}[i] }},
		"larger than the file system":         {1 << 16, 1<<32 - 1, func(i, _ uint32) uint32 { return min(3+i, 1<<16) }},
		"more pieces than anybody would have": {1 << 20, 1 << 31, func(i, at uint32) uint32 { return 3 + 2*i%(1<<20-2) }},
	} {
		t.Run(name, func(t *testing.T) {
			r, size := large(c.clusters, c.size, 3, c.next)
			f, err := Open(r, size)
			if err != nil {
				t.Fatal(err)
			}
			var meter badinputs.Meter
			meter.Run(t, func() { _, err = f.Open("big") })
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("opened: %v", err)
			}
			t.Logf("figure: hostile chain, %s: %v: %v", name, &meter, err)
		})
	}
}

// small is a FAT32 of a few files that hostile cases and mutants start from.
func small(t testing.TB) []byte {
	t.Helper()
	s := newStick(t, 34<<20, "-F", "32", "-s", "1", "-i", "12345678")
	s.put("update with a long name.raucb", noise(1, 20_000))
	s.put("README.TXT", []byte("hello"))
	s.mkdir("updates")
	s.put("updates/v2.raucb", noise(2, 3000))
	return shrink(s)
}

// shrink leaves of a FAT32 with clusters of one sector the first 126: mtools does not write to
// one so small, and each mutant of a larger one would take longer.
func shrink(s stick) []byte {
	const tableSectors = 1
	b := s.bytes()
	l := layoutOf(b)
	b = slices.Concat(b[:l.table], b[l.table:][:512*tableSectors], b[l.data:][:512*126])
	b[16] = 1
	clear(b[19:21])
	binary.LittleEndian.PutUint32(b[32:], uint32(len(b)/512))
	binary.LittleEndian.PutUint32(b[36:], tableSectors)
	return b
}

// layout of small, from its boot sector.
type layout struct {
	b            []byte
	table, data  int
	tables, size int // number of tables, bytes of one
}

func layoutOf(b []byte) layout {
	le := binary.LittleEndian
	l := layout{b: b, table: int(le.Uint16(b[14:])) * 512, tables: int(b[16]), size: int(le.Uint32(b[36:])) * 512}
	l.data = l.table + l.tables*l.size
	return l
}

func (l layout) link(cluster, to uint32) {
	for i := range l.tables {
		binary.LittleEndian.PutUint32(l.b[l.table+i*l.size+4*int(cluster):], to)
	}
}

func (l layout) cluster(n uint32) []byte { return l.b[l.data+512*int(n-2):][:512] }

// entry finds the short entry in the root directory.
func (l layout) entry(t testing.TB, short string) []byte {
	t.Helper()
	for c := uint32(2); ; {
		for b := l.cluster(c); len(b) > 0; b = b[32:] {
			if string(b[:11]) == short {
				return b[:32]
			}
		}
		if c = binary.LittleEndian.Uint32(l.b[l.table+4*int(c):]); c >= 0x0ffffff8 {
			t.Fatalf("no entry %q", short)
		}
	}
}

func first(e []byte) uint32 {
	return uint32(binary.LittleEndian.Uint16(e[20:]))<<16 | uint32(binary.LittleEndian.Uint16(e[26:]))
}

func setFirst(e []byte, c uint32) {
	binary.LittleEndian.PutUint16(e[20:], uint16(c>>16))
	binary.LittleEndian.PutUint16(e[26:], uint16(c))
}

const (
	shortUpdate  = "UPDATE~1RAU"
	shortReadme  = "README  TXT"
	shortUpdates = "UPDATES    "
)

// Hostile sticks, numbered as the rows of the list of bad inputs that every release must refuse.
func TestHostileSticks(t *testing.T) {
	le := binary.LittleEndian
	clean := small(t)
	var meter badinputs.Meter
	const file = "update with a long name.raucb"
	if got, err := read(open(t, clean), file); err != nil || !bytes.Equal(got, noise(1, 20_000)) {
		t.Fatalf("the stick before it is made hostile: %d bytes, %v", len(got), err)
	}
	for _, c := range []struct {
		name string
		edit func(t *testing.T, b []byte, l layout)
		use  func(f *FS) error // nil: Open refuses
	}{
		{"93 root directory in a loop", func(t *testing.T, b []byte, l layout) {
			l.link(2, 2)
			fill(l.cluster(2)) // else its end is seen before the loop
		}, list("/")},
		{"93 root directory in a wide loop", func(t *testing.T, b []byte, l layout) {
			l.link(2, 100)
			l.link(100, 101)
			l.link(101, 2)
			fill(l.cluster(2))
		}, list("/")},
		{"94 file in a loop", func(t *testing.T, b []byte, l layout) { c := first(l.entry(t, shortUpdate)); l.link(c+5, c) }, get(file)},
		{"94 file that follows itself", func(t *testing.T, b []byte, l layout) { c := first(l.entry(t, shortUpdate)); l.link(c, c) }, get(file)},
		{"95 tables of no sectors", func(t *testing.T, b []byte, l layout) { le.PutUint32(b[36:], 0) }, nil},
		{"96 tables of 2^23 sectors", func(t *testing.T, b []byte, l layout) { le.PutUint32(b[36:], 0x7fffff) }, nil},
		{"96 tables of 2^32 sectors", func(t *testing.T, b []byte, l layout) { le.PutUint32(b[36:], 1<<32-1) }, nil},
		{"97 file of 4 GiB", func(t *testing.T, b []byte, l layout) { le.PutUint32(l.entry(t, shortUpdate)[28:], 1<<32-1) }, get(file)},
		{"97 file larger than its chain", func(t *testing.T, b []byte, l layout) { le.PutUint32(l.entry(t, shortUpdate)[28:], 20_481) }, get(file)},
		{"98 chain to a cluster beyond the end", func(t *testing.T, b []byte, l layout) { l.link(first(l.entry(t, shortUpdate)), 0x0ffffff0) }, get(file)},
		{"98 chain to cluster 0", func(t *testing.T, b []byte, l layout) { l.link(first(l.entry(t, shortUpdate)), 0) }, get(file)},
		{"98 chain to cluster 1", func(t *testing.T, b []byte, l layout) { l.link(first(l.entry(t, shortUpdate)), 1) }, get(file)},
		{"98 chain to a bad cluster", func(t *testing.T, b []byte, l layout) { l.link(first(l.entry(t, shortUpdate)), 0x0ffffff7) }, get(file)},
		{"98 file beyond the end", func(t *testing.T, b []byte, l layout) { setFirst(l.entry(t, shortUpdate), 1<<28-1) }, get(file)},
		{"98 file in cluster 0", func(t *testing.T, b []byte, l layout) { setFirst(l.entry(t, shortUpdate), 0) }, get(file)},
		{"98 file in cluster 1", func(t *testing.T, b []byte, l layout) { setFirst(l.entry(t, shortUpdate), 1) }, get(file)},
		{"98 folder beyond the end", func(t *testing.T, b []byte, l layout) { setFirst(l.entry(t, shortUpdates), 1<<20) }, list("updates")},
		{"98 root beyond the end", func(t *testing.T, b []byte, l layout) { le.PutUint32(b[44:], 1<<20) }, nil},
		{"98 root in cluster 0", func(t *testing.T, b []byte, l layout) { le.PutUint32(b[44:], 0) }, nil},
		{"98 root in cluster 2^32-1", func(t *testing.T, b []byte, l layout) { le.PutUint32(b[44:], 1<<32-1) }, nil},
		{"99 sectors of 0 bytes", func(t *testing.T, b []byte, l layout) { le.PutUint16(b[11:], 0) }, nil},
		{"99 sectors of 32768 bytes", func(t *testing.T, b []byte, l layout) { le.PutUint16(b[11:], 32768) }, nil},
		{"99 sectors of 513 bytes", func(t *testing.T, b []byte, l layout) { le.PutUint16(b[11:], 513) }, nil},
		{"99 clusters of 0 sectors", func(t *testing.T, b []byte, l layout) { b[13] = 0 }, nil},
		{"99 clusters of 3 sectors", func(t *testing.T, b []byte, l layout) { b[13] = 3 }, nil},
		{"99 no reserved sectors", func(t *testing.T, b []byte, l layout) { le.PutUint16(b[14:], 0) }, nil},
		{"99 65535 reserved sectors", func(t *testing.T, b []byte, l layout) { le.PutUint16(b[14:], 65535) }, nil},
		{"99 no tables", func(t *testing.T, b []byte, l layout) { b[16] = 0 }, nil},
		{"99 255 tables", func(t *testing.T, b []byte, l layout) { b[16] = 255 }, nil},
		{"99 table 15 in use", func(t *testing.T, b []byte, l layout) { le.PutUint16(b[40:], 0x8f) }, nil},
		{"99 no sectors", func(t *testing.T, b []byte, l layout) { clear(b[19:21]); clear(b[32:36]) }, nil},
		{"99 more sectors than there are", func(t *testing.T, b []byte, l layout) { clear(b[19:21]); le.PutUint32(b[32:], 1<<32-1) }, nil},
		{"99 one sector too many", func(t *testing.T, b []byte, l layout) { clear(b[19:21]); le.PutUint32(b[32:], uint32(len(b)/512+1)) }, nil},
		{"99 no room for a cluster", func(t *testing.T, b []byte, l layout) { clear(b[19:21]); le.PutUint32(b[32:], uint32(l.data/512)) }, nil},
		{"99 root entries in FAT32", func(t *testing.T, b []byte, l layout) { le.PutUint16(b[17:], 512) }, nil},
		{"99 version 1", func(t *testing.T, b []byte, l layout) { b[42] = 1 }, nil},
		{"100 folder that is the root", func(t *testing.T, b []byte, l layout) { setFirst(l.entry(t, shortUpdates), 2) }, missing("updates/updates/updates/README.TXT")},
		{"100 folder in cluster 0", func(t *testing.T, b []byte, l layout) { setFirst(l.entry(t, shortUpdates), 0) }, missing("updates/README.TXT")},
		{"111 folder instead of a bundle", func(t *testing.T, b []byte, l layout) { l.entry(t, shortUpdate)[11] |= attrDir }, isFolder(file)},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(clean)
			c.edit(t, b, layoutOf(b))
			if bytes.Equal(b, clean) {
				t.Fatal("nothing was changed")
			}
			meter.Run(t, func() {
				f, err := Open(bytes.NewReader(b), int64(len(b)))
				if c.use != nil {
					if err != nil {
						t.Fatal(err)
					}
					err = c.use(f)
				}
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
	t.Logf("figure: hostile sticks: %v", &meter)
}

func fill(dir []byte) {
	for ; len(dir) > 0; dir = dir[32:] {
		copy(dir, "FILE    TXT\x20")
	}
}

func list(path string) func(*FS) error {
	return func(f *FS) error { _, err := f.ReadDir(path); return err }
}

func get(path string) func(*FS) error {
	return func(f *FS) error { _, err := read(f, path); return err }
}

// missing and isFolder turn the answer that they want into the one that the table wants.
func missing(path string) func(*FS) error {
	return func(f *FS) error {
		if _, err := f.Open(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("open %s: %v", path, err)
		}
		return ErrDamaged
	}
}

func isFolder(path string) func(*FS) error {
	return func(f *FS) error {
		if _, err := f.Open(path); err == nil || !strings.Contains(err.Error(), "is a folder") {
			return fmt.Errorf("open %s: %v", path, err)
		}
		return ErrDamaged
	}
}

func TestNotFAT(t *testing.T) {
	clean := small(t)
	for name, b := range map[string][]byte{
		"nothing": nil, "short": clean[:511], "zeros": make([]byte, 4096), "ones": bytes.Repeat([]byte{0xff}, 4096),
		"no signature": func() []byte { b := bytes.Clone(clean); b[510] = 0; return b }(),
		"exFAT":        func() []byte { b := bytes.Clone(clean); clear(b[11:64]); copy(b[3:], "EXFAT   "); return b }(),
	} {
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrNotFAT) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Row 101: the limit is on what is returned, not on what is found.
func TestManyFiles(t *testing.T) {
	s := newStick(t, 64<<20, "-F", "32", "-s", "1")
	b := s.bytes()
	l := layoutOf(b)
	const n = 10_000
	perCluster := 512 / 32
	for i := range n {
		c := uint32(2 + i/perCluster)
		e := l.cluster(c)[32*(i%perCluster):]
		copy(e, fmt.Sprintf("F%07dTXT\x20", i))
		l.link(c, c+1)
	}
	end := uint32(2 + n/perCluster)
	l.link(end-1, 0x0fffffff)
	f := open(t, b)
	var meter badinputs.Meter
	var entries []Entry
	var err error
	meter.Run(t, func() { entries, err = f.ReadDir("") })
	if !errors.Is(err, ErrTooMany) || len(entries) != maxListed || entries[0].Name != "F0000000.TXT" {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	seen := 0
	if err := f.Each("", func(Entry) error { seen++; return nil }); err != nil || seen != n {
		t.Errorf("each: %d entries, %v", seen, err)
	}
	if _, err := f.Open("f0009999.txt"); err != nil {
		t.Error(err)
	}
	stop := errors.New("stop")
	if err := f.Each("", func(Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
	// A directory without end: a chain over the whole medium.
	for c := uint32(2); c < 100_000; c++ {
		fill(l.cluster(c))
		l.link(c, c+1)
	}
	endless := open(t, b)
	meter.Run(t, func() { _, err = endless.ReadDir("") })
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("a directory of 50 MB: %v", err)
	}
	t.Logf("figure: large folders: %v", &meter)
}

// long makes the entries of a long name, last part first, and the short entry.
func long(name []uint16, short string, edit func(parts [][]byte)) []byte {
	var sum byte
	for _, c := range []byte(short) {
		sum = sum>>1 | sum<<7
		sum += c
	}
	n := (len(name) + 12) / 13
	units := append(slices.Clone(name), 0)
	for len(units) < 13*n {
		units = append(units, 0xffff)
	}
	var parts [][]byte
	for no := n; no > 0; no-- {
		p := make([]byte, 32)
		p[0], p[11], p[13] = byte(no), attrLong, sum
		if no == n {
			p[0] |= 0x40
		}
		for i, u := range units[13*(no-1):][:13] {
			binary.LittleEndian.PutUint16(p[[]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}[i]:], u)
		}
		parts = append(parts, p)
	}
	last := make([]byte, 32)
	copy(last, short)
	last[11] = 0x20
	parts = append(parts, last)
	if edit != nil {
		edit(parts)
	}
	return bytes.Join(parts, nil)
}

func units(s string) []uint16 {
	var u []uint16
	for _, c := range s {
		u = append(u, uint16(c))
	}
	return u
}

// Row 102. want "" means that the entry is passed over.
func TestNames(t *testing.T) {
	clean := shrink(newStick(t, 34<<20, "-F", "32", "-s", "1"))
	const short = "SHORT~1 TXT"
	name := units("a name of more than thirteen")
	for _, c := range []struct {
		name    string
		entries []byte
		want    string
	}{
		{"whole", long(name, short, nil), "a name of more than thirteen"},
		{"wrong checksum", long(name, short, func(p [][]byte) {
			for _, e := range p {
				e[13]++
			}
		}), "SHORT~1.TXT"},
		{"one part of another name", long(name, short, func(p [][]byte) { p[1][13]++ }), "SHORT~1.TXT"},
		{"a part deleted", long(name, short, func(p [][]byte) { p[1][0] = 0xe5 }), "SHORT~1.TXT"},
		{"parts in the wrong order", long(name, short, func(p [][]byte) { p[1], p[2] = p[2], p[1] }), "SHORT~1.TXT"},
		{"part 0", long(name, short, func(p [][]byte) { p[2][0] = 0 | 0x40 }), "SHORT~1.TXT"},
		{"part 63", long(name, short, func(p [][]byte) { p[0][0] = 0x7f }), "SHORT~1.TXT"},
		{"first part missing", long(name, short, func(p [][]byte) { p[2][0] = 0xe5 }), "SHORT~1.TXT"},
		{"two ends", long(name, short, func(p [][]byte) { p[1][0] |= 0x40 }), "a name of more than thirteen"[:26]},
		{"deleted", long(name, short, func(p [][]byte) { p[3][0] = 0xe5 }), ""},
		{"slash", long(units("../../etc/passwd"), short, nil), ""},
		{"backslash", long(units(`..\evil`), short, nil), ""},
		{"escape", long(units("evil\x1b[2J"), short, nil), ""},
		{"newline", long(units("a\nlifeboat: installed"), short, nil), ""},
		{"C1 control", long([]uint16{'a', 0x9b}, short, nil), ""},
		{"right to left", long([]uint16{'a', 0x202e, 'b'}, short, nil), ""},
		{"half a surrogate", long([]uint16{'a', 0xd800}, short, nil), ""},
		{"dots", long(units(".."), short, nil), ""},
		{"dot", long(units("."), short, nil), ""},
		{"empty", long([]uint16{0, 'x'}, short, nil), ""},
		{"surrogates", long([]uint16{0xd834, 0xdd1e}, short, nil), "𝄞"},
		{"255 units", long(units(strings.Repeat("x", 255)), short, nil), strings.Repeat("x", 255)},
		{"256 units", long(units(strings.Repeat("x", 256)), short, nil), ""},
		{"hidden", long(units(".hidden"), short, nil), ".hidden"},
		{"blanks and Japanese", long([]uint16{0x65e5, 0x3000, 0x672c}, short, nil), "日　本"},
		{"short with slash", long(nil, "A/B     TXT", nil), ""},
		{"short of blanks", long(nil, "        TXT", nil), ""},
		{"short with control", long(nil, "A\x01B     TXT", nil), ""},
		{"short, first 0x05", long(nil, "\x05BC     TXT", nil), "_BC.TXT"},
		{"short of a code page", long(nil, "\x9aBER    TXT", nil), "_BER.TXT"},
		{"dot entry", long(nil, ".          ", nil), ""},
		{"dotdot entry", long(nil, "..         ", nil), ""},
		{"label", long(nil, "LABEL      ", func(p [][]byte) { p[0][11] = attrVolume }), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(clean)
			l := layoutOf(b)
			all := append(c.entries, long(nil, "AFTER      ", nil)...)
			for at := uint32(2); len(all) > 0; at++ {
				clear(l.cluster(at))
				n := copy(l.cluster(at), all)
				if all = all[n:]; len(all) > 0 {
					l.link(at, at+1)
				} else {
					l.link(at, 0x0fffffff)
				}
			}
			entries, err := open(t, b).ReadDir("")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range entries {
				got = append(got, e.Name)
			}
			want := []string{"AFTER"}
			if c.want != "" {
				want = []string{c.want, "AFTER"}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

var errMedium = errors.New("medium error")

type failing struct {
	io.ReaderAt
	from, to int64
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off < f.to && off+int64(len(p)) > f.from {
		return 0, errMedium
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestMediumErrors(t *testing.T) {
	b := small(t)
	l := layoutOf(b)
	for _, c := range [][2]int{{0, 1}, {l.table, l.table + 1}, {l.data, l.data + 1}, {l.data + 512*3, len(b)}} {
		f, err := Open(failing{bytes.NewReader(b), int64(c[0]), int64(c[1])}, int64(len(b)))
		if err == nil {
			_, err = read(f, "update with a long name.raucb")
		}
		if !errors.Is(err, errMedium) || errors.Is(err, ErrDamaged) {
			t.Errorf("unreadable from %d: %v", c[0], err)
		}
	}
}

// walk does all that a scanner of sticks does and a little more, and checks what must hold for any bytes.
func walk(b []byte) error {
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil
	}
	buf := make([]byte, 4096)
	for _, dir := range []string{"", "updates", "updates/updates"} {
		entries, err := f.ReadDir(dir)
		if len(entries) > maxListed || errors.Is(err, ErrTooMany) && len(entries) != maxListed {
			return fmt.Errorf("%q: %d entries and %v", dir, len(entries), err)
		}
		for i, e := range entries {
			if !utf8.ValidString(e.Name) || !honest(e.Name) || e.Size < 0 || !f.ex && e.Size > 1<<32-1 {
				return fmt.Errorf("entry %+v", e)
			}
			if i >= 16 || e.Dir {
				continue
			}
			file, err := f.Open(dir + "/" + e.Name)
			if err != nil {
				continue
			}
			if file.Size() > int64(len(b)) {
				return fmt.Errorf("%s: %d bytes on %d", e.Name, file.Size(), len(b))
			}
			for _, off := range []int64{0, file.Size() - 8, file.Size() / 2, file.Size()} {
				n, err := file.ReadAt(buf, max(off, 0))
				if err != nil && err != io.EOF || int64(n) > file.Size() {
					return fmt.Errorf("%s at %d: %d, %v", e.Name, off, n, err)
				}
			}
		}
	}
	return nil
}

var mutants = flag.Int("mutants", 90_000, "file systems that TestMutants damages and walks")

// victim is a file system that mutants are made of, and where it says something about itself.
type victim struct {
	clean []byte
	fs    *FS
	boot  []int // offsets of the fields of the boot sector
	dirs  []int // offsets of entries
	near  []int // offsets of all bytes that describe something
}

func victimOf(t *testing.T, clean []byte) *victim {
	t.Helper()
	v := &victim{clean: clean, fs: open(t, clean), boot: []int{11, 13, 14, 16, 17, 19, 21, 22, 32, 36, 40, 42, 44, 48, 510}}
	span := func(from, n int64) {
		for i := range n {
			v.near = append(v.near, int(from+i))
		}
	}
	span(0, 96)
	span(v.fs.table, min(512, int64(v.fs.clusters+2)*int64(v.fs.bits)/8))
	folder := func(dir Entry) {
		at, size := v.fs.rootAt, min(v.fs.rootSize, 1024)
		if dir.first != 0 || v.fs.bits == 32 {
			at, size = v.fs.data+int64(max(dir.first, 2)-2)*v.fs.cluster, 512
		}
		span(at, size)
		for i := int64(0); i < size; i += 32 {
			if clean[at+i] != 0 {
				v.dirs = append(v.dirs, int(at+i))
			}
		}
	}
	folder(Entry{})
	updates, err := v.fs.find("updates")
	if err != nil {
		t.Fatal(err)
	}
	folder(updates)
	return v
}

// mutate changes b, which is clean, at one place.
func (v *victim) mutate(rng *rand.Rand, b []byte) (at, n int) {
	le := binary.LittleEndian
	number := func(clean uint32) uint32 {
		return []uint32{0, 1, 2, clean - 1, clean + 1, clean << 1, clean ^ 1<<rng.IntN(32), 1 << rng.IntN(32), 1<<15 - 1, 1<<16 - 1, 1<<31 - 1, 1<<32 - 1, rng.Uint32()}[rng.IntN(13)]
	}
	cluster := func() uint32 {
		c := v.fs.clusters
		return []uint32{0, 1, 2, 3, c, c + 1, c + 2, c + 3, 0x0ffffff6, 0x0ffffff7, 0x0ffffff8, 0x0fffffff, 0xff6, 0xff7, 0xfff, 0xfff7, 0xffff, rng.Uint32N(c + 2), rng.Uint32N(16)}[rng.IntN(19)]
	}
	switch rng.IntN(5) {
	case 0: // a field of the boot sector (95, 96, 99)
		at = v.boot[rng.IntN(len(v.boot))]
		n = 4
		le.PutUint32(b[at:], number(le.Uint32(b[at:])))
		if at < 32 && rng.IntN(2) == 0 { // only the field
			copy(b[at+2:at+4], v.clean[at+2:at+4])
		}
	case 1: // a link of a chain (93, 94, 98)
		from := 2 + rng.Uint32N(min(v.fs.clusters, 100))
		at, n = int(v.fs.table)+int(from)*v.fs.bits/8, 4
		to := cluster()
		switch v.fs.bits {
		case 32:
			le.PutUint32(b[at:], to)
		case 16:
			le.PutUint16(b[at:], uint16(to))
		default:
			old := le.Uint16(b[at:])
			if from&1 == 1 {
				le.PutUint16(b[at:], old&0xf|uint16(to)<<4)
			} else {
				le.PutUint16(b[at:], old&0xf000|uint16(to)&0xfff)
			}
		}
	case 2: // where a file or folder begins, how long it is, what it is (94, 97, 98, 100)
		at, n = v.dirs[rng.IntN(len(v.dirs))], 32
		e := b[at:][:32]
		switch rng.IntN(4) {
		case 0:
			setFirst(e, cluster())
		case 1:
			le.PutUint32(e[28:], number(le.Uint32(e[28:])))
		case 2:
			e[11] ^= 1 << rng.IntN(8)
		case 3:
			e[11] = []byte{attrDir, attrLong, attrVolume, 0x20, 0}[rng.IntN(5)]
		}
	case 3: // a name (102)
		at, n = v.dirs[rng.IntN(len(v.dirs))], 32
		e := b[at:][:32]
		e[[]int{0, rng.IntN(11), 13, rng.IntN(32)}[rng.IntN(4)]] = []byte{0, 1, 5, 0x2e, 0x2f, 0x20, 0x40, 0x41, 0x7f, 0xe5, 0xff, byte(rng.Uint32())}[rng.IntN(12)]
	default: // anything
		at, n = v.near[rng.IntN(len(v.near))], 1
		b[at] = []byte{0, 1, 2, 0x10, 0x7f, 0x80, 0xe5, 0xff, byte(rng.Uint32()), b[at] ^ 1<<rng.IntN(8)}[rng.IntN(10)]
	}
	return at, n
}

// TestMutants damages file systems of every kind where they describe themselves, field by field and at random, and walks
// them as a scanner does: no panic, no loop, and bounds of time and memory.
func TestMutants(t *testing.T) {
	s12 := newStick(t, 256<<10, "-F", "12", "-r", "16", "-s", "1")
	s16 := newStick(t, 2200<<10, "-F", "16", "-r", "32", "-s", "1")
	for _, s := range []stick{s12, s16} {
		s.put("update with a long name.raucb", noise(1, 20_000))
		s.put("README.TXT", []byte("hello"))
		s.mkdir("updates")
		s.put("updates/v2.raucb", noise(2, 3000))
	}
	for _, c := range []struct {
		name  string
		clean []byte
	}{{"FAT12", s12.bytes()}, {"FAT16", s16.bytes()}, {"FAT32", small(t)}} {
		t.Run(c.name, func(t *testing.T) {
			v := victimOf(t, c.clean)
			if name := fmt.Sprintf("FAT%d", v.fs.bits); name != c.name {
				t.Fatalf("this is a %s", name)
			}
			rng := rand.New(rand.NewPCG(5, 6))
			var meter badinputs.Meter
			opened := 0
			b := bytes.Clone(v.clean)
			for i := range *mutants / 3 {
				var undo [][2]int
				for range 1 + rng.IntN(4) {
					at, n := v.mutate(rng, b)
					undo = append(undo, [2]int{at, n})
				}
				var err error
				meter.Run(t, func() { err = walk(b) })
				if err != nil {
					t.Fatalf("mutant %d: %v", i, err)
				}
				if _, err := Open(bytes.NewReader(b), int64(len(b))); err == nil {
					opened++
				}
				for _, u := range undo {
					copy(b[u[0]:u[0]+u[1]], v.clean[u[0]:])
				}
			}
			t.Logf("figure: %s mutants: %v; %d of them could be opened", c.name, &meter, opened)
			if opened < meter.Runs/4 || opened == meter.Runs {
				t.Error("the mutants do not test what they should")
			}
		})
	}
}

func FuzzFAT(f *testing.F) {
	b := small(f)
	f.Add(b)
	for _, sectors := range []int{1, 64} {
		f.Add(b[:512*sectors])
	}
	tiny := newStick(f, 64<<10, "-F", "12", "-r", "16", "-s", "1")
	tiny.put("update.raucb", noise(1, 3000))
	f.Add(tiny.bytes())
	small16, total := large(20, 20_000, 3, func(_, at uint32) uint32 { return at + 2 })
	f.Add(append(small16.head, make([]byte, int(total)-len(small16.head))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		if err := walk(b); err != nil {
			t.Error(err)
		}
	})
}
