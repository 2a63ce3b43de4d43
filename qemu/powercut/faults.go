package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"lifeboat/boot"
	"lifeboat/disk/crash"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
)

// fault is something that goes wrong beside the power: what the device has to do all the same, while it lasts and when
// it is over.
type fault struct {
	name string
	two  bool // both slots have been good: 1.0 in A, 2.0 in B and booted; else only A
	edit func(disk string) error
	// during changes the machine, or its stick, for the first boot. Where nil, the damage is on the disk and stays.
	during func(m *qemu.Machine, stick *qemu.Stick, where map[string]area)
	meddle func(c *computer, stick string) error // in the first boot; may be nil
	says   string                                // console pattern of the first boot that must be there
	rescue bool                                  // the first boot may end in rescue
	frozen bool                                  // a later update cannot be expected
	after  func(disk string) error               // checks the disk of after the first boot; may be nil
	memory int                                   // MiB, from cold
	slow   bool                                  // not part of the short list
}

// onDisk and onStick let requests fail.
func onDisk(f ...qemu.Fault) func(*qemu.Machine, *qemu.Stick, map[string]area) {
	return func(m *qemu.Machine, _ *qemu.Stick, _ map[string]area) { m.Faults = f }
}

func onStick(f ...qemu.Fault) func(*qemu.Machine, *qemu.Stick, map[string]area) {
	return func(_ *qemu.Machine, s *qemu.Stick, _ map[string]area) { s.Faults = f }
}

// unreadable lets reads of some sectors of areas fail: the first, some of the middle, the last.
func unreadable(names ...string) func(*qemu.Machine, *qemu.Stick, map[string]area) {
	return func(m *qemu.Machine, _ *qemu.Stick, where map[string]area) {
		for _, n := range names {
			a := where[n]
			for _, part := range []int64{0, 1, 2, 3, 4} {
				m.Faults = append(m.Faults, qemu.Fault{Sector: (a.off + min(a.size*part/4, a.size-512)) / 512})
			}
		}
	}
}

// faults is the list; pulls is at how many places of an update its stick is pulled.
func faults(pulls int) []fault {
	var all []fault
	for k := 1; k <= 10; k++ {
		all = append(
			all,
			fault{name: fmt.Sprintf("disk write %d fails", k), during: onDisk(qemu.Fault{Write: true, Nth: k}), slow: k > 6},
			fault{name: fmt.Sprintf("every disk write from %d on fails", k), during: onDisk(qemu.Fault{Write: true, Nth: k, Rest: true}), slow: k%2 == 0 || k > 5},
			fault{name: fmt.Sprintf("disk write %d fails, two systems", k), two: true, during: onDisk(qemu.Fault{Write: true, Nth: k}), slow: k != 3},
		)
	}
	for _, k := range []int{1, 2, 3, 5, 8, 13, 21, 34, 55, 89} {
		all = append(
			all,
			fault{name: fmt.Sprintf("disk read %d fails", k), during: onDisk(qemu.Fault{Nth: k}), rescue: true, slow: k != 5 && k != 21},
			fault{name: fmt.Sprintf("stick read %d fails", k), during: onStick(qemu.Fault{Nth: k}), slow: k != 3 && k != 13},
			fault{name: fmt.Sprintf("every stick read from %d on fails", k), during: onStick(qemu.Fault{Nth: k, Rest: true}), slow: k != 1 && k != 21},
		)
	}
	for i := range pulls {
		all = append(all, fault{name: fmt.Sprintf("stick pulled, place %d of %d", i+1, pulls), meddle: pull(i, pulls)})
	}
	return append(
		all,
		fault{name: "latent errors in the empty slot", during: unreadable("rootfs.1", "seal of rootfs.1"), says: `lifeboat: refused code=40 `},
		fault{name: "latent errors in the other slot", two: true, during: unreadable("rootfs.0", "seal of rootfs.0")},
		fault{name: "latent errors in the slot that is booted", two: true, during: unreadable("rootfs.1"), says: `fallback from B to A`},
		fault{name: "latent errors in the only slot", during: unreadable("rootfs.0"), rescue: true},
		fault{name: "latent errors in the state", during: unreadable("state"), says: `lifeboat: `},
		fault{name: "both copies of the state lost", edit: editState(func(b []byte) { clear(b) }), says: `reason=state-lost\n`},
		fault{name: "both copies of the state lost, two systems", two: true, edit: editState(func(b []byte) { clear(b) }), says: `reason=state-lost\n`},
		fault{name: "a state record of a newer format", edit: editState(newer), says: `newer format`, frozen: true, after: stillNewer},
		fault{name: "112 MiB of memory", memory: 112},
		fault{name: "128 MiB of memory", memory: 128, slow: true},
	)
}

// editState changes both copies of the state record.
func editState(edit func(b []byte)) func(string) error {
	return func(disk string) error {
		return scene.EditPartition(disk, "state", func(b []byte) {
			edit(b[:boot.RecordSize])
			edit(b[len(b)-boot.RecordSize:])
		})
	}
}

// newer makes a record one of the format after ours (docs/formats.md).
func newer(b []byte) {
	binary.LittleEndian.PutUint16(b[8:], boot.Format+1)
	binary.LittleEndian.PutUint32(b[12:], 0)
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func stillNewer(disk string) error {
	b, err := scene.Partition(disk, "state")
	if err != nil {
		return err
	}
	for _, copied := range [][]byte{b[:boot.RecordSize], b[len(b)-boot.RecordSize:]} {
		if _, err := boot.Decode(copied); !errors.Is(err, boot.ErrNewer) {
			return fmt.Errorf("the newer record was overwritten: %v", err)
		}
	}
	return nil
}

// stickReads is about how many reads of a stick an undisturbed update makes.
const stickReads = 40

// pull pulls the stick once it was read so many times, or when the system is up.
func pull(place, places int) func(*computer, string) error {
	return func(c *computer, stick string) error {
		want := 1 + place*stickReads/places
		for end := time.Now().Add(firstWait); time.Now().Before(end) && !strings.Contains(c.Console(), "SYSTEM UP"); time.Sleep(time.Millisecond) {
			if reads, _, err := c.Requests(stick); err != nil {
				return err
			} else if reads >= want {
				break
			}
		}
		return c.PullStick(stick)
	}
}

// faulty is what a fault did.
type faulty struct {
	Up      string // version that came up while it lasted, "": rescue
	Boots   int    // afterwards, until the update was confirmed
	console string
}

// suffer boots a device with the stick while something is wrong, and then, when it is over, updates it.
func (s *stage) suffer(f fault, r *recording, dir string) (got faulty, err error) {
	what, version, may := "1.0 is good", "2.0", []string{"1.0", "2.0"}
	if f.two {
		what, version, may = "2.0 is good", "4.0", []string{"1.0", "2.0", "4.0"}
	}
	image, err := r.at(what)
	if err != nil {
		return got, err
	}
	where, err := areas(image)
	if err != nil {
		return got, err
	}
	byName := map[string]area{}
	for _, a := range where {
		byName[a.Name] = a
	}
	disk := filepath.Join(dir, "disk.img")
	if err := image.SaveFile(disk); err != nil {
		return got, err
	}
	defer os.Remove(disk)
	if f.edit != nil {
		if err := f.edit(disk); err != nil {
			return got, err
		}
	}
	stick := stickOf(s, version)
	c, err := s.start(disk, dir, f.memory > 0, func(m *qemu.Machine) {
		if f.memory > 0 {
			m.Memory = f.memory
		}
		if f.during != nil {
			f.during(m, &stick, byName)
		}
		m.Sticks = []qemu.Stick{stick}
	})
	if err != nil {
		return got, err
	}
	err = func() error {
		defer c.Close()
		defer func() { got.console = c.Console() }()
		if f.meddle != nil {
			if err := f.meddle(c, stick.Name); err != nil {
				return err
			}
		}
		if _, got.Up, err = c.alone(); err != nil {
			return err
		}
		if got.Up != "" && !slices.Contains(may, got.Up) {
			return fmt.Errorf("version %s came up", got.Up)
		}
		if got.Up == "" && !f.rescue {
			return errors.New("it went to rescue")
		}
		if f.says != "" && !matches(f.says, c.Console()) {
			return fmt.Errorf("the console does not say %q", f.says)
		}
		return nil
	}()
	if err != nil {
		return got, err
	}
	if f.after != nil {
		if err := f.after(disk); err != nil {
			return got, err
		}
	}
	if f.frozen {
		return got, nil
	}
	// It is over: another machine with the same disk.
	c, err = s.start(disk, dir, false, func(m *qemu.Machine) { m.Sticks = []qemu.Stick{stickOf(s, version)} })
	if err != nil {
		return got, err
	}
	defer c.Close()
	defer func() { got.console += "\n--- it is over ---\n" + c.Console() }()
	got.Boots, err = c.confirm(version, maxBoots)
	return got, err
}

// at is the disk of a story when a moment had come whose description begins like this.
func (r *recording) at(what string) (*crash.Image, error) {
	for i, op := range r.Trace.Ops {
		if m, ok := op.Mark.(moment); ok && strings.HasPrefix(m.What, what) {
			s, err := r.state(cut{Entry: i})
			return s.Image, err
		}
	}
	return nil, fmt.Errorf("story %s has no moment %q", r.Story.name, what)
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
