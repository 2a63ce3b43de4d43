package squashfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"
)

// bufferBudget bounds the buffers of one File being written out, in bytes,
// however many cores there are.
const bufferBudget = 10 << 20

// File is an open regular file: a stream of Size bytes. It must not be used
// by several goroutines at once; the file can be opened several times.
type File struct {
	fs   *FS
	name string
	size int64
	cur  cursor

	buf   []byte // of Read, nil until the first one
	in    []byte // compressed block, of Read
	zeros []byte // sparse blocks
	rest  []byte // decoded and not yet delivered
	err   error  // of an earlier call
}

// Open opens the regular file name; elements of the path are parted by
// slashes, symbolic links are not followed. The error wraps fs.ErrNotExist
// where there is no such name.
func (f *FS) Open(name string) (*File, error) {
	ino, m, err := f.lookup(name)
	if err == nil && ino.typ != Regular {
		err = fmt.Errorf("is a %s, not a regular file", ino.typ)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &File{fs: f, name: name, size: ino.size, cur: cursor{fs: f, list: m, ino: ino, off: ino.start}}, nil
}

// Size is the length of the file in bytes. It comes from the image; a sparse
// file may be larger than the image by any factor.
func (f *File) Size() int64 { return f.size }

// extent is one piece of a file and where it comes from.
type extent struct {
	off    int64 // of the data on the medium
	size   int   // bytes on the medium; 0: a sparse block, all zeros
	stored bool  // not compressed
	block  int   // bytes that the data unpacks to; for a fragment at least that
	frag   bool
	from   int // the piece is block[from:to]
	to     int
}

// cursor yields the extents of a file in order. The block list is read as it
// is needed, so it takes no memory of its own.
type cursor struct {
	fs   *FS
	list *metaReader
	ino  *inode
	n    int64 // blocks yielded
	off  int64 // of the next block
	done int64 // bytes yielded
}

// left reports the number of extents that are still to come.
func (c *cursor) left() int64 {
	left := c.ino.blocks - c.n
	if c.ino.fragment != noFragment && c.done < c.ino.size {
		left++
	}
	return left
}

// storedFlag marks an uncompressed block in a size of a block list.
const storedFlag = 1 << 24

// next yields the next extent; there must be one left.
func (c *cursor) next() (extent, error) {
	want := int(min(c.ino.size-c.done, c.fs.sb.blockSize))
	e := extent{block: want, to: want}
	var size uint32
	if c.n < c.ino.blocks {
		var b [4]byte
		if err := c.list.read(b[:]); err != nil {
			return e, fmt.Errorf("block list: %w", err)
		}
		size = binary.LittleEndian.Uint32(b[:])
		e.off = c.off
	} else {
		off, s, err := c.fs.fragment(c.ino.fragment)
		if err != nil {
			return e, err
		}
		e.off, size = off, s
		e.frag, e.from = true, int(c.ino.fragOffset)
		e.to = e.from + want
		e.block = e.to
		if size == 0 {
			return e, corrupt("fragment %d: no data", c.ino.fragment)
		}
	}
	if size > storedFlag|uint32(c.fs.sb.blockSize) || size == storedFlag {
		return e, corrupt("data block at %d: size %#x", e.off, size)
	}
	e.stored, e.size = size&storedFlag != 0, int(size&^storedFlag)
	if int64(e.size) > c.fs.sb.blockSize {
		return e, corrupt("data block at %d: %d bytes", e.off, e.size)
	}
	if e.size > 0 && (e.off < superblockSize || e.off+int64(e.size) > c.fs.sb.inodeTable) {
		return e, corrupt("data block at %d: %d bytes lie outside the data", e.off, e.size)
	}
	if e.stored && (e.size < e.block || !e.frag && e.size != e.block) {
		return e, corrupt("data block at %d: %d bytes instead of %d", e.off, e.size, e.block)
	}
	if !e.frag {
		c.n++
		c.off += int64(e.size)
	}
	c.done += int64(want)
	return e, nil
}

// Skip passes over whole blocks, at most n bytes, without reading them, and returns how many bytes that were. It must
// come before the first read.
func (f *File) Skip(n int64) (int64, error) {
	for f.cur.n < f.cur.ino.blocks && n-f.cur.done >= f.fs.sb.blockSize {
		if _, err := f.cur.next(); err != nil {
			return f.cur.done, f.fail(err)
		}
	}
	return f.cur.done, nil
}

// fetch reads and unpacks e, which is not sparse, into buf, which holds a
// block and overAlloc bytes; in holds a block. It returns the piece.
func (f *FS) fetch(e extent, c codec, buf, in []byte) ([]byte, error) {
	if e.stored {
		b := buf[:e.to-e.from]
		if err := readFull(f.r, b, e.off+int64(e.from)); err != nil {
			return nil, fmt.Errorf("read data block at %d: %w", e.off, err)
		}
		return b, nil
	}
	src := in[:e.size]
	if err := readFull(f.r, src, e.off); err != nil {
		return nil, fmt.Errorf("read data block at %d: %w", e.off, err)
	}
	limit := e.block
	if e.frag {
		limit = int(f.sb.blockSize)
	}
	n, err := c.Decode(buf[:limit], src)
	if err != nil {
		return nil, corrupt("data block at %d: %w", e.off, err)
	}
	if n < e.block {
		return nil, corrupt("data block at %d: %d bytes instead of %d", e.off, n, e.block)
	}
	return buf[e.from:e.to], nil
}

// Read delivers the file in order and decodes in the calling goroutine;
// WriteTo is the fast way.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(f.rest) == 0 {
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// fill puts the next extent into rest.
func (f *File) fill() error {
	if f.err != nil {
		return f.err
	}
	if f.cur.left() == 0 {
		return io.EOF
	}
	e, err := f.cur.next()
	if err != nil {
		return f.fail(err)
	}
	if e.size == 0 {
		f.rest = f.zero(e.to)
		return nil
	}
	if f.buf == nil {
		f.buf = make([]byte, f.fs.sb.blockSize+overAlloc)
		f.in = make([]byte, f.fs.sb.blockSize)
	}
	c, err := f.fs.takeCodec()
	if err != nil {
		return f.fail(err)
	}
	defer f.fs.giveCodec(c)
	if f.rest, err = f.fs.fetch(e, c, f.buf, f.in); err != nil {
		return f.fail(err)
	}
	return nil
}

// zero returns n zero bytes of a sparse block.
func (f *File) zero(n int) []byte {
	if len(f.zeros) < n {
		f.zeros = make([]byte, n)
	}
	return f.zeros[:n]
}

// fail makes err the answer to this and every later call.
func (f *File) fail(err error) error {
	f.rest = nil
	f.err = &fs.PathError{Op: "read", Path: f.name, Err: err}
	return f.err
}

// WriteTo is WriteToContext without a way to stop it.
func (f *File) WriteTo(w io.Writer) (int64, error) {
	return f.WriteToContext(context.Background(), w)
}

// slot is a place for one extent on its way from a worker to the writer.
type slot struct {
	e     extent
	buf   []byte
	piece []byte
	err   error
	ready chan struct{} // one token once piece and err are set
}

// WriteToContext writes what was not read yet to w, in order, in pieces of at
// most a block. GOMAXPROCS goroutines read and decode ahead, two blocks each
// at most, within 10 MiB of buffers; they have ended when it returns. w must
// not keep what it is given. When ctx ends, so does the call, as soon as reads
// and the write under way have come back; its error then wraps ctx.Err().
// The image is read at several places at once.
func (f *File) WriteToContext(ctx context.Context, w io.Writer) (int64, error) {
	var written int64
	put := func(b []byte) error {
		n, err := w.Write(b)
		if n < 0 || n > len(b) {
			return errors.New("invalid count from write")
		}
		written += int64(n)
		if err == nil && n < len(b) {
			err = io.ErrShortWrite
		}
		return err
	}
	if len(f.rest) > 0 {
		rest := f.rest
		f.rest = nil
		if err := put(rest); err != nil {
			return written, f.fail(err)
		}
	}
	f.buf, f.in = nil, nil
	if f.err != nil {
		return written, f.err
	}
	if f.cur.left() == 0 {
		return written, nil
	}
	if err := f.pipe(ctx, put); err != nil {
		return written, f.fail(err)
	}
	return written, nil
}

// pipe hands every extent that is left to put. Extent i travels in slot
// i modulo the number of slots, so a slot's buffer is free again once extent i
// has been put, and no block costs an allocation.
func (f *File) pipe(ctx context.Context, put func([]byte) error) error {
	total := f.cur.left()
	bs := f.fs.sb.blockSize
	// Each worker has a buffer for compressed data and two slots.
	workers := min(int64(runtime.GOMAXPROCS(0)), total, max(1, bufferBudget/(3*bs)))
	depth := min(2*workers, total)

	slots := make([]slot, depth)
	for i := range slots {
		slots[i].ready = make(chan struct{}, 1)
	}
	jobs := make(chan *slot, depth) // never full: each slot is in it at most once
	var stop atomic.Bool
	var wg sync.WaitGroup
	started := int64(0)
	defer func() {
		stop.Store(true)
		close(jobs)
		wg.Wait()
	}()
	work := func(c codec) {
		defer wg.Done()
		defer f.fs.giveCodec(c)
		in := make([]byte, bs)
		for s := range jobs {
			if stop.Load() {
				continue
			}
			if s.buf == nil {
				s.buf = make([]byte, bs+overAlloc)
			}
			s.piece, s.err = f.fs.fetch(s.e, c, s.buf, in)
			s.ready <- struct{}{}
		}
	}

	submitted := int64(0)
	submit := func() error {
		s := &slots[submitted%depth]
		submitted++
		s.piece = nil
		if s.e, s.err = f.cur.next(); s.err != nil || s.e.size == 0 {
			s.ready <- struct{}{} // an error has its turn like any extent
			return nil
		}
		if started < workers {
			c, err := f.fs.takeCodec()
			if err != nil {
				return err
			}
			started++
			wg.Add(1)
			go work(c)
		}
		jobs <- s
		return nil
	}
	for submitted < depth {
		if err := submit(); err != nil {
			return err
		}
	}
	for i := range total {
		s := &slots[i%depth]
		if err := ctx.Err(); err != nil {
			return err
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return ctx.Err()
		}
		if s.err != nil {
			return s.err
		}
		piece := s.piece
		if s.e.size == 0 {
			piece = f.zero(s.e.to)
		}
		if err := put(piece); err != nil {
			return err
		}
		if submitted < total {
			if err := submit(); err != nil {
				return err
			}
		}
	}
	return nil
}
