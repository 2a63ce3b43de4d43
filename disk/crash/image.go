// Package crash finds out what a power cut may leave on a disk, and asks whether that is still all right.
//
// A [Recorder] is a disk.Device with a volatile write cache: it notes every write, flush and discard. The [Trace] that it
// leaves says which images of the disk a cut may leave behind: between two flushes any subset of the sectors that were
// written may be durable, in any order, and the sector that was being written may hold anything. [Run] makes one scenario
// a test: set up, update, check every distinct state.
//
// It is for tests, for the power-cut campaign and for `lifeboat powercut`; no product code that writes imports it.
package crash

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"lifeboat/disk"
)

const (
	pageSize   = 4096
	sectorSize = 512 // bytes that a disk writes as one, if it is a good one
)

// Image is the content of a disk: sparse, in memory, cheap to clone. It is a disk.Device on which everything is durable
// at once, safe for concurrent use.
type Image struct {
	size   int64
	parent *Image // frozen: nobody writes to it any more
	mu     sync.RWMutex
	pages  map[int64]*page // by number; what is not here is the parent's, or zero
	sum    *Hash           // nil: not computed
}

// page belongs to one image as long as that may be written to.
type page struct {
	b   [pageSize]byte
	sum atomic.Pointer[Hash] // of content and place; nil: not computed
}

// Hash identifies an image: two images with the same are the same.
type Hash [2]uint64

func (h Hash) String() string { return fmt.Sprintf("%016x", h[0]) }

func (h Hash) plus(o Hash) Hash  { return Hash{h[0] + o[0], h[1] + o[1]} }
func (h Hash) minus(o Hash) Hash { return Hash{h[0] - o[0], h[1] - o[1]} }

var zeroPage [pageSize]byte

func (p *page) hash(number int64) (h Hash) {
	if p == nil {
		return h
	}
	if known := p.sum.Load(); known != nil {
		return *known
	}
	if p.b != zeroPage { // else it is as if it were not there
		var b [8 + pageSize]byte
		binary.LittleEndian.PutUint64(b[:], uint64(number))
		copy(b[8:], p.b[:])
		s := sha256.Sum256(b[:])
		h = Hash{binary.LittleEndian.Uint64(s[:]), binary.LittleEndian.Uint64(s[8:])}
	}
	p.sum.Store(&h)
	return h
}

// NewImage returns size zero bytes.
func NewImage(size int64) *Image { return &Image{size: size, pages: map[int64]*page{}} }

// ReadImage returns the content of r.
func ReadImage(r io.ReaderAt, size int64) (*Image, error) {
	i := NewImage(size)
	for n := int64(0); n*pageSize < size; n++ {
		p := new(page)
		if k, err := r.ReadAt(p.b[:min(pageSize, size-n*pageSize)], n*pageSize); k == 0 && err != nil {
			return nil, fmt.Errorf("read byte %d: %w", n*pageSize, err)
		}
		if p.b != zeroPage {
			i.pages[n] = p
		}
	}
	return i, nil
}

// LoadFile returns the content of a file or block device.
func LoadFile(name string) (*Image, error) {
	f, err := disk.Open(name, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadImage(f, f.Size())
}

// SaveFile writes the image to a sparse file; an older one is replaced.
func (i *Image) SaveFile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(i.size); err != nil {
		return err
	}
	i.each(func(n int64, p *page) {
		if err == nil && p.b != zeroPage {
			_, err = f.WriteAt(p.b[:min(pageSize, i.size-n*pageSize)], n*pageSize)
		}
	})
	if err != nil {
		return err
	}
	return f.Close()
}

// Clone returns an image with the same content. Afterwards i must not be written to: the clone reads through to it.
func (i *Image) Clone() *Image {
	return &Image{size: i.size, parent: i, pages: map[int64]*page{}}
}

// flat returns the content of an image that is not written to any more, without a chain of clones below it.
func (i *Image) flat() *Image {
	f := NewImage(i.size)
	i.each(func(n int64, p *page) { f.pages[n] = p })
	return f
}

// each calls f for every page that may be non-zero, in no order.
func (i *Image) each(f func(n int64, p *page)) {
	seen := map[int64]bool{}
	for ; i != nil; i = i.parent {
		for n, p := range i.pages {
			if !seen[n] {
				seen[n] = true
				f(n, p)
			}
		}
	}
}

func (i *Image) page(n int64) *page {
	for ; i != nil; i = i.parent {
		if p, ok := i.pages[n]; ok {
			return p
		}
	}
	return nil
}

// Hash returns the identity of the content.
func (i *Image) Hash() (h Hash) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.sum != nil {
		return *i.sum
	}
	if i.parent != nil {
		h = i.parent.Hash()
	}
	for n, p := range i.pages {
		if i.parent != nil {
			h = h.minus(i.parent.page(n).hash(n))
		}
		h = h.plus(p.hash(n))
	}
	i.sum = &h
	return h
}

// masked returns the identity of what lies outside the pages of the ranges.
func (i *Image) masked(ranges []Range) Hash {
	h := i.Hash()
	for _, r := range ranges {
		for n := r.Off / pageSize; n*pageSize < r.Off+r.Len; n++ {
			h = h.minus(i.page(n).hash(n))
		}
	}
	return h
}

// Range is a part of a disk in bytes. As a mask only whole pages of 4096 bytes count.
type Range struct{ Off, Len int64 }

func (i *Image) Size() int64  { return i.size }
func (i *Image) Flush() error { return nil }

func (i *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= i.size {
		return 0, io.EOF
	}
	i.mu.RLock()
	defer i.mu.RUnlock()
	n := int(min(int64(len(p)), i.size-off))
	for done := 0; done < n; {
		at := off + int64(done)
		in := int(at % pageSize)
		take := min(n-done, pageSize-in)
		if pg := i.page(at / pageSize); pg != nil {
			copy(p[done:done+take], pg.b[in:])
		} else {
			clear(p[done : done+take])
		}
		done += take
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (i *Image) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > i.size-off {
		return 0, fmt.Errorf("write %d bytes at %d of %d: %w", len(p), off, i.size, disk.ErrBounds)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for done := 0; done < len(p); {
		at := off + int64(done)
		number, in := at/pageSize, int(at%pageSize)
		take := min(len(p)-done, pageSize-in)
		pg, ours := i.pages[number]
		if !ours {
			pg = new(page)
			if old := i.parent.page(number); old != nil {
				pg.b = old.b
			}
			i.pages[number] = pg
		}
		copy(pg.b[in:], p[done:done+take])
		pg.sum.Store(nil)
		done += take
	}
	i.sum = nil
	return len(p), nil
}
