package powercut

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk/crash"
	"lifeboat/slots"
	"lifeboat/status"
)

// TestStickPolicies: what a device with 2.0 in slot A and 1.0 in slot B, both good, makes of the bundles on its stick, for each
// policy of [usb]. What it does with the stick in it for ever is part of it: nothing more.
func TestStickPolicies(t *testing.T) {
	for _, c := range []struct {
		name    string
		config  map[string]string
		files   []string // on the stick: versions, each as VERSION.raucb, or other files
		runs    string   // version
		found   int      // bundles that the first boot speaks of
		refused int      // code in the first boot, 0: nothing is refused
		silent  bool     // USB is not looked at in the first boot
	}{
		{"newer", nil, []string{"1.5", "3.0", "2.5"}, "3.0", 3, 0, false},
		{"nothing newer", nil, []string{"1.5", "2.0"}, "2.0", 2, 0, false},
		{"different", map[string]string{"usb policy": "different"}, []string{"1.5", "1.2"}, "1.5", 2, 0, false},
		{"different, and the newest is there", map[string]string{"usb policy": "different"}, []string{"1.5", "2.0", "1.2"}, "2.0", 3, 0, false},
		{"different, below the floor", map[string]string{"usb policy": "different"}, []string{"0.5"}, "2.0", 1, 28, false},
		{"rescue only", map[string]string{"usb policy": "rescue-only"}, []string{"3.0"}, "2.0", 0, 0, true},
		{"without what is required", map[string]string{"usb require": "unlock.txt"}, []string{"3.0"}, "2.0", 0, 31, false},
		{"with what is required", map[string]string{"usb require": "unlock.txt"}, []string{"3.0", "UNLOCK.TXT"}, "3.0", 1, 0, false},
		{"other names", map[string]string{"usb files": "3*;updates/*.bin"}, []string{"3.0", "4.0"}, "3.0", 1, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKit(t, c.config)
			d, disk := k.two()
			before := part(d, disk, "state")
			var files []string
			for _, f := range c.files {
				file := filepath.Join(k.dir, f)
				if !strings.ContainsAny(f, "0123456789") {
					k.must(os.WriteFile(file, nil, 0o600))
				} else if file += ".raucb"; !exists(file) {
					k.bundle(f, 0, Healthy)
				}
				files = append(files, file)
			}
			d.Stick = k.stick(files...)
			installs, commits := 0, 0
			for boots := range 6 {
				b, err := d.Boot(disk, status.None, Observer{Committed: func(boot.State) { commits++ }})
				k.must(err)
				if b.Rescue {
					t.Fatalf("rescue: %q", b.Lines)
				}
				installs += len(b.Report.Installed)
				k.must(d.SayGood(disk, b.Slot, nil))
				if v := b.Started.State.Entry(b.Slot).Version; v != c.runs {
					t.Errorf("boot %d: %s runs, want %s: %q", boots, v, c.runs, b.Lines)
				}
				if boots > 0 {
					continue
				}
				if n := strings.Count(strings.Join(b.Lines, "\n"), "found "); n != c.found {
					t.Errorf("found %d bundles, want %d: %q", n, c.found, b.Lines)
				}
				code := 0
				for _, r := range b.Report.Refused {
					code = r.Code
				}
				if code != c.refused {
					t.Errorf("refused with code %d, want %d: %q", code, c.refused, b.Lines)
				}
				if c.silent && commits != 1 {
					t.Errorf("%d records were written in a boot that does not look at USB", commits)
				}
			}
			if want := map[bool]int{true: 0, false: 1}[c.runs == "2.0"]; installs != want {
				t.Errorf("%d installs, want %d", installs, want)
			}
			if string(before) == string(part(d, disk, "state")) {
				t.Error("nothing was recorded")
			}
		})
	}
}

func exists(file string) bool { _, err := os.Stat(file); return err == nil }

// two makes a device with 2.0 in slot A, which runs, and 1.0 in slot B, both good.
func (k *kit) two() (*Device, *crash.Image) {
	k.t.Helper()
	disk := k.disk(map[string]string{"rootfs.0": k.bundle("2.0", 0, Healthy), "rootfs.1": k.bundle("1.0", 0, Healthy)})
	d := k.device(disk, nil)
	d.NoSource = true
	for _, slot := range []string{"rootfs.1", "rootfs.0"} {
		k.must(d.SayNext(disk, slot, nil))
		b, err := d.Boot(disk, status.None, Observer{})
		k.must(err)
		if b.Slot != slot {
			k.t.Fatalf("%s started instead of %s: %q", b.Slot, slot, b.Lines)
		}
		k.must(d.SayGood(disk, slot, nil))
	}
	d.NoSource = false
	return d, disk
}

func part(d *Device, on *crash.Image, name string) []byte {
	p := d.Part(name)
	b := make([]byte, p.Len)
	on.ReadAt(b, p.Off)
	return b
}

// TestOldStickRepairs: a device whose slots are both dead is repaired by an older bundle, if the floors allow it, whatever the
// policy; where the stick lacks what is required, or USB is off, it waits.
func TestOldStickRepairs(t *testing.T) {
	for _, c := range []struct {
		name, version string
		config        map[string]string
		repaired      bool
	}{
		{"newer", "1.0", nil, true},
		{"different", "1.0", map[string]string{"usb policy": "different"}, true},
		{"rescue only", "1.0", map[string]string{"usb policy": "rescue-only"}, true},
		{"below the floor", "0.9", nil, false},
		{"without what is required", "1.0", map[string]string{"usb require": "unlock.txt"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKit(t, c.config)
			d, disk := k.two()
			file := filepath.Join(k.dir, c.version+".raucb")
			if !exists(file) {
				k.bundle(c.version, 0, Healthy)
			}
			d.Stick = k.stick(file)
			for _, slot := range []string{"rootfs.0", "rootfs.1"} {
				k.must(slots.Wipe(d.section(disk, slot)))
			}
			b, err := d.Boot(disk, status.None, Observer{})
			k.must(err)
			if b.Rescue == c.repaired {
				t.Fatalf("rescue %t: %q", b.Rescue, b.Lines)
			}
			if c.repaired && b.Started.State.Entry(b.Slot).Version != c.version {
				t.Errorf("%+v", b.Started)
			}
		})
	}
}
