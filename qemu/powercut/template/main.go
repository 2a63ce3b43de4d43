// Command template is PID 1 of the virtual device until it is saved: it loads all modules of an initramfs but the driver
// of the disk, leaves to /init's lists what is to be loaded still, says TEMPLATE READY, waits for a line "go SECONDS SEED"
// on the console and becomes /init, which finds itself on a machine that has just been switched on and whose USB hubs
// are up already. SECONDS since 1970 becomes the clock, SEED goes to the random
// numbers: both are those of the moment of saving otherwise.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// late are left to /init. The disk is read when its driver is loaded, and is not there yet; a stick may come at any time,
// but without a list of USB modules /init would not wait for one.
var late = []string{"virtio_blk.ko", "xhci-pci.ko"}

func main() {
	if err := run(); err != nil {
		fmt.Println("TEMPLATE FAILED:", err)
		time.Sleep(time.Hour)
	}
}

func run() error {
	for _, list := range []string{"/etc/lifeboat/modules", "/etc/lifeboat/modules.usb"} {
		raw, err := os.ReadFile(list)
		if err != nil {
			return err
		}
		var left strings.Builder
		for line := range strings.Lines(string(raw)) {
			path, options, _ := strings.Cut(strings.TrimSpace(line), " ")
			name := filepath.Base(path)
			if slices.Contains(late, name) {
				left.WriteString(line)
			}
			if name == "virtio_blk.ko" {
				continue
			}
			if err := load(path, options); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		if err := os.WriteFile(list, []byte(left.String()), 0o644); err != nil {
			return err
		}
	}
	fmt.Println("TEMPLATE READY")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return err
	}
	words := strings.Fields(line)
	if len(words) != 3 || words[0] != "go" {
		return fmt.Errorf("told %q", line)
	}
	seconds, err := strconv.ParseInt(words[1], 10, 64)
	if err != nil {
		return err
	}
	now := unix.NsecToTimeval(seconds * int64(time.Second))
	if err := errors.Join(unix.Settimeofday(&now), seed(words[2])); err != nil {
		return err
	}
	return unix.Exec("/init", []string{"/init"}, os.Environ())
}

func load(path, options string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), options, 0); !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// seed makes the kernel's random numbers depend on text from now on.
func seed(text string) error {
	const node = "/urandom"
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 9))); err != nil {
		return err
	}
	defer os.Remove(node)
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 8+len(text)) // struct rand_pool_info
	binary.NativeEndian.PutUint32(b, 256)
	binary.NativeEndian.PutUint32(b[4:], uint32(len(text)))
	copy(b[8:], text)
	for _, request := range []uintptr{unix.RNDADDENTROPY, 0x5207 /* RNDRESEEDCRNG */} {
		if _, _, no := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&b[0]))); no != 0 {
			return fmt.Errorf("seed the random numbers: %w", no)
		}
	}
	return nil
}
