package staging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"lifeboat/disk"
	"lifeboat/disk/crash"
)

func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	rng.Read(b)
	return b
}

// write puts b where Place says, as a file or as a pipe of unknown length.
func write(t *testing.T, dev disk.Device, b []byte, size int64, stays Area) (Area, int64) {
	t.Helper()
	place, err := Place(dev.Size(), size, stays)
	if err != nil {
		t.Fatal(err)
	}
	kept := int64(0)
	at, err := Write(context.Background(), dev, iotest.HalfReader(bytes.NewReader(b)), size, place, stays, func(_, _, k int64) { kept = k })
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, at.Size)
	if _, err := dev.ReadAt(got, at.Offset); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("what lies at %+v is not what was written: %v", at, err)
	}
	return at, kept
}

func TestWriteAndFind(t *testing.T) {
	for _, n := range []int{1, unit - 1, unit, unit + 1, 5*unit + 77} {
		for _, size := range []int64{0, int64(n)} {
			dev := disk.NewMemory(8 << 20)
			b := content(1, n)
			at, _ := write(t, dev, b, size, Area{})
			if at != (Area{Start, int64(n)}) {
				t.Errorf("%d bytes lie at %+v", n, at)
			}
			if _, err := Find(dev, dev.Size()); !errors.Is(err, ErrNone) {
				t.Errorf("found before it was judged: %v", err)
			}
			if err := Keep(dev, at, [32]byte{7}); err != nil {
				t.Fatal(err)
			}
			if found, err := Find(dev, dev.Size()); err != nil || found != at {
				t.Errorf("found %+v, %v", found, err)
			}
			for _, test := range []struct {
				b    []byte
				same bool
			}{{b, true}, {append(bytes.Clone(b), 0), false}, {b[:n-1], false}, {content(2, n), false}} {
				if same, err := Same(context.Background(), dev, at, bytes.NewReader(test.b)); err != nil || same != test.same {
					t.Errorf("%d bytes are the same as %d: %t, %v", len(test.b), n, same, err)
				}
			}
			if err := Forget(dev, Area{}); err != nil {
				t.Fatal(err)
			}
			if _, err := Find(dev, dev.Size()); !errors.Is(err, ErrNone) {
				t.Errorf("found after it was forgotten: %v", err)
			}
		}
	}
}

// Of what an interruption left the same bundle keeps all; another one that begins alike is written from where it differs.
func TestWriteGoesOn(t *testing.T) {
	b := content(1, 40*unit+5)
	other := bytes.Clone(b)
	other[20*unit]++
	for _, cut := range []int{1, 10, 32, 39} {
		for _, size := range []int64{0, int64(len(b))} {
			dev := disk.NewMemory(64 << 20)
			place, err := Place(dev.Size(), size, Area{})
			if err != nil {
				t.Fatal(err)
			}
			broken := io.MultiReader(bytes.NewReader(b[:cut*unit]), iotest.ErrReader(errors.New("gone")))
			if _, err := Write(context.Background(), dev, broken, size, place, Area{}, nil); err == nil {
				t.Fatal("a pipe that broke is no error")
			}
			if _, kept := write(t, dev, b, size, Area{}); kept != int64(cut)*unit {
				t.Errorf("%d bytes of %d are kept", kept, cut*unit)
			}
			if _, kept := write(t, dev, other, size, Area{}); kept != 20*unit {
				t.Errorf("%d bytes are kept of another bundle that differs after %d", kept, 20*unit)
			}
		}
	}
}

// Room is a matter before the first byte, and of a pipe before anything that stays is lost.
func TestRoom(t *testing.T) {
	const size = 8 << 20
	stays := Area{Start, 2*unit + 5}
	for _, test := range []struct {
		size  int64
		stays Area
		at    Area // zero: no room
	}{
		{7 << 20, Area{}, Area{Start, 7 << 20}},
		{7<<20 + 1, Area{}, Area{}},
		{0, Area{}, Area{Start, 7 << 20}},
		{4 << 20, stays, Area{4 << 20, 4 << 20}},
		{4<<20 + 1, stays, Area{}},
		{0, stays, Area{4 << 20, 4 << 20}},
		{1, Area{6 << 20, 1}, Area{Start, 5 << 20}},
		{0, Area{3 << 20, 2 << 20}, Area{5 << 20, 3 << 20}},
		{0, Area{Start, 7 << 20}, Area{}},
	} {
		at, err := Place(size, test.size, test.stays)
		if (test.at == Area{}) != errors.Is(err, ErrRoom) || err == nil && at != test.at {
			t.Errorf("%d bytes beside %+v: %+v, %v; want %+v", test.size, test.stays, at, err, test.at)
		}
	}
	r := crash.Record(crash.NewImage(size))
	first, _ := write(t, r, content(1, 2*unit), 0, Area{})
	before := make([]byte, first.Size)
	r.ReadAt(before, first.Offset)
	place, err := Place(size, 0, first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Write(context.Background(), r, bytes.NewReader(content(2, int(place.Size)+1)), 0, place, first, nil); !errors.Is(err, ErrRoom) {
		t.Errorf("more than there is room for: %v", err)
	}
	after := make([]byte, first.Size)
	if r.ReadAt(after, first.Offset); !bytes.Equal(before, after) {
		t.Error("what stays was written over")
	}
	writes := r.Trace().Writes()
	if _, err := Write(context.Background(), r, bytes.NewReader(nil), place.Size+1, place, first, nil); !errors.Is(err, ErrRoom) || r.Trace().Writes() != writes {
		t.Errorf("a file that is too large: %v, %d writes", err, r.Trace().Writes()-writes)
	}
	for name, r := range map[string]io.Reader{"empty": bytes.NewReader(nil), "short": bytes.NewReader(make([]byte, 9)), "long": bytes.NewReader(make([]byte, 11))} {
		if _, err := Write(context.Background(), disk.NewMemory(size), r, 10, Area{Start, size - Start}, Area{}, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Whatever a cut leaves while a bundle is replaced: the one that stays is whole, and a header that says whole says the truth.
func TestWriteIsSafe(t *testing.T) {
	old, next, third := content(1, 40<<10+100), content(2, 24<<10), content(3, 24<<10)
	start := crash.Record(crash.NewImage(6 << 20))
	stays, _ := write(t, start, old, 0, Area{})
	if err := Keep(start, stays, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	holds := func(dev io.ReaderAt, at Area, want []byte) bool {
		b := make([]byte, at.Size)
		_, err := dev.ReadAt(b, at.Offset)
		return err == nil && bytes.Equal(b, want)
	}
	run := func(r *crash.Recorder) error {
		place, err := Place(r.Size(), 0, stays)
		if err != nil {
			return err
		}
		at, err := Write(context.Background(), r, bytes.NewReader(next), 0, place, stays, nil)
		if err == nil {
			r.Mark("written")
			err = Keep(r, at, [32]byte{2})
		}
		// And a third one over the first, which is not needed any more, and of which a header still says that it is whole.
		if err == nil {
			r.Mark("kept")
			_, err = Write(context.Background(), r, bytes.NewReader(third), int64(len(third)), Area{Start, int64(len(third))}, at, nil)
		}
		if err == nil {
			err = Forget(r, at)
		}
		return err
	}
	crash.Crash(t, crash.Test{
		Name: "replace", Start: start.Image(), Update: run, Options: crash.Options{Seed: 1, Random: 100, Wide: 100, Limit: 1000},
		Check: func(c crash.State) error {
			mark, _ := c.Mark.(string)
			if mark != "kept" && !holds(c.Image, stays, old) {
				return errors.New("what stays is not whole")
			}
			whole := 0
			for _, h := range read(c.Image, c.Image.Size()) {
				if !h.Whole {
					continue
				}
				whole++
				if want := map[byte][]byte{1: old, 2: next}[h.Manifest[0]]; !holds(c.Image, h.Area, want) {
					return fmt.Errorf("%+v says that it is whole", h)
				}
			}
			if whole == 0 {
				return errors.New("no header says where a whole one is")
			}
			return nil
		},
	})
}

func FuzzHeader(f *testing.F) {
	const size = 64 << 20
	for _, h := range []Header{
		{Area: Area{Start, 0}, Done: 5}, {Area: Area{Start, 10}, Done: 5}, {Area: Area{2 << 20, 10}, Done: 10, Whole: true, Manifest: [32]byte{1}},
	} {
		b := h.encode()
		if got, ok := decode(b, size); !ok || got != h {
			f.Fatalf("%+v: %+v, %t", h, got, ok)
		}
		f.Add(b[10:80], int64(size))
	}
	f.Fuzz(func(t *testing.T, fields []byte, size int64) {
		b := Header{}.encode()
		copy(b[10:80], fields)
		raw := bytes.Clone(b)
		seal(raw) // a checksum would keep the fuzzer out
		h, ok := decode(raw, size)
		if !ok {
			return
		}
		if !bytes.Equal(h.encode(), raw) {
			t.Fatalf("%+v is not what was read", h)
		}
		if h.Offset < Start || h.Size < 0 || h.Done < 0 || h.Offset+max(h.Size, h.Done) > size || h.Offset+max(h.Size, h.Done) < 0 || h.Whole && h.Size == 0 {
			t.Fatalf("%+v on %d bytes", h, size)
		}
	})
}
