package bundle

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/verify"
	"lifeboat/verify/keys"
	"lifeboat/verify/verity"
)

// signers are made once: RSA keys take their time.
var (
	ecKeys  = sync.OnceValues(func() (*keys.Set, error) { return keys.New(keys.Options{}) })
	rsaKeys = sync.OnceValues(func() (*keys.Set, error) { return keys.New(keys.Options{RSA: 2048}) })
)

func testKeys(t testing.TB) *keys.Set {
	t.Helper()
	s, err := ecKeys()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func rulesFor(s *keys.Set) verify.Rules {
	return verify.Rules{Keyring: &verify.Keyring{Anchors: []*x509.Certificate{s.ReleaseAnchor}}, Now: time.Now(), Trusted: true}
}

func need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
}

func run(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// content is n bytes that compress by about a half.
func content(seed int64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewSource(seed))
	for i := 0; i < n; i += 64 {
		r.Read(b[i:min(i+32, n)])
	}
	return b
}

func write(t testing.TB, dir string, files map[string][]byte) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const draft = `[update]
compatible=demo
version=1.0

[image.rootfs]
filename=rootfs.img
`

// made assembles a verity bundle of any content: the files of the payload, and
// a manifest in which @HASH@, @SALT@, @SIZE@ stand for those of the payload.
func made(t testing.TB, s *keys.Set, files map[string][]byte, manifest string) []byte {
	t.Helper()
	need(t, "mksquashfs")
	dir := t.TempDir()
	payload := filepath.Join(dir, "payload")
	run(t, "mksquashfs", write(t, filepath.Join(dir, "in"), files), payload, "-all-root", "-noappend", "-no-progress", "-no-xattrs", "-quiet")
	b, err := os.ReadFile(payload)
	if err != nil {
		t.Fatal(err)
	}
	salt := bytes.Repeat([]byte{7}, 32)
	blocks := int64(len(b)) / verity.BlockSize
	b = append(b, make([]byte, verity.TreeBlocks(blocks)*verity.BlockSize)...)
	tree := verity.NewBuilder(at(b), blocks*verity.BlockSize, blocks, salt)
	if _, err := tree.Write(b[:blocks*verity.BlockSize]); err != nil {
		t.Fatal(err)
	}
	root, err := tree.Finish()
	if err != nil {
		t.Fatal(err)
	}
	manifest = strings.NewReplacer("@HASH@", hex.EncodeToString(root[:]), "@SALT@", hex.EncodeToString(salt),
		"@SIZE@", fmt.Sprint(verity.TreeBlocks(blocks)*verity.BlockSize)).Replace(manifest)
	return signed(t, s, b, []byte(manifest), false)
}

// signed appends a signature over content to a payload.
func signed(t testing.TB, s *keys.Set, payload, content []byte, detached bool) []byte {
	t.Helper()
	cms, err := verify.Sign(content, detached, s.Release.Key, s.Release.Cert, []*x509.Certificate{s.ReleaseCA.Cert}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b := append(bytes.Clone(payload), cms...)
	return binary.BigEndian.AppendUint64(b, uint64(len(cms)))
}

type at []byte

func (b at) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

// parts takes a bundle's bytes apart.
func parts(b []byte) (payload, cms []byte) {
	n := int(binary.BigEndian.Uint64(b[len(b)-8:]))
	return b[:len(b)-8-n], b[len(b)-8-n : len(b)-8]
}

func image(class, file string, data []byte) string {
	return fmt.Sprintf("[image.%s]\nsha256=%x\nsize=%d\nfilename=%s\n", class, sha256.Sum256(data), len(data), file)
}

const head = "[update]\ncompatible=demo\n[bundle]\nformat=verity\nverity-hash=@HASH@\nverity-salt=@SALT@\nverity-size=@SIZE@\n"

// check opens a bundle and checks all of it.
func check(t testing.TB, b []byte, o Options) error {
	t.Helper()
	opened, err := Open(t.Context(), bytes.NewReader(b), int64(len(b)), o)
	if err != nil {
		return err
	}
	return opened.Check(t.Context())
}

func wantCode(t testing.TB, err error, want verify.Code) {
	t.Helper()
	if got := verify.CodeOf(err); got != want {
		t.Errorf("code %d, want %d: %v", got, want, err)
	}
}

// TestRefused are the listed bad inputs that are the bundle's business.
func TestRefused(t *testing.T) {
	s := testKeys(t)
	rules := rulesFor(s)
	img := content(1, 300_000)
	files := map[string][]byte{"rootfs.img": img, ManifestName: []byte("not looked at")}
	manifest := head + image("rootfs", "rootfs.img", img)
	good := made(t, s, files, manifest)
	payload, cms := parts(good)
	plainPayload := func(manifest string) []byte {
		b := made(t, s, map[string][]byte{"rootfs.img": img, ManifestName: []byte(manifest)}, manifest)
		p, _ := parts(b)
		return p[:len(p)-int(verity.TreeBlocks(int64(len(p))/verity.BlockSize))*verity.BlockSize]
	}
	plain := func(manifest string) []byte {
		p := plainPayload(manifest)
		return signed(t, s, p, p, true)
	}
	plainManifest := "[update]\ncompatible=demo\n" + image("rootfs", "rootfs.img", img)
	both := []string{FormatVerity, FormatPlain}
	join := func(bs ...[]byte) []byte { return bytes.Join(bs, nil) }
	trailer := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	wrong := *s
	wrong.Release = s.Develop
	wrong.ReleaseCA = s.DevelopCA
	other := made(t, s, map[string][]byte{"rootfs.img": content(2, 300_000)}, manifest)
	otherPayload, _ := parts(other)
	treeSize := int(verity.TreeBlocks(int64(len(payload))/verity.BlockSize)) * verity.BlockSize

	tests := []struct {
		name   string
		bundle []byte
		o      Options
		code   verify.Code
	}{
		{"good", good, Options{}, 0},
		{"good plain", plain(plainManifest), Options{Formats: both}, 0},
		{"1 empty", nil, Options{}, 20},
		{"2 short", good[:7], Options{}, 20},
		{"3 signature length 0", join(payload, trailer(0)), Options{}, 20},
		{"4 length beyond file", join(payload, cms, trailer(uint64(len(good)))), Options{}, 20},
		{"5 length 2^63", join(payload, cms, trailer(1<<63)), Options{}, 20},
		{"5 length 2^64-1", join(payload, cms, trailer(1<<64-1)), Options{}, 20},
		{"6 length over 64 KiB", join(payload, make([]byte, 64<<10), cms, trailer(uint64(64<<10+len(cms)))), Options{}, 31},
		{"7 byte after CMS", join(payload, cms, []byte{0}, trailer(uint64(len(cms)+1))), Options{}, 20},
		{"7 byte after the bundle", join(good, []byte{0}), Options{}, 20},
		{"22 detached signature on verity", signed(t, s, payload, payload, true), Options{}, 20},
		{"22 detached signature on verity, plain allowed", plain(manifest), Options{Formats: both}, 20},
		{"23 attached manifest on plain", signed(t, s, plainPayload(plainManifest), []byte(plainManifest), false), Options{Formats: both}, 20},
		{"31 wrong CA", made(t, &wrong, files, manifest), Options{}, 22},
		{"40 expired", good, Options{Rules: verify.Rules{Keyring: rules.Keyring, Now: time.Now().AddDate(200, 0, 0)}}, 23},
		{"52 no keyring", good, Options{Rules: verify.Rules{Keyring: &verify.Keyring{}, Now: time.Now()}}, 32},
		{"55 wrong compatible", good, Options{Compatible: "demo2"}, 27},
		{"55 right compatible", good, Options{Compatible: "demo"}, 0},
		{"56 unknown format", made(t, s, files, strings.Replace(manifest, "format=verity", "format=tar", 1)), Options{}, 31},
		{"56 crypt", made(t, s, files, strings.Replace(manifest, "format=verity", "format=crypt", 1)), Options{}, 31},
		{"57 plain while disabled", plain(plainManifest), Options{}, 31},
		{"57 verity while disabled", good, Options{Formats: []string{FormatPlain}}, 31},
		{"60 tree longer than payload", made(t, s, files, strings.Replace(manifest, "@SIZE@", "40960000", 1)), Options{}, 20},
		{"60 tree longer than it must be", made(t, s, files, strings.Replace(manifest, "@SIZE@", "8192", 1)), Options{}, 20},
		{"63 image not in payload", made(t, s, map[string][]byte{"other.img": img}, manifest), Options{}, 30},
		{"64 file not in manifest", made(t, s, map[string][]byte{"rootfs.img": img, "evil": img}, manifest), Options{}, 20},
		{"64 index that is not announced", made(t, s, map[string][]byte{"rootfs.img": img, "rootfs.img.block-hash-index": img}, manifest), Options{}, 20},
		{"64 index that is announced", made(t, s, map[string][]byte{"rootfs.img": img, "rootfs.img.block-hash-index": img}, manifest+"adaptive=block-hash-index\n"), Options{}, 0},
		{"66 size lies +1", made(t, s, files, strings.Replace(manifest, "size=300000", "size=300001", 1)), Options{}, 30},
		{"66 size lies -1", made(t, s, files, strings.Replace(manifest, "size=300000", "size=299999", 1)), Options{}, 30},
		{"66 hash lies", made(t, s, files, head+image("rootfs", "rootfs.img", content(3, 300_000))), Options{}, 30},
		{"68 hooks", made(t, s, files, manifest+"[hooks]\nfilename=h\n"), Options{}, 31},
		{"71 valid-until past", made(t, s, files, manifest+"[meta.lifeboat]\nvalid-until=2001-01-01T00:00:00Z\n"), Options{}, 29},
		{"71 valid-until to come", made(t, s, files, manifest+"[meta.lifeboat]\nvalid-until=2222-01-01T00:00:00Z\n"), Options{}, 0},
		{"root hash not signed", good, Options{RequireSignedVerity: true}, 31},
		{"79 payload of another bundle", join(otherPayload[:len(payload)-treeSize], payload[len(payload)-treeSize:], cms, trailer(uint64(len(cms)))), Options{}, 30},
		{"79 tree of another bundle", join(payload[:len(payload)-treeSize], otherPayload[len(otherPayload)-treeSize:], cms, trailer(uint64(len(cms)))), Options{}, 30},
		{"plain: another payload", signed(t, s, plainPayload(plainManifest), otherPayload, true), Options{Formats: both}, 21},
		{"plain without manifest", signed(t, s, otherPayload, otherPayload, true), Options{Formats: both}, 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.o.Rules.Keyring == nil {
				tt.o.Rules = rules
			}
			wantCode(t, check(t, tt.bundle, tt.o), tt.code)
		})
	}
}

// fickle is a medium that changes or fails after some reads.
type fickle struct {
	b     []byte
	reads atomic.Int64
	from  int64 // the first read that is affected
	err   error // nil: bytes differ
}

func (f *fickle) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(f.b).ReadAt(p, off)
	if f.reads.Add(1) > f.from {
		if f.err != nil {
			return 0, f.err
		}
		for i := range p[:n] {
			p[i] ^= 0x55
		}
	}
	return n, err
}

// TestFickle lets the medium show other bytes, or fail, from each of its reads
// on: what comes out is right or there is an error with the right code. Rows 104 to 107 of the bad inputs (105, 106: it fails,
// or flips what is read) as far as a reader can tell them.
func TestFickle(t *testing.T) {
	s := testKeys(t)
	img := content(1, 1_500_000)
	verityBundle := made(t, s, map[string][]byte{"rootfs.img": img}, head+image("rootfs", "rootfs.img", img))
	inner := "[update]\ncompatible=demo\n" + image("rootfs", "rootfs.img", img)
	p, _ := parts(made(t, s, map[string][]byte{"rootfs.img": img, ManifestName: []byte(inner)}, head+image("rootfs", "rootfs.img", img)))
	plainBundle := signed(t, s, p, p, true)
	for name, b := range map[string][]byte{"verity": verityBundle, "plain": plainBundle} {
		for _, broken := range []error{nil, errors.New("medium gone")} {
			refused := 0
			for from := int64(2); ; from++ {
				src := &fickle{b: b, from: from, err: broken}
				opened, err := Open(t.Context(), src, int64(len(b)), Options{Rules: rulesFor(s), Formats: []string{FormatVerity, FormatPlain}})
				var out bytes.Buffer
				if err == nil {
					var r *ImageReader
					if r, err = opened.Image(0); err == nil {
						r.SkipSHA256() // the blocks alone must do
						_, err = r.WriteTo(&out)
					}
				}
				if !bytes.Equal(out.Bytes(), img[:out.Len()]) {
					t.Fatalf("%s from read %d: wrong bytes came out", name, from)
				}
				if err == nil {
					if out.Len() != len(img) {
						t.Fatalf("%s from read %d: %d bytes came out", name, from, out.Len())
					}
					if src.reads.Load() > from {
						t.Fatalf("%s from read %d: a bad read was not noticed", name, from)
					}
					break
				}
				refused++
				code := verify.CodeOf(err)
				ok := code == verify.PayloadHash || name == "plain" && code == verify.BadSignature
				if broken != nil {
					ok = code == verify.IO
				}
				if !ok {
					t.Errorf("%s from read %d: code %d: %v", name, from, code, err)
				}
			}
			if refused < 5 {
				t.Errorf("%s: only %d reads were tried", name, refused)
			}
		}
	}
}

// TestOpenReadsNoPayload: nothing of a payload is read, so nothing parsed,
// before the signature is right; and of a verity bundle not by Open at all.
func TestOpenReadsNoPayload(t *testing.T) {
	s := testKeys(t)
	img := content(1, 200_000)
	b := made(t, s, map[string][]byte{"rootfs.img": img}, head+image("rootfs", "rootfs.img", img))
	payload, _ := parts(b)
	for _, anchor := range []*x509.Certificate{s.ReleaseAnchor, s.DevelopAnchor} {
		rules := rulesFor(s)
		rules.Keyring = &verify.Keyring{Anchors: []*x509.Certificate{anchor}}
		low := int64(len(b))
		Open(t.Context(), readerFunc(func(p []byte, off int64) (int, error) {
			low = min(low, off)
			return bytes.NewReader(b).ReadAt(p, off)
		}), int64(len(b)), Options{Rules: rules})
		if low < int64(len(payload)) {
			t.Errorf("Open reads the payload at %d", low)
		}
	}
}

type readerFunc func(p []byte, off int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// TestRead: the sequential way gives the same bytes and the same checks.
func TestRead(t *testing.T) {
	s := testKeys(t)
	img := content(1, 500_001)
	for name, want := range map[string]verify.Code{"right": 0, "wrong": verify.PayloadHash} {
		data := img
		if name == "wrong" {
			data = content(2, len(img))
		}
		b := made(t, s, map[string][]byte{"rootfs.img": data}, head+image("rootfs", "rootfs.img", img))
		opened, err := Open(t.Context(), bytes.NewReader(b), int64(len(b)), Options{Rules: rulesFor(s)})
		if err != nil {
			t.Fatal(err)
		}
		r, err := opened.Image(0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(struct{ io.Reader }{r})
		wantCode(t, err, want)
		if !bytes.Equal(got, data) {
			t.Error("other bytes")
		}
		w := errors.New("no room")
		r, _ = opened.Image(0)
		if _, err := r.WriteTo(writerFunc(func([]byte) (int, error) { return 0, w })); err != w {
			t.Errorf("the error of the writer became %v", err)
		}
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// FuzzTrailer opens any bytes. The seeds are fixed, signed bundles of the image
// content(1, 12000), so that what a worker finds is of use to the next.
func FuzzTrailer(f *testing.F) {
	bundles, image, o := fixtures(f)
	for _, good := range bundles {
		f.Add(good)
		f.Add(good[:len(good)-1])
		_, cms := parts(good)
		f.Add(append(bytes.Clone(cms), good[len(good)-8:]...))
	}
	f.Add(make([]byte, 9))
	f.Add(append(make([]byte, 64), 0, 0, 0, 0, 0, 0, 0, 64))
	want := sha256.Sum256(image)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Peek(bytes.NewReader(b), int64(len(b))); err != nil && verify.CodeOf(err) == verify.IO {
			t.Fatalf("peek: %v", err)
		}
		opened, err := Open(t.Context(), bytes.NewReader(b), int64(len(b)), o)
		if err != nil {
			if c := verify.CodeOf(err); c < verify.Malformed || c >= verify.IO {
				t.Fatalf("code %d: %v", c, err)
			}
			return
		}
		r, err := opened.Image(0)
		if err != nil {
			return
		}
		sum := sha256.New()
		if _, err := r.WriteTo(sum); err == nil && [32]byte(sum.Sum(nil)) != want {
			t.Fatal("bytes that nobody signed")
		}
	})
}

// differ compares two folders of files.
func differ(t testing.TB, a, b string) string {
	t.Helper()
	read := func(dir string) map[string]string {
		all := map[string]string{}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all[e.Name()] = fmt.Sprintf("%d bytes %x", len(data), sha256.Sum256(data))
		}
		return all
	}
	return cmp.Diff(read(a), read(b))
}
