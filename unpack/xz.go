package unpack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

var errXZ = errors.New("xz: broken stream")

// XZ unpacks .xz streams as mksquashfs writes them: one block, LZMA2 and no
// other filter, a CRC-32 or no check, a dictionary of at most MaxDict bytes. The
// block being unpacked is the dictionary, so none is allocated.
type XZ struct {
	MaxDict int64
	z       lzma2
}

// xzMagic starts a stream. A stream is this header (magic, two bytes of flags,
// CRC-32), blocks, an index of the blocks and a footer (xz-file-format.txt).
const xzMagic = "\xfd7zXZ\x00"

// Decode unpacks the whole of src into dst and returns the number of bytes.
func (c *XZ) Decode(dst, src []byte) (int, error) {
	le := binary.LittleEndian
	if len(src) < 13 || string(src[:6]) != xzMagic || crc32.ChecksumIEEE(src[6:8]) != le.Uint32(src[8:]) {
		return 0, errors.New("xz: bad header")
	}
	flags := src[6:8]
	checkSize := 0
	switch {
	case flags[0] == 0 && flags[1] == 1:
		checkSize = 4
	case flags[0] != 0 || flags[1] != 0:
		return 0, fmt.Errorf("xz: check type %#x: %w", flags, ErrUnsupported)
	}
	body := src[12:]
	head := (int(body[0]) + 1) * 4
	if body[0] == 0 || head > len(body) || crc32.ChecksumIEEE(body[:head-4]) != le.Uint32(body[head-4:]) {
		return 0, errors.New("xz: bad block header")
	}
	packed, unpacked, _, err := xzBlock(body[1:head-4], c.MaxDict)
	if err != nil {
		return 0, err
	}
	used, n, err := c.z.decode(dst, body[head:])
	if err != nil {
		return 0, err
	}
	if packed >= 0 && packed != int64(used) || unpacked >= 0 && unpacked != int64(n) {
		return 0, errors.New("xz: sizes in the block header are wrong")
	}
	tail := body[head+used:]
	pad := -used & 3
	if len(tail) < pad+checkSize || len(bytes.Trim(tail[:pad], "\x00")) != 0 {
		return 0, errXZ
	}
	tail = tail[pad:]
	if checkSize > 0 && crc32.ChecksumIEEE(dst[:n]) != le.Uint32(tail) {
		return 0, errors.New("xz: wrong checksum")
	}
	tail = tail[checkSize:]

	// What follows is known to the byte: an index with one record (unpadded
	// size, unpacked size), its CRC-32, and the footer.
	var room [48]byte
	want := append(room[:0], 0, 1)
	want = binary.AppendUvarint(want, uint64(head+used+checkSize))
	want = binary.AppendUvarint(want, uint64(n))
	if want = xzFooter(want, [2]byte(flags)); !bytes.Equal(tail, want) {
		return 0, errors.New("xz: bad index or footer")
	}
	return n, nil
}

// xzFooter appends to an index, of which the sizes of the blocks are there, what
// ends it, and the footer of the stream.
func xzFooter(index []byte, flags [2]byte) []byte {
	le := binary.LittleEndian
	index = append(index, "\x00\x00\x00"[:-len(index)&3]...)
	index = le.AppendUint32(index, crc32.ChecksumIEEE(index))
	n := len(index)
	index = append(index, 0, 0, 0, 0) // CRC-32 of the next six bytes
	index = le.AppendUint32(index, uint32(n/4-1))
	index = append(index, flags[:]...)
	le.PutUint32(index[n:], crc32.ChecksumIEEE(index[n+4:]))
	return append(index, "YZ"...)
}

// xzBlock reads a block header without its size and its checksum. The sizes of
// the block are -1 where it does not say.
func xzBlock(b []byte, maxDict int64) (packed, unpacked int64, dict int, err error) {
	flags := b[0]
	b = b[1:]
	number := func() (uint64, bool) {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > 1<<62 {
			return 0, false
		}
		b = b[n:]
		return v, true
	}
	packed, unpacked = -1, -1
	for _, size := range []struct {
		flag byte
		to   *int64
	}{{0x40, &packed}, {0x80, &unpacked}} {
		if flags&size.flag == 0 {
			continue
		}
		v, ok := number()
		if !ok {
			return 0, 0, 0, errXZ
		}
		*size.to = int64(v)
	}
	const lzma2 = 0x21
	id, ok := number()
	if !ok || flags&0x3c != 0 {
		return 0, 0, 0, errXZ
	}
	if flags&3 != 0 || id != lzma2 {
		return 0, 0, 0, fmt.Errorf("xz: BCJ and other filters beside LZMA2: %w", ErrUnsupported)
	}
	if n, ok := number(); !ok || n != 1 || len(b) == 0 || b[0] > 40 {
		return 0, 0, 0, errXZ
	}
	// Bits of the dictionary's size: 2|bit 0, shifted by the rest + 11.
	size := int64(2|b[0]&1) << (b[0]/2 + 11)
	if size > maxDict {
		return 0, 0, 0, fmt.Errorf("xz: dictionary of %d bytes: %w", size, ErrUnsupported)
	}
	if len(bytes.Trim(b[1:], "\x00")) != 0 {
		return 0, 0, 0, errXZ
	}
	return packed, unpacked, int(size), nil
}
