package halves

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"lifeboat/disk"
)

// GPT is the GUID partition table of dev, whose first partition is the one that is started. Only its first and last LBA change,
// and with them the checksums. Who reads the table takes the primary one where its checksums are right, else the backup; both
// are made equal before anything is changed, so that at each point of a switch one of them is whole.
func GPT(dev disk.Device, r Region) Switch { return &gpt{dev, r} }

type gpt struct {
	dev disk.Device
	r   Region
}

// table is one of the two copies of a GPT, whole sectors.
type table struct {
	header, entries []byte
}

// Offsets in a header, which is gptHeader bytes long or longer.
const (
	gptHeader   = 92
	gptMagic    = "EFI PART\x00\x00\x01\x00"
	atSize      = 12
	atCRC       = 16
	atLBA       = 24
	atOther     = 32 // LBA of the other header
	atFirst     = 40 // usable
	atLast      = 48
	atEntries   = 72 // LBA
	atCount     = 80
	atEntrySize = 84
	atSum       = 88 // of the entries

	entrySize  = 128
	maxEntries = 128
	atStart    = 32 // of an entry
	atEnd      = 40
)

func (t *table) u64(at int) uint64 { return binary.LittleEndian.Uint64(t.header[at:]) }
func (t *table) u32(at int) uint32 { return binary.LittleEndian.Uint32(t.header[at:]) }

// sum puts the checksums right.
func (t *table) sum() {
	put := binary.LittleEndian.PutUint32
	put(t.header[atSum:], crc32.ChecksumIEEE(t.entries[:t.u32(atCount)*entrySize]))
	put(t.header[atCRC:], 0)
	put(t.header[atCRC:], crc32.ChecksumIEEE(t.header[:t.u32(atSize)]))
}

// read reads the copy whose header is in a sector; nil where it is not whole. Errors are those of the medium.
func (g *gpt) read(lba uint64) (*table, error) {
	size := uint64(g.dev.Size() / g.r.Sector)
	if lba == 0 || lba >= size {
		return nil, nil
	}
	t := &table{header: make([]byte, g.r.Sector)}
	if err := g.readAt(t.header, lba); err != nil {
		return nil, err
	}
	long, count := t.u32(atSize), t.u32(atCount)
	if string(t.header[:len(gptMagic)]) != gptMagic || long < gptHeader || int64(long) > g.r.Sector || t.u64(atLBA) != lba ||
		count == 0 || count > maxEntries || t.u32(atEntrySize) != entrySize {
		return nil, nil
	}
	sectors := (int64(count)*entrySize + g.r.Sector - 1) / g.r.Sector
	at := t.u64(atEntries)
	if at < 2 || at >= size || size-at < uint64(sectors) {
		return nil, nil
	}
	t.entries = make([]byte, sectors*g.r.Sector)
	if err := g.readAt(t.entries, at); err != nil {
		return nil, err
	}
	same := table{bytes.Clone(t.header), t.entries}
	if same.sum(); !bytes.Equal(same.header, t.header) {
		return nil, nil
	}
	return t, nil
}

func (g *gpt) readAt(b []byte, lba uint64) error {
	if n, err := g.dev.ReadAt(b, int64(lba)*g.r.Sector); n < len(b) {
		return failed("read the GPT", err)
	}
	return nil
}

// other makes of a copy the one in another sector, with its entries where at says.
func (t *table) other(lba, at uint64) *table {
	o := &table{bytes.Clone(t.header), bytes.Clone(t.entries)}
	binary.LittleEndian.PutUint64(o.header[atLBA:], lba)
	binary.LittleEndian.PutUint64(o.header[atOther:], t.u64(atLBA))
	binary.LittleEndian.PutUint64(o.header[atEntries:], at)
	o.sum()
	return o
}

// load reads both copies and returns them as they should be: the primary one where that is whole, and what follows from it.
func (g *gpt) load() (primary, backup *table, active int, err error) {
	var b [512]byte
	if n, err := g.dev.ReadAt(b[:], 0); n < len(b) {
		return nil, nil, 0, failed("read the GPT", err)
	}
	if !signed(b[:]) {
		return nil, nil, 0, foreign("there is no GPT")
	}
	protective := 0
	for i := range 4 {
		switch b[mbrTable+mbrEntry*i+4] {
		case 0:
		case mbrProtective:
			protective++
		default:
			return nil, nil, 0, foreign("there is no GPT, or a hybrid one")
		}
	}
	if protective != 1 {
		return nil, nil, 0, foreign("there is no GPT")
	}
	if primary, err = g.read(1); err != nil {
		return nil, nil, 0, err
	}
	last := uint64(g.dev.Size()/g.r.Sector) - 1
	if primary != nil {
		last = primary.u64(atOther)
	}
	if backup, err = g.read(last); err != nil {
		return nil, nil, 0, err
	}
	truth := primary
	if truth == nil {
		if truth = backup; truth == nil {
			return nil, nil, 0, foreign("both copies of the GPT are damaged")
		}
	}
	sectors := uint64(int64(len(truth.entries)) / g.r.Sector)
	at := last - sectors
	if backup != nil && len(backup.entries) == len(truth.entries) {
		at = backup.u64(atEntries)
	}
	if primary == nil {
		primary = backup.other(1, 2)
	}
	first, from := primary.u64(atFirst), primary.u64(atEntries)
	if last <= sectors || last >= uint64(g.dev.Size()/g.r.Sector) || at <= primary.u64(atLast) || at > last-sectors || from > first || first-from < sectors {
		return nil, nil, 0, foreign("the GPT's copies lie among its partitions")
	}
	backup = primary.other(last, at)
	active, err = g.find(primary)
	return primary, backup, active, err
}

// find says which half the first partition is, and that nothing else is there.
func (g *gpt) find(t *table) (active int, err error) {
	if err := g.r.check(int64(t.u64(atFirst))*g.r.Sector, min(g.dev.Size(), int64(t.u64(atLast)+1)*g.r.Sector)); err != nil {
		return 0, err
	}
	for n := range int(t.u32(atCount)) {
		e := t.entries[n*entrySize:]
		start, end := binary.LittleEndian.Uint64(e[atStart:]), binary.LittleEndian.Uint64(e[atEnd:])
		empty := [16]byte(e) == [16]byte{}
		switch {
		case n == 0 && empty:
			return 0, foreign("the GPT has no first partition")
		case n == 0:
			if active, err = g.r.active(start, end+1-start); err != nil {
				return 0, err
			}
		case !empty && g.r.meets(start, end+1):
			return 0, foreign("another partition lies in the region")
		}
	}
	return active, nil
}

func (g *gpt) Active() (int, error) {
	_, _, active, err := g.load()
	return active, err
}

func (g *gpt) Point(to int) error {
	primary, backup, active, err := g.load()
	if err != nil {
		return err
	}
	// What a cut has left of an earlier switch is put right, the copy first that nobody reads as long as the other is whole.
	if whole, err := g.read(1); err != nil {
		return err
	} else if whole == nil {
		if err := g.write(primary); err != nil {
			return err
		}
	}
	if err := g.write(backup); err != nil || active == to {
		return err
	}
	off, size := g.r.Half(to)
	for _, t := range []*table{backup, primary} {
		binary.LittleEndian.PutUint64(t.entries[atStart:], uint64(off/g.r.Sector))
		binary.LittleEndian.PutUint64(t.entries[atEnd:], uint64((off+size)/g.r.Sector-1))
		t.sum()
		if err := g.write(t); err != nil {
			return err
		}
	}
	return nil
}

// write writes those sectors of a copy that differ from what is there, and flushes.
func (g *gpt) write(t *table) error {
	old := make([]byte, g.r.Sector)
	put := func(b []byte, lba uint64) error {
		for at := int64(0); at < int64(len(b)); at += g.r.Sector {
			off, now := int64(lba)*g.r.Sector+at, b[at:at+g.r.Sector]
			if n, _ := g.dev.ReadAt(old, off); n == len(old) && bytes.Equal(old, now) {
				continue
			}
			if _, err := g.dev.WriteAt(now, off); err != nil {
				return failed("write the GPT", err)
			}
		}
		return nil
	}
	if err := put(t.entries, t.u64(atEntries)); err != nil {
		return err
	}
	if err := put(t.header, t.u64(atLBA)); err != nil {
		return err
	}
	return failed("write the GPT", g.dev.Flush())
}
