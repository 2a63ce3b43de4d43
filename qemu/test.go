package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// TB is what Test needs of *testing.T and *testing.B; this package is also linked into a command.
type TB interface {
	Helper()
	Name() string
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// NeedKernel returns the named kernel, or skips the test where the virtual device cannot run and says why.
func NeedKernel(t TB, flavour string) Kernel {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skipf("no virtual device: qemu-system-x86_64 not found: run make setup")
	}
	k, err := FindKernel(flavour)
	if errors.Is(err, ErrNoKernel) {
		t.Skipf("no virtual device: %v", err)
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	return k
}

// Device is a virtual device in a test: what cannot go on ends the test.
type Device struct {
	*VM
	t TB
}

// Test starts a virtual device for the time of a test. At most as many run at once, over all test processes of this
// machine, as there are CPUs (but two). If the test fails, the end of the console is logged and the folder
// build/test/NAME is kept, with the whole of it and repeat.sh.
func Test(t TB, m Machine) *Device {
	t.Helper()
	build, err := buildDir()
	if err != nil {
		t.Skipf("no virtual device: %v", err)
	}
	if m.Dir == "" {
		m.Dir = filepath.Join(build, "test", strings.NewReplacer("/", "_", " ", "_").Replace(t.Name()))
		if err := os.RemoveAll(m.Dir); err != nil {
			t.Fatalf("%v", err)
		}
		t.Cleanup(func() {
			if !t.Failed() {
				os.RemoveAll(m.Dir)
			}
		})
	}
	Reserve(t)
	vm, err := Start(context.Background(), m)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		vm.Close()
		if t.Failed() {
			t.Logf("end of the console (all of it, and how to repeat it, in %s; disk %s):\n%s", m.Dir, m.Disk, tail(vm.Console(), 60))
		}
	})
	return &Device{VM: vm, t: t}
}

// Reserve waits until the test may run a virtual device of its own making and holds the place until the test ends.
// Test does it by itself.
func Reserve(t TB) {
	t.Helper()
	release, err := Place()
	if errors.Is(err, ErrNoKernel) {
		t.Skipf("no virtual device: %v", err)
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(release)
}

// Place is Reserve for who runs many devices in one test: the place is held until release is called.
func Place() (release func(), err error) {
	build, err := buildDir()
	if err != nil {
		return nil, err
	}
	for {
		for i := range max(2, runtime.NumCPU()) {
			f, err := os.OpenFile(filepath.Join(build, fmt.Sprintf("vm.%d.lock", i)), os.O_CREATE|os.O_RDWR, 0o666)
			if err != nil {
				return nil, err
			}
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
			if err == nil {
				return func() { f.Close() }, nil // and so unlocks
			}
			f.Close()
			if !errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Expect is [VM.Expect] that ends the test where the match does not come.
func (d *Device) Expect(timeout time.Duration, pattern string) []string {
	d.t.Helper()
	match, err := d.VM.Expect(timeout, pattern)
	d.must(err)
	return match
}

// Event is [VM.Event] that ends the test where the event does not come.
func (d *Device) Event(timeout time.Duration, name string) Event {
	d.t.Helper()
	e, err := d.VM.Event(timeout, name)
	d.must(err)
	return e
}

// PowerOn, PlugStick, PullStick, Reset, Type and Off are those of [VM], ending the test on an error.
func (d *Device) PowerOn()          { d.t.Helper(); d.must(d.VM.PowerOn()) }
func (d *Device) PlugStick(s Stick) { d.t.Helper(); d.must(d.VM.PlugStick(s)) }
func (d *Device) PullStick(n string) {
	d.t.Helper()
	d.must(d.VM.PullStick(n))
}
func (d *Device) Reset()           { d.t.Helper(); d.must(d.VM.Reset()) }
func (d *Device) Type(text string) { d.t.Helper(); d.must(d.VM.Type(text)) }

// Off waits until the machine is off.
func (d *Device) Off(timeout time.Duration) { d.t.Helper(); d.must(d.Wait(timeout)) }

func (d *Device) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatalf("%v", err)
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
