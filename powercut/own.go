package powercut

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"lifeboat/boot"
	"lifeboat/bundle"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/image"
	"lifeboat/slots"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// Own is somebody's own device: a disk image as it leaves the factory or came from the field, and a bundle for it.
type Own struct {
	Device *Device
	Start  *crash.Image // a confirmed system runs
	Want   Want

	stick *disk.File
}

// OpenOwn reads a disk image and a bundle and brings the device to where a system is confirmed. The bundle has to be one
// that the device takes. Systems that were never seen to run are supposed to say good.
func OpenOwn(d *Device, start *crash.Image, bundleFile string) (o *Own, err error) {
	if err := d.learn(start); err != nil {
		return nil, err
	}
	version, err := d.LearnBundle(bundleFile, Healthy)
	if err != nil {
		return nil, err
	}
	rec := crash.Record(start)
	w := d.Over(rec, nil)
	w.Settle(Want{Version: "*"})
	if err := w.Err(); err != nil {
		return nil, fmt.Errorf("without the bundle and without a cut: %w", err)
	}
	o = &Own{Device: d, Start: rec.Image(), Want: Want{Version: version}}
	temp, err := os.CreateTemp("", "lifeboat-stick-*.img")
	if err != nil {
		return nil, err
	}
	temp.Close()
	defer os.Remove(temp.Name()) // its content stays as long as it is open
	if err := image.Stick(temp.Name(), image.StickOptions{WholeDisk: true}, []string{bundleFile}); err != nil {
		return nil, err
	}
	if o.stick, err = disk.Open(temp.Name(), false); err != nil {
		return nil, err
	}
	d.Stick = o.stick
	return o, nil
}

// Close gives the stick back.
func (o *Own) Close() error { return o.stick.Close() }

// Test is the update of the device by its bundle.
func (o *Own) Test(name string, options crash.Options) crash.Test {
	return crash.Test{
		Name: name, Start: o.Start, Options: options, Mask: o.Device.Mask,
		Update: func(r *crash.Recorder) error {
			w := o.Device.Over(r, nil)
			w.Settle(o.Want)
			return w.Err()
		},
		Check: func(s crash.State) error { return o.Device.Check(s, o.Want) },
	}
}

// learn notes the systems that lie in the slots of a disk.
func (d *Device) learn(on disk.Device) error {
	found := false
	for _, name := range d.policy.Slots {
		if _, ok := d.sealed(on, name); !ok {
			if _, err := slots.ReadSeal(d.section(on, name), d.parts[name].Len); !errors.Is(err, slots.ErrMissing) {
				return fmt.Errorf("slot %s: its seal or one that goes with it is not right", name)
			}
			continue
		}
		sys := System{With: map[string]Content{}}
		var m boot.Hash
		for i, of := range d.members(name) {
			section := d.section(on, of.Name)
			seal, err := slots.ReadSeal(section, section.Size())
			if err != nil {
				return fmt.Errorf("slot %s: %w", of.Name, err)
			}
			rules := verify.Rules{Keyring: d.keyring, Purpose: d.Config.CheckPurpose, AtBoot: true, Now: time.Unix(d.trust.Floor, 0)}
			f, err := slots.Attest(context.Background(), section, section.Size(), seal, rules, d.Config.Compatible, nil)
			if err != nil {
				return fmt.Errorf("slot %s: %w", of.Name, err)
			}
			h := sha256.New()
			size := f.DataBlocks * verity.BlockSize
			if _, err := io.Copy(h, io.NewSectionReader(section, 0, size)); err != nil {
				return fmt.Errorf("slot %s: %w", of.Name, err)
			}
			if i > 0 {
				sys.With[of.Class] = Content{size, [32]byte(h.Sum(nil))}
				continue
			}
			m, sys.Version, sys.Epoch, sys.Size, sys.Content = f.Manifest, f.Version, f.Epoch, size, [32]byte(h.Sum(nil))
		}
		d.Systems[m] = sys
		found = true
	}
	if !found {
		return errors.New("no slot of the disk is sealed")
	}
	return nil
}

// LearnBundle notes the system of a bundle that this device takes, and what it does once it runs. It returns its version.
func (d *Device) LearnBundle(file string, how Behaviour) (version string, err error) {
	f, err := disk.Open(file, false)
	if err != nil {
		return "", err
	}
	defer f.Close()
	ctx := context.Background()
	b, err := bundle.Open(ctx, f, f.Size(), bundle.Options{
		Rules: verify.Rules{Keyring: d.keyring, Purpose: d.Config.CheckPurpose, Now: time.Unix(d.trust.Floor, 0)}, Formats: d.Config.BundleFormats,
		Compatible: d.Config.Compatible, RequireSignedVerity: d.Config.RequireSignedVerity,
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	sys := System{Version: b.Manifest.Version, Epoch: b.Manifest.Epoch, Behaviour: how, With: map[string]Content{}}
	for n, of := range d.members(d.policy.Slots[0]) {
		i, err := b.Manifest.Find(of.Class)
		if err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		content := imageContent
		if b.Manifest.Images[i].Archive() {
			content = treeContent
		}
		c, err := content(b, i)
		if err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		if n > 0 {
			sys.With[of.Class] = c
		} else {
			sys.Size, sys.Content = c.Size, c.Sum
		}
	}
	d.Systems[boot.Hash(b.Manifest.Hash())] = sys
	return sys.Version, nil
}

// imageContent is what a slot holds that an image of a bundle was installed in.
func imageContent(b *bundle.Bundle, image int) (c Content, err error) {
	src, err := b.Image(image)
	if err != nil {
		return c, err
	}
	c.Size = b.Manifest.Images[image].Blocks() * verity.BlockSize
	h := sha256.New()
	if _, err := src.WriteTo(h); err != nil {
		return c, err
	}
	h.Write(make([]byte, c.Size-src.Size()))
	c.Sum = [32]byte(h.Sum(nil))
	return c, nil
}
