package badinputs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"time"

	"lifeboat/verify/keys"
)

// DER is written here without the writer of package verify: what is to be refused must not be made by what refuses it.

const (
	tagInteger     = 0x02
	tagBitString   = 0x03
	tagOctetString = 0x04
	tagNull        = 0x05
	tagUTCTime     = 0x17
	tagSequence    = 0x30
	tagSet         = 0x31
	tagContext0    = 0xa0
	tagContext1    = 0xa1
	tagContext2    = 0xa2
)

var (
	oidData          = oid(1, 2, 840, 113549, 1, 7, 1)
	oidSignedData    = oid(1, 2, 840, 113549, 1, 7, 2)
	oidEnvelopedData = oid(1, 2, 840, 113549, 1, 7, 3)
	oidTSTInfo       = oid(1, 2, 840, 113549, 1, 9, 16, 1, 4)
	oidContentType   = oid(1, 2, 840, 113549, 1, 9, 3)
	oidMessageDigest = oid(1, 2, 840, 113549, 1, 9, 4)
	oidSigningTime   = oid(1, 2, 840, 113549, 1, 9, 5)

	oidMD5        = oid(1, 2, 840, 113549, 2, 5)
	oidSHA1       = oid(1, 3, 14, 3, 2, 26)
	oidSHA256     = oid(2, 16, 840, 1, 101, 3, 4, 2, 1)
	oidSHA512     = oid(2, 16, 840, 1, 101, 3, 4, 2, 3)
	oidRSA        = oid(1, 2, 840, 113549, 1, 1, 1)
	oidMGF1       = oid(1, 2, 840, 113549, 1, 1, 8)
	oidPSS        = oid(1, 2, 840, 113549, 1, 1, 10)
	oidECDSA      = oid(1, 2, 840, 10045, 4, 3, 2) // with SHA-256
	oidECDSASHA1  = oid(1, 2, 840, 10045, 4, 1)
	oidECKey      = oid(1, 2, 840, 10045, 2, 1)
	oidSecp256k1  = oid(1, 3, 132, 0, 10)
	null          = []byte{tagNull, 0}
	version1      = []byte{tagInteger, 1, 1}
	usualDigest   = tlv(tagSequence, oidSHA256)
	usualECDSA    = tlv(tagSequence, oidECDSA)
	usualRSA      = tlv(tagSequence, oidRSA, null)
	usualContType = attribute(oidContentType, oidData)
)

func oid(n ...int) []byte {
	b, err := asn1.Marshal(asn1.ObjectIdentifier(n))
	if err != nil {
		panic(err)
	}
	return b
}

func tlv(tag byte, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	n := len(body)
	var out []byte
	switch {
	case n < 1<<7:
		out = []byte{tag, byte(n)}
	case n < 1<<8:
		out = []byte{tag, 0x81, byte(n)}
	case n < 1<<16:
		out = []byte{tag, 0x82, byte(n >> 8), byte(n)}
	default:
		out = []byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}
	}
	return append(out, body...)
}

func attribute(kind []byte, values ...[]byte) []byte {
	return tlv(tagSequence, kind, tlv(tagSet, values...))
}

func sum(h crypto.Hash, b []byte) []byte {
	d := h.New()
	d.Write(b)
	return d.Sum(nil)
}

func digestAttr(content []byte) []byte {
	return attribute(oidMessageDigest, tlv(tagOctetString, sum(crypto.SHA256, content)))
}

// cms is a SignedData of free choice; what is zero is as verify.Sign makes it.
type cms struct {
	outer       []byte // type of the ContentInfo
	contentType []byte
	detached    bool
	certs       [][]byte // nil: of the first signer
	signers     []signer
}

type signer struct {
	by        keys.Pair
	digestAlg []byte
	attrs     [][]byte // nil: content type and message digest
	noAttrs   bool     // the signature is over the content
	sigAlg    []byte
	sign      func(message []byte) []byte
}

func (c cms) der(k *Kit, content []byte) []byte {
	if c.outer == nil {
		c.outer = oidSignedData
	}
	if c.contentType == nil {
		c.contentType = oidData
	}
	if c.certs == nil && len(c.signers) > 0 {
		c.certs = [][]byte{c.signers[0].by.Cert.Raw}
	}
	encap := [][]byte{c.contentType}
	if !c.detached {
		encap = append(encap, tlv(tagContext0, tlv(tagOctetString, content)))
	}
	var digests, infos [][]byte
	for _, s := range c.signers {
		if s.digestAlg == nil {
			s.digestAlg = usualDigest
		}
		digests = append(digests, s.digestAlg)
		infos = append(infos, s.der(k, content))
	}
	return tlv(tagSequence, c.outer, tlv(tagContext0, tlv(tagSequence,
		version1, tlv(tagSet, digests...), tlv(tagSequence, encap...), tlv(tagContext0, c.certs...), tlv(tagSet, infos...))))
}

func (s signer) der(k *Kit, content []byte) []byte {
	if s.attrs == nil {
		s.attrs = [][]byte{usualContType, digestAttr(content)}
	}
	_, isRSA := s.by.Cert.PublicKey.(*rsa.PublicKey)
	if s.sigAlg == nil && isRSA {
		s.sigAlg = usualRSA
	} else if s.sigAlg == nil {
		s.sigAlg = usualECDSA
	}
	if s.sign == nil {
		s.sign = func(message []byte) []byte {
			sig, err := s.by.Key.Sign(rand.Reader, sum(crypto.SHA256, message), crypto.SHA256)
			k.must(err)
			return sig
		}
	}
	slices.SortFunc(s.attrs, bytes.Compare)
	signed := tlv(tagSet, s.attrs...)
	message := signed
	parts := [][]byte{version1, tlv(tagSequence, s.by.Cert.RawIssuer, serial(k, s.by.Cert)), s.digestAlg}
	if s.noAttrs {
		message = content
	} else {
		parts = append(parts, append([]byte{tagContext0}, signed[1:]...))
	}
	return tlv(tagSequence, append(parts, s.sigAlg, tlv(tagOctetString, s.sign(message)))...)
}

func serial(k *Kit, c *x509.Certificate) []byte {
	b, err := asn1.Marshal(c.SerialNumber)
	k.must(err)
	return b
}

// issue makes a certificate for key (nil: a new one on P-256) after the template of a good signer, changed.
func (k *Kit) issue(cn string, parent keys.Pair, key crypto.Signer, changes ...func(*x509.Certificate)) keys.Pair {
	if key == nil {
		key = k.curve(elliptic.P256())
	}
	k.serial++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(k.serial), Subject: pkix.Name{CommonName: cn},
		NotBefore: k.Now.Add(-time.Hour), NotAfter: k.Now.AddDate(5, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageEmailProtection},
		BasicConstraintsValid: true,
	}
	for _, change := range changes {
		change(c)
	}
	if parent.Cert == nil {
		parent = keys.Pair{Cert: c, Key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent.Cert, key.Public(), parent.Key)
	k.must(err)
	c, err = x509.ParseCertificate(der)
	k.must(err)
	return keys.Pair{Cert: c, Key: key}
}

func authority(c *x509.Certificate) {
	c.IsCA, c.MaxPathLen, c.KeyUsage, c.ExtKeyUsage = true, -1, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
}

func usages(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = u }
}

func (k *Kit) curve(c elliptic.Curve) crypto.Signer {
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	k.must(err)
	return key
}

// recertify makes the certificate again with another SubjectPublicKeyInfo, signed by parent, which has a key on P-256.
func (k *Kit) recertify(c *x509.Certificate, parent keys.Pair, spki []byte) []byte {
	var parts []asn1.RawValue
	_, err := asn1.Unmarshal(c.RawTBSCertificate, &parts)
	k.must(err)
	var tbs [][]byte
	for i, p := range parts {
		if i == 6 { // version, serial number, algorithm, issuer, validity, subject, key
			p.FullBytes = spki
		}
		tbs = append(tbs, p.FullBytes)
	}
	body := tlv(tagSequence, tbs...)
	sig, err := parent.Key.Sign(rand.Reader, sum(crypto.SHA256, body), crypto.SHA256)
	k.must(err)
	return tlv(tagSequence, body, usualECDSA, tlv(tagBitString, []byte{0}, sig))
}
