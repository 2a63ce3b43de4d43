// Package slots writes images to slots and judges what a slot holds.
//
// A slot describes itself: image from byte 0, dm-verity hash tree directly
// after it, and a seal in the last 128 KiB (see Seal) that holds the signed
// manifest. Whether a slot is complete and authentic follows from these and
// the keyring alone.
//
// An install is, with a flush by the caller's device after each step: Wipe;
// Install and dev.Flush; Attest, by another process and from the medium;
// WriteSeal. A power cut at any point leaves a slot without a valid seal or,
// after the last, a complete one. The tree is checked by Attest and, block by
// block, by dm-verity; Seal.Verify is the check at boot.
package slots

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"lifeboat/bundle"
	"lifeboat/disk"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// SealSize is the length of the area at the end of a slot's partition that
// belongs to the seal, in bytes.
const SealSize = 128 << 10

// Limits of what a seal holds, in bytes.
const (
	maxCMS      = 64 << 10
	maxManifest = 48 << 10
	maxName     = 64
	maxSalt     = 64
)

// Kind says what makes the content of a slot authentic.
type Kind uint8

const (
	// KindVerityImage: the root hash of the image stands in the manifest under
	// the signature in the seal. The slot is authentic at every boot.
	KindVerityImage Kind = 1
	// KindLocal: the root hash was computed by the install and stands in the
	// seal as it is. The slot was authentic when it was installed; who can
	// write to the slot later can change image, tree and seal together.
	KindLocal Kind = 2
	// KindTree: the slot holds a file system that the install made of an archive, and that its system may write to. The
	// archive was authentic when it was installed; what protects the files later is dm-integrity, where the seal names it.
	KindTree Kind = 3
)

// String names the kind as status and documentation do.
func (k Kind) String() string {
	switch k {
	case KindVerityImage:
		return "verity-image"
	case KindLocal:
		return "local"
	case KindTree:
		return "tree"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

var (
	// ErrMissing says that there is no seal: wiped, or never written.
	ErrMissing = errors.New("no seal")
	// ErrFalse says that there is a seal and it is not right: torn, damaged,
	// of a format that is not known, or contradicting its own manifest.
	ErrFalse = errors.New("false seal")
)

// Seal is what stands at the end of a slot's partition. Its layout, all
// numbers little endian, SealSize bytes in all:
//
//	offset size
//	     0    8  magic "lfbtSEAL"
//	     8    2  format version, 1
//	    10    1  kind: 1 verity-image, 2 local, 3 tree
//	    11    1  0
//	    12    4  length of the body
//	    16    4  CRC-32C (Castagnoli) of bytes 0 to 15 and 20 to 63 and the body
//	    20    4  length of the CMS, 1 to 65536
//	    24    4  length of the manifest, 0 to 49152; 0 unless the bundle is plain
//	    28    2  length of the image name, 1 to 64
//	    30    1  length of the salt, 0 to 64
//	    31    1  length of the root hash: 0 (verity-image) or 32 (local, tree)
//	    32   32  0
//	    64       body: CMS, manifest, image name, salt, root hash
//	             0 to the end
//
// There is one encoding of a seal; everything else is false. Offsets on the
// slot and numbers of blocks are not in the seal: they follow from the image's
// size in the manifest.
type Seal struct {
	Kind Kind
	// CMS exactly as it stood in the bundle.
	CMS []byte
	// Manifest of a plain bundle, whose CMS is a detached signature over the
	// payload and proves nothing on the slot; empty for others.
	Manifest []byte
	// Image is which image of the manifest the slot holds: CLASS or CLASS.VARIANT.
	Image string
	// Salt and RootHash of KindLocal; unused in KindVerityImage. KindTree: Salt is the number of an Integrity and 1 (ext4),
	// RootHash the SHA-256 of the tree as tree.Write writes it, as it was installed.
	Salt     []byte
	RootHash [32]byte
}

const (
	magic      = "lfbtSEAL"
	version    = 1
	headerSize = 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// check refuses what the format does not have.
func (s *Seal) check() error {
	switch {
	case s.Kind != KindVerityImage && s.Kind != KindLocal && s.Kind != KindTree:
		return fmt.Errorf("unknown %s", s.Kind)
	case len(s.CMS) == 0 || len(s.CMS) > maxCMS:
		return fmt.Errorf("CMS of %d bytes", len(s.CMS))
	case len(s.Manifest) > maxManifest:
		return fmt.Errorf("manifest of %d bytes, more than %d", len(s.Manifest), maxManifest)
	case len(s.Image) == 0 || len(s.Image) > maxName:
		return fmt.Errorf("image name of %d bytes", len(s.Image))
	case len(s.Salt) > maxSalt:
		return fmt.Errorf("salt of %d bytes", len(s.Salt))
	case s.Kind == KindVerityImage && (len(s.Manifest) > 0 || len(s.Salt) > 0):
		return errors.New("manifest or salt beside a signed one")
	case s.Kind == KindTree && (len(s.Salt) != 2 || int(s.Salt[0]) >= len(integrities) || s.Salt[1] != treeExt4):
		return errors.New("a tree of a kind that is not known")
	}
	return nil
}

// Encode returns the SealSize bytes of the seal.
func (s *Seal) Encode() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("encode seal: %w", err)
	}
	var root []byte
	if s.Kind != KindVerityImage {
		root = s.RootHash[:]
	}
	b := make([]byte, SealSize)
	at := headerSize
	for _, part := range [][]byte{s.CMS, s.Manifest, []byte(s.Image), s.Salt, root} {
		at += copy(b[at:], part)
	}
	copy(b, magic)
	binary.LittleEndian.PutUint16(b[8:], version)
	b[10] = byte(s.Kind)
	binary.LittleEndian.PutUint32(b[12:], uint32(at-headerSize))
	binary.LittleEndian.PutUint32(b[20:], uint32(len(s.CMS)))
	binary.LittleEndian.PutUint32(b[24:], uint32(len(s.Manifest)))
	binary.LittleEndian.PutUint16(b[28:], uint16(len(s.Image)))
	b[30] = byte(len(s.Salt))
	b[31] = byte(len(root))
	binary.LittleEndian.PutUint32(b[16:], checksum(b[:at]))
	return b, nil
}

// checksum is that of header and body.
func checksum(b []byte) uint32 {
	sum := crc32.Update(0, castagnoli, b[:16])
	return crc32.Update(sum, castagnoli, b[20:])
}

// ParseSeal reads the SealSize bytes of a seal. The error wraps ErrMissing
// where the magic is not there and ErrFalse where only the rest is not right.
// Nothing in the seal is verified beyond that.
func ParseSeal(b []byte) (*Seal, error) {
	if len(b) != SealSize || string(b[:8]) != magic {
		return nil, ErrMissing
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != version {
		return nil, fmt.Errorf("%w: format version %d", ErrFalse, v)
	}
	size := binary.LittleEndian.Uint32(b[12:])
	if size > SealSize-headerSize {
		return nil, fmt.Errorf("%w: body of %d bytes", ErrFalse, size)
	}
	end := headerSize + int(size)
	if checksum(b[:end]) != binary.LittleEndian.Uint32(b[16:]) {
		return nil, fmt.Errorf("%w: checksum", ErrFalse)
	}
	if b[11] != 0 || !zero(b[32:headerSize]) || !zero(b[end:]) {
		return nil, fmt.Errorf("%w: bytes that should be zero are not", ErrFalse)
	}
	s := &Seal{Kind: Kind(b[10])}
	body := b[headerSize:end]
	short := false
	take := func(n uint32) []byte {
		if n > uint32(len(body)) {
			short = true
			return nil
		}
		part := append([]byte(nil), body[:n]...)
		body = body[n:]
		return part
	}
	s.CMS = take(binary.LittleEndian.Uint32(b[20:]))
	s.Manifest = take(binary.LittleEndian.Uint32(b[24:]))
	s.Image = string(take(uint32(binary.LittleEndian.Uint16(b[28:]))))
	s.Salt = take(uint32(b[30]))
	root := take(uint32(b[31]))
	if short || len(body) > 0 {
		return nil, fmt.Errorf("%w: lengths do not add up", ErrFalse)
	}
	if len(root) != 0 && len(root) != len(s.RootHash) || (len(root) > 0) != (s.Kind != KindVerityImage) {
		return nil, fmt.Errorf("%w: root hash of %d bytes", ErrFalse, len(root))
	}
	copy(s.RootHash[:], root)
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFalse, err)
	}
	return s, nil
}

// zero compares b with itself, one byte on: quicker than byte by byte.
func zero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// ReadSeal reads the seal of a slot of slotSize bytes. Beside those of
// ParseSeal there are errors of the medium (code 40).
func ReadSeal(r io.ReaderAt, slotSize int64) (*Seal, error) {
	if slotSize < SealSize {
		return nil, ErrMissing
	}
	b := make([]byte, SealSize)
	if n, err := r.ReadAt(b, slotSize-SealSize); n < SealSize {
		return nil, verify.Refuse(verify.IO, "read the seal: %w", err)
	}
	return ParseSeal(b)
}

// Wipe removes the seal of a slot. When it returns nil the slot has none, also
// after a power cut; a cut before may leave it whole, gone or false.
func Wipe(dev disk.Device) error {
	if err := putSeal(dev, make([]byte, SealSize)); err != nil {
		return verify.Refuse(verify.IO, "wipe the seal: %w", err)
	}
	return nil
}

// WriteSeal writes what Encode returned and flushes; the bytes are not looked
// at. The image must be durable before. A power cut before it returns leaves
// the slot sealed, or with a seal that is missing or false.
func WriteSeal(dev disk.Device, seal []byte) error {
	if len(seal) != SealSize {
		return fmt.Errorf("write seal: %d bytes instead of %d", len(seal), SealSize)
	}
	if err := putSeal(dev, seal); err != nil {
		return verify.Refuse(verify.IO, "write the seal: %w", err)
	}
	return nil
}

func putSeal(dev disk.Device, b []byte) error {
	at := dev.Size() - SealSize
	if at < 0 {
		return fmt.Errorf("the slot has only %d bytes", dev.Size())
	}
	if _, err := dev.WriteAt(b, at); err != nil {
		return err
	}
	return dev.Flush()
}

// Facts is what a seal says about its slot once it has been verified.
type Facts struct {
	Manifest [32]byte // the manifest hash
	Version  string
	Epoch    uint32
	Created  int64 // seconds since 1970, 0 if the manifest does not say

	DataBlocks int64 // of 4096 bytes; the hash tree begins at that block
	Salt       []byte
	RootHash   [32]byte
	// Signed says that RootHash stands under the signature. If it does not,
	// the slot was authentic at install only; a caller that requires signed
	// root hashes must refuse it.
	Signed bool

	FS string // squashfs, ext4, erofs, vfat, or "" if the manifest does not say

	// Integrity is not "" where the slot holds a file system made of an archive: what dm-integrity below it is, "none" where
	// there is none. DataBlocks is 0 then, RootHash the tree's as it was installed, and Signed false.
	Integrity string
}

// Verify checks the seal against the keyring and compatible (if that is not
// empty) and derives the geometry of the slot. It does not look at the slot.
//
// What it proves depends on the seal. verity-image: manifest and root hash are
// signed. local with the manifest in the CMS: the manifest is signed, the root
// hash is as stored. local of a plain bundle: the signature was over the
// payload and can't be checked on the slot; the CMS need only be well formed,
// and manifest and root hash are as stored.
//
// Errors are refusals with their code, and wrap ErrFalse where seal and
// manifest contradict each other.
func (s *Seal) Verify(r verify.Rules, compatible string) (Facts, error) {
	m, plain, err := s.manifest(r, compatible)
	if err != nil {
		return Facts{}, err
	}
	for i := range m.Images {
		if img := &m.Images[i]; img.Key() == s.Image {
			return s.facts(m, img, plain)
		}
	}
	return Facts{}, contradiction("the manifest has no image %q", s.Image)
}

func (s *Seal) facts(m *bundle.Manifest, img *bundle.Image, plain bool) (Facts, error) {
	f := Facts{Manifest: m.Hash(), Version: m.Version, Epoch: m.Epoch, Salt: s.Salt, RootHash: s.RootHash}
	if !m.Created.IsZero() {
		f.Created = m.Created.Unix()
	}
	if s.Kind == KindTree {
		if !img.Archive() {
			return Facts{}, contradiction("a tree of an image that is no archive")
		}
		f.FS, f.Integrity = "ext4", integrities[s.Salt[0]]
		return f, nil
	}
	if err := img.Installable(); err != nil {
		return Facts{}, err
	}
	f.DataBlocks = img.Blocks()
	if img.Type != "raw" {
		f.FS = img.Type
	}
	switch signed := img.RootHash != nil; {
	case s.Kind == KindVerityImage && !signed:
		return Facts{}, contradiction("the root hash is not in the manifest")
	case s.Kind == KindVerityImage:
		f.Salt, f.RootHash, f.Signed = img.Salt, [32]byte(img.RootHash), true
	case signed && !plain:
		return Facts{}, contradiction("a root hash beside the signed one")
	case signed && (string(img.RootHash) != string(s.RootHash[:]) || string(img.Salt) != string(s.Salt)):
		return Facts{}, contradiction("the root hash is not that of the manifest")
	}
	return f, nil
}

func contradiction(format string, args ...any) error {
	return verify.Refuse(verify.Malformed, "%w: %s", ErrFalse, fmt.Sprintf(format, args...))
}

// room refuses (31) an image that does not fit into a slot with its hash tree
// and the seal.
func room(img string, dataBlocks, slotSize int64) error {
	need := (dataBlocks + verity.TreeBlocks(dataBlocks)) * verity.BlockSize
	if dataBlocks > verity.MaxDataBlocks || need > slotSize-SealSize {
		return verify.Refuse(verify.Policy, "image %s needs %d bytes with hash tree and seal, the slot has %d", img, need+SealSize, slotSize)
	}
	return nil
}
