package bundle

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/verify"
)

var sum64 = strings.Repeat("ab", 32)

// good is a manifest that has everything.
var good = `# made by hand
[update]
compatible=demo board
version=1.2.3
description=\s two\nlines
build=b1
min-rauc-version=1.14

[bundle]
format=verity
verity-hash=` + sum64 + `
verity-salt=` + sum64 + `
verity-size=8192

[rollout]
anything=goes

[meta.factory]
line=3

[meta.lifeboat]
security-epoch=7
created=2026-01-02T03:04:05Z
valid-until=2027-01-02T03:04:05+01:00
rootfs.verity-hash=` + sum64 + `
rootfs.verity-salt=0011223344556677

[image.rootfs]
sha256=` + sum64 + `
size=4097
filename=rootfs.ext4
adaptive=block-hash-index;

[image.app.small]
sha256=` + sum64 + `
size=1
filename=app.tar.zst
`

func TestParseManifest(t *testing.T) {
	m, err := ParseManifest([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	h, _ := hex.DecodeString(sum64)
	want := &Manifest{
		Compatible: "demo board", Version: "1.2.3", Description: "  two\nlines", Build: "b1",
		Format: "verity", VerityHash: h, VeritySalt: h, VeritySize: 8192,
		Images: []Image{
			{
				Class: "rootfs", Filename: "rootfs.ext4", Type: "ext4", Size: 4097, SHA256: [32]byte(h),
				Adaptive: []string{"block-hash-index"}, RootHash: h, Salt: []byte{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77},
			},
			{Class: "app", Variant: "small", Filename: "app.tar.zst", Type: "tar", Size: 1, SHA256: [32]byte(h)},
		},
		Epoch:   7,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), ValidUntil: time.Date(2027, 1, 2, 2, 4, 5, 0, time.UTC),
		Raw: []byte(good),
	}
	if d := cmp.Diff(want, m); d != "" {
		t.Error(d)
	}
	if n := m.Images[0].Blocks(); n != 2 {
		t.Errorf("4097 bytes are %d blocks, want 2", n)
	}
	if err := m.Images[0].Installable(); err != nil {
		t.Error(err)
	}
	if got := verify.CodeOf(m.Images[1].Installable()); got != verify.Policy {
		t.Errorf("a tar image is installable: code %d", got)
	}
	if _, err := m.Find("app"); verify.CodeOf(err) != verify.WrongTarget {
		t.Errorf("Find takes an image for a variant: %v", err)
	}
	if i, err := m.Find("rootfs"); i != 0 || err != nil {
		t.Errorf("Find(rootfs) = %d, %v", i, err)
	}
}

// TestManifestRefused changes one thing of a good manifest. The numbers are
// those of the list of bad inputs that the exit codes belong to.
func TestManifestRefused(t *testing.T) {
	tests := []struct {
		name     string
		old, new string
		code     verify.Code
	}{
		{"53 duplicate key", "version=1.2.3", "version=1.2.3\nversion=1.2.3", 20},
		{"53 duplicate group", "[rollout]", "[update]", 20},
		{"54 no compatible", "compatible=demo board\n", "", 20},
		{"54 empty compatible", "compatible=demo board", "compatible=", 20},
		{"54 compatible of two lines", "compatible=demo board", `compatible=demo\nboard`, 20},
		{"58 hash of 31 bytes", "\nverity-hash=" + sum64, "\nverity-hash=" + sum64[2:], 20},
		{"58 hash not hex", "\nverity-hash=" + sum64, "\nverity-hash=zz" + sum64[2:], 20},
		{"58 no hash", "verity-hash=" + sum64 + "\nverity-salt", "verity-salt", 20},
		{"59 odd tree size", "verity-size=8192", "verity-size=8193", 20},
		{"59 no tree", "verity-size=8192", "verity-size=0", 20},
		{"61 tree size overflows", "verity-size=8192", "verity-size=18446744073709547520", 20},
		{"61 negative size", "size=4097", "size=-1", 20},
		{"61 image size overflows", "size=4097", "size=18446744073709551615", 20},
		{"62 slash", "filename=rootfs.ext4", "filename=../rootfs.ext4", 20},
		{"62 dots", "filename=rootfs.ext4", "filename=..", 20},
		{"62 NUL", "filename=rootfs.ext4", "filename=root\x00fs", 20},
		{"62 escaped line end", "filename=rootfs.ext4", `filename=root\nfs`, 20},
		{"62 300 characters", "filename=rootfs.ext4", "filename=" + strings.Repeat("a", 300), 20},
		{"62 the manifest", "filename=rootfs.ext4", "filename=manifest.raucm", 20},
		{"62 no file name", "filename=rootfs.ext4\n", "", 20},
		{"65 empty sha256", "[image.rootfs]\nsha256=" + sum64, "[image.rootfs]\nsha256=", 20},
		{"65 no sha256", "[image.rootfs]\nsha256=" + sum64 + "\n", "[image.rootfs]\n", 20},
		{"65 no size", "size=4097\n", "", 20},
		{"68 hooks", "[rollout]", "[hooks]", 31},
		{"68 handler", "[rollout]", "[handler]", 31},
		{"68 hooks of an image", "adaptive=", "hooks=post-install\nadaptive=", 31},
		{"70 epoch of 33 bits", "security-epoch=7", "security-epoch=4294967296", 20},
		{"71 not a date", "valid-until=2027", "valid-until=27", 20},
		{"keyring without hash", "security-epoch=7", "keyring=k\nkeyring-size=1", 20},
		{"keyring without name", "security-epoch=7", "keyring-size=1\nkeyring-sha256=" + sum64, 20},
		{"keyring in a folder", "security-epoch=7", "keyring=../k\nkeyring-size=1\nkeyring-sha256=" + sum64, 20},
		{"keyring of a MiB and a byte", "security-epoch=7", "keyring=k\nkeyring-size=1048577\nkeyring-sha256=" + sum64, 20},
		{"keyring with half a hash", "security-epoch=7", "keyring=k\nkeyring-size=1\nkeyring-sha256=00", 20},
		{"72 two images for a class", "[image.app.small]", "[image.rootfs]", 20},
		{"74 brackets", good, strings.Repeat("[", 64<<10), 20},
		{"75 byte order mark", "# made", "\uFEFF# made", 20},
		{"75 carriage return", "build=b1\n", "build=b1\r\n", 20},
		{"75 control character", "build=b1", "build=b\x1b[2J", 20},
		{"75 not UTF-8", "build=b1", "build=\xff", 20},
		{"too long", "# made", "#" + strings.Repeat("x", 64<<10), 20},
		{"unknown group", "[rollout]", "[files]", 20},
		{"unknown key", "build=b1", "bulid=b1", 20},
		{"unknown key of an image", "adaptive=", "adaptiv=", 20},
		{"unknown key of ours", "security-epoch", "security-epock", 20},
		{"key before any group", "# made by hand", "a=b", 20},
		{"neither group nor key", "# made by hand", "made by hand", 20},
		{"invalid escape", "build=b1", `build=\x`, 20},
		{"half an escape", "build=b1", `build=b\`, 20},
		{"salt without hash", "rootfs.verity-hash=" + sum64 + "\n", "", 20},
		{"hash without salt", "rootfs.verity-salt=0011223344556677\n", "", 20},
		{"short salt", "rootfs.verity-salt=0011223344556677", "rootfs.verity-salt=00", 20},
		{"hash of no image", "rootfs.verity-hash", "rootfs2.verity-hash", 20},
		{"no class", "[image.rootfs]", "[image.]", 20},
		{"no variant", "[image.rootfs]", "[image.rootfs.]", 20},
		{"plain with a hash", "format=verity", "format=plain", 20},
		{"empty format", "format=verity", "format=", 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(good, tt.old) != 1 {
				t.Fatalf("%q does not stand once in the good manifest", tt.old)
			}
			_, err := ParseManifest([]byte(strings.Replace(good, tt.old, tt.new, 1)))
			if got := verify.CodeOf(err); got != tt.code {
				t.Fatalf("code %d, want %d: %v", got, tt.code, err)
			}
			if msg := err.Error(); len(msg) > 400 || strings.ContainsAny(msg, "\n\x1b") {
				t.Errorf("the error is no line for a console: %q", msg)
			}
		})
	}
}

func TestInstallable(t *testing.T) {
	tests := []struct {
		img  Image
		code verify.Code
	}{
		{Image{Class: "a", Type: "raw", Size: 1}, 0},
		{Image{Class: "a", Type: "squashfs", Size: 1}, 0},
		{Image{Class: "a", Type: "raw"}, verify.Policy},
		{Image{Class: "a", Type: "", Size: 1}, verify.Policy},
		{Image{Class: "a", Type: "caibx", Size: 1}, verify.Policy},
		{Image{Class: "a", Type: "raw", Size: 1, Convert: []string{"tar-extract"}}, verify.Policy},
		{Image{Class: "repo/artifact", Type: "raw", Size: 1}, verify.Policy},
	}
	for _, tt := range tests {
		if got := verify.CodeOf(tt.img.Installable()); got != tt.code {
			t.Errorf("%+v: code %d, want %d", tt.img, got, tt.code)
		}
	}
}

func TestImageType(t *testing.T) {
	for name, want := range map[string]string{
		"a.img": "raw", "a.ext4": "ext4", "a.squashfs": "squashfs", "a.squashfs-zst": "squashfs", "a.vfat": "vfat",
		"a.erofs": "erofs", "a.tar.gz": "tar", "a.tgz": "tar", "a.caibx": "caibx", "a.ubifs": "ubifs", "a.bin": "", "img": "",
	} {
		if got := imageType(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// TestEncodeKeyFile: what is written reads back as it was.
func TestEncodeKeyFile(t *testing.T) {
	f, err := parseKeyFile([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	f.ensure("meta.lifeboat").set("security-epoch", "8")
	f.ensure("meta.new").set("k", "\t a\\b\r\n ")
	again, err := parseKeyFile(f.encode())
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := again.group("meta.new").get("k"); got != "\t a\\b\r\n " {
		t.Errorf("value became %q", got)
	}
	if d := cmp.Diff(string(f.encode()), string(again.encode())); d != "" {
		t.Error(d)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("[update]\ncompatible=x\n"))
	f.Add([]byte(strings.Repeat("[", 1000)))
	f.Add([]byte("[update]\ncompatible=\\s\\\n[image.emptyfs]\ntype=emptyfs"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseManifest(raw)
		if err != nil {
			if c := verify.CodeOf(err); c != verify.Malformed && c != verify.Policy {
				t.Fatalf("code %d: %v", c, err)
			}
			return
		}
		if m.Compatible == "" || len(m.Images) > maxImages {
			t.Fatalf("%+v", m)
		}
		// What was read, written again, says the same.
		kf, err := parseKeyFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseManifest(kf.encode())
		if err != nil {
			t.Fatalf("%v: %q became %q", err, raw, kf.encode())
		}
		again.Raw = m.Raw
		if d := cmp.Diff(m, again); d != "" {
			t.Fatal(d)
		}
	})
}
