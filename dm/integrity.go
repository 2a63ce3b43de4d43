package dm

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

// Integrity says how dm-integrity guards the blocks of a writable device: with a tag for each, journaled with the data, so that
// a power cut leaves a block as it was or as it was to be, and never one whose tag is of the other. The kernel's other two modes
// are refused: direct mode is not safe in a cut (1,920 blocks of 3,392 unreadable after one, measured), and bitmap mode takes
// whatever it finds after a cut for what was written.
//
// crc32c and sha256 notice what a medium does by itself: who can write to the medium can make tags too. hmac-sha256 notices
// that as well, but not that blocks and their tags are what they were at an earlier time.
type Integrity struct {
	Hash string // "crc32c", "sha256" or "hmac-sha256"
	Key  []byte // of hmac-sha256, 16 to 64 bytes; root can read it back with Table
}

// IntegrityBlock is the size in bytes of the blocks that have a tag each. A block whose tag is wrong, as that of each block
// that was never written, is read as EILSEQ from the device, as EIO from a file system on it.
const IntegrityBlock = 4096

var (
	// ErrIntegrity says that a device holds no dm-integrity of the kind that was asked for.
	ErrIntegrity = errors.New("no dm-integrity of this kind is there")
	// ErrIntegrityKey says that it was made with another key, or that its superblock was changed.
	ErrIntegrityKey = errors.New("another dm-integrity key, or a changed superblock")
)

// FormatIntegrity makes dev, a block device of exactly the room, an empty dm-integrity device; name is free again afterwards.
// It takes no longer on a large one: neither data nor tags are written, and blocks have to be written before they are read. (One
// that was written in an earlier life with the same key and hash may still be read as what it was.) It lasts when it returns;
// a cut before leaves something that OpenIntegrity refuses or such a device.
func FormatIntegrity(name, dev string, in Integrity) error {
	table, err := IntegrityTable(dev, IntegrityBlock/512, in)
	if err != nil {
		return err
	}
	f, err := disk.Open(dev, true)
	if err != nil {
		return err
	}
	defer f.Close()
	// The kernel makes a superblock and a journal where there is zero.
	if _, err = f.WriteAt(make([]byte, IntegrityBlock), 0); err == nil {
		err = f.Flush()
	}
	if err != nil {
		return fmt.Errorf("format %s: %w", dev, err)
	}
	if _, err := Create(name); err != nil {
		return err
	}
	err = Load(name, false, table)
	if err := errors.Join(err, Remove(name), f.Flush()); err != nil {
		return fmt.Errorf("format %s: %w", dev, err)
	}
	return nil
}

// OpenIntegrity opens what FormatIntegrity made and returns the path of its block device; what a power cut left in the journal is
// written first, also with ro. ErrIntegrity and ErrIntegrityKey (errors.Is) say that something else is there; nothing is
// written then.
func OpenIntegrity(name, dev string, in Integrity, ro bool) (path string, err error) {
	f, err := disk.OpenDirect(dev) // not what the kernel remembers from before it wrote there itself
	if err != nil {
		return "", err
	}
	defer f.Close()
	super := disk.Aligned(IntegrityBlock)
	_, err = f.ReadAt(super, 0)
	if err != nil {
		return "", fmt.Errorf("read the superblock of %s: %w", dev, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	sectors, err := superblock(super, in, uint64(size)/512)
	if err != nil {
		return "", fmt.Errorf("%s: %w", dev, err)
	}
	table, err := IntegrityTable(dev, sectors, in)
	if err != nil {
		return "", err
	}
	path, err = Open(name, ro, table)
	switch {
	case errors.Is(err, unix.EILSEQ):
		err = fmt.Errorf("%s: %w", dev, ErrIntegrityKey)
	case errors.Is(err, unix.EINVAL):
		err = fmt.Errorf("%s: %w: %w", dev, ErrIntegrity, err)
	}
	return path, err
}

// OpenFirst makes name a device of the first sectors of dev, "major:minor", which nothing that is written to it leaves; with dm-integrity
// where in.Hash is not "none", which is made anew with format. CloseFirst takes it away.
func OpenFirst(name, dev string, sectors uint64, in Integrity, ro, format bool) (path string, err error) {
	first := Target{Sectors: sectors, Type: "linear", Args: dev + " 0"}
	if in.Hash == "none" {
		return Open(name, ro, first)
	}
	path, err = Open(name+firstName, false, first) // its journal may have to be written
	if err == nil && format {
		err = FormatIntegrity(name, path, in)
	}
	if err == nil {
		path, err = OpenIntegrity(name, path, in, ro)
	}
	if err != nil {
		_ = CloseFirst(name)
	}
	return path, err
}

// firstName is what the name of the device below dm-integrity ends in.
const firstName = "-first"

// CloseFirst takes away what OpenFirst made, as far as it is there.
func CloseFirst(name string) error {
	for _, n := range []string{name, name + firstName} {
		if err := Remove(n); err != nil && !errors.Is(err, unix.ENXIO) {
			return err
		}
	}
	return nil
}

// IntegrityMismatches returns how many reads of the open device name met a wrong tag, since it was opened.
func IntegrityMismatches(name string) (uint64, error) {
	t, err := Status(name)
	if err != nil {
		return 0, err
	}
	if len(t) != 1 || t[0].Type != "integrity" {
		return 0, fmt.Errorf("mapped device %s: %w", name, ErrIntegrity)
	}
	first, _, _ := strings.Cut(t[0].Args, " ")
	n, err := strconv.ParseUint(first, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("mapped device %s: status %q", name, t[0].Args)
	}
	return n, nil
}

// IntegrityTable describes a device of so many sectors, a multiple of 8, with the tags on dev too.
func IntegrityTable(dev string, sectors uint64, in Integrity) (Target, error) {
	_, opts, err := in.parameters()
	args := dev + " 0 - J " + strconv.Itoa(len(opts)) + " " + strings.Join(opts, " ")
	return Target{Sectors: sectors, Type: "integrity", Args: args}, err
}

// parameters returns the size of a tag in bytes and the target's optional arguments.
func (in Integrity) parameters() (tag uint16, opts []string, err error) {
	opts = []string{"block_size:4096", "fix_padding"}
	switch in.Hash {
	case "crc32c":
		return 4, append(opts, "internal_hash:crc32c"), nil
	case "sha256":
		return 32, append(opts, "internal_hash:sha256"), nil
	case "hmac-sha256":
		if len(in.Key) < 16 || len(in.Key) > 64 {
			return 0, nil, fmt.Errorf("a dm-integrity key of %d bytes, want 16 to 64", len(in.Key))
		}
		alg := "hmac(sha256):" + hex.EncodeToString(in.Key)
		return 32, append(opts, "internal_hash:"+alg, "fix_hmac", "journal_mac:"+alg), nil
	}
	return 0, nil, fmt.Errorf("unknown dm-integrity hash %q", in.Hash)
}

// superblock returns how many sectors of data a superblock of 512 bytes or more provides on a device of so many sectors. The
// kernel's struct superblock (drivers/md/dm-integrity.c), little endian:
//
//	 0 magic "integrt\0"   8 u8 version         9 u8 log2 of sectors that are interleaved
//	10 u16 tag size       12 u32 journal sections
//	16 u64 sectors of data                     24 u32 flags   28 u8 log2 of sectors of a block
//	32 u64 next sector to recalculate         448 MAC, 64 bytes, with fix_hmac
func superblock(b []byte, in Integrity, room uint64) (sectors uint64, err error) {
	const (
		journalMAC   = 1 << 0
		recalculates = 1 << 1
		bitmap       = 1 << 2
		fixedHMAC    = 1 << 4
		inline       = 1 << 5
	)
	tag, _, err := in.parameters()
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	if len(b) < 512 || string(b[:8]) != "integrt\x00" {
		return 0, ErrIntegrity
	}
	flags, why := le.Uint32(b[24:]), ""
	sectors = le.Uint64(b[16:])
	switch mac := uint32(journalMAC | fixedHMAC); {
	case flags&bitmap != 0:
		why = "bitmap mode takes whatever a power cut leaves"
	case flags&(recalculates|inline) != 0:
		why = "it was made by somebody else"
	case le.Uint16(b[10:]) != tag, in.Hash == "hmac-sha256" && flags&mac != mac, in.Hash != "hmac-sha256" && flags&mac != 0:
		why = "it is not of " + in.Hash
	case b[28] != 3:
		why = "its blocks are not of 4096 bytes"
	case sectors == 0, sectors%(IntegrityBlock/512) != 0, sectors >= room:
		why = "its size is not that of the device"
	default:
		return sectors, nil
	}
	return 0, fmt.Errorf("%w: %s", ErrIntegrity, why)
}
