package main

import (
	"errors"
	"fmt"
	"os"

	"lifeboat/boot"
	"lifeboat/boot/raw"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/status"
)

// lifeboat is this project's own row: boot/raw's records, and boot's own decisions over them.
type lifeboat struct{ seals map[string]boot.Seal }

const (
	slotA, slotB = "rootfs.0", "rootfs.1"
	stateSize    = raw.MinSize
)

var lifeboatPolicy = boot.Policy{Slots: []string{slotA, slotB}, Bootnames: []string{"A", "B"}, Attempts: 3, ConfirmedAttempts: 8}

// lifeboatOps are one update of each slot, as the updater's phases commit them.
var lifeboatOps = []Op{
	{Name: "install into B noted"},
	{Name: "B installed", Unproven: "B"},
	{Name: "first boot of B", Unproven: "B"},
	{Name: "B says good"},
	{Name: "plain boot of B"},
	{Name: "B says good again"},
	{Name: "install into A noted"},
	{Name: "A installed", Unproven: "A"},
	{Name: "first boot of A", Unproven: "A"},
	{Name: "A says good"},
}

// sealsAt is what the slots hold while operation n runs: version 1 in A and 0 in B at first, then 2 in B, then 3 in A.
func sealsAt(n int) map[string]boot.Seal {
	seal := func(version string) boot.Seal {
		s := boot.Seal{Status: boot.SealValid, Whole: boot.WholeRight, Version: version, Epoch: 1}
		copy(s.Manifest[:], "manifest of version "+version)
		return s
	}
	seals := map[string]boot.Seal{slotA: seal("1"), slotB: seal("0")}
	if n >= 1 {
		seals[slotB] = seal("2")
	}
	if n >= 7 {
		seals[slotA] = seal("3")
	}
	return seals
}

// open loads the newest record, or rebuilds the state from the seals where both are lost, as a boot does.
func (s lifeboat) open(dev disk.Device) (*raw.Store, boot.State, error) {
	store, err := raw.New(dev)
	if err != nil {
		return nil, boot.State{}, err
	}
	st, _, err := store.Load()
	if errors.Is(err, boot.ErrLost) {
		st, err = boot.Rebuild(s.seals, lifeboatPolicy), nil
	}
	return store, st, err
}

// start is one boot without a stick; slot is "" for rescue.
func (s lifeboat) start(dev disk.Device) (slot string, err error) {
	store, st, err := s.open(dev)
	if err != nil {
		return "", err
	}
	st, _ = boot.Begin(st, status.None, false, lifeboatPolicy)
	facts := boot.Facts{Seals: map[string]boot.Seal{}, Failed: map[string]status.Reason{}}
	for range 40 {
		d := boot.Decide(st, facts, lifeboatPolicy)
		switch d.Action {
		case boot.Look, boot.Attest:
			for _, name := range d.Slots {
				seal := s.seals[name]
				if d.Action == boot.Look {
					seal.Whole = boot.WholeUnread
				}
				facts.Seals[name] = seal
			}
			continue
		}
		if _, err := store.Commit(d.State); err != nil || d.Action == boot.GoRescue {
			return "", err
		}
		return d.Slot, nil
	}
	return "", errors.New("no decision")
}

func (s lifeboat) good(dev disk.Device, slot string) error {
	store, st, err := s.open(dev)
	if err != nil {
		return err
	}
	if st, err = boot.Good(st, slot, lifeboatPolicy); err != nil {
		return err
	}
	_, err = store.Commit(st)
	return err
}

// operate does operation n of lifeboatOps; -1 makes the first state.
func (s lifeboat) operate(dev disk.Device, n int) error {
	store, st, err := s.open(dev)
	if err != nil {
		return err
	}
	target, other := slotB, slotA
	if n >= 6 {
		target, other = slotA, slotB
	}
	switch n {
	case -1:
		st = boot.Factory(s.seals, lifeboatPolicy)
		for _, slot := range []string{slotB, slotA} {
			if st, err = boot.Good(st, slot, lifeboatPolicy); err != nil {
				return err
			}
		}
		for range 2 { // both copies
			if st, err = store.Commit(st); err != nil {
				return err
			}
		}
		if slot, err := s.start(dev); err != nil || slot != slotA {
			return fmt.Errorf("%s starts first: %w", slot, err)
		}
		return s.good(dev, slotA)
	case 0, 6:
		_, err = store.Commit(boot.Note(st, target, offer(sealsAt(n + 1)[target]), lifeboatPolicy))
	case 1, 7:
		_, err = store.Commit(boot.Installed(st, target, s.seals[target], lifeboatPolicy))
	case 2, 4, 8:
		var slot string
		if slot, err = s.start(dev); err == nil && slot == other {
			err = fmt.Errorf("%s starts instead of %s", slot, target)
		}
	default:
		err = s.good(dev, target)
	}
	return err
}

func offer(seal boot.Seal) boot.Offer {
	return boot.Offer{Manifest: seal.Manifest, Version: seal.Version, Epoch: seal.Epoch}
}

// inGuest does an operation on a block device: this program runs in the virtual device too.
func inGuest(device string, n int) error {
	dev, err := disk.Open(device, true)
	if err != nil {
		return err
	}
	return errors.Join(lifeboat{sealsAt(n)}.operate(dev, n), dev.Close())
}

// lifeboatRecords are the names and places of the two records.
var lifeboatRecords = map[string]int64{"record 1": 0, "record 2": stateSize - boot.RecordSize}

func readLifeboat(file string) (View, error) {
	f, err := os.Open(file)
	if err != nil {
		return View{}, err
	}
	defer f.Close()
	c := Content{}
	for name, off := range lifeboatRecords {
		b := make([]byte, boot.RecordSize)
		if _, err := f.ReadAt(b, off); err != nil {
			return View{}, err
		}
		c[name] = string(b)
	}
	return View{c, c}, nil
}

// on calls f with the records on a disk, and returns what they are afterwards.
func (lifeboat) on(v View, f func(dev disk.Device)) View {
	img := crash.NewImage(stateSize)
	for name, off := range lifeboatRecords {
		img.WriteAt([]byte(v.Loader[name]), off) // inside
	}
	f(img)
	c := Content{}
	for name, off := range lifeboatRecords {
		b := make([]byte, boot.RecordSize)
		img.ReadAt(b, off) // inside
		c[name] = string(b)
	}
	return View{c, c}
}

func (s lifeboat) Boot(v View) (slot, stop string, next View) {
	var err error
	next = s.on(v, func(dev disk.Device) { slot, err = s.start(dev) })
	if err != nil {
		return "", "stops: " + err.Error(), next
	}
	return lifeboatPolicy.Bootname(slot), "goes to rescue", next
}

func (s lifeboat) Up(v View, slot string) (next View, complaint string) {
	name := map[string]string{"A": slotA, "B": slotB}[slot]
	next = s.on(v, func(dev disk.Device) {
		if err := s.good(dev, name); err != nil {
			complaint = err.Error()
		}
	})
	return next, complaint
}

func (lifeboat) Health(v View) string {
	for _, name := range sorted(v.System) {
		if _, err := boot.Decode([]byte(v.System[name])); err != nil {
			return name + " is dead"
		}
	}
	return ""
}

// simulateLifeboat does the same operations over the recording disk of package crash.
func simulateLifeboat(base *crash.Image) ([]Recorded, error) {
	var all []Recorded
	for n, op := range lifeboatOps {
		r := crash.Record(base)
		if err := (lifeboat{sealsAt(n)}).operate(r, n); err != nil {
			return nil, fmt.Errorf("%s: %w", op.Name, err)
		}
		base = r.Image()
		all = append(all, Recorded{Op: op, By: "crash.Recorder", Trace: r.Trace(), After: base})
	}
	return all, nil
}
