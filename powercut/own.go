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
		section := d.section(on, name)
		seal, err := slots.ReadSeal(section, section.Size())
		if errors.Is(err, slots.ErrMissing) {
			continue
		}
		if err != nil {
			return fmt.Errorf("slot %s: %w", name, err)
		}
		rules := verify.Rules{Keyring: d.keyring, Purpose: d.Config.CheckPurpose, AtBoot: true, Now: time.Unix(d.trust.Floor, 0)}
		f, err := slots.Attest(context.Background(), section, section.Size(), seal, rules, d.Config.Compatible, nil)
		if err != nil {
			return fmt.Errorf("slot %s: %w", name, err)
		}
		sys := System{Version: f.Version, Epoch: f.Epoch, Size: f.DataBlocks * verity.BlockSize}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(section, 0, sys.Size)); err != nil {
			return fmt.Errorf("slot %s: %w", name, err)
		}
		sys.Content = [32]byte(h.Sum(nil))
		d.Systems[boot.Hash(f.Manifest)] = sys
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
	i, err := b.Manifest.Find(d.Config.BootSlots()[0].Class)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	src, err := b.Image(i)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	sys := System{Version: b.Manifest.Version, Epoch: b.Manifest.Epoch, Behaviour: how, Size: b.Manifest.Images[i].Blocks() * verity.BlockSize}
	h := sha256.New()
	if _, err := src.WriteToContext(ctx, h); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	h.Write(make([]byte, sys.Size-src.Size()))
	sys.Content = [32]byte(h.Sum(nil))
	d.Systems[boot.Hash(b.Manifest.Hash())] = sys
	return sys.Version, nil
}
