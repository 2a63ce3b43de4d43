package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher hears of devices that come and go, from the kernel itself (no udev).
type Watcher struct {
	f      *os.File
	conn   syscall.RawConn
	closed atomic.Bool
}

// kernelEvents is the multicast group the kernel sends to; group 2 is udev's.
const kernelEvents = 1

// Watch starts to listen. Events from now on are kept until Wait asks for them, so that nothing is lost
// by looking at what is there first and waiting afterwards.
func Watch() (*Watcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen for devices: %w", err)
	}
	// A longer queue where we are allowed to; a full one only means that Wait says "something" (ENOBUFS).
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelEvents}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen for devices: %w", err)
	}
	f := os.NewFile(uintptr(fd), "uevents")
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("listen for devices: %w", err)
	}
	return &Watcher{f: f, conn: conn}, nil
}

// Close ends a Wait that is going on; it returns os.ErrClosed.
func (w *Watcher) Close() error {
	w.closed.Store(true)
	return w.f.Close()
}

// Wait returns true as soon as a block or USB device has come, gone or changed since the last call, or
// when events were lost and it may have; false after timeout. A burst of events is one answer.
func (w *Watcher) Wait(timeout time.Duration) (bool, error) {
	// An error can only mean that w is closed, and then Read fails too.
	_ = w.f.SetReadDeadline(time.Now().Add(timeout))
	var (
		buf  [8192]byte // the kernel's limit is 2 KiB of variables after the path
		seen bool
		rerr error
	)
	err := w.conn.Read(func(fd uintptr) bool {
		// Bounded, so that a device which flaps for ever can't keep us here.
		for range 4096 {
			n, from, err := unix.Recvfrom(int(fd), buf[:], 0)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return seen // not yet: sleep until there is something to read
			case err == unix.ENOBUFS:
				seen = true
			case err != nil:
				rerr = err
				return true
			case fromKernel(from) && concerns(buf[:n]):
				seen = true
			}
		}
		return true
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return seen, nil
	case w.closed.Load(): // the poller's own error for this is not exported
		return seen, fmt.Errorf("wait for devices: %w", os.ErrClosed)
	case err != nil:
		return seen, fmt.Errorf("wait for devices: %w", err)
	case rerr != nil:
		return seen, fmt.Errorf("wait for devices: %w", rerr)
	}
	return seen, nil
}

// fromKernel drops what other processes may send to us: the kernel's port is 0.
func fromKernel(from unix.Sockaddr) bool {
	nl, ok := from.(*unix.SockaddrNetlink)
	return ok && nl.Pid == 0
}

// concerns reads "add@/devices/...\0ACTION=add\0SUBSYSTEM=block\0...".
func concerns(msg []byte) bool {
	for field := range bytes.SplitSeq(msg, []byte{0}) {
		if s, ok := bytes.CutPrefix(field, []byte("SUBSYSTEM=")); ok {
			return string(s) == "block" || string(s) == "usb"
		}
	}
	return false
}
