// Command init is lifeboat's /init: the one static binary that the kernel starts from the initramfs. It counts the
// boot, installs a signed bundle that lies on a stick, chooses a slot, opens it through dm-verity and starts its
// system. It is also its own confined worker: the same binary, started again with less.
//
// PID 1 parses nothing that comes from outside, never runs long and never exits.
package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/config"
	"lifeboat/confine"
	"lifeboat/disk"
	"lifeboat/status"
	"lifeboat/update"
	"lifeboat/update/crew"
	"lifeboat/usb"
	"lifeboat/watchdog"
)

func main() {
	if j := confine.Child(); j != nil {
		j.Exit(crew.Work(j, update.Work))
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "lifeboat: this is /init: the kernel starts it from an initramfs")
		os.Exit(2)
	}
	log.SetOutput(io.Discard) // libraries have nothing to say here
	debug.SetMemoryLimit(8 << 20)
	defer restart()
	run()
}

// restart keeps PID 1 alive when our own code has a fault: /init starts anew after a while, and the boot that it then
// counts is one more.
func restart() {
	if v := recover(); v != nil {
		fmt.Fprintf(os.Stderr, "lifeboat: fault in /init: %v\n%s\nlifeboat: starting again in 10 s\n", v, debug.Stack())
	}
	for {
		time.Sleep(10 * time.Second)
		if err := syscall.Exec("/init", os.Args, os.Environ()); err != nil {
			fmt.Fprintln(os.Stderr, "lifeboat: start /init again:", err)
		}
	}
}

// device is what this boot knows of the machine, filled by the phases in their order.
type device struct {
	con     *console
	clock   *clock
	cfg     *config.Config
	trust   update.Trust
	keyring []byte
	cmd     config.Cmdline
	watch   *disk.Watcher
	doors   *doors
	found   resolved
	slots   map[string]disk.Block // as they are written and read: those that are files as devices of their own
	report  *status.Report
	words   []byte  // the kernel's last ones, of the last boot
	usb     *sticks // nil: no stick can be seen
	show    *display
	asked   bool                                     // for rescue
	moved   context.CancelCauseFunc                  // ends a boot whose disk has changed
	lost    bool                                     // something of the disk went away in this boot
	copies  func(name string) (path string, ok bool) // of boot loaders; nil where none are updated
	dog     *watchdog.Dog
	keep    *watchdog.Keeper
}

// run is one boot: a list of phases. It returns only after a fault.
func run() {
	d := &device{clock: newClock(), report: &status.Report{Installed: []status.Installed{}, Refused: []status.Refused{}}}
	mountErr := mountBasics()
	d.cmd = config.ParseCmdline(readTrimmed("/proc/cmdline"))
	d.doors = shutDoors(d.cmd.USBDefault)
	defer d.doors.open()
	d.con = openConsole(d.cmd.Quiet)
	if mountErr != nil {
		d.con.say("mount: " + mountErr.Error())
	}
	d.clock.phase("mounts")
	if err := d.configure(); err != nil {
		d.con.alarm("the initramfs is broken: " + err.Error())
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d.arm(ctx, false)
	d.watch, _ = disk.Watch()
	loadModules(d.con, filepath.Join(config.Dir, "modules"))
	if d.dog == nil {
		d.arm(ctx, true)
	}
	d.ended("modules")
	d.show = newDisplay(d)
	d.asked = d.cmd.Rescue || asked("/dev", d.cfg.Rescue)
	if list := filepath.Join(config.Dir, "modules.usb"); d.watch != nil && len(readTrimmed(list)) > 0 && d.cfg.USB.Policy != "off" {
		d.usb = &sticks{d: d, modules: list}
	}
	end := d.lastEnd()
	var u *update.Device
	var started update.Started
	for {
		d.resolve()
		d.mapFiles()
		d.ended("devices")
		ctx, cancel := context.WithCancelCause(context.Background())
		d.moved, d.lost = cancel, false
		u = d.device()
		var err error
		if started, err = u.Boot(ctx, end); err == nil && !started.Restart {
			break
		}
		if err == nil {
			d.reboot(u.Store)
		}
		d.con.alarm(context.Cause(ctx).Error())
		end, d.asked = status.None, false // that boot ended in rescue
	}
	d.ended("root")
	d.trust = u.Trust
	d.handOver(started)
}

// configure reads what the initramfs brings: system.conf, the keyring, the time of its build.
func (d *device) configure() error {
	raw, err := os.ReadFile(filepath.Join(config.Dir, "system.conf"))
	if err != nil {
		return err
	}
	if d.cfg, err = config.Parse(raw); err != nil {
		return fmt.Errorf("%s/system.conf: %w", config.Dir, err)
	}
	for _, w := range d.cfg.Warnings {
		d.con.say("system.conf: " + w)
	}
	// A keyring that is missing or empty refuses every bundle and every seal (code 32): fail closed, keep looking.
	if d.keyring, err = os.ReadFile(d.cfg.KeyringPath); err != nil {
		d.con.say("keyring: " + err.Error())
	}
	built, _ := strconv.ParseInt(readTrimmed(filepath.Join(config.Dir, "build")), 10, 64)
	d.trust = update.TrustOf(d.cfg, d.keyring, built)
	d.trust.Serial = crew.Serial()
	return nil
}

// device wires the rooms.
func (d *device) device() *update.Device {
	policy := boot.PolicyOf(d.cfg, d.trust.Floor)
	store, trees := d.store(&policy), d.treeSlots()
	u := &update.Device{
		Store: store, Policy: policy, Trust: d.trust, Class: d.cfg.BootSlots()[0].Class,
		Slots: &slotDoor{d: d, Slots: crew.Slots{Path: d.slotPath}, trees: trees}, Crew: &fedCrew{d.workers(trees), d},
		Say: d.con.say, Screen: d.show.rescue, Phase: d.ended, Report: d.report,
		Rescue: d.asked, RescueRetry: d.cfg.Rescue.Retry, Replug: d.cfg.USB.Replug, Chance: chance(), Words: d.words,
		Name: d.slotName, Bootname: d.bootname, Step: d.show.step, Progress: d.show.progress, Clock: (*rest)(d), Letter: d.show.letter,
		SkipOver: d.cfg.SkipOver,
	}
	for _, s := range d.cfg.BootSlots() {
		u.Tree = s.Tree
		if b, ok := d.slots[s.Name]; ok && (u.Room == 0 || b.Size < u.Room) {
			u.Room = b.Size
		}
	}
	u.Children = update.ChildrenOf(d.cfg, func(slot string) int64 { return d.slots[slot].Size })
	if !config.Slim {
		d.loaders(u)
	}
	if s, ok := d.cfg.SlotByName(d.cmd.Slot); ok && s.Bootname != "" {
		u.Prefer = s.Name
	} else if d.cmd.Slot != "" {
		d.con.say(fmt.Sprintf("lifeboat.slot=%s: there is no such slot", d.cmd.Slot))
	}
	if d.cfg.StagingDevice != "" {
		u.Staging = d.staging
	}
	if d.usb != nil {
		u.Outside = d.usb
		u.Waits, u.Files, u.Require = d.cfg.USB.Policy == "rescue-only", d.cfg.USB.Files, d.cfg.USB.Require
	}
	return u
}

// reboot restarts the machine, so that the boot loader starts another slot. It does not return.
func (d *device) reboot(s boot.Store) {
	forgetPanic()
	unix.Sync()
	if l, ok := s.(*loader.Store); ok {
		restartWith(loader.Reboot(l.Loader))
	}
	for {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		time.Sleep(stepLimit)
	}
}

func (d *device) workers(trees *crew.Trees) *crew.Workers {
	return &crew.Workers{Slot: d.slotPath, Trees: trees, Plain: len(d.cfg.BundleFormats) > 1, Ended: func(role string, u confine.Usage) {
		d.report.Workers = append(d.report.Workers, status.Worker{Role: role, MaxRSSKiB: u.MaxRSSKiB})
	}}
}

func (d *device) slotName(slot string) string { return status.SlotName(slot, d.bootname(slot)) }

func (d *device) bootname(slot string) string {
	s, _ := d.cfg.SlotByName(slot)
	return s.Bootname
}

// chance draws a number without waiting for the kernel's entropy.
func chance() uint64 {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return uint64(time.Now().UnixNano())
	}
	return binary.LittleEndian.Uint64(b[:])
}

// sticks is update.Outside: USB is silent until it is asked for.
type sticks struct {
	d       *device
	modules string
	awake   bool
}

func (s *sticks) Sources(context.Context) []update.Source {
	if !s.awake {
		s.awake = true
		loadModules(s.d.con, s.modules)
		s.d.ended("usb-modules")
		s.settle()
		s.d.ended("usb-settle")
	}
	found, err := usb.Sticks(sysfs)
	if err != nil {
		s.d.con.say("look for sticks: " + err.Error())
	}
	var out []update.Source
	for _, st := range found {
		src := update.Source{Name: st.Block.Name, Label: st.Label, Path: st.Block.Path()}
		copy(src.ID[:], st.ID)
		out = append(out, src)
	}
	return out
}

func (s *sticks) Wait(ctx context.Context, t time.Duration) bool {
	changed := s.d.wait(ctx, t)
	if changed {
		s.settle()
	}
	return changed
}

func (s *sticks) settle() {
	s.d.enter("usb-settle", s.d.cfg.USB.Settle+stepLimit)
	usb.Settle(s.d.watch, sysfs, s.d.cfg.USB.Settle)
}

// rest is update.Clock: waiting in rescue.
type rest device

func (r *rest) Now() time.Time { return time.Now() }

func (r *rest) Sleep(ctx context.Context, t time.Duration) {
	for end := time.Now().Add(t); ctx.Err() == nil && time.Now().Before(end); {
		(*device)(r).wait(ctx, time.Until(end))
	}
}

// wait waits until a device came or went, at most t. It keeps what the screen says of time true, and ends the boot when
// more of the device's own disk has appeared.
func (d *device) wait(ctx context.Context, t time.Duration) (changed bool) {
	for end := time.Now().Add(t); !changed && ctx.Err() == nil && time.Now().Before(end); {
		d.show.tick()
		d.enter("rescue", stepLimit) // waiting is what it is for, as long as it turns
		step := min(time.Until(end), time.Second)
		var err error
		if d.watch != nil {
			changed, err = d.watch.Wait(step)
		}
		if d.watch == nil || err != nil {
			time.Sleep(step)
			changed = err != nil
		}
		d.look() // at each turn: others wait for events too, and may have taken that of a disk
	}
	return changed
}

const sysfs = "/sys"

// clock measures the phases of a boot.
type clock struct {
	last   time.Time
	phases []status.Phase
}

func newClock() *clock { return &clock{last: time.Now()} }

func (c *clock) phase(name string) {
	now := time.Now()
	c.phases = append(c.phases, status.Phase{Name: name, MS: float64(now.Sub(c.last).Microseconds()) / 1000})
	c.last = now
}

func readTrimmed(file string) string {
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b))
}
