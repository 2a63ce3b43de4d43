package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"lifeboat/boot/raw"
	"lifeboat/status"
)

// history prints what happened, oldest first, and the kernel's last words where there are some.
func (s *session) history(out io.Writer, asJSON bool) error {
	if s.store != nil {
		s.report.State = s.state.Status(s.policy)
	}
	events := s.report.State.Events
	var last *words
	if s.store != nil {
		if w, ok := s.record.LoadWords(); ok {
			last = &words{w.Boot, plain(w.Text)}
		}
	}
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(struct {
			Events []status.Event `json:"events"`
			Words  *words         `json:"last_words,omitempty"`
		}{events, last})
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BOOT\tTIME\tEVENT\tSLOT\tREASON\tMANIFEST")
	for _, e := range events {
		slot, why, when := "", e.Reason, "-"
		if e.Slot != "" {
			slot = status.SlotName(e.Slot, s.policy.Bootname(e.Slot))
		}
		if e.Code != 0 {
			why = fmt.Sprintf("code %02d", e.Code)
		}
		if e.Time != 0 {
			when = time.Unix(e.Time, 0).UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", e.Boot, when, e.Event, slot, why, e.Manifest)
	}
	if err := w.Flush(); err != nil || last == nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nThe kernel's last words in boot %d, which ended in a panic:\n  %s\n", last.Boot, strings.ReplaceAll(last.Text, "\n", "\n  "))
	return err
}

// words are the last words of a kernel.
type words struct {
	Boot uint64 `json:"boot"`
	Text string `json:"text"`
}

// plain makes a kernel's log fit for a terminal: whole lines without what a terminal obeys.
func plain(text []byte) string {
	s := strings.Map(func(r rune) rune {
		if r != '\n' && (r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == utf8.RuneError) {
			return ' '
		}
		return r
	}, string(text))
	if len(text) == raw.MaxWords { // its beginning was cut off
		_, s, _ = strings.Cut(s, "\n")
	}
	return strings.TrimRight(s, "\n ")
}
