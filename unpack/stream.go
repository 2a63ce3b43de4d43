package unpack

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// MaxWindow is how far back a stream may reach, bytes. It is what xz -6 and zstd -19 take.
const MaxWindow = 8 << 20

// NewReader returns what a stream holds that gzip, zstd, xz or lz4 compressed, by its first bytes, or the stream itself if it
// was none of them. It keeps at most two windows in memory. Its errors are those of r, or say that the stream is broken, or
// wrap ErrUnsupported. Checksums in xz and lz4 streams are passed over: who needs to know has signed the stream.
func NewReader(r io.Reader) (io.Reader, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return &gzipReader{in: in}, nil
	case len(head) >= 4 && binary.LittleEndian.Uint32(head) == 0xfd2fb528:
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(MaxWindow))
		if err != nil {
			return nil, err
		}
		return zstdReader{z}, nil
	case string(head) == xzMagic:
		x := &xzReader{in: in}
		x.more = x.fill
		return x, nil
	case len(head) >= 4 && binary.LittleEndian.Uint32(head) == lz4Magic:
		l := &lz4Reader{in: in}
		l.more = l.fill
		return l, nil
	}
	return in, nil
}

// gzipReader unpacks members (RFC 1952), one behind the other.
type gzipReader struct {
	in   *bufio.Reader
	fl   io.ReadCloser // also a flate.Resetter
	open bool          // a member is begun
	any  bool
	sum  uint32
	size uint32
}

var errGzip = errors.New("gzip: broken member")

func (g *gzipReader) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if !g.open {
			if err := g.header(); err != nil {
				return 0, err
			}
		}
		n, err := g.fl.Read(p)
		g.sum, g.size = crc32.Update(g.sum, crc32.IEEETable, p[:n]), g.size+uint32(n)
		if err == io.EOF {
			err = g.trailer()
		}
		if n > 0 || err != nil {
			return n, whole(err)
		}
	}
	return 0, nil
}

func (g *gzipReader) header() error {
	var b [10]byte
	if n, err := io.ReadFull(g.in, b[:]); err != nil {
		if n == 0 && g.any {
			return err // EOF is the end
		}
		return whole(err)
	}
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 || b[3]&0xe0 != 0 {
		return errGzip
	}
	const sum, extra, name, comment = 2, 4, 8, 16
	if b[3]&extra != 0 {
		if _, err := io.ReadFull(g.in, b[:2]); err != nil {
			return whole(err)
		}
		if _, err := io.CopyN(io.Discard, g.in, int64(binary.LittleEndian.Uint16(b[:]))); err != nil {
			return whole(err)
		}
	}
	for _, text := range [...]byte{name, comment} {
		for c := b[3] & text; c != 0; {
			var err error
			if c, err = g.in.ReadByte(); err != nil {
				return whole(err)
			}
		}
	}
	if _, err := io.CopyN(io.Discard, g.in, int64(b[3]&sum)); err != nil {
		return whole(err)
	}
	if g.fl == nil {
		g.fl = flate.NewReader(g.in)
	} else if err := g.fl.(flate.Resetter).Reset(g.in, nil); err != nil {
		return err
	}
	g.open, g.any, g.sum, g.size = true, true, 0, 0
	return nil
}

func (g *gzipReader) trailer() error {
	var b [8]byte
	if _, err := io.ReadFull(g.in, b[:]); err != nil {
		return whole(err)
	}
	if binary.LittleEndian.Uint32(b[:]) != g.sum || binary.LittleEndian.Uint32(b[4:]) != g.size {
		return errGzip
	}
	g.open = false
	return nil
}

type zstdReader struct{ *zstd.Decoder }

func (z zstdReader) Read(p []byte) (int, error) {
	n, err := z.Decoder.Read(p)
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		err = fmt.Errorf("zstd: a window of more than %d MiB: %w", MaxWindow>>20, ErrUnsupported)
	}
	return n, err
}

// whole is an end that comes too early.
func whole(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// unread is what was unpacked and is still to be read: buf[at:end]. more goes on, when that is nothing, by a piece or by what
// stands between two.
type unread struct {
	buf     []byte
	at, end int
	more    func() error
}

func (u *unread) Read(p []byte) (int, error) {
	for u.at == u.end && len(p) > 0 {
		if err := u.more(); err != nil {
			return 0, err
		}
	}
	n := copy(p, u.buf[u.at:u.end])
	u.at += n
	return n, nil
}

// xzReader unpacks .xz files: streams, each of a header, blocks, an index of the blocks and a footer.
type xzReader struct {
	in    *bufio.Reader
	z     lzma2
	flags [2]byte // of the stream; it is over where blocks is nil
	open  bool    // a block is begun

	packed, unpacked, wantPacked, wantUnpacked int64 // of this block
	header                                     int64
	blocks                                     []uint64 // of this stream, as its index has them: size without padding, size unpacked

	unread
	dict      int
	chunk     []byte
	anyStream bool
}

// maxBlocks is how many blocks a stream may have: they are kept until its index comes.
const maxBlocks = 1 << 16

// maxChunk is what a chunk of LZMA2 unpacks to at most.
const maxChunk = 2 << 20

// fill goes on by a chunk, or by what stands between blocks.
func (x *xzReader) fill() error {
	switch {
	case x.blocks == nil:
		return x.stream()
	case !x.open:
		return x.block()
	}
	head, err := x.in.Peek(6)
	if len(head) == 0 {
		return whole(err)
	}
	n := x.z.size(head)
	if n == 0 {
		return io.ErrUnexpectedEOF
	}
	if cap(x.chunk) < n {
		x.chunk = make([]byte, 0, 6+1<<16)
	}
	x.chunk = x.chunk[:n]
	if _, err := io.ReadFull(x.in, x.chunk); err != nil {
		return whole(err)
	}
	x.packed += int64(n)
	// All at once: what is not used yet costs nothing, and a smaller one that is left behind would.
	if room := x.dict + 16 + maxChunk; len(x.buf) < room {
		buf := make([]byte, room)
		copy(buf, x.buf[:x.end])
		x.buf = buf
	}
	if len(x.buf)-x.end < x.z.unpacked(x.chunk) {
		x.slide()
	}
	_, got, err := x.z.next(x.buf, x.end, x.chunk)
	if err != nil {
		return err
	}
	x.at, x.end = x.end, x.end+got
	x.unpacked += int64(got)
	if got == 0 {
		return x.blockEnd()
	}
	return nil
}

// slide moves the dictionary to the front. Places count modulo 16 from its start.
func (x *xzReader) slide() {
	k := (x.end - x.dict) &^ 15
	copy(x.buf, x.buf[k:x.end])
	x.at, x.end = x.at-k, x.end-k
	if x.z.base -= k; x.z.base < 0 {
		x.z.base &= 15
	}
}

func (x *xzReader) stream() error {
	var b [12]byte
	for {
		if _, err := io.ReadFull(x.in, b[:4]); err != nil {
			if err == io.EOF && !x.anyStream {
				return io.ErrUnexpectedEOF
			}
			return err // EOF is the end
		}
		if x.anyStream && [4]byte(b[:4]) == [4]byte{} {
			continue // padding
		}
		break
	}
	if _, err := io.ReadFull(x.in, b[4:]); err != nil {
		return whole(err)
	}
	if string(b[:6]) != xzMagic || crc32.ChecksumIEEE(b[6:8]) != binary.LittleEndian.Uint32(b[8:]) || b[6] != 0 || b[7] > 15 {
		return errXZ
	}
	x.flags, x.blocks, x.anyStream = [2]byte(b[6:8]), []uint64{}, true
	return nil
}

func (x *xzReader) block() error {
	size, err := x.in.ReadByte()
	if err != nil {
		return whole(err)
	}
	if size == 0 {
		return x.index()
	}
	b := make([]byte, (int(size)+1)*4)
	b[0] = size
	if _, err := io.ReadFull(x.in, b[1:]); err != nil {
		return whole(err)
	}
	n := len(b) - 4
	if crc32.ChecksumIEEE(b[:n]) != binary.LittleEndian.Uint32(b[n:]) {
		return errXZ
	}
	var dict int
	if x.wantPacked, x.wantUnpacked, dict, err = xzBlock(b[1:n], MaxWindow); err != nil {
		return err
	}
	if len(x.blocks) >= 2*maxBlocks {
		return fmt.Errorf("xz: more than %d blocks: %w", maxBlocks, ErrUnsupported)
	}
	x.z.start()
	x.dict = max(x.dict, dict, 1<<12)
	x.open, x.header, x.packed, x.unpacked = true, int64(len(b)), 0, 0
	return nil
}

// checkSize is by the kind of a checksum.
var checkSize = [16]int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}

func (x *xzReader) blockEnd() error {
	if x.wantPacked >= 0 && x.wantPacked != x.packed || x.wantUnpacked >= 0 && x.wantUnpacked != x.unpacked {
		return errXZ
	}
	check := checkSize[x.flags[1]]
	x.blocks = append(x.blocks, uint64(x.header+x.packed+check), uint64(x.unpacked))
	x.open = false
	_, err := io.CopyN(io.Discard, x.in, -x.packed&3+check)
	return whole(err)
}

// index reads the index and the footer, which are known to the byte.
func (x *xzReader) index() error {
	want := binary.AppendUvarint([]byte{0}, uint64(len(x.blocks)/2))
	for _, n := range x.blocks {
		want = binary.AppendUvarint(want, n)
	}
	want = xzFooter(want, x.flags)
	got := make([]byte, len(want)-1)
	if _, err := io.ReadFull(x.in, got); err != nil {
		return whole(err)
	}
	if string(got) != string(want[1:]) {
		return errXZ
	}
	x.blocks = nil
	return nil
}

const lz4Magic = 0x184d2204

// lz4Reader unpacks .lz4 files (lz4_Frame_format.md): frames, each of a header, blocks and an end mark.
type lz4Reader struct {
	in   *bufio.Reader
	flag byte
	max  int // bytes of a block; 0: no frame is begun
	any  bool

	unread // its buf: 64 KiB that blocks may reach back into, and a block
	packed []byte
}

const lz4Reach = 64 << 10

var errFrame = errors.New("lz4: broken frame")

func (l *lz4Reader) number() (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(l.in, b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}

func (l *lz4Reader) fill() error {
	if l.max == 0 {
		return l.frame()
	}
	n, err := l.number()
	if err != nil {
		return whole(err)
	}
	const plain, checks, linked, content = 1 << 31, 1 << 4, 1 << 5, 1 << 2
	if n == 0 {
		l.max = 0
		return l.skip(int64(l.flag & content))
	}
	if n&^plain > uint32(l.max) {
		return errFrame
	}
	l.packed = l.packed[:n&^plain]
	if _, err := io.ReadFull(l.in, l.packed); err != nil {
		return whole(err)
	}
	from := 0
	if l.flag&linked == 0 { // the flag is that they are not
		from = min(l.end, lz4Reach)
		copy(l.buf, l.buf[l.end-from:l.end])
	}
	dst := l.buf[:from+l.max]
	if n&plain != 0 {
		l.end = from + copy(dst[from:], l.packed)
	} else if l.end, err = LZ4(dst, from, l.packed); err != nil {
		return err
	}
	l.at = from
	return l.skip(int64(l.flag&checks) / 4)
}

func (l *lz4Reader) skip(n int64) error {
	_, err := io.CopyN(io.Discard, l.in, n)
	return whole(err)
}

// frame reads a frame's header. Frames of other kinds are passed over, behind the first one.
func (l *lz4Reader) frame() error {
	magic, err := l.number()
	if err != nil {
		if err == io.EOF && !l.any {
			return io.ErrUnexpectedEOF
		}
		return err // EOF is the end
	}
	if magic&^15 == 0x184d2a50 && l.any {
		n, err := l.number()
		if err != nil {
			return whole(err)
		}
		return l.skip(int64(n))
	}
	var b [2]byte
	if _, err := io.ReadFull(l.in, b[:]); err != nil {
		return whole(err)
	}
	size := b[1] >> 4 & 7
	if magic != lz4Magic || b[0]>>6 != 1 || size < 4 {
		return errFrame
	}
	if b[0]&1 != 0 {
		return fmt.Errorf("lz4: a dictionary: %w", ErrUnsupported)
	}
	l.flag, l.max, l.any = b[0], 1<<(2*size+8), true
	if len(l.packed) < l.max && cap(l.packed) < l.max {
		l.packed, l.buf = make([]byte, l.max), make([]byte, lz4Reach+l.max+16)
	}
	l.at, l.end = 0, 0
	return l.skip(int64(b[0]&8) + 1)
}
