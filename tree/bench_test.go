package tree

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	streams "lifeboat/unpack"
)

// BenchmarkExtract unpacks this machine's libraries, some hundred MB, packed by zstd, beside GNU tar and zstd.
func BenchmarkExtract(b *testing.B) {
	needRoot(b)
	archive := filepath.Join(b.TempDir(), "a.tar.zst")
	if out, err := exec.Command("tar", "-C", "/usr", "-I", "zstd -q", "-cf", archive, "lib/x86_64-linux-gnu").CombinedOutput(); err != nil {
		b.Fatalf("tar: %v\n%s", err, out)
	}
	var bytes int64
	ours := func(dir string) error {
		f, err := os.Open(archive)
		if err != nil {
			return err
		}
		defer f.Close()
		plain, err := streams.NewReader(f)
		if err != nil {
			return err
		}
		res, err := Extract(dir, plain, Options{Setuid: true, Devices: true, Max: 1 << 40})
		bytes = res.Bytes
		return err
	}
	if err := ours(b.TempDir()); err != nil {
		b.Fatal(err)
	}
	for name, extract := range map[string]func(dir string) error{
		"lifeboat": ours,
		"tar":      func(dir string) error { return exec.Command("tar", "-C", dir, "-I", "zstd", "-xpf", archive).Run() },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(bytes)
			for range b.N {
				b.StopTimer()
				dir, err := os.MkdirTemp(b.TempDir(), "")
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := extract(dir); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				os.RemoveAll(dir)
			}
		})
	}
}
