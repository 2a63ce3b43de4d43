package slots

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"lifeboat/bundle"
	"lifeboat/disk"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

const (
	pieceSize = 1 << 20 // bytes of a write to the slot
	pieces    = 4       // buffers between reading, hashing and writing
	// writeBack is how many bytes are written before the kernel is asked to
	// begin bringing them to the medium, so that the flush at the end finds
	// little left to do and memory is not full of dirty pages.
	writeBack = 8 << 20
	// treePart is how much of the hash tree is read at a time.
	treePart = 128 << 10
)

// Install writes an image of a bundle to dev, from byte 0, filled up with
// zeros to a whole block, and its hash tree directly after it, and returns the
// seal that belongs to it. It neither wipes the old seal nor flushes nor
// writes the new one: a power cut before the caller has done so confers nothing.
// Nothing is written to the last SealSize bytes.
//
// The image is authenticated as it is read. What was hashed is what was given
// to dev; the root hash must be the signed one or, where none is signed, the
// SHA-256 that of the manifest (30). 31: no room, or an image that can't be
// installed. 40: dev or the medium of the bundle failed.
//
// Reading, hashing and writing overlap; buffers take about 6 MiB beside those
// of squashfs. progress, if not nil, is told how many bytes of the image were
// given to dev, from one goroutine that ends before Install returns.
func Install(ctx context.Context, dev disk.Device, b *bundle.Bundle, image int, progress func(done, total int64)) (Seal, error) {
	return Resume(ctx, dev, b, image, 0, &Old{}, progress)
}

// Resume is Install where an earlier one, of the same bundle, ended after it had
// said that from bytes were given to dev: they are read back instead of written
// again. If they are not what they should be, the root hash is not either (30).
// Of what is behind them nothing is written that is there already, as old says.
func Resume(ctx context.Context, dev disk.Device, b *bundle.Bundle, image int, from int64, old *Old, progress func(done, total int64)) (Seal, error) {
	img := &b.Manifest.Images[image]
	if err := img.Installable(); err != nil {
		return Seal{}, err
	}
	blocks := img.Blocks()
	if err := room(img.Key(), blocks, dev.Size()); err != nil {
		return Seal{}, err
	}
	seal, salt, err := prepare(b, img)
	if err != nil {
		return Seal{}, err
	}
	src, err := b.Image(image)
	if err != nil {
		return Seal{}, err
	}
	// The signed root hash says at least as much, and is computed anyway; and
	// without one the sum is better computed beside the rest.
	src.SkipSHA256()

	slot := disk.Section(dev, 0, dev.Size()-SealSize)
	size := blocks * verity.BlockSize
	data, hashes := &sparing{w: slot, r: old.R}, &sparing{w: slot}
	if old.R != nil {
		hashes.r = &treeAhead{r: old.R, start: size, end: size + verity.TreeBlocks(blocks)*verity.BlockSize}
	}
	tree := verity.NewBuilder(hashes, size, blocks, salt)
	out := &sink{dev: dev, w: data, total: img.Size, progress: progress}
	uses := []func(off int64, p []byte) error{
		out.write,
		func(_ int64, p []byte) error {
			_, err := tree.Write(p)
			return failed("write the hash tree", err)
		},
	}
	var sum hash.Hash
	if img.RootHash == nil {
		sum = sha256.New()
		left := img.Size
		uses = append(uses, func(_ int64, p []byte) error {
			n := min(left, int64(len(p))) // without the padding
			left -= n
			sum.Write(p[:n])
			return nil
		})
	}
	if from, err = src.Skip(min(from, img.Size)); err != nil {
		return Seal{}, fmt.Errorf("install image %s: %w", img.Key(), err)
	}
	if err := out.reread(ctx, from, uses[1:]); err != nil {
		return Seal{}, fmt.Errorf("install image %s: %w", img.Key(), err)
	}
	if err := pump(ctx, src, from, uses...); err != nil {
		return Seal{}, fmt.Errorf("install image %s: %w", img.Key(), err)
	}
	root, err := tree.Finish()
	if err != nil {
		return Seal{}, fmt.Errorf("install image %s: %w", img.Key(), failed("write the hash tree", err))
	}
	switch {
	case img.RootHash != nil && string(img.RootHash) != string(root[:]):
		return Seal{}, verify.Refuse(verify.PayloadHash, "image %s does not have the signed root hash", img.Key())
	case img.RootHash == nil && [32]byte(sum.Sum(nil)) != img.SHA256:
		return Seal{}, verify.Refuse(verify.PayloadHash, "image %s does not have the SHA-256 that the manifest says", img.Key())
	}
	if seal.Kind == KindLocal {
		seal.RootHash = root
	}
	old.Same += data.same + hashes.same
	return seal, nil
}

// prepare makes the seal, all but a root hash that is not known yet, and
// chooses the salt.
func prepare(b *bundle.Bundle, img *bundle.Image) (Seal, []byte, error) {
	seal := Seal{Kind: KindVerityImage, CMS: b.CMS, Image: img.Key()}
	salt := img.Salt
	if img.RootHash == nil || b.Plain() {
		seal.Kind = KindLocal
		if salt == nil {
			salt = make([]byte, 32)
			if _, err := rand.Read(salt); err != nil {
				return Seal{}, nil, fmt.Errorf("choose a salt: %w", err)
			}
		}
		seal.Salt = salt
	}
	if b.Plain() {
		seal.Manifest = b.Manifest.Raw
	}
	if err := seal.check(); err != nil {
		return Seal{}, nil, verify.Refuse(verify.Policy, "the bundle does not fit into a seal: %w", err)
	}
	return seal, salt, nil
}

// failed gives an error of the slot's device its code.
func failed(doing string, err error) error {
	if err == nil {
		return nil
	}
	return verify.Refuse(verify.IO, "%s: %w", doing, err)
}

// sink writes to the slot.
type sink struct {
	dev      disk.Device
	w        io.WriterAt
	total    int64
	started  int64 // write-back was asked for up to here
	progress func(done, total int64)
}

func (s *sink) write(off int64, p []byte) error {
	if _, err := s.w.WriteAt(p, off); err != nil {
		return failed(fmt.Sprintf("write to the slot at byte %d", off), err)
	}
	done := off + int64(len(p))
	if done-s.started >= writeBack {
		startWriteBack(s.dev, s.started, done-s.started)
		s.started = done
	}
	if s.progress != nil {
		s.progress(min(done, s.total), s.total)
	}
	return nil
}

// reread gives the first n bytes of the slot to uses, as if they were written.
func (s *sink) reread(ctx context.Context, n int64, uses []func(off int64, p []byte) error) error {
	s.started = n
	buf := make([]byte, min(n, pieceSize))
	for off := int64(0); off < n && ctx.Err() == nil; {
		p := buf[:min(n-off, pieceSize)]
		if _, err := s.dev.ReadAt(p, off); err != nil {
			return failed("read what was written before", err)
		}
		for _, use := range uses {
			if err := use(off, p); err != nil {
				return err
			}
		}
		off += int64(len(p))
		if s.progress != nil {
			s.progress(off, s.total)
		}
	}
	return ctx.Err()
}

// startWriteBack makes the kernel begin to write n bytes to the medium. It is
// no promise of anything: errors come back with the flush.
func startWriteBack(dev disk.Device, off, n int64) {
	if f, ok := dev.(interface{ File() *os.File }); ok {
		unix.SyncFileRange(int(f.File().Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// piece is a part of the image on its way.
type piece struct {
	off   int64
	data  []byte
	users atomic.Int32 // that have not done with it
}

// pump reads src to its end and gives it, as what is at off and behind it, piece
// by piece, all but the last of pieceSize bytes and the last filled up to a block, to each of uses. Each use
// runs in its own goroutine and sees the pieces in order. The first error ends
// everything; no goroutine is left when pump returns.
func pump(ctx context.Context, src *bundle.ImageReader, off int64, uses ...func(off int64, p []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &chopper{ctx: ctx, off: off, free: make(chan *piece, pieces)}
	for range pieces {
		c.free <- &piece{data: make([]byte, 0, min(pieceSize, (src.Size()+verity.BlockSize-1)&^(verity.BlockSize-1)))}
	}
	var wg sync.WaitGroup
	for _, use := range uses {
		in := make(chan *piece, pieces)
		c.out = append(c.out, in)
		wg.Go(func() {
			var err error
			for p := range in {
				if err == nil {
					if err = use(p.off, p.data); err != nil {
						cancel(err)
					}
				}
				if p.users.Add(-1) == 0 {
					c.free <- p
				}
			}
		})
	}
	_, err := src.WriteToContext(ctx, c)
	if err == nil {
		err = c.finish()
	}
	for _, in := range c.out {
		close(in)
	}
	wg.Wait()
	// What a use reported comes before what that did to the source.
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return cause
	}
	return err
}

// chopper is the writer that cuts an image into pieces.
type chopper struct {
	ctx  context.Context
	free chan *piece
	out  []chan *piece
	cur  *piece
	off  int64
}

func (c *chopper) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if c.cur == nil {
			select {
			case c.cur = <-c.free:
			case <-c.ctx.Done():
				return n, context.Canceled
			}
			c.cur.off, c.cur.data = c.off, c.cur.data[:0]
		}
		d := c.cur.data
		take := min(len(p)-n, cap(d)-len(d))
		c.cur.data = append(d, p[n:n+take]...)
		n += take
		if len(c.cur.data) == cap(d) {
			c.send()
		}
	}
	return n, nil
}

// send gives the piece to all uses; their channels have room for every piece.
func (c *chopper) send() {
	c.off += int64(len(c.cur.data))
	c.cur.users.Store(int32(len(c.out)))
	for _, out := range c.out {
		out <- c.cur
	}
	c.cur = nil
}

// finish sends what is left, filled up with zeros to a whole block.
func (c *chopper) finish() error {
	if c.cur == nil {
		return nil
	}
	if rest := len(c.cur.data) % verity.BlockSize; rest > 0 {
		c.cur.data = append(c.cur.data, make([]byte, verity.BlockSize-rest)...)
	}
	c.send()
	return nil
}

// Attest reads a slot back as a whole: it verifies the seal, which need not be
// on the slot yet, reads image and hash tree from r, and compares the tree
// that it computes with the one on the slot and with the root hash. r should
// read from the medium, not from memory. A slot that differs is refused (30).
// progress is told how many bytes of the image were read.
func Attest(ctx context.Context, r io.ReaderAt, slotSize int64, s *Seal, rules verify.Rules, compatible string, progress func(done, total int64)) (Facts, error) {
	f, err := s.Verify(rules, compatible)
	if err != nil {
		return Facts{}, err
	}
	if err := room(s.Image, f.DataBlocks, slotSize); err != nil {
		return Facts{}, err
	}
	size := f.DataBlocks * verity.BlockSize
	var report func(int64)
	if progress != nil {
		report = func(done int64) { progress(done, size) }
	}
	err = verity.Check(ctx, &treeAhead{r: r, start: size, end: size + verity.TreeBlocks(f.DataBlocks)*verity.BlockSize}, f.DataBlocks, size, f.Salt, f.RootHash, report)
	var damaged verity.ErrCorrupt
	switch {
	case err == nil:
		return f, nil
	case errors.As(err, &damaged):
		return Facts{}, verify.Refuse(verify.PayloadHash, "read the slot back: %w", err)
	case ctx.Err() != nil:
		return Facts{}, err
	}
	return Facts{}, verify.Refuse(verify.IO, "read the slot back: %w", err)
}

// treeAhead reads the hash tree, which is asked for in single blocks, in larger
// parts: each read of a medium without a cache costs as much as hashing the
// data below the block. Every byte is still read once after Attest began.
type treeAhead struct {
	r          io.ReaderAt
	start, end int64 // of the tree

	mu  sync.Mutex
	off int64
	buf []byte
}

func (t *treeAhead) ReadAt(p []byte, off int64) (int, error) {
	if off < t.start || off+int64(len(p)) > t.end {
		return t.r.ReadAt(p, off)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if off < t.off || off+int64(len(p)) > t.off+int64(len(t.buf)) {
		n := min(max(treePart, int64(len(p))), t.end-off)
		if int64(cap(t.buf)) < n {
			t.buf = make([]byte, n)
		}
		t.buf, t.off = t.buf[:n], off
		if n, err := t.r.ReadAt(t.buf, off); n < len(t.buf) {
			t.buf = t.buf[:0]
			return 0, err
		}
	}
	return copy(p, t.buf[off-t.off:]), nil
}
