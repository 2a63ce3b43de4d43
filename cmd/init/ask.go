package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lifeboat/config"
)

// askWait is how long a button's driver is waited for, and a key that was held since before its keyboard had one: it is
// seen when the keyboard repeats it. Only devices that have such a button wait.
const askWait = 500 * time.Millisecond

// asked reports whether somebody holds the button that asks for rescue.
func asked(dev string, r config.Rescue) bool {
	if r.GPIO == "" && r.Key == 0 {
		return false
	}
	for end := time.Now().Add(askWait); ; time.Sleep(10 * time.Millisecond) {
		held, known := false, false
		if r.GPIO != "" {
			held, known = gpioHeld(dev, r.GPIO)
		}
		held = held || r.Key != 0 && keyHeld(dev, r.Key)
		if held || known && r.Key == 0 || time.Now().After(end) {
			return held
		}
	}
}

// lineRequest is struct gpio_v2_line_request of linux/gpio.h for one line without attributes.
type lineRequest struct {
	offsets  [64]uint32
	consumer [32]byte
	flags    uint64
	_        [264]byte // attributes
	lines    uint32
	_        [6]uint32
	fd       int32
}

// lineValues is struct gpio_v2_line_values.
type lineValues struct{ bits, mask uint64 }

const (
	gpioGetLine   = 3<<30 | unsafe.Sizeof(lineRequest{})<<16 | 0xb4<<8 | 0x07 // GPIO_V2_GET_LINE_IOCTL
	gpioGetValues = 3<<30 | unsafe.Sizeof(lineValues{})<<16 | 0xb4<<8 | 0x0e  // GPIO_V2_LINE_GET_VALUES_IOCTL
	gpioActiveLow = 1 << 1
	gpioInput     = 1 << 2
)

// lineOf reads "gpiochip0:17" or "gpiochip0:17:low", which the configuration has checked.
func lineOf(spec string) (chip string, r lineRequest) {
	chip, rest, _ := strings.Cut(spec, ":")
	line, low, _ := strings.Cut(rest, ":")
	n, _ := strconv.ParseUint(line, 10, 32)
	r.offsets[0], r.lines, r.flags = uint32(n), 1, gpioInput
	copy(r.consumer[:], "lifeboat")
	if low == "low" {
		r.flags |= gpioActiveLow
	}
	return chip, r
}

// gpioHeld reads a line; known is false as long as it cannot be read.
func gpioHeld(dev, spec string) (held, known bool) {
	chip, r := lineOf(spec)
	f, err := os.OpenFile(filepath.Join(dev, chip), os.O_RDONLY, 0)
	if err != nil {
		return false, false
	}
	defer f.Close()
	if !ioctl(f.Fd(), gpioGetLine, unsafe.Pointer(&r)) {
		return false, false
	}
	defer unix.Close(int(r.fd))
	v := lineValues{mask: 1}
	known = ioctl(uintptr(r.fd), gpioGetValues, unsafe.Pointer(&v))
	return known && v.bits&1 != 0, known
}

// keyHeld asks every input device whether a key is down.
func keyHeld(dev string, code int) bool {
	files, _ := filepath.Glob(filepath.Join(dev, "input/event*"))
	for _, file := range files {
		var keys [0x300 / 8]byte
		const eviocgkey = 2<<30 | unsafe.Sizeof(keys)<<16 | 'E'<<8 | 0x18
		f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		ok := ioctl(f.Fd(), eviocgkey, unsafe.Pointer(&keys))
		f.Close()
		if ok && keys[code/8]>>(code%8)&1 != 0 {
			return true
		}
	}
	return false
}

func ioctl(fd, request uintptr, arg unsafe.Pointer) bool {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
	runtime.KeepAlive(arg)
	return errno == 0
}
