package powercut

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/boot"
	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/disk/crash"
	"lifeboat/image"
	"lifeboat/qemu/scene"
	"lifeboat/slots"
	"lifeboat/tree"
	"lifeboat/verify"
	"lifeboat/verify/keys"
)

// kit makes small devices: images of 64 KiB, real bundles.
type kit struct {
	t       *testing.T
	dir     string
	keys    *keys.Set
	pem     []byte
	cfg     *config.Config
	systems map[boot.Hash]System
	bundles map[boot.Hash][32]byte
	now     time.Time

	trees    bool // bundles bring archives
	noLoader bool // bundles bring none
	unsigned bool // bundles are rauc's, whose manifests have no root hashes
	signer   keys.Pair
	extra    string // lines of [meta.lifeboat]
}

// allKeys are everybody's: RSA, which is quicker to verify, so that more states fit into the time.
var allKeys = sync.OnceValues(func() (*keys.Set, error) { return keys.New(keys.Options{RSA: 2048}) })

const (
	imageSize  = 64 << 10
	loaderSize = 3000 // of a boot loader's image
)

func newKit(t *testing.T, changes map[string]string) *kit {
	t.Helper()
	k := &kit{t: t, dir: t.TempDir(), systems: map[boot.Hash]System{}, bundles: map[boot.Hash][32]byte{}, now: time.Now()}
	var err error
	k.keys, err = allKeys()
	k.must(err)
	k.signer = k.keys.Release
	all := map[string]string{"system require-signed-verity": "true", "install skip-unchanged": "yes"}
	for name, v := range changes {
		all[name] = v
	}
	if k.cfg, err = config.Parse([]byte(scene.Config(all))); err != nil {
		t.Fatal(err)
	}
	k.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.keys.ReleaseAnchor.Raw})
	return k
}

// bundle makes a bundle and notes what its system does.
func (k *kit) bundle(version string, epoch int, how Behaviour) string {
	k.t.Helper()
	in := filepath.Join(k.dir, "in-"+version)
	image := func(name string) []byte {
		content := make([]byte, imageSize)
		rng := rand.NewChaCha8(sha256.Sum256([]byte(name)))
		rng.Read(content)
		return content
	}
	content, file := image(version), "rootfs.img"
	if k.trees {
		content, file = k.archive(version), "rootfs.tar"
	}
	manifest := fmt.Sprintf("[update]\ncompatible=%s\nversion=%s\n\n[bundle]\nformat=verity\n\n[image.rootfs]\nfilename=%s\n", scene.Compatible, version, file)
	with := map[string]Content{}
	k.must(os.Mkdir(in, 0o755))
	for _, s := range k.cfg.Group("rootfs.0") {
		b := image(version + s.Class)
		manifest += fmt.Sprintf("\n[image.%[1]s]\nfilename=%[1]s.img\n", s.Class)
		k.must(os.WriteFile(filepath.Join(in, s.Class+".img"), b, 0o644))
		with[s.Class] = Content{imageSize, sha256.Sum256(b)}
	}
	loaders := map[string]LoaderImage{}
	for _, s := range k.cfg.Loaders() {
		if k.noLoader {
			break
		}
		b := image(version + s.Class)[:loaderSize]
		manifest += fmt.Sprintf("\n[image.%[1]s]\nfilename=%[1]s.img\n", s.Class)
		k.must(os.WriteFile(filepath.Join(in, s.Class+".img"), b, 0o644))
		loaders[s.Class] = LoaderImage{Content{loaderSize, sha256.Sum256(b)}, sha256.Sum256(b[:loaderSector])}
	}
	if epoch > 0 {
		manifest += fmt.Sprintf("\n[meta.lifeboat]\nsecurity-epoch=%d\n%s", epoch, k.extra)
	}
	k.must(os.WriteFile(filepath.Join(in, file), content, 0o644))
	k.must(os.WriteFile(filepath.Join(in, "manifest.raucm"), []byte(manifest), 0o644))
	out := filepath.Join(k.dir, version+".raucb")
	if k.unsigned {
		k.rauc(in, out)
	} else {
		k.must(bundle.Create(context.Background(), in, out, bundle.CreateOptions{Key: k.signer.Key, Cert: k.signer.Cert}))
	}
	f, err := os.Open(out)
	k.must(err)
	defer f.Close()
	info, err := f.Stat()
	k.must(err)
	b, err := bundle.Peek(f, info.Size())
	k.must(err)
	whole, err := os.ReadFile(out)
	k.must(err)
	k.bundles[b.Manifest.Hash()] = sha256.Sum256(whole)
	sys := System{Version: version, Epoch: uint32(epoch), Behaviour: how, Size: imageSize, Content: sha256.Sum256(content), With: with, Loaders: loaders}
	if k.trees {
		b, err := bundle.Open(context.Background(), f, info.Size(), bundle.Options{Rules: verify.Rules{Keyring: k.keys.ReleaseKeyring(), Purpose: k.cfg.CheckPurpose, Now: k.now}, Formats: k.cfg.BundleFormats, Compatible: scene.Compatible})
		k.must(err)
		c, err := treeContent(b, 0)
		k.must(err)
		sys.Size, sys.Content = c.Size, c.Sum
	}
	k.systems[b.Manifest.Hash()] = sys
	return out
}

// archive is a system of a few files, with a version of its own.
func (k *kit) archive(version string) []byte {
	k.t.Helper()
	top := filepath.Join(k.dir, "top-"+version)
	k.must(os.MkdirAll(filepath.Join(top, "sbin"), 0o755))
	k.must(os.WriteFile(filepath.Join(top, "version"), []byte(version), 0o644))
	content := make([]byte, imageSize/2)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(version))).Read(content)
	k.must(os.WriteFile(filepath.Join(top, "sbin/init"), content, 0o755))
	k.must(os.Symlink("sbin/init", filepath.Join(top, "init")))
	var b bytes.Buffer
	k.must(tree.Write(&b, top, time.Time{}))
	return b.Bytes()
}

// rauc makes a bundle as stock rauc does.
func (k *kit) rauc(in, out string) {
	k.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k.keys.Release.Key)
	k.must(err)
	cert, key := filepath.Join(k.dir, "cert.pem"), filepath.Join(k.dir, "key.pem")
	k.must(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.keys.Release.Cert.Raw}), 0o644))
	k.must(os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	if text, err := exec.Command("rauc", "--cert", cert, "--key", key, "bundle", in, out).CombinedOutput(); err != nil {
		k.t.Fatalf("rauc bundle: %v\n%s", err, text)
	}
}

// disk makes a disk with these slots filled.
func (k *kit) disk(fill map[string]string) *crash.Image {
	k.t.Helper()
	out := filepath.Join(k.dir, "disk.img")
	o := image.DiskOptions{Config: k.cfg, Keyring: k.keys.ReleaseKeyring(), Now: k.now, Sizes: map[string]int64{"rootfs": slots.Need(imageSize)}}
	if k.cfg.StagingDevice != "" {
		o.Sizes["staging"] = 3 << 20
	}
	for _, s := range k.cfg.Group("rootfs.0") {
		o.Sizes[s.Class] = slots.Need(imageSize)
	}
	for slot, file := range fill {
		o.Fill = append(o.Fill, image.Fill{Slot: slot, File: file})
	}
	_, err := image.Disk(context.Background(), o, out)
	k.must(err)
	k.loaderDisks(out)
	return k.read(out)
}

func (k *kit) stick(files ...string) *crash.Image {
	k.t.Helper()
	out := filepath.Join(k.dir, "stick.img")
	k.must(image.Stick(out, image.StickOptions{WholeDisk: true}, files))
	return k.read(out)
}

func (k *kit) read(file string) *crash.Image {
	k.t.Helper()
	i, err := crash.LoadFile(file)
	k.must(err)
	return i
}

// device opens a device on its disk.
func (k *kit) device(disk, stick *crash.Image) *Device {
	k.t.Helper()
	d, err := Open(k.cfg, k.pem, disk)
	k.must(err)
	d.Systems, d.Bundles = k.systems, k.bundles
	if stick != nil {
		d.Stick = stick
	}
	return d
}

// settled lets a device boot until a version is confirmed, and returns its disk.
func (k *kit) settled(d *Device, disk *crash.Image, version string) *crash.Image {
	k.t.Helper()
	r := crash.Record(disk)
	w := d.Over(r, nil)
	w.Settle(Want{Version: version})
	k.must(w.Err())
	return r.Image()
}

func (k *kit) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

func contains(lines []string, part string) bool {
	return strings.Contains(strings.Join(lines, "\n"), part)
}
