package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"lifeboat/boot"
	"lifeboat/disk"
	"lifeboat/staging"
)

var (
	// ErrStaged means that another bundle is staged, which nobody asked to replace.
	ErrStaged = errors.New("a bundle is staged already")
	// ErrNothing means that a bundle is right and early boot would not install it: it is there.
	ErrNothing = errors.New("nothing to do")
)

// Staging is what the running system stages a bundle with.
type Staging struct {
	Dev     disk.Device // the staging partition, locked against other writers of it
	Path    string      // of its block device, for workers
	Replace bool        // the bundle takes the place of one that is staged

	Progress staging.Progress // bytes written; may be nil
}

// Stage puts a bundle on the staging partition and records that it is there. size is 0 where it is not known. Room is made
// sure of before the first byte, and what is staged is never written over: the new bundle lies beside it until the record
// names the new one. It is judged as early boot would judge it; an error that is a Refusal is that verdict, and nothing is
// staged then. What an interruption or a power cut leaves of a bundle goes on when the same one is staged again.
func (d *Device) Stage(ctx context.Context, r io.Reader, size int64, o Staging) (boot.Staged, error) {
	if err := d.locked(d.reload); err != nil {
		return boot.Staged{}, err
	}
	d.loadTrust()
	old := d.state.Staged
	stays := staging.Area{Offset: old.Offset, Size: old.Size}
	if !old.None() && !o.Replace {
		if size == 0 || size == old.Size {
			if same, err := staging.Same(ctx, o.Dev, stays, r); same || err != nil {
				return old, err
			}
		}
		return old, fmt.Errorf("%w: version %s", ErrStaged, old.Version)
	}
	place, err := staging.Place(o.Dev.Size(), size, stays)
	if err != nil {
		return old, err
	}
	at, err := staging.Write(ctx, o.Dev, r, size, place, stays, o.Progress)
	if err != nil {
		return old, err
	}
	f, err := d.Verify(ctx, Source{Name: "staging", Path: o.Path, Lone: true, Offset: at.Offset, Size: at.Size})
	if err != nil {
		return old, err
	}
	if err := staging.Keep(o.Dev, at, f.Offer.Manifest); err != nil {
		return old, err
	}
	now := boot.Staged{Offset: at.Offset, Size: at.Size, Manifest: f.Offer.Manifest, Version: f.Offer.Version}
	err = d.change(func(s boot.State) (boot.State, error) {
		if s.Staged != old {
			return s, errors.New("somebody else changed what is staged")
		}
		return boot.Stage(s, now, d.Policy), nil
	})
	if err != nil {
		return old, err
	}
	_ = staging.Forget(o.Dev, at) // nobody goes by the old one's header now
	return now, nil
}

// Unstage takes back what is staged, by one record; then no header names it any more. The answer is what was staged.
func (d *Device) Unstage(o Staging) (old boot.Staged, err error) {
	err = d.change(func(s boot.State) (boot.State, error) {
		old = s.Staged
		return boot.Unstage(s, 0, d.Policy), nil
	})
	if err != nil {
		return old, err
	}
	return old, staging.Forget(o.Dev, staging.Area{})
}

// change makes one change of the record as it is by now.
func (d *Device) change(how func(boot.State) (boot.State, error)) error {
	return d.locked(func() error {
		if err := d.reload(); err != nil {
			return err
		}
		s, err := how(d.state)
		if err != nil {
			return err
		}
		d.state, err = d.Store.Commit(boot.Stamp(s, time.Now()))
		return err
	})
}

// Verify judges the only bundle of a source as early boot would now, down to each block of its payload, and writes nothing.
// An error that is a Refusal is the verdict; ErrNothing means that there would be nothing to do.
func (d *Device) Verify(ctx context.Context, src Source) (Found, error) {
	a, err := d.scan(ctx, src)
	if err != nil {
		return Found{}, err
	}
	if len(a.refused) > 0 {
		return Found{}, a.refused[0]
	}
	if len(a.found) != 1 {
		return Found{}, fmt.Errorf("%w: it found no bundle", errWorker)
	}
	f := a.found[0]
	f.Offer.Asked = true
	switch v := boot.Judge(d.state, f.Offer, false, d.Policy); {
	case v.Take || v.Wait: // it may wait on the partition as well as anywhere
	case v.Code != 0:
		return f, Refusal{Path: f.Path, Code: v.Code, Text: v.Why}
	default:
		return f, fmt.Errorf("%w: %s", ErrNothing, v.Why)
	}
	d.step(Checking, f.Offer.Version, "")
	_, err = d.bundleJob(ctx, RoleCheck, src, f, "", d.Progress)
	return f, err
}
