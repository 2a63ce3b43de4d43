package bundle

import (
	"io"

	"lifeboat/squashfs"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// Info is what a bundle says of itself, nothing of it checked. It is for
// showing, never for deciding.
type Info struct {
	Size, PayloadSize, CMSSize int64 // bytes

	// Encrypted says that the CMS is encrypted; then only the sizes are known.
	Encrypted bool

	CMS      *verify.CMS
	Manifest *Manifest

	// Compression of the payload, "" where it could not be read or is encrypted.
	Compression string
}

// Peek reads a bundle without verifying anything, for `bundle info` on a PC.
func Peek(r io.ReaderAt, size int64) (*Info, error) {
	c, err := split(r, size)
	if err != nil {
		return nil, err
	}
	info := &Info{Size: size, PayloadSize: c.payload, CMSSize: int64(len(c.der))}
	if encrypted(c.der) {
		info.Encrypted = true
		return info, nil
	}
	if info.CMS, err = verify.ReadCMS(c.der); err != nil {
		return nil, err
	}
	raw := info.CMS.Unverified()
	if info.CMS.Detached() {
		if raw, err = innerBytes(c.src, c.src, c.payload); err != nil {
			return nil, err
		}
	}
	if info.Manifest, err = ParseManifest(raw); err != nil {
		return nil, err
	}
	if info.Manifest.Format != FormatCrypt {
		if sq, err := squashfs.Open(c.src, c.payload); err == nil {
			info.Compression = sq.Compression()
		}
	}
	return info, nil
}

// unsigned opens a verity bundle that was just made, without its signature.
func unsigned(r io.ReaderAt, size int64, m *Manifest) (*Bundle, error) {
	b := &Bundle{Manifest: m, src: &source{r: r, size: size}}
	var err error
	if b.size, err = m.squashfsSize(size); err != nil {
		return nil, err
	}
	b.payload = verity.NewReader(b.src, b.size/verity.BlockSize, b.size, m.VeritySalt, verity.Hash(m.VerityHash))
	b.open = b.list
	return b, nil
}
