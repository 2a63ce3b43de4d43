package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"lifeboat/verify"
	"lifeboat/verify/keys"
)

// newKeysKeyring is `lifeboat keys keyring`.
func newKeysKeyring() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keyring",
		Short: "make, sign, join and show signed keyrings, by which devices renew their trust",
	}
	cmd.AddCommand(newKeyringCreate(), newKeyringSign(), newKeyringBundle(), newKeyringShow(), newKeyringCheck())
	return cmd
}

func newKeyringCreate() *cobra.Command {
	var version uint32
	var created string
	var anchors, intermediates, thresholds, revoked []string
	d := keys.Draft{Thresholds: map[string]int{}}
	cmd := &cobra.Command{
		Use:   "create --version N --anchor NAME=CERT:ROLE,ROLE... [flags] OUT",
		Short: "write the text of a keyring, to be read and signed",
		Long: `Roles are release, dev and keyring. Anchors of role keyring sign the next keyring: one that never leaves the safe is
the way back when all others are lost. A certificate that is not self-signed becomes an anchor at which chains end. The
text may be edited; "keys keyring sign" checks it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d.Version = version
			var err error
			if created != "" {
				if d.Created, err = (&trust{at: created}).now(); err != nil {
					return usagef("--created %q is not a time like 2026-01-31T12:00:00Z", created)
				}
			}
			for _, text := range anchors {
				name, rest, _ := strings.Cut(text, "=")
				at := strings.LastIndexByte(rest, ':')
				if at <= 0 || at == len(rest)-1 {
					return usagef("--anchor %q is not like product=cert.pem:release,keyring", text)
				}
				certs, err := readCertificates(rest[:at])
				if err != nil {
					return err
				}
				d.Anchors = append(d.Anchors, keys.Anchor{Name: name, Roles: strings.Split(rest[at+1:], ","), Cert: certs[0]})
			}
			for _, text := range intermediates {
				name, file, ok := strings.Cut(text, "=")
				if !ok {
					return usagef("--intermediate %q is not like product=cert.pem", text)
				}
				certs, err := readCertificates(file)
				if err != nil {
					return err
				}
				d.Intermediates = append(d.Intermediates, keys.Anchor{Name: name, Cert: certs[0]})
			}
			for _, text := range thresholds {
				role, number, _ := strings.Cut(text, "=")
				n, err := strconv.Atoi(number)
				if err != nil {
					return usagef("--threshold %q is not like release=2", text)
				}
				d.Thresholds[role] = n
			}
			for _, name := range revoked {
				certs, err := readCertificates(name)
				if err != nil {
					return err
				}
				d.Revoked = append(d.Revoked, verify.SPKI(certs[0]))
			}
			text, err := d.Text()
			if err != nil {
				return err
			}
			if _, err := verify.ParseKeyring(text); err != nil { // as the device would
				return fmt.Errorf("create %s: %w", args[0], err)
			}
			if err := writeNew(args[0], text); err != nil {
				return err
			}
			cmd.Printf("made %s, version %d: read it, then sign it with keys keyring sign\n", args[0], version)
			return nil
		},
	}
	f := cmd.Flags()
	f.Uint32Var(&version, "version", 0, "one more than the version of the keyring that it follows, from 1")
	f.StringVar(&created, "created", "", "when it was made (RFC 3339): devices know then that it is later")
	f.StringArrayVar(&anchors, "anchor", nil, "name, certificate and roles, like product=cert.pem:release,keyring (may be repeated)")
	f.StringArrayVar(&intermediates, "intermediate", nil, "certificate that may stand between, like product-ca=cert.pem (may be repeated)")
	f.StringArrayVar(&thresholds, "threshold", nil, "how many signers a role needs, like release=2 (default 1; may be repeated)")
	f.StringArrayVar(&revoked, "revoke-spki", nil, "certificate (PEM) whose key shall count no more (may be repeated)")
	f.StringSliceVar(&d.Algorithms, "algorithms", nil, "allow only these of ecdsa,rsa,rsa-pss,ed25519")
	require(cmd, "version", "anchor")
	return cmd
}

func newKeyringSign() *cobra.Command {
	var s signer
	var add bool
	cmd := &cobra.Command{
		Use:   "sign [--add] --cert F --key F IN [OUT]",
		Short: "sign the text of a keyring, or add a signer to a signed one",
		Long: `IN is the text that "keys keyring create" made and OUT the signed keyring; with --add IN is a signed keyring that gets
a further signer, in its place where there is no OUT. Who signs: as many as the keyring before and this one ask for in
role keyring; one who counts in both counts for both.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			key, cert, chain, err := s.load(cmd.Context())
			if err != nil {
				return err
			}
			fail := func(err error) error { return fmt.Errorf("sign %s: %w", args[0], err) }
			if cert.IsCA {
				return fail(errors.New("the certificate is that of a CA, which signs no keyrings: keys issue --under root NAME"))
			}
			var cms []byte
			if add {
				keyrings, crls, err := keys.SplitTrust(in)
				if err != nil || len(keyrings) != 1 || crls != nil {
					return fmt.Errorf("%s is not a single signed keyring", args[0])
				}
				cms, err = verify.AddSigner(in, nil, key, cert, chain, time.Now())
				if err != nil {
					return fail(err)
				}
			} else {
				if len(args) != 2 {
					return usagef("OUT is needed: the text stays")
				}
				if !isText(in) {
					return fmt.Errorf("%s is not the text of a keyring (--add adds a signer to a signed one)", args[0])
				}
				if cms, err = verify.Sign(in, false, key, cert, chain, time.Now()); err != nil {
					return fail(err)
				}
			}
			if k, err := verify.ParseKeyring(cms); err != nil {
				return fail(err)
			} else if k.Version == 0 {
				return fail(errors.New("a keyring of PEM is not signed: keys keyring create makes one that is"))
			}
			if len(args) == 2 {
				if err := writeNew(args[1], cms); err != nil {
					return err
				}
				cmd.Printf("made %s\n", args[1])
				return nil
			}
			if err := renameio.WriteFile(args[0], cms, 0o644); err != nil {
				return err
			}
			cmd.Printf("signed %s\n", args[0])
			return nil
		},
	}
	s.flags(cmd)
	cmd.Flags().BoolVar(&add, "add", false, "IN is signed already")
	require(cmd, "cert", "key")
	return cmd
}

func newKeyringBundle() *cobra.Command {
	return &cobra.Command{
		Use:   "bundle OUT FILE...",
		Short: "join signed keyrings and CRLs to a trust file",
		Long: `The trust file goes on a stick as *.keyring or into a bundle (bundle create --keyring-update). A device that missed
some keyrings needs each of them, in the order of their versions.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := joinTrust(args[1:])
			if err != nil {
				return err
			}
			if err := writeNew(args[0], data); err != nil {
				return err
			}
			keyrings, crls, err := keys.SplitTrust(data)
			cmd.Printf("made %s: %d keyrings, %d CRLs\n", args[0], len(keyrings), len(crls))
			return err
		},
	}
}

// joinTrust reads trust files, signed keyrings and CRLs (these in PEM too) and puts them one behind the other.
func joinTrust(names []string) ([]byte, error) {
	var all []byte
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if bytes.Contains(b, []byte("-----BEGIN X509 CRL")) {
			crls, err := keys.ParseCRLs(b)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			b = slices.Concat(crls...)
		}
		if _, _, err := keys.SplitTrust(b); err != nil {
			return nil, fmt.Errorf("%s is no trust file: %w", name, err)
		}
		all = append(all, b...)
	}
	if len(all) > verify.MaxTrust {
		return nil, verify.Refuse(verify.Policy, "trust file of %d bytes, more than %d", len(all), verify.MaxTrust)
	}
	return all, nil
}
