package bundle

import (
	"context"

	"lifeboat/verify/verity"
)

// CheckPayload reads every block of the payload and its hash tree against the
// signed root, without unpacking anything: what early boot does before it
// touches a slot. progress may be nil; its figures are bytes. Of a plain
// bundle Open has read all of it.
func (b *Bundle) CheckPayload(ctx context.Context, progress func(done, total int64)) error {
	if b.Plain() {
		return nil
	}
	var report func(int64)
	if progress != nil {
		report = func(done int64) { progress(done, b.size) }
	}
	m := b.Manifest
	err := verity.Check(ctx, b.src, b.size/verity.BlockSize, b.size, m.VeritySalt, verity.Hash(m.VerityHash), report)
	if err != nil {
		return b.src.judge("check the payload", err)
	}
	return nil
}
