package boot

import (
	"fmt"
	"slices"

	"lifeboat/status"
	"lifeboat/version"
)

// Offer is a bundle that somebody holds out: what the scanner found, all of it signed.
type Offer struct {
	Manifest Hash
	Version  string
	Epoch    uint32
	Lifted   bool // signed by who may change the keyring too: the epoch may rise by any number
	Asked    bool // somebody asked for this very bundle (rule 11)
}

// Verdict says whether an offered bundle is taken.
type Verdict struct {
	Take bool
	Code int    // of a refusal (reference/trust.md section 1); 0: nothing is wrong with it, there is nothing to do
	Why  string // in words, when it is not taken
	Wait bool   // a later boot may take it

	Repair string // it is taken only to repair this slot, whose system it is
}

// Judge says whether a bundle is to be installed (rules 11, 13, 15, 19): by itself when it is newer, or, where the policy
// says so, different (but not over a trial that is newer); when it was asked for, also an older one, or one that fell back. In rescue everything at or above the
// floors is.
func Judge(s State, o Offer, rescue bool, p Policy) Verdict {
	v := verdict(s, o, rescue, p)
	if slot := s.repairs(o, p); slot != "" && !v.Take && v.Code == 0 {
		return Verdict{Take: true, Repair: slot}
	}
	return v
}

func verdict(s State, o Offer, rescue bool, p Policy) Verdict {
	f := s.floors(p)
	if !f.Admit(o.Version, o.Epoch) {
		return Verdict{Code: 28, Why: fmt.Sprintf("version %q epoch %d is below the floor: version %q epoch %d", o.Version, o.Epoch, f.Version, f.Epoch)}
	}
	if version.Compare(o.Version, p.MinVersion) < 0 {
		return Verdict{Code: 28, Why: fmt.Sprintf("version %q is below min-bundle-version=%s", o.Version, p.MinVersion)}
	}
	if limit := s.epochLimit(p); o.Epoch > limit && !o.Lifted {
		return Verdict{Code: 31, Why: fmt.Sprintf("epoch %d is more than %d above what has been good here: at most %d is taken", o.Epoch, maxEpochStep, limit)}
	}
	if len(o.Version) > MaxVersion {
		return Verdict{Code: 31, Why: fmt.Sprintf("the version has %d bytes, at most %d are allowed", len(o.Version), MaxVersion)}
	}
	if rescue {
		return Verdict{Take: true}
	}
	first := true
	for _, e := range s.Slots {
		if !s.Qualifies(e, p) {
			continue
		}
		behind := !first
		first = false
		if e.Manifest == o.Manifest {
			if s.waits(e, p) || o.Asked && behind {
				continue
			}
			return Verdict{Why: "already installed in " + e.Slot}
		}
		if newer := version.Compare(o.Version, e.Version) > 0; o.Asked || newer {
			continue
		} else if p.Different && !behind && !e.Good {
			return Verdict{Why: fmt.Sprintf("version %q in %s is on trial; what is not newer waits until that is over", e.Version, e.Slot)}
		} else if !p.Different {
			return Verdict{Why: fmt.Sprintf("version %q is not newer than %q in %s", o.Version, e.Version, e.Slot)}
		}
	}
	if o.Version == "" && !o.Asked {
		return Verdict{Why: "it has no version, so it is never chosen by itself"}
	}
	if s.Unproven {
		return Verdict{Wait: true, Why: "the state was lost; nothing is installed until a slot has said good"}
	}
	if i := slices.IndexFunc(s.Falls, func(f Fall) bool { return f.Manifest == o.Manifest }); i >= 0 && !o.Asked {
		fall := s.Falls[i]
		if fall.Evidence != status.None {
			return Verdict{Code: 31, Why: fmt.Sprintf("it fell back here (%s) and is not installed again by itself", fall.Evidence)}
		}
		if s.Boot < fall.Next {
			return Verdict{Code: 31, Wait: true, Why: fmt.Sprintf("it fell back here %d times and is tried again at boot %d", fall.Rounds, fall.Next)}
		}
	}
	if s.Guarded(GuardID(o.Manifest)) {
		return Verdict{Code: 31, Wait: true, Why: "it ended its installer too often and is tried again ever more rarely"}
	}
	return Verdict{Take: true}
}

// JudgeRunning is Judge for a bundle that somebody asks for while the system of a slot runs: one that is still on trial has
// to be confirmed first (rule 12).
func JudgeRunning(s State, o Offer, running string, p Policy) Verdict {
	if !s.Entry(running).Good {
		return Verdict{Code: 31, Why: "the system that runs is on trial: it has to be confirmed first (bootcount good)"}
	}
	return Judge(s, o, false, p)
}

// waits reports whether a system lies behind others that are older and has never been started: its install was taken for
// failed, because its seal could not be read back, and it was there all the same. It gets what an install gives it
// (rule 9).
func (s State) waits(e Entry, p Policy) bool {
	return e.Booted == 0 && !e.Good && s.Slots[0].Slot != e.Slot && s.newest(e.Slot, p)
}

// Choose judges bundles that are held out at once and picks the one that is taken, -1 for none: the newest, of
// equals the first. Where what is different is taken, the newest one against which nothing is to be said is the only one
// that counts: with it installed the others are left alone, so that bundles that stay where they are do not
// replace each other for ever.
func Choose(s State, offers []Offer, rescue bool, p Policy) (best int, verdicts []Verdict) {
	best = -1
	newest := -1 // that was not asked for
	for i, o := range offers {
		v := Judge(s, o, rescue, p)
		verdicts = append(verdicts, v)
		if p.Different && !rescue && !o.Asked && v.Code == 0 && (newest < 0 || better(o, offers[newest])) {
			newest = i
		}
	}
	for i, o := range offers {
		v := &verdicts[i]
		if v.Take && !o.Asked && newest >= 0 && better(offers[newest], o) {
			*v = Verdict{Why: fmt.Sprintf("version %q counts, the newest that is plugged in", offers[newest].Version)}
		}
		if v.Take && (best < 0 || better(o, offers[best])) {
			best = i
		}
	}
	return best, verdicts
}

func better(a, b Offer) bool { return version.Compare(a.Version, b.Version) > 0 }

// TargetChoice is where a bundle goes.
type TargetChoice struct {
	Slot    string   // "" when there is none
	Present bool     // its seal bears the offered hash already: attest it; right: give it its tries again (rule 9)
	Attest  []string // slots that have to be read whole first; then choose again
}

// Target chooses the slot that a bundle may overwrite (rules 5, 6, 9, 19). Every slot's seal must be known. running is
// the slot whose system runs, "" in early boot.
func Target(s State, f Facts, o Offer, running string, p Policy) TargetChoice {
	var may []Entry
	for _, e := range s.Slots {
		if e.Slot == running {
			continue
		}
		seal := f.Seals[e.Slot]
		if seal.Status == SealValid && seal.Manifest == o.Manifest && seal.Whole != WholeDamaged {
			if seal.Whole == WholeUnread {
				return TargetChoice{Attest: []string{e.Slot}}
			}
			return TargetChoice{Slot: e.Slot, Present: true}
		}
		may = append(may, e)
	}
	stays := func(e Entry) bool { // a system to fall back on
		return sealed(e) && s.admits(e, p) && f.Seals[e.Slot].Whole != WholeDamaged && f.Seals[e.Slot].Status == SealValid
	}
	var good []string
	for _, e := range s.Slots {
		// One that could not be read today may be read tomorrow.
		if e.Good && (stays(e) || sealed(e) && s.admits(e, p) && f.Seals[e.Slot].Status == SealUnreadable && f.Seals[e.Slot].Whole != WholeDamaged) {
			good = append(good, e.Slot)
		}
	}
	if len(good) == 1 {
		// It is kept for its own sake only if it is what it says.
		if e := s.Entry(good[0]); e.Reason == status.VerityError && f.Seals[e.Slot].Status == SealValid && f.Seals[e.Slot].Whole == WholeUnread && e.Slot != running {
			return TargetChoice{Attest: []string{e.Slot}}
		}
	}
	free := may
	if len(good) == 1 {
		free = slices.DeleteFunc(slices.Clone(may), func(e Entry) bool { return e.Slot == good[0] })
	}
	rank := func(e Entry) int { // lower is overwritten first
		switch {
		case !stays(e):
			return 0
		case !s.Qualifies(e, p):
			return 1
		}
		return 2
	}
	order := slices.Clone(free)
	slices.Reverse(order) // on a tie the one that is not booted first
	sortEntries(order, func(a, b Entry) int {
		if s.Unproven && len(good) == 0 && rank(a) > 0 && rank(b) > 0 {
			return version.Compare(b.Version, a.Version) // the newest, never the older
		}
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return version.Compare(a.Version, b.Version)
	})
	if len(order) == 0 {
		return TargetChoice{}
	}
	target := order[0]
	if target.Good {
		stay := 0
		for _, e := range s.Slots {
			if e.Slot == target.Slot || !stays(e) {
				continue
			}
			if f.Seals[e.Slot].Whole == WholeUnread {
				return TargetChoice{Attest: []string{e.Slot}}
			}
			stay++
		}
		if stay == 0 && stays(target) {
			return TargetChoice{} // the one that runs is all that stays, and is not what it says
		}
	}
	return TargetChoice{Slot: target.Slot}
}

// Note notes an install beside the target's entry, which still stands (rule 7.1). It must be durable before the old
// seal is wiped.
func Note(s State, target string, o Offer, p Policy) State {
	s = s.Clone()
	s.Install = Install{Target: target, Manifest: o.Manifest}
	s.log(p, status.EventInstall, target, status.None, 0, o.Manifest)
	return s
}

// Installed replaces the target's entry by what its new seal says, first in order (rule 7.5). A bundle that was there
// already gets its tries again (rule 9).
func Installed(s State, target string, seal Seal, p Policy) State {
	s = s.Clone()
	e := fresh(target, seal, p)
	if old := s.Entry(target); old.Manifest == seal.Manifest {
		e.Good, e.Booted = old.Good, old.Booted
		e = s.again(e, p)
	}
	s.set(e)
	s.toFront(target)
	s.Install, s.Asked = Install{}, 0
	s.unguard(GuardID(seal.Manifest))
	if s.isStaged(seal.Manifest) {
		s.Staged = Staged{}
	}
	s.log(p, status.EventInstalled, target, status.None, 0, seal.Manifest)
	return s
}

// Refuse takes back a noted install that was refused or failed (rule 10). wiped: the target's old seal is gone.
// seen: PID 1 saw its worker end badly, which counts against the bundle (rule 15); a finished refusal clears that. What was
// staged and is refused for ever is staged no more; where a medium failed it stays, and is tried ever more rarely.
func Refuse(s State, o Offer, wiped, seen bool, code int, p Policy) State {
	s = s.Clone()
	target := s.Install.Target
	if wiped && target != "" {
		s.set(Entry{Slot: target, Reason: status.SealMissing})
	}
	if s.Entry(target).Reason != status.Unreadable {
		s.Install = Install{} // else it is an older one, of which nobody knows yet how far it came
	}
	staged := s.isStaged(o.Manifest)
	if seen || staged && code == codeIO {
		s.guard(GuardID(o.Manifest), true)
	} else {
		s.unguard(GuardID(o.Manifest))
	}
	if staged && !seen && Lasting(code) {
		s.Staged = Staged{}
	}
	s.log(p, status.EventRefused, target, status.None, code, o.Manifest)
	return s
}

// Denied writes into the history that a bundle that somebody asked for was refused before anything was touched.
func Denied(s State, o Offer, code int, p Policy) State {
	s = s.Clone()
	s.log(p, status.EventRefused, "", status.None, code, o.Manifest)
	return s
}

// Suspect counts an end that PID 1 saw of the worker that looked at a stick.
func Suspect(s State, id [8]byte) State {
	s = s.Clone()
	s.guard(id, true)
	return s
}

// Clear forgets what was counted against a stick or bundle: it was read to the end.
func Clear(s State, id [8]byte) State {
	s = s.Clone()
	s.unguard(id)
	return s
}

// guardUSB stands for whatever was plugged in when a boot ended before a bundle was chosen.
var guardUSB = [8]byte{'u', 's', 'b'}

// GuardID returns the identity under which a bundle is guarded.
func GuardID(m Hash) (id [8]byte) {
	copy(id[:], m[:])
	return id
}

const (
	seenLimit        = 2
	unexplainedLimit = 8
)

// Guarded reports whether a stick or bundle is left alone in this boot (rule 15).
func (s *State) Guarded(id [8]byte) bool {
	i := slices.IndexFunc(s.Guards, func(g Guard) bool { return g.ID == id })
	return i >= 0 && s.Boot < s.Guards[i].Next
}

func (s *State) guard(id [8]byte, seen bool) {
	g := Guard{ID: id}
	if i := slices.IndexFunc(s.Guards, func(g Guard) bool { return g.ID == id }); i >= 0 {
		g = s.Guards[i]
		s.Guards = slices.Delete(s.Guards, i, i+1)
	}
	n, limit := &g.Unexplained, uint8(unexplainedLimit)
	if seen {
		n, limit = &g.Seen, seenLimit
	}
	if *n < 255 {
		*n++
	}
	if *n >= limit {
		g.Next = s.Boot + backoff(*n-limit)
		if !seen {
			// 2, 3, 5, 9, ... boots: power cuts in a row must not put a good update off for long.
			g.Next = s.Boot + 1 + 1<<min(*n-limit, 10)
		}
	}
	s.Guards = append(s.Guards, g)
	if n := len(s.Guards) - MaxGuards; n > 0 {
		s.Guards = slices.Delete(s.Guards, 0, n)
	}
}

func (s *State) unguard(id [8]byte) {
	s.Guards = slices.DeleteFunc(s.Guards, func(g Guard) bool { return g.ID == id })
}
