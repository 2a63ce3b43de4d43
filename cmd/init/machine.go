package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"

	"lifeboat/status"
	"lifeboat/watchdog"
)

// mountBasics mounts what everything needs and makes the kernel come back from a panic: Debian's default is to hang.
func mountBasics() error {
	var errs []error
	for _, m := range []struct {
		dev, path, kind, data string
		flags                 uintptr
	}{
		{"proc", "/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"devtmpfs", "/dev", "devtmpfs", "mode=0755", unix.MS_NOSUID},
		{"tmpfs", "/run", "tmpfs", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if _, err := mount.Mount(m.dev, m.path, m.kind, m.data, m.flags); err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, err)
		}
	}
	for file, value := range map[string]string{
		panicTimeout: panicPause(readTrimmed(panicTimeout)), "/proc/sys/kernel/panic_on_oops": "1", "/proc/sys/kernel/printk_devkmsg": "on",
	} {
		_ = os.WriteFile(file, []byte(value), 0)
	}
	return errors.Join(errs...)
}

const panicTimeout = "/proc/sys/kernel/panic"

// panicPause is how many seconds a panic is shown: what the command line asks for, if the device restarts soon all the same.
func panicPause(asked string) string {
	if n, err := strconv.Atoi(asked); err == nil && n != 0 && n <= 60 {
		return asked
	}
	return "10"
}

// loadModules loads what a list in the initramfs names, in its order: a path and the module's options on each line.
// A module that does not load is said; what depends on it will be missed later.
func loadModules(con *console, list string) {
	raw, err := os.ReadFile(list)
	if err != nil {
		return
	}
	for line := range strings.Lines(string(raw)) {
		path, options, _ := strings.Cut(strings.TrimSpace(line), " ")
		if path == "" {
			continue
		}
		if err := loadModule(path, options); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			con.say(fmt.Sprintf("load module %s: %v", filepath.Base(path), err))
		}
	}
}

func loadModule(path, options string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), options, 0)
}

// lastEnd asks hardware and kernel how the last boot ended. status.None: nobody knows, so it was the power, or an
// orderly reboot.
func (d *device) lastEnd() status.Reason {
	var end status.Reason
	if end, d.words = panicked(); end != status.None {
		return end
	}
	if d.dog != nil && d.dog.CardReset || watchdog.CardReset(watchdog.Find(sysfs)) {
		return status.Watchdog
	}
	return status.None
}

const pstore = "/sys/fs/pstore"

// lastWords is where the records of a panic are kept for the running system.
const lastWords = status.Dir + "/pstore"

// What a watchdog's warning and the kernel's own timer panic with.
var watchdogPanics = [...]string{"not syncing: watchdog pretimeout event", "not syncing: Software Watchdog Timer expired"}

// panicked says what the kernel's last words are about, if it left some of a panic in pstore: status.Panic, or
// status.Watchdog where that made it panic. It moves what was left to lastWords so that it is counted once. words is the last
// part of it, which is all that outlives the next boot.
func panicked() (end status.Reason, words []byte) {
	if _, err := mount.Mount("pstore", pstore, "pstore", "", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil && !errors.Is(err, unix.EBUSY) {
		return status.None, nil
	}
	files, _ := filepath.Glob(pstore + "/dmesg-*")
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil || len(raw) > maxLastWords {
			continue
		}
		text := string(raw)
		if head, _, _ := strings.Cut(text, "\n"); strings.HasPrefix(head, "Panic#") {
			if end == status.None {
				end = status.Panic
			}
			if strings.HasSuffix(head, " Part1") { // the parts are numbered from the end
				words = raw[len(head)+1:]
			}
		}
		if slices.ContainsFunc(watchdogPanics[:], func(s string) bool { return strings.Contains(text, s) }) {
			end = status.Watchdog
		}
		if os.MkdirAll(lastWords, 0o700) == nil {
			_ = os.WriteFile(filepath.Join(lastWords, filepath.Base(f)), raw, 0o600)
		}
	}
	return end, words
}

const maxLastWords = 256 << 10

// forgetPanic removes what panicked has counted, once that is durable.
func forgetPanic() {
	kept, _ := os.ReadDir(lastWords)
	for _, f := range kept {
		_ = os.Remove(filepath.Join(pstore, f.Name()))
	}
}

// restartWith restarts the machine with a word for its firmware.
func restartWith(word string) {
	b, err := unix.BytePtrFromString(word)
	if err != nil || word == "" {
		return
	}
	_, _, _ = unix.Syscall6(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_RESTART2,
		uintptr(unsafe.Pointer(b)), 0, 0)
}

// peakRSS returns this process's own peak in KiB.
func peakRSS() int64 {
	for line := range strings.Lines(readTrimmed("/proc/self/status")) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}
