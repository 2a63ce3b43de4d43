package scene

import (
	"fmt"
	"strings"
)

// Tried is how boards that SWUpdate or Mender updates know a slot that is tried, in U-Boot's environment. The script is what
// such a board has: SWUpdate's best practice (ustate 1: count attempts, above the limit go back and say 3), and what Mender's
// integration compiles in (upgrade_available, bootcount above bootlimit runs altbootcmd, which goes back). On QEMU's U-Boot, which
// has no saveenv, bootcount or setexpr, it does by itself what U-Boot would.
type Tried struct {
	Schema string
	Slot   string   // variable with the slot's bootname
	State  string   // variable that is On while a slot is tried
	On     []string // values of it
	Back   string   // its value when the loader has gone back
	File   string   // the environment, one copy, in the root folder of the partition esp
	Limit  int      // bootlimit that is compiled in
	Keep   []string // further variables
}

// SWUpdate and Mender are boards with them.
var (
	SWUpdate = Tried{
		Schema: "swupdate", Slot: "bootslot", State: "ustate", On: []string{"1", "2"}, Back: "3", File: "uboot.env", Limit: 1,
		Keep: []string{"recovery_status"},
	}
	Mender = Tried{
		Schema: "mender", Slot: "mender_boot_part", State: "upgrade_available", On: []string{"1"}, Back: "0", File: "uboot.env", Limit: 1,
		Keep: []string{"mender_boot_part_hex", "mender_saveenv_canary"},
	}
)

// Vars are those that the script keeps.
func (b Tried) Vars() []string {
	return append([]string{b.Slot, b.State, "bootcount", "bootlimit"}, b.Keep...)
}

// Script is the board's, for an environment of size bytes. names are the bootnames of its two slots, of which the first is
// compiled in as the default; start are the commands that start lb_slot, for each slot.
func (b Tried) Script(size int, names [2]string, start [2]string) string {
	var s strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&s, format+"\n", args...) }
	for _, v := range b.Vars() {
		line("setenv %s", v)
	}
	line("setenv %s %s; setenv %s 0; setenv bootcount 0; setenv bootlimit %d", b.Slot, names[0], b.State, b.Limit)
	line("if load ${devtype} ${devnum}:${distro_bootpart} 7900000 %s; then env import -c 7900000 %x %s; fi", b.File, size, strings.Join(b.Vars(), " "))
	line("setenv lb_tried")
	for _, on := range b.On {
		line(`if test "${%s}" = "%s"; then setenv lb_tried 1; fi`, b.State, on)
	}
	line(`if test -n "${lb_tried}"; then`)
	line("setenv lb_next 1")
	for n := range 10 { // U-Boot compares numbers as hexadecimal ones: 10 is more than any limit here
		line(`if test "${bootcount}" = "%d"; then setenv lb_next %d; fi`, n, n+1)
	}
	line("setenv bootcount ${lb_next}")
	line("if itest ${bootcount} -gt ${bootlimit}; then")
	line(`if test "${%s}" = "%s"; then setenv lb_slot %s; else setenv lb_slot %s; fi`, b.Slot, names[0], names[1], names[0])
	line("setenv %s ${lb_slot}; setenv %s %s", b.Slot, b.State, b.Back)
	line("fi")
	line("env export -c -s %x 7a00000 %s; fatwrite ${devtype} ${devnum}:${distro_bootpart} 7a00000 %s %x", size, strings.Join(b.Vars(), " "), b.File, size)
	line("fi")
	for i, name := range names {
		line(`if test "${%s}" = "%s"; then`+"\n%s\nfi", b.Slot, name, start[i])
	}
	// A kernel that cannot be loaded: the next start counts again, and goes back.
	line("echo no kernel; sleep 1; reset")
	return s.String()
}
