package keys_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/verify"
	"lifeboat/verify/keys"
)

var files = []string{
	"root.cert.pem", "root.key.pem",
	"release-ca.cert.pem", "release-ca.key.pem",
	"develop-ca.cert.pem", "develop-ca.key.pem",
	"release.cert.pem", "release.key.pem",
	"develop.cert.pem", "develop.key.pem",
	"release.keyring.pem", "develop.keyring.pem", "index",
}

func TestInitWritesAllFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "keys")
	if err := keys.Init(dir, keys.Options{}); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(files) {
		t.Errorf("%d files, want %d", len(list), len(files))
	}
	for _, name := range files {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if strings.Contains(name, ".key.") && info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	for _, which := range []string{"release", "develop"} {
		k, err := verify.ParseKeyring(read(t, dir, which+".keyring.pem"))
		if err != nil {
			t.Fatal(err)
		}
		ca := certificate(t, dir, which+"-ca.cert.pem")
		switch {
		case len(k.Anchors) != 1 || len(k.Intermediates) != 0:
			t.Errorf("%s keyring: %d anchors and %d others", which, len(k.Anchors), len(k.Intermediates))
		case bytes.Equal(k.Anchors[0].Raw, ca.Raw):
			t.Errorf("%s keyring holds the certificate issued by the root", which)
		case verify.SPKI(k.Anchors[0]) != verify.SPKI(ca) || !bytes.Equal(k.Anchors[0].RawSubject, ca.RawSubject):
			t.Errorf("%s keyring holds another CA", which)
		}
		if err := ca.CheckSignatureFrom(certificate(t, dir, "root.cert.pem")); err != nil {
			t.Errorf("%s-ca.cert.pem is not issued by the root: %v", which, err)
		}
	}
}

func TestInitOverwritesNothing(t *testing.T) {
	for _, name := range files {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
		err := keys.Init(dir, keys.Options{})
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), name) {
			t.Errorf("with %s there: %v", name, err)
		}
		if list, _ := os.ReadDir(dir); len(list) != 1 || string(read(t, dir, name)) != "mine" {
			t.Errorf("with %s there, the directory was touched", name)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, bits := range []int{1, 1024, 16384} {
		if _, err := keys.New(keys.Options{RSA: bits}); err == nil {
			t.Errorf("RSA keys of %d bits were made", bits)
		}
	}
	now := time.Date(2031, 2, 3, 4, 5, 6, 7, time.UTC)
	s, err := keys.New(keys.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*x509.Certificate{s.Root.Cert, s.ReleaseAnchor, s.Release.Cert, s.Develop.Cert} {
		if !c.NotBefore.Before(now) || c.NotBefore.Before(now.AddDate(0, 0, -1)) || c.NotAfter.Before(now.AddDate(9, 0, 0)) {
			t.Errorf("%s is valid from %s to %s", c.Subject, c.NotBefore, c.NotAfter)
		}
	}
}

func certificate(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(read(t, dir, name))
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func key(t *testing.T, dir, name string) crypto.Signer {
	t.Helper()
	block, _ := pem.Decode(read(t, dir, name))
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return k.(crypto.Signer)
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// run runs a command in dir and returns what it said.
func run(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// signature splits a RAUC bundle into payload and CMS.
func signature(t *testing.T, bundle []byte) (payload, cms []byte) {
	t.Helper()
	n := binary.BigEndian.Uint64(bundle[len(bundle)-8:])
	at := uint64(len(bundle)) - 8 - n
	return bundle[:at], bundle[at : uint64(len(bundle))-8]
}

// TestStockRAUC: what the keys sign is accepted and refused alike by Debian's
// rauc and by package verify, whoever of the two signed it.
func TestStockRAUC(t *testing.T) {
	need(t, "rauc", "mksquashfs")
	for _, kind := range []struct {
		name string
		rsa  int
	}{{"EC", 0}, {"RSA", 2048}} {
		t.Run(kind.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := keys.Init(dir, keys.Options{RSA: kind.rsa}); err != nil {
				t.Fatal(err)
			}
			in := filepath.Join(dir, "in")
			if err := os.Mkdir(in, 0o755); err != nil {
				t.Fatal(err)
			}
			image := make([]byte, 64<<10) // rauc makes no bundle of a single block
			rand.Read(image)
			write(t, in, "rootfs.img", image)
			write(t, in, "manifest.raucm", []byte("[update]\ncompatible=demo\nversion=1\n\n[bundle]\nformat=verity\n\n[image.rootfs]\nfilename=rootfs.img\n"))
			for _, purpose := range []string{"smimesign", "codesign"} {
				for _, which := range []string{"release", "develop"} {
					write(t, dir, which+"-"+purpose+".conf", []byte("[system]\ncompatible=demo\nbootloader=noop\n\n[keyring]\npath="+
						which+".keyring.pem\ncheck-purpose="+purpose+"\n\n[slot.rootfs.0]\ndevice=/dev/null\ntype=raw\n"))
				}
			}

			type attempt struct {
				signer       string
				intermediate []string
			}
			for _, a := range []attempt{
				{"release", nil},
				{"release", []string{"release-ca", "root"}},
				{"develop", nil},
				{"develop", []string{"develop-ca", "root"}},
			} {
				name := a.signer + strings.Join(a.intermediate, "+")
				args := []string{"bundle", "--cert=" + a.signer + ".cert.pem", "--key=" + a.signer + ".key.pem"}
				var chain []*x509.Certificate
				for _, i := range a.intermediate {
					args = append(args, "--intermediate="+i+".cert.pem")
					chain = append(chain, certificate(t, dir, i+".cert.pem"))
				}
				if out, err := run(dir, "rauc", append(args, "in", name+".raucb")...); err != nil {
					t.Fatalf("rauc %v: %v\n%s", args, err, out)
				}
				payload, stock := signature(t, read(t, dir, name+".raucb"))
				c, err := verify.ReadCMS(stock)
				if err != nil {
					t.Fatal(err)
				}
				ours, err := verify.Sign(c.Unverified(), false, key(t, dir, a.signer+".key.pem"),
					certificate(t, dir, a.signer+".cert.pem"), chain, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				resigned := append(bytes.Clone(payload), ours...)
				write(t, dir, name+"-ours.raucb", binary.BigEndian.AppendUint64(resigned, uint64(len(ours))))

				for _, purpose := range []string{"smimesign", "codesign"} {
					for _, keyring := range []string{"release", "develop"} {
						accept := keyring == a.signer
						for file, cms := range map[string][]byte{name + ".raucb": stock, name + "-ours.raucb": ours} {
							out, err := run(dir, "rauc", "-c", keyring+"-"+purpose+".conf", "info", file)
							if (err == nil) != accept {
								t.Errorf("rauc, %s keyring, %s, %s: %v\n%s", keyring, purpose, file, err, out)
							}
							k, err := verify.ParseKeyring(read(t, dir, keyring+".keyring.pem"))
							if err != nil {
								t.Fatal(err)
							}
							parsed, err := verify.ReadCMS(cms)
							if err != nil {
								t.Fatal(err)
							}
							_, err = parsed.Verify(verify.Rules{Keyring: k, Purpose: purpose, Now: time.Now(), Trusted: true}, nil)
							want := verify.Code(0)
							if !accept {
								want = verify.Untrusted
							}
							if verify.CodeOf(err) != want {
								t.Errorf("ours, %s keyring, %s, %s: %v, want code %d", keyring, purpose, file, err, want)
							}
						}
					}
				}
			}
		})
	}
}

// TestOpenSSL: openssl cms accepts what Sign makes, attached and detached.
func TestOpenSSL(t *testing.T) {
	need(t, "openssl")
	for _, bits := range []int{0, 3072} {
		dir := t.TempDir()
		s, err := keys.New(keys.Options{RSA: bits})
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, "keyring.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ReleaseAnchor.Raw}))
		content := []byte("line\nand bytes \x00\xff\r\n")
		write(t, dir, "content", content)
		for _, detached := range []bool{false, true} {
			der, err := verify.Sign(content, detached, s.Release.Key, s.Release.Cert, []*x509.Certificate{s.ReleaseCA.Cert}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, "cms", der)
			args := []string{"cms", "-verify", "-binary", "-inform", "DER", "-in", "cms", "-CAfile", "keyring.pem", "-out", "out"}
			if detached {
				args = append(args, "-content", "content")
			}
			if out, err := run(dir, "openssl", args...); err != nil {
				t.Errorf("RSA %d detached %v: %v\n%s", bits, detached, err, out)
			} else if !bytes.Equal(read(t, dir, "out"), content) {
				t.Errorf("RSA %d detached %v: other content", bits, detached)
			}
		}
	}
}

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}
