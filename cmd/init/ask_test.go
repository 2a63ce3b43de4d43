package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"lifeboat/config"
)

// The numbers of linux/gpio.h, as a C compiler says them.
func TestGPIO(t *testing.T) {
	var r lineRequest
	for what, v := range map[string][2]uintptr{
		"GPIO_V2_GET_LINE_IOCTL":        {gpioGetLine, 0xc250b407},
		"GPIO_V2_LINE_GET_VALUES_IOCTL": {gpioGetValues, 0xc010b40e},
		"config":                        {unsafe.Offsetof(r.flags), 288},
		"num_lines":                     {unsafe.Offsetof(r.lines), 560},
		"fd":                            {unsafe.Offsetof(r.fd), 588},
	} {
		if v[0] != v[1] {
			t.Errorf("%s is %#x, not %#x", what, v[0], v[1])
		}
	}
	for spec, want := range map[string]struct {
		chip  string
		line  uint32
		flags uint64
	}{
		"gpiochip0:17":     {"gpiochip0", 17, 4},
		"gpiochip12:0:low": {"gpiochip12", 0, 6},
	} {
		chip, r := lineOf(spec)
		if chip != want.chip || r.offsets[0] != want.line || r.flags != want.flags || r.lines != 1 {
			t.Errorf("%s: %s, line %d, flags %d", spec, chip, r.offsets[0], r.flags)
		}
	}
}

// Without a button nothing is waited for; a button that is not there asks for nothing, and holds the boot up no longer than
// it may.
func TestAsked(t *testing.T) {
	dev := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dev, "input"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"gpiochip1", "input/event0"} { // not what they seem
		if err := os.WriteFile(filepath.Join(dev, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		rescue config.Rescue
		waits  bool
	}{{config.Rescue{}, false}, {config.Rescue{GPIO: "gpiochip0:1"}, true}, {config.Rescue{GPIO: "gpiochip1:1", Key: 66}, true}} {
		begin := time.Now()
		if asked(dev, tt.rescue) {
			t.Errorf("%+v asked", tt.rescue)
		}
		if took := time.Since(begin); (took >= askWait) != tt.waits || took > askWait+2*time.Second {
			t.Errorf("%+v took %v", tt.rescue, took)
		}
	}
}
