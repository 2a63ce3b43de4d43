package story

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
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
	disk, err := d.Copy(name+".img", d.Disk)
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
