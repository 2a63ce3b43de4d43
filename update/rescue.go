package update

import (
	"context"
	"slices"
	"time"

	"lifeboat/boot"
	"lifeboat/status"
)

// Rescue is what the rescue screen shows.
type Rescue struct {
	Reason  status.Reason
	State   status.State
	Sources []Source
	Refused []status.Refused
	Retry   time.Time // when a slot is tried again; zero: never, there is none
}

// maxWait bounds the wait in rescue.
const maxWait = time.Hour

// wait is rescue: it looks for a stick until one was installed, or until it is a slot's turn (rule 18).
func (d *Device) wait(ctx context.Context) {
	d.look(ctx, d.Policy.Slots)
	retries := boot.Retries(d.state, d.facts, d.Policy)
	until := d.Clock.Now().Add(min(d.RescueRetry<<min(d.state.Rescue.Waits, 8), maxWait))
	if (d.Outside != nil || d.Staging != nil) && !(d.state.Rescue.Stick && retries) {
		if d.sticks(ctx, until) {
			d.facts.Rescue, d.facts.Failed = false, map[string]status.Reason{}
			return
		}
	} else {
		// The last stick ended the boot: this turn is a slot's alone, and soon, for the stick's comes after it.
		if d.Outside != nil || d.Staging != nil {
			until = d.Clock.Now().Add(min(d.RescueRetry, maxWait))
		}
		d.screen(nil, until)
		d.Clock.Sleep(ctx, until.Sub(d.Clock.Now()))
		d.state.Rescue.Stick = false
	}
	d.facts.Retry = !d.facts.Rescue
	d.facts.Rescue, d.facts.Failed = false, map[string]status.Reason{}
	d.facts.Chance++
}

// sticks looks at what is plugged in, and at every change of it, until the time has come. It reports whether a bundle
// was installed. The record says that a stick is looked at before it is.
func (d *Device) sticks(ctx context.Context, until time.Time) bool {
	var seen []Source
	first := true
	for changed := true; ctx.Err() == nil && d.Clock.Now().Before(until); changed = d.plugged(ctx, until.Sub(d.Clock.Now())) {
		if !changed {
			continue
		}
		s := d.state.Clone()
		s.Mark, s.Rescue.Stick = boot.MarkRescue, true
		d.commit(s)
		var sources []Source
		if d.Outside != nil {
			sources = d.Outside.Sources(ctx)
		}
		d.screen(sources, until)
		if !first && slices.Equal(sources, seen) {
			d.clear()
			continue
		}
		seen = sources
		d.Report.Refused = nil
		if d.from(ctx, sources, true) || first && d.stagedInRescue(ctx) {
			return true
		}
		first = false
		d.clear()
		d.screen(sources, until)
	}
	return false
}

// plugged waits until something is plugged in or out, or for t.
func (d *Device) plugged(ctx context.Context, t time.Duration) bool {
	if d.Outside == nil {
		d.Clock.Sleep(ctx, t)
		return false
	}
	return d.Outside.Wait(ctx, t)
}

// clear takes the mark back: the stick was looked at and the device lives.
func (d *Device) clear() {
	s := d.state.Clone()
	s.Mark, s.Rescue.Stick = boot.MarkNone, false
	d.commit(s)
}

func (d *Device) screen(sources []Source, until time.Time) {
	if d.Screen != nil {
		if d.reason == status.NoSlot && !boot.Retries(d.state, d.facts, d.Policy) {
			until = time.Time{}
		}
		d.Screen(Rescue{Reason: d.reason, State: d.state.Status(d.Policy), Sources: sources, Refused: d.Report.Refused, Retry: until})
	}
}
