package badinputs_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"lifeboat/badinputs"
	"lifeboat/verify/keys"
)

// rows is how many the list has, without those with letters.
const rows = 120

// TestList: every row is made here or has its place, every place is there and has the number, and no two inputs are called
// the same.
func TestList(t *testing.T) {
	set, err := keys.New(keys.Options{})
	if err != nil {
		t.Fatal(err)
	}
	made := map[int]int{}
	var lettered []string
	names := map[string]bool{}
	inputs := badinputs.New(t, set, "demo").Inputs()
	for _, in := range inputs {
		number, err := strconv.Atoi(strings.TrimRight(in.Row, "abc"))
		if err != nil || number > rows {
			t.Errorf("row %q", in.Row)
		}
		made[number]++
		if in.Row != strconv.Itoa(number) {
			lettered = append(lettered, in.Row)
		}
		if names[in.File()] {
			t.Errorf("two inputs are called %s", in.File())
		}
		names[in.File()] = true
		if (in.Row == "0") != (in.PC == 0 && in.Device == 0) {
			t.Errorf("row %s, %s: codes %d and %d", in.Row, in.Name, in.PC, in.Device)
		}
	}
	if slices.Sort(lettered); !slices.Equal(slices.Compact(lettered), []string{"33a", "33b", "33c"}) {
		t.Errorf("rows with letters: %v", lettered)
	}

	tested := map[int]bool{}
	for _, p := range badinputs.Elsewhere {
		if p.Row < 1 || p.Row > rows || p.What == "" || p.Test == "" && p.Why == "" || p.Test != "" && p.Want == "" {
			t.Errorf("place %+v", p)
		}
		if p.Test != "" {
			tested[p.Row] = true
			if err := holds(p); err != nil {
				t.Error(err)
			}
		}
	}
	here, away, none := 0, 0, 0
	for row := 1; row <= rows; row++ {
		switch {
		case made[row] > 0:
			here++
		case tested[row]:
			away++
		case slices.ContainsFunc(badinputs.Elsewhere, func(p badinputs.Place) bool { return p.Row == row }):
			none++
		default:
			t.Errorf("row %d is nowhere", row)
		}
	}
	t.Logf("figure: bad inputs: %d of %d rows are bundles made here, %d are tests elsewhere, %d have neither yet", here, rows, away, none)

	page := page(inputs)
	const file = "../docs/bad-inputs.md"
	if *update {
		if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if old, err := os.ReadFile(file); err != nil || string(old) != page {
		t.Errorf("docs/bad-inputs.md is not what the list says (%v): go test ./badinputs -run TestList -update", err)
	}
}

var update = flag.Bool("update", false, "write docs/bad-inputs.md")

// page is the list for a reader.
func page(inputs []badinputs.Input) string {
	type line struct {
		number int
		text   string
	}
	codes := func(row string, code func(badinputs.Input) badinputs.Code) string {
		var all []string
		for _, in := range inputs {
			if s := fmt.Sprint(int(code(in))); in.Row == row && !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
		return strings.Join(all, ", ")
	}
	var lines []line
	for i, in := range inputs {
		if in.Row == "0" || slices.ContainsFunc(inputs[:i], func(o badinputs.Input) bool { return o.Row == in.Row }) {
			continue
		}
		var names []string
		for _, o := range inputs {
			if o.Row == in.Row {
				names = append(names, o.Name)
			}
		}
		number, _ := strconv.Atoi(strings.TrimRight(in.Row, "abc"))
		lines = append(lines, line{number, fmt.Sprintf("| %s | %s | %s | %s | |", in.Row, strings.Join(names, "; "),
			codes(in.Row, func(in badinputs.Input) badinputs.Code { return in.PC }), codes(in.Row, func(in badinputs.Input) badinputs.Code { return in.Device }))})
	}
	for _, p := range badinputs.Elsewhere {
		where := p.Test
		if p.Why != "" {
			where = strings.TrimPrefix(where+"; "+p.Why, "; ")
		}
		lines = append(lines, line{p.Row, fmt.Sprintf("| %d | %s | | %s | %s |", p.Row, p.What, p.Want, where)})
	}
	slices.SortStableFunc(lines, func(a, b line) int { return a.number - b.number })
	text := `# What must be refused

Every row is a way in which a bundle, a stick or a state can be bad. The code is the exit status of ` + "`lifeboat bundle verify`" + ` and
that of the device's ` + "`refused code=NN`" + ` (docs/formats.md); 0 is accepted. Rows without a place are bundles that package
` + "`badinputs`" + ` makes: its tests give each of them to a device in memory, those of ` + "`cmd/lifeboat`" + ` to the command, and
` + "`qemu/story`" + ` one of each row to the virtual device. ` + "`go test ./badinputs -run TestList -update`" + ` writes this page.

| row | input | command | device | where, if not here |
|---|---|---|---|---|
`
	for _, l := range lines {
		text += l.text + "\n"
	}
	return text
}

// holds says whether a test is there and has the number of its row.
func holds(p badinputs.Place) error {
	dir, name, _ := strings.Cut(p.Test, " ")
	files, err := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
	if err != nil {
		return err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		// The comment above it, and the function.
		text := regexp.MustCompile(`(?m)(^//.*\n)*^func ` + name + `\(t \*testing\.T\) \{\n(?s:.*?)^\}$`).Find(b)
		if text == nil {
			continue
		}
		if !regexp.MustCompile(`\b` + strconv.Itoa(p.Row) + `\b`).Match(text) {
			return fmt.Errorf("%s in %s does not have row %d", name, file, p.Row)
		}
		return nil
	}
	return fmt.Errorf("there is no %s", p.Test)
}
