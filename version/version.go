// Package version orders version strings by the UAPI version format
// specification, as `systemd-analyze compare-versions` does.
package version

import "cmp"

// Compare returns -1, 0 or +1: a is older than, equal to, or newer than b.
//
// A version is read from the left in segments: a run of digits compares as a
// number of any length, a run of letters as ASCII text. At the same place the
// order is, from old to new:
//
//	"~" (pre-release)  end of string  "-" (release)  "^" (patched)  "."  letters  digits
//
// Any other byte separates segments and has no order of its own, so distinct
// strings may be equal ("1.0+a" and "1.0_a"; "1.01" and "1.1").
//
// One rule is not in the specification: the empty string stands for a missing
// version and is older than every other, even than "~".
//
// The work is linear in the length of a and b; nothing is allocated.
func Compare(a, b string) int {
	switch {
	case a == "" && b == "":
		return 0
	case a == "":
		return -1
	case b == "":
		return +1
	}
	for {
		a, b = skipSeparators(a), skipSeparators(b)

		if has(a, '~') || has(b, '~') {
			if c := olderWith('~', a, b); c != 0 {
				return c
			}
			a, b = a[1:], b[1:]
		}
		// The end comes after '~' and before everything else.
		if a == "" || b == "" {
			return cmp.Compare(min(len(a), 1), min(len(b), 1))
		}
		for _, mark := range [...]byte{'-', '^', '.'} {
			if has(a, mark) || has(b, mark) {
				if c := olderWith(mark, a, b); c != 0 {
					return c
				}
				a, b = a[1:], b[1:]
			}
		}

		var c int
		if starts(a, isDigit) || starts(b, isDigit) {
			c, a, b = compareNumbers(a, b)
		} else {
			c, a, b = compareWords(a, b)
		}
		if c != 0 {
			return c
		}
	}
}

// olderWith says that whoever starts with the mark is the older one.
func olderWith(mark byte, a, b string) int {
	switch {
	case has(a, mark) == has(b, mark):
		return 0
	case has(a, mark):
		return -1
	default:
		return +1
	}
}

// compareNumbers compares the leading digits, of which one side may have none
// and is then the older, and returns what follows them.
func compareNumbers(a, b string) (c int, restA, restB string) {
	na, nb := run(a, isDigit), run(b, isDigit)
	if c := cmp.Compare(min(na, 1), min(nb, 1)); c != 0 {
		return c, a, b
	}
	da, db := trimZeros(a[:na]), trimZeros(b[:nb])
	// Without leading zeros the longer number is the greater one.
	if c := cmp.Compare(len(da), len(db)); c != 0 {
		return c, a, b
	}
	return cmp.Compare(da, db), a[na:], b[nb:]
}

func compareWords(a, b string) (c int, restA, restB string) {
	na, nb := run(a, isLetter), run(b, isLetter)
	return cmp.Compare(a[:na], b[:nb]), a[na:], b[nb:]
}

func skipSeparators(s string) string {
	for s != "" && !isDigit(s[0]) && !isLetter(s[0]) && s[0] != '~' && s[0] != '-' && s[0] != '^' && s[0] != '.' {
		s = s[1:]
	}
	return s
}

func trimZeros(s string) string {
	for s != "" && s[0] == '0' {
		s = s[1:]
	}
	return s
}

func run(s string, class func(byte) bool) int {
	n := 0
	for n < len(s) && class(s[n]) {
		n++
	}
	return n
}

func has(s string, c byte) bool                   { return s != "" && s[0] == c }
func starts(s string, class func(byte) bool) bool { return s != "" && class(s[0]) }
func isDigit(c byte) bool                         { return '0' <= c && c <= '9' }
func isLetter(c byte) bool                        { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
