package migrate

import (
	"fmt"
	"strings"
)

// libconfig reads a file in libconfig's language: groups are map[string]any, lists and arrays []any, everything else is
// a string as it is written. Of settings that stand twice the last counts; @include is refused.
func libconfig(b []byte) (map[string]any, error) {
	l := &lexer{s: string(b), line: 1}
	m, err := l.group("", 0)
	if err != nil {
		return nil, fmt.Errorf("line %d: %w", l.line, err)
	}
	return m, nil
}

type lexer struct {
	s    string
	line int
}

// maxNested is how deep groups and lists may lie in each other.
const maxNested = 16

// skip goes over spaces and comments.
func (l *lexer) skip() error {
	for l.s != "" {
		switch {
		case strings.IndexByte(" \t\r\n\f", l.s[0]) >= 0:
			l.take(1)
		case l.s[0] == '#' || strings.HasPrefix(l.s, "//"):
			l.take(len(l.s[:strings.IndexByte(l.s+"\n", '\n')]))
		case strings.HasPrefix(l.s, "/*"):
			n := strings.Index(l.s[2:], "*/")
			if n < 0 {
				return fmt.Errorf("a comment has no end")
			}
			l.take(n + 4)
		default:
			return nil
		}
	}
	return nil
}

func (l *lexer) take(n int) string {
	t := l.s[:n]
	l.line += strings.Count(t, "\n")
	l.s = l.s[n:]
	return t
}

// next returns the next byte that means something, 0 at the end.
func (l *lexer) next() (byte, error) {
	if err := l.skip(); err != nil || l.s == "" {
		return 0, err
	}
	return l.s[0], nil
}

// word takes a name, a number or a boolean.
func (l *lexer) word() string {
	n := 0
	for n < len(l.s) && strings.IndexByte(" \t\r\n\f=:;,{}()[]\"#", l.s[n]) < 0 {
		n++
	}
	return l.take(n)
}

// group takes settings up to end, which is "}" or "" for the whole file.
func (l *lexer) group(end string, depth int) (map[string]any, error) {
	m := map[string]any{}
	for {
		c, err := l.next()
		switch {
		case err != nil:
			return nil, err
		case c == 0 && end == "":
			return m, nil
		case c == 0:
			return nil, fmt.Errorf("a group has no end")
		case end != "" && c == end[0]:
			l.take(1)
			return m, nil
		case c == ';' || c == ',':
			l.take(1)
			continue
		}
		name := l.word()
		if name == "" || name[0] == '@' {
			return nil, fmt.Errorf("%q is no name of a setting", l.s[:min(len(l.s), 20)]+name)
		}
		if c, err = l.next(); err != nil {
			return nil, err
		}
		if c != '=' && c != ':' {
			return nil, fmt.Errorf("%s has no value", name)
		}
		l.take(1)
		if m[name], err = l.value(depth); err != nil {
			return nil, err
		}
	}
}

func (l *lexer) value(depth int) (any, error) {
	c, err := l.next()
	if err != nil {
		return nil, err
	}
	if depth == maxNested {
		return nil, fmt.Errorf("more than %d groups in each other", maxNested)
	}
	switch c {
	case '{':
		l.take(1)
		return l.group("}", depth+1)
	case '(', '[':
		l.take(1)
		var list []any
		for {
			c, err := l.next()
			switch {
			case err != nil:
				return nil, err
			case c == 0:
				return nil, fmt.Errorf("a list has no end")
			case c == ')' || c == ']':
				l.take(1)
				return list, nil
			case c == ',':
				l.take(1)
				continue
			}
			v, err := l.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
	case '"':
		return l.text()
	}
	if w := l.word(); w != "" {
		return w, nil
	}
	return nil, fmt.Errorf("a value is missing")
}

// text takes strings, which are one where they stand behind each other.
func (l *lexer) text() (string, error) {
	var b strings.Builder
	for {
		if c, err := l.next(); err != nil || c != '"' {
			return b.String(), err
		}
		l.take(1)
		for {
			if l.s == "" {
				return "", fmt.Errorf("a string has no end")
			}
			c := l.take(1)[0]
			if c == '"' {
				break
			}
			if c == '\\' && l.s != "" {
				c = l.take(1)[0]
				if i := strings.IndexByte("nrtf", c); i >= 0 {
					c = "\n\r\t\f"[i]
				}
			}
			b.WriteByte(c)
		}
	}
}
