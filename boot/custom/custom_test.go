package custom

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/boot"
)

// backend is a program as RAUC's manual describes it, over a folder: primary holds a name, each slot's file good or bad.
const backend = `#!/bin/sh
cd "$(dirname "$0")" || exit 1
echo "$*" >>log
case $1 in
get-primary) cat primary ;;
set-primary) echo "$2" >primary; echo good >"$2" ;;
get-state) cat "$2" ;;
set-state) echo "$3" >"$2" ;;
get-current) echo B ;;
*) echo "what is $1?" >&2; exit 1 ;;
esac
`

func program(t *testing.T, text string) (*Loader, string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"backend": text, "primary": "A\n", "A": "good\n", "B": "bad\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return New(filepath.Join(dir, "backend"), []string{"A", "B"}), dir
}

func TestBackend(t *testing.T) {
	l, dir := program(t, backend)
	said := func() []string {
		b, _ := os.ReadFile(filepath.Join(dir, "log"))
		os.Remove(filepath.Join(dir, "log"))
		return slices.DeleteFunc(strings.Split(strings.TrimSpace(string(b)), "\n"), func(s string) bool { return strings.HasPrefix(s, "get") })
	}
	if v, err := l.Read(); err != nil || !slices.Equal(v.Order, []boot.Turn{{Name: "A", Tries: 1}, {Name: "B"}}) {
		t.Errorf("%+v, %v", v, err)
	}
	if l.Started() != "B" {
		t.Errorf("started %q", l.Started())
	}
	for _, c := range []struct {
		order []boot.Turn
		want  []string
	}{
		{[]boot.Turn{{Name: "A", Tries: 1}, {Name: "B"}}, nil},
		{[]boot.Turn{{Name: "B", Tries: 1}, {Name: "A", Tries: 1, Good: true}}, []string{"set-primary B"}},
		{[]boot.Turn{{Name: "B", Tries: 1, Good: true}, {Name: "A"}}, []string{"set-state A bad"}},
		{[]boot.Turn{{Name: "A", Tries: 1}}, []string{"set-primary A", "set-state B bad"}},
		{[]boot.Turn{{Name: "A", Tries: 1}, {Name: "B", Tries: 1}}, []string{"set-state B good"}},
		{[]boot.Turn{{Name: "B"}, {Name: "A"}}, []string{"set-state A bad", "set-state B bad"}},
	} {
		said()
		if err := l.Write(boot.Vars{Order: c.order}); err != nil {
			t.Fatal(err)
		}
		got := said()
		slices.Sort(c.want)
		slices.Sort(got)
		got = slices.DeleteFunc(got, func(s string) bool { return s == "" })
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, not %q", c.order, got, c.want)
		}
		if c.order[0].Tries == 0 || len(c.order) < 2 {
			continue
		}
		v, err := l.Read()
		for i := range c.order {
			c.order[i].Good = false
		}
		if err != nil || !slices.Equal(v.Order, c.order) {
			t.Errorf("%+v after %+v, %v", v, c.order, err)
		}
	}
}

func TestGood(t *testing.T) {
	l, dir := program(t, backend)
	if err := l.Good("B"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "B")); err != nil || string(b) != "good\n" {
		t.Errorf("%s, %v", b, err)
	}
}

func TestStrangeBackends(t *testing.T) {
	for text, want := range map[string]string{
		"#!/bin/sh\nexit 3\n":                                   "exit status 3",
		"#!/bin/sh\necho no such >&2; exit 1\n":                 "no such",
		"#!/bin/sh\necho C\n":                                   `"C" comes first`,
		"#!/bin/sh\nyes A | head -c 100000\n":                   "comes first",
		"#!/bin/sh\nsleep 100 & echo A\n":                       "WaitDelay",
		strings.Replace(backend, "cat \"$2\"", "echo maybe", 1): "neither good nor bad",
	} {
		l, _ := program(t, text)
		if v, err := l.Read(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, not %q", text, v, err, want)
		}
	}
	l, dir := program(t, strings.Replace(backend, `echo "$2" >primary;`, "", 1))
	if err := l.Write(boot.Vars{Order: []boot.Turn{{Name: "B", Tries: 1}}}); err == nil || !strings.Contains(err.Error(), `says "A"`) {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "primary"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Read(); !errors.Is(err, boot.ErrNoVars) {
		t.Error(err)
	}
}
