package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/bundle"
	"lifeboat/verify"
)

// signatures is a change of a bundle's signatures: all of `bundle sign`, `resign` and `attach`.
type signatures struct {
	trust trust
	crls  []string
}

func (c *signatures) flags(cmd *cobra.Command) {
	c.trust.flags(cmd)
	cmd.Flags().StringArrayVar(&c.crls, "crl", nil, "CRL that goes along in the signature (may be repeated)")
}

// run opens the bundle in args[0], changes it, and writes it to args[1] or in its place. Where signers are added those that
// are there may be too few for the keyring; where they are replaced they may not.
func (c *signatures) run(cmd *cobra.Command, args []string, add bool, change func(*bundle.Signing) error) error {
	crls, err := readCRLs(c.crls)
	if err != nil {
		return err
	}
	var o *bundle.Options
	if c.trust.keyring != "" {
		rules, err := c.trust.rules()
		if err != nil {
			return err
		}
		o = &bundle.Options{Rules: rules, Formats: anyFormat(), AnySerial: true}
	}
	s, err := bundle.OpenSigning(cmd.Context(), args[0], o)
	if add && verify.CodeOf(err) == verify.Threshold {
		s, err = bundle.OpenSigning(cmd.Context(), args[0], nil)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	defer s.Close()
	if err := change(s); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	if err := s.AddCRLs(crls...); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	out := ""
	if len(args) > 1 {
		out = args[1]
	}
	if err := s.Write(cmd.Context(), out); err != nil {
		return err
	}
	hash := s.Manifest.Hash()
	if out == "" {
		out = args[0]
	}
	cmd.Printf("made %s, manifest hash %x as before\n", out, hash)
	return nil
}

func newBundleSign() *cobra.Command {
	var c signatures
	var s signer
	var add bool
	cmd := &cobra.Command{
		Use:   "sign [--add --cert F --key F] [--crl F] BUNDLE [OUT]",
		Short: "add a signer, or CRLs, to the signature of a bundle",
		Long: `The payload and what is signed stay byte for byte. Without OUT the bundle is replaced in one step.
Before one signs, the payload is compared with the signed manifest. With --keyring the bundle also has to be trusted
already, though not yet by as many signers as the keyring wants.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch signing := s.cert != "" || s.key.name != ""; {
			case signing && !add:
				return usagef("--add adds a signer to those that are there (bundle resign replaces them)")
			case add && (s.cert == "" || s.key.name == ""):
				return usagef("--add needs --cert and --key")
			case !add && c.crls == nil:
				return usagef("nothing to do: --add --cert F --key F adds a signer, --crl F a CRL")
			}
			return c.run(cmd, args, true, func(b *bundle.Signing) error {
				if !add {
					return nil
				}
				key, cert, chain, err := s.load(cmd.Context())
				if err != nil {
					return err
				}
				return b.Sign(true, key, cert, chain, time.Now())
			})
		},
	}
	c.flags(cmd)
	s.flags(cmd)
	cmd.Flags().BoolVar(&add, "add", false, "sign beside those who signed")
	return cmd
}

func newBundleResign() *cobra.Command {
	var c signatures
	var s signer
	cmd := &cobra.Command{
		Use:   "resign --keyring F --cert F --key F [--crl F] BUNDLE [OUT]",
		Short: "replace the signatures of a trusted bundle by a new one",
		Long: `For a bundle that was tested with the signature of a develop key and is to be released: payload and manifest stay
byte for byte. The bundle has to be trusted by the keyring, else it is refused with the codes of "bundle verify".
Without OUT the bundle is replaced in one step.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(cmd, args, false, func(b *bundle.Signing) error {
				key, cert, chain, err := s.load(cmd.Context())
				if err != nil {
					return err
				}
				return b.Sign(false, key, cert, chain, time.Now())
			})
		},
	}
	c.flags(cmd)
	s.flags(cmd)
	require(cmd, "keyring", "cert", "key")
	return cmd
}

// The request that `bundle digest` writes and `bundle attach` reads is PEM: a block of this type with what is to be signed
// (DER, the SET OF signed attributes), then the signer's certificate and those that go along.
const requestType = "LIFEBOAT TO BE SIGNED"

func newBundleDigest() *cobra.Command {
	var s signer
	var at, out, tbs, content string
	cmd := &cobra.Command{
		Use:   "digest --cert F [--at TIME] [--out REQUEST] [--tbs FILE] [--content FILE] BUNDLE",
		Short: "write what a key elsewhere has to sign, and print its digest",
		Long: `REQUEST (default: BUNDLE.request) is for "bundle attach": PEM with the bytes to be signed and the certificates.
Sign them with SHA-256 (a key on P-384: SHA-384, on P-521: SHA-512; RSA: PKCS #1 v1.5), from --tbs FILE:
    openssl dgst -sha256 -sign KEY -out SIGNATURE FILE
or from the digest in hex, which is all that is printed. The signing time is part of it. For a whole CMS made by
"openssl cms -sign" --content FILE is what the signature of the bundle is over.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			now, err := (&trust{at: at}).now()
			if err != nil {
				return err
			}
			cert, chain, err := s.loadCerts()
			if err != nil {
				return err
			}
			b, err := bundle.OpenSigning(cmd.Context(), args[0], nil)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			defer b.Close()
			signed, err := verify.ToBeSigned(b.Content, cert, now)
			if err != nil {
				return err
			}
			digest, hash := digestFor(cert, signed)
			block := &pem.Block{Type: requestType, Bytes: signed, Headers: map[string]string{"Digest": hex.EncodeToString(digest), "Hash": hash}}
			request := pem.EncodeToMemory(block)
			for _, c := range append([]*x509.Certificate{cert}, chain...) {
				request = append(request, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
			}
			if out == "" {
				out = args[0] + ".request"
			}
			for _, f := range []struct {
				name string
				data []byte
			}{{out, request}, {tbs, signed}, {content, b.Content}} {
				if f.name == "" {
					continue
				}
				if err := writeNew(f.name, f.data); err != nil {
					return err
				}
			}
			cmd.Printf("%x\n", digest)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.cert, "cert", "", "certificate of the signer (PEM)")
	f.StringArrayVar(&s.intermediates, "intermediate", nil, "certificate that goes along in the signature (may be repeated)")
	f.StringVar(&at, "at", "", "signing time (RFC 3339) instead of now")
	f.StringVar(&out, "out", "", "the request, which must not exist (default: BUNDLE.request)")
	f.StringVar(&tbs, "tbs", "", "also write the bytes to be signed, alone, to this new file")
	f.StringVar(&content, "content", "", "also write what the bundle's signature is over to this new file, for openssl cms -sign")
	require(cmd, "cert")
	return cmd
}

// digestFor is what a key elsewhere gets where it does not hash itself.
func digestFor(cert *x509.Certificate, signed []byte) (digest []byte, name string) {
	hash := crypto.SHA256
	switch k := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 384:
			hash = crypto.SHA384
		case 521:
			hash = crypto.SHA512
		}
	case ed25519.PublicKey: // signs the bytes themselves
		hash = crypto.SHA512
	}
	h := hash.New()
	h.Write(signed)
	return h.Sum(nil), hash.String()
}

// writeNew writes a file that must not exist.
func writeNew(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(name)
	}
	return err
}

func newBundleAttach() *cobra.Command {
	var c signatures
	var signature, cms string
	var replace bool
	cmd := &cobra.Command{
		Use:   "attach (--signature SIG BUNDLE REQUEST | --cms FILE BUNDLE) [--replace --keyring F] [OUT]",
		Short: "put in a signature that was made elsewhere",
		Long: `REQUEST is what "bundle digest" wrote and SIG the signature over it: ECDSA in DER or as r and s, RSA PKCS #1 v1.5.
A CMS (DER) is one that "openssl cms -sign -binary -outform DER" made over what "bundle digest --content" wrote, detached
or not, with the hash that fits the key (see "bundle digest --help"). The signature is checked before anything is written.
Signers are added to those that are there; with --replace the bundle has to be trusted by the keyring, and they go.
Without OUT the bundle is replaced in one step.`,
		Args: cobra.RangeArgs(1, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (signature == "") == (cms == ""):
				return usagef("either --signature or --cms is needed")
			case replace && c.trust.keyring == "":
				return usagef("--replace needs --keyring: only what is trusted is signed anew")
			case cms != "":
				if len(args) > 2 {
					return usagef("with --cms there is no REQUEST")
				}
				return c.run(cmd, args, !replace, func(b *bundle.Signing) error {
					der, err := os.ReadFile(cms)
					if err == nil {
						err = b.AttachCMS(!replace, der)
					}
					if err != nil {
						return fmt.Errorf("attach %s: %w", cms, err)
					}
					return nil
				})
			case len(args) < 2:
				return usagef("--signature needs the REQUEST that bundle digest wrote")
			}
			request := args[1]
			return c.run(cmd, append(args[:1:1], args[2:]...), !replace, func(b *bundle.Signing) error {
				signed, certs, err := readRequest(request)
				if err != nil {
					return err
				}
				sig, err := os.ReadFile(signature)
				if err != nil {
					return err
				}
				if err := b.Attach(!replace, certs[0], certs[1:], signed, derSignature(certs[0], sig)); err != nil {
					return fmt.Errorf("attach %s for %s: %w", signature, request, err)
				}
				return nil
			})
		},
	}
	c.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&signature, "signature", "", "the signature over what the request says")
	f.StringVar(&cms, "cms", "", "a whole CMS (DER) instead of request and signature")
	f.BoolVar(&replace, "replace", false, "replace all signatures instead of adding one")
	return cmd
}

func readRequest(name string) ([]byte, []*x509.Certificate, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != requestType {
		return nil, nil, fmt.Errorf("%s is not what bundle digest wrote", name)
	}
	certs, err := readCertificates(name)
	return block.Bytes, certs, err
}

// derSignature makes an ECDSA signature DER that is r and s one behind the other, as hardware gives it.
func derSignature(cert *x509.Certificate, sig []byte) []byte {
	k, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return sig
	}
	if n := (k.Curve.Params().BitSize + 7) / 8; len(sig) == 2*n {
		var pair struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(sig, &pair); err == nil && len(rest) == 0 {
			return sig
		}
		pair.R, pair.S = new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])
		if der, err := asn1.Marshal(pair); err == nil {
			return der
		}
	}
	return sig
}
