package update

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/fat"
	"lifeboat/image"
	"lifeboat/status"
)

// The report is written over the file on a stick that has room for it: whole lines, blanks to its end, and no byte of the
// stick beside it. Other files, and a stick without one, stay as they are.
func TestReport(t *testing.T) {
	work := func(role string, j *job, m Media) (*answer, error) {
		a := &answer{}
		err := Work(context.Background(), role, j.encode(), m, func(kind byte, body []byte) error { return a.take(kind, body, nil) })
		return a, err
	}
	long := strings.Repeat("a line of a long report\r\n", 10000)
	for _, o := range []image.StickOptions{{Report: true}, {Report: true, ExFAT: true}, {Report: true, WholeDisk: true}, {}} {
		file := filepath.Join(t.TempDir(), "stick")
		other := filepath.Join(t.TempDir(), "my-lifeboat-report.txt")
		if err := os.WriteFile(other, []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := image.Stick(file, o, []string{other}); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		stick := disk.NewMemory(int64(len(before)))
		if _, err := stick.WriteAt(before, 0); err != nil {
			t.Fatal(err)
		}
		a, err := work(RoleScan, &job{}, Media{Source: stick, SourceSize: stick.Size()})
		if err != nil { // that there is no keyring is no reason to say nothing
			t.Fatalf("%+v: scan: %v", o, err)
		}
		if !o.Report {
			if a.report != nil {
				t.Errorf("%+v: a report was found: %+v", o, a.report)
			}
			continue
		}
		if a.report == nil || !strings.EqualFold(a.report.Path, status.ReportFile) {
			t.Fatalf("%+v: found %+v", o, a.report)
		}
		for _, text := range []string{"one line\r\n", long, ""} {
			j := &job{Offset: a.report.Offset, Size: a.report.Size, Path: a.report.Path, Text: []byte(text)}
			a, err := work(RoleReport, j, Media{Source: stick, SourceSize: stick.Size(), Stick: stick})
			if err != nil || !a.done {
				t.Fatalf("%+v: report: %v %+v", o, err, a.err)
			}
			fs, err := fat.Open(disk.Section(stick, j.Offset, j.Size), j.Size)
			if err != nil {
				t.Fatal(err)
			}
			f, err := fs.Open(status.ReportFile)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, f.Size())
			if _, err := f.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if len(got) != image.ReportSize || got[len(got)-1] != '\n' {
				t.Errorf("%+v: %d bytes, the last is %q", o, len(got), got[len(got)-1])
			}
			if is := strings.TrimRight(string(got), " \n\r"); is != strings.TrimRight(text, "\r\n") && (text != long || !strings.HasPrefix(long, is+"\r\n")) {
				t.Errorf("%+v: the report is %.60q, not %.60q", o, is, text)
			}
		}
		// All that differs is one run of the report's size.
		after := make([]byte, len(before))
		if _, err := stick.ReadAt(after, 0); err != nil {
			t.Fatal(err)
		}
		first, last := 0, len(before)-1
		for ; before[first] == after[first]; first++ {
		}
		for ; before[last] == after[last]; last-- {
		}
		if last-first >= image.ReportSize || !bytes.Equal(before[:first], after[:first]) {
			t.Errorf("%+v: bytes %d to %d of the stick were changed", o, first, last)
		}
	}
}

// What a scanner says of a report is no more believed than the rest.
func TestReportRefused(t *testing.T) {
	a := &answer{}
	good := place{0, 1 << 20, "LIFEBOAT-REPORT.TXT"}.encode()
	if err := a.take(frameReport, good, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.take(frameReport, good, nil); err == nil {
		t.Error("two reports")
	}
	for _, p := range []place{{-1, 1, "a"}, {1, -1, "a"}, {1, 1, "a\x1b"}} {
		if err := (&answer{}).take(frameReport, p.encode(), nil); err == nil {
			t.Errorf("%+v was taken", p)
		}
	}
}
