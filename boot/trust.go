package boot

import "math"

// Trust says which of the trust files that are stored beside the record count: signed keyrings and revocation lists that
// came after what is built into the initramfs. The record names them by their SHA-256, so that they become true, and are
// taken back, by one commit like everything else.
type Trust struct {
	File    Hash // installs are judged by it; zero: by what is built in alone
	Pending Hash // a newer keyring, on trial until a system says good; zero: none
}

// Trusted returns s with a trust file that counts at once: nothing but newer revocation lists may be new in it.
// newest is the newest date in it, seconds since 1970, and lifts the clock floor.
func Trusted(s State, file Hash, newest int64, p Policy) State {
	s = s.Clone()
	s.Trust.File = file
	s.raiseTime(newest, p)
	return s
}

// TrustOnTrial returns s with a trust file that holds a newer keyring. What it accepts may be installed; until Good the
// old one stays in force beside it, and a system that uses up its tries takes it back.
func TrustOnTrial(s State, file Hash) State {
	s = s.Clone()
	s.Trust.Pending = file
	return s
}

// settle makes the keyring on trial the one that counts.
func (t *Trust) settle() {
	if t.Pending != (Hash{}) {
		t.File, t.Pending = t.Pending, Hash{}
	}
}

// MaxTrust is the size of the largest trust file in bytes.
const MaxTrust = 1 << 20

// Caps against a signer who wants to burn what only rises (trust.md D4): how far one bundle may be above what has been
// good here, and how far one `good` moves the clock floor.
const (
	maxEpochStep = 16
	maxTimeStep  = 400 * 24 * 3600 // seconds
)

// epochLimit returns the highest epoch that is installed.
func (s State) epochLimit(p Policy) uint32 {
	top := s.floors(p).Epoch
	for _, e := range s.Slots {
		if e.Good {
			top = max(top, e.Epoch)
		}
	}
	if top > math.MaxUint32-maxEpochStep {
		return math.MaxUint32
	}
	return top + maxEpochStep
}

// raiseTime lifts the clock floor towards t, which somebody signed.
func (s *State) raiseTime(t int64, p Policy) {
	if floor := s.floors(p).Time; floor > 0 {
		t = min(t, floor+maxTimeStep)
	}
	s.Floors.Time = max(s.Floors.Time, t)
}
