// Package bundle reads and makes RAUC's update bundles (.raucb).
//
// Open authenticates a bundle and returns what it says; Bundle.Image then
// reads an image out of it, every byte checked when it is used. Nothing of a
// payload is parsed before the signature over it has been verified, and
// nothing is read from the bundle twice without being checked twice: the
// medium may change between two reads.
//
// A bundle is payload, CMS (DER) and the length of the CMS as a big-endian
// uint64. In the verity format the CMS holds the manifest, which has the root
// of a dm-verity tree at the end of the payload; in the plain format the CMS
// is a detached signature over the whole payload, which holds the manifest.
// The payload is a squashfs with the manifest and the images in its root.
//
// Errors of this package carry the codes of verify.Code. Create, Peek,
// OpenSigning and Bundle.Extract are for the PC.
package bundle

import (
	"context"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"lifeboat/squashfs"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// MaxCMS is the most bytes that the signature part of a bundle may have.
const MaxCMS = 64 << 10

// maxPlain is the most bytes of a plain payload, RAUC's limit (INT32_MAX).
const maxPlain = 1<<31 - 1

// trailerSize is the length of the length of the CMS at the end of a bundle.
const trailerSize = 8

// Options says what a bundle must fulfil beside being well signed.
type Options struct {
	Rules verify.Rules

	// Formats lists what is taken, of FormatVerity and FormatPlain;
	// nil is verity only.
	Formats []string

	// Compatible must be the manifest's; "" is not checked.
	Compatible string

	// Serial is the device's serial number, which has to be in serials= of a
	// manifest that has it; AnySerial leaves that unchecked.
	Serial    string
	AnySerial bool

	// RequireSignedVerity refuses bundles with an image whose dm-verity
	// root hash is not in the signed manifest.
	RequireSignedVerity bool
}

// Bundle is an authenticated bundle. Its methods may be used by several
// goroutines at once.
type Bundle struct {
	Manifest *Manifest
	CMS      []byte // as it stands in the bundle
	Signed   *verify.Signed

	src     *source
	payload io.ReaderAt // the squashfs, authenticated when read
	size    int64       // bytes of the squashfs
	open    func() (*files, error)
}

// Plain says that the CMS is a detached signature over the payload, so that
// it proves the manifest only together with the whole payload.
func (b *Bundle) Plain() bool { return b.Manifest.Format == FormatPlain }

// container is a bundle taken apart, nothing of it verified.
type container struct {
	src     *source
	payload int64 // bytes
	der     []byte
}

// Split returns the length of a bundle's payload and its CMS, nothing of it
// verified. It is for showing.
func Split(r io.ReaderAt, size int64) (payload int64, cms []byte, err error) {
	c, err := split(r, size)
	if err != nil {
		return 0, nil, err
	}
	return c.payload, c.der, nil
}

// split reads the trailer and the CMS.
func split(r io.ReaderAt, size int64) (*container, error) {
	if size <= trailerSize {
		return nil, verify.Refuse(verify.Malformed, "not a bundle: it has only %d bytes", size)
	}
	src := &source{r: r, size: size}
	var trailer [trailerSize]byte
	if _, err := src.ReadAt(trailer[:], size-trailerSize); err != nil {
		return nil, src.judge("read the end of the bundle", err)
	}
	n := binary.BigEndian.Uint64(trailer[:])
	switch {
	case n == 0:
		return nil, verify.Refuse(verify.Malformed, "not a bundle: it has no signature")
	case n >= uint64(size-trailerSize):
		return nil, verify.Refuse(verify.Malformed, "not a bundle: it does not end with the length of a signature")
	case n > MaxCMS:
		return nil, verify.Refuse(verify.Policy, "the signature has %d bytes, more than %d", n, MaxCMS)
	}
	c := &container{src: src, payload: size - trailerSize - int64(n), der: make([]byte, n)}
	if _, err := src.ReadAt(c.der, c.payload); err != nil {
		return nil, src.judge("read the signature of the bundle", err)
	}
	return c, nil
}

// Open reads trailer, signature and manifest of the bundle in the first size
// bytes of r and checks all that can be checked without the payload, cheap
// things first. Of a plain bundle the whole payload is read and hashed.
// r must stay readable while the Bundle is used; size is never looked up again.
func Open(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Bundle, error) {
	c, err := split(r, size)
	if err != nil {
		return nil, err
	}
	if encrypted(c.der) {
		return nil, verify.Refuse(verify.Policy, "encrypted bundle (format crypt): not supported yet")
	}
	cms, err := verify.ReadCMS(c.der)
	if err != nil {
		return nil, err
	}
	var b *Bundle
	if cms.Detached() {
		b, err = openPlain(ctx, c, cms, o)
	} else {
		b, err = openVerity(c, cms, o)
	}
	if err != nil {
		return nil, err
	}
	b.CMS = c.der
	if err := b.Manifest.Check(o); err != nil {
		return nil, err
	}
	return b, nil
}

func (o *Options) allows(format string) bool {
	if o.Formats == nil {
		return format == FormatVerity
	}
	return slices.Contains(o.Formats, format)
}

func formatRefused(format string) error {
	return verify.Refuse(verify.Policy, "bundles of format %q are not allowed here", format)
}

// Check applies the policy that needs nothing but the manifest. Open does.
func (m *Manifest) Check(o Options) error {
	if o.Compatible != "" && m.Compatible != o.Compatible {
		return verify.Refuse(verify.WrongTarget, "the bundle is for %q, this is %q", m.Compatible, o.Compatible)
	}
	if m.Serials != nil && !o.AnySerial && !slices.Contains(m.Serials, o.Serial) {
		return verify.Refuse(verify.WrongTarget, "the bundle is for devices with other serial numbers than %q", o.Serial)
	}
	if now := o.Rules.Now; !o.Rules.AtBoot && !m.ValidUntil.IsZero() && now.After(m.ValidUntil) {
		return verify.Refuse(verify.Stale, "the bundle was valid until %s", m.ValidUntil.Format("2006-01-02 15:04:05Z"))
	}
	if o.RequireSignedVerity {
		for i := range m.Images {
			if m.Images[i].RootHash == nil {
				return verify.Refuse(verify.Policy, "image %s has no signed root hash (verity-hash in [meta.lifeboat])", m.Images[i].Key())
			}
		}
	}
	return nil
}

func openVerity(c *container, cms *verify.CMS, o Options) (*Bundle, error) {
	signed, err := cms.Verify(o.Rules, nil)
	if err != nil {
		return nil, err
	}
	m, err := ParseManifest(signed.Content)
	if err != nil {
		return nil, err
	}
	b := &Bundle{Manifest: m, Signed: signed, src: c.src}
	switch {
	case m.Format == FormatPlain:
		return nil, verify.Refuse(verify.Malformed, "the signature holds a manifest of format plain, which has a detached signature")
	case m.Format == FormatCrypt:
		return nil, verify.Refuse(verify.Policy, "bundle of format crypt: not supported yet")
	case m.Format != FormatVerity:
		return nil, verify.Refuse(verify.Policy, "unknown bundle format %q", m.Format)
	case !o.allows(FormatVerity):
		return nil, formatRefused(FormatVerity)
	}
	if b.size, err = m.squashfsSize(c.payload); err != nil {
		return nil, err
	}
	b.payload = verity.NewReader(c.src, b.size/verity.BlockSize, b.size, m.VeritySalt, verity.Hash(m.VerityHash))
	b.open = sync.OnceValues(b.list)
	return b, nil
}

// squashfsSize derives the length of the squashfs from those of payload and
// hash tree, and refuses what is not exactly one payload and its tree.
func (m *Manifest) squashfsSize(payload int64) (int64, error) {
	data := payload - m.VeritySize
	if payload%verity.BlockSize != 0 || data <= verity.BlockSize ||
		verity.TreeBlocks(data/verity.BlockSize)*verity.BlockSize != m.VeritySize {
		return 0, verify.Refuse(verify.Malformed, "a payload of %d bytes does not end with a hash tree of %d", payload, m.VeritySize)
	}
	return data, nil
}

// Check reads everything: each block of the payload, the hash tree, and each
// image with its size and SHA-256.
func (b *Bundle) Check(ctx context.Context) error {
	if !b.Plain() {
		m := b.Manifest
		err := verity.Check(ctx, b.src, b.size/verity.BlockSize, b.size, m.VeritySalt, verity.Hash(m.VerityHash), nil)
		if err != nil {
			return b.src.judge("check the payload", err)
		}
	}
	if _, err := b.open(); err != nil {
		return err
	}
	for i := range b.Manifest.Images {
		if b.Manifest.Images[i].Filename == "" {
			continue
		}
		r, err := b.Image(i)
		if err != nil {
			return err
		}
		if _, err := r.WriteToContext(ctx, io.Discard); err != nil {
			return err
		}
	}
	return nil
}

// source is the medium the bundle lies on. It remembers its own failures, so
// that they can be told from those of the content whatever wraps them.
type source struct {
	r    io.ReaderAt
	size int64
	mu   sync.Mutex
	err  error
}

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.size || int64(len(p)) > s.size-off {
		return 0, fmt.Errorf("read of %d bytes at %d beyond the bundle: %w", len(p), off, io.ErrUnexpectedEOF)
	}
	n, err := s.r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	switch {
	case err == nil:
		err = io.ErrNoProgress
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("the bundle became shorter: %w", io.ErrUnexpectedEOF)
	}
	s.mu.Lock()
	s.err = err
	s.mu.Unlock()
	return n, err
}

// judge gives the error of an operation on the bundle its code: 30 for blocks
// that are not the signed ones, 40 for a medium that fails, 20 for a payload
// that is signed and malformed. Others (of a context, of the writer that an
// image goes to) stay as they are.
func (s *source) judge(doing string, err error) error {
	var refusal *verify.Refusal
	var damaged verity.ErrCorrupt
	s.mu.Lock()
	failed := s.err
	s.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refusal), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", doing, err)
	case errors.As(err, &damaged):
		return verify.Refuse(verify.PayloadHash, "%s: %w", doing, err)
	case failed != nil:
		return verify.Refuse(verify.IO, "%s: %w", doing, failed)
	case errors.Is(err, squashfs.ErrUnsupported):
		return verify.Refuse(verify.Policy, "%s: %w", doing, err)
	case errors.Is(err, squashfs.ErrCorrupt):
		return verify.Refuse(verify.Malformed, "%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// encrypted says whether der is a CMS EnvelopedData (RFC 5652, section 6.1)
// in its outer form, as `rauc encrypt` makes it of a crypt bundle. What only
// bears its OID is left to the CMS reader, which refuses it as malformed.
func encrypted(der []byte) bool {
	var info struct {
		Type    asn1.ObjectIdentifier
		Content struct {
			Version    int
			Recipients asn1.RawValue
			Encrypted  struct {
				Type      asn1.ObjectIdentifier
				Algorithm struct {
					OID        asn1.ObjectIdentifier
					Parameters asn1.RawValue `asn1:"optional"`
				}
				Content asn1.RawValue
			}
			Unprotected asn1.RawValue `asn1:"optional,tag:1"`
		} `asn1:"explicit,tag:0"`
	}
	rest, err := asn1.Unmarshal(der, &info)
	return err == nil && len(rest) == 0 &&
		info.Type.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}) &&
		info.Content.Recipients.Class == asn1.ClassUniversal && info.Content.Recipients.Tag == asn1.TagSet
}
