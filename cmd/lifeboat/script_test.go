package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"lifeboat/verify"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lifeboat": main})
}

// TestScripts runs testdata/script/*.txt: what a person types and sees. Beside the commands of testscript there are
//
//	exits N COMMAND...    run it and compare its exit status
//	random FILE BYTES     bytes that do not compress, always the same
//	flip FILE OFFSET      turn one bit over; a negative offset counts from the end
//	samepayload A B       two bundles differ in their signatures at most
//	hascrl BUNDLE N       how many CRLs are in its CMS
//	opensslverify BUNDLE KEYRING
//	copy FILE TO BYTES    the first so many bytes; negative: without so many at the end
func TestScripts(t *testing.T) {
	init := buildInit(t)
	kernels, err := filepath.Abs("../../build/kernel")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("INIT", init)
			env.Setenv("KERNELS", kernels)
			env.Setenv("NEXTYEAR", time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "random": random, "flip": flip, "copy": copyPart, "samepayload": samePayload, "hascrl": hasCRL,
			"opensslverify": opensslVerify,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "kernels" {
				_, err := os.Stat(kernels)
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

func buildInit(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source, out := filepath.Join(dir, "main.go"), filepath.Join(dir, "init")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", out, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	default:
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func random(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: random FILE BYTES")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 0x10
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

func samePayload(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: samepayload A B")
	}
	a, aCMS := splitBundle(ts, args[0])
	b, bCMS := splitBundle(ts, args[1])
	x, err := verify.ReadCMS(aCMS)
	ts.Check(err)
	y, err := verify.ReadCMS(bCMS)
	ts.Check(err)
	if !bytes.Equal(a, b) || !bytes.Equal(x.Unverified(), y.Unverified()) {
		ts.Fatalf("payload or signed content differ")
	}
}

func splitBundle(ts *testscript.TestScript, name string) (payload, cms []byte) {
	b, err := os.ReadFile(ts.MkAbs(name))
	ts.Check(err)
	end := len(b) - 8
	at := end - int(binary.BigEndian.Uint64(b[end:]))
	return b[:at], b[at:end]
}

// hasCRL asks openssl.
func hasCRL(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: hascrl BUNDLE COUNT")
	}
	_, cms := splitBundle(ts, args[0])
	cmd := exec.Command("openssl", "cms", "-cmsout", "-print", "-inform", "DER")
	cmd.Stdin = bytes.NewReader(cms)
	out, err := cmd.Output()
	ts.Check(err)
	if got := strconv.Itoa(bytes.Count(out, []byte("d.crl:"))); got != args[1] {
		ts.Fatalf("%s CRLs in the CMS, want %s", got, args[1])
	}
}

// opensslVerify checks the signature of a bundle with openssl, all signers of which must lead to a keyring.
func opensslVerify(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: opensslverify BUNDLE KEYRING")
	}
	payload, cms := splitBundle(ts, args[0])
	content := ts.MkAbs("payload.tmp")
	ts.Check(os.WriteFile(content, payload, 0o644))
	command := []string{"cms", "-verify", "-binary", "-purpose", "any", "-inform", "DER", "-CAfile", ts.MkAbs(args[1]), "-out", os.DevNull}
	if c, err := verify.ReadCMS(cms); err != nil || c.Detached() {
		ts.Check(err)
		command = append(command, "-content", content)
	}
	cmd := exec.Command("openssl", command...)
	cmd.Stdin = bytes.NewReader(cms)
	if out, err := cmd.CombinedOutput(); (err == nil) == neg {
		ts.Fatalf("openssl: %v\n%s", err, out)
	}
}

func copyPart(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: copy FILE TO BYTES")
	}
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	if n < 0 {
		n += len(b)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), bytes.Clone(b[:n]), 0o644))
}
