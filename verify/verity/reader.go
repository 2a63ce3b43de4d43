package verity

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Reader is the data under a hash tree, each block authenticated against the
// root hash when it is read. The source may change between two reads: bytes
// that were handed out were right, or there was an error.
//
// It is safe for concurrent use. Verified hash blocks are kept, at most 1 MiB
// of them; data is not.
type Reader struct {
	r          io.ReaderAt
	dataBlocks int64
	hashStart  int64
	layout     layout
	salt       []byte
	root       Hash
	err        error // what is wrong with the arguments
	cache      [256]atomic.Pointer[hashBlock]
	scratch    sync.Pool // of *scratch
}

// hashBlock is a verified block of the tree; it does not change.
type hashBlock struct {
	index int64 // in the tree
	data  [BlockSize]byte
}

type scratch struct {
	hasher *hasher
	digest Hash
	block  [BlockSize]byte
}

// NewReader returns a Reader of dataBlocks blocks from the start of r, whose
// tree stands at byte hashStart of r. Nothing is read yet, and nothing can be
// wrong yet with root or salt; what is wrong with the other arguments is
// reported by ReadAt.
func NewReader(r io.ReaderAt, dataBlocks, hashStart int64, salt []byte, root Hash) *Reader {
	v := &Reader{
		r: r, dataBlocks: dataBlocks, hashStart: hashStart,
		salt: append([]byte(nil), salt...), root: root,
	}
	if v.err = checkGeometry(dataBlocks, hashStart, salt); v.err == nil {
		v.layout = newLayout(dataBlocks)
	}
	v.scratch.New = func() any { return &scratch{hasher: newHasher(v.salt)} }
	return v
}

// Size returns the size of the data in bytes.
func (v *Reader) Size() int64 {
	if v.err != nil {
		return 0
	}
	return v.dataBlocks * BlockSize
}

// ReadAt reads like [io.ReaderAt]. Bytes before the one where an error was met
// are authentic; those after it are zeroed. The error wraps [ErrCorrupt] where
// the source does not agree with the root hash.
func (v *Reader) ReadAt(p []byte, off int64) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	if off >= v.Size() {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), v.Size()-off)]
	s := v.scratch.Get().(*scratch)
	defer v.scratch.Put(s)

	n := 0
	for n < len(want) {
		at := off + int64(n)
		rest := want[n:]
		var m int
		var err error
		if at%BlockSize == 0 && len(rest) >= BlockSize {
			m, err = v.readBlocks(s, rest[:len(rest)/BlockSize*BlockSize], at/BlockSize)
		} else {
			if _, err = v.readBlocks(s, s.block[:], at/BlockSize); err == nil {
				m = copy(rest, s.block[at%BlockSize:])
			}
		}
		n += m
		if err != nil {
			clear(p[n:])
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readBlocks reads whole blocks in one go and authenticates them. It returns
// how many bytes from the start are authentic.
func (v *Reader) readBlocks(s *scratch, p []byte, block int64) (int, error) {
	got, readErr := readFull(v.r, p, block*BlockSize)
	var leaf *hashBlock
	for n := 0; n+BlockSize <= got; n += BlockSize {
		want := v.root[:]
		if v.layout.levels > 0 {
			if leaf == nil || block%perBlock == 0 {
				var err error
				if leaf, err = v.hashBlock(s, 0, block/perBlock); err != nil {
					return n, fmt.Errorf("read data block %d: %w", block, err)
				}
			}
			i := block % perBlock * digestSize
			want = leaf.data[i : i+digestSize]
		}
		s.hasher.sum(s.digest[:0], p[n:n+BlockSize])
		if string(s.digest[:]) != string(want) {
			return n, ErrCorrupt{Block: block}
		}
		block++
	}
	if readErr != nil {
		return got / BlockSize * BlockSize, fmt.Errorf("read data block %d: %w", block, readErr)
	}
	return len(p), nil
}

// hashBlock returns a verified block of a level of the tree.
func (v *Reader) hashBlock(s *scratch, level int, index int64) (*hashBlock, error) {
	inTree := v.layout.first[level] + index
	slot := &v.cache[inTree%int64(len(v.cache))]
	if b := slot.Load(); b != nil && b.index == inTree {
		return b, nil
	}
	want := v.root[:]
	if level < v.layout.levels-1 {
		parent, err := v.hashBlock(s, level+1, index/perBlock)
		if err != nil {
			return nil, err
		}
		i := index % perBlock * digestSize
		want = parent.data[i : i+digestSize]
	}
	b := &hashBlock{index: inTree}
	if _, err := readFull(v.r, b.data[:], v.hashStart+inTree*BlockSize); err != nil {
		return nil, fmt.Errorf("read hash block %d: %w", inTree, err)
	}
	s.hasher.sum(s.digest[:0], b.data[:])
	if string(s.digest[:]) != string(want) {
		first := index
		for range level + 1 {
			first *= perBlock
		}
		return nil, ErrCorrupt{Block: min(first, v.dataBlocks-1), Tree: true}
	}
	slot.Store(b)
	return b, nil
}
