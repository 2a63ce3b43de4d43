package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"slices"
	"strings"

	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/slots"
)

// area is what a write touches.
type area struct {
	Name   string // "state", "seal of rootfs.0", "rootfs.0", ...
	Commit bool   // a state record or a seal: what a write here says is true at once
	off    int64
	size   int64
}

// esp is the boot loader's partition, which is written where its variables lie.
const esp = "esp"

// areas of a disk, from its partition table.
func areas(image *crash.Image) ([]area, error) {
	parts, err := disk.Partitions(image, image.Size())
	if err != nil {
		return nil, err
	}
	var all []area
	for _, p := range parts {
		switch {
		case p.Name == "state":
			all = append(all, area{"state", true, p.Start, p.Size})
		case p.Name == esp:
			all = append(all, area{p.Name, true, p.Start, p.Size})
		case strings.HasPrefix(p.Name, "rootfs"), strings.HasPrefix(p.Name, "boot"):
			seal := p.Size - slots.SealSize
			all = append(all, area{p.Name, false, p.Start, seal}, area{"seal of " + p.Name, true, p.Start + seal, slots.SealSize})
		default:
			all = append(all, area{p.Name, false, p.Start, p.Size})
		}
	}
	return all, nil
}

func areaOf(all []area, off int64) area {
	for _, a := range all {
		if off >= a.off && off < a.off+a.size {
			return a
		}
	}
	return area{Name: "outside of the partitions"}
}

// job is a crash image that is to be booted.
type job struct {
	ID     string
	Story  string
	Moment moment
	Epoch  int
	Op     int
	How    string
	Commit bool // of an epoch that writes a state record or a seal
	Point  bool // before, within or after such a write, in order
	n      int  // which of the states that are generated
	way    way
}

// plan is what is known of a story's states, and those that are chosen.
type plan struct {
	rec      *recording
	options  crash.Options
	commit   []bool // by epoch
	epochs   []epochResult
	ops      []opResult
	states   int
	distinct int
	jobs     []job
}

// lay generates a story's states and numbers them. Nothing is chosen yet: jobs has all that are distinct, an image being
// as often in it as there are moments with it.
func (r *recording) lay(o crash.Options) (*plan, error) {
	where, err := areas(r.Trace.Base)
	if err != nil {
		return nil, err
	}
	return r.layIn(o, where), nil
}

func (r *recording) layIn(o crash.Options, where []area) *plan {
	p := &plan{rec: r, options: o}
	next := epochResult{}
	for i, op := range r.Trace.Ops {
		switch op.Kind {
		case crash.Write, crash.Discard:
			a := areaOf(where, op.Off)
			p.ops = append(p.ops, opResult{Op: i, Epoch: len(p.epochs), Area: a.Name, Off: op.Off, Len: op.Len, Discard: op.Kind == crash.Discard})
			if next.Writes++; !strings.Contains(next.Area, a.Name) {
				next.Area = strings.Trim(next.Area+", "+a.Name, ", ")
			}
			next.Commit = next.Commit || a.Commit
		case crash.Mark:
			if m, ok := op.Mark.(moment); ok {
				p.ops = append(p.ops, opResult{Op: i, Epoch: len(p.epochs), Moment: m.What})
			}
		case crash.Flush:
			p.epochs = append(p.epochs, next)
			next = epochResult{}
		}
	}
	p.epochs = append(p.epochs, next)
	for i := range p.epochs {
		p.epochs[i].Epoch = i
		p.commit = append(p.commit, p.epochs[i].Commit)
	}
	seen := map[string]int{}
	images := map[crash.Hash]bool{}
	r.Trace.States(o, func(s crash.State) bool {
		if p.states++; r.hopeless(s, where) {
			return true
		}
		e := &p.epochs[s.Epoch]
		e.States++
		m, _ := s.Mark.(moment)
		id := stateID(r.Story.name, s)
		if h := s.Image.Hash(); !images[h] {
			images[h] = true
			p.distinct++
			e.Distinct++
		}
		commit := p.commit[s.Epoch]
		point := commit && (s.How == "nothing" || s.How == "everything" || strings.HasPrefix(s.How, "in order") && strings.HasSuffix(s.How, "new"))
		at, ok := seen[id]
		if !ok {
			at, seen[id] = len(p.jobs), len(p.jobs)
			p.jobs = append(p.jobs, job{ID: id, Story: r.Story.name, Moment: m, Epoch: s.Epoch, Op: s.Op, How: s.How, n: p.states})
		}
		// What one epoch ends with is what the next begins with.
		p.jobs[at].Commit, p.jobs[at].Point = p.jobs[at].Commit || commit, p.jobs[at].Point || point
		return true
	})
	return p
}

// hopeless reports whether a state has lost what lies around a write of a boot loader's variables: the boot loader's own
// files, which it cannot do without. docs/powercut.md does not promise that.
func (r *recording) hopeless(s crash.State, where []area) bool {
	return strings.Contains(s.How, "around it lost") && areaOf(where, r.Trace.Ops[s.Op-1].Off).Name == esp
}

// stateID names an image at a moment of a story.
func stateID(story string, s crash.State) string {
	m, _ := s.Mark.(moment)
	sum := sha256.Sum256([]byte(m.What))
	return fmt.Sprintf("%s-%s-%s", story, s.Image.Hash(), hex.EncodeToString(sum[:2]))
}

// choose takes of all plans together at most most jobs: all at commit points, then all of epochs that commit, then of the
// rest as many, spread evenly; where they are few, a third of each. cold of them are booted from power on; with a tenth an
// update is made, and with all commit points where they are not few.
func choose(plans []*plan, most, cold int, few bool) {
	var all []*job
	for _, p := range plans {
		for i := range p.jobs {
			all = append(all, &p.jobs[i])
		}
	}
	taken := map[*job]bool{}
	for n, kind := range []func(*job) bool{
		func(j *job) bool { return j.Point },
		func(j *job) bool { return j.Commit },
		func(j *job) bool { return true },
	} {
		var these []*job
		for _, j := range all {
			if !taken[j] && kind(j) {
				these = append(these, j)
			}
		}
		until := most
		if few {
			until = most * (n + 1) / 3
		}
		room := min(until-len(taken), len(these))
		for i := range room {
			taken[these[i*len(these)/room]] = true
		}
	}
	// Cold and updated are drawn by name, so that every shard has its part of both.
	drawn := slices.SortedFunc(maps.Keys(taken), func(a, b *job) int { return cmp.Or(cmp.Compare(a.draw(), b.draw()), cmp.Compare(a.ID, b.ID)) })
	for i, j := range drawn {
		j.way = way{Update: j.Point && !few || j.draw()%10 == 0, Cold: i < cold}
	}
	for _, p := range plans {
		var kept []job
		for i := range p.jobs {
			if taken[&p.jobs[i]] {
				kept = append(kept, p.jobs[i])
			}
		}
		p.jobs = kept
	}
}

// draw is a number that depends on a job's name alone.
func (j *job) draw() uint32 {
	h := fnv.New32a()
	h.Write([]byte(j.ID))
	return h.Sum32()
}

// each makes the images of the jobs again and calls f with them, in order, until it returns false. Jobs that skip says
// are left out.
func (p *plan) each(skip func(job) bool, f func(job, crash.State) bool) {
	next, n := 0, 0
	p.rec.Trace.States(p.options, func(s crash.State) bool {
		n++
		for next < len(p.jobs) && skip(p.jobs[next]) {
			next++
		}
		if next == len(p.jobs) {
			return false
		}
		if p.jobs[next].n != n {
			return true
		}
		next++
		return f(p.jobs[next-1], s)
	})
}

// sumOf identifies a log.
func sumOf(file string) (string, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8]), nil
}
