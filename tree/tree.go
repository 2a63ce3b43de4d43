// Package tree makes file trees of tar archives, and the other way round, with all that a file has beside its bytes: owner,
// mode, times, hard links, holes, file capabilities, ACLs, SELinux labels and other extended attributes.
//
// An archive may be hostile. Nothing outside the folder is touched, whatever it says: each path is resolved by the kernel
// below that folder and through no symbolic link, and what it may cost is bounded.
package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"

	"lifeboat/verify"
)

// Limits of an archive.
const (
	MaxEntries = 1 << 16 // of any kind
	maxPath    = 4095    // bytes of a path in the archive
	maxName    = 255     // bytes between two slashes
	maxXattrs  = 64      // of one file; each is as large as the header may be (1 MiB) and the file system takes
)

// Options say what an archive may bring.
type Options struct {
	Devices bool  // device nodes
	Setuid  bool  // programs with more rights than who starts them: set-user-ID, set-group-ID, file capabilities
	Max     int64 // bytes of all files together, holes included
}

// Result is what an archive was.
type Result struct {
	Entries int   // of the archive
	Bytes   int64 // of all files, holes included
}

// Extract fills the folder root, which is empty, with what the tar archive r holds: ustar, GNU or PAX. It needs the rights of
// root (owners, modes, device nodes, labels). Owners are numbers; names in ACLs are those of the tree's own etc/passwd and
// etc/group. A later entry takes the place of an
// earlier one of the same name, as tar has it.
//
// Errors are verify.Refusals: what is no archive 20, what the options or the limits do not allow 31, the medium 40. When nil
// is returned, all is durable. After an error or a power cut there is anything in root, and nothing outside it.
func Extract(root string, r io.Reader, o Options) (Result, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, failed("open the folder", root, err)
	}
	x := &extractor{root: root, fd: fd, Options: o, parent: -1, buffer: make([]byte, 128<<10)}
	defer unix.Close(fd)
	err = x.all(tar.NewReader(r))
	if e := x.leave(); err == nil {
		err = e
	}
	if err == nil {
		err = x.finish()
	}
	if err == nil {
		err = x.sync()
	}
	return x.Result, err
}

// extractor is where an archive has come to. One folder is open at a time; its times are set when it is left, to what they
// were when it was entered.
type extractor struct {
	Options
	Result
	root string
	fd   int // of root

	parent int    // the folder that is open, -1: none
	dir    string // its path in the archive
	times  [2]unix.Timespec
	buffer []byte
	later  []label
}

func (x *extractor) all(t *tar.Reader) error {
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return broken(err)
		}
		if x.Entries++; x.Entries > MaxEntries {
			return refuse("more than 65536 entries")
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name, err := clean(h.Name)
		if err != nil {
			return err
		}
		if err := x.entry(name, h, t); err != nil {
			return err
		}
	}
}

// entry makes one file, of any kind.
func (x *extractor) entry(name string, h *tar.Header, content io.Reader) error {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return malformed("an owner of", name, errors.New("out of range"))
	}
	attributes, err := x.attributes(name, h)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return x.folder(name, h, attributes)
	}
	if name == "" {
		return malformed("the top folder", "", errors.New("is something else"))
	}
	dir, base := path.Split(name)
	if err := x.enter(strings.TrimSuffix(dir, "/")); err != nil {
		return err
	}
	mode := uint32(h.Mode) & 0o7777
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return x.file(name, base, h, content, attributes)
	case tar.TypeLink:
		return x.link(name, base, h)
	case tar.TypeSymlink:
		if n := len(h.Linkname); n == 0 || n > maxPath {
			return malformed("where", name, errors.New("points to"))
		}
		err = x.fresh(base, func() error { return unix.Symlinkat(h.Linkname, x.parent, base) })
		mode = 0
	case tar.TypeFifo:
		err = x.fresh(base, func() error { return unix.Mknodat(x.parent, base, unix.S_IFIFO|0o600, 0) })
	case tar.TypeChar, tar.TypeBlock:
		if !x.Devices {
			return refuse(name + " is a device node, which the slot does not allow (allow-devices=)")
		}
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 {
			return malformed("the device number of", name, errors.New("out of range"))
		}
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		err = x.fresh(base, func() error {
			return unix.Mknodat(x.parent, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
		})
	default:
		return refuse(name + " is of a kind that is not known")
	}
	if err == nil {
		err = unix.Fchownat(x.parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil && h.Typeflag != tar.TypeSymlink {
		err = unix.Fchmodat(x.parent, base, mode, 0)
	}
	for _, a := range attributes {
		if err == nil {
			err = xattr.LSet(path.Join(x.root, name), a.name, a.value)
		}
	}
	if err == nil {
		times := stamps(h)
		err = unix.UtimesNanoAt(x.parent, base, times[:], unix.AT_SYMLINK_NOFOLLOW)
	}
	return failed("make", name, err)
}

// fresh makes a file, in the place of one that the archive had before.
func (x *extractor) fresh(base string, make func() error) error {
	err := make()
	if err == unix.EEXIST {
		if err = unix.Unlinkat(x.parent, base, 0); err == nil {
			err = make()
		}
	}
	return err
}

func (x *extractor) folder(name string, h *tar.Header, attributes []attribute) error {
	if err := x.leave(); err != nil { // its times may be those of this one
		return err
	}
	if name != "" {
		dir, base := path.Split(name)
		if err := x.enter(strings.TrimSuffix(dir, "/")); err != nil {
			return err
		}
		if err := unix.Mkdirat(x.parent, base, 0o700); err != nil && err != unix.EEXIST {
			return failed("make", name, err)
		}
	}
	fd, err := x.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return failed("make", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return failed("make", name, dress(f, h, attributes))
}

func (x *extractor) file(name, base string, h *tar.Header, content io.Reader, attributes []attribute) error {
	if h.Size < 0 || h.Size > x.Max-x.Bytes {
		return refuse(name + " is more than there is room for")
	}
	x.Bytes += h.Size
	var fd int
	err := x.fresh(base, func() (err error) {
		fd, err = unix.Openat(x.parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return failed("make", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := x.fill(f, h, content); err != nil {
		return err
	}
	return failed("make", name, dress(f, h, attributes))
}

// fill writes the content of a file; where the archive has holes, the file has them too.
func (x *extractor) fill(f *os.File, h *tar.Header, content io.Reader) error {
	sparse := h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.size"] != ""
	for at := int64(0); at < h.Size; {
		b := x.buffer[:min(int64(len(x.buffer)), h.Size-at)]
		if _, err := io.ReadFull(content, b); err != nil {
			return broken(err)
		}
		for len(b) > 0 {
			n := len(b)
			if sparse {
				n = min(n, 4096)
			}
			if !sparse || !zero(b[:n]) {
				if _, err := f.WriteAt(b[:n], at); err != nil {
					return failed("write", h.Name, err)
				}
			}
			at, b = at+int64(n), b[n:]
		}
	}
	if sparse {
		return failed("write", h.Name, f.Truncate(h.Size))
	}
	return nil
}

func zero(b []byte) bool { return len(b) == 0 || b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:]) }

// dress gives an open file or folder what it has beside its bytes. Whoever changes the owner takes a mode's set-ID bits and the
// capabilities away, so that comes first; the times come last.
func dress(f *os.File, h *tar.Header, attributes []attribute) error {
	fd := int(f.Fd())
	err := unix.Fchown(fd, h.Uid, h.Gid)
	if err == nil {
		err = unix.Fchmod(fd, uint32(h.Mode)&0o7777)
	}
	for _, a := range attributes {
		if err == nil {
			err = xattr.FSet(f, a.name, a.value)
		}
	}
	if err == nil {
		err = futimens(fd, stamps(h))
	}
	return err
}

// link makes another name of a file that the archive has had.
func (x *extractor) link(name, base string, h *tar.Header) error {
	to, err := clean(h.Linkname)
	if err != nil {
		return err
	}
	dir, last := path.Split(to)
	if last == "" || to == name {
		return malformed("what", name, errors.New("is another name of"))
	}
	from, err := x.open(strings.TrimSuffix(dir, "/"), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return failed("link", name, err)
	}
	defer unix.Close(from)
	return failed("link", name, x.fresh(base, func() error { return unix.Linkat(from, last, x.parent, base, 0) }))
}

// open opens what the archive calls name, inside root and through no symbolic link.
func (x *extractor) open(name string, flags uint64) (int, error) {
	if name == "" {
		name = "."
	}
	return unix.Openat2(x.fd, name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}

// enter makes dir the folder that is open. Where the archive has not had it, it is made as tar makes it.
func (x *extractor) enter(dir string) error {
	if x.parent >= 0 && x.dir == dir {
		return nil
	}
	if err := x.leave(); err != nil {
		return err
	}
	fd, err := x.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == unix.ENOENT && dir != "" {
		up, base := path.Split(dir)
		if err := x.enter(strings.TrimSuffix(up, "/")); err != nil {
			return err
		}
		if err := unix.Mkdirat(x.parent, base, 0o755); err != nil {
			return failed("make", dir, err)
		}
		if err := x.leave(); err != nil {
			return err
		}
		fd, err = x.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	}
	if err != nil {
		return failed("open", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return failed("open", dir, err)
	}
	x.parent, x.dir, x.times = fd, dir, [2]unix.Timespec{st.Atim, st.Mtim}
	return nil
}

// leave closes the folder that is open.
func (x *extractor) leave() error {
	if x.parent < 0 {
		return nil
	}
	err := futimens(x.parent, x.times)
	unix.Close(x.parent)
	x.parent = -1
	return failed("make", x.dir, err)
}

func (x *extractor) sync() error {
	fd, err := x.open("", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return failed("flush", x.root, err)
	}
	defer unix.Close(fd)
	return failed("flush", x.root, unix.Syncfs(fd))
}

// clean returns a path of the archive without what means nothing; "" is the top folder.
func clean(name string) (string, error) {
	if len(name) > maxPath {
		return "", refuse("a path of more than 4095 bytes")
	}
	if strings.HasPrefix(name, "/") {
		return "", refuse("an absolute path: " + name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", refuse("a path that leaves the folder: " + name)
		}
		if len(part) > maxName {
			return "", refuse("a name of more than 255 bytes")
		}
	}
	if name = path.Clean(name); name == "." {
		name = ""
	}
	return name, nil
}

func stamps(h *tar.Header) [2]unix.Timespec {
	at := h.AccessTime
	if at.IsZero() {
		at = h.ModTime
	}
	return [2]unix.Timespec{stamp(at), stamp(h.ModTime)}
}

// stamp is a time as far as file systems know it: the 32 bits and two more of ext4.
func stamp(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: max(-1<<31, min(t.Unix(), 1<<34-1<<31-1)), Nsec: int64(t.Nanosecond())}
}

func futimens(fd int, times [2]unix.Timespec) error {
	return unix.UtimesNanoAt(fd, "", times[:], unix.AT_EMPTY_PATH)
}

func refuse(why string) error {
	return verify.Refuse(verify.Policy, "the archive has %w", errors.New(why))
}

func malformed(what, name string, err error) error {
	return verify.Refuse(verify.Malformed, "%s %s: %w", what, name, err)
}

// broken is an error of reading the archive: its own (a refusal, or of the medium), or that it is none.
func broken(err error) error {
	var r *verify.Refusal
	if errors.As(err, &r) {
		return err
	}
	return verify.Refuse(verify.Malformed, "tar archive: %w", err)
}

func failed(doing, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, fs.ErrNotExist):
		return refuse("a path through a symbolic link, or to what is not there: " + name)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY):
		return malformed(doing, name, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return refuse("more files than the file system has room for")
	}
	return verify.Refuse(verify.IO, "%s %s: %w", doing, name, err)
}
