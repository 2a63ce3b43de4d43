package verify

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// opensslVerify says what `openssl cms -verify` thinks: every signer has to lead
// to a CA.
func opensslVerify(t *testing.T, der []byte, detached bool, cas ...*pair) error {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	var trusted []byte
	for _, p := range cas {
		trusted = append(trusted, pemOf("CERTIFICATE", p.cert.Raw)...)
	}
	for name, b := range map[string][]byte{"cms": der, "cas": trusted, "content": content} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"cms", "-verify", "-binary", "-inform", "DER", "-in", "cms", "-CAfile", "cas", "-out", "out", "-attime", "1906545600"}
	if detached {
		args = append(args, "-content", "content")
	}
	cmd := exec.Command("openssl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("openssl: %s", out)
		return err
	}
	got, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("openssl took %q, %v", got, err)
	}
	return nil
}

// TestAddSigner: signers of every kind, one by one; openssl takes each step,
// and nothing that was there changes.
func TestAddSigner(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	middle := issue(t, "middle", root, nil, ca)
	for _, detached := range []bool{false, true} {
		var der, outside []byte
		if detached {
			outside = content
		}
		for _, key := range []crypto.Signer{p256(t), rsaKey(t, 2048), curve(t, elliptic.P384()), curve(t, elliptic.P521()), edKey(t)} {
			signer := issue(t, "signer", middle, key, nil)
			var next []byte
			var err error
			if der == nil {
				next, err = Sign(content, detached, key, signer.cert, []*x509.Certificate{middle.cert}, now)
			} else {
				next, err = AddSigner(der, outside, key, signer.cert, []*x509.Certificate{middle.cert}, now)
			}
			if err != nil {
				t.Fatal(err)
			}
			if der != nil {
				old, added := takeApart(der), takeApart(next)
				before, after := signersOf(t, der), signersOf(t, next)
				if !bytes.Equal(old.encap, added.encap) || len(after) != len(before)+1 || len(added.signers) != 1 {
					t.Error("content changed, or not one signer more")
				}
				for _, s := range before {
					if !slices.ContainsFunc(after, func(o signerInfo) bool { return bytes.Equal(o.attrs, s.attrs) && bytes.Equal(o.signature, s.signature) }) {
						t.Error("a signer that was there changed")
					}
				}
				// Each of them for itself is what OpenSSL takes.
				for _, info := range infosIn(added.signers[0]) {
					if s, err := readSigner(info); err != nil || s.algorithm.oid == oidEd25519 {
						continue
					}
					alone := added
					alone.signers = [][]byte{info.full}
					cms, err := alone.encode()
					if err != nil {
						t.Fatal(err)
					}
					if err := opensslVerify(t, cms, detached, root); err != nil {
						t.Error(err)
					}
				}
				if len(added.certs) != len(old.certs)+1 {
					t.Errorf("%d certificates after %d", len(added.certs), len(old.certs))
				}
			}
			if _, err := AddSigner(next, outside, key, signer.cert, nil, now); err == nil || !strings.Contains(err.Error(), "signed already") {
				t.Errorf("the same signer twice: %v", err)
			}
			der = next
			// OpenSSL 3.0 does not verify Ed25519 in a CMS with signed attributes.
			if _, ed := key.(ed25519.PrivateKey); ed {
				continue
			}
			if err := opensslVerify(t, der, detached, root); err != nil {
				t.Error(err)
			}
		}
		other := issue(t, "other", root, nil, nil)
		var err error
		if detached {
			_, err = AddSigner(der, []byte("other"), other.key, other.cert, nil, now)
		} else {
			_, err = AddSigner(der, content, other.key, other.cert, nil, now)
		}
		if err == nil {
			t.Error("added with another content")
		}
		if _, err := AddSigner(der, outside, root.key, other.cert, nil, now); err == nil {
			t.Error("added with another key")
		}
	}
	other := issue(t, "other", root, nil, nil)
	if _, err := AddSigner(nil, content, other.key, other.cert, nil, now); err == nil {
		t.Error("added to nothing")
	}
	if _, err := AddSigner([]byte{0x30, 0}, content, other.key, other.cert, nil, now); err == nil {
		t.Error("added to garbage")
	}
}

// infosIn returns the further signers in a SignerInfo.
func infosIn(first []byte) (list []value) {
	whole := cursor{rest: first}
	for in := (cursor{rest: whole.any().body}); in.more(); {
		if v := in.any(); v.tag == tagContext1 {
			attrs := cursor{rest: v.body}
			attr := cursor{rest: attrs.any().body}
			attr.any()
			for values := (cursor{rest: attr.any().body}); values.more(); {
				list = append(list, values.any())
			}
		}
	}
	return list
}

func signersOf(t *testing.T, der []byte) []signerInfo {
	t.Helper()
	c, err := ReadCMS(der)
	if err != nil {
		t.Fatal(err)
	}
	return c.signers
}

// TestCosigners: signers in an unsigned attribute count like others, and what is wrong with the attribute is refused.
func TestCosigners(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	a, b, c := issue(t, "a", root, nil, nil), issue(t, "b", root, nil, nil), issue(t, "c", root, nil, nil)
	k := parseText(t, head(1)+anchorText("r", root, "release")+"[role.release]\nthreshold=2\n")
	rules := Rules{Keyring: k, Now: now}
	infos := func(by ...*pair) (list [][]byte) {
		for _, p := range by {
			list = append(list, takeApart(forge{signers: []forgedSigner{{by: p}}}.der(t, content)).signers[0])
		}
		return list
	}
	first := func(unsigned ...[]byte) []byte {
		var raw []byte
		for _, u := range unsigned {
			raw = append(raw, u...)
		}
		f := forge{signers: []forgedSigner{{by: a, unsigned: raw}}}
		for _, p := range []*pair{a, b, c} {
			f.certs = append(f.certs, p.cert.Raw)
		}
		return f.der(t, content)
	}
	with := func(values ...[]byte) []byte {
		return tlv(tagSequence, tlv(tagOID, []byte(oidCosigners)), setOf(tagSet, values))
	}
	nested := takeApart(first(with(infos(b)...))).signers[0]
	for _, test := range []struct {
		name string
		der  []byte
		want Code
	}{
		{"one", first(with(infos(b)...)), 0},
		{"two", first(with(infos(b, c)...)), 0},
		{"the first once more", first(with(infos(a)...)), Threshold},
		{"one twice", first(with(append(infos(b), infos(b)...)...)), Threshold},
		{"the attribute twice", first(with(infos(b)...), with(infos(c)...)), Malformed},
		{"none", first(with()), Malformed},
		{"one that has its own", first(with(nested)), Malformed},
		{"no signer", first(with(tlv(tagSequence))), Malformed},
		{"eight more", first(with(infos(b, c, b, c, b, c, b, c)...)), Policy},
		{"beside another attribute", first(with(infos(b)...), attribute("\x2a\x03", tlv(tagNull))), Threshold},
		{"beside a time stamp", first(with(infos(b)...), attribute(oidTimeStampToken, tlv(tagNull))), 0},
	} {
		t.Run(test.name, func(t *testing.T) { check(t, test.der, rules, test.want) })
	}
}

// TestAssemble: the signature is made elsewhere, by openssl.
func TestAssemble(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	root := issue(t, "root", nil, nil, ca)
	var der []byte
	for _, key := range []crypto.Signer{p256(t), curve(t, elliptic.P384()), rsaKey(t, 2048)} {
		signer := issue(t, "signer", root, key, nil)
		tbs, err := ToBeSigned(content, signer.cert, now)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"key": pemOf("PRIVATE KEY", pkcs8), "tbs": tbs} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		md := "-sha256"
		if signer.cert.PublicKeyAlgorithm == x509.ECDSA && key.Public().(interface{ Params() *elliptic.CurveParams }).Params().BitSize == 384 {
			md = "-sha384"
		}
		cmd := exec.Command("openssl", "dgst", md, "-sign", "key", "-out", "sig", "tbs")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl: %v\n%s", err, out)
		}
		sig, err := os.ReadFile(filepath.Join(dir, "sig"))
		if err != nil {
			t.Fatal(err)
		}
		for what, bad := range map[string]func() ([]byte, error){
			"another content": func() ([]byte, error) {
				return Assemble(nil, []byte("other"), false, signer.cert, nil, tbs, sig)
			},
			"another signature":   func() ([]byte, error) { return Assemble(der, nil, false, signer.cert, nil, tbs, tbs) },
			"another certificate": func() ([]byte, error) { return Assemble(der, nil, false, root.cert, nil, tbs, sig) },
			"no attributes":       func() ([]byte, error) { return Assemble(der, nil, false, signer.cert, nil, nil, sig) },
		} {
			if _, err := bad(); err == nil {
				t.Errorf("assembled with %s", what)
			}
		}
		first := der == nil
		var inside []byte
		if first {
			inside = content
		}
		if der, err = Assemble(der, inside, false, signer.cert, nil, tbs, sig); err != nil {
			t.Fatal(err)
		}
		if err := opensslVerify(t, der, false, root); err != nil {
			t.Error(err)
		}
	}
}

func TestAddCRLs(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	signer := issue(t, "signer", root, nil, nil)
	der, err := Sign(content, false, signer.key, signer.cert, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	crl := func(n int64) []byte {
		b, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(n), ThisUpdate: now, NextUpdate: now.AddDate(1, 0, 0)}, root.cert, root.key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one, two := crl(1), crl(2)
	if der, err = AddCRLs(der, one); err != nil {
		t.Fatal(err)
	}
	if der, err = AddCRLs(der, two, one); err != nil {
		t.Fatal(err)
	}
	c, err := ReadCMS(der)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.CRLs(); len(got) != 2 || !bytes.Equal(got[0], one) && !bytes.Equal(got[1], one) {
		t.Errorf("%d CRLs", len(got))
	}
	check(t, der, Rules{Keyring: keyringOf(root), Now: now}, 0)
	if err := opensslVerify(t, der, false, root); err != nil {
		t.Error(err)
	}
	for what, bad := range map[string][]byte{"nothing": nil, "garbage": {4, 1, 1}, "too much": tlv(tagSequence, make([]byte, MaxCMS))} {
		if _, err := AddCRLs(der, bad); err == nil && what != "nothing" {
			t.Errorf("added %s", what)
		}
	}
}
