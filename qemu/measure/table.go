package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// sample is one thing measured several times, in one unit.
type sample []float64

func (s *sample) add(d time.Duration) { *s = append(*s, d.Seconds()) }

func (s sample) median() float64 {
	if len(s) == 0 {
		return 0
	}
	t := slices.Sorted(slices.Values(s))
	return (t[(len(t)-1)/2] + t[len(t)/2]) / 2
}

// ratio is that of the medians.
func (s sample) ratio(to sample) float64 { return s.median() / to.median() }

// lowest is the least that it ever took. Whatever else runs on the machine only adds to it.
func (s sample) lowest() float64 { return slices.Min(s) }

// versus says both ratios, that of the lowest figures in brackets.
func (s sample) versus(to sample, name string) string {
	return fmt.Sprintf("%.2f (%.2f) x %s", s.ratio(to), s.lowest()/to.lowest(), name)
}

// row is one line of the table.
type row struct {
	part, what string
	value      string // median with its unit
	spread     string // lowest and highest
	cpu        string // median of processor time, where it is known
	ratio      string // to whom
	goal       string
}

// goal is what a figure has to be at most, and may not be.
type goal struct {
	figure, most float64
	text         string
}

func goalText(goals []*goal) string {
	var text []string
	for _, g := range goals {
		text = append(text, g.String())
	}
	return strings.Join(text, ", ")
}

func (g *goal) String() string {
	switch {
	case g.figure <= g.most:
		return g.text + ": met"
	}
	return g.text + ": MISSED"
}

// seconds adds a row of a time.
func (b *bench) seconds(part, what string, s sample, ratio string, goals ...*goal) {
	b.rows = append(b.rows, row{
		part: part, what: what, value: fmt.Sprintf("%.3f s", s.median()),
		spread: fmt.Sprintf("%.3f to %.3f", slices.Min(s), slices.Max(s)), ratio: ratio, goal: goalText(goals),
	})
}

func (b *bench) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "part\twhat\tmedian\tlowest to highest\tCPU\tratio (of the lowest)\tgoal")
	for _, r := range b.rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.part, r.what, r.value, r.spread, r.cpu, r.ratio, r.goal)
	}
	t.Flush()
}
