package uboot

import (
	"encoding/binary"
	"hash/crc32"
)

// sum makes the checksum of a copy right.
func sum(b []byte, redundant bool) {
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[head(redundant):]))
}
