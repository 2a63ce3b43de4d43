package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"lifeboat/status"
)

// history prints what happened, oldest first: --json as boot.json has it, one array.
func (s *session) history(out io.Writer, asJSON bool) error {
	if s.store != nil {
		s.report.State = s.state.Status(s.policy)
	}
	events := s.report.State.Events
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(events)
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
	return w.Flush()
}
