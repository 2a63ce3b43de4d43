package config

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseCmdline(t *testing.T) {
	for _, test := range []struct {
		in   string
		want Cmdline
	}{
		{"", Cmdline{}},
		{"BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro init=/bin/sh rdinit=/x\n", Cmdline{Root: "/dev/sda1"}},
		{"console=tty0 console=ttyS0,115200n8 quiet lifeboat.slot=B\n", Cmdline{Slot: "B", Quiet: true, Consoles: []string{"tty0", "ttyS0"}}},
		{"lifeboat.slot=rootfs.1 lifeboat.rescue", Cmdline{Slot: "rootfs.1", Rescue: true}},
		{"lifeboat.rescue=1", Cmdline{Rescue: true}},
		{"lifeboat.rescue lifeboat.rescue=0", Cmdline{}},
		{"lifeboat.slot=A lifeboat.slot=B", Cmdline{Slot: "B"}},
		{`lifeboat.slot="B" "console=ttyS1" "quiet"`, Cmdline{Slot: "B", Quiet: true, Consoles: []string{"ttyS1"}}},
		{`dyndbg="file x.c +p quiet" quietly console="ttyS0`, Cmdline{Consoles: []string{"ttyS0"}}},
		{`a" quiet lifeboat.rescue`, Cmdline{}},
		{"quiet=1 lifeboat.slots=A xlifeboat.rescue", Cmdline{}},
		{"-- quiet lifeboat.rescue lifeboat.slot=A", Cmdline{}},
		{"quiet -- lifeboat.rescue", Cmdline{Quiet: true}},
		{"lifeboat.slot=../../x lifeboat.slot=", Cmdline{}},
		{"lifeboat.slot=" + strings.Repeat("A", 17), Cmdline{}},
		{"console= console=../../etc/passwd console=tty0 console=tty0", Cmdline{Consoles: []string{"tty0"}}},
		{strings.Repeat("x ", maxCmdline/2) + "quiet", Cmdline{}},
		{"console=a console=b console=c console=d console=e console=f console=g console=h console=i", Cmdline{Consoles: []string{"a", "b", "c", "d", "e", "f", "g", "h"}}},
	} {
		if diff := cmp.Diff(test.want, ParseCmdline(test.in)); diff != "" {
			t.Errorf("%.80q:\n%s", test.in, diff)
		}
	}
}

// Threat I2: what may stand on a command line to get round verification changes nothing (qemu/story has it all in one
// boot). C is no slot here: who knows the configuration says so.
func TestHostileCmdlines(t *testing.T) {
	raw, err := os.ReadFile("testdata/cmdlines.txt")
	if err != nil {
		t.Fatal(err)
	}
	const plain = "console=ttyS0 loglevel=4 "
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) < 40 {
		t.Errorf("only %d lines", len(lines))
	}
	for _, line := range append(lines, strings.Join(lines, " ")) {
		got := ParseCmdline(plain + line)
		got.USBDefault = ""            // for the system that starts
		got.Started, got.Root = "", "" // asked only where a boot loader chooses, and then it has chosen the kernel too
		if got.Slot == "C" {
			got.Slot = ""
		}
		if diff := cmp.Diff(ParseCmdline(plain), got); diff != "" {
			t.Errorf("%q (-without +with):\n%s", line, diff)
		}
	}
}

func FuzzCmdline(f *testing.F) {
	f.Add("console=tty0 console=ttyS0,115200n8 quiet lifeboat.slot=B lifeboat.rescue -- x")
	f.Add(`"lifeboat.slot=rootfs.0" dyndbg="a b" lifeboat.rescue=0`)
	f.Add("\"")
	f.Fuzz(func(t *testing.T, s string) {
		c := ParseCmdline(s)
		if c.Slot != "" && !isSlotName(c.Slot) {
			t.Errorf("slot %q", c.Slot)
		}
		if len(c.Consoles) > maxConsoles {
			t.Errorf("%d consoles", len(c.Consoles))
		}
		for _, name := range c.Consoles {
			if !isName(name) {
				t.Errorf("console %q", name)
			}
		}
	})
}
