package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/status"
	"lifeboat/update"
)

// console is everything that a person may look at: each active console, and the kernel log. A console that does not
// take what is written to it holds nobody up.
type console struct {
	out   []*os.File
	kmsg  *os.File
	quiet bool
	level string // of kernel messages on the consoles, before they were made to wait
}

const noCTTY = unix.O_NOCTTY | unix.O_NONBLOCK

// writeLimit is how long one line may take on one console.
const writeLimit = 500 * time.Millisecond

func openConsole(quiet bool) *console {
	c := &console{quiet: quiet}
	c.kmsg, _ = os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	for name := range strings.FieldsSeq(readTrimmed("/sys/class/tty/console/active")) {
		if f, err := os.OpenFile("/dev/"+name, os.O_WRONLY|noCTTY, 0); err == nil {
			c.out = append(c.out, f)
		}
	}
	c.hush()
	return c
}

const printk = "/proc/sys/kernel/printk"

// hush keeps all but the worst of the kernel's messages off the consoles: they would tear our lines apart, and it calls each
// USB device that has to wait an error. Who asks for kernel messages on the command line gets them.
func (c *console) hush() {
	for word := range strings.FieldsSeq(readTrimmed("/proc/cmdline")) {
		if word == "debug" || word == "ignore_loglevel" || strings.HasPrefix(word, "loglevel=") {
			return
		}
	}
	if level := strings.Fields(readTrimmed(printk)); len(level) > 0 && level[0] > "3" {
		c.level = level[0]
		_ = os.WriteFile(printk, []byte("3"), 0)
	}
}

// unhush lets the kernel's messages through again, behind what we have said.
func (c *console) unhush() {
	done := make(chan struct{})
	go func() {
		for _, f := range c.out {
			if raw, err := f.SyscallConn(); err == nil {
				_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetInt(int(fd), unix.TCSBRK, 1) }) // drain
			}
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(writeLimit):
	}
	if c.level != "" {
		_ = os.WriteFile(printk, []byte(c.level), 0)
	}
}

// loud begins the lines that are shown even when the command line says quiet.
var loud = [...]string{"refused ", "fallback ", "rescue ", "installing ", "installed ", "boot "}

// say writes one line to the kernel log and to the consoles. In the kernel log it has the level debug: the kernel
// would print it a second time otherwise.
func (c *console) say(line string) {
	c.log(line)
	show := !c.quiet
	for _, l := range loud {
		show = show || strings.HasPrefix(line, l)
	}
	if show {
		c.print("lifeboat: " + line + "\n")
	}
}

// alarm is for what a person has to see.
func (c *console) alarm(line string) {
	c.log(line)
	c.print("lifeboat: " + line + "\n")
}

func (c *console) log(line string) {
	if c.kmsg != nil {
		fmt.Fprintf(c.kmsg, "<7>lifeboat: %s\n", line)
	}
}

func (c *console) print(text string) {
	for _, f := range c.out {
		_ = f.SetWriteDeadline(time.Now().Add(writeLimit))
		_, _ = f.WriteString(text)
	}
}

// progress returns a function that says how far an install is, once for each tenth.
func (c *console) progress() func(done, total int64) {
	last := int64(-1)
	return func(done, total int64) {
		if tenth := done * 10 / total; tenth != last {
			last = tenth
			c.say(fmt.Sprintf("%d %% of %d MiB", tenth*10, total>>20))
		}
	}
}

// rescueScreen says what happened, what was seen and what to do, in the words of who stands in front of the device.
func (d *device) rescueScreen(r update.Rescue) {
	var b strings.Builder
	b.WriteString("\x1b[2J\x1b[H\n")
	p := func(format string, args ...any) { fmt.Fprintf(&b, "  "+format+"\n", args...) }
	p("=== lifeboat rescue: this device needs an update stick ===")
	p("")
	p("Device: %s", d.cfg.Compatible)
	switch r.Reason {
	case status.NoDisk:
		p("Its disk was not found: %s", d.found.why)
	case status.TwoDisks:
		p("Two disks look like this device's own: %s", d.found.why)
	default:
		p("No copy of the system can be started:")
		for _, s := range r.State.Slots {
			why := s.Reason
			switch {
			case s.ManifestHash == "" && why == "":
				why = "empty"
			case why == "" && s.Excluded:
				why = "excluded"
			case why == "" && s.Tries == 0:
				why = status.Exhausted.String()
			case why == "":
				why = "may be started"
			}
			p("  %s  version %s  %s", status.SlotName(s.Slot, s.Bootname), orNone(s.Version), why)
		}
	}
	p("")
	if len(r.Sources) == 0 {
		p("Sticks: none seen")
	}
	for _, s := range r.Sources {
		p("Stick: %s", s.Name)
	}
	for _, f := range r.Refused {
		p("  %s was refused (code %02d): %s", f.File, f.Code, f.Text)
	}
	p("")
	p("What to do: plug in a USB stick (FAT32) with a bundle (*.raucb) for this device")
	p("in its top folder or in /updates. It is found by itself; do not switch off.")
	if !r.Retry.IsZero() {
		p("A copy of the system is tried again in %s.", time.Until(r.Retry).Round(time.Second))
	}
	b.WriteString("\n")
	d.con.print(b.String())
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}
