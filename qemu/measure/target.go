package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"lifeboat/disk"
)

// target is what everybody installs to: a loop device that hands on to a file of its own past the page cache, or that
// file where there is no loop device.
type target struct {
	path string   // to be written to
	size int64    // bytes
	hold *os.File // keeps the loop device until close, or the end of this process
}

// newTarget makes the target of at least size bytes; close gives it back. Where it is filled its blocks have been
// written once, so that nobody has to find room on the disk for them.
func (b *bench) newTarget(size int64, filled bool) (*target, error) {
	const mib = 1 << 20
	t := &target{path: filepath.Join(b.dir, "slot.img"), size: (size + mib - 1) &^ (mib - 1)}
	if err := errors.Join(os.WriteFile(t.path, nil, 0o644), os.Truncate(t.path, t.size)); err != nil {
		return nil, err
	}
	if filled {
		if err := command(b.dir, "dd", "if=/dev/zero", "of="+t.path, "bs=1M", fmt.Sprintf("count=%d", t.size/mib), "conv=fsync,notrunc"); err != nil {
			return nil, err
		}
	}
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", t.path).Output()
	if err != nil {
		b.say("no loop device here (%v): installs go to a file", err)
		return t, nil
	}
	t.path = strings.TrimSpace(string(out))
	t.hold, err = os.Open(t.path)
	// Detaching what is in use waits for the last one to let go of it.
	return t, errors.Join(err, command("", "losetup", "--detach", t.path))
}

func (t *target) close() {
	if t.hold != nil {
		t.hold.Close()
	}
}

// with opens the target for writing, as early boot does for each of its steps.
func (t *target) with(do func(*disk.File) error) error {
	f, err := disk.Open(t.path, true)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// flush ends a measured install: what was written is on the medium.
func (t *target) flush() error { return t.with((*disk.File).Flush) }

// forget makes every measurement begin alike: nothing of the target to be written, nothing of it in memory.
func (t *target) forget() error { return t.with((*disk.File).DropCache) }

// same compares the first bytes of the target with an image: who is measured has to have done its work.
func (t *target) same(image string) error {
	if err := t.forget(); err != nil {
		return err
	}
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	if err := exec.CommandContext(context.Background(), "cmp", fmt.Sprintf("--bytes=%d", info.Size()), image, t.path).Run(); err != nil {
		return fmt.Errorf("the target does not hold %s: %w", filepath.Base(image), err)
	}
	return nil
}
