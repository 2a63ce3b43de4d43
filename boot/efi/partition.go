package efi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// FindPartition reads a partition's entry in a disk's GPT. sector is the disk's, in bytes. The kernel uses the table: it is
// not judged again.
func FindPartition(disk io.ReaderAt, sector int64, number int) (Partition, error) {
	var b [128]byte
	le := binary.LittleEndian
	if _, err := disk.ReadAt(b[:], sector); err != nil {
		return Partition{}, fmt.Errorf("read partition table: %w", err)
	}
	at, size := int64(le.Uint64(b[72:])), int64(le.Uint32(b[84:]))
	if string(b[:8]) != "EFI PART" || size < 128 || size > 4096 || at < 2 || at > 1<<40 || number < 1 || number > 128 {
		return Partition{}, errors.New("there is no GPT")
	}
	if _, err := disk.ReadAt(b[:], at*sector+int64(number-1)*size); err != nil {
		return Partition{}, fmt.Errorf("read partition table: %w", err)
	}
	start, last := le.Uint64(b[32:]), le.Uint64(b[40:])
	if b[0] == 0 && bytes.Count(b[:16], b[:1]) == 16 || last < start {
		return Partition{}, fmt.Errorf("there is no partition %d", number)
	}
	return Partition{Number: uint32(number), Start: start, Size: last - start + 1, GUID: [16]byte(b[16:])}, nil
}
