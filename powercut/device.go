// Package powercut runs a device in memory: the code of early boot and of the running system on the image of a disk, with
// real bundles and signatures, and without a kernel. After every boot an oracle says whether what happened was allowed
// (see [Laws]). With disk/crash it proves what a power cut can do, and it is the verdict on disk images that the virtual
// device recorded.
package powercut

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/boot"
	"lifeboat/boot/raw"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/update"
	"lifeboat/verify"
)

// Behaviour is what a system does once it runs.
type Behaviour uint8

const (
	Healthy Behaviour = iota // says good
	Silent                   // says nothing, and is switched off
	Leaves                   // goes down in order and says so
	Panics                   // the kernel says so, and reboots
	Hangs                    // the watchdog resets
	SaysBad                  // says bad
)

// System is what a device may boot: the image of one bundle.
type System struct {
	Version   string
	Epoch     uint32
	Behaviour Behaviour
	Size      int64    // bytes of the image, in whole blocks
	Content   [32]byte // SHA-256 of these
	With      map[string]Content
	Loaders   map[string]LoaderImage // that its bundle brings, by class
}

// LoaderImage is the image of a boot loader.
type LoaderImage struct {
	Content
	Header [32]byte // SHA-256 of its first sector
}

// Content is an image that goes with that of a system, by its class.
type Content struct {
	Size int64 // bytes, in whole blocks
	Sum  [32]byte
}

// Medium is what a stick holds.
type Medium interface {
	io.ReaderAt
	Size() int64
}

// Loose is a Medium that is pulled out while it is read.
type Loose interface {
	Medium
	Gone() bool // it is not there now
	Back() bool // somebody has time to plug something in; false: nobody does
}

// Device is one device as its configuration, its keyring and its partition table describe it. It holds nothing that a
// boot changes: the disk is given to each.
type Device struct {
	Config  *config.Config
	Keyring []byte // PEM
	// Systems by manifest hash: all that was ever signed for this device.
	Systems map[boot.Hash]System
	// Stick is plugged in at every boot; nil: none.
	Stick Medium
	// Bundles has the SHA-256 of what may be staged, by manifest hash.
	Bundles map[boot.Hash][32]byte
	// NoSource says that USB cannot be looked at; the record then has no mark.
	NoSource bool
	// Loader chooses the slot; nil: early boot does.
	Loader *Loader
	// BadWorker makes an installer end badly every time (a hostile bundle).
	BadWorker bool
	// LosesLoader says that what is written to a copy of the boot loader does not get there.
	LosesLoader bool

	policy  boot.Policy
	trust   update.Trust
	keyring *verify.Keyring
	parts   map[string]crash.Range // by slot name, and "state"
	judged  *sync.Map              // seals, and the manifest hash of those that are right
}

// Open finds the partitions of a device on the image of its disk.
func Open(c *config.Config, keyring []byte, image *crash.Image) (*Device, error) {
	k, err := verify.ParseKeyring(keyring)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	built := k.NewestNotBefore().Unix()
	d := &Device{
		Config: c, Keyring: keyring, keyring: k, judged: new(sync.Map), Systems: map[boot.Hash]System{}, policy: boot.PolicyOf(c, built), parts: map[string]crash.Range{},
		trust: update.TrustOf(c, keyring, built),
	}
	table, err := disk.Partitions(image, image.Size())
	if err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	find := func(name, device string) error {
		label, ok := config.PartLabel(device)
		if !ok {
			return fmt.Errorf("%s: device=%s: only partitions with a label can be found on an image", name, device)
		}
		for _, p := range table {
			if p.Name == label {
				d.parts[name] = crash.Range{Off: p.Start, Len: p.Size}
				return nil
			}
		}
		return fmt.Errorf("%s: the disk has no partition with the label %q", name, label)
	}
	errs := []error{find("state", c.StateDevice)}
	if c.StagingDevice != "" {
		errs = append(errs, find(stagingPart, c.StagingDevice))
	}
	if d.policy.Loader {
		errs = append(errs, find(LoaderPart, c.Loader.Device))
	}
	for _, s := range c.Loaders() {
		errs = append(errs, d.findCopies(s, find))
	}
	for _, s := range c.BootSlots() {
		errs = append(errs, find(s.Name, s.Device))
		for _, with := range c.Group(s.Name) {
			errs = append(errs, find(with.Name, with.Device))
		}
	}
	return d, errors.Join(errs...)
}

// Part returns where a slot, "state" or "staging" lies on the disk.
func (d *Device) Part(name string) crash.Range { return d.parts[name] }

// Policy is what the configuration says about booting.
func (d *Device) Policy() boot.Policy { return d.policy }

func (d *Device) section(on disk.Device, name string) disk.Device {
	p := d.parts[name]
	return disk.Section(on, p.Off, p.Len)
}

// Boot is one boot of the device.
type Boot struct {
	Rescue  bool   // nothing could be started; Slot is ""
	Restart bool   // the boot loader has to start another slot; Slot is ""
	Kernel  string // slot whose kernel the boot loader started
	Slot    string
	Trial   bool
	Started update.Started
	Report  status.Report
	Lines   []string // what the console said
	Damaged []string // slots whose seal vouched for what is not there
}

// lastWords are those of every kernel that panics.
const lastWords = "Kernel panic - not syncing: it is a test"

// patience is how many waits a device is left in rescue before whoever watches goes home.
const patience = 12

// Observer is told what a device does while it does it; any of it may be nil.
type Observer struct {
	Committed func(boot.State)  // the commit was answered
	Outside   func()            // bytes from outside are about to be read
	Starts    func(slot string) // the slot is about to be opened
}

// Boot starts the device on a disk as /init does, up to the point where the system of a slot would run. end is how the
// last boot ended as far as hardware and kernel know.
func (d *Device) Boot(on disk.Device, end status.Reason, o Observer) (*Boot, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b := &Boot{}
	doors := &doors{d: d, on: on, told: o}
	clock := &clock{left: patience, end: cancel}
	u, err := d.update(doors, b)
	if err == nil && d.Loader != nil {
		err = d.starts(u, on, b)
	}
	if err != nil {
		return nil, err
	}
	u.Clock, u.RescueRetry = clock, d.Config.Rescue.Retry
	if _, ok := d.Stick.(Loose); ok {
		u.Replug = d.Config.USB.Replug
	}
	if end == status.Panic {
		u.Words = []byte(lastWords)
	}
	if !d.NoSource {
		u.Outside = &sticks{d: d, clock: clock}
		u.Waits, u.Files, u.Require = d.Config.USB.Policy == "rescue-only", d.Config.USB.Files, d.Config.USB.Require
	}
	b.Started, err = u.Boot(ctx, end)
	b.Damaged = doors.damaged
	if err != nil {
		b.Rescue = true
		return b, nil
	}
	if b.Started.Restart {
		b.Restart = true
		return b, nil
	}
	b.Slot, b.Trial = b.Started.Slot, b.Started.Trial
	return b, nil
}

// update is the sequence over the disk behind doors.
func (d *Device) update(doors *doors, b *Boot) (*update.Device, error) {
	store, err := d.store(doors.on)
	if err != nil {
		return nil, err
	}
	u := &update.Device{
		Store: &toldStore{store, doors.told.Committed}, Policy: d.policy, Trust: d.trust, Class: d.Config.BootSlots()[0].Class, Tree: d.Config.BootSlots()[0].Tree,
		Crew: doors, Slots: doors, SkipOver: d.Config.SkipOver,
		Name:     func(slot string) string { return status.SlotName(slot, d.policy.Bootname(slot)) },
		Bootname: d.policy.Bootname,
		Say:      func(line string) { b.Lines = append(b.Lines, line) },
		Report:   &b.Report,
	}
	for _, s := range d.policy.Slots {
		if n := d.parts[s].Len; u.Room == 0 || n < u.Room {
			u.Room = n
		}
	}
	u.Children = update.ChildrenOf(d.Config, func(slot string) int64 { return d.parts[slot].Len })
	u.Loaders, u.Copies = update.LoadersOf(d.Config, func(string) int64 { return 0 }), doors
	if _, ok := d.parts[stagingPart]; ok {
		u.Staging = func() (update.Source, error) {
			return update.Source{ID: [8]byte{'s', 't', 'a', 'g', 'i', 'n', 'g'}, Name: stagingPart, Path: stagingPart}, nil
		}
	}
	return u, nil
}

// stagingPart names the staging partition.
const stagingPart = "staging"

// Stage is `bootcount stage`, Unstage `bootcount unstage`.
func (d *Device) Stage(on disk.Device, bundle Medium, replace bool, each func(boot.State)) error {
	u, err := d.update(&doors{d: d, on: on, told: Observer{Committed: each}}, &Boot{})
	if err != nil {
		return err
	}
	_, err = u.Stage(context.Background(), io.NewSectionReader(bundle, 0, bundle.Size()), bundle.Size(), d.staging(on, replace))
	return err
}

func (d *Device) Unstage(on disk.Device, each func(boot.State)) error {
	u, err := d.update(&doors{d: d, on: on, told: Observer{Committed: each}}, &Boot{})
	if err != nil {
		return err
	}
	_, err = u.Unstage(d.staging(on, false))
	return err
}

func (d *Device) staging(on disk.Device, replace bool) update.Staging {
	return update.Staging{Dev: d.section(on, stagingPart), Path: stagingPart, Replace: replace}
}

// SayGood is `bootcount good` in the running system of a slot; SayBad is `bootcount bad`.
func (d *Device) SayGood(on disk.Device, slot string, each func(boot.State)) error {
	return d.change(on, each, func(s boot.State) (boot.State, error) { return boot.Good(s, slot, d.policy) })
}

func (d *Device) SayBad(on disk.Device, slot string, each func(boot.State)) error {
	return d.change(on, each, func(s boot.State) (boot.State, error) { return boot.Bad(s, slot, false, d.policy) })
}

// SayNext is `bootcount next`.
func (d *Device) SayNext(on disk.Device, slot string, each func(boot.State)) error {
	return d.change(on, each, func(s boot.State) (boot.State, error) { return boot.Next(s, slot, d.policy) })
}

// SayEnded is `bootcount ended`.
func (d *Device) SayEnded(on disk.Device, slot string, each func(boot.State)) error {
	return d.change(on, each, func(s boot.State) (boot.State, error) {
		next, changed := boot.Ended(s, slot)
		if !changed {
			return s, fmt.Errorf("slot %s is not on trial", slot)
		}
		return next, nil
	})
}

// Install is `bootcount install` of a bundle in the running system of a slot; meanwhile, where it is not nil, is what the
// rest of the system does just before the image is written and when half of it is. It returns what the console said.
func (d *Device) Install(on disk.Device, running string, bundle Medium, each func(boot.State), meanwhile func()) (lines []string, err error) {
	return d.install(context.Background(), &doors{d: d, on: on, file: bundle, meanwhile: meanwhile, told: Observer{Committed: each}}, running)
}

// Seal is `bootcount seal` of a bundle whose images somebody else has written to a slot and to what goes with it.
func (d *Device) Seal(on disk.Device, slot, running string, bundle Medium, each func(boot.State)) (lines []string, err error) {
	return d.run(&doors{d: d, on: on, file: bundle, told: Observer{Committed: each}}, func(u *update.Device, src update.Source) error {
		return u.Seal(context.Background(), src, slot, running)
	})
}

func (d *Device) install(ctx context.Context, doors *doors, running string) (lines []string, err error) {
	return d.run(doors, func(u *update.Device, src update.Source) error { return u.Install(ctx, src, running) })
}

// run does something with the bundle of doors in the running system.
func (d *Device) run(doors *doors, do func(*update.Device, update.Source) error) (lines []string, err error) {
	b := &Boot{}
	u, err := d.update(doors, b)
	if err != nil {
		return nil, err
	}
	u.Clock = &clock{}
	u.Lock = func() (func(), error) { return func() {}, nil }
	err = do(u, update.Source{Name: "bundle", Path: "bundle", Asked: true, Lone: true, Size: doors.file.Size()})
	return b.Lines, err
}

func (d *Device) change(on disk.Device, each func(boot.State), how func(boot.State) (boot.State, error)) error {
	store, err := d.store(on)
	if err != nil {
		return err
	}
	s, view, err := store.Load()
	if err != nil {
		return err
	}
	s, _ = boot.Hear(s, view, d.policy)
	if s, err = how(s); err != nil {
		return err
	}
	if _, err = (&toldStore{store, each}).Commit(s); errors.Is(err, boot.ErrUntold) {
		err = nil // it is said, and the record stands
	}
	return err
}

// State reads the record on a disk.
func (d *Device) State(on disk.Device) (boot.State, error) {
	store, err := raw.New(d.section(on, "state"))
	if err != nil {
		return boot.State{}, err
	}
	s, _, err := store.Load()
	return s, err
}

// toldStore tells of every commit that was answered.
type toldStore struct {
	boot.Store
	each func(boot.State)
}

func (s *toldStore) Commit(st boot.State) (boot.State, error) {
	next, err := s.Store.Commit(st)
	if (err == nil || errors.Is(err, boot.ErrUntold)) && s.each != nil {
		s.each(next)
	}
	return next, err
}

// clock stands still but for what is waited, and ends the boot when rescue has waited long enough.
type clock struct {
	now  time.Time
	left int
	end  func()
}

func (c *clock) Now() time.Time { return c.now }

func (c *clock) Sleep(_ context.Context, d time.Duration) {
	c.now = c.now.Add(max(d, 0))
	if c.left--; c.left <= 0 {
		c.end()
	}
}

// sticks is update.Outside: the same stick all the time.
type sticks struct {
	d     *Device
	clock *clock
}

func (s *sticks) Sources(context.Context) []update.Source {
	if l, ok := s.d.Stick.(Loose); s.d.Stick == nil || ok && l.Gone() {
		return nil
	}
	return []update.Source{{ID: [8]byte{'s', 't', 'i', 'c', 'k'}, Name: "stick", Path: "stick"}}
}

func (s *sticks) Wait(ctx context.Context, d time.Duration) bool {
	if l, ok := s.d.Stick.(Loose); ok && l.Back() {
		return true
	}
	s.clock.Sleep(ctx, d)
	return false
}

// doors is what PID 1 and its workers do to slots.
type doors struct {
	d       *Device
	on      disk.Device
	told    Observer
	damaged []string

	file      Medium                  // what is not the stick
	meanwhile func()                  // while an image is written; may be nil
	ends      func(role string) error // makes a worker end badly; may be nil
}

func (r *doors) slot(name string) disk.Device { return r.d.section(r.on, name) }

func (r *doors) Wipe(slot string) error { return slots.Wipe(r.slot(slot)) }
func (r *doors) Sync(slot string) error { return r.slot(slot).Flush() }

func (r *doors) Seal(slot string, seal []byte) error {
	b := make([]byte, slots.SealSize)
	copy(b, seal)
	return slots.WriteSeal(r.slot(slot), b)
}

// Start reads the whole image, so that it notices at once what dm-verity would notice some time.
func (r *doors) Start(slot string, f slots.Facts, with []update.Member) error {
	if r.told.Starts != nil {
		r.told.Starts(slot)
	}
	sys, ok := r.d.Systems[boot.Hash(f.Manifest)]
	ok = ok && r.d.holds(r.on, slot, sys)
	for _, m := range with {
		ok = ok && m.Facts.Manifest == f.Manifest
	}
	if !ok {
		r.damaged = append(r.damaged, slot)
		return &update.Fault{Reason: status.VerityError, Err: fmt.Errorf("slot %s: a block is not what the root hash says", slot)}
	}
	return nil
}

// holds reports whether a slot, and what goes with it, begin with the images of a system, whole.
func (d *Device) holds(on disk.Device, slot string, sys System) bool {
	h := sha256.New()
	begins := func(slot string, c Content) bool {
		h.Reset()
		_, err := io.Copy(h, io.NewSectionReader(d.section(on, slot), 0, c.Size))
		return err == nil && [32]byte(h.Sum(nil)) == c.Sum
	}
	ok := begins(slot, Content{sys.Size, sys.Content})
	for _, s := range d.Config.Group(slot) {
		ok = ok && begins(s.Name, sys.With[s.Class])
	}
	return ok
}

// members returns a boot slot and what goes with it.
func (d *Device) members(slot string) []config.Slot {
	s, _ := d.Config.SlotByName(slot)
	return append([]config.Slot{s}, d.Config.Group(slot)...)
}

var errBadWorker = errors.New("the worker was ended")

// Run is update.Crew: the workers' own code in this process.
func (r *doors) Run(ctx context.Context, role string, input []byte, src update.Source, slot string, frame func(byte, []byte) error) error {
	var m update.Media
	if src.Path != "" {
		medium := r.d.Stick
		switch {
		case src.Path == stagingPart:
			medium = r.d.section(r.on, stagingPart)
		case r.file != nil:
			medium = r.file
		}
		m.Source, m.SourceSize = medium, medium.Size()
		if r.told.Outside != nil {
			r.told.Outside()
		}
	}
	if r.ends != nil {
		if err := r.ends(role); err != nil {
			return err
		}
	}
	switch role {
	case update.RoleInstall:
		if r.d.BadWorker {
			return errBadWorker
		}
		m.Slot, m.SlotReader, m.SlotSize = r.slot(slot), r.slot(slot), r.slot(slot).Size()
		if r.meanwhile != nil {
			r.meanwhile()
			var once sync.Once
			send := frame
			frame = func(kind byte, body []byte) error {
				once.Do(r.meanwhile)
				return send(kind, body)
			}
		}
	case update.RoleLoader:
		m.Slot = r.slot(slot)
		if r.d.LosesLoader {
			m.Slot = disk.NewMemory(m.Slot.Size())
		}
	case update.RoleLoaded:
		m.SlotReader, m.SlotSize = r.slot(src.Slot), r.slot(src.Slot).Size()
		m.Copy, m.CopySize = r.slot(slot), r.slot(slot).Size()
	case update.RoleRepair:
		m.Slot, m.SlotReader, m.SlotSize = r.slot(slot), r.slot(src.Slot), r.slot(src.Slot).Size()
	case update.RoleSeal, update.RoleAttest, update.RoleCompare, update.RoleFiles:
		m.SlotReader, m.SlotSize = r.slot(slot), r.slot(slot).Size()
	}
	if role == update.RoleTree || role == update.RoleFiles {
		return r.inFolder(role, slot, func(folder string) error {
			m.Folder = folder
			return update.WorkRunning(ctx, role, input, m, frame)
		})
	}
	return update.WorkRunning(ctx, role, input, m, frame)
}

// Mask returns what no code path goes by on a disk: image and hash tree of slots without a valid seal (an installer only leaves
// what is right already), and what lies between the copies of the state record and is no trust file's and not the kernel's last words.
func (d *Device) Mask(i *crash.Image) []crash.Range {
	var mask []crash.Range
	for _, name := range d.policy.Slots {
		for _, m := range d.members(name) {
			p := d.parts[m.Name]
			if _, err := slots.ReadSeal(d.section(i, m.Name), p.Len); err != nil {
				mask = append(mask, crash.Range{Off: p.Off, Len: p.Len - slots.SealSize})
			}
		}
	}
	p := d.parts["state"]
	return append(mask, crash.Range{Off: p.Off + boot.RecordSize, Len: raw.TrustStart - boot.RecordSize},
		crash.Range{Off: p.Off + raw.TrustEnd, Len: raw.WordsAt - raw.TrustEnd},
		crash.Range{Off: p.Off + raw.WordsAt + boot.RecordSize, Len: p.Len - 2*boot.RecordSize - raw.WordsAt})
}

// allowed reports whether early boot or the running system may ever write there: the copies of the record, trust files,
// and slots; slot is the boot slot whose group it is.
func (d *Device) allowed(off, n int64) (slot string, ok bool) {
	p := d.parts["state"]
	for _, at := range []int64{p.Off, p.Off + p.Len - boot.RecordSize} {
		if off == at && n == boot.RecordSize {
			return "", true
		}
	}
	if off == p.Off+raw.WordsAt && n == boot.RecordSize || off >= p.Off+raw.TrustStart && off+n <= p.Off+raw.TrustEnd {
		return "", true
	}
	if p := d.parts[LoaderPart]; d.Loader != nil && off >= p.Off && off+n <= p.Off+p.Len {
		return "", true
	}
	for _, name := range d.policy.Slots {
		for _, m := range d.members(name) {
			if p := d.parts[m.Name]; off >= p.Off && off+n <= p.Off+p.Len {
				return name, true
			}
		}
	}
	return "", false
}

// names lists slots for a message.
func names(s boot.State) string {
	var out []string
	for _, e := range s.Slots {
		out = append(out, fmt.Sprintf("%s version %s tries %d good %t reason %q", e.Slot, e.Version, e.Tries, e.Good, e.Reason))
	}
	return strings.Join(out, "; ")
}

// sealed returns what the seal of a boot slot vouches for, if there is one and it is right, as is that of every slot that
// goes with it.
func (d *Device) sealed(on disk.Device, slot string) (m boot.Hash, ok bool) {
	for i, s := range d.members(slot) {
		h, sealed := d.seal(on, s)
		if !sealed || i > 0 && h != m {
			return boot.Hash{}, false
		}
		m = h
	}
	return m, true
}

func (d *Device) seal(on disk.Device, of config.Slot) (m boot.Hash, ok bool) {
	slot := of.Name
	section := d.section(on, slot)
	seal, err := slots.ReadSeal(section, section.Size())
	if err != nil || seal.Image != of.Class {
		return m, false
	}
	// The same signature is judged once: what is asked here after every write is never the product's own answer.
	known := string(seal.CMS) + seal.Image + string(seal.Salt) + string(seal.RootHash[:])
	if v, ok := d.judged.Load(known); ok {
		m, _ = v.(boot.Hash)
		return m, v != nil
	}
	f, err := seal.Verify(verify.Rules{Keyring: d.keyring, Purpose: d.Config.CheckPurpose, AtBoot: true, Now: time.Unix(d.trust.Floor, 0)}, d.Config.Compatible)
	if err != nil {
		d.judged.Store(known, nil)
		return m, false
	}
	d.judged.Store(known, boot.Hash(f.Manifest))
	return boot.Hash(f.Manifest), true
}

// intact is sealed, and the image is there.
func (d *Device) intact(on disk.Device, slot string) (boot.Hash, bool) {
	m, ok := d.sealed(on, slot)
	sys, known := d.Systems[m]
	return m, ok && known && d.holds(on, slot, sys)
}

// others returns the slots but one.
func (d *Device) others(slot string) []string {
	return slices.DeleteFunc(slices.Clone(d.policy.Slots), func(s string) bool { return s == slot })
}
