package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Sign makes a CMS as RAUC and `openssl cms -sign -binary -nosmimecap` do, with
// cert and intermediates in it. at becomes the signing time; zero leaves it
// out. Content is hashed with the SHA-2 that fits the key: SHA-256, SHA-384 for
// P-384, SHA-512 for P-521 and Ed25519. It is an error if [ReadCMS] would
// refuse the result.
func Sign(content []byte, detached bool, key crypto.Signer, cert *x509.Certificate, intermediates []*x509.Certificate, at time.Time) ([]byte, error) {
	return sign(nil, content, detached, key, cert, intermediates, at)
}

// AddSigner returns cms with a further signer, in an unsigned attribute of the
// first, so that RAUC 1.8, which takes one signer only, sees that one and still
// takes it. Its content and what other signers signed stay byte for byte. content is nil when the CMS has it, else
// what the others signed. One who signed already is refused.
func AddSigner(cms, content []byte, key crypto.Signer, cert *x509.Certificate, intermediates []*x509.Certificate, at time.Time) ([]byte, error) {
	if cms == nil {
		return nil, errors.New("sign: no CMS to add a signer to")
	}
	return sign(cms, content, false, key, cert, intermediates, at)
}

func sign(cms, content []byte, detached bool, key crypto.Signer, cert *x509.Certificate, intermediates []*x509.Certificate, at time.Time) ([]byte, error) {
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("sign: key does not belong to the certificate of %s", name(cert))
	}
	m, err := methodOf(cert)
	if err != nil {
		return nil, err
	}
	whole := content
	if cms != nil {
		c, err := ReadCMS(cms)
		if err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
		if !c.Detached() {
			whole = c.content
		}
	}
	signed, err := ToBeSigned(whole, cert, at)
	if err != nil {
		return nil, err
	}
	message, opts := signed, crypto.Hash(0)
	if m.family != ed25519Sig {
		message, opts = sumOf(m.hash, signed), m.hash
	}
	signature, err := key.Sign(rand.Reader, message, opts)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return Assemble(cms, content, detached, cert, intermediates, signed, signature)
}

// ToBeSigned is the first half of [Sign], for a key that is elsewhere: the
// signed attributes (a SET OF in DER). The signature over them is RSA PKCS #1
// v1.5 with SHA-256, ECDSA in DER with SHA-256 (P-384: SHA-384, P-521:
// SHA-512), or Ed25519.
func ToBeSigned(content []byte, cert *x509.Certificate, at time.Time) ([]byte, error) {
	m, err := methodOf(cert)
	if err != nil {
		return nil, err
	}
	attrs := [][]byte{
		attribute(oidContentType, tlv(tagOID, []byte(oidData))),
		attribute(oidMessageDigest, tlv(tagOctetString, sumOf(m.hash, content))),
	}
	if !at.IsZero() {
		attrs = append(attrs, attribute(oidSigningTime, encodeTime(at)))
	}
	return setOf(tagSet, attrs), nil
}

// Assemble is the second half: signature is the one over signed, which came
// from [ToBeSigned]. With cms nil it makes a new CMS, detached or not, else it
// adds the signer as [AddSigner] does. The signature is checked.
func Assemble(cms, content []byte, detached bool, cert *x509.Certificate, intermediates []*x509.Certificate, signed, signature []byte) ([]byte, error) {
	m, err := methodOf(cert)
	if err != nil {
		return nil, err
	}
	var d draft
	if cms == nil {
		d = newDraft(content, detached)
	} else {
		c, err := ReadCMS(cms)
		if err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
		switch {
		case !c.Detached() && content != nil:
			return nil, errors.New("sign: the CMS has its content, another is given")
		case !c.Detached():
			content = c.content
		case content == nil:
			return nil, errors.New("sign: the CMS is detached, its content is needed")
		}
		for _, s := range c.signers {
			if bytes.Equal(s.issuerSerial, sidOf(cert)) || s.keyID != nil && bytes.Equal(s.keyID, cert.SubjectKeyId) {
				return nil, fmt.Errorf("sign: %s signed already", name(cert))
			}
			a, err := parseAttributes(s.attrs)
			if err != nil {
				return nil, fmt.Errorf("sign: a signer that is there: %w", err)
			}
			hash, err := hashOf(s.digest)
			if err != nil {
				return nil, fmt.Errorf("sign: a signer that is there: %w", err)
			}
			if !bytes.Equal(sumOf(hash, content), a.messageDigest) {
				return nil, errors.New("sign: the content is not the one that is signed already")
			}
		}
		d = takeApart(cms)
	}

	attrs := bytes.Clone(signed)
	if len(attrs) > 0 && attrs[0] == tagSet {
		attrs[0] = tagContext0
	}
	a, err := parseAttributes(attrs)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if !bytes.Equal(sumOf(m.hash, content), a.messageDigest) {
		return nil, errors.New("sign: what was signed is not the content")
	}
	if err := m.verifySignature(cert.PublicKey, signed, signature); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	d.digests = append(d.digests, m.digestAlg)
	d.certs = append(d.certs, cert.Raw)
	for _, c := range intermediates {
		d.certs = append(d.certs, c.Raw)
	}
	info := tlv(tagSequence, []byte{tagInteger, 1, 1}, tlv(tagSequence, sidOf(cert)), m.digestAlg, attrs, m.sigAlg, tlv(tagOctetString, signature))
	if len(d.signers) == 0 {
		d.signers = [][]byte{info}
	} else {
		d.signers[0] = cosign(d.signers[0], info)
	}
	return d.encode()
}

// cosign puts a SignerInfo into the unsigned attributes of another one.
func cosign(first, info []byte) []byte {
	whole := cursor{rest: first}
	in := cursor{rest: whole.any().body}
	infos := [][]byte{info}
	var parts, unsigned [][]byte
	for in.more() {
		v := in.any()
		if v.tag != tagContext1 {
			parts = append(parts, v.full)
			continue
		}
		for list := (cursor{rest: v.body}); list.more(); {
			full := list.any()
			attr := cursor{rest: full.body}
			if string(attr.any().body) != oidCosigners {
				unsigned = append(unsigned, full.full)
				continue
			}
			for values := (cursor{rest: attr.any().body}); values.more(); {
				infos = append(infos, values.any().full)
			}
		}
	}
	unsigned = append(unsigned, tlv(tagSequence, tlv(tagOID, []byte(oidCosigners)), setOf(tagSet, infos)))
	return tlv(tagSequence, append(parts, setOf(tagContext1, unsigned))...)
}

// AddCRLs returns cms with CRLs (DER) beside its certificates, where a device
// finds them. Signatures and content stay byte for byte.
func AddCRLs(cms []byte, crls ...[]byte) ([]byte, error) {
	if _, err := ReadCMS(cms); err != nil {
		return nil, fmt.Errorf("add CRLs: %w", err)
	}
	d := takeApart(cms)
	d.crls = append(d.crls, crls...)
	return d.encode()
}

// method is how Sign signs with the key of a certificate.
type method struct {
	scheme
	digestAlg, sigAlg []byte
}

func methodOf(cert *x509.Certificate) (method, error) {
	if err := checkKey(cert.PublicKey); err != nil {
		return method{}, fmt.Errorf("sign: %w", err)
	}
	algorithm := func(oid string, params ...[]byte) []byte {
		return tlv(tagSequence, append([][]byte{tlv(tagOID, []byte(oid))}, params...)...)
	}
	m := method{scheme: scheme{hash: crypto.SHA256}}
	digest := oidSHA256
	switch k := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		m.family, m.sigAlg = rsaPKCS1, algorithm(oidRSA, []byte{tagNull, 0})
	case ed25519.PublicKey:
		m.family, m.hash, digest, m.sigAlg = ed25519Sig, crypto.SHA512, oidSHA512, algorithm(oidEd25519)
	case *ecdsa.PublicKey:
		m.family = ecdsaSig
		oid := oidECDSAWithSHA256
		switch k.Curve.Params().BitSize {
		case 384:
			m.hash, digest, oid = crypto.SHA384, oidSHA384, oidECDSAWithSHA384
		case 521:
			m.hash, digest, oid = crypto.SHA512, oidSHA512, oidECDSAWithSHA512
		}
		m.sigAlg = algorithm(oid)
	}
	m.digestAlg = algorithm(digest)
	return m, nil
}

// draft is a SignedData in parts, each in DER.
type draft struct {
	version              []byte
	digests              [][]byte
	encap                []byte
	certs, crls, signers [][]byte
}

func newDraft(content []byte, detached bool) draft {
	encap := [][]byte{tlv(tagOID, []byte(oidData))}
	if !detached {
		encap = append(encap, tlv(tagContext0, tlv(tagOctetString, content)))
	}
	return draft{version: []byte{tagInteger, 1, 1}, encap: tlv(tagSequence, encap...)}
}

// takeApart undoes encode. ReadCMS took the CMS.
func takeApart(cms []byte) draft {
	list := func(c cursor) (all [][]byte) {
		for c.more() {
			all = append(all, c.any().full)
		}
		return all
	}
	info := cursor{rest: cms}
	info = cursor{rest: info.any().body}
	info.any()
	data := cursor{rest: info.any().body}
	sd := cursor{rest: data.any().body}
	d := draft{version: sd.any().full, digests: list(cursor{rest: sd.any().body}), encap: sd.any().full}
	for sd.more() {
		switch v := sd.any(); v.tag {
		case tagContext0:
			d.certs = list(cursor{rest: v.body})
		case tagContext1:
			d.crls = list(cursor{rest: v.body})
		default:
			d.signers = list(cursor{rest: v.body})
		}
	}
	return d
}

func (d draft) encode() ([]byte, error) {
	parts := [][]byte{d.version, distinct(tagSet, d.digests), d.encap}
	if d.certs != nil {
		parts = append(parts, distinct(tagContext0, d.certs))
	}
	if d.crls != nil {
		parts = append(parts, distinct(tagContext1, d.crls))
	}
	parts = append(parts, setOf(tagSet, d.signers))
	der := tlv(tagSequence, tlv(tagOID, []byte(oidSignedData)), tlv(tagContext0, tlv(tagSequence, parts...)))
	if _, err := ReadCMS(der); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return der, nil
}

func attribute(oid string, v []byte) []byte {
	return tlv(tagSequence, tlv(tagOID, []byte(oid)), tlv(tagSet, v))
}

// setOf encodes a set in the order of DER.
func setOf(tag byte, parts [][]byte) []byte {
	return tlv(tag, slices.SortedFunc(slices.Values(parts), bytes.Compare)...)
}

// distinct is setOf without what stands there twice.
func distinct(tag byte, parts [][]byte) []byte {
	return tlv(tag, slices.CompactFunc(slices.SortedFunc(slices.Values(parts), bytes.Compare), bytes.Equal)...)
}

// sidOf is what a SignerInfo calls the signer by: issuer and serial number.
func sidOf(c *x509.Certificate) []byte { return slices.Concat(c.RawIssuer, serialOf(c)) }

// serialOf returns the serial number exactly as it stands in a certificate.
func serialOf(c *x509.Certificate) []byte {
	outer := cursor{rest: c.RawTBSCertificate}
	in := cursor{rest: outer.take(tagSequence).body}
	if in.peek(tagContext0) {
		in.any()
	}
	return in.take(tagInteger).full
}

func encodeTime(t time.Time) []byte {
	t = t.UTC()
	if t.Year() >= 1950 && t.Year() < 2050 {
		return tlv(tagUTCTime, []byte(t.Format("060102150405Z")))
	}
	return tlv(tagTime, []byte(t.Format("20060102150405Z")))
}
