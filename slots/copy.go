package slots

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"lifeboat/disk"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// Copy makes the image and hash tree of a slot of those of another, whose
// verified seal says f. What is the same already is not written, so that a copy
// that was cut goes on where it was. Nothing that is read is judged: the source
// must have been attested before, the target must be after. As with Install the
// seal is the caller's, and so is the flush.
//
// A block of dev that can't be read is written. Errors are of either medium (40)
// or say that there is no room (31).
func Copy(ctx context.Context, dev disk.Device, src io.ReaderAt, f Facts, image string, progress func(done, total int64)) error {
	if err := room(image, f.DataBlocks, dev.Size()); err != nil {
		return err
	}
	total := (f.DataBlocks + verity.TreeBlocks(f.DataBlocks)) * verity.BlockSize
	from, to := make([]byte, pieceSize), make([]byte, pieceSize)
	out := sink{dev: dev, w: disk.Section(dev, 0, dev.Size()-SealSize), total: total, progress: progress}
	for off := int64(0); off < total; off += pieceSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(pieceSize, total-off)
		if got, err := src.ReadAt(from[:n], off); int64(got) < n {
			return verify.Refuse(verify.IO, "read the slot that is copied at byte %d: %w", off, err)
		}
		if got, _ := dev.ReadAt(to[:n], off); int64(got) == n && bytes.Equal(from[:n], to[:n]) {
			if progress != nil {
				progress(off+n, total)
			}
			continue
		}
		if err := out.write(off, from[:n]); err != nil {
			return fmt.Errorf("copy a slot: %w", err)
		}
	}
	return nil
}
