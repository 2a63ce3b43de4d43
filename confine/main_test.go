package confine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if j := Child(); j != nil {
		f := roles()[j.Role]
		if f == nil {
			j.Exit(errors.New("no such role"))
		}
		j.Exit(f(j))
	}
	// Callers that have to be another process.
	var err error
	switch os.Getenv("CONFINE_TEST") {
	case "":
		os.Exit(m.Run())
	case "unprivileged":
		err = unprivileged()
	case "orphan":
		err = orphan()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ok")
}

// roles are workers as bad as one can be.
func roles() map[string]func(j *Job) error {
	return map[string]func(j *Job) error{
		"echo":  func(j *Job) error { return j.Send('e', j.Input) },
		"fail":  func(*Job) error { return errors.New("first line\nno bundle\x1b[31m here") },
		"panic": func(j *Job) error { var p *int; *p = 1; return nil },
		"index": func(j *Job) error {
			fmt.Fprintln(os.Stderr, strings.Repeat("noise\n", 500))
			return j.Send(j.Input[len(j.Input)], nil)
		},
		"exit0": func(*Job) error { return nil },
		"spin": func(*Job) error {
			for {
				runtime.Gosched()
			}
		},
		"spin all": func(*Job) error {
			for range 4 {
				go func() {
					for n := 0; ; n++ {
						n *= 3
					}
				}()
			}
			select {}
		},
		"hang": func(*Job) error { time.Sleep(time.Hour); return nil },
		"say and hang": func(j *Job) error {
			if _, err := j.Files[0].Write([]byte("x")); err != nil {
				return err
			}
			time.Sleep(time.Hour)
			return nil
		},
		"hang closed": func(j *Job) error {
			j.answer.Close()
			time.Sleep(time.Hour)
			return nil
		},
		"slow": func(j *Job) error {
			for range 20 {
				time.Sleep(20 * time.Millisecond)
				if err := j.Send('p', nil); err != nil {
					return err
				}
			}
			return nil
		},
		"eat": func(j *Job) error {
			var all [][]byte
			for range 1024 {
				b := make([]byte, 1<<20)
				for i := 0; i < len(b); i += 4096 {
					b[i] = 1
				}
				all = append(all, b)
			}
			return fmt.Errorf("got %d MiB", len(all))
		},
		"eat at once": func(j *Job) error {
			b := make([]byte, 1<<30)
			return fmt.Errorf("got %d", len(b))
		},
		"eat stacks": func(j *Job) error { return fmt.Errorf("got %d", deep(1<<40)) },
		"oom kill": func(j *Job) error { // what the kernel's OOM killer does, seen from outside
			time.Sleep(time.Hour)
			return nil
		},
		"garbage": func(j *Job) error { _, err := j.answer.Write([]byte("HTTP/1.1 200 OK\r\n")); return err },
		"long frame": func(j *Job) error {
			b := append([]byte{frameMagic, 1, 0xff, 0xff}, make([]byte, 65535)...)
			_, err := j.answer.Write(b)
			return err
		},
		"half frame": func(j *Job) error { _, err := j.answer.Write([]byte{frameMagic, 1, 9, 0, 1}); return err },
		"flood": func(j *Job) error {
			for {
				if err := j.Send(0, make([]byte, MaxBody)); err != nil {
					return err
				}
			}
		},
		"flood empty": func(j *Job) error {
			for {
				if err := j.Send(0, nil); err != nil {
					return err
				}
			}
		},
		"flood stderr": func(j *Job) error {
			for {
				if _, err := os.Stderr.WriteString(strings.Repeat("x", 4096)); err != nil {
					return err
				}
			}
		},
		"threads": func(j *Job) error { // each blocked read takes a thread
			for range 500 {
				go func() {
					runtime.LockOSThread()
					select {}
				}()
			}
			time.Sleep(200 * time.Millisecond)
			return nil
		},
		"try": func(j *Job) error {
			for _, a := range attempts() {
				got := a.do(j)
				if err := j.Send('a', fmt.Appendf(nil, "%s=%v", a.name, got)); err != nil {
					return err
				}
			}
			return nil
		},
		"every call": func(j *Job) error { // each system call that the filter has no line for, without arguments
			for nr := range uint32(maxCall) {
				if listed(nr) || runtime.GOARCH == "amd64" && (nr == uretprobe || nr == uretprobe+1) {
					continue
				}
				for _, n := range []uint32{nr, nr | x32} {
					if _, _, errno := syscall.RawSyscall6(uintptr(n), 0, 0, 0, 0, 0, 0); errno != unix.EPERM {
						return fmt.Errorf("system call %#x: %v", n, errno)
					}
				}
			}
			return nil
		},
		"call of 32 bits": func(*Job) error { call32(); return nil },
		"break in":        func(j *Job) error { return breakIn(j) },
		"state":           func(j *Job) error { return state(j) },
		"folder": func(j *Job) error {
			fd, err := unix.Open("/made", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
			return errors.Join(err, unix.Fchown(fd, 1000, 1000), unix.Fchmod(fd, 0o4755), unix.Fsetxattr(fd, "trusted.x", []byte("1"), 0))
		},
		"write": func(j *Job) error {
			_, err := j.Files[0].Write([]byte("x"))
			return err
		},
		"files": func(j *Job) error {
			for _, f := range j.Files {
				b := make([]byte, 16)
				n, err := f.ReadAt(b, 0)
				if n == 0 {
					return err
				}
				if err := j.Send('f', b[:n]); err != nil {
					return err
				}
			}
			return nil
		},
		"grow": func(j *Job) error {
			_, err := j.Files[0].WriteAt([]byte("x"), 1<<20)
			return err
		},
		"work": func(j *Job) error { // everything that a real worker needs, under the filter
			done := make(chan int)
			for range 8 {
				go func() { b := make([]byte, 1<<20); b[9] = 1; runtime.GC(); done <- len(b) }()
			}
			for range 8 {
				<-done
			}
			f := j.Files[0]
			if _, err := f.Stat(); err != nil {
				return err
			}
			if _, err := f.WriteAt([]byte("hello"), 4096); err != nil {
				return err
			}
			if err := f.Sync(); err != nil {
				return err
			}
			if _, err := f.Seek(0, 0); err != nil {
				return err
			}
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				return err
			}
			t := time.NewTimer(time.Millisecond)
			<-t.C
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			go w.Write([]byte("ab"))
			if _, err := r.Read(make([]byte, 2)); err != nil {
				return err
			}
			return j.Send('k', nil)
		},
		"ballast": func(j *Job) error { // garbage, as a decompressor makes it
			for range 400 {
				b := make([]byte, 1<<20)
				for i := 0; i < len(b); i += 4096 {
					b[i] = 1
				}
			}
			return nil
		},
	}
}

//go:noinline
func deep(n int) int {
	var pad [1024]byte
	pad[n%1024] = 1
	if n == 0 {
		return 0
	}
	return deep(n-1) + int(pad[5])
}

type attempt struct {
	name string
	do   func(j *Job) error
}

func call(nr uintptr, a ...uintptr) error {
	var v [6]uintptr
	copy(v[:], a)
	_, _, errno := syscall.Syscall6(nr, v[0], v[1], v[2], v[3], v[4], v[5])
	if errno != 0 {
		return errno
	}
	return nil
}

func cstr(s string) uintptr { b := append([]byte(s), 0); return uintptr(unsafe.Pointer(&b[0])) }

// attempts are ways out; every one must fail with EPERM under the filter, and
// with the error that TestRefusedWithoutFilter names behind it.
func attempts() []attempt {
	open := func(path string, flags int) func(*Job) error {
		return func(*Job) error {
			fd, err := unix.Open(path, flags, 0o600)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	return []attempt{
		{"open /etc/passwd", open("/etc/passwd", unix.O_RDONLY)},
		{"open /proc/1/mem", open("/proc/1/mem", unix.O_RDWR)},
		{"open /dev/vda", open("/dev/vda", unix.O_RDONLY)},
		{"open ../../etc", open("../../../../etc", unix.O_RDONLY)},
		{"create file", open("/x", unix.O_CREAT|unix.O_RDWR)},
		{"mkdir", func(*Job) error { return unix.Mkdir("/x", 0o700) }},
		{"mknod", func(*Job) error { return unix.Mknod("/d", unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))) }},
		{"mount", func(*Job) error { return unix.Mount("proc", "/", "proc", 0, "") }},
		{"umount", func(*Job) error { return unix.Unmount("/", unix.MNT_DETACH) }},
		{"chroot", func(*Job) error { return unix.Chroot("/") }},
		{"setuid", func(*Job) error { return call(unix.SYS_SETRESUID, 0, 0, 0) }},
		{"setgid", func(*Job) error { return call(unix.SYS_SETRESGID, 0, 0, 0) }},
		{"setgroups", func(*Job) error { g := uint32(0); return call(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&g))) }},
		{"capset", func(*Job) error {
			h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			d := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN}}
			return unix.Capset(&h, &d[0])
		}},
		{"new user namespace", func(*Job) error {
			pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_NEWUSER, 0, 0, 0, 0, 0)
			if errno != 0 {
				return errno
			}
			if pid == 0 {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			return nil
		}},
		{"new mount namespace", func(*Job) error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{"raise limit", func(*Job) error {
			return unix.Prlimit(0, unix.RLIMIT_DATA, &unix.Rlimit{Cur: 1 << 40, Max: 1 << 40}, nil)
		}},
		{"kill all", func(*Job) error { return unix.Kill(-1, unix.SIGKILL) }},
		{"kill parent", func(j *Job) error { return unix.Kill(parent(j), unix.SIGKILL) }},
		{"ptrace", func(j *Job) error { return call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(parent(j))) }},
		{"read other memory", func(j *Job) error {
			b := make([]byte, 8)
			v := unix.Iovec{Base: &b[0], Len: 8}
			r := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(&b[0])), Len: 8}
			_, err := unix.ProcessVMReadv(parent(j), []unix.Iovec{v}, []unix.RemoteIovec{r}, 0)
			return err
		}},
		{"connect outside", func(*Job) error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{192, 0, 2, 1}})
		}},
		{"connect own loopback", func(*Job) error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}})
		}},
		{"exec", func(*Job) error { return unix.Exec("/proc/self/exe", []string{"x"}, nil) }},
		{"write job", func(*Job) error { _, err := unix.Pwrite(inputFD, []byte("x"), 0); return err }},
		{"grow job", func(*Job) error { return unix.Ftruncate(inputFD, 1<<30) }},
		{"reboot", func(*Job) error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) }},
		{"load module", func(*Job) error { return call(unix.SYS_INIT_MODULE, 0, 0, cstr("")) }},
		{"set host name", func(*Job) error { return unix.Sethostname([]byte("x")) }},
		{"set clock", func(*Job) error { return unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: 1}) }},
		{"bpf", func(*Job) error {
			b := make([]byte, 128)
			return call(unix.SYS_BPF, 5, uintptr(unsafe.Pointer(&b[0])), 128)
		}},
		{"read kernel log", func(*Job) error { b := make([]byte, 64); _, err := unix.Klogctl(3, b); return err }},
		{"lower oom score", func(*Job) error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) }},
		{"50 open files", func(*Job) error {
			var fds []int
			defer func() {
				for _, fd := range fds {
					unix.Close(fd)
				}
			}()
			for range 70 {
				fd, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					return err
				}
				fds = append(fds, fd)
			}
			return nil
		}},
		// Last ones, as they may succeed without the filter.
		{"shared memory", func(*Job) error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
			return err
		}},
		{"executable memory", func(*Job) error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
			return err
		}},
		{"memory file", func(*Job) error {
			fd, err := unix.MemfdCreate("x", 0)
			unix.Close(fd)
			return err
		}},
		{"stack without limit", func(*Job) error { // RLIMIT_DATA does not count it
			_, err := unix.Mmap(-1, 0, 1<<30, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_GROWSDOWN|unix.MAP_NORESERVE)
			return err
		}},
		{"large pipe", func(*Job) error { // nor this
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			defer r.Close()
			defer w.Close()
			_, err = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20)
			return err
		}},
		{"pass on a descriptor", func(*Job) error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err }},
		{"terminal ioctl", func(*Job) error { _, err := unix.IoctlGetTermios(2, unix.TCGETS); return err }},
		{"fork bomb", func(*Job) error {
			for range 200 {
				pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
				if errno != 0 {
					return errno
				}
				if pid == 0 {
					for {
						syscall.RawSyscall(unix.SYS_PPOLL, 0, 0, 0)
					}
				}
			}
			return nil
		}},
	}
}

// parent is the process id of the caller, outside; its number comes as the job.
func parent(j *Job) int {
	n, _ := strconv.Atoi(string(j.Input))
	return n
}

// state sends what the kernel says of every thread, by calls that need no /proc.
func state(j *Job) error {
	var b []byte
	add := func(name string, v any) { b = fmt.Appendf(b, "%s=%v\n", name, v) }
	add("pid", os.Getpid())
	add("ppid", os.Getppid())
	add("uid", os.Getuid())
	add("euid", os.Geteuid())
	add("gid", os.Getgid())
	g, _ := unix.Getgroups()
	add("groups", len(g))
	nnp, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	add("nnp", nnp)
	d, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	add("dumpable", d)
	bounding := 0
	for c := range 64 {
		if v, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err == nil && v == 1 {
			bounding++
		}
	}
	add("bounding", bounding)
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&h, &caps[0]); err != nil {
		return err
	}
	add("caps", caps)
	add("env", strings.Join(os.Environ(), ","))
	for _, r := range []struct {
		name string
		nr   int
	}{{"data", unix.RLIMIT_DATA}, {"nofile", unix.RLIMIT_NOFILE}, {"core", unix.RLIMIT_CORE}, {"nproc", unix.RLIMIT_NPROC}, {"cpu", unix.RLIMIT_CPU}} {
		var l unix.Rlimit
		if err := unix.Getrlimit(r.nr, &l); err != nil {
			return err
		}
		add(r.name, fmt.Sprint(l.Cur, "/", l.Max))
	}
	var open []int
	for fd := range 64 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			open = append(open, fd)
		}
	}
	add("open", open)
	f, err := os.ReadDir("/")
	add("root", fmt.Sprint(len(f), err))
	return j.Send('s', b)
}

// listed tells whether the filter has a line of its own for a system call.
func listed(nr uint32) bool {
	return slices.Contains(append(allowed(), unix.SYS_MMAP, unix.SYS_CLONE, unix.SYS_FCNTL, unix.SYS_CLONE3), nr)
}

const (
	maxCall = 600        // above the last one of any kernel
	x32     = 0x40000000 // the same calls of amd64's x32 ABI
	// Newer kernels let no filter see it, and end who calls it anywhere but in a trampoline of theirs.
	uretprobe = 335
)

// breakIn tries what a writer may not do with a disk: the first file is a partition of it, read-write, the second the same
// read-only. It sends what succeeded.
func breakIn(j *Job) error {
	rw, ro := int(j.Files[0].Fd()), int(j.Files[1].Fd())
	size, err := unix.Seek(rw, 0, io.SeekEnd)
	if err != nil {
		return err
	}
	evil := bytes.Repeat([]byte("EVIL"), 1024)
	got := func(what string, err error) {
		if err == nil {
			_ = j.Send('!', []byte(what))
		}
	}
	try := func(what string, f func() (int, error)) {
		if n, err := f(); err == nil && n > 0 {
			got(what, nil)
		}
	}
	for _, at := range []int64{size, size + 4096, size - 2048, 1 << 40, 1<<63 - 4096, -4096} {
		try(fmt.Sprintf("write at %d of %d", at, size), func() (int, error) {
			n, err := unix.Pwrite(rw, evil, at)
			return n - int(min(max(size-at, 0), 4096)), err // what fits is its own
		})
		got(fmt.Sprintf("allocate at %d", at), unix.Fallocate(rw, 0, at, 4096))
	}
	got("grow the partition", unix.Ftruncate(rw, size+4096))
	try("write read-only", func() (int, error) { return unix.Pwrite(ro, evil, 0) })
	got("zero read-only", unix.Fallocate(ro, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
	got("discard read-only", unix.Fallocate(ro, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
	if _, err := unix.FcntlInt(uintptr(ro), unix.F_SETFL, unix.O_RDWR); err == nil {
		try("write read-only after F_SETFL", func() (int, error) { return unix.Pwrite(ro, evil, 0) })
	}
	for _, path := range []string{"/proc/self/fd/4", "/dev/fd/4", "/dev/vda", "/dev/vda1"} {
		if fd, err := unix.Open(path, unix.O_RDWR, 0); err == nil {
			got("open "+path, nil)
			unix.Close(fd)
		}
	}
	for name, req := range map[string]uintptr{
		"BLKDISCARD": unix.BLKDISCARD, "BLKROSET": unix.BLKROSET, "BLKRRPART": unix.BLKRRPART, "BLKPG": unix.BLKPG, "BLKFLSBUF": unix.BLKFLSBUF,
		"BLKBSZSET": unix.BLKBSZSET, "BLKSECDISCARD": unix.BLKSECDISCARD, "BLKZEROOUT": unix.BLKZEROOUT, "SG_IO": 0x2285,
	} {
		var arg [16]uint64
		arg[1] = 4096
		got(name, call(unix.SYS_IOCTL, uintptr(rw), req, uintptr(unsafe.Pointer(&arg))))
		got(name+" read-only", call(unix.SYS_IOCTL, uintptr(ro), req, uintptr(unsafe.Pointer(&arg))))
	}
	return nil
}
