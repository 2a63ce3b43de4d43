package slots

import (
	"context"
	"crypto/sha256"
	"io"

	"lifeboat/bundle"
	"lifeboat/verify"
)

// Copied reads whether r, a copy of a boot loader of size bytes, begins with the image for a class of the bundle whose seal
// this is. The seal lies on a slot of that bundle and is verified as in [Seal.Verify]; what it says of the image is its SHA-256.
// A copy that is another one is refused (30). r should read from the medium, not from memory.
func (s *Seal) Copied(ctx context.Context, r io.ReaderAt, size int64, class string, rules verify.Rules, compatible string, progress func(done, total int64)) error {
	m, _, err := s.manifest(rules, compatible)
	if err != nil {
		return err
	}
	i, err := m.Find(class)
	if err != nil {
		return err
	}
	img := &m.Images[i]
	sum := sha256.New()
	buf := make([]byte, pieceSize)
	for off := int64(0); off < img.Size && img.Size <= size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(img.Size-off, pieceSize)]
		if n, err := r.ReadAt(p, off); n < len(p) {
			return verify.Refuse(verify.IO, "read the boot loader: %w", err)
		}
		sum.Write(p)
		off += int64(len(p))
		progress(off, img.Size)
	}
	if [32]byte(sum.Sum(nil)) != img.SHA256 {
		return verify.Refuse(verify.PayloadHash, "it is not the image %s of this bundle", class)
	}
	return nil
}

// manifest verifies the seal and returns the manifest of its bundle; plain: see Verify.
func (s *Seal) manifest(r verify.Rules, compatible string) (m *bundle.Manifest, plain bool, err error) {
	if err := s.check(); err != nil {
		return nil, false, contradiction("%v", err)
	}
	cms, err := verify.ReadCMS(s.CMS)
	if err != nil {
		return nil, false, err
	}
	raw := s.Manifest
	switch {
	case cms.Detached() != (len(s.Manifest) > 0):
		return nil, false, contradiction("signature and manifest do not belong together")
	case !cms.Detached():
		signed, err := cms.Verify(r, nil)
		if err != nil {
			return nil, false, err
		}
		raw = signed.Content
	}
	if m, err = bundle.ParseManifest(raw); err != nil {
		return nil, false, err
	}
	if compatible != "" && m.Compatible != compatible {
		return nil, false, verify.Refuse(verify.WrongTarget, "the slot is for %q, this is %q", m.Compatible, compatible)
	}
	return m, cms.Detached(), nil
}
