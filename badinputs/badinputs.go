// Package badinputs is the list of what a device must refuse, with the code of each refusal, and makes it: bundles that
// are forged, damaged, for another device, or that lie. Tests give each to the commands and to the device; nothing of
// it is part of a program.
//
// Rows are numbered 1 to 120, with letters where one was added in between. [Inputs] are the rows that are bundles;
// [Elsewhere] says of every other one which test has it, or why there is none.
package badinputs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/verify"
	"lifeboat/verify/keys"
	"lifeboat/verify/verity"
)

// Code is that of a refusal; 0: accepted.
type Code = verify.Code

// Input is a bundle that must be refused, or must not.
type Input struct {
	Row  string // of the list: "33a"
	Name string // one line, different from all others
	// PC is the exit status of `lifeboat bundle verify`, Device what a device says of the bundle on a stick.
	PC, Device Code
	Plain      bool // bundles of format plain are allowed
	// Wipes says that the device notices only while it writes: the bundle is signed and its payload is what was signed,
	// but cannot be unpacked. The slot that it was for is then empty.
	Wipes   bool
	Keyring []byte // judged by this instead of the kit's; PEM
	Floor   uint32 // security epoch of the device
	Make    func() []byte
}

// File is a file name for the input.
func (i Input) File() string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, i.Row+" "+i.Name)
	return name + ".raucb"
}

// Kit makes inputs for one device.
type Kit struct {
	T          testing.TB
	Keys       *keys.Set // EC keys
	Compatible string
	Now        time.Time
	Image      []byte // of the good bundle

	serial int64
	good   []byte // payload and hash tree of the good bundle
	head   string
	web    keys.Pair
}

// New makes a kit. It skips the test where there is no mksquashfs.
func New(t testing.TB, set *keys.Set, compatible string) *Kit {
	t.Helper()
	if _, err := exec.LookPath("mksquashfs"); err != nil {
		t.Skip("mksquashfs is not installed")
	}
	k := &Kit{T: t, Keys: set, Compatible: compatible, Now: time.Now(), Image: Content(1, 64<<10), serial: time.Now().UnixNano()}
	k.good, k.head = k.payload(map[string][]byte{file: k.Image})
	k.web = k.issue("a CA of the web", keys.Pair{}, nil, authority)
	return k
}

// Load reads the keys that `lifeboat keys init` made in dir, as far as a kit needs them.
func Load(dir string) (*keys.Set, error) {
	s := new(keys.Set)
	block := func(name string) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		p, _ := pem.Decode(b)
		if p == nil {
			return nil, fmt.Errorf("%s is no PEM file", name)
		}
		return p.Bytes, nil
	}
	for name, to := range map[string]*keys.Pair{"release-ca": &s.ReleaseCA, "release": &s.Release, "develop-ca": &s.DevelopCA, "develop": &s.Develop} {
		der, err := block(name + ".cert.pem")
		if err == nil {
			to.Cert, err = x509.ParseCertificate(der)
		}
		if err == nil {
			der, err = block(name + ".key.pem")
		}
		if err != nil {
			return nil, err
		}
		key, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		to.Key = key.(crypto.Signer)
	}
	der, err := block("release.keyring.pem")
	if err != nil {
		return nil, err
	}
	s.ReleaseAnchor, err = x509.ParseCertificate(der)
	return s, err
}

func (k *Kit) must(err error) {
	k.T.Helper()
	if err != nil {
		k.T.Fatal(err)
	}
}

// Content is n bytes that compress by about a half.
func Content(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		if i%64 < 32 {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}

const (
	file = "rootfs.img"
	salt = "0707070707070707070707070707070707070707070707070707070707070707"
)

// squashfs packs files; args are mksquashfs's.
func (k *Kit) squashfs(files map[string][]byte, args ...string) []byte {
	k.T.Helper()
	dir, err := os.MkdirTemp(k.T.TempDir(), "payload")
	k.must(err)
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	k.must(os.Mkdir(in, 0o755))
	for name, b := range files {
		k.must(os.WriteFile(filepath.Join(in, name), b, 0o644))
	}
	args = append([]string{in, out, "-all-root", "-noappend", "-no-progress", "-no-xattrs", "-quiet"}, args...)
	if text, err := exec.CommandContext(context.Background(), "mksquashfs", args...).CombinedOutput(); err != nil {
		k.T.Fatalf("mksquashfs: %v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	k.must(err)
	return b
}

type writerAt []byte

func (b writerAt) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

// tree appends the hash tree to a squashfs, and returns the head of a manifest with its root hash.
func (k *Kit) tree(squashfs []byte) (payload []byte, head string) {
	blocks := int64(len(squashfs)) / verity.BlockSize
	size := verity.TreeBlocks(blocks) * verity.BlockSize
	payload = append(bytes.Clone(squashfs), make([]byte, size)...)
	raw, err := hex.DecodeString(salt)
	k.must(err)
	b := verity.NewBuilder(writerAt(payload), blocks*verity.BlockSize, blocks, raw)
	_, err = b.Write(squashfs)
	k.must(err)
	root, err := b.Finish()
	k.must(err)
	return payload, fmt.Sprintf("[update]\ncompatible=%s\nversion=2.0\n\n[bundle]\nformat=verity\nverity-hash=%x\nverity-salt=%s\nverity-size=%d\n",
		k.Compatible, root, salt, size)
}

func (k *Kit) payload(files map[string][]byte, args ...string) ([]byte, string) {
	return k.tree(k.squashfs(files, args...))
}

// describe is the group of an image in a manifest.
func describe(class, file string, data []byte) string {
	return fmt.Sprintf("\n[image.%s]\nsha256=%x\nsize=%d\nfilename=%s\n", class, sha256.Sum256(data), len(data), file)
}

// manifest is the one of the good bundle.
func (k *Kit) manifest() string { return k.head + describe("rootfs", file, k.Image) }

// join puts a bundle together.
func join(payload, cms []byte) []byte { return joinSaying(payload, cms, uint64(len(cms))) }

func joinSaying(payload, cms []byte, n uint64) []byte {
	return binary.BigEndian.AppendUint64(append(bytes.Clone(payload), cms...), n)
}

// sign makes the CMS that the release signer makes.
func (k *Kit) sign(content []byte, detached bool) []byte {
	k.T.Helper()
	der, err := verify.Sign(content, detached, k.Keys.Release.Key, k.Keys.Release.Cert, nil, k.Now)
	k.must(err)
	return der
}

// Good is a bundle that is to be accepted.
func (k *Kit) Good() []byte { return join(k.good, k.sign([]byte(k.manifest()), false)) }

// Web is the certificate of the CA whose signer row 51 is.
func (k *Kit) Web() []byte { return certPEM(k.web.Cert) }

// Keyring is what the device trusts; PEM.
func (k *Kit) Keyring() []byte { return certPEM(k.Keys.ReleaseAnchor) }

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// Inputs are the rows that are bundles, and some that must be accepted, or refusing all would pass.
func (k *Kit) Inputs() []Input {
	accepted := []Input{
		{Row: "0", Name: "good", Make: k.Good},
		{Row: "0", Name: "good plain", Plain: true, Make: func() []byte { return k.plain(k.plainManifest()) }},
	}
	return slices.Concat(accepted, k.containers(), k.signatures(), k.manifests(), k.payloads(), k.tars())
}
