package bundle

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"sync"

	"lifeboat/squashfs"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// openPlain hashes the whole payload for the detached signature and reads the
// manifest in it. 64-bit arithmetic throughout; at most 2 GiB, as in RAUC.
func openPlain(ctx context.Context, c *container, cms *verify.CMS, o Options) (*Bundle, error) {
	if !o.allows(FormatPlain) {
		if looksVerity(c) {
			return nil, verify.Refuse(verify.Malformed, "a detached signature on a bundle with a hash tree")
		}
		return nil, formatRefused(FormatPlain)
	}
	if c.payload > maxPlain {
		return nil, verify.Refuse(verify.Policy, "a plain bundle of %d bytes: more than 2 GiB", c.payload)
	}
	chunks := &chunked{src: c.src, size: c.payload}
	signed, err := cms.Verify(o.Rules, func(h crypto.Hash) ([]byte, error) { return chunks.digest(ctx, h) })
	if err != nil {
		return nil, c.src.judge("verify the signature of the payload", err)
	}
	if chunks.sums == nil {
		return nil, verify.Refuse(verify.BadSignature, "the signature does not cover the payload")
	}
	b := &Bundle{Signed: signed, src: c.src, payload: chunks, size: c.payload}
	raw, err := innerBytes(c.src, chunks, c.payload)
	if err != nil {
		return nil, err
	}
	if b.Manifest, err = ParseManifest(raw); err != nil {
		return nil, err
	}
	if b.Manifest.Format != FormatPlain {
		return nil, verify.Refuse(verify.Malformed, "a detached signature on a bundle of format %q", b.Manifest.Format)
	}
	b.open = sync.OnceValues(b.list)
	return b, nil
}

// innerBytes reads the manifest in a payload.
func innerBytes(src *source, payload io.ReaderAt, size int64) ([]byte, error) {
	sq, err := squashfs.Open(payload, size)
	if err != nil {
		return nil, src.judge("open the payload", err)
	}
	f, err := sq.Open(ManifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, verify.Refuse(verify.Malformed, "the payload has no %s", ManifestName)
	}
	if err != nil {
		return nil, src.judge("open the manifest", err)
	}
	if f.Size() > maxManifest {
		return nil, malformed(0, "has %d bytes, more than %d", f.Size(), maxManifest)
	}
	raw := make([]byte, f.Size())
	if _, err := io.ReadFull(f, raw); err != nil {
		return nil, src.judge("read the manifest", err)
	}
	return raw, nil
}

// looksVerity says whether the payload is a squashfs and exactly its hash
// tree, by the length in its superblock (bytes_used at offset 40). It serves
// the choice between two refusals.
func looksVerity(c *container) bool {
	var super [96]byte
	if c.payload < int64(len(super)) {
		return false
	}
	if _, err := c.src.ReadAt(super[:], 0); err != nil || string(super[:4]) != "hsqs" {
		return false
	}
	var used uint64
	for i := range 8 {
		used |= uint64(super[40+i]) << (8 * i)
	}
	if used == 0 || used > uint64(c.payload) {
		return false
	}
	blocks := (int64(used) + verity.BlockSize - 1) / verity.BlockSize
	return (blocks+verity.TreeBlocks(blocks))*verity.BlockSize == c.payload && verity.TreeBlocks(blocks) > 0
}

// chunkSize is the unit in which a plain payload is checked again when it is
// used: 8192 sums of 32 bytes, 256 KiB, for the longest payload.
const chunkSize = 256 << 10

// cachedChunks is how many chunks are kept, at least one for each goroutine
// that reads squashfs blocks and one for its tables.
const cachedChunks = 8

// chunked reads a plain payload: the first time to compute the digest that the
// signature is over, and later only what still has the bytes that were hashed.
type chunked struct {
	src  *source
	size int64
	sums [][32]byte // SHA-256 of each chunk, nil before the first pass

	mu    sync.Mutex
	cache []chunk // least recently used first
}

type chunk struct {
	n    int64
	data []byte
}

// digest computes the digest of the payload. The first call notes the sums of
// the chunks; a later one, for another signer's hash, reads checked chunks.
func (c *chunked) digest(ctx context.Context, h crypto.Hash) ([]byte, error) {
	if !h.Available() {
		return nil, verify.Refuse(verify.Policy, "digest %s is not available", h)
	}
	var r io.ReaderAt = c.src
	var sums [][32]byte
	if c.sums != nil {
		r = c
	}
	whole := h.New()
	buf := make([]byte, chunkSize)
	for off := int64(0); off < c.size; off += chunkSize {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p := buf[:min(chunkSize, c.size-off)]
		if _, err := r.ReadAt(p, off); err != nil {
			return nil, c.src.judge("read the payload", err)
		}
		whole.Write(p)
		if c.sums == nil {
			sums = append(sums, sha256.Sum256(p))
		}
	}
	if c.sums == nil {
		c.sums = sums
	}
	return whole.Sum(nil), nil
}

// ReadAt implements io.ReaderAt over the bytes that were signed.
func (c *chunked) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= c.size {
			return done, io.EOF
		}
		data, err := c.chunk(at / chunkSize)
		if err != nil {
			return done, err
		}
		done += copy(p[done:], data[at%chunkSize:])
	}
	return done, nil
}

// chunk returns chunk n, read and checked or from the cache.
func (c *chunked) chunk(n int64) ([]byte, error) {
	for i, e := range c.cache {
		if e.n == n {
			copy(c.cache[i:], c.cache[i+1:])
			c.cache[len(c.cache)-1] = e
			return e.data, nil
		}
	}
	var buf []byte
	if len(c.cache) == cachedChunks {
		buf = c.cache[0].data[:0]
		c.cache = append(c.cache[:0], c.cache[1:]...)
	} else {
		buf = make([]byte, 0, chunkSize)
	}
	buf = buf[:min(chunkSize, c.size-n*chunkSize)]
	if _, err := c.src.ReadAt(buf, n*chunkSize); err != nil {
		return nil, err
	}
	if sha256.Sum256(buf) != c.sums[n] {
		return nil, verify.Refuse(verify.PayloadHash, "the payload changed after it was verified, at byte %d", n*chunkSize)
	}
	c.cache = append(c.cache, chunk{n, buf})
	return buf, nil
}
