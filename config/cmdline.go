package config

import (
	"slices"
	"strings"
)

const (
	maxCmdline  = 64 << 10 // Linux has 2 KiB (x86, arm64) to 4 KiB
	maxConsoles = 8
)

// Cmdline is what the kernel command line may say to early boot. It chooses among configured things and never weakens
// them.
type Cmdline struct {
	Slot   string // lifeboat.slot=, name or bootname of a slot; not checked against the configuration
	Rescue bool   // lifeboat.rescue
	// Started is what the boot loader says that it started: rauc.slot=, a name or bootname; not checked against the
	// configuration.
	Started string
	Root    string // root=, which says what was started where nothing else does
	Quiet   bool   // quiet
	// USBDefault is usbcore.authorized_default=, which is for the system that starts: a module that early boot loads gets
	// no parameters of the command line.
	USBDefault string
	Consoles   []string // device names of console=, in order, like "ttyS0"; options after a comma are cut off
}

// ParseCmdline reads the content of /proc/cmdline by the kernel's rules: words end at white space outside double
// quotes, quotes around a word or a value are dropped, and "--" ends what is meant for the kernel. What it does not know
// and what makes no sense is left alone: a mistyped command line must not keep a device from booting.
func ParseCmdline(s string) Cmdline {
	var c Cmdline
	s = s[:min(len(s), maxCmdline)]
	for {
		var word string
		if word, s = nextWord(s); word == "" || word == "--" {
			return c
		}
		key, value, assigned := splitWord(word)
		switch key {
		case "lifeboat.slot":
			if isSlotName(value) {
				c.Slot = value
			}
		case "root":
			c.Root = value
		case "rauc.slot":
			if isSlotName(value) {
				c.Started = value
			}
		case "lifeboat.rescue":
			c.Rescue = !assigned || value != "0" && value != "n" && value != "false"
		case "usbcore.authorized_default":
			c.USBDefault = value
		case "quiet":
			c.Quiet = c.Quiet || !assigned
		case "console":
			name, _, _ := strings.Cut(value, ",")
			if isName(name) && len(c.Consoles) < maxConsoles && !slices.Contains(c.Consoles, name) {
				c.Consoles = append(c.Consoles, name)
			}
		}
	}
}

// nextWord cuts the first word off s, quotes included; "" at the end.
func nextWord(s string) (word, rest string) {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	quoted := false
	for i := range len(s) {
		switch s[i] {
		case '"':
			quoted = !quoted
		case ' ', '\t', '\n', '\v', '\f', '\r':
			if !quoted {
				return s[:i], s[i:]
			}
		}
	}
	return s, ""
}

// splitWord takes a word apart as the kernel does: a quote in front of the word or of the value is dropped with the
// one at the end.
func splitWord(word string) (key, value string, assigned bool) {
	if strings.HasPrefix(word, `"`) {
		word = strings.TrimSuffix(word[1:], `"`)
	}
	key, value, assigned = strings.Cut(word, "=")
	if strings.HasPrefix(value, `"`) {
		value = strings.TrimSuffix(value[1:], `"`)
	}
	return key, value, assigned
}

// isSlotName tells a name (rootfs.0) or bootname (A).
func isSlotName(s string) bool {
	class, index, _ := strings.Cut(s, ".")
	return isName(class) && (index == "" || isName(index)) && !strings.HasSuffix(s, ".")
}
