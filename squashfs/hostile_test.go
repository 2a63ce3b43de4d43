package squashfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
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
)

// sampleFiles are what the images in testdata hold; TestSamples makes them
// again with SQUASHFS_UPDATE=1. Each image is a few KiB.
func sampleFiles() map[string][]byte {
	return map[string][]byte{
		"manifest.raucm": []byte("[update]\ncompatible=sample\nversion=1\n\n[image.rootfs]\nfilename=rootfs.img\n"),
		"rootfs.img":     bytes.Join([][]byte{text(9000, 1), make([]byte, 9000), noise(700, 2)}, nil),
		"empty":          {},
		"dir/a/b":        []byte("b"),
	}
}

// samples returns the images in testdata by name.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.squashfs")
	if err != nil || len(paths) < len(compressors) {
		t.Fatalf("%d sample images, %v", len(paths), err)
	}
	images := map[string][]byte{}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		images[filepath.Base(p)] = b
	}
	return images
}

// TestSamples reads images that came from mksquashfs 4.5.1 with
// -b 4096 -nopad -all-root -all-time 0.
func TestSamples(t *testing.T) {
	if os.Getenv("SQUASHFS_UPDATE") != "" {
		for _, comp := range compressors {
			image, err := os.ReadFile(mksquashfs(t, write(t, sampleFiles()), "-comp", comp, "-b", "4096", "-nopad", "-all-root", "-all-time", "0", "-mkfs-time", "0"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile("testdata/"+comp+".squashfs", image, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, image := range samples(t) {
		f, err := Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for file, want := range sampleFiles() {
			checkFile(t, f, file, want)
		}
	}
}

// maxRead is how much of a file the hostile tests read: a damaged size may
// promise any number of sparse blocks.
const maxRead = 4 << 20

var errEnough = errors.New("enough")

// limitWriter fails after n bytes.
type limitWriter struct{ n int }

func (w *limitWriter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		return 0, errEnough
	}
	return len(p), nil
}

// readAll opens everything in an image, to a depth and width, and returns the
// first error and the number of files that were read whole.
func readAll(image []byte) (files int, err error) {
	f, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return 0, err
	}
	keep := func(e error) {
		if err == nil && !errors.Is(e, errEnough) {
			err = e
		}
	}
	budget := 50
	var walk func(dir string, depth int)
	walk = func(dir string, depth int) {
		list, err := f.ReadDir(dir)
		keep(err)
		for _, e := range list {
			if budget--; budget < 0 {
				return
			}
			path := strings.TrimPrefix(dir+"/"+e.Name, "/")
			switch {
			case e.Type == Directory && depth < 4:
				walk(path, depth+1)
			case e.Type == Regular:
				file, err := f.Open(path)
				if err != nil {
					keep(err)
					continue
				}
				w := &limitWriter{maxRead}
				if n, err := file.WriteTo(w); err != nil {
					keep(err)
				} else if n != file.Size() {
					keep(fmt.Errorf("%s: %d bytes of %d", path, n, file.Size()))
				} else {
					files++
				}
				// The other way must come to the same end.
				file, err = f.Open(path)
				if err != nil {
					keep(err)
					continue
				}
				_, err = io.Copy(struct{ io.Writer }{&limitWriter{maxRead}}, struct{ io.Reader }{file})
				keep(err)
			}
		}
	}
	walk("", 0)
	return files, err
}

// checkError fails unless err is nil or says what is wrong with the image.
func checkError(t *testing.T, err error) {
	t.Helper()
	switch {
	case err == nil, errors.Is(err, ErrCorrupt), errors.Is(err, ErrUnsupported):
	case errors.Is(err, fs.ErrInvalid): // deeper or longer than paths may be
	default:
		t.Fatalf("error of no known kind: %v", err)
	}
}

// TestMutants damages real images in thousands of ways: each is refused or
// read, in bounded time and memory.
func TestMutants(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	accepted, refused := 0, 0
	for name, image := range samples(t) {
		for i := range 2500 {
			m := slices.Clone(image)
			switch i % 5 {
			case 0: // one bit
				m[r.IntN(len(m))] ^= 1 << r.IntN(8)
			case 1: // superblock
				m[r.IntN(superblockSize)] = byte(r.Uint32())
			case 2: // some bytes
				for range 1 + r.IntN(4) {
					m[r.IntN(len(m))] = []byte{0, 0xff, 0x7f, 0x80, byte(r.Uint32())}[r.IntN(5)]
				}
			case 3: // the tables at the end
				m[len(m)-1-r.IntN(min(400, len(m)))] ^= 1 << r.IntN(8)
			case 4: // cut
				m = m[:r.IntN(len(m))]
			}
			start := time.Now()
			_, err := readAll(m)
			checkError(t, err)
			if err == nil {
				accepted++
			} else {
				refused++
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Fatalf("%s, mutant %d: took %v", name, i, d)
			}
		}
	}
	t.Logf("%d mutants refused, %d read", refused, accepted)
	if refused < accepted {
		t.Errorf("%d mutants refused, %d read", refused, accepted)
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	if mem.HeapSys > 64<<20 {
		t.Errorf("heap grew to %d bytes", mem.HeapSys)
	}
}

// TestMutantTables damages the metadata of an image whose tables are stored
// uncompressed, so that every flip is a lie in an inode or a directory.
func TestMutantTables(t *testing.T) {
	image, err := os.ReadFile(mksquashfs(t, write(t, sampleFiles()), "-b", "4096", "-noI", "-nopad", "-no-xattrs"))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	start := int(binary.LittleEndian.Uint64(image[64:]))
	for range 10000 {
		m := slices.Clone(image)
		for range 1 + r.IntN(2) {
			at := start + r.IntN(len(m)-start)
			if r.IntN(2) == 0 {
				m[at] ^= 1 << r.IntN(8)
			} else {
				m[at] = []byte{0, 0xff, 0x7f, 0x80, byte(r.Uint32())}[r.IntN(5)]
			}
		}
		_, err := readAll(m)
		checkError(t, err)
	}
}

func FuzzOpen(f *testing.F) {
	for _, image := range samples(f) {
		f.Add(image)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		if len(image) > 1<<20 {
			return
		}
		_, err := readAll(image)
		checkError(t, err)
	})
}

// FuzzTables changes inodes, directories and fragment tables, which are stored uncompressed in what it starts from. The
// data of the image stays as it is.
func FuzzTables(f *testing.F) {
	image, err := os.ReadFile(mksquashfs(f, write(f, sampleFiles()), "-b", "4096", "-noI", "-nopad", "-no-xattrs", "-all-root", "-all-time", "0", "-mkfs-time", "0"))
	if err != nil {
		f.Fatal(err)
	}
	start := int(binary.LittleEndian.Uint64(image[64:]))
	f.Add(image[:superblockSize], image[start:])
	for _, at := range []int{start + 2, start + 16, int(binary.LittleEndian.Uint64(image[72:])) + 10} {
		f.Add(image[:superblockSize], edit(image, func(b []byte) { b[at] ^= 1 })[start:])
	}
	f.Fuzz(func(t *testing.T, super, tables []byte) {
		if len(super) != superblockSize || len(tables) > 1<<18 {
			return
		}
		_, err := readAll(slices.Concat(super, image[superblockSize:start], tables))
		checkError(t, err)
	})
}

// FuzzCodec checks the decoders that are written here: no byte of dst behind
// the result is needed, and none beyond its length is touched.
func FuzzCodec(f *testing.F) {
	for _, image := range samples(f) {
		for _, at := range []int{96, 104, 112} {
			f.Add(image[at:])
		}
	}
	var codecs []codec
	for _, id := range []uint16{compGzip, compXZ, compLZ4, compZstd} {
		c, err := newCodec(id)
		if err != nil {
			f.Fatal(err)
		}
		codecs = append(codecs, c)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, c := range codecs {
			dst := make([]byte, 8192+32)
			n, err := c.Decode(dst[:8192], src)
			if err == nil && n > 8192 {
				t.Fatalf("%T: %d bytes", c, n)
			}
			for i, b := range dst[8192+overAlloc:] {
				if b != 0 {
					t.Fatalf("%T wrote to byte %d", c, 8192+overAlloc+i)
				}
			}
		}
	})
}

// edit returns a copy of image with put applied.
func edit(image []byte, put func(b []byte)) []byte {
	b := slices.Clone(image)
	put(b)
	return b
}

func TestBadSuperblock(t *testing.T) {
	good := samples(t)["gzip.squashfs"]
	le := binary.LittleEndian
	for _, c := range []struct {
		name string
		put  func([]byte)
		want error
	}{
		{"magic", func(b []byte) { b[0] = 'x' }, ErrCorrupt},
		{"big endian", func(b []byte) { slices.Reverse(b[:4]) }, ErrCorrupt},
		{"version 3", func(b []byte) { le.PutUint16(b[28:], 3) }, ErrUnsupported},
		{"block size 0", func(b []byte) { le.PutUint32(b[12:], 0) }, ErrCorrupt},
		{"block size 2 KiB", func(b []byte) { le.PutUint32(b[12:], 2048); le.PutUint16(b[22:], 11) }, ErrCorrupt},
		{"block size 2 MiB", func(b []byte) { le.PutUint32(b[12:], 2<<20); le.PutUint16(b[22:], 21) }, ErrCorrupt},
		{"block size 5000", func(b []byte) { le.PutUint32(b[12:], 5000) }, ErrCorrupt},
		{"block log", func(b []byte) { le.PutUint16(b[22:], 13) }, ErrCorrupt},
		{"compressor 0", func(b []byte) { le.PutUint16(b[20:], 0) }, ErrCorrupt},
		{"compressor 7", func(b []byte) { le.PutUint16(b[20:], 7) }, ErrCorrupt},
		{"lzo", func(b []byte) { le.PutUint16(b[20:], compLZO) }, ErrUnsupported},
		{"bytes used", func(b []byte) { le.PutUint64(b[40:], uint64(len(b)+1)) }, ErrCorrupt},
		{"bytes used, huge", func(b []byte) { le.PutUint64(b[40:], 1<<63) }, ErrCorrupt},
		{"no inodes", func(b []byte) { le.PutUint32(b[4:], 0) }, ErrCorrupt},
		{"inodes", func(b []byte) { le.PutUint32(b[4:], 1<<31) }, ErrCorrupt},
		{"inode table", func(b []byte) { le.PutUint64(b[64:], 95) }, ErrCorrupt},
		{"inode table, huge", func(b []byte) { le.PutUint64(b[64:], 1<<63|100) }, ErrCorrupt},
		{"directory table", func(b []byte) { le.PutUint64(b[72:], le.Uint64(b[64:])) }, ErrCorrupt},
		{"directory table, end", func(b []byte) { le.PutUint64(b[72:], uint64(len(b))) }, ErrCorrupt},
		{"fragments", func(b []byte) { le.PutUint32(b[16:], 1<<32-1) }, ErrCorrupt},
		{"fragment table", func(b []byte) { le.PutUint64(b[80:], none) }, ErrCorrupt},
		{"fragment table, offset", func(b []byte) { le.PutUint64(b[80:], 1<<63) }, ErrCorrupt},
		{"ids", func(b []byte) { le.PutUint64(b[48:], 96) }, ErrCorrupt},
	} {
		b := edit(good, c.put)
		if _, err := Open(bytes.NewReader(b), int64(len(b))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for n := range len(good) {
		if _, err := Open(bytes.NewReader(good[:n]), int64(n)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d: %v", n, err)
		}
	}
	// The reader is shorter than the size given: an I/O error, not a verdict.
	if _, err := Open(bytes.NewReader(good[:50]), int64(len(good))); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrCorrupt) {
		t.Errorf("short reader: %v", err)
	}
	// A root reference that leads nowhere.
	for _, ref := range []uint64{1 << 16, 8191, 1 << 63, none} {
		b := edit(good, func(b []byte) { le.PutUint64(b[32:], ref) })
		f, err := Open(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			_, err = f.ReadDir("")
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("root at %#x: %v", ref, err)
		}
	}
}

// TestLies edits single fields of inodes and listings in an image with
// uncompressed tables. All of them are found before or while the file is read.
func TestLies(t *testing.T) {
	image, err := os.ReadFile(mksquashfs(t, write(t, map[string][]byte{"file": text(10000, 1)}), "-b", "4096", "-noI", "-nopad", "-no-xattrs", "-all-root", "-tailends"))
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	inodes := int(le.Uint64(image[64:])) + 2 // the file's inode comes first
	root := int(le.Uint64(image[64:])) + 2 + int(le.Uint64(image[32:])&0xffff)
	dir := int(le.Uint64(image[72:])) + 2
	if kind := le.Uint16(image[inodes:]); kind != 2 {
		t.Fatalf("inode of type %d where the file should be", kind)
	}
	for _, c := range []struct {
		name string
		put  func(b []byte)
	}{
		{"inode type", func(b []byte) { le.PutUint16(b[inodes:], 15) }},
		{"inode is a symbolic link", func(b []byte) { le.PutUint16(b[inodes:], 3) }},
		{"inode number", func(b []byte) { le.PutUint32(b[inodes+12:], 99) }},
		{"data in the superblock", func(b []byte) { le.PutUint32(b[inodes+16:], 95) }},
		{"data behind the tables", func(b []byte) { le.PutUint32(b[inodes+16:], 1<<31) }},
		{"data runs into the tables", func(b []byte) { le.PutUint32(b[inodes+16:], uint32(inodes-10)) }},
		{"fragment", func(b []byte) { le.PutUint32(b[inodes+20:], 1) }},
		{"fragment offset", func(b []byte) { le.PutUint32(b[inodes+24:], 1) }},
		{"fragment offset, huge", func(b []byte) { le.PutUint32(b[inodes+24:], 1<<32-1) }},
		{"size without tail", func(b []byte) { le.PutUint32(b[inodes+28:], 8192) }},
		{"size one more", func(b []byte) { le.PutUint32(b[inodes+28:], 10001) }},
		{"size one block more", func(b []byte) { le.PutUint32(b[inodes+28:], 10000+4096) }},
		{"size 4 GiB", func(b []byte) { le.PutUint32(b[inodes+28:], 1<<32-1) }},
		{"block of more than a block", func(b []byte) { le.PutUint32(b[inodes+32:], 4097) }},
		{"stored block of one byte", func(b []byte) { le.PutUint32(b[inodes+32:], 1|storedFlag) }},
		{"stored block of none", func(b []byte) { le.PutUint32(b[inodes+32:], storedFlag) }},
		{"unknown flag in a block size", func(b []byte) { b[inodes+35] |= 2 }},
		{"block one byte shorter", func(b []byte) { le.PutUint32(b[inodes+32:], le.Uint32(b[inodes+32:])-1) }},
		{"root is a file", func(b []byte) { le.PutUint64(b[32:], 0) }},
		{"listing of two bytes", func(b []byte) { le.PutUint16(b[root+24:], 2) }},
		{"listing ends in an entry", func(b []byte) { le.PutUint16(b[root+24:], 3+12+5) }},
		{"listing ends in a name", func(b []byte) { le.PutUint16(b[root+24:], 3+12+8+2) }},
		{"listing goes on", func(b []byte) { le.PutUint16(b[root+24:], 60000) }},
		{"listing elsewhere", func(b []byte) { le.PutUint32(b[root+16:], 1<<31) }},
		{"listing offset", func(b []byte) { le.PutUint16(b[root+26:], 8191) }},
		{"group of 2^32 entries", func(b []byte) { le.PutUint32(b[dir:], 1<<32-1) }},
		{"group of 257 entries", func(b []byte) { le.PutUint32(b[dir:], 256) }},
		{"inode elsewhere", func(b []byte) { le.PutUint32(b[dir+4:], 1<<31) }},
		{"inode offset", func(b []byte) { le.PutUint16(b[dir+12:], 8191) }},
		{"entry type", func(b []byte) { le.PutUint16(b[dir+16:], 1) }},
		{"entry type 0", func(b []byte) { le.PutUint16(b[dir+16:], 0) }},
		{"entry type 9", func(b []byte) { le.PutUint16(b[dir+16:], 9) }},
		{"name of 64 KiB", func(b []byte) { le.PutUint16(b[dir+18:], 65535) }},
		{"slash in a name", func(b []byte) { b[dir+21] = '/' }},
		{"NUL in a name", func(b []byte) { b[dir+21] = 0 }},
		{"metadata block of 0", func(b []byte) { le.PutUint16(b[inodes-2:], 0x8000) }},
		{"metadata block of 8193", func(b []byte) { le.PutUint16(b[inodes-2:], 0x8000|8193) }},
		{"metadata block over the table's end", func(b []byte) { le.PutUint16(b[inodes-2:], le.Uint16(b[inodes-2:])+1) }},
		{"metadata block is said to be compressed", func(b []byte) { b[inodes-1] &= 0x7f }},
	} {
		if _, err := readAll(edit(image, c.put)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if n, err := readAll(image); n != 1 || err != nil {
		t.Errorf("the image itself: %d files, %v", n, err)
	}
}

// TestBombs (rows 87 to 89, of which 88 is xz) feeds the decoders blocks that promise more than there is room
// for: each must fail without taking memory for it.
func TestBombs(t *testing.T) {
	xz := func(args ...string) []byte {
		if _, err := exec.LookPath("xz"); err != nil {
			t.Skip("xz is not installed")
		}
		cmd := exec.Command("xz", append([]string{"-c", "--check=crc32"}, args...)...)
		cmd.Stdin = bytes.NewReader(make([]byte, 3<<20))
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	zeros := lz4Zeros(1 << 20)
	for _, c := range []struct {
		name string
		id   uint16
		src  []byte
		want error
	}{
		{"lz4 of 1 MiB into 8 KiB", compLZ4, zeros, errTooLong},
		{"xz of 3 MiB into 8 KiB", compXZ, xz("--lzma2=preset=0,dict=64KiB"), errTooLong},
		{"xz with a dictionary of 1.5 GiB", compXZ, xz("--lzma2=preset=0,dict=1536MiB"), ErrUnsupported},
		{"xz with BCJ", compXZ, xz("--x86", "--lzma2=preset=0,dict=64KiB"), ErrUnsupported},
		{"zstd with a window of 2 GiB", compZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x43, 0, 0x10, 'x'}, ErrUnsupported},
		{"zstd with 2^60 bytes of content", compZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x10, 3, 0, 8, 'x'}, nil},
		{"zstd of 128 KiB into 8 KiB", compZstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 10 << 3, 3, 0, 16, 'x'}, nil},
	} {
		d, err := newCodec(c.id)
		if err != nil {
			t.Fatal(err)
		}
		dst := make([]byte, 8192+overAlloc)
		d.Decode(dst[:8192], c.src) // what is kept for later does not count
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n, err := d.Decode(dst[:8192], c.src)
		runtime.ReadMemStats(&after)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %d bytes, %v", c.name, n, err)
		}
		// A zstd block of at most 128 KiB is unpacked before it is found to
		// be too long.
		if used := after.TotalAlloc - before.TotalAlloc; used > 256<<10 {
			t.Errorf("%s: %d bytes allocated", c.name, used)
		}
	}
}

// lz4Zeros is an LZ4 block of n zeros: a literal, a long match, a literal.
func lz4Zeros(n int) []byte {
	b := []byte{0x1f, 0, 1, 0}
	left := n - 2 - 4 - 15
	for ; left >= 255; left -= 255 {
		b = append(b, 255)
	}
	return append(b, byte(left), 0x10, 0)
}

func TestLZ4(t *testing.T) {
	dst := make([]byte, 5000)
	if n, err := (lz4Codec{}).Decode(dst, lz4Zeros(5000)); n != 5000 || err != nil {
		t.Errorf("5000 zeros: %d, %v", n, err)
	}
	for name, src := range map[string]string{
		"nothing":                 "",
		"literals missing":        "\x20a",
		"length missing":          "\xf0",
		"length of 255 for ever":  "\xf0" + strings.Repeat("\xff", 9000),
		"offset missing":          "\x10a\x01",
		"offset 0":                "\x10a\x00\x00\x10a",
		"offset before the start": "\x10a\x02\x00\x10a",
		"no literals at the end":  "\x10a\x01\x00",
	} {
		if n, err := (lz4Codec{}).Decode(dst, []byte(src)); err == nil {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
}

// blockingReader answers from r until it is told to hold back.
type blockingReader struct {
	r    io.ReaderAt
	from int64
	gate chan struct{}
	err  error
}

func (b *blockingReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= b.from && b.gate != nil {
		<-b.gate
	}
	if off >= b.from && b.err != nil {
		return 0, b.err
	}
	return b.r.ReadAt(p, off)
}

// TestEnds stops a WriteTo in every way; no goroutine is left, and the file
// gives no more data after it.
func TestEnds(t *testing.T) {
	image, err := os.ReadFile(mksquashfs(t, write(t, map[string][]byte{"file": noise(1<<20, 1)}), "-b", "4096", "-noI"))
	if err != nil {
		t.Fatal(err)
	}
	inodes := int64(binary.LittleEndian.Uint64(image[64:]))
	broken := errors.New("broken")
	before := runtime.NumGoroutine()

	open := func(r io.ReaderAt) *File {
		f, err := Open(r, int64(len(image)))
		if err != nil {
			t.Fatal(err)
		}
		file, err := f.Open("file")
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	check := func(how string, file *File, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", how, err)
		}
		if n, err := file.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
			t.Errorf("%s: Read afterwards: %d, %v", how, n, err)
		}
		if n, err := file.WriteTo(io.Discard); n != 0 || !errors.Is(err, want) {
			t.Errorf("%s: WriteTo afterwards: %d, %v", how, n, err)
		}
		if n := runtime.NumGoroutine(); n > before {
			t.Errorf("%s: %d goroutines, %d before", how, n, before)
		}
	}

	file := open(bytes.NewReader(image))
	n, err := file.WriteTo(&limitWriter{100_000})
	check("writer fails", file, err, errEnough)
	if n != 100_000/4096*4096 {
		t.Errorf("writer fails: %d bytes written", n)
	}

	ctx, cancel := context.WithCancel(context.Background())
	file = open(bytes.NewReader(image))
	_, err = file.WriteToContext(ctx, writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }))
	check("cancelled while writing", file, err, context.Canceled)

	// Cancelled while the reads hang: the call waits for those reads only.
	ctx, cancel = context.WithCancel(context.Background())
	r := &blockingReader{r: bytes.NewReader(image), from: inodes}
	file = open(r)
	r.from, r.gate = superblockSize, make(chan struct{})
	done := make(chan error)
	go func() {
		_, err := file.WriteToContext(ctx, io.Discard)
		done <- err
	}()
	cancel()
	close(r.gate)
	check("cancelled while reading", file, <-done, context.Canceled)

	r = &blockingReader{r: bytes.NewReader(image), from: inodes}
	file = open(r)
	r.from, r.err = inodes/2, broken
	var got bytes.Buffer
	_, err = file.WriteTo(&got)
	if r.err = nil; got.Len() == 0 || !bytes.HasPrefix(noise(1<<20, 1), got.Bytes()) {
		t.Errorf("%d bytes before the bad block", got.Len())
	}
	check("reader fails", file, err, broken)
	if errors.Is(err, ErrCorrupt) {
		t.Errorf("an I/O error is taken for a damaged image: %v", err)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
