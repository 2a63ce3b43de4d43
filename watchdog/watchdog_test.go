package watchdog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"lifeboat/config"
)

// What sysfs says of watchdogs; the tenth stands behind the second.
func TestFind(t *testing.T) {
	dir := t.TempDir()
	for name, files := range map[string]string{
		"watchdog10": "identity=ten;nothing=else",
		"watchdog0":  "identity=i6300ESB timer;state=inactive;nowayout=0;bootstatus=32",
		"watchdog2":  "identity=Software Watchdog;state=active;nowayout=1;bootstatus=0",
	} {
		at := filepath.Join(dir, "class/watchdog", name)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range strings.SplitSeq(files, ";") {
			key, value, _ := strings.Cut(f, "=")
			if err := os.WriteFile(filepath.Join(at, key), []byte(value+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := []Device{
		{Name: "watchdog0", Identity: "i6300ESB timer", CardReset: true},
		{Name: "watchdog2", Identity: "Software Watchdog", Active: true, NoWayOut: true},
		{Name: "watchdog10", Identity: "ten"},
	}
	if diff := cmp.Diff(want, Find(dir), cmpopts.IgnoreUnexported(Device{})); diff != "" {
		t.Error(diff)
	}
	if got := Find(t.TempDir()); len(got) > 0 {
		t.Errorf("%+v", got)
	}
}

func TestChoose(t *testing.T) {
	hard, other, soft := Device{Name: "watchdog0", Identity: "i6300ESB timer"}, Device{Name: "watchdog1", Identity: "iTCO_wdt"}, Device{Name: "watchdog0", Identity: "Software Watchdog"}
	armed := other
	armed.Active = true
	on := config.Watchdog{Timeout: 30 * time.Second}
	with := func(f func(*config.Watchdog)) config.Watchdog { o := on; f(&o); return o }
	for _, tt := range []struct {
		name string
		all  []Device
		o    config.Watchdog
		want string // name, or what is said
	}{
		{"off", []Device{hard}, config.Watchdog{}, ""},
		{"off, and the boot loader has armed one", []Device{hard, armed}, config.Watchdog{}, "watchdog1"},
		{"the first", []Device{hard, other}, on, "watchdog0"},
		{"/dev/watchdog is the first", []Device{hard, other}, with(func(o *config.Watchdog) { o.Device = "/dev/watchdog" }), "watchdog0"},
		{"named", []Device{hard, other}, with(func(o *config.Watchdog) { o.Device = "/dev/watchdog1" }), "watchdog1"},
		{"named and missing", []Device{hard}, with(func(o *config.Watchdog) { o.Device = "/dev/watchdog1" }), "/dev/watchdog1 is not there"},
		{"hardware before software", []Device{soft, other}, with(func(o *config.Watchdog) { o.Softdog = true }), "watchdog1"},
		{"software as the last choice", []Device{soft}, with(func(o *config.Watchdog) { o.Softdog = true }), "watchdog0"},
		{"software that nobody wants", []Device{soft}, on, "there is only the kernel's own timer, and softdog=false"},
		{"software that is named", []Device{soft}, with(func(o *config.Watchdog) { o.Device = "/dev/watchdog0" }), "watchdog0"},
		{"none", nil, with(func(o *config.Watchdog) { o.Softdog = true }), "the kernel has none: is its module in the initramfs?"},
	} {
		at, got := Choose(tt.all, tt.o)
		if at >= 0 {
			got += tt.all[at].Name
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// What a close does is known from the driver's options and nowayout; one that it stops is taken only where that is allowed.
func TestAdmit(t *testing.T) {
	const magic, alarm, other = unix.WDIOF_MAGICCLOSE, unix.WDIOF_ALARMONLY, unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING
	on := config.Watchdog{Timeout: 30 * time.Second}
	allowed := on
	allowed.StopsAtClose = true
	for _, tt := range []struct {
		options  uint32
		noWayOut bool
		c        config.Watchdog
		stops    bool
		want     error
	}{
		{magic | other, false, on, false, nil},
		{other, true, on, false, nil},
		{other, false, on, true, ErrStops},
		{other, false, allowed, true, nil},
		{other, false, config.Watchdog{}, true, nil}, // the boot loader's: fed as long as early boot lasts
		{magic | alarm, false, allowed, false, ErrAlarm},
		{alarm, true, on, false, ErrAlarm},
	} {
		if stops, err := admit(tt.options, tt.noWayOut, tt.c); stops != tt.stops || !errors.Is(err, tt.want) {
			t.Errorf("options %#x nowayout %t %+v: stops %t, %v", tt.options, tt.noWayOut, tt.c, stops, err)
		}
	}
}

func TestOpenMissing(t *testing.T) {
	if g, err := Open(Device{Name: "watchdog-that-is-not-there"}, config.Watchdog{}); g != nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, %v", g, err)
	}
}

// A phase that ends in time is fed, one that does not is not; it is said once; and who gets on again is fed again.
func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var fed time.Time
		var late []string
		k := Keep(t.Context(), func() error { fed = time.Now(); return nil }, 8*time.Second, func(phase string) { late = append(late, fmt.Sprintf("%s at %s", phase, time.Since(start))) })
		hungry := func() time.Duration { synctest.Wait(); return time.Since(fed) }

		k.Enter("modules", time.Minute)
		time.Sleep(59 * time.Second)
		if h := hungry(); h > 2*time.Second {
			t.Errorf("inside its deadline it was not fed for %s", h)
		}
		k.Enter("install", time.Minute)
		for range 10 {
			time.Sleep(50 * time.Second)
			k.Progress()
		}
		if h := hungry(); h > 2*time.Second || len(late) > 0 {
			t.Errorf("with progress it was not fed for %s; %q", h, late)
		}
		time.Sleep(time.Minute + 9*time.Second) // 0:59 + 10 times 0:50 + 1:00, and the next look
		if h := hungry(); h < 8*time.Second {
			t.Errorf("past its deadline it was fed %s ago", h)
		}
		if want := []string{"install at 10m20s"}; !cmp.Equal(late, want) {
			t.Errorf("%q, want %q", late, want)
		}
		k.Progress()
		time.Sleep(10 * time.Second)
		if h := hungry(); h > 2*time.Second {
			t.Errorf("after it got on again it was not fed for %s", h)
		}
	})
}

// Four meals in a timeout, and none too rarely for a hand-over.
func TestPause(t *testing.T) {
	for _, timeout := range []time.Duration{5 * time.Second, 20 * time.Second, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			meals := 0
			k := Keep(t.Context(), func() error { meals++; return nil }, timeout, func(string) {})
			k.Enter("x", time.Hour)
			time.Sleep(timeout + time.Millisecond)
			synctest.Wait()
			if least := max(4, int(timeout/maxPause)); meals < least {
				t.Errorf("%s: %d meals, want %d", timeout, meals, least)
			}
		})
	}
}

func TestNilKeeper(*testing.T) {
	var k *Keeper
	k.Enter("x", time.Second)
	k.Progress()
	k.Feed()
}
