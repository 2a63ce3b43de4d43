// Package disk is the only way this project touches block devices: opening them, learning their sizes,
// writing so that it lasts, finding disks and partitions.
//
// Everything above it works on a [Device], so that the same code runs on a real disk, on a file, in
// memory, and on the device of a crash test, which records every write and flush. [Partitions] reads
// partition tables of unproven origin and is meant for confined workers; [Blocks] and [Watcher] only
// repeat what the kernel says.
package disk

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
)

// ErrBounds is returned for a write that would go past the end of a device. Nothing of it was written.
var ErrBounds = errors.New("outside the device")

// Device is a piece of storage of a fixed size, addressed in bytes.
//
// ReadAt sees everything that was written before, flushed or not. WriteAt writes all of p or returns an
// error, and never changes the size. Until Flush returns nil, any subset of the writes since the last
// flush may survive a power cut, in any order, and a sector being written may hold anything; after it
// has returned nil, all of them survive. Size is in bytes.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Flush() error
	Size() int64
}

// Section returns the n bytes of d that start at off as a device of their own. Its Flush is d's Flush.
// What lies outside d is cut off, so that a section is never larger than what is there.
func Section(d Device, off, n int64) Device {
	size := d.Size()
	off = min(max(off, 0), size)
	n = min(max(n, 0), size-off)
	return &section{d: d, off: off, n: n}
}

type section struct {
	d      Device
	off, n int64
}

func (s *section) Size() int64  { return s.n }
func (s *section) Flush() error { return s.d.Flush() }

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(s.d, s.off, s.n).ReadAt(p, off)
}

func (s *section) WriteAt(p []byte, off int64) (int, error) {
	if err := within(off, len(p), s.n); err != nil {
		return 0, err
	}
	return s.d.WriteAt(p, s.off+off)
}

// Memory is a Device in memory. It is safe for concurrent use.
type Memory struct {
	mu sync.RWMutex
	b  []byte
}

// NewMemory returns a device of size zero bytes.
func NewMemory(size int64) *Memory {
	if size < 0 || size > math.MaxInt {
		panic(fmt.Sprintf("disk: memory of %d bytes", size))
	}
	return &Memory{b: make([]byte, size)}
}

func (m *Memory) Size() int64  { return int64(len(m.b)) }
func (m *Memory) Flush() error { return nil }

func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, ErrBounds)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	if err := within(off, len(p), int64(len(m.b))); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.b[off:], p), nil
}

// within is nil where n bytes at off fit into a device of size bytes.
func within(off int64, n int, size int64) error {
	if off < 0 || off > size || int64(n) > size-off {
		return fmt.Errorf("write %d bytes at %d of %d: %w", n, off, size, ErrBounds)
	}
	return nil
}
