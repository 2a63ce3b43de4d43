package bootloader

import (
	"fmt"
	"strings"

	"lifeboat/boot/grub"
	"lifeboat/config"
)

// GRUB returns grub.cfg. The slots' kernels are on the disk that has grub.cfg; its partitions' labels are looked up in file
// (an image or a device, "" if none is at hand). cmdline is put on the kernel command line before rauc.slot=. [grub.Run] is
// what the script does, as a function.
func GRUB(c *config.Config, file, cmdline string) ([]byte, error) {
	parts, err := partitions(c, file)
	if err != nil {
		return nil, err
	}
	var names, loaded, unset []string
	for _, slot := range parts {
		if slot.index == 0 {
			return nil, fmt.Errorf("%w, and %s has only a label", ErrLabel, slot.label)
		}
		names = append(names, slot.name)
		for _, of := range []string{"_OK", "_TRY", "_LEFT"} {
			loaded = append(loaded, slot.name+of)
		}
	}
	if _, err := grub.New(nil, names); err != nil {
		return nil, err
	}
	for _, v := range append([]string{"LIFEBOAT", "LIFEBOAT_END", "ORDER"}, loaded...) {
		unset = append(unset, "unset "+v)
	}
	files := c.Loader.Files
	if len(files) == 0 {
		files = []string{grub.File, grub.Shadow}
	}
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("# GRUB's part in choosing the slot, made by `lifeboat bootloader grub.cfg`. It counts in RAUC's variables (ORDER, X_OK,")
	p("# X_TRY) and X_LEFT; where they are lost, or nothing has tries left, it starts the first slot that loads.")
	p("insmod regexp")
	p(`regexp --set=1:lb_here '^\(([^)]*)\)' "$prefix"`)
	p(`regexp --set=1:lb_disk '^([^,]*)' "$lb_here"`)
	p("")
	p("# lb_load FILE: a copy counts where the marks around the variables are equal.")
	p("function lb_load {")
	p("  %s", strings.Join(unset, "; "))
	p("  load_env --skip-sig --file \"$1\" LIFEBOAT LIFEBOAT_END ORDER %s", strings.Join(loaded, " "))
	p("  set lb_env=")
	p("  if [ \"$LIFEBOAT\" = \"$LIFEBOAT_END\" ]; then")
	p("    for lb_slot in $ORDER; do")
	for _, n := range names {
		p("      if [ \"$lb_slot\" = %s ]; then set lb_env=\"$1\"; fi", n)
	}
	p("    done")
	var ok []string
	for _, n := range names {
		ok = append(ok, "${"+n+"_OK}")
	}
	p("    if [ -z \"$ORDER\" ]; then if [ -n \"%s\" ]; then", strings.Join(ok, ""))
	p("      set lb_env=\"$1\"")
	p("      set ORDER=\"%s\"", strings.Join(names, " "))
	p("    fi; fi")
	p("  fi")
	p("}")
	p("")
	p("# lb_start NAME PARTITION: comes back only where kernel or initramfs cannot be loaded.")
	p("function lb_start {")
	p("  echo \"lifeboat: GRUB starts slot $1\"")
	p("  if linux \"($lb_disk,$2)/vmlinuz\" %s; then", strings.TrimSpace(cmdline+` "rauc.slot=$1"`))
	p("    if initrd \"($lb_disk,$2)/initramfs\"; then boot; fi")
	p("  fi")
	p("  echo \"lifeboat: slot $1 cannot be loaded\"")
	p("}")
	p("")
	p("# lb_count LEFT: one try less; the last one, or the only one where nothing is counted, sets lb_try.")
	p("function lb_count {")
	p("  set lb_left=0")
	p("  set lb_try=1")
	for n := 2; n <= 9; n++ {
		p("  if [ \"$1\" = %d ]; then set lb_left=%d; set lb_try=0; fi", n, n-1)
	}
	p("}")
	p("")
	for i, f := range files {
		if i > 0 {
			p("if [ -z \"$lb_env\" ]; then lb_load \"($lb_here)%s\"; fi", f)
			continue
		}
		p("lb_load \"($lb_here)%s\"", f)
	}
	p("if [ -n \"$lb_env\" ]; then")
	p("  for lb_slot in $ORDER; do")
	for _, slot := range parts {
		n := slot.name
		p("    if [ \"$lb_slot\" = %s ]; then if [ \"$%s_OK\" = 1 ]; then if [ -z \"$%s_TRY\" -o \"$%s_TRY\" = 0 ]; then", n, n, n, n)
		p("      lb_count \"$%s_LEFT\"", n)
		p("      set %s_LEFT=$lb_left", n)
		p("      set %s_TRY=$lb_try", n)
		p("      save_env --file \"$lb_env\" %s_TRY %s_LEFT", n, n)
		p("      lb_start %s %d", n, slot.index)
		p("    fi; fi; fi")
	}
	p("  done")
	p("else")
	p("  set ORDER=")
	p("fi")
	p("for lb_slot in $ORDER %s; do", strings.Join(names, " "))
	for _, slot := range parts {
		p("  if [ \"$lb_slot\" = %s ]; then lb_start %s %d; fi", slot.name, slot.name, slot.index)
	}
	p("done")
	p("echo \"lifeboat: no slot can be loaded\"")
	p("sleep 30")
	p("reboot")
	return []byte(b.String()), nil
}
