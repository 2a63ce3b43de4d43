package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// VM is a virtual device. It can be switched off and on again: its console and its events go on as one sequence.
// Its methods may be called from several goroutines, but there is one reading position of each sequence.
type VM struct {
	machine   Machine
	ctx       context.Context
	temporary bool // machine.Dir is ours to remove
	console   *console
	events    *events
	serialLog *os.File

	mu      sync.Mutex
	sticks  []Stick
	process *process // nil: off
}

// process is one run of QEMU, from power on to power off.
type process struct {
	cmd   *exec.Cmd
	qmp   *qmp
	input *os.File      // to the serial port
	done  chan struct{} // closed when QEMU is gone and all it wrote has been taken
	err   error         // how QEMU ended; valid after done
}

// Start powers a machine on. Ending ctx cuts its power, and so does the end of this process.
func Start(ctx context.Context, m Machine) (*VM, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	v := &VM{machine: m, ctx: ctx, console: newConsole(), events: newEvents(), sticks: slices.Clone(m.Sticks)}
	if m.Dir == "" {
		dir, err := os.MkdirTemp("", "lifeboat-vm-")
		if err != nil {
			return nil, err
		}
		v.machine.Dir, v.temporary = dir, true
	} else if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(v.machine.Dir, serialFile))
	if err != nil {
		v.Close()
		return nil, err
	}
	v.serialLog = log
	if err := v.PowerOn(); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// PowerOn starts the machine again after Cut, Quit or its own end: same disk, same error record storage, the sticks
// that are plugged in now.
func (v *VM) PowerOn() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.process != nil {
		select {
		case <-v.process.done:
		default:
			return errors.New("virtual device: is on already")
		}
	}
	sticks := v.sticks
	if v.machine.From != nil {
		sticks = nil // there were none when it was saved
	}
	args, err := v.machine.args(sticks)
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(v.machine.Dir, repeatFile), []byte(repeatScript(args)), 0o755)
	if err != nil {
		return err
	}
	sink := []io.Writer{v.serialLog}
	if v.machine.Output != nil {
		sink = append(sink, v.machine.Output)
	}
	sink = append(sink, v.console) // last: what Expect has seen is in Output too
	p, err := startProcess(v.ctx, args, io.MultiWriter(sink...), v.console, v.events)
	if err != nil {
		return fmt.Errorf("start the virtual device: %w", err)
	}
	v.process = p
	seen := v.events.count()
	if _, err = p.qmp.call("qmp_capabilities", nil); err == nil && v.machine.From != nil {
		err = v.restore(p, seen)
	}
	if err != nil {
		p.kill()
		return fmt.Errorf("start the virtual device: %w", errors.Join(p.err, err))
	}
	return nil
}

// startProcess runs QEMU with the serial port on its standard input and output (a full pipe holds the guest's
// port back, so nothing is lost) and QMP on descriptor 3. text and ev are live until the process is done.
func startProcess(ctx context.Context, args []string, serial io.Writer, text *console, ev *events) (*process, error) {
	var ends [6]*os.File // stdin r w, stdout r w, qmp ours theirs
	closeEnds := func(which ...int) {
		for _, i := range which {
			if ends[i] != nil {
				ends[i].Close()
			}
		}
	}
	var err error
	for i := 0; i < len(ends) && err == nil; i += 2 {
		pair := os.Pipe
		if i == 4 {
			pair = socketpair
		}
		ends[i], ends[i+1], err = pair()
	}
	if err != nil {
		closeEnds(0, 1, 2, 3, 4, 5)
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(slices.Clone(args),
		"-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")...)
	var complaint strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = ends[0], ends[3], &complaint, []*os.File{ends[5]}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}

	started, exited := make(chan error), make(chan struct{})
	p := &process{cmd: cmd, input: ends[1], done: make(chan struct{})}
	go func() {
		// The parent-death signal belongs to the thread that forks: it has to live as long as QEMU.
		runtime.LockOSThread()
		err := cmd.Start()
		closeEnds(0, 3, 5)
		started <- err
		if err != nil {
			return
		}
		if p.err = cmd.Wait(); p.err != nil && complaint.Len() > 0 {
			p.err = fmt.Errorf("%w: %s", p.err, strings.TrimSpace(complaint.String()))
		}
		close(exited)
	}()
	if err := <-started; err != nil {
		closeEnds(1, 2, 4)
		return nil, err
	}
	text.setLive(true)
	ev.setLive(true)
	p.qmp = newQMP(ends[4], ev)
	go func() {
		if _, err := io.Copy(serial, ends[2]); err != nil {
			io.Copy(io.Discard, ends[2]) // whoever no longer listens must not stop the machine
		}
		<-exited
		<-p.qmp.gone
		closeEnds(1, 2, 4)
		text.setLive(false)
		ev.setLive(false)
		close(p.done)
	}()
	return p, nil
}

func socketpair() (*os.File, *os.File, error) {
	fd, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fd[0]), "qmp"), os.NewFile(uintptr(fd[1]), "qmp"), nil
}

func (p *process) kill() {
	p.cmd.Process.Kill() // fails only where it has ended already
	<-p.done
}

// running returns the process that is on.
func (v *VM) running() (*process, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.process.done:
		return nil, ErrEnded
	default:
		return v.process, nil
	}
}

// Expect waits until the serial console shows a match of pattern (syntax of package regexp) after the place where the
// last Expect stopped reading, and returns the match and its groups. Lines end with "\n" alone.
// A match at the very end of the output counts only when it can no longer grow: more follows, or the console is quiet.
// The error wraps ErrTimeout or ErrEnded.
func (v *VM) Expect(timeout time.Duration, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	return v.console.expect(timeout, re)
}

// Console returns everything that the serial console has shown since the first PowerOn.
func (v *VM) Console() string { return v.console.all() }

// Event waits for the next event of that name after the last one returned; others in between are passed over.
// The error wraps ErrTimeout or ErrEnded.
func (v *VM) Event(timeout time.Duration, name string) (Event, error) {
	return v.events.expect(timeout, -1, name, func(e Event) bool { return e.Name == name })
}

// Type sends text to the serial console as a keyboard would; it blocks while the guest does not take it.
func (v *VM) Type(text string) error {
	p, err := v.running()
	if err != nil {
		return err
	}
	_, err = io.WriteString(p.input, text)
	return err
}

// PlugStick plugs a stick in; the guest sees it about 0.35 s later.
func (v *VM) PlugStick(s Stick) error {
	if err := s.check(); err != nil {
		return err
	}
	p, err := v.running()
	if err != nil {
		return fmt.Errorf("plug in %s: %w", s.Name, err)
	}
	if err := p.plug(s); err != nil {
		return err
	}
	v.mu.Lock()
	v.sticks = append(v.sticks, s)
	v.mu.Unlock()
	return nil
}

// PlugIn plugs a stick in while the machine is off.
func (v *VM) PlugIn(s Stick) error {
	if err := s.check(); err != nil {
		return err
	}
	if _, err := v.running(); err == nil {
		return fmt.Errorf("plug in %s: the machine is on", s.Name)
	}
	v.mu.Lock()
	v.sticks = append(v.sticks, s)
	v.mu.Unlock()
	return nil
}

func (p *process) plug(s Stick) error {
	node, err := stickBlock(s)
	if err == nil {
		_, err = p.qmp.call("blockdev-add", node)
	}
	if err != nil {
		return fmt.Errorf("plug in %s: %w", s.Name, err)
	}
	if _, err := p.qmp.call("device_add", stickDevice(s)); err != nil {
		_, err2 := p.qmp.call("blockdev-del", map[string]any{"node-name": stickNode(s.Name)})
		return fmt.Errorf("plug in %s: %w", s.Name, errors.Join(err, err2))
	}
	return nil
}

// PullStick pulls a stick out, whatever the guest is doing with it, and returns when it is gone.
func (v *VM) PullStick(name string) error {
	p, err := v.running()
	if err != nil {
		return fmt.Errorf("pull out %s: %w", name, err)
	}
	seen := v.events.count()
	if _, err := p.qmp.call("device_del", map[string]any{"id": name}); err != nil {
		return fmt.Errorf("pull out %s: %w", name, err)
	}
	_, err = v.events.expect(20*time.Second, seen, "DEVICE_DELETED", func(e Event) bool {
		return e.Name == "DEVICE_DELETED" && e.Data["device"] == name
	})
	if err != nil {
		return fmt.Errorf("pull out %s: %w", name, err)
	}
	v.mu.Lock()
	v.sticks = slices.DeleteFunc(v.sticks, func(s Stick) bool { return s.Name == name })
	v.mu.Unlock()
	if _, err := p.qmp.call("blockdev-del", map[string]any{"node-name": stickNode(name)}); err != nil {
		return fmt.Errorf("pull out %s: %w", name, err)
	}
	return nil
}

// Reset presses the reset button. The disk keeps every write that the guest saw completed.
func (v *VM) Reset() error { return v.command("system_reset") }

// Screen returns what a VGA card of the machine (Args "-device", "VGA") shows in text mode: 25 lines of 80 characters,
// without the blanks at their ends.
func (v *VM) Screen() (string, error) {
	p, err := v.running()
	if err != nil {
		return "", fmt.Errorf("screen: %w", err)
	}
	const memory, columns, lines = 0xb8000, 80, 25
	out := filepath.Join(v.machine.Dir, "screen.bin")
	if _, err := p.qmp.call("pmemsave", map[string]any{"val": memory, "size": columns * lines * 2, "filename": out}); err != nil {
		return "", err
	}
	b, err := os.ReadFile(out)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for line := range slices.Chunk(b, columns*2) {
		row := make([]byte, 0, columns)
		for i := 0; i < len(line); i += 2 { // character, colour
			row = append(row, line[i])
		}
		text.WriteString(strings.TrimRight(string(row), " \x00") + "\n")
	}
	return text.String(), nil
}

// Key presses a key of the PS/2 keyboard, by QEMU's name for it ("f8"), or lets it go.
func (v *VM) Key(name string, down bool) error {
	p, err := v.running()
	if err != nil {
		return fmt.Errorf("key %s: %w", name, err)
	}
	key := map[string]any{"type": "key", "data": map[string]any{"down": down, "key": map[string]any{"type": "qcode", "data": name}}}
	_, err = p.qmp.call("input-send-event", map[string]any{"events": []any{key}})
	return err
}

// Quit ends QEMU in order: writes under way are completed. It is not a power cut.
func (v *VM) Quit() error {
	if err := v.command("quit"); err != nil {
		return err
	}
	return v.Wait(20 * time.Second)
}

func (v *VM) command(name string) error {
	p, err := v.running()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = p.qmp.call(name, nil)
	return err
}

// Cut cuts the power: QEMU is killed. Requests that were under way reach the image in part or not at all; completed
// ones are in the image, flushed or not. It returns when the image is no longer in use.
func (v *VM) Cut() {
	v.mu.Lock()
	p := v.process
	v.mu.Unlock()
	p.kill()
}

// Wait waits until the machine is off: power off by the guest, a reset with NoReboot, Quit, Cut.
// The error wraps ErrTimeout, or is QEMU's own when it failed.
func (v *VM) Wait(timeout time.Duration) error {
	v.mu.Lock()
	p := v.process
	v.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-time.After(timeout):
		return fmt.Errorf("wait for power off: %w after %v", ErrTimeout, timeout)
	}
}

// Dir is the folder with serial.log, repeat.sh and erst.img.
func (v *VM) Dir() string { return v.machine.Dir }

// Close cuts the power if it is still on and removes Dir unless the caller named it.
func (v *VM) Close() {
	if v.process != nil {
		v.Cut()
	}
	if v.serialLog != nil {
		v.serialLog.Close()
	}
	if v.temporary {
		os.RemoveAll(v.machine.Dir)
	}
}
