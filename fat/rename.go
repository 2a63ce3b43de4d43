package fat

import (
	"bytes"
	"errors"
	"fmt"
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
	err := f.rename(dir, from, to)
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	return nil
}

func (f *FS) rename(dir, from, to string) error {
	medium, ok := f.r.(interface {
		io.WriterAt
		Flush() error
	})
	if !ok || f.ex {
		return errors.New("the medium cannot be written")
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
		return errors.New("in a folder that is not written")
	}
	old := make([]byte, size)
	if err := readFull(folder, old, 0); err != nil {
		return err
	}

	var (
		long       longName
		end        = len(old)
		start, own = -1, -1 // first record of the file's, and its last
		names      [][]byte // short names
		clusters   []int    // where the same clusters are named
	)
	for i := 0; i < len(old); i += 32 {
		b := old[i:][:32]
		if b[0] == 0 {
			end = i
			break
		}
		if b[0] == 0xe5 || b[11]&0x3f == attrLong {
			if b[0] == 0xe5 {
				long.clear()
			} else {
				long.add(b)
			}
			continue
		}
		name, ok := long.name(b)
		parts := 0
		if long.parts > 0 && long.next == 0 && long.sum == checksum(b[:11]) {
			parts = long.parts
		}
		long.clear()
		names = append(names, b[:11])
		switch {
		case !ok || b[11]&(attrVolume|attrDir) != 0:
		case own < 0 && strings.EqualFold(name, from):
			start, own = i-32*parts, i
		case strings.EqualFold(name, to):
			err = fs.ErrExist
			fallthrough
		default:
			clusters = append(clusters, i)
		}
	}
	if own < 0 {
		return fs.ErrNotExist
	}
	now := bytes.Clone(old)
	for i := start; i <= own; i += 32 {
		now[i] = 0xe5
	}
	twice := false
	for _, i := range clusters {
		twice = twice || sameFile(old[i:], old[own:])
	}
	var order []int // of the sectors that are written
	if !twice {
		if err != nil {
			return err
		}
		set := record(old[own:][:32], to, names)
		p := room(now, len(set), end, own/atom)
		if set == nil || p < 0 {
			return errors.New("there is no room for the name")
		}
		for i := end; i < p; i += 32 { // the last records of a sector, which the folder ended in
			now[i] = 0xe5
		}
		if next := p + copy(now[p:], set); next > end && next < len(now) {
			now[next] = 0
		}
		order = []int{p / atom, min(end, p) / atom}
	}
	for n := own / atom; n >= start/atom; n-- {
		order = append(order, n)
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

// sameFile says whether two entries have the same clusters.
func sameFile(a, b []byte) bool {
	return bytes.Equal(a[20:22], b[20:22]) && bytes.Equal(a[26:28], b[26:28]) && (a[20]|a[21]|a[26]|a[27]) != 0
}

// record makes the records of a name out of the short entry b: parts of 13 UTF-16 units with 0 and 0xffff behind the end,
// the last one first, and the short entry, with a name of which there is none yet in names. nil: it can't.
func record(b []byte, name string, names [][]byte) []byte {
	if !honest(name) || len(name) > 255 || strings.ContainsFunc(name, func(c rune) bool { return c >= 0x80 }) {
		return nil
	}
	short := [32]byte(b)
	copy(short[:], "RENAMED@   ")
	short[12] = 0 // no lower case
again:
	short[7]++
	for _, taken := range names {
		if bytes.Equal(short[:11], taken) {
			if short[7] == 'Z' {
				return nil
			}
			goto again
		}
	}
	parts := (len(name) + 12) / 13
	var set []byte
	for n := parts; n > 0; n-- {
		e := [32]byte{0: byte(n), 11: attrLong, 13: checksum(short[:11])}
		if n == parts {
			e[0] |= 0x40
		}
		for i := range 13 {
			at := 1 + 2*i
			if i >= 11 {
				at = 28 + 2*(i-11)
			} else if i >= 5 {
				at = 14 + 2*(i-5)
			}
			switch c := 13*(n-1) + i; {
			case c < len(name):
				e[at] = name[c]
			case c > len(name):
				e[at], e[at+1] = 0xff, 0xff
			}
		}
		set = append(set, e[:]...)
	}
	return append(set, short[:]...)
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
