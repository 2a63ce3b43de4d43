package keys

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// reasons are the reasons of RFC 5280, section 5.3.1, by their codes.
var reasons = [...]string{0: "unspecified", 1: "keyCompromise", 2: "cACompromise", 3: "affiliationChanged", 4: "superseded", 5: "cessationOfOperation"}

// Reasons lists why a certificate may be revoked.
func Reasons() []string { return reasons[:] }

func reasonCode(s string) int { return slices.Index(reasons[:], s) }

// Revoke says what is revoked.
type Revoke struct {
	Name   string // every certificate that was issued under this name
	Serial string // or the one with this serial number, hex
	Reason string // "" is unspecified
	Now    time.Time
	Days   int           // until the next CRL is due; 0: 365
	CAKey  crypto.Signer // nil: from the folder
}

// Revoke revokes certificates and writes the CRL of their CA, whose path it
// returns with what was revoked. What is revoked already stays as it is.
func (f *Folder) Revoke(o Revoke) (path string, revoked []Entry, err error) {
	what := o.Name
	if what == "" {
		what = "serial " + o.Serial
	}
	defer wrap(&err, "revoke %s", what)
	if o.Reason == "" {
		o.Reason = reasons[0]
	}
	if reasonCode(o.Reason) < 0 {
		return "", nil, fmt.Errorf("reason %q is none of %s", o.Reason, strings.Join(reasons[:], ", "))
	}
	now := orNow(o.Now).UTC().Truncate(time.Second)
	serial := strings.TrimLeft(strings.ToLower(strings.ReplaceAll(o.Serial, ":", "")), "0")
	issuer, known := "", false
	for i := range f.entries {
		e := &f.entries[i]
		if o.Name != "" && e.base() != o.Name && e.base() != deviceDir+"/"+o.Name || o.Name == "" && e.Serial != serial {
			continue
		}
		known = true
		switch {
		case e.Issuer == "self":
			return "", nil, errors.New("it is self-signed, which no CRL can revoke: make a keyring without it (keys keyring create)")
		case e.Issuer == "-":
			return "", nil, errors.New("it was issued elsewhere, so it is revoked there")
		case issuer != "" && issuer != e.Issuer:
			return "", nil, errors.New("there are certificates of two CAs by this name, choose with --serial")
		}
		issuer = e.Issuer
		if e.Revoked.IsZero() {
			e.Revoked, e.Reason = now, o.Reason
			revoked = append(revoked, *e)
		}
	}
	switch {
	case !known:
		return "", nil, fmt.Errorf("%s knows no such certificate", f.Dir)
	case len(revoked) == 0:
		return "", nil, errors.New("it is revoked already")
	}
	path, err = f.CRL(CRL{CA: issuer, Now: now, Days: o.Days, CAKey: o.CAKey})
	return path, revoked, err
}

// CRL says what CRL is made.
type CRL struct {
	CA    string // root, release-ca, ...
	Now   time.Time
	Days  int // until the next one is due; 0: 365
	CAKey crypto.Signer
}

// CRL writes CA.crl (DER) with a number one above the last one's and returns its
// path. It revokes what the index says and what the last one did.
func (f *Folder) CRL(o CRL) (_ string, err error) {
	defer wrap(&err, "make the CRL of %s", o.CA)
	ca, err := f.ca(o.CA, o.CAKey)
	if err != nil {
		return "", err
	}
	if o.Days == 0 {
		o.Days = 365
	}
	path := f.path(o.CA + crlSuffix)
	last, err := readCRL(path)
	if err != nil {
		return "", err
	}
	now := orNow(o.Now).UTC().Truncate(time.Second)
	number := f.numbers[o.CA]
	t := &x509.RevocationList{ThisUpdate: now, NextUpdate: now.AddDate(0, 0, o.Days)}
	if last != nil {
		if err := last.CheckSignatureFrom(ca.Cert); err != nil {
			return "", fmt.Errorf("%s is not from this CA, move it away: %w", path, err)
		}
		if last.Number.IsInt64() {
			number = max(number, last.Number.Int64())
		}
		for _, e := range last.RevokedCertificateEntries {
			t.RevokedCertificateEntries = append(t.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: e.SerialNumber, RevocationTime: e.RevocationTime, ReasonCode: e.ReasonCode})
		}
	}
	for _, e := range f.entries {
		serial, ok := e.serial()
		if e.Issuer != o.CA || e.Revoked.IsZero() || !ok || slices.ContainsFunc(t.RevokedCertificateEntries,
			func(have x509.RevocationListEntry) bool { return have.SerialNumber.Cmp(serial) == 0 }) {
			continue
		}
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: e.Revoked, ReasonCode: reasonCode(e.Reason)})
	}
	number++
	t.Number = big.NewInt(number)
	der, err := x509.CreateRevocationList(rand.Reader, t, ca.Cert, ca.Key)
	if err != nil {
		return "", err
	}
	f.numbers[o.CA] = number
	if err := f.save(); err != nil {
		return "", err
	}
	return path, renameio.WriteFile(path, der, 0o644)
}

func readCRL(path string) (*x509.RevocationList, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	crl, err := x509.ParseRevocationList(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return crl, nil
}

// ParseCRLs reads CRLs, one in DER or any number in PEM, and returns their DER.
func ParseCRLs(b []byte) ([][]byte, error) {
	var all [][]byte
	if !bytes.Contains(b, []byte("-----BEGIN")) {
		all = [][]byte{b}
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type == "X509 CRL" {
			all = append(all, block.Bytes)
		}
	}
	if all == nil {
		return nil, errors.New("no CRL")
	}
	for _, der := range all {
		if _, err := x509.ParseRevocationList(der); err != nil {
			return nil, fmt.Errorf("not a CRL: %w", err)
		}
	}
	return all, nil
}

// Due is something that stops to count at a time.
type Due struct {
	What string    `json:"what"` // the file's name
	At   time.Time `json:"at"`
}

// Due lists what of the folder expires before the given time and is neither
// revoked nor renewed, the CRLs among it, what is first first.
func (f *Folder) Due(before time.Time) ([]Due, error) {
	var all []Due
	for i := range f.entries {
		if e := &f.entries[i]; e.Revoked.IsZero() && !e.Old() && e.NotAfter.Before(before) {
			all = append(all, Due{e.Name, e.NotAfter})
		}
	}
	list, err := os.ReadDir(f.Dir)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if !strings.HasSuffix(d.Name(), crlSuffix) {
			continue
		}
		crl, err := readCRL(f.path(d.Name()))
		if err != nil {
			return nil, err
		}
		if crl.NextUpdate.Before(before) {
			all = append(all, Due{d.Name(), crl.NextUpdate})
		}
	}
	slices.SortStableFunc(all, func(a, b Due) int { return a.At.Compare(b.At) })
	return all, nil
}
