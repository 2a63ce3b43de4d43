package main

import (
	"os"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/powercut"
	"lifeboat/qemu/testsystem"
)

var behaviours = map[testsystem.Behaviour]powercut.Behaviour{
	testsystem.Good: powercut.Healthy, testsystem.Silent: powercut.Silent, testsystem.Hang: powercut.Hangs,
}

// inMemory returns the crash simulator's verdict on an image of this stage's device: it boots in memory, with the stick
// plugged in that belongs to the moment of the cut. Where it and the real kernel differ, one of the two is wrong.
func (s *stage) inMemory() (func(crash.State) error, error) {
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
	base, err := crash.LoadFile(s.recorded(stories[0].name).base)
	if err != nil {
		return nil, err
	}
	d, err := powercut.Open(c, keyring, base)
	if err != nil {
		return nil, err
	}
	sticks := map[string]powercut.Medium{}
	for version, how := range systems {
		if _, err := d.LearnBundle(s.bundle(version), behaviours[how]); err != nil {
			return nil, err
		}
		if sticks[version], err = disk.Open(s.stick(version), false); err != nil {
			return nil, err
		}
	}
	return func(st crash.State) error {
		m, _ := st.Mark.(moment)
		device := *d
		want := powercut.Want{Version: "*", Collateral: true, More: 4}
		if m.Stick != "" {
			device.Stick, want.Version = sticks[m.Stick], m.Stick
		}
		return device.Check(st, want)
	}, nil
}
