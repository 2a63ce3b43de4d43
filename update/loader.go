package update

import "strconv"

// Loader is a slot of the boot loader itself. It has two copies on the machine, of which one is started, and belongs to no
// boot slot: a fallback does not bring an older one back.
type Loader struct {
	Slot, Class string
	Room        int64 // bytes that an image may have at most; 0: not known
}

// Copies is what PID 1 itself does to slots of the boot loader.
type Copies interface {
	// Open makes both copies reachable for workers, under their CopyName, until Close. Only the one that is not started can be
	// written. Its error has the code of a refusal.
	Open(slot string) (Stand, error)
	// Switch makes a copy the one that is started, and returns when that is durable.
	Switch(slot string, to int) error
	Close(slot string)
}

// Stand is how a slot of the boot loader stands.
type Stand struct {
	First  int  // the copy that is written first: the one that is not started
	Both   bool // the other is written too, after it; else First is switched to
	Sector int64
}

// CopyName is how workers and Slots know copy n of a slot of the boot loader.
func CopyName(slot string, n int) string { return slot + copySep + strconv.Itoa(n) }

const copySep = "/"
