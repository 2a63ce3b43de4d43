// Package barebox speaks with barebox's bootchooser through its state framework: three copies of the variables, each with
// two CRCs, of which barebox takes the first that is valid. It keeps for each slot how often it may still be started
// (bootstate.NAME.remaining_attempts) and how much it is preferred (bootstate.NAME.priority, 0: never); barebox starts the
// slot with the highest priority that has attempts left, one less each time. The names are those of RAUC and of barebox's
// own manual; where the variables lie the device tree says. docs/formats.md has the bytes.
package barebox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"

	"lifeboat/boot"
	"lifeboat/disk"
)

const (
	copies     = 3
	headerSize = 16
	first      = 21 // priority of the slot that comes first, then 11 and less: RAUC writes 20 and 10, a device tree other defaults
)

var le = binary.LittleEndian

// medium is where the copies lie, counted from 0.
type medium interface {
	read(i int) ([]byte, error)       // header, data, and whatever stands behind; nil: nothing is there
	write(i int, packed []byte) error // returns when it is durable
	room() int                        // bytes of a copy
}

// Loader is a boot.Loader over the state of barebox.
type Loader struct {
	m     medium
	l     Layout
	names []string
	at    [][2]int // of each slot's remaining attempts and priority
}

var errSmall = errors.New("barebox's state: three copies do not fit where they should lie")

// New returns the Loader for slots with these bootnames. area begins with the first copy; each has 8 bytes of its own
// before the header, a magic and the length of what follows.
func New(area disk.Device, l Layout, names []string) (*Loader, error) {
	if area.Size() < copies*l.Stride {
		return nil, errSmall
	}
	return newLoader(direct{area, l.Stride}, l, names)
}

func newLoader(m medium, l Layout, names []string) (*Loader, error) {
	if m.room() < headerSize+len(l.Fresh) || len(names) == 0 {
		return nil, errSmall
	}
	b := &Loader{m: m, l: l, names: names}
	for _, n := range names {
		left, ok := l.At["bootstate."+n+".remaining_attempts"]
		rank, too := l.At["bootstate."+n+".priority"]
		if !ok || !too {
			return nil, errors.New("barebox's state has no attempts and priority of bootstate." + n)
		}
		b.at = append(b.at, [2]int{left, rank})
	}
	return b, nil
}

// Most is as much as boot.Turn keeps; barebox has 32 bits.
func (b *Loader) Most() uint8 { return 255 }

func (b *Loader) Read() (v boot.Vars, err error) {
	data, _, err := b.load()
	if err != nil {
		return v, err
	}
	rank := func(i int) uint32 { return le.Uint32(data[b.at[i][1]:]) }
	lost, alike := true, rank(0) > 0
	for i, at := range b.at {
		lost = lost && rank(i) == le.Uint32(b.l.Fresh[at[1]:])
		alike = alike && rank(i) == rank(0)
	}
	if lost && rank(0) > 0 || alike && len(b.at) > 1 {
		return v, boot.ErrNoVars // what barebox makes of a state that it found nowhere; nobody has written it
	}
	var order []int
	for i := range b.names {
		if rank(i) == 0 {
			continue
		}
		order = append(order, i)
		for at := len(order) - 1; at > 0 && rank(order[at-1]) < rank(i); at-- { // those that have the same stay before it
			order[at-1], order[at] = order[at], order[at-1]
		}
	}
	for _, i := range order {
		v.Order = append(v.Order, boot.Turn{Name: b.names[i], Tries: uint8(min(le.Uint32(data[b.at[i][0]:]), 255))})
	}
	return v, nil
}

// Write writes all copies, the one that counts now last: until then it is what barebox finds, or one of the new ones is.
func (b *Loader) Write(v boot.Vars) error {
	data, used, err := b.load()
	if err == boot.ErrNoVars {
		data, used = bytes.Clone(b.l.Fresh), 0
	} else if err != nil {
		return err
	}
	for i, n := range b.names {
		left, rank := 0, 0
		for at, t := range v.Order {
			if t.Name == n {
				left, rank = int(t.Tries), 12-at
				if at == 0 {
					rank = first
				}
			}
		}
		le.PutUint32(data[b.at[i][0]:], uint32(left))
		le.PutUint32(data[b.at[i][1]:], uint32(rank))
	}
	packed := b.pack(data)
	failed := 0
	for i := range copies {
		if failed == copies-1 {
			break // it is the only one that can be written, and would be lost with a power cut
		}
		if e := b.m.write((used+1+i)%copies, packed); e != nil {
			failed, err = failed+1, e
		}
	}
	now, _, e := b.load()
	switch {
	case e == nil && bytes.Equal(now, data):
		return nil // a copy that cannot be written any more costs no boot
	case e != nil:
		return e
	case failed > 0:
		return err
	}
	return errors.New("barebox's state was written and reads differently")
}

// load returns the data of the copy that barebox takes, and which it is: the first whose CRCs are right.
func (b *Loader) load() (data []byte, used int, err error) {
	failed := 0
	for i := range copies {
		p, e := b.m.read(i)
		if e != nil {
			failed, err = failed+1, e
		} else if data := b.unpack(p); data != nil {
			return data, i, nil
		}
	}
	if failed < copies {
		err = boot.ErrNoVars
	}
	return nil, 0, err
}

// pack puts the header before the data: magic, 0 and the length (16 bits each), CRC of the data, CRC of what stands before.
func (b *Loader) pack(data []byte) []byte {
	p := make([]byte, headerSize, headerSize+len(data))
	le.PutUint32(p, b.l.Magic)
	le.PutUint16(p[6:], uint16(len(data)))
	le.PutUint32(p[8:], crc32.ChecksumIEEE(data))
	le.PutUint32(p[12:], crc32.ChecksumIEEE(p[:12]))
	return append(p, data...)
}

// unpack returns the data, as long as the layout says; nil where it is not valid.
func (b *Loader) unpack(p []byte) []byte {
	if len(p) < headerSize+len(b.l.Fresh) || le.Uint32(p) != b.l.Magic || le.Uint32(p[12:]) != crc32.ChecksumIEEE(p[:12]) {
		return nil
	}
	n := int(le.Uint16(p[6:]))
	if n > len(p)-headerSize || n < len(b.l.Fresh) || le.Uint32(p[8:]) != crc32.ChecksumIEEE(p[headerSize:][:n]) {
		return nil
	}
	return p[headerSize:][:len(b.l.Fresh)]
}

// direct are copies that lie side by side and are written over.
type direct struct {
	area   disk.Device
	stride int64
}

const (
	directMagic = 0x2354fdf3
	metaSize    = 8
)

func (d direct) room() int { return int(d.stride) - metaSize }

func (d direct) read(i int) ([]byte, error) {
	p := make([]byte, d.stride)
	if n, err := d.area.ReadAt(p, int64(i)*d.stride); n < len(p) {
		return nil, err
	}
	n := le.Uint32(p[4:])
	if le.Uint32(p) != directMagic || int(n) > d.room() || int(n) < 0 {
		return nil, nil
	}
	return p[metaSize:][:n], nil
}

func (d direct) write(i int, packed []byte) error {
	p := make([]byte, metaSize, metaSize+len(packed))
	le.PutUint32(p, directMagic)
	le.PutUint32(p[4:], uint32(len(packed)))
	if _, err := d.area.WriteAt(append(p, packed...), int64(i)*d.stride); err != nil {
		return err
	}
	return d.area.Flush()
}
