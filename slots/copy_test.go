package slots

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"lifeboat/disk"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// worn is a disk that counts what is written, and cannot read one of its bytes.
type worn struct {
	disk.Device
	mu      sync.Mutex
	written int64
	bad     int64
}

func (c *worn) WriteAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	c.written += int64(len(p))
	c.mu.Unlock()
	return c.Device.WriteAt(p, off)
}

func (c *worn) ReadAt(p []byte, off int64) (int, error) {
	if c.bad >= off && c.bad < off+int64(len(p)) {
		return 0, errors.New("medium error")
	}
	return c.Device.ReadAt(p, off)
}

// A copy writes what differs or cannot be read, up to the end of the hash tree, and nothing else.
func TestCopy(t *testing.T) {
	const blocks = 3 * pieceSize / verity.BlockSize
	used := (blocks + verity.TreeBlocks(blocks)) * verity.BlockSize
	content := make([]byte, used)
	rand.NewChaCha8([32]byte{}).Read(content)
	f := Facts{DataBlocks: blocks}
	for _, test := range []struct {
		name    string
		change  func(b []byte)
		bad     int64
		written int64
	}{
		{"empty", func(b []byte) { clear(b) }, -1, used},
		{"the same", func([]byte) {}, -1, 0},
		{"one byte", func(b []byte) { b[pieceSize+5] ^= 1 }, -1, verity.BlockSize},
		{"the last byte of the tree", func(b []byte) { b[len(b)-1] ^= 1 }, -1, verity.BlockSize},
		{"cut in the middle", func(b []byte) { clear(b[2*pieceSize:]) }, -1, used - 2*pieceSize},
		{"unreadable", func([]byte) {}, 7, pieceSize},
	} {
		size := used + SealSize + 8192
		to := &worn{Device: disk.NewMemory(size), bad: -1}
		before := bytes.Clone(content)
		test.change(before)
		to.WriteAt(before, 0)
		to.WriteAt(bytes.Repeat([]byte{7}, int(size-used)), used)
		to.written, to.bad = 0, test.bad
		var last int64
		old := &Old{R: to}
		if err := Copy(t.Context(), to, bytes.NewReader(content), f, "rootfs", old, func(done, total int64) {
			if done <= last || total != used {
				t.Errorf("%s: progress %d of %d after %d", test.name, done, total, last)
			}
			last = done
		}); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		to.bad = -1
		after := make([]byte, size)
		to.ReadAt(after, 0)
		if !bytes.Equal(after[:used], content) || !bytes.Equal(after[used:], bytes.Repeat([]byte{7}, int(size-used))) {
			t.Errorf("%s: the slot is not as it should be", test.name)
		}
		if to.written != test.written || old.Same != used-test.written || last != used {
			t.Errorf("%s: %d bytes written instead of %d, %d kept, progress up to %d", test.name, to.written, test.written, old.Same, last)
		}
	}
	if err := Copy(t.Context(), disk.NewMemory(used+SealSize-4096), bytes.NewReader(content), f, "rootfs", &Old{}, nil); verify.CodeOf(err) != verify.Policy {
		t.Errorf("a slot that is too small: %v", err)
	}
	if err := Copy(t.Context(), disk.NewMemory(used+SealSize), bytes.NewReader(content[:used-1]), f, "rootfs", &Old{}, nil); verify.CodeOf(err) != verify.IO {
		t.Errorf("a source that ends: %v", err)
	}
}
