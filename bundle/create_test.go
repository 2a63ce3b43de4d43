package bundle

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/verify"
	"lifeboat/verify/keys"
)

func createOptions(s *keys.Set) CreateOptions {
	return CreateOptions{Key: s.Release.Key, Cert: s.Release.Cert, Intermediates: []*x509.Certificate{s.ReleaseCA.Cert}}
}

// keyFiles are the PEM files of a set, as rauc wants them.
func keyFiles(t *testing.T, bits int) (dir string, s *keys.Set) {
	t.Helper()
	var err error
	if bits == 0 {
		s, err = ecKeys()
	} else {
		s, err = rsaKeys()
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(s.Release.Key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return write(t, filepath.Join(t.TempDir(), "keys"), map[string][]byte{
		"release.key.pem":     block("PRIVATE KEY", key),
		"release.cert.pem":    block("CERTIFICATE", s.Release.Cert.Raw),
		"release-ca.cert.pem": block("CERTIFICATE", s.ReleaseCA.Cert.Raw),
		"release.keyring.pem": block("CERTIFICATE", s.ReleaseAnchor.Raw),
		"develop.cert.pem":    block("CERTIFICATE", s.Develop.Cert.Raw),
	}), s
}

func open(t *testing.T, path string, o Options) *Bundle {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(t.Context(), bytes.NewReader(data), int64(len(data)), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var allFormats = []string{FormatVerity, FormatPlain}

// TestRAUCReadsOurs: stock rauc verifies, shows and extracts what we make, and
// finds the bytes that we find.
func TestRAUCReadsOurs(t *testing.T) {
	need(t, "rauc")
	need(t, "mksquashfs")
	for _, bits := range []int{0, 2048} {
		dir, s := keyFiles(t, bits)
		for _, format := range allFormats {
			for i, comp := range []string{"gzip", "xz", "zstd", "lz4"} {
				size := []int{700_001, 300, 1 << 20, 40_000}[i]
				name := strings.Join([]string{s.Release.Cert.PublicKeyAlgorithm.String(), format, comp}, "-")
				t.Run(name, func(t *testing.T) {
					tmp := t.TempDir()
					in := write(t, filepath.Join(tmp, "in"), map[string][]byte{
						ManifestName: []byte(draft + "[image.app]\nfilename=app.tar\n[bundle]\nformat=" + format + "\n"),
						"rootfs.img": content(1, size), "app.tar": content(2, size/3), "notes.txt": []byte("left out"),
					})
					out := filepath.Join(tmp, "out.raucb")
					o := createOptions(s)
					o.SquashfsArgs = []string{"-comp", comp}
					if err := Create(t.Context(), in, out, o); err != nil {
						t.Fatal(err)
					}
					keyring := filepath.Join(dir, "release.keyring.pem")
					info := run(t, "rauc", "info", "--keyring", keyring, out)
					b := open(t, out, Options{Rules: rulesFor(s), Formats: allFormats, RequireSignedVerity: false})
					for _, want := range []string{"'demo'", "'1.0'", "rootfs.img", format} {
						if !strings.Contains(info, want) {
							t.Errorf("rauc info does not show %s:\n%s", want, info)
						}
					}
					if err := b.Check(t.Context()); err != nil {
						t.Error(err)
					}
					run(t, "rauc", "extract", "--keyring", keyring, out, filepath.Join(tmp, "theirs"))
					if err := b.Extract(t.Context(), filepath.Join(tmp, "ours")); err != nil {
						t.Fatal(err)
					}
					if d := differ(t, filepath.Join(tmp, "theirs"), filepath.Join(tmp, "ours")); d != "" {
						t.Error(d)
					}
					if c, err := b.Compression(); c != comp || err != nil {
						t.Errorf("compression %q, %v", c, err)
					}
				})
			}
		}
	}
}

// TestWeReadRAUCs: what stock rauc makes opens, and has the same content.
func TestWeReadRAUCs(t *testing.T) {
	need(t, "rauc")
	for _, bits := range []int{0, 2048} {
		dir, s := keyFiles(t, bits)
		for _, format := range allFormats {
			for _, comp := range []string{"gzip", "xz", "zstd"} {
				name := strings.Join([]string{s.Release.Cert.PublicKeyAlgorithm.String(), format, comp}, "-")
				t.Run(name, func(t *testing.T) {
					tmp := t.TempDir()
					in := write(t, filepath.Join(tmp, "in"), map[string][]byte{
						ManifestName: []byte(strings.Replace(draft, "filename=", "adaptive=block-hash-index\nfilename=", 1) + "[bundle]\nformat=" + format + "\n"),
						"rootfs.img": content(1, 700<<10),
					})
					out := filepath.Join(tmp, "out.raucb")
					run(t, "rauc", "bundle", "--cert", filepath.Join(dir, "release.cert.pem"), "--key", filepath.Join(dir, "release.key.pem"),
						"--intermediate", filepath.Join(dir, "release-ca.cert.pem"), "--mksquashfs-args=-comp "+comp, in, out)
					b := open(t, out, Options{Rules: rulesFor(s), Formats: allFormats, Compatible: "demo"})
					if err := b.Check(t.Context()); err != nil {
						t.Error(err)
					}
					if b.Manifest.Format != format || b.Plain() != (format == FormatPlain) {
						t.Errorf("format %s", b.Manifest.Format)
					}
					run(t, "rauc", "extract", "--keyring", filepath.Join(dir, "release.keyring.pem"), out, filepath.Join(tmp, "theirs"))
					if err := b.Extract(t.Context(), filepath.Join(tmp, "ours")); err != nil {
						t.Fatal(err)
					}
					if d := differ(t, filepath.Join(tmp, "theirs"), filepath.Join(tmp, "ours")); d != "" {
						t.Error(d)
					}
					data, _ := os.ReadFile(out)
					wantCode(t, check(t, data, Options{Rules: rulesFor(s), Formats: allFormats, RequireSignedVerity: true}), verify.Policy)
					info, err := Peek(bytes.NewReader(data), int64(len(data)))
					if err != nil || info.Compression != comp || info.Manifest.Hash() != b.Manifest.Hash() {
						t.Errorf("peek: %+v, %v", info, err)
					}
				})
			}
		}
	}
}

// TestCrypt: bundles of the crypt format are refused as such.
func TestCrypt(t *testing.T) {
	need(t, "rauc")
	dir, s := keyFiles(t, 0)
	tmp := t.TempDir()
	in := write(t, filepath.Join(tmp, "in"), map[string][]byte{
		ManifestName: []byte(draft + "[bundle]\nformat=crypt\n"), "rootfs.img": content(1, 100_000),
	})
	out := filepath.Join(tmp, "out.raucb")
	run(t, "rauc", "bundle", "--cert", filepath.Join(dir, "release.cert.pem"), "--key", filepath.Join(dir, "release.key.pem"),
		"--intermediate", filepath.Join(dir, "release-ca.cert.pem"), in, out)
	run(t, "rauc", "encrypt", "--keyring", filepath.Join(dir, "release.keyring.pem"), "--to", filepath.Join(dir, "develop.cert.pem"), out, out+".enc")
	for _, path := range []string{out, out + ".enc"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, check(t, data, Options{Rules: rulesFor(s)}), verify.Policy)
		if info, err := Peek(bytes.NewReader(data), int64(len(data))); err != nil || info.Encrypted != strings.HasSuffix(path, ".enc") {
			t.Errorf("%s: peek %+v, %v", filepath.Base(path), info, err)
		}
		_, cms := parts(data)
		cms[bytes.Index(cms, []byte{1, 7, 2})+2]++ // row 12: signedData that says envelopedData
		if path == out {
			wantCode(t, check(t, data, Options{Rules: rulesFor(s)}), verify.Malformed)
		}
	}
}

func TestCreate(t *testing.T) {
	need(t, "mksquashfs")
	s := testKeys(t)
	tmp := t.TempDir()
	img := content(1, 500_001)
	in := write(t, filepath.Join(tmp, "in"), map[string][]byte{
		ManifestName: []byte("# why\n" + draft + "[meta.lifeboat]\nsecurity-epoch=5\nvalid-until=2222-01-01T00:00:00Z\n[meta.mine]\nk=v\n"),
		"rootfs.img": img,
	})
	o := createOptions(s)
	o.SourceDate = time.Unix(1_800_000_000, 0)
	out := filepath.Join(tmp, "out.raucb")
	if err := Create(t.Context(), in, out, o); err != nil {
		t.Fatal(err)
	}
	b := open(t, out, Options{Rules: rulesFor(s), RequireSignedVerity: true})
	m := b.Manifest
	if m.Epoch != 5 || m.ValidUntil.Year() != 2222 || m.Created.Unix() != 1_800_000_000 || m.Format != FormatVerity || !bytes.Contains(m.Raw, []byte("[meta.mine]\nk=v\n")) {
		t.Errorf("%s", m.Raw)
	}
	if root, err := RootHash(bytes.NewReader(img), int64(len(img)), m.Images[0].Salt); err != nil || !bytes.Equal(root[:], m.Images[0].RootHash) {
		t.Errorf("root hash %x, %v", root, err)
	}

	again := filepath.Join(tmp, "again.raucb")
	if err := Create(t.Context(), in, again, o); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(out)
	c, _ := os.ReadFile(again)
	pa, _ := parts(a)
	pc, _ := parts(c)
	if !bytes.Equal(pa, pc) || open(t, again, Options{Rules: rulesFor(s)}).Manifest.Hash() != m.Hash() {
		t.Error("the same input at the same date gives another bundle")
	}
	o.SourceDate = time.Time{}
	t.Setenv("SOURCE_DATE_EPOCH", "")
	random := filepath.Join(tmp, "random.raucb")
	if err := Create(t.Context(), in, random, o); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(open(t, random, Options{Rules: rulesFor(s)}).Manifest.Images[0].Salt, m.Images[0].Salt) {
		t.Error("the salt is not random")
	}

	if err := Create(t.Context(), in, out, o); !errors.Is(err, os.ErrExist) {
		t.Errorf("overwrites: %v", err)
	}
	if now, _ := os.ReadFile(out); !bytes.Equal(now, a) {
		t.Error("the existing bundle was changed")
	}
	entries, _ := os.ReadDir(tmp)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if d := cmp.Diff([]string{"again.raucb", "in", "out.raucb", "random.raucb"}, names); d != "" {
		t.Errorf("leftovers: %s", d)
	}
}

func TestCreateRefused(t *testing.T) {
	s := testKeys(t)
	tests := []struct {
		name     string
		manifest string
		code     verify.Code
	}{
		{"no image in the folder", strings.Replace(draft, "rootfs.img", "other.img", 1), verify.IO},
		{"no images", "[update]\ncompatible=demo\n", verify.Malformed},
		{"hooks", draft + "[hooks]\nfilename=x\n", verify.Policy},
		{"crypt", draft + "[bundle]\nformat=crypt\n", verify.Policy},
		{"hash of a payload that is not made", draft + "[bundle]\nverity-size=4096\n", verify.Malformed},
		{"unknown key", draft + "colour=red\n", verify.Malformed},
		{"link", strings.Replace(draft, "rootfs.img", "link.img", 1), verify.IO},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tmp := t.TempDir()
			in := write(t, filepath.Join(tmp, "in"), map[string][]byte{ManifestName: []byte(tt.manifest), "rootfs.img": content(1, 5000)})
			if err := os.Symlink("rootfs.img", filepath.Join(in, "link.img")); err != nil {
				t.Fatal(err)
			}
			wantCode(t, Create(t.Context(), in, filepath.Join(tmp, "out"), createOptions(s)), tt.code)
			if entries, _ := os.ReadDir(tmp); len(entries) != 1 {
				t.Errorf("leftovers: %v", entries)
			}
		})
	}
}

// TestRootHash compares with veritysetup, for images that fill their last
// block and that do not.
func TestRootHash(t *testing.T) {
	need(t, "veritysetup")
	for _, n := range []int{4097, 40960, 700_001} {
		img := content(1, n)
		root, err := RootHash(bytes.NewReader(img), int64(n), bytes.Repeat([]byte{9}, 32))
		if err != nil {
			t.Fatal(err)
		}
		dir := write(t, t.TempDir(), map[string][]byte{"img": append(img, make([]byte, -n&4095)...), "tree": nil})
		out := run(t, "veritysetup", "format", "--no-superblock", "--hash=sha256", "--salt="+strings.Repeat("09", 32), filepath.Join(dir, "img"), filepath.Join(dir, "tree"))
		if !strings.Contains(out, hex.EncodeToString(root[:])) {
			t.Errorf("%d bytes: %x is not in\n%s", n, root, out)
		}
	}
}
