package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"io/fs"

	"lifeboat/squashfs"
	"lifeboat/verify"
)

// indexSuffix ends the name of an image's list of block hashes
// (adaptive=block-hash-index); it is tolerated and not used.
const indexSuffix = ".block-hash-index"

// files is the payload opened.
type files struct {
	fs      *squashfs.FS
	entries []squashfs.Entry
}

// list opens the squashfs and checks that it holds the files of the manifest
// and no others: a file that no checksum covers is refused.
func (b *Bundle) list() (*files, error) {
	sq, err := squashfs.Open(b.payload, b.size)
	if err != nil {
		return nil, b.src.judge("open the payload", err)
	}
	entries, err := sq.ReadDir("")
	if err != nil {
		return nil, b.src.judge("list the payload", err)
	}
	sizes := map[string]int64{}
	for _, e := range entries {
		if e.Type != squashfs.Regular {
			return nil, verify.Refuse(verify.Malformed, "the payload has a %s %q", e.Type, e.Name)
		}
		sizes[e.Name] = e.Size
	}
	known := map[string]bool{ManifestName: true}
	for i := range b.Manifest.Images {
		img := &b.Manifest.Images[i]
		if img.Filename == "" {
			continue
		}
		size, ok := sizes[img.Filename]
		if !ok {
			return nil, verify.Refuse(verify.PayloadHash, "image %s: the payload has no file %q", img.Key(), img.Filename)
		}
		if size != img.Size {
			return nil, verify.Refuse(verify.PayloadHash, "image %s: %s has %d bytes, the manifest says %d", img.Key(), img.Filename, size, img.Size)
		}
		known[img.Filename] = true
		for _, a := range img.Adaptive {
			if a == indexSuffix[1:] {
				known[img.Filename+indexSuffix] = true
			}
		}
	}
	if name := b.Manifest.Keyring; name != "" {
		if size, ok := sizes[name]; !ok || size != b.Manifest.KeyringSize || known[name] {
			return nil, verify.Refuse(verify.PayloadHash, "the payload has no file %q of %d bytes, which keyring= names", name, b.Manifest.KeyringSize)
		}
		known[name] = true
	}
	for _, e := range entries {
		if !known[e.Name] {
			return nil, verify.Refuse(verify.Malformed, "the payload has a file %q that the manifest does not name", e.Name)
		}
	}
	return &files{sq, entries}, nil
}

// Keyring returns the trust file that the bundle brings along, nil if it brings none.
func (b *Bundle) Keyring() ([]byte, error) {
	m := b.Manifest
	if m.Keyring == "" {
		return nil, nil
	}
	f, err := b.open()
	if err != nil {
		return nil, err
	}
	file, err := f.fs.Open(m.Keyring)
	if err != nil {
		return nil, b.src.judge("open the keyring", err)
	}
	data := make([]byte, m.KeyringSize)
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, b.src.judge("read the keyring", err)
	}
	if sha256.Sum256(data) != m.KeyringSHA256 {
		return nil, verify.Refuse(verify.PayloadHash, "the keyring is not the one that the manifest names")
	}
	return data, nil
}

// Compression names the compressor of the payload: gzip, xz, lz4 or zstd.
func (b *Bundle) Compression() (string, error) {
	f, err := b.open()
	if err != nil {
		return "", err
	}
	return f.fs.Compression(), nil
}

// ImageReader reads one image, once, from its start to its end. Its bytes are
// authenticated when they are read. At the end size and SHA-256 are compared
// with the manifest's; only then does Read return io.EOF and WriteTo nil.
type ImageReader struct {
	b    *Bundle
	img  *Image
	file *squashfs.File
	sum  hash.Hash // nil: not wanted
	n    int64
}

// Image opens image i of the manifest.
func (b *Bundle) Image(i int) (*ImageReader, error) {
	f, err := b.open()
	if err != nil {
		return nil, err
	}
	img := &b.Manifest.Images[i]
	if img.Filename == "" {
		return nil, verify.Refuse(verify.Policy, "image %s has no file", img.Key())
	}
	file, err := f.fs.Open(img.Filename)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, verify.Refuse(verify.PayloadHash, "image %s: the payload has no file %q", img.Key(), img.Filename)
	}
	if err != nil {
		return nil, b.src.judge("open image "+img.Key(), err)
	}
	return &ImageReader{b: b, img: img, file: file, sum: sha256.New()}, nil
}

// SkipSHA256 leaves the comparison with the manifest's SHA-256 to a caller
// that compares something as good, such as the signed root hash of the image.
// It must be called before the first read.
func (r *ImageReader) SkipSHA256() { r.sum = nil }

// Skip passes over the beginning of the image, at most n bytes of it, which the
// caller has from an earlier reader; it returns how many bytes that were, a
// multiple of 4096. SkipSHA256 must have been called.
func (r *ImageReader) Skip(n int64) (int64, error) {
	skipped, err := r.file.Skip(n)
	r.n += skipped
	if err != nil {
		return skipped, r.b.src.judge("read image "+r.img.Key(), err)
	}
	return skipped, nil
}

// Size is the length of the image in bytes.
func (r *ImageReader) Size() int64 { return r.img.Size }

// Read implements io.Reader.
func (r *ImageReader) Read(p []byte) (int, error) {
	n, err := r.file.Read(p)
	r.note(p[:n])
	switch {
	case err == io.EOF:
		if err := r.finish(); err != nil {
			return n, err
		}
		return n, io.EOF
	case err != nil:
		return n, r.b.src.judge("read image "+r.img.Key(), err)
	}
	return n, nil
}

// WriteTo implements io.WriterTo; blocks are decompressed in parallel.
func (r *ImageReader) WriteTo(w io.Writer) (int64, error) {
	return r.WriteToContext(context.Background(), w)
}

// WriteToContext is WriteTo that can be ended. An error of w is returned as
// it is.
func (r *ImageReader) WriteToContext(ctx context.Context, w io.Writer) (int64, error) {
	dst := &noting{r: r, w: w}
	n, err := r.file.WriteToContext(ctx, dst)
	if dst.err != nil {
		return n, dst.err
	}
	if err != nil {
		return n, r.b.src.judge("read image "+r.img.Key(), err)
	}
	return n, r.finish()
}

func (r *ImageReader) note(p []byte) {
	r.n += int64(len(p))
	if r.sum != nil {
		r.sum.Write(p)
	}
}

func (r *ImageReader) finish() error {
	if r.n != r.img.Size {
		return verify.Refuse(verify.PayloadHash, "image %s has %d bytes, the manifest says %d", r.img.Key(), r.n, r.img.Size)
	}
	if r.sum != nil && [32]byte(r.sum.Sum(nil)) != r.img.SHA256 {
		return verify.Refuse(verify.PayloadHash, "image %s does not have the SHA-256 that the manifest says", r.img.Key())
	}
	return nil
}

// noting passes what is written to w and to its reader's checks, and keeps
// the error of w apart from those of the bundle.
type noting struct {
	r   *ImageReader
	w   io.Writer
	err error
}

func (t *noting) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.r.note(p[:n])
	if err != nil {
		t.err = err
	}
	return n, err
}
