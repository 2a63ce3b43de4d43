package story

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/verify/verity"
)

// change writes a changed copy of a bundle beside it.
func change(t *testing.T, good, name string, f func(b []byte) []byte) string {
	t.Helper()
	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	out := good[:len(good)-len("good.raucb")] + name
	if err := os.WriteFile(out, f(bytes.Clone(b)), 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

func flip(at func(b []byte) int) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at(b)] ^= 0x10
		return b
	}
}

// cmsSize is the length of the CMS at the end of a bundle.
func cmsSize(b []byte) int { return int(binary.BigEndian.Uint64(b[len(b)-8:])) }

// signer issues a certificate under the release CA.
func (d *staged) signer(t *testing.T, name string, from, to time.Time, usage ...x509.ExtKeyUsage) {
	t.Helper()
	block := func(file string) []byte {
		raw, err := os.ReadFile(d.Key(file))
		if err != nil {
			t.Fatal(err)
		}
		p, _ := pem.Decode(raw)
		return p.Bytes
	}
	ca, err := x509.ParseCertificate(block("release-ca.cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := x509.ParsePKCS8PrivateKey(block("release-ca.key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
	}, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, b := range map[string]*pem.Block{name + ".cert.pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key.pem": {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(d.Key(file), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What must not be installed is refused with its code, nothing on slot B or in the state's entries changes, and A boots.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		make   func(t *testing.T, d *staged, good string) []string
		expect map[string]string // file: code, with a part of the text
	}{
		{"damaged", func(t *testing.T, d *staged, good string) []string {
			return []string{
				change(t, good, "payload.raucb", flip(func(b []byte) int { return (len(b) - cmsSize(b)) / 2 })),
				change(t, good, "tree.raucb", flip(func(b []byte) int { return len(b) - 8 - cmsSize(b) - verity.BlockSize + 5 })),
				change(t, good, "cms.raucb", flip(func(b []byte) int { return len(b) - 8 - 10 })),
				change(t, good, "manifest.raucb", flip(func(b []byte) int { return bytes.Index(b, []byte("version=2.0")) + 8 })),
				change(t, good, "short.raucb", func(b []byte) []byte { return b[:len(b)-4096] }),
				change(t, good, "long.raucb", func(b []byte) []byte { return append(b, 0) }),
				change(t, good, "empty.raucb", func(b []byte) []byte { return nil }),
				change(t, good, "zero.raucb", func(b []byte) []byte { clear(b); return b }),
			}
		}, map[string]string{
			"payload.raucb": "30", "tree.raucb": "30", "cms.raucb": "21", "manifest.raucb": "21", "short.raucb": "20",
			"long.raucb": "31", "empty.raucb": "20", "zero.raucb": "20",
		}},
		{"not for us", func(t *testing.T, d *staged, good string) []string {
			now := time.Now()
			d.signer(t, "old", now.AddDate(-2, 0, 0), now.AddDate(-1, 0, 0), x509.ExtKeyUsageCodeSigning)
			d.signer(t, "mail", now.Add(-2*time.Hour), now.AddDate(1, 0, 0), x509.ExtKeyUsageEmailProtection)
			img := d.Path(fileName(t) + "/2.0.img")
			var out []string
			for file, o := range map[string]scene.BundleOptions{
				"develop.raucb": {Signer: "develop"}, "brought.raucb": {Signer: "develop", Bring: "develop-ca"},
				"old.raucb": {Signer: "old"}, "mail.raucb": {Signer: "mail"}, "other.raucb": {Compatible: "another-board"},
				"plain.raucb": {Format: "plain", Rauc: true},
			} {
				o.Version = "2.0"
				b, err := d.Bundle(fileName(t)+"/"+file, img, o)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, b)
			}
			return out
		}, map[string]string{
			"develop.raucb": "22", "brought.raucb": "22", "old.raucb": "23", "mail.raucb": "26", "other.raucb": "27", "plain.raucb": "31",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := needDevice(t)
			good := d.bundle(t, "good.raucb", "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
			image := d.disk(t, "refused")
			before, err := scene.Partition(image, "rootfs.1")
			if err != nil {
				t.Fatal(err)
			}
			vm := scene.Start(t, d.Machine(image, d.stick(t, "bad", tt.make(t, d, good)...)))
			vm.Expect(scene.Patience, `lifeboat: boot 1 slot rootfs\.0 \(A\) version 1\.0 trial tries=2\n`)
			if v := vm.Ready(); v != "1.0" {
				t.Fatalf("version %s", v)
			}
			r := vm.Status()
			got := map[string]string{}
			for _, f := range r.Refused {
				got[f.File] = fmt.Sprintf("%02d", f.Code)
				t.Logf("code %d %s: %s", f.Code, f.File, f.Text)
				if line := fmt.Sprintf("lifeboat: refused code=%02d %s: ", f.Code, f.File); !bytes.Contains([]byte(vm.Console()), []byte(line)) {
					t.Errorf("the console does not say %q", line)
				}
			}
			if diff := cmp.Diff(tt.expect, got); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
			if b := slot(r, "B"); b.ManifestHash != "" || b.Reason != "" || b.Tries != 0 || r.State.Floors.Version != "1.0" {
				t.Errorf("state: B %+v, floors %+v", b, r.State.Floors)
			}
			vm.Cut()
			after, err := scene.Partition(image, "rootfs.1")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, after) {
				t.Error("slot B was touched")
			}
		})
	}
}

// A device that wants signed root hashes refuses a stock bundle and takes ours.
func TestSignedVerityRequired(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"system require-signed-verity": "true"}})
	stock := d.bundle(t, "stock.raucb", "3.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{Rauc: true})
	ours := d.bundle(t, "ours.raucb", "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	vm := scene.Start(t, d.Machine(d.disk(t, "strict"), d.stick(t, "both", stock, ours)))
	vm.Expect(scene.Patience, `lifeboat: refused code=31 stock\.raucb: `)
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	if v := vm.Ready(); v != "2.0" {
		t.Fatalf("version %s", v)
	}
	if r := vm.Status(); r.Booted.Authenticity != "every boot" {
		t.Errorf("%+v", r.Booted)
	}
}
