// Package dm sets up device-mapper devices with the kernel's own ioctls on
// /dev/mapper/control: no libdevmapper, no udev, no cookies.
//
// Open is what most callers want. A table is loaded plain first and swapped
// later on the live device with Reload, for example to add
// restart_on_corruption once the file system is known to mount. Loading a
// dm-verity table and resuming it does no I/O: a wrong root hash shows only at
// the first read.
//
// Nothing here is kept over a power cut: mapped devices live in the kernel.
//
// Layouts: include/uapi/linux/dm-ioctl.h, interface version 4.0.0.
package dm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Target is one line of a mapping table. Start and Sectors are in sectors of
// 512 bytes. Args are the target's own parameters as the kernel documents them;
// devices in them are paths (/dev/vda3) or "major:minor".
//
// Status fills Args with the target's state instead: "V" or "C" (corrupted
// blocks were seen) for verity.
type Target struct {
	Start, Sectors uint64
	Type, Args     string
}

// ErrName says that a device name is empty, too long (more than 127 bytes) or
// holds a slash, a space or a control character.
var ErrName = errors.New("bad device-mapper name")

// VerityBlock is the size in bytes of the data and hash blocks that VerityTable
// describes.
const VerityBlock = 4096

// VerityTable describes a read-only device of dataBlocks blocks of 4096 bytes
// whose dm-verity tree (version 1, sha256, no superblock) starts on the same
// device right behind the data. An empty salt is no salt. opts are the
// optional arguments of the target, such as "restart_on_corruption".
func VerityTable(dev string, dataBlocks int64, root [32]byte, salt []byte, opts ...string) Target {
	s := "-"
	if len(salt) > 0 {
		s = hex.EncodeToString(salt)
	}
	n := strconv.FormatInt(dataBlocks, 10)
	args := "1 " + dev + " " + dev + " 4096 4096 " + n + " " + n + " sha256 " + hex.EncodeToString(root[:]) + " " + s
	if len(opts) > 0 {
		args += " " + strconv.Itoa(len(opts)) + " " + strings.Join(opts, " ")
	}
	return Target{Sectors: uint64(dataBlocks) * (VerityBlock / 512), Type: "verity", Args: args}
}

// Path is where a system looks for a mapped device: a link to /dev/dm-N that
// Open makes and Remove takes away, as udev would.
func Path(name string) string { return "/dev/mapper/" + name }

// Open creates the device name with the given table, makes it live and returns
// the path of its block device, /dev/dm-N. With ro the device refuses writes
// (verity wants that). On an error nothing is left behind.
func Open(name string, ro bool, targets ...Target) (path string, err error) {
	dev, err := Create(name)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = Remove(name)
		}
	}()
	if err := Load(name, ro, targets...); err != nil {
		return "", err
	}
	if err := Resume(name); err != nil {
		return "", err
	}
	if path, err = node("/dev", dev); err == nil {
		_ = os.Remove(Path(name))
		err = os.Symlink("../"+filepath.Base(path), Path(name))
	}
	return path, err
}

// Reload swaps the table of the live device name. Reads and writes in flight
// end on the old table, later ones see the new one; open descriptors and mounts
// stay. If the new table is refused, the old one stays live.
func Reload(name string, ro bool, targets ...Target) error {
	if err := Load(name, ro, targets...); err != nil {
		return err
	}
	if err := Resume(name); err != nil {
		_, _ = call(cmdTableClear, name, 0, nil, 0)
		return err
	}
	return nil
}

// Create makes an empty device and returns its device number, as in st_rdev.
// It fails with EBUSY (errors.Is) when the name is taken.
func Create(name string) (dev uint64, err error) {
	a, err := call(cmdDevCreate, name, 0, nil, 0)
	if err != nil {
		return 0, fmt.Errorf("create mapped device %s: %w", name, err)
	}
	return a.dev, nil
}

// Load puts a table beside the live one; Resume makes it live.
func Load(name string, ro bool, targets ...Target) error {
	data, err := encodeTargets(targets)
	if err != nil {
		return fmt.Errorf("load table of mapped device %s: %w", name, err)
	}
	var flags uint32
	if ro {
		flags = flagReadOnly
	}
	if _, err := call(cmdTableLoad, name, flags, data, uint32(len(targets))); err != nil {
		return fmt.Errorf("load table of mapped device %s: %w", name, err)
	}
	return nil
}

// Resume makes the loaded table live. On a device that is live already the old
// table is drained first.
func Resume(name string) error {
	if _, err := call(cmdDevSuspend, name, 0, nil, 0); err != nil {
		return fmt.Errorf("resume mapped device %s: %w", name, err)
	}
	return nil
}

// Remove takes the device away. It fails with EBUSY while it is open or
// mounted and with ENXIO when there is none.
func Remove(name string) error {
	if _, err := call(cmdDevRemove, name, 0, nil, 0); err != nil {
		return fmt.Errorf("remove mapped device %s: %w", name, err)
	}
	_ = os.Remove(Path(name))
	return nil
}

// Status returns the live table with each target's state in Args.
func Status(name string) ([]Target, error) { return status(name, 0) }

// Table returns the live table with each target's parameters in Args, as the
// kernel understood them: devices stand as major:minor.
func Table(name string) ([]Target, error) { return status(name, flagStatusTable) }

func status(name string, flags uint32) ([]Target, error) {
	for room := 4 << 10; ; room *= 4 {
		a, err := call(cmdTableStatus, name, flags, make([]byte, room), 0)
		switch {
		case err != nil:
			return nil, fmt.Errorf("status of mapped device %s: %w", name, err)
		case a.flags&flagBufferFull != 0 && room < 1<<20:
			continue
		case a.flags&flagBufferFull != 0:
			return nil, fmt.Errorf("status of mapped device %s: longer than 1 MiB", name)
		}
		t, err := decodeTargets(a.data, a.count)
		if err != nil {
			return nil, fmt.Errorf("status of mapped device %s: %w", name, err)
		}
		return t, nil
	}
}

// call opens the control node for one ioctl, so that no descriptor is left for
// a worker or for the system that is started later.
func call(cmd uintptr, name string, flags uint32, data []byte, targets uint32) (answer, error) {
	buf, err := encode(name, flags, data, targets)
	if err != nil {
		return answer{}, err
	}
	fd, err := control("/dev/mapper/control")
	if err != nil {
		return answer{}, err
	}
	defer unix.Close(fd)
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request|cmd, uintptr(unsafe.Pointer(&buf[0])))
		runtime.KeepAlive(buf)
		switch errno {
		case 0:
			return decode(buf)
		case unix.EINTR:
			continue
		}
		return answer{}, errno
	}
}

// control opens the control node, and makes it where /dev is no devtmpfs.
func control(path string) (int, error) {
	for made := false; ; made = true {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return fd, nil
		case err == unix.EINTR:
			continue
		case err != unix.ENOENT || made:
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return -1, err
		}
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(10, controlMinor))); err != nil && err != unix.EEXIST {
			return -1, &os.PathError{Op: "mknod", Path: path, Err: err}
		}
	}
}

// node returns the path of the block device with number dev and makes the node
// where nobody else did.
func node(dir string, dev uint64) (string, error) {
	path := filepath.Join(dir, "dm-"+strconv.FormatUint(uint64(unix.Minor(dev)), 10))
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == unix.ENOENT {
		if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(dev)); err != nil && err != unix.EEXIST {
			return "", &os.PathError{Op: "mknod", Path: path, Err: err}
		}
		err = unix.Lstat(path, &st)
	}
	if err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || uint64(st.Rdev) != dev {
		return "", fmt.Errorf("%s is not block device %d:%d", path, unix.Major(dev), unix.Minor(dev))
	}
	return path, nil
}
