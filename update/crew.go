package update

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lifeboat/boot"
	"lifeboat/config"
	"lifeboat/slots"
)

// Source is a place from outside where bundles may lie: one stick, or what was staged.
type Source struct {
	ID    [8]byte // under which it is guarded
	Name  string  // "sda"
	Label string  // for people: "sda: QEMU HARDDISK 64 MiB"
	Path  string  // of its block device
	Asked bool    // its bundles were asked for (boot.Offer)
	Slot  string  // repair: the slot that is copied, in place of all of these

	// Lone says that it holds one bundle and no file system: at Offset, of Size bytes; Size 0: where its staging header says.
	Lone         bool
	Offset, Size int64
}

// Crew runs workers. A nil error means that the worker ended well; frame has then seen its whole answer. When frame
// fails, the worker is ended and counts as bad. src and slot name what it may touch; either may be zero.
type Crew interface {
	Run(ctx context.Context, role string, input []byte, src Source, slot string, frame func(kind byte, body []byte) error) error
}

// errWorker wraps every end of a worker that is not an answer: panic, memory, deadline, bad answer.
var errWorker = errors.New("the worker did not finish")

// answer is what a worker said, put together from its frames.
type answer struct {
	found    []Found
	refused  []Refusal
	err      *Refusal
	seal     []byte
	attested *attested
	trust    []byte
	keys     *keys
	report   *place
	manifest boot.Hash
	same     int64 // install, repair: bytes that were there already, of size
	size     int64
	done     bool

	begin time.Time
	beats int // frames of progress since
}

// A worker says ten times a second that it gets on. What says it far more often only keeps PID 1 busy.
const (
	maxBeats  = 200 // at once
	beatsRate = 50  // and per second
)

// beat counts a frame of progress.
func (a *answer) beat(now time.Time) error {
	if a.beats++; a.beats == 1 {
		a.begin = now
	}
	if a.beats > maxBeats+int(now.Sub(a.begin).Seconds()*beatsRate) {
		return fmt.Errorf("%w: a flood of progress", errAnswer)
	}
	return nil
}

func (a *answer) take(kind byte, body []byte, progress func(done, total int64)) error {
	if a.done {
		return fmt.Errorf("%w: a frame after the last", errAnswer)
	}
	switch kind {
	case frameProgress:
		if err := a.beat(time.Now()); err != nil {
			return err
		}
		d := &decoder{b: body}
		done, total := d.i64(), d.i64()
		if err := d.end(); err != nil {
			return err
		}
		if progress != nil && total > 0 && done >= 0 && done <= total {
			progress(done, total)
		}
	case frameFound:
		f, err := decodeFound(body)
		if err != nil || len(a.found) >= maxAnswers {
			return errAnswer
		}
		a.found = append(a.found, f)
	case frameRefused, frameError:
		r, err := decodeRefusal(body)
		if err != nil || len(a.refused) >= maxAnswers || kind == frameError && a.err != nil {
			return errAnswer
		}
		if kind == frameError {
			a.err = &r
		} else {
			a.refused = append(a.refused, r)
		}
	case frameSeal:
		if len(a.seal)+len(body) > slots.SealSize {
			return errAnswer
		}
		a.seal = append(a.seal, body...)
	case frameTrust:
		if len(a.trust)+len(body) > boot.MaxTrust {
			return errAnswer
		}
		a.trust = append(a.trust, body...)
	case frameReport:
		p, err := decodePlace(body)
		if err != nil || a.report != nil {
			return errAnswer
		}
		a.report = &p
	case frameKeys:
		k, err := decodeKeys(body)
		if err != nil || a.keys != nil {
			return errAnswer
		}
		a.keys = &k
	case frameFacts:
		v, err := decodeAttested(body)
		if err != nil || a.attested != nil {
			return errAnswer
		}
		a.attested = &v
	case frameDone:
		d := &decoder{b: body}
		if len(body) > 0 {
			a.manifest = d.hash()
		}
		if len(d.b) > 0 {
			same, size := d.i64(), d.i64()
			if same < 0 || same > size {
				return errAnswer
			}
			a.same, a.size = same, size
		}
		a.done = true
		return d.end()
	default:
		return fmt.Errorf("%w: frame %q", errAnswer, kind)
	}
	return nil
}

// run gives one job to a worker and waits for its answer.
func (d *Device) run(ctx context.Context, role string, j *job, src Source, slot string, progress func(done, total int64)) (*answer, error) {
	j.Trust = d.Trust
	j.Trust.Floor = max(j.Trust.Floor, d.state.Floors.Time, d.Policy.Floors.Time)
	j.Class, j.Parts, j.Rate, j.SkipOver = d.class(slot), d.parts(), d.Rate, d.SkipOver
	if !config.Slim {
		j.Loaders, j.Sector = d.loaderParts(), d.sector
	}
	a := &answer{}
	err := d.Crew.Run(ctx, role, j.encode(), src, slot, func(kind byte, body []byte) error { return a.take(kind, body, progress) })
	if err != nil {
		return a, fmt.Errorf("%w: %w", errWorker, err)
	}
	if !a.done && a.err == nil {
		return a, fmt.Errorf("%w: it ended without an answer", errWorker)
	}
	return a, nil
}

// scan looks for bundles, keyrings and revocation lists on a source.
func (d *Device) scan(ctx context.Context, src Source) (*answer, error) {
	a, err := d.run(ctx, RoleScan, &job{Lone: src.Lone, Offset: src.Offset, Size: src.Size, Files: d.Files, Require: d.Require}, src, "", nil)
	if err != nil {
		return nil, err
	}
	if a.err != nil {
		a.err.Path = src.Name // of the whole source, not of one file
		a.refused = append(a.refused, *a.err)
	}
	return a, nil
}

// bundleJob runs check or install on a found bundle. A Refusal is the worker's own; any other error its bad end.
func (d *Device) bundleJob(ctx context.Context, role string, src Source, f Found, slot string, progress func(done, total int64)) (*answer, error) {
	return d.resumeJob(ctx, role, src, f, slot, 0, progress)
}

// resumeJob is bundleJob where from bytes of the bundle's images are in the slots already.
func (d *Device) resumeJob(ctx context.Context, role string, src Source, f Found, slot string, from int64, progress func(done, total int64)) (*answer, error) {
	j := &job{Lone: src.Lone, Offset: f.Offset, Size: f.Size, Path: f.Path, Manifest: f.Offer.Manifest, From: from}
	a, err := d.run(ctx, role, j, src, slot, progress)
	if err != nil {
		return nil, err
	}
	if a.err != nil {
		return nil, *a.err
	}
	if (role == RoleInstall || role == RoleLoader || role == RoleTree) && a.manifest != f.Offer.Manifest {
		return nil, fmt.Errorf("%w: it installed another bundle", errWorker)
	}
	return a, nil
}

// attest judges the seal on a slot, or the one that is given, and reads the slot whole where that is asked for. A
// worker that ends badly over a slot makes it unreadable: PID 1 cannot vouch for it.
func (d *Device) attest(ctx context.Context, slot string, whole bool, seal []byte) (attested, []byte) {
	if !config.Slim && whole {
		if a, raw, ok := d.attestTree(ctx, slot, seal); ok {
			return a, raw
		}
	}
	role := RoleSeal
	if whole {
		role = RoleAttest
	}
	return d.attestAs(ctx, role, slot, seal)
}

func (d *Device) attestAs(ctx context.Context, role, slot string, seal []byte) (attested, []byte) {
	var progress func(done, total int64)
	if seal != nil {
		progress = d.Progress // the last step of an install
	}
	a, err := d.run(ctx, role, &job{Seal: seal}, Source{}, slot, progress)
	switch {
	case err != nil:
		d.Say(fmt.Sprintf("slot %s cannot be judged: %v", d.Name(slot), err))
		return attested{Seal: boot.Seal{Status: boot.SealUnreadable}}, nil
	case a.attested == nil:
		why := "the attester said nothing of it"
		if a.err != nil {
			why = a.err.Text
		}
		d.Say(fmt.Sprintf("slot %s cannot be judged: %s", d.Name(slot), why))
		return attested{Seal: boot.Seal{Status: boot.SealUnreadable}}, nil
	case a.err != nil && a.attested.Seal.Status != boot.SealMissing:
		d.Say(fmt.Sprintf("slot %s: %s", d.Name(slot), a.err.Text))
	}
	return *a.attested, a.seal
}
