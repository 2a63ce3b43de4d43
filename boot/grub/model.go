package grub

import (
	"slices"
	"strings"
)

// Run does to the copies of the environment what the script of `lifeboat bootloader grub.cfg` does, saves them in place as
// GRUB does, and returns the slot that is started, "" where no kernel loads. loads says whether a slot's does. It is the
// script's model, for simulators and tests: the virtual device is asked whether GRUB agrees.
func Run(copies [][]byte, names []string, loads func(name string) bool) (started string) {
	var at int
	var b block
	for i, c := range copies {
		if b = whole(c, names); b != nil {
			at = i
			break
		}
	}
	var turns []string
	if b != nil {
		if turns = strings.Fields(b.get(order, "")); len(turns) == 0 {
			turns = names
		}
		set := map[string]string{}
		value := func(name, of string) string {
			if v, ok := set[name+of]; ok {
				return v
			}
			return b.get(name, of)
		}
		for _, name := range turns {
			try := value(name, "_TRY")
			if !slices.Contains(names, name) || value(name, "_OK") != "1" || try != "" && try != "0" {
				continue
			}
			left := value(name, "_LEFT")
			set[name+"_TRY"], set[name+"_LEFT"] = "1", "0"
			if len(left) == 1 && left[0] >= '2' && left[0] <= '9' {
				set[name+"_TRY"], set[name+"_LEFT"] = "0", string(left[0]-1)
			}
			copies[at] = save(copies[at], name+"_TRY", set[name+"_TRY"])
			copies[at] = save(copies[at], name+"_LEFT", set[name+"_LEFT"])
			if loads(name) {
				return name
			}
		}
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
