package verify

import (
	"bytes"
	"crypto/x509"
	"errors"
	"time"
)

const (
	// MaxCMS is the largest CMS in bytes that is read, RAUC's default of
	// max-bundle-signature-size.
	MaxCMS     = 64 << 10
	maxSigners = 8
	maxCerts   = 16
	maxCRLs    = 16
)

// CMS is a SignedData (RFC 5652, section 5) that was parsed and not verified.
// It is not changed by its methods and may be used concurrently.
type CMS struct {
	contentType string
	content     []byte   // nil when detached
	digests     []string // object identifiers of digestAlgorithms
	certs       []embedded
	crls        [][]byte
	signers     []signerInfo
}

// embedded is a certificate that the CMS brings along.
type embedded struct {
	cert         *x509.Certificate // nil where the kind of key is unknown
	issuerSerial []byte
}

type signerInfo struct {
	issuerSerial []byte // one of these two
	keyID        []byte
	digest       algorithm
	attrs        []byte // [0], as it stands in the CMS; nil where absent
	algorithm    algorithm
	signature    []byte
	unsigned     []byte // contents of [1]
}

// ReadCMS parses a CMS of at most [MaxCMS] bytes: a ContentInfo with a
// SignedData of version 1 or 3, at most 16 certificates and 8 signers. Every
// value in it has to be DER. Codes: [Malformed], and [Policy] where it is too
// big or has too many parts.
func ReadCMS(der []byte) (*CMS, error) {
	if len(der) > MaxCMS {
		return nil, Refuse(Policy, "CMS of %d bytes: at most %d are allowed", len(der), MaxCMS)
	}
	der = bytes.Clone(der)
	malformed := func(what string, err error) error { return Refuse(Malformed, "CMS: %s: %w", what, err) }

	info, err := only(der, tagSequence)
	if err != nil {
		return nil, malformed("ContentInfo", err)
	}
	if err := checkDER(der, 0); err != nil {
		return nil, malformed("encoding", err)
	}
	outer := cursor{rest: info.body}
	if kind := outer.take(tagOID); outer.err == nil && string(kind.body) != oidSignedData {
		return nil, Refuse(Malformed, "CMS: not a SignedData")
	}
	explicit := outer.take(tagContext0)
	if err := outer.end(); err != nil {
		return nil, malformed("ContentInfo", err)
	}
	data, err := only(explicit.body, tagSequence)
	if err != nil {
		return nil, malformed("SignedData", err)
	}

	c := new(CMS)
	sd := cursor{rest: data.body}
	version := sd.take(tagInteger)
	digests := cursor{rest: sd.take(tagSet).body}
	for digests.more() {
		c.digests = append(c.digests, digests.algorithm().oid)
	}
	encap := cursor{rest: sd.take(tagSequence).body, err: sd.err}
	c.contentType = string(encap.take(tagOID).body)
	if encap.more() {
		content, err := only(encap.take(tagContext0).body, tagOctetString)
		if err != nil {
			return nil, malformed("content", err)
		}
		c.content = content.body
	}
	if err := errors.Join(digests.end(), encap.end()); err != nil {
		return nil, malformed("SignedData", err)
	}
	if sd.peek(tagContext0) {
		certs := cursor{rest: sd.take(tagContext0).body}
		for certs.more() {
			if len(c.certs) == maxCerts {
				return nil, Refuse(Policy, "CMS: more than %d certificates", maxCerts)
			}
			e, err := readEmbedded(certs.take(tagSequence))
			if err := errors.Join(certs.err, err); err != nil {
				return nil, malformed("certificate", err)
			}
			c.certs = append(c.certs, e)
		}
		if err := certs.end(); err != nil {
			return nil, malformed("certificates", err)
		}
	}
	if sd.peek(tagContext1) {
		crls := cursor{rest: sd.take(tagContext1).body}
		for crls.more() {
			if len(c.crls) == maxCRLs {
				return nil, Refuse(Policy, "CMS: more than %d CRLs", maxCRLs)
			}
			c.crls = append(c.crls, crls.take(tagSequence).full)
		}
		if err := crls.end(); err != nil {
			return nil, malformed("CRLs", err)
		}
	}
	signers := cursor{rest: sd.take(tagSet).body}
	if err := sd.end(); err != nil {
		return nil, malformed("SignedData", err)
	}
	if v := string(version.body); v != "\x01" && v != "\x03" {
		return nil, Refuse(Malformed, "CMS: version of SignedData is not 1 or 3")
	}
	for signers.more() {
		s, err := readSigner(signers.take(tagSequence))
		if err := errors.Join(signers.err, err); err != nil {
			return nil, malformed("SignerInfo", err)
		}
		more, err := cosigners(s)
		if err != nil {
			return nil, malformed("cosigner", err)
		}
		if c.signers = append(append(c.signers, s), more...); len(c.signers) > maxSigners {
			return nil, Refuse(Policy, "CMS: more than %d signers", maxSigners)
		}
	}
	if err := signers.end(); err != nil {
		return nil, malformed("SignerInfos", err)
	}
	return c, nil
}

func readSigner(v value) (signerInfo, error) {
	var s signerInfo
	c := cursor{rest: v.body}
	version := string(c.take(tagInteger).body)
	if c.peek(tagContext) {
		s.keyID = c.take(tagContext).body
	} else {
		sid := c.take(tagSequence)
		s.issuerSerial = sid.body
		parts := cursor{rest: sid.body, err: c.err}
		parts.take(tagSequence)
		parts.take(tagInteger)
		if err := parts.end(); err != nil {
			return s, err
		}
	}
	s.digest = c.algorithm()
	if c.peek(tagContext0) {
		attrs := c.take(tagContext0)
		if err := checkSetOf(attrs.body); err != nil {
			return s, err
		}
		s.attrs = attrs.full
	}
	s.algorithm = c.algorithm()
	s.signature = c.take(tagOctetString).body
	if c.peek(tagContext1) {
		s.unsigned = c.take(tagContext1).body
		if len(s.unsigned) == 0 {
			return s, errMissing
		}
	}
	if err := c.end(); err != nil {
		return s, err
	}
	if s.keyID != nil && version != "\x03" || s.keyID == nil && version != "\x01" {
		return s, errors.New("version does not fit its identifier")
	}
	return s, nil
}

// cosigners reads the signers that stand in an unsigned attribute of another
// one, each as good as if it stood beside it: RAUC 1.8 takes a CMS with one
// signer only. Other attributes are checkUnsigned's to judge.
func cosigners(s signerInfo) (more []signerInfo, err error) {
	for list := (cursor{rest: s.unsigned}); list.more(); {
		attr := cursor{rest: list.take(tagSequence).body, err: list.err}
		if kind := attr.take(tagOID); attr.err != nil || string(kind.body) != oidCosigners {
			continue
		}
		set := attr.take(tagSet)
		if err := errors.Join(attr.end(), checkSetOf(set.body)); err != nil || more != nil || len(set.body) == 0 {
			return nil, errors.Join(errors.New("not one set of signers"), err)
		}
		for values := (cursor{rest: set.body}); values.more(); {
			m, err := readSigner(values.take(tagSequence))
			if err := errors.Join(values.err, err); err != nil {
				return nil, err
			}
			if len(more) == maxSigners || bytes.Contains(m.unsigned, []byte(oidCosigners)) {
				return nil, errors.New("too many signers")
			}
			more = append(more, m)
		}
	}
	return more, nil
}

// checkSetOf demands the order of DER (X.690, section 11.6), so that the bytes
// are the ones that were signed, re-encoded or not.
func checkSetOf(b []byte) error {
	var last []byte
	for len(b) > 0 {
		v, rest, err := split(b)
		if err != nil {
			return err
		}
		if bytes.Compare(last, v.full) > 0 {
			return errors.New("set is not in order")
		}
		last, b = v.full, rest
	}
	return nil
}

// readEmbedded parses a certificate. One with a key on a curve that Go does
// not know is kept without its contents: it is only a reason for a refusal if
// it matters.
func readEmbedded(v value) (embedded, error) {
	c := cursor{rest: v.body}
	tbs := cursor{rest: c.take(tagSequence).body, err: c.err}
	if tbs.peek(tagContext0) {
		tbs.any()
	}
	serial := tbs.take(tagInteger)
	tbs.algorithm()
	issuer := tbs.take(tagSequence)
	tbs.take(tagSequence) // validity
	tbs.take(tagSequence) // subject
	spki := cursor{rest: tbs.take(tagSequence).body, err: tbs.err}
	key := spki.algorithm()
	if spki.err != nil {
		return embedded{}, spki.err
	}
	e := embedded{issuerSerial: append(bytes.Clone(issuer.full), serial.full...)}
	if key.oid == oidECPublicKey {
		curve, err := only(key.params, tagOID)
		if err != nil {
			return e, nil
		}
		switch string(curve.body) {
		case oidP224, oidP256, oidP384, oidP521:
		default:
			return e, nil
		}
	}
	var err error
	e.cert, err = x509.ParseCertificate(v.full)
	return e, err
}

// Detached reports whether the content stands elsewhere.
func (c *CMS) Detached() bool { return c.content == nil }

// Unverified returns the content before any check, nil when detached. It is
// for showing, never for deciding.
func (c *CMS) Unverified() []byte { return bytes.Clone(c.content) }

// Signer is what a CMS says about one of its signers.
type Signer struct {
	// Certificate is nil where the CMS does not bring it along.
	Certificate *x509.Certificate
	// Algorithm is for people, like "ECDSA with SHA-256".
	Algorithm string
	// SigningTime is what the signer claims; zero where it claims nothing.
	SigningTime time.Time

	// Chain leads to an anchor, signer first; nil before verification and where
	// the signer does not count.
	Chain    []*x509.Certificate
	Warnings []string
	Err      error // of Examine: why it does not count
}

// Signers returns what the CMS says about its signers, before any check. It is
// for showing, never for deciding.
func (c *CMS) Signers() []Signer {
	var list []Signer
	for _, s := range c.signers {
		out := Signer{Algorithm: "unknown"}
		if e, err := c.certificateOf(s); err == nil {
			out.Certificate = e
		}
		if how, err := schemeOf(s.digest, s.algorithm); err == nil {
			out.Algorithm = how.String()
		}
		if a, err := parseAttributes(s.attrs); err == nil {
			out.SigningTime = a.signingTime
		}
		list = append(list, out)
	}
	return list
}

// Certificates returns the certificates that the CMS brings along, in its
// order and before any check.
func (c *CMS) Certificates() []*x509.Certificate {
	var list []*x509.Certificate
	for _, e := range c.certs {
		if e.cert != nil {
			list = append(list, e.cert)
		}
	}
	return list
}

// CRLs returns the CRLs that the CMS brings along, not parsed. They do not
// count for its own verification; [Keyring.Renew] judges them.
func (c *CMS) CRLs() [][]byte {
	var list [][]byte
	for _, b := range c.crls {
		list = append(list, bytes.Clone(b))
	}
	return list
}

// certificateOf finds the one certificate that a signer names.
func (c *CMS) certificateOf(s signerInfo) (*x509.Certificate, error) {
	var found *embedded
	for i, e := range c.certs {
		match := bytes.Equal(s.issuerSerial, e.issuerSerial)
		if s.keyID != nil {
			match = e.cert != nil && len(s.keyID) > 0 && bytes.Equal(s.keyID, e.cert.SubjectKeyId)
		}
		if !match {
			continue
		}
		if found != nil {
			return nil, Refuse(Untrusted, "two certificates are named like the signer's")
		}
		found = &c.certs[i]
	}
	if found == nil {
		return nil, Refuse(Untrusted, "the signer's certificate is not in the CMS")
	}
	if found.cert == nil {
		return nil, Refuse(Policy, "the signer's key is on an elliptic curve that is not allowed")
	}
	return found.cert, nil
}

// attributes are a signer's signed attributes.
type attributes struct {
	contentType   string
	messageDigest []byte
	signingTime   time.Time
}

// parseAttributes reads signedAttrs: contentType and messageDigest once each,
// signingTime and S/MIME capabilities at most once, one value each, no others.
func parseAttributes(full []byte) (attributes, error) {
	var a attributes
	if full == nil {
		return a, Refuse(BadSignature, "no signed attributes")
	}
	set, err := only(full, tagContext0)
	if err != nil {
		return a, Refuse(BadSignature, "signed attributes: %w", err)
	}
	seen := make(map[string]bool)
	for list := (cursor{rest: set.body}); list.more(); {
		attr := cursor{rest: list.take(tagSequence).body, err: list.err}
		kind := string(attr.take(tagOID).body)
		values := cursor{rest: attr.take(tagSet).body, err: attr.err}
		v := values.any()
		if err := errors.Join(values.end(), attr.end()); err != nil || v.full == nil {
			return a, Refuse(BadSignature, "signed attributes: not one value each")
		}
		if seen[kind] {
			return a, Refuse(BadSignature, "signed attributes: one of them twice")
		}
		seen[kind] = true
		ok := true
		switch kind {
		case oidContentType:
			a.contentType, ok = string(v.body), v.tag == tagOID
		case oidMessageDigest:
			a.messageDigest, ok = v.body, v.tag == tagOctetString
		case oidSigningTime:
			a.signingTime, err = parseTime(v)
			ok = err == nil
		case oidSMIMECaps:
		default:
			return a, Refuse(BadSignature, "signed attributes: one of them is unknown")
		}
		if !ok {
			return a, Refuse(BadSignature, "signed attributes: value of the wrong type")
		}
	}
	if !seen[oidContentType] || !seen[oidMessageDigest] {
		return a, Refuse(BadSignature, "signed attributes: content type or message digest missing")
	}
	return a, nil
}

// checkUnsigned allows an RFC 3161 time stamp token, which is not looked at, and
// further signers, each once.
func checkUnsigned(b []byte) error {
	last := ""
	for list := (cursor{rest: b}); list.more(); {
		attr := cursor{rest: list.take(tagSequence).body, err: list.err}
		kind := string(attr.take(tagOID).body)
		if attr.err != nil || kind != oidTimeStampToken && kind != oidCosigners || kind == last {
			return Refuse(Policy, "unsigned attributes other than a time stamp and further signers")
		}
		last = kind
	}
	return nil
}
