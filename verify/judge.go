package verify

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

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

func (r Rules) role() string { return cmp.Or(r.Role, RoleRelease) }

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

// RenewsKeyring reports whether those signed a CMS with content, too, who may
// renew the keyring.
func (c *CMS) RenewsKeyring(r Rules) bool {
	r.Role = RoleKeyring
	_, err := c.Verify(r, nil)
	return err == nil
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
