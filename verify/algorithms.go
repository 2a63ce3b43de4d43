package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // crypto.SHA256
	_ "crypto/sha512" // crypto.SHA384, crypto.SHA512
	"crypto/x509"
	"errors"
	"fmt"
)

// Object identifiers, as the contents octets of their DER encoding.
const (
	oidData       = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01"
	oidSignedData = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"

	oidContentType   = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x03"
	oidMessageDigest = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x04"
	oidSigningTime   = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x05"
	oidSMIMECaps     = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0f"
	// 2.25.147321726537564590519232902628724436508, a UUID: further signers, where RAUC does not look for them.
	oidCosigners       = "\x69\x81\xdd\xd5\x90\xfa\x9c\x9e\x82\xbe\xa9\x8b\x87\xc0\xe9\x94\x86\xef\xdc\x1c"
	oidTimeStampToken  = "\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x02\x0e"
	oidSHA256          = "\x60\x86\x48\x01\x65\x03\x04\x02\x01"
	oidSHA384          = "\x60\x86\x48\x01\x65\x03\x04\x02\x02"
	oidSHA512          = "\x60\x86\x48\x01\x65\x03\x04\x02\x03"
	oidRSA             = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"
	oidMGF1            = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08"
	oidRSAPSS          = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a"
	oidSHA256WithRSA   = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b"
	oidSHA384WithRSA   = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c"
	oidSHA512WithRSA   = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d"
	oidECPublicKey     = "\x2a\x86\x48\xce\x3d\x02\x01"
	oidECDSAWithSHA256 = "\x2a\x86\x48\xce\x3d\x04\x03\x02"
	oidECDSAWithSHA384 = "\x2a\x86\x48\xce\x3d\x04\x03\x03"
	oidECDSAWithSHA512 = "\x2a\x86\x48\xce\x3d\x04\x03\x04"
	oidEd25519         = "\x2b\x65\x70"
	oidP256            = "\x2a\x86\x48\xce\x3d\x03\x01\x07"
	oidP384            = "\x2b\x81\x04\x00\x22"
	oidP521            = "\x2b\x81\x04\x00\x23"
	oidP224            = "\x2b\x81\x04\x00\x21"
	minRSA, maxRSA     = 2048, 8192 // bits; more would take too long
)

// family is one bit.
type family uint8

const (
	rsaPKCS1 family = 1 << iota
	rsaPSS
	ecdsaSig
	ed25519Sig
)

// families are the names in a keyring's [algorithms] allow.
var families = map[string]family{"rsa": rsaPKCS1, "rsa-pss": rsaPSS, "ecdsa": ecdsaSig, "ed25519": ed25519Sig}

// familyOfKey returns what signatures a key can make.
func familyOfKey(pub any) family {
	switch pub.(type) {
	case *rsa.PublicKey:
		return rsaPKCS1 | rsaPSS
	case *ecdsa.PublicKey:
		return ecdsaSig
	case ed25519.PublicKey:
		return ed25519Sig
	}
	return 0
}

// scheme is how a signer's signature is made.
type scheme struct {
	family family
	hash   crypto.Hash // of content and signed attributes
	salt   int         // RSA-PSS: bytes
}

func (s scheme) String() string {
	switch s.family {
	case rsaPKCS1:
		return "RSA with " + s.hash.String()
	case rsaPSS:
		return "RSA-PSS with " + s.hash.String()
	case ecdsaSig:
		return "ECDSA with " + s.hash.String()
	default:
		return "Ed25519"
	}
}

func hashOf(a algorithm) (crypto.Hash, error) {
	var h crypto.Hash
	switch a.oid {
	case oidSHA256:
		h = crypto.SHA256
	case oidSHA384:
		h = crypto.SHA384
	case oidSHA512:
		h = crypto.SHA512
	}
	if h == 0 || !a.noParams() {
		return 0, Refuse(Policy, "digest algorithm is not one of SHA-256, SHA-384, SHA-512")
	}
	return h, nil
}

// schemeOf reads digestAlgorithm and signatureAlgorithm of a SignerInfo.
func schemeOf(digest, signature algorithm) (scheme, error) {
	h, err := hashOf(digest)
	if err != nil {
		return scheme{}, err
	}
	s := scheme{family: rsaPKCS1, hash: h}
	if signature.oid != oidRSA { // which names no hash
		s, err = readScheme(signature)
	} else if !signature.noParams() {
		err = Refuse(Policy, "signature algorithm has parameters")
	}
	if err != nil {
		return scheme{}, err
	}
	if s.hash != h {
		return scheme{}, Refuse(BadSignature, "signature over %s, but content digest is %s", s.hash, h)
	}
	return s, nil
}

// readScheme reads a signature algorithm with its hash, as in certificates.
func readScheme(a algorithm) (scheme, error) {
	var s scheme
	switch a.oid {
	case oidSHA256WithRSA:
		s = scheme{family: rsaPKCS1, hash: crypto.SHA256}
	case oidSHA384WithRSA:
		s = scheme{family: rsaPKCS1, hash: crypto.SHA384}
	case oidSHA512WithRSA:
		s = scheme{family: rsaPKCS1, hash: crypto.SHA512}
	case oidECDSAWithSHA256:
		s = scheme{family: ecdsaSig, hash: crypto.SHA256}
	case oidECDSAWithSHA384:
		s = scheme{family: ecdsaSig, hash: crypto.SHA384}
	case oidECDSAWithSHA512:
		s = scheme{family: ecdsaSig, hash: crypto.SHA512}
	case oidEd25519:
		s = scheme{family: ed25519Sig, hash: crypto.SHA512} // RFC 8419, section 3
	case oidRSAPSS:
		hash, salt, err := pssParams(a.params)
		return scheme{family: rsaPSS, hash: hash, salt: salt}, err
	default:
		return s, Refuse(Policy, "signature algorithm is not one of RSA, RSA-PSS, ECDSA, Ed25519 with SHA-2")
	}
	if !a.noParams() {
		return s, Refuse(Policy, "signature algorithm has parameters")
	}
	return s, nil
}

// pssParams reads RSASSA-PSS-params (RFC 4055, section 3.1). The defaults are
// SHA-1 and thereby refused, so all but the trailer field must be there.
func pssParams(b []byte) (crypto.Hash, int, error) {
	errPolicy := Refuse(Policy, "RSA-PSS parameters without SHA-2")
	seq, err := only(b, tagSequence)
	if err != nil {
		return 0, 0, errPolicy
	}
	c := cursor{rest: seq.body}
	inner := func(tag byte) *cursor { return &cursor{rest: c.take(tag).body, err: c.err} }

	hash := inner(tagContext0)
	digest := hash.algorithm()
	mgf := inner(tagContext1)
	mask := mgf.algorithm()
	salt := inner(tagContext2)
	saltLen := salt.take(tagInteger).body
	if c.peek(tagContext3) {
		trailer := inner(tagContext3)
		if v := trailer.take(tagInteger).body; trailer.end() != nil || string(v) != "\x01" {
			return 0, 0, errPolicy
		}
	}
	for _, part := range []*cursor{hash, mgf, salt, &c} {
		if part.end() != nil {
			return 0, 0, errPolicy
		}
	}
	maskParams := cursor{rest: mask.params}
	maskDigest := maskParams.algorithm()
	if mask.oid != oidMGF1 || maskParams.end() != nil {
		return 0, 0, errPolicy
	}
	h, err := hashOf(digest)
	if err != nil {
		return 0, 0, err
	}
	mh, err := hashOf(maskDigest)
	if err != nil {
		return 0, 0, err
	}
	n := 0
	for _, b := range saltLen {
		n = n<<8 | int(b)
		if n > maxRSA/8 {
			break
		}
	}
	// Without a salt PSS is another algorithm (and 0 means "any" to Go).
	if mh != h || n == 0 || n > maxRSA/8 {
		return 0, 0, Refuse(BadSignature, "RSA-PSS parameters do not fit each other")
	}
	return h, n, nil
}

func sumOf(h crypto.Hash, b []byte) []byte {
	state := h.New()
	state.Write(b)
	return state.Sum(nil)
}

// checkKey refuses public keys that are too weak, too big or of other kinds.
func checkKey(pub any) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Errorf("RSA key of %d bits: %d to %d are allowed", n, minRSA, maxRSA)
		}
		return nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("elliptic curve %s: P-256, P-384 and P-521 are allowed", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	}
	return errors.New("kind of public key is not RSA, ECDSA or Ed25519")
}

// verifySignature checks a signer's signature over message.
func (s scheme) verifySignature(pub any, message, signature []byte) error {
	digest := func() []byte { return sumOf(s.hash, message) }
	ok := false
	switch k := pub.(type) {
	case *rsa.PublicKey:
		switch s.family {
		case rsaPKCS1:
			ok = rsa.VerifyPKCS1v15(k, s.hash, digest(), signature) == nil
		case rsaPSS:
			ok = rsa.VerifyPSS(k, s.hash, digest(), signature, &rsa.PSSOptions{SaltLength: s.salt}) == nil
		}
	case *ecdsa.PublicKey:
		ok = s.family == ecdsaSig && ecdsa.VerifyASN1(k, digest(), signature)
	case ed25519.PublicKey:
		ok = s.family == ed25519Sig && ed25519.Verify(k, message, signature)
	}
	if !ok {
		return Refuse(BadSignature, "signature does not match the signer's certificate")
	}
	return nil
}

// certificateFamily returns the kind of a certificate's own signature, 0 for
// one that does not count.
func certificateFamily(a x509.SignatureAlgorithm) family {
	switch a {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA:
		return rsaPKCS1
	case x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return rsaPSS
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
		return ecdsaSig
	case x509.PureEd25519:
		return ed25519Sig
	}
	return 0
}
