package powercut

import (
	"fmt"
	"strings"
	"testing"

	"lifeboat/disk/crash"
	"lifeboat/slots"
	"lifeboat/status"
)

// scenario is something that writes, from its beginning to its end, on a device.
type scenario struct {
	name   string
	device *Device
	start  *crash.Image
	run    func(w *Watch) // nil: boot until it is as wanted
	want   Want
	check  func(c crash.State) error // nil: it becomes as wanted
}

func (s scenario) test(o crash.Options) crash.Test {
	run := s.run
	if run == nil {
		run = func(w *Watch) { w.Settle(s.want) }
	}
	check := s.check
	if check == nil {
		check = func(c crash.State) error { return s.device.Check(c, s.want) }
	}
	if l := s.device.Loader; l != nil && l.Atomic {
		o.Atomic = s.device.Part(LoaderPart)
	}
	return crash.Test{
		Name: s.name, Start: s.start, Options: o, Mask: s.device.Mask, Check: check,
		Update: func(r *crash.Recorder) error {
			w := s.device.Over(r, nil)
			w.Loose, w.Decayed = s.want.Loose, s.want.Decayed
			run(w)
			return w.Err()
		},
	}
}

// updates is a device with systems 1 and 2 that were good, of which the newer one runs, and what is plugged in next.
func updates(k *kit, sticks ...string) (*Device, *crash.Image) {
	v1, v2 := k.bundle("1", 0, Healthy), k.bundle("2", 0, Healthy)
	disk := k.disk(map[string]string{"A": v1})
	d := k.device(disk, nil)
	disk = k.settled(d, disk, "1")
	d.Stick = k.stick(v2)
	disk = k.settled(d, disk, "2")
	d.Stick = nil
	if len(sticks) > 0 {
		d.Stick = k.stick(sticks...)
	}
	return d, disk
}

// one is a device with system 1 in slot A, confirmed.
func one(k *kit, sticks ...string) (*Device, *crash.Image) {
	disk := k.disk(map[string]string{"A": k.bundle("1", 0, Healthy)})
	d := k.device(disk, nil)
	disk = k.settled(d, disk, "1")
	if len(sticks) > 0 {
		d.Stick = k.stick(sticks...)
	}
	return d, disk
}

// scenarios are all things that write today.
func scenarios(t *testing.T) (all []scenario) {
	add := func(name string, d *Device, start *crash.Image, want Want, run func(w *Watch)) {
		all = append(all, scenario{name, d, start, run, want, nil})
	}
	{
		k := newKit(t, nil)
		d, disk := one(k, k.bundle("2", 0, Healthy))
		add("first install", d, disk, Want{Version: "2"}, nil)

		// The same from where a cut left the image half written.
		c := all[0].test(crash.Options{})
		var half *crash.Image
		r := crash.Record(disk)
		k.must(c.Update(r))
		r.Trace().States(crash.Options{}, func(s crash.State) bool {
			if strings.HasPrefix(s.How, "in order") && strings.HasSuffix(s.How, fmt.Sprintf("its sector at %d new", d.Part("rootfs.1").Off+imageSize/2)) {
				half = s.Image
			}
			return half == nil
		})
		if half == nil {
			t.Fatal("no state has half an image")
		}
		add("install over a half-written slot", d, half, Want{Version: "2"}, nil)
	}
	{
		k := newKit(t, nil)
		d, disk := updates(k, k.bundle("3", 0, Healthy))
		add("install over an older system", d, disk, Want{Version: "3"}, nil)
	}
	{
		k := newKit(t, nil)
		d, disk := updates(k)
		d.Stick = k.stick(k.dir + "/2.raucb")
		add("same bundle again", d, disk, Want{Version: "2"}, nil)

		decayed := disk.Clone()
		decayed.WriteAt([]byte("decay"), d.Part("rootfs.1").Off+imageSize/2)
		add("same bundle over a slot that decayed", d, decayed, Want{Version: "2", Decayed: true}, nil)

		bare := k.device(disk, nil)
		add("next", bare, disk, Want{Version: "2"}, func(w *Watch) {
			if err := w.d.SayNext(w, "rootfs.0", w.committed); err != nil {
				t.Error(err)
			}
			w.Boot(status.None)
			w.Boot(status.None)
		})
		add("good", bare, disk, Want{Version: "2"}, func(w *Watch) {
			if err := w.d.SayGood(w, "rootfs.1", w.committed); err != nil {
				t.Error(err)
			}
		})
		add("bad", bare, disk, Want{Version: "1", Or: "2"}, func(w *Watch) {
			if err := w.d.SayBad(w, "rootfs.1", w.committed); err != nil {
				t.Error(err)
			}
			w.Settle(Want{Version: "1"})
		})
		all[len(all)-1].want = Want{Version: "*"} // before the record it runs, after it the other one does
	}
	{
		k := newKit(t, nil)
		d, disk := updates(k, k.bundle("0.9", 0, Healthy))
		add("downgrade refused", d, disk, Want{Version: "2"}, func(w *Watch) {
			b, _, _ := w.Boot(status.None)
			if len(b.Report.Refused) == 0 && !contains(b.Lines, "is not newer") || len(b.Report.Installed) > 0 {
				t.Errorf("the older bundle: %+v, %q", b.Report.Refused, b.Lines)
			}
		})
	}
	for name, how := range map[string]Behaviour{"silent": Silent, "panics": Panics, "hangs": Hangs, "says bad": SaysBad} {
		for _, fallback := range []string{"available", "secure"} {
			k := newKit(t, map[string]string{"fallback policy": fallback})
			d, disk := one(k, k.bundle("2", 0, how))
			add("fallback="+fallback+" from a system that "+name, d, disk, Want{Version: "1"}, nil)
		}
	}
	for name, how := range map[string]Behaviour{"is switched off": Silent, "goes down in order": Leaves} {
		k := newKit(t, map[string]string{"fallback count": "failures"})
		d, disk := one(k, k.bundle("2", 0, how))
		d.policy.PowerLosses = 2 // for speed: the rule is the same for any number
		add("count=failures, from a system that "+name, d, disk, Want{Version: "1"}, nil)
	}
	{
		k := newKit(t, map[string]string{"system require-signed-verity": "false"})
		k.unsigned = true
		d, disk := one(k, k.bundle("2", 0, Healthy))
		add("install of what is authentic at install only", d, disk, Want{Version: "2"}, nil)
	}
	{
		k := newKit(t, map[string]string{"fallback policy": "secure"})
		d, disk := updates(k, k.bundle("3", 0, Healthy))
		add("install with fallback=secure", d, disk, Want{Version: "3"}, nil)
	}
	{
		k := newKit(t, map[string]string{"system boot-attempts": "1"})
		d, disk := one(k, k.bundle("2", 0, Healthy))
		add("install with one attempt", d, disk, Want{Version: "2", More: 6}, nil)
	}
	{
		k := newKit(t, map[string]string{"slot.rootfs.2 device": "PARTLABEL=rootfs.2", "slot.rootfs.2 bootname": "C"})
		d, disk := updates(k, k.bundle("3", 0, Healthy))
		add("install with three slots", d, disk, Want{Version: "3"}, nil)
	}
	{
		k := newKit(t, nil)
		d, disk := one(k)
		two, three := k.stick(k.bundle("2", 1, Healthy)), k.stick(k.bundle("3", 1, Healthy))
		later := *d
		later.Stick = three
		add("floors raised by two updates", &later, disk, Want{Version: "3"}, func(w *Watch) {
			first := *d
			first.Stick = two
			w.d = &first
			w.Settle(Want{Version: "2"})
			w.d = &later
			w.Settle(Want{Version: "3"})
			if f := w.mem.State.Floors; f.Version != "2" || f.Epoch != 1 {
				t.Errorf("floors %+v", f)
			}
		})
	}
	{
		k := newKit(t, nil)
		d, disk := one(k, k.bundle("2", 0, Healthy))
		lost := disk.Clone()
		for _, name := range d.policy.Slots {
			lost.WriteAt(make([]byte, 4096), d.Part(name).Off+d.Part(name).Len-slots.SealSize)
		}
		add("rescue repairs a device without a slot", d, lost, Want{Version: "2"}, nil)

		stateless := disk.Clone()
		stateless.WriteAt(make([]byte, d.Part("state").Len), d.Part("state").Off)
		add("state lost", k.device(disk, nil), stateless, Want{Version: "1"}, nil)

		bad := k.stick(k.dir + "/2.raucb")
		spoilt := bad.Clone()
		spoil(t, spoilt)
		refused := *d
		refused.Stick = spoilt
		add("damaged bundle refused", &refused, disk, Want{Version: "1"}, func(w *Watch) {
			b, _, _ := w.Boot(status.None)
			if len(b.Report.Refused) != 1 || b.Report.Refused[0].Code != 30 {
				t.Errorf("the damaged bundle: %+v", b.Report.Refused)
			}
		})

		ends := *d
		ends.BadWorker = true
		add("bundle that ends its installer", &ends, disk, Want{Version: "1"}, func(w *Watch) {
			for range 4 {
				w.Boot(status.None)
			}
		})
	}
	trustScenarios(t, add)
	groupScenarios(t, add)
	treeScenarios(t, add)
	repairScenarios(t, add)
	all = append(all, runningScenarios(t)...)
	all = append(all, loaderScenarios(t)...)
	return append(all, stagingScenarios(t)...)
}

// spoil damages the payload of the one bundle on a stick: a sector that looks like compressed data.
func spoil(t *testing.T, stick *crash.Image) {
	t.Helper()
	b := make([]byte, 512)
	for off := int64(0); off < stick.Size(); off += 4096 {
		if _, err := stick.ReadAt(b, off+1024); err != nil {
			break
		}
		kinds := map[byte]bool{}
		for _, c := range b {
			kinds[c] = true
		}
		if len(kinds) > 180 {
			b[100] ^= 1
			if _, err := stick.WriteAt(b, off+1024); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("there is no payload on the stick")
}
