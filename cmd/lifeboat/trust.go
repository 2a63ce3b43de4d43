package main

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/config"
	"lifeboat/verify"
)

// trust is what the flags say a signature is judged by.
type trust struct {
	keyring string
	purpose string
	at      string
}

func (t *trust) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&t.keyring, "keyring", "", "PEM file with the self-signed certificates of the CAs that are trusted")
	f.StringVar(&t.purpose, "purpose", "codesign", "what the signer's certificate must be made for: codesign, smimesign or any")
	f.StringVar(&t.at, "at", "", "judge as at this time (RFC 3339, like 2026-01-31T12:00:00Z) instead of now")
}

// rules reads the keyring. The clock of a PC is trusted.
func (t *trust) rules() (verify.Rules, error) {
	r := verify.Rules{Purpose: t.purpose, Trusted: true}
	switch t.purpose {
	case "codesign", "smimesign", "any":
	default:
		return r, usagef("--purpose %q is none of codesign, smimesign, any", t.purpose)
	}
	var err error
	if r.Now, err = t.now(); err != nil {
		return r, err
	}
	r.Keyring, err = readKeyring(t.keyring)
	return r, err
}

func (t *trust) now() (time.Time, error) {
	if t.at == "" {
		return time.Now(), nil
	}
	at, err := time.Parse(time.RFC3339, t.at)
	if err != nil {
		return at, usagef("--at %q is not a time like 2026-01-31T12:00:00Z", t.at)
	}
	return at, nil
}

func readKeyring(name string) (*verify.Keyring, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, verify.Refuse(verify.KeyMissing, "keyring: %w", err)
	}
	k, err := verify.ParseKeyring(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return k, nil
}

// signer is what the flags say a bundle is signed with.
type signer struct {
	cert, key     string
	intermediates []string
}

// load reads the PEM files. Certificates that stand behind the first in the signer's file go along as intermediates.
func (s *signer) load() (crypto.Signer, *x509.Certificate, []*x509.Certificate, error) {
	certs, err := readCertificates(s.cert)
	if err != nil {
		return nil, nil, nil, err
	}
	chain := certs[1:]
	for _, name := range s.intermediates {
		more, err := readCertificates(name)
		if err != nil {
			return nil, nil, nil, err
		}
		chain = append(chain, more...)
	}
	key, err := readKey(s.key)
	if err != nil {
		return nil, nil, nil, err
	}
	return key, certs[0], chain, nil
}

func readCertificates(name string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		certs = append(certs, c)
	}
	if certs == nil {
		return nil, fmt.Errorf("%s has no certificate in PEM form", name)
	}
	return certs, nil
}

func readKey(name string) (crypto.Signer, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil, fmt.Errorf("%s has no private key in PEM form", name)
		}
		var key any
		var err error
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, fmt.Errorf("%s is locked with a passphrase, decrypt it first: openssl pkey -in %s", name, name)
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
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%s: a key of type %T does not sign", name, key)
		}
		return signer, nil
	}
}

// readConfig reads a system.conf and shows its warnings.
func readConfig(cmd *cobra.Command, name string) (*config.Config, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	c, err := config.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, w := range c.Warnings {
		cmd.PrintErrf("lifeboat: warning: %s: %s\n", name, w)
	}
	return c, nil
}

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
