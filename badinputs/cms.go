package badinputs

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"slices"

	"lifeboat/verify/keys"
)

// containers are rows 1 to 12: what is not a bundle, or has no CMS in it.
func (k *Kit) containers() []Input {
	content := []byte(k.manifest())
	good := k.sign(content, false)
	raw := func(row, name string, code Code, b func() []byte) Input {
		return Input{Row: row, Name: name, PC: code, Device: code, Make: b}
	}
	in := func(row, name string, code Code, der func() []byte) Input {
		return raw(row, name, code, func() []byte { return join(k.good, der()) })
	}
	noise := func(n int) []byte {
		b := make([]byte, n)
		mathrand.NewChaCha8([32]byte{11}).Read(b)
		return b
	}
	repeat := func(what ...byte) func() []byte { return func() []byte { return bytes.Repeat(what, 64<<10/len(what)) } }
	return []Input{
		raw("1", "empty file", 20, func() []byte { return nil }),
		raw("2", "seven bytes", 20, func() []byte { return k.good[:7] }),
		raw("3", "signature of no bytes", 20, func() []byte { return join(k.good, nil) }),
		raw("4", "signature longer than the file", 20, func() []byte { return joinSaying(k.good, good, uint64(len(k.good)+len(good)+9)) }),
		raw("5", "signature of 2^63 bytes", 20, func() []byte { return joinSaying(k.good, good, 1<<63) }),
		raw("5", "signature of 2^64-1 bytes", 20, func() []byte { return joinSaying(k.good, good, 1<<64-1) }),
		in("6", "signature of more than 64 KiB", 31, func() []byte { return append(make([]byte, 64<<10), good...) }),
		in("7", "a byte behind the CMS", 20, func() []byte { return append(bytes.Clone(good), 0) }),
		in("7", "the CMS lacks a byte", 20, func() []byte { return good[:len(good)-1] }),
		in("8", "indefinite length", 20, func() []byte {
			return append(append([]byte{tagSequence, 0x80}, good[4:]...), 0, 0)
		}),
		in("9", "long form of a short length", 20, func() []byte {
			return bytes.Replace(good, version1, []byte{tagInteger, 0x81, 1, 1}, 1)
		}),
		in("9", "length with a leading zero", 20, func() []byte {
			b := slices.Insert(bytes.Clone(good), 2, 0)
			b[1]++
			return b
		}),
		in("10", "ten thousand levels", 20, func() []byte {
			var b []byte
			for range 10_000 {
				b = tlv(tagSequence, b)
			}
			return b
		}),
		in("11", "64 KiB of noise", 20, func() []byte { return noise(64 << 10) }),
		in("11", "64 KiB of zeros", 20, repeat(0)),
		in("11", "64 KiB of open sequences", 20, repeat(tagSequence, 0x80)),
		in("11", "64 KiB of empty sets", 20, func() []byte { return tlv(tagSequence, repeat(tagSet, 0)()[:64<<10-8]) }),
		in("11", "sequences that end together", 20, func() []byte {
			var b []byte
			for n := 64<<10 - 4; n > 8; n -= 4 {
				b = append(b, tagSequence, 0x82, byte(n>>8), byte(n))
			}
			return append(b, make([]byte, 64<<10-len(b))...)
		}),
		in("12", "EnvelopedData by name only", 20, func() []byte {
			return cms{outer: oidEnvelopedData, signers: []signer{{by: k.Keys.Release}}}.der(k, content)
		}),
	}
}

// signatures are rows 13 to 52: a CMS that is well formed and must not count.
func (k *Kit) signatures() []Input {
	content := []byte(k.manifest())
	release, ca := k.Keys.Release, keys.Pair{Cert: k.Keys.ReleaseAnchor, Key: k.Keys.ReleaseCA.Key}
	row := func(row, name string, code Code, c func() cms) Input {
		return Input{Row: row, Name: name, PC: code, Device: code, Make: func() []byte { return join(k.good, c().der(k, content)) }}
	}
	// by is a right signature of a signer under the release CA whose certificate has been changed.
	by := func(r, name string, code Code, changes ...func(*x509.Certificate)) Input {
		return row(r, name, code, func() cms { return cms{signers: []signer{{by: k.issue("signer", ca, nil, changes...)}}} })
	}
	// one changes the CMS of the release signer.
	one := func(r, name string, code Code, s signer) Input {
		s.by = release
		return row(r, name, code, func() cms { return cms{signers: []signer{s}} })
	}
	attrs := func(r, name string, a ...[]byte) Input { return one(r, name, 21, signer{attrs: a}) }
	ct, md := usualContType, digestAttr(content)
	at := func(tag byte, s string) []byte { return attribute(oidSigningTime, tlv(tag, []byte(s))) }
	raw := func(b []byte) func([]byte) []byte { return func([]byte) []byte { return b } }
	ints := func(r, s []byte) []byte { return tlv(tagSequence, tlv(tagInteger, r), tlv(tagInteger, s)) }
	order := append([]byte{0}, elliptic.P256().Params().N.Bytes()...)
	chain := func(by keys.Pair, issuers ...keys.Pair) cms {
		c := cms{signers: []signer{{by: by}}, certs: [][]byte{by.Cert.Raw}}
		for _, p := range issuers {
			c.certs = append(c.certs, p.Cert.Raw)
		}
		return c
	}
	root := k.issue("a root of its own", keys.Pair{}, nil, authority)
	middle := k.issue("middle", root, nil, authority)
	leaf := k.issue("signer", middle, nil)
	underRoot := func(in Input) Input { in.Keyring = certPEM(root.Cert); return in }
	year := func(from, to int) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = k.Now.AddDate(from, 0, 0), k.Now.AddDate(to, 0, 0)
		}
	}
	notYet := by("41", "not yet valid", 23, year(1, 2))
	notYet.Device = 0 // its clock is not trusted: see the rule of the floor
	keyring := func(name string, k []byte) Input { return Input{Row: "52", Name: name, PC: 32, Device: 32, Keyring: k} }

	all := []Input{
		row("13", "no signer", 21, func() cms { return cms{certs: [][]byte{release.Cert.Raw}} }),
		row("14", "nine signers", 31, func() cms { return cms{signers: slices.Repeat([]signer{{by: release}}, 9)} }),
		one("15", "no signed attributes", 21, signer{noAttrs: true}),
		{Row: "16", Name: "signed attributes as the content", PC: 21, Device: 21, Make: func() []byte {
			attrs := [][]byte{ct, md}
			slices.SortFunc(attrs, bytes.Compare)
			set := tlv(tagSet, attrs...)
			return join(k.good, cms{signers: []signer{{by: release, noAttrs: true}}}.der(k, set))
		}},
		attrs("17", "no content type", md),
		attrs("18", "content type of two values", attribute(oidContentType, oidData, oidData), md),
		attrs("18", "content type twice", ct, ct, md),
		attrs("19", "no message digest", ct),
		attrs("19", "message digest of something else", ct, digestAttr([]byte("else"))),
		attrs("20", "signing time is a string", ct, md, at(0x0c, "300601120000Z")),
		attrs("20", "signing time in month 13", ct, md, at(tagUTCTime, "301301120000Z")),
		row("21", "content type changed", 21, func() cms { return cms{contentType: oidTSTInfo, signers: []signer{{by: release}}} }),
		attrs("21", "signed content type differs", attribute(oidContentType, oidTSTInfo), md),
		{Row: "22", Name: "detached signature on verity", PC: 20, Device: 20, Make: func() []byte { return join(k.good, k.sign(k.good, true)) }},
		{Row: "23", Name: "manifest in the signature of a plain bundle", PC: 20, Device: 20, Plain: true, Make: func() []byte {
			return join(k.plainPayload(k.plainManifest()), k.sign([]byte(k.plainManifest()), false))
		}},
		one("24", "SHA-1", 31, signer{digestAlg: tlv(tagSequence, oidSHA1, null)}),
		one("24", "MD5", 31, signer{digestAlg: tlv(tagSequence, oidMD5, null)}),
		one("24", "ECDSA with SHA-1", 31, signer{sigAlg: tlv(tagSequence, oidECDSASHA1)}),
		by("24", "certificate signed with SHA-1", 31, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }),
		row("25", "RSA of 1024 bits", 31, func() cms {
			key := k.smallRSA()
			return cms{signers: []signer{{by: k.issue("signer", ca, key), sign: key.sign}}}
		}),
		row("26", "P-224", 31, func() cms { return cms{signers: []signer{{by: k.issue("signer", ca, k.curve(elliptic.P224()))}}} }),
		row("26", "secp256k1", 31, func() cms {
			pair := k.issue("signer", ca, nil)
			var spki struct{ Algorithm, Key asn1.RawValue }
			_, err := asn1.Unmarshal(pair.Cert.RawSubjectPublicKeyInfo, &spki)
			k.must(err)
			other := tlv(tagSequence, tlv(tagSequence, oidECKey, oidSecp256k1), spki.Key.FullBytes)
			return cms{signers: []signer{{by: pair}}, certs: [][]byte{k.recertify(pair.Cert, ca, other)}}
		}),
		row("27", "PSS with another salt length", 21, func() cms { return k.pss(ca, oidSHA256, 20) }),
		row("27", "PSS with another hash", 21, func() cms { return k.pss(ca, oidSHA512, 32) }),
		one("28", "r and s are 0", 21, signer{sign: raw(ints([]byte{0}, []byte{0}))}),
		one("28", "s is n", 21, signer{sign: raw(ints([]byte{1}, order))}),
		row("29", "forged padding under e=3", 21, func() cms { return k.cube(ca) }),
		row("30", "self-signed", 22, func() cms { return chain(k.issue("signer", keys.Pair{}, nil)) }),
		row("31", "right name of the CA and wrong key", 22, func() cms {
			impostor := k.issue("", keys.Pair{}, nil, authority, func(c *x509.Certificate) { c.RawSubject = ca.Cert.RawSubject })
			return chain(k.issue("signer", impostor, nil), impostor)
		}),
		row("31", "signer of another CA", 22, func() cms { return chain(k.Keys.Develop, k.Keys.DevelopCA) }),
		underRoot(row("32", "intermediate missing", 22, func() cms { return chain(leaf) })),
		underRoot(row("0", "intermediate there", 0, func() cms { return chain(leaf, middle) })),
		row("33", "a CA below a CA that allows none", 22, func() cms {
			below := k.issue("below", ca, nil, authority)
			return chain(k.issue("signer", below, nil), below)
		}),
		row("33", "issued by a signer", 22, func() cms {
			parent := k.issue("signer", ca, nil)
			return chain(k.issue("another", parent, nil), parent)
		}),
		row("33a", "a CA signs", 26, func() cms { return chain(k.issue("a CA", ca, nil, authority)) }),
		row("33a", "the anchor signs", 26, func() cms { return chain(ca) }),
		by("33b", "key usage is key encipherment", 26, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }),
		by("33c", "any extended key usage", 26, usages(x509.ExtKeyUsageAny)),
		by("34", "e-mail protection", 26, usages(x509.ExtKeyUsageEmailProtection)),
		by("35", "time stamping", 26, usages(x509.ExtKeyUsageTimeStamping)),
		by("36", "no extended key usage", 26, usages()),
		by("37", "unknown critical extension", 22, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: null}}
		}),
		by("38", "NUL in the name", 22, func(c *x509.Certificate) { c.Subject.CommonName = "good\x00evil" }),
		row("39", "two certificates of one issuer and number", 22, func() cms {
			return chain(release, k.issue("twin", ca, nil, func(c *x509.Certificate) { c.SerialNumber = release.Cert.SerialNumber }))
		}),
		by("40", "expired", 23, year(-2, -1)),
		notYet,
		row("50", "one signer twice", 25, func() cms {
			var sig []byte // the same, to the byte
			again := func(m []byte) []byte {
				if sig == nil {
					var err error
					sig, err = release.Key.Sign(rand.Reader, sum(crypto.SHA256, m), crypto.SHA256)
					k.must(err)
				}
				return sig
			}
			return cms{signers: slices.Repeat([]signer{{by: release, sign: again}}, 2)}
		}),
		row("51", "a chain that the system's roots would accept", 22, func() cms { return chain(k.issue("example.org", k.web, nil), k.web) }),
		keyring("keyring is empty", []byte{}),
		keyring("keyring is garbage", bytes.Repeat([]byte{0xff, '-'}, 2000)),
		keyring("keyring of a private key", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")),
	}
	for i := range all {
		if all[i].Row == "52" {
			all[i].Make = k.Good
		}
	}
	return all
}

// pss signs with RSA-PSS over SHA-256 and a salt of 32 bytes, and says hash and salt.
func (k *Kit) pss(ca keys.Pair, hash []byte, salt byte) cms {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	k.must(err)
	alg := tlv(tagSequence, hash, null)
	return cms{signers: []signer{{
		by: k.issue("signer", ca, key), digestAlg: tlv(tagSequence, oidSHA256),
		sigAlg: tlv(tagSequence, oidPSS, tlv(tagSequence, tlv(tagContext0, alg),
			tlv(tagContext1, tlv(tagSequence, oidMGF1, alg)), tlv(tagContext2, []byte{tagInteger, 1, salt}))),
		sign: func(m []byte) []byte {
			sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum(crypto.SHA256, m), &rsa.PSSOptions{SaltLength: 32})
			k.must(err)
			return sig
		},
	}}}
}

// sha256Info comes before a SHA-256 in PKCS #1 v1.5.
var sha256Info = []byte{0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20}

// cube forges a signature for an RSA key with e=3: a number whose cube only begins like the padded digest.
func (k *Kit) cube(ca keys.Pair) cms {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	k.must(err)
	key.E = 3
	return cms{signers: []signer{{by: k.issue("signer", ca, key), sign: func(m []byte) []byte {
		block := slices.Concat([]byte{0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0}, sha256Info, sum(crypto.SHA256, m))
		block = append(block, bytes.Repeat([]byte{0xff}, 256-len(block))...)
		n := new(big.Int).SetBytes(block)
		low, high := big.NewInt(0), new(big.Int).Lsh(big.NewInt(1), uint(n.BitLen()/3+1))
		for {
			mid := new(big.Int).Rsh(new(big.Int).Add(low, high), 1)
			if mid.Cmp(low) == 0 {
				return low.FillBytes(make([]byte, 256))
			}
			if new(big.Int).Exp(mid, big.NewInt(3), nil).Cmp(n) <= 0 {
				low = mid
			} else {
				high = mid
			}
		}
	}}}}
}

// smallRSA is a key of 1024 bits, which crypto/rsa does not make and does not sign with.
type smallRSA struct{ n, d *big.Int }

func (k *Kit) smallRSA() smallRSA {
	e, one := big.NewInt(65537), big.NewInt(1)
	for {
		p, err := rand.Prime(rand.Reader, 512)
		k.must(err)
		q, err := rand.Prime(rand.Reader, 512)
		k.must(err)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		if d := new(big.Int).ModInverse(e, phi); d != nil {
			return smallRSA{new(big.Int).Mul(p, q), d}
		}
	}
}

func (s smallRSA) Public() crypto.PublicKey { return &rsa.PublicKey{N: s.n, E: 65537} }

func (s smallRSA) Sign(_ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	return nil, nil // issues nothing
}

func (s smallRSA) sign(m []byte) []byte {
	block := append([]byte{0, 1}, bytes.Repeat([]byte{0xff}, 128-3-len(sha256Info)-32)...)
	block = slices.Concat(block, []byte{0}, sha256Info, sum(crypto.SHA256, m))
	return new(big.Int).Exp(new(big.Int).SetBytes(block), s.d, s.n).FillBytes(make([]byte, 128))
}
