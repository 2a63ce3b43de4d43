// Package data is the partition that systems write to and that outlives them: made at the first boot, never made again by
// itself, mounted before a system starts, and the folders on it that are laid over a read-only root.
//
// [Prepare] decides whether it is made or opened; [Volume] is what the kernel makes of it; [Overlay] lays a folder of it over
// one of the system's.
package data

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"lifeboat/disk"
)

// Label says what a data partition is. It lies in its last 4 KiB, and twice on the state partition, so that neither a partition
// that is erased nor a state partition that is replaced makes a device forget that there were data.
type Label struct {
	Whole     bool     // it was complete once, and is never made again
	Integrity string   // "none", "crc32c", "sha256" or "hmac-sha256"
	ID        [16]byte // UUID of its file system
}

// A label, little endian, 4096 bytes:
//
//	 0 8 magic "lfbtDATA"   8 u16 format, 1   10 u8 1: being made, 2: whole
//	11 u8 0 none, 1 crc32c, 2 sha256, 3 hmac-sha256
//	12 u32 CRC-32C of the block with this field zero
//	16 16 UUID   zeros to the end
const (
	labelMagic = "lfbtDATA"
	labelSize  = 4096
)

// Copies are where the state partition keeps the label, bytes from its start: behind the kernel's last words.
var Copies = [2]int64{15<<19 + 64<<10, 31 << 18}

// blankEnds is how much at either end is zero where nobody has made anything: all that tells of a file system, a RAID or an
// encrypted volume lies there.
const blankEnds = 64 << 10

var kinds = [...]string{"none", "crc32c", "sha256", "hmac-sha256"}

var (
	// ErrForeign says that the partition holds what lifeboat did not make. Zeros in its first and last 64 KiB make it free.
	ErrForeign = errors.New("the data partition holds something that was not made here")
	// ErrOther says that the partition is not the one that this device made, or is made in another way than asked for.
	ErrOther = errors.New("it is not the data partition of this device")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 {
	return crc32.Update(crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, []byte{0, 0, 0, 0}), castagnoli, b[16:])
}

func (l Label) encode() []byte {
	b := make([]byte, labelSize)
	copy(b, labelMagic)
	b[8], b[10] = 1, 1
	if l.Whole {
		b[10] = 2
	}
	for i, k := range kinds {
		if k == l.Integrity {
			b[11] = uint8(i)
		}
	}
	copy(b[16:], l.ID[:])
	binary.LittleEndian.PutUint32(b[12:], checksum(b))
	return b
}

// decode returns false for what is no label.
func decode(b []byte) (l Label, ok bool) {
	if len(b) != labelSize || string(b[:8]) != labelMagic || binary.LittleEndian.Uint16(b[8:]) != 1 || b[10] != 1 && b[10] != 2 ||
		int(b[11]) >= len(kinds) || checksum(b) != binary.LittleEndian.Uint32(b[12:]) || !zero(b[32:]) {
		return Label{}, false
	}
	return Label{Whole: b[10] == 2, Integrity: kinds[b[11]], ID: [16]byte(b[16:32])}, true
}

func zero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// Room is how many bytes of a partition of so many the data have: all but the last 4 KiB, in whole blocks.
func Room(size int64) int64 { return size/labelSize*labelSize - labelSize }

// Prepare returns what the data partition part is, and makes it where it never was whole. making is called with a label and
// returns when the partition holds, durably, what Open opens with it.
//
// It is made only where the state partition can be written, and only where nothing is lost by it: what making left when power
// was cut, or a partition with zeros at both ends. From the commit of the label on the state partition on, nothing makes it
// again, whatever it looks like. A cut before leaves a partition that is made anew at the next boot.
func Prepare(part, state disk.Device, integrity string, making func(Label) error) (l Label, made bool, err error) {
	own, ownErr := at(part, Room(part.Size()))
	kept, keptErr := remembered(state)
	if ownErr != nil && !kept.Whole {
		return l, false, ownErr
	}
	if kept.Whole || own.Whole {
		l = kept
		if !kept.Whole {
			l = own
		}
		switch {
		case kept.Whole && own != (Label{}) && own.ID != kept.ID:
			return l, false, ErrOther
		case l.Integrity != integrity:
			return l, false, fmt.Errorf("%w: it was made with integrity=%s", ErrOther, l.Integrity)
		}
		if !kept.Whole {
			_ = remember(state, l) // not there: the partition's own label does
		}
		if !own.Whole && ownErr == nil {
			_ = sign(part, l)
		}
		return l, false, nil
	}
	if keptErr != nil {
		return l, false, keptErr
	}
	if kept == (Label{}) && own == (Label{}) {
		if err := blank(part); err != nil {
			return l, false, err
		}
	}
	l = Label{Integrity: integrity}
	if _, err := rand.Read(l.ID[:]); err != nil {
		return l, false, err
	}
	l.ID[6], l.ID[8] = l.ID[6]&0x0f|0x40, l.ID[8]&0x3f|0x80 // RFC 9562, version 4
	if err = remember(state, l); err == nil {
		if err = sign(part, l); err == nil {
			err = making(l)
		}
	}
	l.Whole = true
	if err == nil {
		err = remember(state, l)
	}
	if err == nil {
		err = sign(part, l)
	}
	return l, err == nil, err
}

// remembered returns the label that the state partition keeps; an error means that it cannot be known.
func remembered(state disk.Device) (l Label, err error) {
	if state == nil {
		return l, errors.New("the data partition is made when the state partition can be written")
	}
	var errs []error
	for _, off := range Copies {
		c, err := at(state, off)
		errs = append(errs, err)
		if c.Whole || l == (Label{}) {
			l = c
		}
	}
	if l.Whole {
		return l, nil
	}
	return l, errors.Join(errs...)
}

// remember writes one copy after the other: a cut leaves one of them.
func remember(state disk.Device, l Label) error {
	if state == nil {
		return errors.New("no state partition")
	}
	for _, off := range Copies {
		if err := write(state, l, off); err != nil {
			return err
		}
	}
	return nil
}

// sign writes the partition's own label.
func sign(part disk.Device, l Label) error {
	return write(part, l, Room(part.Size()))
}

func write(d disk.Device, l Label, off int64) error {
	_, err := d.WriteAt(l.encode(), off)
	if err == nil {
		err = d.Flush()
	}
	if err != nil {
		return fmt.Errorf("write the label of the data partition: %w", err)
	}
	return nil
}

func at(d disk.Device, off int64) (Label, error) {
	b := make([]byte, labelSize)
	if _, err := d.ReadAt(b, off); err != nil {
		return Label{}, fmt.Errorf("read the label of the data partition: %w", err)
	}
	l, _ := decode(b)
	return l, nil
}

func blank(part disk.Device) error {
	size := part.Size()
	b := make([]byte, blankEnds)
	if size < 2*blankEnds {
		return errors.New("the data partition is too small")
	}
	for _, off := range []int64{0, size - blankEnds} {
		if _, err := part.ReadAt(b, off); err != nil {
			return fmt.Errorf("look at the data partition: %w", err)
		}
		if !zero(b) {
			return ErrForeign
		}
	}
	return nil
}
