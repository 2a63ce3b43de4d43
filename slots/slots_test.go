package slots

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/bundle"
	"lifeboat/disk"
	"lifeboat/verify"
	"lifeboat/verify/keys"
	"lifeboat/verify/verity"
)

var testSet = sync.OnceValues(func() (*keys.Set, error) { return keys.New(keys.Options{}) })

func testKeys(t testing.TB) *keys.Set {
	t.Helper()
	s, err := testSet()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func rules(t testing.TB) verify.Rules {
	return verify.Rules{Keyring: testKeys(t).ReleaseKeyring(), Now: time.Now()}
}

func need(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
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

func folder(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const manifest = "[update]\ncompatible=demo\nversion=2.5\n[image.rootfs]\nfilename=rootfs.squashfs\n[meta.lifeboat]\nsecurity-epoch=3\ncreated=2026-01-01T00:00:00Z\n"

// bundleOf makes a bundle of one image: by lifeboat with a signed root hash
// ("verity", "plain"), or by rauc without ("rauc").
func bundleOf(t testing.TB, img []byte, kind string) []byte {
	t.Helper()
	need(t, "mksquashfs")
	s := testKeys(t)
	text := manifest
	if kind == "plain" {
		text += "[bundle]\nformat=plain\n"
	}
	if kind == "rauc" {
		text = strings.Split(manifest, "[meta")[0] + "[bundle]\nformat=verity\n"
	}
	in := folder(t, map[string][]byte{bundle.ManifestName: []byte(text), "rootfs.squashfs": img})
	out := filepath.Join(t.TempDir(), "out.raucb")
	if kind == "rauc" {
		need(t, "rauc")
		key, err := x509.MarshalPKCS8PrivateKey(s.Release.Key)
		if err != nil {
			t.Fatal(err)
		}
		block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
		k := folder(t, map[string][]byte{"key": block("PRIVATE KEY", key), "cert": block("CERTIFICATE", s.Release.Cert.Raw)})
		if msg, err := exec.Command("rauc", "bundle", "--key", k+"/key", "--cert", k+"/cert", in, out).CombinedOutput(); err != nil {
			t.Fatalf("rauc bundle: %v\n%s", err, msg)
		}
	} else {
		o := bundle.CreateOptions{Key: s.Release.Key, Cert: s.Release.Cert}
		if err := bundle.Create(t.Context(), in, out, o); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openBundle(t testing.TB, r io.ReaderAt, size int) *bundle.Bundle {
	t.Helper()
	b, err := bundle.Open(t.Context(), r, int64(size), bundle.Options{Rules: rules(t), Formats: []string{"verity", "plain"}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantCode(t testing.TB, err error, want verify.Code) {
	t.Helper()
	if got := verify.CodeOf(err); got != want {
		t.Errorf("code %d, want %d: %v", got, want, err)
	}
}

// space is what an image of n bytes needs.
func space(n int) int64 {
	blocks := (int64(n) + 4095) / 4096
	return (blocks+verity.TreeBlocks(blocks))*4096 + SealSize
}

// TestInstall installs bundles of each kind to slots that are exactly large
// enough and larger, reads them back, and lets veritysetup read them.
func TestInstall(t *testing.T) {
	for _, n := range []int{1, 4096, 4097, 1 << 20, 3<<20 + 1, 5 << 20} {
		for _, kind := range []string{"verity", "plain", "rauc"} {
			if kind == "rauc" && n < 10_000 {
				continue // rauc makes no bundle so small
			}
			t.Run(fmt.Sprintf("%s-%d", kind, n), func(t *testing.T) {
				img := content(int64(n), n)
				raw := bundleOf(t, img, kind)
				b := openBundle(t, bytes.NewReader(raw), len(raw))
				for _, more := range []int64{0, 512, 1 << 20} {
					size := space(n) + more
					dev := disk.NewMemory(size)
					guard := bytes.Repeat([]byte{0xa5}, int(size))
					dev.WriteAt(guard, 0)
					var reports []int64
					seal, err := Install(t.Context(), dev, b, 0, func(done, total int64) {
						if total != int64(n) {
							t.Errorf("total %d", total)
						}
						reports = append(reports, done)
					})
					if err != nil {
						t.Fatal(err)
					}
					if len(reports) != (n+pieceSize-1)/pieceSize || reports[len(reports)-1] != int64(n) {
						t.Errorf("progress %v", reports)
					}
					whole := make([]byte, size)
					dev.ReadAt(whole, 0)
					padded := append(bytes.Clone(img), make([]byte, -n&4095)...)
					if !bytes.Equal(whole[:len(padded)], padded) {
						t.Error("another image on the slot")
					}
					end := space(n) - SealSize
					if !bytes.Equal(whole[end:], guard[end:]) {
						t.Error("bytes behind the hash tree were written")
					}
					encoded, err := seal.Encode()
					if err != nil {
						t.Fatal(err)
					}
					if err := WriteSeal(dev, encoded); err != nil {
						t.Fatal(err)
					}
					read, err := ReadSeal(dev, size)
					if err != nil {
						t.Fatal(err)
					}
					facts, err := Attest(t.Context(), dev, size, read, rules(t), "demo", nil)
					if err != nil {
						t.Fatal(err)
					}
					want := Facts{
						Manifest: b.Manifest.Hash(), Version: "2.5", Epoch: 3, Created: 1767225600,
						DataBlocks: int64(len(padded) / 4096), Signed: true, FS: "squashfs",
						Salt: b.Manifest.Images[0].Salt,
					}
					wantKind := KindVerityImage
					switch kind {
					case "plain":
						want.Signed, wantKind = false, KindLocal
					case "rauc":
						want.Signed, wantKind = false, KindLocal
						want.Epoch, want.Created, want.Salt = 0, 0, seal.Salt
						if len(seal.Salt) != 32 {
							t.Errorf("salt of %d bytes", len(seal.Salt))
						}
					}
					want.RootHash, err = bundle.RootHash(bytes.NewReader(img), int64(n), want.Salt)
					if err != nil {
						t.Fatal(err)
					}
					if d := cmp.Diff(want, facts); d != "" {
						t.Error(d)
					}
					if seal.Kind != wantKind {
						t.Errorf("kind %s", seal.Kind)
					}
					if more == 0 && want.DataBlocks > 1 {
						veritysetup(t, whole, facts)
					}
				}
				// One sector less, and it is refused before anything is written.
				dev := disk.NewMemory(space(n) - 512)
				_, err := Install(t.Context(), dev, b, 0, nil)
				wantCode(t, err, verify.Policy)
				if first := make([]byte, 4096); true {
					dev.ReadAt(first, 0)
					if !bytes.Equal(first, make([]byte, 4096)) {
						t.Error("a slot that is too small was written to")
					}
				}
			})
		}
	}
}

func veritysetup(t *testing.T, slot []byte, f Facts) {
	if _, err := exec.LookPath("veritysetup"); err != nil {
		t.Log("veritysetup is not installed: not asked")
		return
	}
	path := filepath.Join(t.TempDir(), "slot")
	if err := os.WriteFile(path, slot, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("veritysetup", "verify", "--no-superblock", "--hash=sha256", "--salt="+hex.EncodeToString(f.Salt),
		fmt.Sprintf("--data-blocks=%d", f.DataBlocks), fmt.Sprintf("--hash-offset=%d", f.DataBlocks*4096), path, path, hex.EncodeToString(f.RootHash[:])).CombinedOutput()
	if err != nil {
		t.Errorf("veritysetup: %v\n%s", err, out)
	}
}

// recorder notes what is done to a device.
type recorder struct {
	disk.Device
	mu  sync.Mutex
	ops []string
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op := fmt.Sprintf(format, args...)
	if n := len(r.ops); n == 0 || r.ops[n-1] != op {
		r.ops = append(r.ops, op)
	}
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	where := "image and tree"
	if off >= r.Size()-SealSize {
		where = "seal"
	}
	r.note("write %s", where)
	return r.Device.WriteAt(p, off)
}

func (r *recorder) Flush() error {
	r.note("flush")
	return r.Device.Flush()
}

// TestOrder is rule 7 of the boot state as far as the slot goes: the old seal
// is gone before the first block of the image, which is durable before the new
// seal; and each step touches its own place only.
func TestOrder(t *testing.T) {
	img := content(1, 3<<20)
	raw := bundleOf(t, img, "verity")
	b := openBundle(t, bytes.NewReader(raw), len(raw))
	dev := &recorder{Device: disk.NewMemory(8 << 20)}
	if err := Wipe(dev); err != nil {
		t.Fatal(err)
	}
	seal, err := Install(t.Context(), dev, b, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSeal(dev, dev.Size()); !errors.Is(err, ErrMissing) {
		t.Errorf("after the install: %v", err)
	}
	if _, err := Attest(t.Context(), dev, dev.Size(), &seal, rules(t), "demo", nil); err != nil {
		t.Fatal(err)
	}
	encoded, err := seal.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteSeal(dev, encoded); err != nil {
		t.Fatal(err)
	}
	want := []string{"write seal", "flush", "write image and tree", "flush", "write seal", "flush"}
	if d := cmp.Diff(want, dev.ops); d != "" {
		t.Error(d)
	}
	if err := Wipe(dev); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSeal(dev, dev.Size()); !errors.Is(err, ErrMissing) {
		t.Errorf("after the wipe: %v", err)
	}
}

// broken is a medium that fails from an offset on.
type broken struct {
	disk.Device
	from int64
}

// counted counts the bytes that are read from a medium.
type counted struct {
	io.ReaderAt
	n atomic.Int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, off)
	c.n.Add(int64(n))
	return n, err
}

// TestResume goes on with an install that was ended anywhere: the slot is the same to the last byte, and what is in it is
// not read from the bundle again. Where what was written is not there any more, it is refused.
func TestResume(t *testing.T) {
	const n = 5<<20 + 77
	img := content(7, n)
	for _, kind := range []string{"verity", "plain", "rauc"} {
		raw := bundleOf(t, img, kind)
		medium := &counted{ReaderAt: bytes.NewReader(raw)}
		b := openBundle(t, medium, len(raw))
		whole := disk.NewMemory(space(n))
		if _, err := Install(t.Context(), whole, b, 0, nil); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, n)
		whole.ReadAt(want, 0)
		for _, from := range []int64{0, 1, 1 << 20, 3<<20 + 4097, 5 << 20, n} {
			dev := disk.NewMemory(space(n))
			dev.WriteAt(want[:from], 0)
			before, last := medium.n.Load(), int64(0)
			seal, err := Resume(t.Context(), dev, b, 0, from, &Old{}, func(done, total int64) {
				if done <= last || total != n {
					t.Errorf("%s from %d: %d of %d after %d", kind, from, done, total, last)
				}
				last = done
			})
			if err != nil || last != n {
				t.Fatalf("%s from %d: %v, %d bytes", kind, from, err, last)
			}
			if read := medium.n.Load() - before; from >= 5<<20 && read > 2<<20 {
				t.Errorf("%s from %d: %d bytes were read", kind, from, read)
			}
			encoded, err := seal.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if err := WriteSeal(dev, encoded); err != nil {
				t.Fatal(err)
			}
			if _, err := Attest(t.Context(), dev, dev.Size(), &seal, rules(t), "demo", nil); err != nil {
				t.Errorf("%s from %d: %v", kind, from, err)
			}
			got := make([]byte, n)
			dev.ReadAt(got, 0)
			if !bytes.Equal(got, want) {
				t.Errorf("%s from %d: another image", kind, from)
			}
		}
		dev := disk.NewMemory(space(n))
		dev.WriteAt(want[:3<<20], 0)
		dev.WriteAt([]byte{want[12345] ^ 1}, 12345)
		_, err := Resume(t.Context(), dev, b, 0, 3<<20, &Old{}, nil)
		wantCode(t, err, verify.PayloadHash)
	}
}

// TestUnchanged writes an image over others: what differs from it, what can't be read, its hash tree where that differs, and
// nothing else.
func TestUnchanged(t *testing.T) {
	const n = 16<<20 - 77
	blocks := (n + verity.BlockSize - 1) / verity.BlockSize
	size := space(n) - SealSize
	img := content(9, n)
	raw := bundleOf(t, img, "verity")
	b := openBundle(t, bytes.NewReader(raw), len(raw))
	whole := disk.NewMemory(space(n))
	if _, err := Install(t.Context(), whole, b, 0, nil); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	whole.ReadAt(want, 0)

	scattered := func(p []byte, blocks int) {
		for _, i := range rand.New(rand.NewSource(1)).Perm(n / verity.BlockSize)[:blocks] {
			p[i*verity.BlockSize+i%verity.BlockSize] ^= 1
		}
	}
	for _, test := range []struct {
		name    string
		change  func(p []byte)
		from    int64
		bad     func(off, n int64) bool // whether a read fails
		written func(n int64) bool
	}{
		{"the same", func([]byte) {}, 0, nil, func(n int64) bool { return n == 0 }},
		{"a byte", func(p []byte) { p[5<<20+7] ^= 1 }, 0, nil, func(n int64) bool { return n == verity.BlockSize }},
		{"the last byte of the padding", func(p []byte) { p[blocks*verity.BlockSize-1] ^= 1 }, 0, nil, func(n int64) bool { return n == verity.BlockSize }},
		{"a byte of the tree", func(p []byte) { p[size-1] ^= 1 }, 0, nil, func(n int64) bool { return n == verity.BlockSize }},
		{"a byte in front of what is resumed", func(p []byte) { p[9<<20] ^= 1 }, 4 << 20, nil, func(n int64) bool { return n == verity.BlockSize }},
		{"1 % of the blocks, all of the tree", func(p []byte) { scattered(p[:n], blocks/100); clear(p[blocks*verity.BlockSize:]) }, 0, nil, func(w int64) bool { return w > n/100 && w <= n/50 }},
		{"everything", func(p []byte) { clear(p) }, 0, nil, func(n int64) bool { return n == size }},
		{"a sector that can't be read", func([]byte) {}, 0, func(off, n int64) bool { return off <= 3<<20+512 && off+n > 3<<20+512 }, func(n int64) bool { return n == pieceSize }},
		{"nothing can be read", func([]byte) {}, 0, func(int64, int64) bool { return true }, func(n int64) bool { return n == size }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dev := &worn{Device: disk.NewMemory(space(n) + 4096), bad: -1}
			before := bytes.Clone(want)
			test.change(before)
			dev.WriteAt(before, 0)
			dev.WriteAt(bytes.Repeat([]byte{7}, SealSize+4096), size)
			dev.written = 0
			failed := 0
			old := &Old{R: readerFunc(func(p []byte, off int64) (int, error) {
				if test.bad != nil && test.bad(off, int64(len(p))) {
					failed++
					return 0, errBroken
				}
				return dev.ReadAt(p, off)
			})}
			seal, err := Resume(t.Context(), dev, b, 0, test.from, old, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !test.written(dev.written) || old.Same+dev.written+test.from != size {
				t.Errorf("%d of %d bytes were written, %d were there", dev.written, size, old.Same)
			}
			if failed > 2*maxBad {
				t.Errorf("%d reads failed before it gave up", failed)
			}
			got := make([]byte, dev.Size())
			dev.ReadAt(got, 0)
			if !bytes.Equal(got[:size], want) || !bytes.Equal(got[size:], bytes.Repeat([]byte{7}, SealSize+4096)) {
				t.Error("the slot is not as it should be")
			}
			if _, err := Attest(t.Context(), dev, dev.Size(), &seal, rules(t), "demo", nil); err != nil {
				t.Error(err)
			}
		})
	}
}

type readerFunc func(p []byte, off int64) (int, error)

func (r readerFunc) ReadAt(p []byte, off int64) (int, error) { return r(p, off) }

var errBroken = errors.New("medium broken")

func (b *broken) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.from {
		return 0, errBroken
	}
	return b.Device.WriteAt(p, off)
}

func (b *broken) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.from {
		return 0, errBroken
	}
	return b.Device.ReadAt(p, off)
}

// fickle is a stick that shows other bytes, or fails, from a read on.
type fickle struct {
	b     []byte
	reads atomic.Int64
	from  atomic.Int64
	err   error
}

func (f *fickle) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(f.b).ReadAt(p, off)
	if f.reads.Add(1) > f.from.Load() {
		if f.err != nil {
			return 0, f.err
		}
		for i := range p[:n] {
			p[i] ^= 0x55
		}
	}
	return n, err
}

// TestInstallFails: each thing that can go wrong has its code, at whatever
// point it happens, and leaves no goroutine.
func TestInstallFails(t *testing.T) {
	img := content(1, 6<<20)
	before := runtime.NumGoroutine()
	size := space(len(img))
	for _, kind := range []string{"verity", "plain", "rauc"} {
		raw := bundleOf(t, img, kind)
		whole := openBundle(t, bytes.NewReader(raw), len(raw))
		for _, from := range []int64{0, 1 << 20, 3<<20 + 7, 6 << 20, size - SealSize - 4096} {
			_, err := Install(t.Context(), &broken{disk.NewMemory(size), from}, whole, 0, nil)
			wantCode(t, err, verify.IO)
			if !errors.Is(err, errBroken) {
				t.Errorf("%s, broken slot: %v", kind, err)
			}
		}
		counter := &fickle{b: raw}
		counter.from.Store(1 << 40)
		b := openBundle(t, counter, len(raw))
		opening := counter.reads.Load()
		if _, err := Install(t.Context(), disk.NewMemory(size), b, 0, nil); err != nil {
			t.Fatal(err)
		}
		reads := counter.reads.Load() - opening
		for _, after := range []int64{0, 1, reads / 2, reads * 3 / 4} {
			for _, cause := range []error{nil, errBroken} {
				src := &fickle{b: raw, err: cause}
				src.from.Store(1 << 40)
				b := openBundle(t, src, len(raw))
				src.from.Store(src.reads.Load() + after)
				_, err := Install(t.Context(), disk.NewMemory(size), b, 0, nil)
				want := verify.PayloadHash
				if cause != nil {
					want = verify.IO
				}
				wantCode(t, err, want)
			}
		}
		for _, at := range []int64{1, 3 << 20, 6 << 20} {
			ctx, cancel := context.WithCancel(t.Context())
			_, err := Install(ctx, disk.NewMemory(size), whole, 0, func(done, _ int64) {
				if done >= at {
					cancel()
				}
			})
			// The last report may come when everything else is done.
			if !errors.Is(err, context.Canceled) && !(err == nil && at == 6<<20) {
				t.Errorf("%s, cancelled at %d: %v", kind, at, err)
			}
			cancel()
		}
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

// signed makes a bundle whose manifest is changed before it is signed.
func changed(t testing.TB, raw []byte, old, new string) *bundle.Bundle {
	t.Helper()
	b := openBundle(t, bytes.NewReader(raw), len(raw))
	text := string(b.Manifest.Raw)
	if !strings.Contains(text, old) {
		t.Fatalf("%q is not in %s", old, text)
	}
	cms := sign(t, strings.Replace(text, old, new, 1))
	payload := bytes.Clone(raw[:len(raw)-8-len(b.CMS)])
	out := append(payload, cms...)
	out = append(out, 0, 0, 0, 0, 0, 0, byte(len(cms)>>8), byte(len(cms)))
	return openBundle(t, bytes.NewReader(out), len(out))
}

func sign(t testing.TB, content string) []byte {
	t.Helper()
	s := testKeys(t)
	cms, err := verify.Sign([]byte(content), false, s.Release.Key, s.Release.Cert, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return cms
}

// TestInstallLies: manifests that are signed and wrong.
func TestInstallLies(t *testing.T) {
	img := content(1, 2<<20)
	ours, stock := bundleOf(t, img, "verity"), bundleOf(t, img, "rauc")
	sum := func(raw []byte, key string) string {
		_, after, _ := strings.Cut(string(openBundle(t, bytes.NewReader(raw), len(raw)).Manifest.Raw), "\n"+key+"=")
		return key + "=" + after[:64]
	}
	other := strings.Repeat("11", 32)
	tests := []struct {
		name     string
		raw      []byte
		old, new string
		code     verify.Code
	}{
		{"root hash", ours, sum(ours, "rootfs.verity-hash"), "rootfs.verity-hash=" + other, verify.PayloadHash},
		{"salt", ours, sum(ours, "rootfs.verity-salt"), "rootfs.verity-salt=" + other, verify.PayloadHash},
		{"sha256 without root hash", stock, sum(stock, "sha256"), "sha256=" + other, verify.PayloadHash},
		{"size", ours, "size=2097152", "size=2097151", verify.PayloadHash},
		{"type", ours, "filename=", "type=tar\nfilename=", verify.Policy},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Install(t.Context(), disk.NewMemory(4<<20), changed(t, tt.raw, tt.old, tt.new), 0, nil)
			wantCode(t, err, tt.code)
		})
	}
}

// TestAttest: what is not the installed image is refused; rows 117 (the seal of another slot) and 118 (another root hash) of
// the bad inputs.
func TestAttest(t *testing.T) {
	img := content(1, 2<<20+100)
	size := space(len(img)) + 4096
	blocks := int64(len(img)+4095) / 4096
	for _, kind := range []string{"verity", "plain", "rauc"} {
		raw := bundleOf(t, img, kind)
		b := openBundle(t, bytes.NewReader(raw), len(raw))
		dev := disk.NewMemory(size)
		seal, err := Install(t.Context(), dev, b, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		attest := func(dev disk.Device, s Seal, compatible string) error {
			_, err := Attest(t.Context(), dev, dev.Size(), &s, rules(t), compatible, nil)
			return err
		}
		wantCode(t, attest(dev, seal, "demo"), 0)
		wantCode(t, attest(dev, seal, "other"), verify.WrongTarget)
		raw = bundleOf(t, content(2, len(img)), kind)
		other, err := Install(t.Context(), disk.NewMemory(size), openBundle(t, bytes.NewReader(raw), len(raw)), 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, attest(dev, other, "demo"), verify.PayloadHash)
		for _, at := range []int64{0, 1 << 20, int64(len(img)) - 1, int64(len(img)) /* padding */, blocks * 4096, space(len(img)) - SealSize - 1 /* zeros of the tree */} {
			var c [1]byte
			dev.ReadAt(c[:], at)
			dev.WriteAt([]byte{c[0] ^ 1}, at)
			wantCode(t, attest(dev, seal, "demo"), verify.PayloadHash)
			dev.WriteAt(c[:], at)
		}
		wantCode(t, attest(&broken{dev, 1 << 20}, seal, "demo"), verify.IO)
		wantCode(t, attest(disk.Section(dev, 0, space(len(img))-512), seal, "demo"), verify.Policy)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Attest(ctx, dev, size, &seal, rules(t), "demo", nil); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		wantCode(t, attest(dev, seal, "demo"), 0)
	}
}

// TestVerify: seals that contradict their manifest, or are not signed by us.
func TestVerify(t *testing.T) {
	const sum = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	text := "[update]\ncompatible=demo\n[image.rootfs]\nfilename=a.img\nsize=8192\nsha256=" + sum + "\n"
	root := "[meta.lifeboat]\nrootfs.verity-hash=" + sum + "\nrootfs.verity-salt=" + sum + "\n"
	s := testKeys(t)
	detached, err := verify.Sign([]byte("payload"), true, s.Release.Key, s.Release.Cert, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := verify.Sign([]byte(text+root), false, s.Develop.Key, s.Develop.Cert, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h, _ := hex.DecodeString(sum)
	later := rules(t)
	later.Now = time.Now().AddDate(300, 0, 0)
	boot := later
	boot.AtBoot = true
	tests := []struct {
		name  string
		seal  Seal
		rules verify.Rules
		code  verify.Code
		isErr error
	}{
		{"verity-image", Seal{Kind: KindVerityImage, CMS: sign(t, text+root), Image: "rootfs"}, rules(t), 0, nil},
		{"expired", Seal{Kind: KindVerityImage, CMS: sign(t, text+root), Image: "rootfs"}, later, verify.Expired, nil},
		{"expired at boot", Seal{Kind: KindVerityImage, CMS: sign(t, text+root), Image: "rootfs"}, boot, 0, nil},
		{"valid-until passed", Seal{Kind: KindVerityImage, CMS: sign(t, text+root+"valid-until=2001-01-01T00:00:00Z\n"), Image: "rootfs"}, boot, 0, nil},
		{"local", Seal{Kind: KindLocal, CMS: sign(t, text), Image: "rootfs", Salt: h, RootHash: [32]byte(h)}, rules(t), 0, nil},
		{"local plain", Seal{Kind: KindLocal, CMS: detached, Manifest: []byte(text), Image: "rootfs", Salt: h, RootHash: [32]byte(h)}, rules(t), 0, nil},
		{"local plain with root hash", Seal{Kind: KindLocal, CMS: detached, Manifest: []byte(text + root), Image: "rootfs", Salt: h, RootHash: [32]byte(h)}, rules(t), 0, nil},
		{"signed by others", Seal{Kind: KindVerityImage, CMS: foreign, Image: "rootfs"}, rules(t), verify.Untrusted, nil},
		{"no CMS", Seal{Kind: KindVerityImage, CMS: []byte("no CMS"), Image: "rootfs"}, rules(t), verify.Malformed, nil},
		{"no root hash", Seal{Kind: KindVerityImage, CMS: sign(t, text), Image: "rootfs"}, rules(t), verify.Malformed, ErrFalse},
		{"root hash beside the signed one", Seal{Kind: KindLocal, CMS: sign(t, text+root), Image: "rootfs", Salt: h}, rules(t), verify.Malformed, ErrFalse},
		{"plain with another root hash", Seal{Kind: KindLocal, CMS: detached, Manifest: []byte(text + root), Image: "rootfs", Salt: h}, rules(t), verify.Malformed, ErrFalse},
		{"other image", Seal{Kind: KindVerityImage, CMS: sign(t, text+root), Image: "boot"}, rules(t), verify.Malformed, ErrFalse},
		{"detached without manifest", Seal{Kind: KindLocal, CMS: detached, Image: "rootfs", Salt: h}, rules(t), verify.Malformed, ErrFalse},
		{"manifest beside the signed one", Seal{Kind: KindLocal, CMS: sign(t, text), Manifest: []byte(text), Image: "rootfs", Salt: h}, rules(t), verify.Malformed, ErrFalse},
		{"not an image for a slot", Seal{Kind: KindLocal, CMS: sign(t, strings.Replace(text, "a.img", "a.tar", 1)), Image: "rootfs", Salt: h}, rules(t), verify.Policy, nil},
		{"kind", Seal{Kind: 9, CMS: sign(t, text), Image: "rootfs"}, rules(t), verify.Malformed, ErrFalse},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := tt.seal.Verify(tt.rules, "demo")
			wantCode(t, err, tt.code)
			if tt.isErr != nil && !errors.Is(err, tt.isErr) {
				t.Errorf("%v is not %v", err, tt.isErr)
			}
			if err == nil && (f.DataBlocks != 2 || f.RootHash != [32]byte(h) || !bytes.Equal(f.Salt, h) || f.Signed != (tt.seal.Kind == KindVerityImage) || f.FS != "") {
				t.Errorf("%+v", f)
			}
			if err == nil {
				_, err = tt.seal.Verify(tt.rules, "another")
				wantCode(t, err, verify.WrongTarget)
			}
		})
	}
}

// seals of both kinds, as small and as large as they get.
func seals() []Seal {
	return []Seal{
		{Kind: KindVerityImage, CMS: []byte{1}, Image: "a"},
		{Kind: KindVerityImage, CMS: content(1, maxCMS), Image: strings.Repeat("x", maxName)},
		{Kind: KindLocal, CMS: content(1, 2000), Image: "rootfs", Salt: content(2, 32), RootHash: [32]byte{1, 2}},
		{Kind: KindLocal, CMS: content(1, maxCMS), Manifest: content(3, maxManifest), Image: "rootfs.variant", Salt: content(2, maxSalt)},
	}
}

func TestSeal(t *testing.T) {
	for _, s := range seals() {
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseSeal(b)
		if err != nil {
			t.Fatal(err)
		}
		same := cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })
		if d := cmp.Diff(s, *got, same); d != "" {
			t.Error(d)
		}
		// Any other byte anywhere, and it is none.
		for i := 0; i < SealSize; i += 1 + i/200*7 {
			b[i] ^= 0x10
			_, err := ParseSeal(b)
			want := ErrFalse
			if i < 8 {
				want = ErrMissing
			}
			if !errors.Is(err, want) {
				t.Fatalf("byte %d: %v", i, err)
			}
			b[i] ^= 0x10
		}
	}
	for _, s := range []Seal{
		{Kind: KindVerityImage, Image: "a"},
		{Kind: 3, CMS: []byte{1}, Image: "a"},
		{Kind: KindVerityImage, CMS: make([]byte, maxCMS+1), Image: "a"},
		{Kind: KindVerityImage, CMS: []byte{1}},
		{Kind: KindVerityImage, CMS: []byte{1}, Image: "a", Salt: []byte{1}},
		{Kind: KindVerityImage, CMS: []byte{1}, Image: "a", Manifest: []byte{1}},
		{Kind: KindLocal, CMS: []byte{1}, Image: "a", Manifest: make([]byte, maxManifest+1)},
		{Kind: KindLocal, CMS: []byte{1}, Image: "a", Salt: make([]byte, maxSalt+1)},
	} {
		if _, err := s.Encode(); err == nil {
			t.Errorf("%+v has an encoding", s)
		}
	}
	if _, err := ReadSeal(disk.NewMemory(100), 100); !errors.Is(err, ErrMissing) {
		t.Errorf("tiny slot: %v", err)
	}
	dev := disk.NewMemory(1 << 20)
	_, err := ReadSeal(&broken{dev, 1 << 19}, 1<<20)
	wantCode(t, err, verify.IO)
	wantCode(t, Wipe(&broken{dev, 1 << 19}), verify.IO)
	wantCode(t, Wipe(disk.NewMemory(100)), verify.IO)
}

// TestSealTorn: a seal of which only some sectors of the write arrived, on
// what was there before, is the new one, the old one, or none.
func TestSealTorn(t *testing.T) {
	all := seals()
	r := rand.New(rand.NewSource(1))
	encode := func(s Seal) []byte {
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	zeros := make([]byte, SealSize)
	for i := range all {
		for _, before := range [][]byte{zeros, encode(all[(i+1)%len(all)]), bytes.Repeat([]byte{0xff}, SealSize)} {
			after := encode(all[i])
			if bytes.Equal(before, zeros) {
				after, before = before, after // wiping
			}
			for n := range 400 {
				torn := bytes.Clone(before)
				for at := 0; at < SealSize; at += 512 {
					if n <= SealSize/512 && at < n*512 || n > SealSize/512 && r.Intn(2) == 0 {
						copy(torn[at:at+512], after[at:])
					}
				}
				if bytes.Equal(torn, before) || bytes.Equal(torn, after) {
					continue
				}
				if _, err := ParseSeal(torn); err == nil {
					t.Fatalf("seal %d, tear %d: accepted", i, n)
				}
			}
		}
	}
}

func FuzzParseSeal(f *testing.F) {
	for _, s := range seals() {
		b, err := s.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(make([]byte, SealSize))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSeal(b)
		if err != nil {
			if !errors.Is(err, ErrMissing) && !errors.Is(err, ErrFalse) {
				t.Fatal(err)
			}
			return
		}
		again, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, b) {
			t.Fatal("two encodings of one seal")
		}
	})
}
