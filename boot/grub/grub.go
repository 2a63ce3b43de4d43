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
	"errors"
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
			return nil, errors.New("bootname " + name + ": GRUB's variables have letters, digits and _ in their names")
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
	if e, err := l.load(); err == nil && e.stock {
		return 1
	}
	return most
}

func (l *Loader) Read() (v boot.Vars, err error) {
	e, err := l.load()
	for _, name := range e.order {
		if e.get(name, "_OK") == "1" {
			v.Order = append(v.Order, boot.Turn{Name: name, Tries: e.tries(name)})
		}
	}
	return v, err
}

// env is an environment block that GRUB goes by.
type env struct {
	vars   map[string]string
	order  []string // slots that ORDER names, each once; all where there is none
	stock  bool     // RAUC's variables alone
	others [][]byte // lines that are not ours, comments too
}

// load returns what GRUB goes by: the first copy that is whole.
func (l *Loader) load() (*env, error) {
	err := boot.ErrNoVars
	for _, c := range l.copies {
		b := l.buffer(c)
		if _, e := c.ReadAt(b, 0); e != nil && e != io.EOF {
			err = e
		} else if e, ok := l.parse(b); ok {
			return e, nil
		}
	}
	return &env{}, err
}

// buffer has the size of a copy, or is nil where no block fits there.
func (l *Loader) buffer(c disk.Device) []byte {
	if n := c.Size(); n >= sector && n <= maxSize {
		return make([]byte, n)
	}
	return nil
}

// Write writes the second copy first, so that GRUB goes by the old one until it is durable. Copies whose size is not that
// of a block are left out; where all hold v already, nothing is written.
func (l *Loader) Write(v boot.Vars) error {
	old, err := l.load()
	mark := old.vars[head]
	if mark != "" && l.hold(&v, old, mark) {
		return nil
	}
	mark = nextMark(mark)
	for i := len(l.copies) - 1; i >= 0; i-- {
		c := l.copies[i]
		b := l.buffer(c)
		if b == nil {
			continue
		}
		l.fill(b, &v, old, mark)
		if _, err = c.WriteAt(b, 0); err == nil {
			err = c.Flush()
		}
		if err == nil && !l.holds(c, b) {
			err = errors.New("GRUB's environment block reads back as something else")
		}
		if err != nil {
			return err
		}
	}
	return err // that of load, where there was no copy to write to
}

// hold says whether all copies hold v already.
func (l *Loader) hold(v *boot.Vars, old *env, mark string) bool {
	for _, c := range l.copies {
		if b := l.buffer(c); b != nil {
			if l.fill(b, v, old, mark); !l.holds(c, b) {
				return false
			}
		}
	}
	return true
}

func (l *Loader) holds(c disk.Device, want []byte) bool {
	b := make([]byte, len(want))
	_, err := c.ReadAt(b, 0)
	return err == nil && string(b) == string(want)
}

// fill makes b what a copy shall hold: ours, then what else was found, as far as there is room.
func (l *Loader) fill(b []byte, v *boot.Vars, old *env, mark string) {
	list, values := "", ""
	for _, t := range v.Order {
		list += t.Name + " "
	}
	for _, name := range l.names {
		ok, try, left := "=0\n", "=0\n", byte('0')
		last := true
		for _, t := range v.Order {
			if t.Name == name {
				ok, last = "=1\n", false
				if left += min(t.Tries, most); t.Tries == 0 {
					try = "=1\n"
				}
			}
		}
		if last { // what is not started comes last, for rauc to find it
			list += name + " "
		}
		values += name + "_OK" + ok + name + "_TRY" + try
		if !old.stock {
			values += name + "_LEFT=" + string([]byte{left, '\n'})
		}
	}
	text := signature + head + "=" + mark + "\n" + order + "=" + list[:max(len(list)-1, 0)] + "\n" + values + tail + "=" + mark + "\n"
	n := copy(b, text)
	for _, line := range old.others {
		if n+len(line) <= len(b) {
			n += copy(b[n:], line)
		}
	}
	for ; n < len(b); n++ {
		b[n] = '#'
	}
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

// parse takes a block apart as GRUB does. ok says whether the script would go by it: the marks are equal, where there are
// any, and ORDER names one of the slots; where there is no ORDER, an X_OK does.
func (l *Loader) parse(b []byte) (e *env, ok bool) {
	if len(b) <= len(signature) || string(b[:len(signature)]) != signature {
		return nil, false
	}
	e = &env{vars: map[string]string{}, stock: true}
	for b = b[len(signature):]; ; {
		name, value, n := variable(b)
		if n == 0 {
			break
		}
		ours := name == head || name == tail || name == order
		for _, slot := range l.names {
			ours = ours || name == slot+"_OK" || name == slot+"_TRY" || name == slot+"_LEFT"
		}
		if ours { // of several of one name the last counts
			e.vars[name] = value
		} else {
			e.others = append(e.others, b[:n])
		}
		b = b[n:]
	}
	words := strings.Fields(e.vars[order])
	all := len(words) == 0
	if all {
		words = l.names
	}
	for _, slot := range l.names {
		e.stock = e.stock && e.get(slot, "_LEFT") == ""
		ok = ok || all && e.get(slot, "_OK") != ""
	}
	for _, word := range words {
		known := false
		for _, slot := range l.names {
			known = known || word == slot
		}
		for _, before := range e.order {
			known = known && word != before
		}
		if known {
			e.order = append(e.order, word)
		}
	}
	ok = (ok || !all && len(e.order) > 0) && e.vars[head] == e.vars[tail]
	return e, ok
}

func (e *env) get(slot, of string) string { return e.vars[slot+of] }

// tries are those that are left to a slot with X_OK 1.
func (e *env) tries(slot string) uint8 {
	if t := e.get(slot, "_TRY"); t != "" && t != "0" {
		return 0
	}
	if n := e.get(slot, "_LEFT"); len(n) == 1 && n[0] >= '1' && n[0] <= '9' {
		return n[0] - '0'
	}
	return 1
}

// variable reads the variable at the start of b, or a comment without a name, and returns how long it is with its newline. As
// for GRUB, what has no end is nothing: the filling is such.
func variable(b []byte) (name, value string, n int) {
	if len(b) > 0 && b[0] != '#' {
		for n < len(b) && b[n] != '=' {
			n++
		}
		name = string(b[:n])
		n++
	}
	var v []byte
	for ; n < len(b) && b[n] != '\n'; n++ {
		if b[n] == '\\' {
			n++
		}
		if n < len(b) {
			v = append(v, b[n])
		}
	}
	if n >= len(b) {
		return "", "", 0
	}
	return name, string(v), n + 1
}
