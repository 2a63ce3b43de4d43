//go:build hostile

package main

import (
	"bytes"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/confine"
	"lifeboat/update/crew"
)

// A build of /init for qemu/story, whose workers do what a stick tells them, as if its bytes had taken them over: its last
// 512 bytes are the words HOSTILE, a role and what that worker does. This runs before main.
func init() {
	j := confine.Child()
	if j == nil {
		return
	}
	act := order(j)
	switch act {
	case "eat":
		for {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			eaten = append(eaten, b)
		}
	case "spin":
		for {
			runtime.Gosched()
		}
	case "mute":
		time.Sleep(time.Hour)
	case "flood":
		for j.Send('P', make([]byte, 16)) == nil {
		}
	case "panic":
		panic("for a test")
	case "garbage":
		_ = j.Send('F', bytes.Repeat([]byte{0xff}, 4000))
	}
	err := crew.Work(j)
	if act == "forge" { // an installer that says that all is well, and then writes what it wants
		_, _ = unix.Pwrite(int(j.Files[1].Fd()), bytes.Repeat([]byte("EVIL"), 1024), 8192)
	}
	j.Exit(err)
}

var eaten [][]byte

// order is what the stick wants this worker to do.
func order(j *confine.Job) string {
	if len(j.Files) == 0 {
		return ""
	}
	fd := int(j.Files[0].Fd())
	size, err := unix.Seek(fd, 0, unix.SEEK_END)
	if err != nil || size < 512 {
		return ""
	}
	b := make([]byte, 512)
	_, _ = unix.Pread(fd, b, size-512)
	words := strings.Fields(string(bytes.TrimRight(b, "\x00")))
	if len(words) != 3 || words[0] != "HOSTILE" || words[1] != j.Role {
		return ""
	}
	return words[2]
}
