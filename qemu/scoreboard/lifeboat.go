package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/powercut"
	"lifeboat/status"
)

// lifeboat is this project's own rows: boot/raw's records, a boot loader's variables where one chooses, and boot's own
// decisions over them.
type lifeboat struct {
	seals  map[string]boot.Seal
	loader *powercut.Loader // nil: early boot chooses
}

const (
	slotA, slotB = "rootfs.0", "rootfs.1"
	stateSize    = raw.MinSize
	areaSize     = 128 << 10 // of the boot loader's variables, behind the state
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

func (s lifeboat) policy() boot.Policy {
	p := lifeboatPolicy
	if s.loader != nil {
		p.Loader, p.Most = true, 9
	}
	return p
}

func area(dev disk.Device) disk.Device { return disk.Section(dev, stateSize, areaSize) }

// open loads the newest record, or rebuilds the state from the seals where both are lost, as a boot does. started is the
// slot that the boot loader started.
func (s lifeboat) open(dev disk.Device, started string) (boot.Store, boot.State, error) {
	record, err := raw.New(disk.Section(dev, 0, stateSize))
	if err != nil {
		return nil, boot.State{}, err
	}
	var store boot.Store = record
	if s.loader != nil {
		l, err := s.loader.Open(area(dev), lifeboatPolicy.Bootnames)
		if err != nil {
			return nil, boot.State{}, err
		}
		store = &loader.Store{Store: record, Loader: l, Policy: s.policy(), Started: started, Say: func(string) {}}
	}
	st, view, err := store.Load()
	if errors.Is(err, boot.ErrLost) {
		st, err = boot.Rebuild(s.seals, s.policy()), nil
	}
	st, _ = boot.Hear(st, view, s.policy())
	return store, st, err
}

// start is one boot without a stick, with what restarts it needs; slot is "" for rescue.
func (s lifeboat) start(dev disk.Device) (slot string, err error) {
	for range 6 {
		started := ""
		if s.loader != nil {
			name, err := s.loader.Start(area(dev), lifeboatPolicy.Bootnames)
			if err != nil {
				return "", err
			}
			started = map[string]string{"A": slotA, "B": slotB}[name]
		}
		d, err := s.once(dev, started)
		if err != nil || d.Action != boot.Restart {
			return d.Slot, err
		}
	}
	return "", errors.New("it restarts again and again")
}

func (s lifeboat) once(dev disk.Device, started string) (d boot.Decision, err error) {
	store, st, err := s.open(dev, started)
	if err != nil {
		return d, err
	}
	st, _ = boot.Begin(st, status.None, false, s.policy())
	facts := boot.Facts{Seals: map[string]boot.Seal{}, Failed: map[string]status.Reason{}, Started: started}
	for range 40 {
		d = boot.Decide(st, facts, s.policy())
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
		_, err := store.Commit(d.State)
		return d, err
	}
	return d, errors.New("no decision")
}

func (s lifeboat) good(dev disk.Device, slot string) error {
	store, st, err := s.open(dev, "")
	if err != nil {
		return err
	}
	if st, err = boot.Good(st, slot, s.policy()); err != nil {
		return err
	}
	_, err = store.Commit(st)
	return err
}

// operate does operation n of lifeboatOps; -1 makes the first state.
func (s lifeboat) operate(dev disk.Device, n int) error {
	store, st, err := s.open(dev, "")
	if err != nil {
		return err
	}
	target, other := slotB, slotA
	if n >= 6 {
		target, other = slotA, slotB
	}
	switch n {
	case -1:
		st = boot.Factory(s.seals, s.policy())
		for _, slot := range []string{slotB, slotA} {
			if st, err = boot.Good(st, slot, s.policy()); err != nil {
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
		_, err = store.Commit(boot.Note(st, target, offer(sealsAt(n + 1)[target]), s.policy()))
	case 1, 7:
		_, err = store.Commit(boot.Installed(st, target, s.seals[target], s.policy()))
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
	return errors.Join(lifeboat{seals: sealsAt(n)}.operate(dev, n), dev.Close())
}

// places are the names and places of what is kept, 4 KiB each.
func (s lifeboat) places() map[string]int64 {
	at := map[string]int64{"record 1": 0, "record 2": stateSize - boot.RecordSize}
	if s.loader != nil {
		at["variables 1"], at["variables 2"] = stateSize, stateSize+64<<10
		at["second of three"], at["third of three"] = stateSize+4<<10, stateSize+8<<10 // barebox's three lie together
	}
	return at
}

// size is that of the disk.
func (s lifeboat) size() int64 {
	if s.loader != nil {
		return stateSize + areaSize
	}
	return stateSize
}

// read is the Reader of a disk.
func (s lifeboat) read(file string) (View, error) {
	f, err := os.Open(file)
	if err != nil {
		return View{}, err
	}
	defer f.Close()
	return s.view(f)
}

func (s lifeboat) view(r io.ReaderAt) (View, error) {
	c := Content{}
	for name, off := range s.places() {
		b := make([]byte, boot.RecordSize)
		if _, err := r.ReadAt(b, off); err != nil {
			return View{}, err
		}
		c[name] = string(b)
	}
	return View{c, c}, nil
}

// on calls f with what is kept on a disk, and returns what it is afterwards.
func (s lifeboat) on(v View, f func(dev disk.Device)) View {
	img := crash.NewImage(s.size())
	for name, off := range s.places() {
		img.WriteAt([]byte(v.Loader[name]), off) // inside
	}
	f(img)
	next, _ := s.view(img) // inside
	return next
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
		if _, err := boot.Decode([]byte(v.System[name])); err != nil && strings.HasPrefix(name, "record") {
			return name + " is dead"
		}
	}
	return ""
}

// simulate does the same operations over the recording disk of package crash.
func (s lifeboat) simulate(base *crash.Image) ([]Recorded, error) {
	var all []Recorded
	for n, op := range lifeboatOps {
		r := crash.Record(base)
		s.seals = sealsAt(n)
		if err := s.operate(r, n); err != nil {
			return nil, fmt.Errorf("%s: %w", op.Name, err)
		}
		base = r.Image()
		all = append(all, Recorded{Op: op, By: "crash.Recorder", Trace: r.Trace(), After: base})
	}
	return all, nil
}
