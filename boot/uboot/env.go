package uboot

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"strings"
)

// MaxSize is the largest size of a copy in bytes, minSize the least.
const (
	MaxSize = 1 << 20
	minSize = 64
)

// Files are where the copies lie in a FAT file system where nothing else is said, Size is what each has in bytes. U-Boot
// writes the sector of a folder with each file in it, and loses what else that sector names when the power goes: each copy
// has a folder of its own.
var Files = []string{"/env1/uboot.env", "/env2/uboot.env"}

const Size = 16 << 10

// Env is what one copy of an environment holds.
type Env struct {
	Vars map[string]string
	Flag byte // of one copy of two: how often the environment was written, by one byte that wraps
}

// head is the size of what precedes the variables: a CRC-32, and with two copies a flag.
func head(redundant bool) int {
	if redundant {
		return 5
	}
	return 4
}

// Parse reads one copy; false: its checksum is wrong. Of a name that stands twice the last value counts, as in U-Boot.
func Parse(b []byte, redundant bool) (e Env, ok bool) {
	h := head(redundant)
	if len(b) < minSize || len(b) > MaxSize || binary.LittleEndian.Uint32(b) != crc32.ChecksumIEEE(b[h:]) {
		return e, false
	}
	e = Env{Vars: map[string]string{}, Flag: b[4]}
	for s := string(b[h:]); s != "" && s[0] != 0; {
		var entry string
		entry, s, _ = strings.Cut(s, "\x00")
		if name, value, found := strings.Cut(entry, "="); found && name != "" {
			e.Vars[name] = value
		}
	}
	return e, true
}

// Encode makes a copy of size bytes, the same bytes as U-Boot's and libubootenv's; nil: it does not fit.
func (e Env) Encode(size int, redundant bool) []byte {
	var names []string
	for name := range e.Vars {
		names = append(names, name)
	}
	slices.Sort(names)
	b, h := make([]byte, size), head(redundant)
	at := h
	for _, name := range names {
		s := name + "=" + e.Vars[name] + "\x00"
		if at+len(s) >= size {
			return nil
		}
		at += copy(b[at:], s)
	}
	if redundant {
		b[4] = e.Flag
	}
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[h:]))
	return b
}

// newer reports whether a copy with flag b counts more than an earlier one with flag a. The flags of NOR flash (1 active,
// 0 obsolete) are in the same order.
func newer(b, a byte) bool {
	if a == 255 && b == 0 || a == 0 && b == 255 {
		return b == 0
	}
	return b > a
}
