package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// verifyAs goes the way of a SignerInfo: algorithm identifiers, key, signature.
func verifyAs(pub any, digest, signature []byte, message, sig []byte) error {
	read := func(der []byte) algorithm { c := cursor{rest: der}; return c.algorithm() }
	s, err := schemeOf(read(digest), read(signature))
	if err != nil {
		return err
	}
	if err := checkKey(pub); err != nil {
		return Refuse(Policy, "%w", err)
	}
	return s.verifySignature(pub, message, sig)
}

var hashOIDs = map[crypto.Hash]string{
	crypto.SHA1: "\x2b\x0e\x03\x02\x1a", crypto.SHA256: oidSHA256, crypto.SHA384: oidSHA384, crypto.SHA512: oidSHA512,
	crypto.SHA512_224: "\x60\x86\x48\x01\x65\x03\x04\x02\x05", crypto.SHA512_256: "\x60\x86\x48\x01\x65\x03\x04\x02\x06",
	crypto.SHA224: "\x60\x86\x48\x01\x65\x03\x04\x02\x04",
}

func pssAlg(hash, mask crypto.Hash, salt int) []byte {
	null := []byte{tagNull, 0}
	return alg(oidRSAPSS, tlv(tagSequence,
		tlv(tagContext0, alg(hashOIDs[hash], null)),
		tlv(tagContext1, alg(oidMGF1, alg(hashOIDs[mask], null))),
		tlv(tagContext2, integer(int64(salt)))))
}

// TestSignatureEdges: signatures that are almost right, of every kind that is
// accepted, each beside one that is. The cases are those of the usual collections
// of test vectors, made here.
func TestSignatureEdges(t *testing.T) {
	message := []byte("message")
	reject := func(t *testing.T, name string, err error) {
		t.Helper()
		if CodeOf(err) != BadSignature {
			t.Errorf("%s: %v", name, err)
		}
	}
	for hash, oids := range map[crypto.Hash][2]string{
		crypto.SHA256: {oidSHA256WithRSA, oidECDSAWithSHA256},
		crypto.SHA384: {oidSHA384WithRSA, oidECDSAWithSHA384},
		crypto.SHA512: {oidSHA512WithRSA, oidECDSAWithSHA512},
	} {
		digest := alg(hashOIDs[hash])
		for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
			t.Run("ECDSA "+c.Params().Name+" "+hash.String(), func(t *testing.T) {
				key := curve(t, c).(*ecdsa.PrivateKey)
				r, s, err := ecdsa.Sign(rand.Reader, key, sum(hash, message))
				if err != nil {
					t.Fatal(err)
				}
				n := c.Params().N
				num := func(x *big.Int) []byte {
					b := x.Bytes()
					if len(b) == 0 || b[0] >= 0x80 {
						b = append([]byte{0}, b...)
					}
					return tlv(tagInteger, b)
				}
				pair := func(r, s *big.Int) []byte { return tlv(tagSequence, num(r), num(s)) }
				check := func(sig []byte) error {
					return verifyAs(&key.PublicKey, digest, alg(oids[1]), message, sig)
				}
				good := pair(r, s)
				if err := check(good); err != nil {
					t.Fatal(err)
				}
				// The other root is as right as the first.
				if err := check(pair(r, new(big.Int).Sub(n, s))); err != nil {
					t.Error(err)
				}
				zero, one, p := new(big.Int), big.NewInt(1), c.Params().P
				special := []*big.Int{zero, one, n, p, new(big.Int).Sub(n, one), new(big.Int).Add(n, one), new(big.Int).Add(p, one), new(big.Int).Lsh(one, 600)}
				for i, x := range special {
					for j, y := range special {
						reject(t, "special "+string(rune('0'+i))+string(rune('0'+j)), check(pair(x, y)))
					}
					reject(t, "r", check(pair(x, s)))
					reject(t, "s", check(pair(r, x)))
				}
				reject(t, "r+n", check(pair(new(big.Int).Add(r, n), s)))
				reject(t, "s+n", check(pair(r, new(big.Int).Add(s, n))))
				negative := bytes.Clone(num(new(big.Int).Lsh(one, uint(n.BitLen()-1))))
				reject(t, "negative", check(tlv(tagSequence, negative[:2], slices.Delete(negative, 0, 3), num(s))))
				v, _ := only(good, tagSequence)
				for name, bad := range map[string][]byte{
					"empty": {}, "swapped": pair(s, r), "only r": tlv(tagSequence, num(r)), "three": tlv(tagSequence, num(r), num(s), num(s)),
					"trailing": append(bytes.Clone(good), 0), "trailing inside": tlv(tagSequence, v.body, []byte{tagNull, 0}), "set": tlv(tagSet, v.body),
					"indefinite": slices.Concat([]byte{tagSequence, 0x80}, v.body, []byte{0, 0}), "padded": tlv(tagSequence, tlv(tagInteger, []byte{0, 0}, r.Bytes()), num(s)),
					"octet string": tlv(tagOctetString, v.body), "raw": append(r.FillBytes(make([]byte, 66)), s.FillBytes(make([]byte, 66))...),
					"cut off": good[:len(good)-1], "long form": slices.Concat([]byte{tagSequence, 0x82, 0, byte(len(v.body))}, v.body),
				} {
					reject(t, name, check(bad))
				}
				reject(t, "other message", verifyAs(&key.PublicKey, digest, alg(oids[1]), []byte("massage"), good))
			})
		}
		for _, bits := range []int{2048, 3072, 4096} {
			if hash != crypto.SHA256 && bits != 2048 {
				continue
			}
			t.Run("RSA "+hash.String(), func(t *testing.T) {
				key := rsaKey(t, bits).(*rsa.PrivateKey)
				d := sum(hash, message)
				good, err := rsa.SignPKCS1v15(nil, key, hash, d)
				if err != nil {
					t.Fatal(err)
				}
				check := func(sig []byte) error {
					return verifyAs(&key.PublicKey, digest, alg(oids[0], []byte{tagNull, 0}), message, sig)
				}
				if err := check(good); err != nil {
					t.Fatal(err)
				}
				size := bits / 8
				private := func(block []byte) []byte {
					m := new(big.Int).SetBytes(block)
					return m.Exp(m, key.D, key.N).FillBytes(make([]byte, size))
				}
				info := tlv(tagSequence, alg(hashOIDs[hash], []byte{tagNull, 0}), tlv(tagOctetString, d))
				block := func(head, info []byte, fill byte, tail []byte) []byte {
					n := size - len(head) - 1 - len(info) - len(tail)
					return slices.Concat(head, bytes.Repeat([]byte{fill}, n), []byte{0}, info, tail)
				}
				if !bytes.Equal(private(block([]byte{0, 1}, info, 0xff, nil)), good) {
					t.Fatal("the block is not that of PKCS #1")
				}
				other := tlv(tagSequence, alg(hashOIDs[crypto.SHA1], []byte{tagNull, 0}), tlv(tagOctetString, d))
				for name, bad := range map[string][]byte{
					"block type 0": private(block([]byte{0, 0}, info, 0xff, nil)), "block type 2": private(block([]byte{0, 2}, info, 0xff, nil)),
					"padding of 0": private(block([]byte{0, 1}, info, 0, nil)), "padding of 1": private(block([]byte{0, 1}, info, 1, nil)),
					"short padding":    private(block([]byte{0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0}, info, 0xff, nil)),
					"something behind": private(block([]byte{0, 1}, info, 0xff, []byte{0})), "no padding": private(append(make([]byte, size-len(info)), info...)),
					"without NULL":       private(block([]byte{0, 1}, tlv(tagSequence, alg(hashOIDs[hash]), tlv(tagOctetString, d)), 0xff, nil)),
					"NULL of two":        private(block([]byte{0, 1}, tlv(tagSequence, alg(hashOIDs[hash], []byte{tagNull, 1, 0}), tlv(tagOctetString, d)), 0xff, nil)),
					"digest is cut":      private(block([]byte{0, 1}, tlv(tagSequence, alg(hashOIDs[hash], []byte{tagNull, 0}), tlv(tagOctetString, d[1:])), 0xff, nil)),
					"named another hash": private(block([]byte{0, 1}, other, 0xff, nil)), "only the digest": private(block([]byte{0, 1}, d, 0xff, nil)),
					"empty": {}, "0": make([]byte, size), "1": append(make([]byte, size-1), 1), "n": key.N.Bytes(), "n-1": new(big.Int).Sub(key.N, big.NewInt(1)).Bytes(),
					"+n": new(big.Int).Add(new(big.Int).SetBytes(good), key.N).Bytes(), "short": good[1:], "long": append([]byte{0}, good...), "longer": append(bytes.Clone(good), 0),
				} {
					reject(t, name, check(bad))
				}
				for _, salt := range []int{1, 20, hash.Size()} {
					sig, err := rsa.SignPSS(rand.Reader, key, hash, d, &rsa.PSSOptions{SaltLength: salt})
					if err != nil {
						t.Fatal(err)
					}
					as := func(h, mask crypto.Hash, salt int) error {
						return verifyAs(&key.PublicKey, alg(hashOIDs[h]), pssAlg(h, mask, salt), message, sig)
					}
					if err := as(hash, hash, salt); err != nil {
						t.Errorf("PSS, salt of %d: %v", salt, err)
					}
					reject(t, "salt + 1", as(hash, hash, salt+1))
					reject(t, "salt 0", as(hash, hash, 0))
					reject(t, "long salt", as(hash, hash, 100_000))
					for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
						if h != hash {
							reject(t, "another hash", as(h, h, salt))
							reject(t, "another mask", as(hash, h, salt))
						}
					}
					reject(t, "PSS as PKCS #1", check(sig))
					sig[len(sig)-1] ^= 1
					reject(t, "flipped", as(hash, hash, salt))
					sig = private(bytes.Repeat([]byte{0xbc}, size-1))
					reject(t, "only the trailer", as(hash, hash, salt))
				}
			})
		}
	}
	t.Run("Ed25519", func(t *testing.T) {
		key := edKey(t).(ed25519.PrivateKey)
		pub := key.Public().(ed25519.PublicKey)
		good := ed25519.Sign(key, message)
		check := func(sig []byte) error {
			return verifyAs(pub, alg(oidSHA512), alg(oidEd25519), message, sig)
		}
		if err := check(good); err != nil {
			t.Fatal(err)
		}
		// S + the group order is the same signature to who does not look.
		order, _ := new(big.Int).SetString("1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed", 16)
		s := bytes.Clone(good[32:])
		slices.Reverse(s)
		s = new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
		slices.Reverse(s)
		for name, bad := range map[string][]byte{
			"empty": {}, "0": make([]byte, 64), "short": good[:63], "long": append(bytes.Clone(good), 0), "S + order": slices.Concat(good[:32], s),
			"only R": append(bytes.Clone(good[:32]), make([]byte, 32)...), "all ones": bytes.Repeat([]byte{0xff}, 64),
		} {
			reject(t, name, check(bad))
		}
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 0x10
			reject(t, "flipped", check(bad))
		}
	})
}

// TestWycheproof runs the vectors of project Wycheproof in the folder that
// WYCHEPROOF names (testvectors_v1) through the same door.
func TestWycheproof(t *testing.T) {
	dir := os.Getenv("WYCHEPROOF")
	if dir == "" {
		t.Skip("WYCHEPROOF names no folder with the vectors; TestSignatureEdges has cases of the same kinds")
	}
	hashes := map[string]crypto.Hash{
		"SHA-1": crypto.SHA1, "SHA-224": crypto.SHA224, "SHA-256": crypto.SHA256, "SHA-384": crypto.SHA384, "SHA-512": crypto.SHA512,
		"SHA-512/224": crypto.SHA512_224, "SHA-512/256": crypto.SHA512_256,
	}
	ecdsaOIDs := map[crypto.Hash]string{crypto.SHA256: oidECDSAWithSHA256, crypto.SHA384: oidECDSAWithSHA384, crypto.SHA512: oidECDSAWithSHA512}
	rsaOIDs := map[crypto.Hash]string{crypto.SHA256: oidSHA256WithRSA, crypto.SHA384: oidSHA384WithRSA, crypto.SHA512: oidSHA512WithRSA}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var files []string
	for _, pattern := range []string{
		"rsa_signature_[234]*_sha[235][581][642]_test.json", "rsa_pss_*_test.json", "ecdsa_secp*r1_sha[235][581][642]_test.json", "ed25519_test.json",
	} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s in %s: %v", pattern, dir, err)
		}
		files = append(files, found...)
	}
	total, refused := 0, 0
	for _, f := range files {
		name := filepath.Base(f)
		if strings.Contains(name, "shake") {
			continue
		}
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var suite struct {
			TestGroups []struct {
				SHA, MGFSHA  string
				SLen         int
				PublicKeyDer string
				PublicKey    json.RawMessage
				Tests        []struct {
					TcID             int
					Comment          string
					Msg, Sig, Result string
				}
			}
		}
		if err := json.Unmarshal(raw, &suite); err != nil {
			t.Fatal(err)
		}
		for _, g := range suite.TestGroups {
			pub, err := x509.ParsePKIXPublicKey(unhex(g.PublicKeyDer))
			if err != nil && strings.Contains(name, "params") {
				// A key with PSS parameters: Go knows them without.
				var keyOnly struct{ Modulus, PublicExponent string }
				if err = json.Unmarshal(g.PublicKey, &keyOnly); err == nil {
					pub = &rsa.PublicKey{N: new(big.Int).SetBytes(unhex(keyOnly.Modulus)), E: int(new(big.Int).SetBytes(unhex(keyOnly.PublicExponent)).Int64())}
				}
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			h := hashes[g.SHA]
			var sigAlg []byte
			policy := false // not ours to accept, however right it is
			switch {
			case strings.HasPrefix(name, "ed"):
				h, sigAlg = crypto.SHA512, alg(oidEd25519)
			case strings.HasPrefix(name, "ecdsa"):
				sigAlg = alg(ecdsaOIDs[h])
			case strings.HasPrefix(name, "rsa_sig"):
				sigAlg = alg(rsaOIDs[h], []byte{tagNull, 0})
			default:
				mask := hashes[g.MGFSHA]
				sigAlg = pssAlg(h, mask, g.SLen)
				policy = ecdsaOIDs[h] == "" || mask != h || g.SLen == 0
			}
			policy = policy || checkKey(pub) != nil
			for _, v := range g.Tests {
				total++
				err := verifyAs(pub, alg(hashOIDs[h]), sigAlg, unhex(v.Msg), unhex(v.Sig))
				switch {
				case policy:
					if refused++; err == nil {
						t.Errorf("%s %d: accepted against the policy", name, v.TcID)
					}
				case v.Result == "valid" && err != nil, v.Result == "invalid" && err == nil:
					t.Errorf("%s %d (%s): %s, but %v", name, v.TcID, v.Comment, v.Result, err)
				}
			}
		}
	}
	t.Logf("%d vectors, %d of them of kinds that are refused", total, refused)
}
