package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"lifeboat/qemu"
)

const killsFile = "kills.json"

// killResult is one device that was killed again and again until it was updated.
type killResult struct {
	Run     int      `json:"run"`
	Seed    uint64   `json:"seed"`
	Kind    string   `json:"kind"`
	Cuts    []string `json:"cuts"`  // when the power went, or the reset came
	Boots   int      `json:"boots"` // after the last cut, until the update was confirmed or had fallen back
	Seconds float64  `json:"seconds"`
	Err     string   `json:"err,omitempty"`
	Console string   `json:"console,omitempty"`
}

// kinds of kills. Of ten runs three cut at random, five after a chosen number of writes or a phrase, one resets, and in
// one the watchdog does.
var kinds = []string{"random", "writes", "phrase", "writes", "random", "reset", "phrase", "writes", "random", "watchdog"}

const (
	cutsOfRun = 4
	// mostAfterKills: an update that was cut so often may be put off for some boots (rule 15).
	mostAfterKills = 20
	killRate       = 1 << 20 // bytes per second that the disk takes: an install lasts two seconds
)

// kills runs devices that are killed in an update, each in a place of its own. kind, if not empty, is the only one tried.
func (s *stage) kills(ctx context.Context, runs int, seed uint64, kind string, jobs int, place func() (release func(), err error), say func(format string, args ...any)) ([]killResult, error) {
	base := s.recorded("update").base
	results := make([]killResult, runs)
	next := make(chan int)
	var wg sync.WaitGroup
	for range jobs {
		wg.Go(func() {
			for i := range next {
				start := time.Now()
				k := killResult{Run: i, Seed: seed, Kind: cmp.Or(kind, kinds[i%len(kinds)])}
				release, err := place()
				if err != nil {
					k.Err = err.Error()
				} else {
					s.kill(&k, base)
					release()
				}
				k.Seconds = since(start)
				results[i] = k
				if k.Err != "" {
					say("run %d, %s: FAILED after %q: %s\n%s", i, k.Kind, k.Cuts, k.Err, k.Console)
				} else {
					say("run %d, %s: %d boots after %q, %.0f s", i, k.Kind, k.Boots, k.Cuts, k.Seconds)
				}
			}
		})
	}
	for i := range runs {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return results, ctx.Err()
}

// kill is one run.
func (s *stage) kill(k *killResult, base string) {
	fail := func(err error) {
		if err != nil && k.Err == "" {
			k.Err = err.Error()
		}
	}
	dir, err := os.MkdirTemp("", "lifeboat-kill-")
	if err != nil {
		fail(err)
		return
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "disk.img")
	if err := copyFile(base, disk); err != nil {
		fail(err)
		return
	}
	random := rand.New(rand.NewPCG(k.Seed, uint64(k.Run)))
	version, cold := "2.0", k.Kind == "reset" || k.Kind == "watchdog"
	if k.Kind == "watchdog" {
		version = "2.1" // its system hangs
	}
	// 1.0 says good first, undisturbed: the factory's slot has a few tries only, and is not what this is about.
	c, err := s.start(disk, dir, cold, func(m *qemu.Machine) { m.WriteRate, m.NoReboot = killRate, !cold })
	if err != nil {
		fail(err)
		return
	}
	defer c.Close()
	defer func() {
		if k.Err != "" {
			k.Console = lastLines(c.Console(), 60)
		}
	}()
	if _, err := c.Expect(firstWait, `SYSTEM UP version=1\.0\n(?s:.*)SYSTEM GOOD\n`); err != nil {
		fail(err)
		return
	}
	c.Cut()
	if err := c.PlugIn(stickOf(s, version)); err != nil {
		fail(err)
		return
	}
	cuts := cutsOfRun
	if k.Kind == "watchdog" {
		cuts = 1 // more would use up the tries in which the watchdog has to bark
	}
	for range cuts {
		if err := c.again(); err != nil {
			fail(err)
			return
		}
		how, err := c.cut(k.Kind, random)
		if err != nil {
			fail(fmt.Errorf("%s: %w", how, err))
			return
		}
		k.Cuts = append(k.Cuts, how)
	}
	if k.Kind == "watchdog" {
		k.Boots, err = c.watchdog()
	} else {
		k.Boots, err = c.confirm(version, mostAfterKills)
	}
	fail(err)
}

var phrases = []string{
	`found update`, `lifeboat: installing`, `lifeboat: 50 %`, `lifeboat: installed`, `boot \d+ slot rootfs\.1`, `starting /sbin/init`,
	`SYSTEM UP`, `rootfs\.\d \(.\) is good`,
}

// beforeTrial is how many of the phrases are said before the new system is tried.
const beforeTrial = 4

// cut waits for a moment of the boot that has just begun and cuts the power, or presses the reset button. A moment that
// does not come (the update is through) is no error: the power goes all the same.
func (c *computer) cut(kind string, random *rand.Rand) (how string, err error) {
	start := time.Now()
	switch kind {
	case "writes": // once so many writes have reached the disk
		want := 1 + random.IntN(8)
		how = fmt.Sprintf("after %d writes", want)
		for time.Since(start) < time.Minute && !strings.HasSuffix(c.Console(), "SYSTEM READY\n") {
			_, n, err := c.Requests("vda")
			if err != nil {
				return how, err
			}
			if n >= want {
				break
			}
			time.Sleep(time.Millisecond)
		}
	case "phrase", "watchdog":
		n := len(phrases)
		if kind == "watchdog" {
			n = beforeTrial
		}
		p := phrases[random.IntN(n)]
		how = "at " + p
		if _, err = c.Expect(time.Minute, p+`|SYSTEM READY\n|SYSTEM HANGS`); errors.Is(err, qemu.ErrTimeout) {
			err = nil
		}
	default:
		// How fast the machine is, is not known: some time after a sign of life.
		pause := time.Duration(random.Int64N(int64(4 * time.Second)))
		how = fmt.Sprintf("after %.3f s", pause.Seconds())
		time.Sleep(pause)
	}
	if kind == "reset" {
		how = "reset " + how
		if err := c.Reset(); err != nil {
			return how, err
		}
		time.Sleep(time.Duration(random.Int64N(int64(3 * time.Second)))) // into the next boot, which is then cut
	}
	c.Cut()
	return how, err
}

// watchdog lets a system hang and be reset by the watchdog until the device has fallen back to 1.0, and sees to it that
// the bundle is not taken again.
func (c *computer) watchdog() (boots int, err error) {
	if err := c.again(); err != nil {
		return 0, err
	}
	const most = 20
	for boots = 1; boots <= most; boots++ {
		m, err := c.Expect(firstWait, `SYSTEM UP version=(\S+)\n`)
		if err != nil {
			return boots, err
		}
		if m[1] == "1.0" {
			if _, err := c.Expect(firstWait, `SYSTEM READY\n`); err != nil {
				return boots, err
			}
			if strings.Contains(c.Console(), "reason=watchdog") {
				return boots, nil
			}
			if err := c.again(); err != nil { // the update was put off
				return boots, err
			}
			continue
		}
		if _, err := c.Event(firstWait, "WATCHDOG"); err != nil {
			return boots, err
		}
	}
	return boots, fmt.Errorf("not fallen back after %d boots", most)
}
