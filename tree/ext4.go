package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/verify"
)

// An ext4 file system is made without mke2fs: a small empty one, made on the PC, is written down as its blocks that are not
// zero; the kernel makes it as large as the slot once it is mounted (EXT4_IOC_RESIZE_FS). A template, little endian:
//
//	offset size
//	     0    8  magic "lfbtEXT4"
//	     8    4  version, 1
//	    12    4  blocks of the file system
//	    16    4  blocks that follow, at most 4096, the first one block 0
//	    20    4  CRC-32C of all that follows
//	    24       of each block its number in 4 bytes, growing, and 4096 bytes
const (
	Block = 4096 // bytes of a block of such a file system

	templateMagic   = "lfbtEXT4"
	templateVersion = 1
	templateHead    = 24
	templateBlocks  = 4096
	ext4Block       = Block
	ext4MaxBlocks   = 1 << 20 // of a template: 4 GiB
	ext4Group       = 1 << 15 // blocks of a group
	groupTables     = 64      // blocks at the beginning of a group that may hold backups and the bitmaps of 16 groups
)

// Where things are in an ext4 superblock, which begins at byte 1024 (Documentation/filesystems/ext4 of the kernel).
const (
	superAt       = 1024
	superMagic    = 0x38
	superIncompat = 0x60
	superUUID     = 0x68
	superLabel    = 0x78
	superChecksum = 0x3fc
	csumSeed      = 0x2000 // incompatible feature metadata_csum_seed: checksums do not hang on the UUID
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Template writes down an empty ext4 file system of blocks of 4 KiB, with the features metadata_csum and metadata_csum_seed.
func Template(fs io.ReaderAt, size int64) ([]byte, error) {
	if size%ext4Block != 0 || size <= 0 || size/ext4Block > ext4MaxBlocks {
		return nil, errors.New("the file system's size is none that a template has")
	}
	var body []byte
	block, count := make([]byte, ext4Block), uint32(0)
	for n := range size / ext4Block {
		if _, err := fs.ReadAt(block, n*ext4Block); err != nil {
			return nil, err
		}
		if n == 0 || !zero(block) {
			body = binary.LittleEndian.AppendUint32(body, uint32(n))
			body = append(body, block...)
			count++
		}
	}
	b := append([]byte(templateMagic), make([]byte, templateHead-len(templateMagic))...)
	for i, v := range []uint32{templateVersion, uint32(size / ext4Block), count, crc32.Checksum(body, castagnoli)} {
		binary.LittleEndian.PutUint32(b[8+4*i:], v)
	}
	b = append(b, body...)
	_, _, err := readTemplate(b)
	return b, err
}

// readTemplate returns the size of the file system in blocks, and the numbered blocks.
func readTemplate(b []byte) (size uint32, body []byte, err error) {
	le := binary.LittleEndian
	if len(b) < templateHead || string(b[:8]) != templateMagic || le.Uint32(b[8:]) != templateVersion {
		return 0, nil, errors.New("no template of a file system")
	}
	body = b[templateHead:]
	size = le.Uint32(b[12:])
	if count := le.Uint32(b[16:]); count == 0 || count > templateBlocks || size > ext4MaxBlocks || len(body) != int(count)*(4+ext4Block) ||
		crc32.Checksum(body, castagnoli) != le.Uint32(b[20:]) || le.Uint32(body) != 0 {
		return 0, nil, errors.New("a damaged template of a file system")
	}
	last := int64(-1)
	for rest := body; len(rest) > 0; rest = rest[4+ext4Block:] {
		n := int64(le.Uint32(rest))
		if n <= last || n >= int64(size) {
			return 0, nil, errors.New("a damaged template of a file system")
		}
		last = n
	}
	super := body[4+superAt : 4+ext4Block]
	if !zero(body[4:4+superAt]) || !zero(super[1024:]) || le.Uint16(super[superMagic:]) != 0xef53 || le.Uint32(super[superIncompat:])&csumSeed == 0 || le.Uint32(super[superChecksum:]) != superSum(super) {
		return 0, nil, errors.New("a template that is no ext4 with metadata_csum_seed")
	}
	return size, body, nil
}

// superSum is the checksum of a superblock: CRC-32C without the last inversion.
func superSum(super []byte) uint32 { return ^crc32.Checksum(super[:superChecksum], castagnoli) }

// Format writes an empty file system to the beginning of dev, which takes its flush, with a UUID and a label of at most 16
// bytes. What was there before is zero as far as the template goes. The superblock is written last, and has a checksum: before
// it is durable nothing on dev can be mounted, after that all of it is there.
func Format(dev disk.Device, template []byte, uuid [16]byte, label string) error {
	size, body, err := readTemplate(template)
	if err != nil {
		return verify.Refuse(verify.Policy, "%w", err)
	}
	if int64(size)*ext4Block > dev.Size() || len(label) > 16 {
		return verify.Refuse(verify.Policy, "the file system needs %d bytes and the slot has %d, or its label has more than 16", int64(size)*ext4Block, dev.Size())
	}
	write := func(p []byte, at int64) {
		if err == nil {
			_, err = dev.WriteAt(p, at)
		}
	}
	flush := func() {
		if err == nil {
			err = dev.Flush()
		}
	}
	empty := make([]byte, 256*ext4Block)
	write(empty[:ext4Block], 0)
	flush()
	next := int64(1)
	fill := func(to int64) {
		for ; next < to; next += 256 {
			write(empty[:min(256, to-next)*ext4Block], next*ext4Block)
		}
		next = to
	}
	for rest := body[4+ext4Block:]; len(rest) > 0; rest = rest[4+ext4Block:] {
		fill(int64(binary.LittleEndian.Uint32(rest)))
		write(rest[4:4+ext4Block], next*ext4Block)
		next++
	}
	fill(int64(size))
	blocks := dev.Size() / ext4Block
	for group := int64(ext4Group); group < blocks; group += ext4Group {
		if n := min(groupTables, blocks-group); group+n > next {
			write(empty[:n*ext4Block], group*ext4Block)
		}
	}
	if at := max(next, blocks-16); at < blocks {
		write(empty[:(blocks-at)*ext4Block], at*ext4Block)
	}
	flush()
	s := append([]byte(nil), body[4+superAt:4+superAt+1024]...) // there is nothing else in block 0
	copy(s[superUUID:], uuid[:])
	clear(s[superLabel : superLabel+16])
	copy(s[superLabel:], label)
	binary.LittleEndian.PutUint32(s[superChecksum:], superSum(s))
	write(s, superAt)
	flush()
	if err != nil {
		return verify.Refuse(verify.IO, "make the file system: %w", err)
	}
	return nil
}

// Grow makes the mounted file system with an open folder as large as so many blocks.
func Grow(folder *os.File, blocks uint64) error {
	const resize = 1<<30 | 8<<16 | 'f'<<8 | 16 // EXT4_IOC_RESIZE_FS, _IOW('f', 16, u64)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, folder.Fd(), resize, uintptr(unsafe.Pointer(&blocks))); e != 0 {
		return fmt.Errorf("make the file system %d blocks large: %w", blocks, e)
	}
	return nil
}
