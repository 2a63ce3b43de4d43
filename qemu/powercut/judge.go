package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/powercut"
	"lifeboat/qemu/testsystem"
	"lifeboat/status"
)

var behaviours = map[testsystem.Behaviour]powercut.Behaviour{
	testsystem.Good: powercut.Healthy, testsystem.Silent: powercut.Silent, testsystem.Hang: powercut.Hangs,
}

// memory is the stage's device in memory, with the crash simulator's laws.
type memory struct {
	device *powercut.Device
	sticks map[string]powercut.Medium
}

func (s *stage) inMemory() (*memory, error) {
	conf, err := os.ReadFile(s.Conf)
	if err != nil {
		return nil, err
	}
	c, err := config.Parse(conf)
	if err != nil {
		return nil, err
	}
	keyring, err := os.ReadFile(s.Key("release.keyring.pem"))
	if err != nil {
		return nil, err
	}
	base, err := crash.LoadFile(s.recorded(s.stories()[0].name).base)
	if err != nil {
		return nil, err
	}
	d, err := powercut.Open(c, keyring, base)
	if err != nil {
		return nil, err
	}
	if s.Loader != "" {
		if err := d.Behind(powercut.InFiles[s.Loader], base); err != nil {
			return nil, err
		}
	}
	m := &memory{d, map[string]powercut.Medium{}}
	for version, how := range systems {
		if _, err := d.LearnBundle(s.bundle(version), behaviours[how]); err != nil {
			return nil, err
		}
		if m.sticks[version], err = disk.Open(s.stick(version), false); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// judge is the crash simulator's verdict on an image: it boots in memory, with the stick plugged in that belongs to the
// moment of the cut. Where it and the real kernel differ, one of the two is wrong.
func (m *memory) judge(st crash.State) error {
	at, _ := st.Mark.(moment)
	device := *m.device
	want := powercut.Want{Version: "*", Collateral: true, More: 4}
	if at.Stick != "" {
		device.Stick, want.Version = m.sticks[at.Stick], at.Stick
	}
	return device.Check(st, want)
}

// up returns the version that comes up on an image in memory without a stick, "" for rescue.
func (m *memory) up(image *crash.Image) (string, error) {
	rec := crash.Record(image)
	for range maxBoots {
		b, err := m.device.Boot(rec, status.None, powercut.Observer{})
		switch {
		case err != nil:
			return "", err
		case b.Rescue:
			return "", nil
		case !b.Restart:
			return b.Started.Facts.Version, nil
		}
	}
	return "", errors.New("in memory it restarts again and again")
}

var (
	loaderStarts = regexp.MustCompile(`lifeboat: (?:GRUB|U-Boot) starts slot (\w+)`)
	slotBoots    = regexp.MustCompile(`lifeboat: boot \d+ slot (rootfs\.(\d)) \((\w+)\) version (\S+)`)
)

// fits asserts of a device that a boot loader started, after a version came up: the slot is that whose kernel was started,
// kernel and system are those of the version byte by byte, the record and the boot loader know of it, and in memory the
// device goes on from there.
func (s *stage) fits(m *memory, image *crash.Image, console, version string) error {
	boots := slotBoots.FindAllStringSubmatchIndex(console, -1)
	if len(boots) == 0 {
		return errors.New("early boot did not say which slot it boots")
	}
	last := boots[len(boots)-1]
	text := func(n int) string { return console[last[2*n]:last[2*n+1]] }
	slot, bootname := text(1), text(3)
	starts := loaderStarts.FindAllStringSubmatch(console[:last[0]], -1)
	if len(starts) == 0 || starts[len(starts)-1][1] != bootname || text(4) != version {
		return fmt.Errorf("slot %s version %s booted and version %s came up; the boot loader started %q", bootname, text(4), version, starts)
	}
	for _, class := range []string{"boot", "rootfs"} {
		want, err := os.ReadFile(s.image(class, version))
		if err != nil {
			return err
		}
		got := make([]byte, len(want))
		if _, err := image.ReadAt(got, m.device.Part(class+"."+text(2)).Off); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("%s.%s is not that of version %s: %v", class, text(2), version, err)
		}
	}
	record, err := m.device.State(image)
	if err != nil {
		return fmt.Errorf("the record, while version %s runs: %w", version, err)
	}
	if e := record.Entry(slot); e.Version != version || e.Reason != status.None {
		return fmt.Errorf("version %s runs in %s; the record says version %s, reason %q", version, slot, e.Version, e.Reason)
	}
	at := m.device.Part(powercut.LoaderPart)
	l, err := m.device.Loader.Open(disk.Section(image, at.Off, at.Len), m.device.Policy().Bootnames)
	if err != nil {
		return err
	}
	if _, err := l.Read(); err != nil {
		return fmt.Errorf("the boot loader's variables, while version %s runs: %w", version, err)
	}
	if err := m.judge(crash.State{Image: image}); err != nil {
		return fmt.Errorf("what version %s left when it was cut: %w", version, err)
	}
	return nil
}
