package raw

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
)

// A device takes a list, then a keyring on trial, says good, takes another keyring that falls back, and two more lists.
// Whatever a cut leaves: the record names files that are there whole, and what was answered stays.
func TestTrustIsAtomic(t *testing.T) {
	file := func(i int) []byte { return bytes.Repeat([]byte{byte(i + 1), 2, 3, byte(i)}, 700+300*i) }
	must := func(st boot.State, err error) boot.State {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	res := crash.Crash(t, crash.Test{
		Name: "trust files", Start: first(t), Options: crash.Options{Random: 200, Seed: 1},
		Update: func(r *crash.Recorder) error {
			s, st, err := open(t, r)
			if err != nil {
				return err
			}
			st, err = s.Commit(boot.Installed(st, "rootfs.0", boot.Seal{Status: boot.SealValid, Manifest: boot.Hash{1}}, policy))
			for i := range 6 {
				if err != nil {
					return err
				}
				var h boot.Hash
				if h, err = s.SaveTrust(file(i), st.Trust); err != nil {
					return err
				}
				if i == 1 || i == 3 {
					st = must(s.Commit(boot.TrustOnTrial(st, h)))
					r.Mark(st.Trust)
					if i == 1 {
						next, err := boot.Good(st, "rootfs.0", policy)
						st = must(s.Commit(must(next, err)))
					} else {
						st.Trust.Pending = boot.Hash{}
						st, err = s.Commit(st)
						if err != nil {
							return err
						}
					}
				} else {
					st = must(s.Commit(boot.Trusted(st, h, 0, policy)))
				}
				r.Mark(st.Trust)
			}
			return err
		},
		Check: func(c crash.State) error {
			s, st, err := open(t, c.Image)
			if err != nil {
				return err
			}
			for _, h := range []boot.Hash{st.Trust.File, st.Trust.Pending} {
				if h == (boot.Hash{}) {
					continue
				}
				if _, err := s.LoadTrust(h); err != nil {
					return fmt.Errorf("the record names it: %w", err)
				}
			}
			if known, ok := c.Mark.(boot.Trust); ok && known.File != (boot.Hash{}) {
				if st.Trust.File == (boot.Hash{}) {
					return errors.New("what was answered is gone")
				}
			}
			return nil
		},
	})
	t.Log(res)
}

func TestTrustAreas(t *testing.T) {
	dev := disk.NewMemory(MinSize)
	s, _, _ := open(t, dev)
	a, errA := s.SaveTrust([]byte("a"), boot.Trust{})
	b, errB := s.SaveTrust([]byte("b"), boot.Trust{File: a})
	c, errC := s.SaveTrust([]byte("c"), boot.Trust{File: a, Pending: b})
	if err := errors.Join(errA, errB, errC); err != nil {
		t.Fatal(err)
	}
	if n := len(s.FindTrust()); n != 3 {
		t.Errorf("%d trust files are found, want 3", n)
	}
	for h, want := range map[boot.Hash]string{a: "a", b: "b", c: "c"} {
		if got, err := s.LoadTrust(h); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
	if again, err := s.SaveTrust([]byte("c"), boot.Trust{File: a, Pending: b}); err != nil || again != c {
		t.Errorf("%v", err)
	}
	// A byte that decays takes the file away, and no other.
	for n := range trustAreas {
		if raw, h := s.area(n); raw != nil && h == b {
			if _, err := dev.WriteAt([]byte{'x'}, int64(TrustStart+n*trustSize+trustHeader)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.LoadTrust(b); err == nil || len(s.FindTrust()) != 2 {
		t.Errorf("a decayed trust file is found: %v", err)
	}
	for _, bad := range [][]byte{nil, make([]byte, boot.MaxTrust+1)} {
		if _, err := s.SaveTrust(bad, boot.Trust{}); err == nil {
			t.Errorf("%d bytes are saved", len(bad))
		}
	}
	big := make([]byte, boot.MaxTrust)
	if h, err := s.SaveTrust(big, boot.Trust{File: a}); err != nil {
		t.Error(err)
	} else if got, err := s.LoadTrust(h); err != nil || !bytes.Equal(got, big) {
		t.Error(err)
	}
}
