package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/status"
)

// fullState is the largest State there is.
func fullState() State {
	long := func(c string, n int) string { return strings.Repeat(c, n) }
	s := State{
		Sequence: 1<<64 - 1, Boot: 1<<64 - 2, Install: Install{Target: long("t", MaxSlot), Manifest: hash("i")},
		Floors: Floors{Version: long("9", MaxVersion), Epoch: 1<<32 - 1, Time: 1<<63 - 1}, Mark: MarkRescue, Cuts: 255,
		Names: []Name{{long("n", MaxSlot), long("b", MaxSlot)}, {a, "A"}, {b, "B"}, {"", ""}},
		Wish:  long("w", MaxSlot), Rescue: Rescue{Slot: long("r", MaxSlot), Waits: 255, Stick: true},
		Last: Last{Slot: long("l", MaxSlot), Trial: true, Orderly: true}, Unproven: true,
		Told: Vars{Next: long("n", MaxSlot)}, Turn: long("t", MaxSlot), Asked: 255,
		Trust: Trust{File: hash("trust"), Pending: hash("pending")}, Staged: Staged{Offset: 1 << 20, Size: 1<<63 - 1, Manifest: hash("staged"), Version: long("7", MaxVersion)},
	}
	for i := range MaxSlots {
		s.Slots = append(s.Slots, Entry{
			Slot: fmt.Sprint(i) + long("s", MaxSlot-1), Manifest: hash(fmt.Sprint(i)), Version: long("8", MaxVersion), Epoch: 1<<32 - 1, Created: -1,
			Local: true, Good: true, Excluded: true, Tries: 255, Ends: 255, EndedSo: true, LastEnd: 255, Back: 255, Reason: 255, Booted: 1<<64 - 1,
		})
	}
	for i := range MaxSlots {
		s.Told.Order = append(s.Told.Order, Turn{Name: fmt.Sprint(i) + long("o", MaxSlot-1), Tries: 255})
	}
	for i := range MaxFalls {
		s.Falls = append(s.Falls, Fall{Manifest: hash(fmt.Sprint("fall", i)), Evidence: status.Panic, Rounds: uint8(i), Next: uint64(i)})
	}
	for i := range MaxGuards {
		s.Guards = append(s.Guards, Guard{ID: [8]byte{byte(i)}, Seen: 1, Unexplained: 2, Next: uint64(i)})
	}
	for i := range MaxEvents {
		s.Events = append(s.Events, Event{Boot: uint32(i), Time: 1<<32 - 1, Kind: status.EventBoot, Slot: NoSlot, Reason: status.Watchdog, Code: 31, Manifest: [8]byte{byte(i)}})
	}
	return s
}

func encode(t testing.TB, s State) []byte {
	t.Helper()
	raw, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// reseal gives a record that was changed its checksum again.
func reseal(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[12:], recordCRC(b))
	return b
}

// with returns the record of s with more fields at its end.
func with(t testing.TB, s State, fields []byte) []byte {
	b := encode(t, s)
	n := int(binary.LittleEndian.Uint16(b[10:]))
	copy(b[recordHeader+n:], fields)
	binary.LittleEndian.PutUint16(b[10:], uint16(n+len(fields)))
	return reseal(b)
}

func field(kind byte, body []byte) []byte {
	return append([]byte{kind, 0, byte(len(body)), byte(len(body) >> 8)}, body...)
}

func TestRecordRoundTrip(t *testing.T) {
	for name, s := range map[string]State{"zero": {}, "full": fullState(), "usual": state(entry(a, "1", good), entry(b, "2"))} {
		got, err := Decode(encode(t, s))
		if err != nil {
			t.Fatal(name, err)
		}
		if diff := cmp.Diff(s, got, sameState); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestRule01_UnknownFieldsSurviveAnOlderWriter(t *testing.T) {
	s := state(entry(a, "1", good), entry(b, "2"))
	more := slices.Concat(field(200, []byte("a newer writer's")), field(101, nil), field(0, []byte{1, 2, 3}))
	got, err := Decode(with(t, s, more))
	if err != nil {
		t.Fatal(err)
	}
	// Through everything that an older writer does with it.
	got, _ = Begin(got, status.Watchdog, true, available)
	got = Note(got, b, offerOf("3"), available)
	got = Installed(got, b, sealOf("3"), available)
	got = Decide(got, Facts{}, available).State
	if got, err = Good(got, b, secure); err != nil {
		t.Fatal(err)
	}
	if raw := encode(t, got); !bytes.Contains(raw, more) {
		t.Error("unknown fields are lost")
	}
}

// An older writer keeps the events with times as a field that it does not know, and writes its own without.
func TestEventsOfAnOlderWriter(t *testing.T) {
	timed := fullState().Events
	var old []byte
	for i := range 5 {
		old = append(old, byte(100+i), 0, 0, 0, byte(status.EventGood), 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	}
	got, err := Decode(with(t, State{Events: timed}, field(fieldEvents, old)))
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(timed[5:])
	for i := range 5 {
		want = append(want, Event{Boot: uint32(100 + i), Kind: status.EventGood, Slot: 1, Manifest: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}})
	}
	if diff := cmp.Diff(want, got.Events); diff != "" {
		t.Error(diff)
	}
}

func TestStamp(t *testing.T) {
	s := State{Boot: 7, Floors: Floors{Time: 1000}, Events: []Event{{Boot: 6}, {Boot: 7, Time: 5}, {Boot: 7}}}
	for _, tt := range []struct{ now, want int64 }{{0, 0}, {-62135596800, 0}, {1000, 0}, {1001, 1001}, {1<<32 - 1, 1<<32 - 1}, {1 << 32, 0}} {
		got := Stamp(s, time.Unix(tt.now, 0))
		want := []Event{{Boot: 6}, {Boot: 7, Time: 5}, {Boot: 7, Time: uint32(tt.want)}}
		if diff := cmp.Diff(want, got.Events); diff != "" {
			t.Errorf("clock at %d:\n%s", tt.now, diff)
		}
		if s.Events[2].Time != 0 {
			t.Fatal("Stamp changed what it was given")
		}
	}
	// Ordinary boots in a row share a place; the time is that of the last.
	s, _ = Begin(state(entry(a, "1", good)), status.None, false, available)
	s = Stamp(Decide(s, Facts{}, available).State, time.Unix(50, 0))
	s, _ = Begin(s, status.None, false, available)
	s = Stamp(Decide(s, Facts{}, available).State, time.Unix(60, 0))
	if n := len(s.Events) - 1; s.Events[n].Boot != 2 || s.Events[n].Time != 60 {
		t.Errorf("%+v", s.Events)
	}
}

// A newer writer that took what was free must not keep this one from writing: the oldest events go.
func TestRule01_UnknownFieldsBeforeHistory(t *testing.T) {
	small := fullState()
	small.Events = nil
	free := RecordSize - len(bytes.TrimRight(encode(t, small), "\x00"))
	body := bytes.Repeat([]byte{7}, free-fieldHeader-100)
	s, err := Decode(with(t, small, field(99, body)))
	if err != nil {
		t.Fatal(err)
	}
	s.Events = fullState().Events
	got, err := Decode(encode(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.unknown, field(99, body)) {
		t.Error("unknown fields are lost")
	}
	if n := len(got.Events); n == 0 || n > 7 || got.Events[n-1] != s.Events[MaxEvents-1] {
		t.Errorf("%d events are left: %+v", n, got.Events)
	}
	if len(s.Events) != MaxEvents {
		t.Error("Encode changed the State")
	}
}

func TestRule04_NewerFormatIsRefused(t *testing.T) {
	for format, want := range map[uint16]error{0: ErrRecord, 1: nil, 2: ErrNewer, 65535: ErrNewer} {
		b := encode(t, State{Boot: 1})
		binary.LittleEndian.PutUint16(b[8:], format)
		if _, err := Decode(reseal(b)); !errors.Is(err, want) {
			t.Errorf("format %d: %v", format, err)
		}
	}
	// Torn, it is no record of any format.
	b := encode(t, State{})
	b[8] = 9
	if _, err := Decode(b); !errors.Is(err, ErrRecord) {
		t.Errorf("torn: %v", err)
	}
}

func TestRecordTornIsRejected(t *testing.T) {
	old, next := encode(t, fullState()), encode(t, func() State {
		s := fullState()
		s.Sequence, s.Boot = 5, 5
		for i := range s.Events {
			s.Events[i].Boot += 7
		}
		return s
	}())
	for at := 512; at < RecordSize; at += 512 {
		for name, rest := range map[string][]byte{"old": old[at:], "zeros": make([]byte, RecordSize-at), "garbage": bytes.Repeat([]byte{0xa5}, RecordSize-at)} {
			torn := slices.Concat(next[:at], rest)
			if bytes.Equal(torn, next) || bytes.Equal(torn, old) {
				continue
			}
			if _, err := Decode(torn); !errors.Is(err, ErrRecord) {
				t.Errorf("torn at %d, then %s: %v", at, name, err)
			}
		}
	}
	for bit := range RecordSize * 8 {
		b := bytes.Clone(old)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := Decode(b); !errors.Is(err, ErrRecord) {
			t.Fatalf("bit %d flipped: %v", bit, err)
		}
	}
	for _, n := range []int{0, 1, 24, RecordSize - 1, RecordSize + 1} {
		if _, err := Decode(make([]byte, n)); !errors.Is(err, ErrRecord) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// Bytes with a right checksum that no writer made.
func TestRecordMalformed(t *testing.T) {
	raw := encode(t, State{})
	length := func(n uint16) []byte {
		b := bytes.Clone(raw)
		binary.LittleEndian.PutUint16(b[10:], n)
		return reseal(b)
	}
	slot := encode(t, state(entry(a, "1")))
	slotBody := slot[recordHeader+fieldHeader+8:] // behind the field with the boot number
	slotField := slotBody[:fieldHeader+int(binary.LittleEndian.Uint16(slotBody[2:]))]
	for name, b := range map[string][]byte{
		"length beyond the record":    length(RecordSize),
		"length that cuts a field":    length(5),
		"field longer than the rest":  with(t, State{}, []byte{50, 0, 255, 255}),
		"boot number of seven bytes":  with(t, State{}, field(fieldBoot, make([]byte, 7))),
		"boot number of nine bytes":   with(t, State{}, field(fieldBoot, make([]byte, 9))),
		"half an event":               with(t, State{}, field(fieldEvents, make([]byte, 8))),
		"49 events":                   with(t, State{}, field(fieldEvents, make([]byte, 49*16))),
		"half a timed event":          with(t, State{}, field(fieldTimed, make([]byte, 16))),
		"49 timed events":             with(t, State{}, field(fieldTimed, make([]byte, 49*eventSize))),
		"17 falls":                    with(t, State{}, field(fieldFalls, make([]byte, 17*42))),
		"9 guards":                    with(t, State{}, field(fieldGuards, make([]byte, 9*18))),
		"the same slot twice":         with(t, state(entry(a, "1")), slotField),
		"name of a slot of 25 bytes":  with(t, State{}, field(fieldWish, append([]byte{25}, make([]byte, 25)...))),
		"name longer than its field":  with(t, State{}, field(fieldWish, []byte{9, 'x'})),
		"what is staged, of no size":  with(t, State{}, field(fieldStaged, make([]byte, 49))),
		"what is staged, at -1":       with(t, State{}, field(fieldStaged, append(bytes.Repeat([]byte{255}, 8), append([]byte{1}, make([]byte, 40)...)...))),
		"empty field for the install": with(t, State{}, field(fieldInstall, nil)),
	} {
		if _, err := Decode(b); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEncodeLimits(t *testing.T) {
	for name, change := range map[string]func(*State){
		"slots":   func(s *State) { s.Slots = append(s.Slots, Entry{}) },
		"falls":   func(s *State) { s.Falls = append(s.Falls, Fall{}) },
		"guards":  func(s *State) { s.Guards = append(s.Guards, Guard{}) },
		"events":  func(s *State) { s.Events = append(s.Events, Event{}) },
		"name":    func(s *State) { s.Slots[0].Slot += "x" },
		"names":   func(s *State) { s.Names = append(s.Names, Name{}) },
		"version": func(s *State) { s.Slots[0].Version += "x" },
		"staged":  func(s *State) { s.Staged.Version += "x" },
	} {
		s := fullState()
		change(&s)
		if _, err := s.Encode(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A slot may hold a system whose version is longer than what the record has room for: that must not end all writing.
func TestLongVersionOnASlot(t *testing.T) {
	long := sealOf(strings.Repeat("1.", 100))
	for _, s := range []State{
		Rebuild(seals(long, sealOf("1")), available),
		Factory(seals(long, sealOf("1")), available),
		first(Absorb(state(entry(b, "1")), Facts{Seals: seals(long, sealOf("1"))}, available)),
	} {
		if _, err := s.Encode(); err != nil {
			t.Error(err)
		}
	}
}

func first(s State, _, _ []string) State { return s }

func FuzzRecord(f *testing.F) {
	for _, s := range []State{{}, fullState(), state(entry(a, "1", good), entry(b, "2")), Rebuild(seals(sealOf("1"), sealOf("2")), available)} {
		f.Add(encode(f, s)[:])
	}
	f.Add(with(f, state(entry(a, "1")), slices.Concat(field(200, []byte("new")), field(0, nil))))
	f.Add(with(f, State{}, []byte{50, 0, 255, 255}))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Shorter inputs are filled up and all get their checksum: it would keep the fuzzer out.
		rec := make([]byte, RecordSize)
		copy(rec, b)
		copy(rec, recordMagic)
		s, err := Decode(reseal(rec))
		if err != nil {
			if !errors.Is(err, ErrRecord) && !errors.Is(err, ErrNewer) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		again, err := s.Encode()
		if err != nil {
			t.Fatalf("accepted, but not written: %v", err)
		}
		got, err := Decode(again)
		if err != nil {
			t.Fatalf("written, but not read: %v", err)
		}
		got.Events = slices.Clone(s.Events[len(s.Events)-len(got.Events):]) // the oldest may have had to go
		kept := bytes.Equal(s.unknown, got.unknown) || len(s.unknown) > RecordSize/2 && len(got.unknown) == 0
		if diff := cmp.Diff(s.Slots, got.Slots, sameState); diff != "" || !kept || s.Floors != got.Floors {
			t.Fatal(diff)
		}
		// Whatever the record says, a boot comes to a decision.
		next, _ := Begin(s, status.Watchdog, true, available)
		facts := Facts{Seals: seals(right(sealOf("1")), Seal{Status: SealMissing})}
		if d := Decide(next, facts, available); d.Action != Boot && d.Action != GoRescue {
			t.Fatalf("%+v", d)
		}
	})
}
