package status

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The report that /init writes by hand is the one that encoding/json would write: one schema, in the struct tags.
func TestJSONIsEncodingJSON(t *testing.T) {
	full := Report{
		State: State{
			Sequence: 7, Boot: 3, Format: 1, Floors: Floors{Version: "1.0", Epoch: 2, Time: 1700000000},
			Slots: []Slot{
				{Slot: "rootfs.0", Bootname: "A", ManifestHash: "00ff", Version: "1", Epoch: 1, Tries: 8, Good: true, Back: 2, Authenticity: "every boot"},
				{Slot: "rootfs.1", Bootname: "B", Excluded: true, Reason: "exhausted"},
			},
			Events: []Event{{Boot: 1, Event: "boot"}, {Boot: 2, Time: 1700000001, Event: "refused", Slot: "rootfs.1", Reason: "panic", Code: 31, Manifest: "0011223344556677"}},
			Staged: &Staged{Version: "3", ManifestHash: "22", Size: 12345, Waits: true},
		},
		StateDev: "/dev/vda1", Booted: Booted{Slot: "rootfs.0", Bootname: "A", Version: "1", Trial: true, TriesLeft: 2, Authenticity: "every boot", RootHash: "aa", Device: "/dev/vda3"},
		Watchdog: &Armed{Device: "/dev/watchdog0", Identity: "x", Timeout: 30, Pretimeout: 5, Stops: true},
		Fallback: "panic", Installed: []Installed{{File: "/a.raucb", Version: "2", Slot: "rootfs.1", Bootname: "B", ManifestHash: "11", Unchanged: 4096}},
		Refused: []Refused{{File: "/b\x00\x1f\"\\<>&\u2028\xff\ufffd.raucb", Code: 21, Text: "tab\tline\nreturn\r\b\f é 世"}},
		Notes:   []string{"one", "two"}, Phases: []Phase{{"mounts", 1.25}, {"state", 0}, {"x", 1234567.891}}, Workers: []Worker{{"scan", 12345}}, InitRSS: 9,
	}
	empty := Report{State: State{Slots: []Slot{}, Events: []Event{}}, Installed: []Installed{}, Refused: []Refused{}}
	for name, r := range map[string]Report{"full": full, "empty": empty, "zero": {}, "watchdog": {Watchdog: &Armed{Timeout: 1}}} {
		want, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want)+"\n", string(r.JSON())); diff != "" {
			t.Errorf("%s (-encoding/json +JSON):\n%s", name, diff)
		}
	}
}

// FuzzJSON: whatever stands in a report, a reader of JSON gets it back as encoding/json would have written it.
func FuzzJSON(f *testing.F) {
	f.Add("/b\x00\x1f\"\\<>&\u2028\xff\ufffd.raucb", "tab\tline\nreturn\r\b\f é 世", int64(21), true, 1.25)
	f.Add("", "", int64(-1), false, 0.0)
	f.Fuzz(func(t *testing.T, name, text string, n int64, flag bool, ms float64) {
		if ms != ms || ms < 0 || ms > 1e9 {
			return // no time that a phase takes
		}
		r := Report{
			State:   State{Sequence: uint64(n), Slots: []Slot{{Slot: name, Good: flag, Version: text}}, Events: []Event{{Event: text, Code: int(n)}}},
			Refused: []Refused{{File: name, Code: int(n), Text: text}}, Installed: []Installed{}, Notes: []string{name, text},
			Phases: []Phase{{name, float64(int64(ms*1000)) / 1000}},
		}
		want, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want)+"\n", string(r.JSON())); diff != "" {
			t.Errorf("(-encoding/json +JSON):\n%s", diff)
		}
	})
}
