package bundle

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/verify"
	"lifeboat/verify/keys"
)

// crlOf is the first CRL of the release CA.
func crlOf(t *testing.T, s *keys.Set) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().AddDate(1, 0, 0),
	}, s.ReleaseCA.Cert, s.ReleaseCA.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func bundleFile(t *testing.T, s *keys.Set, format string, o CreateOptions) string {
	t.Helper()
	need(t, "mksquashfs")
	dir := t.TempDir()
	in := write(t, filepath.Join(dir, "in"), map[string][]byte{
		ManifestName: []byte(draft + "[bundle]\nformat=" + format + "\n"), "rootfs.img": content(1, 100_000),
	})
	out := filepath.Join(dir, "out.raucb")
	if err := Create(t.Context(), in, out, o); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestKeyringAndCRLGoAlong: what devices renew their trust by is in the bundle,
// signed, and rauc reads the bundle as before.
func TestKeyringAndCRLGoAlong(t *testing.T) {
	s := testKeys(t)
	for _, format := range allFormats {
		o := createOptions(s)
		o.Keyring, o.CRLs = content(3, 5000), [][]byte{crlOf(t, s)}
		out := bundleFile(t, s, format, o)
		b := open(t, out, Options{Rules: rulesFor(s), Formats: allFormats})
		m := b.Manifest
		if m.Keyring != "lifeboat.keyring" || m.KeyringSize != 5000 || m.KeyringSHA256 != sha256.Sum256(o.Keyring) {
			t.Errorf("%s: manifest has %q, %d, %x", format, m.Keyring, m.KeyringSize, m.KeyringSHA256)
		}
		dir := filepath.Join(t.TempDir(), "out")
		if err := b.Extract(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, m.Keyring)); err != nil || !bytes.Equal(got, o.Keyring) {
			t.Errorf("%s: %d bytes, %v", format, len(got), err)
		}
		if cms, err := verify.ReadCMS(b.CMS); err != nil || len(cms.CRLs()) != 1 || !bytes.Equal(cms.CRLs()[0], o.CRLs[0]) {
			t.Errorf("%s: the CRL is not in the CMS (%v)", format, err)
		}
	}
}

// TestKeyringMustBeThere: a manifest that names a file of another size, or one
// that is not there, is refused (30).
func TestKeyringMustBeThere(t *testing.T) {
	s := testKeys(t)
	for name, files := range map[string]map[string][]byte{
		"missing": {"rootfs.img": content(1, 50_000)},
		"longer":  {"rootfs.img": content(1, 50_000), "k": content(2, 8)},
	} {
		files[ManifestName] = []byte("x")
		sum := sha256.Sum256(content(1, 50_000))
		raw := made(t, s, files, fmt.Sprintf("[update]\ncompatible=demo\n[bundle]\nformat=verity\nverity-hash=@HASH@\nverity-salt=@SALT@\nverity-size=@SIZE@\n"+
			"[image.rootfs]\nfilename=rootfs.img\nsize=50000\nsha256=%x\n[meta.lifeboat]\nkeyring=k\nkeyring-size=7\nkeyring-sha256=%x\n", sum, sum))
		b, err := Open(t.Context(), bytes.NewReader(raw), int64(len(raw)), Options{Rules: rulesFor(s)})
		if err == nil {
			err = b.Check(t.Context())
		}
		if verify.CodeOf(err) != verify.PayloadHash {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSigningKeepsThePayload: in place or not, whatever is done with the
// signatures; the mode of the file stays; what fails leaves nothing behind.
func TestSigningKeepsThePayload(t *testing.T) {
	s := testKeys(t)
	for _, format := range allFormats {
		path := bundleFile(t, s, format, createOptions(s))
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		payload, _ := parts(before)
		o := &Options{Rules: rulesFor(s), Formats: allFormats}
		sg, err := OpenSigning(t.Context(), path, o)
		if err != nil {
			t.Fatal(err)
		}
		defer sg.Close()
		if err := sg.Sign(true, s.Develop.Key, s.Develop.Cert, nil, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := sg.Write(t.Context(), path); !errors.Is(err, os.ErrExist) {
			t.Errorf("%s: written over a file that is there: %v", format, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := sg.Write(ctx, ""); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: cancelled: %v", format, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
			t.Errorf("%s: what failed changed the bundle (%v)", format, err)
		}
		if err := sg.Write(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := parts(after); !bytes.Equal(got, payload) || bytes.Equal(after, before) {
			t.Errorf("%s: another payload, or nothing was done", format)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
			t.Errorf("%s: mode %v, %v", format, info.Mode(), err)
		}
		if list, _ := os.ReadDir(filepath.Dir(path)); len(list) != 2 {
			t.Errorf("%s: %d files beside, want the folder and the bundle", format, len(list))
		}
		b := open(t, path, *o)
		if len(b.Signed.Signers) != 1 {
			t.Errorf("%s: %d signers count, want the one of the keyring", format, len(b.Signed.Signers))
		}
	}
}
