package keys_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/verify"
	"lifeboat/verify/keys"
)

// folder is a new keys folder, opened.
func folder(t *testing.T, o keys.Options) *keys.Folder {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	if err := keys.Init(dir, o); err != nil {
		t.Fatal(err)
	}
	return open(t, dir)
}

func open(t *testing.T, dir string) *keys.Folder {
	t.Helper()
	f, err := keys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func issue(t *testing.T, f *keys.Folder, o keys.Issue) {
	t.Helper()
	if path, err := f.Issue(o); err != nil {
		t.Fatal(err)
	} else if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
}

// opensslVerify is what openssl says of a certificate below the root with the
// CRLs of its CA and of the root.
func opensslVerify(t *testing.T, dir, name, ca string) (string, bool) {
	t.Helper()
	var crls string
	for _, c := range []string{ca, "root"} {
		if out, err := run(dir, "openssl", "crl", "-inform", "DER", "-in", c+".crl", "-out", c+".crl.tmp"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		crls += string(read(t, dir, c+".crl.tmp"))
	}
	write(t, dir, "crls.tmp", []byte(crls))
	out, err := run(dir, "openssl", "verify", "-x509_strict", "-crl_check_all", "-CAfile", "root.cert.pem",
		"-untrusted", ca+".cert.pem", "-CRLfile", "crls.tmp", name+".cert.pem")
	return out, err == nil
}

// TestLife: certificates are issued, renewed and revoked; openssl agrees at
// every step, and the CRL's number rises.
func TestLife(t *testing.T) {
	need(t, "openssl")
	for name, bits := range map[string]int{"EC": 0, "RSA": 2048} {
		t.Run(name, func(t *testing.T) {
			f := folder(t, keys.Options{RSA: bits, Org: "Example"})
			number := map[string]int64{}
			crl := func(ca string) *x509.RevocationList {
				t.Helper()
				l, err := x509.ParseRevocationList(read(t, f.Dir, ca+".crl"))
				if err != nil {
					t.Fatal(err)
				}
				if number[ca]++; l.Number.Int64() != number[ca] {
					t.Errorf("CRL of %s has number %s, want %d", ca, l.Number, number[ca])
				}
				return l
			}
			makeCRL := func(ca string) {
				t.Helper()
				if _, err := f.CRL(keys.CRL{CA: ca}); err != nil {
					t.Fatal(err)
				}
				crl(ca)
			}
			issue(t, f, keys.Issue{Name: "alice", Under: "release", RSA: bits, Years: 2})
			issue(t, f, keys.Issue{Name: "bob", Under: "release", RSA: bits})
			issue(t, f, keys.Issue{Name: "sn-0001", Under: "device", RSA: bits})
			for _, ca := range []string{"root", "release-ca", "develop-ca", "device-ca"} {
				makeCRL(ca)
			}
			check := func(name, ca string, good bool) {
				t.Helper()
				if out, ok := opensslVerify(t, f.Dir, name, ca); ok != good || !good && !strings.Contains(out, "certificate revoked") {
					t.Errorf("openssl on %s: %v, want %v\n%s", name, ok, good, out)
				}
			}
			for name, ca := range map[string]string{"alice": "release-ca", "bob": "release-ca", "devices/sn-0001": "device-ca", "develop": "develop-ca"} {
				check(name, ca, true)
			}
			before := certificate(t, f.Dir, "alice.cert.pem")
			if _, err := f.Renew(keys.Renew{Name: "alice"}); err != nil {
				t.Fatal(err)
			}
			after := certificate(t, f.Dir, "alice.cert.pem")
			if verify.SPKI(before) != verify.SPKI(after) || before.Equal(after) || after.Subject.String() != before.Subject.String() {
				t.Errorf("renewed %s into %s", before.Subject, after.Subject)
			}
			if _, err := f.Renew(keys.Renew{Name: "alice", NewKey: true, RSA: bits}); err != nil {
				t.Fatal(err)
			}
			renewed := certificate(t, f.Dir, "alice.cert.pem")
			if verify.SPKI(renewed) == verify.SPKI(after) {
				t.Error("renewed with a new key, and it is the old one")
			}
			if k := key(t, f.Dir, "alice.key.pem"); !k.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(renewed.PublicKey) {
				t.Error("the key does not belong to the renewed certificate")
			}
			check("alice", "release-ca", true)

			// All certificates of alice go, those of the others stay.
			path, revoked, err := f.Revoke(keys.Revoke{Name: "alice", Reason: "keyCompromise"})
			if err != nil || path != filepath.Join(f.Dir, "release-ca.crl") || len(revoked) != 3 {
				t.Fatalf("revoke: %v, %s, %v", err, path, revoked)
			}
			if l := crl("release-ca"); len(l.RevokedCertificateEntries) != 3 || l.RevokedCertificateEntries[0].ReasonCode != 1 {
				t.Errorf("the CRL has %v", l.RevokedCertificateEntries)
			}
			check("alice", "release-ca", false)
			check("old/alice-"+before.SerialNumber.Text(16), "release-ca", false)
			check("old/alice-"+after.SerialNumber.Text(16), "release-ca", false)
			check("bob", "release-ca", true)

			// Index and CRL each know of it alone.
			f.Close()
			index := read(t, f.Dir, "index")
			if err := os.Remove(filepath.Join(f.Dir, "index")); err != nil {
				t.Fatal(err)
			}
			f = open(t, f.Dir)
			makeCRL("release-ca")
			check("alice", "release-ca", false)
			f.Close()
			if err := os.Remove(filepath.Join(f.Dir, "release-ca.crl")); err != nil {
				t.Fatal(err)
			}
			write(t, f.Dir, "index", index)
			number["release-ca"] = 2
			f = open(t, f.Dir)
			makeCRL("release-ca")
			check("alice", "release-ca", false)
			check("bob", "release-ca", true)

			// A CA: by the root.
			if _, _, err := f.Revoke(keys.Revoke{Name: "develop-ca", Reason: "cACompromise"}); err != nil {
				t.Fatal(err)
			}
			crl("root")
			check("develop", "develop-ca", false)

			// A CA renewed: with its anchor, and what is below it still verifies.
			if _, err := f.Renew(keys.Renew{Name: "release-ca"}); err != nil {
				t.Fatal(err)
			}
			check("bob", "release-ca", true)
			anchors, err := verify.ParseKeyring(read(t, f.Dir, "release.keyring.pem"))
			if err != nil || len(anchors.Anchors) != 1 || verify.SPKI(anchors.Anchors[0]) != verify.SPKI(certificate(t, f.Dir, "release-ca.cert.pem")) {
				t.Errorf("keyring: %v", err)
			}
		})
	}
}

// TestSignersAreTaken: what an issued signer signs, verify takes and openssl
// does; what a device signs, or a revoked one's CA did not issue, not.
func TestSignersAreTaken(t *testing.T) {
	need(t, "openssl")
	f := folder(t, keys.Options{})
	issue(t, f, keys.Issue{Name: "alice", Under: "release"})
	issue(t, f, keys.Issue{Name: "dora", Under: "develop"})
	issue(t, f, keys.Issue{Name: "sn1", Under: "device"})
	for _, test := range []struct {
		name, keyring string
		code          verify.Code
	}{
		{"alice", "release.keyring.pem", 0},
		{"dora", "develop.keyring.pem", 0},
		{"dora", "release.keyring.pem", verify.Untrusted},
		{"devices/sn1", "release.keyring.pem", verify.Untrusted},
		{"devices/sn1", "root.cert.pem", verify.WrongPurpose},
	} {
		var chain []*x509.Certificate
		for _, e := range f.Entries() {
			if e.Cert != nil && e.Cert.IsCA && e.Issuer == "root" {
				chain = append(chain, e.Cert)
			}
		}
		cms, err := verify.Sign([]byte("content"), false, key(t, f.Dir, test.name+".key.pem"), certificate(t, f.Dir, test.name+".cert.pem"), chain, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		k, err := verify.ParseKeyring(read(t, f.Dir, test.keyring))
		if err != nil {
			t.Fatal(err)
		}
		c, err := verify.ReadCMS(cms)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Verify(verify.Rules{Keyring: k, Now: time.Now(), Trusted: true}, nil)
		if verify.CodeOf(err) != test.code {
			t.Errorf("%s by %s: %v, want code %d", test.name, test.keyring, err, test.code)
		}
		write(t, f.Dir, "cms", cms)
		out, err := run(f.Dir, "openssl", "cms", "-verify", "-binary", "-purpose", "smimesign", "-inform", "DER", "-in", "cms", "-CAfile", test.keyring, "-out", "/dev/null")
		if (err == nil) != (test.code == 0) {
			t.Errorf("openssl on %s by %s: %v\n%s", test.name, test.keyring, err, out)
		}
	}
}

// TestDeviceDecrypts: a device's certificate is one to encrypt for.
func TestDeviceDecrypts(t *testing.T) {
	need(t, "openssl")
	for _, bits := range []int{0, 2048} {
		f := folder(t, keys.Options{RSA: bits})
		issue(t, f, keys.Issue{Name: "sn1", Under: "device", RSA: bits})
		write(t, f.Dir, "plain", []byte("for sn1 only\n"))
		if out, err := run(f.Dir, "openssl", "cms", "-encrypt", "-binary", "-aes256", "-in", "plain", "-outform", "DER", "-out", "sealed", "devices/sn1.cert.pem"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if out, err := run(f.Dir, "openssl", "cms", "-decrypt", "-inform", "DER", "-in", "sealed", "-recip", "devices/sn1.cert.pem", "-inkey", "devices/sn1.key.pem"); err != nil || out != "for sn1 only\n" {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// TestRequest: openssl makes the key and the request, the folder the certificate.
func TestRequest(t *testing.T) {
	need(t, "openssl")
	f := folder(t, keys.Options{})
	if out, err := run(f.Dir, "openssl", "req", "-new", "-newkey", "rsa:3072", "-nodes", "-keyout", "theirs.pem", "-out", "theirs.csr", "-subj", "/CN=root/O=Evil"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	public, err := keys.ReadRequest(read(t, f.Dir, "theirs.csr"))
	if err != nil {
		t.Fatal(err)
	}
	issue(t, f, keys.Issue{Name: "carol", Under: "release", Public: public})
	c := certificate(t, f.Dir, "carol.cert.pem")
	if c.Subject.CommonName != "carol" || c.IsCA || !c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(public) {
		t.Errorf("%s", c.Subject)
	}
	if _, err := os.Stat(filepath.Join(f.Dir, "carol.key.pem")); err == nil {
		t.Error("a key was made although there is one")
	}
	broken := read(t, f.Dir, "theirs.csr")
	block, _ := pem.Decode(broken)
	block.Bytes[len(block.Bytes)-1] ^= 1
	if _, err := keys.ReadRequest(pem.EncodeToMemory(block)); err == nil || !strings.Contains(err.Error(), "not signed with its key") {
		t.Errorf("a request with a wrong signature: %v", err)
	}
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Issue(keys.Issue{Name: "weak", Under: "release", Public: weak.Public()}); err == nil || !strings.Contains(err.Error(), "224 bits") {
		t.Errorf("a key on P-224: %v", err)
	}
}

// TestOldFolder: one without an index is taken as it is.
func TestOldFolder(t *testing.T) {
	f := folder(t, keys.Options{})
	f.Close()
	if err := os.Remove(filepath.Join(f.Dir, "index")); err != nil {
		t.Fatal(err)
	}
	f = open(t, f.Dir)
	issue(t, f, keys.Issue{Name: "alice", Under: "release"})
	f.Close()
	f = open(t, f.Dir)
	var names []string
	for _, e := range f.Entries() {
		names = append(names, e.Name+" by "+e.Issuer)
	}
	want := "alice by release-ca, develop by develop-ca, develop-ca by root, develop.keyring by self, release by release-ca, " +
		"release-ca by root, release.keyring by self, root by self"
	if got := strings.Join(names, ", "); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestManyAtOnce: who finds the folder in use waits, and nothing is lost.
func TestManyAtOnce(t *testing.T) {
	f := folder(t, keys.Options{})
	f.Close()
	const n = 8
	errs := make(chan error, n)
	for i := range n {
		go func() {
			f, err := keys.Open(f.Dir)
			if err == nil {
				_, err = f.Issue(keys.Issue{Name: fmt.Sprint("signer", i), Under: "release"})
				f.Close()
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := strings.Count(string(read(t, f.Dir, "index")), " signer"); got != n {
		t.Errorf("%d of %d certificates are in the index", got, n)
	}
}

// TestAnsweredNo: what is not done, with words for the person who asked.
func TestAnsweredNo(t *testing.T) {
	now := time.Now()
	f := folder(t, keys.Options{})
	issue(t, f, keys.Issue{Name: "alice", Under: "release"})
	other := folder(t, keys.Options{})
	for _, test := range []struct {
		want string
		do   func() error
	}{
		{"not overwritten", func() error { _, err := f.Issue(keys.Issue{Name: "alice", Under: "develop"}); return err }},
		{"is no name", func() error { _, err := f.Issue(keys.Issue{Name: "../alice", Under: "release"}); return err }},
		{"is no name", func() error { _, err := f.Issue(keys.Issue{Under: "release"}); return err }},
		{`no CA "sales-ca"; there are: develop, release, root`, func() error { _, err := f.Issue(keys.Issue{Name: "bob", Under: "sales"}); return err }},
		{"longer than its CA", func() error { _, err := f.Issue(keys.Issue{Name: "bob", Under: "release", Years: 16}); return err }},
		{"does not belong to release-ca.cert.pem", func() error {
			_, err := f.Issue(keys.Issue{Name: "bob", Under: "release", CAKey: key(t, other.Dir, "release-ca.key.pem")})
			return err
		}},
		{"has no nobody.cert.pem", func() error { _, err := f.Renew(keys.Renew{Name: "nobody"}); return err }},
		{"keeps its key", func() error { _, err := f.Renew(keys.Renew{Name: "release-ca", NewKey: true}); return err }},
		{"together with that of its CA", func() error { _, err := f.Renew(keys.Renew{Name: "release.keyring"}); return err }},
		{"self-signed", func() error { _, _, err := f.Revoke(keys.Revoke{Name: "root"}); return err }},
		{"knows no such certificate", func() error { _, _, err := f.Revoke(keys.Revoke{Serial: "12"}); return err }},
		{"is none of unspecified, keyCompromise", func() error { _, _, err := f.Revoke(keys.Revoke{Name: "alice", Reason: "greed"}); return err }},
		{"", func() error { _, _, err := f.Revoke(keys.Revoke{Name: "alice"}); return err }},
		{"revoked already", func() error { _, _, err := f.Revoke(keys.Revoke{Name: "alice"}); return err }},
		{"is not there: bring it", func() error {
			os.Remove(filepath.Join(f.Dir, "develop-ca.key.pem"))
			_, err := f.Issue(keys.Issue{Name: "bob", Under: "develop"})
			return err
		}},
		{"is not from this CA", func() error {
			if _, err := other.CRL(keys.CRL{CA: "root"}); err != nil {
				t.Fatal(err)
			}
			write(t, f.Dir, "root.crl", read(t, other.Dir, "root.crl"))
			_, err := f.CRL(keys.CRL{CA: "root"})
			return err
		}},
		{"index line 1: ", func() error {
			write(t, other.Dir, "index", []byte("cert 12 root yesterday valid x\n"))
			other.Close()
			_, err := keys.Open(other.Dir)
			return err
		}},
		{"has no certificates", func() error { _, err := keys.Open(t.TempDir()); return err }},
	} {
		if err := test.do(); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %q", err, test.want)
		}
	}
	// What a CA cannot give longer by default ends with it.
	issue(t, f, keys.Issue{Name: "late", Under: "release", Now: now.AddDate(10, 0, 0)})
	if c := certificate(t, f.Dir, "late.cert.pem"); !c.NotAfter.Equal(certificate(t, f.Dir, "release-ca.cert.pem").NotAfter) {
		t.Errorf("valid until %s", c.NotAfter)
	}
	info, err := os.Stat(filepath.Join(f.Dir, "late.key.pem"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}

// TestDue: what is renewed or revoked is not due, a CRL is.
func TestDue(t *testing.T) {
	f := folder(t, keys.Options{})
	now := time.Now()
	due := func(days int) string {
		t.Helper()
		list, err := f.Due(now.AddDate(0, 0, days))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, d := range list {
			names = append(names, d.What)
		}
		return strings.Join(names, " ")
	}
	issue(t, f, keys.Issue{Name: "alice", Under: "release", Years: 1})
	issue(t, f, keys.Issue{Name: "bob", Under: "release", Years: 1})
	if _, err := f.CRL(keys.CRL{CA: "release-ca", Days: 30}); err != nil {
		t.Fatal(err)
	}
	if got := due(29); got != "" {
		t.Errorf("due in 29 days: %s", got)
	}
	if got := due(366); got != "release-ca.crl alice bob" {
		t.Errorf("due in a year: %s", got)
	}
	if _, err := f.Renew(keys.Renew{Name: "alice", Years: 3}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Revoke(keys.Revoke{Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	if got := due(366); got != "release-ca.crl" {
		t.Errorf("due in a year after: %s", got)
	}
}
