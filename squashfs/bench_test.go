package squashfs

import "testing"

// discard takes what it is given, and has no ReadFrom.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkWriteTo measures decompression of 64 MiB with blocks of 128 KiB on
// all cores. MB/s count the unpacked file. GOMAXPROCS=1 gives the rate of one
// core; -cpu does not reach the first run of a b.Loop.
func BenchmarkWriteTo(b *testing.B) {
	const size = 64 << 20
	dir := write(b, map[string][]byte{"text": text(size, 1), "noise": noise(size, 2)})
	for _, comp := range compressors {
		image := mksquashfs(b, dir, "-comp", comp)
		f := openImage(b, image)
		for _, name := range []string{"text", "noise"} {
			b.Run(comp+"/"+name, func(b *testing.B) {
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					file, err := f.Open(name)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := file.WriteTo(discard{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkCodec is the floor that WriteTo is compared with: the decoder alone
// on blocks in memory, one goroutine.
func BenchmarkCodec(b *testing.B) {
	const size = 16 << 20
	dir := write(b, map[string][]byte{"text": text(size, 1)})
	for _, comp := range compressors {
		f := openImage(b, mksquashfs(b, dir, "-comp", comp, "-no-fragments"))
		file, err := f.Open("text")
		if err != nil {
			b.Fatal(err)
		}
		var blocks [][]byte
		for file.cur.left() > 0 {
			e, err := file.cur.next()
			if err != nil {
				b.Fatal(err)
			}
			src := make([]byte, e.size)
			if err := readFull(f.r, src, e.off); err != nil {
				b.Fatal(err)
			}
			blocks = append(blocks, src)
		}
		b.Run(comp, func(b *testing.B) {
			c, err := f.takeCodec()
			if err != nil {
				b.Fatal(err)
			}
			dst := make([]byte, f.BlockSize()+overAlloc)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				for _, src := range blocks {
					if _, err := c.Decode(dst[:f.BlockSize()], src); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
