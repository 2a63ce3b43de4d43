package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"lifeboat/disk/crash"
)

// Class is what a crash state does to the device, see docs/powercut-scoreboard.md.
type Class uint8

const (
	Fine Class = iota
	Weak       // redundancy is lost, or updates are blocked, or another system runs than before and after the operation
	Lost       // no working system starts without a person
)

func (c Class) String() string { return [...]string{"fine", "weak", "lost"}[c] }

// Verdict is a class and why.
type Verdict struct {
	Class Class
	Why   string
}

// Content is what a reader finds of the boot state: names to bytes, or to what went wrong, which starts with unreadable.
type Content map[string]string

const unreadable = "\x00"

func (c Content) key() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&b, "%s\x01%d\x01%s", name, len(c[name]), c[name])
	}
	return b.String()
}

// View is a medium as the boot loader reads it and as the system does once it has mounted it.
type View struct{ Loader, System Content }

func (v View) clone() View { return View{maps.Clone(v.Loader), maps.Clone(v.System)} }

// Scheme is an honest reading of one boot state format: what boot loader and system do with it.
type Scheme interface {
	// Boot is one start by the boot loader: the slot, or "" and where it stops, and what it leaves on the medium.
	Boot(v View) (slot, stop string, next View)
	// Up is a start of the system in a slot that works: it says good, with the peer's tool. complaint is what keeps the
	// tool from working.
	Up(v View, slot string) (next View, complaint string)
	// Health says what is missing of the redundancy and of what else the boot state holds, "" if nothing.
	Health(v View) string
}

// maxBoots is how many starts a device gets to come to rest.
const maxBoots = 24

// fate is how a device ends up when the power stays.
type fate struct {
	slot string // that runs, "" if none
	how  string // where there is none
	view View
	tool string // what the tool complains about
}

func (f fate) String() string {
	if f.slot != "" {
		return "runs " + f.slot
	}
	return f.how
}

// live starts a device again and again until nothing changes. A slot that is broken ends in a watchdog reset.
func live(s Scheme, v View, broken string) fate {
	v = v.clone()
	up := ""
	for range maxBoots {
		slot, stop, next := s.Boot(v)
		switch {
		case slot == "":
			return fate{how: stop, view: next}
		case slot == broken:
			v, up = next, ""
			continue
		}
		next, complaint := s.Up(next, slot)
		if up == slot {
			return fate{slot: slot, view: next, tool: complaint}
		}
		up, v = slot, next
	}
	return fate{how: "starts the broken " + broken + " again and again", view: v}
}

// profile is everything about a state that the classes compare.
type profile struct {
	well   fate   // both slots work
	broken fate   // the unproven slot does not
	later  fate   // both work, and once at rest the running one breaks
	health string // of the medium at rest
}

func profileOf(s Scheme, v View, unproven string) profile {
	p := profile{well: live(s, v, "")}
	if unproven != "" {
		p.broken = live(s, v, unproven)
	}
	if p.well.slot != "" {
		p.later = live(s, p.well.view, p.well.slot)
		p.health = s.Health(p.well.view)
	}
	return p
}

// judge compares a crash state with what was before the operation and after it.
func judge(s Scheme, v View, unproven string, before, after profile) Verdict {
	p := profileOf(s, v, unproven)
	if p.well.slot == "" && (before.well.slot != "" || after.well.slot != "") {
		return Verdict{Lost, p.well.String()}
	}
	if unproven != "" && p.broken.slot == "" && before.broken.slot != "" && after.broken.slot != "" {
		return Verdict{Lost, "if the system in " + unproven + " does not work: " + p.broken.String()}
	}
	var why []string
	if w := p.well.slot; w != before.well.slot && w != after.well.slot {
		why = append(why, p.well.String()+", neither the system of before nor the one of after")
	}
	if p.well.tool != "" && (before.well.tool == "" || after.well.tool == "") {
		why = append(why, "no further update: "+p.well.tool)
	}
	if p.later.slot == "" && before.later.slot != "" && after.later.slot != "" {
		why = append(why, "no fallback any more: when "+p.well.slot+" breaks, the device "+p.later.String())
	}
	if p.health != "" && p.health != before.health && p.health != after.health {
		why = append(why, p.health)
	}
	if len(why) > 0 {
		return Verdict{Weak, strings.Join(why, "; ")}
	}
	return Verdict{}
}

// Reader reads the boot state from an image in a file.
type Reader func(file string) (View, error)

// Tally is what was found in one operation.
type Tally struct {
	Op              string
	By              string
	Writes, Flushes int
	States          int // generated
	Distinct        int // images
	Whole, Torn     Count
	Findings        []*Finding
	fine            *crash.Image // one that is fine, neither before nor after
}

// Count counts distinct images: of states in which every sector is old or new, and of those in which one is torn.
type Count struct{ Images, Weak, Lost int }

// Finding is what many states of an operation have in common.
type Finding struct {
	Verdict
	Torn   bool   // only states with a torn sector do this
	Images int    // distinct
	How    string // the simplest state
	Where  string // what lies at the place it names
	rank   int
	image  *crash.Image // of that state
}

// torn reports whether a state has a sector that is neither old nor new.
func torn(how string) bool {
	for _, w := range []string{" zero", " garbage", " half"} {
		if strings.HasSuffix(how, w) {
			return true
		}
	}
	return false
}

// rank orders descriptions of states by how simple they are.
func rank(how string) int {
	for i, prefix := range []string{"in order", "everything", "nothing", "only", "all but", "writes", "write"} {
		if strings.HasPrefix(how, prefix) {
			return i
		}
	}
	return 9
}

// judgeAll enumerates what a power cut in one recorded operation may leave and judges every distinct image.
func judgeAll(p *Peer, r Recorded, dir string) (*Tally, error) {
	t := &Tally{Op: r.Name, By: r.By, Writes: r.Trace.Writes(), Flushes: r.Trace.Flushes()}
	before, err := viewOf(p, r.Trace.Base, dir)
	if err != nil {
		return nil, fmt.Errorf("%s, before %s: %w", p.Name, r.Name, err)
	}
	after, err := viewOf(p, r.After, dir)
	if err != nil {
		return nil, fmt.Errorf("%s, after %s: %w", p.Name, r.Name, err)
	}
	scheme := p.Scheme(r.Op)
	old, now := profileOf(scheme, before, r.Unproven), profileOf(scheme, after, r.Unproven)
	for i, f := range []profile{old, now} {
		if f.well.slot == "" || r.Unproven != "" && f.broken.slot == "" {
			return nil, fmt.Errorf("%s: %s: without a cut (%d) the device %s and %s", p.Name, r.Name, i, f.well, f.broken)
		}
	}

	type job struct {
		image *crash.Image
		how   string
		torn  bool
	}
	var (
		mu       sync.Mutex
		verdicts = map[string]Verdict{}
		findings = map[Verdict]*Finding{}
		failure  error
		wg       sync.WaitGroup
		jobs     = make(chan job, 16)
		touched  = touchedPages(r.Trace)
	)
	work := func(n int) error {
		file, err := newStateFile(filepath.Join(dir, fmt.Sprintf("state.%d", n)), r.Trace.Base, touched)
		if err != nil {
			return err
		}
		defer file.close()
		for j := range jobs {
			if err := file.set(j.image); err != nil {
				return err
			}
			view, err := p.Read(file.name)
			if err != nil {
				return err
			}
			key := view.Loader.key() + "\x02" + view.System.key()
			mu.Lock()
			v, known := verdicts[key]
			mu.Unlock()
			if !known {
				v = judge(scheme, view, r.Unproven, old, now)
			}
			mu.Lock()
			verdicts[key] = v
			c := &t.Whole
			if j.torn {
				c = &t.Torn
			}
			c.Images++
			switch v.Class {
			case Weak:
				c.Weak++
			case Lost:
				c.Lost++
			}
			if v.Class != Fine {
				f := findings[v]
				score := rank(j.how)
				if j.torn {
					score += 20
				}
				if f == nil {
					f = &Finding{Verdict: v, rank: 1000}
					findings[v] = f
				}
				f.Images++
				if score < f.rank {
					f.rank, f.How, f.Torn, f.image = score, j.how, j.torn, j.image
				}
			} else if j.torn {
				t.fine = j.image
			}
			mu.Unlock()
		}
		return nil
	}
	for n := range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			if err := work(n); err != nil {
				mu.Lock()
				failure = errors.Join(failure, err)
				mu.Unlock()
				for range jobs {
				}
			}
		})
	}
	// States with whole sectors first: an image counts as torn only where nothing else leaves it.
	seen := map[crash.Hash]bool{}
	for _, wantTorn := range []bool{false, true} {
		r.Trace.States(crash.Options{Limit: p.Limit, Seed: 1}, func(s crash.State) bool {
			if torn(s.How) != wantTorn {
				return true
			}
			t.States++
			if h := s.Image.Hash(); !seen[h] {
				seen[h] = true
				jobs <- job{s.Image, s.How, wantTorn}
			}
			return true
		})
	}
	close(jobs)
	wg.Wait()
	if failure != nil {
		return nil, failure
	}
	t.Distinct = len(seen)
	for _, f := range findings {
		f.Where = p.where(f.How, r)
		t.Findings = append(t.Findings, f)
	}
	slices.SortFunc(t.Findings, func(a, b *Finding) int {
		if a.Class != b.Class {
			return int(b.Class) - int(a.Class)
		}
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		return b.Images - a.Images
	})
	return t, nil
}

func viewOf(p *Peer, img *crash.Image, dir string) (View, error) {
	name := filepath.Join(dir, "view.img")
	defer os.Remove(name)
	if err := img.SaveFile(name); err != nil {
		return View{}, err
	}
	return p.Read(name)
}

// touchedPages are the pages of 4096 bytes that a trace writes to.
func touchedPages(t *crash.Trace) []int64 {
	pages := map[int64]bool{}
	for _, o := range t.Ops {
		for n := o.Off / 4096; n*4096 < o.Off+o.Len; n++ {
			pages[n] = true
		}
	}
	return slices.Sorted(maps.Keys(pages))
}

// stateFile is an image in a file that is changed from one crash state to the next where they can differ.
type stateFile struct {
	name    string
	f       *os.File
	base    *crash.Image
	touched []int64
}

func newStateFile(name string, base *crash.Image, touched []int64) (*stateFile, error) {
	if err := base.SaveFile(name); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	return &stateFile{name, f, base, touched}, err
}

func (s *stateFile) set(img *crash.Image) error {
	var page [4096]byte
	for _, n := range s.touched {
		k, _ := img.ReadAt(page[:], n*4096) // the end of the image may come first
		if _, err := s.f.WriteAt(page[:k], n*4096); err != nil {
			return err
		}
	}
	return nil
}

func (s *stateFile) close() {
	s.f.Close()
	os.Remove(s.name)
}
