package verity

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
)

// medium is data followed by its tree.
type medium struct{ b []byte }

func (m *medium) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }

func (m *medium) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return 0, errors.New("write outside the medium")
	}
	return copy(m.b[off:], p), nil
}

var salt = bytes.Repeat([]byte{0xa5, 0x17}, 16)

// build makes random data of n blocks and its tree.
func build(t testing.TB, n int64, salt []byte) (*medium, Hash) {
	t.Helper()
	m := &medium{make([]byte, (n+TreeBlocks(n))*BlockSize)}
	rand.NewChaCha8([32]byte{byte(n)}).Read(m.b[:n*BlockSize])
	b := NewBuilder(m, n*BlockSize, n, salt)
	if _, err := b.Write(m.b[:n*BlockSize]); err != nil {
		t.Fatal(err)
	}
	root, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return m, root
}

func TestTreeBlocks(t *testing.T) {
	for n, want := range map[int64]int64{
		-1: 0, 0: 0, 1: 0, 2: 1, 128: 1, 129: 3, 256: 3, 128 * 128: 129, 128*128 + 1: 129 + 1 + 2,
		MaxDataBlocks: 1<<25 + 1<<18 + 1<<11 + 1<<4 + 1, MaxDataBlocks + 1: 0, 1<<63 - 1: 0,
	} {
		if got := TreeBlocks(n); got != want {
			t.Errorf("TreeBlocks(%d) = %d, want %d", n, got, want)
		}
	}
}

// TestVeritysetup compares root hash and every byte of the tree with
// cryptsetup's veritysetup.
func TestVeritysetup(t *testing.T) {
	tool, err := exec.LookPath("veritysetup")
	if err != nil {
		t.Skip("veritysetup (package cryptsetup-bin) is not installed")
	}
	for _, n := range []int64{2, 3, 127, 128, 129, 255, 256, 257, 1000, 128*128 - 1, 128 * 128, 128*128 + 1} {
		for _, salt := range [][]byte{salt, nil, bytes.Repeat([]byte{7}, MaxSalt)} {
			if n > 1000 && len(salt) != 32 {
				continue
			}
			m, root := build(t, n, salt)
			path := filepath.Join(t.TempDir(), "data")
			if err := os.WriteFile(path, m.b[:n*BlockSize], 0o600); err != nil {
				t.Fatal(err)
			}
			saltArg := hex.EncodeToString(salt)
			if len(salt) == 0 {
				saltArg = "-"
			}
			out, err := exec.Command(tool, "format", "--no-superblock", "--hash=sha256",
				fmt.Sprintf("--hash-offset=%d", n*BlockSize), fmt.Sprintf("--data-blocks=%d", n),
				"--salt="+saltArg, path, path).CombinedOutput()
			if err != nil {
				t.Fatalf("veritysetup: %v\n%s", err, out)
			}
			match := regexp.MustCompile(`Root hash:\s+([0-9a-f]{64})`).FindSubmatch(out)
			if match == nil || string(match[1]) != hex.EncodeToString(root[:]) {
				t.Errorf("%d blocks, salt of %d: root hash %x, veritysetup says\n%s", n, len(salt), root, out)
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, m.b) {
				t.Errorf("%d blocks, salt of %d: tree differs from veritysetup's", n, len(salt))
			}
		}
	}
}

// TestBuilderPieces: how the data is cut into Writes changes nothing.
func TestBuilderPieces(t *testing.T) {
	const n = 700
	m, root := build(t, n, salt)
	for _, size := range []int{511, 4096, 10000, 128 << 10, 1<<20 - 1, 1 << 20, 1<<20 + 1} {
		got := &medium{slices.Clone(m.b)}
		clear(got.b[n*BlockSize:])
		b := NewBuilder(got, n*BlockSize, n, salt)
		for piece := range slices.Chunk(m.b[:n*BlockSize], size) {
			if k, err := b.Write(piece); k != len(piece) || err != nil {
				t.Fatalf("Write of %d: %d, %v", len(piece), k, err)
			}
		}
		if r, err := b.Finish(); r != root || err != nil || !bytes.Equal(got.b, m.b) {
			t.Errorf("pieces of %d: root %x, %v", size, r, err)
		}
		if _, err := b.Finish(); err == nil {
			t.Error("finished twice")
		}
	}
}

type failing struct{ err error }

func (f failing) WriteAt([]byte, int64) (int, error)    { return 0, f.err }
func (f failing) ReadAt(p []byte, _ int64) (int, error) { return 0, f.err }

func TestBuilderErrors(t *testing.T) {
	errWrite := errors.New("medium is gone")
	for _, c := range []struct {
		name    string
		w       io.WriterAt
		blocks  int64
		salt    []byte
		written int
		want    error
	}{
		{"too little", &medium{make([]byte, 1<<20)}, 5, salt, 4 * BlockSize, io.ErrUnexpectedEOF},
		{"inside a block", &medium{make([]byte, 1<<20)}, 5, salt, 4*BlockSize + 1, io.ErrUnexpectedEOF},
		{"nothing", &medium{make([]byte, 1<<20)}, 5, salt, 0, io.ErrUnexpectedEOF},
		{"too much", &medium{make([]byte, 1<<20)}, 5, salt, 6 * BlockSize, nil},
		{"write error", failing{errWrite}, 5, salt, 5 * BlockSize, errWrite},
		{"no blocks", &medium{}, 0, salt, 0, nil},
		{"negative", &medium{}, -4, salt, 1, nil},
		{"too many", &medium{}, MaxDataBlocks + 1, salt, 1, nil},
		{"long salt", &medium{}, 5, make([]byte, MaxSalt+1), 1, nil},
	} {
		b := NewBuilder(c.w, 0, c.blocks, c.salt)
		b.Write(make([]byte, c.written))
		_, err := b.Finish()
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if _, err := b.Write([]byte{1}); err == nil {
			t.Errorf("%s: still takes data", c.name)
		}
	}
}

func TestReader(t *testing.T) {
	for _, n := range []int64{1, 2, 129, 700, 128*128 + 5} {
		m, root := build(t, n, salt)
		r := NewReader(m, n, n*BlockSize, salt, root)
		if r.Size() != n*BlockSize {
			t.Errorf("%d blocks: size %d", n, r.Size())
		}
		if n < 3 { // it reads byte by byte
			if err := iotest.TestReader(io.NewSectionReader(r, 0, r.Size()), m.b[:r.Size()]); err != nil {
				t.Errorf("%d blocks: %v", n, err)
			}
		}
		random := rand.New(rand.NewPCG(uint64(n), 1))
		for range 200 {
			off := random.Int64N(r.Size())
			p := make([]byte, random.IntN(20000))
			k, err := r.ReadAt(p, off)
			want := m.b[off:min(off+int64(len(p)), r.Size())]
			if !bytes.Equal(p[:k], want) || (k < len(p)) != (err == io.EOF) {
				t.Fatalf("%d blocks: ReadAt(%d bytes, %d) = %d, %v", n, len(p), off, k, err)
			}
		}
		if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("read at -1")
		}
		if k, err := r.ReadAt(make([]byte, 1), r.Size()); k != 0 || err != io.EOF {
			t.Errorf("read at the end: %d, %v", k, err)
		}
	}
}

// TestFlips: a changed bit anywhere in data or tree, padding included, is
// found by Check and by reading, and no wrong byte is handed out.
func TestFlips(t *testing.T) {
	const n = 128*2 + 3
	m, root := build(t, n, salt)
	random := rand.New(rand.NewPCG(3, 4))
	offsets := []int{0, n*BlockSize - 1, n * BlockSize, len(m.b) - 1}
	for range 150 {
		offsets = append(offsets, random.IntN(len(m.b)))
	}
	for _, at := range offsets {
		bad := &medium{slices.Clone(m.b)}
		bad.b[at] ^= 1 << random.IntN(8)
		var corrupt ErrCorrupt
		err := Check(t.Context(), bad, n, n*BlockSize, salt, root, nil)
		if !errors.As(err, &corrupt) {
			t.Errorf("byte %d: Check says %v", at, err)
		} else if at < n*BlockSize && corrupt.Block != int64(at/BlockSize) {
			t.Errorf("byte %d, in block %d: Check says %v", at, at/BlockSize, corrupt)
		}

		r := NewReader(bad, n, n*BlockSize, salt, root)
		p := make([]byte, r.Size())
		k, err := r.ReadAt(p, 0)
		if !errors.As(err, &corrupt) {
			t.Errorf("byte %d: ReadAt says %v", at, err)
		}
		if !bytes.Equal(p[:k], m.b[:k]) || !bytes.Equal(p[k:], make([]byte, len(p)-k)) {
			t.Errorf("byte %d: ReadAt hands out unauthenticated bytes", at)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, n := range []int64{1, 2, 256, 257, 700} {
		m, root := build(t, n, salt)
		var last int64
		err := Check(t.Context(), m, n, n*BlockSize, salt, root, func(done int64) {
			if done <= last {
				t.Errorf("progress goes from %d to %d", last, done)
			}
			last = done
		})
		if err != nil || last != n*BlockSize {
			t.Errorf("%d blocks: %v, progress ends at %d", n, err, last)
		}
		var corrupt ErrCorrupt
		if err := Check(t.Context(), m, n, n*BlockSize, salt, Hash{1}, nil); !errors.As(err, &corrupt) {
			t.Errorf("%d blocks, wrong root: %v", n, err)
		}
		if err := Check(t.Context(), m, n, n*BlockSize, salt[1:], root, nil); !errors.As(err, &corrupt) {
			t.Errorf("%d blocks, wrong salt: %v", n, err)
		}
		short := &medium{m.b[:len(m.b)-1]}
		if err := Check(t.Context(), short, n, n*BlockSize, salt, root, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d blocks, cut off: %v", n, err)
		}
	}
	errRead := errors.New("medium is gone")
	if err := Check(t.Context(), failing{errRead}, 9, 0, salt, Hash{}, nil); !errors.Is(err, errRead) {
		t.Errorf("read error: %v", err)
	}
	m, root := build(t, 2000, salt)
	ctx, cancel := context.WithCancel(t.Context())
	err := Check(ctx, m, 2000, 2000*BlockSize, salt, root, func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// counter counts reads of the tree.
type counter struct {
	*medium
	treeAt int64
	tree   atomic.Int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	if off >= c.treeAt {
		c.tree.Add(1)
	}
	return c.medium.ReadAt(p, off)
}

// TestReaderCache: reading from start to end reads each hash block about once.
func TestReaderCache(t *testing.T) {
	const n = 128*128 + 5
	m, root := build(t, n, salt)
	c := &counter{medium: m, treeAt: n * BlockSize}
	r := NewReader(c, n, n*BlockSize, salt, root)
	if _, err := io.CopyBuffer(io.Discard, io.NewSectionReader(r, 0, r.Size()), make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if got, limit := c.tree.Load(), TreeBlocks(n)+4; got > limit {
		t.Errorf("%d reads of hash blocks, want at most %d", got, limit)
	}
}

func TestReaderConcurrent(t *testing.T) {
	const n = 128*128 + 5
	m, root := build(t, n, salt)
	r := NewReader(m, n, n*BlockSize, salt, root)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			p := make([]byte, 30000)
			for range 60 {
				off := random.Int64N(r.Size() - int64(len(p)))
				if _, err := r.ReadAt(p, off); err != nil || !bytes.Equal(p, m.b[off:off+int64(len(p))]) {
					t.Errorf("read at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzVerityReader reads a medium that the fuzzer has changed. Whatever is
// handed out must be the original.
func FuzzVerityReader(f *testing.F) {
	const n = 131
	m, root := build(f, n, salt)
	f.Add(int64(0), uint32(0), byte(1), uint16(4096), int64(n), int64(n*BlockSize))
	f.Add(int64(5000), uint32(n*BlockSize+40), byte(0x80), uint16(9000), int64(n), int64(n*BlockSize))
	f.Add(int64(-1), uint32(1), byte(0), uint16(1), int64(1)<<40, int64(-1))
	f.Add(int64(n*BlockSize-10), uint32(1), byte(0), uint16(60000), int64(n+1), int64(1)<<61)
	f.Fuzz(func(t *testing.T, off int64, at uint32, flip byte, size uint16, blocks, hashStart int64) {
		bad := &medium{slices.Clone(m.b)}
		bad.b[int(at)%len(bad.b)] ^= flip
		r := NewReader(bad, blocks, hashStart, salt, root)
		p := make([]byte, size)
		k, err := r.ReadAt(p, off)
		if k < 0 || k > len(p) || k < len(p) && err == nil {
			t.Fatalf("ReadAt = %d, %v", k, err)
		}
		if k > 0 && !bytes.Equal(p[:k], m.b[off:off+int64(k)]) {
			t.Fatal("other bytes than the root hash stands for")
		}
	})
}

func BenchmarkBuilder(b *testing.B) {
	for _, size := range []int{128 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("writes of %d KiB", size>>10), func(b *testing.B) {
			const n = 64 << 20 / BlockSize
			data := make([]byte, n*BlockSize)
			tree := &medium{make([]byte, TreeBlocks(n)*BlockSize)}
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				t := NewBuilder(tree, 0, n, salt)
				for p := range slices.Chunk(data, size) {
					if _, err := t.Write(p); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := t.Finish(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	const n = 64 << 20 / BlockSize
	m, root := build(b, n, salt)
	b.SetBytes(n * BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		if err := Check(b.Context(), m, n, n*BlockSize, salt, root, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReader(b *testing.B) {
	const n = 64 << 20 / BlockSize
	m, root := build(b, n, salt)
	buf := make([]byte, 128<<10)
	b.SetBytes(n * BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		r := NewReader(m, n, n*BlockSize, salt, root)
		for off := int64(0); off < r.Size(); off += int64(len(buf)) {
			if _, err := r.ReadAt(buf, off); err != nil {
				b.Fatal(err)
			}
		}
	}
}
