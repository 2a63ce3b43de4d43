package verify

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestRefusal(t *testing.T) {
	inner := Refuse(Expired, "certificate: %w", io.EOF)
	inner.Hint = "set the clock"
	outer := Refuse(Malformed, "bundle: %w", inner)
	for _, c := range []struct {
		name string
		err  error
		code Code
		hint string
	}{
		{"nil", nil, 0, ""},
		{"another error", io.EOF, IO, ""},
		{"refusal", inner, Expired, "set the clock"},
		{"wrapped", fmt.Errorf("slot A: %w", inner), Expired, "set the clock"},
		{"refusal in a refusal", outer, Malformed, "set the clock"},
		{"joined", errors.Join(io.EOF, inner), Expired, "set the clock"},
		{"no cause", Refuse(Policy, "size %d", 5), Policy, ""},
	} {
		if got := CodeOf(c.err); got != c.code {
			t.Errorf("%s: code %d, want %d", c.name, got, c.code)
		}
		if got := HintOf(c.err); got != c.hint {
			t.Errorf("%s: hint %q, want %q", c.name, got, c.hint)
		}
	}
	if !errors.Is(outer, io.EOF) || outer.Error() != "bundle: certificate: EOF" {
		t.Errorf("%v", outer)
	}
}
