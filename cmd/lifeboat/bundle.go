package main

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/bundle"
	"lifeboat/disk"
	"lifeboat/verify"
)

// newBundle is `lifeboat bundle`.
func newBundle() *cobra.Command {
	cmd := &cobra.Command{Use: "bundle", Short: "make, show, verify and unpack update bundles (RAUC's .raucb)"}
	cmd.AddCommand(newBundleCreate(), newBundleInfo(), newBundleVerify(), newBundleExtract(),
		newBundleSign(), newBundleResign(), newBundleDigest(), newBundleAttach())
	return cmd
}

func newBundleCreate() *cobra.Command {
	var s signer
	var squashfs string
	var crls, keyrings, trees []string
	cmd := &cobra.Command{
		Use:   "create --cert F --key F [flags] INDIR OUT.raucb",
		Short: "make a bundle of the manifest.raucm and the images in a folder",
		Long: `INDIR is as for "rauc bundle": a manifest.raucm and the images that it names. Without format= in it the
bundle is of format verity. [meta.lifeboat] gets the signed root hash of each image; security-epoch= and
valid-until= there are kept. --tree makes an image of a folder, with all attributes of its files: a tar archive of the name
that the manifest has for that class (.tar, .tar.gz, .tar.zst, .tar.xz). Keyrings and CRLs that go along renew the trust of the devices that install it.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, cert, chain, err := s.load(cmd.Context())
			if err != nil {
				return err
			}
			o := bundle.CreateOptions{Key: key, Cert: cert, Intermediates: chain, SquashfsArgs: strings.Fields(squashfs)}
			if o.CRLs, err = readCRLs(crls); err != nil {
				return err
			}
			if len(keyrings) > 0 {
				if o.Keyring, err = joinTrust(keyrings); err != nil {
					return err
				}
			}
			if o.Images, err = treeImages(trees); err != nil {
				return err
			}
			if err := bundle.Create(cmd.Context(), args[0], args[1], o); err != nil {
				return err
			}
			cmd.Printf("made %s\n", args[1])
			return nil
		},
	}
	s.flags(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&crls, "crl", nil, "CRL that goes along in the signature (may be repeated)")
	f.StringArrayVar(&keyrings, "keyring-update", nil, "signed keyring, CRL or trust file that goes along in the payload (may be repeated)")
	f.StringArrayVar(&trees, "tree", nil, "CLASS=DIR: the image of a class is an archive of a folder (may be repeated)")
	f.StringVar(&squashfs, "mksquashfs-args", "", `more arguments for mksquashfs, like "-comp xz"`)
	require(cmd, "cert", "key")
	return cmd
}

// openBundle opens the file of a bundle; that it can't be read has code 40.
func openBundle(name string) (*disk.File, error) {
	f, err := disk.Open(name, false)
	if err != nil {
		return nil, verify.Refuse(verify.IO, "%w", err)
	}
	return f, nil
}

// anyFormat is every format that can be read.
func anyFormat() []string { return []string{bundle.FormatPlain, bundle.FormatVerity} }

func newBundleInfo() *cobra.Command {
	var t trust
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info [--json] [--keyring F] BUNDLE",
		Short: "show what a bundle says of itself",
		Long: `Without a keyring nothing is verified and the signature is said to be unchecked; with one, a bundle whose
signature is not right is refused. The payload is not read ("bundle verify" does that).`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return showBundle(cmd, args[0], t, asJSON)
		},
	}
	t.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// bundleView is `bundle info --json`.
type bundleView struct {
	Kind             string       `json:"kind"` // "bundle"
	Compatible       string       `json:"compatible"`
	Version          string       `json:"version"`
	Description      string       `json:"description"`
	Build            string       `json:"build"`
	Format           string       `json:"format"`
	ManifestHash     string       `json:"manifest_hash"`
	Epoch            uint32       `json:"epoch"`
	Created          string       `json:"created"`     // RFC 3339, "" if it isn't said
	ValidUntil       string       `json:"valid_until"` // likewise
	VerityHash       string       `json:"verity_hash"` // of the payload
	VeritySalt       string       `json:"verity_salt"`
	VeritySize       int64        `json:"verity_size"`
	Images           []imageView  `json:"images"`
	Compression      string       `json:"compression"`
	Size             int64        `json:"size"`
	PayloadSize      int64        `json:"payload_size"`
	SignatureSize    int64        `json:"signature_size"`
	SignatureChecked bool         `json:"signature_checked"`
	Keyring          string       `json:"keyring"` // file by which devices renew their trust, "" if there is none
	KeyringSize      int64        `json:"keyring_size"`
	CRLs             []crlView    `json:"crls"` // in the signature
	Signers          []signerView `json:"signers"`
}

type imageView struct {
	Class    string `json:"class"`
	Variant  string `json:"variant"`
	Filename string `json:"filename"`
	Type     string `json:"type"`
	Size     int64  `json:"size"`
	SHA256   string `json:"sha256"`
	RootHash string `json:"root_hash"` // "" if it isn't signed
	Salt     string `json:"salt"`
}

type crlView struct {
	Issuer     string `json:"issuer"`
	Number     string `json:"number"` // hexadecimal
	NextUpdate string `json:"next_update"`
	Entries    int    `json:"entries"`
}

func viewCRL(der []byte) (crlView, error) {
	c, err := x509.ParseRevocationList(der)
	if err != nil {
		return crlView{}, err
	}
	v := crlView{Issuer: c.Issuer.String(), NextUpdate: stamp(c.NextUpdate), Entries: len(c.RevokedCertificateEntries)}
	if c.Number != nil {
		v.Number = "0x" + strings.ToUpper(c.Number.Text(16))
	}
	return v, nil
}

func (v crlView) String() string {
	return fmt.Sprintf("of %s, number %s, %d revoked, next due %s", v.Issuer, v.Number, v.Entries, v.NextUpdate)
}

type signerView struct {
	Subject     string `json:"subject"`
	Issuer      string `json:"issuer"`
	SPKI        string `json:"spki_sha256"`
	NotBefore   string `json:"not_before"`
	NotAfter    string `json:"not_after"`
	Algorithm   string `json:"algorithm"`
	SigningTime string `json:"signing_time"` // what the signer claims
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func showBundle(cmd *cobra.Command, name string, t trust, asJSON bool) error {
	f, err := openBundle(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := bundle.Peek(f, f.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	v := bundleView{
		Kind: "bundle", Compression: info.Compression, Size: info.Size, PayloadSize: info.PayloadSize, SignatureSize: info.CMSSize,
		Format: bundle.FormatCrypt, Images: []imageView{}, CRLs: []crlView{}, Signers: []signerView{},
	}
	m := info.Manifest
	if t.keyring != "" {
		rules, err := t.rules()
		if err != nil {
			return err
		}
		// What is shown is what was verified, not what was read before.
		b, err := bundle.Open(cmd.Context(), f, f.Size(), bundle.Options{Rules: rules, Formats: anyFormat(), AnySerial: true})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		m, v.SignatureChecked = b.Manifest, true
	}
	if m != nil {
		hash := m.Hash()
		v.Compatible, v.Version, v.Description, v.Build, v.Format = m.Compatible, m.Version, m.Description, m.Build, m.Format
		v.ManifestHash, v.Epoch, v.Created, v.ValidUntil = hex.EncodeToString(hash[:]), m.Epoch, stamp(m.Created), stamp(m.ValidUntil)
		v.VerityHash, v.VeritySalt, v.VeritySize = hex.EncodeToString(m.VerityHash), hex.EncodeToString(m.VeritySalt), m.VeritySize
		v.Keyring, v.KeyringSize = m.Keyring, m.KeyringSize
		for _, i := range m.Images {
			v.Images = append(v.Images, imageView{
				Class: i.Class, Variant: i.Variant, Filename: i.Filename, Type: i.Type, Size: i.Size,
				SHA256: hex.EncodeToString(i.SHA256[:]), RootHash: hex.EncodeToString(i.RootHash), Salt: hex.EncodeToString(i.Salt),
			})
		}
	}
	if info.CMS != nil {
		for _, der := range info.CMS.CRLs() {
			c, err := viewCRL(der)
			if err != nil {
				return fmt.Errorf("%s: CRL in the signature: %w", name, err)
			}
			v.CRLs = append(v.CRLs, c)
		}
		for _, s := range info.CMS.Signers() {
			sv := signerView{Algorithm: s.Algorithm, SigningTime: stamp(s.SigningTime)}
			if c := s.Certificate; c != nil {
				spki := verify.SPKI(c)
				sv.Subject, sv.Issuer, sv.SPKI = c.Subject.String(), c.Issuer.String(), hex.EncodeToString(spki[:])
				sv.NotBefore, sv.NotAfter = stamp(c.NotBefore), stamp(c.NotAfter)
			}
			v.Signers = append(v.Signers, sv)
		}
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), v)
	}
	v.print(cmd.OutOrStdout(), info.Encrypted)
	return nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (v *bundleView) print(w io.Writer, encrypted bool) {
	line := func(name, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			fmt.Fprintf(w, "%-14s %s\n", name+":", text)
		}
	}
	if encrypted {
		line("format", "crypt, encrypted: only its recipients can read the rest")
		line("size", "%d bytes, of these payload %d and signature %d", v.Size, v.PayloadSize, v.SignatureSize)
		return
	}
	line("compatible", "%s", printable(v.Compatible))
	line("version", "%s", printable(v.Version))
	line("description", "%s", printable(v.Description))
	line("build", "%s", printable(v.Build))
	line("format", "%s", v.Format)
	line("manifest hash", "%s", v.ManifestHash)
	line("epoch", "%d", v.Epoch)
	line("created", "%s", v.Created)
	line("valid until", "%s", v.ValidUntil)
	compression := v.Compression
	if compression == "xz" {
		compression += " (slow to unpack; zstd is many times faster)"
	}
	line("compression", "%s", compression)
	line("size", "%d bytes, of these payload %d and signature %d", v.Size, v.PayloadSize, v.SignatureSize)
	for _, i := range v.Images {
		class := i.Class
		if i.Variant != "" {
			class += "." + i.Variant
		}
		line("image "+printable(class), "%s, %s, %d bytes, sha256 %s", printable(i.Filename), printable(i.Type), i.Size, i.SHA256)
		if i.RootHash == "" {
			line("  root hash", "not signed: authentic at install only")
		} else {
			line("  root hash", "%s", i.RootHash)
		}
	}
	if v.Keyring != "" {
		line("keyring", "%s, %d bytes, for devices to renew their trust", printable(v.Keyring), v.KeyringSize)
	}
	for _, c := range v.CRLs {
		line("crl", "%s", printable(c.String()))
	}
	for _, s := range v.Signers {
		line("signer", "%s", printable(s.Subject))
		line("  issuer", "%s", printable(s.Issuer))
		line("  key", "%s, sha256 %s", s.Algorithm, s.SPKI)
		line("  valid", "%s to %s", s.NotBefore, s.NotAfter)
		if s.SigningTime != "" {
			line("  signed", "%s, says the signer", s.SigningTime)
		}
	}
	if v.SignatureChecked {
		line("signature", "checked")
	} else {
		line("signature", "NOT CHECKED (no --keyring)")
	}
}

// printable keeps what stands in an unverified bundle from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}

func newBundleExtract() *cobra.Command {
	var t trust
	cmd := &cobra.Command{
		Use:   "extract --keyring F BUNDLE DIR",
		Short: "verify a bundle and unpack it into a new folder",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			rules, err := t.rules()
			if err != nil {
				return err
			}
			f, err := openBundle(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			b, err := bundle.Open(cmd.Context(), f, f.Size(), bundle.Options{Rules: rules, Formats: anyFormat(), AnySerial: true})
			if err == nil {
				err = b.Extract(cmd.Context(), args[1])
			}
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			cmd.Printf("unpacked to %s\n", args[1])
			return nil
		},
	}
	t.flags(cmd)
	require(cmd, "keyring")
	return cmd
}
