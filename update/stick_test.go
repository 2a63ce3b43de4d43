package update

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/fat"
	"lifeboat/image"
)

// stickOf makes a FAT32 stick with the files, of which each holds its name, and returns where it lies.
func stickOf(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	out := filepath.Join(dir, "stick")
	if err := image.Stick(out, image.StickOptions{WholeDisk: true}, nil); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) {
		t.Helper()
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("no mtools: %v", err)
		}
		cmd := exec.Command(name, append([]string{"-i", out}, args...)...)
		cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, b)
		}
	}
	made := map[string]bool{}
	for _, f := range files {
		for i, c := range f {
			if c == '/' && !made[f[:i]] {
				run("mmd", "::/"+f[:i])
				made[f[:i]] = true
			}
		}
		if strings.HasSuffix(f, "/") {
			continue
		}
		from := filepath.Join(dir, "file")
		if err := os.WriteFile(from, []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
		run("mcopy", from, "::/"+f)
	}
	return out
}

func openStick(t *testing.T, path string) *fat.FS {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := fat.Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// Which files of a stick are bundles, on one that has been in many hands.
func TestPatterns(t *testing.T) {
	fs := openStick(t, stickOf(t,
		"a.raucb", "B.RAUCB", "._a.raucb", ".hidden.raucb", "readme.txt", "Ümläut 日本.raucb", "folder.raucb/",
		"updates/c.raucb", "Updates2/d.raucb", "updates/deep/e.raucb", ".Spotlight-V100/f.raucb", ".Trashes/501/g.raucb",
		"System Volume Information/h.raucb", "$RECYCLE.BIN/i.raucb", "updates/bundle.bin",
	))
	for _, c := range []struct {
		patterns string
		want     []string
	}{
		{"*.raucb;updates/*.raucb", []string{"a.raucb", "B.RAUCB", "Ümläut 日本.raucb", "updates/c.raucb"}},
		{"A.RAUCB", []string{"a.raucb"}},
		{"?.raucb;[ab].raucb", []string{"a.raucb", "B.RAUCB"}},
		{"UPDATES/*.bin", []string{"updates/bundle.bin"}},
		{"*/*.raucb", []string{"updates/c.raucb", "Updates2/d.raucb", "System Volume Information/h.raucb"}},
		{"updates*/[c-d].raucb", []string{"updates/c.raucb", "Updates2/d.raucb"}},
		{"*/*/*", []string{"updates/deep/e.raucb"}},
		{".hidden*;._a.raucb", []string{".hidden.raucb", "._a.raucb"}},
		{"folder.raucb", nil},
		{"updates", nil},
		{"readme.txt/x", nil},
		{"none/*.raucb", nil},
	} {
		left := maxFolders
		v := &volume{FS: fs, folders: map[string][]fat.Entry{}, left: &left}
		var got []string
		for p := range strings.SplitSeq(c.patterns, ";") {
			got = v.match(got, "", p)
		}
		if d := cmp.Diff(c.want, got); d != "" || v.err != nil {
			t.Errorf("%s: %v\n%s", c.patterns, v.err, d)
		}
	}
}

// What a scanner says of a stick without the file that is required, with it, and of one that it cannot read to the end.
func TestScanAnswers(t *testing.T) {
	plain := stickOf(t, "no bundle.raucb", "updates/x.crl")
	unlocked := stickOf(t, "no bundle.raucb", "updates/x.crl", "Keys/Unlock.txt")
	nothing := stickOf(t, "readme.txt")
	keyring, err := os.ReadFile("../bundle/testdata/keyring.pem")
	if err != nil {
		t.Fatal(err)
	}
	scan := func(path, require string, edit func([]byte)) (texts []string, done bool) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if edit != nil {
			edit(b)
		}
		j := &job{Require: require, Trust: Trust{Keyring: keyring}}
		m := Media{Source: strings.NewReader(string(b)), SourceSize: int64(len(b))}
		err = Work(context.Background(), RoleScan, j.encode(), m, func(kind byte, body []byte) error {
			switch kind {
			case frameRefused:
				r, err := decodeRefusal(body)
				if err != nil {
					t.Error(err)
				}
				texts = append(texts, r.Path+": "+r.Text)
			case frameDone:
				done = true
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return texts, done
	}
	for _, c := range []struct {
		name, path, require string
		edit                func([]byte)
		want                []string // parts of what is said, in order
	}{
		{"nothing is required", plain, "", nil, []string{"updates/x.crl", "no bundle.raucb"}},
		{"without the file", plain, "keys/unlock.txt", nil, []string{"no bundle.raucb: nothing is taken from a stick without the file keys/unlock.txt"}},
		{"with it", unlocked, "keys/unlock.txt", nil, []string{"updates/x.crl", "no bundle.raucb"}},
		{"without it, and nothing that is missed", nothing, "keys/unlock.txt", nil, nil},
		{"nothing", nothing, "", nil, nil},
		{"damaged", plain, "", func(b []byte) { clear(b[13:14]) }, []string{"/: damaged FAT"}},
		{"another file system", plain, "", func(b []byte) { clear(b[:512]) }, nil},
	} {
		got, done := scan(c.path, c.require, c.edit)
		ok := len(got) == len(c.want) && done
		for i := range c.want {
			ok = ok && strings.Contains(got[i], c.want[i])
		}
		if !ok {
			t.Errorf("%s: done %t, %q", c.name, done, got)
		}
	}
}
