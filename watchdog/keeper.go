package watchdog

import (
	"context"
	"sync"
	"time"
)

// Keeper feeds a watchdog as long as what is going on is inside its deadline. The methods of a nil Keeper do nothing.
type Keeper struct {
	feed func() error
	late func(phase string)

	mu    sync.Mutex
	phase string
	limit time.Duration
	until time.Time
	lost  bool // late was called
}

// Keep feeds from now on, four times in timeout at least, until ctx ends. Where a phase does not end in time it
// calls late once, which must not wait for anything, and feeds no more until something gets on again.
func Keep(ctx context.Context, feed func() error, timeout time.Duration, late func(phase string)) *Keeper {
	k := &Keeper{feed: feed, late: late}
	k.Enter("start", timeout)
	go func() {
		tick := time.NewTicker(min(timeout/4, maxPause))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				k.turn(now)
			}
		}
	}()
	return k
}

// maxPause is the longest pause between two meals: a watchdog may be set to minutes, and be handed over at any time.
const maxPause = 5 * time.Second

// Enter says that a phase begins, and how long it may take until the next one, or until Progress is called.
func (k *Keeper) Enter(phase string, limit time.Duration) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.phase, k.limit, k.until, k.lost = phase, limit, time.Now().Add(limit), false
}

// Progress gives the phase that is under way its time again.
func (k *Keeper) Progress() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.until, k.lost = time.Now().Add(k.limit), false
}

// Feed gives the device a whole timeout now: the last thing before the hand-over.
func (k *Keeper) Feed() {
	if k != nil {
		_ = k.feed()
	}
}

func (k *Keeper) turn(now time.Time) {
	k.mu.Lock()
	ok, lost, phase := now.Before(k.until), k.lost, k.phase
	k.lost = !ok
	k.mu.Unlock()
	switch {
	case ok:
		_ = k.feed()
	case !lost:
		k.late(phase)
	}
}
