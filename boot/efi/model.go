package efi

import "encoding/binary"

// Run is what OVMF does with its variables at power on: it starts an entry and returns its description, "" where none
// loads, and leaves the variables as they are then. Entries that are not there or are none leave BootOrder; what else the
// firmware adds for itself (a disk's removable path, a shell) has no part in it. BootNext is taken away before it is
// started, active or not; one that is no number stays, and nobody looks at it. loads says which entries load. The device's tests hold it against the real one.
func Run(v Vars, loads func(name string) bool) (started string, err error) {
	l := New(v, nil, nil)
	order, err := l.numbers("BootOrder")
	if err != nil {
		return "", err
	}
	var there []byte
	var names []string
	for _, n := range order {
		attributes, name := l.described(n)
		if attributes == 0 && name == "" {
			continue
		}
		there = binary.LittleEndian.AppendUint16(there, n)
		if attributes&(active|other) == active {
			names = append(names, name)
		}
	}
	const bootNext = "BootNext" + Global
	if b, err := v.Get(bootNext); err == nil && len(b) == 4+2 {
		if err := v.Delete(bootNext); err != nil {
			return "", err
		}
		_, name := l.described(binary.LittleEndian.Uint16(b[4:]))
		names = append([]string{name}, names...)
	}
	if len(there) < 2*len(order) {
		if err := l.set("BootOrder", there); err != nil {
			return "", err
		}
	}
	for _, name := range names {
		if name != "" && loads(name) {
			return name, nil
		}
	}
	return "", nil
}

// other are the attributes of entries that are no systems: a setup menu.
const other = 0x1f00

// described reads an entry as firmware does: 0 and "" where there is none.
func (l *Loader) described(n uint16) (attributes uint32, name string) {
	b, err := l.vars.Get(number(n) + Global)
	if err != nil || len(b) < 4+6 {
		return 0, ""
	}
	b = b[4:]
	attributes = binary.LittleEndian.Uint32(b)
	path := int(binary.LittleEndian.Uint16(b[4:]))
	for b = b[6:]; len(b) >= 2; b = b[2:] {
		if b[0] == 0 && b[1] == 0 {
			if path == 0 || path > len(b)-2 {
				return 0, ""
			}
			return attributes, name
		}
		name += string(rune(binary.LittleEndian.Uint16(b)))
	}
	return 0, ""
}
