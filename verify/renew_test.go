package verify

import (
	"bytes"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func certLine(p *pair) string {
	return "cert=" + base64.StdEncoding.EncodeToString(p.cert.Raw) + "\n"
}

// anchorText is a group [anchor.NAME].
func anchorText(name string, p *pair, roles string) string {
	return fmt.Sprintf("[anchor.%s]\nroles=%s\n%s", name, roles, certLine(p))
}

func head(version int) string { return fmt.Sprintf("[keyring]\nversion=%d\n", version) }

func revokedText(pairs ...*pair) string {
	s := "[revoked]\nspki-sha256="
	for _, p := range pairs {
		sum := SPKI(p.cert)
		s += hex.EncodeToString(sum[:]) + ";"
	}
	return s + "\n"
}

// signText makes a signed keyring.
func signText(t testing.TB, text string, signers ...*pair) []byte {
	t.Helper()
	var der []byte
	for _, s := range signers {
		var err error
		if der == nil {
			der, err = Sign([]byte(text), false, s.key, s.cert, nil, now)
		} else {
			der, err = AddSigner(der, nil, s.key, s.cert, nil, now)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return der
}

func parseText(t testing.TB, text string) *Keyring {
	t.Helper()
	k, err := ParseKeyring([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyringText(t *testing.T) {
	root, other, dev := issue(t, "root", nil, nil, ca), issue(t, "other", nil, nil, ca), issue(t, "dev", nil, nil, ca)
	middle := issue(t, "middle", root, nil, ca)
	weak := issue(t, "weak", nil, curve(t, elliptic.P224()), ca)
	r := anchorText("r", root, "release")
	good := head(5) + r
	var many strings.Builder
	for i := range maxAnchors + 1 {
		many.WriteString(anchorText(fmt.Sprint("a", i), issue(t, "many", nil, root.key, ca), "release"))
	}
	hash := strings.Repeat("ab", 32)
	for _, c := range []struct {
		name string
		text string
		want Code // of the reason; ParseKeyring's own is always 32
	}{
		{"good", good, 0},
		{"comments and blanks", "# by hand\n\n \t# more\n[keyring]\n version = 5 \n" + r, 0},
		{"everything", head(1) + "created=2026-01-31T12:00:00Z\n" + r + anchorText("dev-1", dev, "dev;keyring;") +
			"[intermediate.m]\n" + certLine(middle) + "[role.release]\nthreshold=1\n[role.keyring]\nthreshold=1\n" +
			"[revoked]\nspki-sha256=" + hash + "\n[algorithms]\nallow=ecdsa;rsa;rsa-pss;ed25519\n", 0},
		{"nothing revoked", good + "[revoked]\nspki-sha256=\n", 0},
		{"partial", good + anchorText("m", middle, "release") + "partial=true\n", 0},
		{"anchor is not self-issued", good + anchorText("m", middle, "release"), Malformed},
		{"partial=no", good + anchorText("m", middle, "release") + "partial=no\n", Malformed},
		{"no version", "[keyring]\n" + r, Malformed},
		{"no head", r, Malformed},
		{"version 0", head(0) + r, Malformed},
		{"version 2^32", "[keyring]\nversion=4294967296\n" + r, Malformed},
		{"version 2^32-1", "[keyring]\nversion=4294967295\n" + r, 0},
		{"version with a zero", "[keyring]\nversion=05\n" + r, Malformed},
		{"version with a sign", "[keyring]\nversion=+5\n" + r, Malformed},
		{"no such time", "[keyring]\nversion=5\ncreated=today\n" + r, Malformed},
		{"unknown group", good + "[offers]\n", Malformed},
		{"unknown key", good + "not-after-epoch=5\n", Malformed},
		{"unknown key in the head", "[keyring]\nversion=5\nexpires=1\n" + r, Malformed},
		{"unknown role", head(5) + r + anchorText("x", other, "root"), Malformed},
		{"reserved role", head(5) + r + anchorText("x", other, "tsa"), 0},
		{"role in the singular", strings.Replace(good, "roles=", "role=", 1), 0},
		{"role for offers", head(5) + r + anchorText("x", other, "offer"), 0},
		{"role twice", head(5) + anchorText("r", root, "release;release"), Malformed},
		{"no roles", head(5) + r + anchorText("x", other, ""), Malformed},
		{"threshold of an unknown role", good + "[role.tsa]\nthreshold=1\n", Malformed},
		{"threshold 0", good + "[role.release]\nthreshold=0\n", Malformed},
		{"threshold 9", good + "[role.release]\nthreshold=9\n", Malformed},
		{"no threshold", good + "[role.release]\n", Malformed},
		{"upper case name", head(5) + strings.Replace(r, "anchor.r", "anchor.R", 1), Malformed},
		{"name of 33", head(5) + strings.Replace(r, "anchor.r", "anchor."+strings.Repeat("a", 33), 1), Malformed},
		{"no name", head(5) + strings.Replace(r, "anchor.r", "anchor.", 1), Malformed},
		{"group twice", good + r, Malformed},
		{"certificate twice", good + anchorText("again", root, "dev"), Malformed},
		{"key twice", "[keyring]\nversion=5\nversion=5\n" + r, Malformed},
		{"key before a group", "version=5\n" + good, KeyMissing}, // and so no text
		{"no certificate", good + "[anchor.x]\nroles=release\n", Malformed},
		{"certificate is garbage", good + "[anchor.x]\nroles=release\ncert=AAAA\n", Malformed},
		{"base64 with a space", head(5) + strings.Replace(r, "cert=MII", "cert=MI I", 1), Malformed},
		{"hash is short", good + "[revoked]\nspki-sha256=abcd\n", Malformed},
		{"hash is no hex", good + "[revoked]\nspki-sha256=" + strings.Repeat("xy", 32) + "\n", Malformed},
		{"unknown algorithm", good + "[algorithms]\nallow=ecdsa;dsa\n", Malformed},
		{"no algorithm", good + "[algorithms]\nallow=\n", Malformed},
		{"byte order mark", "# \ufeff\n" + good, Malformed},
		{"carriage return", strings.Replace(good, "\n", "\r\n", 1), Malformed},
		{"NUL", good + "\x00", Malformed},
		{"not UTF-8", good + "# \xff", Malformed},
		{"backslash", good + "# \\", Malformed},
		{"group is not closed", good + "[revoked\n", Malformed},
		{"no value", good + "[revoked]\nspki-sha256\n", Malformed},
		{"more than 64 KiB", good + strings.Repeat("# \n", 30_000), Policy},
		{"33 anchors", head(5) + many.String(), Policy},
		{"only dev", head(5) + anchorText("d", dev, "dev"), Policy},
		{"2 below 1", good + "[role.release]\nthreshold=2\n", 0},
		{"2 below 1 that is revoked", good + "[role.release]\nthreshold=2\n" + revokedText(root), Policy},
		{"2 of 2", good + anchorText("o", other, "release") + "[role.release]\nthreshold=2\n", 0},
		{"3 of 2", good + anchorText("o", other, "release") + "[role.release]\nthreshold=3\n", Policy},
		{"2 of one key in two certificates", good + anchorText("o", issue(t, "o", nil, root.key, ca), "release") + "[role.release]\nthreshold=2\n", Policy},
		{"2 below 1, another for dev", good + anchorText("o", other, "dev") + "[role.release]\nthreshold=2\n", 0},
		{"2 of 2, one of them revoked", good + anchorText("o", other, "release") + "[role.release]\nthreshold=2\n" + revokedText(other), Policy},
		{"the only one is revoked", good + revokedText(root), Policy},
		{"the only one is of a kind that is not allowed", good + "[algorithms]\nallow=rsa;ed25519\n", Policy},
		{"the only one is on a weak curve", head(5) + anchorText("w", weak, "release"), Policy},
		{"keyring 2 below 1", good + anchorText("o", other, "keyring") + "[role.keyring]\nthreshold=2\n", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			signer := issue(t, "signer", root, nil, nil)
			for form, data := range map[string][]byte{"text": []byte(c.text), "signed": nil} {
				if form == "signed" {
					if c.want == KeyMissing || len(c.text) > 60_000 {
						continue
					}
					data = signText(t, c.text, signer)
				}
				k, err := ParseKeyring(data)
				if (err == nil) != (c.want == 0) || (k == nil) != (err != nil) {
					t.Fatalf("%s: %v", form, err)
				}
				if err == nil {
					continue
				}
				if CodeOf(err) != KeyMissing {
					t.Errorf("%s: code %d", form, CodeOf(err))
				}
				if _, err := parseKeyring(data); CodeOf(err) != c.want {
					t.Errorf("%s: code %d (%v), want %d", form, CodeOf(err), err, c.want)
				}
			}
		})
	}
	k := parseText(t, head(7)+"created=2026-01-31T13:00:00+01:00\n"+r+anchorText("d", dev, "dev;keyring")+"[role.dev]\nthreshold=1\n"+revokedText(other)+"[algorithms]\nallow=rsa;ecdsa\n")
	if k.Version != 7 || !k.Created.Equal(time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)) || len(k.Anchors) != 2 ||
		!slices.Equal(k.Roles[1], []string{"dev", "keyring"}) || k.Threshold("dev") != 1 || k.Threshold("release") != 1 ||
		!slices.Equal(k.Revoked, [][32]byte{SPKI(other.cert)}) || !slices.Equal(k.Algorithms(), []string{"ecdsa", "rsa"}) {
		t.Errorf("%+v", k)
	}
	if _, err := ParseKeyring(signText(t, good, issue(t, "signer", root, nil, nil))[:500]); CodeOf(err) != KeyMissing {
		t.Error(err)
	}
}

// TestRoles is row B2 and what a keyring says about roles, keys and algorithms.
func TestRoles(t *testing.T) {
	root, dev := issue(t, "root", nil, nil, ca), issue(t, "dev", nil, nil, ca)
	middle := issue(t, "middle", root, nil, ca)
	rsaRoot := issue(t, "rsa root", nil, rsaKey(t, 2048), ca)
	release, developer := issue(t, "release", root, nil, nil), issue(t, "developer", dev, nil, nil)
	byRSA, rsaSigner := issue(t, "by RSA", rsaRoot, nil, nil), issue(t, "RSA signer", root, rsaRoot.key, nil)
	below := issue(t, "below", middle, nil, nil)
	both := head(1) + anchorText("r", root, "release") + anchorText("d", dev, "dev") + anchorText("rsa", rsaRoot, "release")
	partial := head(1) + anchorText("m", middle, "release") + "partial=true\n"
	for _, c := range []struct {
		name   string
		text   string
		signer *pair
		chain  []*pair
		role   string
		want   Code
		atBoot Code
	}{
		{"release", both, release, nil, "", 0, 0},
		{"release by name", both, release, nil, "release", 0, 0},
		{"B2 dev", both, developer, nil, "", Untrusted, Untrusted},
		{"B2 dev anchor is absent", head(1) + anchorText("r", root, "release"), developer, nil, "", Untrusted, Untrusted},
		{"dev where dev is asked for", both, developer, nil, "dev", 0, 0},
		{"release where dev is asked for", both, release, nil, "dev", Untrusted, Untrusted},
		{"a role that nobody has", both, release, nil, "keyring", Untrusted, Untrusted},
		{"partial", partial, below, []*pair{middle, root}, "", 0, 0},
		{"partial, other branch", partial, release, []*pair{root}, "", Untrusted, Untrusted},
		{"intermediate of the keyring", both + "[intermediate.m]\n" + certLine(middle), below, nil, "", 0, 0},
		{"signer revoked", both + revokedText(release), release, nil, "", Revoked, 0},
		{"another revoked", both + revokedText(developer), release, nil, "", 0, 0},
		{"intermediate revoked", both + revokedText(middle), below, []*pair{middle}, "", Revoked, 0},
		{"anchor revoked", both + revokedText(root), release, nil, "", Revoked, 0},
		{"algorithm of the signer", both + "[algorithms]\nallow=ecdsa\n", rsaSigner, nil, "", Policy, 0},
		{"algorithm of a CA", both + "[algorithms]\nallow=ecdsa\n", byRSA, nil, "", Policy, 0},
		{"both are allowed", both + "[algorithms]\nallow=ecdsa;rsa\n", byRSA, nil, "", 0, 0},
		{"RSA is not RSA-PSS", both + "[algorithms]\nallow=ecdsa;rsa-pss\n", rsaSigner, nil, "", Policy, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			der := signedBy(t, c.chain, c.signer)
			r := Rules{Keyring: parseText(t, c.text), Role: c.role, Now: now, Trusted: true}
			check(t, der, r, c.want)
			r.AtBoot = true
			check(t, der, r, c.atBoot)
		})
	}
	// B2: the same content, signed again for release.
	k := parseText(t, head(1)+anchorText("r", root, "release"))
	c, err := ReadCMS(signedBy(t, nil, developer))
	if err != nil {
		t.Fatal(err)
	}
	der, err := Sign(c.Unverified(), false, release.key, release.cert, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	check(t, der, Rules{Keyring: k, Now: now}, 0)
}

// TestThreshold is row B1: 2 of 3.
func TestThreshold(t *testing.T) {
	var anchors, k []*pair
	text := head(1)
	for i := range 3 {
		anchors = append(anchors, issue(t, fmt.Sprint("root ", i), nil, nil, ca))
		k = append(k, issue(t, fmt.Sprint("k", i), anchors[i], nil, nil))
		text += anchorText(fmt.Sprint("a", i), anchors[i], "release")
	}
	devRoot := issue(t, "dev root", nil, nil, ca)
	dev, unknown := issue(t, "dev", devRoot, nil, nil), issue(t, "unknown", issue(t, "unknown root", nil, nil, ca), nil, nil)
	// The same key once more: in the name of another, of the same and of itself.
	second, renewed := issue(t, "second", anchors[1], k[0].key, nil), issue(t, "k0", anchors[0], k[0].key, nil)
	ended := issue(t, "ended", anchors[1], nil, validity(now.AddDate(-2, 0, 0), now.AddDate(-1, 0, 0)))
	text += anchorText("dev", devRoot, "dev")
	two := parseText(t, text+"[role.release]\nthreshold=2\n")
	three := parseText(t, text+"[role.release]\nthreshold=3\n")
	one := parseText(t, text)

	of := func(pairs ...*pair) (list []forgedSigner) {
		for _, p := range pairs {
			list = append(list, forgedSigner{by: p})
		}
		return list
	}
	cms := func(signers []forgedSigner, repeat int) []byte {
		f := forge{signers: signers, repeat: repeat}
		for _, s := range signers {
			f.certs = append(f.certs, s.by.cert.Raw)
		}
		return f.der(t, content)
	}
	var strangers []*pair
	for range 7 {
		strangers = append(strangers, issue(t, "stranger", devRoot, nil, nil))
	}
	broken := forgedSigner{by: k[1], sign: func([]byte) []byte { return tlv(tagSequence, integer(1), integer(1)) }}
	other := forgedSigner{by: k[1], attrs: [][]byte{contentTypeAttr(oidData), digestAttr(5, []byte("other"))}}
	bare := forgedSigner{by: k[1], noAttrs: true}
	revoked := parseText(t, text+"[role.release]\nthreshold=2\n"+revokedText(k[1]))
	listed := two.WithCRLs(forgedCRL{by: anchors[1], revoked: []*pair{k[1]}}.der(t))
	for _, c := range []struct {
		name    string
		keyring *Keyring
		der     []byte
		want    Code
		count   int // signers that count
	}{
		{"{k1}", two, cms(of(k[0]), 0), Threshold, 0},
		{"{k1, k1 copied}", two, cms(of(k[0]), 1), Threshold, 0},
		{"{k1, k1 again}", two, cms(append(of(k[0]), forgedSigner{by: renewed}), 0), Threshold, 0},
		{"{k1, second cert of k1}", two, cms(of(k[0], second), 0), Threshold, 0},
		{"{k1, k2}", two, cms(of(k[0], k[1]), 0), 0, 2},
		{"{k2, k3}", two, cms(of(k[1], k[2]), 0), 0, 2},
		{"{k1, k2, k3}", two, cms(of(k...), 0), 0, 3},
		{"{k1, k2, unknown}", two, cms(of(k[0], k[1], unknown), 0), 0, 2},
		{"{unknown, k1, k2}", two, cms(of(unknown, k[0], k[1]), 0), 0, 2},
		{"{k1, unknown}", two, cms(of(k[0], unknown), 0), Threshold, 0},
		{"{k1, k2 with broken signature}", two, cms(append(of(k[0]), broken), 0), Threshold, 0},
		{"{k1, k2 over other content}", two, cms(append(of(k[0]), other), 0), Threshold, 0},
		{"{k1, k2 over other content, k3}", two, cms(append(of(k[0], k[2]), other), 0), 0, 2},
		{"{k1, k2 without attributes}", two, cms(append(of(k[0]), bare), 0), Threshold, 0},
		{"{k1, k2 revoked in the keyring}", revoked, cms(of(k[0], k[1]), 0), Threshold, 0},
		{"{k1, k2 revoked, k3}", revoked, cms(of(k...), 0), 0, 2},
		{"{k1, k2 revoked by CRL}", listed, cms(of(k[0], k[1]), 0), Threshold, 0},
		{"{k1, k2 ended}", two, cms(of(k[0], ended), 0), Threshold, 0},
		{"{dev, k1}", two, cms(of(dev, k[0]), 0), Threshold, 0},
		{"{dev, k1, k2}", two, cms(of(dev, k[0], k[1]), 0), 0, 2},
		{"3 of 3: two", three, cms(of(k[0], k[1]), 0), Threshold, 0},
		{"3 of 3: all", three, cms(of(k...), 0), 0, 3},
		{"1 of 3: one", one, cms(of(k[2]), 0), 0, 1},
		{"49 1 of 3: unknown first", one, cms(of(unknown, k[0]), 0), 0, 1},
		{"50 1 of 3: copied", one, cms(of(k[0]), 1), Threshold, 0},
		{"1 of 3: unknown alone", one, cms(of(unknown), 0), Untrusted, 0},
		{"1 of 3: ended alone", one, cms(of(ended), 0), Expired, 0},
		{"1 of 3: two unknown", one, cms(of(unknown, dev), 0), Untrusted, 0},
		{"1 of 3: one unknown, one ended", one, cms(of(unknown, ended), 0), Threshold, 0},
		{"eight signers", one, cms(of(append(strangers, k[0])...), 0), 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := check(t, c.der, Rules{Keyring: c.keyring, Now: now, Trusted: true}, c.want)
			if s == nil {
				return
			}
			if len(s.Signers) != c.count || !slices.Equal(s.Signers[0].Chain, s.Chain) || s.UnderPending {
				t.Errorf("%d signers count, want %d", len(s.Signers), c.count)
			}
			cms, err := ReadCMS(c.der)
			if err != nil {
				t.Fatal(err)
			}
			all, uncounted := cms.Examine(Rules{Keyring: c.keyring, Now: now, Trusted: true}), 0
			for _, e := range all {
				if (e.Err == nil) != (e.Chain != nil) {
					t.Errorf("%+v", e)
				}
				if e.Err != nil {
					uncounted++
				}
			}
			// One over other content is only seen when the content is read.
			if len(s.Warnings) < uncounted || len(all)-len(s.Signers) != len(s.Warnings) {
				t.Errorf("%d of %d count, warnings %q", len(s.Signers), len(all), s.Warnings)
			}
		})
	}
	// Detached: content is read once for each digest, and not at all where the
	// threshold is out of reach.
	der, err := Sign(content, true, k[0].key, k[0].cert, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	p384 := issue(t, "p384", anchors[1], curve(t, elliptic.P384()), nil)
	if der, err = AddSigner(der, content, p384.key, p384.cert, nil, now); err != nil {
		t.Fatal(err)
	}
	c, err := ReadCMS(der)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		k     *Keyring
		reads int
		code  Code
	}{{two, 2, 0}, {three, 0, Threshold}, {one, 2, 0}} {
		reads := 0
		_, err := c.Verify(Rules{Keyring: want.k, Now: now}, counting(&reads))
		if CodeOf(err) != want.code || reads != want.reads {
			t.Errorf("%v after %d reads, want code %d after %d", err, reads, want.code, want.reads)
		}
	}
}

// TestPending: a keyring on trial adds what it accepts, and takes nothing away.
func TestPending(t *testing.T) {
	a, b := issue(t, "a", nil, nil, ca), issue(t, "b", nil, nil, ca)
	byA, byB, byNone := issue(t, "by a", a, nil, nil), issue(t, "by b", b, nil, nil), issue(t, "by none", issue(t, "c", nil, nil, ca), nil, nil)
	now1, next := parseText(t, head(1)+anchorText("a", a, "release")), parseText(t, head(2)+anchorText("b", b, "release"))
	for _, c := range []struct {
		name    string
		signer  *pair
		want    Code
		pending bool
	}{{"by the old", byA, 0, false}, {"by the next", byB, 0, true}, {"by none", byNone, Untrusted, false}} {
		der := signedBy(t, nil, c.signer)
		s := check(t, der, Rules{Keyring: now1, Pending: next, Now: now}, c.want)
		if s != nil && s.UnderPending != c.pending {
			t.Errorf("%s: under pending %v", c.name, s.UnderPending)
		}
	}
	s := check(t, signedBy(t, nil, byA, byB), Rules{Keyring: now1, Pending: next, Now: now}, 0)
	if s == nil || !s.UnderPending || len(s.Signers) != 1 {
		t.Errorf("%+v", s)
	}
	// A CRL that only one of them knows counts under both: who is revoked is not
	// accepted by the other.
	both := head(2) + anchorText("a", a, "release") + anchorText("b", b, "release")
	list := forgedCRL{by: a, revoked: []*pair{byA}}.der(t)
	next, _, notes := parseText(t, both).Renew(list, now)
	if len(notes) > 0 {
		t.Fatal(notes)
	}
	check(t, signedBy(t, nil, byA), Rules{Keyring: now1, Pending: next, Now: now}, Revoked)
	check(t, signedBy(t, nil, byA), Rules{Keyring: now1.WithCRLs(list), Pending: parseText(t, both), Now: now}, Revoked)
	check(t, signedBy(t, nil, byB), Rules{Keyring: now1, Pending: next, Now: now}, 0)
	// What the one on trial takes away is still there.
	check(t, signedBy(t, nil, byA), Rules{Keyring: now1, Pending: parseText(t, both+revokedText(byA)), Now: now}, 0)
	// Half a threshold under each is none.
	c := issue(t, "c", nil, nil, ca)
	two := func(p, q *pair) *Keyring {
		return parseText(t, head(1)+anchorText("p", p, "release")+anchorText("q", q, "release")+"[role.release]\nthreshold=2\n")
	}
	check(t, signedBy(t, nil, byA, byB), Rules{Keyring: two(a, c), Pending: two(b, c), Now: now}, Threshold)
}

// TestRenew is the list of trust.md 2.4.
func TestRenew(t *testing.T) {
	release := issue(t, "release", nil, nil, ca)
	rootA, rootB, rootC := issue(t, "key root a", nil, nil, ca), issue(t, "key root b", nil, nil, ca), issue(t, "key root c", nil, nil, ca)
	a, b, c := issue(t, "a", rootA, nil, nil), issue(t, "b", rootB, nil, nil), issue(t, "c", rootC, nil, nil)
	byRelease, ended := issue(t, "bundles", release, nil, nil), issue(t, "ended", rootA, nil, validity(now.AddDate(-2, 0, 0), now.AddDate(-1, 0, 0)))
	r := anchorText("r", release, "release")
	ofA, ofB, ofC := anchorText("ka", rootA, "keyring"), anchorText("kb", rootB, "keyring"), anchorText("kc", rootC, "keyring")
	twice := "[role.keyring]\nthreshold=2\n"
	base := parseText(t, head(1)+r+ofA+ofB)
	strict := parseText(t, head(1)+r+ofA+ofB+twice)
	text := func(version int, more ...string) string { return head(version) + r + strings.Join(more, "") }
	unsigned := forge{}.der(t, []byte(text(2, ofA)))
	detached, err := Sign([]byte(text(2, ofA)), true, a.key, a.cert, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	middle := issue(t, "middle", rootA, nil, ca)
	for _, test := range []struct {
		name    string
		from    *Keyring
		data    [][]byte
		version uint32
		notes   []Code
	}{
		{"nothing", base, nil, 1, nil},
		{"next", base, [][]byte{signText(t, text(2, ofA, ofB), a)}, 2, nil},
		{"of another key of the same role", base, [][]byte{signText(t, text(2, ofA, ofB), b)}, 2, nil},
		{"unsigned", base, [][]byte{unsigned}, 1, []Code{BadSignature}},
		{"unsigned text", base, [][]byte{[]byte(text(2, ofA))}, 1, []Code{Malformed}},
		{"without the text", base, [][]byte{detached}, 1, []Code{Malformed}},
		{"by the one before only", base, [][]byte{signText(t, text(2, ofB), a)}, 1, []Code{Untrusted}},
		{"by itself only", base, [][]byte{signText(t, text(2, ofC), c)}, 1, []Code{Untrusted}},
		{"by both", base, [][]byte{signText(t, text(2, ofC), a, c)}, 2, nil},
		{"by the release key", base, [][]byte{signText(t, text(2, ofA), byRelease)}, 1, []Code{Untrusted}},
		{"by an anchor itself", base, [][]byte{signText(t, text(2, ofA), rootA)}, 1, []Code{WrongPurpose}},
		{"by one that ended", base, [][]byte{signText(t, text(2, ofA), ended)}, 1, []Code{Expired}},
		{"version + 2", base, [][]byte{signText(t, text(3, ofA), a)}, 1, []Code{Policy}},
		{"same version", base, [][]byte{signText(t, text(1, ofA), a)}, 1, []Code{EpochLow}},
		{"the built-in one, signed", base, [][]byte{signText(t, head(1)+r+ofA+ofB, a)}, 1, nil},
		{"two of the next version", base, [][]byte{signText(t, text(2, ofA), a), signText(t, text(2, ofA, ofB), a)}, 2, []Code{EpochLow}},
		{"the same twice", base, slices.Repeat([][]byte{signText(t, text(2, ofA), a)}, 2), 2, nil},
		{"a wrong one does not stand in the way", base, [][]byte{signText(t, text(2, ofC), c), signText(t, text(2, ofA), a)}, 2, []Code{Untrusted}},
		{"three missed", base, [][]byte{signText(t, text(2, ofA), a), signText(t, text(3, ofC), a, c), signText(t, text(4, ofC), c)}, 4, nil},
		{"three missed, in disorder", base, [][]byte{signText(t, text(4, ofC), c), signText(t, text(3, ofC), a, c), signText(t, text(2, ofA), a)}, 4, nil},
		{"one of three missing", base, [][]byte{signText(t, text(2, ofA), a), signText(t, text(4, ofA), a)}, 2, []Code{Policy}},
		{"garbage at the end", base, [][]byte{signText(t, text(2, ofA), a), {0x30, 0x80}}, 2, []Code{Malformed}},
		{"something else", base, [][]byte{tlv(tagSequence, integer(1)), signText(t, text(2, ofA), a)}, 2, []Code{Malformed}},
		{"2 of 2: one", strict, [][]byte{signText(t, text(2, ofA, ofB, twice), a)}, 1, []Code{Threshold}},
		{"2 of 2: both", strict, [][]byte{signText(t, text(2, ofA, ofB, twice), a, b)}, 2, nil},
		{"2 of 2: becomes 1", strict, [][]byte{signText(t, text(2, ofA), a)}, 1, []Code{Threshold}},
		{"2 of 2: becomes 1, by both", strict, [][]byte{signText(t, text(2, ofA), a, b)}, 2, nil},
		{"becomes 2 of 2, by one", base, [][]byte{signText(t, text(2, ofA, ofB, twice), a)}, 1, []Code{Threshold}},
		{"3 of 2", base, [][]byte{signText(t, text(2, ofA, ofB, "[role.keyring]\nthreshold=3\n"), a, b)}, 1, []Code{Policy}},
		{"no anchor for keyring", base, [][]byte{signText(t, text(2), a)}, 1, []Code{Policy}},
		{"no anchor for release", base, [][]byte{signText(t, head(2)+ofA, a)}, 1, []Code{Policy}},
		{"release is revoked", base, [][]byte{signText(t, text(2, ofA, revokedText(release)), a)}, 1, []Code{Policy}},
		{"revokes its own signer", base, [][]byte{signText(t, text(2, ofA, revokedText(a)), a)}, 1, []Code{Revoked}},
		{"revokes the one before's signer", base, [][]byte{signText(t, text(2, ofA, ofB, revokedText(a)), a, b)}, 2, nil},
		{"unknown key in it", base, [][]byte{signText(t, text(2, ofA, "[offers]\n"), a)}, 1, []Code{Malformed}},
		{"65 keyrings", base, slices.Repeat([][]byte{signText(t, text(2, ofA), a)}, 65), 2, []Code{Policy}},
		{"65 CRLs", base, slices.Repeat([][]byte{forgedCRL{by: release}.der(t)}, 65), 1, []Code{Policy}},
		{"CRL and keyring", base, [][]byte{forgedCRL{by: release}.der(t), signText(t, text(2, ofA), a)}, 2, nil},
		{"CRL of an issuer that comes later", base, [][]byte{forgedCRL{by: middle}.der(t), signText(t, text(2, ofA, "[intermediate.m]\n", certLine(middle)), a)}, 2, nil},
		{"signed by a key that a CRL revoked", base, [][]byte{forgedCRL{by: rootA, revoked: []*pair{a}}.der(t), signText(t, text(2, ofA), a)}, 1, []Code{Revoked}},
		{"revoked after it signed", base, [][]byte{signText(t, text(2, ofA), a), forgedCRL{by: rootA, revoked: []*pair{a}}.der(t)}, 2, nil},
		{"seven wrong ones", base, append(slices.Repeat([][]byte{signText(t, text(2, ofC), c)}, 7), signText(t, text(2, ofA), a)), 2, slices.Repeat([]Code{Untrusted}, 7)},
		{"eight wrong ones", base, append(slices.Repeat([][]byte{signText(t, text(2, ofC), c)}, 8), signText(t, text(2, ofA), a)), 1, append(slices.Repeat([]Code{Untrusted}, 8), Policy)},
		{"PEM cannot be renewed", keyringOf(release, rootA), [][]byte{signText(t, text(1, ofA), a)}, 0, []Code{Policy}},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := fmt.Sprint(test.from.Version, len(test.from.crls), len(test.from.lineage))
			next, blob, notes := test.from.Renew(bytes.Join(test.data, nil), now)
			if next.Version != test.version || !slices.Equal(codes(notes), test.notes) {
				t.Fatalf("version %d, notes %v; want version %d, codes %v", next.Version, notes, test.version, test.notes)
			}
			if after := fmt.Sprint(test.from.Version, len(test.from.crls), len(test.from.lineage)); before != after {
				t.Errorf("what was renewed changed from %s to %s", before, after)
			}
			// A release bundle is taken whatever happened.
			check(t, signedBy(t, nil, byRelease), Rules{Keyring: next, Now: now}, 0)
			// What is kept gives the same, long after the signers ended as well.
			again, same, notes := test.from.Renew(blob, time.Time{})
			if again.Version != next.Version || !bytes.Equal(blob, same) || len(notes) > 0 || len(again.crls) != len(next.crls) {
				t.Errorf("kept: version %d, notes %v", again.Version, notes)
			}
			// Once more on top changes nothing.
			top, same, _ := again.Renew(bytes.Join(test.data, nil), now)
			if top.Version < next.Version || !bytes.Equal(blob, same) {
				t.Errorf("renewed again: version %d", top.Version)
			}
		})
	}

	// A new initramfs with a later keyring in it starts over.
	chain := slices.Concat(signText(t, text(2, ofA), a), signText(t, text(3, ofC), a, c))
	built := parseText(t, text(3, ofC))
	next, blob, notes := built.Renew(slices.Concat(chain, signText(t, text(4, ofC), c)), now)
	if next.Version != 4 || len(notes) > 0 || len(blob) > len(signText(t, text(4, ofC), c))+20 {
		t.Errorf("version %d, %v", next.Version, notes)
	}
	// An old bundle by a key that was removed.
	newRelease := issue(t, "new release", nil, nil, ca)
	next, _, _ = base.Renew(signText(t, head(2)+anchorText("n", newRelease, "release")+ofA, a), now)
	check(t, signedBy(t, nil, byRelease), Rules{Keyring: next, Now: now}, Untrusted)
	check(t, signedBy(t, nil, issue(t, "new", newRelease, nil, nil)), Rules{Keyring: next, Now: now}, 0)
}

// TestRenewLimits: what would have to be kept stays within 1 MiB.
func TestRenewLimits(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	other := issue(t, "other", nil, nil, ca)
	k := keyringOf(root, other)
	k, blob, notes := k.Renew(smallest(t, root, maxCRLEntries), now)
	if len(notes) > 0 || len(blob) < maxCRL/2 {
		t.Fatalf("%d bytes, %v", len(blob), notes)
	}
	k, same, notes := k.Renew(smallest(t, other, maxCRLEntries), now)
	if !slices.Equal(codes(notes), []Code{Policy}) || !bytes.Equal(blob, same) || len(k.CRLs()) != 1 {
		t.Errorf("%d bytes, %v", len(same), notes)
	}
	if _, _, notes := k.Renew(make([]byte, maxTrustInput+1), now); !slices.Equal(codes(notes), []Code{Policy}) {
		t.Error(notes)
	}
}

func FuzzKeyringText(f *testing.F) {
	root := issue(f, "root", nil, nil, ca)
	f.Add([]byte(head(1) + anchorText("r", root, "release;keyring") + "[role.release]\nthreshold=1\n" + revokedText() + "[algorithms]\nallow=ecdsa\n"))
	f.Add([]byte("[keyring]\nversion=1\ncreated=2026-01-31T12:00:00Z\n[anchor.x]\nroles=dev\ncert=MII=\npartial=true\n[intermediate.y]\ncert=\n"))
	f.Add([]byte("# \n[\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := readKeyringText(data)
		if err != nil {
			if code := CodeOf(err); code != Malformed && code != Policy {
				t.Fatalf("code %d: %v", code, err)
			}
			return
		}
		if k.Version == 0 || k.reachable("release") != nil || len(k.Roles) != len(k.Anchors) {
			t.Fatalf("%+v", k)
		}
		k.NewestNotBefore()
		k.Algorithms()
	})
}

// renewalSeeds is a keyring with two renewals and a CRL, which stay the same.
func renewalSeeds(t testing.TB) (*Keyring, []byte) {
	t.Helper()
	text, err := os.ReadFile("testdata/keyring.text")
	if err != nil {
		t.Fatal(err)
	}
	trust, err := os.ReadFile("testdata/keyring.trust")
	if err != nil {
		t.Fatal(err)
	}
	return parseText(t, string(text)), trust
}

// TestTrustFile pins the format by files.
func TestTrustFile(t *testing.T) {
	k, trust := renewalSeeds(t)
	next, blob, notes := k.Renew(trust, now)
	if next.Version != 3 || len(next.CRLs()) != 1 || len(notes) > 0 || !bytes.Equal(blob, trust) {
		t.Errorf("version %d, %d CRLs, %v", next.Version, len(next.CRLs()), notes)
	}
}

func FuzzRenew(f *testing.F) {
	k, trust := renewalSeeds(f)
	known, _, _ := k.Renew(trust, now)
	crl := known.crls[0].raw
	f.Add(trust)
	f.Add(trust[:len(trust)-len(crl)])
	f.Add(crl)
	f.Add([]byte{0x30, 0x80, 0, 0})
	allowed := map[string]bool{}
	for _, b := range known.lineage {
		allowed[string(b)] = true
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		next, blob, notes := k.Renew(data, now)
		if len(blob) > MaxTrust || len(notes) > 2*maxRenewals || next.Version < k.Version || next.Version > known.Version {
			t.Fatalf("%d bytes, %d notes, version %d", len(blob), len(notes), next.Version)
		}
		for _, n := range notes {
			if n.Code < Malformed || n.Code == IO || n.Text == "" {
				t.Fatalf("note %+v", n)
			}
		}
		// Only what was signed makes a difference.
		for i, b := range next.lineage {
			c, err := ReadCMS(b)
			if err != nil || !allowed[string(b)] && string(c.content) != string(must(ReadCMS(known.lineage[i])).content) {
				t.Fatal("a keyring that nobody signed")
			}
		}
		for _, c := range next.crls {
			if !bytes.Equal(c.tbs, known.crls[0].tbs) {
				t.Fatal("a CRL that nobody signed")
			}
		}
		again, same, notes := k.Renew(blob, time.Time{})
		if again.Version != next.Version || !bytes.Equal(blob, same) || len(notes) > 0 {
			t.Fatalf("kept: version %d instead of %d, %v", again.Version, next.Version, notes)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestTrustMutations changes every byte of a trust file. What is taken of it is
// what was signed.
func TestTrustMutations(t *testing.T) {
	k, trust := renewalSeeds(t)
	whole, _, _ := k.Renew(trust, now)
	accepted := 0
	for i := range trust {
		bad := bytes.Clone(trust)
		bad[i] ^= 1 << (i % 8)
		next, blob, notes := k.Renew(bad, now)
		if next.Version == whole.Version && len(next.crls) == len(whole.crls) {
			accepted++
		} else if len(notes) == 0 {
			t.Fatalf("byte %d: something is left out and nothing said", i)
		}
		for n, der := range next.lineage {
			if string(must(ReadCMS(der)).content) != string(must(ReadCMS(whole.lineage[n])).content) {
				t.Fatalf("byte %d: another keyring", i)
			}
		}
		for _, c := range next.crls {
			if !bytes.Equal(c.tbs, whole.crls[0].tbs) {
				t.Fatalf("byte %d: another CRL", i)
			}
		}
		if _, same, notes := k.Renew(blob, now); !bytes.Equal(blob, same) || len(notes) > 0 {
			t.Fatalf("byte %d: kept: %v", i, notes)
		}
	}
	t.Logf("%d of %d mutations taken, all with what was signed", accepted, len(trust))
	if accepted > 8 {
		t.Errorf("%d mutations taken: too much has no meaning", accepted)
	}
}
