package main

import (
	"os"

	"lifeboat/usb"
)

// doors are what the kernel opens by itself in a system, and not while something from outside is read: it loads no module
// that a medium's content asks for by name, and no driver sees a USB device that is no stick.
type doors struct {
	modprobe string // what the kernel would run
	usb      *usb.Guard
}

const modprobe = "/proc/sys/kernel/modprobe"

func shutDoors(usbDefault string) *doors {
	d := &doors{modprobe: readTrimmed(modprobe), usb: usb.Shut(sysfs, usbDefault)}
	_ = os.WriteFile(modprobe, []byte("\n"), 0) // not there: a kernel without modules
	return d
}

// open is for the system that starts, and for /init when it starts anew.
func (d *doors) open() {
	d.usb.Open()
	_ = os.WriteFile(modprobe, []byte(d.modprobe+"\n"), 0)
}
