package main

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/badinputs"
	"lifeboat/verify/keys"
)

// TestBadInputs: the exit status of `bundle verify` for every bundle of the list of bad inputs.
func TestBadInputs(t *testing.T) {
	set, err := keys.New(keys.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k := badinputs.New(t, set, "demo")
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// The CA of row 51 is one of this system's.
	t.Setenv("SSL_CERT_FILE", write("web.pem", k.Web()))
	t.Setenv("SSL_CERT_DIR", t.TempDir())
	if pool, err := x509.SystemCertPool(); err != nil || !pool.Equal(poolOf(k.Web())) {
		t.Fatalf("the system's roots are not the ones that were set: %v", err)
	}
	verify := func(in badinputs.Input, keyring, bundle string) (status int, said string) {
		formats := "verity"
		if in.Plain {
			formats = "plain,verity"
		}
		var stdout, stderr bytes.Buffer
		status = run(t.Context(), []string{"bundle", "verify", "--keyring", keyring, "--compatible", "demo", "--formats", formats, bundle}, nil, &stdout, &stderr)
		return status, stderr.String()
	}
	keyring := write("keyring.pem", k.Keyring())
	var slowest time.Duration
	rows := map[string]bool{}
	inputs := k.Inputs()
	for _, in := range inputs {
		t.Run(in.Row+" "+in.Name, func(t *testing.T) {
			file := write(in.File(), in.Make())
			defer os.Remove(file)
			ring := keyring
			if in.Keyring != nil {
				ring = write("other.pem", in.Keyring)
			}
			start := time.Now()
			status, said := verify(in, ring, file)
			slowest = max(slowest, time.Since(start))
			if status != int(in.PC) {
				t.Errorf("exit status %d, want %d: %s", status, in.PC, said)
			}
			if strings.ContainsAny(strings.TrimSpace(said), "\x1b\x00\r") {
				t.Errorf("what is said would steer a terminal: %q", said)
			}
		})
		if in.Row != "0" {
			rows[in.Row] = true
		}
	}
	t.Run("52 keyring is missing", func(t *testing.T) {
		if status, said := verify(badinputs.Input{}, filepath.Join(dir, "nothing"), write("good.raucb", k.Good())); status != 32 {
			t.Errorf("exit status %d, want 32: %s", status, said)
		}
	})
	t.Logf("figure: bad inputs: %d bundles of %d rows under bundle verify, slowest %v", len(inputs), len(rows), slowest.Round(time.Millisecond))
}

func poolOf(pem []byte) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return pool
}
