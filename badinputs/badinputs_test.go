package badinputs_test

import (
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
	for _, in := range badinputs.New(t, set, "demo").Inputs() {
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

	tested, reasons := map[int]bool{}, map[int]string{}
	for _, p := range badinputs.Elsewhere {
		if p.From < 1 || p.To < p.From || p.To > rows || p.Test == "" && p.Why == "" {
			t.Errorf("place %+v", p)
		}
		for row := p.From; row <= p.To; row++ {
			if p.Test != "" {
				tested[row] = true
			} else {
				reasons[row] = p.Why
			}
		}
		if p.Test != "" {
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
		case reasons[row] != "":
			none++
			t.Logf("row %d: %s", row, reasons[row])
		default:
			t.Errorf("row %d is nowhere", row)
		}
	}
	t.Logf("figure: bad inputs: %d of %d rows are bundles made here, %d are tests elsewhere, %d have neither yet", here, rows, away, none)
}

// holds says whether a test is there and has the numbers of its rows.
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
		for row := p.From; row <= p.To; row++ {
			if !regexp.MustCompile(`\b` + strconv.Itoa(row) + `\b`).Match(text) {
				return fmt.Errorf("%s in %s does not have row %d", name, file, row)
			}
		}
		return nil
	}
	return fmt.Errorf("there is no %s", p.Test)
}
