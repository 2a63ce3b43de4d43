package squashfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"strings"
)

// Entry is one name in a directory.
type Entry struct {
	Name string
	Size int64       // bytes of a regular file or of a symbolic link's target, else 0
	Mode fs.FileMode // permission, set-id and sticky bits; the type is in Type
	Type Type
}

// maxDirSize bounds the listing of a directory in bytes: every entry with the
// longest name and a header of its own.
const maxDirSize = maxEntries * (12 + 8 + maxNameLen)

// ReadDir lists the directory name in the order of the image, which is that
// of the bytes of the names. "" and "." are the root; elements are parted by
// slashes. A directory of more than 65536 entries is refused.
func (f *FS) ReadDir(name string) ([]Entry, error) {
	list, err := f.readDir(name)
	if err != nil {
		return nil, &fs.PathError{Op: "read directory", Path: name, Err: err}
	}
	return list, nil
}

func (f *FS) readDir(name string) ([]Entry, error) {
	ino, _, err := f.lookup(name)
	if err != nil {
		return nil, err
	}
	if ino.typ != Directory {
		return nil, fmt.Errorf("is a %s, not a directory", ino.typ)
	}
	loads := maxLoads
	inodes := f.inodeReader(&loads)
	var list []Entry
	var inner error
	err = f.scan(ino, &loads, func(d dirent) bool {
		var child *inode
		if child, inner = f.readInode(inodes, d.ref); inner != nil {
			inner = fmt.Errorf("%q: %w", d.name, inner)
			return false
		}
		if child.typ != d.typ {
			inner = corrupt("%q: %s in the directory, %s in the inode", d.name, d.typ, child.typ)
			return false
		}
		list = append(list, Entry{Name: string(d.name), Size: child.size, Mode: child.mode, Type: child.typ})
		return true
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return nil, err
	}
	return list, nil
}

// dirent is an entry of a listing; name is valid until the next one is read.
type dirent struct {
	name []byte
	ref  uint64 // of the inode
	typ  Type
}

// scan calls visit for each entry of the directory until it returns false.
//
// A listing is a sequence of groups: a header of 12 bytes (entries - 1,
// metadata block of their inodes, base of their inode numbers) and up to 256
// entries of 8 bytes (offset in the metadata block, inode number relative to
// the base, type, length of the name - 1), each followed by its name. The
// names ascend strictly, which makes them unique.
func (f *FS) scan(dir *inode, loads *int, visit func(dirent) bool) error {
	left := dir.dirSize
	if left == 0 {
		return nil
	}
	m := f.dirReader(loads)
	if err := m.seek(uint64(dir.dirBlock), dir.dirOffset); err != nil {
		return err
	}
	var head [12]byte
	var names [2][maxNameLen]byte
	var last []byte
	le := binary.LittleEndian
	for n := 0; left > 0; {
		if left -= int64(len(head)); left < 0 {
			return corrupt("directory: listing ends in a header")
		}
		if err := m.read(head[:]); err != nil {
			return err
		}
		count, block := le.Uint32(head[:]), uint64(le.Uint32(head[4:]))
		if count >= 256 {
			return corrupt("directory: group of %d entries", int64(count)+1)
		}
		for range count + 1 {
			if n++; n > maxEntries {
				return corrupt("directory: more than %d entries", maxEntries)
			}
			if left -= 8; left < 0 {
				return corrupt("directory: listing ends in an entry")
			}
			if err := m.read(head[:8]); err != nil {
				return err
			}
			length := int64(le.Uint16(head[6:])) + 1
			if left -= length; left < 0 || length > maxNameLen {
				return corrupt("directory: name of %d bytes", length)
			}
			name := names[n%2][:length]
			if err := m.read(name); err != nil {
				return err
			}
			if bytes.IndexByte(name, 0) >= 0 || bytes.IndexByte(name, '/') >= 0 || string(name) == "." || string(name) == ".." {
				return corrupt("directory: name %q", name)
			}
			if bytes.Compare(last, name) >= 0 {
				return corrupt("directory: %q after %q", name, last)
			}
			last = name
			typ := le.Uint16(head[4:])
			if typ < uint16(Directory) || typ > uint16(Socket) {
				return corrupt("directory: %q of type %d", name, typ)
			}
			if !visit(dirent{name: name, ref: block<<16 | uint64(le.Uint16(head[:])), typ: Type(typ)}) {
				return nil
			}
		}
	}
	return nil
}

// splitPath parts name into its elements; none for the root.
func splitPath(name string) ([]string, error) {
	if len(name) > maxPathLen {
		return nil, fmt.Errorf("path of %d bytes: %w", len(name), fs.ErrInvalid)
	}
	if name == "" || name == "." {
		return nil, nil
	}
	parts := strings.Split(name, "/")
	if len(parts) > maxDepth {
		return nil, fmt.Errorf("path of %d elements: %w", len(parts), fs.ErrInvalid)
	}
	for _, p := range parts {
		if p == "" || p == "." || p == ".." {
			return nil, fmt.Errorf("path element %q: %w", p, fs.ErrInvalid)
		}
	}
	return parts, nil
}
