package config

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// patterns takes path patterns with ";" between them, as in "*.raucb;updates/*.raucb".
func patterns(to *[]string, v string) error {
	list := strings.Split(strings.TrimSuffix(v, ";"), ";")
	if len(list) > maxPatterns {
		return fmt.Errorf("%d patterns, at most %d are taken", len(list), maxPatterns)
	}
	for i, p := range list {
		if err := inside(&list[i], p); err != nil {
			return err
		}
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("%q is not a pattern", clip(p))
		}
	}
	*to = list
	return nil
}

// inside takes the path of a file on a stick, relative to its root.
func inside(to *string, v string) error {
	v = strings.TrimPrefix(v, "/")
	if v == "" || len(v) > 255 || path.Clean(v) != v || strings.HasPrefix(v, "..") || strings.ContainsAny(v, "\n\r\t\\") {
		return fmt.Errorf("%q is not the path of a file on a stick", clip(v))
	}
	*to = v
	return nil
}

// sysName takes the name of a folder of sysfs.
func sysName(to *string, v string) error {
	if v == "" || len(v) > 63 || v[0] == '.' || strings.ContainsAny(v, "/ \n\r\t") {
		return fmt.Errorf("%q is not the name of a device", clip(v))
	}
	*to = v
	return nil
}

func wholeSeconds(to *time.Duration, v string, lowest time.Duration) error {
	if err := duration(to, v, lowest, 10*time.Minute); err != nil {
		return err
	}
	if *to%time.Second != 0 {
		return fmt.Errorf("%q is not a whole number of seconds", clip(v))
	}
	return nil
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(s) > 0 && len(s) < 4
}

// isName tells names of slot classes and bootnames, which stand in the state record and on the console.
func isName(s string) bool {
	if len(s) < 1 || len(s) > 16 {
		return false
	}
	for _, c := range []byte(s) {
		if !isWord(c) {
			return false
		}
	}
	return true
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

func text(to *string, v string, most int) error {
	if v == "" {
		return errors.New("the value is empty")
	}
	if len(v) > most {
		return fmt.Errorf("%d bytes, at most %d fit", len(v), most)
	}
	if strings.ContainsAny(v, "\n\r\t") {
		return errors.New("the value has a line break or tab in it")
	}
	*to = v
	return nil
}

func choice(to *string, v string, of ...string) error {
	if !slices.Contains(of, v) {
		return fmt.Errorf("%q is none of: %s", clip(v), strings.Join(of, ", "))
	}
	*to = v
	return nil
}

func number(to *int, v string, lowest, highest int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < lowest || n > highest || v[0] == '+' {
		return fmt.Errorf("%q is not a number from %d to %d", clip(v), lowest, highest)
	}
	*to = n
	return nil
}

// boolean takes GLib's words.
func boolean(to *bool, v string) error {
	switch v {
	case "true", "1":
		*to = true
	case "false", "0":
		*to = false
	default:
		return fmt.Errorf("%q is neither true nor false", clip(v))
	}
	return nil
}

func absolute(to *string, v string) error {
	if len(v) > 255 || !strings.HasPrefix(v, "/") || path.Clean(v) != v || v == "/" || strings.ContainsAny(v, " \n\r\t") {
		return fmt.Errorf("%q is not a plain absolute path", clip(v))
	}
	*to = v
	return nil
}

// device takes /dev/NAME, PARTLABEL=X and /dev/disk/by-partlabel/X. A label has 1 to 36 of A-Z a-z 0-9 _ - . as GPT
// has room for.
func device(to *string, v string) error {
	name, most := "", 36
	if label, ok := PartLabel(v); ok {
		name = label
	} else if strings.HasPrefix(v, "/dev/disk/") {
		return fmt.Errorf("%q: no links but /dev/disk/by-partlabel/ exist in early boot", clip(v))
	} else if node, ok := strings.CutPrefix(v, "/dev/"); ok {
		name, most = node, 31
	}
	ok := len(name) >= 1 && len(name) <= most && name[0] != '.'
	for _, c := range []byte(name) {
		ok = ok && (isWord(c) || c == '.')
	}
	if !ok {
		return fmt.Errorf("%q is none of /dev/NAME, PARTLABEL=NAME and /dev/disk/by-partlabel/NAME", clip(v))
	}
	*to = v
	return nil
}

// duration takes whole seconds ("120") or numbers with units ("1h30min", "500ms").
func duration(to *time.Duration, v string, lowest, highest time.Duration) error {
	d, ok := parseDuration(v)
	if !ok || d < lowest || d > highest {
		return fmt.Errorf("%q is not a time from %s to %s like 120, 90s or 10min", clip(v), lowest, highest)
	}
	*to = d
	return nil
}

func parseDuration(v string) (time.Duration, bool) {
	var sum time.Duration
	for rest := v; rest != ""; {
		digits := 0
		for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
			digits++
		}
		n, err := strconv.ParseUint(rest[:digits], 10, 32)
		if err != nil {
			return 0, false
		}
		rest = rest[digits:]
		letters := 0
		for letters < len(rest) && rest[letters] >= 'a' && rest[letters] <= 'z' {
			letters++
		}
		var unit time.Duration
		switch rest[:letters] {
		case "":
			if len(v) != digits {
				return 0, false
			}
			unit = time.Second
		case "ms":
			unit = time.Millisecond
		case "s", "sec":
			unit = time.Second
		case "m", "min":
			unit = time.Minute
		case "h":
			unit = time.Hour
		default:
			return 0, false
		}
		rest = rest[letters:]
		// Bounded before it is multiplied: 2^32 hours overflow.
		if n > uint64(1000*time.Hour/unit) {
			return 0, false
		}
		sum += time.Duration(n) * unit
		if sum > 1000*time.Hour {
			return 0, false
		}
	}
	return sum, v != ""
}

func upToTwo(n int) error {
	if n < 1 || n > 2 {
		return errors.New("one or two copies are expected")
	}
	return nil
}

// size takes a number of bytes, decimal, with K, M, G or T behind it as RAUC has it.
func size(to *int64, v string) error {
	digits, shift := v, 0
	if n := len(v) - 1; n > 0 {
		if i := strings.IndexByte("KMGT", v[n]&^0x20); i >= 0 {
			digits, shift = v[:n], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 50)
	if err != nil || n > 1<<50>>shift {
		return fmt.Errorf("%q is no number of bytes", clip(v))
	}
	*to = int64(n << shift)
	return nil
}
