package update

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"lifeboat/boot"
	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/fat"
	"lifeboat/slots"
	"lifeboat/staging"
	"lifeboat/verify"
)

// Media is what a worker may touch.
type Media struct {
	Source     io.ReaderAt // scan, check, install: the stick
	SourceSize int64       // bytes
	Stick      disk.Device // report: the stick, read-write
	Slot       disk.Device // install, repair, loader: the target, read-write
	SlotReader io.ReaderAt // install, seal, attest, compare: the slot, past every cache; repair: the one that is copied
	SlotSize   int64       // of SlotReader, bytes
	Copy       io.ReaderAt // loaded: a copy of the boot loader, past every cache
	CopySize   int64       // of it, bytes
	Folder     string      // tree, files: the top of the slot's file system; files: read-only
}

// Work does one worker's job and sends its answer. It runs in a confined process in early boot and in this one in
// tests; it reads outside bytes and holds nothing that is worth having. The returned error is for a worker that could
// not do its job at all; what it thinks of the bytes it read is part of the answer.
func Work(ctx context.Context, role string, input []byte, m Media, send func(kind byte, body []byte) error) error {
	w, err := newWorker(input, m, send)
	if err != nil {
		return err
	}
	switch role {
	case RoleScan:
		err = w.scan(ctx)
	case RoleCheck:
		err = w.check(ctx)
	case RoleInstall:
		err = w.install(ctx)
	case RoleSeal:
		err = w.attest(ctx, false)
	case RoleAttest:
		err = w.attest(ctx, true)
	case RoleRepair:
		err = w.repair(ctx)
	case RoleTrust:
		err = w.renew()
	case RoleReport:
		err = w.report()
	default:
		switch {
		case !config.Slim && (role == RoleLoader || role == RoleLoaded):
			err = w.workLoader(ctx, role)
		case !config.Slim && role == RoleTree:
			err = w.tree(ctx)
		case !config.Slim && role == RoleFiles:
			err = w.attest(ctx, true)
		default:
			return fmt.Errorf("unknown role %q", role)
		}
	}
	return w.end(err)
}

func newWorker(input []byte, m Media, send func(kind byte, body []byte) error) (*worker, error) {
	j, err := decodeJob(input)
	if err != nil {
		return nil, err
	}
	w := &worker{job: j, media: m, send: send}
	if m.Source != nil {
		w.media.Source = &beat{r: m.Source, w: w}
	}
	if m.SlotReader != nil && j.Rate > 0 {
		w.media.SlotReader = &beat{r: m.SlotReader, w: w}
	}
	if m.Slot != nil && j.Rate > 0 {
		w.media.Slot = &slowSlot{m.Slot, w}
	}
	return w, nil
}

// end says what the worker thinks of the bytes that it read.
func (w *worker) end(err error) error {
	if err == nil {
		return nil
	}
	return w.send(frameError, Refusal{Path: w.job.Path, Code: int(verify.CodeOf(err)), Text: err.Error(), Hint: verify.HintOf(err)}.encode())
}

type worker struct {
	job   *job
	media Media
	send  func(kind byte, body []byte) error

	mu          sync.Mutex
	last        time.Time // when progress was sent
	done, total int64
	due         time.Time // when all that was read and written would have been at job.Rate
}

// beat says that the worker lives while it reads a slow source.
type beat struct {
	r io.ReaderAt
	w *worker
}

func (b *beat) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.r.ReadAt(p, off)
	if err == nil {
		b.w.alive()
		b.w.pace(n)
	}
	return n, err
}

// slowSlot is a target that is written no faster than the job says.
type slowSlot struct {
	disk.Device
	w *worker
}

func (s *slowSlot) WriteAt(p []byte, off int64) (int, error) {
	n, err := s.Device.WriteAt(p, off)
	s.w.pace(n)
	return n, err
}

// pace waits until n more bytes are due at the job's rate, and says meanwhile that the worker lives.
func (w *worker) pace(n int) {
	if w.job.Rate <= 0 {
		return
	}
	w.mu.Lock()
	w.due = w.due.Add(time.Duration(float64(n) / float64(w.job.Rate) * float64(time.Second)))
	if now := time.Now(); w.due.Before(now) {
		w.due = now
	}
	due := w.due
	w.mu.Unlock()
	for left := time.Until(due); left > 0; left = time.Until(due) {
		time.Sleep(min(left, time.Second))
		w.alive()
	}
}

// progress tells PID 1 how far the work is.
func (w *worker) progress(done, total int64) {
	w.mu.Lock()
	w.done, w.total = done, total
	w.mu.Unlock()
	w.alive()
}

// alive sends the progress, ten times a second at most.
func (w *worker) alive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.Sub(w.last) >= 100*time.Millisecond {
		w.last = now
		e := &encoder{}
		e.i64(w.done)
		e.i64(w.total)
		w.send(frameProgress, e.b) // a broken pipe ends the worker at its next answer
	}
}

// options are those under which a bundle is installed. n is what is known of the keyring.
func (w *worker) options(n *news) bundle.Options {
	t := &w.job.Trust
	return bundle.Options{Rules: n.rules(t), Formats: t.Formats, Compatible: t.Compatible, Serial: t.Serial, RequireSignedVerity: t.RequireSigned}
}

// openIn opens a bundle and refuses what could not be installed anyway, before anything is touched.
func (w *worker) openIn(ctx context.Context, fs *fat.FS, name string, o bundle.Options) (*bundle.Bundle, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, verify.Refuse(verify.IO, "open %s: %w", name, err)
	}
	return w.openBundle(ctx, f, f.Size(), o)
}

func (w *worker) openBundle(ctx context.Context, r io.ReaderAt, size int64, o bundle.Options) (*bundle.Bundle, error) {
	b, err := bundle.Open(ctx, r, size, o)
	if err != nil {
		return nil, err
	}
	return b, w.fits(b.Manifest)
}

// fits refuses a bundle that does not hold exactly one image that can be installed for each class of the device.
func (w *worker) fits(m *bundle.Manifest) error {
	for n, p := range w.job.Parts {
		i, err := m.Find(p.Class)
		if err != nil && n > 0 {
			return verify.Refuse(verify.Policy, "it has no image for %s, which goes with %s on this device", p.Class, w.job.Parts[0].Class)
		}
		if err != nil {
			return err
		}
		img := &m.Images[i]
		if !config.Slim && p.Tree != nil && img.Archive() {
			continue // how large it becomes shows when it is there
		}
		if err := img.Installable(); err != nil {
			return err
		}
		if need := slots.Need(img.Size); p.Room > 0 && need > p.Room {
			return verify.Refuse(verify.Policy, "image, hash tree and seal for %s need %d bytes, the slot has %d", p.Class, need, p.Room)
		}
	}
	for i := range m.Images {
		if !config.Slim {
			if known, err := w.fitsLoader(&m.Images[i]); err != nil {
				return err
			} else if known {
				continue
			}
		}
		if key := m.Images[i].Key(); !slices.ContainsFunc(w.job.Parts, func(p part) bool { return p.Class == key }) {
			return verify.Refuse(verify.Policy, "it has an image for %s, for which this device has no slot", key)
		}
	}
	return nil
}

// open opens the bundle that the job names and makes sure that it is still the one that was chosen.
func (w *worker) open(ctx context.Context) (*bundle.Bundle, error) {
	n, err := w.job.Trust.news()
	if err != nil {
		return nil, err
	}
	b, err := w.openFound(ctx, w.options(n))
	if err != nil {
		return nil, err
	}
	if boot.Hash(b.Manifest.Hash()) != w.job.Manifest {
		return nil, verify.Refuse(verify.PayloadHash, "the bundle is not the one that was chosen: the stick changed its content")
	}
	return b, nil
}

func (w *worker) openFound(ctx context.Context, o bundle.Options) (*bundle.Bundle, error) {
	if w.job.Lone {
		return w.openLone(ctx, staging.Area{Offset: w.job.Offset, Size: w.job.Size}, o)
	}
	fs, err := fat.Open(io.NewSectionReader(w.media.Source, w.job.Offset, w.job.Size), w.job.Size)
	if err != nil {
		return nil, verify.Refuse(verify.IO, "open the file system on the stick: %w", err)
	}
	return w.openIn(ctx, fs, w.job.Path, o)
}

// check reads every block of the payload against the signed root, and then what files are in it and how long they are, so
// that a bundle that is damaged, or signed and not what its manifest says, costs the slot nothing.
func (w *worker) check(ctx context.Context) error {
	b, err := w.open(ctx)
	if err != nil {
		return err
	}
	if err := b.CheckPayload(ctx, w.progress); err != nil {
		return err
	}
	for i := range b.Manifest.Images {
		if _, err := b.Image(i); err != nil {
			return err
		}
	}
	return w.send(frameDone, nil)
}

func (w *worker) install(ctx context.Context) error {
	b, err := w.open(ctx)
	if err != nil {
		return err
	}
	i, err := b.Manifest.Find(w.job.Class)
	if err != nil {
		return err
	}
	old, size := &slots.Old{}, b.Manifest.Images[i].Size
	if size > w.job.SkipOver {
		old.R = w.media.SlotReader
	}
	before, total := w.share(b.Manifest)
	seal, err := slots.Resume(ctx, w.media.Slot, b, i, max(w.job.From-before, 0), old, func(done, _ int64) { w.progress(before+done, total) })
	if err != nil {
		return err
	}
	return w.written(&seal, b.Manifest.Hash(), old, size)
}

// written ends an install or a copy of an image of size bytes.
func (w *worker) written(seal *slots.Seal, m boot.Hash, old *slots.Old, size int64) error {
	if err := w.sendSeal(seal); err != nil {
		return err
	}
	e := &encoder{}
	e.raw(m[:])
	e.i64(old.Same)
	e.i64(slots.Need(size) - slots.SealSize)
	return w.send(frameDone, e.b)
}

// share returns how many bytes of a bundle's images are written before this worker's, and how many in all: the boot
// slot's image comes last.
func (w *worker) share(m *bundle.Manifest) (before, total int64) {
	before = -1
	for n := range w.job.Parts {
		p := w.job.Parts[(n+1)%len(w.job.Parts)]
		if p.Class == w.job.Class {
			before = total
		}
		if i, err := m.Find(p.Class); err == nil {
			total += m.Images[i].Size
		}
	}
	return max(before, 0), total
}

// sendSeal sends a seal in parts, without the zeros at its end.
func (w *worker) sendSeal(seal *slots.Seal) error {
	raw, err := seal.Encode()
	if err != nil {
		return err
	}
	n := len(raw)
	for n > 0 && raw[n-1] == 0 {
		n--
	}
	for part := range chunks(raw[:n]) {
		if err := w.send(frameSeal, part); err != nil {
			return err
		}
	}
	return nil
}

// chunks yields b in parts that fit a frame.
func chunks(b []byte) func(yield func([]byte) bool) {
	const most = 4000
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			n := min(most, len(b))
			if !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// attest judges the seal it was given, or the one on the slot, and the whole slot where that is asked for.
func (w *worker) attest(ctx context.Context, whole bool) error {
	n, err := w.job.Trust.news()
	if err != nil {
		return err
	}
	var a attested
	rules := n.rules(&w.job.Trust)
	rules.AtBoot = true
	seal, err := w.seal()
	if err == nil && seal.Image != w.job.Class {
		// Signed too, and no less a system of somebody else's choice.
		err = verify.Refuse(verify.Malformed, "%w: it is of an image for %q, the slot is for %q", slots.ErrFalse, seal.Image, w.job.Class)
	}
	switch {
	case errors.Is(err, slots.ErrMissing):
		a.Seal.Status = boot.SealMissing
	case errors.Is(err, slots.ErrFalse):
		a.Seal.Status = boot.SealFalse
	case err != nil:
		a.Seal.Status = boot.SealUnreadable
	default:
		if a.Facts, err = seal.Verify(rules, w.job.Trust.Compatible); err != nil {
			a.Seal.Status = boot.SealFalse
			break
		}
		if w.job.Trust.RequireSigned && !a.Facts.Signed {
			err = verify.Refuse(verify.Policy, "the seal's root hash is not signed")
			a.Seal.Status = boot.SealFalse
			break
		}
		if err = w.treeFits(a.Facts.Integrity); err != nil {
			a.Seal.Status = boot.SealFalse
			break
		}
		a.Seal.Status = boot.SealValid
		tree := !config.Slim && a.Facts.Integrity != ""
		if !whole || tree && w.media.Folder == "" {
			break // a tree is read from its file system
		}
		a.Seal.Whole = boot.WholeRight
		if tree {
			err = w.readTree(seal)
		} else {
			_, err = slots.Attest(ctx, w.media.SlotReader, w.media.SlotSize, seal, rules, w.job.Trust.Compatible, w.progress)
		}
		if err != nil {
			a.Seal.Whole = boot.WholeDamaged
			break
		}
		if err := w.sendSeal(seal); err != nil {
			return err
		}
	}
	if err != nil {
		if e := w.send(frameError, Refusal{Code: int(verify.CodeOf(err)), Text: err.Error(), Hint: verify.HintOf(err)}.encode()); e != nil {
			return e
		}
	}
	if err := w.send(frameFacts, a.encode()); err != nil {
		return err
	}
	return w.send(frameDone, nil)
}

func (w *worker) seal() (*slots.Seal, error) {
	if len(w.job.Seal) > 0 {
		raw := make([]byte, slots.SealSize)
		copy(raw, w.job.Seal)
		return slots.ParseSeal(raw)
	}
	return slots.ReadSeal(w.media.SlotReader, w.media.SlotSize)
}
