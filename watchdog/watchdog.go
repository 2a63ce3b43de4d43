// Package watchdog resets a device that does not get on. Find says which watchdogs the kernel has, Choose takes one, Open
// arms it, a Keeper feeds it while the phase that is under way is inside its deadline, and the end of the process that has
// it open hands it over armed: the device is single-open, whoever comes next opens it again and has Timeout to do so.
//
// What is said here of drivers is the kernel's watchdog core (Documentation/watchdog/watchdog-api.rst): opening starts a
// watchdog; closing stops it unless its driver has nowayout set, or knows the magic close and no 'V' was written.
package watchdog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/config"
)

// Device is a watchdog as sysfs shows it, without opening it: that would start it.
type Device struct {
	Name      string // "watchdog0"
	Identity  string // "i6300ESB timer"
	Active    bool   // runs, and it is not the kernel that feeds it
	NoWayOut  bool   // once started it is never stopped
	CardReset bool   // it was what reset the machine last
	sysfs     string
}

// Path is the device's node.
func (d *Device) Path() string { return "/dev/" + d.Name }

// Soft reports whether it is the kernel's own timer, which does nothing where the kernel hangs.
func (d *Device) Soft() bool { return d.Identity == "Software Watchdog" }

// Find lists the watchdogs below sysfs by their number.
func Find(sysfs string) []Device {
	var out []Device
	for n := range maxDevices {
		name := "watchdog" + strconv.Itoa(n)
		dir := filepath.Join(sysfs, "class/watchdog", name)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		status, _ := strconv.ParseUint(read(dir, "bootstatus"), 0, 32)
		out = append(out, Device{
			Name: name, Identity: read(dir, "identity"), Active: read(dir, "state") == "active", NoWayOut: read(dir, "nowayout") == "1",
			CardReset: status&unix.WDIOF_CARDRESET != 0, sysfs: dir,
		})
	}
	return out
}

const maxDevices = 32 // the kernel's limit

// CardReset reports whether one of them reset the machine last.
func CardReset(all []Device) bool {
	for i := range all {
		if all[i].CardReset {
			return true
		}
	}
	return false
}

func read(dir, file string) string {
	b, _ := os.ReadFile(filepath.Join(dir, file))
	return strings.TrimSpace(string(b))
}

// Choose returns which of all is to be used, -1 where none is, and why ("" where none is asked for). It takes hardware before
// the kernel's timer, and where none is asked for one that runs already and that nobody feeds.
func Choose(all []Device, c config.Watchdog) (at int, why string) {
	named := c.Device != "" && c.Device != "/dev/watchdog"
	soft := -1
	for i := range all {
		switch d := &all[i]; {
		case c.Timeout == 0:
			if d.Active {
				return i, ""
			}
		case named && d.Path() != c.Device:
		case named || !d.Soft():
			return i, ""
		default:
			soft = i
		}
	}
	switch {
	case c.Timeout == 0:
		return -1, ""
	case named:
		return -1, c.Device + " is not there"
	case soft < 0:
		return -1, "the kernel has none: is its module in the initramfs?"
	case !c.Softdog:
		return -1, "there is only the kernel's own timer, and softdog=false"
	}
	return soft, ""
}

// Dog is an armed watchdog.
type Dog struct {
	Device
	Timeout    time.Duration // as the driver has it
	Pretimeout time.Duration // 0: none
	Stops      bool          // when it is closed
	f          *os.File
}

var (
	// ErrStops says that a watchdog would protect nobody after its hand-over.
	ErrStops = errors.New("it stops when it is handed over (its driver has neither magic close nor nowayout): " +
		"load the driver with nowayout=1, or use it for early boot only with stops-at-close=allow")
	// ErrAlarm says that it resets nothing.
	ErrAlarm = errors.New("it raises an alarm and resets nothing")
)

// Open arms a watchdog. One that is refused is stopped again, where its driver can. The Dog is armed even where err says
// that it could not be set as wanted; nil where it is not.
func Open(d Device, c config.Watchdog) (*Dog, error) {
	f, err := os.OpenFile(d.Path(), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	g := &Dog{Device: d, f: f}
	fd := int(f.Fd())
	info, err := unix.IoctlGetWatchdogInfo(fd)
	if err != nil {
		info = &unix.WatchdogInfo{}
	}
	if status, err := unix.IoctlGetInt(fd, unix.WDIOC_GETBOOTSTATUS); err == nil && status&unix.WDIOF_CARDRESET != 0 {
		g.CardReset = true
	}
	var refused error
	if g.Stops, refused = admit(info.Options, d.NoWayOut, c); refused != nil {
		_, _ = f.Write([]byte("V"))
		return nil, errors.Join(refused, f.Close())
	}
	return g, errors.Join(g.set(fd, c), g.Feed())
}

// admit says whether a watchdog stops when it is closed, and why it is not taken. options are what its driver can do.
func admit(options uint32, noWayOut bool, c config.Watchdog) (stops bool, err error) {
	stops = options&unix.WDIOF_MAGICCLOSE == 0 && !noWayOut
	switch {
	case options&unix.WDIOF_ALARMONLY != 0:
		err = ErrAlarm
	case stops && c.Timeout > 0 && !c.StopsAtClose:
		err = ErrStops
	}
	return stops, err
}

// set sets the times and asks what became of them.
func (g *Dog) set(fd int, c config.Watchdog) (err error) {
	if c.Timeout > 0 {
		if e := unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, int(c.Timeout/time.Second)); e != nil {
			err = fmt.Errorf("timeout=%d: %w", c.Timeout/time.Second, e)
		}
	}
	g.Timeout = unknownTimeout
	if n, e := unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT); e == nil && n > 0 {
		g.Timeout = time.Duration(n) * time.Second
	}
	if c.Timeout == 0 || c.Pretimeout == 0 {
		return err
	}
	// What it does by default is a line in the kernel log.
	e := os.WriteFile(filepath.Join(g.sysfs, "pretimeout_governor"), []byte("panic"), 0)
	if e == nil {
		e = unix.IoctlSetPointerInt(fd, unix.WDIOC_SETPRETIMEOUT, int(c.Pretimeout/time.Second))
	}
	if e != nil {
		return errors.Join(err, fmt.Errorf("pretimeout=%d: %w", c.Pretimeout/time.Second, e))
	}
	g.Pretimeout = c.Pretimeout
	return err
}

// unknownTimeout is what a driver is taken to have that does not say.
const unknownTimeout = 8 * time.Second

// Feed gives the device another Timeout.
func (g *Dog) Feed() error {
	err := unix.IoctlWatchdogKeepalive(int(g.f.Fd()))
	if err != nil {
		_, err = g.f.Write([]byte{0}) // every driver knows that one; not 'V'
	}
	return err
}
