package powercut

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/status"
)

// loaderScenarios are an update, its fallback and what the running system says, on devices whose boot loader chooses.
func loaderScenarios(t *testing.T) (all []scenario) {
	for _, name := range slices.Sorted(maps.Keys(Loaders)) {
		l := Loaders[name]
		add := func(what string, d *Device, start *crash.Image, want Want, run func(w *Watch)) {
			all = append(all, scenario{name + ": " + what, d, start, run, want, nil})
		}
		device := func(k *kit) (*Device, *crash.Image) {
			disk := k.disk(map[string]string{"A": k.bundle("1", 0, Healthy)})
			d := k.device(disk, nil)
			k.must(d.Behind(l, disk))
			return d, k.settled(d, disk, "1")
		}
		conf := map[string]string{"system bootloader": name}
		{
			k := newKit(t, conf)
			d, disk := device(k)
			d.Stick = k.stick(k.bundle("2", 0, Healthy))
			add("first install", d, disk, Want{Version: "2"}, nil)

			both := k.settled(d, disk, "2")
			bare := *d
			bare.Stick = nil
			if l.Make == nil { // else it is the loader itself that is lost
				lost := both.Clone()
				lost.WriteAt(make([]byte, 128<<10), d.Part(LoaderPart).Off)
				add("variables lost", &bare, lost, Want{Version: "2"}, nil)
			}
			if name != "grub" && *states <= 1_000_000 {
				continue // their formats have crash tests of their own
			}
			d3 := *d
			d3.Stick = k.stick(k.bundle("3", 0, Healthy))
			add("install over an older system", &d3, both, Want{Version: "3"}, nil)

			add("next", &bare, both, Want{Version: "2"}, func(w *Watch) {
				if err := w.d.SayNext(w, "rootfs.0", w.committed); err != nil {
					t.Error(err)
				}
				w.Boot(status.None)
				w.Boot(status.None)
			})
		}
		{
			k := newKit(t, conf)
			d, disk := device(k)
			d.Stick = k.stick(k.bundle("2", 0, Panics))
			add("the new system panics", d, disk, Want{Version: "1"}, nil)
		}
		{
			k := newKit(t, conf)
			d, disk := device(k)
			d.Stick = k.stick(k.bundle("2", 0, SaysBad))
			add("the new system says bad", d, disk, Want{Version: "1"}, nil)
		}
	}
	return all
}

// An update tells the loader twice, before the old seal is wiped and when it is done, and a boot without news not at all.
func TestLoaderIsTold(t *testing.T) {
	for name, l := range Loaders {
		t.Run(name, func(t *testing.T) {
			told := 0
			counting := &Loader{Start: l.Start, Make: l.Make, Open: func(area disk.Device, names []string) (boot.Loader, error) {
				o, err := l.Open(area, names)
				return &counted{o, &told}, err
			}}
			k := newKit(t, map[string]string{"system bootloader": name})
			image := k.disk(map[string]string{"A": k.bundle("1", 0, Healthy)})
			d := k.device(image, nil)
			k.must(d.Behind(counting, image))
			image = k.settled(d, image, "1")
			d.Stick = k.stick(k.bundle("2", 0, Silent))
			r := crash.Record(image)
			w := d.Over(r, nil)
			told = 0
			b, _, _ := w.Boot(status.None)
			if k.must(w.Err()); b.Started.Facts.Version != "2" || told > 2 {
				t.Errorf("an update to %s tells the loader %d times", b.Started.Facts.Version, told)
			}
			told = 0
			needs := 0
			if d.policy.Most == 0 {
				needs = 1 // each try of a trial stands in BootNext anew
			}
			w.Boot(status.None)
			if k.must(w.Err()); told > needs {
				t.Errorf("a boot without news tells the loader %d times", told)
			}
		})
	}
}

type counted struct {
	boot.Loader
	n *int
}

func (c *counted) Write(v boot.Vars) error {
	*c.n++
	return c.Loader.Write(v)
}

// A loader that cannot be told costs a device its updates, not its system: what runs goes on, also on trial, and nothing is
// written that the loader would have to know of.
func TestLoaderIsDeaf(t *testing.T) {
	l := Loaders["grub"]
	deaf := &Loader{Start: l.Start, Open: func(area disk.Device, names []string) (boot.Loader, error) {
		o, err := l.Open(area, names)
		return deafLoader{o}, err
	}}
	k := newKit(t, map[string]string{"system bootloader": "grub"})
	image := k.disk(map[string]string{"A": k.bundle("1", 0, Healthy)})
	d := k.device(image, nil)
	d.Loader, d.policy.Most = deaf, 9
	d.Stick = k.stick(k.bundle("2", 0, Healthy))
	r := crash.Record(image)
	w := d.Over(r, nil)
	for n := range 3 {
		b, _, well := w.Boot(status.None)
		if k.must(w.Err()); !well || b.Slot != "rootfs.0" {
			t.Fatalf("boot %d: %+v", n, b)
		}
		if n == 1 && (len(b.Report.Refused) != 1 || b.Report.Refused[0].Code != 40) {
			t.Errorf("boot %d refuses %v", n, b.Report.Refused)
		}
	}
}

type deafLoader struct{ boot.Loader }

func (deafLoader) Write(boot.Vars) error { return errors.New("no") }
