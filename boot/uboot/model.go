package uboot

import (
	"slices"
	"strings"
)

// Run is what the shipped boot.scr does with what it finds: two copies of size bytes, nil where a file is missing. loads
// tells whether a slot's kernel can be loaded. It returns the slot that is started, "" where there is none, and the copies
// afterwards.
func Run(copies [2][]byte, size int, names []string, loads func(name string) bool) (started string, after [2][]byte) {
	after = copies
	env, at, saves := Env{}, -1, 1
	for i, b := range copies {
		e, ok := Parse(b, true)
		if !ok || len(b) != size {
			saves = 2 // makes the damaged one whole
		} else if at < 0 || newer(e.Flag, env.Flag) {
			env, at = e, i
		}
	}
	kept := map[string]string{}
	if order := env.Vars["BOOT_ORDER"]; order != "" {
		kept["BOOT_ORDER"] = order // else it is not saved: it is early boot's to say
	}
	words := strings.Fields(kept["BOOT_ORDER"])
	if len(words) == 0 {
		words = names
	}
	for _, name := range names {
		kept[orderName(name)] = env.Vars[orderName(name)]
		if kept[orderName(name)] == "" {
			kept[orderName(name)] = string(rune('0' + defaultTries))
		}
	}
	env.Vars = kept
	for _, name := range words {
		if !slices.Contains(names, name) {
			continue
		}
		left := tries(kept[orderName(name)])
		if left == 0 {
			continue
		}
		kept[orderName(name)] = string(rune('0' + left - 1))
		for range saves {
			env.Flag++
			at = (at + 1) % 2 // the first one where none is valid
			after[at] = env.Encode(size, true)
		}
		saves = 1
		if loads(name) {
			return name, after
		}
	}
	for _, name := range slices.Concat(words, names) {
		if slices.Contains(names, name) && loads(name) {
			return name, after
		}
	}
	return "", after
}
