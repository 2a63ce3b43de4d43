// Package custom asks a program of the device's maker about the boot loader, with the words of RAUC's
// bootloader-custom-backend:
//
//	get-primary               prints the bootname of the slot that is started next
//	set-primary NAME          that slot is started next, and is good again where it was bad
//	get-state NAME            prints good or bad
//	set-state NAME good|bad   good: it is well, its count is cleared; bad: it is not started any more
//	get-current               prints the bootname of the slot that runs
//
// It runs in the running system only; early boot starts no program. How often a slot is tried before the loader falls back,
// and what a power cut leaves, is the program's and its loader's matter.
package custom

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"lifeboat/boot"
)

// patience is how long the program may take for one answer.
const patience = 30 * time.Second

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 256

// Loader is a boot.Loader over such a program.
type Loader struct {
	program string
	names   []string
}

// New returns the Loader for slots with these bootnames. Nothing is run yet.
func New(program string, names []string) *Loader { return &Loader{program, names} }

// Most is 1: good or bad is all that can be said of a slot.
func (l *Loader) Most() uint8 { return 1 }

// Started returns the bootname of the slot that runs, "" where the program does not know.
func (l *Loader) Started() string {
	name, err := l.ask("get-current")
	if err != nil || !slices.Contains(l.names, name) {
		return ""
	}
	return name
}

// Read returns the primary slot first, then the others in the order of the configuration. A bad one has no tries.
func (l *Loader) Read() (boot.Vars, error) {
	primary, err := l.ask("get-primary")
	if err != nil {
		return boot.Vars{}, err
	}
	if !slices.Contains(l.names, primary) {
		return boot.Vars{}, fmt.Errorf("%w: %s says that %q comes first", boot.ErrNoVars, l.program, primary)
	}
	var v boot.Vars
	for _, n := range l.names {
		state, err := l.ask("get-state", n)
		if err != nil {
			return boot.Vars{}, err
		}
		t := boot.Turn{Name: n}
		switch state {
		case "good":
			t.Tries = 1
		case "bad":
		default:
			return boot.Vars{}, fmt.Errorf("%s get-state %s: %q is neither good nor bad", l.program, n, state)
		}
		if n == primary {
			v.Order = slices.Insert(v.Order, 0, t)
		} else {
			v.Order = append(v.Order, t)
		}
	}
	return v, nil
}

// Write says what differs, one thing after the other: first which slot comes first, so that there always is one, then which
// are good and which are bad.
func (l *Loader) Write(v boot.Vars) error {
	now, err := l.Read()
	if err != nil {
		now = boot.Vars{}
	}
	tries := func(v boot.Vars, name string) (uint8, bool) {
		i := slices.IndexFunc(v.Order, func(t boot.Turn) bool { return t.Name == name })
		if i < 0 {
			return 0, false
		}
		return v.Order[i].Tries, true
	}
	first := ""
	for _, t := range v.Order {
		if t.Tries > 0 {
			first = t.Name
			break
		}
	}
	if was, _ := tries(now, first); first != "" && (was == 0 || now.Order[0].Name != first) {
		if _, err := l.ask("set-primary", first); err != nil {
			return err
		}
	}
	for _, n := range l.names {
		was, known := tries(now, n)
		is, _ := tries(v, n)
		state := ""
		switch {
		case is == 0 && (was > 0 || !known):
			state = "bad"
		case is > 0 && was == 0 && n != first:
			state = "good"
		default:
			continue
		}
		if _, err := l.ask("set-state", n, state); err != nil {
			return err
		}
	}
	if first == "" {
		return nil // nothing may be started: there is no word for that beside bad
	}
	if primary, err := l.ask("get-primary"); err != nil || primary != first {
		return fmt.Errorf("%s was told that %s comes first and says %q: %w", l.program, first, primary, err)
	}
	return nil
}

// Good says that the system of a slot is well. The program may keep a count that has to be cleared each time, of which Read
// knows nothing.
func (l *Loader) Good(name string) error {
	_, err := l.ask("set-state", name, "good")
	return err
}

// ask runs the program and returns the line that it prints.
func (l *Loader) ask(words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.program, words...)
	cmd.WaitDelay = time.Second // what it left running does not hold its output open
	var out, complaint limited
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w %s", l.program, strings.Join(words, " "), err, complaint.line())
	}
	return out.line(), nil
}

// limited keeps the start of what is written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(maxAnswer-l.Len(), 0))])
	return len(p), nil
}

func (l *limited) line() string { return strings.TrimSpace(l.String()) }
