package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
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
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("sign: key does not belong to the certificate of %s", name(cert))
	}
	if err := checkKey(cert.PublicKey); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	null := []byte{tagNull, 0}
	var hash crypto.Hash
	var sigAlg []byte
	switch k := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		hash, sigAlg = crypto.SHA256, tlv(tagSequence, tlv(tagOID, []byte(oidRSA)), null)
	case ed25519.PublicKey:
		hash, sigAlg = crypto.SHA512, tlv(tagSequence, tlv(tagOID, []byte(oidEd25519)))
	case *ecdsa.PublicKey:
		oid := oidECDSAWithSHA256
		switch hash = crypto.SHA256; k.Curve.Params().BitSize {
		case 384:
			hash, oid = crypto.SHA384, oidECDSAWithSHA384
		case 521:
			hash, oid = crypto.SHA512, oidECDSAWithSHA512
		}
		sigAlg = tlv(tagSequence, tlv(tagOID, []byte(oid)))
	}
	hashOID := map[crypto.Hash]string{crypto.SHA256: oidSHA256, crypto.SHA384: oidSHA384, crypto.SHA512: oidSHA512}[hash]
	digestAlg := tlv(tagSequence, tlv(tagOID, []byte(hashOID)))

	h := hash.New()
	h.Write(content)
	attrs := [][]byte{
		attribute(oidContentType, tlv(tagOID, []byte(oidData))),
		attribute(oidMessageDigest, tlv(tagOctetString, h.Sum(nil))),
	}
	if !at.IsZero() {
		attrs = append(attrs, attribute(oidSigningTime, encodeTime(at)))
	}
	signed := setOf(tagSet, attrs)

	var signature []byte
	var err error
	if hash == crypto.SHA512 && bytes.Contains(sigAlg, []byte(oidEd25519)) {
		signature, err = key.Sign(rand.Reader, signed, crypto.Hash(0))
	} else {
		h.Reset()
		h.Write(signed)
		signature, err = key.Sign(rand.Reader, h.Sum(nil), hash)
	}
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}

	certs := [][]byte{cert.Raw}
	for _, c := range intermediates {
		if !slices.ContainsFunc(certs, func(have []byte) bool { return bytes.Equal(have, c.Raw) }) {
			certs = append(certs, c.Raw)
		}
	}
	encap := [][]byte{tlv(tagOID, []byte(oidData))}
	if !detached {
		encap = append(encap, tlv(tagContext0, tlv(tagOctetString, content)))
	}
	signed[0] = tagContext0
	der := tlv(tagSequence,
		tlv(tagOID, []byte(oidSignedData)),
		tlv(tagContext0, tlv(tagSequence,
			[]byte{tagInteger, 1, 1},
			tlv(tagSet, digestAlg),
			tlv(tagSequence, encap...),
			setOf(tagContext0, certs),
			tlv(tagSet, tlv(tagSequence,
				[]byte{tagInteger, 1, 1},
				tlv(tagSequence, cert.RawIssuer, serialOf(cert)),
				digestAlg,
				signed,
				sigAlg,
				tlv(tagOctetString, signature),
			)),
		)),
	)
	if _, err := ReadCMS(der); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return der, nil
}

func attribute(oid string, v []byte) []byte {
	return tlv(tagSequence, tlv(tagOID, []byte(oid)), tlv(tagSet, v))
}

func setOf(tag byte, parts [][]byte) []byte {
	parts = slices.Clone(parts)
	slices.SortFunc(parts, bytes.Compare)
	return tlv(tag, parts...)
}

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
