package boot

import "lifeboat/status"

// Staged is a bundle that the running system left for the next boot, on the staging partition. The zero Staged is none.
// It becomes true by one record, and is taken back by one: that of its install, of its refusal, or of `bootcount unstage`.
type Staged struct {
	Offset, Size int64 // bytes on the staging partition
	Manifest     Hash
	Version      string // for people; early boot goes by the bundle itself
}

// None reports whether nothing is staged.
func (s Staged) None() bool { return s.Size <= 0 }

// Stage records what was staged. Its bytes must be durable before.
func Stage(s State, what Staged, p Policy) State {
	s = s.Clone()
	what.Version = what.Version[:min(len(what.Version), MaxVersion)]
	s.Staged = what
	s.unguard(GuardID(what.Manifest)) // somebody asked for it anew
	s.log(p, status.EventStaged, "", status.None, 0, what.Manifest)
	return s
}

// Unstage takes back what was staged: somebody asked for it (code 0), or it is refused for ever.
func Unstage(s State, code int, p Policy) State {
	if s.Staged.None() {
		return s
	}
	s = s.Clone()
	kind := status.EventUnstaged
	if code != 0 {
		kind = status.EventRefused
	}
	s.log(p, kind, "", status.None, code, s.Staged.Manifest)
	s.unguard(GuardID(s.Staged.Manifest))
	s.Staged = Staged{}
	return s
}

// Lasting reports whether a bundle that is refused with this code will be refused again whatever happens to the device: not
// when the medium failed or the device has no keyring.
func Lasting(code int) bool { return code != 0 && code != codeKeyMissing && code != codeIO }

const (
	codeKeyMissing = 32
	codeIO         = 40
)

// isStaged reports whether a bundle is the one that is staged.
func (s *State) isStaged(m Hash) bool { return !s.Staged.None() && s.Staged.Manifest == m }

// looksStaged reports whether what is staged is looked at in this boot: when there is something, and it did not end its
// installer too often (rule 15).
func (s *State) looksStaged(p Policy) bool {
	return p.Staging && !s.Staged.None() && !s.Guarded(GuardID(s.Staged.Manifest))
}
