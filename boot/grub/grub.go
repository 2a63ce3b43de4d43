// Package grub keeps the variables by which GRUB chooses the slot, in GRUB's environment block.
//
// The block is a file of 1024 bytes: a first line, then NAME=VALUE lines, filled with '#'; docs/formats.md has it byte by
// byte. The variables are RAUC's: ORDER, and for each slot X_OK and X_TRY, so that rauc and grub-editenv read them and
// change them; X_LEFT is added, a counter of tries. A slot is started where X_OK is 1 and X_TRY is not 1. Where X_LEFT is 1
// to 9 so many tries are left; else it is one, as RAUC means it. The last try makes X_TRY 1.
//
// GRUB writes the block in place and has no checksum. So there are two copies: what counts lies in the first 512 bytes of
// each, between two marks that are equal, and the script of `lifeboat bootloader grub.cfg` takes the first copy where they
// are. [Run] is that script as a function.
package grub

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"lifeboat/boot"
	"lifeboat/disk"
)

// Files are the two copies in the file system where GRUB's own files lie, by default.
const (
	File   = "/grub/grubenv"
	Shadow = "/grub/grubenv.2"
)

// Size is that of a block as GRUB's tools make it. Those of another size are taken as they are.
const Size = 1024

const (
	signature = "# GRUB Environment Block\n"
	head      = "LIFEBOAT"     // first of ours
	tail      = "LIFEBOAT_END" // last of ours
	order     = "ORDER"
	most      = 9
	sector    = 512 // written as one
	maxSize   = 64 << 10
)

// Loader is a boot.Loader.
type Loader struct {
	copies []disk.Device
	names  []string
}

var _ boot.Loader = (*Loader)(nil)

// New returns the loader whose environment blocks are copies, one or two, the one that GRUB looks at first in front. names
// are the bootnames, in the order of the configuration.
func New(copies []disk.Device, names []string) (*Loader, error) {
	n := len(signature) + len(head) + len(tail) + len(order) + 3*len("=\n") + 2*len("0000")
	for _, name := range names {
		if !isName(name) {
			return nil, fmt.Errorf("bootname %q: GRUB's variables have letters, digits and _ in their names", name)
		}
		n += len(name)*4 + len("_OK=0\n_TRY=0\n_LEFT=0\n ")
	}
	if n > sector {
		return nil, errors.New("the bootnames are too long for GRUB's environment block")
	}
	return &Loader{copies, names}, nil
}

func isName(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20 // lower case
		if (c < 'a' || c > 'z') && (s[i] < '0' || s[i] > '9' || i == 0) && s[i] != '_' {
			return false
		}
	}
	return s != ""
}

// Most is 9, or 1 where the environment is one of RAUC without our counters.
func (l *Loader) Most() uint8 {
	if b, _, err := l.load(); err == nil && stock(b, l.names) {
		return 1
	}
	return most
}

func (l *Loader) Read() (boot.Vars, error) {
	b, _, err := l.load()
	if err != nil {
		return boot.Vars{}, err
	}
	v := boot.Vars{}
	for _, name := range b.order(l.names) {
		if b.get(name, "_OK") != "1" {
			continue
		}
		v.Order = append(v.Order, boot.Turn{Name: name, Tries: b.tries(name)})
	}
	return v, nil
}

// fits says whether a file of n bytes may hold a block.
func fits(n int64) bool { return n >= sector && n <= maxSize }

// load returns the block that GRUB goes by, and all copies as they are (nil: no block fits there, or it can't be read).
func (l *Loader) load() (found block, all [][]byte, err error) {
	err = boot.ErrNoVars
	for _, c := range l.copies {
		var b []byte
		if n := c.Size(); fits(n) {
			b = make([]byte, n)
		}
		if _, e := c.ReadAt(b, 0); e != nil && e != io.EOF {
			b, err = nil, e
		}
		all = append(all, b)
		if found == nil {
			found = whole(b, l.names)
		}
	}
	if found != nil {
		err = nil
	}
	return found, all, err
}

// Write writes the second copy first, so that GRUB goes by the old one until it is durable. Copies whose size is not that
// of a block are left out; where all hold v already, nothing is written.
func (l *Loader) Write(v boot.Vars) error {
	found, all, err := l.load()
	stock := found != nil && stock(found, l.names)
	mark := found.get(head, "")
	same, room := mark != "", false
	for i, b := range all {
		if fits(l.copies[i].Size()) {
			same, room = same && bytes.Equal(b, l.block(v, found, mark, stock, len(b))), true
		}
	}
	if !room {
		return fmt.Errorf("no file has the size of GRUB's environment block: %w", err)
	}
	if same {
		return nil
	}
	mark = nextMark(mark)
	for i := len(all) - 1; i >= 0; i-- {
		c := l.copies[i]
		if !fits(c.Size()) {
			continue
		}
		b := l.block(v, found, mark, stock, int(c.Size()))
		if _, err := c.WriteAt(b, 0); err != nil {
			return err
		}
		if err := c.Flush(); err != nil {
			return err
		}
		back := make([]byte, len(b))
		if _, err := c.ReadAt(back, 0); err != nil {
			return err
		}
		if !bytes.Equal(b, back) {
			return errors.New("GRUB's environment block reads back as something else")
		}
	}
	return nil
}

// block is what a copy of so many bytes shall hold: ours, then what else was found, as far as there is room.
func (l *Loader) block(v boot.Vars, old block, mark string, stock bool, size int) []byte {
	b := append(make([]byte, 0, size), signature...)
	put := func(name, of, value string) {
		b = append(append(append(append(append(b, name...), of...), '='), value...), '\n')
	}
	names := make([]string, 0, len(l.names))
	for _, t := range v.Order {
		names = append(names, t.Name)
	}
	for _, name := range l.names { // those that are not started come last, for rauc to find them
		if turn(v, name) < 0 {
			names = append(names, name)
		}
	}
	put(head, "", mark)
	put(order, "", strings.Join(names, " "))
	for _, name := range l.names {
		ok, try, left := "0", "0", "0"
		if i := turn(v, name); i >= 0 {
			ok, try = "1", "1"
			if n := v.Order[i].Tries; n > 0 {
				try, left = "0", string([]byte{'0' + min(n, most)})
			}
		}
		put(name, "_OK", ok)
		put(name, "_TRY", try)
		if !stock {
			put(name, "_LEFT", left)
		}
	}
	put(tail, "", mark)
	old.each(func(name, _ string, raw []byte) {
		if l.ours(name) || len(b)+len(raw) > size {
			return
		}
		b = append(b, raw...)
	})
	for len(b) < size {
		b = append(b, '#')
	}
	return b
}

// ours says whether Write sets a variable.
func (l *Loader) ours(variable string) bool {
	for _, name := range l.names {
		if of, ok := strings.CutPrefix(variable, name); ok && (of == "_OK" || of == "_TRY" || of == "_LEFT") {
			return true
		}
	}
	return variable == head || variable == tail || variable == order
}

func turn(v boot.Vars, name string) int {
	for i, t := range v.Order {
		if t.Name == name {
			return i
		}
	}
	return -1
}

// nextMark is the mark after old: four digits, never the same twice in a row.
func nextMark(old string) string {
	b := []byte("0000")
	copy(b, old)
	for i := 3; i >= 0; i-- {
		if b[i] >= '0' && b[i] < '9' {
			b[i]++
			break
		}
		b[i] = '0'
	}
	return string(b)
}

// block is an environment block that has GRUB's first line.
type block []byte

// whole returns b as a block if it is one that GRUB would go by: the marks are equal, where there are any, and some of the
// variables are there. Else nil.
func whole(b block, names []string) block {
	if len(b) <= len(signature) || string(b[:len(signature)]) != signature || b.get(head, "") != b.get(tail, "") {
		return nil
	}
	if strings.TrimSpace(b.get(order, "")) != "" {
		if len(b.order(names)) == 0 {
			return nil
		}
		return b
	}
	for _, name := range names {
		if b.get(name, "_OK") != "" {
			return b
		}
	}
	return nil
}

// stock says that it has RAUC's variables alone.
func stock(b block, names []string) bool {
	for _, name := range names {
		if b.get(name, "_LEFT") != "" {
			return false
		}
	}
	return true
}

// order is the slots that ORDER names, each once; all of them where it is not there.
func (b block) order(names []string) []string {
	words := strings.Fields(b.get(order, ""))
	if len(words) == 0 {
		return names
	}
	var in []string
	for _, w := range words {
		for _, name := range names {
			if w == name && !has(in, name) {
				in = append(in, name)
			}
		}
	}
	return in
}

func has(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

// tries are those that are left to a slot with X_OK 1.
func (b block) tries(name string) uint8 {
	if t := b.get(name, "_TRY"); t != "" && t != "0" {
		return 0
	}
	if n := b.get(name, "_LEFT"); len(n) == 1 && n[0] >= '1' && n[0] <= '9' {
		return n[0] - '0'
	}
	return 1
}

// get returns a variable, "" where it is not set. Of several of one name the last counts, as it does for GRUB.
func (b block) get(name, of string) (value string) {
	b.each(func(n, v string, _ []byte) {
		if len(n) == len(name)+len(of) && n[:len(name)] == name && n[len(name):] == of {
			value = v
		}
	})
	return value
}

// each calls do for what GRUB finds: variables, and comments without a name. raw is all of it, its newline included. It
// ends, as GRUB does, at what has no end; the filling at the end is such.
func (b block) each(do func(name, value string, raw []byte)) {
	if len(b) <= len(signature) {
		return
	}
	for p := len(signature); p < len(b); {
		start, name := p, ""
		if b[p] != '#' {
			for p < len(b) && b[p] != '=' {
				p++
			}
			if p == len(b) {
				return
			}
			name = string(b[start:p])
			p++
		}
		value := make([]byte, 0, 8)
		for p < len(b) && b[p] != '\n' {
			if b[p] == '\\' {
				p++
			}
			if p < len(b) {
				value = append(value, b[p])
			}
			p++
		}
		if p >= len(b) {
			return
		}
		p++
		do(name, string(value), b[start:p])
	}
}
