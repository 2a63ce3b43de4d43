package squashfs

import (
	"encoding/binary"
	"fmt"
	"io/fs"
)

// Type is the kind of a directory entry, with the numbers of the format.
type Type uint8

// The types of a directory entry.
const (
	Directory Type = 1 + iota
	Regular
	Symlink
	BlockDevice
	CharDevice
	FIFO
	Socket
)

// String names the type in the words of find(1).
func (t Type) String() string {
	names := [...]string{"unknown", "directory", "regular file", "symbolic link", "block device", "character device", "FIFO", "socket"}
	if int(t) < len(names) {
		return names[t]
	}
	return names[0]
}

// minInodeSize is the length of the shortest inode, that of a FIFO or socket.
const minInodeSize = 20

// noFragment is the fragment number of a file whose tail has a block of its own.
const noFragment = ^uint32(0)

// inode is the part of an inode that is used.
type inode struct {
	typ  Type
	mode fs.FileMode // permission, set-id and sticky bits; not the type
	size int64       // of a regular file, of the target of a symbolic link; else 0

	// Regular files. The block list follows the inode in the table.
	start      int64 // offset of the first data block
	fragment   uint32
	fragOffset uint32
	blocks     int64 // entries in the block list

	// Directories.
	dirBlock  uint32 // offset of the metadata block in the directory table
	dirOffset uint16
	dirSize   int64 // bytes of the listing
}

// readInode reads the inode at ref. For a regular file m stands at the start
// of the block list afterwards.
func (f *FS) readInode(m *metaReader, ref uint64) (*inode, error) {
	if err := m.seek(ref>>16, uint16(ref)); err != nil {
		return nil, err
	}
	// Type, mode, uid, gid, mtime and number: 16 bytes in every inode.
	var b [40]byte
	if err := m.read(b[:16]); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	kind, mode := le.Uint16(b[:]), le.Uint16(b[2:])
	if number := le.Uint32(b[12:]); number == 0 || number > f.sb.inodes {
		return nil, corrupt("inode number %d of %d", number, f.sb.inodes)
	}
	if kind < 1 || kind > 14 {
		return nil, corrupt("inode of type %d", kind)
	}
	ino := &inode{typ: Type((kind-1)%7 + 1), mode: fs.FileMode(mode & 0o777)}
	for _, special := range []struct {
		bit  uint16
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if mode&special.bit != 0 {
			ino.mode |= special.mode
		}
	}

	switch kind {
	case 1: // directory: block 4, links 4, size 2, offset 2, parent 4
		if err := m.read(b[:16]); err != nil {
			return nil, err
		}
		ino.dirBlock, ino.dirSize, ino.dirOffset = le.Uint32(b[:]), int64(le.Uint16(b[8:])), le.Uint16(b[10:])
	case 8: // extended: links 4, size 4, block 4, parent 4, index count 2, offset 2, xattr 4
		if err := m.read(b[:24]); err != nil {
			return nil, err
		}
		ino.dirSize, ino.dirBlock, ino.dirOffset = int64(le.Uint32(b[4:])), le.Uint32(b[8:]), le.Uint16(b[18:])
	case 2: // regular file: start 4, fragment 4, offset 4, size 4
		if err := m.read(b[:16]); err != nil {
			return nil, err
		}
		ino.start, ino.fragment, ino.fragOffset = int64(le.Uint32(b[:])), le.Uint32(b[4:]), le.Uint32(b[8:])
		ino.size = int64(le.Uint32(b[12:]))
	case 9: // extended: start 8, size 8, sparse 8, links 4, fragment 4, offset 4, xattr 4
		if err := m.read(b[:40]); err != nil {
			return nil, err
		}
		start, size := le.Uint64(b[:]), le.Uint64(b[8:])
		if start > uint64(f.sb.used) || size > 1<<62 {
			return nil, corrupt("inode of a file of %d bytes with data at %d", size, start)
		}
		ino.start, ino.size = int64(start), int64(size)
		ino.fragment, ino.fragOffset = le.Uint32(b[28:]), le.Uint32(b[32:])
	case 3, 10: // symbolic link: links 4, size 4, target
		if err := m.read(b[:8]); err != nil {
			return nil, err
		}
		ino.size = int64(le.Uint32(b[4:]))
		if ino.size > maxPathLen {
			return nil, corrupt("symbolic link of %d bytes", ino.size)
		}
	}

	switch ino.typ {
	case Directory:
		// The listing's size counts three bytes for "." and "..", which
		// are not in it.
		if ino.dirSize < 3 || ino.dirSize > maxDirSize {
			return nil, corrupt("inode of a directory of %d bytes", ino.dirSize)
		}
		ino.dirSize -= 3
	case Regular:
		if err := f.checkFile(ino); err != nil {
			return nil, err
		}
	}
	return ino, nil
}

// checkFile computes the length of the block list of a file and refuses what
// the image cannot hold.
func (f *FS) checkFile(ino *inode) error {
	ino.blocks = ino.size / f.sb.blockSize
	tail := ino.size % f.sb.blockSize
	if ino.fragment == noFragment {
		if tail > 0 {
			ino.blocks++
		}
	} else {
		if ino.fragment >= f.sb.fragments {
			return corrupt("inode of a file with fragment %d of %d", ino.fragment, f.sb.fragments)
		}
		if tail == 0 || int64(ino.fragOffset)+tail > f.sb.blockSize {
			return corrupt("inode of a file of %d bytes with %d at %d in a fragment", ino.size, tail, ino.fragOffset)
		}
	}
	if ino.blocks > maxUnpacked(f.sb.dirTable-f.sb.inodeTable)/4 {
		return corrupt("inode of a file of %d bytes: block list does not fit the inode table", ino.size)
	}
	if ino.blocks > 0 && (ino.start < superblockSize && ino.start != 0 || ino.start > f.sb.inodeTable) {
		return corrupt("inode of a file with data at %d", ino.start)
	}
	return nil
}

// lookup walks from the root to name. It returns the inode and a reader that
// stands behind it in the inode table.
func (f *FS) lookup(name string) (*inode, *metaReader, error) {
	parts, err := splitPath(name)
	if err != nil {
		return nil, nil, err
	}
	loads := maxLoads
	m := f.inodeReader(&loads)
	ino, err := f.readInode(m, f.sb.root)
	if err != nil {
		return nil, nil, fmt.Errorf("root directory: %w", err)
	}
	if ino.typ != Directory {
		return nil, nil, corrupt("root is a %s", ino.typ)
	}
	for _, part := range parts {
		if ino.typ != Directory {
			return nil, nil, fmt.Errorf("%s is below a %s: %w", part, ino.typ, fs.ErrNotExist)
		}
		var found dirent
		err := f.scan(ino, &loads, func(e dirent) bool {
			if string(e.name) != part {
				return true
			}
			found = e
			return false
		})
		if err != nil {
			return nil, nil, err
		}
		if found.name == nil {
			return nil, nil, fs.ErrNotExist
		}
		if ino, err = f.readInode(m, found.ref); err != nil {
			return nil, nil, err
		}
		if ino.typ != found.typ {
			return nil, nil, corrupt("%s in the directory, %s in the inode", found.typ, ino.typ)
		}
	}
	m.loads = nil // the block list is as long as the file's size says
	return ino, m, nil
}
