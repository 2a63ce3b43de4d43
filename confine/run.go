package confine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Run starts a worker, hands each of its frames to frame, in order, and returns
// when the worker is gone. The body is valid during the call only. An error of
// frame ends the worker; Run's error then wraps ErrAnswer and that error.
//
// Run kills the worker's whole PID namespace on an error, on a broken limit and
// when ctx is done, and reaps it. It works in PID 1 too; what else reaps there
// must not wait for any child (wait4 with -1) while a worker runs.
//
// Frames handed over before an error may be true or not: the caller throws them
// away.
func Run(ctx context.Context, s Spec, frame func(kind byte, body []byte) error) (Usage, error) {
	begin := time.Now()
	s, err := s.filled()
	if err != nil {
		return Usage{}, fmt.Errorf("worker %q: %w", s.Role, err)
	}
	// A worker is started by a thread of its own, which has given up what the
	// worker must not have, and which lives as long as Run: when that thread
	// ends, the kernel kills the worker (PR_SET_PDEATHSIG).
	done := make(chan struct{})
	defer close(done)
	type started struct {
		w   *worker
		err error
	}
	ready := make(chan started)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		w, err := start(s)
		ready <- started{w, err}
		<-done
	}()
	st := <-ready
	if st.err != nil {
		return Usage{}, fmt.Errorf("start worker %q: %w", s.Role, st.err)
	}
	w := st.w
	u, err := w.follow(ctx, s, begin, frame)
	if err != nil {
		err = fmt.Errorf("worker %q: %w", s.Role, err)
	}
	return u, err
}

func (s Spec) filled() (Spec, error) {
	if s.Memory == 0 {
		s.Memory = defaultMemory
	}
	if s.MemLimit == 0 {
		s.MemLimit = defaultMemLimit
	}
	if s.MaxBytes == 0 {
		s.MaxBytes = defaultMaxBytes
	}
	if s.Stall == 0 && s.Deadline == 0 {
		s.Deadline = defaultDeadline
	}
	if s.Exe == "" {
		s.Exe = "/proc/self/exe"
	}
	switch {
	case s.Role == "" || strings.IndexByte(s.Role, 0) >= 0:
		return s, errors.New("bad role")
	case s.UID <= 0 || s.UID >= 1<<31:
		return s, fmt.Errorf("uid %d", s.UID)
	case len(s.Files) > maxFiles:
		return s, fmt.Errorf("%d files, want at most %d", len(s.Files), maxFiles)
	case len(s.Input) > MaxInput:
		return s, fmt.Errorf("input of %d bytes, want at most %d", len(s.Input), MaxInput)
	case s.MemLimit < 0 || s.Memory <= s.MemLimit:
		return s, fmt.Errorf("soft memory limit %d is not below the hard one %d", s.MemLimit, s.Memory)
	case s.FileSize < 0 || s.CPU < 0 || s.Stall < 0 || s.Deadline < 0 || s.MaxBytes < 0 || s.Procs < 0:
		return s, errors.New("a limit is negative")
	}
	if s.Folder != nil && (s.Weak || s.unfiltered || !folders) {
		return s, errors.New("a folder, and no walls around it")
	}
	for _, f := range s.Files {
		if f == nil {
			return s, errors.New("a file is nil")
		}
	}
	return s, nil
}

// worker is a started child.
type worker struct {
	process *os.Process
	answer  *os.File // read end
	stderr  *os.File // read end
	weak    bool
}

func start(s Spec) (*worker, error) {
	input, err := memory(s.Input)
	if err != nil {
		return nil, fmt.Errorf("memory file for the job: %w", err)
	}
	defer input.Close()
	answerR, answerW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer answerW.Close()
	stderrR, stderrW, err := os.Pipe()
	if err != nil {
		answerR.Close()
		return nil, err
	}
	defer stderrW.Close()

	files := append([]*os.File{input, stderrW, stderrW}, s.Files...)
	files = append(files, answerW)
	if folders && s.Folder != nil {
		// A mount of its own, which can be put anywhere: the folder's is in another namespace than the worker's.
		fd, err := unix.OpenTree(int(s.Folder.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if err != nil {
			answerR.Close()
			stderrR.Close()
			return nil, fmt.Errorf("open the folder: %w", err)
		}
		mount := os.NewFile(uintptr(fd), "folder")
		defer mount.Close()
		files = append(files, mount)
	}
	w := &worker{answer: answerR, stderr: stderrR}
	w.process, err = spawn(s, files, 0)
	if err != nil && s.Weak && (os.Geteuid() != 0 || refused(err)) {
		w.weak = true
		w.process, err = spawn(s, files, weak)
	}
	if err != nil {
		answerR.Close()
		stderrR.Close()
		return nil, err
	}
	return w, nil
}

func refused(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOSPC)
}

func spawn(s Spec, files []*os.File, walls int64) (*os.Process, error) {
	env := []string{"GOMEMLIMIT=" + strconv.FormatInt(s.MemLimit, 10), "GOTRACEBACK=single"}
	if s.Procs > 0 {
		env = append(env, "GOMAXPROCS="+strconv.Itoa(s.Procs))
	}
	attr := &os.ProcAttr{Dir: "/", Env: env, Files: files}
	if walls == 0 {
		attr.Sys = &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWNS | unix.CLONE_NEWUTS,
		}
	}
	keep := setupCaps()
	if folders && s.Folder != nil {
		keep = append(keep, folderCaps(s.Devices)...)
	}
	if err := boundCaps(keep); err != nil && walls == 0 {
		return nil, err
	}
	l := limits{
		uid: s.UID, memory: s.Memory, fileSize: s.FileSize,
		cpu: int64((s.CPU + time.Second - 1) / time.Second), files: len(s.Files), input: len(s.Input),
		walls: walls,
	}
	if s.unfiltered {
		l.walls |= unfiltered
	}
	if folders && s.Folder != nil {
		l.walls |= folder
		if s.Devices {
			l.walls |= devices
		}
	}
	return os.StartProcess(s.Exe, []string{workerName, s.Role, l.String()}, attr)
}

// boundCaps takes from the calling thread, and so from what it starts, all
// capabilities of the bounding set but those that a child needs for confining itself, or keeps.
func boundCaps(keep []uintptr) error {
	for c := uintptr(0); c < 64; c++ {
		if slices.Contains(keep, c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err == unix.EINVAL {
			return nil // above the last one that the kernel knows
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// memory returns an unchangeable memory file: a worker that could write to it
// would have memory that no limit sees.
func memory(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("job", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "job")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

type ending struct {
	state *os.ProcessState
	err   error
}

// follow reads the worker's answer to its end, then sees the worker out.
func (w *worker) follow(ctx context.Context, s Spec, begin time.Time, frame func(byte, []byte) error) (Usage, error) {
	defer w.answer.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	said := make(chan string, 1)
	go func() {
		text := reason(w.stderr)
		w.stderr.Close() // who says more dies of a broken pipe
		said <- text
	}()
	ended := make(chan ending, 1)
	go func() {
		st, err := w.process.Wait()
		ended <- ending{st, err}
	}()

	broken := w.listen(ctx, s, begin, frame)
	var end ending
	gone := false
	if broken == nil {
		end, gone, broken = patience(ctx, s, begin, ended)
	}
	killed := false
	if !gone {
		killed = w.process.Kill() == nil
		timer := time.NewTimer(dieTimeout)
		defer timer.Stop()
		select {
		case end = <-ended:
		case <-timer.C:
			// The kernel lets a process that waits for a broken device
			// live on. The goroutine above reaps it when it is let go.
			return Usage{Wall: time.Since(begin), Weak: w.weak}, fmt.Errorf("%w: %w", ErrStuck, broken)
		}
	}
	// A weak worker may have left a process behind that holds the pipe.
	_ = w.stderr.SetReadDeadline(time.Now().Add(time.Second))
	text := <-said
	u := Usage{Wall: time.Since(begin), Weak: w.weak}
	if end.err != nil {
		return u, errors.Join(broken, fmt.Errorf("wait: %w", end.err))
	}
	var ru *syscall.Rusage
	if r, ok := end.state.SysUsage().(*syscall.Rusage); ok {
		ru = r
		u.MaxRSSKiB = int64(ru.Maxrss)
		u.CPU = end.state.UserTime() + end.state.SystemTime()
	}
	status, _ := end.state.Sys().(syscall.WaitStatus)
	return u, verdict(s, broken, killed, status, u.CPU, text)
}

// listen hands over frames until the answer ends (nil) or something breaks.
func (w *worker) listen(ctx context.Context, s Spec, begin time.Time, frame func(byte, []byte) error) error {
	in := frames{r: w.answer, left: s.MaxBytes}
	stop := context.AfterFunc(ctx, func() { _ = w.answer.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		_ = w.answer.SetReadDeadline(limit(s, begin))
		// Looked at after the deadline is set: else a context that ended just
		// before would be forgotten.
		if err := over(ctx, s, begin); err != nil {
			return err
		}
		kind, body, err := in.next()
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := over(ctx, s, begin); err != nil {
				return err
			}
			return fmt.Errorf("%w for %v", ErrStall, s.Stall)
		case err != nil:
			return err
		}
		if err := frame(kind, body); err != nil {
			return fmt.Errorf("%w: %w", ErrAnswer, err)
		}
	}
}

// patience waits for the process to end after its answer has ended.
func patience(ctx context.Context, s Spec, begin time.Time, ended <-chan ending) (ending, bool, error) {
	var late <-chan time.Time
	if t := limit(s, begin); !t.IsZero() {
		timer := time.NewTimer(time.Until(t))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case e := <-ended:
		return e, true, nil
	case <-ctx.Done():
		return ending{}, false, over(ctx, s, begin)
	case <-late:
		if err := over(ctx, s, begin); err != nil {
			return ending{}, false, err
		}
		return ending{}, false, fmt.Errorf("%w for %v", ErrStall, s.Stall)
	}
}

// limit is the moment until which silence is allowed; zero is for ever.
func limit(s Spec, begin time.Time) (t time.Time) {
	if s.Stall > 0 {
		t = time.Now().Add(s.Stall)
	}
	if s.Deadline > 0 {
		if d := begin.Add(s.Deadline); t.IsZero() || d.Before(t) {
			t = d
		}
	}
	return t
}

// over says whether the whole run has to end now.
func over(ctx context.Context, s Spec, begin time.Time) error {
	if err := ctx.Err(); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%w: %w", ErrDeadline, err)
		}
		return err
	}
	if s.Deadline > 0 && time.Since(begin) >= s.Deadline {
		return fmt.Errorf("%w: %v", ErrDeadline, s.Deadline)
	}
	return nil
}

// verdict says how the worker ended. What the worker itself ran into comes
// before what its end looked like from outside: a worker that dies of a panic
// also leaves half a frame.
func verdict(s Spec, broken error, killed bool, status syscall.WaitStatus, cpu time.Duration, text string) error {
	tail := ""
	if text != "" {
		tail = ": " + text
	}
	// Go's runtime says so, or runs into a nil pointer of its own where it gets no memory; one of ours is a panic.
	outOfMemory := strings.Contains(text, "out of memory") || strings.Contains(text, "cannot allocate memory") ||
		strings.Contains(text, "SIGSEGV: segmentation violation") && !strings.HasPrefix(text, "panic: ")
	switch {
	// RLIMIT_CPU ends a worker by SIGKILL, as the OOM killer does. The kernel
	// counts for it by ticks, the usage exactly: they differ under load.
	case status.Signaled() && status.Signal() == unix.SIGKILL && !killed && s.CPU > 0 && cpu >= s.CPU/2:
		return fmt.Errorf("%w of %v", ErrCPU, s.CPU)
	case status.Signaled() && status.Signal() == unix.SIGKILL && !killed:
		return fmt.Errorf("%w: killed by the kernel%s", ErrMemory, tail)
	case status.Exited() && status.ExitStatus() == 2 && outOfMemory:
		return fmt.Errorf("%w of %d MiB%s", ErrMemory, s.Memory>>20, tail)
	case status.Signaled() && !killed:
		return fmt.Errorf("%w: signal %v%s", ErrExit, status.Signal(), tail)
	case status.Exited() && status.ExitStatus() == setupExit:
		return fmt.Errorf("%w: cannot be confined%s", ErrExit, tail)
	case status.Exited() && status.ExitStatus() != 0:
		return fmt.Errorf("%w: exit status %d%s", ErrExit, status.ExitStatus(), tail)
	case broken != nil && tail != "":
		return fmt.Errorf("%w (it said%s)", broken, tail)
	}
	return broken
}
