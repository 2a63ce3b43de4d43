package update

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/boot"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// repair copies a damaged slot from another that holds the same bundle (rule 22). It comes after what lies outside was
// looked at and before the slot that is booted is chosen, in the boot after the damage was found. A power cut loses what
// was not copied yet; the boot after it starts without a repair, and a later one goes on.
func (d *Device) repair(ctx context.Context) {
	target, source := boot.Repair(d.state, d.facts, d.Policy)
	if target == "" || !d.commit(boot.RepairBegun(d.state)) {
		return
	}
	d.phase("mark")
	defer d.phase("repair")
	if !d.damaged(ctx, target) {
		return
	}
	d.look(ctx, []string{source})
	d.settle(ctx)
	if t, s := boot.Repair(d.state, d.facts, d.Policy); t != target || s != source || d.facts.Seals[source].Status != boot.SealValid {
		return
	}
	m := d.state.Entry(target).Manifest
	d.Say("reading slot " + d.Name(source) + " whole")
	// What is found is said and not held against the slot: it may be the last one that starts.
	if s := d.judgeGroup(ctx, source, true); s.Status != boot.SealValid || s.Whole != boot.WholeRight || s.Manifest != m {
		d.repairFailed(target, fmt.Errorf("slot %s is not right itself", d.Name(source)), false)
		return
	}
	if !d.binds(boot.NoteRepair(d.state, target, d.Policy)) {
		return
	}
	d.note(status.RepairingLine(d.Name(target), d.Name(source)))
	if err := d.copyGroup(ctx, target, source, m); err != nil {
		d.repairFailed(target, err, true)
		return
	}
	d.commit(boot.Repaired(d.state, target, d.Policy))
	d.note(status.RepairedLine(d.Name(target)))
}

// damaged reports whether a slot with a reason against it is to be written over: what its seal says is not there. One
// that proves to be right loses its reason.
func (d *Device) damaged(ctx context.Context, slot string) bool {
	d.look(ctx, []string{slot})
	if s := d.facts.Seals[slot]; s.Status == boot.SealValid && s.Whole == boot.WholeUnread {
		d.whole(ctx, []string{slot})
	}
	d.settle(ctx)
	switch s := d.facts.Seals[slot]; s.Status {
	case boot.SealMissing, boot.SealFalse:
		return true
	case boot.SealValid:
		return s.Whole == boot.WholeDamaged
	}
	return false
}

// copyGroup is flush points 2 to 4 of a repair.
func (d *Device) copyGroup(ctx context.Context, target, source string, m boot.Hash) error {
	to, from := d.members(target), d.members(source)
	for _, slot := range to {
		if err := d.Slots.Wipe(slot); err != nil {
			return err
		}
	}
	d.facts.Seals[target] = boot.Seal{Status: boot.SealMissing}
	seals := make([][]byte, len(to))
	version := d.state.Entry(target).Version
	d.step(Writing, version, target)
	defer d.step(Idle, "", "")
	for i, slot := range to {
		a, err := d.run(ctx, RoleRepair, &job{Manifest: m}, Source{Slot: from[i]}, slot, d.Progress)
		switch {
		case err != nil:
		case a.err != nil:
			err = *a.err
		case a.manifest != m:
			err = fmt.Errorf("%w: it copied another bundle", errWorker)
		default:
			err = d.Slots.Sync(slot)
		}
		if err != nil {
			return err
		}
		d.held(slot, a)
		seals[i] = a.seal
	}
	d.step(ReadingBack, version, target)
	for i, slot := range to {
		a, seal := d.attest(ctx, slot, true, seals[i])
		if a.Seal.Status != boot.SealValid || a.Seal.Whole != boot.WholeRight || a.Seal.Manifest != m {
			return errors.New("what was read back from the slot is not what was written")
		}
		seals[i] = seal
	}
	for i := len(to) - 1; i >= 0; i-- { // the boot slot's is the last
		if err := d.Slots.Seal(to[i], seals[i]); err != nil {
			return err
		}
	}
	d.look(ctx, []string{target})
	if s := d.facts.Seals[target]; s.Status != boot.SealValid || s.Manifest != m {
		return errors.New("the seal that was read back from the slot is not what was written")
	}
	s := d.facts.Seals[target]
	s.Whole = boot.WholeRight
	d.facts.Seals[target] = s
	return nil
}

func (d *Device) repairFailed(target string, err error, wiped bool) {
	d.note(fmt.Sprintf("slot %s could not be repaired: %v", d.Name(target), err))
	if s := boot.RepairEnded(d.state, wiped); !d.commit(s) {
		d.state = s
	}
}

// repair copies a slot that was attested; PID 1 has what was written attested again.
func (w *worker) repair(ctx context.Context) error {
	n, err := w.job.Trust.news()
	if err != nil {
		return err
	}
	seal, err := w.seal()
	if err != nil {
		return err
	}
	rules := n.rules(&w.job.Trust)
	rules.AtBoot = true
	f, err := seal.Verify(rules, w.job.Trust.Compatible)
	if err != nil {
		return err
	}
	if boot.Hash(f.Manifest) != w.job.Manifest || seal.Image != w.job.Class {
		return verify.Refuse(verify.PayloadHash, "the slot that is copied is not the one that was chosen")
	}
	old := &slots.Old{R: w.media.Slot}
	if err := slots.Copy(ctx, w.media.Slot, w.media.SlotReader, f, seal.Image, old, w.progress); err != nil {
		return err
	}
	return w.written(seal, f.Manifest, old, f.DataBlocks*verity.BlockSize)
}
