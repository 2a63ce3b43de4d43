package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// File is a block device, a regular file or a raw flash behind Linux's MTD (/dev/mtd0) as a [Device]. It is safe for
// concurrent use.
//
// On a flash WriteAt erases the blocks that it touches and writes them anew; after a power cut all of them may hold anything.
// One byte alone is written where it stands, which can make it zero on NOR flash. Flush has nothing to do there.
type File struct {
	f     *os.File
	size  int64
	block bool
	erase int64 // size of a block of a flash; 0: it is none
	page  int64 // of a flash, what is written as one

	mu     sync.Mutex
	failed error // of the first flush that failed
}

// NewFile takes over f, which must be a block device, a raw flash or a regular file; f is closed by Close.
// The size is taken once: a file that grows later keeps the size it had. On an error f stays the caller's.
func NewFile(f *os.File) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &File{f: f, block: st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0}
	if flash && st.Mode()&os.ModeCharDevice != 0 {
		var info [8]uint32
		d.mtd(unix.MEMGETINFO, &info)
		d.erase, d.page = int64(info[3]), int64(info[4])
	}
	if !d.block && (!flash || d.erase == 0) && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is neither a block device nor a file", f.Name())
	}
	// The end of a block device is its size, and asking for it needs no ioctl and no privilege.
	if d.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	return d, nil
}

// Open opens an existing block device or file, read-only or for reading and writing.
func Open(path string, write bool) (*File, error) {
	mode := os.O_RDONLY
	if write {
		mode = os.O_RDWR
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	d, err := NewFile(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

// OpenWait opens path as [Open] does and waits up to timeout for it to come up: a device's node is there
// before the device answers (ENXIO), and a partition's node comes after its disk's (ENOENT).
func OpenWait(path string, write bool, timeout time.Duration) (*File, error) {
	// Not every ENXIO ends with an event, so the waits between two attempts are short even without one.
	const retry = 10 * time.Millisecond
	deadline := time.Now().Add(timeout)
	d, err := Open(path, write)
	if err == nil || !comingUp(err) || timeout <= 0 {
		return d, err
	}
	w, werr := Watch()
	if werr == nil {
		defer w.Close()
	}
	for {
		d, err := Open(path, write)
		if err == nil || !comingUp(err) {
			return d, err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil, fmt.Errorf("waited %v: %w", timeout, err)
		}
		pause := min(retry, left)
		if werr != nil {
			time.Sleep(pause)
		} else if _, err := w.Wait(pause); err != nil {
			werr = err
		}
	}
}

func comingUp(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}

// File returns the open file, to be handed to a worker. It stays d's.
func (d *File) File() *os.File { return d.f }

// Size is the size in bytes when d was opened.
func (d *File) Size() int64 { return d.size }

// Block says whether d is a block device.
func (d *File) Block() bool { return d.block }

// Close does not flush.
func (d *File) Close() error { return d.f.Close() }

func (d *File) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(d.f, 0, d.size).ReadAt(p, off)
}

func (d *File) WriteAt(p []byte, off int64) (int, error) {
	if err := within(off, len(p), d.size); err != nil {
		return 0, fmt.Errorf("%s: %w", d.f.Name(), err)
	}
	if flash && d.erase > 0 && len(p) > 1 {
		return d.rewrite(p, off)
	}
	// os.File goes on after a short write and returns an error where less than all of p could be written.
	return d.f.WriteAt(p, off)
}

// Flush is fsync. The kernel reports a failed write-back once, then takes the lost pages for clean and
// says yes to the next fsync; so once a flush has failed, all later ones fail too. Who wants to go on
// opens the device anew and writes again.
func (d *File) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if flash && d.erase > 0 {
		return nil
	}
	if d.failed != nil {
		return fmt.Errorf("an earlier flush failed: %w", d.failed)
	}
	d.failed = d.f.Sync()
	return d.failed
}

// DropCache flushes, then makes the kernel forget what it holds of d in memory, so that the next read
// comes from the medium. On a block device this is BLKFLSBUF, which needs CAP_SYS_ADMIN.
func (d *File) DropCache() error {
	if err := d.Flush(); err != nil {
		return err
	}
	fd := int(d.f.Fd())
	if d.block {
		if err := unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0); err != nil {
			return fmt.Errorf("drop the cache of %s: %w", d.f.Name(), err)
		}
		return nil
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop the cache of %s: %w", d.f.Name(), err)
	}
	return nil
}

// Discard tells the medium that the n bytes at off are not needed any more; what they read as afterwards
// is undefined. off and n must be multiples of the sector size. Where discard is not supported,
// errors.Is(err, errors.ErrUnsupported).
func (d *File) Discard(off, n int64) error {
	if off < 0 || n < 0 || off > d.size || n > d.size-off {
		return fmt.Errorf("discard %d bytes at %d of %s: %w", n, off, d.f.Name(), ErrBounds)
	}
	if n == 0 {
		return nil
	}
	var err error
	if d.block {
		err = discardBlocks(int(d.f.Fd()), uint64(off), uint64(n))
	} else {
		err = unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	if err != nil {
		return fmt.Errorf("discard %d bytes at %d of %s: %w", n, off, d.f.Name(), err)
	}
	return nil
}

func discardBlocks(fd int, off, n uint64) error {
	span := [2]uint64{off, n}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}

// readSome fills buf as far as f goes; the end of f is no error.
func readSome(f io.Reader, buf []byte) (int, error) {
	n, err := io.ReadFull(f, buf)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}
