package badinputs

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"hash/crc32"

	"lifeboat/verify/verity"
)

// treeless is how many of the blocks of a payload of n bytes are not of its hash tree.
func treeless(n int) int {
	all := int64(n) / verity.BlockSize
	blocks := all
	for blocks+verity.TreeBlocks(blocks) > all {
		blocks--
	}
	return int(blocks)
}

// firstBlock is where the first data block of a squashfs lies that has no options of its compressor: behind the superblock.
const firstBlock = 96

// putSize changes bytes_used in the superblock of a squashfs.
func putSize(b []byte, n uint64) { binary.LittleEndian.PutUint64(b[40:], n) }

// bomb is a zlib stream of 16 MiB of zeros, about 16 KiB.
func bomb() []byte {
	var b bytes.Buffer
	w, _ := zlib.NewWriterLevel(&b, zlib.BestCompression)
	w.Write(make([]byte, 16<<20))
	w.Close()
	return b.Bytes()
}

// largeDictionary makes the first block of a squashfs an xz stream that asks for a dictionary of 4 GiB.
func largeDictionary(b []byte) {
	head := b[firstBlock+12:] // behind the header of the stream: that of the block
	head = head[:(int(head[0])+1)*4]
	at := bytes.LastIndexByte(head[:len(head)-4], 1) + 1 // LZMA2 has one byte of properties: the size of its dictionary
	head[at] = 40
	binary.LittleEndian.PutUint32(head[len(head)-4:], crc32.ChecksumIEEE(head[:len(head)-4]))
}
