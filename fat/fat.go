// Package fat reads FAT12, FAT16, FAT32 and exFAT file systems of unproven origin.
//
// [Open] a partition, find what is there with [FS.Each] or [FS.ReadDir], and [FS.Open] a file, which is
// an io.ReaderAt. Nothing is written but by [File.WriteAt]. Every byte is taken for hostile: each field is checked before it is
// used, every chain of clusters is bounded and must not visit a cluster twice, and the memory
// taken does not depend on the size of the file system (256 KiB for the table, at most 4 MiB for an open file,
// 2 MiB for a directory's extents and names while it is read; 256 KiB for exFAT's up-case table). What contradicts itself
// is refused with ErrDamaged.
//
// Formats: Microsoft, "FAT: General Overview of On-Disk Format", 1.03, and "exFAT file system specification", 1.00; where
// they leave room, as Linux does. exFAT's allocation bitmap and its backup boot sectors are for writers and menders: they
// are not looked at.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"
)

var (
	// ErrNotFAT is returned by Open for bytes that do not claim to be a FAT or exFAT file system.
	ErrNotFAT = errors.New("no FAT file system")
	// ErrDamaged is wrapped by errors about a file system that contradicts itself or exceeds the limits below.
	ErrDamaged = errors.New("damaged FAT file system")
	// ErrTooMany is returned by ReadDir with the first entries of a directory that has more.
	ErrTooMany = errors.New("too many directory entries")
)

const (
	maxExtents = 1 << 18   // of a file: 1 GiB in 4 KiB clusters, each of them apart from the next
	maxDirSize = 2 << 20   // bytes of a directory: 65,536 entries, the limit of the format
	maxListed  = 4096      // entries that ReadDir returns
	maxDepth   = 8         // elements of a path
	maxCluster = 512 << 10 // bytes

	pageSize = 4096 // of the table, as it is read
	pages    = 64
)

// FS is a FAT or exFAT file system. It is safe for concurrent use.
type FS struct {
	r    io.ReaderAt
	bits int // 12, 16 or 32
	ex   bool

	cluster  int64  // bytes per cluster
	clusters uint32 // numbered 2 .. clusters+1
	data     int64  // where cluster 2 starts, bytes
	table    int64  // where the table in use starts, bytes
	root     uint32 // first cluster of the root directory (FAT32, exFAT)
	rootAt   int64  // where the root directory is (FAT12, FAT16), bytes
	rootSize int64
	upper    []uint16 // exFAT: of each UTF-16 unit the upper case

	mu    sync.Mutex
	cache [pages]page // of the table; a page's place is its number modulo pages
}

type page struct {
	used bool
	no   int64
	b    [pageSize]byte
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// readFull fills p from off; the end of r before that is an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Open looks at the boot sector of a file system in the first size bytes of r. ErrNotFAT where there is
// none; ErrDamaged where it does not fit into size or into itself.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	if size < 512 {
		return nil, ErrNotFAT
	}
	var b [512]byte
	if err := readFull(r, b[:], 0); err != nil {
		return nil, fmt.Errorf("read boot sector: %w", err)
	}
	le := binary.LittleEndian
	if string(b[:11]) == "\xeb\x76\x90EXFAT   " && b[510] == 0x55 && b[511] == 0xaa {
		return openExFAT(r, size, b[:])
	}
	// Jump, signature and media descriptor tell FAT from NTFS, exFAT and boot code.
	if b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9 || b[21] < 0xf8 && b[21] != 0xf0 {
		return nil, ErrNotFAT
	}
	var (
		sector   = int64(le.Uint16(b[11:]))
		perClus  = int64(b[13])
		reserved = int64(le.Uint16(b[14:]))
		tables   = int64(b[16])
		rootMax  = int64(le.Uint16(b[17:]))
		total    = int64(le.Uint16(b[19:]))
		perTable = int64(le.Uint16(b[22:]))
	)
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	fs := &FS{r: r, bits: 16}
	active := int64(0)
	if perTable == 0 { // which is how Linux tells FAT32, too
		fs.bits = 32
		perTable = int64(le.Uint32(b[36:]))
		if flags := le.Uint16(b[40:]); flags&0x80 != 0 { // tables are not copies of each other
			active = int64(flags & 0x0f)
		}
		if version := le.Uint16(b[42:]); version != 0 {
			return nil, damaged("FAT32 of version %#x", version)
		}
		fs.root = le.Uint32(b[44:])
	}
	switch {
	case sector != 512 && sector != 1024 && sector != 2048 && sector != 4096:
		return nil, damaged("sectors of %d bytes", sector)
	case perClus == 0 || perClus&(perClus-1) != 0 || perClus*sector > maxCluster:
		return nil, damaged("clusters of %d sectors", perClus)
	case reserved == 0:
		return nil, damaged("no reserved sectors")
	case tables < 1 || tables > 2 || active >= tables:
		return nil, damaged("%d tables, %d in use", tables, active)
	case perTable == 0:
		return nil, damaged("tables of no sectors")
	case total == 0 || total > size/sector:
		return nil, damaged("%d sectors of %d bytes in %d bytes", total, sector, size)
	case fs.bits == 32 && rootMax != 0 || fs.bits != 32 && rootMax == 0:
		return nil, damaged("root directory of %d entries", rootMax)
	}
	rootSectors := (rootMax*32 + sector - 1) / sector
	first := reserved + tables*perTable + rootSectors
	if first >= total {
		return nil, damaged("tables of %d sectors leave no room in %d", perTable, total)
	}
	clusters := (total - first) / perClus
	if fs.bits == 16 && clusters < 4085 {
		fs.bits = 12
	}
	// As Linux does: what the table can't describe is not there.
	clusters = min(clusters, perTable*sector*8/int64(fs.bits)-2, 1<<min(fs.bits, 28)-11)
	if clusters < 1 {
		return nil, damaged("no clusters")
	}
	fs.cluster = perClus * sector
	fs.clusters = uint32(clusters)
	fs.data = first * sector
	fs.table = (reserved + active*perTable) * sector
	fs.rootAt = (reserved + tables*perTable) * sector
	fs.rootSize = rootMax * 32
	if fs.bits == 32 && !fs.valid(fs.root) {
		return nil, damaged("root directory in cluster %d of %d", fs.root, fs.clusters)
	}
	return fs, nil
}

func (f *FS) valid(cluster uint32) bool { return cluster >= 2 && cluster-2 < f.clusters }

// next is the table's entry for cluster, which must be valid: the cluster after it, or last.
func (f *FS) next(cluster uint32) (n uint32, last bool, err error) {
	off := int64(cluster) * int64(f.bits) / 8
	var b [4]byte
	f.mu.Lock()
	// One byte at a time: an entry of FAT12 may lie across two pages.
	for i := range max(2, f.bits/8) {
		p, err := f.page((off + int64(i)) / pageSize)
		if err != nil {
			f.mu.Unlock()
			return 0, false, err
		}
		b[i] = p[(off+int64(i))%pageSize]
	}
	f.mu.Unlock()
	n = binary.LittleEndian.Uint32(b[:])
	var end uint32
	switch f.bits {
	case 32:
		end = 0xfffffff8
		if !f.ex {
			n, end = n&0x0fffffff, 0x0ffffff8
		}
	case 16:
		end = 0xfff8
	default:
		if cluster&1 == 1 {
			n >>= 4
		}
		n, end = n&0xfff, 0xff8
	}
	if n >= end {
		return 0, true, nil
	}
	if !f.valid(n) {
		return 0, false, damaged("cluster %d is followed by %d, there are %d", cluster, n, f.clusters)
	}
	return n, false, nil
}

// page returns page no of the table. The caller holds mu.
func (f *FS) page(no int64) ([]byte, error) {
	p := &f.cache[no%pages]
	if p.used && p.no == no {
		return p.b[:], nil
	}
	p.used = false
	off := f.table + no*pageSize
	// The table may end in the middle of a page, and what lies behind it may be the end of the device.
	n, err := f.r.ReadAt(p.b[:], off)
	if n < len(p.b) && (err == nil || err == io.EOF) {
		if n == 0 {
			return nil, fmt.Errorf("read allocation table: %w", io.ErrUnexpectedEOF)
		}
		clear(p.b[n:])
	} else if n < len(p.b) {
		return nil, fmt.Errorf("read allocation table: %w", err)
	}
	p.used, p.no = true, no
	return p.b[:], nil
}

// extent is a run of consecutive clusters: the at-th of a file and those after it, until the next extent's.
type extent struct{ at, cluster uint32 }

// chain follows the chain of clusters from first: want of them, or to its end, but no more than limit,
// where want is 0. A chain that is too short, too long or visits a cluster twice is damaged.
func (f *FS) chain(first, want, limit uint32) ([]extent, uint32, error) {
	if !f.valid(first) {
		return nil, 0, damaged("a file starts in cluster %d, there are %d", first, f.clusters)
	}
	if want > f.clusters {
		return nil, 0, damaged("a file of %d clusters, there are %d", want, f.clusters)
	}
	extents := []extent{{0, first}}
	forward := true // each extent lies behind the one before, so that nothing is visited twice
	at := first
	n := uint32(1)
	for ; want == 0 || n < want; n++ {
		to, last, err := f.next(at)
		if err != nil {
			return nil, 0, err
		}
		if last {
			break
		}
		if want == 0 && n == limit {
			if err := overlap(extents, n); err != nil {
				return nil, 0, err
			}
			return nil, 0, damaged("a directory of more than %d clusters", limit)
		}
		if to != at+1 {
			if len(extents) == maxExtents {
				if err := overlap(extents, n); err != nil {
					return nil, 0, err
				}
				return nil, 0, damaged("a file in more than %d pieces", maxExtents)
			}
			extents = append(extents, extent{n, to})
			forward = forward && to > at
		}
		at = to
	}
	if n < want {
		return nil, 0, damaged("a file of %d clusters has only %d", want, n)
	}
	if !forward {
		if err := overlap(extents, n); err != nil {
			return nil, 0, err
		}
	}
	return extents, n, nil
}

// overlap finds out whether n clusters in extents have one twice.
func overlap(extents []extent, n uint32) error {
	runs := make([]uint64, len(extents)) // first cluster, number of clusters
	for i, e := range extents {
		end := n
		if i+1 < len(extents) {
			end = extents[i+1].at
		}
		runs[i] = uint64(e.cluster)<<32 | uint64(end-e.at)
	}
	sort.SliceStable(runs, func(i, j int) bool { return runs[i] < runs[j] })
	for i := 1; i < len(runs); i++ {
		if prev := runs[i-1]; prev>>32+prev&0xffffffff > runs[i]>>32 {
			return damaged("a chain of clusters visits cluster %d twice", runs[i]>>32)
		}
	}
	return nil
}

// File is a file that has been opened. It is safe for concurrent use.
type File struct {
	fs      *FS
	size    int64
	written int64 // exFAT: what lies behind was never written and reads as zeros
	extents []extent
	n       uint32 // clusters in extents
}

// Size in bytes; on FAT at most 4 GiB - 1.
func (f *File) Size() int64 { return f.size }

// ReadAt reads each run of consecutive clusters at once.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	var err error
	if left := f.size - off; int64(len(p)) > left {
		p, err = p[:left], io.EOF
	}
	there := int(min(max(f.written-off, 0), int64(len(p))))
	clear(p[there:])
	done := f.pieces(there, off, func(done, n int, at int64) bool {
		if e := readFull(f.fs.r, p[done:done+n], at); e != nil {
			err = fmt.Errorf("read at %d: %w", off+int64(done), e)
			return false
		}
		return true
	})
	if done == there {
		done = len(p)
	}
	return done, err
}

// pieces calls do for each run of consecutive clusters that n bytes at off lie in, which must be in the file: so many of
// them are done, the next n are at a place of the medium. It ends when do does, and returns how many were done.
func (f *File) pieces(n int, off int64, do func(done, n int, at int64) bool) (done int) {
	i, found := slices.BinarySearchFunc(f.extents, uint32(off/f.fs.cluster), func(e extent, at uint32) int {
		return int(int64(e.at) - int64(at))
	})
	if !found {
		i--
	}
	for ; done < n; i++ {
		e, end := f.extents[i], f.n
		if i+1 < len(f.extents) {
			end = f.extents[i+1].at
		}
		within := off + int64(done) - int64(e.at)*f.fs.cluster
		part := int(min(int64(n-done), int64(end-e.at)*f.fs.cluster-within))
		if !do(done, part, f.fs.data+int64(e.cluster-2)*f.fs.cluster+within) {
			break
		}
		done += part
	}
	return done
}

// Run returns where on the medium the byte at off lies, and how many bytes of the file lie there one behind the other; none
// from the file's end on.
func (f *File) Run(off int64) (at, n int64) {
	f.pieces(int(f.size-off), off, func(_, k int, a int64) bool {
		at, n = a, int64(k)
		return false
	})
	return at, n
}

// WriteAt overwrites bytes of the file where they lie. Nothing else on the medium changes: no table, no folder, no time,
// and never the file's size; what does not fit into it (exFAT: into what was ever written of it) is refused whole. The medium that was opened must be an
// io.WriterAt. After a power cut each sector holds old bytes, new ones, or what the medium makes of a sector that it was
// writing; the file system is what it was.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	w, ok := f.fs.r.(io.WriterAt)
	if !ok {
		return 0, errors.New("write to a file: the medium was opened to be read only")
	}
	if off < 0 || off > f.written || int64(len(p)) > f.written-off {
		return 0, fmt.Errorf("write %d bytes at %d of a file of %d: %w", len(p), off, f.written, io.ErrShortWrite)
	}
	var err error
	done := f.pieces(len(p), off, func(done, n int, at int64) bool {
		if _, e := w.WriteAt(p[done:done+n], at); e != nil {
			err = fmt.Errorf("write at %d: %w", off+int64(done), e)
			return false
		}
		return true
	})
	return done, err
}

// file makes a File of an entry; size 0 has no clusters.
func (f *FS) file(e Entry) (*File, error) {
	if !f.ex {
		e.written = e.Size
	}
	if e.Size == 0 {
		return &File{fs: f}, nil
	}
	if e.Size > int64(f.clusters)*f.cluster {
		return nil, damaged("a file of %d bytes, there are %d clusters", e.Size, f.clusters)
	}
	extents, n, err := f.clustersOf(e, uint32((e.Size+f.cluster-1)/f.cluster))
	if err != nil {
		return nil, err
	}
	return &File{fs: f, size: e.Size, written: e.written, extents: extents, n: n}, nil
}

// clustersOf returns the first want clusters of an entry: by the table, or one after the other.
func (f *FS) clustersOf(e Entry, want uint32) ([]extent, uint32, error) {
	if !e.noChain {
		return f.chain(e.first, want, 0)
	}
	if !f.valid(e.first) || want > f.clusters-(e.first-2) {
		return nil, 0, damaged("%d clusters from %d on, there are %d", want, e.first, f.clusters)
	}
	return []extent{{0, e.first}}, want, nil
}
