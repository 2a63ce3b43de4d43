package main

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"lifeboat/qemu"
)

var theStage = sync.OnceValues(func() (*stage, error) { return openStage(func(string, ...any) {}) })

func needStage(t *testing.T) *stage {
	t.Helper()
	qemu.NeedKernel(t, "generic")
	s, err := theStage()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sample is what CI boots: every commit point, most of what an epoch with a commit may leave, and some of the rest.
func sample(images int) *campaign {
	return &campaign{
		Images: images, Cold: images / 40, Shard: 1, Shards: 1, Seed: 1, Limit: 60, Random: 5, Jobs: jobsDefault(),
		Stories: []string{"update", "rescue"},
	}
}

// Every crash image of the sample comes up in a version that the law allows, and at commit points the next update goes
// through.
func TestReplay(t *testing.T) {
	t.Parallel()
	s := needStage(t)
	images := 420
	if testing.Short() {
		images = 24
	}
	c := sample(images)
	c.say, c.place = t.Logf, qemu.Place
	c.shard = filepath.Join(t.TempDir(), "result.json")
	res, err := c.run(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range res.Failures {
		t.Errorf("%s, %s (%s): %s%s\n%s\n%s", f.ID, f.How, f.Moment, f.Err, f.Judged, f.Repeat, f.Console)
	}
	if res.Booted < images {
		t.Errorf("%d images, want %d", res.Booted, images)
	}
	for _, st := range res.Stories {
		for _, e := range st.Epochs {
			if e.Commit && e.Booted == 0 && !testing.Short() {
				t.Errorf("%s: of epoch %d, which writes %s, nothing was booted", st.Name, e.Epoch, e.Area)
			}
		}
		t.Logf("%s: %d writes, %d flushes; %d states, %d distinct; %d chosen", st.Name, st.Writes, st.Flushes, st.States, st.Distinct, st.Chosen)
	}
	t.Logf("%d images booted, %d from cold, %d updated, %d failed; a boot from the template %.1f s, from cold %.1f s; slowest recovery %d boots, %.0f s (%s)",
		res.Booted, res.Cold, res.Updated, res.Failed, res.Warm.Seconds, res.FromCold.Seconds, res.Slowest.Boots, res.Slowest.Seconds, res.Slowest.ID)
}

// Devices that are killed in the middle of an update, again and again, get there by themselves.
func TestKills(t *testing.T) {
	t.Parallel()
	s := needStage(t)
	runs := len(kinds)
	if testing.Short() {
		runs = 2
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	results, err := s.kills(context.Background(), runs, seed, jobsDefault(), qemu.Place, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range results {
		if k.Err != "" {
			t.Errorf("run %d, %s, after %q: %s", k.Run, k.Kind, k.Cuts, k.Err)
		}
	}
}

// Whatever else goes wrong, the device comes up or is in rescue, and when it is over an update goes through.
// LIFEBOAT_FAULTS=all tries the whole list.
func TestFaults(t *testing.T) {
	t.Parallel()
	s := needStage(t)
	r, err := s.load("update", "")
	if err != nil {
		t.Fatal(err)
	}
	all := os.Getenv("LIFEBOAT_FAULTS") == "all"
	pulls := 4
	if all {
		pulls = 20
	}
	n := 0
	for _, f := range faults(pulls) {
		if f.slow && !all {
			continue
		}
		if n++; testing.Short() && n > 2 {
			break
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			qemu.Reserve(t)
			start := time.Now()
			got, err := s.suffer(f, r, t.TempDir())
			if err != nil {
				t.Fatalf("%v\n%s", err, lastLines(got.console, 80))
			}
			t.Logf("up %q, then %d boots until it was updated, %.1f s", got.Up, got.Boots, since(start))
		})
	}
}
