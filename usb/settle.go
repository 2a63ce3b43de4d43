package usb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

const (
	// attach is how long a port is given to show that something is plugged in: a USB 2.0 device may take
	// 100 ms after power is on (7.1.7.3, TSIGATT), and then Linux looks.
	attach = 400 * time.Millisecond
	// enumerate is how long after a hub's start its worker surely has begun to look at devices that were there
	// from the start: 20 ms for power, 100 ms of debouncing, and some for a slow machine.
	enumerate = 250 * time.Millisecond
	// bind is how long an interface may be without a driver.
	bind = 150 * time.Millisecond
	// probe is how long a unit may wait for the disk driver, which takes every unit of its kinds, but asynchronously:
	// a machine that is short of time needs a few hundred ms for it.
	probe = 2 * time.Second
	// idle is how long a hub with nothing behind it may stay awake before we no longer wait for it to sleep
	// (usbcore.autosuspend=-1 keeps it awake for ever).
	idle = 400 * time.Millisecond
	// plugged is how long a connected port of a controller may be without a device, and a device without a
	// configuration: a slow machine takes hundreds of ms until it looks, a broken device never gets there.
	plugged = 2 * time.Second
	// pause is the longest time between two looks: sysfs attributes change without an event.
	pause = 20 * time.Millisecond
)

// Settle lets in the hubs and sticks that wait at a [Guard], and waits until the USB buses have said all they have, at most
// max. Afterwards every disk that was plugged in when the host controllers' drivers were loaded is in Sticks, unless its
// device is slower than the standard allows. Without a USB bus it returns at once. w must have been made before those drivers
// were loaded; nil is allowed and only makes Settle look at short intervals.
//
// The kernel (6.1) has no attribute for "scan done". What it has, hub by hub:
//   - A hub with nothing behind it is put to sleep as soon as it has been started and looked at
//     (power/runtime_status is "suspended"; a SuperSpeed root hub may need several attempts at it).
//   - A hub that finds devices holds its own lock until all of them are addressed and announced; reading
//     bConfigurationValue takes the same lock, so that it returns when they are.
//   - Which ports of a controller have something plugged in can be asked the controller's own hub.
//   - A device that was not let in has no configuration and never will; letting it in returns when it has one.
//   - A device is locked until it is configured and its interfaces have their drivers.
//   - A mass-storage interface with its driver has a SCSI host, that its units, those a block device.
//   - Opening a disk takes the lock that is held while the kernel reads its partition table.
//
// So: each hub sleeps or has answered; each connected port of a controller has its device; each
// device is configured; each storage interface has its disks, and they open. An empty card
// reader has them, with size 0. Nodes are looked for in dev beside sysfs (/dev).
//
// Measured in an emulated machine (QEMU 7.2 without KVM, xHCI, Debian's 6.1), in ms after the last module: hubs asleep at 60 and
// between 145 and 480; a stick's device at 319, its unit at 399, its disk at 410, its partitions at 510.
func Settle(w *disk.Watcher, sysfs string, max time.Duration) {
	s := settler{
		devices: filepath.Join(sysfs, devices), nodes: filepath.Join(sysfs, "../dev"),
		seen: make(map[string]time.Time), asked: make(map[string]<-chan bool), answered: make(map[string]bool),
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

const devices = "bus/usb/devices" // below sysfs

// settler remembers between two looks when it saw something first, and what it has asked.
type settler struct {
	devices, nodes string
	seen           map[string]time.Time
	asked          map[string]<-chan bool // by path, questions without an answer yet
	answered       map[string]bool
}

// age is how long ago path was seen first.
func (s *settler) age(path string) time.Duration {
	first, ok := s.seen[path]
	if !ok {
		first = time.Now()
		s.seen[path] = first
	}
	return time.Since(first)
}

// answer asks a question about path until it has been answered with true. It may hang as long as a broken
// device keeps a lock, so it is asked on the side, one at a time; what still waits when Settle ends is a
// goroutine that the kernel lets go with the device.
func (s *settler) answer(path string, question func() bool) bool {
	if s.answered[path] {
		return true
	}
	ch, ok := s.asked[path]
	if !ok {
		c := make(chan bool, 1)
		go func() { c <- question() }()
		ch, s.asked[path] = c, c
	}
	select {
	case s.answered[path] = <-ch:
		delete(s.asked, path)
	default:
	}
	return s.answered[path]
}

func (s *settler) settled() bool {
	entries, err := os.ReadDir(s.devices)
	if err != nil {
		return true // no USB in this kernel, or not loaded
	}
	done := s.admit(entries)
	for _, e := range entries {
		name := e.Name()
		dir := filepath.Join(s.devices, name)
		if waiting(dir) {
			continue
		}
		// No short cut at the first that is not done: the clocks of all of them start now.
		if strings.Contains(name, ":") {
			if class, err := disk.Attr(dir, "bInterfaceClass"); err == nil && class == "08" {
				done = s.storage(dir) && done
			}
		} else if class, err := disk.Attr(dir, "bDeviceClass"); err == nil && class == "09" {
			done = s.hub(dir, entries) && done
		} else if err == nil {
			done = s.device(dir) && done
		}
	}
	return done
}

// device tells whether a device was configured before the folder was listed: its interfaces and their drivers come with
// that, under the lock that reading the attribute takes. One that is not configured for long never will be.
func (s *settler) device(dir string) bool {
	age := s.age(dir)
	before := s.answered[dir]
	return s.answer(dir, func() bool {
		value, _ := disk.Attr(dir, "bConfigurationValue")
		return value != ""
	}) && before || age >= plugged
}

// hub tells whether a hub has found all it has.
func (s *settler) hub(dir string, devices []os.DirEntry) bool {
	age := s.age(dir)
	if status, err := disk.Attr(dir, "power/runtime_status"); err == nil && strings.HasPrefix(status, "suspend") {
		return age >= attach && s.ports(dir, age) // asleep, or falling asleep
	}
	return age >= enumerate && s.awake(dir, devices, age) && s.ports(dir, age)
}

func (s *settler) awake(dir string, devices []os.DirEntry, age time.Duration) bool {
	free := s.answer(dir, func() bool {
		_, _ = disk.Attr(dir, "bConfigurationValue") // an error is a hub that has gone
		return true
	})
	return free && (parent(filepath.Base(dir), devices) || age >= idle)
}

// ports tells whether each connected port of a controller's hub has its device. Of other hubs, and where the hub cannot
// be asked, it knows nothing.
func (s *settler) ports(dir string, age time.Duration) bool {
	bus, root := strings.CutPrefix(filepath.Base(dir), "usb")
	if !root || age >= plugged {
		return true
	}
	return s.answer(filepath.Join(dir, "ports"), func() bool {
		text, _ := disk.Attr(dir, "maxchild")
		count, _ := strconv.Atoi(text)
		number, err := strconv.Atoi(bus)
		if err != nil {
			return true
		}
		hub, err := os.OpenFile(filepath.Join(s.nodes, fmt.Sprintf("bus/usb/%03d/001", number)), os.O_RDWR, 0)
		if err != nil {
			return true
		}
		defer hub.Close()
		for port := 1; port <= min(count, maxPorts); port++ {
			if connected(hub, port) && !exists(s.devices, fmt.Sprintf("%d-%d", number, port)) {
				return false
			}
		}
		return true
	})
}

const maxPorts = 255

// connected asks a hub for a port's status (USB 2.0, 11.24.2.7: bit 0 says that a device is there) through usbfs, which
// wakes the hub.
func connected(hub *os.File, port int) bool {
	const getPortStatus, deviceToHostClassOther = 0, 0xa3
	const usbdevfsControl = 3<<30 | unsafe.Sizeof(control{})<<16 | 'U'<<8 // _IOWR('U', 0, struct usbdevfs_ctrltransfer)
	var status [4]byte
	c := control{
		RequestType: deviceToHostClassOther, Request: getPortStatus, Index: uint16(port), Length: uint16(len(status)),
		Timeout: 1000, Data: unsafe.Pointer(&status),
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, hub.Fd(), usbdevfsControl, uintptr(unsafe.Pointer(&c)))
	runtime.KeepAlive(&c)
	return errno == 0 && int(n) == len(status) && status[0]&1 != 0
}

// control is struct usbdevfs_ctrltransfer of linux/usbdevice_fs.h; the timeout is in ms.
type control struct {
	RequestType, Request uint8
	Value, Index, Length uint16
	Timeout              uint32
	Data                 unsafe.Pointer
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
		return age >= probe // bound to something that makes no disks of it
	}
	units, _ := filepath.Glob(filepath.Join(dir, "host*/target*/*:*:*:*"))
	if len(units) == 0 {
		return false // the driver waits (usb_storage delay_use=) or asks
	}
	done := true
	for _, unit := range units {
		age := s.age(unit)
		switch kind, err := disk.Attr(unit, "type"); {
		case err != nil:
			done = false
			continue
		case kind != "0" && kind != "7" && kind != "14": // disk, magneto-optical, simplified disk: what sd takes
			continue
		}
		disks, _ := filepath.Glob(filepath.Join(unit, "block/*"))
		if len(disks) > 0 {
			done = s.disk(disks[0]) && done
		} else if exists(unit, "driver") || age < probe {
			done = false // being read, or spinning up
		}
	}
	return done
}

// disk tells whether the kernel is through with a disk's partition table.
func (s *settler) disk(dir string) bool {
	age := s.age(dir)
	size, err := disk.Attr(dir, "size")
	if err != nil {
		return false
	}
	if size == "0" {
		return true
	}
	node := filepath.Join(s.nodes, filepath.Base(dir))
	return s.answer(node, func() bool {
		f, err := os.OpenFile(node, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			f.Close()
		}
		// The node is there before it can be opened, and the folder in sysfs before the node. Another
		// error, or none of this after a while, is for who wants to read the stick.
		return !(errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT)) || age >= bind
	})
}

func exists(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return !errors.Is(err, os.ErrNotExist)
}
