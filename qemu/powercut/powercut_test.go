package main

import (
	"bytes"
	"context"
	"fmt"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/disk/crash"
	"lifeboat/qemu"
)

var theStage = sync.OnceValues(func() (*stage, error) { return openStage("", func(string, ...any) {}) })

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
	images := 400
	if testing.Short() {
		images = 24
	}
	c := sample(images)
	c.say, c.place = t.Logf, qemu.Place
	c.shard = filepath.Join(t.TempDir(), "result.json")
	var err error
	if c.memory, err = s.inMemory(); err != nil {
		t.Fatal(err)
	}
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
	t.Logf("figure: %d crash images booted under the real kernel, %d from cold, %d updated, %d failed; a boot from the template %.1f s, from cold %.1f s; slowest recovery %d boots, %.0f s (%s)",
		res.Booted, res.Cold, res.Updated, res.Failed, res.Warm.Seconds, res.FromCold.Seconds, res.Slowest.Boots, res.Slowest.Seconds, res.Slowest.ID)
}

// What the kernel wrote during whole stories, cut everywhere: the simulator's verdict on each image.
func TestInMemory(t *testing.T) {
	t.Parallel()
	limit := 24
	if testing.Short() {
		limit = 5
	}
	inMemory(t, needStage(t), limit)
}

func inMemory(t *testing.T, s *stage, limit int) {
	t.Helper()
	m, err := s.inMemory()
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range s.stories() {
		r, err := s.load(st.name, "")
		if err != nil {
			t.Fatal(err)
		}
		where, err := areas(r.Trace.Base)
		if err != nil {
			t.Fatal(err)
		}
		c := crash.Test{Name: st.name, Options: crash.Options{Limit: limit, Random: limit / 8, Seed: 1, Collateral: collateral}}
		c.Check = func(st crash.State) error {
			if r.hopeless(st, where) {
				return nil
			}
			return m.judge(st)
		}
		res := c.Judge(r.Trace)
		t.Logf("figure: recorded story in memory: %s", res)
		for _, f := range res.Failures {
			t.Error(f)
		}
	}
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
	results, err := s.kills(context.Background(), runs, seed, "", jobsDefault(), qemu.Place, t.Logf)
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

// invented is a result with everything in it that a page shows.
func invented() *result {
	r := &result{Started: time.Unix(0, 0).UTC(), Kernel: "6.1.0", Seed: 1, Limit: 5000, Images: 40, Shards: "1/1", Judged: true}
	st := storyResult{Name: "update", Title: "first boot, an update to 2.0", Log: "00", Writes: 12, Flushes: 11, States: 40123, Distinct: 12345, Chosen: 40}
	for i, area := range []string{"state", "state", "", "state", "seal of rootfs.1", "rootfs.1", "rootfs.1", "seal of rootfs.1", "state", "", "state", "state"} {
		o := opResult{Op: 2 * i, Epoch: i, Area: area, Len: 4096}
		switch {
		case area == "":
			o.Moment = fmt.Sprintf("moment %d of the story", i)
		case area == "rootfs.1":
			o.Len = 1 << 20
		case strings.HasPrefix(area, "seal"):
			o.Len = 128 << 10
		}
		st.Ops = append(st.Ops, o)
		st.Epochs = append(st.Epochs, epochResult{Epoch: i, Area: area, Commit: area != "rootfs.1" && area != ""})
	}
	r.Stories = []storyResult{st}
	for i := range 40 {
		v := verdict{ID: fmt.Sprintf("update-%016x-0000", i), Story: "update", Moment: "moment 2 of the story", Epoch: i % 12, Op: i % 23, How: "in order", Alone: 1, Up: "1.0", Seconds: 1.5}
		if i%4 == 0 {
			v.Update, v.Boots = true, 1+i%3
		}
		if i == 17 {
			v.Err, v.Console = "it went to rescue", "lifeboat: rescue reason=no-slot"
		}
		r.count(v)
	}
	return r
}

// Shards add up, and results of different campaigns do not.
func TestMerge(t *testing.T) {
	a, b := invented(), invented()
	b.Shards = "2/2"
	if err := a.merge(b); err != nil {
		t.Fatal(err)
	}
	if a.Booted != 80 || a.Failed != 2 || len(a.Failures) != 2 || a.Warm.Boots != 2*b.Warm.Boots || a.Updated != 20 {
		t.Errorf("%+v", a)
	}
	if got, want := a.Stories[0].Ops[3].Booted, 2*b.Stories[0].Ops[3].Booted; got != want || want == 0 {
		t.Errorf("operation 3: %d images, want %d", got, want)
	}
	b.Stories[0].Log = "01"
	if err := a.merge(b); err == nil {
		t.Error("shards of two recordings were merged")
	}
}

// What a campaign has written is not booted again, a line that was cut is; another campaign's is refused.
func TestResume(t *testing.T) {
	res := invented()
	c := &campaign{verdict: filepath.Join(t.TempDir(), "verdicts"), resume: true, Seed: 1, Shards: 1, Shard: 1}
	known, out, err := c.verdicts(res)
	if err != nil || len(known) != 0 {
		t.Fatal(known, err)
	}
	fmt.Fprintf(out, "{\"id\":\"one\",\"story\":\"update\",\"seconds\":1}\n{\"id\":\"two\",\"sto")
	out.Close()
	for range 2 {
		known, out, err = c.verdicts(res)
		if err != nil {
			t.Fatal(err)
		}
		out.Close()
		if len(known) != 1 || known["one"].Seconds != 1 {
			t.Fatalf("%v", known)
		}
	}
	c.Seed = 2
	if _, _, err := c.verdicts(res); err == nil {
		t.Error("verdicts of another campaign were taken")
	}
}

// All commit points are chosen, a share is cold, and the same choice comes out again; each image is made again by its
// number.
func TestChoose(t *testing.T) {
	base := crash.NewImage(1 << 20)
	rec := crash.Record(base)
	r := &recording{Story: story{name: "small"}}
	rec.Mark(moment{What: "start"})
	for i := range int64(5) {
		if _, err := rec.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 2048), 4096*i); err != nil {
			t.Fatal(err)
		}
		if err := rec.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	r.Trace = rec.Trace()
	p := r.layIn(crash.Options{}, []area{{"state", true, 4096, 4096}, {"rest", false, 8192, 1 << 20}})
	total := len(p.jobs)
	choose([]*plan{p}, 100, 10, false)
	points, cold := 0, 0
	for _, j := range p.jobs {
		if j.Point {
			points++
			if !j.way.Update {
				t.Errorf("%s: no update at a commit point", j.ID)
			}
		}
		if j.way.Cold {
			cold++
		}
	}
	if len(p.jobs) != 100 || cold != 10 || points < 5 || total < 200 {
		t.Errorf("%d of %d chosen, %d cold, %d commit points", len(p.jobs), total, cold, points)
	}
	n := 0
	p.each(func(job) bool { return false }, func(j job, s crash.State) bool {
		n++
		if id := stateID("small", s); id != j.ID {
			t.Errorf("image %d is %s, want %s", n, id, j.ID)
		}
		if found, err := r.find(j.ID, crash.Options{}); err != nil || found.Image.Hash() != s.Image.Hash() {
			t.Errorf("%s: %v", j.ID, err)
		}
		return n < 20
	})
}

// The cut that a person says by hand.
func TestCut(t *testing.T) {
	rec := crash.Record(crash.NewImage(1 << 20))
	for _, b := range []byte{1, 2, 3} {
		if _, err := rec.WriteAt(bytes.Repeat([]byte{b}, 512), int64(b)*512); err != nil {
			t.Fatal(err)
		}
		if b == 1 {
			if err := rec.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := &recording{Trace: rec.Trace()}
	s, err := r.state(cut{Entry: 4, Drop: []int{2}, Torn: []int64{512}})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	if _, err := s.Image.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if b[512] != 't' || b[1024] != 0 || b[1536] != 3 || s.Epoch != 1 {
		t.Errorf("%v, epoch %d", []byte{b[512], b[1024], b[1536]}, s.Epoch)
	}
	if _, err := r.state(cut{Entry: 4, Drop: []int{0}}); err == nil {
		t.Error("a write was dropped that had been flushed")
	}
}

// The page is whole, and a browser shows it.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	if err := writeJSON(filepath.Join(dir, mutantsFile), []mutation{{"flush of the state record left out", "2 simulator", "one write, dropped"}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, netsFile), []byte("=== RUN\n    x_test.go:1: figure: model: 1600000 states visited\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeReport(dir, invented()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"states visited", "flush of the state record left out", "replay --state update-0000000000000011-0000", "cell bad", "cell good", "moment 2 of the story"} {
		if !bytes.Contains(raw, []byte(want)) {
			t.Errorf("the page does not have %q", want)
		}
	}
	if bytes.Contains(raw, []byte("<script")) || bytes.Contains(raw, []byte("http")) {
		t.Error("the page needs something else")
	}
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("no screenshot: chromium not found")
	}
	shot := filepath.Join(dir, "shot.png")
	if keep := os.Getenv("LIFEBOAT_SCREENSHOT"); keep != "" {
		shot = keep
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1700",
		"--user-data-dir="+filepath.Join(dir, "profile"), "--screenshot="+shot, "file://"+filepath.Join(dir, "index.html"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("chromium: %v: %s", err, out)
	}
	f, err := os.Open(shot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	found := map[color.RGBA]int{}
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			r, g, b, _ := picture.At(x, y).RGBA()
			found[color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), 255}]++
		}
	}
	if green, red := found[color.RGBA{0x2f, 0x9e, 0x5b, 255}], found[color.RGBA{0xd1, 0x34, 0x38, 255}]; green < 2000 || red < 1000 {
		t.Errorf("%d green and %d red pixels: the timeline is not there", green, red)
	}
}
