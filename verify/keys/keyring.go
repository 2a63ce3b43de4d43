package keys

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Draft is a keyring that is to be signed.
type Draft struct {
	Version       uint32
	Created       time.Time // zero: not said
	Anchors       []Anchor
	Intermediates []Anchor       // names and certificates count
	Thresholds    map[string]int // by role
	Revoked       [][32]byte     // SHA-256 of SubjectPublicKeyInfos
	Algorithms    []string
}

// Anchor is a certificate that is trusted itself.
type Anchor struct {
	Name  string
	Roles []string // release, dev, keyring
	Cert  *x509.Certificate
}

var anchorName = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// Text is what is signed. An anchor that is not self-issued is written as one
// at which chains end (partial).
func (d *Draft) Text() ([]byte, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "[keyring]\nversion=%d\n", d.Version)
	if !d.Created.IsZero() {
		fmt.Fprintf(&b, "created=%s\n", stamp(d.Created))
	}
	for _, a := range d.Anchors {
		fmt.Fprintf(&b, "\n[anchor.%s]\n# %s, until %s\nroles=%s\ncert=%s\n", a.Name, oneLine(a.Cert.Subject.String()), stamp(a.Cert.NotAfter),
			strings.Join(a.Roles, ";"), base64.StdEncoding.EncodeToString(a.Cert.Raw))
		if !bytes.Equal(a.Cert.RawIssuer, a.Cert.RawSubject) {
			b.WriteString("partial=true\n")
		}
	}
	for _, a := range d.Intermediates {
		fmt.Fprintf(&b, "\n[intermediate.%s]\n# %s\ncert=%s\n", a.Name, oneLine(a.Cert.Subject.String()), base64.StdEncoding.EncodeToString(a.Cert.Raw))
	}
	for _, a := range slices.Concat(d.Anchors, d.Intermediates) {
		if !anchorName.MatchString(a.Name) {
			return nil, fmt.Errorf("%q is no name of an anchor: a to z, 0 to 9 and -, at most 32", a.Name)
		}
	}
	for _, role := range slices.Sorted(maps.Keys(d.Thresholds)) {
		fmt.Fprintf(&b, "\n[role.%s]\nthreshold=%d\n", role, d.Thresholds[role])
	}
	if len(d.Revoked) > 0 {
		var list []string
		for _, sum := range d.Revoked {
			list = append(list, hex.EncodeToString(sum[:]))
		}
		fmt.Fprintf(&b, "\n[revoked]\nspki-sha256=%s\n", strings.Join(list, ";"))
	}
	if len(d.Algorithms) > 0 {
		fmt.Fprintf(&b, "\n[algorithms]\nallow=%s\n", strings.Join(d.Algorithms, ";"))
	}
	return []byte(b.String()), nil
}

// oneLine keeps a name in its comment.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' || r == '\ufeff' {
			return '?'
		}
		return r
	}, s)
}

// SplitTrust takes a trust file apart: signed keyrings (CMS) and CRLs, DER
// values one behind the other.
func SplitTrust(b []byte) (keyrings, crls [][]byte, err error) {
	for n := 1; len(b) > 0; n++ {
		var whole, first asn1.RawValue
		rest, err := asn1.Unmarshal(b, &whole)
		if err != nil {
			return nil, nil, fmt.Errorf("value %d is not DER: %w", n, err)
		}
		if whole.Tag != asn1.TagSequence || !whole.IsCompound {
			return nil, nil, fmt.Errorf("value %d is neither a signed keyring nor a CRL", n)
		}
		if _, err := asn1.Unmarshal(whole.Bytes, &first); err != nil {
			return nil, nil, fmt.Errorf("value %d: %w", n, err)
		}
		if first.Tag == asn1.TagOID {
			keyrings = append(keyrings, whole.FullBytes)
		} else {
			if _, err := x509.ParseRevocationList(whole.FullBytes); err != nil {
				return nil, nil, fmt.Errorf("value %d is not a CRL: %w", n, err)
			}
			crls = append(crls, whole.FullBytes)
		}
		b = rest
	}
	if keyrings == nil && crls == nil {
		return nil, nil, errors.New("is empty")
	}
	return keyrings, crls, nil
}
