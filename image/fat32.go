package image

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"
)

// go-diskfs makes FAT32 whose tables are too short by some entries for its clusters at some sizes (fsck.fat refuses it)
// and gives empty files a cluster; a stick needs little enough to be written here.

const (
	fatReserved  = 32         // sectors before the first table
	fatEnd       = 0x0fffffff // last cluster of a chain
	fatEpoch     = 0x0021     // 1980-01-01: the same files give the same bytes
	fatEntrySize = 32
	// maxFATFile is the most bytes of a file on FAT.
	maxFATFile = 1<<32 - 1
)

// volume is a FAT32 file system whose files all lie in the root folder, in one piece each.
type volume struct {
	f       *os.File
	start   int64 // of the file system in f, bytes
	sectors int64
	cluster int64 // bytes
	tables  int64 // sectors of one table
	fat     []uint32
	folder  []byte // entries of the root
}

// newVolume lays out a FAT32 of size bytes at start of f, with room in the root for so many bytes of entries.
func newVolume(f *os.File, start, size int64, label string) *volume {
	v := &volume{f: f, start: start, sectors: size / sector, cluster: 512}
	// Cluster sizes as mkfs.fat and Windows choose them.
	switch {
	case size > 16<<30:
		v.cluster = 16 << 10
	case size > 8<<30:
		v.cluster = 8 << 10
	case size > 260*mib:
		v.cluster = 4 << 10
	}
	for v.tables = 1; v.tables*sector/4 < v.clusters()+2; {
		v.tables = ((v.clusters()+2)*4 + sector - 1) / sector
	}
	v.fat = []uint32{0x0ffffff8, fatEnd}
	entry := v.entry(fmt.Sprintf("%-11.11s", label), 0x08)
	v.folder = append(v.folder, entry...)
	return v
}

// clusters is the number of data clusters.
func (v *volume) clusters() int64 {
	return (v.sectors - fatReserved - 2*v.tables) * sector / v.cluster
}

// take gives the next clusters to n bytes and returns the first one, 0 for none.
func (v *volume) take(n int64) (uint32, error) {
	count := (n + v.cluster - 1) / v.cluster
	if int64(len(v.fat))+count > v.clusters()+2 {
		return 0, fmt.Errorf("%d bytes more do not fit", n)
	}
	if count == 0 {
		return 0, nil
	}
	first := uint32(len(v.fat))
	for i := range count - 1 {
		v.fat = append(v.fat, first+uint32(i)+1)
	}
	v.fat = append(v.fat, fatEnd)
	return first, nil
}

// offset is where a cluster lies in f.
func (v *volume) offset(cluster uint32) int64 {
	return v.start + (fatReserved+2*v.tables)*sector + int64(cluster-2)*v.cluster
}

func (v *volume) entry(short string, attributes byte) []byte {
	e := make([]byte, fatEntrySize)
	copy(e, short)
	e[11] = attributes
	binary.LittleEndian.PutUint16(e[16:], fatEpoch)
	binary.LittleEndian.PutUint16(e[18:], fatEpoch)
	binary.LittleEndian.PutUint16(e[24:], fatEpoch)
	return e
}

// name adds an entry with its long name to the root. Its short name is made up from the number n.
func (v *volume) name(long string, n int, first uint32, size int64) {
	short := fmt.Sprintf("FILE%04d", n)
	ext := strings.ToUpper(strings.TrimPrefix(filepath.Ext(long), "."))
	short += fmt.Sprintf("%-3.3s", strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, ext))
	sum := byte(0)
	for _, c := range []byte(short) {
		sum = sum>>1 | sum<<7
		sum += c
	}
	// 13 characters in each entry, the last part first; a zero ends the name and ones fill up.
	text := utf16.Encode([]rune(long))
	parts := (len(text) + 12) / 13
	if len(text) < parts*13 {
		text = append(text, 0)
	}
	for len(text) < parts*13 {
		text = append(text, 0xffff)
	}
	for p := parts; p > 0; p-- {
		e := make([]byte, fatEntrySize)
		e[0], e[11], e[13] = byte(p), 0x0f, sum
		if p == parts {
			e[0] |= 0x40
		}
		for i, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
			binary.LittleEndian.PutUint16(e[at:], text[(p-1)*13+i])
		}
		v.folder = append(v.folder, e...)
	}
	e := v.entry(short, 0x20)
	binary.LittleEndian.PutUint16(e[20:], uint16(first>>16))
	binary.LittleEndian.PutUint16(e[26:], uint16(first))
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	v.folder = append(v.folder, e...)
}

// fill writes the files and everything around them. The file must read as zeros where nothing is written.
func (v *volume) fill(files []cargo) error {
	// The root comes first: its length is known before any file is read.
	names := int64(len(v.folder))
	for _, file := range files {
		names += int64(2+len(file.name)/13) * fatEntrySize
	}
	if _, err := v.take(max(names, 1)); err != nil {
		return err
	}
	for i, file := range files {
		if err := v.copy(file, i+1); err != nil {
			return fmt.Errorf("copy %s: %w", file.name, err)
		}
	}
	return v.finish()
}

func (v *volume) copy(file cargo, n int) error {
	first, err := v.take(file.size)
	if err != nil {
		return err
	}
	v.name(file.name, n, first, file.size)
	if first == 0 {
		return nil
	}
	return file.copy(io.NewOffsetWriter(v.f, v.offset(first)))
}

// finish writes root, tables and boot sectors.
func (v *volume) finish() error {
	table := make([]byte, 4*len(v.fat))
	for i, n := range v.fat {
		binary.LittleEndian.PutUint32(table[4*i:], n)
	}

	boot := make([]byte, sector)
	copy(boot, "\xeb\x58\x90LIFEBOAT")
	le := binary.LittleEndian
	le.PutUint16(boot[11:], sector)
	boot[13] = byte(v.cluster / sector)
	le.PutUint16(boot[14:], fatReserved)
	boot[16] = 2                 // tables
	boot[21] = 0xf8              // fixed disk
	le.PutUint16(boot[24:], 63)  // sectors in a track, for whoever still asks
	le.PutUint16(boot[26:], 255) // heads
	le.PutUint32(boot[28:], uint32(v.start/sector))
	le.PutUint32(boot[32:], uint32(v.sectors))
	le.PutUint32(boot[36:], uint32(v.tables))
	le.PutUint32(boot[44:], 2) // cluster of the root
	le.PutUint16(boot[48:], 1) // sector with the free count
	le.PutUint16(boot[50:], 6) // sector with the copy of this one
	boot[64] = 0x80
	boot[66] = 0x29
	copy(boot[71:], v.folder[:11])
	copy(boot[82:], "FAT32   ")
	boot[510], boot[511] = 0x55, 0xaa

	free := make([]byte, sector)
	copy(free, "RRaA")
	copy(free[484:], "rrAa")
	le.PutUint32(free[488:], uint32(v.clusters()+2-int64(len(v.fat))))
	le.PutUint32(free[492:], uint32(len(v.fat)-1))
	free[510], free[511] = 0x55, 0xaa

	for _, w := range []struct {
		b  []byte
		at int64 // in the file system
	}{
		{boot, 0},
		{free, sector},
		{boot, 6 * sector},
		{free, 7 * sector},
		{table, fatReserved * sector},
		{table, (fatReserved + v.tables) * sector},
		{v.folder, v.offset(2) - v.start},
	} {
		if _, err := v.f.WriteAt(w.b, v.start+w.at); err != nil {
			return err
		}
	}
	return nil
}
