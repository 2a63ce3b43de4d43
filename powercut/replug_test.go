package powercut

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"lifeboat/disk/crash"
	"lifeboat/status"
)

// loose is a stick that is pulled out at its n-th read; then is what is plugged in afterwards, nil: nothing.
type loose struct {
	now, then Medium
	n, reads  int
}

func (l *loose) Size() int64 { return l.now.Size() }

func (l *loose) ReadAt(p []byte, off int64) (int, error) {
	if l.reads++; l.reads >= l.n && l.n > 0 {
		return 0, errors.New("no such device")
	}
	return l.now.ReadAt(p, off)
}

func (l *loose) Gone() bool { return l.n > 0 && l.reads >= l.n }

func (l *loose) Back() bool {
	if !l.Gone() || l.then == nil {
		return false
	}
	l.now, l.n = l.then, 0
	return true
}

// A stick is pulled out at every read of an update, from the first to the last. Where it, or another one with the same
// bundle, comes back the update is finished in the same boot; where none comes, or another one with another bundle, the
// system that was there runs. In every case what runs is right, and the next boot with the stick finishes the update.
func TestPulledOut(t *testing.T) {
	k := newKit(t, nil)
	d, start := one(k)
	two, three := k.bundle("2", 0, Healthy), k.bundle("3", 0, Healthy)
	stick, again, other := k.stick(two), k.stick(three, two), k.stick(three)
	boot := func(t *testing.T, disk *crash.Image, l *loose) *Boot {
		t.Helper()
		d.Stick = l
		b, err := d.Boot(disk, status.None, Observer{})
		k.must(err)
		if len(b.Damaged) > 0 {
			t.Errorf("damaged: %v", b.Damaged)
		}
		return b
	}
	version := func(b *Boot) string { return b.Started.State.Entry(b.Slot).Version }
	count := &loose{now: stick}
	if b := boot(t, start.Clone(), count); version(b) != "2" || count.reads < 30 {
		t.Fatalf("undisturbed: %s after %d reads", b.Slot, count.reads)
	}
	finished, waited := 0, 0
	for n := 1; n <= count.reads; n++ {
		for name, tt := range map[string]struct {
			then *loose
			want string // version that runs, "": 2 where the update had begun, else 1
		}{
			"it comes back":        {&loose{now: stick}, ""},
			"another with it":      {&loose{now: again}, ""},
			"one with another one": {&loose{now: other}, "1"},
			"none":                 {nil, "1"},
		} {
			t.Run(fmt.Sprintf("%d %s", n, name), func(t *testing.T) {
				l := &loose{now: stick, n: n}
				if tt.then != nil {
					l.then = tt.then
				}
				disk := start.Clone()
				b := boot(t, disk, l)
				said := strings.Join(b.Lines, "\n")
				out := strings.Contains(said, "was pulled out: waiting 30s for it")
				want := tt.want
				if want == "" {
					want = "1" // while it was only looked at, nothing was to be gone on with
					if out {
						want = "2"
						finished++
					}
				}
				if out {
					waited++
				}
				if got := version(b); got != want {
					t.Errorf("version %s runs, not %s:\n%s", got, want, said)
				}
				if out && want == "1" && !strings.Contains(said, "refused code=40 2.raucb: its stick was pulled out and did not come back") {
					t.Errorf("it does not say why:\n%s", said)
				}
				if b := boot(t, disk, &loose{now: stick}); version(b) != "2" {
					t.Errorf("with the stick at the next boot: version %s runs:\n%s", version(b), strings.Join(b.Lines, "\n"))
				}
			})
		}
	}
	t.Logf("figure: pulled out: %d moments, %d of them in an update, which was finished %d times", 4*count.reads, waited, finished)
	if finished < 50 {
		t.Errorf("an update went on only %d times", finished)
	}
}
