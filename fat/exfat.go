package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf16"
)

// Of exFAT's directory entries, by their first byte; bit 7 says that one is in use, bit 6 that it belongs to the one before.
const (
	exUpper  = 0x82 // where the up-case table is
	exFile   = 0x85 // begins the entries of a file or folder
	exStream = 0xc0 // the second of them
	exName   = 0xc1 // the others, 15 UTF-16 units each

	exSecondary = 0xc0 // the bits of those after the first

	exAllocated = 0x01 // stream flags: it may have clusters
	exNoChain   = 0x02 // they follow each other, and the table does not speak of them

	maxExCluster = 32 << 20 // bytes
	maxUpper     = 2 << 16  // bytes of an up-case table
)

// openExFAT looks at an exFAT whose boot sector is b. Little endian: size in sectors 72 (u64), table's first sector 80, its sectors
// 84, first sector of cluster 2 at 88, clusters 92, root's first cluster 96, revision 104, flags 106, binary
// logarithms of bytes per sector 108 and sectors per cluster 109, tables 110. The last of the 12 boot sectors
// repeats the checksum of the others.
func openExFAT(r io.ReaderAt, size int64, b []byte) (*FS, error) {
	le := binary.LittleEndian
	var (
		shift    = b[108]
		perClus  = b[109]
		tables   = int64(b[110])
		total    = le.Uint64(b[72:])
		table    = int64(le.Uint32(b[80:]))
		perTable = int64(le.Uint32(b[84:]))
		heap     = int64(le.Uint32(b[88:]))
		clusters = int64(le.Uint32(b[92:]))
		active   = int64(0)
	)
	if tables == 2 {
		active = int64(b[106] & 1)
	}
	switch {
	case shift < 9 || shift > 12:
		return nil, damaged("exFAT with sectors of 2^%d bytes", shift)
	case perClus > 25 || int64(1)<<(shift+perClus) > maxExCluster:
		return nil, damaged("exFAT with clusters of 2^%d sectors", perClus)
	case b[105] != 1:
		return nil, damaged("exFAT of revision %d", b[105])
	case tables != 1 && tables != 2:
		return nil, damaged("%d tables", tables)
	case total > uint64(size)>>shift:
		return nil, damaged("%d sectors of %d bytes in %d bytes", total, 1<<shift, size)
	case clusters < 1 || clusters > 1<<32-11 || table < 24 || perTable<<shift < 4*(clusters+2):
		return nil, damaged("a table of %d sectors from %d for %d clusters", perTable, table, clusters)
	case heap < table+tables*perTable || uint64(heap)+uint64(clusters)<<perClus > total:
		return nil, damaged("%d clusters from sector %d of %d", clusters, heap, total)
	}
	if err := bootSum(r, shift); err != nil {
		return nil, err
	}
	fs := &FS{
		r: r, bits: 32, ex: true, cluster: 1 << (shift + perClus), clusters: uint32(clusters), data: heap << shift,
		table: (table + active*perTable) << shift, root: le.Uint32(b[96:]),
	}
	if !fs.valid(fs.root) {
		return nil, damaged("root directory in cluster %d of %d", fs.root, fs.clusters)
	}
	if err := fs.loadUpper(); err != nil {
		return nil, fmt.Errorf("read up-case table: %w", err)
	}
	return fs, nil
}

// bootSum checks the checksum of the boot sectors: all bytes of the first eleven but those that change while the file system
// is in use.
func bootSum(r io.ReaderAt, shift byte) error {
	var (
		buf  [pageSize]byte
		sum  uint32
		unit = int64(1) << shift
	)
	for no := range int64(12) {
		b := buf[:unit]
		if err := readFull(r, b, no*unit); err != nil {
			return fmt.Errorf("read boot sectors: %w", err)
		}
		if no == 11 {
			for ; len(b) > 0; b = b[4:] {
				if binary.LittleEndian.Uint32(b) != sum {
					return damaged("the boot sectors do not have their checksum")
				}
			}
			return nil
		}
		for i, c := range b {
			if no == 0 && (i == 106 || i == 107 || i == 112) {
				continue
			}
			sum = (sum>>1 | sum<<31) + uint32(c)
		}
	}
	return nil
}

// loadUpper reads the up-case table, by which names are compared: its entry in the root directory has its checksum at
// 4, first cluster at 20, length at 24. It gives the upper case of each UTF-16 unit from 0 on; 0xffff stands before a number of
// units that have none.
func (f *FS) loadUpper() error {
	le := binary.LittleEndian
	var at Entry
	var want uint32
	err := f.records(Entry{Dir: true}, func(b []byte) error {
		if b[0] != exUpper {
			return nil
		}
		want = le.Uint32(b[4:])
		at = Entry{first: le.Uint32(b[20:])}
		if n := le.Uint64(b[24:]); n > 0 && n <= maxUpper && n%2 == 0 {
			at.Size, at.written = int64(n), int64(n)
		}
		return errFound
	})
	if err != errFound {
		if err == nil {
			err = damaged("there is none")
		}
		return err
	}
	if at.Size == 0 {
		return damaged("its length is no length")
	}
	file, err := f.file(at)
	if err != nil {
		return err
	}
	b := make([]byte, at.Size)
	if _, err := file.ReadAt(b, 0); err != nil && err != io.EOF {
		return err
	}
	sum := uint32(0)
	for _, c := range b {
		sum = (sum>>1 | sum<<31) + uint32(c)
	}
	if sum != want {
		return damaged("it does not have its checksum")
	}
	f.upper = make([]uint16, 1<<16)
	for i := range f.upper {
		f.upper[i] = uint16(i)
	}
	for i := 0; len(b) > 0; b = b[2:] {
		u := le.Uint16(b)
		if u == 0xffff && len(b) >= 4 {
			b = b[2:]
			i += int(le.Uint16(b))
			continue
		}
		if i >= len(f.upper) {
			return damaged("it is longer than there are units")
		}
		f.upper[i] = u
		i++
	}
	return nil
}

// eachSet calls do for each entry of an exFAT folder. The entries of a file stand one after the other: attributes 4, their
// number without the first 1, their checksum 2; then flags 1, length of the name 3, its hash 4, bytes that were ever written 8, first
// cluster 20, size 24; then the name. A set that is not whole is passed over and makes an error at the end.
func (f *FS) eachSet(dir Entry, do func(Entry) error) error {
	var set []byte
	var bad error
	broken := func(err error) {
		if bad == nil {
			bad = err
		}
		set = set[:0]
	}
	err := f.records(dir, func(b []byte) error {
		begins := b[0] == exFile
		if !begins && len(set) == 0 {
			return nil // deleted, or of the file system itself
		}
		if len(set) > 0 && (begins || b[0]&exSecondary != exSecondary) {
			broken(damaged("a file with %d of %d entries", len(set)/32, 1+int(set[1])))
			if !begins {
				return nil
			}
		}
		if set = append(set, b...); len(set) < 32*(1+int(set[1])) {
			return nil
		}
		e, ok, err := f.entryOf(set)
		set = set[:0]
		if err != nil {
			broken(err)
		}
		if err != nil || !ok {
			return nil
		}
		return do(e)
	})
	if err == nil && len(set) > 0 {
		broken(damaged("a file with %d of %d entries", len(set)/32, 1+int(set[1])))
	}
	if err == nil {
		err = bad
	}
	return err
}

// entryOf makes an Entry of a set; not ok where no honest system writes such a name.
func (f *FS) entryOf(set []byte) (e Entry, ok bool, err error) {
	le := binary.LittleEndian
	if n := len(set) / 32; n < 3 || n > 19 || set[32] != exStream {
		return e, false, damaged("a file with %d entries, the second of type %#x", n, set[min(32, len(set)-1)])
	}
	sum := uint16(0)
	for i, c := range set {
		if i != 2 && i != 3 {
			sum = (sum>>1 | sum<<15) + uint16(c)
		}
	}
	if sum != le.Uint16(set[2:]) {
		return e, false, damaged("the entries of a file do not have their checksum")
	}
	stream := set[32:64]
	var units []uint16
	for b := set[64:]; len(b) > 0 && b[0] == exName; b = b[32:] {
		for i := 2; i < 32; i += 2 {
			units = append(units, le.Uint16(b[i:]))
		}
	}
	n := int(stream[3])
	if n == 0 || n > len(units) {
		return e, false, damaged("a name of %d units in %d", n, len(units))
	}
	units = units[:n]
	hash := uint16(0)
	for _, u := range units {
		u = f.upper[u]
		hash = (hash>>1 | hash<<15) + u&0xff
		hash = (hash>>1 | hash<<15) + u>>8
	}
	e.Name = string(utf16.Decode(units))
	length, written := le.Uint64(stream[24:]), le.Uint64(stream[8:])
	switch {
	case hash != le.Uint16(stream[4:]):
		return e, false, damaged("a name that does not have its hash")
	case length > uint64(f.clusters)*uint64(f.cluster) || written > length || length > 0 && stream[1]&exAllocated == 0:
		return e, false, damaged("a file of %d bytes, %d written, on %d clusters", length, written, f.clusters)
	}
	e.Dir = le.Uint16(set[4:])&attrDir != 0
	e.first, e.length, e.written, e.noChain = le.Uint32(stream[20:]), int64(length), int64(written), stream[1]&exNoChain != 0
	if !e.Dir {
		e.Size = e.length
	} else if !f.valid(e.first) || e.first == f.root || length == 0 || length%uint64(f.cluster) != 0 {
		return e, false, damaged("a folder of %d bytes in cluster %d", length, e.first)
	}
	return e, honest(e.Name), nil
}

// same compares names as the file system does.
func (f *FS) same(a, b string) bool {
	ua, ub := utf16.Encode([]rune(a)), utf16.Encode([]rune(b))
	if len(ua) != len(ub) {
		return false
	}
	for i := range ua {
		if f.upper[ua[i]] != f.upper[ub[i]] {
			return false
		}
	}
	return true
}
