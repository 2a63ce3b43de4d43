package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The kernel's timer blinks the light; where there is none, we do. What was shown last stays.
func TestLED(t *testing.T) {
	read := func(dir, attr string) string {
		b, _ := os.ReadFile(filepath.Join(dir, attr))
		return string(b)
	}
	for _, timer := range []bool{true, false} {
		sysfs := t.TempDir()
		dir := filepath.Join(sysfs, "class/leds/status")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for attr, value := range map[string]string{"max_brightness": "255\n", "brightness": "0"} {
			if err := os.WriteFile(filepath.Join(dir, attr), []byte(value), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if timer {
			for _, attr := range []string{"trigger", "delay_on", "delay_off"} {
				if err := os.WriteFile(filepath.Join(dir, attr), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		l := openLED(sysfs, "status")
		l.show(ledBusy)
		if timer {
			if got := read(dir, "trigger") + read(dir, "delay_on") + read(dir, "delay_off"); got != "timer100100" {
				t.Errorf("with a timer: %q", got)
			}
		} else {
			seen := map[string]bool{}
			for end := time.Now().Add(5 * time.Second); len(seen) < 2 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if v := read(dir, "brightness"); v != "" { // not just being written
					seen[v] = true
				}
			}
			if !seen["255"] || !seen["0"] {
				t.Errorf("without a timer it was %v", seen)
			}
		}
		l.show(ledDone)
		time.Sleep(250 * time.Millisecond)
		if got := read(dir, "brightness"); got != "255" {
			t.Errorf("done: brightness %q", got)
		}
	}
	openLED(t.TempDir(), "missing").show(ledBusy)
	openLED("", "").show(ledBusy)
}
