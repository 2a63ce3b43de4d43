package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"lifeboat/disk/crash"
)

// verdict is one line of a campaign's file of verdicts.
type verdict struct {
	ID      string  `json:"id"`
	Story   string  `json:"story"`
	Moment  string  `json:"moment"`
	Epoch   int     `json:"epoch"`
	Op      int     `json:"op"`
	How     string  `json:"how"`
	Commit  bool    `json:"commit,omitempty"`
	Cold    bool    `json:"cold,omitempty"`
	Update  bool    `json:"update,omitempty"`
	Alone   int     `json:"alone,omitempty"` // boots without a stick
	Up      string  `json:"up,omitempty"`    // version that came up; "": rescue
	Boots   int     `json:"boots,omitempty"`
	Seconds float64 `json:"seconds"`
	Err     string  `json:"err,omitempty"`     // of the virtual device
	Judged  string  `json:"judged,omitempty"`  // of the verdict in memory
	Console string  `json:"console,omitempty"` // end of it, of a failure
}

func (v verdict) slower(o verdict) bool {
	a, b := v.Alone+v.Boots, o.Alone+o.Boots
	return a > b || a == b && v.Seconds > o.Seconds
}

func (v verdict) failed() bool { return v.Err != "" || v.Judged != "" }

// epochResult counts what lies between two flushes.
type epochResult struct {
	Epoch    int    `json:"epoch"`
	Area     string `json:"area"` // what is written
	Commit   bool   `json:"commit"`
	Writes   int    `json:"writes"`
	States   int    `json:"states"`
	Distinct int    `json:"distinct"` // images that no epoch before has
	Booted   int    `json:"booted"`
	Failed   int    `json:"failed"`
}

// opResult is one write of the timeline, or a moment between two.
type opResult struct {
	Op      int    `json:"op"`
	Epoch   int    `json:"epoch"`
	Area    string `json:"area,omitempty"`
	Off     int64  `json:"off,omitempty"`
	Len     int64  `json:"len,omitempty"`
	Discard bool   `json:"discard,omitempty"`
	Moment  string `json:"moment,omitempty"`
	Booted  int    `json:"booted"` // images of cuts after it and before the next
	Failed  int    `json:"failed"`
}

type storyResult struct {
	Name     string        `json:"name"`
	Title    string        `json:"title"`
	Log      string        `json:"log"` // its SHA-256, first 16 digits
	Writes   int           `json:"writes"`
	Flushes  int           `json:"flushes"`
	States   int           `json:"states"`
	Distinct int           `json:"distinct"`
	Chosen   int           `json:"chosen"` // by all shards together
	Epochs   []epochResult `json:"epochs"`
	Ops      []opResult    `json:"ops"`
}

type failure struct {
	verdict
	Repeat string `json:"repeat"` // the command
}

// result is what a campaign, or a shard of one, found.
type result struct {
	Started  time.Time     `json:"started"`
	Kernel   string        `json:"kernel"`
	Seed     uint64        `json:"seed"`
	Limit    int           `json:"limit"`
	Images   int           `json:"images"`
	Shards   string        `json:"shards"` // "1/1", or what was merged
	Stories  []storyResult `json:"stories"`
	Booted   int           `json:"booted"`
	Cold     int           `json:"cold"`
	Updated  int           `json:"updated"`
	Judged   bool          `json:"judged"` // in process too
	Failed   int           `json:"failed"`
	Failures []failure     `json:"failures"`
	Slowest  verdict       `json:"slowest"` // recovery: most boots, then most seconds
	Seconds  float64       `json:"seconds"` // of all boots together
	Warm     rate          `json:"warm"`    // a boot from the template
	FromCold rate          `json:"from_cold"`
	Kills    []killResult  `json:"kills,omitempty"`
}

// rate is a mean.
type rate struct {
	Boots   int     `json:"boots"`
	Seconds float64 `json:"seconds"` // of one
}

func (r *rate) add(o rate) {
	if n := r.Boots + o.Boots; n > 0 {
		r.Seconds = (r.Seconds*float64(r.Boots) + o.Seconds*float64(o.Boots)) / float64(n)
		r.Boots = n
	}
}

// campaign is what a campaign is told.
type campaign struct {
	Images, Cold   int
	Shard, Shards  int // from 1
	Seed           uint64
	Limit          int // systematic states of one epoch
	Random         int
	Jobs           int // at a time
	Stories        []string
	memory         *memory // judges too; may be nil
	say            func(format string, args ...any)
	place          func() (release func(), err error) // for one virtual device
	shard, verdict string                             // file names: result and verdicts
	resume         bool
}

// collateral is how far from a write that is cut other sectors may be lost, in bytes: an erase block of simple flash.
const collateral = 64 << 10

func (c *campaign) options() crash.Options {
	return crash.Options{Limit: c.Limit, Random: c.Random, Seed: c.Seed, Collateral: collateral}
}

// plans chooses the images, of all shards.
func (c *campaign) plans(s *stage) ([]*plan, error) {
	var plans []*plan
	for _, name := range c.Stories {
		r, err := s.load(name, "")
		if err != nil {
			return nil, err
		}
		p, err := r.lay(c.options())
		if err != nil {
			return nil, err
		}
		plans = append(plans, p)
	}
	if s.Loader != "" {
		c.Cold = c.Images // there is no template behind a boot loader
	}
	choose(plans, c.Images, c.Cold, s.Loader != "")
	return plans, nil
}

// run boots every image of the shard that has no verdict yet and returns what all of them say.
func (c *campaign) run(ctx context.Context, s *stage) (*result, error) {
	plans, err := c.plans(s)
	if err != nil {
		return nil, err
	}
	res := &result{
		Started: time.Now().UTC(), Kernel: s.Kernel.Release, Seed: c.Seed, Limit: c.Limit, Images: c.Images, Judged: c.memory != nil,
		Shards: fmt.Sprintf("%d/%d", c.Shard, c.Shards),
	}
	for _, p := range plans {
		sum, err := sumOf(p.rec.Log)
		if err != nil {
			return nil, err
		}
		res.Stories = append(res.Stories, storyResult{
			Name: p.rec.Story.name, Title: p.rec.Story.title, Log: sum, Writes: p.rec.Trace.Writes(), Flushes: p.rec.Trace.Flushes(),
			States: p.states, Distinct: p.distinct, Chosen: len(p.jobs), Epochs: p.epochs, Ops: p.ops,
		})
	}
	known, out, err := c.verdicts(res)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	mine, number := map[string]bool{}, 0
	for _, p := range plans {
		for _, j := range p.jobs {
			if number%c.Shards == c.Shard-1 {
				mine[j.ID] = true
			}
			number++
		}
	}
	for id, v := range known {
		if mine[id] {
			res.count(v)
		}
	}
	t := &ticker{say: c.say, total: len(mine), done: res.Booted, old: res.Booted, failed: res.Failed, start: time.Now()}
	c.say("%d images in this shard, %d of them have a verdict", len(mine), res.Booted)
	err = c.boots(ctx, s, plans, func(j job) bool { _, done := known[j.ID]; return done || !mine[j.ID] }, func(v verdict) error {
		res.count(v)
		t.tick(v)
		line, err := json.Marshal(v)
		if err != nil {
			return err
		}
		_, err = out.Write(append(line, '\n'))
		return err
	})
	if err != nil {
		return res, err
	}
	if c.shard != "" {
		err = writeJSON(c.shard, res)
	}
	return res, err
}

// boots boots the images of all plans, several at a time, and gives the verdicts to one goroutine's done.
func (c *campaign) boots(ctx context.Context, s *stage, plans []*plan, skip func(job) bool, done func(verdict) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type task struct {
		job   job
		state crash.State
	}
	work, verdicts := make(chan task), make(chan verdict)
	var workers sync.WaitGroup
	for range c.Jobs {
		workers.Go(func() {
			dir, err := os.MkdirTemp("", "lifeboat-powercut-")
			if err != nil {
				cancel(err)
				return
			}
			defer os.RemoveAll(dir)
			for t := range work {
				release, err := c.place()
				if err != nil {
					cancel(err)
					continue
				}
				verdicts <- s.verdict(t.job, t.state, c.memory, dir)
				release()
			}
		})
	}
	go func() {
		defer func() { close(work); workers.Wait(); close(verdicts) }()
		for _, p := range plans {
			p.each(skip, func(j job, st crash.State) bool {
				select {
				case work <- task{j, st}:
					return true
				case <-ctx.Done():
					return false
				}
			})
		}
	}()
	for v := range verdicts {
		if err := done(v); err != nil {
			cancel(err)
		}
	}
	return context.Cause(ctx)
}

// verdict boots one image.
func (s *stage) verdict(j job, st crash.State, m *memory, dir string) verdict {
	v := verdict{
		ID: j.ID, Story: j.Story, Moment: j.Moment.What, Epoch: j.Epoch, Op: j.Op, How: j.How, Commit: j.Commit, Cold: j.way.Cold, Update: j.way.Update,
	}
	if m != nil {
		if err := m.judge(st); err != nil {
			v.Judged = err.Error()
		}
	}
	r := s.boot(st.Image, j.Moment, j.way, m, dir)
	v.Alone, v.Up, v.Boots, v.Seconds = r.Alone, r.Up, r.Boots, r.Seconds
	if r.Err != nil {
		v.Err, v.Console = r.Err.Error(), lastLines(r.console, 60)
	}
	return v
}

// count adds a verdict.
func (r *result) count(v verdict) {
	r.Booted++
	r.Seconds += v.Seconds
	boots := max(1, v.Alone+v.Boots)
	one := rate{boots, v.Seconds / float64(boots)}
	if v.Cold {
		r.Cold++
		r.FromCold.add(one)
	} else {
		r.Warm.add(one)
	}
	if v.Update {
		r.Updated++
	}
	bad := 0
	if v.failed() {
		bad = 1
		r.Failed++
		r.Failures = append(r.Failures, failure{v, repeat(v)})
	}
	if !v.failed() && v.slower(r.Slowest) {
		r.Slowest = v
	}
	for i := range r.Stories {
		if st := &r.Stories[i]; st.Name == v.Story {
			st.Epochs[v.Epoch].Booted++
			st.Epochs[v.Epoch].Failed += bad
			at := -1
			for k, o := range st.Ops {
				if o.Moment == "" && o.Op < v.Op {
					at = k
				}
			}
			if at >= 0 {
				st.Ops[at].Booted++
				st.Ops[at].Failed += bad
			}
		}
	}
}

// repeat is the command that boots the image of a verdict again.
func repeat(v verdict) string {
	c := "go run ./qemu/powercut replay --state " + v.ID
	if v.Cold {
		c += " --cold"
	}
	if v.Update {
		c += " --update"
	}
	return c
}

// merge adds what another shard of the same campaign found.
func (r *result) merge(o *result) error {
	if len(r.Stories) != len(o.Stories) || r.Seed != o.Seed || r.Limit != o.Limit || r.Images != o.Images {
		return errors.New("these are results of different campaigns")
	}
	for i := range r.Stories {
		a, b := &r.Stories[i], &o.Stories[i]
		if a.Name != b.Name || a.Log != b.Log || len(a.Ops) != len(b.Ops) || len(a.Epochs) != len(b.Epochs) {
			return fmt.Errorf("story %s was recorded twice: shards have to share one stage", a.Name)
		}
		for k := range a.Epochs {
			a.Epochs[k].Booted += b.Epochs[k].Booted
			a.Epochs[k].Failed += b.Epochs[k].Failed
		}
		for k := range a.Ops {
			a.Ops[k].Booted += b.Ops[k].Booted
			a.Ops[k].Failed += b.Ops[k].Failed
		}
	}
	if o.Started.Before(r.Started) {
		r.Started = o.Started
	}
	r.Shards += " " + o.Shards
	r.Booted, r.Cold, r.Updated = r.Booted+o.Booted, r.Cold+o.Cold, r.Updated+o.Updated
	r.Failed, r.Seconds = r.Failed+o.Failed, r.Seconds+o.Seconds
	r.Failures = append(r.Failures, o.Failures...)
	r.Kills = append(r.Kills, o.Kills...)
	r.Judged = r.Judged && o.Judged
	r.Warm.add(o.Warm)
	r.FromCold.add(o.FromCold)
	if o.Slowest.slower(r.Slowest) {
		r.Slowest = o.Slowest
	}
	return nil
}

// verdicts opens the file of verdicts and returns those that are in it. Its first line says of which campaign they are.
func (c *campaign) verdicts(res *result) (map[string]verdict, io.WriteCloser, error) {
	known := map[string]verdict{}
	if c.verdict == "" {
		return known, nopCloser{io.Discard}, nil
	}
	var logs []string
	for _, st := range res.Stories {
		logs = append(logs, st.Name+" "+st.Log)
	}
	head := fmt.Sprintf(`{"campaign":"seed %d, limit %d, random %d, %d images, %d cold, shard %s, %s"}`,
		c.Seed, c.Limit, c.Random, c.Images, c.Cold, res.Shards, strings.Join(logs, ", "))
	if err := os.MkdirAll(filepath.Dir(c.verdict), 0o755); err != nil {
		return nil, nil, err
	}
	if c.resume {
		if err := readVerdicts(c.verdict, head, known); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, err
		}
	}
	// Written anew: the last line may have been cut.
	f, err := os.Create(c.verdict)
	if err != nil {
		return nil, nil, err
	}
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, head)
	for _, v := range known {
		line, err := json.Marshal(v)
		if err != nil {
			return nil, nil, err
		}
		fmt.Fprintf(w, "%s\n", line)
	}
	return known, f, w.Flush()
}

func readVerdicts(file, head string, known map[string]verdict) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	first, rest, _ := strings.Cut(string(raw), "\n")
	if first != head {
		return fmt.Errorf("%s is of another campaign: %s; without --resume it is begun anew", file, first)
	}
	for line := range strings.Lines(rest) {
		var v verdict
		if json.Unmarshal([]byte(line), &v) == nil && v.ID != "" {
			known[v.ID] = v
		}
	}
	return nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// ticker says how far a campaign is.
type ticker struct {
	say         func(format string, args ...any)
	total, done int
	old, failed int // verdicts of before; failures
	start, last time.Time
}

const tickEvery = 10 * time.Second

func (t *ticker) tick(v verdict) {
	t.done++
	if v.failed() {
		t.failed++
		t.say("FAILED %s, %s: %s%s\n  %s", v.ID, v.How, v.Err, v.Judged, repeat(v))
	}
	if time.Since(t.last) < tickEvery && t.done != t.total {
		return
	}
	t.last = time.Now()
	took := time.Since(t.start)
	each := took / time.Duration(max(1, t.done-t.old))
	left := (each * time.Duration(t.total-t.done)).Round(time.Second)
	const width = 30
	full := width * t.done / max(1, t.total)
	t.say("[%s%s] %d/%d  %d failed  %.1f/s  %v left", strings.Repeat("#", full), strings.Repeat(".", width-full), t.done, t.total, t.failed,
		float64(t.done-t.old)/took.Seconds(), left)
}

// free is a place that need not be waited for: nothing else runs on this machine.
func free() (func(), error) { return func() {}, nil }

// jobsDefault is as many virtual devices at a time as there are CPUs.
func jobsDefault() int { return runtime.GOMAXPROCS(0) }
