package fat

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"strings"
)

// atom is how much of a folder is written at once: a sector of every medium, or a part of one.
const atom = 512

// Rename gives the file from, in the folder dir, the name to, which is ASCII. The medium that was opened must have WriteAt
// and Flush, and nobody else may have it mounted. No table, no cluster, no time changes: the entry is moved within its
// folder, by one write of one sector where the new name fits into the old one's sector (it does if it is not longer),
// else the new one is durable before the old one goes. After a power cut the file has its old name, its new one, or both;
// whatever a medium makes of a sector that it was writing befalls what else is in that sector. Of a file with two names
// Rename takes the name from away and makes none. FAT only.
func (f *FS) Rename(dir, from, to string) error {
	medium, ok := f.r.(interface {
		io.WriterAt
		Flush() error
	})
	if !ok || f.ex {
		return errFixed
	}
	at, err := f.find(dir)
	if err != nil {
		return err
	}
	r, size, cut, err := f.contents(at)
	if err != nil {
		return err
	}
	folder, ok := r.(*File)
	if !ok || cut || size > 64<<10 { // no File: the root of FAT12 and FAT16
		return errFixed
	}
	old := make([]byte, size)
	if err := readFull(folder, old, 0); err != nil {
		return err
	}

	var (
		long       longName
		start, own = 0, -1 // first record of the file's, and its last
		there      bool    // the new name
		end        int
	)
	for ; end < len(old) && old[end] != 0; end += 32 {
		b := old[end:][:32]
		switch {
		case b[0] == 0xe5:
			long.clear()
			continue
		case b[11]&0x3f == attrLong:
			long.add(b)
			continue
		}
		name, ok := long.name(b)
		switch {
		case !ok || b[11]&(attrVolume|attrDir) != 0:
		case own < 0 && strings.EqualFold(name, from):
			if start, own = end, end; long.parts > 0 && long.next == 0 && long.sum == checksum(b[:11]) {
				start -= 32 * long.parts
			}
		case strings.EqualFold(name, to):
			there = true
		}
		long.clear()
	}
	if own < 0 {
		return fs.ErrNotExist
	}
	now := bytes.Clone(old)
	for i := start; i <= own; i += 32 {
		now[i] = 0xe5
	}
	last := own / atom
	order := [...]int{last, last, last, max(last-1, start/atom), start / atom} // of the sectors that are written
	if !twice(old[:end], own) {
		if there {
			return fs.ErrExist
		}
		n := 32 * ((len(to)+12)/13 + 1)
		p := room(now, n, end, last)
		if p < 0 || len(to) > 255 || !honest(to) || strings.ContainsFunc(to, func(c rune) bool { return c >= 0x80 }) {
			return errFixed
		}
		for i := end; i < p; i += 32 { // the last records of a sector, which the folder ended in
			now[i] = 0xe5
		}
		record(now[p:p+n], old[:end], old[own:own+32], to)
		if p+n > end && p+n < len(now) {
			now[p+n] = 0
		}
		order[0], order[1] = p/atom, min(end, p)/atom
	}
	for _, n := range order {
		b, was := now[n*atom:][:atom], old[n*atom:][:atom]
		if bytes.Equal(b, was) {
			continue
		}
		if _, err := folder.WriteAt(b, int64(n)*atom); err != nil {
			return err
		}
		if err := medium.Flush(); err != nil {
			return err
		}
		copy(was, b)
	}
	return nil
}

var errFixed = errors.New("the folder can't take the name")

// twice says whether the clusters of the entry at own are those of another, too.
func twice(b []byte, own int) bool {
	for i := 0; i < len(b); i += 32 {
		if b[i] != 0xe5 && b[i+11]&0x3f != attrLong && i != own && clusterOf(b[i:]) != 0 && clusterOf(b[i:]) == clusterOf(b[own:]) {
			return true
		}
	}
	return false
}

func clusterOf(b []byte) uint32 {
	return uint32(b[26]) | uint32(b[27])<<8 | uint32(b[20])<<16 | uint32(b[21])<<24
}

// record makes the records of a name in set out of the short entry b: parts of 13 UTF-16 units with 0 and 0xffff behind the
// end, the last one first, and the short entry, with a name of which there is none yet in the folder.
func record(set, folder, b []byte, name string) {
	short := set[len(set)-32:]
	copy(short, b)
	copy(short, "RENAMEDA   ")
	short[12] = 0 // no lower case
	for i := 0; i < len(folder); i += 32 {
		if string(folder[i:i+11]) == string(short[:11]) && short[7] < 'Z' { // else the folder is none that was ever written
			short[7]++
			i = -32
		}
	}
	for n := 1; n < len(set)/32; n++ {
		e := set[len(set)-32*(n+1):][:32]
		clear(e)
		e[0], e[11], e[13] = byte(n), attrLong, checksum(short[:11])
		for i := range 13 {
			at := 1 + 2*i
			if i >= 11 {
				at += 5
			} else if i >= 5 {
				at += 3
			}
			switch c := 13*(n-1) + i; {
			case c < len(name):
				e[at] = name[c]
			case c > len(name):
				e[at], e[at+1] = 0xff, 0xff
			}
		}
	}
	set[0] |= 0x40
}

// room returns where n free bytes lie in one sector, in that one if possible, -1: nowhere. What is behind end is free, if
// no whole sector is left out before it and the folder ends behind it.
func room(b []byte, n, end, sector int) int {
	for _, in := range [2][2]int{{sector * atom, sector*atom + atom}, {0, len(b)}} {
		for p := in[0]; p < min(in[1], end+atom) && p+n <= len(b); p += 32 {
			free := p/atom == (p+n-1)/atom && (p <= end || p%atom == 0)
			for i := p; i < p+n && i < end; i += 32 {
				free = free && b[i] == 0xe5
			}
			if next := p + n; next > end && next < len(b) && next%atom == 0 {
				free = free && b[next] == 0 // else another sector had to say so
			}
			if free {
				return p
			}
		}
	}
	return -1
}
