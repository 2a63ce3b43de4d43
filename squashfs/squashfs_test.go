package squashfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// compressors are those that mksquashfs can make and this package reads.
var compressors = []string{"gzip", "xz", "lz4", "zstd"}

// mksquashfs makes an image of dir and returns its path.
func mksquashfs(t testing.TB, dir string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("mksquashfs"); err != nil {
		t.Skip("mksquashfs is not installed")
	}
	image := filepath.Join(t.TempDir(), "image.squashfs")
	args = append([]string{dir, image, "-noappend", "-no-progress", "-quiet"}, args...)
	if out, err := exec.Command("mksquashfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs %q: %v\n%s", args, err, out)
	}
	return image
}

// fast selects a compressor at a level that does not make the test wait.
func fast(comp string) []string {
	args := []string{"-comp", comp}
	if comp == "gzip" || comp == "zstd" {
		args = append(args, "-Xcompression-level", "3")
	}
	return args
}

// openImage opens the image at path.
func openImage(t testing.TB, path string) *FS {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(file, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// noise is incompressible, text compresses to about a third.
func noise(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func text(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	words := make([]string, 2000)
	for i := range words {
		words[i] = strconv.FormatUint(r.Uint64()>>(20+r.IntN(40)), 36)
	}
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(words[min(r.IntN(len(words)), r.IntN(len(words)))])
		b.WriteByte(' ')
	}
	return b.Bytes()[:n]
}

// write puts files into a new folder.
func write(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFiles(t *testing.T) {
	for _, comp := range compressors {
		for _, blockSize := range []int{4 << 10, 16 << 10, 128 << 10, 1 << 20} {
			for _, args := range [][]string{nil, {"-no-fragments", "-no-xattrs"}, {"-noI", "-noD", "-noF"}, {"-always-use-fragments", "-noI"}} {
				if blockSize == 1<<20 && args != nil {
					continue // slow to make, and no different
				}
				t.Run(fmt.Sprintf("%s/%d/%s", comp, blockSize, strings.Join(args, "")), func(t *testing.T) {
					sparse := make([]byte, 9*blockSize+5)
					copy(sparse[3*blockSize+17:], text(blockSize, 9))
					files := map[string][]byte{
						"empty":          {},
						"one":            {'x'},
						"block":          text(blockSize, 1),
						"blocks":         text(3*blockSize, 2),
						"tail":           text(5*blockSize+blockSize/3, 3),
						"noise":          noise(3*blockSize+100, 4),
						"mixed":          bytes.Join([][]byte{noise(blockSize, 5), text(2*blockSize, 6), make([]byte, blockSize), noise(99, 7)}, nil),
						"zeros":          make([]byte, 2*blockSize),
						"sparse":         sparse,
						"dir/in/side":    text(777, 8),
						"manifest.raucm": []byte("[update]\ncompatible=test\n"),
					}
					f := openImage(t, mksquashfs(t, write(t, files), append(append(fast(comp), "-b", strconv.Itoa(blockSize)), args...)...))
					if f.Compression() != comp || f.BlockSize() != blockSize {
						t.Errorf("image is %s with blocks of %d", f.Compression(), f.BlockSize())
					}
					for name, want := range files {
						checkFile(t, f, name, want)
					}
				})
			}
		}
	}
}

// checkFile reads name in every way there is.
func checkFile(t *testing.T, f *FS, name string, want []byte) {
	t.Helper()
	open := func() *File {
		file, err := f.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if file.Size() != int64(len(want)) {
			t.Fatalf("%s has %d bytes, want %d", name, file.Size(), len(want))
		}
		return file
	}
	check := func(how string, got []byte, n int64, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s %s: %v", how, name, err)
		}
		if n != int64(len(got)) || !bytes.Equal(got, want) {
			t.Fatalf("%s %s: %d bytes, said %d, want %d; or other content", how, name, len(got), n, len(want))
		}
	}
	var b bytes.Buffer
	n, err := open().WriteTo(&b)
	check("write out", b.Bytes(), n, err)

	// Only Read, in odd pieces.
	b.Reset()
	n, err = io.CopyBuffer(&b, struct{ io.Reader }{open()}, make([]byte, 1777))
	if len(want) < 1<<20 {
		check("read", b.Bytes(), n, err)
	}

	// Without the beginning.
	for _, skip := range []int64{0, 1, int64(f.BlockSize()), int64(len(want)) / 2, int64(len(want)), 1 << 40} {
		b.Reset()
		file := open()
		skipped, err := file.Skip(skip)
		if err != nil || skipped > min(skip, int64(len(want))) || min(skip, int64(len(want)))-skipped >= int64(f.BlockSize()) {
			t.Fatalf("skip %d of %s: %d, %v", skip, name, skipped, err)
		}
		b.Write(want[:skipped])
		n, err := file.WriteTo(&b)
		check("skip and write out", b.Bytes(), n+skipped, err)
	}

	// Read a little first.
	b.Reset()
	file := open()
	head := make([]byte, min(len(want), 100))
	if _, err := io.ReadFull(file, head); err != nil {
		t.Fatal(err)
	}
	b.Write(head)
	n, err = file.WriteTo(&b)
	check("read and write out", b.Bytes(), n+int64(len(head)), err)
	if n, err := file.WriteTo(&b); n != 0 || err != nil {
		t.Errorf("%s: second WriteTo: %d, %v", name, n, err)
	}
	if n, err := file.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%s: Read at the end: %d, %v", name, n, err)
	}
}

// TestReadDir lists every type of inode, with and without extended attributes.
func TestReadDir(t *testing.T) {
	dir := write(t, map[string][]byte{"a/file": text(5000, 1), "a/sub/x": nil, "grüße": {1}, "zz": text(70000, 1)})
	if err := os.Symlink("zz", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "zz"), 0o755|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-no-xattrs"}, {"-xattrs", "-comp", "zstd"}} {
		f := openImage(t, mksquashfs(t, dir, append(args,
			"-p", "block b 600 0 0 8 1", "-p", "char c 666 0 0 1 3", "-p", "fifo i 600 0 0 f", "-p", "sock i 600 0 0 s")...))
		for _, c := range []struct {
			name string
			want []Entry
		}{
			{"", []Entry{
				{"a", 0, 0o755, Directory},
				{"block", 0, 0o600, BlockDevice},
				{"char", 0, 0o666, CharDevice},
				{"fifo", 0, 0o600, FIFO},
				{"grüße", 1, 0o640, Regular},
				{"link", 2, 0o777, Symlink},
				{"sock", 0, 0o600, Socket},
				{"zz", 70000, 0o755 | fs.ModeSetuid, Regular},
			}},
			{"a", []Entry{{"file", 5000, 0o640, Regular}, {"sub", 0, 0o755, Directory}}},
			{"a/sub", []Entry{{"x", 0, 0o640, Regular}}},
		} {
			got, err := f.ReadDir(c.name)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%q: %s", c.name, diff)
			}
		}
		for _, name := range []string{"link", "block", "char", "fifo", "sock", "a", "", ".", "a/", "/a", "a//file", "a/../zz", "../zz", "zz/x", "nope", "a/nope", "z", strings.Repeat("a/", 100) + "x", strings.Repeat("x", 5000)} {
			if file, err := f.Open(name); err == nil || file != nil {
				t.Errorf("%q was opened", name)
			}
		}
		if _, err := f.Open("a/nope"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing file: %v", err)
		}
		if _, err := f.ReadDir("zz"); err == nil {
			t.Error("a file was listed")
		}
		if _, err := f.ReadDir("."); err != nil {
			t.Error(err)
		}
	}
}

// TestManyEntries lists a directory with an index, and refuses one with more
// entries than there may be.
func TestManyEntries(t *testing.T) {
	dir := t.TempDir()
	names := []string{}
	add := func(n int) {
		for len(names) < n {
			name := fmt.Sprintf("file-with-a-longer-name-%05d", len(names))
			names = append(names, name)
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(20000)
	f := openImage(t, mksquashfs(t, dir))
	list, err := f.ReadDir("")
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, e := range list {
		got = append(got, e.Name)
	}
	if diff := cmp.Diff(names, got); diff != "" {
		t.Error(diff)
	}
	if _, err := f.Open(names[19999]); err != nil {
		t.Error(err)
	}
	if testing.Short() {
		return
	}
	add(maxEntries)
	if list, err := openImage(t, mksquashfs(t, dir)).ReadDir(""); len(list) != maxEntries || err != nil {
		t.Errorf("%d entries, %v", len(list), err)
	}
	add(maxEntries + 1)
	if _, err := openImage(t, mksquashfs(t, dir)).ReadDir(""); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%d entries: %v", len(names), err)
	}
}

// TestLargeSparse writes out 3 GiB that take a few KiB on the medium, with
// offsets beyond 32 bits, and looks at the few bytes that are not zero.
func TestLargeSparse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sparse")
	const size = 3<<30 + 12345
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	marks := []int64{0, 1 << 31, size - 1}
	for i, at := range marks {
		if _, err := file.WriteAt([]byte{byte(i + 1)}, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	f := openImage(t, mksquashfs(t, dir, "-b", "1M", "-comp", "zstd", "-Xcompression-level", "1"))
	in, err := f.Open("sparse")
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	found := []int64{}
	zeros := make([]byte, 1<<20)
	n, err := in.WriteTo(writerFunc(func(p []byte) (int, error) {
		if !bytes.Equal(p, zeros[:len(p)]) {
			for i, b := range p {
				if b != 0 {
					found = append(found, at+int64(i))
				}
			}
		}
		at += int64(len(p))
		return len(p), nil
	}))
	if n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if diff := cmp.Diff(marks, found); diff != "" {
		t.Error(diff)
	}
}

// TestMemory proves the bounds on the buffers: live heap while a file is
// written out, and allocations that do not grow with the number of blocks.
func TestMemory(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	for _, c := range []struct {
		blockSize string
		limit     uint64
	}{{"128K", 6 << 20}, {"1M", 12 << 20}} {
		dir := write(t, map[string][]byte{"small": text(5<<20, 1), "large": text(20<<20, 1)})
		for _, comp := range compressors {
			if comp == "xz" && c.blockSize == "128K" {
				continue // like the others, and slow to make
			}
			f := openImage(t, mksquashfs(t, dir, append(fast(comp), "-b", c.blockSize)...))
			var peak uint64
			allocs := map[string]uint64{}
			for _, name := range []string{"small", "large"} {
				runtime.GC()
				var base, now runtime.MemStats
				runtime.ReadMemStats(&base)
				file, err := f.Open(name)
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				_, err = file.WriteTo(writerFunc(func(p []byte) (int, error) {
					if n++; n%16 == 0 {
						runtime.ReadMemStats(&now)
						peak = max(peak, now.HeapAlloc-min(base.HeapAlloc, now.HeapAlloc))
					}
					return len(p), nil
				}))
				if err != nil {
					t.Fatal(err)
				}
				runtime.ReadMemStats(&now)
				allocs[name] = now.TotalAlloc - base.TotalAlloc
			}
			t.Logf("%s, blocks of %s: heap %d KiB, allocated %d and %d KiB", comp, c.blockSize, peak>>10, allocs["small"]>>10, allocs["large"]>>10)
			if peak > c.limit {
				t.Errorf("%s, blocks of %s: heap of %d bytes", comp, c.blockSize, peak)
			}
			if allocs["large"] > allocs["small"]+512<<10 {
				t.Errorf("%s, blocks of %s: %d bytes allocated for 5 MiB, %d for 20 MiB", comp, c.blockSize, allocs["small"], allocs["large"])
			}
		}
	}
}
