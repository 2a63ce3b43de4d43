package bundle

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"lifeboat/verify"
)

// maxManifest is the most bytes a manifest may have; RAUC's limit on the CMS
// that carries it (64 KiB) bounds it too.
const maxManifest = 64 << 10

// maxText bounds what an error quotes of a manifest, in bytes.
const maxText = 240

// keyFile is a GKeyFile document (desktop entry form: groups, key=value,
// comments with #) with its order kept, so that a manifest that is written
// back says what its author wrote.
type keyFile struct {
	groups []*keyGroup
}

type keyGroup struct {
	name    string
	line    int
	entries []keyEntry
}

type keyEntry struct {
	key, value string // value with its escapes resolved
	line       int
}

// parseKeyFile reads the strict subset of GKeyFile that lifeboat takes. It
// differs from GLib where GLib guesses: a group or key that stands twice, a
// byte order mark, carriage returns and other control characters, and text
// that is not UTF-8 are refused (code 20). Groups and keys are not judged here.
func parseKeyFile(raw []byte) (*keyFile, error) {
	if len(raw) > maxManifest {
		return nil, malformed(0, "has %d bytes, more than %d", len(raw), maxManifest)
	}
	if !utf8.Valid(raw) {
		return nil, malformed(0, "is not UTF-8 text")
	}
	f := &keyFile{}
	seenGroup := map[string]bool{}
	var seenKey map[string]bool
	var group *keyGroup
	rest, line := string(raw), 0
	for rest != "" {
		var s string
		s, rest, _ = strings.Cut(rest, "\n")
		line++
		for _, r := range s {
			if r == '\uFEFF' || r == 0x7f || r < ' ' && r != '\t' {
				return nil, malformed(line, "control character %U", r)
			}
		}
		s = strings.TrimLeft(s, " \t")
		switch {
		case s == "" || s[0] == '#':
		case s[0] == '[':
			name, ok := strings.CutSuffix(strings.TrimRight(s[1:], " \t"), "]")
			if !ok || name == "" || strings.ContainsAny(name, "[]") {
				return nil, malformed(line, "not a group header")
			}
			if seenGroup[name] {
				return nil, malformed(line, "group [%s] stands twice", name)
			}
			seenGroup[name], seenKey = true, map[string]bool{}
			group = &keyGroup{name: name, line: line}
			f.groups = append(f.groups, group)
		default:
			key, value, ok := strings.Cut(s, "=")
			key = strings.TrimRight(key, " \t")
			if !ok || key == "" || strings.ContainsAny(key, "[]") {
				return nil, malformed(line, "neither group nor key=value")
			}
			if group == nil {
				return nil, malformed(line, "key %q before any group", key)
			}
			if seenKey[key] {
				return nil, malformed(line, "key %q stands twice in [%s]", key, group.name)
			}
			seenKey[key] = true
			value, ok = unescape(strings.TrimLeft(value, " \t"))
			if !ok {
				return nil, malformed(line, "key %q has an invalid escape", key)
			}
			group.entries = append(group.entries, keyEntry{key, value, line})
		}
	}
	return f, nil
}

// unescape resolves GKeyFile's escapes \s \n \t \r \\ and knows no others.
func unescape(s string) (string, bool) {
	if !strings.Contains(s, `\`) {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", false
		}
		switch s[i] {
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
			return "", false
		}
	}
	return b.String(), true
}

// escape is the inverse of unescape as GKeyFile writes it: white space only
// at the start of a value, line ends and backslashes everywhere.
func escape(s string) string {
	var b strings.Builder
	leading := true
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ' ' && leading:
			b.WriteString(`\s`)
		case c == '\t' && leading:
			b.WriteString(`\t`)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\\':
			b.WriteString(`\\`)
		default:
			leading = false
			b.WriteByte(c)
		}
	}
	return b.String()
}

func (f *keyFile) group(name string) *keyGroup {
	for _, g := range f.groups {
		if g.name == name {
			return g
		}
	}
	return nil
}

// ensure returns the group of that name and appends it where there is none.
func (f *keyFile) ensure(name string) *keyGroup {
	if g := f.group(name); g != nil {
		return g
	}
	g := &keyGroup{name: name}
	f.groups = append(f.groups, g)
	return g
}

func (g *keyGroup) get(key string) (string, bool) {
	for _, e := range g.entries {
		if e.key == key {
			return e.value, true
		}
	}
	return "", false
}

func (g *keyGroup) set(key, value string) {
	for i := range g.entries {
		if g.entries[i].key == key {
			g.entries[i].value = value
			return
		}
	}
	g.entries = append(g.entries, keyEntry{key: key, value: value})
}

func (f *keyFile) encode() []byte {
	var b strings.Builder
	for i, g := range f.groups {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString("[" + g.name + "]\n")
		for _, e := range g.entries {
			b.WriteString(e.key + "=" + escape(e.value) + "\n")
		}
	}
	return []byte(b.String())
}

// malformed is the refusal of a manifest; line 0 means the whole. The text is
// bounded: what it quotes comes from the manifest.
func malformed(line int, format string, args ...any) error {
	where := "manifest "
	if line > 0 {
		where = fmt.Sprintf("manifest line %d: ", line)
	}
	text := fmt.Sprintf(format, args...)
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "..."
	}
	return verify.Refuse(verify.Malformed, "%s%s", where, text)
}
