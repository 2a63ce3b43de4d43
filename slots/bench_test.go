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
