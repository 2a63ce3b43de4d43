// Package writelog reads what QEMU's blklogwrites driver wrote about a disk: every write, flush and discard that reached it.
//
// The format is that of Linux's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst), all numbers
// little-endian: a superblock in sector 0 {u64 magic, u64 version, u64 entries, u32 sector size}, then entries. An entry is
// a sector {u64 sector, u64 sectors, u64 flags, u64 length of a mark's text, text} and, of a write, its data. QEMU 7.2
// updates the superblock only at a flush, so it may be all zero and its number of entries is never right: the log ends where
// the file does. QEMU logs a request when it has completed; of writes that complete while a flush is under way it is not
// known whether that flush covers them, and they count as covered.
package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"lifeboat/disk/crash"
)

const (
	magic      = 0x6a736677736872
	version    = 1
	sectorSize = 512
	headerSize = 32

	flagFlush   = 1
	flagFUA     = 2
	flagDiscard = 4
	flagMark    = 8
)

// Bounds of what is read.
const (
	maxLog   = 1 << 30  // bytes of a log
	maxWrite = 64 << 20 // bytes of one write; the kernel makes at most a few MiB
)

// ErrFormat says that a file is no log, or one of another disk.
var ErrFormat = errors.New("not a log of this disk's writes")

// Log is what a log says.
type Log struct {
	Ops []crash.Op // entries; one that both flushes and writes is two. Marks are strings
	End []int64    // of each operation: the offset in the file where its entry ends
}

// Read reads the log of a disk of diskSize bytes. size is that of the log; of an entry that is not complete nothing is
// taken. A write with the flag FUA, which QEMU 7.2 never logs, counts as a write and a flush.
func Read(r io.ReaderAt, size, diskSize int64) (*Log, error) {
	if size > maxLog {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrFormat, size, maxLog)
	}
	if err := superblock(r, size); err != nil {
		return nil, err
	}
	l := &Log{}
	for at := int64(sectorSize); at+sectorSize <= size; {
		end, err := l.entry(r, at, size, diskSize)
		if err != nil {
			return nil, fmt.Errorf("entry at byte %d: %w", at, err)
		}
		if end == 0 {
			break // QEMU was killed while it wrote this one
		}
		at = end
	}
	return l, nil
}

func superblock(r io.ReaderAt, size int64) error {
	if size < sectorSize {
		return nil // killed before anything was written
	}
	var b [28]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return fmt.Errorf("read the superblock: %w", err)
	}
	if b == [28]byte{} {
		return nil // killed before the first flush
	}
	le := binary.LittleEndian
	switch {
	case le.Uint64(b[:]) != magic:
		return fmt.Errorf("%w: no magic", ErrFormat)
	case le.Uint64(b[8:]) != version:
		return fmt.Errorf("%w: version %d", ErrFormat, le.Uint64(b[8:]))
	case le.Uint32(b[24:]) != sectorSize:
		return fmt.Errorf("%w: sectors of %d bytes, want log-sector-size=%d", ErrFormat, le.Uint32(b[24:]), sectorSize)
	}
	return nil
}

// entry reads the entry at a place and returns where it ends, 0 if the log ends within it.
func (l *Log) entry(r io.ReaderAt, at, size, diskSize int64) (end int64, err error) {
	var head [sectorSize]byte
	if _, err := r.ReadAt(head[:], at); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	le := binary.LittleEndian
	sector, count, flags, text := le.Uint64(head[:]), le.Uint64(head[8:]), le.Uint64(head[16:]), le.Uint64(head[24:])
	end = at + sectorSize
	if flags&^(flagFlush|flagFUA|flagDiscard|flagMark) != 0 {
		return 0, fmt.Errorf("%w: flags %#x", ErrFormat, flags)
	}
	if flags&flagMark != 0 {
		if flags != flagMark || text > sectorSize-headerSize || count != 0 {
			return 0, fmt.Errorf("%w: a mark with flags %#x, %d sectors, %d bytes of text", ErrFormat, flags, count, text)
		}
		l.add(crash.Op{Kind: crash.Mark, Mark: string(head[headerSize : headerSize+text])}, end)
		return end, nil
	}
	if text != 0 {
		return 0, fmt.Errorf("%w: %d bytes of text without a mark", ErrFormat, text)
	}
	sectors := uint64(diskSize / sectorSize)
	if count > sectors || sector > sectors-count {
		return 0, fmt.Errorf("%w: %d sectors from sector %d of a disk of %d", ErrFormat, count, sector, sectors)
	}
	op := crash.Op{Kind: crash.Write, Off: int64(sector) * sectorSize, Len: int64(count) * sectorSize}
	if flags&flagDiscard != 0 {
		op.Kind = crash.Discard
	} else if op.Len > 0 {
		if op.Len > maxWrite {
			return 0, fmt.Errorf("%w: a write of %d bytes", ErrFormat, op.Len)
		}
		if op.Len > size-end {
			return 0, nil
		}
		op.Data = make([]byte, op.Len)
		if n, err := r.ReadAt(op.Data, end); n < len(op.Data) {
			return 0, err
		}
		end += op.Len
	}
	if flags&flagFlush != 0 {
		l.add(crash.Op{Kind: crash.Flush}, end) // before the data of the same entry
	}
	if op.Len > 0 {
		l.add(op, end)
	}
	if flags&flagFUA != 0 {
		l.add(crash.Op{Kind: crash.Flush}, end)
	}
	return end, nil
}

func (l *Log) add(op crash.Op, end int64) {
	l.Ops = append(l.Ops, op)
	l.End = append(l.End, end)
}

// Mark puts marks into the log: each stands behind all that was in the file when it had a given size. What had completed
// by then, and maybe a little more, stands before the mark. Marks are in the order of their sizes.
func (l *Log) Mark(marks ...Mark) {
	var ops []crash.Op
	var ends []int64
	next := 0
	before := func(end int64) {
		for next < len(marks) && marks[next].Size < end {
			ops = append(ops, crash.Op{Kind: crash.Mark, Mark: marks[next].What})
			ends = append(ends, marks[next].Size)
			next++
		}
	}
	for i, op := range l.Ops {
		before(l.End[i])
		ops, ends = append(ops, op), append(ends, l.End[i])
	}
	before(1<<63 - 1)
	l.Ops, l.End = ops, ends
}

// Mark is something that became true when the log's file had a size.
type Mark struct {
	Size int64
	What any
}
