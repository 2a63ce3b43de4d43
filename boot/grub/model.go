package grub

import (
	"slices"
	"strings"
)

// Run does to the copies of the environment what the script of `lifeboat bootloader grub.cfg` does, saves them in place as
// GRUB does, and returns the slot that is started, "" where no kernel loads. loads says whether a slot's does. It is the
// script's model, for simulators and tests: the virtual device is asked whether GRUB agrees.
func Run(copies [][]byte, names []string, loads func(name string) bool) (started string) {
	var turns []string
	for i, c := range copies {
		e, ok := (&Loader{names: names}).parse(c)
		if !ok {
			continue
		}
		if turns = strings.Fields(e.vars[order]); len(turns) == 0 {
			turns = names
		}
		for _, name := range turns {
			if !slices.Contains(names, name) || e.vars[name+"_OK"] != "1" || e.tries(name) == 0 {
				continue
			}
			left := e.tries(name) - 1
			e.vars[name+"_TRY"], e.vars[name+"_LEFT"] = "0", string('0'+left)
			if left == 0 {
				e.vars[name+"_TRY"] = "1"
			}
			for _, of := range []string{"_TRY", "_LEFT"} {
				copies[i] = save(copies[i], name+of, e.vars[name+of])
			}
			if loads(name) {
				return name
			}
		}
		break
	}
	for _, name := range slices.Concat(turns, names) {
		if slices.Contains(names, name) && loads(name) {
			return name
		}
	}
	return ""
}

// save sets a variable as GRUB's save_env does: the first of that name, where it stands, else behind all others. Where
// there is no room, or the filling does not begin behind a newline, nothing changes.
func save(b []byte, name, value string) []byte {
	line := name + "=" + value + "\n"
	end := len(strings.TrimRight(string(b), "#")) // what is free begins here
	if b[end-1] != '\n' {
		return b // GRUB takes that for broken
	}
	for p := len(signature); p < end; {
		next := p
		for next < len(b) && b[next] != '\n' {
			if b[next] == '\\' {
				next++
			}
			next++
		}
		next = min(next+1, len(b))
		if strings.HasPrefix(string(b[p:]), name+"=") {
			out := string(b[:p]) + line + string(b[next:end])
			return fill(b, out)
		}
		p = next
	}
	return fill(b, string(b[:end])+line)
}

func fill(old []byte, text string) []byte {
	if len(text) > len(old) {
		return old
	}
	return []byte(text + strings.Repeat("#", len(old)-len(text)))
}
