package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/boot"
	"lifeboat/boot/raw"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/status"
	"lifeboat/verify"
	"lifeboat/watchdog"
)

// finding is what one check says. fix is what to do, "" where all is well.
type finding struct{ level, what, text, fix string }

const (
	isOK   = "ok"
	isWarn = "warn"
	isBad  = "fail"
)

var errSick = errors.New("not all is well")

// doctor looks at what a device needs to come back by itself, and says how to fix what is not as it should be. It writes
// nothing. root is where /proc, /sys and /etc are.
func doctor(dir, root string, now time.Time, out io.Writer) error {
	p := &patient{dir: dir, root: root, now: now}
	if err := p.open(); err != nil {
		return err
	}
	var sick error
	for _, look := range []func() finding{p.watchdog, p.panic, p.counting, p.keyring, p.partitions, p.stateCopies, p.copies, p.loader, p.bootloaders, p.fallback, p.rauc, p.staging, p.clock, p.units} {
		f := look()
		if f.what == "" {
			continue // nothing to look at
		}
		fmt.Fprintf(out, "%-4s  %-9s %s\n", f.level, f.what, f.text)
		if f.fix != "" {
			fmt.Fprintf(out, "      %9s fix: %s\n", "", f.fix)
		}
		if f.level == isBad {
			sick = errSick
		}
	}
	return sick
}

// patient is the device that is looked at.
type patient struct {
	dir, root string
	now       time.Time
	report    status.Report
	cfg       *config.Config
	policy    boot.Policy
}

func (p *patient) open() error {
	b, err := os.ReadFile(filepath.Join(p.dir, "boot.json"))
	if err != nil {
		return fmt.Errorf("this system was not started by lifeboat: %w", err)
	}
	if err := json.Unmarshal(b, &p.report); err != nil {
		return fmt.Errorf("read boot.json: %w", err)
	}
	if b, err = os.ReadFile(filepath.Join(p.dir, "system.conf")); err != nil {
		return err
	}
	if p.cfg, err = config.Parse(b); err != nil {
		return fmt.Errorf("system.conf: %w", err)
	}
	p.policy = boot.PolicyOf(p.cfg, p.report.State.Floors.Time)
	return nil
}

func (p *patient) read(file string) string {
	b, _ := os.ReadFile(filepath.Join(p.root, file))
	return strings.TrimSpace(string(b))
}

func (p *patient) systemd() bool { return p.read("proc/1/comm") == "systemd" }

func (p *patient) watchdog() finding {
	f := finding{level: isOK, what: "watchdog"}
	w := p.report.Watchdog
	switch {
	case w == nil && p.cfg.Watchdog.Timeout == 0:
		f.text = "off ([watchdog] timeout=): a system that hangs is not restarted"
		for _, d := range watchdog.Find(filepath.Join(p.root, "sys")) {
			if !d.Soft() {
				f.text += "; " + d.Path() + " (" + d.Identity + ") could do it"
				break
			}
		}
	case w == nil:
		f.level, f.text = isBad, "early boot had none"
		for _, n := range p.report.Notes {
			if strings.Contains(n, "watchdog") {
				f.text += ": " + n
			}
		}
		f.fix = "see docs/watchdog.md: the driver's module in the initramfs, device=, or softdog=true"
	case w.Stops:
		f.level, f.text = isWarn, fmt.Sprintf("%s (%s) protects early boot only: it stops when it is closed", w.Device, w.Identity)
		f.fix = "load its driver with nowayout=1"
	default:
		f.text = fmt.Sprintf("%s (%s) %d s, ", w.Device, w.Identity, w.Timeout)
		name, pid := feeder(p.root, w.Device)
		if pid != 0 {
			f.text += fmt.Sprintf("fed by %s (%d)", name, pid)
			break
		}
		f.level, f.text = isBad, f.text+"nobody feeds it: the device restarts when that time is over"
		f.fix = "start a program that feeds it"
		if p.systemd() {
			f.fix = fmt.Sprintf("RuntimeWatchdogSec=%d in /etc/systemd/system.conf", w.Timeout)
		}
	}
	return f
}

// feeder returns the process that has a watchdog open, pid 0 where there is none.
func feeder(root, device string) (name string, pid int) {
	fds, _ := filepath.Glob(filepath.Join(root, "proc/[0-9]*/fd/*"))
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil || to != device && !(to == "/dev/watchdog" && device == "/dev/watchdog0") {
			continue
		}
		process := filepath.Dir(filepath.Dir(fd))
		pid, _ = strconv.Atoi(filepath.Base(process))
		comm, _ := os.ReadFile(filepath.Join(process, "comm"))
		return strings.TrimSpace(string(comm)), pid
	}
	return "", 0
}

func (p *patient) panic() finding {
	f := finding{level: isOK, what: "panic"}
	switch n, err := strconv.Atoi(p.read("proc/sys/kernel/panic")); {
	case err != nil:
		return finding{}
	case n == 0:
		f.level, f.text, f.fix = isBad, "kernel.panic=0: a panic stops the device for ever", "kernel.panic=10 in /etc/sysctl.d, or panic=10 on the kernel command line"
	default:
		f.text = fmt.Sprintf("kernel.panic=%d: a panic restarts the device", n)
	}
	return f
}

// counting looks at what [fallback] count= relies on.
func (p *patient) counting() finding {
	f := finding{level: isOK, what: "count"}
	switch {
	case !p.cfg.PowerLossFree:
		return finding{}
	case p.report.Watchdog == nil || p.report.Watchdog.Stops:
		f.level = isWarn
		f.text = fmt.Sprintf("count=failures without a watchdog: a system that hangs until somebody cuts the power is left only after %d times", int(p.policy.Attempts)+int(p.policy.PowerLosses))
		f.fix = "[watchdog] timeout=30"
	default:
		f.text = fmt.Sprintf("count=failures: %d power losses of a trial cost nothing", p.policy.PowerLosses)
	}
	return f
}

const soonEnds = 90 * 24 * time.Hour

func (p *patient) keyring() finding {
	f := finding{level: isBad, what: "keyring", fix: "a new initramfs with a keyring (lifeboat initramfs build --keyring), or a renewed one on a stick"}
	pem, err := os.ReadFile(filepath.Join(p.dir, "keyring.pem"))
	if err != nil {
		f.text = "there is none: every bundle is refused"
		return f
	}
	k, err := verify.ParseKeyring(pem)
	if err != nil {
		f.text = err.Error()
		return f
	}
	if trust, err := os.ReadFile(filepath.Join(p.dir, "trust")); err == nil {
		k, _, _ = k.Renew(trust, time.Time{})
	}
	// What an anchor says of its own end does not count; what an issuer below it says does, for installs.
	end := time.Time{}
	for _, c := range k.Intermediates {
		if end.IsZero() || c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	f.text = fmt.Sprintf("version %d, anchors: %d", k.Version, len(k.Anchors))
	switch {
	case end.IsZero() || end.Sub(p.now) > soonEnds:
		f.level, f.fix = isOK, ""
	case end.After(p.now):
		f.level, f.text = isWarn, f.text+"; an intermediate ends "+end.UTC().Format(time.DateOnly)
	default:
		f.level, f.text = isWarn, f.text+"; an intermediate has ended "+end.UTC().Format(time.DateOnly)
	}
	return f
}

// stateCopies looks at both copies of the record.
func (p *patient) stateCopies() finding {
	f := finding{level: isBad, what: "state", fix: "the other copy is written with the next change; if it comes again, the medium fails"}
	if p.report.StateDev == "" {
		f.text, f.fix = "there is no state partition: boots are not counted, nothing is installed", "a partition of at least 8 MiB, [state] device="
		return f
	}
	dev, err := disk.Open(p.report.StateDev, false)
	if err != nil {
		f.text = err.Error()
		return f
	}
	defer dev.Close()
	if dev.Size() < raw.MinSize {
		f.text, f.fix = fmt.Sprintf("%s has %d bytes", p.report.StateDev, dev.Size()), "a partition of at least 8 MiB"
		return f
	}
	whole := 0
	for _, at := range []int64{0, (dev.Size()/boot.RecordSize - 1) * boot.RecordSize} {
		b := make([]byte, boot.RecordSize)
		if _, err := dev.ReadAt(b, at); err != nil {
			f.text = fmt.Sprintf("%s at %d: %v", p.report.StateDev, at, err)
			return f
		}
		if _, err := boot.Decode(b); err == nil {
			whole++
		} else if bytes.Count(b, []byte{0}) == len(b) {
			f.level = isOK // not written yet
		}
	}
	switch {
	case whole == 2:
		f.level = isOK
	case whole == 0:
		f.level, f.text = isBad, "both copies of the record on "+p.report.StateDev+" are lost"
		f.fix = "restart: they are rebuilt from the seals"
		return f
	case f.level != isOK:
		f.level, f.text = isWarn, "one copy of the record on "+p.report.StateDev+" is not valid"
		return f
	}
	f.text, f.fix = p.report.StateDev+", both copies of the record are there", ""
	if whole == 1 {
		f.text = p.report.StateDev + ", one copy of the record is there and one was never written"
	}
	return f
}

// fallback looks whether there is a slot to fall back on.
func (p *patient) fallback() finding {
	f := finding{level: isWarn, what: "slots", fix: "install an update: it goes to the other slot"}
	ready := 0
	var why []string
	for _, s := range p.report.State.Slots {
		switch {
		case s.ManifestHash != "" && s.Reason == "" && !s.Excluded && (s.Tries > 0 || s.Slot == p.report.Booted.Slot):
			ready++
		case s.ManifestHash == "":
			why = append(why, status.SlotName(s.Slot, s.Bootname)+" is empty")
		case s.Excluded:
			why = append(why, status.SlotName(s.Slot, s.Bootname)+" is excluded")
		default:
			why = append(why, status.SlotName(s.Slot, s.Bootname)+" "+s.Reason)
		}
	}
	f.text = "nothing to fall back on: " + strings.Join(why, ", ")
	if ready > 1 {
		f.level, f.text, f.fix = isOK, fmt.Sprintf("%d can be booted", ready), ""
	}
	return f
}

// staging looks whether what fits into a slot fits into the staging partition.
func (p *patient) staging() finding {
	if p.cfg.StagingDevice == "" {
		return finding{}
	}
	f := finding{level: isBad, what: "staging"}
	blocks, err := disk.Blocks(filepath.Join(p.root, "sys"))
	if err != nil {
		f.text = err.Error()
		return f
	}
	found := disk.Find(blocks, p.cfg.StagingDevice)
	if len(found) == 0 {
		f.text, f.fix = p.cfg.StagingDevice+" is not there", "lifeboat image disk makes one"
		return f
	}
	largest := int64(0)
	for _, s := range p.cfg.BootSlots() {
		for _, b := range disk.Find(blocks, s.Device) {
			largest = max(largest, b.Size)
		}
	}
	f.level, f.text = isOK, fmt.Sprintf("%s has %d MiB", found[0].Path(), found[0].Size>>20)
	if found[0].Size < largest {
		f.level, f.text = isWarn, f.text+fmt.Sprintf(", a slot %d: a bundle that hardly compresses may not fit", largest>>20)
	}
	return f
}

func (p *patient) clock() finding {
	floor := time.Unix(p.report.State.Floors.Time, 0)
	f := finding{level: isOK, what: "clock", text: "not before " + floor.UTC().Format(time.DateOnly) + ", the newest date that was signed"}
	if p.now.Before(floor) {
		f.level = isWarn
		f.text = fmt.Sprintf("it says %s, before %s, the newest date that was signed", p.now.UTC().Format(time.DateOnly), floor.UTC().Format(time.DateOnly))
		f.fix = "set it (NTP, a battery); installs are judged by the newer of both"
	}
	return f
}

// units looks whether somebody says good, and ends a trial.
func (p *patient) units() finding {
	if !p.systemd() {
		return finding{}
	}
	f := finding{level: isOK, what: "systemd", text: "the units are enabled"}
	var missing []string
	for _, u := range []string{"lifeboat-good.service", "lifeboat-trial.timer", "lifeboat-ended.service"} {
		on := false
		for _, at := range []string{"etc", "usr/lib", "lib"} {
			found, _ := filepath.Glob(filepath.Join(p.root, at, "systemd/system/*.wants", u))
			on = on || len(found) > 0
		}
		if !on {
			missing = append(missing, u)
		}
	}
	if len(missing) > 0 {
		f.level, f.text = isWarn, strings.Join(missing, ", ")+" not enabled"
		f.fix = "systemctl enable " + strings.Join(missing, " ")
	}
	if slices.Contains(missing, "lifeboat-good.service") {
		f.text += ": nobody says good"
	}
	return f
}
