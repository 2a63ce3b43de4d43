package usb

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"lifeboat/disk"
)

// Guard keeps the kernel from configuring USB devices by itself (Documentation/usb/authorization.rst): a device that is
// plugged in is found and described, but has no interfaces, and so no driver, until Settle lets it in. Settle lets in
// hubs and sticks only.
type Guard struct {
	sysfs string
	after string // the default to come back to: "1" all devices, "0" none, "2" built-in ones
}

// What Settle lets in at most, at one time.
const (
	maxSticks = 4
	maxHubs   = 16 // the kernel takes five in a row, as the standard does
)

// Shut closes the door. It is called before the controllers' drivers are loaded; the driver of the bus, where it is a
// module, is loaded with authorized_default=0 (image/modules.go). Devices that a kernel with built-in drivers has configured
// before are left alone. wanted is the default that the command line asks for, "" where it does not.
func Shut(sysfs, wanted string) *Guard {
	g := &Guard{sysfs: sysfs, after: wanted}
	if g.after == "" {
		g.after, _ = disk.Attr(filepath.Join(sysfs, parameters), authorizedDefault)
	}
	if g.after != "0" && g.after != "2" {
		g.after = "1"
	}
	g.setDefault("0")
	return g
}

const (
	parameters        = "module/usbcore/parameters"
	authorizedDefault = "authorized_default"
)

// setDefault tells the buses that are there and those that will be.
func (g *Guard) setDefault(value string) {
	hubs, _ := filepath.Glob(filepath.Join(g.sysfs, devices, "usb*"))
	for _, dir := range append(hubs, filepath.Join(g.sysfs, parameters)) {
		_ = os.WriteFile(filepath.Join(dir, authorizedDefault), []byte(value), 0) // not there: no USB yet
	}
}

// patience is how long Open waits for devices: some answer late, or never.
const patience = 2 * time.Second

// Open is for the system that starts: devices are configured by themselves again, and those that waited now.
func (g *Guard) Open() {
	g.setDefault(g.after)
	if g.after != "1" {
		return
	}
	buses, _ := filepath.Glob(filepath.Join(g.sysfs, devices, "usb*"))
	done := make(chan struct{})
	go func() { openAll(buses); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
	}
}

// openAll lets in devices and what lies behind them. What a hub was just looking at when the default changed is still told to
// wait; reading the attribute takes the lock that the hub holds as long.
func openAll(dirs []string) {
	var group sync.WaitGroup
	for _, dir := range dirs {
		group.Go(func() {
			if waiting(dir) {
				authorize(dir) // what is behind it comes in by itself
				return
			}
			_, _ = disk.Attr(dir, "bConfigurationValue")
			behind, _ := filepath.Glob(filepath.Join(dir, "*-*"))
			openAll(slices.DeleteFunc(behind, func(d string) bool { return !isDevice(filepath.Base(d)) }))
		})
	}
	group.Wait()
}

// waiting tells whether a device was not let in.
func waiting(dir string) bool {
	text, err := disk.Attr(dir, "authorized")
	return err == nil && text == "0"
}

func authorize(dir string) { _ = os.WriteFile(filepath.Join(dir, "authorized"), []byte("1"), 0) }

type kind int

const (
	other kind = iota
	hub
	stick
)

// kindOf reads what a device told the kernel that it is.
func kindOf(dir string) kind {
	f, err := os.Open(filepath.Join(dir, "descriptors"))
	if err != nil {
		return other
	}
	defer f.Close()
	b := make([]byte, maxDescriptors+1)
	n, err := f.Read(b) // the kernel gives all that fits at once
	if err != nil || n > maxDescriptors {
		return other
	}
	return classify(b[:n])
}

// maxDescriptors is far above the 100 bytes or so of a hub or a stick.
const maxDescriptors = 2048

// classify tells what a device is by its descriptors as the kernel shows them (USB 2.0, 9.6): the device descriptor of 18
// bytes, then each configuration with all that belongs to it. A stick has nothing but interfaces of class 08/06/50 (bulk-only) and
// 08/06/62 (UAS), a hub nothing but those of class 09, in every configuration and alternate setting: no choice of the
// kernel's makes anything else of them. These are bytes from outside: each is looked at once, and what is
// malformed is neither.
func classify(b []byte) kind {
	const device, configuration, interfac = 1, 2, 4
	if len(b) < 18 || b[0] != 18 || b[1] != device {
		return other
	}
	found := other
	for b = b[18:]; len(b) > 0; {
		if len(b) < 9 || b[0] < 9 || b[1] != configuration {
			return other
		}
		total := int(binary.LittleEndian.Uint16(b[2:]))
		if total < int(b[0]) || total > len(b) {
			return other
		}
		config := b[b[0]:total]
		b = b[total:]
		for len(config) > 0 {
			if len(config) < 2 || config[0] < 2 || int(config[0]) > len(config) {
				return other
			}
			d := config[:config[0]]
			config = config[len(d):]
			if d[1] != interfac {
				continue
			}
			if len(d) < 9 {
				return other
			}
			is := other
			switch {
			case d[5] == 0x09:
				is = hub
			case d[5] == 0x08 && d[6] == 0x06 && (d[7] == 0x50 || d[7] == 0x62):
				is = stick
			}
			if is == other || found != other && found != is {
				return other
			}
			found = is
		}
	}
	return found
}

// admit lets in what may, of the devices that wait, and tells whether all that were let in have got their
// configuration. The others are done.
func (s *settler) admit(entries []os.DirEntry) bool {
	in := map[kind]int{}
	var wait []string
	done := true
	for _, e := range entries {
		dir := filepath.Join(s.devices, e.Name())
		switch {
		case !isDevice(e.Name()):
		case !waiting(dir):
			in[kindOf(dir)]++
		case s.asked[permit(dir)] != nil:
			in[kindOf(dir)]++
			done = s.answer(permit(dir), nil) && done
		case !s.answered[permit(dir)]: // else the kernel did not want to
			wait = append(wait, dir)
		}
	}
	for _, dir := range wait {
		if k := kindOf(dir); k == hub && in[hub] < maxHubs || k == stick && in[stick] < maxSticks {
			in[k]++
			done = false
			s.answer(permit(dir), func() bool { authorize(dir); return true })
		}
	}
	return done
}

// permit names the question whether a device may come in. The next one in the same port has another number.
func permit(dir string) string {
	number, _ := disk.Attr(dir, "devnum")
	return dir + " " + number
}
