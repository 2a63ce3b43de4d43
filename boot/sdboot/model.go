package sdboot

import (
	"strconv"
	"strings"
)

// Run is what systemd-boot 252 does with its folder: it starts an entry, "" where there is none, and gives it its new name
// before. The device's tests hold it against the real one.
func Run(files, bootnames []string) (started string, after []string) {
	l := New(nil, nil, bootnames)
	var first *entry
	at := 0
	for i, file := range files {
		if e := l.parse(file); e != nil && e.on && (first == nil || e.before(first)) {
			first, at = e, i
		}
	}
	if first == nil {
		return "", files
	}
	after = append(after, files...)
	if first.tries >= 0 { // where none is left too, it says that it has started it once more
		plus := strings.LastIndexByte(first.file, '+')
		to := first.file[:plus] + "+" + strconv.Itoa(max(0, first.tries-1)) + "-" + strconv.Itoa(first.done+1) + ".conf"
		for _, file := range files {
			if strings.EqualFold(file, to) {
				return first.slot, files // the firmware does not rename: it is started, and not counted
			}
		}
		after[at] = to
	}
	return first.slot, after
}
