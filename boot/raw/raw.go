// Package raw keeps the boot state in a partition of its own and needs nothing of the boot loader. It cannot update
// the kernel and the initramfs themselves: whoever starts the kernel starts the same one for both slots.
package raw

import (
	"errors"
	"fmt"

	"lifeboat/boot"
	"lifeboat/disk"
)

// MinSize is the least size of the state partition in bytes. The two copies lie at its first and its last 4 KiB, so
// that they share no erase block: flash loses neighbours of what it was writing.
const MinSize = 8 << 20

// Store is a boot.Store on a state partition.
type Store struct {
	dev disk.Device
	// newest is what Load or Commit found or wrote last, and at which copy.
	newest boot.State
	copy   int // 0: first, 1: last
	loaded bool
	sure   bool // what was loaded is durable
}

// New returns the Store on dev. It reads nothing.
func New(dev disk.Device) (*Store, error) {
	if dev.Size() < MinSize {
		return nil, fmt.Errorf("state partition has %d bytes, it needs at least %d", dev.Size(), MinSize)
	}
	return &Store{dev: dev}, nil
}

// offset of copy 0 or 1 in bytes; both aligned to the record size.
func (s *Store) offset(n int) int64 {
	if n == 0 {
		return 0
	}
	return (s.dev.Size()/boot.RecordSize - 1) * boot.RecordSize
}

// Load returns the valid record with the highest sequence. A copy that cannot be read counts as lost while the other
// one is valid; errors wrap boot.ErrLost when both are bad, boot.ErrNewer when one is of a newer format.
func (s *Store) Load() (boot.State, boot.LoaderView, error) {
	var errs []error
	found := false
	for n := range 2 {
		b := make([]byte, boot.RecordSize)
		if _, err := s.dev.ReadAt(b, s.offset(n)); err != nil {
			errs = append(errs, fmt.Errorf("read copy %d of the state record: %w", n+1, err))
			continue
		}
		st, err := boot.Decode(b)
		if errors.Is(err, boot.ErrNewer) {
			return boot.State{}, boot.LoaderView{}, fmt.Errorf("copy %d: %w", n+1, err)
		}
		if err != nil {
			continue
		}
		if !found || st.Sequence > s.newest.Sequence {
			s.newest, s.copy, found = st, n, true
		}
	}
	s.loaded = true
	if found {
		return s.newest.Clone(), boot.LoaderView{}, nil
	}
	s.newest, s.copy = boot.State{}, 1
	if len(errs) == 2 {
		return boot.State{}, boot.LoaderView{}, errors.Join(errs...)
	}
	return boot.State{}, boot.LoaderView{}, boot.ErrLost
}

// Commit writes the older copy and flushes it, as boot.Store says. It refuses a State that was not made from the
// newest record: somebody else wrote in between, or it was never loaded. Writers that run at the same time have to lock
// besides.
func (s *Store) Commit(st boot.State) (boot.State, error) {
	if !s.loaded {
		return st, errors.New("commit of the boot state before it was loaded")
	}
	if st.Sequence != s.newest.Sequence {
		return st, fmt.Errorf("the boot state was changed by somebody else (sequence %d, expected %d)", s.newest.Sequence, st.Sequence)
	}
	for n := range 2 {
		b := make([]byte, boot.RecordSize)
		if _, err := s.dev.ReadAt(b, s.offset(n)); err != nil {
			continue // as in Load: the other copy counts
		}
		switch now, err := boot.Decode(b); {
		case errors.Is(err, boot.ErrNewer):
			return st, fmt.Errorf("copy %d: %w", n+1, err)
		case err == nil && now.Sequence > s.newest.Sequence:
			return st, fmt.Errorf("the boot state was changed by somebody else (sequence %d, expected %d)", now.Sequence, st.Sequence)
		}
	}
	if !s.sure {
		// After a reset the disk may show what it only has in its cache: the record that was loaded, or a seal that the
		// next one is to vouch for. It has to last before the other copy is written over.
		if err := s.dev.Flush(); err != nil {
			return st, fmt.Errorf("flush before the state record: %w", err)
		}
		s.sure = true
	}
	times := 1
	if boot.Stricter(s.newest, st) {
		times = 2
	}
	for range times {
		st.Sequence++
		b, err := st.Encode()
		if err != nil {
			return st, err
		}
		if _, err := s.dev.WriteAt(b, s.offset(1-s.copy)); err != nil {
			return st, fmt.Errorf("write state record: %w", err)
		}
		if err := s.dev.Flush(); err != nil {
			return st, fmt.Errorf("flush state record: %w", err)
		}
		s.copy, s.newest = 1-s.copy, st.Clone()
	}
	return st, nil
}
