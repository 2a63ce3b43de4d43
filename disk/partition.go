package disk

import "io"

// Partition is a partition as a partition table describes it.
type Partition struct {
	Index       int    // as the kernel numbers it: 1.., logical MBR partitions from 5
	Start, Size int64  // bytes; within the device
	Name        string // GPT label, without characters that can't be printed
	Type        string // GPT: GUID in lower case; MBR: "0x0c"
}

// Partitions reads a GPT or MBR partition table.
func Partitions(r io.ReaderAt, size int64) ([]Partition, error) { return nil, nil }
