package crash

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"lifeboat/disk"
)

// twoCopies is the smallest safe writer: value n goes to copy n%2, each with its sum.
func twoCopies(d disk.Device, n byte, flush bool) error {
	b := bytes.Repeat([]byte{n}, 1024)
	if _, err := d.WriteAt(b, int64(n%2)*pageSize); err != nil || !flush {
		return err
	}
	return d.Flush()
}

// newest returns the highest value that a whole copy holds, 0 if none is whole.
func newest(d disk.Device) (n byte) {
	for i := range int64(2) {
		b := make([]byte, 1024)
		d.ReadAt(b, i*pageSize)
		if bytes.Count(b, b[:1]) == len(b) {
			n = max(n, b[0])
		}
	}
	return n
}

func copies(flush bool) Test {
	return Test{
		Name: "two copies", Start: NewImage(4 * pageSize),
		Update: func(r *Recorder) error {
			for n := byte(1); n < 6; n++ {
				if err := twoCopies(r, n, flush); err != nil {
					return err
				}
				r.Mark(n)
			}
			return nil
		},
		Check: func(s State) error {
			acknowledged, _ := s.Mark.(byte)
			if n := newest(s.Image); n < acknowledged || n > acknowledged+1 {
				return fmt.Errorf("%d is there after %d was answered", n, acknowledged)
			}
			return nil
		},
		Options: Options{Random: 50},
	}
}

func TestCrash(t *testing.T) {
	res := Crash(t, copies(true))
	if res.Writes != 5 || res.Flushes != 5 || res.Distinct < 50 || res.States < 2*res.Distinct {
		t.Errorf("%s", res)
	}
}

// A net that catches nothing is no net.
func TestCrashCatches(t *testing.T) {
	for name, c := range map[string]Test{
		"no flush": copies(false),
		"in place": func() Test {
			c := copies(true)
			c.Update = func(r *Recorder) error {
				for n := byte(1); n < 6; n++ {
					if err := twoCopies(r, 2*n, true); err != nil {
						return err
					}
					r.Mark(2 * n)
				}
				return nil
			}
			return c
		}(),
		"disk that lies": func() Test {
			c := copies(true)
			c.Lying = true
			return c
		}(),
		"neighbours": func() Test {
			c := copies(true)
			c.Collateral = 2 * pageSize
			return c
		}(),
	} {
		res, err := c.Run()
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Failures) == 0 {
			t.Errorf("%s: nothing was noticed: %s", name, res)
		}
	}
}

// Every subset of sectors of one epoch is among the states, and the sector that was written may hold anything.
func TestStates(t *testing.T) {
	r := Record(NewImage(2 * pageSize))
	r.WriteAt(bytes.Repeat([]byte{1}, 3*sectorSize), 0)
	seen := map[string]bool{}
	r.Trace().States(Options{}, func(s State) bool {
		name := ""
		for n := range int64(3) {
			b := make([]byte, sectorSize)
			s.Image.ReadAt(b, n*sectorSize)
			switch {
			case bytes.Count(b, []byte{1}) == len(b):
				name += "n"
			case bytes.Count(b, []byte{0}) == len(b):
				name += "o"
			case bytes.Count(b, []byte{1}) == len(b)/2 && b[0] == 1:
				name += "h"
			default:
				name += "g"
			}
		}
		seen[name] = true
		return true
	})
	for _, want := range []string{"ooo", "noo", "ono", "oon", "nno", "non", "onn", "nnn", "goo", "ngo", "nng", "gon", "gnn", "hoo", "nho", "nnh"} {
		if !seen[want] {
			t.Errorf("no state %s among %v", want, seen)
		}
	}
}

func TestImage(t *testing.T) {
	a := NewImage(3*pageSize + 512)
	if _, err := a.WriteAt([]byte("over the edge of a page"), pageSize-5); err != nil {
		t.Fatal(err)
	}
	h := a.Hash()
	b := a.Clone()
	if b.Hash() != h {
		t.Error("a clone has another hash")
	}
	if _, err := b.WriteAt([]byte{1}, 2*pageSize); err != nil {
		t.Fatal(err)
	}
	if b.Hash() == h || a.Hash() != h {
		t.Error("a write to the clone shows where it should not, or not where it should")
	}
	if b.masked([]Range{{2 * pageSize, pageSize}}) != h {
		t.Error("masked, the write still shows")
	}
	if _, err := b.WriteAt([]byte{0}, 2*pageSize); err != nil {
		t.Fatal(err)
	}
	if b.Hash() != h || b.flat().Hash() != h {
		t.Error("a page of zeros and none differ")
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := b.SaveFile(file); err != nil {
		t.Fatal(err)
	}
	if c, err := LoadFile(file); err != nil || c.Size() != b.Size() || c.Hash() != h {
		t.Errorf("an image that was saved and loaded is another: %v", err)
	}
	p := make([]byte, 23)
	if _, err := b.ReadAt(p, pageSize-5); err != nil || string(p) != "over the edge of a page" {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := b.WriteAt(p, b.Size()-1); !errors.Is(err, disk.ErrBounds) {
		t.Errorf("a write past the end: %v", err)
	}
}

func TestFault(t *testing.T) {
	r := Record(NewImage(pageSize))
	r.Fault = func(k Kind, n int, _, _ int64) error {
		if k == Write && n == 1 {
			return ErrInjected
		}
		return nil
	}
	for n, want := range []error{nil, ErrInjected, nil} {
		if _, err := r.WriteAt([]byte{byte(n + 1)}, 0); !errors.Is(err, want) {
			t.Errorf("write %d: %v", n, err)
		}
	}
	if r.Trace().Writes() != 2 {
		t.Error("the write that failed is part of the trace")
	}
}
