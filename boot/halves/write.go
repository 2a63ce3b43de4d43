package halves

import (
	"bytes"
	"io"

	"lifeboat/disk"
)

// mark stands in the last sector of a copy that is being written: its header may be anything then. A copy that fills its half
// has no room for it.
var mark = []byte("lifeboat: this copy is being written")

const pieceSize = 256 << 10 // bytes of a write

// Write writes an image of size bytes to dev, which is one copy of a boot loader and holds nothing else. sector is that of the
// disk. image writes the image to what it is given and returns an error where it was not what it should be: the header is
// written only after it. After a cut the copy has no header, or a mark in its last sector, or is whole.
func Write(dev disk.Device, sector, size int64, image func(io.Writer) error, progress func(done, total int64)) error {
	end := (size + sector - 1) / sector * sector
	if size <= 0 || end > dev.Size() {
		return foreign("the image does not fit into the boot loader's slot")
	}
	w := &copyWriter{dev: dev, sector: sector, size: size, progress: progress, buf: disk.Aligned(pieceSize)}
	room := dev.Size()-end >= sector
	last := disk.Aligned(int(sector))
	if room {
		copy(last, mark)
		if err := w.put(last, dev.Size()-sector); err != nil {
			return err
		}
	}
	clear(last)
	if err := w.put(last, 0); err != nil {
		return err
	}
	head := disk.Aligned(int(sector))
	w.head = head[:0]
	if err := image(w); err != nil {
		return err
	}
	w.fill()
	if err := w.flush(); err != nil {
		return err
	}
	if err := failed("write the boot loader", dev.Flush()); err != nil {
		return err
	}
	if err := w.put(head, 0); err != nil || !room {
		return err
	}
	return w.put(last, dev.Size()-sector)
}

// First says which copy of a boot-raw-fallback is written first: one that is marked, for the other one is whole then; copy 0,
// which the ROM takes first, where its first 512 bytes are cleared; else copy 1, so that copy 0 is there until that is done.
func First(copies [2]disk.Device, sector int64) (int, error) {
	b := make([]byte, sector)
	for n := 1; n >= 0; n-- {
		c := copies[n]
		if _, err := c.ReadAt(b, c.Size()-sector); err != nil {
			return 0, failed("read the boot loader", err)
		}
		if bytes.HasPrefix(b, mark) {
			return n, nil
		}
	}
	if _, err := copies[0].ReadAt(b, 0); err != nil {
		return 0, failed("read the boot loader", err)
	}
	for _, c := range b[:512] {
		if c != 0 && c != 0xff {
			return 1, nil
		}
	}
	return 0, nil
}

// copyWriter keeps the first sector for the end and writes the rest in whole sectors.
type copyWriter struct {
	dev          disk.Device
	sector, size int64
	progress     func(done, total int64)
	head         []byte // a sector, filled first
	buf          []byte
	n            int
	off          int64 // of buf, behind the first sector
}

func (w *copyWriter) Write(p []byte) (int, error) {
	all := len(p)
	n := min(len(p), cap(w.head)-len(w.head))
	w.head, p = append(w.head, p[:n]...), p[n:]
	for len(p) > 0 {
		n := copy(w.buf[w.n:], p)
		w.n, p = w.n+n, p[n:]
		if w.n == len(w.buf) {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return all, nil
}

// fill makes what is left a whole number of sectors.
func (w *copyWriter) fill() {
	for int64(w.n)%w.sector != 0 {
		w.buf[w.n] = 0
		w.n++
	}
}

func (w *copyWriter) flush() error {
	if _, err := w.dev.WriteAt(w.buf[:w.n], w.sector+w.off); err != nil {
		return failed("write the boot loader", err)
	}
	w.off, w.n = w.off+int64(w.n), 0
	if w.progress != nil {
		w.progress(min(w.sector+w.off, w.size), w.size)
	}
	return nil
}

// put writes one sector, durably.
func (w *copyWriter) put(b []byte, off int64) error {
	if _, err := w.dev.WriteAt(b, off); err != nil {
		return failed("write the boot loader", err)
	}
	return failed("write the boot loader", w.dev.Flush())
}
