package update

import (
	"testing"
	"time"

	"lifeboat/disk"
)

// A worker with a rate reads and writes no faster, all together, and says that it lives while it waits.
func TestPace(t *testing.T) {
	beats := 0
	w := &worker{job: &job{Rate: 1 << 20}, send: func(kind byte, _ []byte) error {
		if kind == frameProgress {
			beats++
		}
		return nil
	}}
	dev := disk.NewMemory(1 << 20)
	in, out := &beat{r: dev, w: w}, &slowSlot{dev, w}
	begin := time.Now()
	for i := range 8 {
		b := make([]byte, 64<<10)
		if _, err := in.ReadAt(b, int64(i)*int64(len(b))); err != nil {
			t.Fatal(err)
		}
		if _, err := out.WriteAt(b, int64(i)*int64(len(b))); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took < 900*time.Millisecond {
		t.Errorf("1 MiB at 1 MiB/s took %v", took)
	}
	if beats < 2 {
		t.Errorf("%d signs of life", beats)
	}
	// Without one it does not wait.
	w.job.Rate = 0
	w.pace(1 << 40)
}
