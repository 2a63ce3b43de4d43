package update

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/boot"
	"lifeboat/config"
	"lifeboat/slots"
	"lifeboat/status"
)

// frames are answers as workers give them.
var frames = []struct {
	kind byte
	body []byte
}{
	{frameFound, Found{Offset: 1 << 20, Size: 2 << 20, Path: "updates/a.raucb", Offer: boot.Offer{Manifest: boot.Hash{1}, Version: "2.0", Epoch: 3}, Loaders: 5, Trees: 1}.encode()},
	{frameRefused, Refusal{Path: "b.raucb", Code: 21, Text: "no", Hint: "do this"}.encode()},
	{frameError, Refusal{Code: 40, Text: "cannot be read"}.encode()},
	{frameFacts, attested{Seal: boot.Seal{Status: boot.SealValid, Whole: boot.WholeRight}, Facts: slots.Facts{Manifest: [32]byte{1}, Version: "1", DataBlocks: 16, Salt: []byte{1, 2}, Signed: true, FS: "squashfs", Integrity: "none"}}.encode()},
	{frameReport, place{1 << 20, 2 << 20, "LIFEBOAT-REPORT.TXT"}.encode()},
	{frameSeal, []byte("a part of a seal")},
	{frameTrust, []byte("a part of a trust file")},
	{frameKeys, keys{1, 2, 3}.encode()},
	{frameProgress, make([]byte, 16)},
	{frameDone, make([]byte, 32)},
	{frameDone, append(make([]byte, 40), 1, 0, 0, 0, 0, 0, 0, 0)},
	{frameDone, nil},
}

// FuzzAnswer gives PID 1 any frames at all: a worker that was taken over says what it likes. Nothing it says may end PID 1,
// reach a console as control characters, or take more than a bundle's worth of memory.
func FuzzAnswer(f *testing.F) {
	for _, a := range frames {
		for _, b := range frames {
			f.Add(a.kind, a.body, b.kind, b.body)
		}
	}
	f.Add(byte(frameError), frames[2].body, byte(frameDone), append(make([]byte, 40), bytes.Repeat([]byte{0x91}, 8)...))
	f.Fuzz(func(t *testing.T, kind1 byte, body1 []byte, kind2 byte, body2 []byte) {
		a := &answer{}
		err := a.take(kind1, body1, func(done, total int64) {
			if done < 0 || done > total {
				t.Errorf("progress %d of %d", done, total)
			}
		})
		if err == nil {
			_ = a.take(kind2, body2, nil)
		}
		var said []string
		for _, f := range a.found {
			said = append(said, f.Path, f.Offer.Version)
			if f.Offset < 0 || f.Size < 0 {
				t.Errorf("found at %d, %d bytes", f.Offset, f.Size)
			}
		}
		for _, r := range a.refused {
			said = append(said, r.Path, r.Text, r.Hint)
			if r.Code == 0 {
				t.Error("a refusal without a code")
			}
		}
		if a.attested != nil {
			said = append(said, a.attested.Facts.Version, a.attested.Facts.FS)
			if s := a.attested.Seal; s.Status == boot.SealUnknown || s.Status > boot.SealUnreadable || s.Whole > boot.WholeDamaged {
				t.Errorf("a seal of status %d, whole %d", s.Status, s.Whole)
			}
		}
		for _, s := range said {
			if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e }) {
				t.Errorf("%q would reach a console", s)
			}
		}
		if a.same < 0 || a.same > a.size {
			t.Errorf("%d of %d bytes were there", a.same, a.size)
		}
		if len(a.seal) > slots.SealSize || len(a.found) > maxAnswers || len(a.refused) > maxAnswers {
			t.Error("an answer without bounds")
		}
	})
}

// FuzzJob: a job that decodes is the one that was encoded.
func FuzzJob(f *testing.F) {
	j := &job{Trust: Trust{Keyring: []byte("PEM"), Compatible: "c", Purpose: "codesign", Stored: []byte("s"), Pending: []byte("p"), Role: "release", Serial: "4711", RequireCRL: true, Formats: []string{"verity"}, RequireSigned: true, Floor: 7}, Class: "rootfs", Parts: []part{{"rootfs", 9, nil}, {"appfs", 10, &config.Tree{Integrity: "none", Setuid: true}}}, Rate: 4, SkipOver: 5, Lone: true, Offset: 1, Size: 2, Path: "a.raucb", Manifest: boot.Hash{1}, Seal: []byte{1}, Candidate: []byte("c"), Files: []string{"*.raucb", "a/*.b"}, Require: "key"}
	f.Add(j.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := decodeJob(b)
		if err != nil {
			return
		}
		again, err := decodeJob(j.encode())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(j, again); d != "" {
			t.Error(d)
		}
	})
}

func TestAnswers(t *testing.T) {
	var got Found
	want := Found{Offset: 5, Size: 6, Path: "ü.raucb", Offer: boot.Offer{Manifest: boot.Hash{7}, Version: "1~rc1", Epoch: 2}, Loaders: 3, Trees: 2}
	if got, _ = decodeFound(want.encode()); got != want {
		t.Errorf("%+v became %+v", want, got)
	}
	for i, f := range frames {
		if f.kind == frameSeal || f.kind == frameTrust || f.kind == frameDone {
			continue
		}
		for n := range f.body {
			if err := (&answer{}).take(f.kind, f.body[:n], nil); err == nil {
				t.Errorf("frame %d cut to %d bytes is taken", i, n)
			}
		}
		if err := (&answer{}).take(f.kind, append(bytes.Clone(f.body), 0), nil); err == nil {
			t.Errorf("frame %d with a byte more is taken", i)
		}
	}
	a := &answer{done: true}
	if err := a.take(frameProgress, make([]byte, 16), nil); err == nil {
		t.Error("a frame after the last is taken")
	}
}

// crewOf is a crew whose workers answer as told.
type crewOf func(role string, frame func(byte, []byte) error) error

func (c crewOf) Run(_ context.Context, role string, _ []byte, _ Source, _ string, frame func(byte, []byte) error) error {
	return c(role, frame)
}

// A worker that ends badly, says nothing, or lies about what it installed is no worker that did its job.
func TestBadWorkers(t *testing.T) {
	f := Found{Path: "a.raucb", Offer: boot.Offer{Manifest: boot.Hash{1}, Version: "2"}}
	other := boot.Hash{2}
	for _, test := range []struct {
		name    string
		crew    crewOf
		refusal bool // the worker's own, which speaks of the bundle
	}{
		{"ends badly", func(string, func(byte, []byte) error) error { return errors.New("killed") }, false},
		{"says nothing", func(string, func(byte, []byte) error) error { return nil }, false},
		{"installed another", func(_ string, frame func(byte, []byte) error) error { return frame(frameDone, other[:]) }, false},
		{"babbles", func(_ string, frame func(byte, []byte) error) error { return frame('?', nil) }, false},
		{"refuses", func(_ string, frame func(byte, []byte) error) error {
			return frame(frameError, Refusal{Code: 30, Text: "damaged"}.encode())
		}, true},
	} {
		d := &Device{Crew: test.crew, Report: &status.Report{}, Say: func(string) {}, Name: func(s string) string { return s }}
		_, err := d.bundleJob(context.Background(), RoleInstall, Source{}, f, "rootfs.1", nil)
		var r Refusal
		if err == nil || errors.As(err, &r) != test.refusal || errors.Is(err, errWorker) == test.refusal {
			t.Errorf("%s: %v", test.name, err)
		}
		if a, _ := d.attest(context.Background(), "rootfs.1", true, nil); a.Seal.Status != boot.SealUnreadable {
			t.Errorf("%s: a slot that nobody could judge is %d", test.name, a.Seal.Status)
		}
	}
}

// A worker may say for hours that it gets on, and may have said it all at once when PID 1 was busy; a flood it is not.
func TestProgressFlood(t *testing.T) {
	start := time.Unix(1, 0)
	for name, c := range map[string]struct {
		pause time.Duration
		want  bool
	}{"ten times a second": {100 * time.Millisecond, true}, "all the time": {100 * time.Microsecond, false}} {
		a, now, err := &answer{}, start, error(nil)
		for range 36000 {
			if now = now.Add(c.pause); err == nil {
				err = a.beat(now)
			}
		}
		if (err == nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
