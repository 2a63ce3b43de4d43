package unpack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// sample is 12 MiB with repetitions near and far, text, noise and zeros.
func sample(size int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for len(b) < size {
		switch n := 1 + rng.IntN(1<<uint(4+rng.IntN(14))); rng.IntN(5) {
		case 0:
			for range n {
				b = append(b, byte(rng.Uint32()))
			}
		case 1:
			b = append(b, make([]byte, n)...)
		case 2:
			b = append(b, strings.Repeat("etc/passwd:0:0\n", n/15+1)...)
		default:
			if len(b) > 0 {
				from := rng.IntN(len(b))
				b = append(b, b[from:min(from+n, len(b))]...)
			}
		}
	}
	return b[:size]
}

func pipe(t testing.TB, in []byte, command string) []byte {
	t.Helper()
	args := strings.Fields(command)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = bytes.NewReader(in)
	var text bytes.Buffer
	cmd.Stderr = &text
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, text.Bytes())
	}
	return out
}

func unpacked(b []byte) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// What the tools of each format make, in all their ways, comes back.
func TestStreams(t *testing.T) {
	whole := sample(12 << 20)
	part := whole[:700_000]
	for _, command := range []string{
		"gzip -1", "gzip -9", "zstd -1", "zstd -19", "zstd --no-check", "zstd -T2 -B256K",
		"xz -0", "xz -6", "xz -T2 --block-size=1MiB", "xz --check=none", "xz --check=crc32", "xz --check=sha256", "xz --lzma2=dict=4KiB",
		"xz --lzma2=preset=1,lc=0,lp=4,pb=0", "xz --lzma2=preset=1,lc=4,lp=0,pb=4,dict=64KiB", "xz --lzma2=preset=6,dict=8MiB",
		"lz4 -c", "lz4 -c -9 -B4", "lz4 -c -B4 -BD", "lz4 -c -B7 -BX --no-frame-crc", "lz4 -c -B5 -BD -BX --content-size", "cat",
	} {
		packed := pipe(t, whole, command)
		if got, err := unpacked(packed); err != nil || !bytes.Equal(got, whole) {
			t.Errorf("%s: %d bytes of %d: %v", command, len(got), len(whole), err)
		}
		for name, in := range map[string][]byte{"a part": part, "nothing": nil, "a byte": {7}} {
			packed := pipe(t, in, command)
			r, err := NewReader(iotest.OneByteReader(bytes.NewReader(packed)))
			if err != nil {
				t.Fatalf("%s, %s: %v", command, name, err)
			}
			if err := iotest.TestReader(r, in); err != nil && len(in) < 100 {
				t.Errorf("%s, %s: %v", command, name, err)
			}
			if command == "cat" {
				continue
			}
			// Two files behind one another are one.
			if got, err := unpacked(append(bytes.Clone(packed), packed...)); err != nil || !bytes.Equal(got, append(bytes.Clone(in), in...)) {
				t.Errorf("%s, %s twice: %d bytes: %v", command, name, len(got), err)
			}
			for n := 7; n < len(packed); n += 1 + len(packed)/40 {
				if got, err := unpacked(packed[:n]); err == nil {
					t.Errorf("%s, %s, the first %d bytes of %d: %d bytes and no error", command, name, n, len(packed), len(got))
				}
			}
		}
	}
	padded := append(pipe(t, part, "xz"), make([]byte, 512)...)
	if got, err := unpacked(append(padded, pipe(t, part, "xz -0")...)); err != nil || len(got) != 2*len(part) {
		t.Errorf("with padding: %d bytes: %v", len(got), err)
	}
}

// Streams that need more memory than there may be are refused before any is taken, and what is none has an error.
func TestLimits(t *testing.T) {
	var before, after runtime.MemStats
	for name, test := range map[string]struct {
		packed []byte
		want   error // nil: any
	}{
		"xz -9":                  {pipe(t, []byte("x"), "xz -9"), ErrUnsupported},
		"xz of 1.5 GiB":          {pipe(t, []byte("x"), "xz --lzma2=preset=0,dict=1536MiB"), ErrUnsupported},
		"xz of 4 GiB":            {giant(t), ErrUnsupported},
		"xz with BCJ":            {pipe(t, []byte("x"), "xz --x86 --lzma2=preset=0"), ErrUnsupported},
		"zstd of 2 GiB":          {[]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x43, 0, 0x10, 'x'}, ErrUnsupported},
		"zstd of 16 MiB":         {pipe(t, make([]byte, 17<<20), "zstd --long=24"), ErrUnsupported},
		"lz4 with a dictionary":  {[]byte{4, 0x22, 0x4d, 0x18, 0x41, 0x40, 1, 2, 3, 4, 0}, ErrUnsupported},
		"lz4 of another version": {[]byte{4, 0x22, 0x4d, 0x18, 0xc0, 0x40, 0}, nil},
		"lz4, a block too large": {[]byte{4, 0x22, 0x4d, 0x18, 0x60, 0x40, 0, 1, 0, 1, 0}, nil},
		"gzip of another method": {[]byte{0x1f, 0x8b, 7, 0, 0, 0, 0, 0, 0, 0}, nil},
		"xz, a flag":             {[]byte(xzMagic + "\x01\x00123456"), nil},
	} {
		runtime.GC()
		runtime.ReadMemStats(&before)
		_, err := unpacked(test.packed)
		runtime.ReadMemStats(&after)
		if err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 20<<20 {
			t.Errorf("%s took %d bytes", name, n)
		}
	}
}

// giant is a stream that wants a dictionary of 4 GiB.
func giant(t *testing.T) []byte {
	b := pipe(t, []byte("x"), "xz --lzma2=preset=0,dict=1536MiB")
	b[12+4] = 40
	binary.LittleEndian.PutUint32(b[12+8:], crc32.ChecksumIEEE(b[12:12+8]))
	return b
}

// The memory for a long stream does not grow with it.
func TestMemory(t *testing.T) {
	packed := map[string][]byte{}
	for _, command := range []string{"xz -6", "zstd -19", "gzip", "lz4 -c -B7 -BD"} {
		packed[command] = pipe(t, sample(48<<20), command)
	}
	for command, b := range packed {
		r, err := NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n, err := io.Copy(io.Discard, struct{ io.Reader }{r})
		runtime.ReadMemStats(&after)
		if err != nil || n != 48<<20 {
			t.Errorf("%s: %d bytes: %v", command, n, err)
		}
		// The buffer of xz is made anew while it grows.
		if n := after.TotalAlloc - before.TotalAlloc; n > 40<<20 {
			t.Errorf("%s took %d bytes", command, n)
		}
	}
}

// Nothing that looks like a stream breaks the reader, or keeps it without giving anything.
func FuzzReader(f *testing.F) {
	for _, command := range []string{"gzip", "zstd", "xz -0 --check=crc32", "xz -T2 --block-size=4KiB", "lz4 -c -BD", "lz4 -c -B4 -BX"} {
		f.Add(pipe(f, sample(20_000), command))
		f.Add(pipe(f, []byte("short"), command))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		buf := make([]byte, 32<<10)
		total, idle := 0, 0
		for total < 8<<20 {
			n, err := r.Read(buf)
			if n < 0 || n > len(buf) {
				t.Fatalf("%d bytes", n)
			}
			if total += n; err != nil {
				break
			}
			if n > 0 {
				idle = 0
			} else if idle++; idle > 100 {
				t.Fatal("nothing comes, and no end")
			}
		}
	})
}

func BenchmarkXZ(b *testing.B) {
	whole := sample(32 << 20)
	packed := pipe(b, whole, "xz -6")
	b.SetBytes(int64(len(whole)))
	for b.Loop() {
		r, err := NewReader(bytes.NewReader(packed))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{r}); err != nil {
			b.Fatal(err)
		}
	}
}
