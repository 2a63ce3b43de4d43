package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each promise that is to be taken away stands in the source, once.
func TestMutantsApply(t *testing.T) {
	for _, m := range mutants {
		src, err := os.ReadFile(filepath.Join("..", "..", m.file))
		if err != nil {
			t.Fatal(err)
		}
		text := string(src)
		for _, c := range m.changes {
			if n := strings.Count(text, c.old); n != 1 {
				t.Errorf("%s: %s has %d times what is to be changed: %q", m.name, m.file, n, c.old)
			}
			text = strings.Replace(text, c.old, c.new, 1)
		}
	}
}
