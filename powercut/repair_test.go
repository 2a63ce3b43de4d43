package powercut

import (
	"strings"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk/crash"
	"lifeboat/slots"
	"lifeboat/status"
)

// twins is a device that left the factory with the same system in both slots, of which the first runs and is confirmed.
func twins(t *testing.T, changes map[string]string) (*kit, *Device, *crash.Image) {
	k := newKit(t, changes)
	b := k.bundle("1", 0, Healthy)
	disk := k.disk(map[string]string{"A": b, "B": b})
	d := k.device(disk, nil)
	return k, d, k.settled(d, disk, "1")
}

// decayed returns a disk on which bytes of a partition are not what was written.
func decayed(d *Device, disk *crash.Image, part string, at int64) *crash.Image {
	c := disk.Clone()
	c.WriteAt([]byte("decay"), d.Part(part).Off+at)
	return c
}

// sealOf is where the seal of a partition begins.
func sealOf(d *Device, part string) int64 { return d.Part(part).Len - slots.SealSize }

func repairScenarios(t *testing.T, add func(name string, d *Device, start *crash.Image, want Want, run func(w *Watch))) {
	repair := map[string]string{"rescue repair": "true"}
	want := Want{Version: "1", Decayed: true, Intact: []string{"rootfs.0", "rootfs.1"}}

	_, d, disk := twins(t, repair)
	add("a decayed slot is copied from the other", d, decayed(d, disk, "rootfs.0", imageSize/2), want, nil)
	lost := decayed(d, decayed(d, disk, "rootfs.0", imageSize/2), "rootfs.0", sealOf(d, "rootfs.0"))
	add("a slot without a seal is copied from the other", d, lost, Want{Version: "1", Intact: want.Intact}, nil)

	_, d, disk = twins(t, grouped(repair))
	add("a group is copied from the other", d, decayed(d, disk, "appfs.0", imageSize/2), want, nil)
}

// TestRepair: what is damaged is copied from its twin, or written anew from a stick with the bundle that it was, older or
// not; nothing else is, and nothing where it is not asked for.
func TestRepair(t *testing.T) {
	repair := map[string]string{"rescue repair": "true"}
	intact := func(l *life, slot string, want bool) {
		t.Helper()
		if _, ok := l.d.intact(l.disk, slot); ok != want {
			t.Errorf("%s is intact: %v", slot, ok)
		}
	}
	for name, spoil := range map[string]func(d *Device, disk *crash.Image) *crash.Image{
		"image": func(d *Device, i *crash.Image) *crash.Image { return decayed(d, i, "rootfs.0", imageSize/2) },
		"seal torn": func(d *Device, i *crash.Image) *crash.Image {
			return decayed(d, i, "rootfs.0", sealOf(d, "rootfs.0")+100)
		},
		"seal wiped": func(d *Device, i *crash.Image) *crash.Image { return decayed(d, i, "rootfs.0", sealOf(d, "rootfs.0")) },
	} {
		t.Run(name, func(t *testing.T) {
			k, d, disk := twins(t, repair)
			l := &life{k, d, spoil(d, disk)}
			w := func(boots int) (b *Boot, s boot.State) {
				for range boots {
					r := crash.Record(l.disk)
					watch := d.Over(r, nil)
					watch.Decayed = true
					b, _, _ = watch.Boot(status.None)
					k.must(watch.Err())
					l.disk = r.Image()
				}
				s, err := d.State(l.disk)
				k.must(err)
				return b, s
			}
			b, _ := w(1)
			if b.Slot != "rootfs.1" || contains(b.Lines, "repair") {
				t.Fatalf("%s was started:\n%s", b.Slot, strings.Join(b.Lines, "\n"))
			}
			intact(l, "rootfs.0", false)
			b, s := w(1)
			if b.Slot != "rootfs.1" || !contains(b.Lines, "repaired rootfs.0 (A)") {
				t.Fatalf("%s was started:\n%s", b.Slot, strings.Join(b.Lines, "\n"))
			}
			intact(l, "rootfs.0", true)
			if e := s.Slots[1]; e.Slot != "rootfs.0" || !e.Good || e.Reason != status.None || e.Tries != 8 || s.Mark != boot.MarkNone {
				t.Errorf("the record: %s, mark %d", names(s), s.Mark)
			}
			b, s2 := w(1)
			if contains(b.Lines, "repair") || len(s2.Events) != len(s.Events) {
				t.Errorf("again:\n%s", strings.Join(b.Lines, "\n"))
			}
			// Now the other one decays.
			l.disk = decayed(d, l.disk, "rootfs.1", imageSize/2)
			if b, _ = w(1); b.Slot != "rootfs.0" {
				t.Errorf("%s was started", b.Slot)
			}
		})
	}
	t.Run("both", func(t *testing.T) {
		// The twin is damaged where nobody had read yet: nothing is written, and the repair is not tried at every boot.
		k, d, disk := twins(t, repair)
		disk = decayed(d, disk, "rootfs.0", sealOf(d, "rootfs.0"))
		r := crash.Record(disk)
		_, err := d.Boot(r, status.None, Observer{})
		k.must(err)
		k.must(d.SayGood(r, "rootfs.1", nil))
		i := decayed(d, r.Image(), "rootfs.1", imageSize/2)
		tried := 0
		for range 12 {
			r := crash.Record(i)
			b, err := d.Boot(r, status.None, Observer{})
			k.must(err)
			if contains(b.Lines, "could not be repaired: slot rootfs.1 (B) is not right itself") {
				tried++
			}
			i = r.Image()
			if _, ok := d.seal(i, d.members("rootfs.1")[0]); !ok {
				t.Fatal("its seal is gone")
			}
		}
		if tried == 0 || tried > 4 {
			t.Errorf("%d repairs in 12 boots", tried)
		}
	})
	t.Run("lost writes", func(t *testing.T) {
		// A disk says that it wrote and did not: reading back notices, and a later repair writes what is missing.
		k, d, disk := twins(t, repair)
		disk = decayed(d, disk, "rootfs.0", imageSize/2)
		boots := func(n int, rec *crash.Recorder) (lines []string) {
			for range n {
				b, err := d.Boot(rec, status.None, Observer{})
				k.must(err)
				k.must(d.SayGood(rec, "rootfs.1", nil))
				lines = append(lines, b.Lines...)
			}
			return lines
		}
		found := crash.Record(disk)
		boots(1, found)
		disk = found.Image()
		for n, hit := 0, true; hit; n++ {
			hit = false
			rec := crash.Record(disk)
			rec.Lost = func(i int, off, length int64) bool {
				slot, _ := d.allowed(off, length)
				hit = hit || i >= n && slot != ""
				return i == n && slot != ""
			}
			lines := boots(1, rec)
			if _, ok := d.sealed(rec.Peek(), "rootfs.0"); ok != contains(lines, "repaired ") {
				t.Errorf("write %d is lost: sealed %v:\n%s", n, ok, strings.Join(lines, "\n"))
			}
			if _, ok := d.intact(rec.Peek(), "rootfs.0"); !ok && contains(lines, "repaired ") {
				t.Errorf("write %d is lost: it was not repaired:\n%s", n, strings.Join(lines, "\n"))
			}
			if boots(6, rec); hit {
				if _, ok := d.intact(rec.Peek(), "rootfs.0"); !ok {
					t.Errorf("write %d was lost: not repaired in the end", n)
				}
			}
		}
	})
	t.Run("not asked for", func(t *testing.T) {
		k, d, disk := twins(t, nil)
		l := &life{k, d, decayed(d, disk, "rootfs.0", sealOf(d, "rootfs.0"))}
		for range 3 {
			b, _ := l.boot()
			l.runs(b, "1")
		}
		intact(l, "rootfs.0", false)
	})
	t.Run("older bundle on a stick", func(t *testing.T) {
		k := newKit(t, repair)
		d, disk := updates(k)
		l := &life{k, d, decayed(d, disk, "rootfs.0", sealOf(d, "rootfs.0"))}
		b, s := l.boot(k.dir + "/1.raucb")
		l.runs(b, "2")
		intact(l, "rootfs.0", true)
		if e := s.Slots[1]; e.Slot != "rootfs.0" || !e.Good || e.Reason != status.None || len(b.Report.Installed) != 1 {
			t.Errorf("the record: %s", names(s))
		}
		b, _ = l.boot(k.dir + "/1.raucb")
		l.runs(b, "2")
		if len(b.Report.Installed) > 0 {
			t.Errorf("again:\n%s", strings.Join(b.Lines, "\n"))
		}
	})
	t.Run("restarts before good", func(t *testing.T) {
		// A decayed block restarts the device before the system can say that it is well.
		k, d, disk := twins(t, repair)
		i := disk
		boots := 0
		for ; boots < 8; boots++ {
			r := crash.Record(i)
			b, err := d.Boot(r, status.None, Observer{})
			k.must(err)
			i = r.Image()
			if contains(b.Lines, "reading slot rootfs.0 (A) whole") {
				break
			}
		}
		if boots != 3 {
			t.Errorf("the slot was read whole in boot %d", boots)
		}
	})
}
