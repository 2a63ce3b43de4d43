// Package confine runs a part of our own binary as a worker that has next to
// nothing: to be used for whatever reads bytes from outside.
//
// A worker has the descriptors it was given, an empty read-only root, its own
// PID, network, IPC, mount and UTS namespaces, a uid of its own, no
// capabilities (one that makes files in a folder has that as its root, and the
// few it takes: Spec.Folder), no way to gain any, a short list of system calls, and limits on
// memory, CPU time, descriptors and tasks. It answers in small binary frames.
// Whatever it does, Run ends, says how the worker ended, and leaves no process.
//
// Every program that calls Run calls Child first thing in main, before it opens
// anything and before it reads anything:
//
//	if j := confine.Child(); j != nil {
//		j.Exit(work(j))
//	}
//
// The kernel needs namespaces (PID, NET, IPC, UTS) and a mounted /proc. Programs
// are built with CGO_ENABLED=0: privileges belong to threads, and only the Go
// runtime without C can drop them for all of its threads.
package confine

import (
	"errors"
	"os"
	"time"
)

// Spec says what a worker is and what it gets.
type Spec struct {
	// Role is given to the worker as Job.Role.
	Role string
	// UID is the worker's user and group, never 0; each role has its own, so
	// that workers can't touch each other.
	UID int
	// Files are the worker's only descriptors, in this order, at most 32. What
	// they allow is what the worker may do: open them read-only for readers.
	Files []*os.File
	// Folder, if not nil, becomes the worker's root in place of the empty one,
	// and the worker may make files in it as root could: with any owner, mode,
	// capability and label, and device nodes if Devices is set. Through it the
	// worker reaches all of the folder's file system, which should be one of its
	// own, and nothing else. It needs the filter for system calls.
	Folder  *os.File
	Devices bool
	// Input is the job itself, from a trusted caller; at most MaxInput bytes.
	Input []byte

	// Memory is RLIMIT_DATA in bytes; 0 is 128 MiB. The Go runtime takes about
	// 66 MiB of it at the start without touching them: 128 MiB leave 62 for
	// the heap, 80 MiB leave next to nothing.
	Memory int64
	// MemLimit is the soft limit in bytes that the worker's garbage collector
	// works against (GOMEMLIMIT); 0 is 16 MiB. It must be below Memory.
	MemLimit int64
	// FileSize is RLIMIT_FSIZE in bytes, which bounds growing regular files and
	// memory files; 0 is no limit. Block devices are not bound by it.
	FileSize int64
	// Procs is GOMAXPROCS in the worker; 0 is the number of CPUs.
	Procs int

	// CPU is the CPU time of the whole worker, rounded up to seconds; 0 is no
	// limit.
	CPU time.Duration
	// Stall is the longest silence between two frames, or between the last one
	// and the end; 0 is no limit. Time spent in the frame callback is not
	// counted.
	Stall time.Duration
	// Deadline is the longest time in all; 0 is no limit. Where Stall is 0 too,
	// it is one minute.
	Deadline time.Duration
	// MaxBytes bounds the answer: the sum of all frames, each counted with at
	// least 64 bytes; 0 is 1 MiB.
	MaxBytes int64

	// Exe is the program to start; "" is /proc/self/exe.
	Exe string
	// Weak allows to run without namespaces, empty root, uid and system call
	// filter where the kernel refuses them to the caller: for tests and
	// for reading own files on a PC. Limits hold even then.
	Weak bool

	unfiltered bool // tests of the walls behind the filter
}

// MaxInput is the largest Spec.Input in bytes.
const MaxInput = 5 << 20

// Usage is what a worker took.
type Usage struct {
	// MaxRSSKiB is the peak resident memory. The kernel counts from before the
	// exec: the figure is never below the caller's own peak at the start.
	MaxRSSKiB int64
	CPU       time.Duration // user and system time
	Wall      time.Duration // from Run to the end of the process
	Weak      bool          // ran without namespaces, empty root, uid and filter
}

// How a worker ended when it did not end well; Run's error wraps one of these.
var (
	ErrExit     = errors.New("worker failed")                          // exit status other than 0, panic, signal
	ErrMemory   = errors.New("worker ran out of memory")               // its limit, or the kernel's OOM killer
	ErrCPU      = errors.New("worker used up its CPU time")            //
	ErrStall    = errors.New("worker made no progress")                //
	ErrDeadline = errors.New("worker did not finish in time")          // also the context's deadline
	ErrAnswer   = errors.New("worker answered badly")                  // bad frame, too much, or refused by the callback
	ErrStuck    = errors.New("worker was killed but does not go away") // sits in the kernel on a device; reaped later
)

const (
	workerName = "lifeboat-worker"

	defaultMemory   = 128 << 20
	defaultMemLimit = 16 << 20
	defaultMaxBytes = 1 << 20
	defaultDeadline = time.Minute

	maxFiles   = 32
	maxOpen    = 64 // RLIMIT_NOFILE
	maxTasks   = 64 // RLIMIT_NPROC, per uid; Go takes one per CPU and a few more
	maxStderr  = 64 << 10
	maxReason  = 1 << 10
	minCharge  = 64
	setupExit  = 125 // exit status of a child that could not confine itself
	dieTimeout = 5 * time.Second

	inputFD = 0 // sealed memory file: Spec.Input
	firstFD = 3 // Spec.Files, then the answer pipe
)
