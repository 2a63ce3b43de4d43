package usb

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lifeboat/disk"
)

const (
	// attach is how long a port is given to show that something is plugged in: a USB 2.0 device may take
	// 100 ms after power is on (7.1.7.3, TSIGATT), and then Linux looks.
	attach = 150 * time.Millisecond
	// enumerate is how long after a hub's start its worker surely has begun to look at devices that were there
	// from the start: 20 ms for power, 100 ms of debouncing, and some for a slow machine.
	enumerate = 250 * time.Millisecond
	// bind is how long an interface may be without a driver, and a disk without being announced by one.
	bind = 150 * time.Millisecond
	// idle is how long a hub with nothing behind it may stay awake before we no longer wait for it to sleep
	// (usbcore.autosuspend=-1 keeps it awake for ever).
	idle = time.Second
	// pause is the longest time between two looks: sysfs attributes change without an event.
	pause = 20 * time.Millisecond
)

// Settle waits until the USB buses have said all they have, at most max. Afterwards every disk that was
// plugged in when the host controllers' drivers were loaded is in Sticks, unless its device is slower than the
// standard allows. Without a USB bus it returns at once. w must have been made before those drivers
// were loaded; nil is allowed and only makes Settle look at short intervals.
//
// The kernel (6.1) has no attribute for "scan done". What it has, hub by hub:
//   - A hub with nothing behind it is put to sleep as soon as it has been started and looked at
//     (power/runtime_status is "suspended").
//   - A hub that finds devices holds its own lock until all of them are addressed and announced; reading
//     bConfigurationValue takes the same lock, so that it returns when they are.
//   - A mass-storage interface with its driver has a SCSI host; a disk on it is there, with its size, before it is
//     announced.
//
// So: each hub sleeps or has answered; each storage interface has its disks. An empty card reader has
// them, with size 0.
func Settle(w *disk.Watcher, sysfs string, max time.Duration) {
	s := settler{
		devices: filepath.Join(sysfs, "bus/usb/devices"), now: time.Now,
		seen: make(map[string]time.Time), asked: make(map[string]<-chan struct{}),
	}
	deadline := time.Now().Add(max)
	for !s.settled() {
		left := time.Until(deadline)
		if left <= 0 {
			return
		}
		wait := min(pause, left)
		if w == nil {
			time.Sleep(wait)
		} else if _, err := w.Wait(wait); err != nil {
			w = nil
		}
	}
}

// settler remembers between two looks when it saw something first, and what it has asked.
type settler struct {
	devices string
	now     func() time.Time
	seen    map[string]time.Time
	asked   map[string]<-chan struct{} // by hub; closed when it has answered
}

// age is how long ago name was seen first.
func (s *settler) age(name string) time.Duration {
	first, ok := s.seen[name]
	if !ok {
		first = s.now()
		s.seen[name] = first
	}
	return s.now().Sub(first)
}

func (s *settler) settled() bool {
	entries, err := os.ReadDir(s.devices)
	if err != nil {
		return true // no USB in this kernel, or not loaded
	}
	done := true
	for _, e := range entries {
		name := e.Name()
		dir := filepath.Join(s.devices, name)
		// No short cut at the first that is not done: the clocks of all of them start now.
		if strings.Contains(name, ":") {
			if class, err := disk.Attr(dir, "bInterfaceClass"); err == nil && class == "08" {
				done = s.storage(dir) && done
			}
		} else if class, err := disk.Attr(dir, "bDeviceClass"); err == nil && class == "09" {
			done = s.hub(dir, entries) && done
		}
	}
	return done
}

// hub tells whether a hub has found all it has.
func (s *settler) hub(dir string, devices []os.DirEntry) bool {
	age := s.age(dir)
	if status, err := disk.Attr(dir, "power/runtime_status"); err == nil && status == "suspended" {
		return age >= attach
	}
	if age < enumerate || !s.answered(dir) {
		return false
	}
	return parent(filepath.Base(dir), devices) || age >= idle
}

// answered asks a hub for its configuration, which it tells when it is not busy with a device. The question
// may hang as long as a broken device keeps the hub busy, so it is asked on the side, once; what waits
// for an answer when Settle ends is one goroutine, which the kernel lets go with the device.
func (s *settler) answered(dir string) bool {
	answer, ok := s.asked[dir]
	if !ok {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = disk.Attr(dir, "bConfigurationValue") // an error is a hub that has gone
		}()
		answer, s.asked[dir] = done, done
	}
	select {
	case <-answer:
		return true
	default:
		return false
	}
}

// parent tells whether one of devices is plugged into hub: 2-1 into usb2, 2-1.4 into 2-1.
func parent(hub string, devices []os.DirEntry) bool {
	prefix := hub + "."
	if bus, ok := strings.CutPrefix(hub, "usb"); ok {
		prefix = bus + "-"
	}
	for _, e := range devices {
		if rest, ok := strings.CutPrefix(e.Name(), prefix); ok && digits(rest, ".") {
			return true
		}
	}
	return false
}

// storage tells whether a mass-storage interface has the disks it will have.
func (s *settler) storage(dir string) bool {
	age := s.age(dir)
	if !exists(dir, "driver") {
		return age >= bind
	}
	// The link leads to interface/host0/target0:0:0/0:0:0:0; Glob does not fail on a good pattern.
	hosts, _ := filepath.Glob(filepath.Join(dir, "host*"))
	if len(hosts) == 0 {
		return age >= idle // bound to something that makes no disks of it
	}
	units, _ := filepath.Glob(filepath.Join(dir, "host*/target*/*:*:*:*"))
	if len(units) == 0 {
		return false // the driver waits (usb_storage delay_use=) or asks
	}
	for _, unit := range units {
		age := s.age(unit)
		switch kind, err := disk.Attr(unit, "type"); {
		case err != nil:
			return false
		case kind != "0" && kind != "7" && kind != "14": // disk, magneto-optical, simplified disk: what sd takes
			continue
		}
		disks, _ := filepath.Glob(filepath.Join(unit, "block/*"))
		if len(disks) > 0 {
			if _, err := disk.Attr(disks[0], "size"); err != nil {
				return false
			}
			continue
		}
		if exists(unit, "driver") || age < bind {
			return false // being read, or spinning up
		}
	}
	return true
}

func exists(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return !errors.Is(err, os.ErrNotExist)
}
