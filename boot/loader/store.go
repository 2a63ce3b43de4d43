// Package loader joins the record of the boot state with what a boot loader is told. The record is the truth and is
// committed first; the loader's variables are made from it (boot.State.Vars) and written after it, only where what
// stands there differs. After a power cut between the two the next boot finds the record, and tells the loader again.
package loader

import (
	"fmt"

	"lifeboat/boot"
)

// Store is a boot.Store over the store of the record and a boot loader's own place.
type Store struct {
	boot.Store
	Loader  boot.Loader // nil: only the running system can talk to it
	Policy  boot.Policy
	Started string            // slot that the loader started in this boot, "" where that is not known, or has been heard
	Say     func(line string) // to people

	seen *boot.Vars // what stands in the loader's place; nil: nothing valid
}

// Load returns the record and what the loader says. A loader's place that cannot be read is said and costs no boot.
func (s *Store) Load() (boot.State, boot.LoaderView, error) {
	st, _, err := s.Store.Load()
	view := boot.LoaderView{Started: s.Started}
	s.seen = nil
	if s.Loader == nil {
		return st, view, err
	}
	if v, err := s.Loader.Read(); err != nil {
		s.Say("the boot loader's variables: " + err.Error())
	} else {
		s.seen = &v
		view.Vars = &v
	}
	return st, view, err
}

// Commit makes st durable, then tells the loader. Where that fails the error is a boot.ErrUntold: the record holds st, each
// later commit tells the loader again, and nobody may rely on what the loader does until then.
func (s *Store) Commit(st boot.State) (boot.State, error) {
	st.Told = boot.Vars{}
	if s.seen != nil {
		st.Told = *s.seen
	}
	next, err := s.Store.Commit(st)
	if err != nil || s.Loader == nil {
		return next, err
	}
	want := next.Vars(s.Policy)
	if s.seen != nil && s.seen.Equal(want, s.Policy.Most) {
		return next, nil
	}
	if err := s.Loader.Write(want); err != nil {
		s.seen = nil
		return next, fmt.Errorf("%w: %w", boot.ErrUntold, err)
	}
	s.seen = &want
	return next, nil
}

// Started asks a loader which slot it started; "": it does not say.
func Started(l boot.Loader) string {
	if s, ok := inner(l).(interface{ Started() string }); ok {
		return s.Started()
	}
	return ""
}

// Reboot returns the word with which the machine has to be restarted for what was written last; "": any restart will do.
func Reboot(l boot.Loader) string {
	if s, ok := inner(l).(interface{ Reboot() string }); ok {
		return s.Reboot()
	}
	return ""
}

func inner(l boot.Loader) boot.Loader {
	if g, ok := l.(guarded); ok {
		return g.Loader
	}
	return l
}

// guarded keeps PID 1 alive: what lies in a loader's place is ours, but a power cut or a hand may have made anything of it.
type guarded struct{ boot.Loader }

func (g guarded) Read() (v boot.Vars, err error) {
	defer alive(&err)
	return g.Loader.Read()
}

func (g guarded) Write(v boot.Vars) (err error) {
	defer alive(&err)
	return g.Loader.Write(v)
}

func alive(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("the boot loader's place: %v", v)
	}
}

// Dead is a loader whose place cannot be opened: nothing is known of it, and nothing can be told.
type Dead struct{ Err error }

func (d Dead) Read() (boot.Vars, error) { return boot.Vars{}, d.Err }
func (d Dead) Write(boot.Vars) error    { return d.Err }
func (d Dead) Most() uint8              { return 9 }
