package powercut

import (
	"flag"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"lifeboat/disk/crash"
)

var states = flag.Int("states", 1_000_000, "crash states that the simulator generates, over all scenarios")

var only = flag.String("scenario", "", "the crash simulator runs over scenarios with this in their name")

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // there is more memory than time
	os.Exit(m.Run())
}

// TestCrash is the crash simulator over everything that writes.
func TestCrash(t *testing.T) {
	all := scenarios(t)
	budget := *states
	if testing.Short() {
		budget = 20_000
	}
	start := time.Now()
	var sum crash.Result
	for _, s := range all {
		if !strings.Contains(s.name, *only) {
			continue
		}
		// What the systematic states leave of the budget is random.
		res := crash.Crash(t, s.test(crash.Options{Seed: 1, Random: budget / len(all) / 8, Wide: budget / len(all) / 11}))
		sum.States, sum.Distinct, sum.Masked = sum.States+res.States, sum.Distinct+res.Distinct, sum.Masked+res.Masked
		sum.Failures = append(sum.Failures, res.Failures...)
		if t.Failed() {
			break
		}
	}
	t.Logf("figure: crash simulator: %d scenarios, %d states, %d distinct, %d by what may be read, %d failures, %.0f s",
		len(all), sum.States, sum.Distinct, sum.Masked, len(sum.Failures), time.Since(start).Seconds())
}
