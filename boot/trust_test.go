package boot

import (
	"errors"
	"math"
	"testing"

	"lifeboat/status"
)

// A keyring on trial counts alone from the next good on, and a system that uses up its tries takes it back.
func TestTrustOnTrial(t *testing.T) {
	s := state(entry(a, "1", good), entry(b, "2"))
	s.Trust.File = hash("old")
	s = TrustOnTrial(s, hash("new"))
	if s.Trust != (Trust{hash("old"), hash("new")}) {
		t.Fatal(s.Trust)
	}
	confirmed, err := Good(s, b, available)
	if err != nil || confirmed.Trust != (Trust{File: hash("new")}) {
		t.Error(confirmed.Trust, err)
	}
	if !Stricter(s, confirmed) {
		t.Error("a new keyring is not in both copies")
	}
	again, err := Good(confirmed, b, available)
	if err != nil || again.Trust != confirmed.Trust || Stricter(confirmed, again) {
		t.Error(again.Trust, err)
	}
	r := newRig(t, available, sealOf("1"), sealOf("2"), entry(b, "2"), entry(a, "1", good))
	r.durable.Trust = s.Trust
	for range int(available.Attempts) + 1 {
		r.boot(status.None)
	}
	if r.durable.Trust != (Trust{File: hash("old")}) {
		t.Errorf("after the trial ran out: %+v", r.durable.Trust)
	}
	list := Trusted(s, hash("list"), 0, available)
	if list.Trust != (Trust{hash("list"), hash("new")}) || !Stricter(s, list) {
		t.Errorf("a newer list: %+v", list.Trust)
	}
}

// Rows 69 and 70 of the bad inputs, and D4.
func TestEpochCap(t *testing.T) {
	s := state(entry(a, "1", good), entry(b, "2"))
	s.Floors.Epoch = 3
	for i := range s.Slots {
		s.Slots[i].Epoch = 5 // A was good with it, B was not
	}
	s.Slots[1].Epoch = 9
	for _, test := range []struct {
		epoch  uint32
		lifted bool
		code   int
	}{
		{2, false, 28},
		{2, true, 28},
		{3, false, 0},
		{21, false, 0},
		{22, false, 31},
		{22, true, 0},
		{math.MaxUint32, false, 31},
		{math.MaxUint32, true, 0},
	} {
		for _, rescue := range []bool{false, true} {
			v := Judge(s, Offer{Manifest: hash("x"), Version: "3", Epoch: test.epoch, Lifted: test.lifted}, rescue, available)
			if v.Code != test.code || v.Take != (test.code == 0) {
				t.Errorf("epoch %d, lifted %v, rescue %v: %+v, want code %d", test.epoch, test.lifted, rescue, v, test.code)
			}
		}
	}
	old := available
	old.MinVersion = "3.1"
	if v := Judge(s, Offer{Version: "3", Epoch: 5}, true, old); v.Code != 28 {
		t.Errorf("below min-bundle-version: %+v", v)
	}
	s.Floors.Epoch = math.MaxUint32 - 3
	if v := Judge(s, Offer{Version: "3", Epoch: math.MaxUint32}, false, available); !v.Take {
		t.Error(v)
	}
}

// One good moves the clock floor by 400 days at most; the first one, of a device that knows no time, is believed.
func TestTimeCap(t *testing.T) {
	const day = 24 * 3600
	for _, test := range []struct{ floor, builtIn, created, want int64 }{
		{0, 0, 5000 * day, 5000 * day},
		{1000 * day, 0, 1400 * day, 1400 * day},
		{1000 * day, 0, 1401 * day, 1400 * day},
		{0, 1000 * day, 9000 * day, 1400 * day},
		{1000 * day, 0, 0, 1000 * day},
		{1000 * day, 0, math.MaxInt64, 1400 * day},
		{1000 * day, 0, math.MinInt64, 1000 * day},
	} {
		s, p := state(entry(a, "1")), available
		s.Floors.Time, p.Floors.Time, s.Slots[0].Created = test.floor, test.builtIn, test.created
		s, err := Good(s, a, p)
		if err != nil || s.Floors.Time != test.want {
			t.Errorf("%+v: %d, %v", test, s.Floors.Time/day, errors.Join(err))
		}
	}
}
