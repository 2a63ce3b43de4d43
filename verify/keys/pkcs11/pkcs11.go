// Package pkcs11 signs with keys in hardware: smart cards, security modules,
// SoftHSM. [Open] finds the key that a PKCS #11 URI (RFC 7512) names.
//
// The library of the hardware is loaded by OpenSC's pkcs11-tool, a process of
// its own for each signature, because a program without cgo loads none. The PIN
// goes to it in its environment, which only its user can read, never on its
// command line.
package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	tool   = "pkcs11-tool"
	pinVar = "LIFEBOAT_PKCS11_PIN" // between this program and pkcs11-tool
)

// Options are what a URI may leave open.
type Options struct {
	// Module is the PKCS #11 library where the URI has no module-path=. It is
	// a path or a name that the dynamic loader finds; empty: $PKCS11_MODULE.
	Module string
}

// key is a private key in a token.
type key struct {
	ctx    context.Context
	uri    *uri
	slot   string // of its token
	id     string // CKA_ID in hex, by which pkcs11-tool finds it
	public crypto.PublicKey
}

// Open returns the private key that uri names, EC (P-256, P-384, P-521) or RSA
// (PKCS #1 v1.5). The PIN comes from pin-value= or pin-source= (a file) in the
// URI, or from $PKCS11_PIN. The token must hold the public key or a certificate
// beside the private one. ctx bounds this call and all signatures.
func Open(ctx context.Context, text string, o Options) (crypto.Signer, error) {
	u, err := parseURI(text)
	if err != nil {
		// A URI that can't be read is not repeated: it may have a PIN in it.
		return nil, fmt.Errorf("key in hardware: URI %w", err)
	}
	k := &key{ctx: ctx, uri: u}
	fail := func(err error) error { return fmt.Errorf("key %s: %w", u, err) }
	if u.module == "" {
		u.module = o.Module
	}
	if u.module == "" {
		u.module = os.Getenv("PKCS11_MODULE")
	}
	if u.module == "" {
		return nil, fail(errors.New("which library? give module-path= in the URI, --pkcs11-module or $PKCS11_MODULE"))
	}
	if pin, ok := os.LookupEnv("PKCS11_PIN"); ok && !u.hasPIN {
		u.pin, u.hasPIN = pin, true
	}
	if !u.hasPIN {
		return nil, fail(errors.New("no PIN: give pin-source=FILE in the URI or $PKCS11_PIN"))
	}
	if k.slot, err = k.findSlot(); err != nil {
		return nil, fail(err)
	}
	if k.id, err = k.findKey(); err != nil {
		return nil, fail(err)
	}
	if k.public, err = k.readPublic(); err != nil {
		return nil, fail(err)
	}
	return k, nil
}

// run runs pkcs11-tool and returns what it prints.
func (k *key) run(stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(k.ctx, tool, append([]string{"--module", k.uri.module}, args...)...)
	cmd.Env = append(os.Environ(), pinVar+"="+k.uri.pin, "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s is not installed: it is in Debian's package opensc", tool)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", tool, err, explain(stderr.String()))
	}
	return out, nil
}

// explain is the line of pkcs11-tool's that says most.
func explain(stderr string) string {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	for _, line := range lines {
		switch {
		case strings.Contains(line, "CKR_PIN_INCORRECT"), strings.Contains(line, "CKR_PIN_LEN_RANGE"):
			return "wrong PIN"
		case strings.Contains(line, "CKR_PIN_LOCKED"):
			return "the token is locked after too many wrong PINs"
		case strings.HasPrefix(line, "error:"):
			return strings.TrimSpace(strings.TrimPrefix(line, "error:"))
		}
	}
	return lines[0]
}

// token is one that is plugged in.
type token struct{ slot, label, manufacturer, model, serial string }

func (t token) String() string { return fmt.Sprintf("token=%s;serial=%s", t.label, t.serial) }

var slotLine = regexp.MustCompile(`^Slot \d+ \((0x[0-9a-fA-F]+)\)`)

// tokens reads `pkcs11-tool --list-token-slots`.
func tokens(list string) []token {
	var all []token
	for _, line := range strings.Split(list, "\n") {
		if m := slotLine.FindStringSubmatch(line); m != nil {
			all = append(all, token{slot: m[1]})
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || len(all) == 0 {
			continue
		}
		t, value := &all[len(all)-1], strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "token label":
			t.label = value
		case "token manufacturer":
			t.manufacturer = value
		case "token model":
			t.model = value
		case "serial num":
			t.serial = value
		}
	}
	return slices.DeleteFunc(all, func(t token) bool { return t.label == "" && t.serial == "" })
}

func (k *key) findSlot() (string, error) {
	out, err := k.run(nil, "--list-token-slots")
	if err != nil {
		return "", err
	}
	u := k.uri
	all := tokens(string(out))
	var found []token
	for _, t := range all {
		same := func(want, have string) bool { return want == "" || want == have }
		if same(u.token, t.label) && same(u.manufacturer, t.manufacturer) && same(u.model, t.model) &&
			same(u.serial, t.serial) && (u.slot == "" || sameNumber(u.slot, t.slot)) {
			found = append(found, t)
		}
	}
	switch len(found) {
	case 1:
		return found[0].slot, nil
	case 0:
		return "", fmt.Errorf("no such token; plugged in: %v", all)
	}
	return "", fmt.Errorf("several tokens fit, say which by token= or serial=: %v", found)
}

// sameNumber compares slot numbers, decimal in a URI and hexadecimal here.
func sameNumber(a, b string) bool {
	var x, y uint64
	_, err1 := fmt.Sscan(a, &x)
	_, err2 := fmt.Sscan(b, &y)
	return err1 == nil && err2 == nil && x == y
}

func (k *key) login(args ...string) []string {
	return append([]string{"--slot", k.slot, "--login", "--pin", "env:" + pinVar}, args...)
}

// readPublic reads the public key, or the certificate, beside the private key.
func (k *key) readPublic() (public crypto.PublicKey, err error) {
	der, err := k.run(nil, k.login("--read-object", "--type", "pubkey", "--id", k.id)...)
	if err == nil {
		public, err = x509.ParsePKIXPublicKey(der)
	}
	if err != nil {
		if der, certErr := k.run(nil, k.login("--read-object", "--type", "cert", "--id", k.id)...); certErr == nil {
			var c *x509.Certificate
			if c, err = x509.ParseCertificate(der); err == nil {
				public = c.PublicKey
			}
		}
	}
	if err != nil { // OpenSC 0.23 writes no public key on P-384, but shows its point
		all, listErr := k.objects("pubkey")
		for _, o := range all {
			if point, pointErr := o.point(); listErr == nil && pointErr == nil && strings.EqualFold(o["ID"], k.id) {
				public, err = point, nil
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read its public key: %w", err)
	}
	switch public.(type) {
	case *ecdsa.PublicKey, *rsa.PublicKey:
		return public, nil
	}
	return nil, fmt.Errorf("keys of type %T in hardware are not supported", public)
}

// object is one that `pkcs11-tool --list-objects` shows: its name: value lines.
type object map[string]string

// objects lists what the token has of a type. pkcs11-tool looks at neither
// --label nor --id here, and at no --label when it signs.
func (k *key) objects(kind string) ([]object, error) {
	out, err := k.run(nil, k.login("--list-objects", "--type", kind)...)
	if err != nil {
		return nil, err
	}
	var all []object
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, " Key Object;") {
			all = append(all, object{})
			continue
		}
		if name, value, ok := strings.Cut(line, ":"); ok && len(all) > 0 {
			all[len(all)-1][strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return all, nil
}

// findKey returns the CKA_ID, in hex, of the one private key that the URI names.
func (k *key) findKey() (string, error) {
	all, err := k.objects("privkey")
	if err != nil {
		return "", err
	}
	var found, there []string
	for _, o := range all {
		id := strings.ToLower(o["ID"])
		there = append(there, fmt.Sprintf("object=%s;id=%s", o["label"], id))
		if (k.uri.object == "" || k.uri.object == o["label"]) && (len(k.uri.id) == 0 || hex.EncodeToString(k.uri.id) == id) {
			found = append(found, id)
		}
	}
	switch {
	case len(found) == 0:
		return "", fmt.Errorf("no such key in the token; there are: %v", there)
	case len(found) > 1 || found[0] == "":
		return "", fmt.Errorf("an id that only this key has is needed; there are: %v", there)
	}
	return found[0], nil
}

// curves by the EC_PARAMS that pkcs11-tool shows.
var curves = map[string]elliptic.Curve{
	"06082a8648ce3d030107": elliptic.P256(),
	"06052b81040022":       elliptic.P384(),
	"06052b81040023":       elliptic.P521(),
}

// point reads a public key from what pkcs11-tool shows of it.
func (o object) point() (*ecdsa.PublicKey, error) {
	curve := curves[o["EC_PARAMS"]]
	der, err := hex.DecodeString(o["EC_POINT"])
	if curve == nil || err != nil {
		return nil, errors.New("not a point on a curve that is known")
	}
	var raw []byte
	if rest, err := asn1.Unmarshal(der, &raw); err != nil || len(rest) > 0 {
		return nil, errors.New("not an octet string")
	}
	return ecdsa.ParseUncompressedPublicKey(curve, raw)
}

// Public implements crypto.Signer.
func (k *key) Public() crypto.PublicKey { return k.public }

// digestInfo are the DER bytes before the hash in a PKCS #1 v1.5 signature
// (RFC 8017, section 9.2, note 1).
var digestInfo = map[crypto.Hash]string{
	crypto.SHA256: "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
	crypto.SHA384: "\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
	crypto.SHA512: "\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
}

// Sign implements crypto.Signer. The signature is checked before it is
// returned: hardware that signs wrongly is found here and not by a device.
func (k *key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	fail := func(err error) error { return fmt.Errorf("sign with key %s: %w", k.uri, err) }
	hash := opts.HashFunc()
	if hash == 0 || len(digest) != hash.Size() {
		return nil, fail(errors.New("it signs digests only"))
	}
	dir, err := os.MkdirTemp("", "lifeboat-sign-")
	if err != nil {
		return nil, fail(err)
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "signature")
	args := []string{"--sign", "--id", k.id, "--output-file", out}
	switch k.public.(type) {
	case *ecdsa.PublicKey:
		_, err = k.run(digest, k.login(append(args, "--mechanism", "ECDSA", "--signature-format", "openssl")...)...)
	default:
		prefix, ok := digestInfo[hash]
		if _, pss := opts.(*rsa.PSSOptions); pss || !ok {
			return nil, fail(fmt.Errorf("only PKCS #1 v1.5 with SHA-2 is supported for RSA keys, not %s with %T", hash, opts))
		}
		_, err = k.run(append([]byte(prefix), digest...), k.login(append(args, "--mechanism", "RSA-PKCS")...)...)
	}
	if err != nil {
		return nil, fail(err)
	}
	signature, err := os.ReadFile(out)
	if err != nil {
		return nil, fail(err)
	}
	good := false
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(public, digest, signature)
	case *rsa.PublicKey:
		good = rsa.VerifyPKCS1v15(public, hash, digest, signature) == nil
	}
	if !good {
		return nil, fail(errors.New("its signature is wrong: is the public key beside it that of another key?"))
	}
	return signature, nil
}
