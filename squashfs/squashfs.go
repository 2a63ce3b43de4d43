// Package squashfs reads squashfs 4.0 images from an io.ReaderAt, without a
// kernel and without trusting a byte of the image: it lists directories and
// opens regular files, which is what an update bundle needs. Symbolic links,
// devices, FIFOs and sockets are listed with their type and cannot be opened;
// owners, times and extended attributes are not looked at.
//
// Call Open, then FS.Open and File.WriteToContext, which reads and
// decompresses blocks on all cores and writes them in order.
//
// The format is little endian, version 4.0, as mksquashfs writes it and as
// Documentation/filesystems/squashfs.rst of the Linux kernel describes it.
// Compressors: gzip, xz (LZMA2 without BCJ filters), lz4 and zstd; blocks of
// 4 KiB to 1 MiB.
package squashfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"runtime"
	"sync"

	"lifeboat/unpack"
)

var (
	// ErrCorrupt is wrapped by every error that says that the image breaks
	// the format or one of the limits of this package. Errors of the
	// underlying reader are passed on as they are and do not wrap it.
	ErrCorrupt = errors.New("damaged squashfs image")

	// ErrUnsupported is wrapped when the image may be fine, but uses
	// something that is not read here: another version, lzo, BCJ filters.
	ErrUnsupported = unpack.ErrUnsupported
)

// Limits. What mksquashfs makes of a directory with images stays far below.
const (
	minBlockSize = 4 << 10
	maxBlockSize = 1 << 20
	metaSize     = 8 << 10 // uncompressed size of a metadata block at most
	maxEntries   = 65536   // in one directory
	maxNameLen   = 256     // bytes of one name
	maxPathLen   = 4096    // bytes of a path given to Open or ReadDir
	maxDepth     = 64      // path elements
	maxLoads     = 2048    // metadata blocks decoded by one call of Open or ReadDir
)

// superblockSize is the length of the superblock in bytes, at offset 0.
const superblockSize = 96

// superblockMagic is "hsqs", read as a little-endian number.
const superblockMagic = 0x73717368

// none is the table start that says that a table does not exist.
const none = ^uint64(0)

// superblock holds the fields of the superblock that are used. Offsets are
// bytes from the start of the image.
type superblock struct {
	inodes     uint32
	blockSize  int64
	fragments  uint32
	compressor uint16
	root       uint64 // inode reference: offset of the metadata block in the inode table << 16 | offset in it
	used       int64  // bytes of the image that are in use, padding not counted
	inodeTable int64
	dirTable   int64
	dirEnd     int64 // directories end before this offset
	fragTable  int64 // index of the fragment table; used where there are no fragments
}

// parseSuperblock reads the superblock b of an image of size bytes and checks
// every field that is used against the others.
func parseSuperblock(b []byte, size int64) (superblock, error) {
	le := binary.LittleEndian
	var s superblock
	if le.Uint32(b) != superblockMagic {
		return s, corrupt("superblock: no squashfs magic")
	}
	if major, minor := le.Uint16(b[28:]), le.Uint16(b[30:]); major != 4 || minor != 0 {
		return s, fmt.Errorf("squashfs version %d.%d: %w", major, minor, ErrUnsupported)
	}
	blockSize := le.Uint32(b[12:])
	if blockSize < minBlockSize || blockSize > maxBlockSize || bits.OnesCount32(blockSize) != 1 {
		return s, corrupt("superblock: block size %d", blockSize)
	}
	if blockLog := le.Uint16(b[22:]); int(blockLog) != bits.TrailingZeros32(blockSize) {
		return s, corrupt("superblock: block size %d with logarithm %d", blockSize, blockLog)
	}
	s.inodes = le.Uint32(b[4:])
	s.blockSize = int64(blockSize)
	s.fragments = le.Uint32(b[16:])
	s.compressor = le.Uint16(b[20:])
	s.root = le.Uint64(b[32:])

	used := le.Uint64(b[40:])
	if used < superblockSize || used > uint64(size) {
		return s, corrupt("superblock: %d bytes used of an image of %d", used, size)
	}
	s.used = int64(used)
	inodeTable, dirTable, fragTable := le.Uint64(b[64:]), le.Uint64(b[72:]), le.Uint64(b[80:])
	if inodeTable < superblockSize || dirTable <= inodeTable || dirTable >= used {
		return s, corrupt("superblock: inode table at %d, directory table at %d, %d bytes used", inodeTable, dirTable, used)
	}
	s.inodeTable, s.dirTable = int64(inodeTable), int64(dirTable)
	if s.inodes == 0 || int64(s.inodes) > maxUnpacked(s.dirTable-s.inodeTable)/minInodeSize {
		return s, corrupt("superblock: %d inodes in a table of %d bytes", s.inodes, s.dirTable-s.inodeTable)
	}

	// The tables behind the directories are indexes that stand after the
	// metadata blocks they point to, so this bound is not exact: no block
	// reached through it can lie outside the used bytes.
	s.dirEnd = s.used
	for _, at := range []uint64{fragTable, le.Uint64(b[48:]), le.Uint64(b[56:]), le.Uint64(b[88:])} {
		switch {
		case at == none:
		case at < dirTable || at >= used:
			return s, corrupt("superblock: table at %d, outside of %d to %d", at, dirTable, used)
		default:
			s.dirEnd = min(s.dirEnd, int64(at))
		}
	}
	s.fragTable = s.used
	if s.fragments > 0 {
		if fragTable == none {
			return s, corrupt("superblock: %d fragments without a table", s.fragments)
		}
		s.fragTable = int64(fragTable)
		if index := (int64(s.fragments) + fragsPerBlock - 1) / fragsPerBlock * 8; index > s.used-s.fragTable {
			return s, corrupt("superblock: %d fragments, index does not fit", s.fragments)
		}
	}
	return s, nil
}

// maxUnpacked is an upper bound of the bytes that n bytes of metadata blocks
// can unpack to: a block has a header of two bytes and at least one byte.
func maxUnpacked(n int64) int64 {
	return (n/3 + 1) * metaSize
}

// FS is an open image. Its methods may be called concurrently.
type FS struct {
	r  io.ReaderAt
	sb superblock

	mu      sync.Mutex
	scratch [metaSize]byte // compressed metadata block, guarded by mu
	codecs  []codec        // idle decompressors, guarded by mu
}

// Open reads the superblock of the image in the first size bytes of r.
// Bytes of r behind those that the image says it uses are not read. ReadAt
// is called from several goroutines at once while a File is written out.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	if size < superblockSize {
		return nil, corrupt("image of %d bytes", size)
	}
	f := &FS{r: r}
	b := f.scratch[:superblockSize]
	if err := readFull(r, b, 0); err != nil {
		return nil, fmt.Errorf("read squashfs superblock: %w", err)
	}
	sb, err := parseSuperblock(b, size)
	if err != nil {
		return nil, err
	}
	f.sb = sb
	c, err := newCodec(sb.compressor)
	if err != nil {
		return nil, err
	}
	f.codecs = append(f.codecs, c)
	return f, nil
}

// Compression names the compressor of the image: gzip, xz, lz4 or zstd.
// Single blocks may be stored uncompressed whatever it says.
func (f *FS) Compression() string { return compressorName(f.sb.compressor) }

// BlockSize is the size of a data block in bytes: a power of two from 4 KiB
// to 1 MiB.
func (f *FS) BlockSize() int { return int(f.sb.blockSize) }

// takeCodec returns an idle decompressor or a new one; giveCodec takes it
// back. As many are kept as one File uses at most.
func (f *FS) takeCodec() (codec, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.codecs); n > 0 {
		c := f.codecs[n-1]
		f.codecs = f.codecs[:n-1]
		return c, nil
	}
	return newCodec(f.sb.compressor)
}

func (f *FS) giveCodec(c codec) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.codecs) < runtime.GOMAXPROCS(0) {
		f.codecs = append(f.codecs, c)
	}
}

// corrupt makes an error that wraps ErrCorrupt and what args hold for %w.
func corrupt(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrCorrupt)...)
}

// readFull fills b from offset off of r. The end of r is
// io.ErrUnexpectedEOF: what is read here was said to be there.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}
