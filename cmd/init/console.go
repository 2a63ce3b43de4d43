package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// console is everything that a person may look at: each active console, the screen where there is one, and the kernel
// log. A console that does not take what is written to it holds nobody up.
type console struct {
	out   []*terminal
	kmsg  *os.File
	quiet bool
	level string // of kernel messages on the consoles, before they were made to wait
}

const noCTTY = unix.O_NOCTTY | unix.O_NONBLOCK

// terminal is one console. A screen is drawn anew; all others get lines.
type terminal struct {
	*os.File
	screen bool      // a virtual terminal
	active bool      // the kernel's messages go there too
	stuck  time.Time // until then nothing is written: it did not take what was
}

const (
	writeLimit = 500 * time.Millisecond // how long one write may take on one console
	stuckFor   = 10 * time.Second       // how long one that took longer is left alone
)

// write is bounded in time.
func (t *terminal) write(text string) {
	now := time.Now()
	if now.Before(t.stuck) {
		return
	}
	_ = t.SetWriteDeadline(now.Add(writeLimit))
	if _, err := t.WriteString(text); err != nil {
		t.stuck = time.Now().Add(stuckFor)
	}
}

func openConsole(quiet bool) *console {
	c := &console{quiet: quiet}
	c.kmsg, _ = os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	const screen = "tty0" // the virtual terminal that is shown
	names := strings.Fields(readTrimmed("/sys/class/tty/console/active"))
	active := len(names)
	if !slices.Contains(names, screen) {
		names = append(names, screen) // whoever stands there with a stick looks at it, wherever the messages go
	}
	for i, name := range names {
		if f, err := os.OpenFile("/dev/"+name, os.O_WRONLY|noCTTY, 0); err == nil {
			n, vt := strings.CutPrefix(name, "tty")
			c.out = append(c.out, &terminal{File: f, screen: vt && n[0] >= '0' && n[0] <= '9', active: i < active})
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
var loud = [...]string{"refused ", "fallback ", "rescue ", "installing ", "installed ", "boot ", "update "}

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
	for _, t := range c.out {
		if t.active {
			t.write(text)
		}
	}
}

// draw shows a page in place of what is on the screens.
func (c *console) draw(page string) {
	for _, t := range c.out {
		if t.screen {
			// Line by line over what was there, then the rest is cleared: it does not flicker.
			t.write("\x1b[H" + strings.ReplaceAll("\n"+page, "\n", "\x1b[K\n") + "\x1b[J")
		}
	}
}

// show draws a page on the screens and prints it on all other consoles.
func (c *console) show(page string) {
	c.draw(page)
	for _, t := range c.out {
		if t.active && !t.screen {
			t.write("\n" + page + "\n")
		}
	}
}
