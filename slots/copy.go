package slots

import (
	"context"
	"fmt"
	"io"

	"lifeboat/disk"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// Copy makes the image and hash tree of a slot of those of another, whose
// verified seal says f. What is the same already, as old says, is not written, so
// that a copy that was cut goes on where it was. Nothing that is read is judged: the source
// must have been attested before, the target must be after. As with Install the
// seal is the caller's, and so is the flush.
//
// Errors are of either medium (40) or say that there is no room (31).
func Copy(ctx context.Context, dev disk.Device, src io.ReaderAt, f Facts, image string, old *Old, progress func(done, total int64)) error {
	if err := room(image, f.DataBlocks, dev.Size()); err != nil {
		return err
	}
	total := (f.DataBlocks + verity.TreeBlocks(f.DataBlocks)) * verity.BlockSize
	buf := disk.Aligned(pieceSize)
	to := &sparing{w: disk.Section(dev, 0, dev.Size()-SealSize), r: old.R}
	out := sink{dev: dev, w: to, total: total, progress: progress}
	for off := int64(0); off < total; off += pieceSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(pieceSize, total-off)]
		if n, err := src.ReadAt(p, off); n < len(p) {
			return verify.Refuse(verify.IO, "read the slot that is copied at byte %d: %w", off, err)
		}
		if err := out.write(off, p); err != nil {
			return fmt.Errorf("copy a slot: %w", err)
		}
	}
	old.Same += to.same
	return nil
}
