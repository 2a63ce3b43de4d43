package main

import (
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

//go:embed report.html
var reportText string

// Files beside the result that the page shows where they are: the list that `make mutants` writes, and what the tests of
// the other nets say.
const (
	mutantsFile = "mutants.json"
	netsFile    = "nets.txt"
)

// mutation is one promise that was taken away, and what noticed.
type mutation struct {
	Name    string `json:"name"`
	Net     string `json:"net"`     // that noticed it, "" if none did
	Example string `json:"example"` // what it said
}

// figure is a line "figure: NET: TEXT" of a test.
type figure struct{ Net, Text string }

func readFigures(file string) ([]figure, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []figure
	for line := range strings.Lines(string(raw)) {
		if _, text, ok := strings.Cut(line, "figure: "); ok {
			net, text, _ := strings.Cut(strings.TrimSpace(text), ": ")
			list = append(list, figure{net, text})
		}
	}
	return list, nil
}

// page is what the report's template sees.
type page struct {
	*result
	Mutations []mutation
	Figures   []figure
	Made      string
}

// writeReport writes index.html, a page that needs nothing else, from a result and what else lies in the folder.
func writeReport(dir string, r *result) error {
	p := page{result: r, Made: time.Now().UTC().Format("2006-01-02 15:04 UTC")}
	there := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var err error
	p.Figures, err = readFigures(filepath.Join(dir, netsFile))
	err = errors.Join(there(err), there(readJSON(filepath.Join(dir, mutantsFile), &p.Mutations)), there(readJSON(filepath.Join(dir, killsFile), &r.Kills)))
	if err != nil {
		return err
	}
	t, err := template.New("report").Funcs(template.FuncMap{
		"colour": colour, "kind": kindOf, "seconds": func(s float64) string { return fmt.Sprintf("%.1f s", s) },
		"size": sizeText, "count": count, "percent": func(a, b int) string { return fmt.Sprintf("%.1f %%", 100*float64(a)/float64(max(1, b))) },
		"hours": func(s float64) string { return time.Duration(s * float64(time.Second)).Round(time.Minute).String() },
		"kills": func(bad bool) int {
			n := 0
			for _, k := range r.Kills {
				if !bad || k.Err != "" {
					n++
				}
			}
			return n
		},
		"bound": func(n int) string { return fmt.Sprintf("%.2f %%", 100*3/float64(max(1, n))) },
		"whole": func(o []epochResult) (n int) {
			for _, e := range o {
				if e.Commit && e.Booted > 0 {
					n++
				}
			}
			return n
		},
		"commits": func(o []epochResult) int {
			return len(slices.DeleteFunc(slices.Clone(o), func(e epochResult) bool { return !e.Commit }))
		},
	}).Parse(reportText)
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "index.html"))
	if err != nil {
		return err
	}
	return errors.Join(t.Execute(f, p), f.Close())
}

// colour is the class of a cell: what came of the cuts that it stands for.
func colour(booted, failed int) string {
	switch {
	case failed > 0:
		return "bad"
	case booted > 0:
		return "good"
	}
	return "none"
}

// kindOf is the class of what a write touches.
func kindOf(area string) string {
	switch {
	case area == "state":
		return "state"
	case strings.HasPrefix(area, "seal"):
		return "seal"
	}
	return "image"
}

func sizeText(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// count writes 12345 as 12 345.
func count(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}
