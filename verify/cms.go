package verify

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
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

// Rules are what a signature is judged by.
type Rules struct {
	Keyring *Keyring
	// Pending is a keyring that is on trial: what it accepts is accepted as
	// well. May be nil. The CRLs of both count under both, because their
	// issuers speak in them and not the keyring.
	Pending *Keyring
	// Role that the anchors must have, and whose threshold counts; "" is
	// "release".
	Role string
	// Purpose is what the certificates have to be made for: "codesign" (also
	// when empty), "smimesign" or "any", as in RAUC's check-purpose.
	Purpose string
	// Now is the trusted time, or the latest time known to have passed.
	Now time.Time
	// Trusted: Now is a trusted clock, both ends of validity are checked.
	// Otherwise only a certificate that ended before Now is refused, and none
	// for being not yet valid.
	Trusted bool
	// RequireCRL refuses a chain in which an issuer has no CRL.
	RequireCRL bool
	// StaleCRL refuses, by a trusted clock, a chain with a CRL whose successor
	// is overdue. Without it that is a warning.
	StaleCRL bool
	// AtBoot is the check of a slot's seal at boot: validity dates, revocation
	// and the keyring's list of algorithms are not looked at, or they would
	// stop a device that runs. Roles and thresholds count. What any keyring
	// accepts from which Keyring and Pending were renewed is accepted.
	AtBoot bool

	crls []*crl
}

func (r Rules) role() string { return cmp.Or(r.Role, "release") }

func (r Rules) allowed() family {
	if r.AtBoot || r.Keyring.allowed == 0 {
		return ^family(0)
	}
	return r.Keyring.allowed
}

// Signed is what a verified CMS stands for.
type Signed struct {
	Content     []byte              // nil when detached
	Chain       []*x509.Certificate // of the first signer that counts: signer first, anchor last
	SigningTime time.Time           // that signer's claim; zero where absent
	Signers     []Signer            // all that count, each key once
	// UnderPending says that Rules.Pending accepts the CMS.
	UnderPending bool
	// Warnings are for people: a stale CRL, a signer that did not count.
	Warnings []string
}

// Verify judges the signatures, their certificates, and the content, in this
// order. digest returns the hash of the content of a detached signature, which
// is asked for only when everything else is right, once for each hash that
// signers use; it has to be nil when the content is attached. An error of digest
// is returned as it is.
//
// The number of keys whose signature is right and leads to an anchor of the role
// has to reach the keyring's threshold. Other signers are not counted and do no
// harm, but for one that stands there twice. Where one is enough and all are refused with one code,
// it is that one, else [Threshold].
func (c *CMS) Verify(r Rules, digest func(crypto.Hash) ([]byte, error)) (*Signed, error) {
	signed, err := c.verify(r, digest)
	if err == nil || !r.AtBoot || r.Keyring == nil {
		return signed, err
	}
	for _, last := range []*Keyring{r.Pending, r.Keyring} {
		for k := last; k != nil && k.prev != nil && k.prev != r.Keyring; k = k.prev {
			before := r
			before.Keyring, before.Pending = k.prev, nil
			if signed, err := c.verify(before, digest); err == nil {
				return signed, nil
			}
		}
	}
	return nil, err
}

func (c *CMS) verify(r Rules, digest func(crypto.Hash) ([]byte, error)) (*Signed, error) {
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
	}
	for i, s := range c.signers {
		if slices.ContainsFunc(c.signers[:i], func(o signerInfo) bool {
			return bytes.Equal(s.issuerSerial, o.issuerSerial) && bytes.Equal(s.keyID, o.keyID)
		}) {
			return nil, Refuse(Threshold, "a signer stands in the CMS twice")
		}
	}
	if !c.Detached() {
		digest = func(h crypto.Hash) ([]byte, error) { return sumOf(h, c.content), nil }
	}
	signers := c.examine(r)
	sums := make(map[crypto.Hash][]byte)
	for {
		signed, err := r.decide(signers)
		if err != nil {
			return nil, err
		}
		again := false
		for i := range signers {
			s := &signers[i]
			if s.err != nil || s.read || !s.counted() {
				continue
			}
			sum, known := sums[s.how.hash]
			if !known {
				if sum, err = digest(s.how.hash); err != nil {
					return nil, err
				}
				sums[s.how.hash] = sum
			}
			s.read = true
			if subtle.ConstantTimeCompare(sum, s.attrs.messageDigest) != 1 {
				s.err, again = Refuse(BadSignature, "content is not the one that was signed"), true
			}
		}
		if !again {
			signed.Content = c.Unverified()
			return signed, nil
		}
	}
}

// Examine judges each signer but for the content, in the order of the CMS. It is
// for showing why [CMS.Verify] decides as it does.
func (c *CMS) Examine(r Rules) []Signer {
	if r.Keyring == nil {
		r.Keyring = new(Keyring)
	}
	var list []Signer
	for _, s := range c.examine(r) {
		out := s.Signer
		out.Chain, out.Warnings, out.Err = s.under[0].chain, s.under[0].warnings, s.under[0].err
		if s.under[1].chain != nil && out.Chain == nil {
			out.Chain, out.Warnings, out.Err = s.under[1].chain, s.under[1].warnings, nil
		}
		if s.err != nil {
			out.Err = s.err
		}
		list = append(list, out)
	}
	return list
}

// examined is a signer and what there is to say about it.
type examined struct {
	Signer
	how   scheme
	attrs attributes
	read  bool // the content was compared
	err   error
	under [2]struct { // keyring and pending keyring
		chain    []*x509.Certificate // nil: does not count
		warnings []string
		err      error
	}
}

func (s *examined) counted() bool { return s.under[0].chain != nil || s.under[1].chain != nil }

func (c *CMS) examine(r Rules) []examined {
	work := newEffort()
	r.crls = r.Keyring.crls
	if r.Pending != nil {
		r.crls = slices.Concat(r.crls, r.Pending.crls)
	}
	list := make([]examined, len(c.signers))
	for i, shown := range c.Signers() {
		s := &list[i]
		s.Signer = shown
		if s.err = c.checkSigner(c.signers[i], s); s.err != nil {
			continue
		}
		for n, k := range []*Keyring{r.Keyring, r.Pending} {
			u := &s.under[n]
			if k == nil {
				continue
			}
			r := r
			r.Keyring = k
			if s.how.family&r.allowed() == 0 {
				u.err = Refuse(Policy, "signer %s: %s is not allowed by the keyring", name(s.Certificate), s.how)
				continue
			}
			chain, warnings, refusal := r.find(s.Certificate, c.certs, work)
			if u.chain, u.warnings = chain, warnings; refusal != nil {
				u.err = refusal
			}
		}
	}
	return list
}

// checkSigner judges what has nothing to do with a keyring.
func (c *CMS) checkSigner(s signerInfo, out *examined) error {
	how, err := schemeOf(s.digest, s.algorithm)
	if err != nil {
		return err
	}
	if !slices.Contains(c.digests, s.digest.oid) {
		return Refuse(Malformed, "CMS: the signer's digest algorithm is not announced")
	}
	attrs, err := parseAttributes(s.attrs)
	if err != nil {
		return err
	}
	if c.contentType != oidData || attrs.contentType != c.contentType {
		return Refuse(BadSignature, "content type is not plain data, or not the one that was signed")
	}
	if err := checkUnsigned(s.unsigned); err != nil {
		return err
	}
	signer, err := c.certificateOf(s)
	if err != nil {
		return err
	}
	if err := checkKey(signer.PublicKey); err != nil {
		return Refuse(Policy, "signer %s: %w", name(signer), err)
	}
	// What is signed is the SET OF, not the [0] that stands in its place.
	message := bytes.Clone(s.attrs)
	message[0] = tagSet
	out.how, out.attrs = how, attrs
	return how.verifySignature(signer.PublicKey, message, s.signature)
}

// decide counts the signers under each keyring.
func (r Rules) decide(list []examined) (*Signed, error) {
	signed, refusal := r.Keyring.count(list, 0, r.role())
	if r.Pending != nil {
		pending, err := r.Pending.count(list, 1, r.role())
		if err == nil {
			if signed == nil {
				signed = pending
			}
			signed.UnderPending = true
		}
	}
	if signed == nil {
		return nil, refusal
	}
	return signed, nil
}

func (k *Keyring) count(list []examined, under int, role string) (*Signed, error) {
	s := new(Signed)
	keys := make(map[[32]byte]bool)
	var reasons []error
	for i := range list {
		e, u := &list[i], &list[i].under[under]
		switch err := cmp.Or(e.err, u.err); {
		case err != nil:
			reasons = append(reasons, err)
		case keys[SPKI(e.Certificate)]:
			reasons = append(reasons, Refuse(Threshold, "signer %s: its key counts only once", name(e.Certificate)))
		default:
			keys[SPKI(e.Certificate)] = true
			counted := e.Signer
			counted.Chain, counted.Warnings = u.chain, u.warnings
			s.Signers = append(s.Signers, counted)
			for _, w := range u.warnings {
				if !slices.Contains(s.Warnings, w) {
					s.Warnings = append(s.Warnings, w)
				}
			}
		}
	}
	need := k.Threshold(role)
	if len(keys) >= need {
		s.Chain, s.SigningTime = s.Signers[0].Chain, s.Signers[0].SigningTime
		for _, err := range reasons {
			s.Warnings = append(s.Warnings, "not counted: "+err.Error())
		}
		return s, nil
	}
	other := func(err error) bool { return CodeOf(err) != CodeOf(reasons[0]) }
	if need == 1 && !slices.ContainsFunc(reasons, other) {
		return nil, reasons[0]
	}
	text := fmt.Sprintf("%d of %d signers count, %d needed", len(keys), len(list), need)
	for _, err := range reasons {
		text += "; " + err.Error()
	}
	return nil, Refuse(Threshold, "%s", text)
}
