package update

import (
	"context"
	"errors"
	"fmt"
	"math"

	"lifeboat/boot"
	"lifeboat/slots"
)

// Install is `bootcount install`: it puts the one bundle that src is, which somebody asked for, into another slot than the
// one whose system runs. Boot must not be called on the same Device. It returns nil when the bundle was installed
// (Report.Installed) and when there is nothing to do; a Refusal with its code when it was refused or failed, and any other
// error when the record could not be read.
//
// The record is locked (Lock) only while it is read and changed: the running system may say good meanwhile. When ctx ends,
// the worker ends, and the target is wiped and holds nothing; the same is found after a cut at any point. What runs, and
// what would be booted in its place, is as it was.
func (d *Device) Install(ctx context.Context, src Source, running string) error {
	o, err := d.asked(ctx, src, running)
	if err != nil {
		return err
	}
	for range 8 {
		t := d.target(ctx, o.Offer)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !d.takesRunning(o):
			return d.refused()
		case t.Slot == "":
			d.deny(o.Path, o.Offer, Refusal{Code: codePolicy, Text: "no slot may be overwritten: the only other one that ever said good is kept"})
			return d.refused()
		}
		err := d.loadersReady(o)
		if err == nil && !t.Present {
			// A bundle that is damaged must not cost the slot anything.
			d.step(Checking, o.Offer.Version, t.Slot)
			_, err = d.bundleJob(ctx, RoleCheck, src, o.Found, "", d.Progress)
		}
		if err == nil && t.Present {
			err = d.bringLoaders(ctx, &o, t.Slot, nil)
		}
		if err != nil {
			d.failed(o, err, false)
			return d.refused()
		}
		current := true
		done := d.amend(func(s boot.State) (boot.State, bool) {
			// The choice was made without the lock; it is made again, with what is known by now, where somebody wrote meanwhile.
			s, look, attest := d.settled(s)
			again := boot.Target(s, d.facts, o.Offer, running, d.Policy)
			current = len(look)+len(attest)+len(again.Attest) == 0 && again.Slot == t.Slot && again.Present == t.Present &&
				boot.JudgeRunning(s, o.Offer, running, d.Policy).Take
			switch {
			case !current:
				return s, false
			case t.Present:
				return boot.Installed(s, t.Slot, d.facts.Seals[t.Slot], d.Policy), true
			}
			return boot.Note(s, t.Slot, o.Offer, d.Policy), true
		})
		switch {
		case !current:
			continue
		case !done:
			return d.stuck(o.Path)
		case !t.Present && !d.write(ctx, o, t.Slot):
			return d.refused()
		case !t.Present && !d.amend(func(s boot.State) (boot.State, bool) {
			return boot.Installed(s, t.Slot, d.facts.Seals[t.Slot], d.Policy), true
		}):
			return d.stuck(o.Path)
		}
		d.installed(o, t.Slot)
		return nil
	}
	return errors.New("the boot state is changed by others all the time")
}

// asked learns what the slots hold, and scans src for the bundle.
func (d *Device) asked(ctx context.Context, src Source, running string) (o offer, err error) {
	d.prepare()
	d.running = running
	if err := d.locked(func() error { return d.reload() }); err != nil {
		return o, err
	}
	d.loadTrust()
	d.look(ctx, d.Policy.Slots)
	d.settle(ctx)
	if ctx.Err() != nil {
		return o, ctx.Err() // what is known of the slots by now is no knowledge
	}
	if d.state.Install.Target != "" && !d.amend(func(s boot.State) (boot.State, bool) { s, _, _ = d.settled(s); return s, true }) {
		// One that was killed: what it left is settled first, as the next boot would.
		return o, d.stuck(src.Name)
	}
	o, ok := d.offered(ctx, src)
	if !ok {
		return o, errors.Join(ctx.Err(), d.refused())
	}
	return o, nil
}

// Seal is `bootcount seal`: another updater has written the images of the bundle that src is to a slot and to those that go
// with it, without hash trees and seals; they get them, and the record says that the bundle was installed. What is in the
// slots is compared with the bundle before anything is touched, and nothing is where they differ (30). Otherwise it is an
// Install: after a cut the slot holds nothing, or is sealed.
func (d *Device) Seal(ctx context.Context, src Source, slot, running string) error {
	o, err := d.asked(ctx, src, running)
	if err != nil {
		return err
	}
	if slot == running {
		return fmt.Errorf("slot %s is the one that runs", d.Name(slot))
	}
	if !d.takesRunning(o) {
		return d.refused()
	}
	d.step(Checking, o.Offer.Version, slot)
	for _, m := range d.members(slot) {
		if _, err := d.bundleJob(ctx, RoleCompare, src, o.Found, m, d.Progress); err != nil {
			d.failed(o, err, false)
			return d.refused()
		}
	}
	o.have, o.Loaders = math.MaxInt64, 0
	current := false
	if !d.amend(func(s boot.State) (boot.State, bool) {
		s, _, _ = d.settled(s)
		current = boot.JudgeRunning(s, o.Offer, running, d.Policy).Take
		return boot.Note(s, slot, o.Offer, d.Policy), current
	}) {
		if !current {
			return errors.New("the boot state was changed by others")
		}
		return d.stuck(o.Path)
	}
	if !d.write(ctx, o, slot) {
		return d.refused()
	}
	if !d.amend(func(s boot.State) (boot.State, bool) {
		return boot.Installed(s, slot, d.facts.Seals[slot], d.Policy), true
	}) {
		return d.stuck(o.Path)
	}
	d.installed(o, slot)
	return nil
}

// stuck is the refusal when the record cannot be written.
func (d *Device) stuck(name string) error {
	d.refuse(name, codeIO, "the boot state cannot be written")
	return d.refused()
}

// offered scans src for the one bundle that it is.
func (d *Device) offered(ctx context.Context, src Source) (o offer, ok bool) {
	a, err := d.scan(ctx, src)
	switch {
	case ctx.Err() != nil:
		return o, false
	case err != nil:
		a = &answer{refused: []Refusal{{Code: codeIO, Text: err.Error()}}}
	case len(a.found)+len(a.refused) == 0:
		a.refused = []Refusal{{Code: codeMalformed, Text: "there is no bundle in it"}}
	}
	for _, r := range a.refused {
		d.deny(src.Name, boot.Offer{}, r)
	}
	d.renewTrust(ctx, a.trust)
	if len(a.found) == 0 {
		return o, false
	}
	o = offer{src: src, Found: a.found[0]}
	o.Path, o.Offer.Asked = src.Name, true
	return o, true
}

// takesRunning judges a bundle and says why it is not taken.
func (d *Device) takesRunning(o offer) bool {
	v := boot.JudgeRunning(d.state, o.Offer, d.running, d.Policy)
	switch {
	case v.Take:
	case v.Code != 0:
		d.deny(o.Path, o.Offer, Refusal{Code: v.Code, Text: v.Why})
	default:
		d.Say(o.Path + ": nothing to do: " + v.Why)
	}
	return v.Take
}

// deny refuses what somebody asked for: that is a line of history, too.
func (d *Device) deny(name string, o boot.Offer, r Refusal) {
	d.refuse(name, r.Code, withHint(r))
	d.amend(func(s boot.State) (boot.State, bool) { return boot.Denied(s, o, r.Code, d.Policy), true })
}

// refused returns the last refusal as the error that it is, nil when there was none.
func (d *Device) refused() error {
	if n := len(d.Report.Refused); n > 0 {
		r := d.Report.Refused[n-1]
		return Refusal{Path: r.File, Code: r.Code, Text: r.Text}
	}
	return nil
}

// locked does something while nobody else reads the record or writes it.
func (d *Device) locked(do func() error) error {
	if d.Lock == nil {
		return do()
	}
	unlock, err := d.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	return do()
}

func (d *Device) reload() error {
	s, view, err := d.Store.Load()
	if err != nil {
		return fmt.Errorf("read the boot state: %w", err)
	}
	d.state, _ = boot.Hear(s, view, d.Policy)
	return nil
}

var errUnchanged = errors.New("nothing is to be changed")

// amend makes a change of the record durable, in the running system one of the record as it is by now. It reports false
// when change wants none or it cannot be written, which is said.
func (d *Device) amend(change func(boot.State) (boot.State, bool)) bool {
	err := d.locked(func() error {
		if d.running != "" {
			if err := d.reload(); err != nil {
				return err
			}
		}
		s, ok := change(d.state)
		if !ok || !d.binds(s) {
			return errUnchanged
		}
		return nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		d.note(err.Error())
	}
	return err == nil
}

// settled brings a record in line with what is known of the slots. In the running system the slot that runs is left as it
// is: its tries may be at an end, and it may still say good.
func (d *Device) settled(s boot.State) (next boot.State, look, attest []string) {
	if d.running == "" {
		return boot.Settle(s, d.facts, d.Policy)
	}
	f := d.facts
	f.Seals = map[string]boot.Seal{}
	for slot, seal := range d.facts.Seals {
		if slot != d.running || s.Install.Target == slot {
			f.Seals[slot] = seal
		}
	}
	return boot.Absorb(s, f, d.Policy)
}

// WorkRunning is Work in the running system, whose workers do what early boot's never have to.
func WorkRunning(ctx context.Context, role string, input []byte, m Media, send func(kind byte, body []byte) error) error {
	if role != RoleCompare {
		return Work(ctx, role, input, m, send)
	}
	w, err := newWorker(input, m, send)
	if err != nil {
		return err
	}
	return w.end(w.compare(ctx))
}

// compare reads a slot that somebody else has written.
func (w *worker) compare(ctx context.Context) error {
	b, err := w.open(ctx)
	if err != nil {
		return err
	}
	i, err := b.Manifest.Find(w.job.Class)
	if err == nil {
		err = slots.Holds(ctx, w.media.SlotReader, w.media.SlotSize, b, i, w.progress)
	}
	if err != nil {
		return err
	}
	return w.send(frameDone, nil)
}
