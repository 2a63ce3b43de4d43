package verify

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"errors"
	"slices"
	"time"
)

const (
	// MaxTrust is the most bytes of a trust file that is kept, or rides in a bundle.
	MaxTrust      = 1 << 20
	maxTrustInput = 4 << 20
	maxRenewals   = 64 // keyrings in one input
	maxForgeries  = 8  // of these whose signatures are wrong; the others are not even tried
)

// Renew returns the keyring that k becomes by what is in data: DER values one
// behind the other, signed keyrings and CRLs, of at most 4 MiB, 64 keyrings and
// 64 CRLs.
//
// A keyring is taken if its version is one above, if the threshold of the role
// keyring is met under the one before and under itself, and if it leaves anchors
// for release and keyring. A CRL is taken if its issuer is an anchor or an
// intermediate of the keyring, if it is what readCRL asks for, and if its number
// is above that of the issuer's last. Floor is the time by which certificates of
// signers are over, as in [Rules].
//
// What is not taken is left out and named in notes; next is never less than k.
// blob, at most 1 MiB, is what has to be kept: a keyring and everything by which
// it became what it is. Renewing what k began as with blob and floor zero gives
// next again; with another floor a signer's certificate that ended since would
// break the chain. So a device renews its built-in keyring with what it kept and
// no floor, and the result with what is new and its floor.
func (k *Keyring) Renew(data []byte, floor time.Time) (next *Keyring, blob []byte, notes []*Refusal) {
	r := renewal{Keyring: k.clone(), floor: floor}
	// In the order of data, and again what had to wait for something behind it.
	waiting, progress := r.read(data), true
	for progress {
		progress = false
		var rest []renewed
		for _, item := range waiting {
			switch what, err := item.try(&r); what {
			case taken:
				progress = true
			case waits:
				rest = append(rest, item)
			default:
				r.note(err)
			}
		}
		waiting = rest
	}
	for _, item := range waiting {
		if item.crl != nil {
			r.note(Refuse(Untrusted, "CRL of %s: its issuer is not known", item.crl.issuerName))
		} else {
			r.note(Refuse(Policy, "keyring version %d: after version %d only the next is taken", item.keyring.Version, r.Version))
		}
	}
	return r.Keyring, r.blob(), r.notes
}

// WithCRLs returns k with further CRLs (DER), from a place that is trusted. Their
// issuers need not be known: the signature is checked when a chain has one of
// that name. What is not acceptable is left out and noted.
func (k *Keyring) WithCRLs(ders ...[]byte) *Keyring {
	r := renewal{Keyring: k.clone()}
	for _, der := range ders {
		c, err := readCRL(der)
		if err != nil {
			r.note(err)
			continue
		}
		switch what, err := r.takeCRL(c, false); what {
		case waits:
			if len(r.crls) < maxKeyringCRLs {
				r.crls = append(r.crls, c)
			}
		case leftOut:
			r.note(err)
		}
	}
	r.Notes = slices.Concat(k.Notes, r.notes)
	return r.Keyring
}

func (k *Keyring) clone() *Keyring {
	c := *k
	c.crls = slices.Clone(k.crls)
	c.lineage = slices.Clone(k.lineage)
	return &c
}

// renewal is a keyring that is being renewed.
type renewal struct {
	*Keyring
	floor     time.Time
	notes     []*Refusal
	forgeries int
}

// renewed is one value of a trust file: a CRL or a keyring.
type renewed struct {
	crl     *crl
	der     []byte
	cms     *CMS
	keyring *Keyring
}

// outcome of trying an item; leftOut may come with a reason to be noted.
type outcome int

const (
	taken outcome = iota
	waits         // for something that may stand behind it
	leftOut
)

func (r *renewal) note(err error) {
	var refusal *Refusal
	if errors.As(err, &refusal) && len(r.notes) < 2*maxRenewals {
		r.notes = append(r.notes, refusal)
	}
}

// read takes data apart.
func (r *renewal) read(data []byte) (list []renewed) {
	if len(data) > maxTrustInput {
		r.note(Refuse(Policy, "trust file of %d bytes: at most %d are read", len(data), maxTrustInput))
		return nil
	}
	keyrings, crls := 0, 0
	for len(data) > 0 {
		v, rest, err := split(data)
		if err != nil || v.tag != tagSequence {
			r.note(Refuse(Malformed, "trust file: not one DER value behind the other"))
			return list
		}
		data = rest
		var item renewed
		switch in := (cursor{rest: v.body}); {
		case in.peek(tagOID):
			keyrings++
			item.der = bytes.Clone(v.full)
			item.cms, item.keyring, err = readSignedKeyring(item.der)
		case in.peek(tagSequence):
			crls++
			item.crl, err = readCRL(v.full)
		default:
			err = Refuse(Malformed, "trust file: neither keyring nor CRL")
		}
		if keyrings > maxRenewals || crls > maxKeyringCRLs {
			r.note(Refuse(Policy, "trust file: more than %d keyrings or %d CRLs", maxRenewals, maxKeyringCRLs))
			return list
		}
		if err != nil {
			r.note(err)
			continue
		}
		list = append(list, item)
	}
	return list
}

func (item renewed) try(r *renewal) (outcome, error) {
	if item.crl != nil {
		return r.takeCRL(item.crl, true)
	}
	return r.takeKeyring(item)
}

func (r *renewal) takeKeyring(item renewed) (outcome, error) {
	next := item.keyring
	began := r.Version - uint32(len(r.lineage))
	switch {
	case r.Version == 0:
		return leftOut, Refuse(Policy, "keyring version %d: a keyring of PEM has no role keyring and cannot be renewed", next.Version)
	case next.Version < began || next.Version == r.Version && next.text == r.text:
		return leftOut, nil // known, or from before the one that is built in
	case next.Version <= r.Version:
		if slices.ContainsFunc(r.lineage, func(b []byte) bool { return bytes.Equal(b, item.der) }) {
			return leftOut, nil
		}
		return leftOut, Refuse(EpochLow, "keyring rollback: version %d, this one is version %d", next.Version, r.Version)
	case next.Version > r.Version+1:
		return waits, nil
	}
	// CRLs stay while their issuer does.
	for _, c := range r.crls {
		if _, err := next.issuerOf(c); err == nil || c.by == nil {
			next.crls = append(next.crls, c)
		}
	}
	next.lineage, next.prev = append(slices.Clone(r.lineage), item.der), r.Keyring
	if err := next.reachable(RoleKeyring); err != nil {
		return leftOut, Refuse(Policy, "keyring version %d: %w", next.Version, err)
	}
	if r.forgeries >= maxForgeries {
		return leftOut, Refuse(Policy, "keyring version %d: more than %d before it were not signed", next.Version, maxForgeries)
	}
	for _, by := range []struct {
		who string
		*Keyring
	}{{"the one before", r.Keyring}, {"itself", next}} {
		rules := Rules{Keyring: by.Keyring, Role: RoleKeyring, Purpose: "any", Now: r.floor}
		if _, err := item.cms.Verify(rules, nil); err != nil {
			r.forgeries++
			return leftOut, Refuse(CodeOf(err), "keyring version %d, by %s: %w", next.Version, by.who, err)
		}
	}
	if len(next.blob()) > MaxTrust {
		return leftOut, Refuse(Policy, "keyring version %d: more than %d bytes would have to be kept", next.Version, MaxTrust)
	}
	r.Keyring = next
	return taken, nil
}

// issuerOf returns the certificate of the keyring whose key signed a CRL.
func (k *Keyring) issuerOf(c *crl) (*x509.Certificate, *Refusal) {
	allowed := Rules{Keyring: k}.allowed()
	refusal := Refuse(Untrusted, "CRL of %s: its issuer is not known", c.issuerName)
	for _, issuer := range slices.Concat(k.Anchors, k.Intermediates) {
		err := c.signedBy(issuer, allowed)
		if err == nil {
			return issuer, nil
		}
		if err.Code != Untrusted {
			refusal = err
		}
	}
	return nil, refusal
}

func (r *renewal) takeCRL(c *crl, keep bool) (outcome, error) {
	issuer, refusal := r.issuerOf(c)
	switch {
	case refusal != nil && refusal.Code == Untrusted:
		return waits, nil
	case refusal != nil:
		return leftOut, refusal
	}
	c.by, c.kept = issuer, keep
	old := r.crls
	same, at := -1, len(old) // the one of this issuer, and where it would stand
	for i, o := range old {
		if o.by == nil {
			continue
		}
		switch order := o.compareIssuer(c); {
		case order == 0:
			same = i
		case order > 0:
			at = min(at, i)
		}
	}
	switch {
	case same < 0 && len(old) >= maxKeyringCRLs:
		return leftOut, Refuse(Policy, "CRL of %s: more than %d CRLs", c.issuerName, maxKeyringCRLs)
	case same < 0:
		r.crls = slices.Insert(slices.Clone(old), at, c)
	case bytes.Equal(old[same].raw, c.raw):
		return leftOut, nil
	case !c.newer(old[same]):
		return leftOut, Refuse(EpochLow, "crl rollback: number %s of %s, known is number %s", c.showNumber(), c.issuerName, old[same].showNumber())
	default:
		r.crls = slices.Clone(old)
		r.crls[same] = c
	}
	if keep && len(r.blob()) > MaxTrust {
		r.crls = old
		return leftOut, Refuse(Policy, "CRL of %s: more than %d bytes would have to be kept", c.issuerName, MaxTrust)
	}
	return taken, nil
}

// compareIssuer compares whose lists they are, by name and key.
func (c *crl) compareIssuer(o *crl) int {
	return cmp.Or(bytes.Compare(c.issuer, o.issuer), bytes.Compare(c.by.RawSubjectPublicKeyInfo, o.by.RawSubjectPublicKeyInfo))
}

// blob is the canonical trust file: keyrings by version, then CRLs by issuer.
func (k *Keyring) blob() []byte {
	blob := slices.Concat(k.lineage...)
	for _, c := range k.crls {
		if c.kept {
			blob = append(blob, c.raw...)
		}
	}
	return blob
}

// CRL is what a keyring knows of a list of revoked certificates.
type CRL struct {
	Issuer                 string // for people
	Number                 string // hexadecimal
	ThisUpdate, NextUpdate time.Time
	Entries                int
	// By is the certificate of the keyring whose key signed it; nil where that
	// is in none and will be seen in a chain.
	By *x509.Certificate
}

// Newest returns the newest date that is signed in a keyring that was renewed: when it says it was made, and when its CRLs
// were. Zero where there is none.
func (k *Keyring) Newest() time.Time {
	newest := k.Created
	for _, c := range k.crls {
		if c.kept && c.thisUpdate.After(newest) {
			newest = c.thisUpdate
		}
	}
	return newest
}

// CRLs lists the CRLs of a keyring.
func (k *Keyring) CRLs() []CRL {
	var list []CRL
	for _, c := range k.crls {
		list = append(list, CRL{c.issuerName, c.showNumber(), c.thisUpdate, c.nextUpdate, c.count, c.by})
	}
	return list
}
