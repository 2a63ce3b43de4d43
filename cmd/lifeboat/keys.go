package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/verify"
	"lifeboat/verify/keys"
	"lifeboat/verify/keys/pkcs11"
)

// newKeys is `lifeboat keys`.
func newKeys() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "make and look after keys, certificates, CRLs and keyrings"}
	cmd.AddCommand(newKeysInit(), newKeysIssue(), newKeysDevice(), newKeysRenew(), newKeysRevoke(), newKeysCRL(),
		newKeysList(), newKeysCheckExpiry(), newKeysKeyring())
	return cmd
}

func newKeysInit() *cobra.Command {
	var out, org string
	var rsa int
	var named []string
	var module keyFlag
	cmd := &cobra.Command{
		Use:   "init --out DIR",
		Short: "make a root, a release and a development CA, a signer of each, and the keyrings",
		Long: `Makes {root,release-ca,develop-ca,release,develop}.{cert,key}.pem, {release,develop}.keyring.pem and the index.
Nothing is overwritten. A device gets one keyring: with release.keyring.pem it takes only what the
release key signed. Keep the keys of root and CAs off line. Certificates of the root are valid for 20 years,
of the CAs 15, of the signers 10.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkRSA(rsa); err != nil {
				return err
			}
			o := keys.Options{RSA: rsa, Now: time.Now(), Org: org, Keys: map[string]crypto.Signer{}}
			for _, key := range named {
				name, where, ok := strings.Cut(key, "=")
				if !ok || where == "" {
					return usagef("--key %q is not like root=pkcs11:...", name)
				}
				k := keyFlag{where, module.module}
				var err error
				if o.Keys[name], err = k.load(cmd.Context()); err != nil {
					return err
				}
			}
			if err := keys.Init(out, o); err != nil {
				return err
			}
			cmd.Printf("keys and keyrings are in %s\n", out)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "folder for the files, made where it is missing")
	f.StringVar(&org, "org", "lifeboat", "organisation in the names of the certificates")
	rsaFlag(cmd, &rsa)
	f.StringArrayVar(&named, "key", nil, "take a key that exists, like root=pkcs11:token=T;object=O, and write no file for it (may be repeated)")
	module.moduleFlag(cmd)
	require(cmd, "out")
	return cmd
}

func rsaFlag(cmd *cobra.Command, bits *int) {
	cmd.Flags().IntVar(bits, "rsa", 0, "RSA keys of so many bits, like 4096 (default: ECDSA P-256)")
}

func checkRSA(bits int) error {
	if bits != 0 && (bits < 2048 || bits > 8192) {
		return usagef("--rsa %d is not a key size from 2048 to 8192", bits)
	}
	return nil
}

// folderFlag is the keys folder of a command.
type folderFlag struct{ dir string }

func (d *folderFlag) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.dir, "dir", "keys", "the keys folder")
}

// in runs work on the folder.
func (d *folderFlag) in(work func(*keys.Folder) error) error {
	f, err := keys.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return work(f)
}

// subjectKey says whose key a certificate is for, where none is to be made.
type subjectKey struct{ csr, public string }

func (s *subjectKey) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.csr, "csr", "", "certificate request (PEM) whose key it is for; nothing else in it counts")
	f.StringVar(&s.public, "public-key", "", "key that it is for: a PEM file, public or private, or pkcs11:...")
}

func (s *subjectKey) load(ctx context.Context, module string) (crypto.PublicKey, error) {
	name := s.csr + s.public
	switch {
	case s.csr != "" && s.public != "":
		return nil, usagef("--csr and --public-key exclude each other")
	case name == "":
		return nil, nil
	case strings.HasPrefix(s.public, pkcs11.Scheme):
		key, err := pkcs11.Open(ctx, s.public, pkcs11.Options{Module: module})
		if err != nil {
			return nil, err
		}
		return key.Public(), nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var public crypto.PublicKey
	if s.csr != "" {
		public, err = keys.ReadRequest(b)
	} else if block, _ := pem.Decode(b); block != nil && block.Type == "PUBLIC KEY" {
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
	} else {
		var key crypto.Signer
		if key, err = keys.ParseKey(b); err == nil {
			public = key.Public()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return public, nil
}

// newIssuing is `keys issue` and `keys device`.
func newIssuing(cmd *cobra.Command, under, rootKey *string) *cobra.Command {
	var dir folderFlag
	var key keyFlag
	var subject subjectKey
	o := keys.Issue{}
	cmd.Args = cobra.ExactArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkRSA(o.RSA); err != nil {
			return err
		}
		if o.Years < 0 {
			return usagef("--years %d", o.Years)
		}
		var err error
		if o.Public, err = subject.load(cmd.Context(), key.module); err != nil {
			return err
		}
		if o.CAKey, err = key.load(cmd.Context()); err != nil {
			return err
		}
		root := keyFlag{*rootKey, key.module}
		if o.RootKey, err = root.load(cmd.Context()); err != nil {
			return err
		}
		o.Name, o.Under = args[0], *under
		return dir.in(func(f *keys.Folder) error {
			path, err := f.Issue(o)
			if err != nil {
				return err
			}
			cmd.Printf("issued %s\n", path)
			return nil
		})
	}
	dir.flags(cmd)
	key.flags(cmd, "private key of the CA (default: the one in the folder)")
	subject.flags(cmd)
	cmd.Flags().IntVar(&o.Years, "years", 0, "validity (default: 10, or as long as the CA)")
	rsaFlag(cmd, &o.RSA)
	return cmd
}

func newKeysIssue() *cobra.Command {
	var under, none string
	cmd := newIssuing(&cobra.Command{
		Use:   "issue --under release|develop|root [--csr F] NAME",
		Short: "issue the certificate of a further signer",
		Long: `Makes NAME.key.pem and NAME.cert.pem in the folder, or with --csr or --public-key only the certificate.
A person's key is best made where it stays (openssl req, a smart card) and only its request brought here. What the root
issues directly is for signers of keyrings.`,
	}, &under, &none)
	cmd.Flags().StringVar(&under, "under", "", "release or develop (the CA is UNDER-ca), or root")
	require(cmd, "under")
	return cmd
}

func newKeysDevice() *cobra.Command {
	under, root := "device", ""
	cmd := newIssuing(&cobra.Command{
		Use:   "device [--csr F] SERIAL",
		Short: "issue the certificate of one device",
		Long: `Makes devices/SERIAL.{cert,key}.pem: what a device shows a server (TLS) and bundles are encrypted for. It signs no
bundles. The first time the root issues device-ca for that.`,
	}, &under, &root)
	cmd.Flags().StringVar(&root, "root-key", "", "private key of the root, for the first device, where it is not in the folder")
	return cmd
}

func newKeysRenew() *cobra.Command {
	var dir folderFlag
	var key keyFlag
	var subject subjectKey
	var own string
	o := keys.Renew{}
	cmd := &cobra.Command{
		Use:   "renew [--years N] [--new-key | --csr F] NAME",
		Short: "replace a certificate before it expires",
		Long: `NAME.cert.pem becomes one with the same name, issuer and purpose and, unless told otherwise, the same key. The one
that was there moves to old/ and counts until it expires or is revoked. CAs keep their keys; with a CA its certificate in
the keyring is renewed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRSA(o.RSA); err != nil {
				return err
			}
			var err error
			if o.Public, err = subject.load(cmd.Context(), key.module); err != nil {
				return err
			}
			if o.NewKey && o.Public != nil {
				return usagef("--new-key makes a key, --csr and --public-key bring one")
			}
			if o.CAKey, err = key.load(cmd.Context()); err != nil {
				return err
			}
			if o.OwnKey, err = (&keyFlag{own, key.module}).load(cmd.Context()); err != nil {
				return err
			}
			o.Name = strings.TrimSuffix(args[0], ".cert.pem")
			return dir.in(func(f *keys.Folder) error {
				path, err := f.Renew(o)
				if err != nil {
					return err
				}
				cmd.Printf("renewed %s, the one before is in old/\n", path)
				return nil
			})
		},
	}
	dir.flags(cmd)
	key.flags(cmd, "private key of the CA (default: the one in the folder)")
	subject.flags(cmd)
	f := cmd.Flags()
	f.IntVar(&o.Years, "years", 0, "validity (default: as before, or as long as the CA)")
	f.StringVar(&own, "own-key", "", "private key of a CA that is renewed, for its keyring, where it is not in the folder")
	f.BoolVar(&o.NewKey, "new-key", false, "make a new key; the one that was there moves to old/")
	rsaFlag(cmd, &o.RSA)
	return cmd
}

func newKeysRevoke() *cobra.Command {
	var dir folderFlag
	var key keyFlag
	o := keys.Revoke{}
	cmd := &cobra.Command{
		Use:   "revoke [--reason R] NAME | --serial HEX",
		Short: "revoke certificates and write the CRL that says so",
		Long: `Revokes all certificates that NAME ever had, or the one with a serial number, and writes UNDER-ca.crl (DER) with the
next number. It reaches devices beside a bundle on a stick (*.crl), in a bundle (bundle create --crl) or in a trust file.
Reasons: ` + strings.Join(keys.Reasons(), ", ") + `.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (o.Serial != "") {
				return usagef("either NAME or --serial says what is revoked")
			}
			if len(args) == 1 {
				o.Name = strings.TrimSuffix(args[0], ".cert.pem")
			}
			var err error
			if o.CAKey, err = key.load(cmd.Context()); err != nil {
				return err
			}
			return dir.in(func(f *keys.Folder) error {
				path, revoked, err := f.Revoke(o)
				if err != nil {
					return err
				}
				for _, e := range revoked {
					spki := ""
					if e.Cert != nil {
						sum := verify.SPKI(e.Cert)
						spki = ", its key has sha256 " + hex.EncodeToString(sum[:])
					}
					cmd.Printf("revoked %s, serial %s%s\n", e.Name, e.Serial, spki)
				}
				cmd.Printf("made %s\n", path)
				return nil
			})
		},
	}
	dir.flags(cmd)
	key.flags(cmd, "private key of the CA (default: the one in the folder)")
	f := cmd.Flags()
	f.StringVar(&o.Serial, "serial", "", "serial number of one certificate (hex)")
	f.StringVar(&o.Reason, "reason", "", "why")
	f.IntVar(&o.Days, "days", 365, "days until the next CRL is due")
	return cmd
}

func newKeysCRL() *cobra.Command {
	var dir folderFlag
	var key keyFlag
	o := keys.CRL{}
	cmd := &cobra.Command{
		Use:   "crl CA",
		Short: "write the CRL of a CA anew, before the last one is overdue",
		Long:  `CA is root, release-ca, develop-ca or device-ca. The CRL gets the next number.`,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.CAKey, err = key.load(cmd.Context()); err != nil {
				return err
			}
			o.CA = args[0]
			return dir.in(func(f *keys.Folder) error {
				path, err := f.CRL(o)
				if err != nil {
					return err
				}
				cmd.Printf("made %s\n", path)
				return nil
			})
		},
	}
	dir.flags(cmd)
	key.flags(cmd, "private key of the CA (default: the one in the folder)")
	cmd.Flags().IntVar(&o.Days, "days", 365, "days until the next CRL is due")
	return cmd
}

func newKeysList() *cobra.Command {
	var dir folderFlag
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "show what was issued, until when it is valid and what is revoked",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return dir.in(func(f *keys.Folder) error {
				entries := f.Entries()
				if asJSON {
					return printJSON(cmd.OutOrStdout(), entries)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tISSUER\tVALID UNTIL\tSTATUS\tSERIAL")
				for _, e := range entries {
					state := "valid"
					switch {
					case !e.Revoked.IsZero():
						state = "revoked " + e.Revoked.Format(time.DateOnly) + ", " + e.Reason
					case e.NotAfter.Before(time.Now()):
						state = "expired"
					case e.Old():
						state = "renewed"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", printable(e.Name), e.Issuer, e.NotAfter.UTC().Format(time.DateOnly), state, e.Serial)
				}
				return w.Flush()
			})
		},
	}
	dir.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newKeysCheckExpiry() *cobra.Command {
	var dir folderFlag
	var within string
	cmd := &cobra.Command{
		Use:   "check-expiry [--within 90d]",
		Short: "fail if a certificate expires or a CRL is due soon",
		Long:  `For a job that runs every night. What is revoked or renewed is not looked at.`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			days, err := parseDays(within)
			if err != nil {
				return usagef("--within: %w", err)
			}
			return dir.in(func(f *keys.Folder) error {
				due, err := f.Due(time.Now().AddDate(0, 0, days))
				if err != nil {
					return err
				}
				for _, d := range due {
					cmd.Printf("%s: %s\n", stamp(d.At), printable(d.What))
				}
				if len(due) > 0 {
					return fmt.Errorf("%s: %d of its files expire within %s: keys renew NAME, keys crl CA", dir.dir, len(due), within)
				}
				cmd.Printf("nothing in %s expires within %s\n", dir.dir, within)
				return nil
			})
		},
	}
	dir.flags(cmd)
	cmd.Flags().StringVar(&within, "within", "90d", "how far to look: days, weeks or years, like 90d, 8w or 1y")
	return cmd
}

func parseDays(s string) (int, error) {
	unit := map[byte]int{'d': 1, 'w': 7, 'y': 366}
	if s != "" && unit[s[len(s)-1]] != 0 {
		if n, err := strconv.Atoi(s[:len(s)-1]); err == nil && n >= 0 && n < 100_000 {
			return n * unit[s[len(s)-1]], nil
		}
	}
	return 0, errors.New(strconv.Quote(s) + " is not like 90d, 8w or 1y")
}
