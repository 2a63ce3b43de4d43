package main

import (
	"fmt"
	"time"

	"lifeboat/boot"
	"lifeboat/screen"
	"lifeboat/update"
)

// display shows people what goes on: pages on screens, lines on all other consoles, a pattern on the LED.
type display struct {
	d   *device
	led *led
	shell

	at            update.Step
	version, slot string
	gone          time.Time // when a stick is no longer waited for
	meter         screen.Meter
	drawn, said   time.Time
	tenth         int // that was said

	waiting *update.Rescue // what the rescue screen shows, nil: another page is shown
}

func newDisplay(d *device) *display { return &display{d: d, led: openLED(sysfs, d.cfg.USB.LED)} }

// How often a page that changes all the time is drawn, and a line said: a serial port is slow.
const (
	drawEvery = 250 * time.Millisecond
	sayEvery  = 250 * time.Millisecond
)

// step is told what an update is at.
func (s *display) step(at update.Step, version, slot string) {
	s.at, s.meter, s.drawn, s.tenth = at, screen.Meter{}, time.Time{}, -1
	switch at {
	case update.Checking, update.Writing, update.ReadingBack:
		s.version, s.slot = version, s.d.slotName(slot)
		s.waiting = nil
		s.led.show(ledBusy)
	case update.Looking:
		s.led.show(ledBusy)
	case update.Gone:
		s.gone = time.Now().Add(s.d.cfg.USB.Replug)
		s.led.show(ledIdle)
		s.tick()
	case update.Finished:
		s.led.show(ledDone)
		s.final()
	case update.Failed:
		s.led.show(ledFailed)
		s.final()
	case update.Idle:
		s.led.show(ledOff)
	}
}

// final leaves on the screens how it ended; the lines have been said.
func (s *display) final() {
	if s.waiting == nil {
		s.d.con.draw(screen.Final(s.d.report))
	}
}

// progress is told how far the step is.
func (s *display) progress(done, total int64) {
	now := time.Now()
	s.meter.At(now, done, total)
	if now.Sub(s.drawn) >= drawEvery {
		s.drawn = now
		s.d.con.draw(screen.Progress(s.version, s.slot, s.at, &s.meter))
	}
	if tenth := s.meter.Percent() / 10; tenth != s.tenth && now.Sub(s.said) >= sayEvery {
		s.said, s.tenth = now, tenth
		s.d.con.say(fmt.Sprintf("%s %s", s.at, &s.meter))
	}
}

// rescue shows the rescue screen.
func (s *display) rescue(r update.Rescue) {
	if s.at != update.Failed {
		s.led.show(ledIdle)
	}
	s.waiting, s.drawn = &r, time.Now()
	s.d.con.show(s.page())
	s.shell.open(s.d.con)
}

func (s *display) page() string { return screen.Rescue(s.device(), *s.waiting, time.Now()) }

func (s *display) device() screen.Device {
	return screen.Device{
		Compatible: s.d.cfg.Compatible, Serial: s.d.trust.Serial, Files: s.d.cfg.USB.Files, Require: s.d.cfg.USB.Require,
		NoUSB: s.d.usb == nil, Disk: s.d.found.why,
	}
}

// letter is the report that is left on sticks.
func (s *display) letter(st boot.State) string {
	return screen.Report(s.device(), s.d.report, st.Status(boot.PolicyOf(s.d.cfg, s.d.trust.Floor)))
}

// tick keeps the time true that a screen says.
func (s *display) tick() {
	now := time.Now()
	if now.Sub(s.drawn) < time.Second {
		return
	}
	switch {
	case s.at == update.Gone:
		s.d.con.draw(screen.Gone(s.version, s.gone.Sub(now)))
	case s.waiting != nil:
		s.d.con.draw(s.page())
	default:
		return
	}
	s.drawn = now
}
