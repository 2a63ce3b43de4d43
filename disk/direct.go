package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets, lengths and memory of O_DIRECT reads are multiples of align: enough for every medium with
// sectors of up to 4096 bytes.
const (
	align  = 4096
	bounce = 512 << 10
)

// Direct reads a file past the page cache, so that what it returns comes from the medium. Any offset and
// length may be asked for. It is safe for concurrent use; reads into memory and from offsets that happen
// to be aligned to 4096 bytes go there without a copy and in parallel, the others one at a time.
type Direct struct {
	f      *os.File
	direct bool

	mu  sync.Mutex
	buf []byte // bounce bytes, page-aligned; nil after Close
}

// OpenDirect opens path read-only with O_DIRECT, or without it where the file system refuses.
func OpenDirect(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return os.Open(path)
	}
	return f, err
}

// NewDirect reads f, past the page cache where f was opened with O_DIRECT and plainly where it was not.
// f stays the caller's.
func NewDirect(f *os.File) (*Direct, error) {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("flags of %s: %w", f.Name(), err)
	}
	d := &Direct{f: f, direct: flags&unix.O_DIRECT != 0}
	if !d.direct {
		return d, nil
	}
	if d.buf, err = unix.Mmap(-1, 0, bounce, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, fmt.Errorf("memory for reading %s: %w", f.Name(), err)
	}
	return d, nil
}

// Direct says whether the page cache is really passed by.
func (d *Direct) Direct() bool { return d.direct }

// Close gives the buffer back. It does not close the file.
func (d *Direct) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.buf == nil {
		return nil
	}
	err := unix.Munmap(d.buf)
	d.buf = nil
	return err
}

func (d *Direct) ReadAt(p []byte, off int64) (int, error) {
	if !d.direct || off < 0 || len(p) == 0 {
		return d.f.ReadAt(p, off)
	}
	done := 0
	if whole := len(p) &^ (align - 1); whole > 0 && off%align == 0 && uintptr(unsafe.Pointer(&p[0]))%align == 0 {
		n, err := d.pread(p[:whole], off)
		if err != nil || n < whole || whole == len(p) {
			return n, endOf(n, len(p), err)
		}
		done = n
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.buf == nil {
		return done, fmt.Errorf("read %s: %w", d.f.Name(), os.ErrClosed)
	}
	for done < len(p) {
		at := off + int64(done)
		from := at &^ (align - 1)
		skip := int(at - from)
		want := min((skip+len(p)-done+align-1)&^(align-1), len(d.buf))
		n, err := d.pread(d.buf[:want], from)
		if n > skip {
			done += copy(p[done:], d.buf[skip:n])
		}
		if done < len(p) && (err != nil || n < want) {
			return done, endOf(done, len(p), err)
		}
	}
	return done, nil
}

func endOf(n, want int, err error) error {
	if err == nil && n < want {
		return io.EOF
	}
	return err
}

// pread reads all of p, whose address and length are aligned as off is, or up to the end of the file. (os.File would
// go on after a short read, from an offset that is not aligned any more.)
func (d *Direct) pread(p []byte, off int64) (int, error) {
	defer runtime.KeepAlive(d.f)
	done := 0
	for done < len(p) {
		n, err := unix.Pread(int(d.f.Fd()), p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, &os.PathError{Op: "read", Path: d.f.Name(), Err: err}
		}
		done += n
		if n%align != 0 || n == 0 {
			break // the end: nothing else ends between two blocks
		}
	}
	return done, nil
}

// Aligned returns n bytes of memory that a file opened with O_DIRECT can be given.
func Aligned(n int) []byte {
	b := make([]byte, n+align)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (align - 1)
	return b[skip : skip+n : skip+n]
}
