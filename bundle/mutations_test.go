package bundle

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"lifeboat/verify"
	"lifeboat/verify/verity"
)

var (
	mutations = flag.Int("mutations", 12_000, "bundles with a byte changed that TestMutations opens")
	seed      = flag.Uint64("seed", 1, "of TestMutations")
)

// fixtures are the bundles of testdata, signed once and for all so that a mutation that is named can be made again, their
// image, and what they are opened with.
func fixtures(t testing.TB) (bundles map[string][]byte, image []byte, o Options) {
	t.Helper()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	keyring, err := verify.ParseKeyring(read("keyring.pem"))
	if err != nil {
		t.Fatal(err)
	}
	o = Options{Rules: verify.Rules{Keyring: keyring, Now: keyring.NewestNotBefore()}, Formats: []string{FormatVerity, FormatPlain}}
	bundles = map[string][]byte{FormatVerity: read("verity.raucb"), FormatPlain: read("plain.raucb")}
	for _, b := range bundles {
		if err := check(t, b, o); err != nil {
			t.Fatal(err)
		}
	}
	return bundles, content(1, 12_000), o
}

// install does what a device does with a bundle, and returns the image.
func install(t testing.TB, b []byte, o Options) ([]byte, *Manifest, error) {
	opened, err := Open(t.Context(), bytes.NewReader(b), int64(len(b)), o)
	if err == nil {
		err = opened.CheckPayload(t.Context(), nil)
	}
	if err != nil {
		return nil, nil, err
	}
	r, err := opened.Image(0)
	if err != nil {
		return nil, nil, err
	}
	var out bytes.Buffer
	_, err = r.WriteTo(&out)
	return out.Bytes(), opened.Manifest, err
}

// spare says whether a byte of a bundle decides nothing: one of a certificate that its signature does not need, or the
// version of the SignedData, which may be 1 or 3.
func spare(t testing.TB, b []byte, at int, o Options) bool {
	t.Helper()
	opened, err := Open(t.Context(), bytes.NewReader(b), int64(len(b)), o)
	if err != nil {
		t.Fatal(err)
	}
	cms, err := verify.ReadCMS(opened.CMS)
	if err != nil {
		t.Fatal(err)
	}
	payload, der := parts(b)
	if at == len(payload)+bytes.Index(der, []byte{2, 1, 1})+2 {
		return true
	}
	for _, c := range cms.Certificates() {
		begin := bytes.Index(b, c.Raw)
		if !slices.ContainsFunc(opened.Signed.Chain, c.Equal) && at >= begin && at < begin+len(c.Raw) {
			return true
		}
	}
	return false
}

// TestMutations (row 76) changes one byte of a bundle, in thousands of ways: each mutant is refused with a code, or is accepted
// with manifest and image as they were signed, where the byte means nothing. Wherever a byte of the payload, of the hash
// tree, of the trailer or of what is signed changes, it is refused.
func TestMutations(t *testing.T) {
	bundles, image, o := fixtures(t)
	t.Logf("seed %d", *seed)
	rng := rand.New(rand.NewPCG(*seed, 76))
	tried, accepted := map[string]int{}, map[string]int{}
	total := 0
	manifests := map[string]*Manifest{}
	for format, good := range bundles {
		_, m, err := install(t, good, o)
		if err != nil {
			t.Fatal(err)
		}
		manifests[format] = m
	}
	for n := range *mutations {
		format := []string{FormatVerity, FormatPlain}[n%2]
		good := bundles[format]
		payload, cms := parts(good)
		tree := len(payload) - int(manifests[format].VeritySize)
		var where string
		var at int
		switch rng.IntN(4) {
		case 0:
			where, at = "payload", rng.IntN(tree)
		case 1:
			where, at = "CMS", len(payload)+rng.IntN(len(cms))
		case 2:
			where, at = "trailer", len(good)-1-rng.IntN(trailerSize)
		case 3:
			if tree == len(payload) {
				continue // plain has none
			}
			where, at = "hash tree", tree+rng.IntN(len(payload)-tree)
		}
		where = format + " " + where
		bad := bytes.Clone(good)
		by := byte(1 + rng.IntN(255))
		bad[at] ^= by
		tried[where]++
		total++
		got, m, err := install(t, bad, o)
		code := verify.CodeOf(err)
		switch {
		case err == nil && (!bytes.Equal(got, image) || !bytes.Equal(m.Raw, manifests[format].Raw)):
			t.Fatalf("%s: byte %d ^ %#02x: accepted with something else in it", where, at, by)
		case err == nil && spare(t, good, at, o):
			accepted[where]++
		case err == nil:
			t.Errorf("%s: byte %d ^ %#02x: accepted", where, at, by)
		case code < verify.Malformed || code >= verify.IO:
			t.Errorf("%s: byte %d ^ %#02x: code %d: %v", where, at, by, code, err)
		case where == "verity payload" && code != verify.PayloadHash, where == "verity hash tree" && code != verify.PayloadHash,
			where == "plain payload" && code != verify.BadSignature:
			t.Errorf("%s: byte %d ^ %#02x: code %d: %v", where, at, by, code, err)
		}
	}
	t.Logf("figure: mutations: %d bundles with a byte changed (%v), none accepted with other content, accepted unchanged %v", total, tried, accepted)
}

// TestEveryTruncation (row 77) cuts bundles of both formats at every 4 KiB, and at every byte of CMS and trailer.
func TestEveryTruncation(t *testing.T) {
	small, _, o := fixtures(t)
	s := testKeys(t)
	img := content(1, 2_000_000)
	large := made(t, s, map[string][]byte{"rootfs.img": img}, head+image("rootfs", "rootfs.img", img))
	cuts := 0
	cut := func(good []byte, n int, o Options) {
		cuts++
		_, _, err := install(t, good[:n], o)
		if code := verify.CodeOf(err); code < verify.Malformed || code >= verify.IO {
			t.Errorf("%d of %d bytes: code %d: %v", n, len(good), code, err)
		}
	}
	for n := 0; n < len(large); n += verity.BlockSize {
		cut(large, n, Options{Rules: rulesFor(s)})
	}
	for _, good := range small {
		payload, _ := parts(good)
		for n := 0; n < len(payload); n += verity.BlockSize {
			cut(good, n, o)
		}
		for n := len(payload); n < len(good); n++ {
			cut(good, n, o)
		}
	}
	t.Logf("figure: truncations: %d, all refused", cuts)
}
