package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/verify"
	"lifeboat/verify/keys"
)

// keyringView is one value of a trust file in `keys keyring show --json`.
type keyringView struct {
	Kind       string         `json:"kind"` // "keyring" or "crl"
	Version    uint32         `json:"version,omitempty"`
	Created    string         `json:"created,omitempty"`
	Anchors    []anchorView   `json:"anchors,omitempty"`
	Thresholds map[string]int `json:"thresholds,omitempty"`
	Revoked    []string       `json:"revoked_spki_sha256,omitempty"`
	Algorithms []string       `json:"algorithms,omitempty"`
	SignedBy   []string       `json:"signed_by,omitempty"` // what it says, unchecked

	CRL *crlView `json:"crl,omitempty"`
}

type anchorView struct {
	Subject  string   `json:"subject"`
	Roles    []string `json:"roles"`
	SPKI     string   `json:"spki_sha256"`
	NotAfter string   `json:"not_after"`
}

func newKeyringShow() *cobra.Command {
	var asText, asJSON bool
	cmd := &cobra.Command{
		Use:   "show [--text] [--json] FILE",
		Short: "show a keyring in any form, or what is in a trust file",
		Long:  `Signatures are not checked (keys keyring renew-check does that). --text prints the text of the newest keyring.`,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			fail := func(err error) error { return fmt.Errorf("%s: %w", args[0], err) }
			keyrings, crls := [][]byte{data}, [][]byte(nil)
			if !isText(data) {
				if keyrings, crls, err = keys.SplitTrust(data); err != nil {
					return fail(err)
				}
			}
			list := []keyringView{}
			var text []byte
			for _, b := range keyrings {
				k, err := verify.ParseKeyring(b)
				if err != nil {
					return fail(err)
				}
				v := viewKeyring(k)
				text = b
				if !isText(b) {
					c, err := verify.ReadCMS(b)
					if err != nil {
						return fail(err)
					}
					for _, s := range c.Signers() {
						who := "somebody whose certificate is missing"
						if s.Certificate != nil {
							who = s.Certificate.Subject.String()
						}
						v.SignedBy = append(v.SignedBy, who)
					}
					text = c.Unverified()
				}
				list = append(list, v)
				for _, c := range k.CRLs() {
					list = append(list, keyringView{Kind: "crl", CRL: &crlView{c.Issuer, c.Number, stamp(c.NextUpdate), c.Entries}})
				}
			}
			for _, der := range crls {
				c, err := viewCRL(der)
				if err != nil {
					return fail(err)
				}
				list = append(list, keyringView{Kind: "crl", CRL: &c})
			}
			switch {
			case asText && text == nil:
				return fmt.Errorf("%s has no keyring in it", args[0])
			case asText:
				_, err := cmd.OutOrStdout().Write(text)
				return err
			case asJSON:
				return printJSON(cmd.OutOrStdout(), list)
			}
			for _, v := range list {
				v.print(cmd)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asText, "text", false, "print what was signed, to be edited for the next version")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// isText says that it is no DER of some length: PEM, or the text of a keyring.
func isText(b []byte) bool { return len(b) < 2 || b[0] != 0x30 || b[1] < 0x80 }

func viewKeyring(k *verify.Keyring) keyringView {
	v := keyringView{Kind: "keyring", Version: k.Version, Created: stamp(k.Created), Thresholds: k.Thresholds, Algorithms: k.Algorithms()}
	for i, c := range k.Anchors {
		roles := []string{verify.RoleRelease}
		if k.Roles != nil {
			roles = k.Roles[i]
		}
		spki := verify.SPKI(c)
		v.Anchors = append(v.Anchors, anchorView{Subject: c.Subject.String(), Roles: roles, SPKI: hex.EncodeToString(spki[:]), NotAfter: stamp(c.NotAfter)})
	}
	for _, sum := range k.Revoked {
		v.Revoked = append(v.Revoked, hex.EncodeToString(sum[:]))
	}
	return v
}

func (v keyringView) print(cmd *cobra.Command) {
	line := func(name, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			cmd.Printf("%-10s %s\n", name, printable(text))
		}
	}
	if v.CRL != nil {
		line("crl", "%s", v.CRL)
		return
	}
	if v.Version == 0 {
		line("keyring", "of PEM: it cannot be renewed")
	} else {
		line("keyring", "version %d", v.Version)
	}
	line("created", "%s", v.Created)
	for _, a := range v.Anchors {
		line("anchor", "%s, %s, sha256 %s", a.Subject, strings.Join(a.Roles, " and "), a.SPKI)
	}
	for _, role := range []string{verify.RoleRelease, verify.RoleDev, verify.RoleKeyring} {
		if n := v.Thresholds[role]; n > 0 {
			line("threshold", "%s: %d signers", role, n)
		}
	}
	for _, sum := range v.Revoked {
		line("revoked", "key with sha256 %s", sum)
	}
	line("algorithms", "%s", strings.Join(v.Algorithms, " "))
	for _, s := range v.SignedBy {
		line("signed by", "%s (NOT CHECKED)", s)
	}
}

func newKeyringCheck() *cobra.Command {
	var builtin, at string
	cmd := &cobra.Command{
		Use:   "renew-check --keyring F [--at TIME] FILE...",
		Short: "say what a device with a keyring makes of trust files",
		Long: `Does what a device does that has the keyring built in and finds the trust files, in their order. The exit status is
the code of the first thing that it would not take.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			now, err := (&trust{at: at}).now()
			if err != nil {
				return err
			}
			k, err := readKeyring(builtin)
			if err != nil {
				return err
			}
			data, err := joinTrust(args)
			if err != nil {
				return err
			}
			next, _, notes := k.Renew(data, now.UTC().Truncate(time.Second))
			if next.Version == k.Version {
				cmd.Printf("the keyring stays at version %d\n", k.Version)
			} else {
				cmd.Printf("the keyring becomes version %d, from %d\n", next.Version, k.Version)
			}
			for _, c := range next.CRLs() {
				cmd.Printf("crl: %s\n", printable(crlView{c.Issuer, c.Number, stamp(c.NextUpdate), c.Entries}.String()))
			}
			for _, n := range notes {
				cmd.Printf("not taken (%d): %s\n", n.Code, printable(n.Text))
			}
			if len(notes) > 0 {
				return fmt.Errorf("%d of what was found is not taken: %w", len(notes), notes[0])
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&builtin, "keyring", "", "the keyring that the device has")
	f.StringVar(&at, "at", "", "the earliest that the device takes the time for (RFC 3339) instead of now")
	require(cmd, "keyring")
	return cmd
}
