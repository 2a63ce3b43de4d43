package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"lifeboat/qemu"
)

// newVM is `lifeboat vm`.
func newVM() *cobra.Command {
	vm := &cobra.Command{
		Use:   "vm",
		Short: "run a virtual device",
		Args:  cobra.NoArgs,
	}
	vm.AddCommand(newVMRun())
	return vm
}

type vmRun struct {
	machine qemu.Machine
	sticks  []string
	until   string
	timeout time.Duration
	serial  string
}

func newVMRun() *cobra.Command {
	var o vmRun
	run := &cobra.Command{
		Use:   "run --kernel F --initrd F --disk F [flags]",
		Short: "start a virtual device and show its serial console",
		Long: `Starts a PC (q35, 1 CPU, xHCI, i6300esb watchdog) under QEMU with a virtio disk, which is written in place.
The guest may reboot.

With --until the exit status is 0 as soon as the console has shown a match, and 1 if the time is up or the
device is switched off before. Without, the terminal is the device's console; Ctrl-] begins a command:
  p  plug in the next stick                u  pull out the stick plugged in last
  r  press the reset button                c  cut the power and switch on again
  q  switch off and leave                  h  list the commands
Ctrl-] twice sends Ctrl-] to the device.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := run.Flags()
	f.StringVar(&o.machine.Kernel, "kernel", "", "kernel image, anything that QEMU's -kernel takes")
	f.StringVar(&o.machine.Initrd, "initrd", "", "initramfs")
	f.StringVar(&o.machine.Disk, "disk", "", "raw disk image, written in place")
	f.StringArrayVar(&o.sticks, "stick", nil, "raw image of a USB stick, plugged in at power on (may be repeated)")
	f.StringVar(&o.machine.Append, "append", "", `kernel command line (default "console=ttyS0")`)
	f.StringVar(&o.until, "until", "", "end with status 0 when the console shows a match of this regular expression")
	f.DurationVar(&o.timeout, "timeout", 0, "end with status 1 after this time (0: never)")
	f.StringVar(&o.serial, "serial", "", "also write the console to this file")
	f.IntVar(&o.machine.Memory, "memory", 256, "MiB of RAM")
	run.MarkFlagRequired("kernel")
	return run
}

func (o *vmRun) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	if _, err := regexp.Compile(o.until); err != nil {
		return fmt.Errorf("--until: %w", err)
	}
	for i, file := range o.sticks {
		o.machine.Sticks = append(o.machine.Sticks, qemu.Stick{Name: fmt.Sprintf("stick%d", i+1), File: file})
	}
	if o.machine.Append == "" {
		o.machine.Append = "console=ttyS0"
	}
	o.machine.Output = stdout
	if o.serial != "" {
		log, err := os.Create(o.serial)
		if err != nil {
			return err
		}
		defer log.Close()
		o.machine.Output = io.MultiWriter(log, stdout)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	vm, err := qemu.Start(ctx, o.machine)
	if err != nil {
		return err
	}
	defer vm.Close()
	if o.timeout > 0 { // from power on: how long QEMU itself takes to start does not count
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
		defer context.AfterFunc(ctx, vm.Cut)()
	}
	if o.until != "" {
		return o.watch(ctx, vm)
	}
	return o.interact(ctx, vm, stdin, stderr)
}

// forever is longer than any run; ending the context ends every wait, because it cuts the power.
const forever = 100 * 365 * 24 * time.Hour

// watch waits for the match.
func (o *vmRun) watch(ctx context.Context, vm *qemu.VM) error {
	_, err := vm.Expect(forever, o.until)
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%q was not seen within %v", o.until, o.timeout)
	case ctx.Err() != nil:
		return fmt.Errorf("%q was not seen: interrupted", o.until)
	}
	if err := vm.Wait(time.Second); err != nil {
		return fmt.Errorf("%q was not seen: %w", o.until, err)
	}
	return fmt.Errorf("%q was not seen: %w", o.until, qemu.ErrEnded)
}

// escape begins a command for the device's surroundings: Ctrl-].
const escape = 0x1d

const help = "p plug in  u pull out  r reset  c cut the power and switch on again  q switch off  h help"

// desk is what stands around an interactive device: the person, the sticks, the power cord.
type desk struct {
	vm      *qemu.VM
	sticks  []qemu.Stick
	plugged int // sticks[:plugged] are in the device
	say     func(format string, args ...any)
}

// interact connects the terminal with the console until the device or the person has had enough.
func (o *vmRun) interact(ctx context.Context, vm *qemu.VM, stdin io.Reader, stderr io.Writer) error {
	restore, terminal, err := rawTerminal(stdin)
	if err != nil {
		return err
	}
	defer restore()
	d := &desk{
		vm: vm, sticks: o.machine.Sticks, plugged: len(o.machine.Sticks),
		say: func(format string, args ...any) { fmt.Fprintf(stderr, "\r\n[vm] "+format+"\r\n", args...) },
	}
	if terminal {
		d.say("after Ctrl-]: %s", help)
	}
	keys := make(chan byte)
	go func() { // a read of standard input cannot be interrupted: this ends with the process
		defer close(keys)
		for in := bufio.NewReader(stdin); ; {
			b, err := in.ReadByte()
			if err != nil {
				return
			}
			select {
			case keys <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	off := d.off()
	for escaped := false; ; {
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("time is up after %v", o.timeout)
			}
			return errors.New("interrupted")
		case err := <-off:
			return err
		case b, ok := <-keys:
			switch {
			case !ok:
				keys = nil // the device goes on without a keyboard
			case escaped && b == 'q':
				return vm.Quit()
			case escaped && b == 'c':
				vm.Cut()
				<-off
				if err := vm.PowerOn(); err != nil {
					return err
				}
				d.say("the power was cut and is back")
				off = d.off()
			case escaped && b != escape:
				d.command(b)
			case b == escape && !escaped:
				escaped = true
				continue
			default:
				if err := vm.Type(string(b)); err != nil && !errors.Is(err, qemu.ErrEnded) {
					return err
				}
			}
			escaped = false
		}
	}
}

func (d *desk) off() <-chan error {
	off := make(chan error, 1)
	go func() { off <- d.vm.Wait(forever) }()
	return off
}

// command does what leaves the power on.
func (d *desk) command(key byte) {
	var err error
	done := help
	switch key {
	case 'p':
		if d.plugged == len(d.sticks) {
			d.say("no stick left to plug in")
			return
		}
		s := d.sticks[d.plugged]
		if err = d.vm.PlugStick(s); err == nil {
			d.plugged++
			done = "plugged in " + s.File
		}
	case 'u':
		if d.plugged == 0 {
			d.say("no stick to pull out")
			return
		}
		s := d.sticks[d.plugged-1]
		if err = d.vm.PullStick(s.Name); err == nil {
			d.plugged--
			done = "pulled out " + s.File
		}
	case 'r':
		err = d.vm.Reset()
		done = "reset"
	}
	if err != nil {
		d.say("%v", err)
		return
	}
	d.say("%s", done)
}

// rawTerminal lets a terminal pass every key to the device until restore is called. What is no terminal stays as it is.
func rawTerminal(stdin io.Reader) (restore func(), terminal bool, err error) {
	f, ok := stdin.(*os.File)
	if !ok {
		return func() {}, false, nil
	}
	fd := int(f.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}, false, nil // not a terminal
	}
	raw := *before
	raw.Iflag &^= unix.BRKINT | unix.ICRNL | unix.INPCK | unix.ISTRIP | unix.IXON
	raw.Lflag &^= unix.ECHO | unix.ICANON | unix.IEXTEN | unix.ISIG
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, false, fmt.Errorf("terminal: %w", err)
	}
	return func() { unix.IoctlSetTermios(fd, unix.TCSETS, before) }, true, nil
}
