package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/status"
	"lifeboat/update"
)

// resolved says which block devices the configuration means on this machine.
type resolved struct {
	state  disk.Block
	hasAll bool // state and every slot
	slots  map[string]disk.Block
	reason status.Reason // NoDisk, TwoDisks
	why    string
}

const (
	diskWait  = 20 * time.Second // until a missing disk means rescue
	stateWait = 5 * time.Second  // until a disk with slots but without a state partition is taken as it is
)

// resolve waits until the device's disk is there. It does not return before: without a disk there is nothing to
// install to, so all that rescue can do is say so and go on looking.
func (d *device) resolve() {
	start := time.Now()
	shown := status.None
	for {
		blocks, err := disk.Blocks(sysfs)
		if err != nil {
			d.con.say("list block devices: " + err.Error())
		}
		d.found = resolve(d.cfg, blocks)
		waited := time.Since(start)
		if d.found.hasAll || len(d.found.slots) > 0 && waited > stateWait && d.found.reason == status.None {
			break
		}
		if (waited > diskWait || d.found.reason == status.TwoDisks) && d.found.reason != shown {
			shown = d.found.reason
			d.con.say(status.RescueLine(shown))
			d.con.alarm(d.found.why)
			d.show.rescue(update.Rescue{Reason: shown})
		}
		d.enter("devices", stepLimit)
		wait := time.Second
		if waited > diskWait {
			wait = 10 * time.Second
		}
		if d.watch != nil {
			_, err = d.watch.Wait(wait)
		}
		if d.watch == nil || err != nil {
			time.Sleep(50 * time.Millisecond)
		}
		d.show.tick()
	}
	if !d.found.hasAll {
		d.con.say("not every configured partition is there: " + d.found.why)
	}
}

var errMoved = errors.New("more of this device's disk has appeared: starting over")

// look ends a boot that waits in rescue when the disk has more to it than what that boot began with: it came late, or
// came back.
func (d *device) look() {
	blocks, err := disk.Blocks(sysfs)
	if err != nil {
		return
	}
	var over bool
	if over, d.lost = resolve(d.cfg, blocks).since(d.found, d.lost); over {
		d.moved(errMoved)
	}
}

// since reports whether it is worth to start over with r, after old: more of it is there, or something that was lost is
// back. lost says that something of old was missing once.
func (r resolved) since(old resolved, lost bool) (over, stillLost bool) {
	switch now, then := r.parts(), old.parts(); {
	case now < then:
		return false, true
	case now > then, lost, r.state != old.state, !maps.Equal(r.slots, old.slots):
		return r.reason == status.None, false
	}
	return false, false
}

// parts is how many of the device's partitions are there for sure.
func (r resolved) parts() int {
	n := len(r.slots)
	if r.state.Name != "" {
		n++
	}
	return n
}

// resolve is pure. Slots and state lie on one disk. Disks behind USB are no candidates unless the configuration names
// one by its own name; two disks that both have everything are an error, never a guess.
func resolve(cfg *config.Config, blocks []disk.Block) resolved {
	perDisk := map[string]*resolved{}
	slots := cfg.BootSlots()
	for _, s := range cfg.BootSlots() {
		slots = append(slots, cfg.Group(s.Name)...)
	}
	want := func(name, device string, put func(*resolved, disk.Block)) {
		_, label := config.PartLabel(device)
		for _, b := range disk.Find(blocks, device) {
			if label && b.USB {
				continue
			}
			key := b.Disk
			if !label {
				key = "" // named by the configuration: belongs to whichever disk has the rest
			}
			if perDisk[key] == nil {
				perDisk[key] = &resolved{slots: map[string]disk.Block{}}
			}
			put(perDisk[key], b)
		}
	}
	for _, s := range slots {
		want(s.Name, s.Device, func(r *resolved, b disk.Block) { r.slots[s.Name] = b })
	}
	want("state", cfg.StateDevice, func(r *resolved, b disk.Block) { r.state = b })
	if named := perDisk[""]; named != nil {
		delete(perDisk, "")
		if len(perDisk) == 0 {
			perDisk["configured"] = named
		}
		for _, r := range perDisk {
			if named.state.Name != "" {
				r.state = named.state
			}
			for s, b := range named.slots {
				r.slots[s] = b
			}
		}
	}
	names := make([]string, 0, len(perDisk))
	for name, r := range perDisk {
		r.hasAll = r.state.Name != "" && len(r.slots) == len(slots)
		names = append(names, name)
	}
	slices.Sort(names)
	var whole, part []string
	for _, n := range names {
		if perDisk[n].hasAll {
			whole = append(whole, n)
		} else if len(perDisk[n].slots) > 0 {
			part = append(part, n)
		}
	}
	switch {
	case len(whole) == 1:
		return *perDisk[whole[0]]
	case len(whole) > 1:
		return resolved{reason: status.TwoDisks, why: strings.Join(whole, " and ") + " both have every partition of this device; take one out"}
	case len(part) == 1:
		r := *perDisk[part[0]]
		r.why = fmt.Sprintf("on %s are only %d of %d slots, state partition %q", part[0], len(r.slots), len(slots), r.state.Name)
		return r
	case len(part) > 1:
		return resolved{reason: status.TwoDisks, why: strings.Join(part, " and ") + " each have a part of this device's partitions"}
	}
	return resolved{reason: status.NoDisk, why: fmt.Sprintf("no disk has %s", slots[0].Device)}
}

// store opens the boot state, and where the boot loader keeps its variables.
func (d *device) store(p *boot.Policy) boot.Store {
	record := d.record()
	if !p.Loader {
		return record
	}
	if d.cfg.Bootloader == "custom" {
		// Early boot starts no program: the loader is told when the running system commits something.
		p.Most = 1
		return &loader.Store{Store: record, Policy: *p, Started: d.started(nil)}
	}
	l, err := d.loader()
	if err != nil {
		d.con.say("the boot loader's variables cannot be opened: " + err.Error())
		l = loader.Dead{Err: err}
	}
	p.Most = l.Most()
	return &loader.Store{Store: record, Loader: l, Policy: *p, Started: d.started(l), Say: d.con.say}
}

// loader opens the boot loader's own place.
func (d *device) loader() (boot.Loader, error) {
	b, err := d.beside(d.cfg.Loader.Device)
	if err != nil && d.cfg.Bootloader != "efi" {
		return nil, err
	}
	return loader.Open(d.cfg, loader.Place{Block: b, Slots: d.found.slots})
}

// started is the slot whose kernel runs, as far as anybody says so: the loader on the command line or in its own way, or
// the root file system that the kernel was told of.
func (d *device) started(l boot.Loader) string {
	name := cmp.Or(d.cmd.Started, loader.Started(l))
	if s, ok := d.cfg.SlotByName(name); ok && s.Bootname != "" {
		return s.Name
	}
	for _, s := range d.cfg.BootSlots() {
		if d.cmd.Root != "" && (d.cmd.Root == s.Device || d.cmd.Root == d.slotPath(s.Name)) {
			return s.Name
		}
	}
	d.con.say("the boot loader does not say which slot it started: rauc.slot= is missing on the kernel command line")
	return ""
}

// record opens the state partition. One that cannot be opened is lost to this boot; the slots still say what they are.
func (d *device) record() boot.Store {
	if d.found.state.Name == "" {
		return deadStore{fmt.Errorf("there is no partition %s", d.cfg.StateDevice)}
	}
	f, err := disk.OpenWait(d.found.state.Path(), true, 2*time.Second)
	if err != nil {
		// A medium that has become read-only still says which slot was good (rule 20).
		if f, err = disk.OpenWait(d.found.state.Path(), false, time.Second); err != nil {
			return deadStore{err}
		}
	}
	s, err := raw.New(f)
	if err != nil {
		return deadStore{err}
	}
	return s
}

// deadStore is the store of a device whose state partition is gone.
type deadStore struct{ err error }

func (s deadStore) Load() (boot.State, boot.LoaderView, error) {
	return boot.State{}, boot.LoaderView{}, s.err
}
func (s deadStore) Commit(st boot.State) (boot.State, error)        { return st, s.err }
func (s deadStore) LoadTrust(boot.Hash) ([]byte, error)             { return nil, s.err }
func (s deadStore) SaveTrust([]byte, boot.Trust) (boot.Hash, error) { return boot.Hash{}, s.err }
func (s deadStore) SaveWords(boot.Words) error                      { return s.err }
func (s deadStore) FindTrust() [][]byte                             { return nil }

// staging finds the staging partition, which is looked for only when something is staged.
func (d *device) staging() (update.Source, error) {
	b, err := d.beside(d.cfg.StagingDevice)
	return update.Source{ID: [8]byte{'s', 't', 'a', 'g', 'i', 'n', 'g'}, Name: "staging", Path: b.Path()}, err
}

// beside finds a partition on the disk that has the slots, or where the configuration names it. Partitions come one after
// the other, so that it may be a moment behind the slots.
func (d *device) beside(device string) (disk.Block, error) {
	for end := time.Now().Add(besideWait); ; time.Sleep(50 * time.Millisecond) {
		blocks, err := disk.Blocks(sysfs)
		if b, ok := beside(device, blocks, d.found); ok {
			return b, nil
		}
		if time.Now().After(end) {
			return disk.Block{}, cmp.Or(err, fmt.Errorf("there is no partition %s", device))
		}
	}
}

const besideWait = 2 * time.Second

// beside is pure, as resolve is. A raw flash is no block device, and found by its name.
func beside(device string, blocks []disk.Block, found resolved) (disk.Block, bool) {
	_, label := config.PartLabel(device)
	for _, b := range disk.Find(blocks, device) {
		if !label {
			return b, true
		}
		for _, s := range found.slots {
			if s.Disk == b.Disk {
				return b, true
			}
		}
	}
	if config.Flash(device) {
		return disk.Block{Name: device[len("/dev/"):]}, true
	}
	return disk.Block{}, false
}
