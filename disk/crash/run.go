package crash

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
)

// Test is one scenario under the crash simulator. A new writer's crash test is an Update and a Check.
type Test struct {
	Name  string
	Start *Image
	// Update does what is tested, to its end. What it marks is known to Check in the states after.
	Update func(d *Recorder) error
	// Check is the reboot after a cut: it works on a clone of State.Image. It is called once for each distinct state and
	// mark, by several goroutines.
	Check func(s State) error
	// Mask returns what no code path may read in an image; it is left out when states are counted a second time. nil: all
	// is read.
	Mask func(i *Image) []Range
	Options
	// Most bounds how many distinct states are checked; 0: all.
	Most int
}

// Result is what a run of a Test found.
type Result struct {
	Name     string
	Trace    *Trace
	Writes   int
	Flushes  int
	States   int // that were generated
	Distinct int // images
	Masked   int // images that differ in what some code path may read
	Failures []Failure
}

// Failure is a state that does not pass.
type Failure struct {
	Test  string
	State State
	Err   error
}

func (f Failure) String() string { return fmt.Sprintf("%s: %s: %v", f.Test, f.State, f.Err) }

// maxFailures ends a run: one fault often shows in thousands of states.
const maxFailures = 20

// Run records Update once and checks every state that a cut in it may leave. The error says that Update itself failed.
func (c Test) Run() (*Result, error) {
	r := Record(c.Start)
	if err := c.Update(r); err != nil {
		return nil, fmt.Errorf("%s: without a cut: %w", c.Name, err)
	}
	return c.Judge(r.Trace()), nil
}

// Judge checks every state that a cut in a trace may leave. Update is not used.
func (c Test) Judge(t *Trace) *Result {
	res := &Result{Name: c.Name, Trace: t, Writes: t.Writes(), Flushes: t.Flushes()}
	type key struct {
		image Hash
		mark  int
	}
	checked, distinct, masked := map[key]bool{}, map[Hash]bool{}, map[Hash]bool{}
	work := make(chan State, 64)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for s := range work {
				if err := c.Check(s); err != nil {
					mu.Lock()
					res.Failures = append(res.Failures, Failure{c.Name, s, err})
					mu.Unlock()
				}
			}
		})
	}
	t.States(c.Options, func(s State) bool {
		res.States++
		k := key{s.Image.Hash(), s.n}
		if checked[k] {
			return true
		}
		checked[k] = true
		if !distinct[k.image] {
			distinct[k.image] = true
			m := k.image
			if c.Mask != nil {
				m = s.Image.masked(c.Mask(s.Image))
			}
			masked[m] = true
		}
		work <- s
		mu.Lock()
		defer mu.Unlock()
		return len(res.Failures) < maxFailures && (c.Most == 0 || len(distinct) < c.Most)
	})
	close(work)
	wg.Wait()
	res.Distinct, res.Masked = len(distinct), len(masked)
	return res
}

// TB is what Crash needs of *testing.T; this package is also linked into commands.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Crash runs a Test and fails t with every state that does not pass.
func Crash(t TB, c Test) *Result {
	t.Helper()
	res, err := c.Run()
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Logf("%s", res)
	for _, f := range res.Failures {
		t.Errorf("%s", f)
	}
	return res
}

func (r *Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d writes, %d flushes; %d states, %d distinct, %d by what may be read; %d failures",
		r.Name, r.Writes, r.Flushes, r.States, r.Distinct, r.Masked, len(r.Failures))
	return b.String()
}
