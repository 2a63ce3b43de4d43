// Command powercut proves in the virtual device that a power cut never bricks it: a device lives through an update with
// every write of its disk recorded, and what a cut at any moment may leave on the disk is booted under the real kernel.
// It is nets 3 and 4 of docs/powercut.md.
//
//	powercut record [--loader grub|uboot] stage and record, unless today's programs have been
//	powercut campaign [--images 10000 --cold 500 | --loader grub|uboot] [--shard i/n] [--out DIR] [--resume]
//	powercut merge --out DIR SHARD.json...
//	powercut replay --state ID | --story update --entry N [--drop N,N] [--torn BYTE,BYTE]
//	powercut kills --runs 100
//	powercut report --out DIR [--mutations FILE] [--model FILE]
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/disk/crash"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	commands := map[string]func(context.Context, []string) error{
		"record": recordCommand, "campaign": campaignCommand, "merge": mergeCommand, "replay": replayCommand, "kills": killsCommand, "report": reportCommand,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: powercut record|campaign|merge|replay|kills|report [-h]")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](ctx, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// errFailed ends a command that found failures, which have been printed.
var errFailed = errors.New("there are failures")

func loaderFlag(f *flag.FlagSet) *string {
	return f.String("loader", "", "boot loader that starts the device: grub or uboot; default: none")
}

func recordCommand(_ context.Context, args []string) error {
	f := flag.NewFlagSet("record", flag.ExitOnError)
	loader := loaderFlag(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	s, err := openStage(*loader, say)
	if err != nil {
		return err
	}
	for _, st := range s.stories() {
		r, err := s.load(st.name, "")
		if err != nil {
			return err
		}
		say("%s (%s): %d writes, %d flushes; %s", st.name, st.title, r.Trace.Writes(), r.Trace.Flushes(), r.Log)
	}
	return nil
}

// choice adds the flags by which images are generated and chosen.
func choice(f *flag.FlagSet) *campaign {
	c := &campaign{say: say, place: free, Shard: 1, Shards: 1}
	f.IntVar(&c.Limit, "limit", 0, "systematic states of one epoch, spread evenly if there are more; default 5000, with a boot loader 200")
	f.IntVar(&c.Random, "random", -1, "random subsets of one epoch's sectors; default 100, with a boot loader 20")
	f.Uint64Var(&c.Seed, "seed", 1, "of what is random")
	return c
}

// complete fills in what was left to the device: where a boot loader starts it from power on, a boot takes three times as long.
func (c *campaign) complete(s *stage) {
	images, limit, random := 10000, 5000, 100
	if s.Loader != "" {
		images, limit, random = 200, 200, 20
	}
	c.Images, c.Limit = cmp.Or(c.Images, images), cmp.Or(c.Limit, limit)
	if c.Random < 0 {
		c.Random = random
	}
}

const resultFile = "powercut.json"

func campaignCommand(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("campaign", flag.ExitOnError)
	c := choice(f)
	out := f.String("out", "out/powercut", "folder of the results")
	shard := f.String("shard", "1/1", "the part of the campaign to run, i/n")
	loader := loaderFlag(f)
	names := f.String("stories", "", "stories whose cuts are tried, with commas; default: all of the device")
	f.IntVar(&c.Images, "images", 0, "crash images to boot; default 10000, with a boot loader 200")
	f.IntVar(&c.Cold, "cold", 500, "of them from power on instead of from the template")
	f.IntVar(&c.Jobs, "jobs", jobsDefault(), "virtual devices at a time")
	f.BoolVar(&c.resume, "resume", false, "keep the verdicts that are there")
	if err := f.Parse(args); err != nil {
		return err
	}
	if n, err := fmt.Sscanf(*shard, "%d/%d", &c.Shard, &c.Shards); n != 2 || err != nil || c.Shard < 1 || c.Shard > c.Shards {
		return fmt.Errorf("--shard %s: want i/n with i from 1 to n", *shard)
	}
	name := strings.TrimSuffix(resultFile, ".json")
	if c.Shards > 1 {
		name = fmt.Sprintf("shard-%d-of-%d", c.Shard, c.Shards)
	}
	c.shard, c.verdict = filepath.Join(*out, name+".json"), filepath.Join(*out, name+".verdicts")
	s, err := openStage(*loader, say)
	if err != nil {
		return err
	}
	c.complete(s)
	if c.Stories = strings.FieldsFunc(*names, func(r rune) bool { return r == ',' }); len(c.Stories) == 0 {
		c.Stories = s.names()
	}
	if c.memory, err = s.inMemory(); err != nil {
		return err
	}
	res, err := c.run(ctx, s)
	if err != nil {
		if ctx.Err() != nil {
			say("stopped; the verdicts are in %s, --resume goes on from there", c.verdict)
		}
		return err
	}
	say("%s", res)
	if c.Shards == 1 {
		if err := writeReport(*out, res); err != nil {
			return err
		}
	}
	if res.Failed > 0 {
		return errFailed
	}
	return nil
}

func (r *result) String() string {
	var b strings.Builder
	for _, st := range r.Stories {
		fmt.Fprintf(&b, "%s: %d writes, %d flushes; %d states, %d distinct; %d chosen\n", st.Name, st.Writes, st.Flushes, st.States, st.Distinct, st.Chosen)
	}
	fmt.Fprintf(&b, "%d images booted, %d of them from cold, %d then updated; %d failed\n", r.Booted, r.Cold, r.Updated, r.Failed)
	if r.Warm.Boots > 0 {
		fmt.Fprintf(&b, "a boot from the template %.2f s (%d)\n", r.Warm.Seconds, r.Warm.Boots)
	}
	fmt.Fprintf(&b, "a boot from cold %.2f s (%d)\n", r.FromCold.Seconds, r.FromCold.Boots)
	fmt.Fprintf(&b, "slowest recovery: %d boots, %.1f s (%s)", r.Slowest.Boots, r.Slowest.Seconds, r.Slowest.ID)
	return b.String()
}

func mergeCommand(_ context.Context, args []string) error {
	f := flag.NewFlagSet("merge", flag.ExitOnError)
	out := f.String("out", "out/powercut", "folder of the result")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() == 0 {
		return errors.New("merge: which results? out/powercut/shard-*.json")
	}
	var sum *result
	for _, file := range f.Args() {
		r := &result{}
		if err := readJSON(file, r); err != nil {
			return err
		}
		if sum == nil {
			sum = r
		} else if err := sum.merge(r); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	say("%s", sum)
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(*out, resultFile), sum); err != nil {
		return err
	}
	if err := writeReport(*out, sum); err != nil {
		return err
	}
	if sum.Failed > 0 {
		return errFailed
	}
	return nil
}

func replayCommand(_ context.Context, args []string) error {
	f := flag.NewFlagSet("replay", flag.ExitOnError)
	c := choice(f)
	id := f.String("state", "", "ID of an image, as a campaign prints it")
	name := f.String("story", "", "story of the log; default: that of --state, or update")
	log := f.String("log", "", "log of the story; default: the recorded one")
	entry := f.Int("entry", -1, "the cut comes after that many operations of the log")
	drop := f.String("drop", "", "operations since the last flush that did not reach the medium, with commas")
	torn := f.String("torn", "", "offsets in bytes of sectors that hold garbage, with commas")
	keep := f.String("keep", "", "write the image to this file too")
	var w way
	f.BoolVar(&w.Cold, "cold", false, "boot from power on")
	f.BoolVar(&w.Update, "update", false, "update from a stick afterwards")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *name == "" {
		if *name, _, _ = strings.Cut(*id, "-"); *name == "" {
			*name = "update"
		}
	}
	st, err := storyNamed(*name)
	if err != nil {
		return err
	}
	s, err := openStage(st.loader, say)
	if err != nil {
		return err
	}
	c.complete(s)
	r, err := s.load(*name, *log)
	if err != nil {
		return err
	}
	how := cut{Entry: *entry}
	for _, text := range strings.FieldsFunc(*drop, func(r rune) bool { return r == ',' }) {
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("--drop: %w", err)
		}
		how.Drop = append(how.Drop, n)
	}
	for _, text := range strings.FieldsFunc(*torn, func(r rune) bool { return r == ',' }) {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("--torn: %w", err)
		}
		how.Torn = append(how.Torn, n)
	}
	var state crash.State
	switch {
	case *id != "":
		state, err = r.find(*id, c.options())
	case how.Entry >= 0:
		state, err = r.state(how)
	default:
		err = errors.New("replay: which one? --state ID or --entry N")
	}
	if err != nil {
		return err
	}
	if *keep != "" {
		if err := state.Image.SaveFile(*keep); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "lifeboat-powercut-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m, _ := state.Mark.(moment)
	say("%s: %s", m.What, state)
	memory, err := s.inMemory()
	if err != nil {
		return err
	}
	got := s.boot(state.Image, m, w, memory, dir)
	fmt.Println(got.console)
	if got.Err != nil {
		return fmt.Errorf("against the law: %w", got.Err)
	}
	what := "came up with version " + got.Up
	if got.Up == "" {
		what = "went to rescue"
	}
	say("as the law says it %s, and %d boots with the stick; %v", what, got.Boots, time.Duration(got.Seconds*float64(time.Second)).Round(time.Millisecond))
	return nil
}

func killsCommand(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("kills", flag.ExitOnError)
	runs := f.Int("runs", 100, "devices that are killed until they are updated")
	seed := f.Uint64("seed", uint64(time.Now().UnixNano()), "of the moments")
	kind := f.String("kind", "", "only this kind: random, writes, phrase, reset or watchdog")
	jobs := f.Int("jobs", jobsDefault(), "virtual devices at a time")
	out := f.String("out", "out/powercut", "folder of the results")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *kind != "" && !slices.Contains(kinds, *kind) {
		return fmt.Errorf("--kind %s: there is no such kind", *kind)
	}
	s, err := openStage("", say)
	if err != nil {
		return err
	}
	say("seed %d", *seed)
	results, err := s.kills(ctx, *runs, *seed, *kind, *jobs, free, say)
	if err != nil {
		return err
	}
	failed := 0
	for _, k := range results {
		if k.Err != "" {
			failed++
		}
	}
	say("%d runs, %d failed", len(results), failed)
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(*out, killsFile), results); err != nil {
		return err
	}
	if failed > 0 {
		return errFailed
	}
	return nil
}

func reportCommand(_ context.Context, args []string) error {
	f := flag.NewFlagSet("report", flag.ExitOnError)
	out := f.String("out", "out/powercut", "folder of the results")
	if err := f.Parse(args); err != nil {
		return err
	}
	r := &result{}
	if err := readJSON(filepath.Join(*out, resultFile), r); err != nil {
		return err
	}
	return writeReport(*out, r)
}
