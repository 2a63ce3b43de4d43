// Package screen has what a person in front of the device reads: how far an update is, how it ended, what rescue is
// waiting for, and the report that is left on a stick. It only makes text, lines of at most [Width] characters; early boot
// puts it where it is seen.
package screen

import (
	"fmt"
	"strings"
	"time"

	"lifeboat/status"
	"lifeboat/update"
)

// Width is what every console shows in one line, in characters.
const Width = 79

// Meter says how fast a step of an update is and how long it will still take. The zero value is ready.
type Meter struct {
	begin, last time.Time // of the step; when speed was measured
	at          int64     // bytes done then
	speed       float64   // bytes per second, smoothed; 0: not known yet
	done, total int64
}

// At takes in that done of total bytes are through.
func (m *Meter) At(now time.Time, done, total int64) {
	if m.begin.IsZero() || done < m.at { // it begins, or begins again
		*m = Meter{begin: now, last: now, at: done}
	}
	m.done, m.total = done, total
	d := now.Sub(m.last)
	if d < time.Second {
		return
	}
	// As fast as in the last seconds, which slowness at the beginning says nothing about.
	speed := float64(done-m.at) / d.Seconds()
	if m.speed > 0 {
		speed = m.speed + (speed-m.speed)/4
	}
	m.speed, m.last, m.at = speed, now, done
}

// Percent is how far the step is, 0 to 100.
func (m *Meter) Percent() int {
	if m.total <= 0 {
		return 0
	}
	return int(100 * (float64(m.done) / float64(m.total)))
}

// String is "50 % of 120 MiB, 8.4 MiB/s, 0:07 left"; without speed and time while nobody can know them.
func (m *Meter) String() string {
	s := fmt.Sprintf("%d %% of %d MiB", m.Percent(), m.total>>20)
	if m.speed >= 1 {
		left := float64(m.total-m.done) / m.speed
		s += fmt.Sprintf(", %.1f MiB/s, %s left", m.speed/(1<<20), clock(time.Duration(min(left, 99*3600))*time.Second))
	}
	return s
}

// clock is "0:07", "12:30", "1:05:00".
func clock(d time.Duration) string {
	s := int(max(d, 0).Round(time.Second) / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// Progress is the screen of an update: version and slot, the step that it is at, and how far that is.
func Progress(version, slot string, step update.Step, m *Meter) string {
	var p page
	p.title("this device is being updated")
	p.line("Version %s goes to %s.", version, slot)
	p.line("")
	p.line("Step %d of %d: %s", step-update.Checking+1, update.ReadingBack-update.Checking+1, step)
	const bar = 50
	n := bar * m.Percent() / 100
	p.line("[%s%s]", strings.Repeat("#", n), strings.Repeat(".", bar-n))
	p.line("%s", m)
	p.line("")
	p.line("Do not switch off, leave the stick in. A power cut loses nothing.")
	return p.String()
}

// Gone is the screen while an update waits for its stick.
func Gone(version string, left time.Duration) string {
	var p page
	p.title("the stick was pulled out")
	p.line("The update to %s is not finished.", version)
	p.line("Plug the stick in again within %s: it goes on where it was.", clock(left))
	p.line("Otherwise this device starts the system that it had.")
	return p.String()
}

// Final is how what was tried ended, "" if nothing was tried.
func Final(r *status.Report) string {
	var p page
	switch {
	case len(r.Installed) > 0:
		i := r.Installed[len(r.Installed)-1]
		p.title(status.FinishedLine(i))
		p.line("It is in %s and is started now. If it does not prove itself, this device goes", status.SlotName(i.Slot, i.Bootname))
		p.line("back to the system that it had.")
	case len(r.Refused) > 0:
		p.title("no update")
	default:
		return ""
	}
	p.refused(r.Refused)
	return p.String()
}

// Device is what the rescue screen says of the device itself.
type Device struct {
	Compatible, Serial string
	Files              []string // patterns of bundles
	Require            string   // a file that a stick must have, "" for none
	NoUSB              bool     // no stick can be seen
	Disk               string   // what is wrong with the disk, "" for nothing
}

// Rescue is the rescue screen: what happened, what was seen and what to do, in the words of who stands in front of the
// device.
func Rescue(d Device, r update.Rescue, now time.Time) string {
	var p page
	p.title("rescue: this device needs an update stick")
	p.line("Device: %s", d.Compatible)
	if d.Serial != "" {
		p.line("Serial number: %s", d.Serial)
	}
	switch r.Reason {
	case status.NoDisk:
		p.line("Its disk was not found: %s", d.Disk)
	case status.TwoDisks:
		p.line("Two disks look like this device's own: %s", d.Disk)
	case status.Requested:
		p.line("Rescue was asked for.")
	default:
		p.line("No copy of the system can be started.")
	}
	if d.Disk != "" && r.Reason != status.NoDisk && r.Reason != status.TwoDisks {
		p.line("Of its disk a part is missing: %s", d.Disk)
	}
	p.line("")
	for _, s := range r.State.Slots {
		p.line("%s  version %s: %s", status.SlotName(s.Slot, s.Bootname), orNone(s.Version), why(s))
	}
	if len(r.State.Slots) > 0 {
		p.line("")
	}
	p.sticks(d, r)
	if !r.Retry.IsZero() {
		p.line("A copy of the system is tried again in %s.", clock(r.Retry.Sub(now)))
	}
	return p.String()
}

func (p *page) sticks(d Device, r update.Rescue) {
	switch {
	case r.Reason == status.NoDisk || r.Reason == status.TwoDisks:
		p.line("What to do: switch off, and have the disk looked at. It is taken as soon as it appears.")
		return
	case d.NoUSB:
		p.line("No stick can be read: this device's initramfs has no USB drivers.")
		return
	case len(r.Sources) == 0:
		p.line("Sticks: none seen")
	}
	for _, s := range r.Sources {
		p.line("Stick: %s", orName(s))
	}
	p.refused(r.Refused)
	p.line("")
	files := "*.raucb in its top folder or in /updates"
	if len(d.Files) > 0 {
		files = strings.Join(d.Files, ", ")
	}
	p.line("What to do: plug in a USB stick with a bundle for this device (%s)%s.", files, atLeast(r.State.Floors))
	if d.Require != "" {
		p.line("The stick must have the file %s.", d.Require)
	}
	p.line("It is found by itself and installed; do not switch off.")
}

func orName(s update.Source) string {
	if s.Label != "" {
		return s.Label
	}
	return s.Name
}

func atLeast(f status.Floors) string {
	if f.Version == "" {
		return ""
	}
	return ", version " + f.Version + " or newer"
}

// why says why a slot is not started.
func why(s status.Slot) string {
	switch {
	case s.Reason != "":
		return status.Words(s.Reason)
	case s.ManifestHash == "":
		return "empty"
	case s.Excluded:
		return "another version was confirmed since"
	case s.Tries == 0:
		return status.Words(status.Exhausted.String())
	}
	return "may be started"
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

// page puts a screen together.
type page struct{ b strings.Builder }

func (p *page) String() string { return p.b.String() }

func (p *page) title(text string) {
	p.line("=== lifeboat: %s ===", text)
	p.line("")
}

// line adds a line, broken between words where it is too long.
func (p *page) line(format string, args ...any) {
	rest := []rune(fmt.Sprintf(format, args...))
	if len(rest) == 0 {
		p.b.WriteByte('\n')
		return
	}
	for width := Width - 2; ; width = Width - 6 {
		at := len(rest)
		if at > width {
			at = width
			for i := width; i > width/2; i-- {
				if rest[i] == ' ' {
					at = i
					break
				}
			}
		}
		if width == Width-2 {
			p.b.WriteString("  ")
		} else {
			p.b.WriteString("      ")
		}
		p.b.WriteString(string(rest[:at]) + "\n")
		if rest = rest[at:]; len(rest) == 0 {
			return
		}
		if rest[0] == ' ' {
			rest = rest[1:]
		}
	}
}

// maxRefused is how many refusals a screen has room for.
const maxRefused = 6

func (p *page) refused(list []status.Refused) {
	for i, f := range list {
		if i == maxRefused {
			p.line("and %d more", len(list)-i)
			return
		}
		p.line("%s was refused (code %02d): %s", f.File, f.Code, f.Text)
		if do := todo(f.Code); do != "" {
			p.line("  %s", do)
		}
	}
}

// todo is what helps against a refusal (docs/stick.md).
func todo(code int) string {
	switch code {
	case 20, 30, 40:
		return "The file or the stick is damaged: copy it again, or try another stick."
	case 21, 22, 24, 25, 26, 32:
		return "It is not signed by whom this device trusts: get the right bundle."
	case 23, 29:
		return "Its time is over: get a newer bundle."
	case 27:
		return "It is for another device."
	case 28:
		return "It is older than what this device may still run."
	}
	return ""
}

// Report is the text that is left on a stick: what this device is, what was done with the sticks, and what happened
// before. A reader on a PC finds it in lifeboat-report.txt.
func Report(d Device, r *status.Report, s status.State) string {
	var p page
	p.title("report of a device")
	p.line("Device: %s", d.Compatible)
	if d.Serial != "" {
		p.line("Serial number: %s", d.Serial)
	}
	p.line("Boot: %d", s.Boot)
	p.line("")
	switch {
	case len(r.Installed) > 0:
		i := r.Installed[len(r.Installed)-1]
		p.line("%s (%s to %s)", capital(status.FinishedLine(i)), i.File, status.SlotName(i.Slot, i.Bootname))
	case len(r.Refused) > 0:
		p.line("No update.")
	}
	for _, f := range r.Refused {
		p.line("code %02d: %s was refused: %s", f.Code, f.File, f.Text)
		if do := todo(f.Code); do != "" {
			p.line("  %s", do)
		}
	}
	p.line("")
	for _, e := range s.Slots {
		p.line("%s  version %s: %s", status.SlotName(e.Slot, e.Bootname), orNone(e.Version), why(e))
	}
	p.line("")
	p.line("What happened before, the newest first:")
	for i := len(s.Events) - 1; i >= 0; i-- {
		e := s.Events[i]
		text := fmt.Sprintf("boot %d  %s", e.Boot, e.Event)
		for _, more := range []string{e.Slot, e.Reason} {
			if more != "" {
				text += "  " + more
			}
		}
		if e.Code != 0 {
			text += fmt.Sprintf("  code=%02d", e.Code)
		}
		p.line("%s", text)
	}
	return p.String()
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
