package update

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"lifeboat/boot"
)

const (
	// goneWithin is how long a stick that could not be read is given to go away: the kernel says that a read failed before it
	// says that the device left.
	goneWithin = 2 * time.Second
	// maxReplug is how often an install waits for its stick: a bad contact must not hold up a device for ever.
	maxReplug = 10
)

// patiently runs check or install on the bundle of an offer. Where its stick is pulled out it waits for one with the same
// bundle and goes on: an install where it was, a check from the beginning, for another stick may be damaged. slot is that of the
// update, member what the installer writes to. o then has the stick that it went on with.
func (d *Device) patiently(ctx context.Context, role string, o *offer, slot, member string) (*answer, error) {
	from, done := o.have, int64(0)
	for replugs := 0; ; {
		a, err := d.resumeJob(ctx, role, o.src, o.Found, member, from, func(n, total int64) {
			done = n
			if d.Progress != nil {
				d.Progress(n, total)
			}
		})
		var r Refusal
		switch {
		case err == nil:
			return a, nil
		case from > 0 && errors.As(err, &r) && r.Code == codePayload:
			// What was written before is not in the slot as it should be, or the bundle is not right: all of it tells.
			from, done = 0, 0
			continue
		}
		step := Checking
		switch role {
		case RoleInstall:
			step, from = Writing, done
		case RoleLoader, RoleTree: // from the beginning
			step = Writing
		}
		gone, back := d.comesBack(ctx, o, slot)
		if gone && !back {
			err = Refusal{Path: o.Path, Code: codeIO, Text: "its stick was pulled out and did not come back"}
		}
		if replugs++; !back || replugs > maxReplug {
			return nil, err
		}
		d.step(step, o.Offer.Version, slot)
	}
}

// comesBack reports whether the offer's stick has gone, and waits then for one with its bundle. The offer is on that one
// afterwards.
func (d *Device) comesBack(ctx context.Context, o *offer, slot string) (gone, back bool) {
	if d.Replug == 0 || o.src.Lone || d.Outside == nil || !d.left(ctx, o.src) {
		return false, false
	}
	if slices.Contains(d.away, o.src) {
		return true, false // that was waited for
	}
	d.Say(fmt.Sprintf("%s was pulled out: waiting %s for it", o.src.Name, d.Replug))
	d.step(Gone, o.Offer.Version, slot)
	var seen []Source
	for until := d.Clock.Now().Add(d.Replug); ; {
		sources := d.Outside.Sources(ctx)
		for _, src := range sources {
			if !slices.Contains(seen, src) && d.has(ctx, src, o) {
				d.Say(src.Name + " has the bundle: going on")
				return true, true
			}
		}
		seen = sources
		left := until.Sub(d.Clock.Now())
		if left <= 0 || ctx.Err() != nil {
			d.Say("the stick did not come back")
			d.away = append(d.away, o.src)
			return true, false
		}
		d.Outside.Wait(ctx, left)
	}
}

// left reports whether a stick has gone.
func (d *Device) left(ctx context.Context, src Source) bool {
	for until := d.Clock.Now().Add(goneWithin); ctx.Err() == nil; {
		if !slices.Contains(d.Outside.Sources(ctx), src) {
			return true
		}
		if !d.Clock.Now().Before(until) {
			break
		}
		d.Clock.Sleep(ctx, goneWithin/20)
	}
	return false
}

// has looks for the offer's bundle on a stick.
func (d *Device) has(ctx context.Context, src Source, o *offer) bool {
	a, err := d.scan(ctx, src)
	if err != nil {
		d.note(fmt.Sprintf("%s could not be looked at: %v", src.Name, err))
		d.state = boot.Suspect(d.state, src.ID)
		return false
	}
	for _, f := range a.found {
		if f.Offer.Manifest == o.Offer.Manifest {
			o.src = src
			o.Offset, o.Size, o.Path = f.Offset, f.Size, f.Path
			if a.report != nil {
				d.reports = append(d.reports, report{src, *a.report})
			}
			return true
		}
	}
	d.Say("the bundle is not on " + src.Name)
	return false
}
