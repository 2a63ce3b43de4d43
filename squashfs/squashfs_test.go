package squashfs

import (
	"bytes"
	"context"
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
	"time"

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
					f := openImage(t, mksquashfs(t, write(t, files), append([]string{"-comp", comp, "-b", strconv.Itoa(blockSize)}, args...)...))
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

var _ = []any{cmp.Diff, context.Background, errors.Is, fs.ErrNotExist, runtime.GC, time.Now}
