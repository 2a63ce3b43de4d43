package slots

import (
	"bytes"
	"io"

	"lifeboat/disk"
	"lifeboat/verify/verity"
)

// Old is what a slot holds that is going to be written over. What is there already is not written again: a flash lives longer,
// and reading is quicker. Nothing is assumed of it; every block is compared with the one that is to be there.
type Old struct {
	R    io.ReaderAt // the slot, best past every cache: what lies there only in memory may not be what the medium has
	Same int64       // grows by the bytes of image and hash tree that were not written
}

// maxBad is how many reads of a slot may fail. Each may have cost a medium seconds; from then on all is written.
const maxBad = 8

// sparing writes those blocks to a slot that differ from what is there, blocks that lie side by side at once. What can't be
// read is written.
type sparing struct {
	w    io.WriterAt
	r    io.ReaderAt // nil: nothing is known, and all is written
	buf  []byte
	bad  int
	same int64 // bytes that were there already
}

func (s *sparing) WriteAt(p []byte, off int64) (int, error) {
	var old []byte
	if s.r != nil && s.bad < maxBad {
		if len(s.buf) < len(p) {
			s.buf = disk.Aligned(len(p))
		}
		old = s.buf[:len(p)]
		if n, _ := s.r.ReadAt(old, off); n < len(p) {
			old = nil
			s.bad++
		}
	}
	for at, begin := 0, 0; begin < len(p); at += verity.BlockSize {
		if at < len(p) && (old == nil || !bytes.Equal(p[at:at+verity.BlockSize], old[at:at+verity.BlockSize])) {
			continue
		}
		if at > begin {
			if _, err := s.w.WriteAt(p[begin:at], off+int64(begin)); err != nil {
				return 0, err
			}
		}
		if begin = at + verity.BlockSize; at < len(p) {
			s.same += verity.BlockSize
		}
	}
	return len(p), nil
}
