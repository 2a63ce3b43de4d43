// Package status is what the running system and people are told about a boot: the reason tokens, the kinds of
// events, the console phrases and the schema of /run/lifeboat/boot.json (docs/formats.md holds all of them).
//
// Tests, health checks and fleet tools match on these words. They are only ever added to.
package status

import "fmt"

// Dir is where /init leaves what the running system needs: boot.json, system.conf and keyring.pem.
const Dir = "/run/lifeboat"

// Template is the file with the empty file system of slots that take archives, in the initramfs and in Dir.
const Template = "ext4.template"

// Key is the file in Dir with the key for integrity=hmac-sha256, which root alone can read.
const Key = "integrity.key"

// ReportFile in the root folder of a stick takes what a device has to say, if it is there.
const ReportFile = "lifeboat-report.txt"

// Reason says why a slot is not booted, how a boot ended, or why the device is in rescue. The number stands in the
// state record (one byte), the token in everything that people and programs read.
type Reason uint8

const (
	None Reason = iota
	Exhausted
	ToldBad
	SealMissing
	SealFalse
	Unreadable
	VerityError
	BelowFloor
	Installing
	Panic
	Watchdog
	TrialDeadline
	PowerLoss
	StateLost
	NoSlot
	NoDisk
	TwoDisks
	Requested
	Reboot
	reasons // one past the last
)

var reasonTokens = [reasons]string{
	"", "exhausted", "told-bad", "seal-missing", "seal-false", "unreadable", "verity-error", "below-floor",
	"installing", "panic", "watchdog", "trial-deadline", "power-loss", "state-lost", "no-slot", "no-disk",
	"two-disks", "requested", "reboot",
}

// String returns the token, "" for None, and "reason-N" for a number of a newer writer.
func (r Reason) String() string {
	if r < reasons {
		return reasonTokens[r]
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

var reasonWords = [reasons]string{
	None: "nothing stands against it", Exhausted: "it was started several times and never said that it works", ToldBad: "it said itself that it does not work",
	SealMissing: "it holds no complete system", SealFalse: "its seal is damaged, or not by whom this device trusts", Unreadable: "it cannot be read",
	VerityError: "its content is damaged", BelowFloor: "it is older than what this device may still run", Installing: "an update to it was not finished",
	Panic: "its kernel crashed", Watchdog: "it hung", TrialDeadline: "it did not say in time that it works", PowerLoss: "the power went", Reboot: "it was restarted before it said that it works",
	StateLost: "the boot state was lost", NoSlot: "no copy of the system can be started", NoDisk: "the disk was not found",
	TwoDisks: "two disks look like this device's own", Requested: "it was asked for",
}

// Words says a reason token in plain words; one that it does not know stays as it is.
func Words(token string) string {
	for r := range reasons {
		if r.String() == token {
			return reasonWords[r]
		}
	}
	return token
}

// Evidence reports whether r is evidence against a system (boot-rules 13): the system itself failed, not the power
// or the medium.
func (r Reason) Evidence() bool {
	return r == ToldBad || r == Panic || r == Watchdog || r == TrialDeadline
}

// Kind says what an event in the state record's ring is about.
type Kind uint8

const (
	EventBoot      Kind = iota + 1 // a slot was started
	EventEnd                       // the boot before this one ended; Reason says how, as far as it is known
	EventGood                      // a slot said good
	EventFallback                  // the slot before was given up; Reason says why
	EventInstall                   // an install was noted
	EventInstalled                 // an install was committed
	EventRefused                   // a bundle was refused or its install failed; Code says why
	EventRescue                    // the device went to rescue
	EventAdopted                   // a slot that the record did not know was taken in
	EventCut                       // a boot ended while something from outside was looked at
	EventStateLost                 // both copies of the record were lost
	EventStaged                    // a bundle was staged for the next boot
	EventUnstaged                  // what was staged was taken back
	EventRepair                    // a copy over a damaged slot was noted; Reason says what is wrong with it
	EventRepaired                  // it was committed
	kinds
)

var kindTokens = [kinds]string{
	"", "boot", "end", "good", "fallback", "install", "installed", "refused", "rescue", "adopted", "cut", "state-lost", "staged", "unstaged",
	"repair", "repaired",
}

// String returns the kind's token, or "event-N" for a number of a newer writer.
func (k Kind) String() string {
	if k < kinds {
		return kindTokens[k]
	}
	return fmt.Sprintf("event-%d", uint8(k))
}

// Slot is a slot's entry as boot.json, `bootcount status --json` and `lifeboat inspect --json` show it.
type Slot struct {
	Slot         string `json:"slot"`
	Bootname     string `json:"bootname"`
	ManifestHash string `json:"manifest_hash"` // 64 hex digits, "" for an empty slot
	Version      string `json:"version"`
	Epoch        uint32 `json:"epoch"`
	Tries        int    `json:"tries"` // left, after the boot that is running was counted
	Good         bool   `json:"good"`
	Excluded     bool   `json:"excluded"`
	Back         int    `json:"given_back,omitempty"`   // tries of this round that a power loss did not cost
	Reason       string `json:"reason"`                 // "" while nothing stands against the slot
	Authenticity string `json:"authenticity,omitempty"` // "every boot" or "at install only"
}

// Event is one entry of the ring of the last 48 events, oldest first.
type Event struct {
	Boot     uint64 `json:"boot"`
	Time     int64  `json:"time,omitempty"` // seconds since 1970 by the device's clock, 0: not known
	Event    string `json:"event"`
	Slot     string `json:"slot,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Code     int    `json:"code,omitempty"`
	Manifest string `json:"manifest,omitempty"` // first 16 hex digits of the manifest hash
}

// Floors are what no bundle and no slot may be below.
type Floors struct {
	Version string `json:"version"`
	Epoch   uint32 `json:"epoch"`
	Time    int64  `json:"time"` // seconds since 1970
}

// State is the state record.
type State struct {
	Sequence uint64  `json:"sequence"`
	Boot     uint64  `json:"boot"`
	Format   int     `json:"format"` // highest record format that this /init reads and writes
	Floors   Floors  `json:"floors"`
	Slots    []Slot  `json:"slots"` // in the order in which they are tried
	Events   []Event `json:"events"`
	Staged   *Staged `json:"staged,omitempty"`
}

// Staged is a bundle that waits on the staging partition for the next boot.
type Staged struct {
	Version      string `json:"version"`
	ManifestHash string `json:"manifest_hash"`
	Size         int64  `json:"size"`            // bytes
	Waits        bool   `json:"waits,omitempty"` // it ended its installer too often, and is left alone for now
}

// Booted is the slot that was started.
type Booted struct {
	Slot         string `json:"slot"`
	Bootname     string `json:"bootname"`
	Version      string `json:"version"`
	Trial        bool   `json:"trial"`
	TriesLeft    int    `json:"tries_left"`
	Authenticity string `json:"authenticity"` // "every boot" or "at install only"
	RootHash     string `json:"root_hash"`
	Device       string `json:"device"` // the slot's block device, for example "/dev/vda3"
	With         []With `json:"with,omitempty"`
}

// With is a slot that goes with the one that was started.
type With struct {
	Slot     string `json:"slot"`
	RootHash string `json:"root_hash"`
	Device   string `json:"device"` // the slot's block device
	Mapped   string `json:"mapped"` // the verified one: "/dev/mapper/lifeboat-appfs"; "" for a slot that is a file
	Mount    string `json:"mount,omitempty"`
}

// Installed is a bundle that this boot put into a slot.
type Installed struct {
	File         string `json:"file"`
	Version      string `json:"version"`
	Slot         string `json:"slot"`
	Bootname     string `json:"bootname"`
	ManifestHash string `json:"manifest_hash"`
	Unchanged    int64  `json:"unchanged,omitempty"` // bytes that did not have to be written: they were there
}

// Refused is a bundle that this boot did not take, with the code of reference/trust.md section 1.
type Refused struct {
	File string `json:"file"`
	Code int    `json:"code"`
	Text string `json:"text"`
}

// Phase is one phase of early boot and how long it took.
type Phase struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"`
}

// Worker is one confined worker that ran and the most memory it had resident.
type Worker struct {
	Role      string `json:"role"`
	MaxRSSKiB int64  `json:"maxrss_kib"`
}

// Armed is the watchdog that early boot fed and handed over.
type Armed struct {
	Device     string `json:"device"`
	Identity   string `json:"identity"`
	Timeout    int    `json:"timeout"`              // seconds
	Pretimeout int    `json:"pretimeout,omitempty"` // seconds before it
	Stops      bool   `json:"stops,omitempty"`      // at the hand-over: it protects nobody after early boot
}

// Report is the content of boot.json.
type Report struct {
	State     State       `json:"state"`
	StateDev  string      `json:"state_device"` // block device of the state partition, "" when there is none
	Booted    Booted      `json:"booted"`
	Watchdog  *Armed      `json:"watchdog,omitempty"` // nil: none
	Fallback  string      `json:"fallback,omitempty"` // reason token when this boot fell back
	Installed []Installed `json:"installed"`
	Refused   []Refused   `json:"refused"`
	Notes     []string    `json:"notes,omitempty"` // what else a person should know, one line each
	Phases    []Phase     `json:"phases"`
	Workers   []Worker    `json:"workers"`
	InitRSS   int64       `json:"init_maxrss_kib"` // PID 1's own peak
}

// The console phrases. Each is one line; the prefix "lifeboat: " is the logger's.

// SlotName is how a slot is named to people: "rootfs.0 (A)", or "appfs.0" where it is not booted itself.
func SlotName(slot, bootname string) string {
	if bootname == "" {
		return slot
	}
	return slot + " (" + bootname + ")"
}

func BootLine(boot uint64, slot, version string, trial bool, tries int) string {
	how := "confirmed"
	if trial {
		how = fmt.Sprintf("trial tries=%d", tries)
	}
	return fmt.Sprintf("boot %d slot %s version %s %s", boot, slot, version, how)
}

func FoundLine(file, version, dev string) string {
	return fmt.Sprintf("found %s version %s on %s", file, version, dev)
}

func InstallingLine(version, slot string) string { return "installing " + version + " to " + slot }

// HeldLine says that a worker had less to write: same of size bytes were there.
func HeldLine(slot string, same, size int64) string {
	return fmt.Sprintf("%s held %d of %d MiB already", slot, same>>20, size>>20)
}

func InstalledLine(version, slot string) string { return "installed " + version + " to " + slot }

func RefusedLine(code int, file, why string) string {
	return fmt.Sprintf("refused code=%02d %s: %s", code, file, why)
}

func FallbackLine(from, to string, r Reason) string {
	return fmt.Sprintf("fallback from %s to %s reason=%s", from, to, r)
}

func RepairingLine(slot, from string) string { return "repairing " + slot + " from " + from }

func RepairedLine(slot string) string { return "repaired " + slot }

// RestartLine says that the boot loader is to start another slot.
func RestartLine(to string) string { return "restarting into slot " + to }

func RescueLine(r Reason) string { return "rescue reason=" + r.String() }

// StagedFile is how a bundle is called that was staged.
const StagedFile = "staged bundle"

// FinishedLine is for who put the stick in, if there was one.
func FinishedLine(i Installed) string {
	line := "update to " + i.Version + " finished"
	if i.File != StagedFile {
		line += ", remove the stick"
	}
	return line
}

func StartingLine(init string) string { return "starting " + init }
