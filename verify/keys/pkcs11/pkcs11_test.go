package pkcs11_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/verify/keys/pkcs11"
)

const module = "/usr/lib/softhsm/libsofthsm2.so"

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// softToken makes two tokens, "first; one" with keys of each kind and "second".
func softToken(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"softhsm2-util", "pkcs11-tool", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	t.Setenv("PKCS11_MODULE", module)
	for _, label := range []string{"first; one", "second"} {
		run(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", "12 34&5", "--so-pin", "43210")
	}
	for i, kind := range []string{"EC:prime256v1", "EC:secp384r1", "rsa:2048", "EC:edwards25519"} {
		run(t, "pkcs11-tool", "--module", module, "--token-label", "first; one", "--login", "--pin", "12 34&5",
			"--keypairgen", "--key-type", kind, "--label", kind, "--id", string("abcd"[i])+"0")
	}
}

func TestSign(t *testing.T) {
	softToken(t)
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin")
	if err := os.WriteFile(pin, []byte("12 34&5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	message := []byte("to be signed")
	for _, test := range []struct {
		uri  string
		env  string
		hash crypto.Hash
	}{
		{"pkcs11:token=first%3B%20one;object=EC:prime256v1;type=private?pin-value=12%2034%265", "", crypto.SHA256},
		{"pkcs11:token=first%3B%20one;id=%A0?pin-source=file:" + pin, "", crypto.SHA256},
		{"pkcs11:manufacturer=SoftHSM%20project;token=first%3B%20one;id=%B0", "12 34&5", crypto.SHA384},
		{"pkcs11:token=first%3B%20one;id=%C0?module-path=" + module, "12 34&5", crypto.SHA256},
		{"pkcs11:token=first%3B%20one;id=%C0;object=rsa:2048", "12 34&5", crypto.SHA512},
	} {
		t.Run(test.uri, func(t *testing.T) {
			t.Setenv("PKCS11_PIN", test.env)
			key, err := pkcs11.Open(t.Context(), test.uri, pkcs11.Options{})
			if err != nil {
				t.Fatal(err)
			}
			h := test.hash.New()
			h.Write(message)
			signature, err := key.Sign(rand.Reader, h.Sum(nil), test.hash)
			if err != nil {
				t.Fatal(err)
			}
			// openssl is the judge.
			spki, err := x509.MarshalPKIXPublicKey(key.Public())
			if err != nil {
				t.Fatal(err)
			}
			for name, b := range map[string][]byte{
				"message": message, "signature": signature,
				"public.pem": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}),
			} {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			run(t, "openssl", "dgst", "-"+strings.ToLower(strings.ReplaceAll(test.hash.String(), "-", "")),
				"-verify", filepath.Join(dir, "public.pem"), "-signature", filepath.Join(dir, "signature"), filepath.Join(dir, "message"))
		})
	}
}

// TestWrong: what is said when a key is not found, and that no PIN is.
func TestWrong(t *testing.T) {
	softToken(t)
	for _, test := range []struct{ uri, want string }{
		{"pkcs11:token=first%3B%20one;id=%A0", "no PIN"},
		{"pkcs11:token=first%3B%20one;id=%A0?pin-value=99secret99", "wrong PIN"},
		{"pkcs11:token=third;id=%A0?pin-value=99secret99", "no such token; plugged in: [token="},
		{"pkcs11:id=%A0?pin-value=99secret99", "several tokens fit"},
		{"pkcs11:token=first%3B%20one;object=none?pin-value=12%2034%265", "no such key in the token; there are: [object="},
		{"pkcs11:token=first%3B%20one;id=%D0?pin-value=12%2034%265", "read its public key"},
		{"pkcs11:token=first%3B%20one;id=%A0?pin-value=99secret99&module-path=/none.so", "pkcs11-tool: "},
		{"pkcs11:token=second?pin-value=99secret99", "names no key"},
		{"pkcs11:object=a;colour=red?pin-value=99secret99", "colour= is not supported"},
		{"pkcs11:object=a;object=b?pin-value=99secret99", "stands twice"},
		{"pkcs11:object=a;type=cert?pin-value=99secret99", "not a private key"},
		{"pkcs11:object=%zz?pin-value=99secret99", "object=: "},
		{"pkcs11:object=a?pin-value=99secret99&pin-source=/dev/null", "exclude each other"},
		{"pkcs11:object=a?pin-source=/none", "pin-source: "},
		{"pkcs11:object", `"object" is not name=value`},
	} {
		_, err := pkcs11.Open(t.Context(), test.uri, pkcs11.Options{})
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", test.uri, err, test.want)
		}
	}
	t.Setenv("PKCS11_MODULE", "")
	if _, err := pkcs11.Open(t.Context(), "pkcs11:object=a", pkcs11.Options{}); err == nil || !strings.Contains(err.Error(), "which library?") {
		t.Errorf("without a module: %v", err)
	}
	t.Setenv("PATH", "")
	if _, err := pkcs11.Open(t.Context(), "pkcs11:object=a?pin-value=1", pkcs11.Options{Module: module}); err == nil || !strings.Contains(err.Error(), "package opensc") {
		t.Errorf("without pkcs11-tool: %v", err)
	}
}

// TestPINIsNotSeen: the command line of pkcs11-tool, which every user can
// read, has no PIN in it.
func TestPINIsNotSeen(t *testing.T) {
	softToken(t)
	dir := t.TempDir()
	real, err := exec.LookPath("pkcs11-tool")
	if err != nil {
		t.Fatal(err)
	}
	seen := filepath.Join(dir, "seen")
	if err := os.WriteFile(filepath.Join(dir, "pkcs11-tool"), []byte("#!/bin/sh\necho \"$@\" >>"+seen+"\nexec "+real+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	key, err := pkcs11.Open(t.Context(), "pkcs11:token=first%3B%20one;id=%A0?pin-value=12%2034%265", pkcs11.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(nil)
	if _, err := key.Sign(nil, sum[:], crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(seen)
	if err != nil || !bytes.Contains(b, []byte("--sign")) || bytes.Contains(b, []byte("34&5")) {
		t.Errorf("%v\n%s", err, b)
	}
}
