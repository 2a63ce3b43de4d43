package verify

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"time"
)

const (
	maxKeyring      = 1 << 20
	maxKeyringCerts = 256
)

// Keyring holds the certificates that a signature has to lead to.
type Keyring struct {
	// Anchors are self-issued certificates; a chain ends at one of them.
	// Their dates are ignored (RFC 5280, section 6.1.1).
	Anchors []*x509.Certificate
	// Intermediates are the keyring's other certificates. They may complete
	// a chain to an anchor and are trusted no more than those that a bundle
	// brings along.
	Intermediates []*x509.Certificate
}

// ParseKeyring reads a PEM file of at most 1 MiB and 256 certificates. Text
// between the blocks and blocks of other kinds are skipped. The code of every
// error is [KeyMissing]: without a whole keyring nothing is accepted.
func ParseKeyring(data []byte) (*Keyring, error) {
	if len(data) > maxKeyring {
		return nil, Refuse(KeyMissing, "keyring of %d bytes: at most %d are read", len(data), maxKeyring)
	}
	k := new(Keyring)
	for n := 0; ; {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if n++; n > maxKeyringCerts {
			return nil, Refuse(KeyMissing, "keyring: more than %d certificates", maxKeyringCerts)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, Refuse(KeyMissing, "keyring: certificate %d: %w", n, err)
		}
		switch {
		case contains(k.Anchors, c) || contains(k.Intermediates, c):
		case selfIssued(c) && keyIDsMatch(c, c):
			k.Anchors = append(k.Anchors, c)
		default:
			k.Intermediates = append(k.Intermediates, c)
		}
	}
	if len(k.Anchors) == 0 {
		r := Refuse(KeyMissing, "keyring: no self-signed certificate in it")
		r.Hint = "a keyring is a PEM file with the self-signed certificates of the CAs whose signers are trusted"
		return nil, r
	}
	return k, nil
}

// NewestNotBefore returns the latest beginning of validity of the keyring's
// certificates: whoever holds the keyring lives after it.
func (k *Keyring) NewestNotBefore() time.Time {
	var newest time.Time
	for _, list := range [][]*x509.Certificate{k.Anchors, k.Intermediates} {
		for _, c := range list {
			if c.NotBefore.After(newest) {
				newest = c.NotBefore
			}
		}
	}
	return newest
}

// SPKI returns the SHA-256 of a certificate's SubjectPublicKeyInfo, by which a
// key is known whatever certificate it is in.
func SPKI(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

func contains(list []*x509.Certificate, c *x509.Certificate) bool {
	for _, have := range list {
		if bytes.Equal(have.Raw, c.Raw) {
			return true
		}
	}
	return false
}

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

// keyIDsMatch reports whether the key identifiers let parent be the issuer of
// child; where one of them is missing they do.
func keyIDsMatch(child, parent *x509.Certificate) bool {
	return len(child.AuthorityKeyId) == 0 || len(parent.SubjectKeyId) == 0 ||
		bytes.Equal(child.AuthorityKeyId, parent.SubjectKeyId)
}
