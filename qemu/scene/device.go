package scene

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"

	"lifeboat/disk"
	"lifeboat/qemu"
	"lifeboat/qemu/testsystem"
	"lifeboat/status"
)

// Patience is for what takes seconds on an idle machine.
const Patience = 2 * time.Minute

// Ready waits until a test system obeys and returns its version.
func Ready(c testsystem.Console, timeout time.Duration) (version string, err error) {
	m, err := c.Expect(timeout, `SYSTEM UP version=(\S+)`)
	if err != nil {
		return "", err
	}
	_, err = c.Expect(timeout, `SYSTEM READY\n`)
	return m[1], err
}

// Status asks the running test system for `bootcount status --json`.
func Status(c testsystem.Console, timeout time.Duration) (*status.Report, error) {
	out, exit, err := testsystem.Run(c, timeout, "/usr/bin/bootcount", "status", "--json")
	if err != nil {
		return nil, err
	}
	if exit != 0 {
		return nil, fmt.Errorf("bootcount status: exit %d: %s", exit, out)
	}
	r := &status.Report{}
	if err := json.Unmarshal([]byte(out), r); err != nil {
		return nil, fmt.Errorf("bootcount status --json: %w\n%s", err, out)
	}
	return r, nil
}

// Device is a device of the scene in a test: what cannot go on ends the test.
type Device struct {
	*qemu.Device
	t qemu.TB
}

// Start starts a virtual device for the time of a test; see [qemu.Test].
func Start(t qemu.TB, m qemu.Machine) *Device {
	t.Helper()
	return &Device{Device: qemu.Test(t, m), t: t}
}

// Ready waits until the system obeys and returns its version.
func (d *Device) Ready() string {
	d.t.Helper()
	return d.ReadyIn(Patience)
}

// ReadyIn is Ready with a limit of its own.
func (d *Device) ReadyIn(limit time.Duration) string {
	d.t.Helper()
	v, err := Ready(d.VM, limit)
	d.must(err)
	return v
}

// Status returns what `bootcount status --json` says in the system.
func (d *Device) Status() *status.Report {
	d.t.Helper()
	r, err := Status(d.VM, Patience)
	d.must(err)
	return r
}

// Run executes a command in the system, which has to succeed, and returns what it wrote.
func (d *Device) Run(command ...string) string {
	d.t.Helper()
	return d.RunIn(Patience, command...)
}

// RunIn is Run with a limit of its own.
func (d *Device) RunIn(limit time.Duration, command ...string) string {
	d.t.Helper()
	out, exit, err := testsystem.Run(d.VM, limit, command...)
	d.must(err)
	if exit != 0 {
		d.t.Fatalf("%q in the device: exit %d: %s", command, exit, out)
	}
	return out
}

func (d *Device) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatalf("%v", err)
	}
}

// Copy copies an image, holes as holes, to the scene's file name.
func (s *Scene) Copy(name, image string) (string, error) {
	out := s.Path(name)
	if text, err := exec.Command("cp", "--sparse=always", image, out).CombinedOutput(); err != nil {
		return "", fmt.Errorf("copy %s: %w\n%s", image, err, text)
	}
	return out, nil
}

// Partition returns the bytes of a partition of a disk image.
func Partition(image, label string) ([]byte, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	at, err := partition(f, label)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", image, err)
	}
	b := make([]byte, at.Size)
	_, err = f.ReadAt(b, at.Start)
	return b, err
}

func partition(f *os.File, label string) (disk.Partition, error) {
	info, err := f.Stat()
	if err != nil {
		return disk.Partition{}, err
	}
	parts, err := disk.Partitions(f, info.Size())
	if err != nil {
		return disk.Partition{}, err
	}
	for _, p := range parts {
		if p.Name == label {
			return p, nil
		}
	}
	return disk.Partition{}, fmt.Errorf("there is no partition %s", label)
}

// EditPartition changes the bytes of a partition of a disk image.
func EditPartition(image, label string, edit func(b []byte)) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	at, err := partition(f, label)
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	b := make([]byte, at.Size)
	if _, err := f.ReadAt(b, at.Start); err != nil {
		return err
	}
	edit(b)
	_, err = f.WriteAt(b, at.Start)
	return err
}
