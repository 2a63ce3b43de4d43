package verify

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxIssuers = 5  // certificates above a signer's, anchor included
	maxChecks  = 48 // signatures of certificates per verification
)

// effort is the work of one verification, shared by all its chains.
type effort struct {
	checks int
	issued map[[2]*x509.Certificate]bool // child, parent: the signature is right
	crls   map[*x509.Certificate]*crl    // the newest of an issuer; nil: none
}

func newEffort() *effort {
	return &effort{issued: map[[2]*x509.Certificate]bool{}, crls: map[*x509.Certificate]*crl{}}
}

// search looks for a chain from a signer to an anchor.
type search struct {
	*effort
	rules    Rules
	pool     []*x509.Certificate // may stand between signer and anchor
	chain    []*x509.Certificate // the answer
	warnings []string            // about it
	refusal  *Refusal            // the best reason so far why there is none
}

// find returns signer's chain to an anchor of the keyring that has the role. If
// there are several, one that passes all rules is taken.
func (r Rules) find(signer *x509.Certificate, certs []embedded, e *effort) ([]*x509.Certificate, []string, *Refusal) {
	s := search{effort: e, rules: r}
	s.pool = append(s.pool, r.Keyring.Intermediates...)
	for _, e := range certs {
		if e.cert != nil && !contains(s.pool, e.cert) {
			s.pool = append(s.pool, e.cert)
		}
	}
	switch r.Purpose {
	case "", "codesign", "smimesign", "any":
	default:
		return nil, nil, Refuse(Policy, "check-purpose %q is not known", r.Purpose)
	}
	if contains(r.Keyring.Anchors, signer) {
		return nil, nil, Refuse(WrongPurpose, "signer %s is a certificate of the keyring itself", name(signer))
	}
	if s.extend([]*x509.Certificate{signer}) {
		return s.chain, s.warnings, nil
	}
	if s.refusal != nil {
		return nil, nil, s.refusal
	}
	refusal := Refuse(Untrusted, "signer %s: no issuer in the keyring (issued by %s)", name(signer), issuerName(signer))
	refusal.Hint = "the keyring is for other signers, or an intermediate certificate is missing in the bundle"
	return nil, nil, refusal
}

// extend tries every issuer of the last certificate of path. It returns true
// when s.chain is found.
func (s *search) extend(path []*x509.Certificate) bool {
	child := path[len(path)-1]
	for i, anchor := range s.rules.Keyring.Anchors {
		if !s.isIssuer(child, anchor) {
			continue
		}
		if !s.rules.Keyring.has(i, s.rules.role()) {
			s.note(Refuse(Untrusted, "signer %s: %s is trusted for other roles than %s", name(path[0]), name(anchor), s.rules.role()))
			continue
		}
		whole := append(slices.Clone(path), anchor)
		warnings, err := s.judge(whole)
		if err != nil {
			s.note(err)
			continue
		}
		s.chain, s.warnings = whole, warnings
		return true
	}
	if len(path) >= maxIssuers {
		return false
	}
	for _, next := range s.pool {
		// A key is in a path only once, else two CAs that certify each other
		// would be walked in circles.
		if slices.ContainsFunc(path, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, next.RawSubject) &&
				bytes.Equal(c.RawSubjectPublicKeyInfo, next.RawSubjectPublicKeyInfo)
		}) {
			continue
		}
		if s.isIssuer(child, next) && s.extend(append(slices.Clone(path), next)) {
			return true
		}
	}
	return false
}

// note keeps the reason that came furthest, of equals the first.
func (s *search) note(r *Refusal) {
	rank := func(r *Refusal) int {
		if r == nil {
			return -1
		}
		return slices.Index([]Code{Untrusted, Policy, WrongPurpose, Expired, Revoked}, r.Code)
	}
	if rank(r) > rank(s.refusal) {
		s.refusal = r
	}
}

// isIssuer reports whether parent's key signed child, by algorithms that count.
func (s *search) isIssuer(child, parent *x509.Certificate) bool {
	if !bytes.Equal(child.RawIssuer, parent.RawSubject) || !keyIDsMatch(child, parent) {
		return false
	}
	if err := checkKey(parent.PublicKey); err != nil {
		s.note(Refuse(Policy, "certificate of %s: %w", name(parent), err))
		return false
	}
	switch f := certificateFamily(child.SignatureAlgorithm); {
	case f == 0:
		s.note(Refuse(Policy, "certificate of %s: signed with %s", name(child), child.SignatureAlgorithm))
		return false
	case f&s.rules.allowed() == 0:
		s.note(Refuse(Policy, "certificate of %s: %s is not allowed by the keyring", name(child), child.SignatureAlgorithm))
		return false
	}
	link := [2]*x509.Certificate{child, parent}
	right, known := s.issued[link]
	if !known {
		if s.checks++; s.checks > maxChecks {
			s.note(Refuse(Untrusted, "too many certificates of the same name"))
			return false
		}
		right = parent.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature) == nil
		s.issued[link] = right
	}
	return right
}

// judge applies everything but signatures to a chain, signer first.
func (s *search) judge(chain []*x509.Certificate) (warnings []string, refusal *Refusal) {
	r := s.rules
	between := 0 // certificates that count for pathLen
	for i, c := range chain {
		if err := checkForm(c, i > 0); err != nil {
			return nil, Refuse(Untrusted, "certificate of %s: %w", name(c), err)
		}
		if i == 0 {
			continue
		}
		if limit, ok := pathLen(c); ok && between > limit {
			return nil, Refuse(Untrusted, "certificate of %s: allows %d CAs below it, there are %d", name(c), limit, between)
		}
		if !selfIssued(c) {
			between++
		}
	}
	signer := chain[0]
	if signer.BasicConstraintsValid && signer.IsCA {
		return nil, Refuse(WrongPurpose, "signer %s is a CA; bundles are signed with certificates that are none", name(signer))
	}
	if err := checkPurpose(r.Purpose, chain); err != nil {
		refusal := Refuse(WrongPurpose, "%w", err)
		if (r.Purpose == "" || r.Purpose == "codesign") && checkPurpose("smimesign", chain) == nil {
			refusal.Hint = "stock RAUC accepts it, because RAUC's own default is check-purpose=smimesign; " +
				"to do the same set check-purpose=smimesign in section [keyring] of system.conf"
		}
		return nil, refusal
	}
	if r.AtBoot {
		return nil, nil
	}
	if warnings, refusal = s.checkRevocation(chain); refusal != nil {
		return nil, refusal
	}
	for _, c := range chain[:len(chain)-1] {
		if r.Now.After(c.NotAfter) {
			return nil, Refuse(Expired, "certificate of %s: was valid until %s", name(c), c.NotAfter.UTC().Format(time.RFC3339))
		}
		if r.Trusted && r.Now.Before(c.NotBefore) {
			return nil, Refuse(Expired, "certificate of %s: is valid from %s on", name(c), c.NotBefore.UTC().Format(time.RFC3339))
		}
	}
	return warnings, nil
}

// checkRevocation looks for every key of a chain in the keyring's list, and for
// every certificate but the anchor in the newest CRL of its issuer.
func (s *search) checkRevocation(chain []*x509.Certificate) (warnings []string, refusal *Refusal) {
	r := s.rules
	for _, c := range chain {
		if slices.Contains(r.Keyring.Revoked, SPKI(c)) {
			return nil, Refuse(Revoked, "the key of %s is revoked by the keyring", name(c))
		}
	}
	for i, c := range chain[:len(chain)-1] {
		issuer := chain[i+1]
		list, known := s.crls[issuer]
		if !known {
			for _, l := range r.crls {
				switch err := l.signedBy(issuer, r.allowed()); {
				case err == nil && (list == nil || l.newer(list)):
					list = l
				case err != nil && err.Code != Untrusted:
					warnings = append(warnings, "ignored: "+err.Text)
				}
			}
			s.crls[issuer] = list
		}
		switch {
		case list == nil && r.RequireCRL:
			return nil, Refuse(Revoked, "certificate of %s: no CRL of %s, and one is required", name(c), name(issuer))
		case list == nil:
		case list.revokes(serialOf(c)):
			return nil, Refuse(Revoked, "certificate of %s: revoked by %s, CRL number %s", name(c), name(issuer), list.showNumber())
		case r.Now.After(list.nextUpdate):
			text := fmt.Sprintf("the CRL of %s is stale: the next one was due at %s", name(issuer), list.nextUpdate.Format(time.RFC3339))
			if r.StaleCRL && r.Trusted {
				return nil, Refuse(Revoked, "%s", text)
			}
			warnings = append(warnings, text)
		}
	}
	return warnings, nil
}

func pathLen(c *x509.Certificate) (int, bool) {
	return c.MaxPathLen, c.MaxPathLen > 0 || c.MaxPathLen == 0 && c.MaxPathLenZero
}

// Extensions (RFC 5280, section 4.2.1) are compared by the last number of
// their object identifier 2.5.29.N.
const (
	extKeyUsage          = 15
	extNameConstraints   = 30
	extPolicyConstraints = 36
	extExtendedKeyUsage  = 37
)

func hasExtension(c *x509.Certificate, n int) bool {
	for _, e := range c.Extensions {
		if len(e.Id) == 4 && e.Id[0] == 2 && e.Id[1] == 5 && e.Id[2] == 29 && e.Id[3] == n {
			return true
		}
	}
	return false
}

// checkForm checks what a certificate says of itself, whatever its purpose.
func checkForm(c *x509.Certificate, issuer bool) error {
	if len(c.UnhandledCriticalExtensions) > 0 {
		return fmt.Errorf("critical extension %s is not known", c.UnhandledCriticalExtensions[0])
	}
	if hasExtension(c, extNameConstraints) || hasExtension(c, extPolicyConstraints) {
		return errors.New("name and policy constraints are not supported")
	}
	for _, n := range append(slices.Clone(c.Subject.Names), c.Issuer.Names...) {
		if s, ok := n.Value.(string); ok && strings.ContainsRune(s, 0) {
			return errors.New("NUL in a name")
		}
	}
	if !issuer {
		return nil
	}
	if !c.BasicConstraintsValid || !c.IsCA {
		return errors.New("it issued a certificate and is no CA")
	}
	if hasExtension(c, extKeyUsage) && c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("its key usage does not allow it to issue certificates")
	}
	return nil
}

// checkPurpose checks key usage and extended key usage of a chain, signer
// first. "codesign" is what RAUC calls codesign: the signer needs code signing,
// a CA needs it if it has extended key usages at all. "smimesign" is OpenSSL's
// S/MIME signing: e-mail protection, or no extended key usages at all.
func checkPurpose(purpose string, chain []*x509.Certificate) error {
	for i, c := range chain {
		what := "CA"
		if i == 0 {
			what = "signer"
			usage := x509.KeyUsageDigitalSignature
			if purpose == "smimesign" || purpose == "any" {
				usage |= x509.KeyUsageContentCommitment
			}
			if hasExtension(c, extKeyUsage) && c.KeyUsage&usage == 0 {
				return fmt.Errorf("signer %s: key usage does not allow digital signatures", name(c))
			}
		}
		need, text := x509.ExtKeyUsageCodeSigning, "code signing"
		switch purpose {
		case "any":
			continue
		case "smimesign":
			need, text = x509.ExtKeyUsageEmailProtection, "e-mail protection"
		}
		if !hasExtension(c, extExtendedKeyUsage) {
			if i > 0 || purpose == "smimesign" {
				continue
			}
			return fmt.Errorf("signer %s: no extended key usage, %s is needed", name(c), text)
		}
		if !slices.Contains(c.ExtKeyUsage, need) {
			return fmt.Errorf("%s %s: extended key usage is not %s", what, name(c), text)
		}
	}
	return nil
}

// name returns a subject for messages: one line without control characters.
func name(c *x509.Certificate) string       { return printable(c.Subject.String()) }
func issuerName(c *x509.Certificate) string { return printable(c.Issuer.String()) }

func printable(s string) string {
	const limit = 128
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return '?'
		}
		return r
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	if s == "" {
		return "without a name"
	}
	return `"` + s + `"`
}
