// Package verity builds and reads dm-verity hash trees in user space.
//
// The format is the kernel's (Documentation/admin-guide/device-mapper/verity.rst)
// with the parameters RAUC and lifeboat use throughout: no superblock, hash
// type 1 (the salt comes before the block), SHA-256, data and hash blocks of
// 4096 bytes. A hash block holds 128 digests of 32 bytes; what is left of the
// last one of a level is zero. Levels are stored top first, leaf level last,
// without gaps. The root hash is the digest of the top block. A single data
// block has no tree: its own digest is the root hash.
//
// [Builder] makes a tree while data is written, [Check] compares a whole medium
// with its tree, [Reader] authenticates each block when it is read.
package verity

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"runtime"
	"sync"
	"sync/atomic"
)

// BlockSize is the size of data and hash blocks in bytes.
const BlockSize = 4096

// MaxDataBlocks bounds the number of data blocks of a tree: 16 TiB of data.
const MaxDataBlocks = 1 << 32

// MaxSalt is the longest salt in bytes that dm-verity takes.
const MaxSalt = 256

const (
	digestSize = sha256.Size
	perBlock   = BlockSize / digestSize // digests in a hash block
	maxLevels  = 5                      // 128^5 > MaxDataBlocks
)

// Hash is a SHA-256 digest.
type Hash = [digestSize]byte

// ErrCorrupt says that a block is not the one the root hash stands for.
type ErrCorrupt struct {
	// Block is the data block (from 0) that is wrong or that cannot be
	// authenticated, because the tree above it is wrong. It is -1 where data
	// and tree agree with each other and not with the root hash.
	Block int64
	// Tree is set where a block of the hash tree is wrong.
	Tree bool
}

func (e ErrCorrupt) Error() string {
	switch {
	case e.Block < 0:
		return "root hash differs"
	case e.Tree:
		return fmt.Sprintf("hash tree above data block %d is corrupt", e.Block)
	default:
		return fmt.Sprintf("data block %d is corrupt", e.Block)
	}
}

// TreeBlocks returns the number of hash blocks of the tree over dataBlocks
// data blocks: 0 for a single one, and 0 where there can be no tree (dataBlocks
// below 1 or above [MaxDataBlocks]).
func TreeBlocks(dataBlocks int64) int64 {
	if dataBlocks < 1 || dataBlocks > MaxDataBlocks {
		return 0
	}
	return newLayout(dataBlocks).total
}

// layout is where the levels of a tree are. Level 0 holds the digests of the
// data blocks, the last level is one block.
type layout struct {
	levels int
	first  [maxLevels]int64 // index in the tree of the level's first block
	blocks [maxLevels]int64 // the level's number of blocks
	total  int64
}

func newLayout(dataBlocks int64) layout {
	var l layout
	for n := dataBlocks; n > 1; l.levels++ {
		n = (n + perBlock - 1) / perBlock
		l.blocks[l.levels] = n
		l.total += n
	}
	at := int64(0)
	for i := l.levels - 1; i >= 0; i-- {
		l.first[i] = at
		at += l.blocks[i]
	}
	return l
}

// checkGeometry refuses what the arithmetic of this package cannot hold.
func checkGeometry(dataBlocks, hashStart int64, salt []byte) error {
	switch {
	case dataBlocks < 1 || dataBlocks > MaxDataBlocks:
		return fmt.Errorf("hash tree over %d data blocks: want 1 to %d", dataBlocks, int64(MaxDataBlocks))
	case hashStart < 0 || hashStart > 1<<62:
		return fmt.Errorf("hash tree at byte %d: out of range", hashStart)
	case len(salt) > MaxSalt:
		return fmt.Errorf("salt of %d bytes: at most %d", len(salt), MaxSalt)
	}
	return nil
}

// hasher computes salted block digests without allocating.
type hasher struct {
	h    hash.Hash
	salt []byte
}

func newHasher(salt []byte) *hasher { return &hasher{h: sha256.New(), salt: salt} }

// sum appends the digest of block to dst.
func (h *hasher) sum(dst, block []byte) []byte {
	h.h.Reset()
	h.h.Write(h.salt)
	h.h.Write(block)
	return h.h.Sum(dst)
}

// team hashes many blocks on several cores.
type team struct {
	hashers []*hasher
}

// share is how many blocks a worker takes at a time: small enough that a core
// that is busy elsewhere does not hold up the others.
const share = 16

func newTeam(salt []byte) *team {
	t := &team{hashers: make([]*hasher, min(max(runtime.GOMAXPROCS(0), 1), 16))}
	for i := range t.hashers {
		t.hashers[i] = newHasher(salt)
	}
	return t
}

// sum writes the digests of the blocks in data, one after the other, to out.
// All goroutines have ended when it returns.
func (t *team) sum(out, data []byte) {
	n := len(data) / BlockSize
	var next atomic.Int64
	work := func(h *hasher) {
		for {
			from := int(next.Add(share)) - share
			if from >= n {
				return
			}
			for i := from; i < min(from+share, n); i++ {
				h.sum(out[:i*digestSize], data[i*BlockSize:(i+1)*BlockSize])
			}
		}
	}
	workers := min(len(t.hashers), (n+share-1)/share)
	var wg sync.WaitGroup
	for _, h := range t.hashers[1:max(workers, 1)] {
		wg.Go(func() { work(h) })
	}
	work(t.hashers[0])
	wg.Wait()
}
