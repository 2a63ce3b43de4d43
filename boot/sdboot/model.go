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
	if first.tries > 0 {
		plus, done := 0, 0
		for i := range len(first.file) {
			if first.file[i] == '+' {
				plus = i
			}
		}
		for i := plus; i < len(first.file); i++ {
			if first.file[i] == '-' {
				done = max(0, digits(first.file[i+1:len(first.file)-len(".conf")]))
			}
		}
		to := first.file[:plus] + "+" + strconv.Itoa(first.tries-1) + "-" + strconv.Itoa(done+1) + ".conf"
		for _, file := range files {
			if strings.EqualFold(file, to) {
				return first.slot, files // the firmware does not rename: it is started, and not counted
			}
		}
		after[at] = to
	}
	return first.slot, after
}
