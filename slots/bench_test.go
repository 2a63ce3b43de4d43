package slots

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/disk"
)

// BenchmarkInstall is an install of 64 MiB onto a file with flush and
// read-back from the medium; BenchmarkCopy what `dd conv=fsync` does.
func BenchmarkInstall(b *testing.B) {
	img := content(1, 64<<20)
	raw := bundleOf(b, img, "verity")
	dev, path := benchSlot(b, space(len(img)))
	b.SetBytes(int64(len(img)))
	for b.Loop() {
		seal, err := Install(b.Context(), dev, openBundle(b, bytes.NewReader(raw), len(raw)), 0, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := dev.DropCache(); err != nil {
			b.Fatal(err)
		}
		f, err := disk.OpenDirect(path)
		if err != nil {
			b.Fatal(err)
		}
		direct, err := disk.NewDirect(f)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Attest(b.Context(), direct, dev.Size(), &seal, rules(b), "demo", nil); err != nil {
			b.Fatal(err)
		}
		direct.Close()
		f.Close()
	}
}

// BenchmarkUnchanged is an install of what is on the slot already, BenchmarkOther one of something else, without the read-back:
// reading what is there is what they have beside the install.
func BenchmarkUnchanged(b *testing.B) { benchOver(b, 1) }
func BenchmarkOther(b *testing.B)     { benchOver(b, 2) }

func benchOver(b *testing.B, images int64) {
	const n = 64 << 20
	dev, path := benchSlot(b, space(n))
	var raw [2][]byte
	for i := range images {
		raw[i] = bundleOf(b, content(1+i, n), "verity")
		if _, err := Install(b.Context(), dev, openBundle(b, bytes.NewReader(raw[i]), len(raw[i])), 0, nil); err != nil {
			b.Fatal(err)
		}
	}
	f, err := disk.OpenDirect(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	direct, err := disk.NewDirect(f)
	if err != nil {
		b.Fatal(err)
	}
	defer direct.Close()
	b.SetBytes(n)
	for i := int64(0); b.Loop(); i++ {
		if err := dev.DropCache(); err != nil {
			b.Fatal(err)
		}
		old, r := &Old{R: direct}, raw[i%images]
		if _, err := Resume(b.Context(), dev, openBundle(b, bytes.NewReader(r), len(r)), 0, 0, old, nil); err != nil {
			b.Fatal(err)
		}
		if err := dev.Flush(); err != nil {
			b.Fatal(err)
		}
		if kept := old.Same > n; kept != (images == 1) {
			b.Fatalf("%d bytes were there already", old.Same)
		}
	}
}

func BenchmarkCopy(b *testing.B) {
	img := content(1, 64<<20)
	dev, _ := benchSlot(b, int64(len(img)))
	b.SetBytes(int64(len(img)))
	for b.Loop() {
		for off := 0; off < len(img); off += 1 << 20 {
			if _, err := dev.WriteAt(img[off:off+1<<20], int64(off)); err != nil {
				b.Fatal(err)
			}
		}
		if err := dev.Flush(); err != nil {
			b.Fatal(err)
		}
	}
}

func benchSlot(b *testing.B, size int64) (*disk.File, string) {
	path := filepath.Join(b.TempDir(), "slot")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	f.Truncate(size)
	f.Close()
	dev, err := disk.Open(path, true)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { dev.Close() })
	return dev, path
}
