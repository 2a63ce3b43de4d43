package usb

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/disk"
)

// machine is a sysfs and a /dev in a folder.
type machine struct {
	t    *testing.T
	root string
}

func newMachine(t *testing.T) machine {
	m := machine{t, t.TempDir()}
	m.dir("dev")
	m.dir("sys/class/block")
	m.dir("sys/bus/usb/devices")
	return m
}

func (m machine) sysfs() string { return filepath.Join(m.root, "sys") }

func (m machine) dir(path string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Join(m.root, path), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) file(path, text string) {
	m.t.Helper()
	m.dir(filepath.Dir(path))
	if err := os.WriteFile(filepath.Join(m.root, path), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) link(path, to string) {
	m.t.Helper()
	if err := os.Symlink(filepath.Join(m.root, to), filepath.Join(m.root, path)); err != nil {
		m.t.Fatal(err)
	}
}

// remove is what happens when something is pulled out.
func (m machine) remove(path string) {
	m.t.Helper()
	if err := os.RemoveAll(filepath.Join(m.root, path)); err != nil {
		m.t.Fatal(err)
	}
}

const bus = "sys/devices/pci0000:00/0000:00:01.0/usb2"

func (m machine) device(path, name, class string) {
	m.file(path+"/bDeviceClass", class+"\n")
	m.file(path+"/bConfigurationValue", "1\n")
	m.file(path+"/power/runtime_status", "active\n")
	m.link("sys/bus/usb/devices/"+name, path)
}

// stick plugs a stick into port, without its disk.
func (m machine) stick(port, serial string) (unit string) {
	dev := bus + "/" + port
	m.device(dev, port, "00")
	m.file(dev+"/idVendor", "46f4\n")
	m.file(dev+"/idProduct", "0001\n")
	if serial != "" {
		m.file(dev+"/serial", serial+"\n")
	}
	itf := dev + "/" + port + ":1.0"
	m.file(itf+"/bInterfaceClass", "08\n")
	m.link("sys/bus/usb/devices/"+port+":1.0", itf)
	m.file(itf+"/driver", "")
	unit = itf + "/host0/target0:0:0/0:0:0:0"
	m.file(unit+"/type", "0\n")
	m.file(unit+"/vendor", "QEMU    \n")
	m.file(unit+"/model", "QEMU HARDDISK   \n")
	m.file(unit+"/driver", "")
	return unit
}

func (m machine) disk(unit, name string, sectors int64) {
	dir := unit + "/block/" + name
	m.file(dir+"/dev", "8:0\n")
	m.link(dir+"/device", unit)
	m.file("dev/"+name, "")
	m.file(dir+"/size", fmt.Sprintln(sectors))
	m.link("sys/class/block/"+name, dir)
}

func (m machine) partition(unit, disk string, n int, sectors int64) {
	name := fmt.Sprintf("%s%d", disk, n)
	dir := unit + "/block/" + disk + "/" + name
	m.file(dir+"/dev", fmt.Sprintf("8:%d\n", n))
	m.file(dir+"/partition", fmt.Sprintln(n))
	m.file(dir+"/size", fmt.Sprintln(sectors))
	m.link("sys/class/block/"+name, dir)
}

func TestSticks(t *testing.T) {
	m := newMachine(t)
	if got, err := Sticks(m.sysfs()); err != nil || got != nil {
		t.Fatalf("an empty machine: %v, %v", got, err)
	}
	m.file("sys/devices/pci0000:00/virtio0/block/vda/dev", "254:0\n")
	m.file("sys/devices/pci0000:00/virtio0/block/vda/size", "100000\n")
	m.link("sys/class/block/vda", "sys/devices/pci0000:00/virtio0/block/vda")
	one := m.stick("2-1.4", "SERIAL1")
	m.disk(one, "sda", 131072)
	m.partition(one, "sda", 2, 4096)
	m.partition(one, "sda", 1, 2048)
	two := m.stick("2-2", "SERIAL2")
	m.file(two+"/vendor", "EVIL\x1b[2J\n")
	m.file(two+"/model", strings.Repeat("x", 100)+"\n")
	m.disk(two, "sdb", 131072)
	empty := m.stick("2-3", "")
	m.disk(empty, "sdc", 0)

	sticks, err := Sticks(m.sysfs())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range sticks {
		var parts []string
		for _, p := range s.Parts {
			parts = append(parts, p.Name)
		}
		got = append(got, fmt.Sprintf("%s [%s] %v", s.Block.Name, s.Label, parts))
	}
	want := []string{
		"sda [sda: QEMU HARDDISK 64 MiB] [sda1 sda2]",
		"sdb [sdb: EVIL?[2J " + strings.Repeat("x", 32) + " 64 MiB] []",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if len(sticks[0].ID) != 16 || sticks[0].ID == sticks[1].ID {
		t.Errorf("IDs %q and %q of two sticks", sticks[0].ID, sticks[1].ID)
	}
}

// The ID is what the guard of a stick is remembered by, so it must not depend on port or name.
func TestIDIsTheSticks(t *testing.T) {
	id := func(port, serial, name string, sectors int64) string {
		m := newMachine(t)
		m.disk(m.stick(port, serial), name, sectors)
		sticks, err := Sticks(m.sysfs())
		if err != nil || len(sticks) != 1 {
			t.Fatalf("%v, %v", sticks, err)
		}
		return sticks[0].ID
	}
	first := id("2-1", "A", "sda", 4096)
	if got := id("2-3.1", "A", "sdq", 4096); got != first {
		t.Errorf("another port and name: %s, was %s", got, first)
	}
	for what, got := range map[string]string{
		"serial": id("2-1", "B", "sda", 4096), "size": id("2-1", "A", "sda", 8192), "no serial": id("2-1", "", "sda", 4096),
	} {
		if got == first {
			t.Errorf("another %s gives the same ID", what)
		}
	}
}

// settle runs Settle and tells how long it took.
func settle(m machine, limit time.Duration) time.Duration {
	start := time.Now()
	Settle(nil, m.sysfs(), limit)
	return time.Since(start)
}

func TestSettle(t *testing.T) {
	const limit = 1500 * time.Millisecond
	hub := func(m machine) { m.device(bus, "usb2", "09") }
	for _, c := range []struct {
		name     string
		set      func(m machine)
		at       time.Duration // when change happens
		change   func(m machine)
		min, max time.Duration
	}{
		{"no USB", func(m machine) { m.remove("sys/bus") }, 0, nil, 0, 50 * time.Millisecond},
		{"no controller", func(machine) {}, 0, nil, 0, 50 * time.Millisecond},
		{"a hub that sleeps", func(m machine) { hub(m); m.file(bus+"/power/runtime_status", "suspended\n") }, 0, nil, attach, attach + 150*time.Millisecond},
		{"a hub that never sleeps", hub, 0, nil, idle, idle + 150*time.Millisecond},
		{
			"a stick with its disk",
			func(m machine) { hub(m); m.disk(m.stick("2-1", ""), "sda", 4096) }, 0, nil, enumerate, enumerate + 150*time.Millisecond,
		},
		{"an empty card reader", func(m machine) { hub(m); m.disk(m.stick("2-1", ""), "sda", 0) }, 0, nil, enumerate, enumerate + 150*time.Millisecond},
		{
			"a CD drive without a driver",
			func(m machine) { hub(m); m.file(m.stick("2-1", "")+"/type", "5\n") }, 0, nil, enumerate, enumerate + 150*time.Millisecond,
		},
		{
			"a disk that spins up", func(m machine) { hub(m); m.stick("2-1", "") },
			700 * time.Millisecond, func(m machine) { m.disk(bus+"/2-1/2-1:1.0/host0/target0:0:0/0:0:0:0", "sda", 4096) },
			700 * time.Millisecond, 850 * time.Millisecond,
		},
		{
			"a unit that comes after usb_storage's delay", func(m machine) { hub(m); m.remove(m.stick("2-1", "") + "/../../target0:0:0") },
			700 * time.Millisecond, func(m machine) { m.remove(bus + "/2-1"); m.remove("sys/bus/usb/devices/2-1:1.0") },
			700 * time.Millisecond, 850 * time.Millisecond,
		},
		{
			"a device that takes its time to be configured",
			func(m machine) {
				hub(m)
				m.device(bus+"/2-1", "2-1", "00")
				m.file(bus+"/2-1/bConfigurationValue", "\n")
			},
			700 * time.Millisecond, func(m machine) {
				m.remove(bus + "/2-1")
				m.remove("sys/bus/usb/devices/2-1")
				m.disk(m.stick("2-1", ""), "sda", 4096)
			},
			700 * time.Millisecond, 850 * time.Millisecond,
		},
		{"a disk that never comes", func(m machine) { hub(m); m.stick("2-1", "") }, 0, nil, limit, limit + 150*time.Millisecond},
		{
			"an interface without a driver", func(m machine) { hub(m); m.stick("2-1", ""); m.remove(bus + "/2-1/2-1:1.0/driver") },
			0, nil, enumerate, enumerate + 150*time.Millisecond,
		},
		{
			"a hub busy with a device", // its attribute blocks, as a FIFO does
			func(m machine) {
				hub(m)
				m.remove(bus + "/bConfigurationValue")
				m.fifo(bus + "/bConfigurationValue")
				m.disk(m.stick("2-1", ""), "sda", 4096)
			},
			600 * time.Millisecond, func(m machine) { m.write(bus + "/bConfigurationValue") }, 600 * time.Millisecond, 750 * time.Millisecond,
		},
		{
			"a hub busy for ever",
			func(m machine) { hub(m); m.remove(bus + "/bConfigurationValue"); m.fifo(bus + "/bConfigurationValue") },
			0, nil, limit, limit + 150*time.Millisecond,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			c.set(m)
			changed := make(chan struct{})
			if c.change != nil {
				time.AfterFunc(c.at, func() { c.change(m); close(changed) })
			} else {
				close(changed)
			}
			got := settle(m, limit)
			<-changed
			if got < c.min || got > c.max+time.Second { // a busy machine may add, nothing may take away
				t.Errorf("took %v, want %v to %v", got, c.min, c.max)
			}
			if c.max > c.min && c.min < limit && got >= limit {
				t.Errorf("took all the time there was, want %v", c.max)
			}
		})
	}
}

func (m machine) fifo(path string) {
	m.t.Helper()
	if err := syscall.Mkfifo(filepath.Join(m.root, path), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) write(path string) {
	m.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.root, path), os.O_RDWR, 0)
	if err != nil {
		m.t.Error(err)
		return
	}
	defer f.Close()
	fmt.Fprintln(f, "1")
	time.Sleep(20 * time.Millisecond) // until the reader has it
}

// Settle must be woken by the events of a real watcher, and survive one that has been closed.
func TestSettleWithWatcher(t *testing.T) {
	w, err := disk.Watch()
	if err != nil {
		t.Skipf("no uevent socket here: %v", err)
	}
	m := newMachine(t)
	m.device(bus, "usb2", "09")
	for _, closed := range []bool{false, true} {
		if closed {
			w.Close()
		}
		start := time.Now()
		Settle(w, m.sysfs(), 2*time.Second)
		if got := time.Since(start); got < idle || got > 2*time.Second {
			t.Errorf("closed %v: took %v, want %v", closed, got, idle)
		}
	}
}
