package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"unicode"
	"unicode/utf16"

	"golang.org/x/sys/unix"
)

const (
	exReserved = 24 // sectors before the table: the boot sectors and their copy
	exEnd      = 0xffffffff
)

// exVolume is an exFAT whose files all lie in the root folder, in one piece each.
type exVolume struct {
	f        *os.File
	start    int64 // of the file system in f, bytes
	unit     int64 // bytes of a sector
	sectors  int64
	cluster  int64 // bytes
	tables   int64 // sectors of the table
	clusters int64
	next     uint32 // cluster
	chains   []uint32
	folder   []byte // entries of the root
	upper    []uint16
}

// newExVolume lays out an exFAT of size bytes at start of f.
func newExVolume(f *os.File, start, size, unit int64, label string) *exVolume {
	v := &exVolume{f: f, start: start, unit: unit, sectors: size / unit, cluster: 4 << 10, next: 2, chains: []uint32{0xfffffff8, exEnd}}
	// Cluster sizes as Windows chooses them.
	switch {
	case size > 32<<30:
		v.cluster = 128 << 10
	case size > 256*mib:
		v.cluster = 32 << 10
	}
	// One turn more may find that the table has become larger, and so there are fewer clusters; it is large enough then.
	v.tables = roundUp((size/v.cluster+2)*4, v.cluster) / v.unit
	v.clusters = (v.sectors - v.heap()) * v.unit / v.cluster
	v.upper = make([]uint16, 1<<16)
	for i := range v.upper {
		v.upper[i] = uint16(i)
		if u := unicode.ToUpper(rune(i)); u <= 0xffff {
			v.upper[i] = uint16(u)
		}
	}
	e := make([]byte, fatEntrySize)
	e[0] = 0x83
	text := utf16.Encode([]rune(label))
	e[1] = byte(len(text))
	for i, u := range text {
		binary.LittleEndian.PutUint16(e[2+2*i:], u)
	}
	v.folder = append(v.folder, e...)
	return v
}

// heap is the sector of cluster 2, at a multiple of clusters.
func (v *exVolume) heap() int64 { return roundUp((exReserved+v.tables)*v.unit, v.cluster) / v.unit }

// take gives the next clusters to n bytes, with a chain where one is asked for.
func (v *exVolume) take(n int64, chain bool) (uint32, error) {
	count := (n + v.cluster - 1) / v.cluster
	if int64(v.next)-2+count > v.clusters {
		return 0, fmt.Errorf("%d bytes more do not fit", n)
	}
	if count == 0 {
		return 0, nil
	}
	first := v.next
	v.next += uint32(count)
	if chain {
		for at := first + 1; at < v.next; at++ {
			v.chains = append(v.chains, at)
		}
		v.chains = append(v.chains, exEnd)
	}
	return first, nil
}

func (v *exVolume) offset(cluster uint32) int64 {
	return v.start + v.heap()*v.unit + int64(cluster-2)*v.cluster
}

// fill writes the files and everything around them. The file must read as zeros where nothing is written.
func (v *exVolume) fill(files []cargo) error {
	table := v.table()
	size := int64(len(v.folder) + 2*fatEntrySize)
	for _, file := range files {
		size += int64(2+(len(utf16.Encode([]rune(file.name)))+14)/15) * fatEntrySize
	}
	bitmap := (v.clusters + 7) / 8
	var at [3]uint32
	for i, n := range []int64{bitmap, int64(len(table)), size} {
		var err error
		if at[i], err = v.take(n, true); err != nil {
			return err
		}
	}
	v.system(0x81, 0, at[0], bitmap)
	v.system(0x82, exSum(table, nil), at[1], int64(len(table)))
	for _, file := range files {
		if err := v.copy(file); err != nil {
			return fmt.Errorf("copy %s: %w", file.name, err)
		}
	}
	used := make([]byte, bitmap)
	for c := range v.next - 2 {
		used[c/8] |= 1 << (c % 8)
	}
	chains := make([]byte, 4*len(v.chains))
	for i, c := range v.chains {
		binary.LittleEndian.PutUint32(chains[4*i:], c)
	}
	boot := v.boot(at[2])
	for _, w := range []struct {
		b  []byte
		at int64
	}{
		{boot, v.start},
		{boot, v.start + 12*v.unit},
		{chains, v.start + exReserved*v.unit},
		{used, v.offset(at[0])},
		{table, v.offset(at[1])},
		{v.folder, v.offset(at[2])},
	} {
		if _, err := v.f.WriteAt(w.b, w.at); err != nil {
			return err
		}
	}
	return nil
}

// boot makes the twelve boot sectors.
func (v *exVolume) boot(root uint32) []byte {
	le := binary.LittleEndian
	boot := make([]byte, 12*v.unit)
	copy(boot, "\xeb\x76\x90EXFAT   ")
	le.PutUint64(boot[64:], uint64(v.start/v.unit))
	le.PutUint64(boot[72:], uint64(v.sectors))
	le.PutUint32(boot[80:], exReserved)
	le.PutUint32(boot[84:], uint32(v.tables))
	le.PutUint32(boot[88:], uint32(v.heap()))
	le.PutUint32(boot[92:], uint32(v.clusters))
	le.PutUint32(boot[96:], root)
	le.PutUint32(boot[100:], 0x1b0a7000) // serial number: the same files give the same bytes
	le.PutUint16(boot[104:], 0x0100)
	for n := v.unit; n > 1; n /= 2 {
		boot[108]++
	}
	for n := v.cluster / v.unit; n > 1; n /= 2 {
		boot[109]++
	}
	boot[110] = 1
	boot[111] = 0x80
	boot[112] = byte(int64(v.next-2) * 100 / v.clusters)
	boot[510], boot[511] = 0x55, 0xaa
	for i := range int64(8) { // those with more boot code
		boot[(2+i)*v.unit-2], boot[(2+i)*v.unit-1] = 0x55, 0xaa
	}
	sum := exSum(boot[:11*v.unit], []int{106, 107, 112})
	for at := 11 * v.unit; at < int64(len(boot)); at += 4 {
		le.PutUint32(boot[at:], sum)
	}
	return boot
}

// exSum is exFAT's checksum of 32 bits, without some bytes.
func exSum(b []byte, without []int) (sum uint32) {
	for i, c := range b {
		if len(without) > 0 && i == without[0] {
			without = without[1:]
			continue
		}
		sum = (sum>>1 | sum<<31) + uint32(c)
	}
	return sum
}

// table is the up-case table in its short form: 0xffff and a number stand for so many units that have none.
func (v *exVolume) table() []byte {
	var b []byte
	for i := 0; i < len(v.upper); {
		run := 0
		for i+run < len(v.upper) && v.upper[i+run] == uint16(i+run) {
			run++
		}
		// The first 128 are written out, and 0xffff could not be.
		if i >= 128 && run > 2 || i+run == len(v.upper) && run > 0 {
			run = min(run, 0xffff)
			b = binary.LittleEndian.AppendUint16(b, 0xffff)
			b = binary.LittleEndian.AppendUint16(b, uint16(run))
			i += run
			continue
		}
		b = binary.LittleEndian.AppendUint16(b, v.upper[i])
		i++
	}
	return b
}

// system adds the entry of the bitmap or of the up-case table.
func (v *exVolume) system(kind byte, sum, first uint32, size int64) {
	e := make([]byte, fatEntrySize)
	e[0] = kind
	binary.LittleEndian.PutUint32(e[4:], sum)
	binary.LittleEndian.PutUint32(e[20:], first)
	binary.LittleEndian.PutUint64(e[24:], uint64(size))
	v.folder = append(v.folder, e...)
}

func (v *exVolume) copy(file cargo) error {
	first, err := v.take(file.size, false)
	if err != nil {
		return err
	}
	v.entry(file.name, first, file.size)
	if first == 0 {
		return nil
	}
	return file.copy(io.NewOffsetWriter(v.f, v.offset(first)))
}

// entry adds the entries of a file to the root.
func (v *exVolume) entry(name string, first uint32, size int64) {
	le := binary.LittleEndian
	text := utf16.Encode([]rune(name))
	parts := (len(text) + 14) / 15
	set := make([]byte, (2+parts)*fatEntrySize)
	set[0], set[1] = 0x85, byte(1+parts)
	set[4] = 0x20 // archive
	for _, at := range []int{8, 12, 16} {
		le.PutUint32(set[at:], fatEpoch<<16)
	}
	stream := set[fatEntrySize:]
	stream[0], stream[1], stream[3] = 0xc0, 0x03, byte(len(text))
	if first == 0 {
		stream[1] = 0x01
	}
	hash := uint16(0)
	for _, u := range text {
		u = v.upper[u]
		hash = (hash>>1 | hash<<15) + u&0xff
		hash = (hash>>1 | hash<<15) + u>>8
	}
	le.PutUint16(stream[4:], hash)
	le.PutUint64(stream[8:], uint64(size))
	le.PutUint32(stream[20:], first)
	le.PutUint64(stream[24:], uint64(size))
	for i := range parts {
		set[(2+i)*fatEntrySize] = 0xc1
	}
	for i, u := range text {
		le.PutUint16(set[(2+i/15)*fatEntrySize+2+2*(i%15):], u)
	}
	sum := uint16(0)
	for i, c := range set {
		if i != 2 && i != 3 {
			sum = (sum>>1 | sum<<15) + uint16(c)
		}
	}
	le.PutUint16(set[2:], sum)
	v.folder = append(v.folder, set...)
}

// cargo is a file that goes to a stick: one of the PC, or blanks.
type cargo struct {
	name string // on the stick
	from string // path; "": blanks
	size int64
}

// copy writes the file to where it lies, which reads as zeros: what is zero is not written.
func (c cargo) copy(to io.WriterAt) error {
	if c.from == "" {
		_, err := to.WriteAt(blank(c.size), 0)
		return err
	}
	from, err := os.Open(c.from)
	if err != nil {
		return err
	}
	defer from.Close()
	b, zero := make([]byte, mib), make([]byte, mib)
	for at := int64(0); at < c.size; at += mib {
		// A hole is passed over without being read; where the file system knows of none, this changes nothing.
		if data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA); err == unix.ENXIO {
			break
		} else if err == nil {
			at = data / mib * mib
		}
		b := b[:min(mib, c.size-at)]
		if n, err := from.ReadAt(b, at); n < len(b) {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		if bytes.Equal(b, zero[:len(b)]) {
			continue
		}
		if _, err := to.WriteAt(b, at); err != nil {
			return err
		}
	}
	return nil
}

// blank is the report as it stands on a stick that no device has seen.
func blank(size int64) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = ' '
		if i%64 == 63 {
			b[i] = '\n'
		}
	}
	return b
}

func fileOf(path string) (cargo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return cargo{}, err
	}
	if !info.Mode().IsRegular() {
		return cargo{}, fmt.Errorf("%s is not a file", path)
	}
	return cargo{filepath.Base(path), path, info.Size()}, nil
}
