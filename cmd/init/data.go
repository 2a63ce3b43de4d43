//go:build !slim

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/config"
	"lifeboat/data"
	"lifeboat/disk"
	"lifeboat/slots"
	"lifeboat/status"
)

// dataDir is where the data partition is mounted until the system that is started has it.
const dataDir = "/newdata"

// makeLimit is for making the data partition at the first boot: 0.2 % of it are written.
const makeLimit = 10 * time.Minute

// data brings the data partition into the system that is mounted, and lays overlays over its folders. Only on-error=rescue makes
// an error of it one of the slot.
func (s *slotDoor) data(slot string, f slots.Facts) error {
	d, c := s.d, s.d.cfg.Data
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return err
	}
	d.enter("data", makeLimit)
	defer d.ended("data")
	readOnly, err := d.openData()
	if err != nil {
		d.warn("data partition: " + err.Error() + " on-error=" + c.OnError)
		if c.OnError == "rescue" {
			return fault(status.Unreadable, err)
		}
	}
	if readOnly {
		d.warn("data partition: nothing can be written to it")
	}
	there := err == nil || readOnly
	if c.Mount != "" && there {
		if err := inSystem(c.Mount, func(at string) error { return unix.Mount(dataDir, at, "", unix.MS_BIND, "") }); err != nil {
			d.warn("data partition: mount at " + c.Mount + ": " + err.Error())
		}
	}
	if len(c.Overlays) == 0 {
		return nil
	}
	if !there {
		d.warn("what the system writes to folders of [overlay] is lost when it ends")
		if err := unix.Mount("tmpfs", dataDir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "mode=0700"); err != nil {
			d.warn("overlays: " + err.Error())
			return nil
		}
	}
	for _, o := range c.Overlays {
		err := inSystem(o.Path, func(at string) error {
			return data.Overlay(dataDir, o, slot, f.RootHash, c.Clear, readOnly, at, at)
		})
		if err != nil {
			d.warn("overlay: " + o.Path + " is as the slot has it: " + err.Error())
		}
	}
	return nil
}

// inSystem calls do with a path that names a folder of the mounted system whatever links it has.
func inSystem(name string, do func(at string) error) error {
	dir, err := folderIn(newRoot, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
}

// openData opens the data partition and mounts it at dataDir; it is made where it never was. readOnly says that it is mounted in
// spite of the error.
func (d *device) openData() (readOnly bool, err error) {
	c := d.cfg.Data
	_ = unix.Unmount(dataDir, unix.MNT_DETACH)
	b, err := d.beside(c.Device)
	if err != nil {
		return false, err
	}
	v := data.Volume{Block: b}
	if c.Integrity == config.Keyed {
		if v.Key, err = os.ReadFile(d.cfg.IntegrityKey); err != nil {
			return false, err
		}
	}
	v.Close()
	part, err := disk.OpenWait(b.Path(), true, time.Second)
	if err != nil {
		return false, err
	}
	defer part.Close()
	var state disk.Device
	if f, err := disk.OpenWait(d.found.state.Path(), true, time.Second); d.found.state.Name != "" && err == nil {
		defer f.Close()
		state = f
	}
	l, made, err := data.Prepare(part, state, c.Integrity, func(l data.Label) error {
		d.con.say(fmt.Sprintf("making the data partition on %s, %d MiB, integrity=%s", b.Name, b.Size>>20, c.Integrity))
		template, err := os.ReadFile(filepath.Join(config.Dir, status.Template))
		if err != nil {
			return err
		}
		return v.Make(l, template, c.Label, dataDir)
	})
	if err != nil {
		return false, err
	}
	if made {
		d.con.say("made the data partition")
	}
	path, err := v.Open(l)
	if err != nil {
		return false, err
	}
	return data.Mount(path, dataDir, c.OnError == "readonly")
}
