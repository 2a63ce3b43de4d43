package verify

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// signedBy makes a CMS of content by some signers, with their CAs in it.
func signedBy(t testing.TB, chain []*pair, signers ...*pair) []byte {
	t.Helper()
	var certs []*x509.Certificate
	for _, p := range chain {
		certs = append(certs, p.cert)
	}
	var der []byte
	for _, s := range signers {
		var err error
		if der == nil {
			der, err = Sign(content, false, s.key, s.cert, certs, now)
		} else {
			der, err = AddSigner(der, nil, s.key, s.cert, certs, now)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return der
}

func codes(notes []*Refusal) (list []Code) {
	for _, n := range notes {
		list = append(list, n.Code)
	}
	return list
}

// TestReadCRL: what is taken as a CRL at all, before its issuer is known.
func TestReadCRL(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	reason := func(critical bool) []byte { return ext(extReasonCode, critical, []byte{tagEnumerated, 1, 1}) }
	serial := integer(7)
	good := forgedCRL{by: root}.der(t)
	for _, c := range []struct {
		name string
		der  []byte
		want Code
	}{
		{"good", good, 0},
		{"entries", forgedCRL{by: root, entries: [][]byte{entry(serial), entry(serial, reason(false))}}.der(t), 0},
		{"46 cut off", good[:len(good)-1], Malformed},
		{"46 empty", nil, Malformed},
		{"46 trailing byte", append(bytes.Clone(good), 0), Malformed},
		{"46 only a sequence", tlv(tagSequence), Malformed},
		{"46 of empty parts", tlv(tagSequence, tlv(tagSequence), tlv(tagSequence), tlv(tagBitString, []byte{0})), Malformed},
		{"48 more than 1 MiB", tlv(tagSequence, make([]byte, maxCRL)), Policy},
		{"48 1 M entries", forgedCRL{by: root, entries: manyEntries(1_000_000)}.der(t), Policy},
		{"48 50,001 entries", smallest(t, root, maxCRLEntries+1), Policy},
		{"50,000 entries", smallest(t, root, maxCRLEntries), 0},
		{"version 1", forgedCRL{by: root, version: []byte{tagInteger, 1, 0}}.der(t), Malformed},
		{"no version", forgedCRL{by: root, version: []byte{}}.der(t), Malformed},
		{"two algorithms", forgedCRL{by: root, innerAlg: alg(oidECDSAWithSHA384)}.der(t), Malformed},
		{"no next update", forgedCRL{by: root, next: []byte{}}.der(t), Malformed},
		{"time with a fraction", forgedCRL{by: root, this: tlv(tagTime, []byte("20300601120000.5Z"))}.der(t), Malformed},
		{"no extensions", forgedCRL{by: root, noExts: true}.der(t), Malformed},
		{"no number", forgedCRL{by: root, noNumber: true}.der(t), Policy},
		{"negative number", forgedCRL{by: root, noNumber: true, exts: [][]byte{ext(extCRLNumber, false, []byte{tagInteger, 1, 0x80})}}.der(t), Malformed},
		{"number of 21 bytes", forgedCRL{by: root, noNumber: true, exts: [][]byte{ext(extCRLNumber, false, tlv(tagInteger, bytes.Repeat([]byte{1}, 21)))}}.der(t), Malformed},
		{"two numbers", forgedCRL{by: root, exts: [][]byte{ext(extCRLNumber, false, integer(3))}}.der(t), Malformed},
		{"nine extensions", forgedCRL{by: root, exts: [][]byte{ext(1, false, serial), ext(2, false, serial), ext(3, false, serial), ext(4, false, serial), ext(5, false, serial), ext(6, false, serial), ext(7, false, serial), ext(8, false, serial)}}.der(t), Policy},
		{"unknown extension", forgedCRL{by: root, exts: [][]byte{ext(99, false, serial)}}.der(t), 0},
		{"unknown critical extension", forgedCRL{by: root, exts: [][]byte{ext(99, true, serial)}}.der(t), Policy},
		{"extension that says it is not critical", forgedCRL{by: root, exts: [][]byte{tlv(tagSequence, tlv(tagOID, []byte("\x2a\x03")), []byte{tagBoolean, 1, 0}, tlv(tagOctetString))}}.der(t), Malformed},
		{"delta", forgedCRL{by: root, exts: [][]byte{ext(extDeltaCRL, true, integer(1))}}.der(t), Policy},
		{"distribution point, of everything", forgedCRL{by: root, exts: [][]byte{ext(extDistributionPoint, true, tlv(tagSequence))}}.der(t), 0},
		{"only CAs", forgedCRL{by: root, exts: [][]byte{ext(extDistributionPoint, true, tlv(tagSequence, []byte{0x82, 1, 0xff}))}}.der(t), Policy},
		{"indirect", forgedCRL{by: root, exts: [][]byte{ext(extDistributionPoint, true, tlv(tagSequence, []byte{0x84, 1, 0xff}))}}.der(t), Policy},
		{"indirect, says an entry", forgedCRL{by: root, entries: [][]byte{entry(serial, ext(extCertificateIssuer, false, tlv(tagSequence)))}}.der(t), Policy},
		{"critical reason in an entry", forgedCRL{by: root, entries: [][]byte{entry(serial, reason(true))}}.der(t), 0},
		{"unknown critical extension of an entry", forgedCRL{by: root, entries: [][]byte{entry(serial, ext(99, true, serial))}}.der(t), Policy},
		{"entry without a number", forgedCRL{by: root, entries: [][]byte{tlv(tagSequence, encodeTime(now), serial)}}.der(t), Malformed},
		{"entry is a number", forgedCRL{by: root, entries: [][]byte{serial}}.der(t), Malformed},
		{"entry with a padded number", forgedCRL{by: root, entries: [][]byte{entry([]byte{tagInteger, 2, 0, 1})}}.der(t), Malformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			crl, err := readCRL(c.der)
			if CodeOf(err) != c.want || (crl == nil) != (err != nil) {
				t.Errorf("code %d (%v), want %d", CodeOf(err), err, c.want)
			}
			// What is taken the standard library understands as well.
			if err == nil {
				std, err := x509.ParseRevocationList(c.der)
				if err != nil {
					t.Fatal(err)
				}
				if std.Number.Cmp(new(big.Int).SetBytes(crl.number)) != 0 || len(std.RevokedCertificateEntries) != crl.count || !std.NextUpdate.Equal(crl.nextUpdate) {
					t.Errorf("number %s, %d entries, next %s", std.Number, len(std.RevokedCertificateEntries), std.NextUpdate)
				}
			}
		})
	}
}

func manyEntries(n int) [][]byte {
	list := make([][]byte, n)
	for i := range list {
		list[i] = tlv(tagSequence, integer(int64(i)), tlv(tagUTCTime, []byte("300601120000Z")))
	}
	return list
}

// smallest has so many entries that they just fit into 1 MiB.
func smallest(t testing.TB, by *pair, n int) []byte {
	t.Helper()
	list := make([][]byte, n)
	for i := range list {
		list[i] = tlv(tagSequence, tlv(tagInteger, []byte{0}), tlv(tagUTCTime, []byte("300601120000Z")))
	}
	der := forgedCRL{by: by, entries: list}.der(t)
	if len(der) > maxCRL {
		t.Fatalf("%d bytes", len(der))
	}
	return der
}

// TestCRLIssuer: whose CRLs count for which certificates (44, 45, 47).
func TestCRLIssuer(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	signer := issue(t, "signer", root, nil, nil)
	other := issue(t, "other", nil, nil, ca)
	impostor := issue(t, "root", nil, nil, func(c *x509.Certificate) { ca(c); c.SubjectKeyId = root.cert.SubjectKeyId })
	noCRLSign := issue(t, "no CRLs", nil, nil, edit(ca, keyUsage(x509.KeyUsageCertSign)))
	ofNoCRLSign := issue(t, "signer", noCRLSign, nil, nil)
	anyUsage := issue(t, "any usage", nil, nil, edit(ca, keyUsage(0)))
	ofAnyUsage := issue(t, "signer", anyUsage, nil, nil)
	notNamed := func(by, as *pair) []byte {
		return forgedCRL{by: by, issuer: as.cert.RawSubject, entries: [][]byte{entry(serialOf(signer.cert))}}.der(t)
	}
	forgery := forgedCRL{by: root, revoked: []*pair{signer}, sign: func([]byte) []byte { return tlv(tagSequence, integer(1), integer(1)) }}.der(t)
	for _, c := range []struct {
		name   string
		anchor *pair
		signer *pair
		crls   [][]byte
		want   Code
		strict Code // where a CRL is required
	}{
		{"none", root, signer, nil, 0, Revoked},
		{"nothing revoked", root, signer, [][]byte{forgedCRL{by: root}.der(t)}, 0, 0},
		{"42 revoked", root, signer, [][]byte{forgedCRL{by: root, revoked: []*pair{signer}}.der(t)}, Revoked, Revoked},
		{"42 revoked, with a reason", root, signer, [][]byte{forgedCRL{by: root, entries: [][]byte{entry(serialOf(signer.cert), ext(extReasonCode, false, []byte{tagEnumerated, 1, 6}))}}.der(t)}, Revoked, Revoked},
		{"44 no right to sign CRLs", noCRLSign, ofNoCRLSign, [][]byte{forgedCRL{by: noCRLSign, revoked: []*pair{ofNoCRLSign}}.der(t)}, 0, Revoked},
		{"no key usage at all", anyUsage, ofAnyUsage, [][]byte{forgedCRL{by: anyUsage, revoked: []*pair{ofAnyUsage}}.der(t)}, Revoked, Revoked},
		{"45 same serial number of another issuer", root, signer, [][]byte{forgedCRL{by: other, entries: [][]byte{entry(serialOf(signer.cert))}}.der(t)}, 0, Revoked},
		{"45 other issuer in this one's name", root, signer, [][]byte{notNamed(other, root)}, 0, Revoked},
		{"45 other key of this name", root, signer, [][]byte{forgedCRL{by: impostor, revoked: []*pair{signer}}.der(t)}, 0, Revoked},
		{"signature is wrong", root, signer, [][]byte{forgery}, 0, Revoked},
		{"46 cut off", root, signer, [][]byte{forgedCRL{by: root, revoked: []*pair{signer}}.der(t)[:99]}, 0, Revoked},
		{"47 older number", root, signer, [][]byte{forgedCRL{by: root, number: 5, revoked: []*pair{signer}}.der(t), forgedCRL{by: root, number: 4}.der(t)}, Revoked, Revoked},
		{"47 same number", root, signer, [][]byte{forgedCRL{by: root, number: 5, revoked: []*pair{signer}}.der(t), forgedCRL{by: root, number: 5}.der(t)}, Revoked, Revoked},
		{"newer number", root, signer, [][]byte{forgedCRL{by: root, number: 255, revoked: []*pair{signer}}.der(t), forgedCRL{by: root, number: 256}.der(t)}, 0, 0},
		{"the signer cannot revoke", root, signer, [][]byte{forgedCRL{by: signer, revoked: []*pair{signer}}.der(t)}, 0, Revoked},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := keyringOf(c.anchor).WithCRLs(c.crls...)
			der := signedBy(t, nil, c.signer)
			check(t, der, Rules{Keyring: k, Now: now}, c.want)
			check(t, der, Rules{Keyring: k, Now: now, RequireCRL: true}, c.strict)
			// Revocation blocks installs, never boots.
			check(t, der, Rules{Keyring: k, Now: now, RequireCRL: true, AtBoot: true}, 0)
			// The same by way of a trust file.
			k, blob, _ := keyringOf(c.anchor).Renew(bytes.Join(c.crls, nil), now)
			check(t, der, Rules{Keyring: k, Now: now}, c.want)
			check(t, der, Rules{Keyring: k, Now: now, RequireCRL: true}, c.strict)
			again, same, notes := keyringOf(c.anchor).Renew(blob, time.Time{})
			if !bytes.Equal(blob, same) || len(notes) > 0 {
				t.Errorf("what is kept is not what comes of it: %v", notes)
			}
			check(t, der, Rules{Keyring: again, Now: now, RequireCRL: true}, c.strict)
		})
	}
}

// TestRevokedIntermediate (43): all that is below it is refused, and a CRL of an
// intermediate that only the bundle brings along counts in a trusted keyring.
func TestRevokedIntermediate(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	middle := issue(t, "middle", root, nil, ca)
	renewed := issue(t, "middle", root, middle.key, ca)
	one, two := issue(t, "one", middle, nil, nil), issue(t, "two", middle, nil, nil)
	both := []*pair{middle}
	of := func(crls ...[]byte) Rules { return Rules{Keyring: keyringOf(root).WithCRLs(crls...), Now: now} }
	revoked := forgedCRL{by: root, revoked: []*pair{middle}}.der(t)
	for _, s := range []*pair{one, two} {
		check(t, signedBy(t, both, s), of(), 0)
		check(t, signedBy(t, both, s), of(revoked), Revoked)
		// Not by another certificate of the same key, which is not revoked.
		check(t, signedBy(t, []*pair{middle, renewed}, s), of(revoked), 0)
	}
	below := forgedCRL{by: middle, revoked: []*pair{one}}.der(t)
	check(t, signedBy(t, both, one), of(below), Revoked)
	check(t, signedBy(t, both, two), of(below), 0)
	r := of(below)
	r.RequireCRL = true
	check(t, signedBy(t, both, two), r, Revoked)
	r = of(below, forgedCRL{by: root}.der(t))
	r.RequireCRL = true
	check(t, signedBy(t, both, two), r, 0)
	if got := r.Keyring.CRLs(); len(got) != 2 || got[0].By != nil || got[1].By == nil || got[0].Entries != 1 || got[1].Number != "0x01" {
		t.Errorf("%+v", got)
	}
	// From a stick only the CRLs of known issuers are taken.
	k, _, notes := keyringOf(root).Renew(below, now)
	if len(k.CRLs()) != 0 || len(notes) != 1 || notes[0].Code != Untrusted {
		t.Errorf("%v", notes)
	}
	k, _, notes = keyringOf(root, middle).Renew(below, now)
	if len(k.CRLs()) != 1 || len(notes) != 0 {
		t.Errorf("%v", notes)
	}
	check(t, signedBy(t, both, one), Rules{Keyring: k, Now: now}, Revoked)
}

// TestCompromisedKey is row A1 of the threat table: a key is stolen, a CRL that
// comes with another bundle ends it, an older CRL does not bring it back, and a
// stale one stops nothing but what is revoked.
func TestCompromisedKey(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	stolen, fresh := issue(t, "stolen", root, nil, nil), issue(t, "fresh", root, nil, nil)
	b1 := signedBy(t, nil, stolen)
	b2, err := AddCRLs(signedBy(t, nil, fresh), forgedCRL{by: root, number: 5, revoked: []*pair{stolen}}.der(t))
	if err != nil {
		t.Fatal(err)
	}
	k := keyringOf(root)
	check(t, b1, Rules{Keyring: k, Now: now}, 0)
	c, err := ReadCMS(b2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Verify(Rules{Keyring: k, Now: now}, nil); err != nil {
		t.Fatal(err)
	}
	k, blob, notes := k.Renew(bytes.Join(c.CRLs(), nil), now)
	if len(notes) > 0 {
		t.Fatal(notes)
	}
	check(t, b1, Rules{Keyring: k, Now: now}, Revoked)

	k, same, notes := k.Renew(forgedCRL{by: root, number: 4}.der(t), now)
	if len(notes) != 1 || !strings.Contains(notes[0].Text, "crl rollback") || notes[0].Code != EpochLow || !bytes.Equal(blob, same) {
		t.Errorf("%v", notes)
	}
	check(t, b1, Rules{Keyring: k, Now: now}, Revoked)

	late := now.AddDate(0, 2, 0) // past nextUpdate
	for _, trusted := range []bool{false, true} {
		s := check(t, b2, Rules{Keyring: k, Now: late, Trusted: trusted}, 0)
		if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "stale") {
			t.Errorf("warnings %q", s.Warnings)
		}
		check(t, b1, Rules{Keyring: k, Now: late, Trusted: trusted}, Revoked)
	}
	check(t, b2, Rules{Keyring: k, Now: late, StaleCRL: true}, 0)
	check(t, b2, Rules{Keyring: k, Now: late, StaleCRL: true, Trusted: true}, Revoked)
	if s := check(t, b2, Rules{Keyring: k, Now: now, StaleCRL: true, Trusted: true}, 0); len(s.Warnings) > 0 {
		t.Errorf("warnings %q", s.Warnings)
	}
}

// TestMatrix is the acceptance matrix of trust.md 2.3, and row A2 on both sides
// of the second at which a certificate ends. The claimed signing time changes
// nothing.
func TestMatrix(t *testing.T) {
	floor := now
	anchor := issue(t, "root", nil, nil, ca)
	old := issue(t, "old root", nil, nil, edit(ca, validity(now.AddDate(-9, 0, 0), now.AddDate(-8, 0, 0))))
	second := time.Second
	for _, c := range []struct {
		name           string
		root           *pair
		from, to       time.Time
		crl            string
		floor, trusted Code
	}{
		{"floor < nb", anchor, floor.Add(second), floor.Add(9 * second), "", 0, Expired},
		{"nb <= floor <= na", anchor, floor, floor, "", 0, 0},
		{"na < floor", anchor, floor.Add(-9 * second), floor.Add(-second), "", Expired, Expired},
		{"A2 na = floor + 1 s", anchor, floor.Add(-9 * second), floor.Add(second), "", 0, 0},
		{"anchor expired", old, floor, floor, "", 0, 0},
		{"CRL stale", anchor, floor, floor, "stale", 0, 0},
		{"CRL missing but required", anchor, floor, floor, "required", Revoked, Revoked},
	} {
		t.Run(c.name, func(t *testing.T) {
			signer := issue(t, "signer", c.root, nil, validity(c.from, c.to))
			r := Rules{Keyring: keyringOf(c.root), Now: floor, RequireCRL: c.crl == "required"}
			if c.crl == "stale" {
				r.Keyring = r.Keyring.WithCRLs(forgedCRL{by: c.root, next: encodeTime(floor.Add(-second))}.der(t))
			}
			for _, at := range []time.Time{{}, c.from, c.to, floor.AddDate(-20, 0, 0), floor.AddDate(20, 0, 0)} {
				der, err := Sign(content, false, signer.key, signer.cert, nil, at)
				if err != nil {
					t.Fatal(err)
				}
				r.Trusted = false
				s := check(t, der, r, c.floor)
				if s != nil && (len(s.Warnings) > 0) != (c.crl == "stale") {
					t.Errorf("warnings %q", s.Warnings)
				}
				r.Trusted = true
				check(t, der, r, c.trusted)
			}
			if c.crl == "stale" {
				r.StaleCRL = true
				check(t, signedBy(t, nil, signer), r, Revoked)
			}
		})
	}
}

// TestOpenSSLRevoked: CRLs that `openssl ca -gencrl` made, with every kind of key.
func TestOpenSSLRevoked(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	const conf = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=30\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n"
	for name, key := range map[string]crypto.Signer{"ec": p256(t), "rsa": rsaKey(t, 2048), "ed25519": edKey(t)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			root := issue(t, "root", nil, key, ca)
			signer, other := issue(t, "signer", root, nil, nil), issue(t, "other", root, nil, nil)
			pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			for name, b := range map[string][]byte{
				"conf": []byte(conf), "index": nil, "number": []byte("0F\n"), "key": pemOf("PRIVATE KEY", pkcs8),
				"ca": pemOf("CERTIFICATE", root.cert.Raw), "cert": pemOf("CERTIFICATE", signer.cert.Raw),
			} {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			md := "sha256"
			if name == "ed25519" {
				md = "null"
			}
			for _, args := range [][]string{
				{"ca", "-config", "conf", "-cert", "ca", "-keyfile", "key", "-md", md, "-revoke", "cert", "-crl_reason", "keyCompromise"},
				{"ca", "-config", "conf", "-cert", "ca", "-keyfile", "key", "-md", md, "-gencrl", "-out", "crl"},
			} {
				cmd := exec.Command("openssl", args...)
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("openssl: %v\n%s", err, out)
				}
			}
			crl, err := os.ReadFile(filepath.Join(dir, "crl"))
			if err != nil {
				t.Fatal(err)
			}
			k, err := ParseKeyring(append(pemOf("CERTIFICATE", root.cert.Raw), crl...))
			if err != nil || len(k.Notes) > 0 || len(k.CRLs()) != 1 || k.CRLs()[0].Number != "0x0F" {
				t.Fatalf("%v, %v, %v", err, k.Notes, k.CRLs())
			}
			check(t, signedBy(t, nil, signer), Rules{Keyring: k, Now: now}, Revoked)
			check(t, signedBy(t, nil, other), Rules{Keyring: k, Now: now, RequireCRL: true}, 0)
		})
	}
}

// bigCRL has 50,000 entries, signed by root.
func bigCRL(t testing.TB, root *pair) []byte {
	t.Helper()
	return smallest(t, root, maxCRLEntries)
}

// TestCostOfCRL: parsing and verifying a CRL of 50,000 entries, and a signature
// below two CAs under it.
func TestCostOfCRL(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	middle := issue(t, "middle", root, nil, ca)
	signer := issue(t, "signer", middle, nil, nil)
	der := signedBy(t, []*pair{middle}, signer)
	crls := bytes.Join([][]byte{forgedCRL{by: root}.der(t), bigCRL(t, middle)}, nil)
	k := keyringOf(root, middle)
	cost(t, func() error {
		k, _, notes := k.Renew(crls, now)
		if len(notes) > 0 {
			return notes[0]
		}
		c, err := ReadCMS(der)
		if err == nil {
			_, err = c.Verify(Rules{Keyring: k, Now: now, RequireCRL: true}, nil)
		}
		return err
	})
}

func BenchmarkCRL(b *testing.B) {
	root := issue(b, "root", nil, nil, ca)
	signer := issue(b, "signer", root, nil, nil)
	der, crl, k := signedBy(b, nil, signer), bigCRL(b, root), keyringOf(root)
	b.ReportAllocs()
	for b.Loop() {
		c, err := ReadCMS(der)
		if err == nil {
			_, err = c.Verify(Rules{Keyring: k.WithCRLs(crl), Now: now, RequireCRL: true}, nil)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzCRL(f *testing.F) {
	r, _ := vectors(f)
	root := issue(f, "root", nil, nil, ca)
	signer := issue(f, "signer", root, nil, nil)
	f.Add(forgedCRL{by: root, revoked: []*pair{signer}}.der(f))
	f.Add(forgedCRL{by: root, exts: [][]byte{ext(extDistributionPoint, true, tlv(tagSequence))}, entries: [][]byte{entry(integer(1), ext(extReasonCode, false, []byte{tagEnumerated, 1, 1}))}}.der(f))
	std, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(9), ThisUpdate: now, NextUpdate: now.AddDate(1, 0, 0),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(1 << 60), RevocationTime: now, ReasonCode: 1, ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}}},
	}, root.cert, root.key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(std)
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := readCRL(der)
		if err != nil {
			if code := CodeOf(err); code != Malformed && code != Policy {
				t.Fatalf("code %d: %v", code, err)
			}
			return
		}
		c.revokes(integer(1))
		c.newer(c)
		// Stricter than the standard library, never looser.
		std, err := x509.ParseRevocationList(der)
		if err != nil && (strings.Contains(err.Error(), "RDNSequence") || strings.Contains(strings.ToLower(err.Error()), "time")) {
			// A name is compared with one that the standard library took, and when
			// an entry began does not matter.
			return
		}
		if err != nil {
			t.Fatalf("only we take it: %v", err)
		}
		if len(std.RevokedCertificateEntries) != c.count {
			t.Fatalf("%d entries, %d", c.count, len(std.RevokedCertificateEntries))
		}
		for _, e := range std.RevokedCertificateEntries {
			b, err := asn1.Marshal(e.SerialNumber)
			if err != nil || !c.revokes(b) {
				t.Fatalf("serial number %s is lost: %v", e.SerialNumber, err)
			}
		}
		// Nobody whom the keyring knows signed it.
		if next, _, notes := r.Keyring.Renew(der, now); len(next.CRLs()) > 0 || len(notes) == 0 {
			t.Fatal("taken without an issuer")
		}
	})
}
