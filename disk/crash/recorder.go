package crash

import (
	"bytes"
	"errors"
	"sync"

	"lifeboat/disk"
)

// Kind of an operation.
type Kind uint8

const (
	Write Kind = iota
	Flush
	Discard
	Mark // nothing on the disk: something became true for whoever watches
)

// Op is one operation that reached the disk's cache, or a mark between two of them.
type Op struct {
	Kind Kind
	Off  int64
	Len  int64  // bytes; of a Flush or Mark 0
	Data []byte // of a Write; nobody changes it
	Mark any
}

// Trace is what was done to a disk.
type Trace struct {
	Base *Image // before the first operation
	Ops  []Op
}

// Writes and Flushes count the operations of the trace.
func (t *Trace) Writes() int  { return t.count(Write) }
func (t *Trace) Flushes() int { return t.count(Flush) }

func (t *Trace) count(k Kind) (n int) {
	for _, o := range t.Ops {
		if o.Kind == k {
			n++
		}
	}
	return n
}

// ErrInjected is the error of an operation that was made to fail.
var ErrInjected = errors.New("injected I/O error")

// Recorder is a disk with a volatile write cache that notes what is done to it. Reads see the cache. It is safe for
// concurrent use.
type Recorder struct {
	// Fault, if not nil, is asked before every operation; n counts those of its kind from 0. An error fails the
	// operation, which then has no effect. Reads have Kind Read.
	Fault func(k Kind, n int, off, length int64) error

	// Lost, if not nil, says that the n-th write is answered and not done.
	Lost func(n int, off, length int64) bool

	mu    sync.Mutex
	cache *Image
	trace Trace
	count [Read + 1]int
}

// Read is the kind of a read as Fault sees it; it is never part of a trace.
const Read = Mark + 1

var _ disk.Device = (*Recorder)(nil)

// Record returns a recorder on a disk that holds what base holds; base must not be written to afterwards.
func Record(base *Image) *Recorder {
	return &Recorder{cache: base.Clone(), trace: Trace{Base: base}}
}

// Trace returns what was done so far.
func (r *Recorder) Trace() *Trace {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &Trace{Base: r.trace.Base, Ops: r.trace.Ops[:len(r.trace.Ops):len(r.trace.Ops)]}
}

// Image returns what the disk holds once everything is durable. The recorder may be used on.
func (r *Recorder) Image() *Image {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cache
	r.cache = now.Clone()
	return now.flat()
}

// Peek returns what reads see, past Fault.
func (r *Recorder) Peek() disk.Device { return peek{r} }

type peek struct{ *Recorder }

func (p peek) ReadAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cache.ReadAt(b, off)
}

// Mark notes that something is true from now on, for instance that a commit was answered.
func (r *Recorder) Mark(what any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trace.Ops = append(r.trace.Ops, Op{Kind: Mark, Mark: what})
}

func (r *Recorder) fault(k Kind, off, length int64) error {
	n := r.count[k]
	r.count[k]++
	if r.Fault == nil {
		return nil
	}
	return r.Fault(k, n, off, length)
}

func (r *Recorder) Size() int64 { return r.cache.Size() }

func (r *Recorder) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fault(Read, off, int64(len(p))); err != nil {
		return 0, err
	}
	return r.cache.ReadAt(p, off)
}

func (r *Recorder) WriteAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fault(Write, off, int64(len(p))); err != nil {
		return 0, err
	}
	if r.Lost != nil && r.Lost(r.count[Write]-1, off, int64(len(p))) {
		return len(p), nil
	}
	n, err := r.cache.WriteAt(p, off)
	if err == nil {
		r.trace.Ops = append(r.trace.Ops, Op{Kind: Write, Off: off, Len: int64(len(p)), Data: bytes.Clone(p)})
	}
	return n, err
}

func (r *Recorder) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fault(Flush, 0, 0); err != nil {
		return err
	}
	r.trace.Ops = append(r.trace.Ops, Op{Kind: Flush})
	return nil
}
