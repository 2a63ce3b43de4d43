package version

import (
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

// ascending is a list of versions, each older than all that follow it.
var ascending = []string{
	"", "~", "~-", "~~", "~a", "~1", "+", "-", "-a", "-1", "^", "^1", ".", ".a", ".1",
	"A", "Z", "a", "a-1", "a1", "ab", "b", "0", "0-1", "0.1", "0a", "1",
}

// lessThan lists single facts as pairs (older, newer).
var lessThan = [][2]string{
	{"1.0", "1.1"},
	{"1.9", "1.10"},
	{"1.0~rc1", "1.0"},
	{"1.0~rc1", "1.0~rc2"},
	{"1.0~rc9", "1.0~rc10"},
	{"1.0~", "1.0~~"},
	{"1.0", "1.0-1"},
	{"1.0-1", "1.0-2"},
	{"1.0-1", "1.0.1"},
	{"1.0-1", "1.0^1"},
	{"1.0^1", "1.0.1"},
	{"1.0^20240101", "1.0^20250101"},
	{"1.0", "1.0^git1"},
	{"1.0", "1.0a"},
	{"1.0a", "1.0b"},
	{"1.0a", "1.0aa"},
	{"1.0Z", "1.0a"},
	{"1.0.a", "1.0.1"},
	{"122.1", "123~rc1-1"},
	{"123~rc1-1", "123"},
	{"123", "123-a"},
	{"123-a", "123-a.1"},
	{"123-a.1", "123-1"},
	{"123-1", "123-1.1"},
	{"123-1.1", "123^post1"},
	{"123^post1", "123.a-1"},
	{"123.a-1", "123.1-1"},
	{"123.1-1", "123a-1"},
	{"123a-1", "124-1"},
	{"99999999999999999999", "100000000000000000000"},
	{"18446744073709551615", "18446744073709551616"},
	{"2026.08.9", "2026.08.10"},
	{"", "~"},
	{"", "0"},
	{"", "+"},
}

var equal = [][2]string{
	{"", ""},
	{"1.0", "1.0"},
	{"1.01", "1.1"},
	{"0001", "1"},
	{"000", "0"},
	{"1.0+a", "1.0_a"},
	{"v1", "v1"},
	{"+", "_"},
	{"1\x00", "1"},
	{"1ä2", "1+2"},
}

func TestCompare(t *testing.T) {
	for _, p := range lessThan {
		if got := Compare(p[0], p[1]); got != -1 {
			t.Errorf("Compare(%q, %q) = %d, want -1", p[0], p[1], got)
		}
		if got := Compare(p[1], p[0]); got != +1 {
			t.Errorf("Compare(%q, %q) = %d, want +1", p[1], p[0], got)
		}
	}
	for i, a := range ascending {
		for _, b := range ascending[i+1:] {
			if got := Compare(a, b); got != -1 {
				t.Errorf("Compare(%q, %q) = %d, want -1", a, b, got)
			}
		}
	}
	for _, p := range equal {
		if a, b := Compare(p[0], p[1]), Compare(p[1], p[0]); a != 0 || b != 0 {
			t.Errorf("Compare(%q, %q) = %d and %d, want 0", p[0], p[1], a, b)
		}
	}
}

// randomVersion prefers the characters that have rules.
func randomVersion(r *rand.Rand) string {
	const alphabet = "000112399aabZ~~--^^..+_"
	var s strings.Builder
	for n := 1 + r.IntN(9); n > 0; n-- {
		s.WriteByte(alphabet[r.IntN(len(alphabet))])
	}
	return s.String()
}

// TestOracle compares with systemd's own implementation, on the table and on
// random strings that are dense in the characters with rules.
func TestOracle(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze (package systemd) is not installed")
	}
	oracle := func(a, b string) int {
		err := exec.Command(tool, "compare-versions", "--", a, b).Run()
		if err == nil {
			return 0
		}
		exit, ok := err.(*exec.ExitError)
		if !ok {
			t.Fatalf("%s: %v", tool, err)
		}
		switch exit.ExitCode() {
		case 11:
			return +1
		case 12:
			return -1
		}
		t.Fatalf("%s compare-versions %q %q: %v", tool, a, b, err)
		return 0
	}
	check := func(a, b string) {
		t.Helper()
		if a == "" || b == "" || strings.Contains(a+b, "\x00") {
			return // the empty version is our own rule; an argument cannot hold NUL
		}
		if got, want := Compare(a, b), oracle(a, b); got != want {
			t.Errorf("Compare(%q, %q) = %d, systemd-analyze says %d", a, b, got, want)
		}
	}
	for _, p := range lessThan {
		check(p[0], p[1])
	}
	for _, p := range equal {
		check(p[0], p[1])
	}
	for i, a := range ascending {
		for _, b := range ascending[i:] {
			check(a, b)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		a := randomVersion(r)
		b := randomVersion(r)
		if r.IntN(2) == 0 {
			b = a[:r.IntN(len(a)+1)] + b
		}
		check(a, b)
	}
}

func FuzzVersion(f *testing.F) {
	for i, p := range lessThan {
		f.Add(p[0], p[1], lessThan[(i+7)%len(lessThan)][0])
	}
	f.Add("1.~", "1.-", "1.a")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if got := Compare(a, a); got != 0 {
			t.Errorf("Compare(%q, itself) = %d", a, got)
		}
		ab, bc, ac := Compare(a, b), Compare(b, c), Compare(a, c)
		if ba := Compare(b, a); ab != -ba {
			t.Errorf("Compare(%q, %q) = %d, the other way round %d", a, b, ab, ba)
		}
		if ab <= 0 && bc <= 0 && ac > 0 || ab >= 0 && bc >= 0 && ac < 0 {
			t.Errorf("no order: %q %q %q: %d %d %d", a, b, c, ab, bc, ac)
		}
		if ab == 0 && bc != ac {
			t.Errorf("%q and %q are equal, but not against %q: %d %d", a, b, c, ac, bc)
		}
	})
}
