//go:build debug

package main

import (
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// shell is a build of /init for developers (docs/u-root.md): in rescue /bin/sh of the initramfs runs on the first console.
type shell struct {
	process *os.Process
	closed  bool
}

// open starts the shell, and again when it ends.
func (s *shell) open(c *console) {
	if s.process != nil || len(c.out) == 0 {
		return
	}
	tty := c.out[0].Name()
	start := func() *os.Process {
		f, err := os.OpenFile(tty, os.O_RDWR, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		name := "sh"
		if to, err := os.Readlink("/bin/sh"); err == nil {
			name = filepath.Base(to) // u-root's programs are one, which goes by its name
		}
		p, err := os.StartProcess("/bin/sh", []string{name}, &os.ProcAttr{
			Dir: "/", Env: []string{"PATH=/bin:/bbin:/sbin:/usr/bin", "HOME=/", "TERM=linux"},
			Files: []*os.File{f, f, f}, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true},
		})
		if err != nil {
			c.say("shell: " + err.Error())
			return nil
		}
		return p
	}
	if s.process = start(); s.process == nil {
		return
	}
	go func() {
		for p := s.process; p != nil && !s.closed; p = start() {
			s.process = p
			_, _ = p.Wait()
			time.Sleep(time.Second)
		}
	}()
}

// close ends the shell before a system starts.
func (s *shell) close() {
	s.closed = true
	if s.process != nil {
		_ = s.process.Kill()
	}
}
