package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"lifeboat/config"
	"lifeboat/status"
	"lifeboat/update"
	"lifeboat/update/crew"
	"lifeboat/watchdog"
)

// How long PID 1 may be silent before it is taken to be stuck. The watchdog's own timeout comes on top.
const (
	stepLimit   = time.Minute     // PID 1's own steps: loading modules, looking for devices, a record, a mount
	workerLimit = time.Minute     // a worker that says nothing is ended long before
	flushLimit  = 5 * time.Minute // what an installer wrote, from the page cache to a slow medium
)

// arm finds and arms a watchdog, and feeds it from now on. It comes before anything that can hang; where there is none, it
// comes again when all modules are loaded, and says why. Where [watchdog] is off, one that runs already and that the kernel
// does not feed is fed all the same.
func (d *device) arm(ctx context.Context, again bool) {
	loadModules(d.con, filepath.Join(config.Dir, "modules.watchdog"))
	all := watchdog.Find(sysfs)
	if len(all) == 0 {
		loadModules(d.con, filepath.Join(config.Dir, "modules.softdog"))
		all = watchdog.Find(sysfs)
	}
	for d.dog == nil {
		at, why := watchdog.Choose(all, d.cfg.Watchdog)
		if at >= 0 {
			dev := all[at]
			var err error
			if d.dog, err = watchdog.Open(dev, d.cfg.Watchdog); err != nil {
				why = fmt.Sprintf("%s (%s): %v", dev.Path(), dev.Identity, err)
			}
			all = append(all[:at], all[at+1:]...)
		}
		if why != "" && (d.dog != nil || again) {
			d.warn("watchdog: " + why)
		}
		if at < 0 {
			return
		}
	}
	d.guard(ctx, d.dog)
}

// warn says what the running system should know, too.
func (d *device) warn(line string) {
	d.con.say(line)
	d.report.Notes = append(d.report.Notes, line)
}

func (d *device) guard(ctx context.Context, g *watchdog.Dog) {
	defer d.ended("watchdog")
	d.keep = watchdog.Keep(ctx, g.Feed, g.Timeout, func(phase string) {
		d.con.log(fmt.Sprintf("%s does not get on: the watchdog is fed no more", phase)) // a console may be what hangs
	})
	d.con.say(fmt.Sprintf("watchdog %s (%s) timeout %s", g.Path(), g.Identity, g.Timeout))
	if g.Stops {
		d.warn("the watchdog stops at the hand-over: it protects early boot only")
	}
	d.report.Watchdog = &status.Armed{
		Device: g.Path(), Identity: g.Identity, Timeout: int(g.Timeout / time.Second), Pretimeout: int(g.Pretimeout / time.Second), Stops: g.Stops,
	}
}

// enter says which phase begins.
func (d *device) enter(phase string, limit time.Duration) {
	hang(d, phase)
	d.keep.Enter(phase, limit)
}

// ended is the end of a phase, and the next one is one of PID 1's own steps.
func (d *device) ended(phase string) {
	d.clock.phase(phase)
	d.enter("what follows "+phase, stepLimit)
}

// fedCrew feeds while a worker gets on.
type fedCrew struct {
	workers *crew.Workers
	d       *device
}

func (c *fedCrew) Run(ctx context.Context, role string, input []byte, src update.Source, slot string, frame func(byte, []byte) error) error {
	c.d.enter(role, workerLimit)
	defer c.d.enter("what follows "+role, stepLimit)
	return c.workers.Run(ctx, role, input, src, slot, func(kind byte, body []byte) error {
		c.d.keep.Progress()
		return frame(kind, body)
	})
}

// Sync flushes what an installer wrote, which takes its time.
func (s *slotDoor) Sync(slot string) error {
	s.d.enter("flush", flushLimit)
	defer s.d.enter("what follows flush", stepLimit)
	return s.Slots.Sync(slot)
}
