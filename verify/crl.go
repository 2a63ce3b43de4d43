package verify

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"strings"
	"time"
)

const (
	maxCRL        = 1 << 20 // bytes
	maxCRLEntries = 50_000
)

// crl is a list of revoked certificates (RFC 5280, section 5) that is complete
// for its issuer. Its entries stay in DER, where a serial number is looked up:
// parsed they would take many times their size.
type crl struct {
	raw                    []byte
	tbs, signature         []byte
	scheme                 scheme
	issuer                 []byte // Name, DER
	keyID                  []byte // of the issuer; nil where the CRL does not say
	number                 []byte // contents octets, positive
	thisUpdate, nextUpdate time.Time
	entries                []byte // contents of revokedCertificates
	count                  int    // of them

	issuerName string            // for people
	by         *x509.Certificate // whose key signed it; nil: not known yet
	kept       bool              // came by Renew
}

// Object identifiers 2.5.29.N of extensions in CRLs.
const (
	oidExtensions        = "\x55\x1d"
	extCRLNumber         = 20
	extReasonCode        = 21
	extInvalidityDate    = 24
	extDeltaCRL          = 27
	extDistributionPoint = 28
	extCertificateIssuer = 29
	extAuthorityKeyID    = 35
)

// readCRL parses a CRL of at most 1 MiB and 50,000 entries: strict DER, version
// 2, with nextUpdate and a number, no delta, and complete: of no other issuers,
// reasons or distribution points. Its signature is not looked at. Codes:
// [Malformed], and [Policy] for what is well formed and not taken.
func readCRL(der []byte) (*crl, error) {
	if len(der) > maxCRL {
		return nil, Refuse(Policy, "CRL of %d bytes: at most %d are allowed", len(der), maxCRL)
	}
	c := &crl{raw: bytes.Clone(der)}
	if err := c.parse(); err != nil {
		var r *Refusal
		if errors.As(err, &r) {
			return nil, r
		}
		return nil, Refuse(Malformed, "CRL: %w", err)
	}
	return c, nil
}

func (c *crl) parse() error {
	list, err := only(c.raw, tagSequence)
	if err != nil {
		return err
	}
	if err := checkDER(c.raw, 0); err != nil {
		return err
	}
	outer := cursor{rest: list.body}
	tbs := outer.take(tagSequence)
	alg := outer.algorithm()
	signature := outer.take(tagBitString)
	in := cursor{rest: tbs.body, err: outer.end()}
	version := in.take(tagInteger)
	inner := in.algorithm()
	issuer := in.take(tagSequence)
	this, next := in.any(), in.any()
	if in.err != nil {
		return in.err
	}
	if string(version.body) != "\x01" || inner.oid != alg.oid || !bytes.Equal(inner.params, alg.params) || signature.body[0] != 0 {
		return errors.New("version is not 2, or its algorithms differ")
	}
	if c.scheme, err = readScheme(alg); err != nil {
		return err
	}
	c.tbs = tbs.full
	c.signature = signature.body[1:]
	c.issuer = issuer.full
	c.issuerName = readName(issuer.full)
	if c.thisUpdate, err = parseTime(this); err != nil {
		return err
	}
	if c.nextUpdate, err = parseTime(next); err != nil {
		return errors.New("it does not say when the next one is due")
	}
	if in.peek(tagSequence) {
		c.entries = in.take(tagSequence).body
	}
	exts := cursor{rest: in.take(tagContext0).body, err: in.err}
	extensions := cursor{rest: exts.take(tagSequence).body, err: exts.err}
	if err := errors.Join(exts.end(), in.end()); err != nil {
		return err
	}
	err = eachExtension(extensions.rest, func(n int, critical bool, v []byte) error {
		in := cursor{rest: v}
		switch n {
		case extCRLNumber:
			c.number = in.take(tagInteger).body
			if in.end() != nil || c.number[0] >= 0x80 || len(c.number) > 20 {
				return errors.New("its number is not one")
			}
		case extAuthorityKeyID:
			id := cursor{rest: in.take(tagSequence).body, err: in.err}
			if id.peek(tagContext) {
				c.keyID = id.take(tagContext).body
			}
			return errors.Join(in.end(), id.err)
		case extDistributionPoint:
			if string(v) != "\x30\x00" {
				return Refuse(Policy, "CRL of %s: it covers only a part of what its issuer issued", c.issuerName)
			}
		case extDeltaCRL:
			return Refuse(Policy, "CRL of %s: it is a delta", c.issuerName)
		default:
			if critical {
				return Refuse(Policy, "CRL of %s: a critical extension is not known", c.issuerName)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.number == nil {
		return Refuse(Policy, "CRL of %s: it has no number", c.issuerName)
	}
	return c.checkEntries()
}

func (c *crl) checkEntries() error {
	for list := (cursor{rest: c.entries}); list.more(); c.count++ {
		if c.count == maxCRLEntries {
			return Refuse(Policy, "CRL of %s: more than %d entries", c.issuerName, maxCRLEntries)
		}
		e := cursor{rest: list.take(tagSequence).body, err: list.err}
		e.take(tagInteger)
		when := e.any()
		if !(when.tag == tagUTCTime && len(when.body) == 13 || when.tag == tagTime && len(when.body) == 15) {
			return errors.New("an entry without a time")
		}
		if e.more() {
			err := eachExtension(e.take(tagSequence).body, func(n int, critical bool, v []byte) error {
				if n == extReasonCode {
					if _, err := only(v, tagEnumerated); err != nil {
						return err
					}
				}
				if n == extCertificateIssuer || critical && n != extReasonCode && n != extInvalidityDate {
					return Refuse(Policy, "CRL of %s: a critical extension of an entry is not known", c.issuerName)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if err := e.end(); err != nil {
			return err
		}
	}
	return nil
}

// eachExtension calls f with the N of 2.5.29.N (-1 for others), whether it is
// critical, and its contents. None may stand twice.
func eachExtension(b []byte, f func(n int, critical bool, v []byte) error) error {
	var seen [8]string
	n := 0
	for list := (cursor{rest: b}); list.more(); n++ {
		e := cursor{rest: list.take(tagSequence).body, err: list.err}
		oid := string(e.take(tagOID).body)
		critical := false
		if e.peek(tagBoolean) {
			critical = true
			if e.take(tagBoolean).body[0] == 0 {
				return errDER // the default is left out
			}
		}
		v := e.take(tagOctetString).body
		if err := e.end(); err != nil {
			return err
		}
		if n == len(seen) {
			return Refuse(Policy, "CRL: too many extensions")
		}
		for _, s := range seen[:n] {
			if s == oid {
				return errors.New("an extension stands twice")
			}
		}
		seen[n] = oid
		kind := -1
		if len(oid) == 3 && oid[:2] == oidExtensions {
			kind = int(oid[2])
		}
		// What is not read is at least DER.
		if kind >= 0 && checkDER(v, 0) != nil {
			return errDER
		}
		if err := f(kind, critical, v); err != nil {
			return err
		}
	}
	return nil
}

// newer compares numbers.
func (c *crl) newer(than *crl) bool {
	return cmp.Or(cmp.Compare(len(c.number), len(than.number)), bytes.Compare(c.number, than.number)) > 0
}

// showNumber returns the number as OpenSSL shows it.
func (c *crl) showNumber() string { return "0x" + strings.ToUpper(hex.EncodeToString(c.number)) }

// signedBy checks that parent issued the list: by name, key identifier, right
// to do so, and signature.
func (c *crl) signedBy(parent *x509.Certificate, allowed family) *Refusal {
	switch {
	case !bytes.Equal(c.issuer, parent.RawSubject) || c.keyID != nil && len(parent.SubjectKeyId) > 0 && !bytes.Equal(c.keyID, parent.SubjectKeyId):
		return Refuse(Untrusted, "CRL of %s: its issuer is not known", c.issuerName)
	case c.by != nil && bytes.Equal(c.by.RawSubjectPublicKeyInfo, parent.RawSubjectPublicKeyInfo):
		return nil
	case !parent.BasicConstraintsValid || !parent.IsCA || hasExtension(parent, extKeyUsage) && parent.KeyUsage&x509.KeyUsageCRLSign == 0:
		return Refuse(WrongPurpose, "CRL of %s: its issuer may not sign CRLs", c.issuerName)
	case c.scheme.family&allowed == 0:
		return Refuse(Policy, "CRL of %s: %s is not allowed by the keyring", c.issuerName, c.scheme)
	}
	if err := checkKey(parent.PublicKey); err != nil {
		return Refuse(Policy, "CRL of %s: %w", c.issuerName, err)
	}
	if c.scheme.verifySignature(parent.PublicKey, c.tbs, c.signature) != nil {
		return Refuse(BadSignature, "CRL of %s: its signature is wrong", c.issuerName)
	}
	return nil
}

// revokes reports whether a serial number (INTEGER, DER) is in the list.
func (c *crl) revokes(serial []byte) bool {
	// A list has one encoding of a number, and an entry begins with it.
	for b := c.entries; len(b) > 0; {
		v, rest, err := split(b)
		if err != nil || bytes.HasPrefix(v.body, serial) {
			return true // parse saw to it that there is no error
		}
		b = rest
	}
	return false
}

// readName returns a Name for messages.
func readName(der []byte) string {
	var rdns pkix.RDNSequence
	if _, err := asn1.Unmarshal(der, &rdns); err != nil {
		return printable("")
	}
	return printable(rdns.String())
}
