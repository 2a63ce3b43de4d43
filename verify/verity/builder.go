package verity

import (
	"errors"
	"fmt"
	"io"
)

// batch is how many data blocks are hashed at a time.
const batch = 256

// Builder makes the hash tree of data that is written to it from the start to
// the end. Each hash block goes to the writer as soon as it is full, so the
// memory in use does not depend on the size of the data: about 1 MiB where
// Write gets small pieces, next to nothing where it gets whole MiBs.
//
// A Builder is not safe for concurrent use; it hashes on up to GOMAXPROCS
// cores by itself. After an error it stays failed.
type Builder struct {
	w         io.WriterAt
	hashStart int64
	layout    layout
	team      *team
	left      int64 // data blocks still to come
	pending   []byte
	digests   []byte
	level     [maxLevels]struct {
		block []byte // being filled
		index int64  // of block in its level
	}
	root Hash
	err  error
}

// NewBuilder returns a Builder that writes the tree over dataBlocks blocks to w
// from byte hashStart on. What is wrong with the arguments is reported by the
// first Write and by Finish.
func NewBuilder(w io.WriterAt, hashStart, dataBlocks int64, salt []byte) *Builder {
	b := &Builder{w: w, hashStart: hashStart, left: dataBlocks}
	if b.err = checkGeometry(dataBlocks, hashStart, salt); b.err != nil {
		return b
	}
	b.layout = newLayout(dataBlocks)
	b.team = newTeam(append([]byte(nil), salt...))
	b.digests = make([]byte, batch*digestSize)
	for i := range b.layout.levels {
		b.level[i].block = make([]byte, 0, BlockSize)
	}
	return b
}

// Write takes the next bytes of the data, any number of them. p is not kept.
func (b *Builder) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) && b.err == nil {
		rest := p[n:]
		if len(b.pending) == 0 && len(rest) >= batch*BlockSize {
			b.add(rest[:batch*BlockSize])
			n += batch * BlockSize
			continue
		}
		if b.pending == nil {
			b.pending = make([]byte, 0, batch*BlockSize)
		}
		take := min(len(rest), cap(b.pending)-len(b.pending))
		b.pending = append(b.pending, rest[:take]...)
		n += take
		if len(b.pending) == cap(b.pending) {
			b.flush()
		}
	}
	if b.err != nil {
		return 0, b.err
	}
	return n, nil
}

// Finish writes what is left of the tree and returns the root hash. It is an
// error if not exactly dataBlocks blocks were written.
func (b *Builder) Finish() (Hash, error) {
	if b.err == nil && len(b.pending)%BlockSize != 0 {
		b.err = fmt.Errorf("build hash tree: data ends inside a block: %w", io.ErrUnexpectedEOF)
	}
	b.flush()
	if b.err == nil && b.left > 0 {
		b.err = fmt.Errorf("build hash tree: %d data blocks missing: %w", b.left, io.ErrUnexpectedEOF)
	}
	for i := 0; i < b.layout.levels && b.err == nil; i++ {
		b.close(i)
	}
	if b.err != nil {
		return Hash{}, b.err
	}
	root := b.root
	b.err = errors.New("build hash tree: finished already")
	return root, nil
}

func (b *Builder) flush() {
	if b.err == nil && len(b.pending) > 0 {
		b.add(b.pending)
	}
	b.pending = b.pending[:0]
}

// add hashes a batch of whole blocks and puts the digests into the tree.
func (b *Builder) add(data []byte) {
	n := len(data) / BlockSize
	if int64(n) > b.left {
		b.err = errors.New("build hash tree: more data than was announced")
		return
	}
	b.left -= int64(n)
	digests := b.digests[:n*digestSize]
	b.team.sum(digests, data)
	if b.layout.levels == 0 {
		copy(b.root[:], digests)
		return
	}
	for len(digests) > 0 && b.err == nil {
		leaf := &b.level[0].block
		take := min(len(digests), cap(*leaf)-len(*leaf))
		*leaf = append(*leaf, digests[:take]...)
		digests = digests[take:]
		if len(*leaf) == cap(*leaf) {
			b.close(0)
		}
	}
}

// close writes the hash block of a level that is being filled, if there is
// anything in it, and hands its digest up.
func (b *Builder) close(level int) {
	l := &b.level[level]
	if len(l.block) == 0 {
		return
	}
	filled := len(l.block)
	block := l.block[:BlockSize]
	clear(block[filled:])
	off := b.hashStart + (b.layout.first[level]+l.index)*BlockSize
	if _, err := b.w.WriteAt(block, off); err != nil {
		b.err = fmt.Errorf("write hash block at byte %d: %w", off, err)
		return
	}
	l.index++
	if level == b.layout.levels-1 {
		b.team.hashers[0].sum(b.root[:0], block)
		l.block = block[:0]
		return
	}
	up := &b.level[level+1]
	up.block = b.team.hashers[0].sum(up.block, block)
	l.block = block[:0]
	if len(up.block) == cap(up.block) {
		b.close(level + 1)
	}
}
