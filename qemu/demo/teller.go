package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"lifeboat/status"
)

// teller tells the story as it goes, and at its end what happened in each boot. It gets the device's console as an
// io.Writer, keeps what the report needs and shows the rest if it is asked to.
type teller struct {
	out     io.Writer
	verbose bool
	start   time.Time

	mu       sync.Mutex
	rest     []byte // of a line that is not complete
	hidden   bool   // what follows is for machines
	json     *bytes.Buffer
	boots    []*bootRow
	steps    int
	observed int
}

// bootRow is one boot as its console told it.
type bootRow struct {
	number, slot, version, how string
	events                     []string
	on, up                     time.Time // when the device was switched on, or reset itself, and when its system was up
	report                     status.Report
}

func newTeller(out io.Writer, verbose bool) *teller {
	return &teller{out: out, verbose: verbose, start: time.Now()}
}

// step announces what comes next.
func (t *teller) step(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.steps++
	fmt.Fprintf(t.out, "%6.1f s  %s\n", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...))
}

// seen counts an observation.
func (t *teller) seen(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.observed++
	if t.verbose {
		fmt.Fprintf(t.out, "        + %s\n", what)
	}
}

// powered notes that the device was switched on.
func (t *teller) powered() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.boots = append(t.boots, &bootRow{on: time.Now()})
}

// Write takes the device's console.
func (t *teller) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = append(t.rest, p...)
	for {
		line, rest, ok := bytes.Cut(t.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		t.line(strings.TrimRight(string(line), "\r"))
		t.rest = append([]byte{}, rest...)
	}
}

var (
	bootLine  = regexp.MustCompile(`^lifeboat: boot (\d+) slot (.*) version (\S*) (trial tries=\d+|confirmed)$`)
	eventLine = regexp.MustCompile(`^lifeboat: (.*: nothing to do): .*$|^(?:lifeboat: )?((?:installed|refused|fallback|rescue) .*|.* is good)$`)
)

func (t *teller) line(s string) {
	b := t.boots[len(t.boots)-1]
	switch {
	case s == "BOOT.JSON BEGIN":
		t.json, t.hidden = &bytes.Buffer{}, true
	case s == "BOOT.JSON END":
		if err := json.Unmarshal(t.json.Bytes(), &b.report); err != nil {
			b.events = append(b.events, "boot.json: "+err.Error())
		}
		t.json, t.hidden = nil, false
		return
	case strings.HasPrefix(s, "<<"):
		t.hidden = true
	case strings.HasPrefix(s, ">>"):
		t.hidden = false
		return
	case t.json != nil:
		t.json.WriteString(s + "\n")
	}
	if t.hidden {
		return
	}
	if t.verbose && s != "" {
		fmt.Fprintf(t.out, "        | %s\n", s)
	}
	if m := bootLine.FindStringSubmatch(s); m != nil {
		b.number, b.slot, b.version, b.how = m[1], m[2], m[3], m[4]
	} else if m := eventLine.FindStringSubmatch(s); m != nil {
		b.events = append(b.events, m[1]+m[2])
	}
	switch {
	case strings.HasPrefix(s, "SYSTEM UP "):
		b.up = time.Now()
	case strings.Contains(s, "reboot: Restarting system"):
		t.boots = append(t.boots, &bootRow{on: time.Now()})
	}
}

// report shows what happened in each boot, and how long its phases took.
func (t *teller) report() {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "\nWhat happened\n")
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BOOT\tSLOT\tVERSION\tBOOTED AS\tPOWER TO SYSTEM\tON ITS WAY")
	var names []string
	for _, b := range t.boots {
		took := "-"
		if !b.up.IsZero() {
			took = fmt.Sprintf("%.1f s", b.up.Sub(b.on).Seconds())
		}
		if strings.HasPrefix(b.how, "trial") && !slices.ContainsFunc(b.events, func(e string) bool { return strings.HasSuffix(e, " is good") }) {
			b.events = append(b.events, "did not say good")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", b.number, b.slot, b.version, b.how, took, strings.Join(b.events, "; "))
		at := 0 // where the next name belongs: after those that this boot shares with earlier ones
		for _, p := range b.report.Phases {
			if j := slices.Index(names, p.Name); j >= 0 {
				at = j + 1
				continue
			}
			names = slices.Insert(names, at, p.Name)
			at++
		}
	}
	w.Flush()
	fmt.Fprintf(t.out, "\nHow long the phases of early boot took, in ms\n")
	w = tabwriter.NewWriter(t.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "phase")
	for _, b := range t.boots {
		fmt.Fprintf(w, "\tboot %s", b.number)
	}
	fmt.Fprint(w, "\t\n")
	for _, name := range names {
		fmt.Fprint(w, name)
		for _, b := range t.boots {
			i := slices.IndexFunc(b.report.Phases, func(p status.Phase) bool { return p.Name == name })
			if i < 0 {
				fmt.Fprint(w, "\t-")
				continue
			}
			fmt.Fprintf(w, "\t%.0f", b.report.Phases[i].MS)
		}
		fmt.Fprint(w, "\t\n")
	}
	w.Flush()
	fmt.Fprintf(t.out, "\n%d steps, %d things observed, %.0f s\n", t.steps, t.observed, time.Since(t.start).Seconds())
}
