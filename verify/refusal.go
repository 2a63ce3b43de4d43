// Package verify says who signed a bundle and whether that is to be trusted:
// it reads CMS signatures (RFC 5652), builds X.509 chains (RFC 5280) to the
// anchors of a keyring, and judges purpose and time.
//
// Start with [ParseKeyring] and [ReadCMS], then call [CMS.Verify] with [Rules].
// Nothing that ReadCMS returns is trusted before Verify returned without an
// error. Every refusal is a [*Refusal] and carries a [Code]. [Keyring.Renew]
// takes newer keyrings and CRLs from anywhere; [Sign], [AddSigner] and their
// like make what is verified here, on a PC.
//
// What differs from the CMS of OpenSSL, on purpose: strict DER only, signed
// attributes are mandatory and from a short list, signers are counted by keys up
// to a threshold and those that are unknown do no harm, weak algorithms do not exist, system roots are never used, a CA's certificate
// signs no bundles, and the dates of anchors are ignored.
package verify

import (
	"errors"
	"fmt"
)

// Code is why something was refused. It is the exit status of the bundle
// commands and the NN of `lifeboat: refused code=NN`.
type Code int

// The reasons of a refusal.
const (
	Malformed    Code = 20 // not the format it should be
	BadSignature Code = 21 // signature wrong, or its signed attributes are
	Untrusted    Code = 22 // no chain of certificates to the keyring
	Expired      Code = 23 // a certificate's validity is over or not begun
	Revoked      Code = 24 // a certificate was revoked
	Threshold    Code = 25 // not the required number of signers
	WrongPurpose Code = 26 // a certificate that may not sign bundles
	WrongTarget  Code = 27 // not for this device
	EpochLow     Code = 28 // security epoch below the floor
	Stale        Code = 29 // offer is no longer valid
	PayloadHash  Code = 30 // content differs from what was signed
	Policy       Code = 31 // format, algorithm or size not allowed
	KeyMissing   Code = 32 // no usable keyring: nothing is accepted
	IO           Code = 40 // reading failed; says nothing about the signature
)

// A Refusal is an error with a [Code].
type Refusal struct {
	Code Code
	Text string // for people, one line, lower case
	Hint string // what to do about it; may be empty
	Err  error  // the cause; may be nil
}

func (r *Refusal) Error() string { return r.Text }
func (r *Refusal) Unwrap() error { return r.Err }

// Refuse returns a Refusal whose text is formatted as by [fmt.Errorf]; %w
// wraps.
func Refuse(c Code, format string, args ...any) *Refusal {
	err := fmt.Errorf(format, args...)
	r := &Refusal{Code: c, Text: err.Error()}
	switch err.(type) {
	case interface{ Unwrap() error }, interface{ Unwrap() []error }:
		r.Err = err
	}
	return r
}

// CodeOf returns 0 for nil, the code of the first Refusal in the chain of err,
// and [IO] for any other error.
func CodeOf(err error) Code {
	if err == nil {
		return 0
	}
	var r *Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return IO
}

// HintOf returns the hint of the first Refusal in the chain of err that has
// one.
func HintOf(err error) string {
	for err != nil {
		var r *Refusal
		if !errors.As(err, &r) {
			return ""
		}
		if r.Hint != "" {
			return r.Hint
		}
		err = r.Err
	}
	return ""
}
