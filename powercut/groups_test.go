package powercut

import (
	"maps"
	"strings"
	"testing"

	"lifeboat/disk/crash"
	"lifeboat/slots"
)

// grouped is a configuration in which an application goes with each system.
func grouped(more map[string]string) map[string]string {
	all := map[string]string{
		"slot.appfs.0 device": "PARTLABEL=appfs.0", "slot.appfs.0 parent": "rootfs.0", "slot.appfs.0 mount": "/opt/app",
		"slot.appfs.1 device": "PARTLABEL=appfs.1", "slot.appfs.1 parent": "rootfs.1", "slot.appfs.1 mount": "/opt/app",
	}
	maps.Copy(all, more)
	return all
}

func groupScenarios(t *testing.T, add func(name string, d *Device, start *crash.Image, want Want, run func(w *Watch))) {
	k := newKit(t, grouped(nil))
	d, disk := updates(k, k.bundle("3", 0, Healthy))
	add("two images in a group", d, disk, Want{Version: "3"}, nil)

	k = newKit(t, grouped(map[string]string{"system require-signed-verity": "false"}))
	k.unsigned = true
	d, disk = one(k, k.bundle("2", 0, Silent))
	add("fallback from two images of stock rauc", d, disk, Want{Version: "1"}, nil)
}

// TestGroup: a group is what the worst of it is.
func TestGroup(t *testing.T) {
	k := newKit(t, grouped(nil))
	d, disk := updates(k)
	copySeal := func(i *crash.Image, from, to string) {
		b := make([]byte, slots.SealSize)
		p, q := d.Part(from), d.Part(to)
		_, err := i.ReadAt(b, p.Off+p.Len-slots.SealSize)
		k.must(err)
		_, err = i.WriteAt(b, q.Off+q.Len-slots.SealSize)
		k.must(err)
	}
	for name, test := range map[string]struct {
		spoil  func(i *crash.Image)
		reason string
	}{
		"a child without a seal": {func(i *crash.Image) {
			i.WriteAt(make([]byte, 4096), d.Part("appfs.1").Off+d.Part("appfs.1").Len-slots.SealSize)
		}, "seal-missing"},
		"a child with a torn seal": {func(i *crash.Image) {
			i.WriteAt([]byte("torn"), d.Part("appfs.1").Off+d.Part("appfs.1").Len-slots.SealSize+100)
		}, "seal-false"},
		"the older bundle's child": {func(i *crash.Image) {
			b := make([]byte, d.Part("appfs.0").Len)
			_, err := i.ReadAt(b, d.Part("appfs.0").Off)
			k.must(err)
			i.WriteAt(b, d.Part("appfs.1").Off)
		}, "is of another bundle reason=seal-false"},
		"the parent's seal on the child":  {func(i *crash.Image) { copySeal(i, "rootfs.1", "appfs.1") }, "it is of an image for \"rootfs\""},
		"the child's image as the system": {func(i *crash.Image) { copySeal(i, "appfs.1", "rootfs.1") }, "it is of an image for \"appfs\""},
	} {
		t.Run(name, func(t *testing.T) {
			l := &life{k, d, disk.Clone()}
			test.spoil(l.disk)
			b, _ := l.boot()
			l.runs(b, "1")
			if !contains(b.Lines, test.reason) {
				t.Errorf("nobody says %q:\n%s", test.reason, strings.Join(b.Lines, "\n"))
			}
			// A stick with the same bundle brings it back.
			b, _ = l.boot(k.dir + "/2.raucb")
			l.runs(b, "2")
		})
	}
}

// TestGroupClasses: a bundle has to hold what the device has slots for, no less and no more; nothing is written else.
func TestGroupClasses(t *testing.T) {
	single, both := newKit(t, nil), newKit(t, grouped(nil))
	other := newKit(t, map[string]string{
		"slot.data.0 device": "PARTLABEL=d0", "slot.data.0 parent": "rootfs.0", "slot.data.1 device": "PARTLABEL=d1", "slot.data.1 parent": "rootfs.1",
	})
	one1, two1, data2 := single.bundle("1.5", 0, Healthy), both.bundle("2", 0, Healthy), other.bundle("3", 0, Healthy)
	for _, test := range []struct {
		kit          *kit
		bundle, text string
	}{
		{both, one1, "it has no image for appfs, which goes with rootfs"},
		{single, two1, "it has an image for appfs, for which this device has no slot"},
		{both, data2, "it has no image for appfs"},
	} {
		k := newKit(t, nil)
		k.cfg = test.kit.cfg
		d, disk := one(k)
		l := &life{k, d, disk}
		before := disk.Clone()
		b, s := l.boot(test.bundle)
		l.refused(b, 31, test.text)
		l.runs(b, "1")
		for _, m := range append(d.members("rootfs.1"), d.members("rootfs.0")...) {
			if !sameBytes(before, l.disk, d.Part(m.Name)) {
				t.Errorf("%s was written", m.Name)
			}
		}
		if s.Install.Target != "" {
			t.Errorf("noted: %+v", s.Install)
		}
	}
}

func sameBytes(a, b *crash.Image, r crash.Range) bool {
	x, y := make([]byte, r.Len), make([]byte, r.Len)
	_, err1 := a.ReadAt(x, r.Off)
	_, err2 := b.ReadAt(y, r.Off)
	return err1 == nil && err2 == nil && string(x) == string(y)
}
