//go:build hostile

package main

import (
	"bytes"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/confine"
	"lifeboat/update"
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
	err := crew.Work(j, update.Work)
	if act == "forge" { // an installer that says that all is well, and then writes what it wants
		slot := j.Files[len(j.Files)-1]
		if _, err := unix.Pwrite(int(slot.Fd()), bytes.Repeat([]byte("EVIL"), 1024), 8192); err != nil {
			panic(err)
		}
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

// hang gets stuck where lifeboat.hang= on the command line says: in the first of its phases, after the next reset in the
// second, and so on. How far that got stands in the clock's memory, which outlives a reset. A phase that will hang has 3 s.
func hang(d *device, phase string) {
	for word := range strings.FieldsSeq(readTrimmed("/proc/cmdline")) {
		list, ok := strings.CutPrefix(word, "lifeboat.hang=")
		if !ok {
			continue
		}
		phases := strings.Split(list, ",")
		if n := clockMemory(-1); n < len(phases) && strings.TrimPrefix(phase, "what follows ") == phases[n] {
			clockMemory(n + 1)
			d.con.say("hangs in " + phases[n])
			d.keep.Enter(phase, 3*time.Second)
			for {
				time.Sleep(time.Hour)
			}
		}
	}
}

// clockMemory reads a byte of the clock's memory that nobody else uses, and writes it where it is to be n.
func clockMemory(n int) int {
	f, err := os.OpenFile("/dev/port", os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	const index, data, place = 0x70, 0x71, 0x7d
	b := []byte{place}
	_, _ = f.WriteAt(b, index)
	if n >= 0 {
		b[0] = byte(n)
		_, _ = f.WriteAt(b, data)
		return n
	}
	_, _ = f.ReadAt(b, data)
	return int(b[0])
}
