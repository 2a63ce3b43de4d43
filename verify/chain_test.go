package verify

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// edit combines changes of a certificate.
func edit(changes ...func(*x509.Certificate)) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, change := range changes {
			change(c)
		}
	}
}

func usage(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = u }
}

func keyUsage(u x509.KeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.KeyUsage = u }
}

func validity(from, to time.Time) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, to }
}

func TestChain(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	impostor := issue(t, "root", nil, nil, ca)
	middle := issue(t, "middle", root, nil, ca)
	plain := func(parent *pair) *pair { return issue(t, "signer", parent, nil, nil) }
	with := func(parent *pair, changes ...func(*x509.Certificate)) *pair {
		return issue(t, "signer", parent, nil, edit(changes...))
	}
	authority := func(parent *pair, changes ...func(*x509.Certificate)) *pair {
		return issue(t, "another CA", parent, nil, edit(append([]func(*x509.Certificate){ca}, changes...)...))
	}
	long := []*pair{root}
	for range 6 {
		long = append(long, issue(t, "ca", long[len(long)-1], nil, ca))
	}
	narrow := issue(t, "narrow", root, nil, pathLen0)
	below := issue(t, "below", narrow, nil, ca)
	notCA := issue(t, "not a CA", root, nil, nil)
	notAllowed := authority(root, keyUsage(x509.KeyUsageDigitalSignature))
	critical := extension(true, []byte{5, 0}, 1, 2, 3, 4)
	selfSigned := plain(nil)
	constrained := authority(root, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.com"} })
	// Two CAs that certify each other, below no anchor.
	loopA := issue(t, "a", nil, nil, ca)
	loopB := issue(t, "b", loopA, nil, ca)
	loopA2 := issue(t, "a", loopB, loopA.key, ca)
	keyed := func(id string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.SubjectKeyId = []byte(id) }
	}
	// A CA under the root, and the same key and name self-signed.
	vendor := issue(t, "vendor", root, nil, ca)
	vendorAnchor := issue(t, "vendor", nil, vendor.key, ca)
	oldCurve := issue(t, "old", root, curve(t, elliptic.P224()), ca)
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }
	oldHash := authority(root, sha1)
	nul := issue(t, "good\x00evil", root, nil, nil)

	for _, c := range []struct {
		name    string
		keyring []*pair
		signer  *pair
		chain   []*pair
		want    Code
		length  int // of the accepted chain
	}{
		{"one CA", []*pair{root}, plain(root), nil, 0, 2},
		{"intermediate in the bundle", []*pair{root}, plain(middle), []*pair{middle}, 0, 3},
		{"intermediate in the keyring", []*pair{root, middle}, plain(middle), nil, 0, 3},
		{"root in the bundle as well", []*pair{root}, plain(middle), []*pair{root, middle}, 0, 3},
		{"five issuers", []*pair{root}, plain(long[4]), long[1:5], 0, 6},
		{"six issuers", []*pair{root}, plain(long[5]), long[1:6], Untrusted, 0},
		{"30 self-signed", []*pair{root}, selfSigned, nil, Untrusted, 0},
		{"31 right name, wrong key", []*pair{root}, plain(impostor), nil, Untrusted, 0},
		{"31 right name, wrong key, in the bundle", []*pair{root}, plain(impostor), []*pair{impostor}, Untrusted, 0},
		{"two anchors of one name", []*pair{impostor, root}, plain(root), nil, 0, 2},
		{"32 intermediate missing", []*pair{root}, plain(middle), nil, Untrusted, 0},
		{"33 below path length 0", []*pair{root}, plain(below), []*pair{below, narrow}, Untrusted, 0},
		{"at path length 0", []*pair{root}, plain(narrow), []*pair{narrow}, 0, 3},
		{"33 issued by a signer", []*pair{root}, plain(notCA), []*pair{notCA}, Untrusted, 0},
		{"issued by a CA that may not", []*pair{root}, plain(notAllowed), []*pair{notAllowed}, Untrusted, 0},
		{"33a CA signs", []*pair{root}, middle, nil, WrongPurpose, 0},
		{"33a anchor signs", []*pair{root}, root, nil, WrongPurpose, 0},
		{"33a signer is in the keyring", []*pair{root, selfSigned}, selfSigned, nil, WrongPurpose, 0},
		{"37 unknown critical extension", []*pair{root}, with(root, critical), nil, Untrusted, 0},
		{"37 the same in a CA", []*pair{root}, plain(authority(root, critical)), nil, Untrusted, 0},
		{"unknown extension", []*pair{root}, with(root, extension(false, []byte{5, 0}, 1, 2, 3, 4)), nil, 0, 2},
		{"name constraints", []*pair{root}, plain(constrained), []*pair{constrained}, Untrusted, 0},
		{"38 NUL in the name", []*pair{root}, nul, nil, Untrusted, 0},
		{"CAs in a circle", []*pair{root}, plain(loopA), []*pair{loopB, loopA2}, Untrusted, 0},
		{"self-signed of the bundle is no anchor", []*pair{root}, plain(loopA), []*pair{loopA}, Untrusted, 0},
		{"only the vendor is trusted, its own signer", []*pair{vendorAnchor}, plain(vendor), []*pair{vendor, root}, 0, 2},
		{"only the vendor is trusted, another's signer", []*pair{vendorAnchor}, plain(middle), []*pair{middle, root}, Untrusted, 0},
		{"26 CA on P-224", []*pair{root}, plain(oldCurve), []*pair{oldCurve}, Policy, 0},
		{"24 certificate signed with SHA-1", []*pair{root}, with(root, sha1), nil, Policy, 0},
		{"24 CA's certificate signed with SHA-1", []*pair{root}, plain(oldHash), []*pair{oldHash}, Policy, 0},
		{"key identifiers differ", []*pair{issue(t, "root", nil, root.key, edit(ca, keyed("x")))}, plain(issue(t, "root", nil, root.key, edit(ca, keyed("y")))), nil, Untrusted, 0},
		{"51 intermediate alone is no anchor", []*pair{root}, plain(issue(t, "web", impostor, nil, ca)), nil, Untrusted, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var certs []*x509.Certificate
			for _, p := range c.chain {
				certs = append(certs, p.cert)
			}
			der, err := Sign(content, false, c.signer.key, c.signer.cert, certs, now)
			if err != nil {
				t.Fatal(err)
			}
			r := Rules{Keyring: keyringOf(c.keyring...), Now: now, Trusted: true}
			if s := check(t, der, r, c.want); s != nil && len(s.Chain) != c.length {
				t.Errorf("chain of %d certificates, want %d", len(s.Chain), c.length)
			}
			r.AtBoot = true
			check(t, der, r, c.want)
		})
	}
}

// TestTwins (39): two certificates of one issuer and serial number.
func TestTwins(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	signer := issue(t, "signer", root, nil, nil)
	twin := issue(t, "twin", root, nil, func(c *x509.Certificate) { c.SerialNumber = signer.cert.SerialNumber })
	der, err := Sign(content, false, signer.key, signer.cert, []*x509.Certificate{twin.cert}, now)
	if err != nil {
		t.Fatal(err)
	}
	check(t, der, Rules{Keyring: keyringOf(root), Now: now}, Untrusted)
}

func TestPurpose(t *testing.T) {
	const (
		code  = x509.ExtKeyUsageCodeSigning
		email = x509.ExtKeyUsageEmailProtection
		stamp = x509.ExtKeyUsageTimeStamping
		every = x509.ExtKeyUsageAny
	)
	root := issue(t, "root", nil, nil, ca)
	for _, c := range []struct {
		name   string
		signer func(*x509.Certificate)
		middle func(*x509.Certificate) // nil: no CA in between
		// the codes under codesign, smimesign and any
		codesign, smimesign, any Code
	}{
		{"both", usage(code, email), nil, 0, 0, 0},
		{"code signing", usage(code), nil, 0, WrongPurpose, 0},
		{"34 e-mail", usage(email), nil, WrongPurpose, 0, 0},
		{"35 time stamping", usage(stamp), nil, WrongPurpose, WrongPurpose, 0},
		{"33c any only", usage(every), nil, WrongPurpose, WrongPurpose, 0},
		{"36 none", usage(), nil, WrongPurpose, 0, 0},
		{"unknown one", func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3}}
		}, nil, WrongPurpose, WrongPurpose, 0},
		{"33b key encipherment", keyUsage(x509.KeyUsageKeyEncipherment), nil, WrongPurpose, WrongPurpose, WrongPurpose},
		{"non-repudiation", keyUsage(x509.KeyUsageContentCommitment), nil, WrongPurpose, 0, 0},
		{"no key usage", keyUsage(0), nil, 0, 0, 0},
		{"CA with code signing", nil, usage(code), 0, WrongPurpose, 0},
		{"CA with e-mail", nil, usage(email), WrongPurpose, 0, 0},
		{"CA with both", nil, usage(code, email), 0, 0, 0},
		{"CA with any", nil, usage(every), WrongPurpose, WrongPurpose, 0},
		{"CA with none", nil, usage(), 0, 0, 0},
		{"signer is a CA", edit(ca, usage(code, email)), nil, WrongPurpose, WrongPurpose, WrongPurpose},
	} {
		t.Run(c.name, func(t *testing.T) {
			parent := root
			var chain []*x509.Certificate
			if c.middle != nil {
				parent = issue(t, "middle", root, nil, edit(ca, c.middle))
				chain = append(chain, parent.cert)
			}
			signer := issue(t, "signer", parent, nil, c.signer)
			der, err := Sign(content, false, signer.key, signer.cert, chain, now)
			if err != nil {
				t.Fatal(err)
			}
			cms, err := ReadCMS(der)
			if err != nil {
				t.Fatal(err)
			}
			for purpose, want := range map[string]Code{"": c.codesign, "codesign": c.codesign, "smimesign": c.smimesign, "any": c.any, "sslserver": Policy} {
				_, err := cms.Verify(Rules{Keyring: keyringOf(root), Purpose: purpose, Now: now}, nil)
				if CodeOf(err) != want {
					t.Errorf("purpose %q: %v, want code %d", purpose, err, want)
				}
				// The hint belongs to what stock RAUC would have taken.
				hinted := strings.Contains(HintOf(err), "check-purpose=smimesign")
				if wantHint := want == WrongPurpose && c.codesign == WrongPurpose && c.smimesign == 0 && purpose != "smimesign" && purpose != "any"; hinted != wantHint {
					t.Errorf("purpose %q: hint %q", purpose, HintOf(err))
				}
			}
		})
	}
}

// TestClock is the matrix of trust.md 2.3: a floor refuses only what is over, a
// trusted clock both, a boot nothing; anchors have no dates.
func TestClock(t *testing.T) {
	day := 24 * time.Hour
	root := issue(t, "root", nil, nil, edit(ca, validity(now.Add(-3000*day), now.Add(-2000*day))))
	begin, end := now.Add(-10*day), now.Add(10*day)
	for _, c := range []struct {
		name           string
		now            time.Time
		floor, trusted Code
	}{
		{"no time", time.Time{}, 0, Expired},
		{"1970", time.Unix(0, 0), 0, Expired},
		{"before", begin.Add(-time.Second), 0, Expired},
		{"begin", begin, 0, 0},
		{"inside", now, 0, 0},
		{"end", end, 0, 0},
		{"41 after", end.Add(time.Second), Expired, Expired},
		{"2106", time.Unix(1<<32, 0), Expired, Expired},
	} {
		for name, dated := range map[string][2]time.Time{
			"signer": {begin, end},
			"CA":     {now.Add(-20000 * day), now.Add(50000 * day)},
		} {
			// Once the signer's dates are the narrow ones, once its CA's.
			other := [2]time.Time{begin, end}
			if name == "signer" {
				other = [2]time.Time{now.Add(-20000 * day), now.Add(50000 * day)}
			}
			middle := issue(t, "middle", root, nil, edit(ca, validity(other[0], other[1])))
			signer := issue(t, "signer", middle, nil, validity(dated[0], dated[1]))
			der, err := Sign(content, false, signer.key, signer.cert, []*x509.Certificate{middle.cert}, now)
			if err != nil {
				t.Fatal(err)
			}
			wide := c
			if c.name == "no time" { // long before everything
				wide.trusted = Expired
			}
			t.Run(c.name+" "+name, func(t *testing.T) {
				k := keyringOf(root)
				check(t, der, Rules{Keyring: k, Now: c.now}, wide.floor)
				check(t, der, Rules{Keyring: k, Now: c.now, Trusted: true}, wide.trusted)
				check(t, der, Rules{Keyring: k, Now: c.now, Trusted: true, AtBoot: true}, 0)
			})
		}
	}
}

// TestBestPath: of two certificates of one CA the one that passes is used.
func TestBestPath(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	old := issue(t, "middle", root, nil, edit(ca, validity(now.AddDate(-2, 0, 0), now.AddDate(-1, 0, 0))))
	renewed := issue(t, "middle", root, old.key, ca)
	signer := issue(t, "signer", old, nil, nil)
	for _, chain := range [][]*x509.Certificate{{old.cert, renewed.cert}, {renewed.cert, old.cert}} {
		der, err := Sign(content, false, signer.key, signer.cert, chain, now)
		if err != nil {
			t.Fatal(err)
		}
		check(t, der, Rules{Keyring: keyringOf(root), Now: now, Trusted: true}, 0)
	}
}

func TestKeyring(t *testing.T) {
	root := issue(t, "root", nil, nil, ca)
	middle := issue(t, "middle", root, nil, edit(ca, validity(now, now.AddDate(1, 0, 0))))
	rootPEM, middlePEM := pemOf("CERTIFICATE", root.cert.Raw), pemOf("CERTIFICATE", middle.cert.Raw)
	for _, c := range []struct {
		name           string
		data           []byte
		anchors, other int // anchors 0: refused
	}{
		{"one", rootPEM, 1, 0},
		{"two", slices.Concat(rootPEM, middlePEM), 1, 1},
		{"twice the same", slices.Concat(rootPEM, rootPEM), 1, 0},
		{"with text", slices.Concat([]byte("# release\n"), rootPEM, []byte("\n# end\n")), 1, 0},
		{"with a CRL", slices.Concat(pemOf("X509 CRL", []byte{1, 2}), rootPEM), 1, 0},
		{"52 missing", nil, 0, 0},
		{"52 garbage", bytes.Repeat([]byte{0xff, '-'}, 5000), 0, 0},
		{"52 only a CRL", pemOf("X509 CRL", []byte{1, 2}), 0, 0},
		{"52 only a key", pemOf("PRIVATE KEY", []byte{1, 2}), 0, 0},
		{"52 no self-signed one", middlePEM, 0, 0},
		{"52 broken certificate", slices.Concat(rootPEM, pemOf("CERTIFICATE", root.cert.Raw[:50])), 0, 0},
		{"52 too large", slices.Concat(rootPEM, make([]byte, 1<<20)), 0, 0},
		{"52 too many", bytes.Repeat(rootPEM, maxKeyringCerts+1), 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, err := ParseKeyring(c.data)
			if c.anchors == 0 {
				if CodeOf(err) != KeyMissing || k != nil {
					t.Errorf("%v, %v", k, err)
				}
				return
			}
			if err != nil || len(k.Anchors) != c.anchors || len(k.Intermediates) != c.other {
				t.Errorf("%v, %v", k, err)
			}
		})
	}
	if got := keyringOf(root, middle).NewestNotBefore(); !got.Equal(now) {
		t.Errorf("newest begin %s", got)
	}
	signer := issue(t, "signer", root, nil, nil)
	der, err := Sign(content, false, signer.key, signer.cert, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	check(t, der, Rules{}, KeyMissing)
	check(t, der, Rules{Keyring: new(Keyring)}, KeyMissing)
}

func TestName(t *testing.T) {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "a\n\x1b[31m" + strings.Repeat("é", 200)}}
	got := name(c)
	if strings.ContainsAny(got, "\n\x1b") || len(got) > 140 {
		t.Errorf("name for messages is %q", got)
	}
}

func FuzzKeyring(f *testing.F) {
	seed, err := os.ReadFile("testdata/keyring.pem")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(slices.Concat([]byte("text\n"), pemOf("X509 CRL", []byte{0x30, 0}), seed))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseKeyring(data)
		if (err == nil) != (k != nil && len(k.Anchors) > 0) || err != nil && CodeOf(err) != KeyMissing {
			t.Fatalf("%v, %v", k, err)
		}
		if err == nil {
			k.NewestNotBefore()
		}
	})
}
