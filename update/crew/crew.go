// Package crew is what a real machine puts below update.Device, in early boot and in the running system alike: workers
// that are this program started again with less, and the few things that root itself does to slots.
//
// A program that uses it calls Work first thing in main:
//
//	if j := confine.Child(); j != nil {
//		j.Exit(crew.Work(j, update.Work))
//	}
package crew

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/config"
	"lifeboat/confine"
	"lifeboat/disk"
	"lifeboat/slots"
	"lifeboat/update"
)

// uids of the workers: nobody else has them, and no two roles share one.
var uids = map[string]int{
	update.RoleScan: 65501, update.RoleCheck: 65502, update.RoleInstall: 65503, update.RoleAttest: 65504, update.RoleSeal: 65505, update.RoleTrust: 65506,
	update.RoleReport: 65507, update.RoleRepair: 65508, update.RoleCompare: 65509,
	update.RoleLoader: 65510, update.RoleLoaded: 65511, update.RoleTree: 65512, update.RoleFiles: 65513,
}

// quick is the CPU time of a worker that reads little. Those that read or write a whole image may take any time as long as
// they get on.
const quick = 10 * time.Second

// stall is the longest silence of a worker that reads or writes a slow medium.
const stall = 30 * time.Second

// Workers is update.Crew.
type Workers struct {
	Slot  func(slot string) string               // path of a slot's block device
	Plain bool                                   // plain bundles are taken: each has to be read whole to know who signed it
	Ended func(role string, usage confine.Usage) // a worker has ended, well or not; may be nil
	Exe   string                                 // as confine.Spec.Exe
	Trees *Trees                                 // nil: no slot takes archives
}

// Run opens what the role may touch, starts the worker and returns when it is gone.
func (c *Workers) Run(ctx context.Context, role string, input []byte, src update.Source, slot string, frame func(byte, []byte) error) error {
	spec := confine.Spec{Role: role, UID: uids[role], Input: input, Stall: stall, MaxBytes: 64 << 20, Exe: c.Exe}
	open := func(path string, flags int) error {
		f, err := openRetry(path, flags)
		if err == nil {
			spec.Files = append(spec.Files, f)
		}
		return err
	}
	// What judges a slot, or compares with it, reads the medium, not memory.
	openSlot := func(slot string) error {
		err := open(c.Slot(slot), os.O_RDONLY|unix.O_DIRECT)
		if err != nil {
			err = open(c.Slot(slot), os.O_RDONLY)
		}
		return err
	}
	defer func() {
		for _, f := range spec.Files {
			f.Close()
		}
	}()
	if src.Path != "" {
		flags := os.O_RDONLY
		if role == update.RoleReport {
			flags = os.O_RDWR
		}
		if err := open(src.Path, flags); err != nil {
			return err
		}
	}
	switch role {
	case update.RoleScan:
		if !c.Plain {
			spec.CPU, spec.Deadline = quick, time.Minute
		}
	case update.RoleTrust, update.RoleReport:
		spec.CPU, spec.Deadline = quick, time.Minute
	case update.RoleRepair, update.RoleInstall:
		from := slot
		if role == update.RoleRepair {
			from = src.Slot
		}
		if err := openSlot(from); err != nil {
			return err
		}
		if err := open(c.Slot(slot), os.O_RDWR); err != nil {
			return err
		}
	case update.RoleSeal, update.RoleAttest, update.RoleCompare:
		if role == update.RoleSeal {
			spec.CPU, spec.Deadline = quick, time.Minute
		}
		if err := openSlot(slot); err != nil {
			return err
		}
	}
	done := func() error { return nil }
	if !config.Slim {
		switch role {
		case update.RoleTree, update.RoleFiles:
			if role == update.RoleFiles {
				if err := openSlot(slot); err != nil {
					return err
				}
			}
			var err error
			if spec.Folder, done, err = c.Trees.Folder(slot, role == update.RoleTree); err != nil {
				return err
			}
			s, _ := c.Trees.Config.SlotByName(slot)
			spec.Devices = s.Tree.Devices
		case update.RoleLoader:
			// The order of single sectors counts, and what is not written is left alone.
			if err := open(c.Slot(slot), os.O_RDWR|unix.O_DIRECT); err != nil {
				return err
			}
		case update.RoleLoaded:
			if err := errors.Join(openSlot(src.Slot), openSlot(slot)); err != nil {
				return err
			}
		}
	}
	usage, err := confine.Run(ctx, spec, frame)
	err = errors.Join(err, done())
	if c.Ended != nil {
		c.Ended(role, usage)
	}
	return err
}

func openRetry(path string, flags int) (*os.File, error) {
	for end := time.Now().Add(time.Second); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.OpenFile(path, flags, 0)
		if err == nil || time.Now().After(end) || flags&unix.O_DIRECT != 0 {
			return f, err
		}
	}
}

// Work is the worker's side: its descriptors become media, its answers frames. work is update.Work, or what a program has in
// its place.
func Work(j *confine.Job, work func(ctx context.Context, role string, input []byte, m update.Media, send func(byte, []byte) error) error) error {
	var m update.Media
	files := j.Files
	take := func() (*disk.File, error) {
		if len(files) == 0 {
			return nil, fmt.Errorf("worker %s got too few files", j.Role)
		}
		f, err := disk.NewFile(files[0])
		files = files[1:]
		return f, err
	}
	reader := j.Role == update.RoleSeal || j.Role == update.RoleAttest || j.Role == update.RoleRepair || !config.Slim && (j.Role == update.RoleLoaded || j.Role == update.RoleFiles)
	if !config.Slim && (j.Role == update.RoleTree || j.Role == update.RoleFiles) {
		m.Folder = "/"
	}
	if !reader && j.Role != update.RoleTrust {
		f, err := take()
		if err != nil {
			return err
		}
		m.Source, m.SourceSize = f, f.Size()
		if j.Role == update.RoleReport {
			m.Stick = f
		}
	}
	readers := 0
	switch {
	case !config.Slim && j.Role == update.RoleLoaded:
		readers = 2
	case reader || j.Role == update.RoleCompare || j.Role == update.RoleInstall:
		readers = 1
	}
	for n := range readers {
		f, err := take()
		if err != nil {
			return err
		}
		direct, err := disk.NewDirect(f.File())
		if err != nil {
			return err
		}
		if n == 0 {
			m.SlotReader, m.SlotSize = direct, f.Size()
		} else {
			m.Copy, m.CopySize = direct, f.Size()
		}
	}
	if j.Role == update.RoleInstall || j.Role == update.RoleRepair || !config.Slim && j.Role == update.RoleLoader {
		f, err := take()
		if err != nil {
			return err
		}
		m.Slot = f
	}
	return work(context.Background(), j.Role, j.Input, m, j.Send)
}

// Slots is what update.Slots has in common in early boot and in the running system. Each call returns only when it is
// durable.
type Slots struct {
	Path func(slot string) string // of a slot's block device
}

func (s Slots) with(slot string, do func(*disk.File) error) error {
	f, err := disk.OpenWait(s.Path(slot), true, 0)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// Wipe makes the slot's old seal vouch for nothing any more.
func (s Slots) Wipe(slot string) error {
	return s.with(slot, func(f *disk.File) error { return slots.Wipe(f) })
}

// Sync puts what an installer wrote on the medium and lets no cache answer for it.
func (s Slots) Sync(slot string) error {
	return s.with(slot, func(f *disk.File) error {
		if err := f.Flush(); err != nil {
			return err
		}
		return f.DropCache()
	})
}

// Seal writes the seal of a slot, opaque bytes of at most slots.SealSize.
func (s Slots) Seal(slot string, seal []byte) error {
	return s.with(slot, func(f *disk.File) error {
		b := make([]byte, slots.SealSize)
		copy(b, seal)
		return slots.WriteSeal(f, b)
	})
}

// Serial is the device's serial number as its firmware gives it: the device tree's, or that of the DMI table.
func Serial() string {
	for _, file := range []string{"/proc/device-tree/serial-number", "/sys/class/dmi/id/product_serial"} {
		b, _ := os.ReadFile(file)
		if s := strings.Trim(string(b), "\x00 \t\n"); s != "" {
			return s
		}
	}
	return ""
}
