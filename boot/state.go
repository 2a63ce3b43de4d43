// Package boot decides which slot a device boots. State is the one durable record, Decide and its neighbours are pure
// functions from a State and what was seen to the State that has to be made durable before anything is done; a Store
// makes it so. The rules that they follow are numbered in docs/boot-rules.md; comments here say (rule N).
package boot

import (
	"encoding/hex"
	"math"
	"slices"
	"time"

	"lifeboat/config"
	"lifeboat/status"
	"lifeboat/version"
)

// Hash is a manifest hash: the SHA-256 of the signed manifest, a bundle's identity. Zero means none.
type Hash [32]byte

func (h Hash) String() string {
	if h == (Hash{}) {
		return ""
	}
	return hex.EncodeToString(h[:])
}

// State is everything that is remembered from one boot to the next (rule 1). The zero State is that of a device
// whose slots were never looked at. A State is a value: functions return a changed copy and never write to what
// they were given (Clone).
type State struct {
	Sequence uint64  // of the record that it was read from; Store.Commit raises it
	Boot     uint64  // boots counted so far
	Slots    []Entry // in the order in which they are tried
	Install  Install // noted beside the target's entry while it is under way
	Staged   Staged
	Floors   Floors
	Trust    Trust
	Falls    []Fall  // bundles that fell back, newest last
	Guards   []Guard // bundles and sticks that ended their worker or the boot
	Mark     Mark    // what from outside this boot is about to look at
	Cuts     uint8   // boots in a row that ended between mark and commit
	Wish     string  // slot to be booted once
	Rescue   Rescue
	Last     Last   // what the last boot started
	Unproven bool   // both records were lost and no slot has said good since (rule 19)
	Told     Vars   // what stood in the boot loader's place when this record was made
	Turn     string // slot that the boot loader was asked to start for its turn in rescue
	Asked    uint8  // restarts in a row for a slot that the boot loader did not start
	Names    []Name // the configured boot slots in their order, for who reads the record without the configuration
	Events   []Event
	pending  string // slot that the boot loader has counted in this boot, and the record has not yet
	unknown  []byte // fields of a newer writer, kept as they are
}

// Entry speaks about one slot and one manifest in it.
type Entry struct {
	Slot     string // "rootfs.0"
	Manifest Hash
	Version  string // at most MaxVersion bytes
	Epoch    uint32
	Created  int64         // seconds since 1970, from the signed manifest; 0: not said
	Local    bool          // the root hash is not signed: authentic at install only
	Good     bool          // said good with this manifest, ever
	Excluded bool          // another slot said good under fallback=secure
	Tries    uint8         // left
	Ends     uint8         // tries of this round that ended with evidence against the system
	EndedSo  bool          // the last one did
	LastEnd  status.Reason // the evidence, of the last try that left some
	Back     uint8         // tries of this round that were given back after a power loss
	Reason   status.Reason // why it is not booted; None: nothing against it
	Booted   uint64        // boot number at which it was last started, 0: never
}

// Empty reports whether the entry vouches for nothing.
func (e Entry) Empty() bool { return e.Manifest == Hash{} }

// Install is an install that is under way.
type Install struct {
	Target   string // slot, "" while none is under way
	Manifest Hash
}

// Floors only rise, and only by Good (rule 17).
type Floors struct {
	Version string
	Epoch   uint32
	Time    int64 // seconds since 1970, from signed sources only
}

// Admit reports whether a system of that version and epoch may be installed or booted.
func (f Floors) Admit(v string, epoch uint32) bool {
	return epoch >= f.Epoch && version.Compare(v, f.Version) >= 0
}

// Fall remembers a bundle whose trial ran out (rule 13).
type Fall struct {
	Manifest Hash
	Evidence status.Reason // None: power cuts and orderly reboots only
	Rounds   uint8         // how often its tries ran out
	Next     uint64        // boot number from which it may be tried again; unused with evidence
}

// Guard counts what a bundle or a stick ended (rule 15).
type Guard struct {
	ID          [8]byte // first bytes of a manifest hash, or of a stick's identity
	Seen        uint8   // ends that PID 1 saw: panic, memory, deadline, bad answer
	Unexplained uint8   // boots that ended while it was used
	Next        uint64  // boot number from which it is looked at again
}

// Mark says what from outside the boot that wrote it was about to look at.
type Mark uint8

const (
	MarkNone   Mark = iota
	MarkUSB         // USB modules and sticks
	MarkRescue      // a stick in rescue
	MarkStaged      // what is staged
	MarkRepair      // slots, whole, for a repair
)

// Rescue is where rescue stands (rule 18).
type Rescue struct {
	Slot  string // last slot that was retried
	Waits uint8  // how often the wait has doubled
	Stick bool   // the last turn was a stick's; the next is a slot's
}

// Last is the system that was started last and has not been accounted for. No slot: none.
type Last struct {
	Slot    string
	Trial   bool
	Orderly bool // it said that it goes down in order
}

// end says how it ended. found is what hardware and kernel know. A watchdog may be the way in which a machine restarts, so
// that what the system said of its end counts for more; a panic on the way down is a panic.
func (l Last) end(found status.Reason) status.Reason {
	switch {
	case l.Orderly && found != status.Panic:
		return status.Reboot
	case found == status.None:
		return status.PowerLoss
	}
	return found
}

// Name is a slot's name and its bootname: "rootfs.0", "A".
type Name struct{ Slot, Bootname string }

// Event is one line of history. 20 bytes in the record.
type Event struct {
	Boot     uint32
	Time     uint32 // seconds since 1970 by the device's clock (Stamp), 0: not known. Nothing is decided by it
	Kind     status.Kind
	Slot     uint8 // ordinal of the slot among Policy.Slots, NoSlot: none
	Reason   status.Reason
	Code     uint8 // of a refusal
	Manifest [8]byte
}

// NoSlot is the ordinal of no slot.
const NoSlot = 255

const (
	MaxVersion = 64 // bytes of a version
	MaxSlot    = 24 // bytes of a slot's name, and of a bootname
	MaxSlots   = 4
	MaxFalls   = 16
	MaxGuards  = 8
	MaxEvents  = 48
)

// Policy is what the configuration says about booting.
type Policy struct {
	Slots             []string // the bootable slots, in the order of the configuration; at most MaxSlots
	Bootnames         []string // of Slots, one each
	Attempts          uint8    // tries of a system that has not said good
	ConfirmedAttempts uint8    // tries of one that has
	Secure            bool     // fallback=secure
	Floors            Floors   // built in
	PowerLosses       uint8    // how many tries of a round are given back that ended in a power loss; 0: all count
	Different         bool     // a bundle is taken by itself when it is no slot's, newer or not
	Repair            bool     // a damaged slot may be copied from another
	MinVersion        string   // below it nothing is installed; what is installed is booted
	Staging           bool     // there is a place where a bundle may be staged
	Loader            bool     // a boot loader chooses the slot
	Most              uint8    // Loader.Most of that one
}

// maxPowerLosses is Policy.PowerLosses of count=failures. With three attempts a system that says nothing is left after
// eleven power losses.
const maxPowerLosses = 8

// PolicyOf returns what a configuration says. floor is the time that is built into the initramfs, seconds since 1970.
func PolicyOf(c *config.Config, floor int64) Policy {
	p := Policy{
		Attempts: uint8(c.BootAttempts), ConfirmedAttempts: uint8(c.ConfirmedAttempts),
		Secure: c.Fallback == "secure", Floors: Floors{Time: floor}, MinVersion: c.MinVersion,
		Different: c.USB.Policy == "different", Repair: c.Rescue.Repair, Staging: c.StagingDevice != "",
	}
	p.Loader = c.Bootloader != "raw"
	if c.PowerLossFree {
		p.PowerLosses = maxPowerLosses
	}
	for _, s := range c.BootSlots() {
		p.Slots = append(p.Slots, s.Name)
		p.Bootnames = append(p.Bootnames, s.Bootname)
	}
	return p
}

// Bootname returns a slot's bootname.
func (p Policy) Bootname(slot string) string {
	if i := slices.Index(p.Slots, slot); i >= 0 && i < len(p.Bootnames) {
		return p.Bootnames[i]
	}
	return ""
}

// Ordinal returns the place of a slot in the configuration, NoSlot if it has none.
func (p Policy) Ordinal(slot string) uint8 {
	if i := slices.Index(p.Slots, slot); i >= 0 {
		return uint8(i)
	}
	return NoSlot
}

// Clone returns a State that shares nothing with s.
func (s State) Clone() State {
	s.Slots = slices.Clone(s.Slots)
	s.Falls = slices.Clone(s.Falls)
	s.Guards = slices.Clone(s.Guards)
	s.Events = slices.Clone(s.Events)
	s.Names = slices.Clone(s.Names)
	s.Told.Order = slices.Clone(s.Told.Order)
	s.unknown = slices.Clone(s.unknown)
	return s
}

// Entry returns the entry of a slot; of a slot without one, an empty entry.
func (s *State) Entry(slot string) Entry {
	if i := s.index(slot); i >= 0 {
		return s.Slots[i]
	}
	return Entry{Slot: slot}
}

func (s *State) index(slot string) int {
	return slices.IndexFunc(s.Slots, func(e Entry) bool { return e.Slot == slot })
}

// set replaces a slot's entry where it stands in the order.
func (s *State) set(e Entry) {
	if i := s.index(e.Slot); i >= 0 {
		s.Slots[i] = e
		return
	}
	s.Slots = append(s.Slots, e)
}

// toFront makes a slot the first to be tried.
func (s *State) toFront(slot string) {
	for i := s.index(slot); i > 0; i-- {
		s.Slots[i], s.Slots[i-1] = s.Slots[i-1], s.Slots[i]
	}
}

// toBack makes a slot the last to be tried.
func (s *State) toBack(slot string) {
	i := s.index(slot)
	for ; i >= 0 && i < len(s.Slots)-1; i++ {
		s.Slots[i], s.Slots[i+1] = s.Slots[i+1], s.Slots[i]
	}
}

// sortEntries leaves equals as they stood. There are few: package slices would be 5 KB in /init.
func sortEntries(list []Entry, order func(a, b Entry) int) {
	for i := range list {
		for ; i > 0 && order(list[i], list[i-1]) < 0; i-- {
			list[i], list[i-1] = list[i-1], list[i]
		}
	}
}

// arrange gives every configured slot an entry and drops entries of slots that are configured no more.
func (s *State) arrange(p Policy) {
	s.Slots = slices.DeleteFunc(s.Slots, func(e Entry) bool { return !slices.Contains(p.Slots, e.Slot) })
	for _, slot := range p.Slots {
		if s.index(slot) < 0 {
			s.Slots = append(s.Slots, Entry{Slot: slot})
		}
	}
	s.Names = nil
	for _, slot := range p.Slots {
		s.Names = append(s.Names, Name{slot, p.Bootname(slot)})
	}
}

// floors returns the record's floors or the built-in ones, whichever are higher, each for itself.
func (s *State) floors(p Policy) Floors {
	f := s.Floors
	if version.Compare(p.Floors.Version, f.Version) > 0 {
		f.Version = p.Floors.Version
	}
	f.Epoch = max(f.Epoch, p.Floors.Epoch)
	f.Time = max(f.Time, p.Floors.Time)
	return f
}

// admits reports whether an entry's system is at or above the floors.
func (s *State) admits(e Entry, p Policy) bool { return s.floors(p).Admit(e.Version, e.Epoch) }

// Qualifies reports whether a slot may be booted by itself: sealed as far as is known, at or above the floors, tries
// left, not excluded, no reason against it.
func (s *State) Qualifies(e Entry, p Policy) bool {
	return !e.Empty() && e.Reason == status.None && e.Tries > 0 && !e.Excluded && s.admits(e, p)
}

func (s *State) log(p Policy, kind status.Kind, slot string, r status.Reason, code int, m Hash) {
	e := Event{Boot: uint32(s.Boot), Kind: kind, Slot: p.Ordinal(slot), Reason: r, Code: uint8(code)}
	copy(e.Manifest[:], m[:])
	s.Events = append(s.Events, e)
	if n := len(s.Events) - MaxEvents; n > 0 {
		s.Events = slices.Delete(s.Events, 0, n)
	}
}

// Stamp puts the time on what has happened in this boot and has none yet; whoever commits s calls it. A clock that is
// behind the floor of time says nothing: where it is set later in the same boot, the next commit knows better.
func Stamp(s State, now time.Time) State {
	t := now.Unix()
	if t <= max(s.Floors.Time, 0) || t > math.MaxUint32 {
		return s
	}
	s.Events = slices.Clone(s.Events)
	for i, e := range s.Events {
		if e.Boot == uint32(s.Boot) && e.Time == 0 {
			s.Events[i].Time = uint32(t)
		}
	}
	return s
}

// Status returns the record as boot.json and `inspect --json` show it.
func (s *State) Status(p Policy) status.State {
	f := s.floors(p)
	out := status.State{
		Sequence: s.Sequence, Boot: s.Boot, Format: Format,
		Floors: status.Floors{Version: f.Version, Epoch: f.Epoch, Time: f.Time},
		Slots:  []status.Slot{}, Events: []status.Event{},
	}
	for _, e := range s.Slots {
		v := status.Slot{
			Slot: e.Slot, Bootname: p.Bootname(e.Slot), ManifestHash: e.Manifest.String(), Version: e.Version,
			Epoch: e.Epoch, Tries: int(e.Tries), Good: e.Good, Excluded: e.Excluded, Back: int(e.Back), Reason: e.Reason.String(),
		}
		if s.Install.Target == e.Slot {
			v.Reason = status.Installing.String()
		}
		if !e.Empty() {
			v.Authenticity = Authenticity(e.Local)
		}
		out.Slots = append(out.Slots, v)
	}
	if g := s.Staged; !g.None() {
		out.Staged = &status.Staged{Version: g.Version, ManifestHash: g.Manifest.String(), Size: g.Size, Waits: s.Guarded(GuardID(g.Manifest))}
	}
	for _, e := range s.Events {
		v := status.Event{Boot: uint64(e.Boot), Time: int64(e.Time), Event: e.Kind.String(), Reason: e.Reason.String(), Code: int(e.Code)}
		if int(e.Slot) < len(p.Slots) {
			v.Slot = p.Slots[e.Slot]
		}
		if e.Manifest != ([8]byte{}) {
			v.Manifest = hex.EncodeToString(e.Manifest[:])
		}
		out.Events = append(out.Events, v)
	}
	return out
}

// Authenticity says in words what a slot's seal proves at boot.
func Authenticity(local bool) string {
	if local {
		return "at install only"
	}
	return "every boot"
}

// LoaderView is what the boot loader says of this boot.
type LoaderView struct {
	Started string // slot that the loader chose and whose kernel runs; "": the choice is ours
	Vars    *Vars  // what it would do next; nil where there is no loader, or its variables are lost or cannot be read
}

// Store keeps a State where it survives a power cut.
type Store interface {
	// Load returns the newest valid State. ErrLost: there is none. Any other error: the medium could not be read.
	Load() (State, LoaderView, error)
	// Commit makes s true by one durable write of the older copy; where s excludes a slot or raises a floor, both
	// copies are written before it returns (rule 3). It returns s with its new Sequence. After an error the State
	// of before or s is found by the next Load, never anything else.
	Commit(s State) (State, error)

	// LoadTrust returns the trust file with that SHA-256, or an error when it is not there whole.
	LoadTrust(file Hash) ([]byte, error)
	// SaveTrust makes a trust file durable and returns its SHA-256. It never writes over those that keep names; a power
	// cut before it returns leaves them as they were.
	SaveTrust(b []byte, keep Trust) (Hash, error)
	// FindTrust returns all trust files that are there whole, for when the record is lost.
	FindTrust() [][]byte

	// SaveWords keeps the end of a kernel's last words for people, in place of those that were kept before.
	SaveWords(Words) error
}

// Words are the last words of a kernel that panicked, as its log has them. Nothing is decided by them.
type Words struct {
	Boot uint64 // number of the boot that ended so
	Text []byte
}

// Stricter reports whether next forbids something that old allowed, so that losing the newest copy must not bring it
// back (rule 3).
func Stricter(old, next State) bool {
	if version.Compare(next.Floors.Version, old.Floors.Version) > 0 || next.Floors.Epoch > old.Floors.Epoch || next.Floors.Time > old.Floors.Time {
		return true
	}
	if next.Trust.File != old.Trust.File {
		return true
	}
	for _, e := range next.Slots {
		if e.Excluded && !old.Entry(e.Slot).Excluded {
			return true
		}
	}
	return false
}
