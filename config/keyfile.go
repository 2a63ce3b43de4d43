package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of a key file; what is larger is refused before it is looked at.
const (
	maxSize     = 64 << 10
	maxSections = 64
	maxKeys     = 64 // in one section
)

// section is one [name] of a key file with its keys in the order of the file.
type section struct {
	name string
	line int
	keys []entry
}

type entry struct {
	key, value string
	line       int
}

// readKeyFile reads GLib's key file form as RAUC uses it: sections in brackets, key=value, comments from "#" at the
// start of a line to its end. Stricter than GLib: sections and keys stand once, keys have no locale, and text is
// UTF-8 without control characters. A line may end in CR LF. The escapes \s \n \t \r \\ are undone.
func readKeyFile(raw []byte) ([]section, error) {
	if len(raw) > maxSize {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(raw), maxSize)
	}
	var sections []section
	seen := map[string]int{}
	for n := 1; len(raw) > 0; n++ {
		var line []byte
		line, raw, _ = bytes.Cut(raw, []byte{'\n'})
		if err := checkText(bytes.TrimSuffix(line, []byte{'\r'})); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		text := strings.Trim(string(line), " \t\r")
		switch {
		case text == "" || text[0] == '#':
		case text[0] == '[':
			name, ok := strings.CutSuffix(text[1:], "]")
			if !ok || name == "" || strings.ContainsAny(name, "[]") {
				return nil, fmt.Errorf("line %d: %q is not a section like [system]", n, clip(text))
			}
			if first, dup := seen[name]; dup {
				return nil, fmt.Errorf("line %d: section [%s] stands twice, first in line %d", n, clip(name), first)
			}
			if len(sections) == maxSections {
				return nil, fmt.Errorf("line %d: more than %d sections", n, maxSections)
			}
			seen[name] = n
			sections = append(sections, section{name: name, line: n})
		default:
			if len(sections) == 0 {
				return nil, fmt.Errorf("line %d: %q stands before the first section", n, clip(text))
			}
			if err := sections[len(sections)-1].add(text, n); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
	}
	return sections, nil
}

func (s *section) add(text string, line int) error {
	key, value, ok := strings.Cut(text, "=")
	key = strings.TrimRight(key, " \t")
	if !ok || key == "" {
		return fmt.Errorf("%q is neither a section, a comment nor key=value", clip(text))
	}
	for _, e := range s.keys {
		if e.key == key {
			return fmt.Errorf("key %q in [%s] stands twice, first in line %d", clip(key), clip(s.name), e.line)
		}
	}
	if len(s.keys) == maxKeys {
		return fmt.Errorf("more than %d keys in [%s]", maxKeys, clip(s.name))
	}
	value, err := unescape(strings.TrimLeft(value, " \t"))
	if err != nil {
		return fmt.Errorf("key %q: %w", clip(key), err)
	}
	s.keys = append(s.keys, entry{key, value, line})
	return nil
}

func unescape(v string) (string, error) {
	if !strings.Contains(v, `\`) {
		return v, nil
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] != '\\' {
			b.WriteByte(v[i])
			continue
		}
		if i++; i == len(v) {
			return "", errors.New("the value ends in a lone backslash")
		}
		switch v[i] {
		case 's':
			b.WriteByte(' ')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case '\\':
			b.WriteByte('\\')
		default:
			return "", fmt.Errorf("unknown escape %q in the value", `\`+string(v[i]))
		}
	}
	return b.String(), nil
}

func checkText(line []byte) error {
	if bytes.HasPrefix(line, []byte("\xef\xbb\xbf")) {
		return errors.New("starts with a byte order mark; save the file as plain UTF-8")
	}
	if !utf8.Valid(line) {
		return errors.New("is not UTF-8")
	}
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return fmt.Errorf("control character %#02x", c)
		}
	}
	return nil
}

// clip shortens what an error quotes from outside.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
