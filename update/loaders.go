package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"lifeboat/boot/halves"
	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/verify"
)

// LoadersOf returns what a configuration says of them. size is that of the boot partitions of an eMMC in bytes, 0 where it is
// not known.
func LoadersOf(c *config.Config, size func(device string) int64) []Loader {
	var all []Loader
	for _, s := range c.Loaders() {
		l := Loader{Slot: s.Name, Class: s.Class, Room: s.Region.Size / 2}
		if s.Region.Size == 0 {
			if l.Room = size(s.Device); s.Region.Limit > 0 && (l.Room == 0 || s.Region.Limit < l.Room) {
				l.Room = s.Region.Limit
			}
		}
		all = append(all, l)
	}
	return all
}

func (d *Device) loaderParts() []part {
	var all []part
	for _, l := range d.Loaders {
		all = append(all, part{Class: l.Class, Room: l.Room})
	}
	return all
}

// loaderClass returns the image class of a copy of a boot loader, "" for a slot.
func (d *Device) loaderClass(copy string) string {
	for _, l := range d.Loaders {
		if strings.HasPrefix(copy, l.Slot+copySep) {
			return l.Class
		}
	}
	return ""
}

// brought calls do with the slots of the boot loader for which a bundle has an image.
func (d *Device) brought(o offer, do func(Loader, Stand) error) error {
	for n, l := range d.Loaders {
		if o.Loaders>>n&1 == 0 {
			continue
		}
		s, err := d.Copies.Open(l.Slot)
		if err == nil {
			err = do(l, s)
		}
		d.Copies.Close(l.Slot)
		if err != nil {
			code := int(verify.CodeOf(err))
			if errors.Is(err, errWorker) {
				return err
			}
			return Refusal{Path: o.Path, Code: code, Text: fmt.Sprintf("boot loader %s: %v", l.Slot, err), Hint: verify.HintOf(err)}
		}
	}
	return nil
}

// loadersReady refuses, before anything is touched, a bundle whose boot loader could not be installed.
func (d *Device) loadersReady(o offer) error {
	return d.brought(o, func(Loader, Stand) error { return nil })
}

// bringLoaders installs the boot loaders of a bundle that lies in a slot, whose seal is the one that is given or, where that is
// nil, the one on the slot. After a cut behind it the new boot loader starts the old system, and the next install finds it there.
func (d *Device) bringLoaders(ctx context.Context, o *offer, slot string, seal []byte) error {
	return d.brought(*o, func(l Loader, s Stand) error { return d.bringLoader(ctx, o, slot, seal, l, s) })
}

// bringLoader writes what is not there yet, and switches. What a copy holds is judged by the seal of the slot.
func (d *Device) bringLoader(ctx context.Context, o *offer, slot string, seal []byte, l Loader, s Stand) error {
	d.sector = s.Sector
	first, other := CopyName(l.Slot, s.First), CopyName(l.Slot, 1-s.First)
	if !s.Both {
		if held, err := d.loaded(ctx, slot, seal, other); held || err != nil {
			return err
		}
	}
	for _, c := range []string{first, other} {
		held, err := d.loaded(ctx, slot, seal, c)
		if err != nil {
			return err
		}
		if !held {
			d.Say(fmt.Sprintf("writing the boot loader %s of version %s", c, o.Offer.Version))
			d.step(Writing, o.Offer.Version, slot)
			if _, err := d.patiently(ctx, RoleLoader, o, slot, c); err != nil {
				return err
			}
			if err := d.Slots.Sync(c); err != nil {
				return err
			}
			d.step(ReadingBack, o.Offer.Version, slot)
			if held, err = d.loaded(ctx, slot, seal, c); err == nil && !held {
				err = errors.New("what was read back is not what was written")
			}
			if err != nil {
				return err
			}
		}
		if !s.Both {
			break
		}
	}
	if s.Both {
		return nil
	}
	d.Say("switching to the boot loader " + first)
	return d.Copies.Switch(l.Slot, s.First)
}

// loaded reports whether a copy of a boot loader is that of the bundle in a slot.
func (d *Device) loaded(ctx context.Context, slot string, seal []byte, copy string) (bool, error) {
	a, err := d.run(ctx, RoleLoaded, &job{Seal: seal}, Source{Slot: slot}, copy, d.Progress)
	switch {
	case err != nil:
		return false, err
	case a.err != nil && a.err.Code == codePayload:
		return false, nil
	case a.err != nil:
		return false, *a.err
	}
	return true, nil
}

// fitsLoader judges an image for a slot of the boot loader; known is false for another.
func (w *worker) fitsLoader(img *bundle.Image) (known bool, err error) {
	n := slices.IndexFunc(w.job.Loaders, func(p part) bool { return p.Class == img.Key() })
	if n < 0 {
		return false, nil
	}
	if err := img.Installable(); err != nil {
		return true, err
	}
	if room := w.job.Loaders[n].Room; room > 0 && img.Size > room {
		return true, verify.Refuse(verify.Policy, "image %s has %d bytes, the boot loader's slot takes %d", img.Key(), img.Size, room)
	}
	return true, nil
}

func (w *worker) loadersIn(m *bundle.Manifest) (set uint8) {
	for n, p := range w.job.Loaders {
		if _, err := m.Find(p.Class); err == nil {
			set |= 1 << n
		}
	}
	return set
}

func (w *worker) workLoader(ctx context.Context, role string) error {
	if role == RoleLoader {
		return w.loader(ctx)
	}
	return w.loaded(ctx)
}

// loader writes a copy of a boot loader.
func (w *worker) loader(ctx context.Context) error {
	b, err := w.open(ctx)
	if err != nil {
		return err
	}
	i, err := b.Manifest.Find(w.job.Class)
	if err != nil {
		return err
	}
	src, err := b.Image(i)
	if err != nil {
		return err
	}
	err = halves.Write(w.media.Slot, w.job.Sector, src.Size(), func(to io.Writer) error {
		_, err := src.WriteToContext(ctx, to)
		return err
	}, w.progress)
	if err != nil {
		return err
	}
	m := b.Manifest.Hash()
	return w.send(frameDone, m[:])
}

// loaded compares a copy of a boot loader with what the seal of a slot says of it.
func (w *worker) loaded(ctx context.Context) error {
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
	if err := seal.Copied(ctx, w.media.Copy, w.media.CopySize, w.job.Class, rules, w.job.Trust.Compatible, w.progress); err != nil {
		return err
	}
	return w.send(frameDone, nil)
}
