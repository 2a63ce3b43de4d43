package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lifeboat/boot"
	"lifeboat/boot/raw"
	"lifeboat/confine"
	"lifeboat/disk"
	"lifeboat/qemu/scene"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/update"
	"lifeboat/update/crew"
)

// slot is a target that was opened.
type slot = *disk.File

// updater is a device on this machine: update.Device drives it as it drives PID 1, its workers are bin/init, confined.
type updater struct {
	root   string
	t      *target
	source string // image of a stick

	began   time.Time                // when the target was wiped
	install time.Duration            // from then until the seal was durable
	spent   map[string]time.Duration // by step
	cpu     map[string]time.Duration // of each role's workers
	peak    map[string]int64         // KiB of each worker, and never less than this process's own
	said    []string
}

// stick makes a bundle of an image and puts it on a stick.
func (b *bench) stick(s *scene.Scene, image, name, compression string) (string, error) {
	file, err := s.Bundle(name+".raucb", image, scene.BundleOptions{Version: "1", Compression: compression})
	if err != nil {
		return "", err
	}
	defer os.Remove(file)
	return s.Stick(name+".stick", file)
}

// updateFrom runs one boot's update of the target from a stick. What is there already is written all the same where skip is
// false.
func updateFrom(root, stick, keyringFile string, t *target, skip bool) (*updater, error) {
	u := &updater{root: root, t: t, source: stick, spent: map[string]time.Duration{}, cpu: map[string]time.Duration{}, peak: map[string]int64{}}
	keyring, err := os.ReadFile(keyringFile)
	if err != nil {
		return nil, err
	}
	store, err := raw.New(disk.NewMemory(raw.MinSize))
	if err != nil {
		return nil, err
	}
	now := time.Now().Unix()
	same := func(slot string) string { return slot }
	policy := boot.Policy{Slots: []string{"rootfs.0"}, Bootnames: []string{"A"}, Attempts: 3, ConfirmedAttempts: 8, Floors: boot.Floors{Time: now}}
	_, _, _ = store.Load() // finds nothing
	if _, err := store.Commit(boot.Factory(nil, policy)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	d := &update.Device{
		Store: store, Policy: policy,
		Trust: update.Trust{
			Keyring: keyring, Compatible: scene.Compatible, Purpose: "codesign", Formats: []string{"verity"}, RequireSigned: true, Floor: now,
		},
		Class: "rootfs", Room: t.size, Crew: u, Outside: u, Slots: u, Report: &status.Report{},
		Name: same, Bootname: same, Say: func(line string) { u.said = append(u.said, line) },
		Screen: func(update.Rescue) { cancel() }, // where no bench should end
	}
	if !skip {
		d.SkipOver = math.MaxInt64
	}
	begin := time.Now()
	if _, err = d.Boot(ctx, status.None); err != nil {
		return nil, fmt.Errorf("%w:\n%s", err, strings.Join(u.said, "\n"))
	}
	u.spent["whole update"] = time.Since(begin)
	if len(d.Report.Installed) != 1 {
		return nil, fmt.Errorf("nothing was installed:\n%s", strings.Join(u.said, "\n"))
	}
	return u, nil
}

func (u *updater) Sources(context.Context) []update.Source {
	return []update.Source{{Name: "stick", Path: u.source}}
}

func (u *updater) Wait(context.Context, time.Duration) bool { return false }

// step adds the time of do to what was spent on a step.
func (u *updater) step(name string, do func() error) error {
	d, err := stopwatch(do)
	u.spent[name] += d
	return err
}

func (u *updater) Wipe(string) error {
	u.began = time.Now()
	return u.step("wipe", func() error { return u.t.with(func(f slot) error { return slots.Wipe(f) }) })
}

func (u *updater) Sync(string) error { return u.step("flush", u.t.forget) }

func (u *updater) Seal(_ string, seal []byte) error {
	err := u.step("seal", func() error {
		b := make([]byte, slots.SealSize)
		copy(b, seal)
		return u.t.with(func(f slot) error { return slots.WriteSeal(f, b) })
	})
	u.install = time.Since(u.began)
	return err
}

func (u *updater) Start(string, slots.Facts, []update.Member) error { return nil }

// Run starts a worker as PID 1 does.
func (u *updater) Run(ctx context.Context, role string, input []byte, src update.Source, slot string, frame func(byte, []byte) error) error {
	w := crew.Workers{Slot: func(string) string { return u.t.path }, Exe: filepath.Join(u.root, "bin/init-full"), Ended: func(role string, usage confine.Usage) {
		u.cpu[role] += usage.CPU
		u.peak[role] = max(u.peak[role], usage.MaxRSSKiB)
	}}
	return u.step("worker "+role, func() error { return w.Run(ctx, role, input, src, slot, frame) })
}
