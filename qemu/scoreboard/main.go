// Command scoreboard does to the peers' boot states what powercut does to lifeboat: their own tools and boot loaders
// change them in the virtual device, QEMU records every write and flush that reaches the disk, and package crash
// enumerates what a power cut may leave. Every distinct image is read as the boot loader reads it, and judged by what
// becomes of the device. `make scoreboard` runs it and writes docs/powercut-scoreboard.md.
//
// [Peer] is a row, [Scheme] an honest reading of a format, [judge] the classes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lifeboat/disk/crash"
	"lifeboat/qemu"
)

// Row is what was found about a peer.
type Row struct {
	Name, Title, Medium, Uses, Fix string
	Limit                          int // of states between two flushes, 0: none
	Tallies                        []*Tally
	Writes                         []string // of each operation, in words
	Booted, Agreed                 int      // states that GRUB itself was started on, and where it chose what the judge expected
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == "in-guest" {
		n, err := strconv.Atoi(os.Args[3])
		if err == nil {
			err = inGuest(os.Args[2], n)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	only := flag.String("only", "", "names of `peers`, with commas between; all if empty")
	out := flag.String("out", "out/scoreboard", "`folder` for JSON files")
	doc := flag.String("doc", "", "`file` for the page; made from all JSON files in the folder")
	render := flag.Bool("render", false, "make the page from the JSON files that are there")
	verbose := flag.Bool("v", false, "say what is done")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	logf := func(string, ...any) {}
	if *verbose {
		logf = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	}
	if err := scoreboard(ctx, *only, *out, *doc, *render, logf); err != nil {
		fmt.Fprintln(os.Stderr, "scoreboard:", err)
		os.Exit(1)
	}
}

func scoreboard(ctx context.Context, only, out, doc string, render bool, logf func(string, ...any)) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(only, ",") {
		if name != "" {
			wanted[name] = true
		}
	}
	var rows []*Row
	for _, p := range peers() {
		file := filepath.Join(out, p.Name+".json")
		row := &Row{}
		if render || len(wanted) > 0 && !wanted[p.Name] {
			b, err := os.ReadFile(file)
			if err != nil {
				continue // not run yet
			}
			if err := json.Unmarshal(b, row); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			row.Title, row.Medium, row.Uses, row.Fix, row.Limit = p.Title, p.Medium, p.Uses, p.Fix, p.Limit
			rows = append(rows, row)
			continue
		}
		began := time.Now()
		row, err := runPeer(ctx, p, logf)
		if err != nil {
			return err
		}
		sum := row.sum()
		fmt.Printf("%-20s %6d states, %5d distinct: %4d weak, %4d lost; torn sectors besides: %4d weak, %4d lost (%v)\n", p.Name,
			sum.States, sum.Distinct, sum.Whole.Weak, sum.Whole.Lost, sum.Torn.Weak, sum.Torn.Lost, time.Since(began).Round(time.Second))
		b, err := json.MarshalIndent(row, "", "\t")
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			return err
		}
		rows = append(rows, row)
	}
	if doc == "" {
		return nil
	}
	versions, err := versionsOf()
	if err != nil {
		return err
	}
	return os.WriteFile(doc, []byte(page(rows, versions)), 0o644)
}

// newLab prepares a scratch folder and finds what make setup unpacked.
func newLab(logf func(string, ...any)) (*lab, error) {
	kernel, err := qemu.FindKernel("cloud")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "scoreboard-")
	if err != nil {
		return nil, err
	}
	return &lab{dir: dir, build: filepath.Join(kernel.Root, "../.."), kernel: kernel, logf: logf}, nil
}

// runPeer records and judges one peer.
func runPeer(ctx context.Context, p *Peer, logf func(string, ...any)) (*Row, error) {
	l, err := newLab(logf)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(l.dir)
	for i, tool := range p.Tools {
		if tool == "scoreboard" { // this program, as the guest can run it
			p.Tools[i] = filepath.Join(l.dir, "bin", "scoreboard")
			cmd := exec.Command("go", "build", "-o", p.Tools[i], "lifeboat/qemu/scoreboard")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				return nil, fmt.Errorf("go build: %w: %s", err, out)
			}
		}
	}
	if p.Rauc != "" {
		if err := l.raucScripts(p.Rauc, p.Steps); err != nil {
			return nil, err
		}
	}
	medium := filepath.Join(l.dir, "medium.img")
	if err := p.Base(l, p, medium); err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	base, err := crash.LoadFile(medium)
	if err != nil {
		return nil, err
	}
	record := p.Record
	if record == nil {
		record = func(base *crash.Image) ([]Recorded, error) { return l.record(ctx, p, base) }
	}
	recorded, err := record(base)
	if err != nil {
		return nil, err
	}
	row := &Row{Name: p.Name, Title: p.Title, Medium: p.Medium, Uses: p.Uses, Fix: p.Fix, Limit: p.Limit}
	for _, r := range recorded {
		began := time.Now()
		t, err := judgeAll(p, r, l.dir)
		if err != nil {
			return nil, err
		}
		row.Tallies = append(row.Tallies, t)
		row.Writes = append(row.Writes, p.writes(r))
		logf("%s: %s: %s", p.Name, t.Op, row.Writes[len(row.Writes)-1])
		logf("  %d states, %d distinct; %+v, torn %+v (%v)", t.States, t.Distinct, t.Whole, t.Torn, time.Since(began).Round(time.Millisecond))
		for _, f := range t.Findings {
			logf("  %s x%d: %s [%s; %s]", f.Class, f.Images, f.Why, f.How, f.Where)
		}
	}
	for i, r := range recorded {
		if err := l.check(ctx, p, r, row, i); err != nil {
			return nil, err
		}
	}
	return row, nil
}

// maxBooted is on how many states of a row GRUB itself is started.
const maxBooted = 12

// check starts the real GRUB on states of an operation: the simplest of each finding, and one that is fine.
func (l *lab) check(ctx context.Context, p *Peer, r Recorded, row *Row, n int) error {
	config := ""
	for _, s := range p.Steps {
		if s.By == "grub" {
			config = s.Run
		}
	}
	images := []*crash.Image{row.Tallies[n].fine}
	for _, f := range row.Tallies[n].Findings {
		images = append(images, f.image)
	}
	for _, img := range images {
		if config == "" || img == nil || row.Booted == maxBooted {
			continue
		}
		medium, log := filepath.Join(l.dir, "disk.img"), filepath.Join(l.dir, "writes.log")
		if err := errors.Join(img.SaveFile(medium), os.WriteFile(log, nil, 0o644)); err != nil {
			return err
		}
		view, err := p.Read(medium)
		if err != nil {
			return err
		}
		want, _, _ := p.Scheme(r.Op).Boot(view)
		if want == "" {
			want = "rescue"
		}
		got, err := l.bootGRUB(ctx, machineOn(medium, log), config)
		if err != nil {
			return fmt.Errorf("%s, a state of %s: %w", p.Name, r.Name, err)
		}
		row.Booted++
		if got == want {
			row.Agreed++
		} else {
			l.logf("%s: a state of %s: GRUB starts %s, expected %s", p.Name, r.Name, got, want)
		}
	}
	return nil
}

func (r *Row) sum() (s Tally) {
	for _, t := range r.Tallies {
		s.Writes, s.Flushes, s.States, s.Distinct = s.Writes+t.Writes, s.Flushes+t.Flushes, s.States+t.States, s.Distinct+t.Distinct
		for _, c := range []struct{ to, from *Count }{{&s.Whole, &t.Whole}, {&s.Torn, &t.Torn}} {
			c.to.Images, c.to.Weak, c.to.Lost = c.to.Images+c.from.Images, c.to.Weak+c.from.Weak, c.to.Lost+c.from.Lost
		}
	}
	return s
}
