package testsystem

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Each format's own tool reads the image back and finds what was put in.
func TestBuild(t *testing.T) {
	const content = "what stands in the file\n"
	o := Options{Version: "1.2", Behaviour: Good, Text: map[string]string{"etc/note": content}}
	tests := []struct {
		format, compression string
		cat                 func(image, file string) []string
	}{
		{"squashfs", "zstd", func(image, file string) []string { return []string{"unsquashfs", "-cat", image, file} }},
		{"squashfs", "gzip", func(image, file string) []string { return []string{"unsquashfs", "-cat", image, file} }},
		{"squashfs", "xz", func(image, file string) []string { return []string{"unsquashfs", "-cat", image, file} }},
		{"ext4", "", func(image, file string) []string { return []string{"debugfs", "-R", "cat /" + file, image} }},
		{"erofs", "", func(image, file string) []string { return []string{"dump.erofs", "--path=/" + file, image} }},
	}
	for _, tt := range tests {
		t.Run(tt.format+tt.compression, func(t *testing.T) {
			o := o
			o.Format, o.Compression = tt.format, tt.compression
			image := filepath.Join(t.TempDir(), "image")
			maker := map[string]string{"squashfs": "mksquashfs", "ext4": "mke2fs", "erofs": "mkfs.erofs"}[tt.format]
			for _, tool := range []string{maker, tt.cat("", "")[0]} {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skipf("%s not found: run make setup", tool)
				}
			}
			if err := Build(image, o); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(image)
			if err != nil {
				t.Fatal(err)
			}
			if limit := int64(3 << 20); tt.format != "ext4" && info.Size() > limit {
				t.Errorf("%d bytes, want at most %d", info.Size(), limit)
			}
			if info.Size()%4096 != 0 {
				t.Errorf("%d bytes: not whole blocks of 4096", info.Size())
			}
			t.Logf("%d bytes", info.Size())
			cmd := tt.cat(image, "etc/note")
			out, err := exec.Command(cmd[0], cmd[1:]...).Output()
			want := content
			if tt.format == "erofs" {
				want = "Size: 24 " // erofs-utils 1.5 shows no content
			}
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%q: %v: %q", cmd, err, out)
			}
		})
	}
}

func TestModules(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules/6.1")
	dep := "kernel/a/low.ko:\nkernel/b/mid-dle.ko: kernel/a/low.ko\nkernel/c/top.ko: kernel/b/mid-dle.ko kernel/a/low.ko\n"
	if err := place(filepath.Join(dir, "modules.dep"), []byte(dep), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := place(filepath.Join(dir, "modules.builtin"), []byte("kernel/d/in-side.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := modules(root, []string{"mid_dle", "in_side", "top"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{dir + "/kernel/a/low.ko", dir + "/kernel/b/mid-dle.ko", dir + "/kernel/c/top.ko"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := modules(root, []string{"absent"}); err == nil {
		t.Error("a module that is not there was found")
	}
}
