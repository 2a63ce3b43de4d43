// Command bootcount is the running system's side of lifeboat: it says that the system is well, gives a slot up, wishes
// for another one, installs a bundle, and shows what early boot did. It is also its own confined worker.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/config"
	"lifeboat/confine"
	"lifeboat/data"
	"lifeboat/disk"
	"lifeboat/dm"
	"lifeboat/status"
	"lifeboat/update"
	"lifeboat/update/crew"
)

const usage = `usage: bootcount status [--json]     what early boot did, and the boot state now
       bootcount history [--json]      installs, boots, ends, fallbacks and refusals
       bootcount good                  this system is well: its count is cleared
       bootcount bad [--force] [SLOT]  give a slot up; default is the running one
       bootcount next SLOT             boot that slot once, at the next boot
       bootcount install [--json] [--rate=BYTES] BUNDLE|-
                                       write another slot while this system runs; the next boot tries it.
                                       --rate=4M: at most so many bytes per second
       bootcount seal [--json] [BUNDLE]
                                       RAUC's post-install handler: what it has written gets hash tree and seal
       bootcount stage [--json] [--replace] BUNDLE|-
                                       leave a bundle on the staging partition; the next boot installs it
       bootcount unstage               take that back
       bootcount deadline [--reboot]   ends the trial of a system that did not say good in [fallback] trial-deadline=
                                       (lifeboat-trial.timer asks every few seconds)
       bootcount ended                 a system on trial goes down in order (lifeboat-ended.service says so at shutdown)
       bootcount doctor                what keeps this device from coming back by itself, and how to fix it
A slot is named rootfs.0 or by its bootname. Exit status: 0 ok, 1 failure, 2 usage; of install, seal and stage also the code of a
refusal (20 to 40), and 130 when it was stopped.
`

var errUsage = errors.New("usage")

// exit is an error with an exit status of its own; said: people know of it already.
type exit struct {
	status int
	said   bool
	err    error
}

func (e *exit) Error() string { return e.err.Error() }
func (e *exit) Unwrap() error { return e.err }

func main() {
	if j := confine.Child(); j != nil {
		j.Exit(crew.Work(j, update.WorkRunning))
	}
	os.Exit(exitStatus(run(os.Args[1:], status.Dir, os.Stdout)))
}

// exitStatus says what went wrong and returns the status to exit with.
func exitStatus(err error) int {
	var e *exit
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		return 2
	case errors.As(err, &e):
		if !e.said {
			fmt.Fprintln(os.Stderr, "bootcount:", err)
		}
		return e.status
	}
	fmt.Fprintln(os.Stderr, "bootcount:", err)
	return 1
}

// commands are what may be said: the fewest and the most arguments, and the options.
var commands = map[string]struct {
	least, most int
	options     []string
}{
	"status": {0, 0, []string{"json"}}, "history": {0, 0, []string{"json"}}, "good": {}, "bad": {0, 1, []string{"force"}}, "next": {1, 1, nil},
	"install": {1, 1, []string{"json", "rate="}}, "seal": {0, 1, []string{"json"}}, "stage": {1, 1, []string{"json", "replace"}}, "unstage": {}, "deadline": {0, 0, []string{"reboot"}}, "ended": {}, "doctor": {},
}

func run(args []string, dir string, out io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	c, known := commands[args[0]]
	options := map[string]string{}
	var rest []string
	for _, a := range args[1:] {
		name, ok := strings.CutPrefix(a, "--")
		if !ok {
			rest = append(rest, a)
			continue
		}
		name, value, with := strings.Cut(name, "=")
		if with && value == "" || !with && !slices.Contains(c.options, name) || with && !slices.Contains(c.options, name+"=") {
			return errUsage
		}
		options[name] = value
	}
	_, asJSON := options["json"]
	if !known || len(rest) < c.least || len(rest) > c.most {
		return errUsage
	}
	if args[0] == "doctor" {
		return doctor(dir, "/", time.Now(), out)
	}
	s, err := read(dir)
	if err != nil {
		return err
	}
	if args[0] == "install" {
		rate, err := bytesOf(options["rate"])
		if err != nil {
			return err
		}
		return s.install(out, rest[0], "", rate, asJSON)
	}
	if args[0] == "seal" {
		h := handler{root: "/", env: os.Getenv}
		slot, err := h.written(s.cfg)
		if err != nil {
			return err
		}
		if len(rest) == 0 {
			file, err := h.bundle()
			if err != nil {
				return err
			}
			rest = []string{file}
		}
		return s.install(out, rest[0], slot, 0, asJSON)
	}
	switch _, replace := options["replace"]; args[0] {
	case "stage":
		return s.stage(out, rest[0], replace, asJSON)
	case "unstage":
		return s.unstage(out)
	}
	if err := s.lock(); err != nil {
		return err
	}
	defer s.close()
	switch args[0] {
	case "status":
		return s.show(out, asJSON)
	case "history":
		return s.history(out, asJSON)
	}
	slot := s.report.Booted.Slot
	if len(rest) > 0 {
		c, ok := s.cfg.SlotByName(rest[0])
		if !ok || !slices.Contains(s.policy.Slots, c.Name) {
			return fmt.Errorf("%w: there is no boot slot %q", errUsage, rest[0])
		}
		slot = c.Name
	}
	if args[0] == "deadline" {
		_, restart := options["reboot"]
		return s.deadline(out, restart)
	}
	if args[0] == "ended" {
		if _, changed := boot.Ended(s.state, slot); !changed || s.store == nil {
			return nil // nothing that has to be known
		}
	}
	_, force := options["force"]
	return s.change(out, args[0], slot, force)
}

// session is the boot state as the running system sees it.
type session struct {
	dir    string
	report status.Report
	cfg    *config.Config
	policy boot.Policy
	dev    *disk.File
	record *raw.Store
	store  boot.Store // record, and the boot loader's variables where one chooses; nil as record
	state  boot.State
	mapped []string // names of what the device-mapper has for this session
}

// read reads what early boot left.
func read(dir string) (*session, error) {
	s := &session{dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, "boot.json"))
	if err != nil {
		return nil, fmt.Errorf("this system was not started by lifeboat: %w", err)
	}
	if err := json.Unmarshal(b, &s.report); err != nil {
		return nil, fmt.Errorf("read boot.json: %w", err)
	}
	if b, err = os.ReadFile(filepath.Join(dir, "system.conf")); err != nil {
		return nil, err
	}
	if s.cfg, err = config.Parse(b); err != nil {
		return nil, fmt.Errorf("system.conf: %w", err)
	}
	s.policy = boot.PolicyOf(s.cfg, s.report.State.Floors.Time)
	return s, nil
}

// open opens the state partition, where there is one. Nothing of it is read.
func (s *session) open() (err error) {
	if s.report.StateDev == "" {
		return nil
	}
	if s.dev, err = disk.Open(s.report.StateDev, true); err != nil {
		return err
	}
	if s.record, err = raw.New(s.dev); err != nil {
		return err
	}
	s.store = s.record
	if s.policy.Loader {
		s.store = s.tells(s.record)
	}
	return err
}

// lock opens the state, keeps other writers away until close, and loads it.
func (s *session) lock() error {
	if err := s.open(); err != nil || s.store == nil {
		return err
	}
	if err := unix.Flock(int(s.dev.File().Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", s.report.StateDev, err)
	}
	return s.load()
}

// load reads the record, and what the boot loader says.
func (s *session) load() error {
	st, view, err := s.store.Load()
	if err != nil {
		return fmt.Errorf("read the boot state on %s: %w", s.report.StateDev, err)
	}
	s.state, _ = boot.Hear(st, view, s.policy)
	return nil
}

func (s *session) close() {
	for _, name := range s.mapped {
		_ = dm.Remove(name)
	}
	if s.dev != nil {
		s.dev.Close()
	}
}

func (s *session) name(slot string) string { return status.SlotName(slot, s.policy.Bootname(slot)) }

// writable says why the state cannot be written by this program.
func (s *session) writable() error {
	if s.report.StateDev == "" {
		return errors.New("this device has no state partition that could be written")
	}
	if s.report.State.Format < boot.Format {
		return fmt.Errorf("/init reads state records of format %d, this program writes %d: update the initramfs first", s.report.State.Format, boot.Format)
	}
	return nil
}

// change makes one record.
func (s *session) change(out io.Writer, what, slot string, force bool) error {
	if err := s.writable(); err != nil {
		return err
	}
	var next boot.State
	var err error
	done := ""
	switch what {
	case "good":
		next, err = boot.Good(s.state, slot, s.policy)
		done = s.name(slot) + " is good"
	case "bad":
		next, err = boot.Bad(s.state, slot, force, s.policy)
		if errors.Is(err, boot.ErrOnlyGood) {
			err = fmt.Errorf("%s: %w; --force gives it up all the same", s.name(slot), err)
		}
		done = s.name(slot) + " is given up"
	case "next":
		next, err = boot.Next(s.state, slot, s.policy)
		done = s.name(slot) + " is booted once, next time"
	case "deadline":
		next, err = boot.Deadline(s.state, slot, s.policy)
		done = "the trial of " + s.name(slot) + " is over"
	case "ended":
		next, _ = boot.Ended(s.state, slot)
		done = s.name(slot) + " goes down in order"
	}
	if err != nil {
		return err
	}
	if _, err = s.store.Commit(boot.Stamp(next, time.Now())); err != nil {
		return err
	}
	if told, ok := s.store.(*loader.Store); ok && what == "good" {
		if l, counts := told.Loader.(interface{ Good(name string) error }); counts {
			if err := l.Good(s.policy.Bootname(slot)); err != nil {
				return fmt.Errorf("tell the boot loader: %w", err)
			}
		}
	}
	fmt.Fprintln(out, done)
	return nil
}

// deadline ends a trial whose time is up, so that the next boot counts it as evidence against this system.
func (s *session) deadline(out io.Writer, restart bool) error {
	slot := s.report.Booted.Slot
	left := s.cfg.TrialDeadline - uptime()
	switch e := s.state.Entry(slot); {
	case e.Good || s.state.Last.Slot != slot || !s.state.Last.Trial:
		fmt.Fprintln(out, s.name(slot)+" is not on trial")
		return nil
	case left > 0:
		fmt.Fprintf(out, "the trial of %s ends in %s\n", s.name(slot), left.Round(time.Second))
		return nil
	}
	if err := s.change(out, "deadline", slot, false); err != nil || !restart {
		return err
	}
	s.close()
	return reboot()
}

func uptime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}

const (
	orderly = time.Minute      // how long an orderly reboot may take
	flush   = 10 * time.Second // how long writing back what is cached may take
)

// reboot asks the system's manager, and does it itself where nobody can be asked or it takes too long: a system whose
// trial failed may not be able to shut down.
func reboot() error {
	ctx, cancel := context.WithTimeout(context.Background(), orderly)
	defer cancel()
	if exec.CommandContext(ctx, "reboot").Run() == nil {
		<-ctx.Done()
	}
	synced := make(chan struct{})
	go func() {
		unix.Sync()
		close(synced)
	}()
	select {
	case <-synced:
	case <-time.After(flush):
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// show prints boot.json with the state as it is now.
func (s *session) show(out io.Writer, asJSON bool) error {
	if s.store != nil {
		s.report.State = s.state.Status(s.policy)
	}
	view := s.view()
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(struct {
			status.Report
			Loader      *loaderView  `json:"boot_loader,omitempty"`
			LoaderSlots []loaderSlot `json:"boot_loader_slots,omitempty"`
		}{s.report, view, loaderSlots(s.cfg)})
	}
	r := &s.report
	how := "confirmed"
	if r.Booted.Trial {
		how = fmt.Sprintf("on trial, tries left %d", r.Booted.TriesLeft)
	}
	fmt.Fprintf(out, "Booted   %s version %s, %s, authentic %s\n", status.SlotName(r.Booted.Slot, r.Booted.Bootname), r.Booted.Version, how, r.Booted.Authenticity)
	for _, w := range r.Booted.With {
		at := ""
		if w.Mount != "" {
			at = " at " + w.Mount
		}
		fmt.Fprintf(out, "With     %s%s (%s)\n", w.Slot, at, cmp.Or(w.Mapped, "a file on "+w.Device))
	}
	for _, name := range append([]string{"lifeboat-root", data.Name}, mapped(r.Booted.With)...) {
		if n, err := dm.IntegrityMismatches(name); err == nil && n > 0 {
			fmt.Fprintf(out, "Damage   %d reads of %s met a block that is not what was written\n", n, name)
		}
	}
	if w := r.Watchdog; w != nil {
		how := "it protects early boot only"
		if !w.Stops {
			how = "nobody feeds it: the device restarts when that time is over"
		}
		if name, pid := feeder("/", w.Device); pid != 0 {
			how = fmt.Sprintf("fed by %s (%d)", name, pid)
		}
		fmt.Fprintf(out, "Watchdog %s (%s) %d s, %s\n", w.Device, w.Identity, w.Timeout, how)
	}
	if r.Fallback != "" {
		fmt.Fprintf(out, "Fallback %s\n", r.Fallback)
	}
	if g := r.State.Staged; g != nil {
		when := "the next boot installs it"
		if g.Waits {
			when = "it ended its installer too often and waits"
		}
		fmt.Fprintf(out, "Staged   version %s, %d bytes: %s\n", g.Version, g.Size, when)
	}
	if view != nil {
		fmt.Fprintf(out, "Loader   %s\n", view)
	}
	for _, l := range loaderSlots(s.cfg) {
		fmt.Fprintf(out, "Loader   %s\n", l)
	}
	fmt.Fprintf(out, "Floors   version %q epoch %d\n\n", r.State.Floors.Version, r.State.Floors.Epoch)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SLOT\tVERSION\tEPOCH\tTRIES\tGOOD\tREASON\tMANIFEST")
	for _, e := range r.State.Slots {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%t\t%s\t%.16s\n", status.SlotName(e.Slot, e.Bootname), e.Version, e.Epoch, e.Tries, e.Good, e.Reason, e.ManifestHash)
	}
	w.Flush()
	for _, i := range r.Installed {
		fmt.Fprintf(out, "\nInstalled %s version %s to %s", i.File, i.Version, status.SlotName(i.Slot, i.Bootname))
	}
	for _, f := range r.Refused {
		fmt.Fprintf(out, "\nRefused %s code %02d: %s", f.File, f.Code, f.Text)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(out, "\nNote: %s", n)
	}
	fmt.Fprintf(out, "\nBoot %d, last events:\n", r.State.Boot)
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, e := range r.State.Events[max(0, len(r.State.Events)-10):] {
		code := ""
		if e.Code != 0 {
			code = fmt.Sprintf("code %02d", e.Code)
		}
		fmt.Fprintf(w, "  %d\t%s\t%s\t%s\t%s\t%s\n", e.Boot, e.Event, e.Slot, e.Reason, code, e.Manifest)
	}
	return w.Flush()
}

// mapped are the device-mapper names of what goes with the system.
func mapped(with []status.With) (names []string) {
	for _, w := range with {
		names = append(names, filepath.Base(w.Mapped))
	}
	return names
}
