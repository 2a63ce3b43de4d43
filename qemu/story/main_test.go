package story

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/status"
)

// workDir is where this process stages; it is gone afterwards.
var workDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "lifeboat-story-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		workDir = dir
		return m.Run()
	}())
}

// device is a staged device that all tests of this package share: the scene with its default options, and a disk with a
// good-saying system 1.0 in slot A, which nobody writes to.
var device = sync.OnceValues(func() (*staged, error) {
	s, err := scene.New(filepath.Join(workDir, "scene"), scene.Options{})
	if err != nil {
		return nil, err
	}
	return stage(s)
})

type staged struct {
	*scene.Scene
	Disk string // template: copy it
}

// stage makes system 1.0, its bundle and the disk.
func stage(s *scene.Scene) (*staged, error) {
	system, err := s.System("1.0.img", testsystem.Options{Version: "1.0", Behaviour: testsystem.Good})
	if err != nil {
		return nil, err
	}
	b, err := s.Bundle("1.0.raucb", system, scene.BundleOptions{Version: "1.0"})
	if err != nil {
		return nil, err
	}
	disk, err := s.Disk("template.img", map[string]string{"A": b}, map[string]int64{"rootfs": slotSize})
	return &staged{s, disk}, err
}

// slotSize leaves room for an ext4 image of 16 MiB.
const slotSize = 20 << 20

// needDevice returns the staged device, or skips where it cannot run.
func needDevice(t *testing.T) *staged {
	t.Helper()
	qemu.NeedKernel(t, "generic")
	d, err := device()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// disk copies the template for one test.
func (d *staged) disk(t *testing.T, name string) string {
	t.Helper()
	disk, err := d.Copy(fileName(t)+"-"+name+".img", d.Disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			os.Remove(disk)
		}
	})
	return disk
}

// rsaDevice is the device with RSA keys.
var rsaDevice = sync.OnceValues(func() (*staged, error) {
	s, err := scene.New(filepath.Join(workDir, "rsa"), scene.Options{RSA: 2048})
	if err != nil {
		return nil, err
	}
	return stage(s)
})

func needRSA(t *testing.T) *staged {
	t.Helper()
	qemu.NeedKernel(t, "generic")
	d, err := rsaDevice()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// special stages a device with another configuration.
func special(t *testing.T, o scene.Options) *staged {
	t.Helper()
	flavour := o.Flavour
	if flavour == "" {
		flavour = "generic"
	}
	qemu.NeedKernel(t, flavour)
	s, err := scene.New(filepath.Join(workDir, fileName(t)), o)
	if err != nil {
		t.Fatal(err)
	}
	d, err := stage(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func fileName(t *testing.T) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' || r == ',' {
			return '_'
		}
		return r
	}, t.Name())
}

// bundle makes a system and its bundle, for this test alone.
func (d *staged) bundle(t *testing.T, file, version string, how testsystem.Behaviour, s testsystem.Options, b scene.BundleOptions) string {
	t.Helper()
	s.Version, s.Behaviour, b.Version = version, how, version
	dir := fileName(t)
	if err := os.MkdirAll(d.Path(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	img, err := d.System(dir+"/"+version+".img", s)
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.Bundle(dir+"/"+file, img, b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// update makes a stick with one bundle, update.raucb.
func (d *staged) update(t *testing.T, version string, how testsystem.Behaviour, s testsystem.Options, b scene.BundleOptions) string {
	t.Helper()
	return d.stick(t, version, d.bundle(t, "update.raucb", version, how, s, b))
}

func (d *staged) stick(t *testing.T, name string, files ...string) string {
	t.Helper()
	stick, err := d.Stick(fileName(t)+"-"+name+".stick", files...)
	if err != nil {
		t.Fatal(err)
	}
	return stick
}

func slot(r *status.Report, bootname string) status.Slot {
	for _, s := range r.State.Slots {
		if s.Bootname == bootname {
			return s
		}
	}
	return status.Slot{}
}
