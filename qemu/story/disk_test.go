package story

import (
	"bytes"
	"testing"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
)

// A device without its disk says so, and boots when the disk comes late.
func TestNoDisk(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	m := d.Machine("")
	m.Bay = true
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `lifeboat: rescue reason=no-disk\n`)
	vm.Expect(scene.Patience, `Its disk was not found: no disk has PARTLABEL=rootfs\.0`)
	vm.PlugStick(qemu.Stick{Name: "late", File: d.disk(t, "late"), Bay: true})
	boots(t, vm, 1, "A", "1.0", "trial tries=2")
}

// Of two disks that both look right none is guessed; when one is taken out the device goes on.
func TestTwoDisks(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	first, second := d.disk(t, "first"), d.disk(t, "second")
	m := d.Machine(first)
	m.Bay, m.Sticks = true, []qemu.Stick{{Name: "second", File: second, Bay: true}}
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `lifeboat: rescue reason=two-disks\n`)
	vm.Expect(scene.Patience, `lifeboat: vda and vdb both have every partition of this device; take one out\n`)
	vm.Expect(scene.Patience, `Two disks look like this device's own: vda and vdb`)
	for _, image := range []string{first, second} {
		if !bytes.Equal(state(t, image), state(t, d.Disk)) {
			t.Errorf("the state on %s was written", image)
		}
	}
	vm.PullStick("second")
	boots(t, vm, 1, "A", "1.0", "trial tries=2")
}

func state(t *testing.T, image string) []byte {
	t.Helper()
	b, err := scene.Partition(image, "state")
	if err != nil {
		t.Fatal(err)
	}
	return b
}
