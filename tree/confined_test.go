package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/confine"
)

// A worker that has the folder as its root, and of root's rights those that files need, makes of an archive what root makes.
func TestConfined(t *testing.T) {
	from := oddities(t)
	exe := filepath.Join(t.TempDir(), "worker")
	cmd := exec.Command("go", "build", "-o", exe, "./testdata/worker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	name := filepath.Join(t.TempDir(), "archive")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Write(f, from, time.Time{}); err != nil {
		t.Fatal(err)
	}
	for _, devices := range []bool{true, false} {
		dir := t.TempDir()
		folder, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer folder.Close()
		in, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		spec := confine.Spec{Role: "extract", UID: 65501, Files: []*os.File{in}, Folder: folder, Devices: devices, Exe: exe, Deadline: time.Minute}
		if devices {
			spec.Input = []byte("devices")
		}
		var digest []byte
		usage, err := confine.Run(context.Background(), spec, func(_ byte, body []byte) error { digest = bytes.Clone(body); return nil })
		if !devices {
			if err == nil || !bytes.Contains([]byte(err.Error()), []byte("is a device node")) {
				t.Errorf("an archive with devices: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if err := Write(sum, dir, time.Time{}); err != nil || !bytes.Equal(sum.Sum(nil), digest) {
			t.Errorf("root and the worker do not read the same (%v)", err)
		}
		if d := cmp.Diff(extract(t, b, all), describe(t, dir)); d != "" {
			t.Errorf("root's, and the worker's:\n%s", d)
		}
		t.Logf("figure: the worker that extracts took %.1f MiB", float64(usage.MaxRSSKiB)/1024)
	}
}
