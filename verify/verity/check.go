package verity

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// depth is how many batches of data Check has in memory: one is hashed while
// the next two are read, so that the medium is never without a request.
const depth = 3

// Check reads dataBlocks blocks from r from start to end, computes their hash
// tree, and compares it with the tree that stands at byte hashStart of r and
// with root. Only if all three agree it returns nil; where they do not, the
// error wraps [ErrCorrupt]. Hashing overlaps with two reads ahead, which r has
// to bear at once; about 3 MiB of memory are used. progress, if not nil, is
// told after each batch how many bytes of data are done; it is called from the
// goroutine of the caller.
func Check(ctx context.Context, r io.ReaderAt, dataBlocks, hashStart int64, salt []byte, root Hash, progress func(done int64)) error {
	if err := checkGeometry(dataBlocks, hashStart, salt); err != nil {
		return err
	}
	// A copy of the context ends the reader when hashing has found something.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	type piece struct {
		data []byte
		err  error
	}
	free := make(chan []byte, depth)
	pieces := make(chan chan piece, depth) // in the order of the data, each to be read yet
	for range cap(free) {
		free <- make([]byte, min(batch, dataBlocks)*BlockSize)
	}
	go func() {
		defer close(pieces)
		size := dataBlocks * BlockSize
		for off := int64(0); off < size; {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return
			}
			buf = buf[:min(int64(cap(buf)), size-off)]
			at, got := off, make(chan piece, 1)
			go func() {
				_, err := readFull(r, buf, at)
				if err != nil {
					err = fmt.Errorf("read data at byte %d: %w", at, err)
				}
				got <- piece{buf, err}
			}()
			pieces <- got // has room: there are no more pieces than buffers
			off += int64(len(buf))
		}
	}()
	// All reads have ended, and r is touched no more, when Check returns.
	defer func() {
		cancel()
		for got := range pieces {
			<-got
		}
	}()

	l := newLayout(dataBlocks)
	b := NewBuilder(&comparer{r: r, hashStart: hashStart, layout: l, dataBlocks: dataBlocks}, hashStart, dataBlocks, salt)
	var done int64
	for got := range pieces {
		p := <-got
		if p.err != nil {
			return p.err
		}
		if _, err := b.Write(p.data); err != nil {
			return err
		}
		done += int64(len(p.data))
		if progress != nil {
			progress(done)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		free <- p.data
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	got, err := b.Finish()
	if err != nil {
		return err
	}
	if got != root {
		if dataBlocks == 1 {
			return fmt.Errorf("check hash tree: %w", ErrCorrupt{Block: 0})
		}
		return fmt.Errorf("check hash tree: %w: it is %x, not %x", ErrCorrupt{Block: -1, Tree: true}, got, root)
	}
	return nil
}

// comparer is the writer of a Builder whose tree exists already.
type comparer struct {
	r          io.ReaderAt
	hashStart  int64
	layout     layout
	dataBlocks int64
	buf        [BlockSize]byte
}

func (c *comparer) WriteAt(p []byte, off int64) (int, error) {
	have := c.buf[:len(p)]
	if _, err := readFull(c.r, have, off); err != nil {
		return 0, err
	}
	if bytes.Equal(p, have) {
		return len(p), nil
	}
	index := (off - c.hashStart) / BlockSize
	level := 0
	for index < c.layout.first[level] {
		level++
	}
	differs := 0
	for p[differs] == have[differs] {
		differs++
	}
	// The first data block below the digest that differs.
	block := (index-c.layout.first[level])*perBlock + int64(differs/digestSize)
	for range level {
		block *= perBlock
	}
	block = min(block, c.dataBlocks-1)
	return 0, ErrCorrupt{Block: block, Tree: level > 0}
}

// readFull reads len(p) bytes; an early end is io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
