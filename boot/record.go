package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"lifeboat/status"
)

// RecordSize is the size of a state record in bytes: what block devices write as one.
const RecordSize = 4096

// Format is the record format that this code writes, and the highest that it reads.
const Format = 1

// A record, little endian:
//
//	 0  8 bytes  magic "LIFEBOAT"
//	 8  u16      format
//	10  u16      length of the fields in bytes
//	12  u32      CRC-32C of all 4096 bytes with this field zero
//	16  u64      sequence
//	24  fields   each u8 type, u8 reserved (0), u16 length, then that many bytes
//	    zeros    to the end
//
// A type that is not known is kept and written again behind the known ones, so that an older writer loses nothing.
// docs/formats.md lists the fields.
const (
	recordMagic  = "LIFEBOAT"
	recordHeader = 24
	fieldHeader  = 4
	eventSize    = 20
)

const (
	fieldBoot     = 1
	fieldSlot     = 2 // one for each slot, in the order in which they are tried
	fieldInstall  = 3
	fieldFloors   = 4
	fieldFalls    = 5
	fieldGuards   = 6
	fieldMark     = 7
	fieldWish     = 8
	fieldRescue   = 9
	fieldLast     = 10
	fieldUnproven = 11
	fieldEvents   = 12 // of writers that knew no times; still read
	fieldNames    = 13
	fieldTrust    = 14
	fieldTimed    = 15 // events with their times
	fieldStaged   = 16
	fieldBack     = 17 // tries that were given back, of the slots that have such
	fieldTold     = 18 // of devices with a boot loader that chooses
	fieldTurn     = 19
)

var (
	// ErrLost means that no copy of the state record is valid.
	ErrLost = errors.New("both copies of the state record are lost")
	// ErrNewer means that the record is of a format that this code does not read. It must not be overwritten.
	ErrNewer = errors.New("the state record is of a newer format")
	// ErrRecord means that these bytes are not a valid record.
	ErrRecord = errors.New("not a valid state record")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func recordCRC(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:12])
	c = crc32.Update(c, castagnoli, []byte{0, 0, 0, 0})
	return crc32.Update(c, castagnoli, b[16:])
}

const (
	slotGood = 1 << iota
	slotExcluded
	slotLocal
	slotEndedSo
)

func bit(on bool, b uint8) uint8 {
	if on {
		return b
	}
	return 0
}

type writer struct{ b []byte }

func (w *writer) u8(v uint8)   { w.b = append(w.b, v) }
func (w *writer) u32(v uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, v) }
func (w *writer) raw(v []byte) { w.b = append(w.b, v...) }

// str writes a string of at most 255 bytes with its length before it.
func (w *writer) str(v string) { w.u8(uint8(len(v))); w.b = append(w.b, v...) }

func (w *writer) field(kind uint8, body func(*writer)) {
	at := len(w.b)
	w.raw([]byte{kind, 0, 0, 0})
	body(w)
	binary.LittleEndian.PutUint16(w.b[at+2:], uint16(len(w.b)-at-fieldHeader))
}

// Encode returns the record of s, RecordSize bytes. It fails when s breaks a limit of this package; what the other
// functions of this package return never does. Where a newer writer's fields leave too little room, the oldest events
// go: a device that could not write its state would be worse off than one without history.
func (s State) Encode() ([]byte, error) {
	if len(s.Slots) > MaxSlots || len(s.Falls) > MaxFalls || len(s.Guards) > MaxGuards || len(s.Events) > MaxEvents || len(s.Names) > MaxSlots {
		return nil, fmt.Errorf("encode state record: too many entries")
	}
	if len(s.Staged.Version) > MaxVersion {
		return nil, fmt.Errorf("encode state record: the version of what is staged is too long")
	}
	w := &writer{b: make([]byte, recordHeader, RecordSize)}
	w.field(fieldBoot, func(w *writer) { w.u64(s.Boot) })
	for _, e := range s.Slots {
		if len(e.Slot) > MaxSlot || len(e.Version) > MaxVersion {
			return nil, fmt.Errorf("encode state record: a name or version of slot %q is too long", e.Slot)
		}
		w.field(fieldSlot, func(w *writer) {
			w.raw(e.Manifest[:])
			w.u32(e.Epoch)
			w.u64(uint64(e.Created))
			w.u8(bit(e.Good, slotGood) | bit(e.Excluded, slotExcluded) | bit(e.Local, slotLocal) | bit(e.EndedSo, slotEndedSo))
			w.u8(e.Tries)
			w.u8(e.Ends)
			w.u8(uint8(e.LastEnd))
			w.u8(uint8(e.Reason))
			w.u64(e.Booted)
			w.str(e.Slot)
			w.str(e.Version)
		})
	}
	w.field(fieldInstall, func(w *writer) { w.raw(s.Install.Manifest[:]); w.str(s.Install.Target) })
	w.field(fieldFloors, func(w *writer) { w.u32(s.Floors.Epoch); w.u64(uint64(s.Floors.Time)); w.str(s.Floors.Version) })
	w.field(fieldFalls, func(w *writer) {
		for _, f := range s.Falls {
			w.raw(f.Manifest[:])
			w.u8(uint8(f.Evidence))
			w.u8(f.Rounds)
			w.u64(f.Next)
		}
	})
	w.field(fieldGuards, func(w *writer) {
		for _, g := range s.Guards {
			w.raw(g.ID[:])
			w.u8(g.Seen)
			w.u8(g.Unexplained)
			w.u64(g.Next)
		}
	})
	w.field(fieldMark, func(w *writer) { w.u8(uint8(s.Mark)); w.u8(s.Cuts) })
	w.field(fieldWish, func(w *writer) { w.str(s.Wish) })
	w.field(fieldRescue, func(w *writer) { w.u8(s.Rescue.Waits); w.u8(bit(s.Rescue.Stick, 1)); w.str(s.Rescue.Slot) })
	w.field(fieldLast, func(w *writer) { w.u8(bit(s.Last.Trial, 1) | bit(s.Last.Orderly, 2)); w.str(s.Last.Slot) })
	w.field(fieldUnproven, func(w *writer) { w.u8(bit(s.Unproven, 1)) })
	w.field(fieldTimed, func(w *writer) {
		for _, e := range s.Events {
			w.u32(e.Boot)
			w.u32(e.Time)
			w.raw([]byte{uint8(e.Kind), e.Slot, uint8(e.Reason), e.Code})
			w.raw(e.Manifest[:])
		}
	})
	w.field(fieldNames, func(w *writer) {
		for _, n := range s.Names {
			w.str(n.Slot[:min(len(n.Slot), MaxSlot)])
			w.str(n.Bootname[:min(len(n.Bootname), MaxSlot)])
		}
	})
	if s.Trust != (Trust{}) {
		w.field(fieldTrust, func(w *writer) { w.raw(s.Trust.File[:]); w.raw(s.Trust.Pending[:]) })
	}
	if !s.Staged.None() {
		w.field(fieldStaged, func(w *writer) {
			w.u64(uint64(s.Staged.Offset))
			w.u64(uint64(s.Staged.Size))
			w.raw(s.Staged.Manifest[:])
			w.str(s.Staged.Version)
		})
	}
	if slices.ContainsFunc(s.Slots, func(e Entry) bool { return e.Back > 0 }) {
		w.field(fieldBack, func(w *writer) {
			for _, e := range s.Slots {
				if e.Back > 0 {
					w.str(e.Slot)
					w.u8(e.Back)
				}
			}
		})
	}
	if s.Told.Next != "" || len(s.Told.Order) > 0 {
		w.field(fieldTold, func(w *writer) {
			w.str(s.Told.Next[:min(len(s.Told.Next), MaxSlot)])
			for _, t := range s.Told.Order[:min(len(s.Told.Order), MaxSlots)] {
				w.str(t.Name[:min(len(t.Name), MaxSlot)])
				w.u8(t.Tries)
			}
		})
	}
	if s.Turn != "" || s.Asked > 0 {
		w.field(fieldTurn, func(w *writer) { w.u8(s.Asked); w.str(s.Turn) })
	}
	w.raw(s.unknown)
	if over := len(w.b) - RecordSize; over > 0 && len(s.Events) > 0 {
		s.Events = s.Events[min((over+eventSize-1)/eventSize, len(s.Events)):]
		return s.Encode()
	}
	if len(w.b) > RecordSize && len(s.unknown) > 0 {
		// More than half a record of them: no writer leaves so little room, and then the state comes first.
		s.unknown = nil
		return s.Encode()
	}
	if len(w.b) > RecordSize {
		return nil, fmt.Errorf("encode state record: %d bytes do not fit", len(w.b))
	}
	n := len(w.b)
	b := w.b[:RecordSize]
	clear(b[n:])
	copy(b, recordMagic)
	binary.LittleEndian.PutUint16(b[8:], Format)
	binary.LittleEndian.PutUint16(b[10:], uint16(n-recordHeader))
	binary.LittleEndian.PutUint64(b[16:], s.Sequence)
	binary.LittleEndian.PutUint32(b[12:], recordCRC(b))
	return b, nil
}

type reader struct {
	b   []byte
	bad bool
}

func (r *reader) raw(n int) []byte {
	if len(r.b) < n {
		r.bad, r.b = true, nil
		return make([]byte, n)
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}
func (r *reader) u8() uint8   { return r.raw(1)[0] }
func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.raw(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.raw(4)) }
func (r *reader) u64() uint64 { return binary.LittleEndian.Uint64(r.raw(8)) }
func (r *reader) str(most int) string {
	n := int(r.u8())
	if n > most {
		r.bad = true
		return ""
	}
	return string(r.raw(n))
}

func (r *reader) event(e Event) Event {
	e.Kind, e.Slot, e.Reason, e.Code = status.Kind(r.u8()), r.u8(), status.Reason(r.u8()), r.u8()
	copy(e.Manifest[:], r.raw(8))
	return e
}

// Decode reads a record of RecordSize bytes. Errors wrap ErrRecord, or ErrNewer when the record is whole but of a
// newer format. What it accepts, Encode gives back with the same meaning.
func Decode(b []byte) (State, error) {
	if len(b) != RecordSize || string(b[:8]) != recordMagic {
		return State{}, fmt.Errorf("%w: no magic", ErrRecord)
	}
	if recordCRC(b) != binary.LittleEndian.Uint32(b[12:]) {
		return State{}, fmt.Errorf("%w: checksum", ErrRecord)
	}
	if f := binary.LittleEndian.Uint16(b[8:]); f == 0 {
		return State{}, fmt.Errorf("%w: format 0", ErrRecord)
	} else if f > Format {
		return State{}, fmt.Errorf("%w (%d; this is %d)", ErrNewer, f, Format)
	}
	n := int(binary.LittleEndian.Uint16(b[10:]))
	if n > RecordSize-recordHeader {
		return State{}, fmt.Errorf("%w: length", ErrRecord)
	}
	s := State{Sequence: binary.LittleEndian.Uint64(b[16:])}
	back := map[string]uint8{} // of entries that may come later
	rest := &reader{b: b[recordHeader : recordHeader+n]}
	var untimed []Event
	for len(rest.b) > 0 && !rest.bad {
		start := rest.b
		kind := rest.u8()
		rest.u8()
		body := rest.raw(int(rest.u16()))
		if rest.bad {
			break
		}
		r := &reader{b: body}
		switch kind {
		case fieldBoot:
			s.Boot = r.u64()
		case fieldSlot:
			var e Entry
			copy(e.Manifest[:], r.raw(32))
			e.Epoch, e.Created = r.u32(), int64(r.u64())
			flags := r.u8()
			e.Good, e.Excluded, e.Local = flags&slotGood != 0, flags&slotExcluded != 0, flags&slotLocal != 0
			e.EndedSo = flags&slotEndedSo != 0
			e.Tries, e.Ends, e.LastEnd, e.Reason = r.u8(), r.u8(), status.Reason(r.u8()), status.Reason(r.u8())
			e.Booted = r.u64()
			e.Slot, e.Version = r.str(MaxSlot), r.str(MaxVersion)
			if len(s.Slots) == MaxSlots || s.index(e.Slot) >= 0 {
				r.bad = true
			}
			s.Slots = append(s.Slots, e)
		case fieldInstall:
			copy(s.Install.Manifest[:], r.raw(32))
			s.Install.Target = r.str(MaxSlot)
		case fieldFloors:
			s.Floors.Epoch, s.Floors.Time = r.u32(), int64(r.u64())
			s.Floors.Version = r.str(MaxVersion)
		case fieldFalls:
			for len(r.b) > 0 && !r.bad {
				var f Fall
				copy(f.Manifest[:], r.raw(32))
				f.Evidence, f.Rounds, f.Next = status.Reason(r.u8()), r.u8(), r.u64()
				s.Falls = append(s.Falls, f)
			}
		case fieldGuards:
			for len(r.b) > 0 && !r.bad {
				var g Guard
				copy(g.ID[:], r.raw(8))
				g.Seen, g.Unexplained, g.Next = r.u8(), r.u8(), r.u64()
				s.Guards = append(s.Guards, g)
			}
		case fieldMark:
			s.Mark, s.Cuts = Mark(r.u8()), r.u8()
		case fieldWish:
			s.Wish = r.str(MaxSlot)
		case fieldRescue:
			s.Rescue.Waits, s.Rescue.Stick = r.u8(), r.u8()&1 != 0
			s.Rescue.Slot = r.str(MaxSlot)
		case fieldLast:
			flags := r.u8()
			s.Last.Trial, s.Last.Orderly = flags&1 != 0, flags&2 != 0
			s.Last.Slot = r.str(MaxSlot)
		case fieldUnproven:
			s.Unproven = r.u8()&1 != 0
		case fieldEvents:
			for len(r.b) > 0 && !r.bad {
				untimed = append(untimed, r.event(Event{Boot: r.u32()}))
			}
		case fieldTimed:
			for len(r.b) > 0 && !r.bad {
				s.Events = append(s.Events, r.event(Event{Boot: r.u32(), Time: r.u32()}))
			}
		case fieldNames:
			for len(r.b) > 0 && !r.bad {
				s.Names = append(s.Names, Name{r.str(MaxSlot), r.str(MaxSlot)})
			}
		case fieldTrust:
			copy(s.Trust.File[:], r.raw(32))
			copy(s.Trust.Pending[:], r.raw(32))
		case fieldStaged:
			s.Staged.Offset, s.Staged.Size = int64(r.u64()), int64(r.u64())
			copy(s.Staged.Manifest[:], r.raw(32))
			s.Staged.Version = r.str(MaxVersion)
			if s.Staged.Offset < 0 || s.Staged.None() {
				r.bad = true
			}
		case fieldBack:
			for len(r.b) > 0 && !r.bad {
				back[r.str(MaxSlot)] = r.u8()
			}
		case fieldTold:
			s.Told.Next = r.str(MaxSlot)
			for len(r.b) > 0 && !r.bad {
				s.Told.Order = append(s.Told.Order, Turn{Name: r.str(MaxSlot), Tries: r.u8()})
			}
			r.bad = r.bad || len(s.Told.Order) > MaxSlots
		case fieldTurn:
			s.Asked = r.u8()
			s.Turn = r.str(MaxSlot)
		default:
			s.unknown, r.b = append(s.unknown, start[:fieldHeader+len(body)]...), nil
		}
		if r.bad || len(r.b) > 0 {
			// A known field of another length is not of this format.
			return State{}, fmt.Errorf("%w: field %d", ErrRecord, kind)
		}
	}
	if rest.bad || len(s.Falls) > MaxFalls || len(s.Guards) > MaxGuards || len(s.Events) > MaxEvents || len(untimed) > MaxEvents || len(s.Names) > MaxSlots {
		return State{}, fmt.Errorf("%w: fields", ErrRecord)
	}
	// Where both are, an older writer went on where a newer one had stopped.
	s.Events = append(s.Events, untimed...)
	s.Events = s.Events[max(0, len(s.Events)-MaxEvents):]
	for i := range s.Slots {
		s.Slots[i].Back = back[s.Slots[i].Slot]
	}
	return s, nil
}
