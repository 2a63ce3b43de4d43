package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/status"
	"lifeboat/update"
)

// stage leaves the bundle in a file, or on standard input, for the next boot.
func (s *session) stage(out io.Writer, file string, replace, asJSON bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	debug.SetMemoryLimit(16 << 20)
	defer s.close()
	to, err := s.staging()
	if err != nil {
		return err
	}
	defer to.Dev.(*disk.File).Close()
	f, size, err := input(file)
	if err != nil {
		return err
	}
	defer f.Close()
	m := newMeter(out, os.Stderr, asJSON)
	d, err := s.device(m)
	if err != nil {
		return err
	}
	yield()
	m.begin("staging")
	to.Replace = replace
	to.Progress = func(done, total, _ int64) { m.progress(done, total) }
	what, err := d.Stage(ctx, &stoppable{ctx, f}, size, to)
	var r update.Refusal
	switch {
	case err != nil && ctx.Err() != nil:
		m.end(event{Event: "stopped"})
		return &exit{exitStopped, asJSON, errors.New("stopped: nothing was staged; the same command goes on where it was")}
	case errors.As(err, &r):
		m.end(event{Event: "refused", File: file, Code: r.Code, Text: r.Text})
		return &exit{r.Code, asJSON, fmt.Errorf("refused code=%02d %s: %w", r.Code, file, err)}
	case errors.Is(err, update.ErrNothing):
		m.end(event{Event: "nothing to do", Text: err.Error()})
		if !asJSON {
			fmt.Fprintln(out, err)
		}
		return nil
	case errors.Is(err, update.ErrStaged):
		err = fmt.Errorf("%w; --replace takes this one instead", err)
		fallthrough
	case err != nil:
		m.end(event{Event: "failed", Text: err.Error()})
		return &exit{1, asJSON, err}
	}
	m.end(event{Event: "staged", Version: what.Version, ManifestHash: what.Manifest.String()})
	if !asJSON {
		fmt.Fprintf(out, "version %s is staged: the next boot installs it\n", what.Version)
	}
	return nil
}

// unstage takes back what is staged.
func (s *session) unstage(out io.Writer) error {
	defer s.close()
	to, err := s.staging()
	if err != nil {
		return err
	}
	defer to.Dev.(*disk.File).Close()
	d := &update.Device{Store: s.store, Lock: s.hold, Policy: s.policy, Report: &status.Report{}}
	switch old, err := d.Unstage(to); {
	case err != nil:
		return err
	case old.None():
		fmt.Fprintln(out, "nothing is staged")
	default:
		fmt.Fprintf(out, "version %s is staged no more\n", old.Version)
	}
	return nil
}

// staging opens the record and the staging partition, and keeps other writers away from the latter until it is closed.
func (s *session) staging() (to update.Staging, err error) {
	if err := s.writable(); err != nil {
		return to, err
	}
	if err := s.open(); err != nil {
		return to, err
	}
	if s.cfg.StagingDevice == "" {
		return to, errors.New("this device has no staging partition: [staging] device= in its system.conf names one")
	}
	blocks, err := disk.Blocks("/sys")
	if err != nil {
		return to, err
	}
	b, err := beside(s.cfg.StagingDevice, blocks, s.report.Booted)
	if err != nil {
		return to, err
	}
	to.Path = b.Path()
	// Exclusive: not one that is mounted.
	f, err := os.OpenFile(to.Path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return to, err
	}
	dev, err := disk.NewFile(f)
	if err != nil {
		f.Close()
		return to, err
	}
	if err := unix.Flock(int(dev.File().Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dev.Close()
		return to, fmt.Errorf("%s is in use, by another bootcount: %w", to.Path, err)
	}
	to.Dev = dev
	return to, nil
}

// beside finds a partition on the disk from which this system was started, or where the configuration says.
func beside(device string, blocks []disk.Block, booted status.Booted) (disk.Block, error) {
	home := ""
	for _, b := range blocks {
		if b.Path() == booted.Device {
			home = b.Disk
		}
	}
	_, label := config.PartLabel(device)
	for _, b := range disk.Find(blocks, device) {
		if !label || b.Disk == home {
			return b, nil
		}
	}
	return disk.Block{}, fmt.Errorf("there is no %s on the disk of %s", device, booted.Device)
}

// input opens a file, or standard input, and returns its size, 0 where that is not known.
func input(file string) (*os.File, int64, error) {
	f := os.Stdin
	if file != "-" {
		var err error
		if f, err = os.Open(file); err != nil {
			return nil, 0, err
		}
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, 0, err
	case info.IsDir():
		return nil, 0, fmt.Errorf("%s is a folder", file)
	case !info.Mode().IsRegular():
		return f, 0, nil
	case info.Size() == 0:
		return nil, 0, fmt.Errorf("%s is empty", file)
	}
	// Standard input may be a file that somebody has begun to read.
	at, err := f.Seek(0, io.SeekCurrent)
	return f, info.Size() - at, err
}

// stoppable is a pipe that may never bring anything: what waits for it ends when it is told to.
type stoppable struct {
	ctx  context.Context
	from io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b := make([]byte, min(len(p), 256<<10)) // its own: a read that nobody waits for may still write
		n, err := s.from.Read(b)
		done <- result{b[:n], err}
	}()
	select {
	case r := <-done:
		return copy(p, r.b), r.err
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
}
