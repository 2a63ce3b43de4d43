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

// mutation is one protection that was switched off, and what noticed: one element of the list in the file that
// `report --mutations` reads.
type mutation struct {
	Name    string `json:"name"`
	Net     string `json:"net"`     // that caught it, "" if none did
	Example string `json:"example"` // shortest counter-example
}

// figure is one number of another net: one element of the list in the file that `report --model` reads.
type figure struct {
	Net   string `json:"net"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

// page is what the report's template sees.
type page struct {
	*result
	Mutations []mutation
	Figures   []figure
	Made      string
}

// writeReport writes index.html, a page that needs nothing else. mutations and model name optional files; kills are
// those that lie in the folder.
func writeReport(dir string, r *result, mutations, model string) error {
	p := page{result: r, Made: time.Now().UTC().Format("2006-01-02 15:04 UTC")}
	for file, to := range map[string]any{mutations: &p.Mutations, model: &p.Figures} {
		if file == "" {
			continue
		}
		if err := readJSON(file, to); err != nil {
			return err
		}
	}
	if err := readJSON(filepath.Join(dir, killsFile), &r.Kills); err != nil && !errors.Is(err, fs.ErrNotExist) {
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
