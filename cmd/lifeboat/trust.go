package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/config"
	"lifeboat/verify"
	"lifeboat/verify/keys"
	"lifeboat/verify/keys/pkcs11"
)

// trust is what the flags say a signature is judged by.
type trust struct {
	keyring string
	updates []string
	role    string
	purpose string
	at      string
}

func (t *trust) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&t.keyring, "keyring", "", "PEM file with the self-signed certificates of the CAs that are trusted, or a keyring of keys keyring")
	f.StringArrayVar(&t.updates, "trust", nil, "signed keyrings and CRLs that a device with this keyring has found as well (may be repeated)")
	f.StringVar(&t.role, "role", "release", "what the keyring must trust the signers for: release or dev")
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
	if r.Role = t.role; r.Role != verify.RoleRelease && r.Role != verify.RoleDev {
		return r, usagef("--role %q is neither release nor dev", t.role)
	}
	var err error
	if r.Now, err = t.now(); err != nil {
		return r, err
	}
	if r.Keyring, err = readKeyring(t.keyring); err != nil || t.updates == nil {
		return r, err
	}
	data, err := joinTrust(t.updates)
	if err != nil {
		return r, err
	}
	next, _, notes := r.Keyring.Renew(data, r.Now)
	if len(notes) > 0 {
		return r, fmt.Errorf("--trust: a device with %s would not take it: %w", t.keyring, notes[0])
	}
	r.Keyring = next
	return r, nil
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

// signer is what the flags say is signed with.
type signer struct {
	cert          string
	key           keyFlag
	intermediates []string
}

func (s *signer) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.cert, "cert", "", "certificate of the signer (PEM)")
	s.key.flags(cmd, "private key of the signer")
	f.StringArrayVar(&s.intermediates, "intermediate", nil, "certificate that goes along in the signature (may be repeated)")
}

// load reads the PEM files. Certificates that stand behind the first in the signer's file go along as intermediates.
func (s *signer) load(ctx context.Context) (crypto.Signer, *x509.Certificate, []*x509.Certificate, error) {
	cert, chain, err := s.loadCerts()
	if err != nil {
		return nil, nil, nil, err
	}
	key, err := s.key.load(ctx)
	return key, cert, chain, err
}

func (s *signer) loadCerts() (*x509.Certificate, []*x509.Certificate, error) {
	certs, err := readCertificates(s.cert)
	if err != nil {
		return nil, nil, err
	}
	chain := certs[1:]
	for _, name := range s.intermediates {
		more, err := readCertificates(name)
		if err != nil {
			return nil, nil, err
		}
		chain = append(chain, more...)
	}
	return certs[0], chain, nil
}

func readCertificates(name string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	certs, err := keys.ParseCertificates(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return certs, nil
}

// keyFlag names a private key: a PEM file, or one in hardware.
type keyFlag struct{ name, module string }

func (k *keyFlag) flags(cmd *cobra.Command, what string) {
	f := cmd.Flags()
	f.StringVar(&k.name, "key", "", what+": a PEM file or a PKCS #11 URI (pkcs11:token=T;object=O?pin-source=FILE)")
	k.moduleFlag(cmd)
}

func (k *keyFlag) moduleFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.module, "pkcs11-module", "", "library of the hardware that has the key (default: module-path= in the URI, $PKCS11_MODULE)")
}

// load returns nil where no key was named.
func (k *keyFlag) load(ctx context.Context) (crypto.Signer, error) {
	switch {
	case k.name == "":
		return nil, nil
	case strings.HasPrefix(k.name, pkcs11.Scheme):
		return pkcs11.Open(ctx, k.name, pkcs11.Options{Module: k.module})
	}
	return readKey(k.name)
}

func readKey(name string) (crypto.Signer, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	key, err := keys.ParseKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return key, nil
}

// readCRLs reads the CRLs of some files, in DER or PEM.
func readCRLs(names []string) ([][]byte, error) {
	var all [][]byte
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		crls, err := keys.ParseCRLs(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, crls...)
	}
	return all, nil
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
