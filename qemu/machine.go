// Package qemu runs the virtual device: a PC with a virtio disk, USB sticks that can be plugged in and pulled
// out, a watchdog that resets, and a power cord that can be cut. Tests and `lifeboat vm` use it.
//
// [Start] powers a [Machine] on; [VM.Expect] follows its serial console. In a Go test call [Test] instead:
// it skips where the virtual device cannot run, bounds how many run at once and keeps what a failure leaves behind.
// Device names and timings here were measured with QEMU 7.2 under emulation (no KVM).
package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// FastArgs are kernel parameters that make Debian's kernels start 0.3 to 0.5 s sooner under emulation and change
// nothing that lifeboat depends on. Put them in front of [Machine.Append] in tests. lpj is how far a delay loop counts in
// 4 ms, about what emulation manages: with a higher one the 10 s before a panic's reboot take minutes.
const FastArgs = "mitigations=off nokaslr no_timer_check audit=0 cryptomgr.notests " +
	"lpj=1000000 8250.nr_uarts=1 rcupdate.rcu_expedited=1"

// Machine describes a virtual device: q35, one CPU, qemu-xhci, an i6300esb watchdog whose expiry resets the
// machine, and 64 KiB of ACPI error record storage where the kernel's pstore keeps a panic's last words.
type Machine struct {
	Kernel string // anything that QEMU's -kernel takes: bzImage, or vmlinux with a PVH note (see [Vmlinux]); empty: Args say what boots
	Initrd string // optional
	Append string // kernel command line; "console=ttyS0" where empty

	Disk   string  // raw image, written in place: the guest's first virtio disk (vda); optional
	Log    string  // file to which every write to Disk is appended as blklogwrites does (package writelog); optional
	Faults []Fault // of Disk
	// Scratch says that nobody needs Disk after the host's own crash: flushes end in QEMU. For the guest nothing changes.
	Scratch bool
	Sticks  []Stick // plugged in at power on
	Bay     bool    // a hot-plug bay for a second internal disk; see Stick

	Memory int    // MiB; 256 where 0
	CPU    string // -cpu; see [DefaultCPU]

	// RAM is a file that becomes the guest's memory, for [VM.Save]; optional.
	RAM string
	// From starts the machine from where another was saved instead of from its kernel, at every PowerOn. Memory, CPU and
	// the devices must be the same, but the disk may hold something else; sticks are plugged in before PowerOn returns.
	From *Template

	// Dir takes serial.log, repeat.sh (the command line for a person's shell) and erst.img, and is kept.
	// Where empty, a temporary folder is used and removed by Close.
	Dir string

	NoReboot  bool      // a guest reset ends QEMU instead
	WriteRate int64     // bytes per second that Disk takes, 0: no limit; for power cuts within a write
	Output    io.Writer // also gets the serial console's bytes as they come; optional
	Args      []string  // further QEMU arguments
}

// Stick is a raw image behind USB mass storage. The guest may write to it unless ReadOnly.
type Stick struct {
	Name     string // letters, digits and dashes; for [VM.PullStick]
	File     string
	Log      string // as [Machine.Log]
	ReadOnly bool
	Bay      bool // no stick but a virtio disk in the machine's bay
	Faults   []Fault
}

// Fault makes requests to an image fail with an I/O error, as a medium does that is worn out or damaged.
type Fault struct {
	Write  bool  // writes; else reads
	Nth    int   // the Nth request of its kind since power on, from 1; 0: requests that touch Sector
	Rest   bool  // with Nth: that one and all that follow
	Sector int64 // of 512 bytes
}

// DefaultCPU has RDRAND, without which getrandom blocks an early /init for a second, and boots fastest under emulation.
// "max" boots 0.15 to 0.25 s later, but its AVX2 lets Go hash at 55 instead of 30 MB/s (SHA-256; TCG 7.2 has no SHA
// extensions): the better choice where a test hashes more than about 15 MB.
const DefaultCPU = "qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2"

// accelerator is "tcg" unless the environment asks for another: tests shall measure the same everywhere.
func accelerator() string {
	if a := os.Getenv("LIFEBOAT_ACCEL"); a != "" {
		return a
	}
	return "tcg"
}

// blockdev is QEMU's argument and QMP's argument for one raw image.
func blockdev(node, file string, readOnly bool, faults ...Fault) map[string]any {
	protocol := map[string]any{"driver": "file", "filename": file}
	if len(faults) > 0 {
		protocol = blkdebug(protocol, faults)
	}
	return map[string]any{"driver": "raw", "node-name": node, "read-only": readOnly, "file": protocol}
}

// blkdebug is a node that lets requests fail. The events are those that QEMU's raw format gives; each request that is
// counted is one step of a state machine, of which there is one: at most one fault may count.
func blkdebug(image map[string]any, faults []Fault) map[string]any {
	inject, steps := []any{}, []any{}
	for _, f := range faults {
		event, kind := "read_aio", "read"
		if f.Write {
			event, kind = "write_aio", "write"
		}
		if f.Nth == 0 {
			inject = append(inject, map[string]any{"event": "none", "iotype": kind, "errno": 5, "sector": f.Sector})
			continue
		}
		for i := 1; i < f.Nth; i++ {
			steps = append(steps, map[string]any{"event": event, "state": i, "new_state": i + 1})
		}
		inject = append(inject, map[string]any{"event": event, "iotype": kind, "state": f.Nth, "errno": 5, "once": !f.Rest})
	}
	node := map[string]any{"driver": "blkdebug", "image": image, "inject-error": inject}
	if len(steps) > 0 { // QEMU does not take an empty list
		node["set-state"] = steps
	}
	return node
}

// stickDevice is the device above a stick's block node, for -device and device_add alike.
// Not removable=on: the guest would poll for a medium all the time, as no real stick makes it.
func stickDevice(s Stick) map[string]any {
	device := map[string]any{"driver": "usb-storage", "bus": "xhci.0", "id": s.Name, "drive": stickNode(s.Name)}
	if s.Bay {
		device["driver"], device["bus"] = "virtio-blk-pci", "bay"
	}
	return device
}

func stickNode(name string) string { return "stick-" + name }

// stickBlock is the node below that device: image, errors, log.
func stickBlock(s Stick) (map[string]any, error) {
	node := blockdev(stickNode(s.Name), s.File, s.ReadOnly, s.Faults...)
	if s.Log == "" {
		return node, nil
	}
	return logged(stickNode(s.Name), node, s.Log)
}

// logged is a node that logs the writes to the one below.
func logged(name string, below map[string]any, file string) (map[string]any, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644) // QEMU wants it to be there
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	below["node-name"] = name + "-logged"
	return map[string]any{
		"driver": "blklogwrites", "node-name": name, "file": below, "log-sector-size": 512,
		"log": map[string]any{"driver": "file", "filename": file}, "log-append": info.Size() > 0,
	}, nil
}

// args is the command line without serial console and QMP, which [VM] and repeat.sh connect differently.
func (m *Machine) args(sticks []Stick) ([]string, error) {
	cpu, memory, cmdline := m.CPU, m.Memory, m.Append
	accel := accelerator()
	switch {
	case cpu != "":
	case accel == "kvm":
		cpu = "host"
	default:
		cpu = DefaultCPU
	}
	if accel == "tcg" && !strings.Contains(cpu, "+tsc") {
		// The kernel measures the TSC, which is the host's own, against a timer that is emulated: on a busy host it
		// found 85 MHz instead of 2596, and every timeout in the guest ended 30 times too soon. The HPET is right.
		cpu += ",-tsc"
	}
	if memory == 0 {
		memory = 256
	}
	if cmdline == "" {
		cmdline = "console=ttyS0"
	}
	machine, ram, share := "q35,accel="+accel, m.RAM, "on"
	if m.From != nil {
		ram, share = m.From.RAM, "off" // copy on write
	}
	if ram != "" {
		machine += ",memory-backend=ram"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", machine, "-cpu", cpu, "-m", strconv.Itoa(memory) + "M",
		"-device", "qemu-xhci,id=xhci",
		"-device", "i6300esb", "-action", "watchdog=reset",
		"-object", "memory-backend-file,id=erst,size=64K,share=on,mem-path=" + comma(filepath.Join(m.Dir, erstFile)),
		"-device", "acpi-erst,memdev=erst",
	}
	if ram != "" {
		args = append(args, "-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,share=%s,mem-path=%s", memory, share, comma(ram)))
	}
	switch {
	case m.From != nil:
		args = append(args, "-incoming", "defer")
	case m.Kernel != "":
		args = append(args, "-kernel", m.Kernel, "-append", cmdline)
		if m.Initrd != "" {
			args = append(args, "-initrd", m.Initrd)
		}
	}
	if m.NoReboot {
		args = append(args, "-no-reboot")
	}
	if m.Disk != "" {
		disk, err := m.disk()
		if err != nil {
			return nil, err
		}
		args = append(args, disk...)
	}
	if m.Bay {
		args = append(args, "-device", "pcie-root-port,id=bay")
	}
	for _, s := range sticks {
		below, err := stickBlock(s)
		if err != nil {
			return nil, err
		}
		node, err := json.Marshal(below)
		if err != nil {
			return nil, err
		}
		device, err := json.Marshal(stickDevice(s))
		if err != nil {
			return nil, err
		}
		args = append(args, "-blockdev", string(node), "-device", string(device))
	}
	return append(args, m.Args...), nil
}

// disk is the virtio disk and the nodes below it: image, errors, log, throttle.
func (m *Machine) disk() ([]string, error) {
	var args []string
	node := blockdev(diskNode, m.Disk, false, m.Faults...)
	if m.Scratch && m.Log == "" {
		node["cache"] = map[string]any{"no-flush": true}
	}
	if m.Log != "" {
		var err error
		if node, err = logged(diskNode, node, m.Log); err != nil {
			return nil, err
		}
	}
	if m.WriteRate > 0 {
		args = append(args, "-object", fmt.Sprintf("throttle-group,id=rate,x-bps-write=%d", m.WriteRate))
		node["node-name"] = "disk-file"
		node = map[string]any{"driver": "throttle", "throttle-group": "rate", "file": node, "node-name": diskNode}
	}
	arg, err := json.Marshal(node)
	if err != nil {
		return nil, err
	}
	device := "virtio-blk-pci,id=vda,drive=" + diskNode
	if m.Kernel == "" && m.From == nil {
		device += ",bootindex=0" // firmware starts from the disk, whatever is plugged in
	}
	return append(args, "-blockdev", string(arg), "-device", device), nil
}

const diskNode = "disk"

// Names in Machine.Dir.
const (
	serialFile = "serial.log"
	repeatFile = "repeat.sh"
	erstFile   = "erst.img"
)

// check finds what would make QEMU fail in a way that is hard to understand.
func (m *Machine) check() error {
	files := []string{m.Kernel, m.Initrd, m.Disk}
	if m.From != nil {
		files = []string{m.From.State, m.From.RAM, m.Disk}
	}
	for _, s := range m.Sticks {
		if err := s.check(); err != nil {
			return err
		}
	}
	for i, f := range files {
		if f == "" && (i > 0 || len(m.Args) > 0) {
			continue
		}
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("virtual device: %w", err)
		}
	}
	return nil
}

func (s *Stick) check() error {
	if s.Name == "" || strings.Trim(s.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
		return fmt.Errorf("virtual device: stick name %q: letters, digits and dashes", s.Name)
	}
	if _, err := os.Stat(s.File); err != nil {
		return fmt.Errorf("virtual device: stick %s: %w", s.Name, err)
	}
	return nil
}

// comma doubles the commas of a value within a QEMU option, as QEMU wants them.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// repeatScript is a shell script that starts the same machine for a person: console on the terminal (Ctrl-A x ends).
func repeatScript(args []string) string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n# The same virtual device on this terminal; Ctrl-A x ends it, Ctrl-A c is QEMU's monitor.\nexec qemu-system-x86_64")
	for _, a := range append(args, "-serial", "mon:stdio") {
		if strings.HasPrefix(a, "-") {
			b.WriteString(" \\\n\t")
		} else {
			b.WriteByte(' ')
		}
		b.WriteString("'" + strings.ReplaceAll(a, "'", `'\''`) + "'")
	}
	b.WriteString("\n")
	return b.String()
}
