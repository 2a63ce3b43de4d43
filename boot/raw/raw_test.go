package raw

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/status"
)

var policy = boot.Policy{Slots: []string{"rootfs.0", "rootfs.1"}, Bootnames: []string{"A", "B"}, Attempts: 3, ConfirmedAttempts: 8}

// open loads a store on dev.
func open(t testing.TB, dev disk.Device) (*Store, boot.State, error) {
	t.Helper()
	s, err := New(dev)
	if err != nil {
		t.Fatal(err)
	}
	st, _, err := s.Load()
	return s, st, err
}

// first is a disk with one record.
func first(t *testing.T) *crash.Image {
	t.Helper()
	r := crash.Record(crash.NewImage(MinSize))
	s, st, err := open(t, r)
	if !errors.Is(err, boot.ErrLost) {
		t.Fatalf("an empty partition: %v", err)
	}
	if _, err := s.Commit(boot.Factory(nil, policy)); err != nil {
		t.Fatal(err, st)
	}
	return r.Image()
}

// Whatever a cut leaves of a commit, Load finds the State of before or the new one, never one of both: what is found is
// byte for byte a record that was to be written, and its parts lie in several sectors. Row 113 of the bad inputs.
func TestCommitIsAtomic(t *testing.T) {
	records := map[uint64][]byte{}
	res := crash.Crash(t, crash.Test{
		Name: "commits", Start: first(t),
		Update: func(r *crash.Recorder) error {
			s, st, err := open(t, r)
			for range 6 {
				if err != nil {
					return err
				}
				st, _ = boot.Begin(st, status.Watchdog, true, policy)
				for i := range boot.MaxEvents {
					e := boot.Event{Boot: uint32(st.Boot), Kind: status.EventBoot, Slot: uint8(i)}
					st.Events = append(st.Events[max(0, len(st.Events)+1-boot.MaxEvents):], e)
				}
				if st, err = s.Commit(st); err == nil {
					records[st.Sequence], _ = st.Encode()
					r.Mark(st)
				}
			}
			return err
		},
		Check: func(c crash.State) error {
			_, st, err := open(t, c.Image)
			known, ok := c.Mark.(boot.State)
			if !ok {
				known.Boot = 0
			}
			if err != nil || st.Boot < known.Boot || st.Boot > known.Boot+1 {
				return fmt.Errorf("boot %d is found after %d was answered, %v", st.Boot, known.Boot, err)
			}
			if want := records[st.Sequence]; want != nil {
				if b, err := st.Encode(); err != nil || !bytes.Equal(b, want) {
					return fmt.Errorf("record %d is found, and is not the one that was written: %v", st.Sequence, err)
				}
			}
			return nil
		},
	})
	if res.Writes != 6 || res.Flushes != 7 {
		t.Errorf("six commits are %d writes and %d flushes", res.Writes, res.Flushes)
	}
}

// A commit is ended by a reset before its flush. The disk still shows it, and only has it in its cache: the next commit
// must not write over the copy that is durable before it has made sure.
func TestCommitAfterReset(t *testing.T) {
	crash.Crash(t, crash.Test{
		Name: "commit, reset, commit", Start: first(t),
		Update: func(r *crash.Recorder) error {
			s, st, err := open(t, r)
			if err != nil {
				return err
			}
			r.Fault = func(k crash.Kind, n int, _, _ int64) error {
				if k == crash.Flush && n > 0 {
					return crash.ErrInjected
				}
				return nil
			}
			st.Boot++
			if _, err := s.Commit(st); !errors.Is(err, crash.ErrInjected) {
				return fmt.Errorf("the reset: %w", err)
			}
			r.Fault = nil
			if s, st, err = open(t, r); err != nil {
				return err
			}
			st.Boot++
			_, err = s.Commit(st)
			return err
		},
		Check: func(c crash.State) error {
			_, _, err := open(t, c.Image)
			return err
		},
	})
}

// What forbids something is in both copies before Commit returns (rule 3).
func TestStricterIsInBothCopies(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(s *boot.State)
		writes int
	}{
		{"a boot", func(s *boot.State) { s.Boot++ }, 1},
		{"version floor", func(s *boot.State) { s.Floors.Version = "2" }, 2},
		{"epoch floor", func(s *boot.State) { s.Floors.Epoch = 1 }, 2},
		{"time floor", func(s *boot.State) { s.Floors.Time = 1 }, 2},
		{"excluded", func(s *boot.State) { s.Slots[0].Excluded = true }, 2},
	} {
		r := crash.Record(first(t))
		s, st, err := open(t, r)
		if err != nil {
			t.Fatal(err)
		}
		test.change(&st)
		if st, err = s.Commit(st); err != nil {
			t.Fatal(err)
		}
		if n := r.Trace().Writes(); n != test.writes {
			t.Errorf("%s: %d writes, want %d", test.name, n, test.writes)
		}
		if _, now, err := open(t, r); err != nil || now.Sequence != st.Sequence {
			t.Errorf("%s: sequence %d is found after %d was answered, %v", test.name, now.Sequence, st.Sequence, err)
		}
	}
}

func TestCommitRefuses(t *testing.T) {
	disk := first(t)
	r := crash.Record(disk)
	s, st, err := open(t, r)
	if err != nil {
		t.Fatal(err)
	}
	other, theirs, err := open(t, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Commit(theirs); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(st); err == nil {
		t.Error("a State was committed over somebody else's")
	}
	fresh, err := New(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fresh.Commit(st); err == nil {
		t.Error("a State was committed that was never loaded")
	}
	if _, err := New(crash.NewImage(MinSize - 1)); err == nil {
		t.Error("a partition that is too small was taken")
	}
}

// One copy that cannot be read is no loss; two are an error that is not ErrLost; a newer format is left alone.
func TestLoadFaults(t *testing.T) {
	r := crash.Record(first(t))
	s, st, err := open(t, r)
	if err != nil {
		t.Fatal(err)
	}
	if st, err = s.Commit(st); err != nil {
		t.Fatal(err)
	}
	bad := map[int64]bool{0: true}
	r.Fault = func(k crash.Kind, _ int, off, _ int64) error {
		if k == crash.Read && bad[off] {
			return crash.ErrInjected
		}
		return nil
	}
	if _, _, err := open(t, r); err != nil {
		t.Errorf("one copy cannot be read: %v", err)
	}
	bad[MinSize-boot.RecordSize] = true
	if _, _, err := open(t, r); !errors.Is(err, crash.ErrInjected) || errors.Is(err, boot.ErrLost) {
		t.Errorf("no copy can be read: %v", err)
	}
	r.Fault = nil
	b, err := st.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b[8]++ // format
	clear(b[12:16])
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	if _, err := r.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(t, r); !errors.Is(err, boot.ErrNewer) {
		t.Errorf("a newer format: %v", err)
	}
	if _, err := s.Commit(st); !errors.Is(err, boot.ErrNewer) {
		t.Errorf("a newer format is written over: %v", err)
	}
}
