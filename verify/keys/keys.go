// Package keys makes the keys and certificates that a product starts with. It
// is for the PC: nothing on a device needs it.
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
	s := new(Set)
	pairs := []*Pair{&s.Root, &s.ReleaseCA, &s.DevelopCA, &s.Release, &s.Develop}
	errs := make([]error, len(pairs))
	var wg sync.WaitGroup
	for i, p := range pairs {
		wg.Go(func() { p.Key, errs[i] = newKey(o.RSA) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("make keys: %w", err)
	}

	var err error
	issue := func(subject string, key crypto.Signer, years, pathLen int, parent Pair) (c *x509.Certificate) {
		if err == nil {
			c, err = certificate(o.Now, subject, key, years, pathLen, parent)
		}
		return c
	}
	const signer = -1
	s.Root.Cert = issue("root", s.Root.Key, rootYears, 1, Pair{Key: s.Root.Key})
	s.ReleaseCA.Cert = issue("release CA", s.ReleaseCA.Key, caYears, 0, s.Root)
	s.DevelopCA.Cert = issue("develop CA", s.DevelopCA.Key, caYears, 0, s.Root)
	s.ReleaseAnchor = issue("release CA", s.ReleaseCA.Key, caYears, 0, Pair{Key: s.ReleaseCA.Key})
	s.DevelopAnchor = issue("develop CA", s.DevelopCA.Key, caYears, 0, Pair{Key: s.DevelopCA.Key})
	s.Release.Cert = issue("release", s.Release.Key, signerYears, signer, s.ReleaseCA)
	s.Develop.Cert = issue("develop", s.Develop.Key, signerYears, signer, s.DevelopCA)
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

// certificate issues a CA certificate, or a signer's if pathLen is negative. A
// parent without a certificate signs itself.
func certificate(now time.Time, subject string, key crypto.Signer, years, pathLen int, parent Pair) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	begin := now.UTC().Truncate(time.Second).Add(-time.Hour)
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      pkix.Name{Organization: []string{"lifeboat"}, CommonName: "lifeboat " + subject},
		NotBefore:    begin,
		NotAfter:     begin.AddDate(years, 0, 0),
		// One key identifier for all certificates of a key, so that a chain
		// may end at either of a CA's two.
		SubjectKeyId:          id[:20],
		BasicConstraintsValid: true,
	}
	if pathLen >= 0 {
		t.IsCA = true
		t.MaxPathLen, t.MaxPathLenZero = pathLen, pathLen == 0
		t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	} else {
		// Both, so that RAUC takes it with check-purpose=codesign and with its
		// default, smimesign.
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning, x509.ExtKeyUsageEmailProtection}
		t.KeyUsage = x509.KeyUsageDigitalSignature
	}
	issuer := parent.Cert
	if issuer == nil {
		issuer = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, key.Public(), parent.Key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// fileNames are the files of Init, in the order of [Set.contents].
var fileNames = [...]string{
	"root.cert.pem", "release-ca.cert.pem", "develop-ca.cert.pem", "release.cert.pem", "develop.cert.pem",
	"root.key.pem", "release-ca.key.pem", "develop-ca.key.pem", "release.key.pem", "develop.key.pem",
	"release.keyring.pem", "develop.keyring.pem",
}

func (s *Set) contents() ([][]byte, error) {
	var certs, keys [][]byte
	for _, p := range []Pair{s.Root, s.ReleaseCA, s.DevelopCA, s.Release, s.Develop} {
		der, err := x509.MarshalPKCS8PrivateKey(p.Key)
		if err != nil {
			return nil, err
		}
		certs = append(certs, certPEM(p.Cert))
		keys = append(keys, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	return slices.Concat(certs, keys, [][]byte{certPEM(s.ReleaseAnchor), certPEM(s.DevelopAnchor)}), nil
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// Init makes a [Set] and writes it to dir, which is made if need be:
// {root,release-ca,develop-ca,release,develop}.{cert,key}.pem and
// {release,develop}.keyring.pem. Keys are readable by the owner only. If one of
// the files exists, or cannot be written, none is left behind by Init and what
// was there is as it was.
func Init(dir string, o Options) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make keys in %s: %w", dir, err)
		}
	}()
	// Asked for first, because RSA keys take seconds.
	for _, name := range fileNames {
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
	contents, err := s.contents()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i, name := range fileNames {
		path := filepath.Join(dir, name)
		if err := writeNew(path, contents[i]); err != nil {
			for _, name := range fileNames[:i] {
				os.Remove(filepath.Join(dir, name))
			}
			return err
		}
	}
	return nil
}

// writeNew writes a file that must not exist, and leaves none if it fails.
func writeNew(path string, data []byte) error {
	mode := fs.FileMode(0o644)
	if strings.HasSuffix(path, ".key.pem") {
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
