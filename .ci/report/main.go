// Command report reads what `make test TESTFLAGS="-v -json"` prints, shows what a person wants to see of it, and writes
// a summary to the file named by its argument: what tests logged behind "figure: ", tests that failed, tests that were skipped and why, and the counts.
// It exits with 1 when a test failed or none ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

func main() {
	type key struct{ pkg, test string }
	output := map[key][]string{}
	parent := map[key]bool{}
	var passed, failed int
	var failures, skips, figures []string
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil || e.Action == "" {
			fmt.Println(in.Text())
			continue
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "run":
			if i := strings.LastIndexByte(e.Test, '/'); i >= 0 {
				parent[key{e.Package, e.Test[:i]}] = true
			}
		case "output", "build-output":
			output[k] = append(output[k], e.Output)
			if _, figure, ok := strings.Cut(e.Output, "figure: "); ok {
				figures = append(figures, figure)
			}
		case "pass", "fail", "skip":
			if e.Test == "" {
				if e.Action != "skip" {
					fmt.Printf("%s %s %.1f s\n", e.Action, e.Package, e.Elapsed)
				}
				if e.Action == "fail" {
					failures = append(failures, e.Package)
					fmt.Print(strings.Join(output[k], ""))
					if len(output[k]) == 0 {
						failed++
					}
				}
				continue
			}
			switch {
			case parent[k] && e.Action != "fail":
			case e.Action == "pass":
				passed++
			case e.Action == "skip":
				skips = append(skips, fmt.Sprintf("%s %s: %s", e.Package, e.Test, why(output[k])))
			default:
				failed++
				failures = append(failures, e.Package+" "+e.Test)
				fmt.Printf("FAIL %s %s\n%s", e.Package, e.Test, strings.Join(output[k], ""))
			}
			delete(output, k)
		}
	}
	var b strings.Builder
	for _, f := range figures {
		b.WriteString(f)
	}
	for _, s := range skips {
		fmt.Fprintf(&b, "skipped: %s\n", s)
	}
	for _, f := range failures {
		fmt.Fprintf(&b, "failed: %s\n", f)
	}
	if failed == 0 {
		failed = len(failures)
	}
	fmt.Fprintf(&b, "%d passed, %d failed, %d skipped\n", passed, failed, len(skips))
	if len(os.Args) > 1 {
		if err := os.WriteFile(os.Args[1], []byte(b.String()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

// why is the reason that a skipped test printed.
func why(lines []string) string {
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "===") && !strings.HasPrefix(l, "---") {
			return l
		}
	}
	return "no reason given"
}
