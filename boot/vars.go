package boot

import "errors"

// Vars is what a boot loader is told about the slots: what it would do next. Slots go by their bootnames. Loaders are of
// two kinds (Loader.Most): those that count tries go through Order and start the first slot that has some left, one
// less each time; those that do not count start Next once, and otherwise the first of Order.
type Vars struct {
	Next  string // started once, at the next boot; "": nothing is. Only loaders that do not count have it
	Order []Turn // first tried first; a slot that is missing is not started
}

// Turn is one slot in the order of a boot loader.
type Turn struct {
	Name  string // bootname
	Tries uint8  // left, at most Loader.Most; 0 for loaders that do not count
	Good  bool   // has said good. It decides nothing; Read may leave it false
}

// ErrNoVars means that a boot loader's own place holds nothing that it would go by: it starts what it does by default.
var ErrNoVars = errors.New("the boot loader's variables are lost")

// Loader is the place where one boot loader keeps its variables, in its own format.
type Loader interface {
	// Read returns what the loader will do next. Errors wrap ErrNoVars where nothing valid is there; any other error: the
	// medium could not be read.
	Read() (Vars, error)
	// Write makes v true in one transaction and returns when it is durable and was read back. After a power cut within
	// it the loader finds what was there before, or v. What else is kept in that place stays. Copies that are damaged are
	// whole again afterwards.
	Write(v Vars) error
	// Most is the highest count of tries that the loader keeps for a slot; 0: it does not count.
	Most() uint8
}
