package story

import (
	"fmt"
	"testing"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// F1, row 115: a device whose clock stands anywhere takes every update, and no glitch sticks: the floor is fed by what is signed.
// One device lives through one update with each clock.
func TestClock(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	disk := d.disk(t, "clock")
	var floor int64
	for i, clock := range []string{
		"1970-01-01T00:00:00", "2000-01-01T00:00:00", "2037-12-31T23:59:50", "2106-02-08T00:00:00", "2038-02-01T00:00:00", "now",
	} {
		t.Run(clock, func(t *testing.T) { // which ends with its machine's place
			version := fmt.Sprintf("%d.0", i+2)
			stick := d.update(t, version, testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
			m := d.Machine(disk, stick)
			if clock != "now" {
				m.Args = append(m.Args, "-rtc", "base="+clock)
			}
			vm := scene.Start(t, m)
			vm.Expect(scene.Patience, `lifeboat: installed `+version+` to`)
			if v := vm.Ready(); v != version {
				t.Fatalf("clock %s: version %s", clock, v)
			}
			now := vm.Status().State.Floors.Time
			t.Logf("clock %s: floor %d", clock, now)
			if now < floor || now > floor+3600 && floor > 0 {
				t.Errorf("clock %s: the floor went from %d to %d", clock, floor, now)
			}
			floor = now
		})
	}
}
