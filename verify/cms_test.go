package verify

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var content = []byte("[update]\ncompatible=demo\nversion=1\n")

// check reads, verifies and compares the code.
func check(t *testing.T, der []byte, r Rules, want Code) *Signed {
	t.Helper()
	c, err := ReadCMS(der)
	var s *Signed
	if err == nil {
		var digest func(crypto.Hash) ([]byte, error)
		s, err = c.Verify(r, digest)
	}
	if got := CodeOf(err); got != want {
		t.Errorf("code %d (%v), want %d", got, err, want)
	}
	if (err == nil) != (s != nil) {
		t.Errorf("result %v with error %v", s, err)
	}
	if s != nil && !bytes.Equal(s.Content, content) {
		t.Errorf("content %q", s.Content)
	}
	return s
}

// The numbers of the cases below are those of the project's list of bad inputs.

func TestMalformed(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	signer := issue(t, "signer", root, nil, nil)
	good, err := Sign(content, false, signer.key, signer.cert, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	r := Rules{Keyring: keyringOf(root), Now: now, Trusted: true}
	check(t, good, r, 0)

	deep := []byte{}
	for range 10_000 {
		deep = tlv(tagSequence, deep)
	}
	nested := tlv(tagNull)
	for range maxDepth + 1 {
		nested = tlv(tagSequence, nested)
	}
	one := func(change func(*forge)) []byte {
		f := forge{certs: [][]byte{signer.cert.Raw}, signers: []forgedSigner{{by: signer}}}
		change(&f)
		return f.der(t, content)
	}
	inIndefinite := func(der []byte) []byte {
		v, err := only(der, tagSequence)
		if err != nil {
			t.Fatal(err)
		}
		return append(append([]byte{tagSequence, 0x80}, v.body...), 0, 0)
	}
	nonMinimal := bytes.Clone(good)
	nonMinimal = slices.Insert(nonMinimal, 2, 0)
	nonMinimal[1]++
	shortAsLong := bytes.Replace(one(func(*forge) {}), []byte{tagInteger, 1, 1}, []byte{tagInteger, 0x81, 1, 1}, 1)
	many := slices.Repeat([]forgedSigner{{by: signer}}, 9)
	for _, c := range []struct {
		name string
		der  []byte
		want Code
	}{
		{"1 empty", nil, Malformed},
		{"2 short", []byte{0x30}, Malformed},
		{"6 more than 64 KiB", make([]byte, MaxCMS+1), Policy},
		{"6 exactly 64 KiB", make([]byte, MaxCMS), Malformed},
		{"7 trailing byte", append(bytes.Clone(good), 0), Malformed},
		{"7 cut off", good[:len(good)-1], Malformed},
		{"8 indefinite length", inIndefinite(good), Malformed},
		{"9 non-minimal long length", nonMinimal, Malformed},
		{"9 long form of a short length", shortAsLong, Malformed},
		{"10 nesting", deep, Malformed},
		{"10 nesting in CRLs", one(func(f *forge) { f.crls = nested }), Malformed},
		{"12 envelopedData", one(func(f *forge) { f.outerType = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03" }), Malformed},
		{"13 no signer", one(func(f *forge) { f.signers = nil }), BadSignature},
		{"14 nine signers", one(func(f *forge) { f.signers = many }), Policy},
		{"15 no signed attributes", one(func(f *forge) { f.signers[0].noAttrs = true }), BadSignature},
		{"22 detached", one(func(f *forge) { f.detached = true }), Malformed},
		{"50 signer twice", one(func(f *forge) { f.repeat = 1 }), Threshold},
		{"50 signer twice, with two signatures", one(func(f *forge) { f.signers = many[:2] }), Threshold},
		{"certificates missing", one(func(f *forge) { f.certs = nil }), Untrusted},
		{"17 certificates", one(func(f *forge) { f.certs = slices.Repeat(f.certs, 17) }), Policy},
		{"39 certificate twice", one(func(f *forge) { f.certs = slices.Repeat(f.certs, 2) }), Untrusted},
		{"certificate is garbage", one(func(f *forge) { f.certs = append(f.certs, tlv(tagSequence, tlv(tagNull))) }), Malformed},
		{"version 2", one(func(f *forge) { f.version = []byte{tagInteger, 1, 2} }), Malformed},
		{"version 3", one(func(f *forge) { f.version = []byte{tagInteger, 1, 3} }), 0},
		{"version is padded", one(func(f *forge) { f.version = []byte{tagInteger, 2, 0, 1} }), Malformed},
		{"signer version 3 with issuer", one(func(f *forge) { f.signers[0].version = 3 }), Malformed},
		{"unsorted attributes", one(func(f *forge) {
			f.signers[0].unsorted = true
			f.signers[0].attrs = [][]byte{digestAttr(crypto.SHA256, content), contentTypeAttr(oidData)}
		}), Malformed},
		{"digest algorithm not announced", one(func(f *forge) { f.digests = [][]byte{alg(oidSHA512)} }), Malformed},
		{"digest algorithms of others", one(func(f *forge) { f.digests = [][]byte{alg(oidSHA256), alg(oidSHA512)} }), 0},
		{"identifier is padded", one(func(f *forge) { f.digests = [][]byte{alg(oidSHA256), alg("\x2a\x80\x01")} }), Malformed},
		{"identifier is cut off", one(func(f *forge) { f.digests = [][]byte{alg(oidSHA256), alg("\x2a\x81")} }), Malformed},
		{"CRLs are not looked at", one(func(f *forge) { f.crls = tlv(tagSequence) }), 0},
		{"CRLs are not in DER", one(func(f *forge) { f.crls = tlv(tagOctetString) }), Malformed},
		{"too many CRLs", one(func(f *forge) { f.crls = bytes.Repeat(tlv(tagSequence), maxCRLs+1) }), Policy},
	} {
		t.Run(c.name, func(t *testing.T) { check(t, c.der, r, c.want) })
	}
}

// TestMalformedIsQuick (11): whatever stands in 64 KiB is refused in no time.
func TestMalformedIsQuick(t *testing.T) {
	random := mathrand.New(mathrand.NewPCG(1, 2))
	noise := make([]byte, MaxCMS)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	deep, broad := []byte{}, bytes.Repeat([]byte{tagNull, 0}, MaxCMS/2-8)
	for len(deep) < MaxCMS-8 {
		deep = append([]byte{tagSequence, 0x80}, deep...)
	}
	nested := []byte{}
	for range maxDepth - 1 {
		nested = tlv(tagSequence, nested, bytes.Repeat([]byte{tagSet, 0}, 900))
	}
	inside := func(b []byte) []byte {
		return tlv(tagSequence, tlv(tagOID, []byte(oidSignedData)), tlv(tagContext0, tlv(tagSequence, b)))
	}
	for name, der := range map[string][]byte{
		"noise": noise, "noise in a sequence": tlv(tagSequence, noise[:MaxCMS-4]), "indefinite lengths": deep, "values": tlv(tagSequence, broad),
		"values in a CMS": inside(broad[:MaxCMS-64]), "nested values": inside(nested), "one long number": inside(tlv(tagInteger, noise[:MaxCMS-64])),
		"one long identifier": inside(tlv(tagOID, bytes.Repeat([]byte{0x81}, MaxCMS-64))), "zeros": make([]byte, MaxCMS), "ones": bytes.Repeat([]byte{0xff}, MaxCMS),
	} {
		if len(der) > MaxCMS {
			t.Fatalf("%s: %d bytes", name, len(der))
		}
		quickest := time.Hour
		for range 5 {
			start := time.Now()
			if _, err := ReadCMS(der); CodeOf(err) != Malformed {
				t.Errorf("%s: %v", name, err)
			}
			quickest = min(quickest, time.Since(start))
		}
		if quickest > 100*time.Millisecond {
			t.Errorf("%s: refused after %s", name, quickest)
		}
	}
}

// TestStrippedAttributes (16): signed attributes presented as the content, under
// the signature that was made over them.
func TestStrippedAttributes(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	signer := issue(t, "signer", root, nil, nil)
	set := setOf(tagSet, [][]byte{contentTypeAttr(oidData), digestAttr(crypto.SHA256, content)})
	signature, err := signer.key.Sign(rand.Reader, sum(crypto.SHA256, set), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	f := forge{certs: [][]byte{signer.cert.Raw}, signers: []forgedSigner{{
		by: signer, noAttrs: true, sign: func([]byte) []byte { return signature },
	}}}
	check(t, f.der(t, set), Rules{Keyring: keyringOf(root), Now: now}, BadSignature)
}

func TestAttributes(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	signer := issue(t, "signer", root, nil, nil)
	r := Rules{Keyring: keyringOf(root), Now: now}
	ct, md := contentTypeAttr(oidData), digestAttr(crypto.SHA256, content)
	otherType := "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x04"
	timeAttr := func(tag byte, s string) []byte { return attribute(oidSigningTime, tlv(tag, []byte(s))) }
	token := tlv(tagSequence, tlv(tagOID, []byte(oidTimeStampToken)), tlv(tagSet, tlv(tagSequence)))
	for _, c := range []struct {
		name     string
		attrs    [][]byte
		content  string // type; "" is data
		unsigned []byte
		want     Code
	}{
		{"the usual", [][]byte{ct, md}, "", nil, 0},
		{"with time", [][]byte{ct, md, timeAttr(tagUTCTime, "300601120000Z")}, "", nil, 0},
		{"with late time", [][]byte{ct, md, timeAttr(tagTime, "20500601120000Z")}, "", nil, 0},
		{"with S/MIME capabilities", [][]byte{ct, md, attribute(oidSMIMECaps, tlv(tagSequence))}, "", nil, 0},
		{"none", [][]byte{}, "", nil, BadSignature},
		{"17 no content type", [][]byte{md}, "", nil, BadSignature},
		{"18 two content types", [][]byte{tlv(tagSequence, tlv(tagOID, []byte(oidContentType)), tlv(tagSet, tlv(tagOID, []byte(oidData)), tlv(tagOID, []byte(oidData)))), md}, "", nil, BadSignature},
		{"18 content type twice", [][]byte{ct, ct, md}, "", nil, BadSignature},
		{"19 no message digest", [][]byte{ct}, "", nil, BadSignature},
		{"19 other message digest", [][]byte{ct, digestAttr(crypto.SHA256, []byte("other"))}, "", nil, BadSignature},
		{"19 long message digest", [][]byte{ct, digestAttr(crypto.SHA512, content)}, "", nil, BadSignature},
		{"19 empty message digest", [][]byte{ct, attribute(oidMessageDigest, tlv(tagOctetString))}, "", nil, BadSignature},
		{"20 time is a string", [][]byte{ct, md, timeAttr(0x0c, "300601120000Z")}, "", nil, BadSignature},
		{"20 time is an octet string", [][]byte{ct, md, timeAttr(tagOctetString, "300601120000Z")}, "", nil, BadSignature},
		{"20 no such time", [][]byte{ct, md, timeAttr(tagUTCTime, "301301120000Z")}, "", nil, BadSignature},
		{"20 time with zone", [][]byte{ct, md, timeAttr(tagUTCTime, "300601120000+0000")}, "", nil, BadSignature},
		{"20 time of the other kind", [][]byte{ct, md, timeAttr(tagTime, "20300601120000Z")}, "", nil, BadSignature},
		{"20 time with fraction", [][]byte{ct, md, timeAttr(tagTime, "205006011200.5Z")}, "", nil, BadSignature},
		{"21 other content type", [][]byte{ct, md}, otherType, nil, BadSignature},
		{"21 other content type, signed", [][]byte{contentTypeAttr(otherType), md}, otherType, nil, BadSignature},
		{"21 other signed content type", [][]byte{contentTypeAttr(otherType), md}, "", nil, BadSignature},
		{"unknown attribute", [][]byte{ct, md, attribute("\x2a\x03", tlv(tagNull))}, "", nil, BadSignature},
		{"no value", [][]byte{tlv(tagSequence, tlv(tagOID, []byte(oidContentType)), tlv(tagSet)), md}, "", nil, BadSignature},
		{"not an attribute", [][]byte{ct, md, tlv(tagNull)}, "", nil, BadSignature},
		{"time stamp token", [][]byte{ct, md}, "", token, 0},
		{"unsigned attribute", [][]byte{ct, md}, "", attribute("\x2a\x03", tlv(tagNull)), Policy},
		{"token and more", [][]byte{ct, md}, "", append(bytes.Clone(token), token...), Policy},
		{"empty unsigned attributes", [][]byte{ct, md}, "", []byte{}, Malformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := forge{
				contentType: c.content, certs: [][]byte{signer.cert.Raw},
				signers: []forgedSigner{{by: signer, attrs: c.attrs, unsigned: c.unsigned}},
			}
			check(t, f.der(t, content), r, c.want)
		})
	}
}

func TestSigningTime(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	signer := issue(t, "signer", root, nil, nil)
	for _, at := range []time.Time{
		{},
		time.Date(1949, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(1968, 2, 29, 0, 0, 0, 0, time.UTC),
		time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		der, err := Sign(content, false, signer.key, signer.cert, nil, at)
		if err != nil {
			t.Fatal(err)
		}
		s := check(t, der, Rules{Keyring: keyringOf(root), Now: now}, 0)
		if s != nil && !s.SigningTime.Equal(at) {
			t.Errorf("signed at %s, read %s", at, s.SigningTime)
		}
	}
}

func TestKeyIdentifier(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	withID := func(id string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.SubjectKeyId = []byte(id) }
	}
	signer := issue(t, "signer", root, nil, withID("one"))
	twin := issue(t, "signer", root, nil, withID("one"))
	other := issue(t, "signer", root, nil, withID("two"))
	r := Rules{Keyring: keyringOf(root), Now: now}
	for _, c := range []struct {
		name  string
		id    string
		certs [][]byte
		want  Code
	}{
		{"found", "one", [][]byte{other.cert.Raw, signer.cert.Raw}, 0},
		{"missing", "one", [][]byte{other.cert.Raw}, Untrusted},
		{"two of them", "one", [][]byte{twin.cert.Raw, signer.cert.Raw}, Untrusted},
		{"empty", "", [][]byte{signer.cert.Raw}, Untrusted},
		{"of another key", "two", [][]byte{other.cert.Raw, signer.cert.Raw}, BadSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := forge{certs: c.certs, signers: []forgedSigner{{by: signer, version: 3, sid: tlv(tagContext, []byte(c.id))}}}
			check(t, f.der(t, content), r, c.want)
		})
	}
}

func TestAlgorithms(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	r := Rules{Keyring: keyringOf(root), Now: now}
	type test struct {
		name string
		key  crypto.Signer
		want Code
	}
	for _, c := range []test{
		{"P-256", p256(t), 0},
		{"P-384", curve(t, elliptic.P384()), 0},
		{"P-521", curve(t, elliptic.P521()), 0},
		{"Ed25519", edKey(t), 0},
		{"RSA 2048", rsaKey(t, 2048), 0},
		{"RSA 3072", rsaKey(t, 3072), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			signer := issue(t, "signer", root, c.key, nil)
			der, err := Sign(content, false, signer.key, signer.cert, nil, now)
			if err != nil {
				t.Fatal(err)
			}
			check(t, der, r, c.want)
		})
	}

	weak := func(t *testing.T) crypto.Signer {
		t.Setenv("GODEBUG", "rsa1024min=0")
		return rsaKey(t, 1024)
	}
	ec := p256(t)
	big := rsaKey(t, 2048)
	md5, sha1 := "\x2a\x86\x48\x86\xf7\x0d\x02\x05", "\x2b\x0e\x03\x02\x1a"
	null := []byte{tagNull, 0}
	pss := func(hash, mask string, salt byte) []byte {
		return alg(oidRSAPSS, tlv(tagSequence,
			tlv(tagContext0, alg(hash, null)),
			tlv(tagContext1, alg(oidMGF1, alg(mask, null))),
			tlv(tagContext2, []byte{tagInteger, 1, salt})))
	}
	signPSS := func(hash crypto.Hash, salt int) func([]byte) []byte {
		return func(m []byte) []byte {
			s, err := rsa.SignPSS(rand.Reader, big.(*rsa.PrivateKey), hash, sum(hash, m), &rsa.PSSOptions{SaltLength: salt})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	}
	raw := func(b []byte) func([]byte) []byte { return func([]byte) []byte { return b } }
	ints := func(r, s []byte) []byte { return tlv(tagSequence, tlv(tagInteger, r), tlv(tagInteger, s)) }
	n := append([]byte{0}, elliptic.P256().Params().N.Bytes()...)
	for _, c := range []struct {
		name   string
		key    func(*testing.T) crypto.Signer
		signer forgedSigner
		want   Code
	}{
		{"24 SHA-1", nil, forgedSigner{digestAlg: alg(sha1, null)}, Policy},
		{"24 MD5", nil, forgedSigner{digestAlg: alg(md5, null)}, Policy},
		{"24 digest with parameters", nil, forgedSigner{digestAlg: alg(oidSHA256, tlv(tagSequence))}, Policy},
		{"24 ECDSA with SHA-1", nil, forgedSigner{sigAlg: alg("\x2a\x86\x48\xce\x3d\x04\x01")}, Policy},
		{"25 RSA 1024", weak, forgedSigner{}, Policy},
		{"26 P-224", func(t *testing.T) crypto.Signer { return curve(t, elliptic.P224()) }, forgedSigner{}, Policy},
		{"digests differ", nil, forgedSigner{sigAlg: alg(oidECDSAWithSHA384)}, BadSignature},
		{"ECDSA with SHA-512", nil, forgedSigner{digestAlg: alg(oidSHA512), sigAlg: alg(oidECDSAWithSHA512), hash: crypto.SHA512}, 0},
		{"ECDSA with parameters", nil, forgedSigner{sigAlg: alg(oidECDSAWithSHA256, tlv(tagSequence))}, Policy},
		{"28 r and s are 0", nil, forgedSigner{sign: raw(ints([]byte{0}, []byte{0}))}, BadSignature},
		{"28 r is 0", nil, forgedSigner{sign: raw(ints([]byte{0}, []byte{1}))}, BadSignature},
		{"28 s is n", nil, forgedSigner{sign: raw(ints([]byte{1}, n))}, BadSignature},
		{"28 empty signature", nil, forgedSigner{sign: raw(nil)}, BadSignature},
		{"RSA algorithm, EC key", nil, forgedSigner{sigAlg: alg(oidRSA, null)}, BadSignature},
		{"Ed25519 algorithm, EC key", nil, forgedSigner{sigAlg: alg(oidEd25519), digestAlg: alg(oidSHA512)}, BadSignature},
		{"RSA with SHA-256", rsa2048(big), forgedSigner{sigAlg: alg(oidSHA256WithRSA, null)}, 0},
		{"RSA with SHA-384", rsa2048(big), forgedSigner{sigAlg: alg(oidSHA384WithRSA, null), digestAlg: alg(oidSHA384), hash: crypto.SHA384}, 0},
		{"RSA, digests differ", rsa2048(big), forgedSigner{sigAlg: alg(oidSHA512WithRSA, null)}, BadSignature},
		{"RSA, longer by a zero", rsa2048(big), forgedSigner{sign: func(m []byte) []byte {
			s, _ := big.Sign(rand.Reader, sum(crypto.SHA256, m), crypto.SHA256)
			return append([]byte{0}, s...)
		}}, BadSignature},
		{"PSS", rsa2048(big), forgedSigner{sigAlg: pss(oidSHA256, oidSHA256, 32), sign: signPSS(crypto.SHA256, 32)}, 0},
		{"PSS, other salt length", rsa2048(big), forgedSigner{sigAlg: pss(oidSHA256, oidSHA256, 20), sign: signPSS(crypto.SHA256, 20)}, 0},
		{"27 PSS, salt differs", rsa2048(big), forgedSigner{sigAlg: pss(oidSHA256, oidSHA256, 20), sign: signPSS(crypto.SHA256, 32)}, BadSignature},
		{"27 PSS, salt 0 is not any", rsa2048(big), forgedSigner{sigAlg: pss(oidSHA256, oidSHA256, 0), sign: signPSS(crypto.SHA256, 32)}, BadSignature},
		{"27 PSS, hash differs", rsa2048(big), forgedSigner{sigAlg: pss(oidSHA512, oidSHA512, 32), sign: signPSS(crypto.SHA256, 32)}, BadSignature},
		{"27 PSS, mask differs", rsa2048(big), forgedSigner{sigAlg: pss(oidSHA256, oidSHA512, 32), sign: signPSS(crypto.SHA256, 32)}, BadSignature},
		{"24 PSS with SHA-1 mask", rsa2048(big), forgedSigner{sigAlg: pss(oidSHA256, sha1, 32), sign: signPSS(crypto.SHA256, 32)}, Policy},
		{"24 PSS with defaults", rsa2048(big), forgedSigner{sigAlg: alg(oidRSAPSS, tlv(tagSequence)), sign: signPSS(crypto.SHA256, 32)}, Policy},
		{"PSS without parameters", rsa2048(big), forgedSigner{sigAlg: alg(oidRSAPSS), sign: signPSS(crypto.SHA256, 32)}, Policy},
		{"PSS signature as PKCS #1", rsa2048(big), forgedSigner{sign: signPSS(crypto.SHA256, 32)}, BadSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := ec
			if c.key != nil {
				key = c.key(t)
			}
			c.signer.by = issue(t, "signer", root, key, nil)
			f := forge{certs: [][]byte{c.signer.by.cert.Raw}, signers: []forgedSigner{c.signer}}
			check(t, f.der(t, content), r, c.want)
		})
	}
}

func rsa2048(k crypto.Signer) func(*testing.T) crypto.Signer {
	return func(*testing.T) crypto.Signer { return k }
}

// TestForgedPadding (29): with e=3, a number whose cube only begins like the
// padded digest.
func TestForgedPadding(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	key := rsaKey(t, 2048).(*rsa.PrivateKey)
	signer := issue(t, "signer", root, key, nil)
	// The certificate gets the exponent 3: its signature is made again.
	pub := key.PublicKey
	pub.E = 3
	der, err := x509.CreateCertificate(rand.Reader, signer.cert, root.cert, &pub, root.key)
	if err != nil {
		t.Fatal(err)
	}
	if signer.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	f := forge{certs: [][]byte{der}, signers: []forgedSigner{{by: signer, sign: func(m []byte) []byte {
		prefix := []byte{
			0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x30, 0x31, 0x30, 0x0d, 6, 9,
			0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20,
		}
		block := append(prefix, sum(crypto.SHA256, m)...)
		block = append(block, bytes.Repeat([]byte{0xff}, 256-len(block))...)
		return cubeRoot(new(big.Int).SetBytes(block)).FillBytes(make([]byte, 256))
	}}}}
	check(t, f.der(t, content), Rules{Keyring: keyringOf(root), Now: now}, BadSignature)
}

func cubeRoot(n *big.Int) *big.Int {
	low, high := big.NewInt(0), new(big.Int).Lsh(big.NewInt(1), uint(n.BitLen()/3+1))
	for {
		mid := new(big.Int).Rsh(new(big.Int).Add(low, high), 1)
		if mid.Cmp(low) == 0 {
			return low
		}
		if cube := new(big.Int).Exp(mid, big.NewInt(3), nil); cube.Cmp(n) <= 0 {
			low = mid
		} else {
			high = mid
		}
	}
}

// TestUnknownCurve (26): secp256k1, made by openssl, because Go does not know it.
func TestUnknownCurve(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	openssl := func(args ...string) {
		t.Helper()
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "content"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	openssl("ecparam", "-name", "secp256k1", "-genkey", "-noout", "-out", "key")
	openssl("req", "-x509", "-new", "-key", "key", "-out", "cert", "-subj", "/CN=koblitz", "-days", "30")
	openssl("cms", "-sign", "-binary", "-nosmimecap", "-nodetach", "-outform", "DER", "-in", "content", "-out", "cms", "-signer", "cert", "-inkey", "key")
	der, err := os.ReadFile(filepath.Join(dir, "cms"))
	if err != nil {
		t.Fatal(err)
	}
	check(t, der, Rules{Keyring: keyringOf(issue(t, "root", nil, nil, ca)), Now: now}, Policy)
}

// TestOpenSSLSigned: what openssl cms makes is read, with each of its choices.
func TestOpenSSLSigned(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	root := issue(t, "root", nil, nil, ca)
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("content", content)
	for name, key := range map[string]crypto.Signer{"ec": p256(t), "rsa": rsaKey(t, 2048)} {
		signer := issue(t, "signer", root, key, func(c *x509.Certificate) { c.SubjectKeyId = []byte("id of " + name) })
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".key", pemOf("PRIVATE KEY", der))
		write(name+".cert", pemOf("CERTIFICATE", signer.cert.Raw))
	}
	for _, c := range []struct {
		args string
		want Code
	}{
		{"-signer ec.cert -inkey ec.key", 0},
		{"-signer ec.cert -inkey ec.key -nosmimecap", 0},
		{"-signer ec.cert -inkey ec.key -md sha512", 0},
		{"-signer ec.cert -inkey ec.key -keyid", 0},
		{"-signer rsa.cert -inkey rsa.key", 0},
		{"-signer rsa.cert -inkey rsa.key -keyopt rsa_padding_mode:pss", 0},
		{"-signer rsa.cert -inkey rsa.key -keyopt rsa_padding_mode:pss -keyopt rsa_pss_saltlen:-1", 0},
		{"-signer ec.cert -inkey ec.key -md sha1", Policy},
		{"-signer ec.cert -inkey ec.key -noattr", BadSignature},
		{"-signer ec.cert -inkey ec.key -nocerts", Untrusted},
		{"-signer ec.cert -inkey ec.key -cades", BadSignature},
		{"-signer ec.cert -inkey ec.key -stream", Malformed}, // BER
		{"-signer ec.cert -inkey ec.key -signer rsa.cert -inkey rsa.key", 0},
	} {
		t.Run(c.args, func(t *testing.T) {
			args := append([]string{"cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-in", "content", "-out", "cms"}, strings.Fields(c.args)...)
			cmd := exec.Command("openssl", args...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("openssl: %v\n%s", err, out)
			}
			der, err := os.ReadFile(filepath.Join(dir, "cms"))
			if err != nil {
				t.Fatal(err)
			}
			check(t, der, Rules{Keyring: keyringOf(root), Now: now}, c.want)
		})
	}
}

func TestDetached(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	signer := issue(t, "signer", root, nil, nil)
	r := Rules{Keyring: keyringOf(root), Now: now}
	der, err := Sign(content, true, signer.key, signer.cert, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ReadCMS(der)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Detached() || c.Unverified() != nil {
		t.Error("not detached")
	}
	hash := func(b []byte) func(crypto.Hash) ([]byte, error) {
		return func(h crypto.Hash) ([]byte, error) { return sum(h, b), nil }
	}
	if s, err := c.Verify(r, hash(content)); err != nil || s.Content != nil {
		t.Errorf("%v, %v", s, err)
	}
	errRead := errors.New("medium is gone")
	for _, bad := range []struct {
		name   string
		digest func(crypto.Hash) ([]byte, error)
		want   Code
	}{
		{"other content", hash([]byte("other")), BadSignature},
		{"empty digest", func(crypto.Hash) ([]byte, error) { return nil, nil }, BadSignature},
		{"read error", func(crypto.Hash) ([]byte, error) { return nil, errRead }, IO},
		{"no digest", nil, Malformed},
	} {
		if _, err := c.Verify(r, bad.digest); CodeOf(err) != bad.want {
			t.Errorf("%s: %v, want code %d", bad.name, err, bad.want)
		}
	}
	// The content of an untrusted signer is not even read.
	_, err = c.Verify(Rules{Keyring: keyringOf(issue(t, "other", nil, nil, ca)), Now: now}, func(crypto.Hash) ([]byte, error) {
		t.Error("content was asked for")
		return nil, nil
	})
	if CodeOf(err) != Untrusted {
		t.Error(err)
	}

	// 23: content inside where it should be outside.
	der, err = Sign(content, false, signer.key, signer.cert, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = ReadCMS(der); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Verify(r, hash(content)); CodeOf(err) != Malformed {
		t.Error(err)
	}
	if c.Detached() || !bytes.Equal(c.Unverified(), content) {
		t.Error("content is not shown")
	}
	s := c.Signers()
	if len(s) != 1 || s[0].Certificate == nil || SPKI(s[0].Certificate) != SPKI(signer.cert) || s[0].Algorithm != "ECDSA with SHA-256" || !s[0].SigningTime.Equal(now) {
		t.Errorf("signers %+v", s)
	}
}

func TestSignRefuses(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	signer := issue(t, "signer", root, nil, nil)
	if _, err := Sign(content, false, root.key, signer.cert, nil, now); err == nil {
		t.Error("signed with another key")
	}
	if _, err := Sign(make([]byte, MaxCMS), false, signer.key, signer.cert, nil, now); err == nil {
		t.Error("signed more than fits")
	}
	weak := issue(t, "weak", root, curve(t, elliptic.P224()), nil)
	if _, err := Sign(content, false, weak.key, weak.cert, nil, now); err == nil {
		t.Error("signed with P-224")
	}
}

// TestMutations changes every byte of a CMS in many ways. What is accepted must
// have the content that was signed.
func TestMutations(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	middle := issue(t, "middle", root, nil, pathLen0)
	signer := issue(t, "signer", middle, nil, nil)
	r := Rules{Keyring: keyringOf(root), Now: now, Trusted: true}
	good, err := Sign(content, false, signer.key, signer.cert, []*x509.Certificate{middle.cert}, now)
	if err != nil {
		t.Fatal(err)
	}
	accepted, total := 0, 0
	try := func(der []byte) {
		total++
		c, err := ReadCMS(der)
		if err != nil {
			if CodeOf(err) == IO {
				t.Fatalf("no code: %v", err)
			}
			return
		}
		s, err := c.Verify(r, nil)
		if err == nil {
			accepted++
			if !bytes.Equal(s.Content, content) || !s.SigningTime.Equal(now) {
				t.Fatalf("accepted with content %q at %s", s.Content, s.SigningTime)
			}
		} else if CodeOf(err) == IO {
			t.Fatalf("no code: %v", err)
		}
	}
	random := mathrand.New(mathrand.NewPCG(5, 6))
	for i := range good {
		for _, flip := range []byte{1, 2, 4, 0x20, 0x80, byte(1 + random.IntN(255))} {
			bad := bytes.Clone(good)
			bad[i] ^= flip
			try(bad)
		}
		try(slices.Delete(bytes.Clone(good), i, i+1))
		try(slices.Insert(bytes.Clone(good), i, byte(random.Uint32())))
		try(good[:i])
	}
	t.Logf("%d of %d mutations accepted, all with the signed content", accepted, total)
	if accepted > 4 {
		t.Errorf("%d mutations accepted: too much of a CMS has no meaning", accepted)
	}
}

// TestCost: verification takes at most 20 ms and 8 MiB, whatever a bundle
// brings along.
func TestCost(t *testing.T) {
	// The dearest of keys, and as many CAs of one name as fit.
	root := issue(t, "root", nil, curve(t, elliptic.P521()), ca)
	sameID := edit(ca, func(c *x509.Certificate) { c.SubjectKeyId = []byte("id") })
	middle := issue(t, "ca", root, curve(t, elliptic.P521()), sameID)
	signer := issue(t, "signer", middle, curve(t, elliptic.P521()), nil)
	var others []*x509.Certificate
	for range 14 {
		others = append(others, issue(t, "ca", root, curve(t, elliptic.P521()), sameID).cert)
	}
	der, err := Sign(content, false, signer.key, signer.cert, append(others, middle.cert), now)
	if err != nil {
		t.Fatal(err)
	}
	r := Rules{Keyring: keyringOf(root), Now: now}
	check(t, der, r, 0)
	cost(t, func() error {
		c, err := ReadCMS(der)
		if err == nil {
			_, err = c.Verify(r, nil)
		}
		return err
	})
}

// cost asks for at most 20 ms of processor time and 8 MiB. Other work on the
// machine makes even that longer, so more than twice is an error.
func cost(t *testing.T, f func() error) {
	t.Helper()
	if err := f(); err != nil {
		t.Fatal(err)
	}
	const runs = 20
	var before, after syscall.Rusage
	var memory [2]runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory[0])
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	for range runs {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	runtime.ReadMemStats(&memory[1])
	each := time.Duration(after.Utime.Nano()-before.Utime.Nano()+after.Stime.Nano()-before.Stime.Nano()) / runs
	bytes := (memory[1].TotalAlloc - memory[0].TotalAlloc) / runs
	t.Logf("%s, %d bytes", each, bytes)
	if each > 40*time.Millisecond {
		t.Errorf("%s per verification", each)
	}
	if bytes > 8<<20 {
		t.Errorf("%d bytes per verification", bytes)
	}
}

func BenchmarkVerify(b *testing.B) {
	for name, key := range map[string]crypto.Signer{"P-256": p256(b), "RSA-4096": rsaKey(b, 4096)} {
		b.Run(name, func(b *testing.B) {
			root := issue(b, "root", nil, key, ca)
			signer := issue(b, "signer", root, key, nil)
			der, err := Sign(content, false, key, signer.cert, nil, now)
			if err != nil {
				b.Fatal(err)
			}
			r := Rules{Keyring: keyringOf(root), Now: now}
			b.ReportAllocs()
			for b.Loop() {
				c, err := ReadCMS(der)
				if err == nil {
					_, err = c.Verify(r, nil)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// vectors are the CMS of testdata, all under testdata/keyring.pem: by Sign, and
// one by Debian's rauc 1.8. The fuzzer needs inputs that stay the same.
func vectors(t testing.TB) (Rules, map[string][]byte) {
	t.Helper()
	data, err := os.ReadFile("testdata/keyring.pem")
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKeyring(data)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/*.cms")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	all := make(map[string][]byte)
	for _, f := range files {
		if all[filepath.Base(f)], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	return Rules{Keyring: k, Now: now, Trusted: true}, all
}

func TestVectors(t *testing.T) {
	r, all := vectors(t)
	want := map[string]Code{
		"p256.cms": 0, "rsa.cms": 0, "ed25519.cms": 0, "rauc-1.8.cms": 0,
		"detached.cms": Malformed, "two-signers.cms": Threshold,
	}
	for name, der := range all {
		c, err := ReadCMS(der)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		code, known := want[name]
		if _, err := c.Verify(r, nil); CodeOf(err) != code || !known {
			t.Errorf("%s: %v, want code %d", name, err, code)
		}
	}
	if len(all) != len(want) {
		t.Errorf("%d vectors, want %d", len(all), len(want))
	}
}

func FuzzReadCMS(f *testing.F) {
	r, all := vectors(f)
	signed := make(map[string]bool)
	for _, der := range all {
		f.Add(der)
		if c, err := ReadCMS(der); err == nil {
			signed[string(c.Unverified())] = true
		}
	}
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Add(binary.BigEndian.AppendUint64([]byte{0x30, 0x84}, 1<<63))
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := ReadCMS(der)
		if err != nil {
			if code := CodeOf(err); code != Malformed && code != Policy {
				t.Fatalf("code %d: %v", code, err)
			}
			return
		}
		c.Signers()
		c.Certificates()
		var digest func(crypto.Hash) ([]byte, error)
		if c.Detached() {
			digest = func(h crypto.Hash) ([]byte, error) { return sum(h, content), nil }
		}
		s, err := c.Verify(r, digest)
		if err == nil && !c.Detached() && !signed[string(s.Content)] {
			t.Fatalf("accepted %q", s.Content)
		}
		if CodeOf(err) == IO {
			t.Fatalf("no code: %v", err)
		}
	})
}
