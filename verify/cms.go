package verify

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"hash"
	"slices"
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
	full         []byte
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
		if len(c.signers) == maxSigners {
			return nil, Refuse(Policy, "CMS: more than %d signers", maxSigners)
		}
		s, err := readSigner(signers.take(tagSequence))
		if err := errors.Join(signers.err, err); err != nil {
			return nil, malformed("SignerInfo", err)
		}
		c.signers = append(c.signers, s)
	}
	if err := signers.end(); err != nil {
		return nil, malformed("SignerInfos", err)
	}
	return c, nil
}

func readSigner(v value) (signerInfo, error) {
	s := signerInfo{full: v.full}
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

// covers reports whether content has the message digest, made with h.
func (a attributes) covers(h hash.Hash, content []byte) bool {
	h.Write(content)
	return subtle.ConstantTimeCompare(h.Sum(nil), a.messageDigest) == 1
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

// checkUnsigned allows one attribute, an RFC 3161 time stamp token, which is
// not looked at.
func checkUnsigned(b []byte) error {
	if b == nil {
		return nil
	}
	list := cursor{rest: b}
	attr := cursor{rest: list.take(tagSequence).body, err: list.err}
	if kind := attr.take(tagOID); string(kind.body) != oidTimeStampToken || list.end() != nil {
		return Refuse(Policy, "unsigned attributes other than a time stamp")
	}
	return nil
}

// Rules are what a signature is judged by.
type Rules struct {
	Keyring *Keyring
	// Purpose is what the certificates have to be made for: "codesign" (also
	// when empty), "smimesign" or "any", as in RAUC's check-purpose.
	Purpose string
	// Now is the trusted time, or the latest time known to have passed.
	Now time.Time
	// Trusted: Now is a trusted clock, both ends of validity are checked.
	// Otherwise only a certificate that ended before Now is refused, and none
	// for being not yet valid.
	Trusted bool
	// AtBoot is the check of a slot's seal at boot: validity dates are not
	// looked at, or time alone would stop a device.
	AtBoot bool
}

// Signed is what a verified CMS stands for.
type Signed struct {
	Content     []byte              // nil when detached
	Chain       []*x509.Certificate // signer first, anchor last
	SigningTime time.Time           // the signer's claim; zero where absent
}

// Verify judges the signature, its certificates, and the content, in this
// order. digest returns the hash of the content of a detached signature, which
// is asked for only when everything else is right; it has to be nil when the
// content is attached. An error of digest is returned as it is.
//
// Exactly one signer is accepted, as RAUC does.
func (c *CMS) Verify(r Rules, digest func(crypto.Hash) ([]byte, error)) (*Signed, error) {
	if r.Keyring == nil || len(r.Keyring.Anchors) == 0 {
		return nil, Refuse(KeyMissing, "no keyring to verify with")
	}
	switch {
	case c.Detached() && digest == nil:
		return nil, Refuse(Malformed, "CMS has no content, but one with content is needed here")
	case !c.Detached() && digest != nil:
		return nil, Refuse(Malformed, "CMS has content, but a detached one is needed here")
	case len(c.signers) == 0:
		return nil, Refuse(BadSignature, "not signed by anyone")
	case len(c.signers) > 1:
		return nil, Refuse(Threshold, "%d signers: exactly one is accepted", len(c.signers))
	}
	s := c.signers[0]
	how, err := schemeOf(s.digest, s.algorithm)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(c.digests, s.digest.oid) {
		return nil, Refuse(Malformed, "CMS: the signer's digest algorithm is not announced")
	}
	attrs, err := parseAttributes(s.attrs)
	if err != nil {
		return nil, err
	}
	if c.contentType != oidData || attrs.contentType != c.contentType {
		return nil, Refuse(BadSignature, "content type is not plain data, or not the one that was signed")
	}
	if err := checkUnsigned(s.unsigned); err != nil {
		return nil, err
	}
	signer, err := c.certificateOf(s)
	if err != nil {
		return nil, err
	}
	if err := checkKey(signer.PublicKey); err != nil {
		return nil, Refuse(Policy, "signer %s: %w", name(signer), err)
	}
	// What is signed is the SET OF, not the [0] that stands in its place.
	message := bytes.Clone(s.attrs)
	message[0] = tagSet
	if err := how.verifySignature(signer.PublicKey, message, s.signature); err != nil {
		return nil, err
	}
	chain, err := c.chain(signer, r)
	if err != nil {
		return nil, err
	}

	var sum []byte
	if digest != nil {
		if sum, err = digest(how.hash); err != nil {
			return nil, err
		}
	} else {
		h := how.hash.New()
		h.Write(c.content)
		sum = h.Sum(nil)
	}
	if len(sum) != how.hash.Size() || subtle.ConstantTimeCompare(sum, attrs.messageDigest) != 1 {
		return nil, Refuse(BadSignature, "content is not the one that was signed")
	}
	return &Signed{Content: c.Unverified(), Chain: chain, SigningTime: attrs.signingTime}, nil
}
