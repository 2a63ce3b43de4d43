package slots

import "lifeboat/verify/verity"

// Need returns how many bytes a slot must have for an image of size bytes:
// the image in whole blocks, its hash tree, the seal.
func Need(size int64) int64 {
	blocks := (size + verity.BlockSize - 1) / verity.BlockSize
	return (blocks+verity.TreeBlocks(blocks))*verity.BlockSize + SealSize
}
