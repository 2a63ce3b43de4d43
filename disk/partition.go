package disk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sort"
	"strconv"
	"unicode/utf16"
)

// ErrTable is wrapped by every error about a partition table that contradicts itself or the device.
var ErrTable = errors.New("bad partition table")

const (
	maxEntries = 128 // of a GPT, all that any tool writes by itself
	maxLogical = 64  // of an MBR

	mbrExtended    = 0x05
	mbrExtendedLBA = 0x0f
	mbrExtendedOld = 0x85
	mbrProtective  = 0xee
)

// Partition is a partition as a partition table describes it.
type Partition struct {
	Index       int    // as the kernel numbers it: 1.., logical MBR partitions from 5
	Start, Size int64  // bytes; within the device, overlapping no other
	Name        string // GPT label, UTF-8, with U+FFFD for what can't be printed; "" in an MBR
	Type        string // GPT: GUID in lower case; MBR: "0x0c"
}

// Partitions reads the partition table of a disk of size bytes, GPT or MBR, for sectors of 512 and of
// 4096 bytes, sorted by index. No table (a file system on the whole disk, an empty disk) gives none and no error.
//
// The bytes are taken for hostile. It reads at most 64 sectors of MBR chain, or two headers and their
// entries (at most 512 KiB each); it refuses (ErrTable) GPTs of more than 128 entries, wrong checksums,
// overlaps and what lies outside the device. The backup GPT, in the last sector, counts only where the
// primary is damaged: a primary with right checksums and wrong contents is refused. An MBR partition that
// goes on beyond the end of the disk is cut there, as the kernel does.
func Partitions(r io.ReaderAt, size int64) ([]Partition, error) {
	if size < 512 {
		return nil, nil
	}
	var sector [512]byte
	if err := readFull(r, sector[:], 0); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	entries, ok := mbrEntries(sector[:])
	if !ok {
		return nil, nil
	}
	var (
		parts []Partition
		err   error
	)
	// One protective entry is enough: in a hybrid table the GPT is the true one. A GPT without
	// any is a leftover (as for the kernel).
	if slices.ContainsFunc(entries[:], func(e mbrEntry) bool { return e.kind == mbrProtective }) {
		parts, err = gpt(r, size)
	} else {
		parts, err = mbr(r, size, entries)
	}
	if err != nil {
		return nil, err
	}
	if err := overlaps(parts); err != nil {
		return nil, err
	}
	sort.SliceStable(parts, func(i, j int) bool { return parts[i].Index < parts[j].Index })
	return parts, nil
}

// readFull fills p from off; the end of r before that is an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func tableError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrTable, fmt.Sprintf(format, args...))
}

func overlaps(parts []Partition) error {
	byStart := slices.Clone(parts)
	sort.SliceStable(byStart, func(i, j int) bool { return byStart[i].Start < byStart[j].Start })
	for i := 1; i < len(byStart); i++ {
		if a, b := byStart[i-1], byStart[i]; b.Start-a.Start < a.Size {
			return tableError("partitions %d and %d overlap", a.Index, b.Index)
		}
	}
	return nil
}

// mbrEntry is one of the four 16-byte entries at 446: status, CHS start (3), type, CHS end (3), start LBA
// and number of sectors (little endian).
type mbrEntry struct {
	status, kind byte
	start, count uint32
}

func (e mbrEntry) empty() bool { return e.kind == 0 || e.count == 0 }

func (e mbrEntry) extended() bool {
	return e.kind == mbrExtended || e.kind == mbrExtendedLBA || e.kind == mbrExtendedOld
}

// mbrEntries takes the entries of an MBR or of a link of the extended chain. A status other than 0 and
// 0x80 means that this is the boot code of a file system, not a table.
func mbrEntries(sector []byte) (entries [4]mbrEntry, ok bool) {
	if sector[510] != 0x55 || sector[511] != 0xaa {
		return entries, false
	}
	for i := range entries {
		b := sector[446+16*i:]
		entries[i] = mbrEntry{
			status: b[0], kind: b[4],
			start: binary.LittleEndian.Uint32(b[8:]), count: binary.LittleEndian.Uint32(b[12:]),
		}
		if b[0]&0x7f != 0 {
			return entries, false
		}
	}
	return entries, true
}

func mbr(r io.ReaderAt, size int64, entries [4]mbrEntry) ([]Partition, error) {
	unit, err := mbrSector(r, size, entries)
	if err != nil {
		return nil, err
	}
	total := uint64(size / unit)
	var parts []Partition
	add := func(index int, e mbrEntry, base, limit uint64) error {
		start := base + uint64(e.start)
		if start >= limit || start == 0 {
			return tableError("partition %d starts outside the disk", index)
		}
		count := min(uint64(e.count), limit-start)
		parts = append(parts, Partition{
			Index: index, Start: int64(start) * unit, Size: int64(count) * unit,
			Type: fmt.Sprintf("0x%02x", e.kind),
		})
		return nil
	}

	logical := 0
	visited := make(map[uint64]bool) // links of the extended chain
	var sector [512]byte
	for i, e := range entries {
		if e.empty() {
			continue
		}
		if !e.extended() {
			if err := add(i+1, e, 0, total); err != nil {
				return nil, err
			}
			continue
		}
		// Each link holds one logical partition, relative to the link, and the next link, relative to
		// the start of the extended partition. Links may lie in any order, but in this partition.
		outer := uint64(e.start)
		end := min(outer+uint64(e.count), total)
		for at, more := outer, true; more; {
			if at == 0 || at >= end {
				return nil, tableError("logical partition %d lies outside its extended partition", 5+logical)
			}
			if visited[at] {
				return nil, tableError("chain of logical partitions loops")
			}
			if len(visited) == maxLogical {
				return nil, tableError("more than %d logical partitions", maxLogical)
			}
			visited[at] = true
			if err := readFull(r, sector[:], int64(at)*unit); err != nil {
				return nil, fmt.Errorf("read logical partition %d: %w", 5+logical, err)
			}
			link, ok := mbrEntries(sector[:])
			if !ok {
				break // a new, never written extended partition
			}
			if l := link[0]; !l.empty() && !l.extended() {
				if err := add(5+logical, l, at, end); err != nil {
					return nil, err
				}
				logical++
			}
			more = !link[1].empty() && link[1].extended()
			at = outer + uint64(link[1].start)
		}
	}
	return parts, nil
}

// mbrSector tells in which sectors an MBR counts: it does not say itself. They are 512 bytes, unless no partition starts
// with a boot sector there, and one does where it would start in sectors of 4096 bytes, saying so itself.
func mbrSector(r io.ReaderAt, size int64, entries [4]mbrEntry) (int64, error) {
	big := false
	var sector [512]byte
	for _, e := range entries {
		if e.empty() || e.extended() {
			continue
		}
		for _, unit := range []int64{512, 4096} {
			at := int64(e.start) * unit
			if at > size-int64(len(sector)) {
				continue
			}
			if err := readFull(r, sector[:], at); err != nil {
				return 0, fmt.Errorf("read start of a partition: %w", err)
			}
			if sector[510] != 0x55 || sector[511] != 0xaa {
				continue
			}
			if unit == 512 {
				return 512, nil
			}
			exFAT := string(sector[3:11]) == "EXFAT   " && sector[108] == 12 // bytes per sector, their logarithm
			big = big || exFAT || binary.LittleEndian.Uint16(sector[11:]) == 4096
		}
	}
	if big {
		return 4096, nil
	}
	return 512, nil
}

// errGPT says that there is no sound GPT header here, so that another place may be tried.
var errGPT = errors.New("no sound GPT")

// gpt reads the table of UEFI 2.10, 5.3: header in LBA 1 and in the last LBA.
func gpt(r io.ReaderAt, size int64) ([]Partition, error) {
	for _, backup := range []bool{false, true} {
		for _, unit := range []int64{512, 4096} {
			total := size / unit
			lba := int64(1)
			if backup {
				lba = total - 1
			}
			if lba < 1 || lba >= total {
				continue
			}
			parts, err := gptAt(r, uint64(lba), uint64(total), unit)
			if !errors.Is(err, errGPT) {
				return parts, err
			}
		}
	}
	return nil, tableError("neither the GPT nor its backup is sound")
}

// gptAt reads the GPT whose header is in sector lba of total. Header, little endian: signature "EFI PART",
// revision at 8, header size 12, CRC-32 of the header with this field zero 16, own LBA 24, other LBA 32, first and last
// usable LBA 40 and 48, LBA of the entries 72, their number 80, their size 84, CRC-32 of all of them 88.
func gptAt(r io.ReaderAt, lba, total uint64, unit int64) ([]Partition, error) {
	le := binary.LittleEndian
	header := make([]byte, unit)
	if err := readFull(r, header, int64(lba)*unit); err != nil {
		return nil, fmt.Errorf("read GPT: %w", err)
	}
	if !bytes.HasPrefix(header, []byte("EFI PART")) || le.Uint32(header[8:]) != 0x00010000 {
		return nil, errGPT
	}
	length := le.Uint32(header[12:])
	if length < 92 || int64(length) > unit {
		return nil, errGPT
	}
	sum := le.Uint32(header[16:])
	clear(header[16:20])
	if crc32.ChecksumIEEE(header[:length]) != sum || le.Uint64(header[24:]) != lba {
		return nil, errGPT
	}

	first, last := le.Uint64(header[40:]), le.Uint64(header[48:])
	at, count, width := le.Uint64(header[72:]), le.Uint32(header[80:]), le.Uint32(header[84:])
	switch {
	case first > last || last >= total:
		return nil, tableError("GPT for sectors %d to %d on a disk of %d", first, last, total)
	case count > maxEntries:
		return nil, tableError("GPT of %d entries, more than %d", count, maxEntries)
	case width < 128 || width > 4096 || width&(width-1) != 0:
		return nil, tableError("GPT entries of %d bytes", width)
	}
	entries := make([]byte, count*width)
	sectors := (uint64(len(entries)) + uint64(unit) - 1) / uint64(unit)
	if at < 2 || at >= total || sectors > total-at || at+sectors > first && at <= last {
		return nil, tableError("GPT entries in sector %d", at)
	}
	if err := readFull(r, entries, int64(at)*unit); err != nil {
		return nil, fmt.Errorf("read GPT entries: %w", err)
	}
	if crc32.ChecksumIEEE(entries) != le.Uint32(header[88:]) {
		return nil, errGPT
	}

	var parts []Partition
	for i := range int(count) {
		e := entries[i*int(width):][:128] // type GUID, own GUID 16, first and last LBA 32 and 40, flags 48, name 56
		if [16]byte(e) == ([16]byte{}) {
			continue
		}
		start, end := le.Uint64(e[32:]), le.Uint64(e[40:])
		if start < first || end > last || start > end {
			return nil, tableError("partition %d from sector %d to %d, usable are %d to %d", i+1, start, end, first, last)
		}
		parts = append(parts, Partition{
			Index: i + 1, Start: int64(start) * unit, Size: int64(end-start+1) * unit,
			Name: gptName(e[56:128]), Type: guid(e[:16]),
		})
	}
	return parts, nil
}

// guid prints the mixed-endian GUID of UEFI.
func guid(b []byte) string {
	le := binary.LittleEndian
	var out []byte
	out = binary.BigEndian.AppendUint32(out, le.Uint32(b))
	out = binary.BigEndian.AppendUint16(out, le.Uint16(b[4:]))
	out = binary.BigEndian.AppendUint16(out, le.Uint16(b[6:]))
	out = append(out, b[8:16]...)
	s := hex.EncodeToString(out)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func gptName(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	runes := utf16.Decode(units)
	for i, c := range runes {
		if !strconv.IsPrint(c) {
			runes[i] = '\uFFFD'
		}
	}
	return string(runes)
}
