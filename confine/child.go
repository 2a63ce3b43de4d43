package confine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Job is what a worker has.
type Job struct {
	Role  string
	Input []byte
	Files []*os.File

	mu     sync.Mutex
	answer *os.File
	buf    []byte
}

// Child returns nil in a normal process. In a worker it gives up everything
// that Spec did not grant, for all threads, before any byte from outside can be
// read, and returns the job; where that fails it ends the process. It must be
// called before anything opens a descriptor: all others than the job's
// are closed.
func Child() *Job {
	if len(os.Args) != 3 || os.Args[0] != workerName {
		return nil
	}
	l, err := parseLimits(os.Args[2])
	if err == nil {
		err = l.apply()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(setupExit)
	}
	j := &Job{Role: os.Args[1], Input: make([]byte, l.input)}
	for i := range l.files {
		j.Files = append(j.Files, os.NewFile(uintptr(firstFD+i), "job file "+strconv.Itoa(i)))
	}
	j.answer = os.NewFile(uintptr(firstFD+l.files), "answer")
	for at := 0; at < len(j.Input); {
		n, err := unix.Pread(inputFD, j.Input[at:], int64(at))
		if err == nil && n > 0 {
			at += n
		} else if err != unix.EINTR {
			fmt.Fprintln(os.Stderr, "read job:", err)
			os.Exit(setupExit)
		}
	}
	return j
}

// Send sends one frame to the caller of Run; body is at most MaxBody bytes. It
// may be called by several goroutines at once.
func (j *Job) Send(kind byte, body []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b, err := appendFrame(j.buf[:0], kind, body)
	if err != nil {
		return err
	}
	j.buf = b
	_, err = j.answer.Write(b)
	return err
}

// Exit ends the worker: with status 0 when err is nil, else with status 1 and
// err's text as the reason in Run's error. Open frames are all sent by then.
func (j *Job) Exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// limits is what the child applies to itself, as decimal numbers with ":"
// between them in its second argument.
type limits struct {
	uid              int
	memory, fileSize int64 // bytes
	cpu              int64 // seconds
	files            int
	input            int // bytes
	walls            int64
}

// walls are which walls a child has.
const (
	weak       = 1 << iota // no namespaces, empty root, uid and filter
	unfiltered             // no filter
	folder                 // a folder as its root
	devices                // in which it makes device nodes
)

func (l limits) String() string {
	return fmt.Sprintf("%d:%d:%d:%d:%d:%d:%d", l.uid, l.memory, l.fileSize, l.cpu, l.files, l.input, l.walls)
}

func parseLimits(s string) (limits, error) {
	var v [7]int64
	fields := strings.Split(s, ":")
	if len(fields) != len(v) {
		return limits{}, fmt.Errorf("limits %q", s)
	}
	for i, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil || n < 0 {
			return limits{}, fmt.Errorf("limits %q", s)
		}
		v[i] = n
	}
	l := limits{uid: int(v[0]), memory: v[1], fileSize: v[2], cpu: v[3], files: int(v[4]), input: int(v[5]), walls: v[6]}
	if v[0] == 0 || v[0] >= 1<<31 || v[1] == 0 || v[4] > maxFiles || v[5] > MaxInput {
		return limits{}, fmt.Errorf("limits %q", s)
	}
	return l, nil
}

func (l limits) apply() error {
	root := firstFD + l.files + 1
	last := root
	if folders && l.walls&folder != 0 {
		last++
	}
	if err := closeFrom(last); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	// First choice of the kernel's OOM killer; as long as there is a /proc.
	if err := offerToOOM(); err != nil && l.walls&weak == 0 {
		return fmt.Errorf("write oom_score_adj: %w", err)
	}
	for _, r := range l.rlimits() {
		if err := unix.Prlimit(0, r.resource, &unix.Rlimit{Cur: r.max, Max: r.max}, nil); err != nil {
			return fmt.Errorf("set limit %d to %d: %w", r.resource, r.max, err)
		}
	}
	if l.walls&weak == 0 {
		var keep []uintptr
		err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		switch {
		case err != nil:
			return fmt.Errorf("make mounts private: %w", err)
		case folders && l.walls&folder != 0:
			keep = folderCaps(l.walls&devices != 0)
			err = enterFolder(root)
		default:
			err = enterEmptyRoot()
		}
		if err != nil {
			return err
		}
		if err := dropUser(l.uid, keep); err != nil {
			return err
		}
	}
	// Changing the uid has cleared both, so they come last.
	if err := everyThread(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	// It belongs to this thread and acts on the whole process; Go's threads stay.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("parent death signal: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("not dumpable: %w", err)
	}
	if l.walls&(weak|unfiltered) != 0 {
		return nil
	}
	return filterCalls(l.walls&folder != 0)
}

type rlimit struct {
	resource int
	max      uint64
}

func (l limits) rlimits() []rlimit {
	out := []rlimit{
		{unix.RLIMIT_DATA, uint64(l.memory)},
		{unix.RLIMIT_NOFILE, maxOpen},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_MEMLOCK, 0},
		{unix.RLIMIT_MSGQUEUE, 0},
	}
	if l.walls&weak == 0 { // counted per uid, which a weak worker shares with its caller
		out = append(out, rlimit{unix.RLIMIT_NPROC, maxTasks})
	}
	if l.cpu > 0 {
		out = append(out, rlimit{unix.RLIMIT_CPU, uint64(l.cpu)})
	}
	if l.fileSize > 0 {
		out = append(out, rlimit{unix.RLIMIT_FSIZE, uint64(l.fileSize)})
	}
	return out
}

// enterEmptyRoot makes an empty read-only file system the root. It is mounted
// over /proc, the one folder that must be there, in the worker's own mount
// namespace: nothing has to be prepared and nothing is left. pivot_root can't
// do it, an initramfs can't be pivoted away.
func enterEmptyRoot() error {
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("empty", "/proc", "ramfs", flags, "mode=0555"); err != nil {
		return fmt.Errorf("mount the empty root: %w", err)
	}
	return enter()
}

// enterFolder makes the mount behind a descriptor the root, in the same way,
// and closes the descriptor.
func enterFolder(fd int) error {
	const flags = unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the folder: %w", err)
	}
	if err := unix.Mount("", "/proc", "", flags|unix.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("mount the folder: %w", err)
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	return enter()
}

func enter() error {
	if err := unix.Chroot("/proc"); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	return nil
}

// folderCaps are what a worker keeps that makes files in a folder. Labels and
// attributes of the system need CAP_SYS_ADMIN; what else that allows takes
// system calls that the filter does not.
func folderCaps(devices bool) []uintptr {
	caps := []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETFCAP, unix.CAP_SYS_ADMIN}
	if devices {
		caps = append(caps, unix.CAP_MKNOD)
	}
	return caps
}

// setupCaps are the capabilities that a child needs to confine itself: all that
// are left in its bounding set when it starts.
func setupCaps() []uintptr {
	return []uintptr{
		unix.CAP_SETPCAP, unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SYS_CHROOT, unix.CAP_SYS_ADMIN,
		unix.CAP_SYS_RESOURCE, // limits above inherited ones
	}
}

// dropUser gives up root and all capabilities but keep, in every thread.
func dropUser(uid int, keep []uintptr) error {
	// The others are gone already: Run's thread has dropped them, and each
	// call for all threads costs more than the forty there.
	drop := setupCaps()
	if folders {
		drop = append(drop, keep...)
	}
	for _, c := range drop {
		if err := everyThread(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("drop groups: %w", err)
	}
	if folders && len(keep) > 0 {
		if err := everyThread(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1); err != nil {
			return fmt.Errorf("keep capabilities: %w", err)
		}
	}
	if err := syscall.Setresgid(uid, uid, uid); err != nil {
		return fmt.Errorf("set gid: %w", err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("set uid: %w", err)
	}
	// Ambient capabilities go with the permitted ones.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if folders {
		for _, c := range keep {
			sets[c/32].Permitted |= 1 << (c % 32)
			sets[c/32].Effective |= 1 << (c % 32)
		}
	}
	if err := everyThread(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0]))); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

func everyThread(nr, a, b uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall(nr, a, b, 0); errno != 0 {
		if errno == unix.ENOTSUP {
			return errors.New("built with cgo")
		}
		return errno
	}
	return nil
}

// offerToOOM avoids os.File, which would start the runtime's poller.
func offerToOOM() error {
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("1000"))
	return err
}

// closeFrom closes all descriptors from fd on.
func closeFrom(fd int) error {
	err := unix.CloseRange(uint(fd), ^uint(0)>>1&0x7fffffff, 0)
	if err != unix.ENOSYS {
		return err
	}
	// Before Linux 5.9.
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return err
	}
	for ; uint64(fd) < min(r.Cur, 1<<16); fd++ {
		_ = unix.Close(fd)
	}
	return nil
}
