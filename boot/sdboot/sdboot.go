// Package sdboot keeps what systemd-boot starts where systemd-boot looks for it: in the names of the entries in
// /loader/entries on the ESP, and nothing else. One rename is one change of one slot.
//
// A slot's entry is called NN-NAME+LEFT-DONE.conf. systemd-boot sorts by name, so NN is the slot's place: the highest is
// first, entries without tries come last. It takes one from LEFT before it starts a slot. Slots that are good are counted
// too, as a kernel that hangs now has nobody else who counts; NN-NAME.conf, which systemd-bless-boot makes, is not counted
// and read as the highest count. A slot that is not to be started at all has no name that ends in .conf.
//
// Each slot may have a spare entry, a second file of the same content: a change gives the spare the new name and then takes
// the old name away, so that no cut leaves the slot without an entry, whoever wrote the folder and in what order. Without a
// spare that is up to [Folder]. An entry that got lost all the same comes back from its spare.
package sdboot

import (
	"errors"
	"fmt"
	"sort"
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
	file, slot string
	place      int  // 0..99
	tries      int  // -1: not counted
	done       int  // as it stands there
	on         bool // ends in .conf
}

// parse takes a file's name, or an entry's identity as systemd-boot says it: in lower case. nil: it is no slot's.
func (l *Loader) parse(file string) *entry {
	dot := strings.LastIndexByte(file, '.')
	if dot < 4 || file[2] != '-' {
		return nil
	}
	e := &entry{file: file, place: digits(file[:2]), tries: -1, on: strings.EqualFold(file[dot:], ".conf")}
	name := file[3:dot]
	if plus := strings.LastIndexByte(name, '+'); plus >= 0 {
		count := name[plus+1:]
		name = name[:plus]
		if dash := strings.IndexByte(count, '-'); dash >= 0 && digits(count[dash+1:]) >= 0 {
			e.done = digits(count[dash+1:])
			count = count[:dash]
		}
		if e.tries = min(digits(count), most); e.tries < 0 {
			return nil
		}
	}
	for _, e.slot = range l.names {
		if strings.EqualFold(e.slot, name) && e.place >= 0 && (e.on || strings.EqualFold(file[dot:], ".off")) {
			return e
		}
	}
	return nil
}

// digits reads a number, one above 99999 as that; -1: s is something else. systemd-boot counts up without end what it starts
// without tries.
func digits(s string) (n int) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return -1
		}
		n = min(10*n+int(s[i]-'0'), 99999)
	}
	if s == "" {
		return -1
	}
	return n
}

// slots returns of each slot the entry that is started, in the order of their places: a slot without tries stays where it
// is. A second entry of a slot, which a cut has left, is made its spare.
func (l *Loader) slots() (on, spares []*entry, err error) {
	files, err := l.dir.Names()
	if err != nil {
		return nil, nil, err
	}
	var twice []*entry
	for _, f := range files {
		e := l.parse(f)
		if e == nil {
			continue
		}
		list := &spares
		if e.on {
			list = &on
			if o := find(on, e.slot); o != nil {
				if e.before(o) {
					*e, *o = *o, *e
				}
				list = &twice
			}
		}
		*list = append(*list, e)
	}
	sort.SliceStable(on, func(i, j int) bool { return on[i].place > on[j].place })
	for _, e := range twice {
		if l.retire(e, spares) == nil {
			spares = append(spares, e)
		}
	}
	return on, spares, nil
}

// before says which of two entries systemd-boot tries first.
func (e *entry) before(o *entry) bool {
	if (e.tries == 0) != (o.tries == 0) {
		return o.tries == 0
	}
	return e.place > o.place || e.place == o.place && e.file > o.file
}

// retire takes an entry's place among those that are started. Spares differ in their names' first digit.
func (l *Loader) retire(e *entry, spares []*entry) error {
	b := []byte(e.file[:strings.LastIndexByte(e.file, '.')] + ".off")
again:
	for _, s := range spares {
		if strings.EqualFold(s.file, string(b)) && b[0] <= '9' {
			b[0]++
			goto again
		}
	}
	from := e.file
	e.file = string(b)
	return l.dir.Rename(from, e.file)
}

func find(list []*entry, slot string) *entry {
	for _, e := range list {
		if e.slot == slot {
			return e
		}
	}
	return nil
}

// Most is the highest count of tries.
func (l *Loader) Most() uint8 { return most }

// Read returns the slots that have entries, in their order. One that is not counted is good and has Most tries.
func (l *Loader) Read() (v boot.Vars, err error) {
	on, _, err := l.slots()
	if err != nil {
		return v, err
	}
	for _, e := range on {
		t := boot.Turn{Name: e.slot, Tries: most, Good: true}
		if e.tries >= 0 {
			t.Tries, t.Good = uint8(e.tries), false
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
		return errors.New("systemd-boot does not count what it starts once")
	}
	for range 3 { // a file with two names takes one more; the last changes nothing
		if changed, err := l.write(v.Order); !changed || err != nil {
			return err
		}
	}
	return errors.New(Dir + " reads otherwise than it was written")
}

// write makes one attempt, and says whether there was anything to do.
func (l *Loader) write(order []boot.Turn) (changed bool, err error) {
	on, spares, err := l.slots()
	if err != nil {
		return false, err
	}
	// Each slot keeps its place where that will do.
	places := make([]int, len(order))
	keep := true
	for above, i := -1, len(order)-1; i >= 0; i-- {
		above++
		if e := find(on, order[i].Name); keep && e != nil && e.place > above {
			above = e.place
		}
		if places[i] = above; above == 100 { // all get new ones
			keep, above, i = false, start-1, len(order)
		}
	}
	for i, t := range order {
		e, spare := find(on, t.Name), find(spares, t.Name)
		tries := int(min(t.Tries, most))
		if e != nil && e.place == places[i] && (e.tries == tries || e.tries < 0 && tries == most) {
			continue
		}
		b := append([]byte{byte('0' + places[i]/10), byte('0' + places[i]%10), '-'}, t.Name...)
		b = append(b, '+', byte('0'+tries), '-', '0', '.', 'c', 'o', 'n', 'f')
		if e != nil && e.tries+e.done == tries {
			b[len(b)-6]++ // counting never comes to the name that a cut may leave: systemd-boot would not count then
		}
		to := string(b)
		changed = true
		switch {
		case spare != nil:
			if err := l.dir.Rename(spare.file, to); err != nil {
				return true, err
			}
			if e != nil {
				if err := l.retire(e, spares); err != nil {
					return true, err
				}
			}
		case e != nil:
			if err := l.dir.Rename(e.file, to); err != nil {
				return true, err
			}
		default:
			err = fmt.Errorf("the entry of %s is lost and has no spare", t.Name)
		}
	}
next:
	for _, e := range on {
		for _, t := range order {
			if t.Name == e.slot {
				continue next
			}
		}
		changed = true
		if err := l.retire(e, spares); err != nil {
			return true, err
		}
	}
	return changed, err
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
	if e := l.parse(string(name)); e != nil {
		return e.slot
	}
	return ""
}
