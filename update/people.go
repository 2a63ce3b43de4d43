package update

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"lifeboat/disk"
	"lifeboat/fat"
	"lifeboat/status"
	"lifeboat/verify"
)

// Step is what is being done with what lies outside, for people.
type Step uint8

const (
	Idle        Step = iota // nothing, and nothing came of it
	Looking                 // which bundles a stick has
	Checking                // every block of a bundle is read
	Writing                 // to the slot
	ReadingBack             // what was written
	Finished                // a bundle was installed
	Failed                  // something was refused and nothing installed
	Gone                    // the stick was pulled out, and is waited for
)

func (s Step) String() string {
	return [...]string{"idle", "looking", "checking", "writing", "reading back", "finished", "failed", "waiting for the stick"}[s]
}

// step tells of a step: of an install and its end with version and slot, of Looking with the name of the stick.
func (d *Device) step(s Step, version, slot string) {
	if d.Step != nil {
		d.Step(s, version, slot)
	}
}

// ended tells how what was done with the sources ended. Who reads that the stick may be removed can do so: nothing is
// written to it any more.
func (d *Device) ended(ctx context.Context, installed, refused bool) {
	if installed || refused {
		d.leaveReports(ctx)
	}
	switch {
	case installed:
		d.Say(status.FinishedLine(d.Report.Installed[len(d.Report.Installed)-1]))
		d.step(Finished, "", "")
	case refused:
		d.step(Failed, "", "")
	default:
		d.step(Idle, "", "")
	}
}

// maxReport is how much of that file is written, in bytes.
const maxReport = 64 << 10

// report is a place for the report on a source that was looked at.
type report struct {
	src Source
	place
}

// leaveReports writes what happened to the sticks that have a file for it. What becomes of it changes nothing else.
func (d *Device) leaveReports(ctx context.Context) {
	if d.Letter == nil || len(d.reports) == 0 {
		return
	}
	text := strings.ReplaceAll(d.Letter(d.state), "\n", "\r\n") // for any editor
	for _, r := range d.reports {
		a, err := d.run(ctx, RoleReport, &job{Offset: r.Offset, Size: r.Size, Path: r.Path, Text: []byte(text)}, r.src, "", nil)
		if err == nil && a.err != nil {
			err = *a.err
		}
		if err != nil {
			d.Say(fmt.Sprintf("no report on %s: %v", r.src.Name, err))
			continue
		}
		d.Say("report left on " + r.src.Name)
	}
}

// findReport answers where the first report lies.
func (w *worker) findReport(volumes []*volume) error {
	for _, v := range volumes {
		for _, name := range v.match(nil, "", status.ReportFile) {
			return w.send(frameReport, place{v.Start, v.Size, name}.encode())
		}
	}
	return nil
}

// report writes the text over a file, in place: its clusters and nothing else. The rest of the file becomes blank.
func (w *worker) report() error {
	if w.media.Stick == nil {
		return errors.New("no stick to write to")
	}
	part := disk.Section(w.media.Stick, w.job.Offset, w.job.Size)
	fs, err := fat.Open(part, w.job.Size)
	if err != nil {
		return verify.Refuse(verify.IO, "open the file system on the stick: %w", err)
	}
	f, err := fs.Open(w.job.Path)
	if err != nil {
		return verify.Refuse(verify.IO, "open %s: %w", w.job.Path, err)
	}
	old := make([]byte, min(f.Size(), maxReport))
	if _, err := f.ReadAt(old, 0); err != nil && err != io.EOF {
		return verify.Refuse(verify.IO, "read %s: %w", w.job.Path, err)
	}
	text := fill(w.job.Text, len(old))
	if !bytes.Equal(text, old) {
		if _, err := f.WriteAt(text, 0); err != nil {
			return verify.Refuse(verify.IO, "write %s: %w", w.job.Path, err)
		}
		if err := w.media.Stick.Flush(); err != nil {
			return verify.Refuse(verify.IO, "write %s: %w", w.job.Path, err)
		}
	}
	return w.send(frameDone, nil)
}

// fill makes a text size bytes long: whole lines of it, then blanks and a line's end.
func fill(text []byte, size int) []byte {
	if len(text) > size {
		text = text[:bytes.LastIndexByte(text[:size], '\n')+1]
	}
	out := append(make([]byte, 0, size), text...)
	for len(out) < size {
		out = append(out, ' ')
	}
	if size > len(text) {
		out[size-1] = '\n'
	}
	return out
}
