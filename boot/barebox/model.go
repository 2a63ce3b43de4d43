package barebox

import (
	"bytes"
	"errors"

	"lifeboat/boot"
	"lifeboat/disk"
)

// Run does to the copies what barebox does at power on with bootchooser.retry=1 and bootchooser.reset_attempts and
// reset_priorities at all-zero, and returns which slot it starts; loads says whether a slot's kernel can be loaded. The state is
// repaired from the first valid copy, or filled with defaults; a try is taken and saved before its kernel is loaded. names are
// bootchooser.targets.
func Run(area disk.Device, l Layout, names []string, loads func(name string) bool) (started string, err error) {
	b, err := New(area, l, names)
	if err != nil {
		return "", err
	}
	data, _, err := b.load()
	if errors.Is(err, boot.ErrNoVars) {
		data = bytes.Clone(l.Fresh)
	} else if err != nil {
		return "", err
	}
	if err := b.save(b.pack(data)); err != nil {
		return "", err
	}
	sum := func(which int) (n uint64) {
		for _, at := range b.at {
			n += uint64(le.Uint32(data[at[which]:]))
		}
		return n
	}
	const left, rank = 0, 1
	if sum(rank) == 0 {
		for _, at := range b.at {
			le.PutUint32(data[at[rank]:], 1)
		}
	}
	if sum(left) == 0 {
		for _, at := range b.at {
			if le.Uint32(data[at[rank]:]) > 0 {
				le.PutUint32(data[at[left]:], 3)
			}
		}
	}
	for {
		best := -1
		for i, at := range b.at {
			if le.Uint32(data[at[left]:]) > 0 && le.Uint32(data[at[rank]:]) > 0 &&
				(best < 0 || le.Uint32(data[at[rank]:]) > le.Uint32(data[b.at[best][rank]:])) {
				best = i
			}
		}
		if best < 0 {
			return "", nil
		}
		le.PutUint32(data[b.at[best][left]:], le.Uint32(data[b.at[best][left]:])-1)
		if err := b.save(b.pack(data)); err != nil {
			return "", err
		}
		if loads(names[best]) {
			return names[best], nil
		}
	}
}

// save writes the copies as barebox does: in their order, those that differ.
func (b *Loader) save(packed []byte) error {
	for i := range copies {
		p, err := b.m.read(i)
		if err != nil {
			return err
		}
		if bytes.Equal(p, packed) {
			continue
		}
		if err := b.m.write(i, packed); err != nil {
			return err
		}
	}
	return nil
}
