package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Entry is a file or a folder in a folder.
type Entry struct {
	Name string // the long name where there is one; valid UTF-8 without control characters and slashes
	Size int64  // bytes; 0 for folders
	Dir  bool

	first uint32 // cluster

	// exFAT
	length, written int64 // bytes of its clusters that are in use, and that were ever written
	noChain         bool  // its clusters follow each other
}

// Attributes, byte 11 of a directory entry; exFAT's, at 4 of the first one, has the same bit for a folder.
const (
	attrVolume = 0x08
	attrDir    = 0x10
	attrLong   = 0x0f
)

// ReadDir lists the folder path ("" or "/" is the root): in the order of the medium, without "." and "..",
// and without entries whose names no honest system writes (control characters, slashes, text direction
// marks). Of a folder with more than 4096 entries it returns the first 4096 and ErrTooMany; see [FS.Each]. With any other
// error it returns what is sound of the folder all the same.
func (f *FS) ReadDir(path string) ([]Entry, error) {
	var entries []Entry
	err := f.Each(path, func(e Entry) error {
		if len(entries) == maxListed {
			return ErrTooMany
		}
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

// Each calls do for each entry of the folder path, as ReadDir lists them but without its limit, and ends
// with the first error that do returns.
func (f *FS) Each(path string, do func(Entry) error) error {
	dir, err := f.find(path)
	if err != nil {
		return err
	}
	if !dir.Dir {
		return fmt.Errorf("read folder %s: is a file", path)
	}
	if err := f.each(dir, do); err != nil {
		return fmt.Errorf("read folder %s: %w", path, err)
	}
	return nil
}

// Open opens the file path, its elements separated by slashes, case ignored (exFAT: as its up-case table says). Of several
// entries with one name, it is the first on the medium. errors.Is(err, fs.ErrNotExist) where there is none.
// The file's whole chain of clusters is followed here, so that a later ReadAt fails only where the medium does.
func (f *FS) Open(path string) (*File, error) {
	e, err := f.find(path)
	if err != nil {
		return nil, err
	}
	if e.Dir {
		return nil, fmt.Errorf("open %s: is a folder", path)
	}
	file, err := f.file(e)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return file, nil
}

var errFound = errors.New("found")

func (f *FS) find(path string) (Entry, error) {
	at := Entry{Dir: true}
	depth := 0
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		if depth++; depth > maxDepth || !at.Dir {
			return Entry{}, fmt.Errorf("open %s: %w", path, fs.ErrNotExist)
		}
		var next Entry
		err := f.each(at, func(e Entry) error {
			if f.ex && f.same(e.Name, name) || !f.ex && strings.EqualFold(e.Name, name) {
				next = e
				return errFound
			}
			return nil
		})
		if err == nil {
			err = fs.ErrNotExist
		}
		if err != errFound {
			return Entry{}, fmt.Errorf("open %s: %w", path, err)
		}
		at = next
	}
	return at, nil
}

// contents returns the bytes of a folder, at most maxDirSize of them, and how many there are. dir with first 0 is the root.
func (f *FS) contents(dir Entry) (r io.ReaderAt, size int64, cut bool, err error) {
	first := dir.first
	if first == 0 {
		if f.bits != 32 {
			return io.NewSectionReader(f.r, f.rootAt, f.rootSize), f.rootSize, false, nil
		}
		first = f.root
	}
	most := uint32(maxDirSize / min(f.cluster, maxDirSize))
	var (
		extents []extent
		n       uint32
	)
	switch want := dir.length / f.cluster; {
	case want > int64(most):
		err = damaged("a directory of more than %d clusters", most)
	case want > 0:
		extents, n, err = f.clustersOf(dir, uint32(want))
	default:
		extents, n, err = f.chain(first, 0, most)
	}
	if err != nil {
		return nil, 0, false, err
	}
	size = int64(n) * f.cluster
	return &File{fs: f, size: size, written: size, extents: extents, n: n}, min(size, maxDirSize), size > maxDirSize, nil
}

// records calls do for each entry of a folder, of 32 bytes, up to the one that ends it.
func (f *FS) records(dir Entry, do func(b []byte) error) error {
	r, size, cut, err := f.contents(dir)
	if err != nil {
		return err
	}
	var buf [pageSize]byte
	for off := int64(0); off < size; off += pageSize {
		b := buf[:min(pageSize, size-off)]
		if err := readFull(r, b, off); err != nil {
			return err
		}
		for ; len(b) >= 32; b = b[32:] {
			if b[0] == 0 {
				return nil
			}
			if err := do(b[:32]); err != nil {
				return err
			}
		}
	}
	if cut {
		return damaged("a directory of more than %d bytes", maxDirSize)
	}
	return nil
}

// each calls do for each entry of dir. An entry is 32 bytes: short name 0 (11), attributes 11, case 12, first cluster
// 20 (high half) and 26 (low), size 28. The entries before it may hold its long name, last part
// first: number 0 (0x40 in the last part), attributes 0x0f, checksum of the short name 13, 13 UTF-16 units at 1, 14, 28.
func (f *FS) each(dir Entry, do func(Entry) error) error {
	if f.ex {
		return f.eachSet(dir, do)
	}
	var long longName
	return f.records(dir, func(b []byte) error {
		switch {
		case b[0] == 0xe5: // deleted
			long.clear()
			return nil
		case b[11]&0x3f == attrLong:
			long.add(b)
			return nil
		}
		name, ok := long.name(b)
		long.clear()
		if b[11]&attrVolume != 0 || !ok {
			return nil
		}
		e := Entry{Name: name, Dir: b[11]&attrDir != 0, first: uint32(binary.LittleEndian.Uint16(b[26:]))}
		if f.bits == 32 {
			e.first |= uint32(binary.LittleEndian.Uint16(b[20:])) << 16
		}
		if !e.Dir {
			e.Size = int64(binary.LittleEndian.Uint32(b[28:]))
		} else if e.first == 0 || e.first == f.root {
			return nil // a folder that claims to be the root: only ".." may
		}
		return do(e)
	})
}

// longName gathers the parts of a long name, which come last one first.
type longName struct {
	units [20 * 13]uint16
	next  int // number of the part that must come next, 0: complete
	parts int // 0: nothing gathered
	sum   byte
}

func (l *longName) clear() { l.parts = 0 }

func (l *longName) add(b []byte) {
	no := int(b[0] & 0x3f)
	if b[0]&0x40 != 0 {
		*l = longName{parts: no, next: no, sum: b[13]}
	}
	// Parts that belong to nothing are left by systems that know only short names: they are passed over.
	if no == 0 || no > 20 || l.parts == 0 || no != l.next || b[13] != l.sum {
		l.clear()
		return
	}
	l.next--
	units := l.units[13*(no-1):][:13]
	for i := range units {
		at := 1 + 2*i
		if i >= 11 {
			at = 28 + 2*(i-11)
		} else if i >= 5 {
			at = 14 + 2*(i-5)
		}
		units[i] = binary.LittleEndian.Uint16(b[at:])
	}
}

// name is the name of the short entry b: the long one that was gathered before it, if it is whole and
// bears the checksum of the short one. It is not ok where no honest system writes such a name.
func (l *longName) name(b []byte) (string, bool) {
	if l.parts == 0 || l.next != 0 || l.sum != checksum(b[:11]) {
		return shortName(b)
	}
	units := l.units[:13*l.parts]
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	if len(units) == 0 || len(units) > 255 {
		return "", false
	}
	name := string(utf16.Decode(units))
	return name, honest(name)
}

func checksum(short []byte) (sum byte) {
	for _, c := range short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// shortName makes "README.TXT" of "README  TXT". Characters beyond ASCII depend on a code page that the
// medium does not name: they become '_'.
func shortName(b []byte) (string, bool) {
	var out []byte
	part := func(field []byte, lower bool) {
		for _, c := range field {
			switch {
			case c >= 0x80 || c == 0x05: // 0x05 stands for 0xe5, which as a first byte would mean deleted
				c = '_'
			case lower && c >= 'A' && c <= 'Z':
				c += 'a' - 'A' // written by Windows NT and Linux for names that fit 8.3 but for their case
			}
			out = append(out, c)
		}
	}
	base, ext := trim(b[:8]), trim(b[8:11])
	part(base, b[12]&0x08 != 0)
	if len(ext) > 0 {
		out = append(out, '.')
		part(ext, b[12]&0x10 != 0)
	}
	name := string(out)
	return name, len(base) > 0 && honest(name)
}

func trim(field []byte) []byte {
	for len(field) > 0 && field[len(field)-1] == ' ' {
		field = field[:len(field)-1]
	}
	return field
}

// honest refuses names that could lead out of a folder, deceive a reader of the console, or that can't be
// written by Linux or Windows: control and direction characters, what FAT forbids, broken UTF-16.
func honest(name string) bool {
	if name == "" || name == "." || name == ".." {
		return false
	}
	for _, c := range name {
		switch {
		case c < 0x20, c >= 0x7f && c < 0xa0, c == utf8.RuneError, strings.ContainsRune(`"*/:<>?\|`, c),
			c >= 0x200b && c <= 0x200f, c >= 0x2028 && c <= 0x202e, c >= 0x2060 && c <= 0x206f,
			c >= 0xfff0 && c <= 0xffff, c == 0xfeff:
			return false
		}
	}
	return true
}
