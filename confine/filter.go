package confine

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allowed are the system calls of a worker beside those of filterArch and those
// with conditions in filterProgram: the Go runtime's own, and reading, writing
// and flushing descriptors that it has. The most frequent ones come first.
func allowed() []uint32 {
	return append([]uint32{
		unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_FUTEX, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_NANOSLEEP,
		unix.SYS_RT_SIGRETURN, unix.SYS_TGKILL, unix.SYS_MADVISE, unix.SYS_MUNMAP, unix.SYS_RT_SIGPROCMASK,
		unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREADV, unix.SYS_PWRITEV, unix.SYS_LSEEK,
		unix.SYS_FSTAT, unix.SYS_CLOSE, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE,
		unix.SYS_FADVISE64, unix.SYS_FALLOCATE, unix.SYS_FTRUNCATE,
		unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY,
		unix.SYS_RT_SIGACTION, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL, unix.SYS_SETITIMER,
		unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_MINCORE, unix.SYS_BRK, unix.SYS_GETRANDOM,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PIPE2, unix.SYS_PPOLL,
		unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_UNAME,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	}, filterExtra()...)
}

// inFolder are what making files takes besides.
func inFolder() []uint32 {
	return []uint32{
		unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_UNLINKAT,
		unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_UTIMENSAT,
		unix.SYS_FSETXATTR, unix.SYS_LSETXATTR, unix.SYS_SYNCFS,
		filterStat, unix.SYS_GETDENTS64, unix.SYS_READLINKAT, unix.SYS_LLISTXATTR, unix.SYS_LGETXATTR, // and reading them
	}
}

// Offsets in struct seccomp_data; arguments are looked at by their low half,
// the only one that counts for int and unsigned int arguments on the two
// little-endian architectures built for.
const (
	dataNumber = 0
	dataArch   = 4
	dataArg    = 16 // + 8 per argument

	noSuchCall = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	denied     = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
)

// filterProgram allows what a worker needs and answers EPERM to the rest.
// Threads are allowed, processes are not. Memory may be private and not
// executable only, and no stack that grows: RLIMIT_DATA sees neither shared
// memory nor stacks. Nor does it see what lies in pipes: they keep their 64 KiB.
func filterProgram(folder bool) []unix.SockFilter {
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	jump := func(op uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	p := []unix.SockFilter{
		load(dataArch),
		jump(unix.BPF_JEQ, filterArch, 1, 0),
		ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(dataNumber),
	}
	calls := allowed()
	if folders && folder {
		calls = append(calls, inFolder()...)
	}
	for _, nr := range calls {
		p = append(p, jump(unix.BPF_JEQ, nr, 0, 1), ret(unix.SECCOMP_RET_ALLOW))
	}
	return append(
		p,
		jump(unix.BPF_JEQ, unix.SYS_MMAP, 0, 6),
		load(dataArg+8*3),
		jump(unix.BPF_JSET, unix.MAP_SHARED|unix.MAP_GROWSDOWN, 3, 0), // MAP_SHARED_VALIDATE holds the first
		load(dataArg+8*2),
		jump(unix.BPF_JSET, unix.PROT_EXEC, 1, 0),
		ret(unix.SECCOMP_RET_ALLOW),
		ret(denied),

		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 4),
		load(dataArg),
		jump(unix.BPF_JSET, unix.CLONE_THREAD, 0, 1),
		ret(unix.SECCOMP_RET_ALLOW),
		ret(denied),

		jump(unix.BPF_JEQ, unix.SYS_FCNTL, 0, 4),
		load(dataArg+8),
		jump(unix.BPF_JEQ, unix.F_SETPIPE_SZ, 1, 0),
		ret(unix.SECCOMP_RET_ALLOW),
		ret(denied),

		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1),
		ret(noSuchCall),
		ret(denied),
	)
}

// filterCalls puts the filter on all threads. It is one wall more behind the
// others: a kernel built without CONFIG_SECCOMP_FILTER is no error, but where
// the worker keeps capabilities.
func filterCalls(folder bool) error {
	p := filterProgram(folder)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	switch {
	case !folder && (errno == unix.ENOSYS || errno == unix.EINVAL):
		return nil
	case errno != 0:
		return fmt.Errorf("system call filter: %w", errno)
	case r != 0:
		return fmt.Errorf("system call filter: thread %d refuses it", r)
	}
	return nil
}
