package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/confine"
	"lifeboat/disk"
	"lifeboat/status"
	"lifeboat/update"
)

const noCTTY = unix.O_NOCTTY | unix.O_NONBLOCK

// uids of the workers: nobody else has them, and no two roles share one.
var uids = map[string]int{
	update.RoleScan: 65501, update.RoleCheck: 65502, update.RoleInstall: 65503, update.RoleAttest: 65504, update.RoleSeal: 65505, update.RoleTrust: 65506,
}

// quick is the CPU time of a worker that reads little. Those that read or write a whole image may take any time as long as
// they get on.
const quick = 10 * time.Second

// stall is the longest silence of a worker that reads or writes a slow medium.
const stall = 30 * time.Second

// crew starts workers: this binary again, with descriptors, limits and nothing else.
type crew struct{ d *device }

func (c *crew) Run(ctx context.Context, role string, input []byte, src update.Source, slot string, frame func(byte, []byte) error) error {
	spec := confine.Spec{Role: role, UID: uids[role], Input: input, Stall: stall, MaxBytes: 64 << 20}
	open := func(path string, flags int) error {
		f, err := openRetry(path, flags)
		if err == nil {
			spec.Files = append(spec.Files, f)
		}
		return err
	}
	defer func() {
		for _, f := range spec.Files {
			f.Close()
		}
	}()
	if src.Path != "" {
		if err := open(src.Path, os.O_RDONLY); err != nil {
			return err
		}
	}
	switch role {
	case update.RoleScan:
		spec.CPU, spec.Deadline = quick, time.Minute
		if len(c.d.cfg.BundleFormats) > 1 {
			spec.CPU, spec.Deadline = 0, 0 // a plain bundle has to be read whole to know who signed it
		}
	case update.RoleTrust:
		spec.CPU, spec.Deadline = quick, time.Minute
	case update.RoleInstall:
		if err := open(c.d.slotPath(slot), os.O_RDWR); err != nil {
			return err
		}
	case update.RoleSeal, update.RoleAttest:
		if role == update.RoleSeal {
			spec.CPU, spec.Deadline = quick, time.Minute
		}
		err := open(c.d.slotPath(slot), os.O_RDONLY|unix.O_DIRECT)
		if err != nil {
			err = open(c.d.slotPath(slot), os.O_RDONLY)
		}
		if err != nil {
			return err
		}
	}
	usage, err := confine.Run(ctx, spec, frame)
	c.d.report.Workers = append(c.d.report.Workers, status.Worker{Role: role, MaxRSSKiB: usage.MaxRSSKiB})
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

// work is the worker's side: its descriptors become media, its answers frames.
func work(j *confine.Job) error {
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
	reader := j.Role == update.RoleSeal || j.Role == update.RoleAttest
	if !reader && j.Role != update.RoleTrust {
		f, err := take()
		if err != nil {
			return err
		}
		m.Source, m.SourceSize = f, f.Size()
	}
	switch {
	case j.Role == update.RoleInstall:
		f, err := take()
		if err != nil {
			return err
		}
		m.Slot = f
	case reader:
		f, err := take()
		if err != nil {
			return err
		}
		direct, err := disk.NewDirect(f.File())
		if err != nil {
			return err
		}
		m.SlotReader, m.SlotSize = direct, f.Size()
	}
	return update.Work(context.Background(), j.Role, j.Input, m, j.Send)
}
