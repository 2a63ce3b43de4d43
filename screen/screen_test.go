package screen

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/status"
	"lifeboat/update"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Percent, speed and time left, also where the numbers make no sense.
func TestMeter(t *testing.T) {
	const mib = 1 << 20
	var m Meter
	for _, tt := range []struct {
		ms          int
		done, total int64
		want        string
	}{
		{0, 0, 100 * mib, "0 % of 100 MiB"},
		{500, 5 * mib, 100 * mib, "5 % of 100 MiB"}, // too early to know how fast
		{1000, 10 * mib, 100 * mib, "10 % of 100 MiB, 10.0 MiB/s, 0:09 left"},
		{2000, 20 * mib, 100 * mib, "20 % of 100 MiB, 10.0 MiB/s, 0:08 left"},
		{12000, 20 * mib, 100 * mib, "20 % of 100 MiB, 7.5 MiB/s, 0:10 left"}, // it stands still
		{13000, 100 * mib, 100 * mib, "100 % of 100 MiB, 25.6 MiB/s, 0:00 left"},
		{13001, 1, math.MaxInt64, "0 % of 8796093022207 MiB"}, // it begins again, and lies
		{15001, 2 * mib, math.MaxInt64, "0 % of 8796093022207 MiB, 1.0 MiB/s, 99:00:00 left"},
		{15002, 0, 0, "0 % of 0 MiB"},
	} {
		m.At(start.Add(time.Duration(tt.ms)*time.Millisecond), tt.done, tt.total)
		if got := m.String(); got != tt.want {
			t.Errorf("after %d ms: %q, not %q", tt.ms, got, tt.want)
		}
	}
}

func slot(name, bootname, version string, change func(*status.Slot)) status.Slot {
	s := status.Slot{Slot: name, Bootname: bootname, Version: version, ManifestHash: "1234", Tries: 1}
	change(&s)
	return s
}

func TestRescue(t *testing.T) {
	d := Device{Compatible: "pump", Serial: "4711"}
	r := update.Rescue{
		Reason: status.NoSlot, Retry: start.Add(2 * time.Minute),
		State: status.State{Floors: status.Floors{Version: "1.4"}, Slots: []status.Slot{
			slot("rootfs.1", "B", "2.0", func(s *status.Slot) { s.Reason = "verity-error" }),
			slot("rootfs.0", "A", "", func(s *status.Slot) { s.ManifestHash = "" }),
		}},
		Sources: []update.Source{{Name: "sda", Label: "sda: ACME Stick 64 MiB"}},
		Refused: []status.Refused{{File: "old.raucb", Code: 28, Text: "version 1.3 is below 1.4"}},
	}
	want := `  === lifeboat: rescue: this device needs an update stick ===

  Device: pump
  Serial number: 4711
  No copy of the system can be started.

  rootfs.1 (B)  version 2.0: its content is damaged
  rootfs.0 (A)  version (none): empty

  Stick: sda: ACME Stick 64 MiB
  old.raucb was refused (code 28): version 1.3 is below 1.4
    It is older than what this device may still run.

  What to do: plug in a USB stick with a bundle for this device (*.raucb in its
      top folder or in /updates), version 1.4 or newer.
  It is found by itself and installed; do not switch off.
  A copy of the system is tried again in 2:00.
`
	if diff := cmp.Diff(want, Rescue(d, r, start)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, tt := range map[string]struct {
		change func(*Device, *update.Rescue)
		want   string
	}{
		"no disk":         {func(d *Device, r *update.Rescue) { r.Reason, d.Disk = status.NoDisk, "no disk has PARTLABEL=x" }, "Its disk was not found: no disk has PARTLABEL=x"},
		"two disks":       {func(d *Device, r *update.Rescue) { r.Reason, d.Disk = status.TwoDisks, "vda and vdb" }, "Two disks look like this device's own: vda and vdb"},
		"a part of it":    {func(d *Device, r *update.Rescue) { d.Disk = "only 1 of 2 slots" }, "Of its disk a part is missing: only 1 of 2 slots"},
		"asked for":       {func(d *Device, r *update.Rescue) { r.Reason = status.Requested }, "Rescue was asked for."},
		"no USB":          {func(d *Device, r *update.Rescue) { d.NoUSB = true }, "No stick can be read"},
		"no stick":        {func(d *Device, r *update.Rescue) { r.Sources = nil }, "Sticks: none seen"},
		"patterns":        {func(d *Device, r *update.Rescue) { d.Files = []string{"a*.raucb", "b/*.raucb"} }, "bundle for this device (a*.raucb,\n      b/*.raucb)"},
		"operator's file": {func(d *Device, r *update.Rescue) { d.Require = "unlock" }, "The stick must have the file unlock."},
		"excluded":        {func(d *Device, r *update.Rescue) { r.State.Slots[0].Reason, r.State.Slots[0].Excluded = "", true }, "another version was confirmed since"},
		"no tries":        {func(d *Device, r *update.Rescue) { r.State.Slots[0].Reason, r.State.Slots[0].Tries = "", 0 }, "and never said that\n      it works"},
		"fine":            {func(d *Device, r *update.Rescue) { r.State.Slots[0].Reason = "" }, "may be started"},
		"of a newer /init": {
			func(d *Device, r *update.Rescue) { r.State.Slots[0].Reason = "reason-99" }, "version 2.0: reason-99",
		},
	} {
		d, r := d, r
		r.State.Slots = append([]status.Slot(nil), r.State.Slots...)
		tt.change(&d, &r)
		if got := Rescue(d, r, start); !strings.Contains(got, tt.want) {
			t.Errorf("%s: no %q in\n%s", name, tt.want, got)
		}
	}
}

// Every reason has words, and they are not the token.
func TestWords(t *testing.T) {
	for r := status.Exhausted; !strings.HasPrefix(r.String(), "reason-"); r++ {
		if w := status.Words(r.String()); w == "" || w == r.String() {
			t.Errorf("%s: %q", r, w)
		}
	}
}

func TestFinal(t *testing.T) {
	if got := Final(&status.Report{Notes: []string{"something"}}); got != "" {
		t.Errorf("nothing was tried, and it says %q", got)
	}
	refused := []status.Refused{{File: "x.raucb", Code: 21, Text: "bad signature"}}
	got := Final(&status.Report{Refused: refused})
	for _, want := range []string{"=== lifeboat: no update ===", "x.raucb was refused (code 21): bad signature", "get the right bundle"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	got = Final(&status.Report{Refused: refused, Installed: []status.Installed{{Version: "2026.11-2", Slot: "rootfs.1", Bootname: "B"}}})
	for _, want := range []string{"=== lifeboat: update to 2026.11-2 finished, remove the stick ===", "rootfs.1 (B)", "x.raucb was refused"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	many := make([]status.Refused, 32)
	if got := Final(&status.Report{Refused: many}); !strings.Contains(got, "and 26 more") {
		t.Errorf("all of many:\n%s", got)
	}
}

func TestProgress(t *testing.T) {
	var m Meter
	m.At(start, 0, 4<<20)
	m.At(start.Add(time.Second), 2<<20, 4<<20)
	want := `  === lifeboat: this device is being updated ===

  Version 2.0 goes to rootfs.1 (B).

  Step 2 of 3: writing
  [#########################.........................]
  50 % of 4 MiB, 2.0 MiB/s, 0:01 left

  Do not switch off, leave the stick in. A power cut loses nothing.
`
	if diff := cmp.Diff(want, Progress("2.0", "rootfs.1 (B)", update.Writing, &m)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := Gone("2.0", 90*time.Second); !strings.Contains(got, "Plug the stick in again within 1:30") {
		t.Error(got)
	}
}

// The report of a device: plain words and the codes, what happened before the newest first.
func TestReport(t *testing.T) {
	s := status.State{
		Boot:  7,
		Slots: []status.Slot{slot("rootfs.0", "A", "1.0", func(*status.Slot) {})},
		Events: []status.Event{
			{Boot: 6, Event: "boot", Slot: "rootfs.0"}, {Boot: 6, Event: "refused", Code: 21}, {Boot: 7, Event: "fallback", Slot: "rootfs.1", Reason: "panic"},
		},
	}
	r := &status.Report{Installed: []status.Installed{{File: "a.raucb", Version: "2.0", Slot: "rootfs.1", Bootname: "B"}}}
	want := `  === lifeboat: report of a device ===

  Device: pump
  Serial number: 4711
  Boot: 7

  Update to 2.0 finished, remove the stick (a.raucb to rootfs.1 (B))

  rootfs.0 (A)  version 1.0: may be started

  What happened before, the newest first:
  boot 7  fallback  rootfs.1  panic
  boot 6  refused  code=21
  boot 6  boot  rootfs.0
`
	if diff := cmp.Diff(want, Report(Device{Compatible: "pump", Serial: "4711"}, r, s)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r = &status.Report{Refused: []status.Refused{{File: "b.raucb", Code: 27, Text: "for another device"}}}
	if got := Report(Device{Compatible: "pump"}, r, s); !strings.Contains(got, "No update.\n  code 27: b.raucb was refused: for another device") {
		t.Error(got)
	}
}

// No line is wider than a console, whatever is in it.
func TestWidth(t *testing.T) {
	var p page
	p.line("%s", strings.Repeat("word ", 100))
	p.line("%s", strings.Repeat("ä", 1000))
	p.line("%s", strings.Repeat(" ", 200))
	letters := 0
	for line := range strings.Lines(p.String()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > Width {
			t.Errorf("a line of %d: %q", n, line)
		}
		letters += strings.Count(line, "ä")
	}
	if letters != 1000 {
		t.Errorf("%d of 1000 letters are shown", letters)
	}
}
