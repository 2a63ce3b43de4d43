package badinputs_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/badinputs"
	"lifeboat/boot/raw"
	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/image"
	"lifeboat/powercut"
	"lifeboat/qemu/scene"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/verify/keys"
)

// stick is the image of a stick in a file.
type stick struct {
	io.ReaderAt
	size int64
}

func (s stick) Size() int64 { return s.size }

// rig is a device in memory: 1.0 in slot A, confirmed, and 0.9 in slot B.
type rig struct {
	*powercut.Device
	disk *crash.Image
}

type kit struct {
	*badinputs.Kit
	*testing.T
	dir string
}

func (k kit) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

// device makes a device whose security epoch is epoch, which judges by keyring.
func (k kit) device(epoch uint32, keyring []byte, plain bool) rig {
	k.Helper()
	formats := map[bool]string{false: "verity", true: "plain verity"}[plain]
	cfg, err := config.Parse([]byte(scene.Config(map[string]string{"system bundle-formats": formats})))
	k.must(err)
	dir, err := os.MkdirTemp(k.dir, "device")
	k.must(err)
	var fill []image.Fill
	for slot, version := range map[string]string{"A": "1.0", "B": "0.9"} {
		in := filepath.Join(dir, version)
		k.must(os.Mkdir(in, 0o755))
		manifest := fmt.Sprintf("[update]\ncompatible=%s\nversion=%s\n[bundle]\nformat=verity\n[image.rootfs]\nfilename=rootfs.img\n[meta.lifeboat]\nsecurity-epoch=%d\n", k.Compatible, version, epoch)
		k.must(os.WriteFile(filepath.Join(in, "manifest.raucm"), []byte(manifest), 0o600))
		k.must(os.WriteFile(filepath.Join(in, "rootfs.img"), badinputs.Content(uint64(version[0]), len(k.Image)), 0o600))
		k.must(bundle.Create(k.Context(), in, in+".raucb", bundle.CreateOptions{Key: k.Keys.Release.Key, Cert: k.Keys.Release.Cert}))
		fill = append(fill, image.Fill{Slot: slot, File: in + ".raucb"})
	}
	on := filepath.Join(dir, "disk")
	_, err = image.Disk(k.Context(), image.DiskOptions{
		Config: cfg, Keyring: k.Keys.ReleaseKeyring(), Now: k.Now, Fill: fill,
		Sizes: map[string]int64{"rootfs": slots.Need(int64(len(k.Image)))},
	}, on)
	k.must(err)
	img, err := crash.LoadFile(on)
	k.must(err)
	d, err := powercut.Open(cfg, k.Keyring(), img)
	k.must(err)
	_, err = d.LearnBundle(filepath.Join(dir, "1.0.raucb"), powercut.Healthy)
	k.must(err)
	_, err = d.Boot(img, status.None, powercut.Observer{})
	k.must(err)
	k.must(d.SayGood(img, "rootfs.0", nil))
	if keyring != nil { // on a device that trusts more than the one that made slot A's system
		also, err := powercut.Open(cfg, append(k.Keyring(), keyring...), img)
		k.must(err)
		also.Systems = d.Systems
		d = also
	}
	return rig{d, img}
}

// plug makes a stick with the inputs.
func (k kit) plug(inputs []badinputs.Input) stick {
	k.Helper()
	dir, err := os.MkdirTemp(k.dir, "stick")
	k.must(err)
	k.Cleanup(func() { os.RemoveAll(dir) })
	var files []string
	for _, in := range inputs {
		path := filepath.Join(dir, in.File())
		k.must(os.WriteFile(path, in.Make(), 0o600))
		files = append(files, path)
	}
	out := filepath.Join(dir, "stick")
	k.must(image.Stick(out, image.StickOptions{}, files))
	f, err := os.Open(out)
	k.must(err)
	k.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	k.must(err)
	return stick{f, info.Size()}
}

func part(d rig, on *crash.Image, name string) []byte {
	p := d.Part(name)
	b := make([]byte, p.Len)
	on.ReadAt(b, p.Off)
	return b
}

// TestDevice gives every bundle of the list to a device on a stick: scanner, checker and installer are the workers' own
// code, disk and boot state are real. What is refused has its code, 1.0 in slot A boots, and nothing on slot B or in the
// floors has changed; what only looks bad is installed.
func TestDevice(t *testing.T) {
	set, err := keys.New(keys.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k := kit{badinputs.New(t, set, scene.Compatible), t, t.TempDir()}
	type kind struct {
		keyring string
		floor   uint32
		plain   bool
	}
	devices := map[kind]rig{}
	groups := map[kind][]badinputs.Input{}
	var order []kind
	refused, accepted := 0, 0
	var slowest time.Duration
	boots := func(t *testing.T, inputs []badinputs.Input) {
		in := inputs[0]
		at := kind{string(in.Keyring), in.Floor, in.Plain}
		d, ok := devices[at]
		if !ok {
			d = k.device(in.Floor, in.Keyring, in.Plain)
			devices[at] = d
		}
		d.Stick = k.plug(inputs)
		on := d.disk.Clone()
		before, err := d.State(on)
		k.must(err)
		start := time.Now()
		b, err := d.Boot(on, status.None, powercut.Observer{})
		if err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(start))
		after, err := d.State(on)
		k.must(err)
		want, got := map[string]int{}, map[string]int{}
		for _, in := range inputs {
			if in.Device != 0 {
				want[in.File()] = int(in.Device)
			}
		}
		for _, r := range b.Report.Refused {
			got[r.File] = r.Code
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("refused (-want +got):\n%s%+v", diff, b.Lines)
		}
		refused += len(got)
		if in.Device == 0 {
			accepted++
			// Nobody knows its system, so that it cannot run: that it was installed is all that counts.
			if len(b.Report.Installed) != 1 || b.Report.Installed[0].Slot != "rootfs.1" {
				t.Errorf("%s: installed %+v: %q", in.Name, b.Report.Installed, b.Lines)
			}
			return
		}
		if b.Slot != "rootfs.0" || b.Trial {
			t.Errorf("slot %q started, trial %v: %q", b.Slot, b.Trial, b.Lines)
		}
		if before.Floors != after.Floors {
			t.Errorf("floors %+v became %+v", before.Floors, after.Floors)
		}
		if !bytes.Equal(part(d, d.disk, "rootfs.0"), part(d, on, "rootfs.0")) {
			t.Error("slot A was touched")
		}
		if !in.Wipes && !bytes.Equal(part(d, d.disk, "rootfs.1"), part(d, on, "rootfs.1")) {
			t.Error("slot B was touched")
		}
		if diff := cmp.Diff(before.Entry("rootfs.1"), after.Entry("rootfs.1")); !in.Wipes && diff != "" {
			t.Errorf("what is known of slot B (-before +after):\n%s", diff)
		}
	}
	all := k.Inputs()
	for _, in := range all {
		at := kind{string(in.Keyring), in.Floor, in.Plain}
		switch {
		case in.Row == "52":
			// A device without a keyring does not get so far; see TestNoKeyring of update.
		case in.Device == 0 || in.Wipes:
			t.Run(in.Row+" "+in.Name, func(t *testing.T) { boots(t, []badinputs.Input{in}) })
		default:
			if !slices.Contains(order, at) {
				order = append(order, at)
			}
			groups[at] = append(groups[at], in)
		}
	}
	for _, at := range order {
		for some := range slices.Chunk(groups[at], 8) {
			t.Run(fmt.Sprintf("%s %s to %s %s", some[0].Row, some[0].Name, some[len(some)-1].Row, some[len(some)-1].Name), func(t *testing.T) { boots(t, some) })
		}
	}
	t.Logf("figure: bad inputs: %d bundles refused by the device, %d of the kind taken, slowest boot %v", refused, accepted, slowest.Round(time.Millisecond))
}

// TestBelowFloor is row 119: both slots hold what is sealed, confirmed and below the floor of the security epoch. Neither is
// started.
func TestBelowFloor(t *testing.T) {
	set, err := keys.New(keys.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k := kit{badinputs.New(t, set, scene.Compatible), t, t.TempDir()}
	d := k.device(3, nil, false)
	for floor, slot := range map[uint32]string{3: "rootfs.0", 4: "", 1<<32 - 1: ""} {
		on := d.disk.Clone()
		p := d.Part("state")
		store, err := raw.New(disk.Section(on, p.Off, p.Len))
		k.must(err)
		s, _, err := store.Load()
		k.must(err)
		s.Floors.Epoch = floor
		_, err = store.Commit(s)
		k.must(err)
		b, err := d.Boot(on, status.None, powercut.Observer{})
		k.must(err)
		if b.Slot != slot || b.Rescue != (slot == "") {
			t.Errorf("floor %d: slot %q started: %q", floor, b.Slot, b.Lines)
		}
	}
}
