// Package staging keeps a bundle on a partition of its own until the next boot: headers, and behind them the bundle's bytes.
// There is no file system and nothing is mounted. What is staged says the boot state; a header says how far a bundle came,
// so that it goes on after an interruption, and where one is for a rescue that lost the state.
//
// The layout, little endian:
//
//	0        4 KiB  header 1
//	4 KiB    4 KiB  header 2
//	1 MiB           bundles, each from a whole MiB on
//
//	header:
//	 0   8 bytes  magic "lfbtSTAG"
//	 8   u16      format, 1
//	10   u8       1: the bundle is whole and was judged
//	11   u8       0
//	12   u32      CRC-32C of all 4096 bytes with this field zero
//	16   u64      offset of the bundle
//	24   u64      its size in bytes, 0: not known yet
//	32   u64      bytes that are written
//	40   32       manifest hash of a whole one
//	     zeros    to the end
//
// Whoever writes here locks the partition against other writers of the running system.
package staging

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"lifeboat/disk"
)

// Start is where bundles begin, in bytes.
const Start = 1 << 20

const (
	headerSize = 4096
	headers    = 2
	magic      = "lfbtSTAG"
	format     = 1
	unit       = 1 << 20  // bundles begin at multiples of it, and so much is read and written at once
	step       = 32 << 20 // so often a header says how far it is
)

// Area is where a bundle lies, in bytes.
type Area struct{ Offset, Size int64 }

func (a Area) end() int64 { return a.Offset + a.Size }

// Header is what is known of one bundle.
type Header struct {
	Area              // Size 0: not known yet
	Done     int64    // bytes that are written
	Whole    bool     // all of it, and it was judged
	Manifest [32]byte // of a whole one
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (h Header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint16(b[8:], format)
	if h.Whole {
		b[10] = 1
	}
	le.PutUint64(b[16:], uint64(h.Offset))
	le.PutUint64(b[24:], uint64(h.Size))
	le.PutUint64(b[32:], uint64(h.Done))
	copy(b[40:], h.Manifest[:])
	seal(b)
	return b
}

// seal puts the checksum into a header.
func seal(b []byte) {
	clear(b[12:16])
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b, castagnoli))
}

// decode reads a header of a partition of size bytes. What it accepts, encode gives back byte for byte.
func decode(b []byte, size int64) (h Header, ok bool) {
	le := binary.LittleEndian
	if len(b) != headerSize || string(b[:8]) != magic {
		return h, false
	}
	h = Header{Area: Area{int64(le.Uint64(b[16:])), int64(le.Uint64(b[24:]))}, Done: int64(le.Uint64(b[32:])), Whole: b[10] == 1}
	copy(h.Manifest[:], b[40:])
	if !bytes.Equal(h.encode(), b) {
		return Header{}, false
	}
	most := size - h.Offset
	if h.Offset < Start || h.Offset%unit != 0 || most <= 0 || h.Size < 0 || h.Size > most || h.Done < 0 || h.Done > most ||
		h.Size > 0 && h.Done > h.Size || h.Whole && (h.Size == 0 || h.Done != h.Size) {
		return Header{}, false
	}
	return h, true
}

// read returns the headers of a partition; one that is torn or was never written is empty.
func read(dev io.ReaderAt, size int64) (all [headers]Header) {
	for i := range all {
		b := make([]byte, headerSize)
		if _, err := dev.ReadAt(b, int64(i)*headerSize); err == nil {
			all[i], _ = decode(b, size)
		}
	}
	return all
}

// ErrNone means that no header names a whole bundle.
var ErrNone = errors.New("nothing whole is staged")

// Find returns where the whole bundle lies that a header names, for when the state does not say. size is that of the
// partition.
func Find(dev io.ReaderAt, size int64) (Area, error) {
	for _, h := range read(dev, size) {
		if h.Whole {
			return h.Area, nil
		}
	}
	return Area{}, ErrNone
}

// ErrRoom means that a bundle does not fit.
var ErrRoom = errors.New("the staging partition has too little room")

// Place chooses where a bundle of size bytes goes, 0 where that is not known, beside the one that stays (its Size is 0 where
// none does). The Size of the answer is the room that there is.
func Place(partition, size int64, stays Area) (Area, error) {
	free := []Area{{Start, partition - Start}}
	if stays.Size > 0 {
		after := (stays.end() + unit - 1) / unit * unit
		free = []Area{{Start, stays.Offset - Start}, {after, partition - after}}
	}
	var best Area
	for _, a := range free {
		if size > 0 && a.Size >= size {
			return a, nil
		}
		if a.Size > best.Size {
			best = a
		}
	}
	if best.Size <= 0 || size > 0 {
		beside := ""
		if stays.Size > 0 {
			beside = fmt.Sprintf(" beside the %d bytes that are staged", stays.Size)
		}
		return best, fmt.Errorf("%w: %d bytes are needed%s, %d are free", ErrRoom, max(size, 1), beside, max(best.Size, 0))
	}
	return best, nil
}

// Progress is told how far it is. total is 0 where it is not known; kept is how much of done was there already.
type Progress func(done, total, kept int64)

// Write puts a bundle from r to a place that Place chose, and returns where it lies once it is durable. size is 0 where it
// is not known. What an interrupted Write of the same bundle to the same place has left is compared and kept. A cut or an error leaves
// everything outside the place as it was, and the header of the other bundle; stays is that one.
func Write(ctx context.Context, dev disk.Device, r io.Reader, size int64, place, stays Area, progress Progress) (Area, error) {
	if size > place.Size {
		return Area{}, fmt.Errorf("%w: %d bytes are needed, %d are free", ErrRoom, size, place.Size)
	}
	w := &writer{dev: dev, header: Header{Area: Area{place.Offset, size}}}
	known := int64(0) // bytes that are worth a comparison
	for i, h := range read(dev, dev.Size()) {
		if stays.Size > 0 && h.Area == stays {
			w.at = int64(1-i) * headerSize
		} else if h.Offset == place.Offset {
			known = max(known, h.Done)
		}
	}
	buf, there := make([]byte, unit), make([]byte, unit)
	writing := false
	kept, noted := int64(0), int64(0)
	for done := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return Area{}, w.stop(done, writing, err)
		}
		n, e := io.ReadFull(r, buf[:min(unit, place.Size-done)])
		if done == place.Size {
			// As much as there is room for. Is that the end?
			if n, e = io.ReadFull(r, buf[:1]); n > 0 {
				return Area{}, w.stop(done, writing, fmt.Errorf("%w: the bundle is larger than the %d bytes that are free", ErrRoom, place.Size))
			}
		}
		end := e == io.EOF || e == io.ErrUnexpectedEOF
		if e != nil && !end {
			return Area{}, w.stop(done, writing, fmt.Errorf("read the bundle: %w", e))
		}
		if size > 0 && done+int64(n) > size {
			return Area{}, w.stop(done, writing, errors.New("the bundle grew while it was read"))
		}
		part := buf[:n]
		if !writing && n > 0 {
			same := false
			if done+int64(n) <= known {
				_, err := dev.ReadAt(there[:n], place.Offset+done)
				same = err == nil && bytes.Equal(part, there[:n])
			}
			if same {
				kept += int64(n)
			} else {
				// From here on what headers said of this place holds no more.
				if err := w.begin(done, stays); err != nil {
					return Area{}, err
				}
				writing, noted = true, done
			}
		}
		if writing && n > 0 {
			if _, err := dev.WriteAt(part, place.Offset+done); err != nil {
				return Area{}, w.stop(done, false, err)
			}
		}
		done += int64(n)
		if progress != nil {
			progress(done, size, kept)
		}
		if end {
			if done == 0 || done < size {
				return Area{}, w.stop(done, writing, fmt.Errorf("the bundle ends after %d bytes", done))
			}
			w.header.Size = done
			if err := w.note(done); err != nil {
				return Area{}, err
			}
			if err := dev.Flush(); err != nil {
				return Area{}, fmt.Errorf("flush what was staged: %w", err)
			}
			return w.header.Area, nil
		}
		if writing && done-noted >= step {
			if err := dev.Flush(); err != nil {
				return Area{}, fmt.Errorf("flush what was staged: %w", err)
			}
			if err := w.note(done); err != nil {
				return Area{}, err
			}
			noted = done
		}
	}
}

type writer struct {
	dev    disk.Device
	at     int64 // of the header
	header Header
}

// begin makes the header durable before the first byte is written, and the only one beside that of stays.
func (w *writer) begin(done int64, stays Area) error {
	for i, h := range read(w.dev, w.dev.Size()) {
		if at := int64(i) * headerSize; at != w.at && h != (Header{}) && (stays.Size == 0 || h.Area != stays) {
			if _, err := w.dev.WriteAt(make([]byte, headerSize), at); err != nil {
				return fmt.Errorf("wipe the staging header: %w", err)
			}
		}
	}
	if err := w.note(done); err != nil {
		return err
	}
	return w.dev.Flush()
}

func (w *writer) note(done int64) error {
	w.header.Done = done
	if _, err := w.dev.WriteAt(w.header.encode(), w.at); err != nil {
		return fmt.Errorf("write the staging header: %w", err)
	}
	return nil
}

// stop notes how far it came, so that the same bundle goes on there.
func (w *writer) stop(done int64, writing bool, why error) error {
	if writing && w.dev.Flush() == nil && w.note(done) == nil {
		_ = w.dev.Flush() // what is lost of it costs time only
	}
	return why
}

// Keep notes that the bundle that Write left is whole and was judged. It returns when that is durable.
func Keep(dev disk.Device, at Area, manifest [32]byte) error {
	for i, h := range read(dev, dev.Size()) {
		if h.Area == at && h.Done == h.Size {
			w := &writer{dev: dev, at: int64(i) * headerSize, header: Header{Area: at, Whole: true, Manifest: manifest}}
			if err := w.note(at.Size); err != nil {
				return err
			}
			return dev.Flush()
		}
	}
	return errors.New("the staging header does not say what was written")
}

// Forget makes all headers but that of stays say nothing, so that no rescue takes what was taken back. The bytes stay.
func Forget(dev disk.Device, stays Area) error {
	for i, h := range read(dev, dev.Size()) {
		if h == (Header{}) || stays.Size > 0 && h.Area == stays {
			continue
		}
		if _, err := dev.WriteAt(make([]byte, headerSize), int64(i)*headerSize); err != nil {
			return fmt.Errorf("wipe the staging header: %w", err)
		}
	}
	return dev.Flush()
}

// Same reports whether r holds what lies in an area, no more and no less.
func Same(ctx context.Context, dev io.ReaderAt, at Area, r io.Reader) (bool, error) {
	buf, there := make([]byte, unit), make([]byte, unit)
	for done := int64(0); ctx.Err() == nil; {
		n, err := io.ReadFull(r, buf)
		end := err == io.EOF || err == io.ErrUnexpectedEOF
		switch {
		case err != nil && !end:
			return false, fmt.Errorf("read the bundle: %w", err)
		case done+int64(n) > at.Size || end && done+int64(n) < at.Size:
			return false, nil
		}
		if _, err := dev.ReadAt(there[:n], at.Offset+done); err != nil || !bytes.Equal(buf[:n], there[:n]) {
			return false, nil
		}
		if done += int64(n); end {
			return true, nil
		}
	}
	return false, ctx.Err()
}
