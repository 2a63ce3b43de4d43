package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"lifeboat/disk/crash"
)

// cut is a crash image said by hand: the power goes after an entry, and of the writes since the last flush some are not
// there, or hold garbage in one sector.
type cut struct {
	Entry int     // operations of the log that were issued
	Drop  []int   // operations that did not reach the medium
	Torn  []int64 // offsets in bytes of sectors that hold garbage
}

// state makes the crash image of a cut.
func (r *recording) state(c cut) (crash.State, error) {
	if c.Entry < 0 || c.Entry > len(r.Trace.Ops) {
		return crash.State{}, fmt.Errorf("entry %d: the log has %d", c.Entry, len(r.Trace.Ops))
	}
	s := crash.State{Op: c.Entry, Image: r.Trace.Base.Clone(), How: fmt.Sprintf("entry %d, dropped %v, torn %v", c.Entry, c.Drop, c.Torn)}
	durable := 0
	for i, op := range r.Trace.Ops[:c.Entry] {
		if op.Kind == crash.Flush {
			durable = i
			s.Epoch++
		}
	}
	for _, d := range c.Drop {
		if d < durable || d >= c.Entry {
			return s, fmt.Errorf("entry %d is not among those since the last flush, %d to %d", d, durable, c.Entry-1)
		}
	}
	for i, op := range r.Trace.Ops[:c.Entry] {
		switch {
		case op.Kind == crash.Mark:
			s.Mark = op.Mark
		case slices.Contains(c.Drop, i):
		case op.Kind == crash.Write:
			if _, err := s.Image.WriteAt(op.Data, op.Off); err != nil {
				return s, err
			}
		case op.Kind == crash.Discard:
			if _, err := s.Image.WriteAt(make([]byte, op.Len), op.Off); err != nil {
				return s, err
			}
		}
	}
	for _, off := range c.Torn {
		garbage := []byte(strings.Repeat("torn", 128))
		if _, err := s.Image.WriteAt(garbage, off/512*512); err != nil {
			return s, err
		}
	}
	return s, nil
}

// find makes the crash image with an ID again. The options must be those of the campaign that named it.
func (r *recording) find(id string, o crash.Options) (found crash.State, err error) {
	err = errors.New("no image of this log has that ID: was it recorded anew, or were --limit and --seed others?")
	r.Trace.States(o, func(s crash.State) bool {
		if stateID(r.Story.name, s) == id {
			found, err = s, nil
		}
		return err != nil
	})
	return found, err
}
