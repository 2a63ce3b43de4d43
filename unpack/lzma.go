package unpack

import (
	"encoding/binary"
	"errors"
)

var errLZMA = errors.New("lzma: broken data")

// prob is the probability of a zero bit, in 1/2048.
type prob = uint16

const (
	probInit  = 1 << 10
	probBits  = 11
	probShift = 5 // speed of adaption
)

// lengthCoder holds the probabilities of match lengths: 2 to 9 and 10 to 17
// by position, 18 to 273.
type lengthCoder struct {
	choice [2]prob
	low    [16][8]prob
	mid    [16][8]prob
	high   [256]prob
}

// model holds the adaptive probabilities of LZMA, about 28 KiB.
type model struct {
	isMatch    [12][16]prob
	isRep      [12]prob
	isRepG0    [12]prob
	isRepG1    [12]prob
	isRepG2    [12]prob
	isRep0Long [12][16]prob
	distSlot   [4][64]prob
	distLow    [115]prob // slots 4 to 13
	distAlign  [16]prob
	length     lengthCoder
	repLength  lengthCoder
	literal    [16 * 0x300]prob // lc+lp <= 4
}

// lzma2 unpacks LZMA2 into one flat buffer that is output and dictionary. The
// range decoder's state is copied to local variables where bits come fast.
type lzma2 struct {
	m      model
	lc     uint
	lpMask int
	pbMask int

	state int
	rep   [4]uint32 // last distances - 1

	// Range decoder. pos may run past the end of in, where zeros are read;
	// it is compared once a chunk has been decoded.
	rng, code uint32
	in        []byte
	pos       int

	base      int // start of the dictionary; -1: there is none yet
	needProps bool
}

// decode unpacks the LZMA2 chunks at the start of src, up to the end mark,
// into dst. It returns the bytes of src and of dst that they took.
func (z *lzma2) decode(dst, src []byte) (used, n int, err error) {
	z.start()
	for {
		s, d, err := z.next(dst, n, src[used:])
		if err != nil {
			return 0, 0, err
		}
		used, n = used+s, n+d
		if d == 0 {
			return used, n, nil
		}
	}
}

// start is before the first chunk.
func (z *lzma2) start() { z.base, z.needProps = -1, true }

// size returns how many bytes the chunk takes that begins with head; 0 where
// head, of at least one byte, is too short to tell, which six never are.
func (z *lzma2) size(head []byte) int {
	be := binary.BigEndian
	switch control := head[0]; {
	case control == 0:
		return 1
	case control < 0x80 && len(head) >= 3:
		return 3 + int(be.Uint16(head[1:])) + 1
	case control >= 0xc0 && len(head) >= 6:
		return 6 + int(be.Uint16(head[3:])) + 1
	case control >= 0x80 && len(head) >= 5:
		return 5 + int(be.Uint16(head[3:])) + 1
	}
	return 0
}

// unpacked returns how many bytes the chunk src, which is whole, makes.
func (z *lzma2) unpacked(src []byte) int {
	if src[0] < 0x80 {
		return max(len(src)-3, 0)
	}
	return int(src[0]&0x1f)<<16 + int(binary.BigEndian.Uint16(src[1:])) + 1
}

// next unpacks the chunk at the start of src to dst[d:]. It returns the bytes
// of src and of dst that it took; none of dst is the end.
//
// A chunk starts with a control byte: 0 ends the data; 1 and 2 are stored
// (16-bit size - 1), 1 resets the dictionary; from 0x80 on LZMA with 21 bits of
// unpacked size - 1, 16 of packed size - 1, and bits 5 and 6 saying what is
// reset: nothing, state, state with a new property byte, dictionary too.
func (z *lzma2) next(dst []byte, d int, src []byte) (used, n int, err error) {
	if len(src) == 0 {
		return 0, 0, errLZMA
	}
	used = z.size(src)
	if used == 0 || used > len(src) {
		return 0, 0, errLZMA
	}
	control := src[0]
	if control == 0 {
		return used, 0, nil
	}
	if control == 1 || control >= 0xe0 {
		z.base, z.needProps = d, true
	}
	if z.base < 0 || control < 0x80 && control > 2 {
		return 0, 0, errLZMA
	}
	if control < 0x80 {
		if n = used - 3; n > len(dst)-d {
			return 0, 0, ErrTooLong
		}
		return used, copy(dst[d:], src[3:used]), nil
	}
	if n = z.unpacked(src); n > len(dst)-d {
		return 0, 0, ErrTooLong
	}
	head := 5
	if control >= 0xc0 {
		props := int(src[head])
		head++
		lc, lp, pb := props%9, props/9%5, props/45
		if pb > 4 || lc+lp > 4 {
			return 0, 0, errLZMA
		}
		z.lc, z.lpMask, z.pbMask = uint(lc), 1<<lp-1, 1<<pb-1
		z.needProps = false
	}
	if z.needProps {
		return 0, 0, errLZMA
	}
	if control >= 0xa0 {
		z.reset()
	}
	z.in = src[head:used]
	// dst is cut, not resliced: distances count from base.
	ok := z.chunk(dst[z.base:d+n], d-z.base)
	z.in = nil
	if !ok {
		return 0, 0, errLZMA
	}
	return used, n, nil
}

// reset puts the state and every probability back to the start.
func (z *lzma2) reset() {
	z.state, z.rep = 0, [4]uint32{}
	m := &z.m
	for i := range m.isMatch {
		fill(m.isMatch[i][:])
		fill(m.isRep0Long[i][:])
	}
	for _, p := range [][]prob{m.isRep[:], m.isRepG0[:], m.isRepG1[:], m.isRepG2[:], m.distLow[:], m.distAlign[:]} {
		fill(p)
	}
	for i := range m.distSlot {
		fill(m.distSlot[i][:])
	}
	for _, l := range []*lengthCoder{&m.length, &m.repLength} {
		fill(l.choice[:])
		fill(l.high[:])
		for i := range l.low {
			fill(l.low[i][:])
			fill(l.mid[i][:])
		}
	}
	// As many literal coders as the properties, which are set, can select.
	fill(m.literal[:0x300*(z.lpMask+1)<<z.lc])
}

func fill(p []prob) {
	for i := range p {
		p[i] = probInit
	}
}

// chunk decodes z.in, which must give exactly dst[d:].
func (z *lzma2) chunk(dst []byte, d int) bool {
	if len(z.in) < 5 || z.in[0] != 0 {
		return false
	}
	z.rng, z.code, z.pos = ^uint32(0), binary.BigEndian.Uint32(z.in[1:]), 5
	m := &z.m
	for d < len(dst) {
		posState := d & z.pbMask
		state := z.state
		if z.bit(&m.isMatch[state][posState]) == 0 {
			prev := 0
			if d > 0 {
				prev = int(dst[d-1])
			}
			i := 0x300 * ((d&z.lpMask)<<z.lc + prev>>(8-z.lc))
			probs := (*[0x300]prob)(m.literal[i:])
			if state < 7 {
				dst[d] = z.literal(probs)
			} else {
				if uint64(z.rep[0]) >= uint64(d) {
					return false
				}
				dst[d] = z.matchedLiteral(probs, dst[d-int(z.rep[0])-1])
			}
			d++
			switch {
			case state < 4:
				z.state = 0
			case state < 10:
				z.state = state - 3
			default:
				z.state = state - 6
			}
			continue
		}

		var n int
		if z.bit(&m.isRep[state]) == 0 {
			z.state = 10
			if state < 7 {
				z.state = 7
			}
			n = z.matchLength(&m.length, posState)
			z.rep[3], z.rep[2], z.rep[1] = z.rep[2], z.rep[1], z.rep[0]
			z.rep[0] = z.distance(n)
		} else {
			z.state = 11
			if state < 7 {
				z.state = 8
			}
			short := false
			if z.bit(&m.isRepG0[state]) == 0 {
				if short = z.bit(&m.isRep0Long[state][posState]) == 0; short && state < 7 {
					z.state = 9
				}
			} else {
				r := &z.rep
				if z.bit(&m.isRepG1[state]) == 0 {
					r[0], r[1] = r[1], r[0]
				} else if z.bit(&m.isRepG2[state]) == 0 {
					r[0], r[1], r[2] = r[2], r[0], r[1]
				} else {
					r[0], r[1], r[2], r[3] = r[3], r[0], r[1], r[2]
				}
			}
			if n = 1; !short {
				n = z.matchLength(&m.repLength, posState)
			}
		}
		// An end mark, which LZMA2 does not have, is a distance of 4 GiB.
		if uint64(z.rep[0]) >= uint64(d) || n > len(dst)-d {
			return false
		}
		d = copyMatch(dst, d, int(z.rep[0])+1, n)
	}
	z.normalize()
	return z.pos == len(z.in) && z.code == 0
}

// normalize takes in a byte when the range has become small.
func (z *lzma2) normalize() {
	if z.rng < 1<<24 {
		z.rng <<= 8
		z.code <<= 8
		if z.pos < len(z.in) {
			z.code |= uint32(z.in[z.pos])
		}
		z.pos++
	}
}

// bit decodes one bit and adapts its probability.
func (z *lzma2) bit(p *prob) uint32 {
	rng, code := z.rng, z.code
	if rng < 1<<24 {
		rng <<= 8
		code <<= 8
		if z.pos < len(z.in) {
			code |= uint32(z.in[z.pos])
		}
		z.pos++
	}
	v := *p
	bound := (rng >> probBits) * uint32(v)
	if code < bound {
		*p = v + (1<<probBits-v)>>probShift
		z.rng, z.code = bound, code
		return 0
	}
	*p = v - v>>probShift
	z.rng, z.code = rng-bound, code-bound
	return 1
}

// tree decodes a number below len(probs), a power of two, highest bit first.
func (z *lzma2) tree(probs []prob) int {
	rng, code, pos, in := z.rng, z.code, z.pos, z.in
	sym := 1
	for sym < len(probs) {
		if rng < 1<<24 {
			rng <<= 8
			code <<= 8
			if pos < len(in) {
				code |= uint32(in[pos])
			}
			pos++
		}
		v := probs[sym]
		bound := (rng >> probBits) * uint32(v)
		if code < bound {
			probs[sym] = v + (1<<probBits-v)>>probShift
			rng = bound
			sym <<= 1
		} else {
			probs[sym] = v - v>>probShift
			rng -= bound
			code -= bound
			sym = sym<<1 | 1
		}
	}
	z.rng, z.code, z.pos = rng, code, pos
	return sym - len(probs)
}

// reverseTree decodes a number of n bits, lowest bit first; the first
// probability is not used.
func (z *lzma2) reverseTree(probs []prob, n int) uint32 {
	sym, out := 1, uint32(0)
	for i := range n {
		b := z.bit(&probs[sym])
		sym = sym<<1 | int(b)
		out |= b << i
	}
	return out
}

// literal decodes a byte.
func (z *lzma2) literal(probs *[0x300]prob) byte {
	rng, code, pos, in := z.rng, z.code, z.pos, z.in
	sym := 1
	for sym < 0x100 {
		if rng < 1<<24 {
			rng <<= 8
			code <<= 8
			if pos < len(in) {
				code |= uint32(in[pos])
			}
			pos++
		}
		v := probs[sym]
		bound := (rng >> probBits) * uint32(v)
		if code < bound {
			probs[sym] = v + (1<<probBits-v)>>probShift
			rng = bound
			sym <<= 1
		} else {
			probs[sym] = v - v>>probShift
			rng -= bound
			code -= bound
			sym = sym<<1 | 1
		}
	}
	z.rng, z.code, z.pos = rng, code, pos
	return byte(sym)
}

// matchedLiteral decodes a byte right after a match; match is the byte that
// would have continued it.
func (z *lzma2) matchedLiteral(probs *[0x300]prob, match byte) byte {
	rng, code, pos, in := z.rng, z.code, z.pos, z.in
	sym, offset, ahead := 1, 0x100, int(match)
	for sym < 0x100 {
		if rng < 1<<24 {
			rng <<= 8
			code <<= 8
			if pos < len(in) {
				code |= uint32(in[pos])
			}
			pos++
		}
		ahead <<= 1
		want := ahead & offset
		p := &probs[offset+want+sym]
		v := *p
		bound := (rng >> probBits) * uint32(v)
		if code < bound {
			*p = v + (1<<probBits-v)>>probShift
			rng = bound
			sym <<= 1
			offset &^= want
		} else {
			*p = v - v>>probShift
			rng -= bound
			code -= bound
			sym = sym<<1 | 1
			offset &= want
		}
	}
	z.rng, z.code, z.pos = rng, code, pos
	return byte(sym)
}

// matchLength decodes a length of 2 to 273.
func (z *lzma2) matchLength(l *lengthCoder, posState int) int {
	if z.bit(&l.choice[0]) == 0 {
		return 2 + z.tree(l.low[posState][:])
	}
	if z.bit(&l.choice[1]) == 0 {
		return 10 + z.tree(l.mid[posState][:])
	}
	return 18 + z.tree(l.high[:])
}

// distance decodes the distance - 1 of a match of n bytes.
func (z *lzma2) distance(n int) uint32 {
	slot := z.tree(z.m.distSlot[min(n-2, 3)][:])
	if slot < 4 {
		return uint32(slot)
	}
	bits := slot>>1 - 1
	dist := uint32(2|slot&1) << bits
	if slot < 14 {
		return dist + z.reverseTree(z.m.distLow[int(dist)-slot:], bits)
	}
	var direct uint32
	for range bits - 4 {
		z.normalize()
		z.rng >>= 1
		direct <<= 1
		if z.code >= z.rng {
			z.code -= z.rng
			direct |= 1
		}
	}
	return dist + direct<<4 + z.reverseTree(z.m.distAlign[:], 4)
}
