package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/boot/loader"
	"lifeboat/config"
	"lifeboat/confine"
	"lifeboat/disk"
	"lifeboat/slots"
	"lifeboat/staging"
	"lifeboat/status"
	"lifeboat/update"
	"lifeboat/update/crew"
)

// Exit statuses of install that are not the code of a refusal.
const (
	exitPolicy  = 31
	exitIO      = 40
	exitStopped = 130 // as a shell has it for Ctrl-C
)

// bytesOf reads a number of bytes with K, M or G behind it; "" is 0.
func bytesOf(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits, shift := s, 0
	if i := strings.IndexByte("KMG", s[len(s)-1]); i >= 0 {
		digits, shift = s[:len(s)-1], 10*(i+1)
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || n<<shift < minRate {
		return 0, fmt.Errorf("%w: --rate=%s is no number of bytes from 64K on", errUsage, s)
	}
	return n << shift, nil
}

// minRate keeps a 1 GiB image below five hours.
const minRate = 64 << 10

// install writes the bundle in a file, or on standard input, to another slot than the one whose system runs. Where written is
// not "", another updater has written it there, and it is sealed.
func (s *session) install(out io.Writer, file, written string, rate int64, asJSON bool) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	debug.SetMemoryLimit(8 << 20)
	if err := s.writable(); err != nil {
		return err
	}
	if err := s.open(); err != nil {
		return err
	}
	defer s.close()
	alone, err := s.alone()
	if err != nil {
		return err
	}
	defer alone.Close()
	m := newMeter(out, os.Stderr, asJSON)
	d, err := s.device(m)
	if err != nil {
		return err
	}
	d.Rate = rate
	yield()
	src, err := s.source(ctx, file, d.Room, m)
	var r update.Refusal
	switch {
	case err == nil && written != "":
		err = d.Seal(ctx, src.Source, written, s.report.Booted.Slot)
		src.Close()
	case err == nil:
		err = d.Install(ctx, src.Source, s.report.Booted.Slot)
		src.Close()
	case errors.As(err, &r) && !asJSON:
		m.say(status.RefusedLine(r.Code, r.Path, r.Text))
	}
	switch {
	case err != nil && ctx.Err() != nil:
		m.end(event{Event: "stopped"})
		return &exit{exitStopped, asJSON, errors.New("stopped: nothing was installed, the system that runs is as it was")}
	case errors.As(err, &r):
		m.end(event{Event: "refused", File: r.Path, Code: r.Code, Text: r.Text})
		return &exit{r.Code, true, err}
	case err != nil:
		m.end(event{Event: "failed", Text: err.Error()})
		return &exit{1, asJSON, err}
	case len(d.Report.Installed) == 0:
		m.end(event{Event: "nothing to do", Text: m.last})
		return nil
	}
	i := d.Report.Installed[0]
	m.end(event{Event: "installed", File: i.File, Version: i.Version, Slot: i.Slot, Bootname: i.Bootname, ManifestHash: i.ManifestHash, Unchanged: i.Unchanged})
	return nil
}

// alone makes sure that no other install runs, until the file is closed.
func (s *session) alone() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "install.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another install is running: %w", err)
	}
	return f, nil
}

// yield lets everything else on the machine go first, for this process and its workers.
func yield() {
	const who, idle = 1, 3 << 13 // IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE
	_, _, _ = syscall.AllThreadsSyscall(unix.SYS_IOPRIO_SET, who, 0, idle)
	_, _, _ = syscall.AllThreadsSyscall(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, 10)
}

// device is this machine as the sequence of an update sees it from the running system.
func (s *session) device(m *meter) (*update.Device, error) {
	blocks, err := disk.Blocks("/sys")
	if err != nil {
		return nil, err
	}
	found, err := slotBlocks(s.cfg, blocks, s.report.Booted)
	if err != nil {
		return nil, err
	}
	files, err := s.fileSlots(found)
	if err != nil {
		return nil, err
	}
	copies := &crew.Copies{Config: s.cfg}
	if s.policy.Loader {
		copies.Vars, _ = beside(s.cfg.Loader.Device, blocks, s.report.Booted)
	}
	path := func(slot string) string {
		if open, ok := files[slot]; ok {
			return open()
		}
		if path, ok := copies.Path(slot); ok {
			return path
		}
		return found[slot].Path()
	}
	size := func(slot string) int64 { return found[slot].Size }
	room := size(s.report.Booted.Slot)
	for _, slot := range s.policy.Slots {
		room = min(room, size(slot))
	}
	keyring, err := os.ReadFile(filepath.Join(s.dir, "keyring.pem"))
	if err != nil {
		return nil, err
	}
	trust := update.TrustOf(s.cfg, keyring, s.report.State.Floors.Time)
	trust.Serial = crew.Serial()
	workers := &crew.Workers{Slot: path, Trees: s.trees(path), Plain: len(s.cfg.BundleFormats) > 1, Ended: func(_ string, u confine.Usage) { m.peak = max(m.peak, u.MaxRSSKiB) }}
	return &update.Device{
		Store: s.store, Lock: s.hold, Policy: s.policy, Trust: trust, Class: s.cfg.BootSlots()[0].Class, Room: room, Tree: s.cfg.BootSlots()[0].Tree,
		Children: update.ChildrenOf(s.cfg, size), Loaders: update.LoadersOf(s.cfg, crew.BootSize), Copies: copies,
		Crew: steady{workers}, Slots: running{crew.Slots{Path: path}},
		Name: s.name, Bootname: s.policy.Bootname, Say: m.say, Step: func(s update.Step, _, _ string) { m.begin(s.String()) }, Progress: m.progress, Report: &status.Report{},
		SkipOver: s.cfg.SkipOver,
	}, nil
}

// trees are the slots that take archives, made of the empty file system that early boot has left; nil where there are none.
func (s *session) trees(path func(slot string) string) *crew.Trees {
	if !s.cfg.Trees() {
		return nil
	}
	return &crew.Trees{Config: s.cfg, Path: path, Template: filepath.Join(s.dir, status.Template), Key: filepath.Join(s.dir, status.Key)}
}

// fileSlots takes the slots that are files out of the partition in which they lie: in found they have their own size then,
// and a function that says where they are opened. That is their place below the mount point; where nothing is mounted, a
// device of exactly their bytes, which is made when it is asked for first and is gone with the session.
func (s *session) fileSlots(found map[string]disk.Block) (map[string]func() string, error) {
	files := map[string]func() string{}
	for _, slot := range s.cfg.Slots {
		b, ok := found[slot.Name]
		if slot.File == "" || !ok {
			continue
		}
		on := mountOf(b.Path())
		if on != "" {
			unix.Sync() // the file's place is read past the mount
		}
		size, err := loader.FileSize(b, slot.File)
		if err != nil {
			return nil, fmt.Errorf("slot %s: %w", slot.Name, err)
		}
		files[slot.Name] = func() string { return filepath.Join(on, slot.File) }
		if on == "" {
			files[slot.Name] = sync.OnceValue(func() string {
				name, m := "lifeboat-file-"+slot.Name, b
				if err := loader.MapFile(name, &m, slot.File); err != nil {
					return "/dev/mapper/" + name + ": " + err.Error() // whoever opens it says so
				}
				s.mapped = append(s.mapped, name)
				return m.Path()
			})
		}
		b.Size = size
		found[slot.Name] = b
	}
	return files, nil
}

// slotBlocks finds the block devices of the slots, on the disk from which this system was started.
func slotBlocks(c *config.Config, blocks []disk.Block, booted status.Booted) (map[string]disk.Block, error) {
	home := ""
	for _, b := range blocks {
		if b.Path() == booted.Device {
			home = b.Disk
		}
	}
	found := map[string]disk.Block{}
	for _, slot := range c.Slots {
		_, label := config.PartLabel(slot.Device)
		for _, b := range disk.Find(blocks, slot.Device) {
			if label && b.Disk != home {
				continue
			}
			if was, ok := found[slot.Name]; ok {
				return nil, fmt.Errorf("%s and %s both are %s", was.Path(), b.Path(), slot.Device)
			}
			found[slot.Name] = b
		}
		if _, ok := found[slot.Name]; !ok && (slot.Bootname != "" || slot.Parent != "") {
			return nil, fmt.Errorf("slot %s: there is no %s on the disk of %s", slot.Name, slot.Device, booted.Device)
		}
	}
	if b := found[booted.Slot]; b.Path() != booted.Device {
		return nil, fmt.Errorf("this system was started from %s, and %s is %s now", booted.Device, booted.Slot, b.Path())
	}
	return found, nil
}

// hold keeps other writers of the state away until unlock is called.
func (s *session) hold() (unlock func(), err error) {
	fd := int(s.dev.File().Fd())
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", s.report.StateDev, err)
	}
	return func() { _ = unix.Flock(fd, unix.LOCK_UN) }, nil
}

// running is update.Slots of a system that runs: it starts none.
type running struct{ crew.Slots }

func (running) Start(string, slots.Facts, []update.Member) error {
	return errors.New("a running system starts no other")
}

// Wipe makes sure that the slot is not mounted, nor below anything that is.
func (r running) Wipe(slot string) error {
	f, err := os.OpenFile(r.Path(slot), os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("slot %s is in use: %w", slot, err)
	}
	return errors.Join(r.Slots.Wipe(slot), f.Close())
}

// steady is update.Crew that tells a worker that went wrong from one that was ended together with this process: Ctrl-C
// and systemd send their signal to both.
type steady struct{ *crew.Workers }

func (p steady) Run(ctx context.Context, role string, input []byte, src update.Source, slot string, frame func(byte, []byte) error) error {
	err := p.Workers.Run(ctx, role, input, src, slot, frame)
	if err != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(500 * time.Millisecond):
		}
	}
	return err
}

// source is where the bundle lies.
type source struct {
	update.Source
	io.Closer
}

// source opens a file, or takes in standard input. Workers get it by the open file: no name is looked up twice.
func (s *session) source(ctx context.Context, file string, room int64, m *meter) (source, error) {
	name := file
	if file == "-" {
		name = "standard input"
	}
	fail := func(err error) (source, error) {
		var r update.Refusal
		if errors.As(err, &r) {
			return source{}, r
		}
		return source{}, update.Refusal{Path: name, Code: exitIO, Text: err.Error()}
	}
	f, size, err := input(file)
	if err != nil {
		return fail(err)
	}
	if size == 0 {
		m.begin("receiving")
		pipe := &stoppable{ctx, f}
		if src, err := s.spare(ctx, pipe, m); err != nil || src.Closer != nil {
			if err != nil {
				return fail(err)
			}
			return src, nil
		}
		if f, size, err = spool(pipe, room, m); err != nil {
			return fail(err)
		}
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return fail(err)
	}
	return source{update.Source{Name: name, Path: fmt.Sprintf("/proc/self/fd/%d", f.Fd()), Asked: true, Lone: true, Offset: at, Size: size}, f}, nil
}

// spare takes a pipe into the staging partition while nothing is staged there; no record says that something is. Its answer
// has no Closer where there is no such partition, or it is in use.
func (s *session) spare(ctx context.Context, pipe io.Reader, m *meter) (source, error) {
	to, err := s.staging()
	if err != nil {
		return source{}, nil
	}
	dev := to.Dev.(*disk.File)
	unlock, err := s.hold()
	if err == nil {
		s.state, _, err = s.store.Load()
		unlock()
	}
	if err != nil || !s.state.Staged.None() { // nobody stages anything as long as we have the partition
		return source{}, errors.Join(err, dev.Close())
	}
	place, err := staging.Place(dev.Size(), 0, staging.Area{})
	var at staging.Area
	if err == nil {
		at, err = staging.Write(ctx, dev, pipe, 0, place, staging.Area{}, func(done, total, _ int64) { m.progress(done, total) })
	}
	if err != nil {
		return source{}, errors.Join(err, dev.Close())
	}
	return source{update.Source{Name: "standard input", Path: to.Path, Asked: true, Lone: true, Offset: at.Offset, Size: at.Size}, dev}, nil
}

// spool takes a pipe into a file without a name, as it can be read only once and a bundle begins to make sense at its end.
// It takes no more than a bundle for the smallest slot can have: image and hash tree uncompressed, and what is around them.
func spool(pipe io.Reader, room int64, m *meter) (f *os.File, size int64, err error) {
	dir := os.Getenv("TMPDIR")
	if dir == "" {
		dir = "/var/tmp"
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("a file in %s, for what comes through the pipe (TMPDIR names another folder): %w", dir, err)
	}
	f = os.NewFile(uintptr(fd), "spool")
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	limit := room + room/64 + 1<<20
	b := make([]byte, 1<<20)
	for {
		n, rerr := pipe.Read(b)
		if size += int64(n); size > limit {
			return nil, 0, update.Refusal{Path: "standard input", Code: exitPolicy, Text: fmt.Sprintf("more than %d bytes: no bundle for these slots is that long", limit)}
		}
		if _, err := f.Write(b[:n]); err != nil {
			return nil, 0, fmt.Errorf("%s has no room for the bundle (TMPDIR names another folder): %w", dir, err)
		}
		m.progress(size, 0)
		switch {
		case rerr == io.EOF && size == 0:
			return nil, 0, errors.New("nothing came")
		case rerr == io.EOF:
			_, err := f.Seek(0, io.SeekStart)
			return f, size, err
		case rerr != nil:
			return nil, 0, rerr
		}
	}
}

// event is a line of --json.
type event struct {
	Event        string  `json:"event"`
	Step         string  `json:"step,omitempty"`
	Done         int64   `json:"done,omitempty"`             // bytes
	Total        int64   `json:"total,omitempty"`            // bytes, left out where it is not known
	Percent      int64   `json:"percent,omitempty"`          //
	Rate         int64   `json:"bytes_per_second,omitempty"` // of this step so far
	Left         float64 `json:"seconds_left,omitempty"`     // of this step
	Text         string  `json:"text,omitempty"`
	File         string  `json:"file,omitempty"`
	Code         int     `json:"code,omitempty"`
	Version      string  `json:"version,omitempty"`
	Slot         string  `json:"slot,omitempty"`
	Bootname     string  `json:"bootname,omitempty"`
	ManifestHash string  `json:"manifest_hash,omitempty"`
	Unchanged    int64   `json:"unchanged,omitempty"` // bytes that the slot held already
	Peak         int64   `json:"peak_kib,omitempty"`  // most memory that a worker had resident
}

// meter shows how far an install is: a bar on a terminal, a line for each tenth elsewhere, lines of JSON for programs.
type meter struct {
	out  io.Writer // JSON, and the result
	err  io.Writer // everything else
	json bool
	tty  bool
	now  func() time.Time

	step  string
	since time.Time // when the step began
	shown time.Time
	tenth int64
	bar   bool   // a bar stands in the last line
	last  string // what was said
	peak  int64  // KiB
}

func newMeter(out io.Writer, err *os.File, asJSON bool) *meter {
	_, e := unix.IoctlGetTermios(int(err.Fd()), unix.TCGETS)
	return &meter{out: out, err: err, json: asJSON, tty: e == nil, now: time.Now}
}

func (m *meter) begin(step string) {
	m.step, m.since, m.shown, m.tenth = step, m.now(), time.Time{}, -1
}

func (m *meter) say(line string) {
	m.last = line
	if m.json {
		m.write(event{Event: "note", Text: line})
		return
	}
	m.clear()
	fmt.Fprintln(m.err, line)
}

func (m *meter) clear() {
	if m.bar {
		m.bar = false
		fmt.Fprint(m.err, "\r\x1b[K")
	}
}

// progress is told up to ten times a second; total is 0 where it is not known.
func (m *meter) progress(done, total int64) {
	now := m.now()
	if m.step == "" || done < total && now.Sub(m.shown) < 200*time.Millisecond {
		return
	}
	m.shown = now
	e := event{Event: "progress", Step: m.step, Done: done, Total: total}
	if total > 0 {
		e.Percent = done * 100 / total
	}
	if spent := now.Sub(m.since).Seconds(); spent > 0 && done > 0 {
		e.Rate = int64(float64(done) / spent)
		e.Left = float64(int64(float64(max(total-done, 0))/float64(done)*spent*10)) / 10
	}
	switch {
	case m.json:
		m.write(e)
	case m.tty:
		m.bar = true
		fmt.Fprint(m.err, "\r\x1b[K"+e.bar())
	case total > 0 && e.Percent/10 != m.tenth:
		m.tenth = e.Percent / 10
		fmt.Fprintln(m.err, e.bar())
	}
}

// bar is "writing      [########            ]  43 %  12.3 MiB/s  0:42 left".
func (e event) bar() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-12s ", e.Step)
	if e.Total > 0 {
		const width = 20
		n := int(e.Percent) * width / 100
		fmt.Fprintf(&b, "[%s%s] %3d %%", strings.Repeat("#", n), strings.Repeat(" ", width-n), e.Percent)
	} else {
		fmt.Fprintf(&b, "%.1f MiB", float64(e.Done)/(1<<20))
	}
	if e.Rate > 0 {
		fmt.Fprintf(&b, "  %.1f MiB/s", float64(e.Rate)/(1<<20))
	}
	if e.Total > e.Done && e.Rate > 0 {
		left := int(e.Left + 0.5)
		fmt.Fprintf(&b, "  %d:%02d left", left/60, left%60)
	}
	return b.String()
}

// end says how it ended.
func (m *meter) end(e event) {
	m.clear()
	e.Peak = m.peak
	switch {
	case m.json:
		m.write(e)
	case e.Event == "installed":
		fmt.Fprintf(m.out, "version %s is in %s: the next boot tries it\n", e.Version, status.SlotName(e.Slot, e.Bootname))
	}
}

func (m *meter) write(e event) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(e) == nil {
		_, _ = m.out.Write(b.Bytes())
	}
}
