package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// now is the time of all tests; certificates are valid a year around it.
var now = time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)

// pair is a key with its certificate.
type pair struct {
	key  crypto.Signer
	cert *x509.Certificate
}

var serial int64

// issue makes a certificate for key (nil: a new P-256 one) after change has
// edited a good signer's template; parent nil is self-signed.
func issue(t testing.TB, cn string, parent *pair, key crypto.Signer, change func(*x509.Certificate)) *pair {
	t.Helper()
	if key == nil {
		key = p256(t)
	}
	serial++
	c := &x509.Certificate{
		SerialNumber:          big.NewInt(serial),
		Subject:               pkix.Name{CommonName: cn},
		NotBefore:             now.AddDate(-1, 0, 0),
		NotAfter:              now.AddDate(1, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageEmailProtection},
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(c)
	}
	issuer, issuerKey := c, key
	if parent != nil {
		issuer, issuerKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, key.Public(), issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{key, c}
}

// ca is the change that makes a CA.
func ca(c *x509.Certificate) {
	c.IsCA = true
	c.MaxPathLen = -1
	c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	c.ExtKeyUsage = nil
}

func pathLen0(c *x509.Certificate) { ca(c); c.MaxPathLen, c.MaxPathLenZero = 0, true }

func extension(critical bool, value []byte, id ...int) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier(id), Critical: critical, Value: value})
	}
}

func p256(t testing.TB) crypto.Signer { return curve(t, elliptic.P256()) }

func curve(t testing.TB, c elliptic.Curve) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, bits int) crypto.Signer {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func edKey(t testing.TB) crypto.Signer {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keyringOf(pairs ...*pair) *Keyring {
	var b bytes.Buffer
	for _, p := range pairs {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
	}
	k, err := ParseKeyring(b.Bytes())
	if err != nil {
		panic(err)
	}
	return k
}

// forgedCRL is a CRL of free choice. Its zero value is completed by der to a
// good one, number 1.
type forgedCRL struct {
	by         *pair
	version    []byte
	issuer     []byte
	innerAlg   []byte
	this, next []byte
	revoked    []*pair
	entries    [][]byte
	number     int64
	exts       [][]byte // beside number and key identifier
	noNumber   bool
	noExts     bool
	sign       func(tbs []byte) []byte
}

func ext(n int, critical bool, v []byte) []byte {
	parts := [][]byte{tlv(tagOID, []byte(oidExtensions+string(rune(n))))}
	if critical {
		parts = append(parts, []byte{tagBoolean, 1, 0xff})
	}
	return tlv(tagSequence, append(parts, tlv(tagOctetString, v))...)
}

func integer(n int64) []byte {
	b := big.NewInt(n).Bytes()
	if len(b) == 0 || b[0] >= 0x80 {
		b = append([]byte{0}, b...)
	}
	return tlv(tagInteger, b)
}

// entry revokes a serial number (INTEGER).
func entry(serial []byte, exts ...[]byte) []byte {
	parts := [][]byte{serial, encodeTime(now)}
	if exts != nil {
		parts = append(parts, tlv(tagSequence, exts...))
	}
	return tlv(tagSequence, parts...)
}

func (f forgedCRL) der(t testing.TB) []byte {
	t.Helper()
	sigAlg, hash := alg(oidECDSAWithSHA256), crypto.SHA256
	if f.version == nil {
		f.version = []byte{tagInteger, 1, 1}
	}
	if f.innerAlg == nil {
		f.innerAlg = sigAlg
	}
	if f.issuer == nil {
		f.issuer = f.by.cert.RawSubject
	}
	if f.this == nil {
		f.this = encodeTime(now.AddDate(0, -1, 0))
	}
	if f.next == nil {
		f.next = encodeTime(now.AddDate(0, 1, 0))
	}
	if f.number == 0 {
		f.number = 1
	}
	for _, p := range f.revoked {
		f.entries = append(f.entries, entry(serialOf(p.cert)))
	}
	exts := f.exts
	if !f.noNumber {
		exts = append(exts, ext(extCRLNumber, false, integer(f.number)))
	}
	if id := f.by.cert.SubjectKeyId; id != nil {
		exts = append(exts, ext(extAuthorityKeyID, false, tlv(tagSequence, tlv(tagContext, id))))
	}
	parts := [][]byte{f.version, f.innerAlg, f.issuer, f.this, f.next}
	if f.entries != nil {
		parts = append(parts, tlv(tagSequence, f.entries...))
	}
	if !f.noExts {
		parts = append(parts, tlv(tagContext0, tlv(tagSequence, exts...)))
	}
	tbs := tlv(tagSequence, parts...)
	if f.sign == nil {
		f.sign = func(tbs []byte) []byte {
			sig, err := f.by.key.Sign(rand.Reader, sum(hash, tbs), hash)
			if err != nil {
				t.Fatal(err)
			}
			return sig
		}
	}
	return tlv(tagSequence, tbs, sigAlg, tlv(tagBitString, []byte{0}, f.sign(tbs)))
}

// forge is a CMS of free choice. Its zero value is completed by der to one
// like Sign makes.
type forge struct {
	outerType   string // of ContentInfo
	version     []byte // of SignedData
	contentType string
	digests     [][]byte
	detached    bool
	certs       [][]byte
	crls        []byte
	signers     []forgedSigner
	repeat      int // how often the last SignerInfo stands there again, byte for byte
}

type forgedSigner struct {
	version   byte
	sid       []byte
	digestAlg []byte
	hash      crypto.Hash // what attributes are hashed with
	attrs     [][]byte    // nil: the usual two
	noAttrs   bool        // signature over the content
	unsorted  bool
	sigAlg    []byte
	sign      func(message []byte) []byte // nil: ECDSA or RSA PKCS #1 v1.5 by key
	by        *pair
	unsigned  []byte
}

func alg(oid string, params ...[]byte) []byte {
	return tlv(tagSequence, append([][]byte{tlv(tagOID, []byte(oid))}, params...)...)
}

func sum(h crypto.Hash, b []byte) []byte {
	d := h.New()
	d.Write(b)
	return d.Sum(nil)
}

func contentTypeAttr(oid string) []byte { return attribute(oidContentType, tlv(tagOID, []byte(oid))) }

func digestAttr(h crypto.Hash, content []byte) []byte {
	return attribute(oidMessageDigest, tlv(tagOctetString, sum(h, content)))
}

func (f forge) der(t testing.TB, content []byte) []byte {
	t.Helper()
	if f.outerType == "" {
		f.outerType = oidSignedData
	}
	if f.version == nil {
		f.version = []byte{tagInteger, 1, 1}
	}
	if f.contentType == "" {
		f.contentType = oidData
	}
	encap := [][]byte{tlv(tagOID, []byte(f.contentType))}
	if !f.detached {
		encap = append(encap, tlv(tagContext0, tlv(tagOctetString, content)))
	}
	var signers, digests [][]byte
	for _, s := range f.signers {
		signers = append(signers, s.der(t, content))
		if s.digestAlg == nil {
			s.digestAlg = alg(oidSHA256)
		}
		digests = append(digests, s.digestAlg)
	}
	for range f.repeat {
		signers = append(signers, signers[len(signers)-1])
	}
	if f.digests != nil {
		digests = f.digests
	}
	parts := [][]byte{
		f.version,
		tlv(tagSet, digests...),
		tlv(tagSequence, encap...),
	}
	if f.certs != nil {
		parts = append(parts, tlv(tagContext0, f.certs...))
	}
	if f.crls != nil {
		parts = append(parts, tlv(tagContext1, f.crls))
	}
	parts = append(parts, tlv(tagSet, signers...))
	return tlv(tagSequence, tlv(tagOID, []byte(f.outerType)), tlv(tagContext0, tlv(tagSequence, parts...)))
}

func (s forgedSigner) der(t testing.TB, content []byte) []byte {
	t.Helper()
	if s.version == 0 {
		s.version = 1
	}
	if s.sid == nil {
		s.sid = tlv(tagSequence, s.by.cert.RawIssuer, serialOf(s.by.cert))
	}
	if s.hash == 0 {
		s.hash = crypto.SHA256
	}
	if s.digestAlg == nil {
		s.digestAlg = alg(oidSHA256)
	}
	if s.attrs == nil {
		s.attrs = [][]byte{contentTypeAttr(oidData), digestAttr(s.hash, content)}
	}
	_, isRSA := s.by.key.(*rsa.PrivateKey)
	if s.sigAlg == nil {
		s.sigAlg = alg(oidECDSAWithSHA256)
		if isRSA {
			s.sigAlg = alg(oidRSA, []byte{tagNull, 0})
		}
	}
	if s.sign == nil {
		s.sign = func(message []byte) []byte {
			sig, err := s.by.key.Sign(rand.Reader, sum(s.hash, message), s.hash)
			if err != nil {
				t.Fatal(err)
			}
			return sig
		}
	}
	set := setOf(tagSet, s.attrs)
	if s.unsorted {
		set = tlv(tagSet, s.attrs...)
	}
	parts := [][]byte{{tagInteger, 1, s.version}, s.sid, s.digestAlg}
	message := content
	if !s.noAttrs {
		message = set
		parts = append(parts, append([]byte{tagContext0}, set[1:]...))
	}
	parts = append(parts, s.sigAlg, tlv(tagOctetString, s.sign(message)))
	if s.unsigned != nil {
		parts = append(parts, tlv(tagContext1, s.unsigned))
	}
	return tlv(tagSequence, parts...)
}

// counting is the digest of content for detached signatures.
func counting(n *int) func(crypto.Hash) ([]byte, error) {
	return func(h crypto.Hash) ([]byte, error) { *n++; return sum(h, content), nil }
}
