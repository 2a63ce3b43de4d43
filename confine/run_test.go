package confine

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces and a uid of its own for the worker need root")
	}
}

// children says which of the caller's children exist, zombies included.
func children(t testing.TB) string {
	t.Helper()
	var all []string
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(files) == 0 {
		t.Fatal("cannot list children:", err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && len(b) > 0 {
			all = append(all, string(b))
		}
	}
	return strings.Join(all, " ")
}

func descriptors(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func noFrame(byte, []byte) error { return errors.New("no frame was expected") }

// A worker that panics, loops, eats memory, hangs or lies costs an error and
// leaves nothing: no process, no zombie, no descriptor.
func TestHostileWorkers(t *testing.T) {
	needRoot(t)
	anyFrame := func(byte, []byte) error { return nil }
	short := Spec{Deadline: 20 * time.Second}
	// The first one also gets this process its poller.
	_, _ = Run(context.Background(), Spec{Role: "exit0", UID: 65501, Deadline: 20 * time.Second}, noFrame)
	for _, c := range []struct {
		role  string
		spec  Spec
		frame func(byte, []byte) error
		want  error
		text  string
		most  time.Duration
	}{
		{"fail", short, noFrame, ErrExit, "exit status 1: first line / no bundle?[31m here", 0},
		{"panic", short, noFrame, ErrExit, "panic: runtime error: invalid memory address", 0},
		{"index", short, noFrame, ErrExit, "exit status 2: panic: runtime error: index out of range", 0},
		{"no such role", short, noFrame, ErrExit, "no such role", 0},
		{"spin", Spec{CPU: time.Second, Deadline: 20 * time.Second}, noFrame, ErrCPU, "of 1s", 15 * time.Second},
		{"spin all", Spec{CPU: time.Second, Deadline: 20 * time.Second}, noFrame, ErrCPU, "of 1s", 15 * time.Second},
		{"spin", Spec{Stall: 100 * time.Millisecond}, noFrame, ErrStall, "for 100ms", 5 * time.Second},
		{"spin all", Spec{Deadline: 100 * time.Millisecond}, noFrame, ErrDeadline, "100ms", 5 * time.Second},
		{"hang", Spec{Stall: 100 * time.Millisecond}, noFrame, ErrStall, "for 100ms", 5 * time.Second},
		{"hang", Spec{Stall: time.Hour, Deadline: 100 * time.Millisecond}, noFrame, ErrDeadline, "100ms", 5 * time.Second},
		{"hang closed", Spec{Stall: 100 * time.Millisecond}, noFrame, ErrStall, "for 100ms", 5 * time.Second},
		{"hang closed", Spec{Deadline: 100 * time.Millisecond}, noFrame, ErrDeadline, "100ms", 5 * time.Second},
		{"slow", Spec{Stall: 5 * time.Second, Deadline: 150 * time.Millisecond}, anyFrame, ErrDeadline, "150ms", 5 * time.Second},
		{"slow", Spec{Stall: 10 * time.Millisecond}, anyFrame, ErrStall, "", 5 * time.Second},
		{"eat", short, noFrame, ErrMemory, "of 128 MiB: ", 0},
		{"eat", Spec{Memory: 48 << 20, Deadline: 20 * time.Second}, noFrame, ErrMemory, "of 48 MiB: ", 0},
		{"eat at once", short, noFrame, ErrMemory, "of 128 MiB: ", 0},
		{"eat stacks", short, noFrame, ErrMemory, "of 128 MiB: ", 0},
		{"garbage", short, noFrame, ErrAnswer, "no frame in 48 54 54 50", 0},
		{"long frame", short, noFrame, ErrAnswer, "no frame in 4c 01 ff ff", 0},
		{"half frame", short, noFrame, ErrAnswer, "ends inside a frame", 0},
		{"flood", short, anyFrame, ErrAnswer, "too much", 0},
		{"flood empty", short, anyFrame, ErrAnswer, "too much", 0},
		{"flood stderr", short, noFrame, ErrExit, "xxxxxxxx", 5 * time.Second},
		{"echo", Spec{Input: []byte("x"), Deadline: 20 * time.Second}, noFrame, ErrAnswer, "no frame was expected", 0},
		{"threads", short, noFrame, ErrExit, "failed to create new OS thread", 0},
	} {
		t.Run(fmt.Sprintf("%s/%v", c.role, c.want), func(t *testing.T) {
			before := descriptors(t)
			s := c.spec
			s.Role, s.UID = c.role, 65501
			u, err := Run(context.Background(), s, c.frame)
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
			if n := len(fmt.Sprint(err)); n > maxReason+200 {
				t.Errorf("error text has %d bytes", n)
			}
			if c.most > 0 && u.Wall > c.most {
				t.Errorf("took %v", u.Wall)
			}
			limit := int64(c.spec.Memory)
			if limit == 0 {
				limit = defaultMemory
			}
			if u.MaxRSSKiB == 0 || u.MaxRSSKiB > limit>>10+32<<10 {
				t.Errorf("peak of %d KiB", u.MaxRSSKiB)
			}
			if left := children(t); left != "" {
				t.Errorf("children left: %s", left)
			}
			if after := descriptors(t); after > before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
			t.Logf("%v, %d KiB, cpu %v: %v", u.Wall.Round(time.Millisecond), u.MaxRSSKiB, u.CPU.Round(time.Millisecond), err)
		})
	}
}

func try(t *testing.T, s Spec) map[string]string {
	t.Helper()
	s.Role, s.UID, s.Deadline = "try", 65502, 20*time.Second
	s.Input = strconv.AppendInt(nil, int64(os.Getpid()), 10)
	got := map[string]string{}
	if _, err := Run(context.Background(), s, func(_ byte, b []byte) error {
		name, val, _ := strings.Cut(string(b), "=")
		got[name] = val
		return nil
	}); err != nil {
		t.Error(err)
	}
	if len(got) != len(attempts()) {
		t.Errorf("%d answers to %d attempts", len(got), len(attempts()))
	}
	if left := children(t); left != "" {
		t.Errorf("children left: %s", left)
	}
	return got
}

// With everything in place each way out ends at the system call filter, but for
// those calls that a worker needs for other things.
func TestRefused(t *testing.T) {
	needRoot(t)
	other := map[string]string{
		"50 open files":   "too many open files",
		"lower oom score": "open /proc/self/oom_score_adj: operation not permitted",
	}
	for name, got := range try(t, Spec{}) {
		want := "operation not permitted"
		if o := other[name]; o != "" {
			want = o
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// Without the filter (a kernel that has none) the other walls hold alone. Only
// what no other wall covers succeeds, and that is bounded by the limits.
func TestRefusedWithoutFilter(t *testing.T) {
	needRoot(t)
	const (
		perm    = "operation not permitted"
		absent  = "no such file or directory"
		ro      = "read-only file system"
		noProc  = "no such process"
		noRoute = "network is unreachable"
		mapped  = "<nil>"
	)
	want := map[string]string{
		"open /etc/passwd": absent, "open /proc/1/mem": absent, "open /dev/vda": absent, "open ../../etc": absent,
		"create file": ro, "mkdir": ro, "mknod": ro, "mount": perm, "umount": perm, "chroot": perm,
		"setuid": perm, "setgid": perm, "setgroups": perm, "capset": perm,
		"new user namespace": perm, "new mount namespace": perm, "raise limit": perm,
		"kill all": noProc, "kill parent": noProc, "ptrace": noProc, "read other memory": noProc,
		"connect outside": noRoute, "connect own loopback": noRoute, "exec": absent,
		"write job": perm, "grow job": perm, "reboot": perm, "load module": perm, "set host name": perm, "set clock": perm,
		"bpf": perm, "read kernel log": perm, "lower oom score": "open /proc/self/oom_score_adj: " + absent,
		"50 open files": "too many open files",
		"shared memory": mapped, "executable memory": mapped, "memory file": mapped,
		"stack without limit": mapped, "large pipe": mapped, "pass on a descriptor": mapped,
		"terminal ioctl": "inappropriate ioctl for device",
		"fork bomb":      "resource temporarily unavailable",
	}
	got := try(t, Spec{unfiltered: true})
	if got["load module"] == "function not implemented" { // this kernel has no modules
		got["load module"] = perm
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("refusals (-want +got):\n%s", diff)
	}
}

// A worker with a folder makes files in it, and has no way out of it: each of the attempts ends as without one, but for those
// that stay inside.
func TestFolder(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("folder", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const absent = "no such file or directory"
	inside := map[string]string{
		"50 open files": "too many open files", "lower oom score": "open /proc/self/oom_score_adj: " + absent,
		"open /etc/passwd": absent, "open /proc/1/mem": absent, "open /dev/vda": absent, "open ../../etc": absent,
		"create file": "<nil>", "mkdir": "file exists",
	}
	for _, devices := range []bool{false, true} {
		if devices {
			inside["mknod"] = "<nil>"
		}
		for name, got := range try(t, Spec{Folder: f, Devices: devices}) {
			want := "operation not permitted"
			if o := inside[name]; o != "" {
				want = o
			}
			if got != want {
				t.Errorf("devices %v: %s: %s, want %s", devices, name, got, want)
			}
		}
		if err := os.Remove(filepath.Join(dir, "x")); err != nil {
			t.Error(err)
		}
	}
	if _, err := Run(context.Background(), Spec{Role: "echo", UID: 65501, Folder: f, Weak: true}, noFrame); err == nil {
		t.Error("a worker with a folder runs without walls")
	}
	if _, err := Run(context.Background(), Spec{Role: "folder", UID: 65501, Folder: f, Deadline: 20 * time.Second}, noFrame); err != nil {
		t.Error(err)
	}
	st, err := os.Stat(filepath.Join(dir, "made"))
	if err != nil || st.Sys().(*syscall.Stat_t).Uid != 1000 || st.Mode() != fs.ModeSetuid|0o755 {
		t.Errorf("the file that it made: %v, %v", st, err)
	}
}

// The filter is a list: whatever system call it has no line for is refused, in each of the kernel's tables.
func TestEveryCall(t *testing.T) {
	needRoot(t)
	for _, nr := range []uint32{
		unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_SOCKET, unix.SYS_MKNODAT, unix.SYS_MOUNT, unix.SYS_FSOPEN, unix.SYS_PTRACE, unix.SYS_KILL,
		unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_IO_URING_SETUP, unix.SYS_BPF, unix.SYS_USERFAULTFD, unix.SYS_UNSHARE,
		unix.SYS_SETNS, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_PERF_EVENT_OPEN, unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_MPROTECT,
		unix.SYS_MREMAP, unix.SYS_MEMFD_CREATE, unix.SYS_SHMGET, unix.SYS_IOCTL, unix.SYS_PRCTL, unix.SYS_PRLIMIT64, unix.SYS_SENDMSG,
		unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_REBOOT, unix.SYS_KEXEC_LOAD, unix.SYS_SYSLOG,
	} {
		if listed(nr) || nr >= maxCall {
			t.Errorf("system call %d is not looked at", nr)
		}
	}
	if _, err := Run(context.Background(), Spec{Role: "every call", UID: 65501, Deadline: 20 * time.Second}, noFrame); err != nil {
		t.Error(err)
	}
	if runtime.GOARCH != "amd64" {
		return
	}
	_, err := Run(context.Background(), Spec{Role: "call of 32 bits", UID: 65501, Deadline: 20 * time.Second}, noFrame)
	if err == nil || !strings.Contains(err.Error(), "bad system call") && !strings.Contains(err.Error(), "SIGSEGV") { // a kernel that has none
		t.Errorf("a system call of 32 bits: %v", err)
	}
}

var partition = flag.String("partition", "", "of a disk, to be broken out of; its content is lost")

// With a partition's descriptors nothing beside it can be reached, and nothing be written where it was opened read-only.
func TestBreakIn(t *testing.T) {
	needRoot(t)
	if *partition == "" {
		t.Skip("no -partition: the virtual device has one (qemu/story)")
	}
	rw, err := os.OpenFile(*partition, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rw.Close()
	ro, err := os.Open(*partition)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	for _, unfiltered := range []bool{false, true} {
		if _, err := Run(context.Background(), Spec{
			Role: "break in", UID: 65501, Files: []*os.File{rw, ro}, Deadline: time.Minute, unfiltered: unfiltered,
		}, func(_ byte, b []byte) error {
			// What the kernel lets who may write do to its own partition is no way out.
			if unfiltered && slices.Contains([]string{"BLKDISCARD", "BLKZEROOUT", "BLKSECDISCARD"}, string(b)) {
				return nil
			}
			t.Errorf("unfiltered %v: it could %s", unfiltered, b)
			return nil
		}); err != nil {
			t.Errorf("unfiltered %v: %v", unfiltered, err)
		}
	}
}

func TestState(t *testing.T) {
	needRoot(t)
	// A descriptor that is not marked close-on-exec must not reach the worker.
	stray, err := unix.Open("/proc/self/exe", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stray)
	f := temp(t, "x")
	var got string
	if _, err := Run(context.Background(), Spec{
		Role: "state", UID: 65503, Files: []*os.File{f, f}, CPU: 1500 * time.Millisecond, Procs: 2, Deadline: 20 * time.Second, unfiltered: true,
	}, func(_ byte, b []byte) error { got = string(b); return nil }); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"pid=1", "ppid=0", "uid=65503", "euid=65503", "gid=65503", "groups=0", "nnp=1", "dumpable=0", "bounding=0",
		"caps=[{0 0 0} {0 0 0}]", "env=GOMEMLIMIT=16777216,GOTRACEBACK=single,GOMAXPROCS=2",
		"data=134217728/134217728", "nofile=64/64", "core=0/0", "nproc=64/64", "cpu=2/2", "open=[0 1 2 3 4 5]", "root=0 <nil>", "",
	}, "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
}

// Every thread of the worker is confined, not only the one that made the calls.
func TestThreads(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	checked := 0
	_, err := Run(ctx, Spec{Role: "slow", UID: 65504, Stall: 10 * time.Second}, func(byte, []byte) error {
		pids := strings.Fields(children(t))
		if len(pids) != 1 {
			return fmt.Errorf("children %v", pids)
		}
		if b, err := os.ReadFile("/proc/" + pids[0] + "/oom_score_adj"); err != nil || strings.TrimSpace(string(b)) != "1000" {
			return fmt.Errorf("oom_score_adj %q, %v", b, err)
		}
		files, _ := filepath.Glob("/proc/" + pids[0] + "/task/*/status")
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			for _, want := range []string{
				"Uid:\t65504\t65504\t65504\t65504\n", "Gid:\t65504\t65504\t65504\t65504\n",
				"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
				"CapBnd:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
			} {
				if !strings.Contains(string(b), want) {
					t.Errorf("%s lacks %q", name, want)
				}
			}
			checked++
		}
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if checked < 3 {
		t.Errorf("only %d threads seen", checked)
	}
	// The caller has kept what it had.
	b, _ := os.ReadFile("/proc/self/status")
	if !strings.Contains(string(b), "Uid:\t0\t0\t0\t0\n") {
		t.Error("the caller's uid has changed")
	}
}

func temp(t *testing.T, content string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Descriptors are the only rights: order, content and access mode arrive, though
// the worker could not have opened any of the files itself.
func TestFiles(t *testing.T) {
	needRoot(t)
	a, b := temp(t, "one"), temp(t, "two")
	var got []string
	spec := Spec{Role: "files", UID: 65501, Files: []*os.File{a, b}, Deadline: 20 * time.Second}
	if _, err := Run(context.Background(), spec, func(_ byte, b []byte) error { got = append(got, string(b)); return nil }); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"one", "two"}, got); diff != "" {
		t.Error(diff)
	}
	spec.Role = "write"
	if _, err := Run(context.Background(), spec, noFrame); !errors.Is(err, ErrExit) || !strings.Contains(err.Error(), "bad file descriptor") {
		t.Errorf("write to a read-only descriptor: %v", err)
	}
	rw, err := os.OpenFile(a.Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rw.Close()
	spec.Files = []*os.File{rw}
	spec.Role = "work"
	if _, err := Run(context.Background(), spec, func(byte, []byte) error { return nil }); err != nil {
		t.Errorf("honest work: %v", err)
	}
	spec.Role, spec.FileSize = "grow", 64<<10
	if _, err := Run(context.Background(), spec, noFrame); !errors.Is(err, ErrExit) || !strings.Contains(err.Error(), "file too large") {
		t.Errorf("grow beyond FileSize: %v", err)
	}
}

func TestInput(t *testing.T) {
	needRoot(t)
	for _, n := range []int{0, 1, MaxBody} {
		in := []byte(strings.Repeat("j", n))
		got := []byte{}
		if _, err := Run(context.Background(), Spec{Role: "echo", UID: 65501, Input: in, Deadline: 20 * time.Second}, func(kind byte, b []byte) error {
			if kind != 'e' {
				t.Errorf("kind %d", kind)
			}
			got = append(got, b...)
			return nil
		}); err != nil {
			t.Error(err)
		}
		if string(got) != string(in) {
			t.Errorf("sent %d bytes, %d came back", n, len(got))
		}
	}
	if _, err := Run(context.Background(), Spec{Role: "exit0", UID: 65501, Input: make([]byte, MaxInput), Deadline: 20 * time.Second}, noFrame); err != nil {
		t.Error(err)
	}
}

func TestSpec(t *testing.T) {
	good := Spec{Role: "echo", UID: 65501}
	for name, change := range map[string]func(*Spec){
		"root":            func(s *Spec) { s.UID = 0 },
		"no role":         func(s *Spec) { s.Role = "" },
		"large job":       func(s *Spec) { s.Input = make([]byte, MaxInput+1) },
		"soft above hard": func(s *Spec) { s.Memory = 8 << 20 },
		"negative limit":  func(s *Spec) { s.Stall = -1 },
		"nil file":        func(s *Spec) { s.Files = []*os.File{nil} },
		"many files":      func(s *Spec) { s.Files = make([]*os.File, maxFiles+1) },
		"no program":      func(s *Spec) { s.Exe = "/does/not/exist" },
	} {
		s := good
		change(&s)
		if _, err := Run(context.Background(), s, noFrame); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestContext(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	for range 2 { // while it runs, and ended before
		u, err := Run(ctx, Spec{Role: "hang", UID: 65501}, noFrame)
		if !errors.Is(err, ErrDeadline) || !errors.Is(err, context.DeadlineExceeded) || u.Wall > time.Second {
			t.Errorf("%v after %v", err, u.Wall)
		}
	}
	if left := children(t); left != "" {
		t.Errorf("children left: %s", left)
	}
}

// A SIGKILL that is not Run's own is what the OOM killer leaves.
func TestKilledFromOutside(t *testing.T) {
	needRoot(t)
	go func() {
		time.Sleep(100 * time.Millisecond)
		for _, pid := range strings.Fields(children(t)) {
			var n int
			fmt.Sscan(pid, &n)
			unix.Kill(n, unix.SIGKILL)
		}
	}()
	_, err := Run(context.Background(), Spec{Role: "oom kill", UID: 65501, Deadline: 20 * time.Second}, noFrame)
	if !errors.Is(err, ErrMemory) {
		t.Error(err)
	}
}

// Garbage does not add up: the soft limit keeps a worker small.
func TestMemLimit(t *testing.T) {
	needRoot(t)
	u, err := Run(context.Background(), Spec{Role: "ballast", UID: 65501, Procs: 2, Deadline: 20 * time.Second}, noFrame)
	if err != nil {
		t.Fatal(err)
	}
	if u.MaxRSSKiB > 40<<10 {
		t.Errorf("peak of %d KiB", u.MaxRSSKiB)
	}
	t.Logf("peak of %d KiB", u.MaxRSSKiB)
}

// Where namespaces are refused Run fails, and runs with less only when told so.
func TestWeak(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("starting a test without privileges needs root")
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "weak") // t.TempDir's parents are closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(name, exe, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Env = []string{"CONFINE_TEST=unprivileged"}
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "ok\n" {
		t.Errorf("%v\n%s", err, out)
	}
}

// unprivileged is the other half of TestWeak.
func unprivileged() error {
	s := Spec{Role: "echo", UID: 65501, Input: []byte("x"), Deadline: 20 * time.Second}
	if _, err := Run(context.Background(), s, noFrame); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("without privileges: %w", err)
	}
	s.Weak = true
	got := ""
	u, err := Run(context.Background(), s, func(_ byte, b []byte) error { got = string(b); return nil })
	if err != nil || got != "x" || !u.Weak {
		return fmt.Errorf("weak: %w, answer %q, weak %v", err, got, u.Weak)
	}
	s.Role = "eat"
	if _, err := Run(context.Background(), s, noFrame); !errors.Is(err, ErrMemory) {
		return fmt.Errorf("weak worker that eats memory: %w", err)
	}
	return nil
}

// When the caller is killed its worker does not live on.
func TestOrphan(t *testing.T) {
	needRoot(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"CONFINE_TEST=orphan"}
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	// The worker holds the write end as its file; it says so once it is confined.
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	r.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the worker still holds its descriptor: %v", err)
	}
}

// orphan is the other half of TestOrphan.
func orphan() error {
	w := os.NewFile(3, "pipe")
	_, err := Run(context.Background(), Spec{Role: "say and hang", UID: 65501, Files: []*os.File{w}}, noFrame)
	return err
}

func TestReason(t *testing.T) {
	long := strings.Repeat("y", 5000)
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"one\n\ntwo\tx\r\n", "one / two x"},
		{"caf\xc3\xa9 \x1b[2J\x00", "caf?? ?[2J?"},
		{"noise\npanic: oh\n\ngoroutine 1\n", "panic: oh / goroutine 1"},
		{"panic: " + long + "\nlast\n", "panic: " + long[:maxReason-7]},
		{"first\n" + strings.Repeat("z", 600) + "\n" + strings.Repeat("y", 500) + "\nlast", "last"},
	} {
		got := reason(strings.NewReader(c.in))
		if len(got) > maxReason {
			t.Errorf("%d bytes", len(got))
		}
		if c.want == "last" {
			if !strings.HasSuffix(got, " / last") || len(got) != maxReason {
				t.Errorf("got %q", got)
			}
			continue
		}
		got = strings.ReplaceAll(got, "y / y", "yy") // long lines come in parts
		if c.want != got && !strings.HasPrefix(c.want, got) {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	want := limits{uid: 65501, memory: 1 << 30, fileSize: 5, cpu: 10, files: 3, input: 77, walls: weak}
	got, err := parseLimits(want.String())
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "1", "0:1:0:0:0:0:0", "1:0:0:0:0:0:0", "1:1:0:0:33:0:0", "1:1:0:0:0:9999999:0", "1:1:-1:0:0:0:0", "1:1:0:0:0:0", "1:1:0:0:0:0:0:0"} {
		if l, err := parseLimits(bad); err == nil {
			t.Errorf("%q: %+v", bad, l)
		}
	}
}

// FuzzReason: whatever a worker says on standard error becomes one short printable line.
func FuzzReason(f *testing.F) {
	f.Add([]byte("noise\npanic: oh\n\ngoroutine 1\n"))
	f.Add([]byte("caf\xc3\xa9 \x1b[2J\x00\r\n"))
	f.Add([]byte(strings.Repeat("z", 5000) + "\nfatal error: out of memory\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := reason(bytes.NewReader(b))
		if len(got) > maxReason || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	})
}
