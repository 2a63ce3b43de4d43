package image

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"time"

	"lifeboat/bundle"
	"lifeboat/verify"
)

// self is a signer that exists for one run, with a keyring that trusts it. A factory's PC may not have the keyring of
// the device at hand. What a bundle's manifest says is then signed by self, so that the bundle is read by the same
// code, every block checked against that manifest; only who signed the manifest is not. The slot gets the bundle's own
// signature, which the device verifies.
type self struct {
	key     *ecdsa.PrivateKey
	cert    *x509.Certificate
	keyring *verify.Keyring
}

func newSelf(now time.Time) (*self, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "this run of lifeboat, CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "this run of lifeboat"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	anchor, err := certificate(ca, ca, caKey, caKey)
	if err != nil {
		return nil, err
	}
	cert, err := certificate(leaf, anchor, key, caKey)
	if err != nil {
		return nil, err
	}
	return &self{key: key, cert: cert, keyring: &verify.Keyring{Anchors: []*x509.Certificate{anchor}}}, nil
}

func certificate(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// resigned returns the bundle in r with a signature of self in place of its own.
func (s *self) resigned(r io.ReaderAt, info *bundle.Info, now time.Time) (io.ReaderAt, int64, error) {
	cms, err := verify.Sign(info.CMS.Unverified(), false, s.key, s.cert, nil, now)
	if err != nil {
		return nil, 0, fmt.Errorf("sign for this run: %w", err)
	}
	tail := binary.BigEndian.AppendUint64(cms, uint64(len(cms)))
	return &spliced{head: r, at: info.PayloadSize, tail: bytes.NewReader(tail)}, info.PayloadSize + int64(len(tail)), nil
}

// spliced is head up to the byte at, then tail.
type spliced struct {
	head io.ReaderAt
	at   int64
	tail *bytes.Reader
}

func (s *spliced) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < s.at {
		var err error
		n, err = s.head.ReadAt(p[:min(int64(len(p)), s.at-off)], off)
		if n == len(p) || off+int64(n) < s.at {
			return n, err
		}
	}
	m, err := s.tail.ReadAt(p[n:], off+int64(n)-s.at)
	return n + m, err
}
