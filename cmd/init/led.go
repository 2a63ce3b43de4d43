package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// led is the light of [usb] led=. A nil one is a device without.
type led struct {
	dir  string
	most string        // its brightness
	stop chan struct{} // ends what blinks it, nil: nothing does
	gone sync.WaitGroup
	now  pattern
}

// pattern is how long a light is on and off. Zero is never.
type pattern struct{ on, off time.Duration }

var (
	ledOff    = pattern{0, time.Hour}
	ledIdle   = pattern{100 * time.Millisecond, 1900 * time.Millisecond} // a stick is waited for
	ledBusy   = pattern{100 * time.Millisecond, 100 * time.Millisecond}  // a stick is read
	ledDone   = pattern{time.Hour, 0}
	ledFailed = pattern{time.Second, time.Second}
)

func openLED(sysfs, name string) *led {
	if name == "" {
		return nil
	}
	return &led{dir: filepath.Join(sysfs, "class/leds", name)}
}

// show makes the light blink, by the kernel's timer where it has one. A light that is not there is nobody's trouble. What
// is shown last stays until the system takes the light over.
func (l *led) show(p pattern) {
	if l == nil || l.now == p {
		return
	}
	l.now = p
	if l.stop != nil {
		close(l.stop)
		l.gone.Wait()
		l.stop = nil
	}
	// It may appear late, with its driver.
	l.most = readTrimmed(filepath.Join(l.dir, "max_brightness"))
	if l.most == "" {
		l.now = pattern{}
		return
	}
	if p.on == 0 || p.off == 0 {
		l.set("trigger", "none")
		l.light(p.on != 0)
		return
	}
	if l.set("trigger", "timer") {
		l.set("delay_on", strconv.FormatInt(p.on.Milliseconds(), 10))
		l.set("delay_off", strconv.FormatInt(p.off.Milliseconds(), 10))
		return
	}
	l.set("trigger", "none")
	l.stop = make(chan struct{})
	l.gone.Go(func() { l.blink(p, l.stop) })
}

// blink toggles the light until stop is closed, or this program becomes the system.
func (l *led) blink(p pattern, stop chan struct{}) {
	for on := true; ; on = !on {
		l.light(on)
		wait := p.off
		if on {
			wait = p.on
		}
		select {
		case <-stop:
			return
		case <-time.After(wait):
		}
	}
}

func (l *led) light(on bool) {
	if on {
		l.set("brightness", l.most)
	} else {
		l.set("brightness", "0")
	}
}

func (l *led) set(attr, value string) bool {
	f, err := os.OpenFile(filepath.Join(l.dir, attr), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return false
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close()) == nil
}
