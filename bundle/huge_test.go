package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"testing"

	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// huge is a medium of zeros with some bytes set, which counts what is read of it.
type huge struct {
	size  int64
	parts map[int64][]byte
	read  int64
}

func (h *huge) ReadAt(p []byte, off int64) (int, error) {
	if off >= h.size {
		return 0, io.EOF
	}
	clear(p)
	for at, b := range h.parts {
		if at < off+int64(len(p)) && at+int64(len(b)) > off {
			copy(p[max(at-off, 0):], b[max(off-at, 0):])
		}
	}
	h.read += int64(len(p))
	return len(p), nil
}

// TestHuge is row 78: payloads of more than 2 GiB and of more than 4 GiB, whose length and offsets do not fit into 32 bits. A
// plain one is refused before it is read; of a verity one each block is checked as itself.
func TestHuge(t *testing.T) {
	s := testKeys(t)
	for _, size := range []int64{maxPlain + 1, 2<<30 + 4096, 1<<32 + 512, 5 << 30} {
		// Signed is only what 32 bits leave of 4 GiB and 512 bytes.
		bundle := signed(t, s, nil, make([]byte, 512), true)
		medium := &huge{size: size + int64(len(bundle)), parts: map[int64][]byte{size: bundle}}
		_, err := Open(t.Context(), medium, medium.size, Options{Rules: rulesFor(s), Formats: []string{FormatPlain}})
		wantCode(t, err, verify.Policy)
		if medium.read > 1<<20 {
			t.Errorf("of a plain payload of %d bytes %d were read", size, medium.read)
		}
	}

	const (
		blocks = 5 << 30 / verity.BlockSize
		marked = 1<<32/verity.BlockSize + 5 // differs from block 5
	)
	salt := bytes.Repeat([]byte{7}, 32)
	mark := bytes.Repeat([]byte{'x'}, verity.BlockSize)
	digest := func(block []byte) []byte {
		sum := sha256.Sum256(slices.Concat(salt, block))
		return sum[:]
	}
	level := bytes.Repeat(digest(make([]byte, verity.BlockSize)), blocks)
	copy(level[marked*32:], digest(mark))
	var tree []byte // the level of one block first
	for {
		level = append(level, make([]byte, -len(level)&(verity.BlockSize-1))...)
		tree = append(bytes.Clone(level), tree...)
		if len(level) == verity.BlockSize {
			break
		}
		var above []byte
		for b := range slices.Chunk(level, verity.BlockSize) {
			above = append(above, digest(b)...)
		}
		level = above
	}
	open := func(size int64, block []byte) (*Bundle, error) {
		manifest := fmt.Sprintf("[update]\ncompatible=demo\n[bundle]\nformat=verity\nverity-hash=%x\nverity-salt=%x\nverity-size=%d\n", digest(level), salt, size)
		bundle := signed(t, s, nil, []byte(manifest), false)
		end := int64(blocks*verity.BlockSize + len(tree))
		medium := &huge{end + int64(len(bundle)), map[int64][]byte{marked * verity.BlockSize: block, end - int64(len(tree)): tree, end: bundle}, 0}
		return Open(t.Context(), medium, medium.size, Options{Rules: rulesFor(s)})
	}
	read := func(block int64, data []byte) ([]byte, error) {
		b, err := open(int64(len(tree)), data)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, verity.BlockSize)
		_, err = b.payload.ReadAt(p, block*verity.BlockSize)
		return p, b.src.judge("read", err)
	}
	if p, err := read(marked, mark); err != nil || !bytes.Equal(p, mark) {
		t.Errorf("block %d: %v, starts with %x", marked, err, p[:8])
	}
	if p, err := read(marked&(1<<20-1), mark); err != nil || !bytes.Equal(p, make([]byte, verity.BlockSize)) {
		t.Errorf("block 5: %v, starts with %x", err, p[:8])
	}
	_, err := read(marked, make([]byte, verity.BlockSize))
	wantCode(t, err, verify.PayloadHash)
	changed := bytes.Clone(mark)
	binary.BigEndian.PutUint64(changed[4088:], 1)
	_, err = read(marked, changed)
	wantCode(t, err, verify.PayloadHash)
	// A tree as it would be for the length in 32 bits.
	_, err = open(verity.TreeBlocks(1<<30/verity.BlockSize)*verity.BlockSize, mark)
	wantCode(t, err, verify.Malformed)
}
