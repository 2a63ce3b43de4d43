package story

import (
	"testing"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

func TestSmoke(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	img, err := d.System("2.0.img", testsystem.Options{Version: "2.0", Behaviour: testsystem.Good})
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.Bundle("2.0.raucb", img, scene.BundleOptions{Version: "2.0", Rauc: true})
	if err != nil {
		t.Fatal(err)
	}
	stick, err := d.Stick("2.0.stick", b)
	if err != nil {
		t.Fatal(err)
	}
	vm := scene.Start(t, d.Machine(d.disk(t, "smoke"), stick))
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)`)
	if v := vm.Ready(); v != "2.0" {
		t.Fatal(v)
	}
	t.Logf("%+v", vm.Status())
	t.Log(vm.Console())
}
