package update

import (
	"context"
	"slices"

	"lifeboat/boot"
	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/verify"
)

// attestTree is attest of a whole slot that holds a file system made of an archive; ok is false where it holds none.
func (d *Device) attestTree(ctx context.Context, slot string, seal []byte) (a attested, raw []byte, ok bool) {
	if !slices.ContainsFunc(d.parts(), func(p part) bool { return p.Tree != nil && p.Class == d.class(slot) }) {
		return a, nil, false
	}
	a, _ = d.attestAs(ctx, RoleSeal, slot, seal)
	if a.Seal.Status != boot.SealValid || a.Facts.Integrity == "" {
		return a, nil, false
	}
	read, raw := d.attestAs(ctx, RoleFiles, slot, seal)
	if read.Seal.Status == boot.SealUnreadable && ctx.Err() == nil {
		// Its file system cannot be mounted, or not be read to the end.
		a.Seal.Whole = boot.WholeDamaged
		return a, nil, true
	}
	return read, raw, true
}

// treesIn says of which classes the image is an archive.
func (w *worker) treesIn(m *bundle.Manifest) (set uint8) {
	for n, p := range w.job.Parts {
		if i, err := m.Find(p.Class); err == nil && m.Images[i].Archive() {
			set |= 1 << n
		}
	}
	return set
}

// part is what a bundle holds for the job's class.
func (w *worker) part() (p part) {
	for _, p := range w.job.Parts {
		if p.Class == w.job.Class {
			return p
		}
	}
	return p
}

// treeFits refuses a seal of a tree where the configuration does not have the slot hold one, or one that is protected
// otherwise: what a seal says beside the manifest is not signed. integrity is "" for an image.
func (w *worker) treeFits(integrity string) error {
	if integrity == "" {
		return nil
	}
	if rule := w.part().Tree; config.Slim || rule == nil || rule.Integrity != integrity {
		return verify.Refuse(verify.Policy, "the slot holds a file tree with integrity=%s, and the configuration does not have that", integrity)
	}
	return nil
}

func (e *encoder) tree(t *config.Tree) {
	e.flag(t != nil)
	if t != nil {
		e.str(t.Integrity)
		e.flag(t.Devices)
		e.flag(t.Setuid)
	}
}

func (d *decoder) tree() *config.Tree {
	if !d.flag() {
		return nil
	}
	return &config.Tree{Integrity: d.str(), Devices: d.flag(), Setuid: d.flag()}
}
