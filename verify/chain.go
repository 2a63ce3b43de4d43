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
	maxIssuers = 5  // certificates above the signer's, anchor included
	maxChecks  = 17 // signatures of certificates per verification
)

// search looks for a chain from a signer to an anchor.
type search struct {
	rules   Rules
	pool    []*x509.Certificate // may stand between signer and anchor
	checks  int
	chain   []*x509.Certificate // the answer
	refusal *Refusal            // the best reason so far why there is none
}

// chain returns signer's chain to an anchor of the keyring. If there are
// several, one that passes all rules is taken.
func (c *CMS) chain(signer *x509.Certificate, r Rules) ([]*x509.Certificate, error) {
	s := search{rules: r}
	s.pool = append(s.pool, r.Keyring.Intermediates...)
	for _, e := range c.certs {
		if e.cert != nil && !contains(s.pool, e.cert) {
			s.pool = append(s.pool, e.cert)
		}
	}
	switch r.Purpose {
	case "", "codesign", "smimesign", "any":
	default:
		return nil, Refuse(Policy, "check-purpose %q is not known", r.Purpose)
	}
	if contains(r.Keyring.Anchors, signer) {
		return nil, Refuse(WrongPurpose, "signer %s is a certificate of the keyring itself", name(signer))
	}
	if s.extend([]*x509.Certificate{signer}) {
		return s.chain, nil
	}
	if s.refusal != nil {
		return nil, s.refusal
	}
	refusal := Refuse(Untrusted, "signer %s: no issuer in the keyring (issued by %s)", name(signer), issuerName(signer))
	refusal.Hint = "the keyring is for other signers, or an intermediate certificate is missing in the bundle"
	return nil, refusal
}

// extend tries every issuer of the last certificate of path. It returns true
// when s.chain is found.
func (s *search) extend(path []*x509.Certificate) bool {
	child := path[len(path)-1]
	for _, anchor := range s.rules.Keyring.Anchors {
		if !s.issued(child, anchor) {
			continue
		}
		whole := append(slices.Clone(path), anchor)
		if err := s.rules.judge(whole); err != nil {
			s.note(err)
			continue
		}
		s.chain = whole
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
		if s.issued(child, next) && s.extend(append(slices.Clone(path), next)) {
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
		return slices.Index([]Code{Untrusted, Policy, WrongPurpose, Expired}, r.Code)
	}
	if rank(r) > rank(s.refusal) {
		s.refusal = r
	}
}

// issued reports whether parent's key signed child, by algorithms that count.
func (s *search) issued(child, parent *x509.Certificate) bool {
	if !bytes.Equal(child.RawIssuer, parent.RawSubject) || !keyIDsMatch(child, parent) {
		return false
	}
	if s.checks++; s.checks > maxChecks {
		s.note(Refuse(Untrusted, "too many certificates of the same name"))
		return false
	}
	if err := checkKey(parent.PublicKey); err != nil {
		s.note(Refuse(Policy, "certificate of %s: %w", name(parent), err))
		return false
	}
	if !strongSignature(child.SignatureAlgorithm) {
		s.note(Refuse(Policy, "certificate of %s: signed with %s", name(child), child.SignatureAlgorithm))
		return false
	}
	return parent.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature) == nil
}

// judge applies everything but signatures to a chain, signer first.
func (r Rules) judge(chain []*x509.Certificate) *Refusal {
	between := 0 // certificates that count for pathLen
	for i, c := range chain {
		if err := checkForm(c, i > 0); err != nil {
			return Refuse(Untrusted, "certificate of %s: %w", name(c), err)
		}
		if i == 0 {
			continue
		}
		if limit, ok := pathLen(c); ok && between > limit {
			return Refuse(Untrusted, "certificate of %s: allows %d CAs below it, there are %d", name(c), limit, between)
		}
		if !selfIssued(c) {
			between++
		}
	}
	signer := chain[0]
	if signer.BasicConstraintsValid && signer.IsCA {
		return Refuse(WrongPurpose, "signer %s is a CA; bundles are signed with certificates that are none", name(signer))
	}
	if err := checkPurpose(r.Purpose, chain); err != nil {
		refusal := Refuse(WrongPurpose, "%w", err)
		if (r.Purpose == "" || r.Purpose == "codesign") && checkPurpose("smimesign", chain) == nil {
			refusal.Hint = "stock RAUC accepts it, because RAUC's own default is check-purpose=smimesign; " +
				"to do the same set check-purpose=smimesign in section [keyring] of system.conf"
		}
		return refusal
	}
	if r.AtBoot {
		return nil
	}
	for _, c := range chain[:len(chain)-1] {
		if r.Now.After(c.NotAfter) {
			return Refuse(Expired, "certificate of %s: was valid until %s", name(c), c.NotAfter.UTC().Format(time.RFC3339))
		}
		if r.Trusted && r.Now.Before(c.NotBefore) {
			return Refuse(Expired, "certificate of %s: is valid from %s on", name(c), c.NotBefore.UTC().Format(time.RFC3339))
		}
	}
	return nil
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
