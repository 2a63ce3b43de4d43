package slots

import (
	"context"
	"crypto/sha256"
	"io"

	"lifeboat/bundle"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// Holds reads from r, a slot of slotSize bytes that somebody else has written, whether it begins with an image of a bundle,
// and whether hash tree and seal have room behind it. It has the codes of Install; nothing is written.
func Holds(ctx context.Context, r io.ReaderAt, slotSize int64, b *bundle.Bundle, image int, progress func(done, total int64)) error {
	img := &b.Manifest.Images[image]
	if err := img.Installable(); err != nil {
		return err
	}
	if err := room(img.Key(), img.Blocks(), slotSize); err != nil {
		return err
	}
	var into io.Writer
	var tree *verity.Builder
	sum := sha256.New()
	if into = sum; img.RootHash != nil {
		tree = verity.NewBuilder(nowhere{}, img.Blocks()*verity.BlockSize, img.Blocks(), img.Salt)
		into = tree
	}
	buf := make([]byte, pieceSize)
	for off := int64(0); off < img.Size; off += pieceSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(pieceSize, img.Blocks()*verity.BlockSize-off)]
		if n, err := r.ReadAt(p, off); n < len(p) {
			return verify.Refuse(verify.IO, "read the slot: %w", err)
		}
		n := min(int64(len(p)), img.Size-off)
		clear(p[n:]) // as Install fills up the last block
		if tree == nil {
			p = p[:n]
		}
		if _, err := into.Write(p); err != nil {
			return err
		}
		if progress != nil {
			progress(min(off+pieceSize, img.Size), img.Size)
		}
	}
	same := false
	if tree == nil {
		same = [32]byte(sum.Sum(nil)) == img.SHA256
	} else {
		root, err := tree.Finish()
		if err != nil {
			return err
		}
		same = string(root[:]) == string(img.RootHash)
	}
	if !same {
		r := verify.Refuse(verify.PayloadHash, "the slot does not hold the image %s of this bundle", img.Key())
		r.Hint = "it must not be changed after it was written: no resize=true (RAUC), no mount"
		return r
	}
	return nil
}

// nowhere takes a hash tree of which only the root counts.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
