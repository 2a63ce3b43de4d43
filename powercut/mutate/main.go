// Command mutate takes the product's promises away one at a time - a flush, a check, a read-back, the order of two
// writes - and looks whether the nets of docs/powercut.md notice. It changes no file: the compiler is given the mutant in
// place of the source. `make mutants` runs all of them; exit status 1 means that one was not noticed.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// verdict is what became of one mutant.
type verdict struct {
	Name    string  `json:"name"`
	File    string  `json:"file"`
	Net     string  `json:"net"`     // that noticed it; "" if none did
	Example string  `json:"example"` // what it said
	Seconds float64 `json:"seconds"` // until it was noticed
}

func main() {
	out := flag.String("out", "", "JSON file for the list")
	only := flag.String("run", "", "regular expression: only mutants whose name matches")
	net := flag.String("net", "", "regular expression: only nets whose name matches")
	every := flag.Int("every", 1, "only each N-th mutant: a sample")
	flag.Parse()
	if err := run(*out, *only, *net, *every); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(out, only, net string, every int) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	matchNet, err := regexp.Compile(net)
	if err != nil {
		return err
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the source tree: %w", err)
	}
	dir := strings.TrimSpace(string(root))
	if err := os.Chdir(dir); err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "lifeboat-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	var all []verdict
	missed := 0
	for i, m := range mutants {
		if i%every != 0 || !match.MatchString(m.name) {
			continue
		}
		v, err := m.try(dir, temp, matchNet)
		if err != nil {
			return fmt.Errorf("mutant %q: %w", m.name, err)
		}
		if v.Net == "" {
			missed++
			fmt.Printf("MISSED  %-60s %s\n", m.name, m.file)
		} else {
			fmt.Printf("noticed %-60s by %s in %.0f s: %s\n", m.name, v.Net, v.Seconds, v.Example)
		}
		all = append(all, v)
	}
	fmt.Printf("mutants: %d of %d noticed\n", len(all)-missed, len(all))
	if out != "" {
		b, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(out, b, 0o644); err != nil {
			return err
		}
	}
	if missed > 0 {
		return errors.New("a net that catches nothing is no net")
	}
	return nil
}

// try compiles the nets with one mutant and runs them until one notices.
func (m mutant) try(root, temp string, net *regexp.Regexp) (v verdict, err error) {
	v = verdict{Name: m.name, File: m.file}
	src, err := os.ReadFile(m.file)
	if err != nil {
		return v, err
	}
	text := string(src)
	for _, c := range m.changes {
		if n := strings.Count(text, c.old); n != 1 {
			return v, fmt.Errorf("%s has %d times what is to be changed, not once: %q", m.file, n, c.old)
		}
		text = strings.Replace(text, c.old, c.new, 1)
	}
	mutated, overlay := filepath.Join(temp, "mutant.go"), filepath.Join(temp, "overlay.json")
	if err := os.WriteFile(mutated, []byte(text), 0o644); err != nil {
		return v, err
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, m.file): mutated}})
	if err != nil {
		return v, err
	}
	if err := os.WriteFile(overlay, b, 0o644); err != nil {
		return v, err
	}
	start := time.Now()
	for _, n := range nets {
		if !net.MatchString(n.name) {
			continue
		}
		cmd := exec.Command("go", "test", "-overlay", overlay, "-short", "-failfast", "-count=1", "-vet=off", "-timeout", "10m", "-run", n.run, n.pkg)
		text, err := cmd.CombinedOutput()
		v.Seconds = time.Since(start).Seconds()
		switch {
		case err == nil:
			continue
		case strings.Contains(string(text), "[build failed]"):
			return v, fmt.Errorf("it does not compile:\n%s", text)
		case strings.HasPrefix(string(text), "panic: ") || strings.Contains(string(text), "\npanic: "):
			return v, fmt.Errorf("the net itself fails:\n%s", text)
		}
		v.Net, v.Example = n.name, firstComplaint(string(text))
		return v, nil
	}
	return v, nil
}

var complaint = regexp.MustCompile(`(?m)^\s+(?:\w+_test\.go:\d+: )?(.*(?:I\d+|R\d+)\b.*)$`)

// firstComplaint is the first line that names a law or a rule, or else the first of the test's.
func firstComplaint(text string) string {
	if m := complaint.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, "_test.go:") {
			return strings.TrimSpace(line)
		}
	}
	return strings.TrimSpace(text[:min(len(text), 200)])
}
