package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// ManifestName is the manifest's file name in a bundle's root.
const ManifestName = "manifest.raucm"

// Limits of a manifest beside its 64 KiB.
const (
	maxImages    = 64
	maxImageSize = 1 << 50 // bytes
	maxClass     = 64      // bytes of "class.variant"
	maxName      = 256     // bytes of compatible, version and build
	maxFilename  = 255
	minSalt      = 8 // bytes
	maxSalt      = 64
	maxSerials   = 256 // of at most 64 bytes each
)

// The bundle formats as the manifest and the configuration name them.
const (
	FormatPlain  = "plain"
	FormatVerity = "verity"
	FormatCrypt  = "crypt"
)

// Manifest is what a bundle says about itself.
type Manifest struct {
	Compatible  string
	Version     string
	Description string
	Build       string

	// Format is plain, verity or crypt, or what else stands in format=
	// (Open refuses that); without the key it is plain, as in RAUC.
	Format string
	// VerityHash, VeritySalt (32 bytes each) and VeritySize (bytes of the
	// hash tree) authenticate the payload; nil and 0 in a plain manifest and
	// in the copy inside a payload.
	VerityHash, VeritySalt []byte
	VeritySize             int64

	Images []Image

	// From [meta.lifeboat]; zero where the key is missing.
	Epoch      uint32
	Created    time.Time
	ValidUntil time.Time
	// Serials are the serial numbers of the devices that the bundle is for;
	// nil: for all.
	Serials []string
	// Keyring is the payload's file with signed keyrings and CRLs for the
	// device's trust; "" if there is none.
	Keyring       string
	KeyringSHA256 [32]byte
	KeyringSize   int64

	Raw []byte // the manifest exactly as signed
}

// Image is one [image.CLASS] or [image.CLASS.VARIANT] group.
type Image struct {
	Class, Variant string
	Filename       string
	// Type is type= or what the file name says: raw, ext4, vfat, squashfs,
	// erofs, tar, ...; "" if neither says anything.
	Type     string
	Size     int64 // bytes
	SHA256   [32]byte
	Adaptive []string
	Convert  []string

	// RootHash (32 bytes) and Salt are the signed dm-verity root of the
	// image: version 1, SHA-256, blocks of 4096, no superblock, over the
	// image filled up with zeros to a whole block. Nil if not signed.
	RootHash, Salt []byte
}

// Hash is the manifest hash: a bundle's identity.
func (m *Manifest) Hash() [32]byte { return sha256.Sum256(m.Raw) }

// Find returns the index of the image for class that is for every variant of
// the hardware, or a refusal (27).
func (m *Manifest) Find(class string) (int, error) {
	for i := range m.Images {
		if m.Images[i].Class == class && m.Images[i].Variant == "" {
			return i, nil
		}
	}
	return 0, verify.Refuse(verify.WrongTarget, "the bundle has no image for slot class %q", class)
}

// Key is the name of the image in the manifest: CLASS or CLASS.VARIANT.
func (i *Image) Key() string {
	if i.Variant == "" {
		return i.Class
	}
	return i.Class + "." + i.Variant
}

// Blocks is the number of 4096-byte blocks that the image takes on a slot.
func (i *Image) Blocks() int64 { return (i.Size + verity.BlockSize - 1) / verity.BlockSize }

// Archive reports whether it is an archive of a file tree that can be installed, compressed or not.
func (i *Image) Archive() bool {
	return i.Type == "tar" && i.Size > 0 && len(i.Convert) == 0 && !strings.Contains(i.Class, "/")
}

// Installable refuses (31) images that can't be written to a slot as they
// are: archives, casync indexes, artifacts, conversions and empty images.
func (i *Image) Installable() error {
	switch {
	case strings.Contains(i.Class, "/"):
		return verify.Refuse(verify.Policy, "image %s is an artifact: not supported", i.Key())
	case len(i.Convert) > 0:
		return verify.Refuse(verify.Policy, "image %s wants convert=%s: not supported", i.Key(), strings.Join(i.Convert, ";"))
	case !slices.Contains([]string{"raw", "ext4", "vfat", "squashfs", "erofs"}, i.Type):
		return verify.Refuse(verify.Policy, "image %s (%s) is of type %q: only raw, ext4, vfat, squashfs and erofs can be installed", i.Key(), i.Filename, i.Type)
	case i.Size == 0:
		return verify.Refuse(verify.Policy, "image %s is empty", i.Key())
	}
	return nil
}

// ParseManifest reads a signed manifest. What RAUC would reject is rejected,
// and more: see parseKeyFile. Every image must have its size and SHA-256; a
// verity manifest must have its root hash. Hooks and handlers are refused (31),
// everything else that is wrong is malformed (20).
func ParseManifest(raw []byte) (*Manifest, error) {
	f, err := parseKeyFile(raw)
	if err != nil {
		return nil, err
	}
	return readManifest(f, raw, signedManifest)
}

// manifestKind says which generated keys must or must not be there.
type manifestKind int

const (
	signedManifest manifestKind = iota // as under the signature
	innerManifest                      // the copy in a payload: no verity-* keys
	draftManifest                      // an author's: image size and hash may be missing too
)

func readManifest(f *keyFile, raw []byte, kind manifestKind) (*Manifest, error) {
	m := &Manifest{Format: FormatPlain, Raw: raw}
	var meta *keyGroup
	for _, g := range f.groups {
		var err error
		switch {
		case g.name == "update":
			err = m.readUpdate(g)
		case g.name == "bundle":
			err = m.readBundle(g)
		case g.name == "hooks" || g.name == "handler":
			err = verify.Refuse(verify.Policy, "manifest line %d: [%s] wants code of the bundle to run: not supported", g.line, g.name)
		case g.name == "rollout": // reserved by RAUC
		case g.name == "meta.lifeboat":
			meta = g
		case strings.HasPrefix(g.name, "meta.") && len(g.name) > len("meta."):
		case strings.HasPrefix(g.name, "image."):
			err = m.readImage(g, kind)
		default:
			err = malformed(g.line, "unknown group [%s]", g.name)
		}
		if err != nil {
			return nil, err
		}
	}
	if m.Compatible == "" {
		return nil, malformed(0, "has no compatible= in [update]")
	}
	hashed := m.VerityHash != nil || m.VeritySalt != nil || m.VeritySize != 0
	switch {
	case kind != signedManifest:
		if hashed {
			return nil, malformed(0, "has verity-* keys although it stands inside the payload")
		}
	case m.Format == FormatPlain && hashed:
		return nil, malformed(0, "is plain and has verity-* keys")
	case m.Format == FormatVerity && (m.VerityHash == nil || m.VeritySalt == nil || m.VeritySize == 0):
		return nil, malformed(0, "lacks verity-hash=, verity-salt= or verity-size= in [bundle]")
	}
	if meta != nil {
		if err := m.readMeta(meta); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Manifest) readUpdate(g *keyGroup) error {
	for _, e := range g.entries {
		switch e.key {
		case "compatible":
			m.Compatible = e.value
		case "version":
			m.Version = e.value
		case "build":
			m.Build = e.value
		case "description":
			m.Description = e.value
			continue
		case "min-rauc-version": // speaks about RAUC's features only
		default:
			return unknownKey(g, e)
		}
		// These stand in one-line messages on the console.
		if len(e.value) > maxName || strings.ContainsAny(e.value, "\n\r\t") {
			return malformed(e.line, "%s= is longer than %d bytes or has more than one line", e.key, maxName)
		}
	}
	return nil
}

func (m *Manifest) readBundle(g *keyGroup) error {
	for _, e := range g.entries {
		var err error
		switch e.key {
		case "format":
			if e.value == "" {
				return malformed(e.line, "format= is empty")
			}
			m.Format = e.value
		case "verity-hash":
			m.VerityHash, err = hexValue(e, 32, 32)
		case "verity-salt":
			m.VeritySalt, err = hexValue(e, 32, 32)
		case "verity-size":
			m.VeritySize, err = decimal(e, maxImageSize)
			if err == nil && (m.VeritySize == 0 || m.VeritySize%verity.BlockSize != 0) {
				err = malformed(e.line, "verity-size=%s is not a multiple of %d", e.value, verity.BlockSize)
			}
		case "crypt-key":
			_, err = hexValue(e, 32, 32)
		default:
			return unknownKey(g, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// imageType tells the type from a file name, by RAUC's table and for erofs.
func imageType(filename string) string {
	for _, known := range [...]string{"ext4", "vfat", "squashfs", "erofs", "ubifs", "caibx", "caidx", "catar"} {
		if strings.HasSuffix(filename, "."+known) {
			return known
		}
	}
	switch {
	case strings.HasSuffix(filename, ".img"):
		return "raw"
	case strings.Contains(filename, ".squashfs-"): // the compressor follows
		return "squashfs"
	case strings.Contains(filename, ".tar"), strings.HasSuffix(filename, ".tgz"):
		return "tar"
	}
	return ""
}

func (m *Manifest) readImage(g *keyGroup, kind manifestKind) error {
	if len(m.Images) == maxImages {
		return malformed(g.line, "more than %d images", maxImages)
	}
	var img Image
	key := strings.TrimPrefix(g.name, "image.")
	var variant bool
	img.Class, img.Variant, variant = strings.Cut(key, ".")
	if img.Class == "" || variant && img.Variant == "" || len(key) > maxClass || strings.ContainsAny(key, " \t") {
		return malformed(g.line, "[%s] does not name a slot class", g.name)
	}
	var hasSize, hasSum bool
	for _, e := range g.entries {
		var err error
		switch e.key {
		case "filename":
			err = checkFilename(e)
			img.Filename = e.value
		case "type":
			if e.value == "" {
				err = malformed(e.line, "type= is empty")
			}
			img.Type = e.value
		case "size":
			hasSize = true
			img.Size, err = decimal(e, maxImageSize)
		case "sha256":
			var sum []byte
			if sum, err = hexValue(e, 32, 32); err == nil {
				hasSum, img.SHA256 = true, [32]byte(sum)
			}
		case "hooks":
			if e.value != "" {
				err = verify.Refuse(verify.Policy, "manifest line %d: image %s wants code of the bundle to run (hooks=): not supported", e.line, key)
			}
		case "adaptive":
			img.Adaptive = list(e.value)
		case "convert":
			img.Convert = list(e.value)
		case "converted", "version", "description", "build":
		default:
			return unknownKey(g, e)
		}
		if err != nil {
			return err
		}
	}
	if img.Type == "" {
		img.Type = imageType(img.Filename)
	}
	if img.Type != "emptyfs" {
		switch {
		case img.Filename == "":
			return malformed(g.line, "[%s] has no filename=", g.name)
		case kind != draftManifest && !hasSum:
			return malformed(g.line, "[%s] has no sha256=", g.name)
		case kind != draftManifest && !hasSize:
			return malformed(g.line, "[%s] has no size=", g.name)
		}
	}
	m.Images = append(m.Images, img)
	return nil
}

// readMeta reads [meta.lifeboat]. What is unknown there is refused: a limit
// that this version does not understand must not be overlooked.
func (m *Manifest) readMeta(g *keyGroup) error {
	var hasSum, hasSize bool
	for _, e := range g.entries {
		var err error
		switch e.key {
		case "security-epoch":
			var n int64
			n, err = decimal(e, 1<<32-1)
			m.Epoch = uint32(n)
		case "created":
			m.Created, err = timestamp(e)
		case "valid-until":
			m.ValidUntil, err = timestamp(e)
		case "serials":
			m.Serials = list(e.value)
			bad := func(s string) bool { return s == "" || len(s) > maxClass || strings.ContainsAny(s, " \t\n\r") }
			if len(m.Serials) == 0 || len(m.Serials) > maxSerials || slices.ContainsFunc(m.Serials, bad) {
				err = malformed(e.line, "serials= is no list of 1 to %d serial numbers", maxSerials)
			}
		case "keyring":
			err = checkFilename(e)
			m.Keyring = e.value
		case "keyring-sha256":
			var sum []byte
			if sum, err = hexValue(e, 32, 32); err == nil {
				hasSum, m.KeyringSHA256 = true, [32]byte(sum)
			}
		case "keyring-size":
			hasSize = true
			m.KeyringSize, err = decimal(e, verify.MaxTrust)
		default:
			err = m.readRoot(g, e)
		}
		if err != nil {
			return err
		}
	}
	if named := m.Keyring != ""; named != hasSum || named != hasSize {
		return malformed(g.line, "[meta.lifeboat] needs keyring=, keyring-sha256= and keyring-size= together")
	}
	for i := range m.Images {
		if img := &m.Images[i]; (img.RootHash == nil) != (img.Salt == nil) {
			return malformed(g.line, "[meta.lifeboat] needs %[1]s.verity-hash= and %[1]s.verity-salt= together", img.Key())
		}
	}
	return nil
}

func (m *Manifest) readRoot(g *keyGroup, e keyEntry) error {
	class, isHash := strings.CutSuffix(e.key, ".verity-hash")
	class, isSalt := strings.CutSuffix(class, ".verity-salt")
	if isHash == isSalt {
		return unknownKey(g, e)
	}
	n := slices.IndexFunc(m.Images, func(i Image) bool { return i.Key() == class })
	if n < 0 {
		return malformed(e.line, "%s speaks of an image that is not there", e.key)
	}
	var err error
	if isHash {
		m.Images[n].RootHash, err = hexValue(e, 32, 32)
	} else {
		m.Images[n].Salt, err = hexValue(e, minSalt, maxSalt)
	}
	return err
}

func unknownKey(g *keyGroup, e keyEntry) error {
	return malformed(e.line, "unknown key %q in [%s]", e.key, g.name)
}

func checkFilename(e keyEntry) error {
	s := e.value
	if s == "" || s == "." || s == ".." || s == ManifestName || len(s) > maxFilename || strings.ContainsAny(s, "/\n\r\t") {
		return malformed(e.line, "%s= is not the name of a file in the bundle's root", e.key)
	}
	return nil
}

// decimal reads an unsigned decimal number of at most limit.
func decimal(e keyEntry, limit uint64) (int64, error) {
	n, err := strconv.ParseUint(e.value, 10, 63)
	if err != nil || n > limit {
		return 0, malformed(e.line, "%s=%q is not a number from 0 to %d", e.key, e.value, limit)
	}
	return int64(n), nil
}

func hexValue(e keyEntry, atLeast, atMost int) ([]byte, error) {
	b, err := hex.DecodeString(e.value)
	if err != nil || len(b) < atLeast || len(b) > atMost {
		return nil, malformed(e.line, "%s= is not hex of %d to %d bytes", e.key, atLeast, atMost)
	}
	return b, nil
}

func timestamp(e keyEntry) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, e.value)
	if err != nil || t.Unix() <= 0 {
		return time.Time{}, malformed(e.line, "%s=%q is not a time as in 2026-01-31T12:00:00Z", e.key, e.value)
	}
	return t.UTC(), nil
}

// list splits a GKeyFile list, whose last semicolon is optional.
func list(s string) []string {
	s = strings.TrimSuffix(s, ";")
	if s == "" {
		return nil
	}
	return strings.Split(s, ";")
}
