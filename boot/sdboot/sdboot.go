// Package sdboot keeps what systemd-boot starts where systemd-boot looks for it: in the names of the entries in
// /loader/entries on the ESP, and nothing else. One rename is one change of one slot.
//
// A slot's entry is called NN-NAME+LEFT-DONE.conf, or NN-NAME.conf where it is not counted ("good"). systemd-boot sorts by
// name, so NN is the slot's place: the highest is first, entries without tries come last. It takes one from LEFT before it
// starts a slot. A slot that is not to be started has no name that ends in .conf.
//
// Each slot may have a spare entry, a second file of the same content: a change gives the spare the new name and then takes
// the old name away, so that no cut leaves the slot without an entry, whoever wrote the folder and in what order. Without a
// spare that is up to [Folder]. An entry that got lost all the same comes back from its spare.
package sdboot

import (
	"errors"
	"fmt"
	"strings"

	"lifeboat/boot"
	"lifeboat/boot/efi"
)

// Dir is where entries lie on the ESP.
const Dir = "/loader/entries"

// Folder is that folder. A Rename is durable when it returns; a cut leaves either name or both.
type Folder interface {
	Names() ([]string, error)
	Rename(from, to string) error
}

// Loader is boot.Loader for systemd-boot.
type Loader struct {
	dir   Folder
	vars  efi.Vars
	names []string
}

// New returns the Loader of the slots with these bootnames, no two of which may differ in case alone. vars says what was
// started; it may be nil.
func New(dir Folder, vars efi.Vars, names []string) *Loader { return &Loader{dir, vars, names} }

const (
	most  = 9  // tries: one digit, so that names keep their length
	start = 50 // place of a slot where none has one
)

// entry is a file of the folder that is a slot's.
type entry struct {
	file    string
	slot    string
	at      int  // place, 0..99
	on      bool // ends in .conf
	counted bool
	left    uint8
}

// parse takes a file's name, or an entry's identity as systemd-boot says it: in lower case.
func (l *Loader) parse(file string) (e entry, ok bool) {
	e.file = file
	dot := strings.LastIndexByte(file, '.')
	if dot < 4 || file[2] != '-' {
		return e, false
	}
	e.on = strings.EqualFold(file[dot:], ".conf")
	at, ok := digits(file[:2])
	name, count := file[3:dot], ""
	if plus := strings.LastIndexByte(name, '+'); plus >= 0 {
		name, count, e.counted = name[:plus], name[plus+1:], true
	}
	if !ok || !e.on && !strings.EqualFold(file[dot:], ".off") {
		return e, false
	}
	e.at = at
	if e.counted {
		if dash := strings.IndexByte(count, '-'); dash >= 0 {
			if _, ok := digits(count[dash+1:]); !ok {
				return e, false
			}
			count = count[:dash]
		}
		left, ok := digits(count)
		if !ok {
			return e, false
		}
		e.left = uint8(min(left, most))
	}
	for _, n := range l.names {
		if strings.EqualFold(n, name) {
			e.slot = n
		}
	}
	return e, e.slot != ""
}

func digits(s string) (n int, ok bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' || i > 3 {
			return 0, false
		}
		n = 10*n + int(s[i]-'0')
	}
	return n, s != ""
}

// list returns the slots' entries as systemd-boot would try them, then the spares.
func (l *Loader) list() ([]entry, error) {
	files, err := l.dir.Names()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", Dir, err)
	}
	var list []entry
	for _, f := range files {
		e, ok := l.parse(f)
		if !ok {
			continue
		}
		i := len(list)
		for list = append(list, e); i > 0 && before(e, list[i-1]); i-- {
			list[i] = list[i-1]
		}
		list[i] = e
	}
	return list, nil
}

// before says which entry comes first: those that may be started, of them those with tries, of them by place.
func before(a, b entry) bool {
	rank := func(e entry) int {
		n := e.at
		if e.on {
			n += 1000
		}
		if !e.counted || e.left > 0 {
			n += 100
		}
		return n
	}
	if x, y := rank(a), rank(b); x != y {
		return x > y
	}
	return a.file > b.file
}

// slots returns of each slot the entry that is started, sorted by place alone: a slot without tries stays where it is. A
// second entry of a slot, which a cut has left, is made its spare.
func (l *Loader) slots() (on, spares []entry, err error) {
	list, err := l.list()
	if err != nil {
		return nil, nil, err
	}
	for _, e := range list {
		switch _, twice := find(on, e.slot); {
		case !e.on:
			spares = append(spares, e)
		case twice:
			if l.retire(&e, spares) == nil {
				spares = append(spares, e)
			}
		default:
			i := len(on)
			for on = append(on, e); i > 0 && e.at > on[i-1].at; i-- {
				on[i] = on[i-1]
			}
			on[i] = e
		}
	}
	return on, spares, nil
}

// retire takes an entry's place among those that are started. Spares differ in their names' first digit.
func (l *Loader) retire(e *entry, spares []entry) error {
	b := []byte(e.file[:strings.LastIndexByte(e.file, '.')] + ".off")
again:
	for _, s := range spares {
		if strings.EqualFold(s.file, string(b)) && b[0] <= '9' {
			b[0]++
			goto again
		}
	}
	err := l.dir.Rename(e.file, string(b))
	e.file = string(b)
	return err
}

func find(list []entry, slot string) (entry, bool) {
	for _, e := range list {
		if e.slot == slot {
			return e, true
		}
	}
	return entry{}, false
}

// Most is the highest count of tries. A slot with as many that is Good is not counted: systemd-boot starts it as often as
// it takes.
func (l *Loader) Most() uint8 { return most }

// Read returns the slots that have entries, in their order. Tries of a slot that is not counted are Most.
func (l *Loader) Read() (v boot.Vars, err error) {
	on, _, err := l.slots()
	if err != nil {
		return v, err
	}
	for _, e := range on {
		t := boot.Turn{Name: e.slot, Tries: e.left}
		if !e.counted {
			t.Tries, t.Good = most, true
		}
		v.Order = append(v.Order, t)
	}
	if on == nil {
		return v, fmt.Errorf("%w: no slot has an entry in %s", boot.ErrNoVars, Dir)
	}
	return v, nil
}

// Write renames the entries of slots that differ, as few as the order allows. Each slot's change is whole or not done; they
// are made one after the other, those to be started first. A slot that has lost entry and spare is an error, after all
// else was done.
func (l *Loader) Write(v boot.Vars) error {
	if v.Next != "" {
		return errors.New("systemd-boot is told to start something once by its variable, not here")
	}
	var lost error
	for range 2 { // the first may have found a file with two names
		var done bool
		if done, lost = l.write(v); done {
			return lost
		}
	}
	return errors.Join(lost, errors.New(Dir+" reads otherwise than it was written"))
}

// write makes one attempt, and says whether all that has entries is now as it should be.
func (l *Loader) write(v boot.Vars) (done bool, err error) {
	on, spares, err := l.slots()
	if err != nil {
		return false, err
	}
	places := l.places(v.Order, on)
	want := make([]string, len(v.Order))
	done = true
	for i, t := range v.Order {
		e, has := find(on, t.Name)
		good := t.Good && t.Tries >= most
		if has && e.at == places[i] && e.counted != good && (good || e.left == t.Tries) {
			want[i] = e.file
			continue
		}
		b := append([]byte{byte('0' + places[i]/10), byte('0' + places[i]%10), '-'}, t.Name...)
		if !good {
			b = append(b, '+', '0'+min(t.Tries, most), '-', '0')
		}
		want[i] = string(append(b, ".conf"...))
		from, spare := find(spares, t.Name)
		if !spare {
			from = e
		}
		if !spare && !has {
			err = errors.Join(err, fmt.Errorf("the entry of %s is lost and has no spare", t.Name))
			continue
		}
		if e := l.dir.Rename(from.file, want[i]); e != nil {
			return false, errors.Join(err, e)
		}
		if has && spare {
			if e := l.retire(&e, spares); e != nil {
				return false, errors.Join(err, e)
			}
		}
	}
	for _, e := range on {
		named := false
		for _, t := range v.Order {
			named = named || t.Name == e.slot
		}
		if !named {
			if e := l.retire(&e, spares); e != nil {
				return false, errors.Join(err, e)
			}
		}
	}
	now, _, e := l.slots()
	if e != nil {
		return false, e
	}
	for i, t := range v.Order {
		if e, has := find(now, t.Name); has && e.file != want[i] {
			done = false
		}
	}
	return done, err
}

// places gives each slot of an order its place: the one that it has where that will do.
func (l *Loader) places(order []boot.Turn, on []entry) []int {
	places := make([]int, len(order))
	for renumber := range 2 {
		above := start - 1
		if renumber == 0 && len(on) > 0 {
			above = -1
		}
		for i := len(order) - 1; i >= 0; i-- {
			e, has := find(on, order[i].Name)
			if renumber == 0 && has && e.at > above {
				above = e.at
			} else {
				above++
			}
			places[i] = above
		}
		if above < 100 {
			break
		}
	}
	return places
}

// selected is what systemd-boot says that it has started.
const selected = "LoaderEntrySelected-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// Started returns the bootname of the entry that systemd-boot started, "" if it does not say or that is no slot's.
func (l *Loader) Started() string {
	if l.vars == nil {
		return ""
	}
	b, err := l.vars.Get(selected)
	if err != nil || len(b) < 4 || len(b) > 1024 {
		return ""
	}
	var name []byte
	for b = b[4:]; len(b) >= 2 && b[0] != 0; b = b[2:] {
		name = append(name, b[0])
	}
	e, _ := l.parse(string(name))
	return e.slot
}
