package powercut

import (
	"testing"

	"lifeboat/boot"
	"lifeboat/boot/grub"
	"lifeboat/boot/uboot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/status"
)

// areas are two copies of size bytes each, as far apart as two files are.
func areas(d disk.Device, size int64) []disk.Device {
	return []disk.Device{disk.Section(d, 0, size), disk.Section(d, 64<<10, size)}
}

// starting makes the Start of a loader of what it does to the bytes of its copies. What it changed it writes, and that is
// durable before a kernel is started.
func starting(size int64, whole func([]byte) bool, run func(copies [][]byte, names []string, loads func(string) bool) string) func(disk.Device, []string) (string, error) {
	return func(area disk.Device, names []string) (string, error) {
		var copies, before [][]byte
		for _, d := range areas(area, size) {
			b := make([]byte, size)
			if _, err := d.ReadAt(b, 0); err != nil {
				return "", err
			}
			copies, before = append(copies, append([]byte(nil), b...)), append(before, b)
		}
		started := run(copies, names, func(string) bool { return true })
		places, order := areas(area, size), []int{0, 1}
		if whole(before[0]) {
			order = []int{1, 0} // never the only one that is whole
		}
		for _, i := range order {
			d := places[i]
			for at := 0; at < len(copies[i]); at += 512 {
				if now := copies[i][at:min(at+512, len(copies[i]))]; string(now) != string(before[i][at:at+len(now)]) {
					if _, err := d.WriteAt(now, int64(at)); err != nil {
						return "", err
					}
				}
			}
			if err := d.Flush(); err != nil {
				return "", err
			}
		}
		return started, nil
	}
}

const ubootSize = 4096

// loaders are the boot loaders whose variables lie on the disk, in one sector or more.
var loaders = map[string]*Loader{
	"grub": {
		Open:  func(area disk.Device, names []string) (boot.Loader, error) { return grub.New(areas(area, 1024), names) },
		Start: starting(1024, func([]byte) bool { return false }, grub.Run),
	},
	"uboot": {
		Open: func(area disk.Device, names []string) (boot.Loader, error) {
			return uboot.New(areas(area, ubootSize), names, "rauc")
		},
		Start: starting(ubootSize, func(b []byte) bool { _, ok := uboot.Parse(b, true); return ok }, func(copies [][]byte, names []string, loads func(string) bool) string {
			started, after := uboot.Run([2][]byte(copies), ubootSize, names, loads)
			copies[0], copies[1] = after[0], after[1]
			return started
		}),
	},
}

// loaderScenarios are an update, its fallback and what the running system says, on devices whose boot loader chooses.
func loaderScenarios(t *testing.T) (all []scenario) {
	for name, l := range loaders {
		add := func(what string, d *Device, start *crash.Image, want Want, run func(w *Watch)) {
			all = append(all, scenario{name + ": " + what, d, start, run, want, nil})
		}
		device := func(k *kit) (*Device, *crash.Image) {
			disk := k.disk(map[string]string{"A": k.bundle("1", 0, Healthy)})
			d := k.device(disk, nil)
			d.Loader = l
			o, err := l.Open(d.section(disk, loaderPart), d.policy.Bootnames)
			k.must(err)
			d.policy.Most = o.Most()
			return d, k.settled(d, disk, "1")
		}
		conf := map[string]string{"system bootloader": name}
		{
			k := newKit(t, conf)
			d, disk := device(k)
			d.Stick = k.stick(k.bundle("2", 0, Healthy))
			add("first install", d, disk, Want{Version: "2"}, nil)

			both := k.settled(d, disk, "2")
			d3 := *d
			d3.Stick = k.stick(k.bundle("3", 0, Healthy))
			add("install over an older system", &d3, both, Want{Version: "3"}, nil)

			bare := *d
			bare.Stick = nil
			add("next", &bare, both, Want{Version: "2"}, func(w *Watch) {
				if err := w.d.SayNext(w, "rootfs.0", w.committed); err != nil {
					t.Error(err)
				}
				w.Boot(status.None)
				w.Boot(status.None)
			})
			lost := both.Clone()
			lost.WriteAt(make([]byte, 128<<10), d.Part(loaderPart).Off)
			add("variables lost", &bare, lost, Want{Version: "2"}, nil)
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
	for name, l := range loaders {
		t.Run(name, func(t *testing.T) {
			told := 0
			counting := &Loader{Start: l.Start, Open: func(area disk.Device, names []string) (boot.Loader, error) {
				o, err := l.Open(area, names)
				return &counted{o, &told}, err
			}}
			k := newKit(t, map[string]string{"system bootloader": name})
			image := k.disk(map[string]string{"A": k.bundle("1", 0, Healthy)})
			d := k.device(image, nil)
			d.Loader = counting
			d.policy.Most = 9
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
			w.Boot(status.None)
			if k.must(w.Err()); told > 0 {
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
