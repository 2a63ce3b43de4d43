package badinputs

import (
	"fmt"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A reader of what is not trusted takes at most 100 ms and 64 MiB for each input. A busy machine makes everything longer:
// a test fails for what no machine explains, and says what was measured.
const (
	maxTime   = 2 * time.Second
	maxMemory = 64 << 20
)

// Meter measures many runs of one reader and keeps the most that one took.
type Meter struct {
	Runs   int
	Time   time.Duration // of the processor, in the calling goroutine
	Memory uint64        // bytes allocated
}

// Run measures do. It fails the test where an input took too much.
func (m *Meter) Run(t testing.TB, do func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	memory, start := allocated(), used()
	do()
	took, room := used()-start, allocated()-memory
	m.Runs++
	m.Time, m.Memory = max(m.Time, took), max(m.Memory, room)
	if took > maxTime || room > maxMemory {
		t.Fatalf("run %d took %v and %d bytes", m.Runs, took, room)
	}
}

func (m *Meter) String() string {
	return fmt.Sprintf("%d, at most %.1f ms and %d KiB each", m.Runs, float64(m.Time.Microseconds())/1000, m.Memory>>10)
}

func used() time.Duration {
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &at); err != nil {
		panic(err)
	}
	return time.Duration(at.Nano())
}

// allocated is exact but for small objects, which are counted some KiB at a time.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
