package squashfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"lifeboat/unpack"
)

// The compressors of the format, by their number in the superblock.
const (
	compGzip = 1 + iota
	compLZMA
	compLZO
	compXZ
	compLZ4
	compZstd
)

func compressorName(id uint16) string {
	names := [...]string{"unknown", "gzip", "lzma", "lzo", "xz", "lz4", "zstd"}
	if int(id) < len(names) {
		return names[id]
	}
	return names[0]
}

// A codec unpacks single blocks. It keeps its tables from block to block and
// belongs to one goroutine at a time.
type codec interface {
	// Decode unpacks the whole of src into dst and returns the number of
	// bytes. It fails if they do not fit; dst may have overAlloc bytes of
	// capacity behind its length, which are then scratch space.
	Decode(dst, src []byte) (int, error)
}

// overAlloc is the room behind a block that lets decoders copy in words
// without looking for the end.
const overAlloc = 16

var (
	errTooLong = unpack.ErrTooLong
	errTrailer = errors.New("data behind the end of the block")
)

func newCodec(id uint16) (codec, error) {
	switch id {
	case compGzip:
		return new(gzipCodec), nil
	case compXZ:
		return &unpack.XZ{MaxDict: maxBlockSize}, nil
	case compLZ4:
		return lz4Codec{}, nil
	case compZstd:
		return newZstdCodec()
	case compLZMA, compLZO:
		return nil, fmt.Errorf("squashfs compressor %s: %w", compressorName(id), ErrUnsupported)
	}
	return nil, corrupt("superblock: compressor %d", id)
}

// gzipCodec unpacks what squashfs calls gzip: a zlib stream (RFC 1950).
type gzipCodec struct {
	src bytes.Reader
	fl  io.ReadCloser // also a flate.Resetter
}

func (c *gzipCodec) Decode(dst, src []byte) (int, error) {
	if len(src) < 6 || src[0]&15 != 8 || src[0]>>4 > 7 || binary.BigEndian.Uint16(src)%31 != 0 || src[1]&0x20 != 0 {
		return 0, errors.New("zlib: bad header")
	}
	c.src.Reset(src[2 : len(src)-4])
	if c.fl == nil {
		c.fl = flate.NewReader(&c.src)
	} else if err := c.fl.(flate.Resetter).Reset(&c.src, nil); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(c.fl, dst)
	switch {
	case err == nil:
		var one [1]byte
		switch k, err := c.fl.Read(one[:]); {
		case k > 0:
			return 0, errTooLong
		case err == nil:
			return 0, io.ErrNoProgress
		case err != io.EOF:
			return 0, err
		}
	case err != io.EOF && err != io.ErrUnexpectedEOF:
		return 0, err
	}
	// A stream that breaks off looks like one that ends: both have read all
	// of src, and the checksum tells.
	if c.src.Len() != 0 {
		return 0, errTrailer
	}
	if adler32.Checksum(dst[:n]) != binary.BigEndian.Uint32(src[len(src)-4:]) {
		return 0, errors.New("zlib: wrong checksum")
	}
	return n, nil
}

// lz4Codec unpacks raw LZ4 blocks.
type lz4Codec struct{}

func (lz4Codec) Decode(dst, src []byte) (int, error) { return unpack.LZ4(dst, 0, src) }

// zstdCodec unpacks zstd frames (RFC 8878).
type zstdCodec struct{ dec *zstd.Decoder }

func newZstdCodec() (codec, error) {
	// With concurrency 1 and no stream, the decoder has no goroutine and
	// need not be closed. The window of a frame never has to be larger than
	// the block, and the block is its own window.
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxBlockSize),
		zstd.WithDecoderMaxWindow(maxBlockSize),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return zstdCodec{dec}, nil
}

func (c zstdCodec) Decode(dst, src []byte) (int, error) {
	out, err := c.dec.DecodeAll(src, dst[:0])
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return 0, fmt.Errorf("%w: %w", err, ErrUnsupported)
	}
	if err != nil {
		return 0, err
	}
	if len(out) > len(dst) {
		return 0, errTooLong
	}
	if len(out) > 0 && &out[0] != &dst[:1][0] {
		return 0, errors.New("zstd: buffer was not used")
	}
	return len(out), nil
}
