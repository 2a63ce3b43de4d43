// Package keys is the certificate authority of a product: [Init] makes the keys
// and certificates that it starts with, a [Folder] issues further ones, renews
// and revokes them. It is for the PC: nothing on a device needs it.
//
// There are two signers, release and develop, each below a CA of its own, and
// a root above both CAs. Each CA's key has two certificates of the same name:
// one issued by the root, one self-signed. Only the self-signed one is in the
// keyring of devices, because a device that trusted the root would also take a
// develop bundle that brings the develop CA's certificate along.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/verify"
)

// Years of validity; all begin an hour before they are made.
const (
	rootYears   = 20
	caYears     = 15
	signerYears = 10
)

// Options are what New and Init can be told.
type Options struct {
	RSA int       // bits of RSA keys, 2048 to 8192; 0 makes EC keys on P-256
	Now time.Time // zero: the system's clock
	Org string    // in the names of the certificates; empty: lifeboat

	// Keys that exist already, in hardware: by root, release-ca, develop-ca,
	// release or develop. No file is written for them.
	Keys map[string]crypto.Signer
}

// A Pair is a private key and a certificate of it.
type Pair struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

// A Set is everything that [Init] writes.
type Set struct {
	Root, ReleaseCA, DevelopCA Pair // CA certificates are the ones issued by Root
	Release, Develop           Pair
	// The CAs' self-signed certificates, each alone in its keyring.
	ReleaseAnchor, DevelopAnchor *x509.Certificate
}

// New makes a Set in memory.
func New(o Options) (*Set, error) {
	if o.RSA != 0 && (o.RSA < 2048 || o.RSA > 8192) {
		return nil, fmt.Errorf("RSA keys of %d bits: 2048 to 8192 are allowed", o.RSA)
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if o.Org == "" {
		o.Org = "lifeboat"
	}
	s := new(Set)
	pairs := []*Pair{&s.Root, &s.ReleaseCA, &s.DevelopCA, &s.Release, &s.Develop}
	errs := make([]error, len(pairs))
	var wg sync.WaitGroup
	for i, p := range pairs {
		if p.Key = o.Keys[pairNames[i]]; p.Key == nil {
			wg.Go(func() { p.Key, errs[i] = newKey(o.RSA) })
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("make keys: %w", err)
	}

	var err error
	issue := func(subject string, key crypto.Signer, years int, kind Kind, pathLen int, parent Pair) (c *x509.Certificate) {
		if err == nil {
			c, err = profile{
				subject: pkix.Name{Organization: []string{o.Org}, CommonName: o.Org + " " + subject},
				kind:    kind, pathLen: pathLen, years: years,
			}.issue(o.Now, key.Public(), parent)
		}
		return c
	}
	s.Root.Cert = issue("root", s.Root.Key, rootYears, CA, 1, Pair{Key: s.Root.Key})
	s.ReleaseCA.Cert = issue("release CA", s.ReleaseCA.Key, caYears, CA, 0, s.Root)
	s.DevelopCA.Cert = issue("develop CA", s.DevelopCA.Key, caYears, CA, 0, s.Root)
	s.ReleaseAnchor = issue("release CA", s.ReleaseCA.Key, caYears, CA, 0, Pair{Key: s.ReleaseCA.Key})
	s.DevelopAnchor = issue("develop CA", s.DevelopCA.Key, caYears, CA, 0, Pair{Key: s.DevelopCA.Key})
	s.Release.Cert = issue("release", s.Release.Key, signerYears, Signer, 0, s.ReleaseCA)
	s.Develop.Cert = issue("develop", s.Develop.Key, signerYears, Signer, 0, s.DevelopCA)
	if err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	return s, nil
}

// ReleaseKeyring is what release.keyring.pem holds.
func (s *Set) ReleaseKeyring() *verify.Keyring {
	return &verify.Keyring{Anchors: []*x509.Certificate{s.ReleaseAnchor}}
}

// DevelopKeyring is what develop.keyring.pem holds.
func (s *Set) DevelopKeyring() *verify.Keyring {
	return &verify.Keyring{Anchors: []*x509.Certificate{s.DevelopAnchor}}
}

func newKey(bits int) (crypto.Signer, error) {
	if bits == 0 {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return rsa.GenerateKey(rand.Reader, bits)
}

// Kind is what a certificate is for.
type Kind string

// The kinds of certificates.
const (
	CA     Kind = "ca"
	Signer Kind = "signer" // signs bundles and keyrings
	Device Kind = "device" // of one device; signs no bundles
)

// profile is what a certificate says beside its key.
type profile struct {
	subject pkix.Name
	kind    Kind
	pathLen int // of a CA
	years   int
	capped  bool // ends with its CA at the latest; else that is an error
}

// issue issues a certificate. A parent without a certificate signs itself.
func (p profile) issue(now time.Time, public crypto.PublicKey, parent Pair) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	begin := now.UTC().Truncate(time.Second).Add(-time.Hour)
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      p.subject,
		NotBefore:    begin,
		NotAfter:     begin.AddDate(p.years, 0, 0),
		// One key identifier for all certificates of a key, so that a chain
		// may end at either of a CA's two.
		SubjectKeyId:          id[:20],
		BasicConstraintsValid: true,
	}
	switch p.kind {
	case CA:
		t.IsCA = true
		t.MaxPathLen, t.MaxPathLenZero = p.pathLen, p.pathLen == 0
		t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	case Signer:
		// Both, so that RAUC takes it with check-purpose=codesign and with its
		// default, smimesign.
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageEmailProtection}
		t.KeyUsage = x509.KeyUsageDigitalSignature
	case Device:
		// A client of TLS and a recipient of encrypted bundles; whoever has the
		// root as an anchor takes no bundle that it signs.
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement
		if _, ok := public.(*rsa.PublicKey); ok {
			t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
		}
	}
	issuer := parent.Cert
	switch {
	case issuer == nil:
		issuer = t
	case !t.NotAfter.After(issuer.NotAfter):
	case p.capped:
		t.NotAfter = issuer.NotAfter
	default:
		return nil, fmt.Errorf("it would be valid longer than its CA (%s): take fewer years or renew the CA", stamp(issuer.NotAfter))
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, public, parent.Key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// pairNames are the names of a Set's pairs, and of their files before
// .cert.pem and .key.pem.
var pairNames = [...]string{"root", "release-ca", "develop-ca", "release", "develop"}

// file is one of a keys folder.
type file struct {
	name string
	data []byte
}

// files are what Init writes. Keys that were there before are not among them.
func (s *Set) files(o Options) ([]file, error) {
	var certs, keys []file
	for i, p := range []Pair{s.Root, s.ReleaseCA, s.DevelopCA, s.Release, s.Develop} {
		certs = append(certs, file{pairNames[i] + certSuffix, certPEM(p.Cert)})
		if o.Keys[pairNames[i]] != nil {
			continue
		}
		key, err := keyPEM(p.Key)
		if err != nil {
			return nil, err
		}
		keys = append(keys, file{pairNames[i] + keySuffix, key})
	}
	return slices.Concat(certs, keys, []file{
		{"release" + keyringSuffix, certPEM(s.ReleaseAnchor)}, {"develop" + keyringSuffix, certPEM(s.DevelopAnchor)},
	}), nil
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Init makes a [Set] and writes it to dir, which is made if need be:
// {root,release-ca,develop-ca,release,develop}.{cert,key}.pem,
// {release,develop}.keyring.pem and the index. Keys are readable by the owner
// only. If one of the files exists, or cannot be written, none is left behind by
// Init and what was there is as it was.
func Init(dir string, o Options) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make keys in %s: %w", dir, err)
		}
	}()
	for name := range o.Keys {
		if !slices.Contains(pairNames[:], name) {
			return fmt.Errorf("there is no key %q; there are %s", name, strings.Join(pairNames[:], ", "))
		}
	}
	// Asked for first, because RSA keys take seconds.
	names := []string{"release" + keyringSuffix, "develop" + keyringSuffix, indexName}
	for _, name := range pairNames {
		names = append(names, name+certSuffix, name+keySuffix)
	}
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s is there already and is not overwritten: %w", name, fs.ErrExist)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s, err := New(o)
	if err != nil {
		return err
	}
	files, err := s.files(o)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i, f := range files {
		if err := writeNew(filepath.Join(dir, f.name), f.data); err != nil {
			for _, f := range files[:i] {
				os.Remove(filepath.Join(dir, f.name))
			}
			return err
		}
	}
	f, err := Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.save()
}

// writeNew writes a file that must not exist, and leaves none if it fails.
func writeNew(path string, data []byte) error {
	mode := fs.FileMode(0o644)
	if strings.HasSuffix(path, keySuffix) {
		mode = 0o600
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}
