package update

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/boot"
	"lifeboat/config"
	"lifeboat/status"
)

// install puts one bundle into a slot: five flush points (rule 7). It reports whether a slot is to be tried now.
func (d *Device) install(ctx context.Context, o offer, rescue bool) bool {
	t := d.target(ctx, o.Offer)
	v := boot.Judge(d.state, o.Offer, rescue, d.Policy)
	if !t.Present && !v.Take {
		d.declines(o, v) // a slot that had not been looked at holds something newer
		return false
	}
	repair := v.Repair
	if repair != "" && d.damaged(ctx, repair) {
		t = boot.TargetChoice{Slot: repair}
	} else if repair != "" {
		return false // nothing is wrong with it any more
	}
	if t.Slot == "" {
		d.refuse(o.Path, codePolicy, "no slot may be overwritten: the only one that ever said good is kept")
		if o.src.Lone {
			d.suspectStaged()
		}
		return false
	}
	if !config.Slim {
		if repair != "" {
			o.Loaders = 0 // the one that is there may be newer
		}
		err := d.loadersReady(o)
		if err == nil && t.Present {
			err = d.bringLoaders(ctx, &o, t.Slot, nil)
		}
		if err != nil {
			d.failed(o, err, false)
			return false
		}
	}
	if !t.Present {
		// A bundle that is damaged must not cost the slot anything.
		d.step(Checking, o.Offer.Version, t.Slot)
		if _, err := d.patiently(ctx, RoleCheck, &o, t.Slot, ""); err != nil {
			d.failed(o, err, false)
			return false
		}
		if !d.keep(o, boot.Note(d.state, t.Slot, o.Offer, d.Policy), rescue) {
			return false
		}
		if !d.write(ctx, o, t.Slot) {
			return false
		}
	}
	done := boot.Installed(d.state, t.Slot, d.facts.Seals[t.Slot], d.Policy)
	if repair != "" {
		done = boot.Repaired(d.state, t.Slot, d.Policy)
	}
	if !d.keep(o, done, rescue) {
		return false
	}
	delete(d.facts.Failed, t.Slot)
	if rescue {
		d.facts.Fresh = t.Slot
	}
	d.installed(o, t.Slot)
	return true
}

func (d *Device) installed(o offer, slot string) {
	d.Say(status.InstalledLine(o.Offer.Version, d.Name(slot)))
	d.Report.Installed = append(d.Report.Installed, status.Installed{
		File: o.Path, Version: o.Offer.Version, Slot: slot, Bootname: d.Bootname(slot), ManifestHash: o.Offer.Manifest.String(), Unchanged: d.same,
	})
	d.same = 0
}

// held says what a worker did not have to write to a slot.
func (d *Device) held(slot string, a *answer) {
	if a.same > 0 {
		d.Say(status.HeldLine(d.Name(slot), a.same, a.size))
	}
}

const (
	codeMalformed = 20
	codePayload   = 30
	codePolicy    = 31
	codeIO        = 40
)

// keep commits a step of an install. In rescue a device whose state partition is dead is repaired all the same: the
// slot says itself what it is.
func (d *Device) keep(o offer, s boot.State, rescue bool) bool {
	if d.binds(s) {
		return true
	}
	if !rescue {
		d.refuse(o.Path, codeIO, "the boot state cannot be written, or the boot loader not be told")
		return false
	}
	if d.facts.ReadOnly {
		d.state = s
	}
	return true
}

// write does flush points 2 to 4: wipe, image and tree and attest, seal; of a group all seals are wiped first, and the
// boot slot's is the last that is written. The check of every boot follows: what counts are the seals that lie there.
func (d *Device) write(ctx context.Context, o offer, slot string) bool {
	d.Say(status.InstallingLine(o.Offer.Version, d.Name(slot)))
	d.same = 0
	members := d.members(slot)
	for _, m := range members {
		if err := d.Slots.Wipe(m); err != nil {
			// The old seal may still be there, and then the entry stands.
			d.look(ctx, []string{slot})
			d.failed(o, Refusal{Path: o.Path, Code: codeIO, Text: err.Error()}, d.facts.Seals[slot].Status == boot.SealMissing)
			return false
		}
	}
	d.facts.Seals[slot] = boot.Seal{Status: boot.SealMissing}
	slices.Reverse(members)
	seals := make([][]byte, len(members))
	d.step(Writing, o.Offer.Version, slot)
	for i, m := range members {
		role := RoleInstall
		if !config.Slim && o.Trees>>(len(members)-1-i)&1 != 0 {
			role = RoleTree
		}
		a, err := d.patiently(ctx, role, &o, slot, m)
		if err == nil {
			err = d.Slots.Sync(m)
		}
		if err != nil {
			d.failed(o, err, true)
			return false
		}
		d.held(m, a)
		d.same += a.same
		seals[i] = a.seal
	}
	d.step(ReadingBack, o.Offer.Version, slot)
	var att attested
	for i, m := range members {
		var err error
		att, seals[i] = d.attest(ctx, m, true, seals[i])
		switch {
		case ctx.Err() != nil:
			err = ctx.Err()
		case att.Seal.Status != boot.SealValid || att.Seal.Whole != boot.WholeRight:
			err = Refusal{Path: o.Path, Code: codeIO, Text: "what was read back from the slot is not what was written"}
		case att.Seal.Manifest != o.Offer.Manifest:
			err = fmt.Errorf("%w: the attester saw another bundle", errWorker)
		}
		if err != nil {
			d.failed(o, err, true)
			return false
		}
	}
	// A sealed slot is installed, whatever comes then: what goes with it is there before.
	if !config.Slim {
		if err := d.bringLoaders(ctx, &o, slot, seals[len(seals)-1]); err != nil {
			d.failed(o, err, true)
			return false
		}
	}
	for i, m := range members {
		if err := d.Slots.Seal(m, seals[i]); err != nil {
			d.failed(o, err, true)
			return false
		}
	}
	d.facts.Seals[slot] = att.Seal
	d.look(context.WithoutCancel(ctx), []string{slot}) // it is done: nobody stops it any more
	if s := d.facts.Seals[slot]; s.Status != boot.SealValid || s.Manifest != o.Offer.Manifest {
		d.failed(o, Refusal{Path: o.Path, Code: codeIO, Text: "the seal that was read back from the slot is not what was written"}, true)
		return false
	}
	return true
}

// failed takes an install back (rule 10). An error that is not the worker's own refusal counts against the bundle.
func (d *Device) failed(o offer, err error, wiped bool) {
	code := codeIO
	var r Refusal
	text := err.Error()
	if errors.As(err, &r) {
		code, text = r.Code, withHint(r)
	}
	if errors.Is(err, context.Canceled) {
		text = "it was stopped"
	}
	d.refuse(o.Path, code, text)
	seen := errors.Is(err, errWorker) && !errors.Is(err, context.Canceled) // who stops an install accuses nobody
	refuse := func(s boot.State) (boot.State, bool) {
		return boot.Refuse(s, o.Offer, wiped, seen, code, d.Policy), true
	}
	if !(wiped || seen || d.running != "") || !d.amend(refuse) {
		d.state, _ = refuse(d.state) // becomes durable with the boot's own record
	}
}
