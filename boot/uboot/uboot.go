// Package uboot speaks U-Boot's environment: the variables with which RAUC, SWUpdate and Mender tell U-Boot which slot
// to start, in files of a FAT file system, in a raw area, on flash.
//
// Layout of a copy: le32 CRC-32 (IEEE) of all that follows the header; with two copies one byte flag, which counts up and
// wraps; NAME=VALUE strings that end with NUL, a further NUL, NULs to the end. With two copies U-Boot goes by the valid
// one with the newer flag, and what is written goes over the other one: after a power cut there is the old environment or
// the new one. One copy alone is lost when the power goes while it is written; U-Boot then goes by what is compiled in.
package uboot

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"lifeboat/boot"
	"lifeboat/disk"
)

// Loader is a boot.Loader over U-Boot's environment.
type Loader struct {
	copies []disk.Device
	size   int // of a copy
	names  []string
	schema string

	SlotVar string // SWUpdate: the variable that names the slot; "": the first of some that does

	// NOR says that the copies lie on NOR flash (a [disk.File] of that kind, blocks of its own for each). There U-Boot does not
	// count in the flag: the copy that counts has 1, then the other one's is made 0 without erasing it.
	NOR bool
}

// Schemas: whose variables they are.
const (
	RAUC     = "rauc"     // BOOT_ORDER, BOOT_NAME_LEFT
	SWUpdate = "swupdate" // bootslot (or what the device calls it), ustate, bootcount
	Mender   = "mender"   // mender_boot_part, upgrade_available, bootcount; bootnames are numbers of partitions
)

// New returns the Loader on one copy or two, each exactly as large as it is for U-Boot; one of two that is smaller (a file
// that is not there) counts as damaged. names are the bootnames of all slots in the order of the configuration; two with
// the variables of SWUpdate and Mender. It reads nothing.
func New(copies []disk.Device, names []string, schema string) (*Loader, error) {
	size := int64(minSize)
	for _, c := range copies {
		size = max(size, c.Size())
	}
	if n := len(copies); n < 1 || n > 2 || size > MaxSize {
		return nil, errors.New("U-Boot's environment has one copy or two, of at most 1 MiB")
	}
	return &Loader{copies: copies, size: int(size), names: names, schema: schema}, nil
}

// maxTries is the highest count that every reader of BOOT_NAME_LEFT understands alike: RAUC writes hexadecimal, some
// boards read decimal.
const maxTries = 9

// Most is 9 with RAUC's variables. Those of SWUpdate and Mender know a slot that is tried and one to fall back to.
func (l *Loader) Most() uint8 {
	if l.schema == RAUC {
		return maxTries
	}
	return 0
}

func (l *Loader) redundant() bool { return len(l.copies) == 2 }

// found is what the copies hold.
type found struct {
	raw   [2][]byte // nil: could not be read
	env   Env       // that U-Boot goes by
	at    int       // its copy; -1: none is valid
	whole bool      // all are valid
}

// load reads all copies. The error is that of a copy that could not be read.
func (l *Loader) load() (f found, err error) {
	f.at, f.whole = -1, true
	for i, c := range l.copies {
		b := make([]byte, l.size)
		if n, e := c.ReadAt(b, 0); n < len(b) {
			if b = nil; e != io.EOF {
				err = e
			}
		}
		f.raw[i] = b
		e, valid := Parse(b, l.redundant())
		if !valid {
			f.whole = false
		} else if f.at < 0 || newer(e.Flag, f.env.Flag) {
			f.env, f.at = e, i
		}
	}
	return f, err
}

// named says whose an error is.
func named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("U-Boot's environment: %w", err)
}

// Read returns what U-Boot will do next. A copy that cannot be read counts as damaged while the other one is valid.
func (l *Loader) Read() (v boot.Vars, err error) {
	f, err := l.load()
	switch {
	case f.at < 0:
		if err == nil {
			err = boot.ErrNoVars
		}
		return v, named(err)
	case l.schema == RAUC:
		if v.Order = order(f.env.Vars, l.names); v.Order == nil {
			return v, named(boot.ErrNoVars) // as boot.scr leaves it when it found nothing
		}
		return v, nil
	}
	v, err = l.trial(f.env.Vars)
	return v, named(err)
}

// Write makes v true: with two copies one write over the older one and one flush, with one before it for what the disk
// may only have in its cache. Nothing is written where that is how it stands, in whole copies. Only sectors are written
// that change; of one copy that is mostly the first, which holds the checksum and BOOT_*. Where one of two copies cannot be read, the
// other one is written in place.
func (l *Loader) Write(v boot.Vars) error { return named(l.write(v)) }

func (l *Loader) write(v boot.Vars) error {
	f, _ := l.load()
	if f.at < 0 {
		f.env.Vars = map[string]string{}
	}
	if l.schema == RAUC {
		setOrder(f.env.Vars, l.names, v.Order)
	} else {
		l.setTrial(f.env.Vars, v)
	}
	to, last := 0, len(l.copies)-1
	if f.at >= 0 {
		if to = last - f.at; f.raw[to] == nil {
			to = f.at // the only one that is left, in place
		}
		if (f.whole || to == f.at) && string(f.env.Encode(l.size, l.redundant())) == string(f.raw[f.at]) {
			return nil
		}
		// After a reset the disk may show what it only has in its cache. It has to last before the other copy is
		// written over.
		if err := l.copies[f.at].Flush(); err != nil {
			return err
		}
		last = to
	}
	var failed error
	for written := false; to <= last; to++ {
		if f.env.Flag++; l.NOR {
			f.env.Flag = 1
		}
		b := f.env.Encode(l.size, l.redundant())
		if b == nil {
			return errors.New("it is full")
		}
		if err := put(l.copies[to], b, f.raw[to]); err == nil {
			written, failed = true, nil
		} else if !written {
			failed = err
		}
	}
	if l.NOR && f.at >= 0 && f.at != last && failed == nil {
		// Of two copies with 1 the first counts: until now the old one, or the new one already.
		_, failed = l.copies[f.at].WriteAt([]byte{0}, 4)
	}
	return failed
}

// put writes what differs from was, in whole sectors, and reads it back. was is nil where that is not known.
func put(d disk.Device, b, was []byte) error {
	from, to := 0, len(b)
	for was != nil && from < to && b[from] == was[from] {
		from++
	}
	for was != nil && to > from && b[to-1] == was[to-1] {
		to--
	}
	from, to = from&^511, min((to+511)&^511, len(b))
	if _, err := d.WriteAt(b[from:to], int64(from)); err != nil {
		return err
	}
	if err := d.Flush(); err != nil {
		return err
	}
	back := make([]byte, len(b))
	if n, err := d.ReadAt(back, 0); n < len(back) {
		return err
	}
	if string(back) != string(b) {
		return errors.New("something else is read back")
	}
	return nil
}

// defaultTries is what boot scripts take for a counter that is not there.
const defaultTries = 3

func orderName(bootname string) string { return "BOOT_" + bootname + "_LEFT" }

// order is what RAUC's variables say. A counter that is missing is what boot scripts take for it: three tries.
func order(vars map[string]string, names []string) (turns []boot.Turn) {
	for _, name := range strings.Fields(vars["BOOT_ORDER"]) {
		known := func(t boot.Turn) bool { return t.Name == name }
		if slices.Contains(names, name) && !slices.ContainsFunc(turns, known) {
			turns = append(turns, boot.Turn{Name: name, Tries: tries(vars[orderName(name)])})
		}
	}
	return turns
}

// tries reads a counter: the hexadecimal number at its begin, of 32 bits with a sign; at most 9.
func tries(s string) uint8 {
	if s == "" {
		return defaultTries
	}
	var n int32
	for i := range len(s) {
		c := s[i] | 0x20 // of a letter the small one
		switch {
		case s[i] >= '0' && s[i] <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			c = 255
		}
		if c == 255 {
			break
		}
		n = n<<4 | int32(c)
	}
	return uint8(min(max(n, 0), maxTries))
}

// setOrder never leaves the order empty, which boot scripts take for all slots: those that must not be started have no
// tries.
func setOrder(vars map[string]string, names []string, turns []boot.Turn) {
	var words []string
	for _, name := range names {
		vars[orderName(name)] = "0"
	}
	for _, t := range turns {
		words = append(words, t.Name)
		vars[orderName(t.Name)] = string('0' + min(t.Tries, maxTries))
	}
	if len(words) == 0 {
		words = names
	}
	vars["BOOT_ORDER"] = strings.Join(words, " ")
}

// slotVars are the names under which devices with SWUpdate keep the slot. SWUpdate itself has none; its layer for boards has
// rootpart and rpipart.
var slotVars = []string{"bootslot", "rootpart", "rpipart", "bootpart", "mmcpart"}

// slotVar is the variable that names the slot.
func (l *Loader) slotVar(vars map[string]string) string {
	if l.schema == Mender {
		return "mender_boot_part"
	}
	if l.SlotVar != "" {
		return l.SlotVar
	}
	for _, name := range slotVars {
		if slices.Contains(l.names, vars[name]) {
			return name
		}
	}
	return slotVars[0]
}

// trial is what SWUpdate's and Mender's variables say: a slot, and whether it is tried. One that is tried is started
// until bootcount has reached bootlimit, then the loader goes back to the other one for good.
func (l *Loader) trial(vars map[string]string) (boot.Vars, error) {
	slot := vars[l.slotVar(vars)]
	if !slices.Contains(l.names, slot) {
		return boot.Vars{}, boot.ErrNoVars
	}
	v := boot.Vars{Order: []boot.Turn{{Name: slot}}}
	for _, name := range l.names {
		if name != slot {
			v.Order = append(v.Order, boot.Turn{Name: name})
		}
	}
	state := vars["ustate"]
	if l.schema == Mender {
		state = vars["upgrade_available"]
	}
	if len(v.Order) < 2 || state != "1" && (state != "2" || l.schema == Mender) {
		return v, nil
	}
	v.Order[0], v.Order[1] = v.Order[1], v.Order[0]
	limit, err := strconv.Atoi(vars["bootlimit"])
	if err != nil {
		limit = 1
	}
	if count, _ := strconv.Atoi(vars["bootcount"]); count < limit {
		v.Next = slot
	}
	return v, nil
}

// setTrial writes what Mender's and SWUpdate's own installs and commits write; SWUpdate's mark of an install that is
// under way goes.
func (l *Loader) setTrial(vars map[string]string, v boot.Vars) {
	name := l.slotVar(vars)
	slot := v.Next
	if len(v.Order) > 0 && (slot == "" || slot == v.Order[0].Name) {
		slot, v.Next = v.Order[0].Name, ""
	}
	if slot != "" {
		vars[name] = slot
	}
	pending := "0"
	if v.Next != "" {
		pending, vars["bootcount"] = "1", "0"
	}
	if l.schema == SWUpdate {
		vars["ustate"] = pending
		delete(vars, "recovery_status")
		return
	}
	vars["upgrade_available"] = pending
	if n, err := strconv.ParseUint(vars[name], 10, 8); err == nil {
		vars["mender_boot_part_hex"] = strconv.FormatUint(n, 16)
	}
}
