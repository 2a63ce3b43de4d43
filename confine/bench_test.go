package confine

import (
	"context"
	"os"
	"testing"
	"time"
)

// BenchmarkRun measures a worker that answers at once: from Run to the first
// frame, and in all.
func BenchmarkRun(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	var first time.Duration
	for b.Loop() {
		begin := time.Now()
		_, err := Run(context.Background(), Spec{Role: "echo", UID: 65501, Input: []byte("x"), Deadline: 10 * time.Second},
			func(byte, []byte) error { first += time.Since(begin); return nil })
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(first.Microseconds())/float64(b.N)/1000, "ms/first-frame")
}
