package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"

	"lifeboat/status"
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
		"/proc/sys/kernel/panic": "10", "/proc/sys/kernel/panic_on_oops": "1", "/proc/sys/kernel/printk_devkmsg": "on",
	} {
		_ = os.WriteFile(file, []byte(value), 0)
	}
	return errors.Join(errs...)
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
func lastEnd() status.Reason {
	if panicked() {
		return status.Panic
	}
	dogs, _ := filepath.Glob("/sys/class/watchdog/watchdog*/bootstatus")
	for _, file := range dogs {
		if n, _ := strconv.ParseUint(readTrimmed(file), 0, 32); n&unix.WDIOF_CARDRESET != 0 {
			return status.Watchdog
		}
	}
	return status.None
}

const pstore = "/sys/fs/pstore"

// lastWords is where the records of a panic are kept for the running system.
const lastWords = status.Dir + "/pstore"

// panicked reports whether the kernel left a panic in pstore, and moves what it left to lastWords so that it is
// counted once.
func panicked() bool {
	if _, err := mount.Mount("pstore", pstore, "pstore", "", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil && !errors.Is(err, unix.EBUSY) {
		return false
	}
	files, _ := filepath.Glob(pstore + "/dmesg-*")
	found := false
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil || len(raw) > maxLastWords {
			continue
		}
		found = found || strings.HasPrefix(string(raw), "Panic#")
		if os.MkdirAll(lastWords, 0o700) == nil {
			_ = os.WriteFile(filepath.Join(lastWords, filepath.Base(f)), raw, 0o600)
		}
	}
	return found
}

const maxLastWords = 256 << 10

// forgetPanic removes what panicked has counted, once that is durable.
func forgetPanic() {
	kept, _ := os.ReadDir(lastWords)
	for _, f := range kept {
		_ = os.Remove(filepath.Join(pstore, f.Name()))
	}
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
