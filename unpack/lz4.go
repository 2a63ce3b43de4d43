package unpack

import (
	"encoding/binary"
	"errors"
)

var errLZ4 = errors.New("lz4: broken block")

// maxLZ4 is the largest block of a frame.
const maxLZ4 = 4 << 20

// LZ4 unpacks a raw LZ4 block (lz4_Block_format.md of the LZ4 project) to
// dst[d:] and returns where it ends: sequences of a token, literals and a match
// that points back by up to 64 KiB, also into dst[:d]; the last sequence has
// literals only.
func LZ4(dst []byte, d int, src []byte) (end int, err error) {
	s := 0
	// length extends a nibble of 15 by the bytes that follow.
	length := func(n int) int {
		for n >= 15 && s < len(src) && n <= maxLZ4 {
			b := src[s]
			s++
			n += int(b)
			if b != 255 {
				return n
			}
		}
		return -1
	}
	for s < len(src) {
		token := src[s]
		s++
		n := int(token >> 4)
		if n == 15 {
			n = length(n)
		}
		if n < 0 || n > len(src)-s {
			return 0, errLZ4
		}
		if n > len(dst)-d {
			return 0, ErrTooLong
		}
		d += copy(dst[d:], src[s:s+n])
		s += n
		if s == len(src) {
			return d, nil
		}

		if len(src)-s < 2 {
			return 0, errLZ4
		}
		dist := int(binary.LittleEndian.Uint16(src[s:]))
		s += 2
		n = int(token & 15)
		if n == 15 {
			n = length(n)
		}
		if n < 0 || dist == 0 || dist > d {
			return 0, errLZ4
		}
		n += 4
		if n > len(dst)-d {
			return 0, ErrTooLong
		}
		d = copyMatch(dst, d, dist, n)
	}
	return 0, errLZ4 // a block ends with literals
}

// copyMatch appends n bytes that stand dist before d to dst[:d]; they may
// overlap what is appended. The caller has checked 0 < dist <= d and
// n <= len(dst)-d. It returns the new end.
func copyMatch(dst []byte, d, dist, n int) int {
	for end := d + n; d < end; {
		// What is there repeats with period dist, so each copy may take
		// all that has been written since.
		d += copy(dst[d:end], dst[d-dist:d])
		dist *= 2
	}
	return d
}
