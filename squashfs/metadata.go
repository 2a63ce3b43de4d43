package squashfs

import (
	"encoding/binary"
	"fmt"
)

// metaReader reads a stream of metadata: blocks of up to 8 KiB, each behind a
// 16-bit header with its length on the medium (bit 15: stored uncompressed).
// A record may straddle blocks. The reader remembers its block, so that
// seeking within it costs nothing.
type metaReader struct {
	fs         *FS
	what       string // for errors: "inode table"
	start, end int64  // blocks lie wholly in [start, end)
	loads      *int   // blocks that may still be decoded, nil: no limit

	at   int64 // offset of the block in buf; 0: none
	next int64 // offset of the block behind it
	buf  []byte
	pos  int
}

func (f *FS) inodeReader(loads *int) *metaReader {
	return &metaReader{fs: f, what: "inode table", start: f.sb.inodeTable, end: f.sb.dirTable, loads: loads}
}

func (f *FS) dirReader(loads *int) *metaReader {
	return &metaReader{fs: f, what: "directory table", start: f.sb.dirTable, end: f.sb.dirEnd, loads: loads}
}

// seek goes to byte offset of the block that starts block bytes behind the
// start of the table.
func (m *metaReader) seek(block uint64, offset uint16) error {
	if block >= uint64(m.end-m.start) {
		return corrupt("%s: block %d is outside", m.what, block)
	}
	if at := m.start + int64(block); at != m.at {
		if err := m.load(at); err != nil {
			return err
		}
	}
	if int(offset) >= len(m.buf) {
		return corrupt("%s: offset %d in a block of %d bytes", m.what, offset, len(m.buf))
	}
	m.pos = int(offset)
	return nil
}

// load decodes the block at offset at of the image.
func (m *metaReader) load(at int64) error {
	if m.loads != nil {
		if *m.loads == 0 {
			return corrupt("%s: needs more than %d metadata blocks", m.what, maxLoads)
		}
		*m.loads--
	}
	if m.buf == nil {
		m.buf = make([]byte, 0, metaSize+overAlloc)
	}
	m.at, m.pos, m.buf = 0, 0, m.buf[:0] // nothing is left of it after an error
	f := m.fs
	f.mu.Lock()
	defer f.mu.Unlock()

	if m.end-at < 3 {
		return corrupt("%s: ends at %d", m.what, at)
	}
	head := f.scratch[:2]
	if err := readFull(f.r, head, at); err != nil {
		return fmt.Errorf("read %s at %d: %w", m.what, at, err)
	}
	h := binary.LittleEndian.Uint16(head)
	stored, n := h&0x8000 != 0, int64(h&0x7fff)
	if n == 0 || n > metaSize || n > m.end-at-2 {
		return corrupt("%s: metadata block at %d has %d bytes", m.what, at, n)
	}
	dst := m.buf[:metaSize]
	if stored {
		dst = dst[:n]
		if err := readFull(f.r, dst, at+2); err != nil {
			return fmt.Errorf("read %s at %d: %w", m.what, at, err)
		}
	} else {
		src := f.scratch[:n]
		if err := readFull(f.r, src, at+2); err != nil {
			return fmt.Errorf("read %s at %d: %w", m.what, at, err)
		}
		if len(f.codecs) == 0 {
			c, err := newCodec(f.sb.compressor)
			if err != nil {
				return err
			}
			f.codecs = append(f.codecs, c)
		}
		got, err := f.codecs[0].Decode(dst, src)
		if err != nil {
			return corrupt("%s: metadata block at %d: %w", m.what, at, err)
		}
		dst = dst[:got]
	}
	if len(dst) == 0 {
		return corrupt("%s: metadata block at %d is empty", m.what, at)
	}
	m.at, m.next, m.buf = at, at+2+n, dst
	return nil
}

// read fills b with what comes next.
func (m *metaReader) read(b []byte) error {
	for {
		n := copy(b, m.buf[m.pos:])
		m.pos += n
		b = b[n:]
		if len(b) == 0 {
			return nil
		}
		if err := m.load(m.next); err != nil {
			return err
		}
	}
}

// fragsPerBlock is the number of fragment table entries in a metadata block.
const fragsPerBlock = metaSize / fragEntrySize

// fragEntrySize is the length of an entry of the fragment table: 64-bit
// offset of the fragment block, 32-bit size as in a block list, 32 bits unused.
const fragEntrySize = 16

// fragment finds fragment block number n.
func (f *FS) fragment(n uint32) (off int64, size uint32, err error) {
	if n >= f.sb.fragments {
		return 0, 0, corrupt("fragment %d of %d", n, f.sb.fragments)
	}
	var b [fragEntrySize]byte
	if err := readFull(f.r, b[:8], f.sb.fragTable+int64(n/fragsPerBlock)*8); err != nil {
		return 0, 0, fmt.Errorf("read fragment index: %w", err)
	}
	at := binary.LittleEndian.Uint64(b[:])
	if at < superblockSize || at >= uint64(f.sb.fragTable) {
		return 0, 0, corrupt("fragment index: block at %d", at)
	}
	m := &metaReader{fs: f, what: "fragment table", start: int64(at), end: f.sb.fragTable}
	if err := m.seek(0, uint16(n%fragsPerBlock*fragEntrySize)); err != nil {
		return 0, 0, err
	}
	if err := m.read(b[:]); err != nil {
		return 0, 0, err
	}
	start := binary.LittleEndian.Uint64(b[:])
	if start > uint64(f.sb.used) {
		return 0, 0, corrupt("fragment block %d at %d", n, start)
	}
	return int64(start), binary.LittleEndian.Uint32(b[8:]), nil
}
