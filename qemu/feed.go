package qemu

import (
	"errors"
	"sync"
)

// ErrTimeout and ErrEnded say why something that was waited for will not come: time is up, or the machine is off.
var (
	ErrTimeout = errors.New("timed out")
	ErrEnded   = errors.New("the virtual device is off")
)

// feed lets goroutines wait for the next change of what its lock guards.
type feed struct {
	sync.Mutex
	live    bool          // more may come
	changed chan struct{} // closed, and made anew, at each change
}

func newFeed() feed { return feed{changed: make(chan struct{})} }

func (f *feed) change(do func()) {
	f.Lock()
	defer f.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *feed) setLive(live bool) { f.change(func() { f.live = live }) }
