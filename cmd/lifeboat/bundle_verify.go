package main

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/boot"
	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/verify"
)

// judge is what `bundle verify` was told.
type judge struct {
	trust
	crls       []string
	pending    string
	state      string
	clock      string
	compatible string
	serial     string
	formats    string
	requireCRL bool
	asJSON     bool
}

func newBundleVerify() *cobra.Command {
	var j judge
	cmd := &cobra.Command{
		Use:   "verify --keyring F [flags] BUNDLE",
		Short: "check everything about a bundle that can be checked without the device",
		Long: `Prints a line for each check with the fact it used, and what was not checked. The exit status says why a
bundle was refused: 20 malformed, 21 signature, 22 not trusted, 23 expired, 24 revoked, 25 too few signers, 26 purpose of the
certificate, 27 not for this device, 28 below the floor of epoch or version, 29 no longer valid, 30 content differs from what
was signed, 31 not allowed (format, algorithm, size, too high an epoch), 32 no keyring, 40 it could not be read.

The folder of --state may have what a device knows: "trust", the keyrings and CRLs that it has found, and "floors.json",
{"version": "1.2", "epoch": 3, "time": 1767225600} as in "bootcount status --json".`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return j.run(cmd, args[0]) },
	}
	j.flags(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&j.crls, "crl", nil, "revocation list, PEM or DER, that counts beside the keyring; one that is not right is left out (may be repeated)")
	f.StringVar(&j.pending, "pending", "", "keyring on trial: what it accepts is accepted as well")
	f.StringVar(&j.state, "state", "", "folder with a device's trust and floors.json")
	f.StringVar(&j.clock, "clock", "trusted", "how the time is known: trusted, or floor: it is that late at least")
	f.StringVar(&j.compatible, "compatible", "", "what the device is; a bundle for another one is refused")
	f.StringVar(&j.serial, "serial", "", "serial number of the device; a bundle for others is refused")
	f.StringVar(&j.formats, "formats", "verity", `bundle formats that are taken, like "plain,verity" or "+plain"`)
	f.BoolVar(&j.requireCRL, "require-crl", false, "every issuer of a chain must have a revocation list, and by a trusted clock it must not be stale")
	f.BoolVar(&j.asJSON, "json", false, "print JSON")
	require(cmd, "keyring")
	return cmd
}

// finding is one check and how it ended: "ok", "refused", "ignored" (it did no harm) or "not checked".
type finding struct {
	Result string `json:"result"`
	Check  string `json:"check"`
	Fact   string `json:"fact"`
}

// report is `bundle verify --json`.
type report struct {
	Bundle   string    `json:"bundle"`
	Code     int       `json:"code"` // 0: accepted
	Error    string    `json:"error"`
	Hint     string    `json:"hint"`
	Findings []finding `json:"findings"`
	Warnings []string  `json:"warnings"`
}

func (r *report) add(result, check, format string, args ...any) {
	r.Findings = append(r.Findings, finding{result, check, printable(fmt.Sprintf(format, args...))})
}

func (r *report) ok(check, format string, args ...any) { r.add("ok", check, format, args...) }

func (r *report) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, printable(fmt.Sprintf(format, args...)))
}

func (r *report) print(w io.Writer) {
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s: %s: %s\n", f.Result, f.Check, f.Fact)
	}
	for _, s := range r.Warnings {
		fmt.Fprintln(w, "warning: "+s)
	}
}

// device is what --state says.
type device struct {
	trust  []byte
	floors *boot.Floors
}

func (j *judge) run(cmd *cobra.Command, name string) error {
	list, err := config.ParseFormats(strings.ReplaceAll(j.formats, ",", " "))
	if err != nil {
		return usagef("--formats: %w", err)
	}
	r := &report{Bundle: name, Findings: []finding{}, Warnings: []string{}}
	known, err := j.readState()
	if err != nil {
		return err
	}
	rules, err := j.judgeBy(known, r)
	if err != nil {
		return err
	}
	f, err := openBundle(name)
	if err != nil {
		return err
	}
	defer f.Close()
	o := bundle.Options{Rules: rules, Formats: list, AnySerial: true}
	if err = j.check(cmd.Context(), f, o, known, r); err != nil {
		err = fmt.Errorf("%s: %w", name, err)
		r.Code, r.Error, r.Hint = int(verify.CodeOf(err)), printable(err.Error()), printable(verify.HintOf(err))
	}
	if !j.asJSON {
		r.print(cmd.OutOrStdout())
		return err
	}
	return errors.Join(err, printJSON(cmd.OutOrStdout(), r))
}

func (j *judge) readState() (d device, err error) {
	if j.state == "" {
		return d, nil
	}
	if _, err := os.Stat(j.state); err != nil {
		return d, fmt.Errorf("--state: %w", err)
	}
	if d.trust, err = os.ReadFile(filepath.Join(j.state, "trust")); err != nil && !missing(err) {
		return d, err
	}
	raw, err := os.ReadFile(filepath.Join(j.state, "floors.json"))
	if missing(err) {
		return d, nil
	}
	if err != nil {
		return d, err
	}
	var floors struct {
		Version string
		Epoch   uint32
		Time    int64
	}
	if err := json.Unmarshal(raw, &floors); err != nil {
		return d, fmt.Errorf("%s: %w", filepath.Join(j.state, "floors.json"), err)
	}
	d.floors = &boot.Floors{Version: floors.Version, Epoch: floors.Epoch, Time: floors.Time}
	return d, nil
}

// judgeBy makes the rules.
func (j *judge) judgeBy(known device, r *report) (verify.Rules, error) {
	rules, err := j.rules()
	if err != nil {
		return rules, err
	}
	rules.RequireCRL, rules.StaleCRL = j.requireCRL, j.requireCRL
	switch j.clock {
	case "trusted":
	case "floor":
		rules.Trusted = false
		var floor time.Time
		if known.floors != nil {
			floor = time.Unix(known.floors.Time, 0).UTC()
		}
		switch {
		case j.at == "" && known.floors == nil:
			return rules, usagef("--clock floor needs --at, or --state with floors.json")
		case j.at == "" || floor.After(rules.Now):
			rules.Now = floor
		}
	default:
		return rules, usagef("--clock %q is neither floor nor trusted", j.clock)
	}
	// What a device kept it judged when it came: no floor.
	next, _, notes := rules.Keyring.Renew(known.trust, time.Time{})
	for _, n := range notes {
		r.warn("ignored: %s in --state: %v", "trust", n)
	}
	var ders [][]byte
	for _, name := range j.crls {
		b, err := os.ReadFile(name)
		if err != nil {
			return rules, verify.Refuse(verify.IO, "--crl: %w", err)
		}
		if block, _ := pem.Decode(b); block == nil {
			ders = append(ders, b)
		}
		for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "X509 CRL" {
				ders = append(ders, block.Bytes)
			}
		}
	}
	rules.Keyring = next.WithCRLs(ders...)
	for _, n := range rules.Keyring.Notes {
		r.warn("ignored: %v", n)
	}
	if j.pending != "" {
		if rules.Pending, err = readKeyring(j.pending); err != nil {
			return rules, err
		}
		rules.Pending = rules.Pending.WithCRLs(ders...)
	}
	return rules, nil
}

// check goes through all checks, cheap ones first, and stops at the first that refuses.
func (j *judge) check(ctx context.Context, f *disk.File, o bundle.Options, known device, r *report) error {
	refuse := func(check string, err error) error {
		r.add("refused", check, "%v", err)
		return err
	}
	payload, der, err := bundle.Split(f, f.Size())
	if err != nil {
		return refuse("container", err)
	}
	r.ok("container", "%d bytes: payload of %d, signature of %d", f.Size(), payload, len(der))
	cms, formErr := verify.ReadCMS(der)
	// What is found out here explains; what is decided bundle.Open decides.
	b, err := bundle.Open(ctx, f, f.Size(), o)
	if formErr != nil {
		return refuse("cms", cmp.Or(err, formErr))
	}
	form := "attached"
	if cms.Detached() {
		form = "detached"
	}
	r.ok("cms", "%s, %d signers, %d certificates, %d CRLs", form, len(cms.Signers()), len(cms.Certificates()), len(cms.CRLs()))
	if err := explainSigners(cms, o.Rules, err, r); err != nil {
		return err
	}
	m := b.Manifest
	r.ok("manifest", "for %s, version %s, format %s", m.Compatible, m.Version, m.Format)
	o.Compatible = j.compatible
	if j.serial != "" {
		o.Serial, o.AnySerial = j.serial, false
	}
	if err := m.Check(o); err != nil {
		if j.compatible != "" && m.Compatible != j.compatible {
			return refuse("compatible", err)
		}
		return refuse("serial", err)
	}
	if j.compatible != "" {
		r.ok("compatible", "%s", j.compatible)
	}
	if j.serial != "" {
		r.ok("serial", "%s", j.serial)
	}
	if known.floors != nil {
		offer := boot.Offer{Version: m.Version, Epoch: m.Epoch, Lifted: cms.RenewsKeyring(o.Rules)}
		if v := boot.Judge(boot.State{Floors: *known.floors}, offer, true, boot.Policy{}); !v.Take {
			return refuse("epoch", verify.Refuse(verify.Code(v.Code), "%s", v.Why))
		}
		r.ok("epoch", "%d, version %s; the floors are %d and %q", m.Epoch, m.Version, known.floors.Epoch, known.floors.Version)
	}
	if m.ValidUntil.IsZero() {
		r.ok("freshness", "the bundle has no end")
	} else {
		r.ok("freshness", "valid until %s", stamp(m.ValidUntil))
	}
	if err := b.Check(ctx); err != nil {
		return refuse("payload", err)
	}
	if b.Plain() {
		r.ok("payload", "signed as a whole")
	} else {
		r.ok("payload", "every block and the hash tree")
	}
	for i := range m.Images {
		img := &m.Images[i]
		r.ok("image "+img.Key(), "%s, %d bytes, sha256 %x", img.Filename, img.Size, img.SHA256)
	}
	const no = "not checked"
	if j.compatible == "" {
		r.add(no, "compatible", "no --compatible")
	}
	if m.Serials != nil && j.serial == "" {
		r.add(no, "serial", "the bundle is for %d devices, no --serial", len(m.Serials))
	}
	if known.floors == nil {
		r.add(no, "floors of version, epoch and time", "the device has them (--state)")
	}
	r.add(no, "root hashes of the images", "checked when they are written to a slot")
	return nil
}

// explainSigners says how each signer counts and why, and which check made bundle.Open return err, if any.
func explainSigners(cms *verify.CMS, rules verify.Rules, err error, r *report) error {
	signers := cms.Examine(rules)
	need := rules.Keyring.Threshold(rules.Role)
	counted := map[[32]byte]bool{}
	for _, s := range signers {
		if s.Err == nil {
			counted[verify.SPKI(s.Certificate)] = true
		}
	}
	enough := len(counted) >= need || rules.Pending != nil && len(counted) >= rules.Pending.Threshold(rules.Role)
	for _, s := range signers {
		who := "a certificate that is not in the bundle"
		if s.Certificate != nil {
			who = s.Certificate.Subject.String()
		}
		if s.Err != nil {
			result := "ignored"
			if !enough {
				result = "refused"
			}
			explain(s.Err, result, who, r)
			continue
		}
		spki := verify.SPKI(s.Certificate)
		r.ok("signature", "by %s, %s, key %x", who, s.Algorithm, spki[:8])
		names := make([]string, len(s.Chain))
		for i, c := range s.Chain {
			names[i] = c.Subject.String()
		}
		r.ok("chain", "%s (in the keyring)", strings.Join(names, " <- "))
		r.ok("purpose", "%s", rules.Purpose)
		if rules.Trusted {
			r.ok("time", "certificates are valid at %s", stamp(rules.Now))
		} else {
			r.ok("time", "no certificate ended before %s", stamp(rules.Now))
		}
		r.ok("revocation", "%s", revocation(rules.Keyring))
		for _, w := range s.Warnings {
			r.warn("%s", w)
		}
	}
	code := verify.CodeOf(err)
	if err == nil || code == verify.Threshold {
		result := "ok"
		if err != nil {
			result = "refused"
		}
		r.add(result, "threshold", "%d of %d needed, for role %s", len(counted), need, rules.Role)
		return err
	}
	if !enough {
		return err // it was said why
	}
	check := map[verify.Code]string{
		verify.BadSignature: "content", verify.Malformed: "manifest", verify.Policy: "manifest", verify.Stale: "freshness",
	}[code]
	r.add("refused", cmp.Or(check, "payload"), "%v", err)
	return err
}

// explain says why a signer does not count. The checks come in this order, and before the one that refused all were right.
func explain(err error, result, who string, r *report) {
	order := []struct {
		check string
		code  verify.Code
		fact  string
	}{
		{"signature", verify.BadSignature, "matches the certificate of " + who},
		{"chain", verify.Untrusted, "leads to the keyring"},
		{"purpose", verify.WrongPurpose, "the certificates may sign bundles"},
		{"revocation", verify.Revoked, "no key or certificate is revoked"},
		{"time", verify.Expired, ""},
	}
	for i, o := range order {
		if o.code != verify.CodeOf(err) {
			continue
		}
		for _, before := range order[:i] {
			if result == "refused" {
				r.ok(before.check, "%s", before.fact)
			}
		}
		r.add(result, o.check, "%v", err)
		return
	}
	r.add(result, "signature", "by %s: %v", who, err) // an algorithm, a key, a form that is not taken
}

func revocation(k *verify.Keyring) string {
	text := fmt.Sprintf("none is among %d revoked keys", len(k.Revoked))
	for _, c := range k.CRLs() {
		text += fmt.Sprintf(", or in the CRL of %s, number %s", c.Issuer, c.Number)
	}
	if len(k.CRLs()) == 0 {
		text += "; there are no CRLs"
	}
	return text
}
