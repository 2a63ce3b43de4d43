package update

import (
	"context"
	"fmt"

	"lifeboat/boot"
)

// staged looks at what the running system left for this boot and installs it. What is refused for ever is taken back by the
// boot's own record; what a later boot may take stays.
func (d *Device) staged(ctx context.Context, rescue bool) (installed bool) {
	defer d.phase("staged")
	src, ok := d.stagingSource()
	if !ok {
		return false
	}
	return d.from(ctx, []Source{src}, rescue)
}

// stagingSource is the staging partition as a source: the bundle of which the record says that it is staged, or in rescue the
// one of which a header says that it is whole.
func (d *Device) stagingSource() (Source, bool) {
	if d.Staging == nil {
		return Source{}, false
	}
	src, err := d.Staging()
	if err != nil {
		d.note(fmt.Sprintf("what is staged cannot be looked at: %v", err))
		d.suspectStaged()
		return Source{}, false
	}
	src.Lone, src.Asked = true, true
	if s := d.state.Staged; !s.None() {
		src.Offset, src.Size, src.ID = s.Offset, s.Size, boot.GuardID(s.Manifest)
	}
	return src, true
}

// suspectStaged counts against what is staged that it could not be read, so that it is tried ever more rarely.
func (d *Device) suspectStaged() {
	if s := d.state.Staged; !s.None() {
		d.state = boot.Suspect(d.state, boot.GuardID(s.Manifest))
	}
}

// judgeStaged draws the conclusion for what is staged from what was said of it: a code of a refusal, 0 where nothing is wrong
// and there is nothing to do; wait where a later boot may take it.
func (d *Device) judgeStaged(code int, wait bool) {
	switch {
	case wait || d.state.Staged.None():
	case code == 0 || boot.Lasting(code):
		d.state = boot.Unstage(d.state, code, d.Policy)
	default:
		d.suspectStaged()
	}
}

// foundStaged judges what a scanner said of the staging partition, and leaves in its answer only what was staged.
func (d *Device) foundStaged(a *answer) {
	s := d.state.Staged
	if s.None() {
		return
	}
	for _, r := range a.refused {
		d.judgeStaged(r.Code, false)
	}
	if len(a.refused)+len(a.found) == 0 {
		d.suspectStaged()
	}
	for _, f := range a.found {
		if f.Offer.Manifest != s.Manifest {
			d.refuse(f.Path, codePayload, "it is not the bundle that was staged")
			d.judgeStaged(codePayload, false)
			a.found = nil
			return
		}
	}
}

// stagedInRescue is staged where nothing else is left, after the sticks: somebody who stands there with one goes first. What
// was staged once and lies there still is taken where no slot is left whose turn could come: those get theirs first.
func (d *Device) stagedInRescue(ctx context.Context) (installed bool) {
	if d.state.Staged.None() && boot.Retries(d.state, d.facts, d.Policy) {
		return false
	}
	return d.staged(ctx, true)
}
