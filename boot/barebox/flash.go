package barebox

import (
	"errors"
	"io"

	"lifeboat/disk"
)

// Flash is a medium that is erased before it is written: a raw flash behind Linux's MTD. Each copy lies in an erase block of
// its own, and the last one written in the block counts ("circular").
type Flash interface {
	disk.Device
	Erase(off, n int64) error // whole erase blocks; all bits of them are ones then
	EraseSize() int64
	WriteSize() int64 // writes begin and end at multiples of it
}

// NewFlash is New for copies on flash; the layout's stride means nothing there.
func NewFlash(area Flash, l Layout, names []string) (*Loader, error) {
	c := circular{area, area.EraseSize(), max(area.WriteSize(), metaSize)}
	if c.block < c.unit || c.block%c.unit != 0 || c.block > 16<<20 || area.Size() < copies*c.block {
		return nil, errSmall
	}
	return newLoader(c, l, names)
}

type circular struct {
	Flash
	block, unit int64
}

const circleMagic = 0x14fa2d02

func (c circular) room() int { return int(c.block - metaSize) }

func (c circular) read(i int) ([]byte, error) {
	p := make([]byte, c.block)
	if _, err := c.ReadAt(p, int64(i)*c.block); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	end := c.block
	for end > 0 && blank(p[end-c.unit:end]) {
		end -= c.unit
	}
	if end == 0 {
		return nil, nil
	}
	n := int64(le.Uint32(p[end-4:]))
	switch {
	case le.Uint32(p[end-metaSize:]) != circleMagic:
		return p[:end], nil // as barebox reads what has no end: from the start
	case n < metaSize || n > end || n%c.unit != 0:
		return nil, nil
	}
	return p[end-n : end-metaSize], nil
}

// write always erases the block before: barebox would take what stands at the start of a block whose last write was torn,
// however old.
func (c circular) write(i int, packed []byte) error {
	at, n := int64(i)*c.block, (int64(len(packed))+metaSize+c.unit-1)/c.unit*c.unit
	p := make([]byte, n)
	copy(p, packed)
	le.PutUint32(p[n-metaSize:], circleMagic)
	le.PutUint32(p[n-4:], uint32(n))
	if err := c.Erase(at, c.block); err != nil {
		return err
	}
	if _, err := c.WriteAt(p, at); err != nil {
		return err
	}
	return c.Flush()
}

func blank(p []byte) bool {
	for _, c := range p {
		if c != 0xff {
			return false
		}
	}
	return true
}
