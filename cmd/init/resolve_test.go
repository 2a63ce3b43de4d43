package main

import (
	"strings"
	"testing"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/status"
)

const testConf = `[system]
compatible=test
bootloader=raw
[slot.rootfs.0]
device=PARTLABEL=rootfs.0
bootname=A
[slot.rootfs.1]
device=%B
bootname=B
`

// parts returns the partitions of a disk with the given labels.
func parts(diskName string, usb bool, labels ...string) []disk.Block {
	out := []disk.Block{{Name: diskName, Disk: diskName, Size: 1 << 30, USB: usb}}
	for i, l := range labels {
		out = append(out, disk.Block{Name: diskName + string(rune('1'+i)), Disk: diskName, PartName: l, Part: i + 1, Size: 64 << 20, USB: usb})
	}
	return out
}

func TestResolve(t *testing.T) {
	all := []string{"state", "staging", "rootfs.0", "rootfs.1"}
	for _, tt := range []struct {
		name   string
		b      string // device= of slot B
		blocks []disk.Block
		reason status.Reason
		state  string
		slots  string // A B
	}{
		{"one disk", "", parts("vda", false, all...), status.None, "vda1", "vda3 vda4"},
		{"nothing", "", nil, status.NoDisk, "", ""},
		{"another disk", "", parts("vda", false, "root"), status.NoDisk, "", ""},
		{"a foreign disk beside", "", append(parts("sda", false, "root"), parts("vda", false, all...)...), status.None, "vda1", "vda3 vda4"},
		{"a double", "", append(parts("vda", false, all...), parts("vdb", false, all...)...), status.TwoDisks, "", ""},
		{"a double on a stick is no candidate", "", append(parts("vda", false, all...), parts("sda", true, all...)...), status.None, "vda1", "vda3 vda4"},
		{"only a stick", "", parts("sda", true, all...), status.NoDisk, "", ""},
		{"a torn double", "", append(parts("vda", false, all...), parts("vdb", false, "rootfs.0")...), status.None, "vda1", "vda3 vda4"},
		{"two halves", "", append(parts("vda", false, "state", "rootfs.0"), parts("vdb", false, "rootfs.1")...), status.TwoDisks, "", ""},
		{"no state partition", "", parts("vda", false, "rootfs.0", "rootfs.1"), status.None, "", "vda1 vda2"},
		{"one slot gone", "", parts("vda", false, "state", "rootfs.0"), status.None, "vda1", "vda2 "},
		{"B named by its device", "/dev/vdb1", append(parts("vda", false, "state", "rootfs.0"), parts("vdb", false, "x")...), status.None, "vda1", "vda2 vdb1"},
		{"B named, on a stick", "/dev/sda1", append(parts("vda", false, "state", "rootfs.0"), parts("sda", true, "x")...), status.None, "vda1", "vda2 sda1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.b
			if b == "" {
				b = "PARTLABEL=rootfs.1"
			}
			cfg, err := config.Parse([]byte(strings.ReplaceAll(testConf, "%B", b)))
			if err != nil {
				t.Fatal(err)
			}
			r := resolve(cfg, tt.blocks)
			slots := ""
			if r.slots != nil {
				slots = r.slots["rootfs.0"].Name + " " + r.slots["rootfs.1"].Name
			}
			if r.reason != tt.reason || r.state.Name != tt.state || slots != tt.slots {
				t.Errorf("reason %q state %q slots %q, want %q %q %q (%s)", r.reason, r.state.Name, slots, tt.reason, tt.state, tt.slots, r.why)
			}
			if whole := tt.state != "" && !strings.HasSuffix(tt.slots, " ") && tt.slots != ""; r.hasAll != whole {
				t.Errorf("hasAll %t", r.hasAll)
			}
			if !r.hasAll && r.why == "" {
				t.Error("it does not say why")
			}
		})
	}
}

// A block that dm-verity vouched for says which file system is mounted.
func TestFileSystem(t *testing.T) {
	block := func(off int, b ...byte) []byte {
		out := make([]byte, 4096)
		copy(out[off:], b)
		return out
	}
	for want, b := range map[string][]byte{
		"squashfs": block(0, 'h', 's', 'q', 's'), "ext4": block(1024+56, 0x53, 0xef), "erofs": block(1024, 0xe2, 0xe1, 0xf5, 0xe0), "": block(0),
	} {
		if got := fileSystem(b); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Rescue starts over for a disk that has more to it, or that came back; not for one that lost something and not for a
// second one.
func TestSince(t *testing.T) {
	a, b := disk.Block{Name: "vda1", Disk: "vda"}, disk.Block{Name: "vda2", Disk: "vda"}
	moved := disk.Block{Name: "vdb1", Disk: "vdb"}
	state := disk.Block{Name: "vda3", Disk: "vda"}
	slots := func(b ...disk.Block) map[string]disk.Block {
		m := map[string]disk.Block{}
		for i, b := range b {
			m[string(rune('0'+i))] = b
		}
		return m
	}
	whole := resolved{hasAll: true, state: state, slots: slots(a, b)}
	part := resolved{state: state, slots: slots(a)}
	two := resolved{reason: status.TwoDisks}
	for _, tt := range []struct {
		name     string
		now, old resolved
		lost     bool
		over     bool
		still    bool
	}{
		{"the same", whole, whole, false, false, false},
		{"the same, after something was lost", whole, whole, true, true, false},
		{"a slot came", whole, part, false, true, false},
		{"the state came", whole, resolved{slots: slots(a, b)}, false, true, false},
		{"a slot went", part, whole, false, false, true},
		{"it is still away", part, whole, true, false, true},
		{"it came back as another", resolved{hasAll: true, state: state, slots: slots(moved, b)}, whole, false, true, false},
		{"all of it went", resolved{reason: status.NoDisk}, whole, false, false, true},
		{"a second one came", two, whole, false, false, true},
		{"two where there was nothing", two, resolved{reason: status.NoDisk}, false, false, false},
	} {
		over, still := tt.now.since(tt.old, tt.lost)
		if over != tt.over || still != tt.still {
			t.Errorf("%s: over %t, lost %t", tt.name, over, still)
		}
	}
}

// What lies beside the slots is on their disk, or where the configuration names it.
func TestBeside(t *testing.T) {
	block := func(name, on, label string) disk.Block { return disk.Block{Name: name, Disk: on, PartName: label} }
	blocks := []disk.Block{
		block("sda", "sda", ""), block("sda2", "sda", "staging"), block("vda1", "vda", "rootfs.0"), block("vda2", "vda", "staging"),
		block("vdb1", "vdb", "staging"), block("vdb2", "vdb", "other"),
	}
	found := resolved{slots: map[string]disk.Block{"rootfs.0": blocks[2]}}
	for device, want := range map[string]string{"PARTLABEL=staging": "vda2", "/dev/vdb2": "vdb2", "PARTLABEL=other": "", "PARTLABEL=none": "", "/dev/vdc": "", "/dev/mtd0": "mtd0", "/dev/mtdblock0": ""} {
		if b, ok := beside(device, blocks, found); b.Name != want || ok != (want != "") {
			t.Errorf("%s is %q, want %q", device, b.Name, want)
		}
	}
}

// A panic restarts the device soon, whatever the command line says.
func TestPanicPause(t *testing.T) {
	for asked, want := range map[string]string{"": "10", "0": "10", "x": "10", "1": "1", "-1": "-1", "60": "60", "61": "10", "2147483647": "10"} {
		if got := panicPause(asked); got != want {
			t.Errorf("%q: %s, want %s", asked, got, want)
		}
	}
}
