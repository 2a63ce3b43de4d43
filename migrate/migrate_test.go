package migrate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLibconfig(t *testing.T) {
	got, err := libconfig([]byte("a = 0x1F; b : \"x\\ty\" \"z\" // c = 1\nlist = ( 1, { d = true }, [ 2, 3 ] ) /* e\n= 1 */ a : -2.5e3 # last\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"a": "-2.5e3", "b": "x\tyz", "list": []any{"1", map[string]any{"d": "true"}, []any{"2", "3"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for text, hint := range map[string]string{
		"a":                               "line 1: a has no value",
		"\na =":                           "line 2: a value is missing",
		"a = {":                           "a group has no end",
		"a = (1":                          "a list has no end",
		"a = \"b":                         "a string has no end",
		"/* a":                            "a comment has no end",
		"@include \"/etc/shadow\"":        "no name of a setting",
		"a = " + strings.Repeat("(", 100): "in each other",
	} {
		if _, err := libconfig([]byte(text)); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q: %v, not %q", text, err, hint)
		}
	}
}

// GLib takes sections and keys that stand twice; the last key counts.
func TestKeyFile(t *testing.T) {
	got, err := keyFile([]byte("# a\n[a]\nx=1\n\n[b]\ny = 2\n[a]\nx=3\nz=\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []group{{"a", []pair{{"x", "3"}, {"z", ""}}}, {"b", []pair{{"y", "2"}}}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(group{}, pair{})); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{"x=1", "[a", "[a]\nx"} {
		if _, err := keyFile([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// Links of the device start at the device's root, and none leads out of it.
func TestLinks(t *testing.T) {
	out := t.TempDir()
	dir := filepath.Join(out, "device")
	for name, text := range map[string]string{"device/data/etc/mender.conf": "inside", "secret": "outside"} {
		path := filepath.Join(out, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"etc": "/data/etc", "up": "../secret", "loop": "/loop", "abs": "/secret"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	d := &draft{dir: dir}
	if b, err := d.read("etc/mender.conf"); string(b) != "inside" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	for _, name := range []string{"up", "loop", "abs", "../secret", "etc/none"} {
		if b, err := d.read(name); b != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func FuzzImport(f *testing.F) {
	f.Add([]byte("a = { b : ( \"c\" ) };"))
	f.Add([]byte("[system]\ncompatible=x\nbootloader=grub\n[slot.a.0]\ndevice=/dev/sda1\nbootname=A\n[slot.a.1]\ndevice=/dev/sda2\nbootname=B\n"))
	f.Add([]byte("{\"RootfsPartA\": \"/dev/a\", \"RootfsPartB\": \"/dev/b\"}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		for kind, name := range map[string]string{"rauc": "system.conf", "mender": "etc/mender/mender.conf", "swupdate": "swupdate.cfg"} {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
			if r, err := Import(kind, dir, Options{Compatible: "x"}); (err == nil) != (r.Conf != nil) {
				t.Errorf("%s: %v with %d bytes", kind, err, len(r.Conf))
			}
		}
	})
}
