package crash

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// Options say which states of a trace are looked at.
type Options struct {
	// Random is how many random subsets of each epoch's sectors are tried beside the systematic states.
	Random int
	// Wide is the same for epochs that write more than wide sectors: an image, not a record. 0: Random.
	Wide int
	// Limit bounds the systematic states of an epoch; of more, Limit are taken that are spread evenly. 0: all.
	Limit int
	// Seed of what is random.
	Seed uint64
	// Lying makes the disk answer flushes without flushing: all of the trace is one epoch.
	Lying bool
	// Collateral is how far from a write that is cut other sectors may be lost too, in bytes (erase blocks, paired
	// pages). 0: not at all.
	Collateral int64
	// Atomic are sectors that the medium writes whole or not at all.
	Atomic Range
}

// State is what one power cut leaves.
type State struct {
	Image *Image // frozen
	Epoch int    // counted from 0: how many flushes had been answered
	Op    int    // operations that had been issued
	Mark  any    // the last mark before the cut, nil if there is none
	How   string // which of the writes since the last flush are durable
	n     int    // of the mark: its operation, -1
}

func (s State) String() string { return fmt.Sprintf("epoch %d, op %d, %s", s.Epoch, s.Op, s.How) }

// unit is the part of a write that lies in one sector.
type unit struct {
	op, write int // operation in the trace, write in the epoch
	off       int64
	data      []byte
	discard   bool
	changed   bool // against what is durable before the epoch
}

// content of a sector that was being written when the power went. Old and new are covered by the sectors around it.
type content uint8

const (
	asOld content = iota
	asNew
	asZero
	asGarbage
	asHalf // the first half new
)

func (c content) String() string { return [...]string{"old", "new", "zero", "garbage", "half"}[c] }

// States calls yield with the states that a cut during the trace may leave, the same one possibly several times, until
// yield returns false.
func (t *Trace) States(o Options, yield func(State) bool) {
	t.epochs(o, func(e *epoch) bool { return e.all(yield) })
}

// Pick returns one state by chance: first its epoch is drawn, then what is durable of it.
func (t *Trace) Pick(rng *rand.Rand, o Options) (s State) {
	o.Seed = rng.Uint64()
	n := rng.IntN(t.Flushes() + 1)
	if o.Lying {
		n = 0
	}
	t.epochs(o, func(e *epoch) bool {
		if e.number < n {
			return true
		}
		if plans := e.plans(); len(e.units) < 2 || rng.IntN(3) > 0 {
			s = plans[rng.IntN(len(plans))]()
		} else {
			s = e.random(0)
		}
		return false
	})
	return s
}

func (t *Trace) epochs(o Options, each func(e *epoch) bool) {
	base := t.Base.Clone().flat()
	mark, markAt := any(nil), -1
	from := 0
	for number := 0; from <= len(t.Ops); number++ {
		to := from
		for to < len(t.Ops) && (o.Lying || t.Ops[to].Kind != Flush) {
			to++
		}
		e := &epoch{t: t, o: o, base: base, number: number, from: from, to: to, mark: mark, markAt: markAt}
		e.rng = rand.New(rand.NewPCG(o.Seed, uint64(number)))
		e.split()
		if !each(e) {
			return
		}
		next := base.Clone()
		for _, u := range e.units {
			e.put(next, u, asNew)
		}
		base = next.flat()
		for i := from; i < to; i++ {
			if t.Ops[i].Kind == Mark {
				mark, markAt = t.Ops[i].Mark, i
			}
		}
		from = to + 1
	}
}

// epoch is what was issued between two flushes.
type epoch struct {
	t        *Trace
	o        Options
	base     *Image // durable before
	number   int
	from, to int // operations
	mark     any // the last one before
	markAt   int
	units    []unit
	writes   int
	rng      *rand.Rand
}

func (e *epoch) split() {
	var old [sectorSize]byte
	for i := e.from; i < e.to; i++ {
		op := &e.t.Ops[i]
		if op.Kind != Write && op.Kind != Discard {
			continue
		}
		for done := int64(0); done < op.Len; {
			off := op.Off + done
			n := min(op.Len-done, sectorSize-off%sectorSize)
			u := unit{op: i, write: e.writes, off: off, discard: op.Kind == Discard}
			if u.discard {
				u.data, u.changed = make([]byte, n), true
			} else {
				u.data = op.Data[done : done+n]
				e.base.ReadAt(old[:n], off)
				u.changed = string(old[:n]) != string(u.data)
			}
			e.units = append(e.units, u)
			done += n
		}
		e.writes++
	}
}

func (e *epoch) put(img *Image, u unit, c content) {
	data := u.data
	switch c {
	case asOld:
		return
	case asZero:
		data = make([]byte, len(u.data))
	case asGarbage:
		// The same in every state, so that states that differ in noise alone are one.
		noise := rand.NewChaCha8([32]byte{1, byte(u.off >> 9), byte(u.off >> 17), byte(u.off >> 25), byte(u.off >> 33)})
		data = make([]byte, len(u.data))
		noise.Read(data)
	case asHalf:
		data = u.data[:len(u.data)/2]
	}
	if _, err := img.WriteAt(data, u.off); err != nil {
		panic(err) // the trace has a write that no disk of this size took
	}
}

// state is the cut after operation op, when of the units those are durable for which keep says so.
func (e *epoch) state(op int, how string, keep func(i int) content) State {
	s := State{Epoch: e.number, Op: op, How: how, Mark: e.mark, n: e.markAt}
	for i := e.from; i < op; i++ {
		if e.t.Ops[i].Kind == Mark {
			s.Mark, s.n = e.t.Ops[i].Mark, i
		}
	}
	s.Image = e.base.Clone()
	for i, u := range e.units {
		if u.op >= op {
			continue
		}
		c := keep(i)
		if a := e.o.Atomic; c > asNew && u.off >= a.Off && u.off < a.Off+a.Len {
			c = asNew
		}
		e.put(s.Image, u, c)
	}
	return s
}

// plan is one systematic state, made when it is its turn.
type plan func() State

func (e *epoch) all(yield func(State) bool) bool {
	plans := e.plans()
	step := 1.0
	if e.o.Limit > 0 && len(plans) > e.o.Limit {
		step = float64(len(plans)) / float64(e.o.Limit)
	}
	for at := 0.0; int(at) < len(plans); at += step {
		if !yield(plans[int(at)]()) {
			return false
		}
	}
	if len(e.units) < 2 {
		return true
	}
	random := e.o.Random
	if len(e.units) > wide && e.o.Wide > 0 {
		random = e.o.Wide
	}
	for i := range random {
		if !yield(e.random(i)) {
			return false
		}
	}
	return true
}

// plans lists the systematic states of an epoch.
func (e *epoch) plans() (plans []plan) {
	add := func(op int, how string, keep func(i int) content) {
		plans = append(plans, func() State { return e.state(op, how, keep) })
	}
	constant := func(c content) func(int) content { return func(int) content { return c } }
	add(e.to, "nothing", constant(asOld))
	add(e.to, "everything", constant(asNew))
	for i, u := range e.units {
		// In order up to this sector, and this one torn; the last sector of a write is also a prefix of whole writes.
		for _, c := range []content{asNew, asZero, asGarbage, asHalf} {
			add(u.op+1, fmt.Sprintf("in order to write %d, its sector at %d %s", u.write, u.off, c), func(k int) content {
				switch {
				case k < i:
					return asNew
				case k == i:
					return c
				}
				return asOld
			})
		}
		if !u.changed {
			continue
		}
		add(e.to, fmt.Sprintf("all but the sector at %d", u.off), func(k int) content {
			if k == i {
				return asOld
			}
			return asNew
		})
		add(e.to, fmt.Sprintf("only the sector at %d", u.off), func(k int) content {
			if k == i {
				return asNew
			}
			return asOld
		})
		add(u.op+1, fmt.Sprintf("write %d backwards to its sector at %d", u.write, u.off), func(k int) content {
			if k >= i || e.units[k].write < u.write {
				return asNew
			}
			return asOld
		})
	}
	e.byWrite(add)
	e.subsets(add)
	e.collateral(&plans)
	return plans
}

// byWrite drops and keeps whole writes, and where there are few tries all subsets of them.
func (e *epoch) byWrite(add func(int, string, func(int) content)) {
	if e.writes < 2 {
		return
	}
	choose := func(take func(write int) bool) func(int) content {
		return func(i int) content {
			if take(e.units[i].write) {
				return asNew
			}
			return asOld
		}
	}
	if e.writes <= subsetLimit {
		for set := range uint(1) << e.writes {
			add(e.to, fmt.Sprintf("writes of the set %b", set), choose(func(w int) bool { return set>>w&1 == 1 }))
		}
		return
	}
	for w := range e.writes {
		add(e.to, fmt.Sprintf("all but write %d", w), choose(func(o int) bool { return o != w }))
		add(e.to, fmt.Sprintf("only write %d", w), choose(func(o int) bool { return o == w }))
	}
}

// wide is up to how many sectors are a record and not an image.
const wide = 64

// subsetLimit is up to how many sectors or writes all their subsets are tried.
const subsetLimit = 12

// subsets tries all subsets of the sectors that change where they are few, and in each of them every one torn.
func (e *epoch) subsets(add func(int, string, func(int) content)) {
	var changed []int
	for i, u := range e.units {
		if u.changed {
			changed = append(changed, i)
		}
	}
	if n := len(changed); n < 2 || n > subsetLimit {
		return
	}
	for set := range uint(1) << len(changed) {
		in := func(i int) content {
			if k := slices.Index(changed, i); k < 0 || set>>k&1 == 1 {
				return asNew
			}
			return asOld
		}
		if bits.OnesCount(set) > 1 && bits.OnesCount(set) < len(changed) {
			add(e.to, fmt.Sprintf("sectors of the set %b", set), in)
		}
		if len(changed) > 8 {
			continue
		}
		for k, torn := range changed {
			if set>>k&1 == 1 {
				continue // the same as with the bit unset
			}
			for _, c := range []content{asZero, asGarbage} {
				add(e.to, fmt.Sprintf("sectors of the set %b, the one at %d %s", set, e.units[torn].off, c), func(i int) content {
					if i == torn {
						return c
					}
					return in(i)
				})
			}
		}
	}
}

// collateral loses sectors around a write that is cut.
func (e *epoch) collateral(plans *[]plan) {
	if e.o.Collateral == 0 {
		return
	}
	for i := 0; i < len(e.units); i++ {
		first := i
		for i+1 < len(e.units) && e.units[i+1].write == e.units[first].write {
			i++
		}
		last := e.units[i]
		from := max(0, e.units[first].off-e.o.Collateral) / sectorSize * sectorSize
		to := min(e.base.Size(), last.off+int64(len(last.data))+e.o.Collateral) / sectorSize * sectorSize
		for _, how := range []string{"all zero", "all garbage", "one", "some", "many"} {
			for _, written := range []content{asOld, asNew} {
				*plans = append(*plans, func() State {
					s := e.state(last.op+1, fmt.Sprintf("write %d %s, around it lost: %s", last.write, written, how), func(k int) content {
						if e.units[k].write == last.write {
							return written
						}
						return asNew
					})
					e.lose(s.Image, from, to, how)
					return s
				})
			}
		}
	}
}

// lose spoils sectors between two offsets that hold something.
func (e *epoch) lose(img *Image, from, to int64, how string) {
	var full []int64
	for n := from / pageSize; n*pageSize < to; n++ {
		if img.page(n) == nil {
			continue // nothing is there that could be missed
		}
		for off := max(from, n*pageSize); off < min(to, (n+1)*pageSize); off += sectorSize {
			full = append(full, off)
		}
	}
	if len(full) == 0 {
		return
	}
	percent := map[string]int{"all zero": 100, "all garbage": 100, "some": 5, "many": 50}[how]
	one := full[e.rng.IntN(len(full))]
	for _, off := range full {
		if how == "one" && off != one || how != "one" && e.rng.IntN(100) >= percent {
			continue
		}
		c := asGarbage
		if how == "all zero" {
			c = asZero
		}
		e.put(img, unit{off: off, data: make([]byte, sectorSize)}, c)
	}
}

// random takes a cut, a subset of the sectors before it, and often one of them torn.
func (e *epoch) random(n int) State {
	last := e.rng.IntN(len(e.units))
	op := e.units[last].op + 1
	if e.rng.IntN(2) == 0 {
		op = e.to
	}
	percent := []int{3, 20, 50, 80, 97}[e.rng.IntN(5)]
	torn := -1
	if e.rng.IntN(2) == 0 {
		torn = last
	}
	return e.state(op, fmt.Sprintf("random %d of seed %d", n, e.o.Seed), func(i int) content {
		switch {
		case i == torn:
			return []content{asZero, asGarbage, asHalf}[e.rng.IntN(3)]
		case e.rng.IntN(100) < percent:
			return asNew
		}
		return asOld
	})
}
