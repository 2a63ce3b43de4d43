package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"lifeboat/disk/crash"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/writelog"
)

// moment says what the law is when the power is cut from now on.
type moment struct {
	What   string   `json:"what"`
	Alone  []string `json:"alone"`  // versions one of which has to come up when no stick is plugged in
	Rescue bool     `json:"rescue"` // or the device goes to rescue
	Stick  string   `json:"stick"`  // version on the stick with which the device is updated afterwards; it must be confirmed
}

// mark is a moment and the size that the log had when it came.
type mark struct {
	Size   int64  `json:"size"`
	Moment moment `json:"moment"`
}

// story is something that a device lives through, with its disk's writes recorded.
type story struct {
	name, title string
	loader      string                            // that the device has
	prepare     func(s *stage, disk string) error // changes the factory's disk; may be nil
	play        func(d *player)
}

var stories = []story{
	{
		name: "update", title: "first boot, an update to 2.0, an update to 3.0 that never says good, fallback to 2.0",
		play: func(d *player) {
			d.updates(3)
			d.reset()
			d.up("2.0", true)
		},
	},
	{
		name: "rescue", title: "no slot can be booted, a stick repairs the device",
		prepare: func(_ *stage, disk string) error {
			return scene.EditPartition(disk, "rootfs.0", func(b []byte) { clear(b[len(b)-128<<10:]) })
		},
		play: func(d *player) {
			d.moment(moment{What: "no slot is left", Rescue: true, Stick: "2.0"})
			d.expect(`lifeboat: rescue reason=no-slot\n`)
			d.expect(`What to do: plug in a USB stick`)
			d.moment(moment{What: "stick 2.0 is plugged in", Alone: []string{"2.0"}, Rescue: true, Stick: "2.0"})
			d.plug("2.0")
			d.up("2.0", true)
			d.moment(moment{What: "2.0 is good", Alone: []string{"2.0"}, Stick: "4.0"})
			d.pull("2.0")
			d.reset()
			d.up("2.0", true)
		},
	},
	{
		name: "grub", loader: "grub", title: "the same where GRUB chooses",
		play: func(d *player) { d.updates(2) },
	},
	{
		name: "uboot", loader: "uboot", title: "the same where U-Boot chooses",
		play: func(d *player) { d.updates(2) },
	},
}

// stories are those of the stage's device.
func (s *stage) stories() (some []story) {
	for _, st := range stories {
		if st.loader == s.Loader {
			some = append(some, st)
		}
	}
	return some
}

func (s *stage) names() (all []string) {
	for _, st := range s.stories() {
		all = append(all, st.name)
	}
	return all
}

func storyNamed(name string) (story, error) {
	for _, s := range stories {
		if s.name == name {
			return s, nil
		}
	}
	return story{}, fmt.Errorf("there is no story %q", name)
}

// player plays a story on a device whose disk's writes are logged. After the first thing that did not happen nothing
// more is done.
type player struct {
	s     *stage
	vm    *qemu.VM
	log   string
	marks []mark
	err   error
}

func (d *player) do(f func() error) {
	if d.err == nil {
		d.err = f()
	}
}

func (d *player) expect(pattern string) {
	d.do(func() error { _, err := d.vm.Expect(firstWait, pattern); return err })
}

func (d *player) up(version string, good bool) {
	d.expect(`SYSTEM UP version=` + version + `\n`)
	if good {
		d.expect(`SYSTEM GOOD\n`)
		d.expect(`SYSTEM READY\n`)
	}
}

// reset is not the system's own reboot: a kernel that shuts down while it makes a stick's acquaintance may hang.
func (d *player) reset() { d.do(func() error { return d.vm.Reset() }) }

func (d *player) plug(version string) {
	d.do(func() error { return d.vm.PlugStick(stickOf(d.s, version)) })
}

func (d *player) pull(version string) {
	d.do(func() error { return d.vm.PullStick(stickName(version)) })
}

func (d *player) moment(m moment) {
	d.do(func() error {
		info, err := os.Stat(d.log)
		if err != nil {
			return err
		}
		d.marks = append(d.marks, mark{info.Size(), m})
		return nil
	})
}

// updates is an update that is good and one that never says so, which is tried so often.
func (d *player) updates(tries int) {
	d.moment(moment{What: "from the factory", Alone: []string{"1.0"}, Stick: "2.0"})
	d.up("1.0", true)
	d.moment(moment{What: "1.0 is good, stick 2.0 is plugged in", Alone: []string{"1.0", "2.0"}, Stick: "2.0"})
	d.plug("2.0")
	d.reset()
	d.expect(`lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	d.up("2.0", true)
	d.moment(moment{What: "2.0 is good, stick 3.0 is plugged in", Alone: []string{"2.0", "3.0"}, Stick: "4.0"})
	d.pull("2.0")
	d.plug("3.0")
	d.reset()
	d.expect(`lifeboat: installed 3\.0 to rootfs\.0 \(A\)\n`)
	for try := range tries {
		d.up("3.0", false)
		if try == 0 {
			d.pull("3.0")
		}
	}
	d.expect(`lifeboat: fallback from A to B reason=exhausted\n`)
	d.moment(moment{What: "fallen back to 2.0", Alone: []string{"2.0"}, Stick: "4.0"})
	d.up("2.0", true)
}

func stickName(version string) string { return "stick" + filepath.Ext(version)[1:] + "-" + version[:1] }

func stickOf(s *stage, version string) qemu.Stick {
	return qemu.Stick{Name: stickName(version), File: s.stick(version), ReadOnly: true}
}

// run runs a virtual device until use returns. Its error comes with the end of the console.
func run(m qemu.Machine, use func(*qemu.VM) error) error {
	vm, err := qemu.Start(context.Background(), m)
	if err != nil {
		return err
	}
	defer vm.Close()
	if err := use(vm); err != nil {
		return fmt.Errorf("%w; end of the console:\n%s", err, lastLines(vm.Console(), 40))
	}
	return nil
}

// recorded are the files of a recorded story.
type recorded struct{ base, log, marks, console string }

func (s *stage) recorded(name string) recorded {
	p := func(ext string) string { return s.Path("record-" + name + ext) }
	return recorded{p(".base.img"), p(".log"), p(".json"), p(".console")}
}

// record plays a story, from cold boots, and keeps the disk of before and the log.
func (s *stage) record(st story) error {
	f := s.recorded(st.name)
	disk := s.Path("record-" + st.name + ".img")
	defer os.Remove(disk)
	if _, err := s.factory(filepath.Base(f.base)); err != nil {
		return err
	}
	if st.prepare != nil {
		if err := st.prepare(s, f.base); err != nil {
			return err
		}
	}
	if err := copyFile(f.base, disk); err != nil {
		return err
	}
	m, err := s.machine(disk)
	if err != nil {
		return err
	}
	m.Log = f.log
	return run(m, func(vm *qemu.VM) error {
		d := &player{s: s, vm: vm, log: f.log}
		st.play(d)
		d.do(func() error { return vm.Type("poweroff\n") })
		d.do(func() error { return vm.Wait(firstWait) })
		d.do(func() error { return os.WriteFile(f.console, []byte(vm.Console()), 0o644) })
		d.do(func() error { return writeJSON(f.marks, d.marks) })
		return d.err
	})
}

// recording is a recorded story as it is replayed.
type recording struct {
	Story story
	Log   string
	Trace *crash.Trace // its marks are moments
}

// load reads a recorded story. log, if not empty, names another log over the same base.
func (s *stage) load(name, log string) (*recording, error) {
	st, err := storyNamed(name)
	if err != nil {
		return nil, err
	}
	f := s.recorded(name)
	if log == "" {
		log = f.log
	}
	base, err := crash.LoadFile(f.base)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	l, err := writelog.Read(file, info.Size(), base.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", log, err)
	}
	var marks []mark
	if err := readJSON(f.marks, &marks); err != nil {
		return nil, err
	}
	places := make([]writelog.Mark, len(marks))
	for i, m := range marks {
		places[i] = writelog.Mark{Size: m.Size, What: m.Moment}
	}
	l.Mark(places...)
	return &recording{Story: st, Log: log, Trace: &crash.Trace{Base: base, Ops: l.Ops}}, nil
}

// since is how many seconds have passed.
func since(t time.Time) float64 { return time.Since(t).Seconds() }
