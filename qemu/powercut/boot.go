package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lifeboat/disk/crash"
	"lifeboat/qemu"
)

// maxBoots is how many boots without a further cut an update may take: boot-attempts x slots + 2.
const maxBoots = 3*2 + 2

// way is how a crash image is judged in the virtual device.
type way struct {
	Cold   bool // from power on; else from the template
	Update bool // then an update from a stick must be through in maxBoots boots
}

// seen is what the virtual device did with a crash image.
type seen struct {
	Alone   int     // boots without a stick: more than one where the device reset itself
	Up      string  // version that came up then, "" if the device went to rescue
	Boots   int     // with the stick, until its version had said good; 0 if that was not asked for
	Seconds float64 // of all
	Err     error   // against the law
	console string
}

// boot starts a crash image without a stick, which must give what the moment allows; and then, on the same disk as the
// first boot and a cut left it, with the stick until its version is confirmed. A boot loader is always started from power
// on; what it and its device then do in memory, where there is one, has to be the same.
func (s *stage) boot(image *crash.Image, m moment, w way, in *memory, dir string) (r seen) {
	defer func(start time.Time) { r.Seconds = since(start) }(time.Now())
	disk := filepath.Join(dir, "disk.img")
	if r.Err = image.SaveFile(disk); r.Err != nil {
		return r
	}
	defer os.Remove(disk)
	c, err := s.start(disk, dir, w.Cold)
	if err != nil {
		r.Err = err
		return r
	}
	defer c.Close()
	defer func() { r.console = c.Console() }()
	r.Alone, r.Up, err = c.alone()
	switch {
	case err != nil:
		r.Err = err
	case r.Up == "" && !m.Rescue:
		r.Err = errors.New("it went to rescue")
	case r.Up != "" && !slices.Contains(m.Alone, r.Up):
		r.Err = fmt.Errorf("version %s came up, allowed is %s", r.Up, strings.Join(m.Alone, " or "))
	}
	if r.Err == nil && s.Loader != "" && in != nil {
		r.Err = s.compare(in, image, c, disk, r.Up)
	}
	if r.Err != nil || !w.Update {
		return r
	}
	r.Boots, r.Err = c.update(s, m.Stick, maxBoots)
	return r
}

// compare cuts the power of a device that a boot loader started from an image and asserts what stage.fits does, and that
// the same version comes up in memory.
func (s *stage) compare(in *memory, image *crash.Image, c *computer, disk, version string) error {
	c.Cut()
	if want, err := in.up(image); err != nil || want != version {
		return fmt.Errorf("version %q came up, in memory %q: %v", version, want, err)
	}
	after, err := crash.LoadFile(disk)
	if err != nil {
		return err
	}
	return s.fits(in, after, c.Console(), version)
}

// computer is a virtual device that is started again and again from the template, or from power on.
type computer struct {
	*qemu.VM
	cold bool
}

// start switches a device on. A guest's reset ends it.
func (s *stage) start(disk, dir string, cold bool, change ...func(*qemu.Machine)) (*computer, error) {
	m, err := s.device(disk)
	if err != nil {
		return nil, err
	}
	m.Dir, m.NoReboot = dir, true
	if !cold && s.Loader == "" {
		m.From = s.Template
	}
	for _, f := range change {
		f(&m)
	}
	vm, err := qemu.Start(context.Background(), m)
	if err != nil {
		return nil, err
	}
	c := &computer{vm, m.From == nil}
	if err := c.wake(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// wake tells a device that was restored to go on.
func (c *computer) wake() error {
	if c.cold {
		return nil
	}
	return c.Type(fmt.Sprintf("go %d %s\n", time.Now().Unix(), rand.Text()))
}

// again cuts the power if it is on and switches the device on again.
func (c *computer) again() error {
	c.Cut()
	if _, err := c.Expect(time.Second, `(?s).*`); err != nil { // what it said before is over
		return err
	}
	if err := c.PowerOn(); err != nil {
		return err
	}
	return c.wake()
}

// errReset says that a boot ended by itself, as one with a damaged slot may.
var errReset = errors.New("it neither came up nor went to rescue, it reset")

// alone waits for a system, or for rescue, through as many boots as the law allows.
func (c *computer) alone() (boots int, version string, err error) {
	for boots = 1; ; boots++ {
		version, err = c.comesUp(false)
		if !errors.Is(err, errReset) || boots == maxBoots {
			return boots, version, err
		}
		if err := c.again(); err != nil {
			return boots, "", err
		}
	}
}

// comesUp waits for a system and returns its version. Rescue is waited out if patient, else the version is "".
func (c *computer) comesUp(patient bool) (version string, err error) {
	pattern := `SYSTEM UP version=(\S+)\n|Kernel panic[^\n]*\n`
	if !patient {
		pattern += `|lifeboat: rescue reason=\S+\n`
	}
	m, err := c.Expect(firstWait, pattern)
	switch {
	case errors.Is(err, qemu.ErrEnded):
		return "", errReset
	case err != nil:
		return "", err
	case strings.HasPrefix(m[0], "Kernel panic"):
		return "", errors.New(strings.TrimSpace(m[0]))
	}
	return m[1], nil
}

// update boots with a stick until its version says good, and returns how many boots that took.
func (c *computer) update(s *stage, version string, limit int) (boots int, err error) {
	c.Cut()
	if err := c.PlugIn(stickOf(s, version)); err != nil {
		return 0, err
	}
	return c.confirm(version, limit)
}

// confirm boots until a version says good. The machine may be on: it is cut first.
func (c *computer) confirm(version string, limit int) (boots int, err error) {
	var up []string
	for boots = 1; boots <= limit; boots++ {
		if err := c.again(); err != nil {
			return boots, err
		}
		v, err := c.comesUp(true)
		if errors.Is(err, errReset) {
			v = "reset"
		} else if err != nil {
			return boots, fmt.Errorf("with stick %s, boot %d: %w", version, boots, err)
		}
		up = append(up, v)
		if v != version {
			// It may say good, if it is one that does.
			if _, err := c.Expect(firstWait, `SYSTEM READY\n`); err != nil && !errors.Is(err, qemu.ErrEnded) {
				return boots, err
			}
			continue
		}
		m, err := c.Expect(firstWait, `SYSTEM GOOD\n|SYSTEM NOT GOOD[^\n]*\n`)
		if err != nil {
			return boots, fmt.Errorf("%s is up, boot %d: %w", version, boots, err)
		}
		if m[0] == "SYSTEM GOOD\n" {
			return boots, nil
		}
		up[len(up)-1] += " (" + strings.TrimSpace(m[0]) + ")"
	}
	return boots, fmt.Errorf("with stick %s: not updated after %d boots, of %s", version, limit, strings.Join(up, ", "))
}
