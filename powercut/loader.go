package powercut

import (
	"errors"
	"fmt"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/disk"
	"lifeboat/update"
)

// Loader is a boot loader in front of a device. Its variables lie in the partition that [bootloader] device= names.
type Loader struct {
	Open func(area disk.Device, names []string) (boot.Loader, error)
	// Start is what the loader does at power on: it counts, in its own place, and returns the bootname of the slot whose
	// kernel it starts, "" for none.
	Start func(area disk.Device, names []string) (started string, err error)
}

// loaderPart names the boot loader's partition.
const loaderPart = "bootloader"

// store is the record's, and the boot loader's where one chooses.
func (d *Device) store(on disk.Device) (boot.Store, error) {
	record, err := raw.New(d.section(on, "state"))
	if err != nil || d.Loader == nil {
		return record, err
	}
	l, err := d.Loader.Open(d.section(on, loaderPart), d.policy.Bootnames)
	if err != nil {
		return nil, err
	}
	return &loader.Store{Store: record, Loader: l, Policy: d.policy, Say: func(string) {}}, nil
}

// starts lets the boot loader start a kernel, and tells the sequence which.
func (d *Device) starts(u *update.Device, on disk.Device, b *Boot) error {
	name, err := d.Loader.Start(d.section(on, loaderPart), d.policy.Bootnames)
	if err != nil {
		return err
	}
	s, ok := d.Config.SlotByName(name)
	if !ok {
		return fmt.Errorf("the boot loader started %q", name)
	}
	b.Kernel = s.Name
	store, ok := u.Store.(*toldStore).Store.(*loader.Store)
	if !ok {
		return errors.New("a device without a boot loader's variables")
	}
	store.Started = s.Name
	return nil
}
