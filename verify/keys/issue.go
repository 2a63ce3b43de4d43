package keys

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"lifeboat/verify"
)

// Issue says what certificate is made. Its subject is the CA's organisation and
// the name.
type Issue struct {
	Name  string // of its files: NAME.cert.pem, and NAME.key.pem if a key is made
	Under string // release, develop or device: the CA is UNDER-ca; or root
	Years int    // 0: 10, or as long as the CA
	Now   time.Time

	// CAKey is the key of the CA, nil: UNDER-ca.key.pem of the folder.
	CAKey crypto.Signer
	// RootKey is needed for the first device, whose CA it issues; nil: root.key.pem.
	RootKey crypto.Signer

	// Public is the key that the certificate is for. With nil a key is made,
	// EC on P-256 or RSA of so many bits.
	Public crypto.PublicKey
	RSA    int
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Issue issues a certificate and returns the path of it. Nothing is overwritten.
func (f *Folder) Issue(o Issue) (_ string, err error) {
	defer wrap(&err, "issue a certificate for %s", o.Name)
	if !nameForm.MatchString(o.Name) {
		return "", fmt.Errorf("%q is no name: letters, digits, . _ - (at most 64)", o.Name)
	}
	ca, kind, name := o.Under+caSuffix, Signer, o.Name
	if o.Under == "root" { // a signer of keyrings
		ca = o.Under
	}
	if o.Under == "device" {
		kind, name = Device, deviceDir+"/"+o.Name
		if err := f.makeDeviceCA(o); err != nil {
			return "", err
		}
	}
	parent, err := f.ca(ca, o.CAKey)
	if err != nil {
		return "", err
	}
	for _, suffix := range []string{certSuffix, keySuffix} {
		if _, err := os.Lstat(f.path(name + suffix)); err == nil {
			return "", fmt.Errorf("%s is there already and is not overwritten: %w", f.path(name+suffix), fs.ErrExist)
		}
	}
	if o.Public != nil {
		if err := checkPublic(o.Public); err != nil {
			return "", err
		}
	}
	p := profile{kind: kind, years: cmp.Or(o.Years, signerYears), capped: o.Years == 0, subject: pkix.Name{
		Organization: parent.Cert.Subject.Organization, CommonName: o.Name,
	}}
	return f.write(name, p, o.Now, o.Public, o.RSA, parent)
}

// write issues a certificate that has no files yet and adds it to the index.
func (f *Folder) write(name string, p profile, now time.Time, public crypto.PublicKey, rsaBits int, parent Pair) (string, error) {
	var key crypto.Signer
	if public == nil {
		var err error
		if key, err = newKey(rsaBits); err != nil {
			return "", err
		}
		public = key.Public()
	}
	c, err := p.issue(orNow(now), public, parent)
	if err != nil {
		return "", err
	}
	path := f.path(name + certSuffix)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	if key != nil {
		b, err := keyPEM(key)
		if err != nil {
			return "", err
		}
		if err := writeNew(f.path(name+keySuffix), b); err != nil {
			return "", err
		}
	}
	if err := writeNew(path, certPEM(c)); err != nil {
		if key != nil {
			os.Remove(f.path(name + keySuffix))
		}
		return "", err
	}
	if err := f.readFiles(); err != nil {
		return "", err
	}
	return path, f.save()
}

// ca returns a CA of the folder with its key.
func (f *Folder) ca(name string, key crypto.Signer) (Pair, error) {
	e, err := f.current(name)
	if err != nil || !e.Cert.IsCA {
		var cas []string
		for i := range f.entries {
			if e := &f.entries[i]; e.Cert != nil && e.Cert.IsCA && !e.Old() && !strings.HasSuffix(e.Name, ".keyring") {
				cas = append(cas, strings.TrimSuffix(e.Name, caSuffix))
			}
		}
		return Pair{}, fmt.Errorf("%s has no CA %q; there are: %s", f.Dir, name, strings.Join(cas, ", "))
	}
	if key == nil {
		path := f.path(name + keySuffix)
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return Pair{}, fmt.Errorf("%s is not there: bring it, or name the key of the CA, a file or a pkcs11 URI, by --key", path)
		}
		if err != nil {
			return Pair{}, err
		}
		if key, err = ParseKey(b); err != nil {
			return Pair{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(e.Cert.PublicKey) {
		return Pair{}, fmt.Errorf("the key does not belong to %s%s", name, certSuffix)
	}
	return Pair{e.Cert, key}, nil
}

// makeDeviceCA makes the CA of devices below the root when the first device is
// to have a certificate.
func (f *Folder) makeDeviceCA(o Issue) error {
	const name = "device" + caSuffix
	if _, err := f.current(name); err == nil {
		return nil
	}
	root, err := f.ca("root", o.RootKey)
	if err != nil {
		return fmt.Errorf("the first device needs a CA, which the root issues: %w", err)
	}
	var public crypto.PublicKey
	if o.CAKey != nil {
		public = o.CAKey.Public()
	}
	org := root.Cert.Subject.Organization
	p := profile{
		kind: CA, years: caYears, capped: true,
		subject: pkix.Name{Organization: org, CommonName: strings.Join(org, " ") + " device CA"},
	}
	_, err = f.write(name, p, o.Now, public, o.RSA, root)
	return err
}

// Renew says how a certificate is renewed.
type Renew struct {
	Name   string
	Years  int // 0: as many as the present one, or as long as the CA
	Now    time.Time
	CAKey  crypto.Signer    // of the issuer; nil: from the folder
	OwnKey crypto.Signer    // of a CA that is renewed, for its keyring; nil: from the folder
	NewKey bool             // make a new key; the present one goes to old/
	RSA    int              // bits of that
	Public crypto.PublicKey // the new key, made elsewhere; nil: the present one's, or NewKey
}

// Renew replaces NAME.cert.pem by one with the same name, issuer and purpose
// that is valid from now on, and moves the present one to old/. That one counts
// until it expires or is revoked. With a CA that is in a keyring of the folder
// its self-signed certificate there is renewed as well.
func (f *Folder) Renew(o Renew) (_ string, err error) {
	defer wrap(&err, "renew %s", o.Name)
	e, err := f.current(o.Name)
	if err != nil {
		if e, err = f.current(deviceDir + "/" + o.Name); err != nil {
			return "", fmt.Errorf("%s has no %s%s", f.Dir, o.Name, certSuffix)
		}
		o.Name = e.Name
	}
	old, now := e.Cert, orNow(o.Now)
	p := profile{subject: old.Subject, kind: kindOf(old), pathLen: old.MaxPathLen, years: o.Years, capped: o.Years == 0}
	if p.years == 0 {
		p.years = max(1, int(old.NotAfter.Sub(old.NotBefore).Hours()/24/365+0.5))
	}
	if p.kind == CA && (o.NewKey || o.Public != nil) {
		return "", errors.New("a CA keeps its key: for a new one make a new folder (keys init) and rotate the keyring of the devices")
	}
	var parent Pair
	switch {
	case strings.HasSuffix(o.Name, ".keyring"):
		return "", errors.New("its certificate is renewed together with that of its CA")
	case e.Issuer == "-":
		return "", errors.New("it was issued elsewhere, so it is renewed there")
	case e.Issuer == "self":
		parent, err = f.ca(o.Name, o.CAKey)
		parent.Cert = nil
	default:
		parent, err = f.ca(e.Issuer, o.CAKey)
	}
	if err != nil {
		return "", err
	}
	anchors := f.anchorsOf(old)
	var own Pair // signs the anchors
	if anchors != nil {
		if own, err = f.ca(o.Name, o.OwnKey); err != nil {
			return "", fmt.Errorf("%s.pem is renewed too: %w", anchors[0].Name, err)
		}
	}
	public := crypto.PublicKey(old.PublicKey)
	var key []byte
	switch {
	case o.Public != nil:
		if err := checkPublic(o.Public); err != nil {
			return "", err
		}
		public = o.Public
	case o.NewKey:
		k, err := newKey(o.RSA)
		if err != nil {
			return "", err
		}
		if key, err = keyPEM(k); err != nil {
			return "", err
		}
		public = k.Public()
	}
	c, err := p.issue(now, public, parent)
	if err != nil {
		return "", err
	}
	if o.NewKey || o.Public != nil {
		if err := f.retireKey(e, key); err != nil {
			return "", err
		}
	}
	path := f.path(o.Name + certSuffix)
	if err := f.replace(e, path, certPEM(c)); err != nil {
		return "", err
	}
	for _, e := range anchors {
		c, err := p.issue(now, public, Pair{Key: own.Key})
		if err != nil {
			return "", err
		}
		path := f.path(e.Name + ".pem")
		b, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if !bytes.Contains(b, certPEM(e.Cert)) {
			return "", fmt.Errorf("%s: the certificate of the CA is not in the form that keys init wrote", path)
		}
		if err := f.replace(e, path, bytes.Replace(b, certPEM(e.Cert), certPEM(c), 1)); err != nil {
			return "", err
		}
	}
	if err := f.readFiles(); err != nil {
		return "", err
	}
	return path, f.save()
}

// kept is where the renewed certificate e and its key stay.
func (f *Folder) kept(e *Entry) (string, error) {
	path := f.path(oldDir + "/" + e.Name + "-" + e.Serial)
	return path, os.MkdirAll(filepath.Dir(path), 0o755)
}

// replace keeps e in old/ and puts data in its place.
func (f *Folder) replace(e *Entry, path string, data []byte) error {
	kept, err := f.kept(e)
	if err != nil {
		return err
	}
	if err := writeNew(kept+certSuffix, certPEM(e.Cert)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	e.Cert = nil // its file has another name now
	return renameio.WriteFile(path, data, 0o644)
}

// retireKey moves the key of e to old/, if it is in the folder, and puts
// another in its place, if there is one.
func (f *Folder) retireKey(e *Entry, key []byte) error {
	kept, err := f.kept(e)
	if err != nil {
		return err
	}
	path := f.path(e.Name + keySuffix)
	if err := os.Link(path, kept+keySuffix); errors.Is(err, fs.ErrNotExist) {
		if key == nil {
			return nil
		}
		return writeNew(path, key)
	} else if err != nil {
		return err
	}
	if key == nil {
		return os.Remove(path)
	}
	return renameio.WriteFile(path, key, 0o600)
}

// anchorsOf are the self-signed certificates of a CA that stand in keyrings of
// the folder.
func (f *Folder) anchorsOf(ca *x509.Certificate) []*Entry {
	var all []*Entry
	for i := range f.entries {
		e := &f.entries[i]
		if e.Cert != nil && !e.Old() && strings.HasSuffix(e.Name, ".keyring") && verify.SPKI(e.Cert) == verify.SPKI(ca) {
			all = append(all, e)
		}
	}
	return all
}

func kindOf(c *x509.Certificate) Kind {
	switch {
	case c.IsCA:
		return CA
	case slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning):
		return Signer
	}
	return Device
}

// ReadRequest returns the key of a certificate request (PKCS #10 in PEM) that
// is signed with it. Nothing else in it counts.
func ReadRequest(b []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("no certificate request in PEM form")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request is not signed with its key: %w", err)
	}
	return r.PublicKey, nil
}

// ParseKey reads the private key of a PEM file.
func ParseKey(b []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil, errors.New("no private key in PEM form")
		}
		var key any
		var err error
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, errors.New("locked with a passphrase, decrypt it first: openssl pkey -in FILE")
		case block.Type == "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case block.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case block.Type == "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			continue // EC PARAMETERS, certificates
		}
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T does not sign", key)
		}
		return signer, nil
	}
}

// checkPublic refuses keys that package verify would.
func checkPublic(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("an RSA key of %d bits: 2048 to 8192 are allowed", n)
		}
		return nil
	case *ecdsa.PublicKey:
		if n := k.Curve.Params().BitSize; n < 256 {
			return fmt.Errorf("an EC key of %d bits: P-256, P-384 and P-521 are allowed", n)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("a key of type %T is not supported", public)
}

func orNow(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now()
	}
	return t
}

// wrap says what was being done when err happened.
func wrap(err *error, format string, args ...any) {
	if *err != nil {
		*err = fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), *err)
	}
}
