// Package efi keeps what the firmware starts in the firmware's own variables: BootOrder, BootNext, and for each slot one
// entry Boot#### whose description is the slot's bootname, as RAUC has it (UEFI 2.10, chapter 3).
//
// The firmware does not count: BootNext is started once, else the first of BootOrder that can be loaded. What is no slot's
// (a setup menu, a network) stays, behind the slots. How whole a variable is after a power cut is the firmware's promise,
// one at a time: BootNext is taken away first and set last, so that between two of them the firmware starts what it would
// have started before or the first of the new order.
package efi

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"

	"lifeboat/boot"
)

// Global is the vendor of the variables that UEFI itself defines, as the end of their names.
const Global = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"

// Vars are a firmware's variables by file name in efivarfs, NAME-VENDOR: 4 bytes of attributes, then the value. The
// firmware changes one at a time, and it is durable when Set or Delete returns. [Dir] is the kernel's.
type Vars interface {
	Get(name string) ([]byte, error) // fs.ErrNotExist where there is none
	Set(name string, b []byte) error
	Delete(name string) error
}

// Slot is what an entry starts.
type Slot struct {
	Name string // bootname
	File string // in its partition, for example `\EFI\Linux\A.efi`; ASCII
	Args string // the load option's own data, for the kernel its command line; may be empty
}

// Loader is boot.Loader for the firmware alone.
type Loader struct {
	vars  Vars
	slots []Slot
	where func(bootname string) (Partition, error)
}

// New returns the Loader of these slots. where is asked when an entry is to be made: which partition has the slot's file. nil: none
// are made.
func New(vars Vars, slots []Slot, where func(bootname string) (Partition, error)) *Loader {
	return &Loader{vars, slots, where}
}

const (
	active = 1                  // of a load option: BootOrder starts it
	head   = "\x07\x00\x00\x00" // attributes of a variable: kept, seen by boot services, seen by the running system
	maxVar = 16 << 10
	own    = 256 // numbers below are searched for entries that are not in BootOrder, and given to new ones
)

// Most says that the firmware does not count.
func (l *Loader) Most() uint8 { return 0 }

// Started returns the bootname of the entry that the firmware started, "" if that is no slot's.
func (l *Loader) Started() string { return l.single("BootCurrent") }

// single returns the slot of a variable that is one number.
func (l *Loader) single(name string) string {
	if n, _ := l.numbers(name); len(n) == 1 {
		slot, _ := l.entry(n[0])
		return slot
	}
	return ""
}

// Read returns BootNext and the slots in BootOrder. It reads nothing but these and the entries that they name.
func (l *Loader) Read() (v boot.Vars, err error) {
	order, err := l.numbers("BootOrder")
	if err != nil {
		return v, err
	}
next:
	for _, n := range order {
		slot, b := l.entry(n)
		if slot == "" || b[4]&active == 0 {
			continue
		}
		for _, t := range v.Order {
			if t.Name == slot {
				continue next
			}
		}
		v.Order = append(v.Order, boot.Turn{Name: slot})
	}
	v.Next = l.single("BootNext")
	if v.Next == "" && v.Order == nil {
		return v, boot.ErrNoVars
	}
	return v, nil
}

// Write sets what differs from v. Entries that are missing are made, with the lowest free numbers.
func (l *Loader) Write(v boot.Vars) error {
	old, err := l.numbers("BootOrder")
	if err != nil {
		return err
	}
	var order, next []byte
	for _, t := range v.Order {
		if order, err = l.provide(order, t.Name, old); err != nil {
			return err
		}
	}
	for _, n := range old {
		if slot, _ := l.entry(n); slot == "" {
			order = binary.LittleEndian.AppendUint16(order, n)
		}
	}
	if v.Next != "" {
		if next, err = l.provide(next, v.Next, old); err != nil {
			return err
		}
	}
	const bootNext = "BootNext" + Global
	if was, err := l.vars.Get(bootNext); err == nil && string(was) != head+string(next) {
		if err := l.vars.Delete(bootNext); err != nil {
			return err
		}
		if _, err := l.vars.Get(bootNext); err == nil {
			return errors.New("the firmware does not let go of BootNext")
		}
	}
	if err := l.set("BootOrder", order); err != nil || next == nil {
		return err
	}
	return l.set("BootNext", next)
}

// provide appends the number of a slot's entry, which is made or made active where it is not.
func (l *Loader) provide(list []byte, name string, order []uint16) ([]byte, error) {
	put := binary.LittleEndian.AppendUint16
	for i := range len(order) + own {
		n := uint16(i - len(order))
		if i < len(order) {
			n = order[i]
		}
		if slot, b := l.entry(n); slot == name && name != "" {
			b[4] |= active
			return put(list, n), l.set(number(n), b[4:])
		}
	}
	for _, s := range l.slots {
		if s.Name != name {
			continue
		}
		if l.where == nil {
			break
		}
		part, err := l.where(name)
		if err != nil {
			return nil, err
		}
		for n := range uint16(own) {
			// A number whose entry is lost is not given to another.
			if _, err := l.vars.Get(number(n) + Global); err != nil && !slices.Contains(order, n) {
				return put(list, n), l.set(number(n), option(s, part))
			}
		}
	}
	return nil, errors.New("the firmware has no entry " + name + ", and none can be made")
}

// entry reads Boot####: 4 bytes of attributes, length of the device paths (2), description in UTF-16, 0. slot is "" if it
// is none's or not there.
func (l *Loader) entry(n uint16) (slot string, b []byte) {
	b, err := l.vars.Get(number(n) + Global)
	if err != nil || len(b) < 4+6 || len(b) > maxVar {
		return "", nil
	}
	for _, s := range l.slots { // bootnames are ASCII
		name := b[4+6:]
		for i := 0; len(name) >= 2 && name[1] == 0; i, name = i+1, name[2:] {
			if i == len(s.Name) {
				if name[0] == 0 {
					return s.Name, b
				}
				break
			}
			if name[0] != s.Name[i] {
				break
			}
		}
	}
	return "", nil
}

// numbers reads a list of entries; none where the variable is not there or is no list.
func (l *Loader) numbers(name string) (list []uint16, err error) {
	b, err := l.vars.Get(name + Global)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for b = b[min(4, len(b)):min(maxVar, len(b))]; len(b) >= 2; b = b[2:] {
		list = append(list, binary.LittleEndian.Uint16(b))
	}
	return list, nil
}

// set writes a variable if it differs, and looks what the firmware made of it.
func (l *Loader) set(name string, value []byte) error {
	b := head + string(value)
	if was, _ := l.vars.Get(name + Global); string(was) == b {
		return nil
	}
	if err := l.vars.Set(name+Global, []byte(b)); err != nil {
		return err
	}
	if now, _ := l.vars.Get(name + Global); string(now) != b {
		return errors.New("the firmware did not keep " + name)
	}
	return nil
}

func number(n uint16) string {
	const digits = "0123456789ABCDEF"
	return "Boot" + string([]byte{digits[n>>12], digits[n>>8&15], digits[n>>4&15], digits[n&15]})
}

// option is a load option: attributes (4), length of the device path (2), description, device path, data. The device path
// is a partition, 4/1: number (4), start (8) and size (8) in sectors, GUID (16), GPT (2), by GUID (2); a file, 4/4; the end.
func option(s Slot, p Partition) []byte {
	le := binary.LittleEndian
	b := le.AppendUint16([]byte{active, 0, 0, 0}, uint16(42+4+2*len(s.File)+2+4))
	b = append(text(b, s.Name), 0, 0, 4, 1, 42, 0)
	b = le.AppendUint32(b, p.Number)
	b = le.AppendUint64(b, p.Start)
	b = le.AppendUint64(b, p.Size)
	b = append(append(b, p.GUID[:]...), 2, 2, 4, 4)
	b = le.AppendUint16(b, uint16(4+2*len(s.File)+2))
	b = append(text(b, s.File), 0, 0, 0x7f, 0xff, 4, 0)
	return text(b, s.Args)
}

// text appends ASCII as UTF-16; what is not ASCII has no place in names of ours.
func text(b []byte, s string) []byte {
	for i := range len(s) {
		b = append(b, s[i], 0)
	}
	return b
}

// Partition is a partition as a device path names it.
type Partition struct {
	Number      uint32
	Start, Size uint64   // sectors of the disk
	GUID        [16]byte // as it is on the disk
}
