package bootloader

import (
	"cmp"
	"fmt"
	"strings"

	"lifeboat/boot/sdboot"
	"lifeboat/config"
)

// Sdboot returns the files of an ESP, by path, on which systemd-boot starts the first slot first. What an entry starts stands
// in it: it is the same in a slot's entry and in its spare, and never changes.
func Sdboot(c *config.Config, cmdline string, uki bool) map[string]string {
	// Where it finds no entry it would offer the firmware's setup and go there, again at each start. A shell that is no program
	// is an entry that fails: then the firmware goes on with the next of BootOrder.
	files := map[string]string{"loader/loader.conf": "timeout 0\neditor no\nauto-firmware no\n", "shellx64.efi": "no shell\n"}
	slots := c.BootSlots()
	for i, s := range slots {
		// All have the same sort-key, and none a version: what is left is the entry's name. 0: before what is not ours.
		entry := fmt.Sprintf("title %s\nsort-key 0\n", s.Bootname)
		kernel := "/EFI/lifeboat/" + s.Bootname
		unified := ""
		if uki {
			unified = kernel + ".efi"
		}
		for _, g := range c.Group(s.Name) {
			unified = cmp.Or(g.File, unified)
		}
		if unified != "" {
			entry += "efi " + unified + "\n"
		} else {
			entry += "linux " + kernel + "/vmlinuz\ninitrd " + kernel + "/initramfs\n"
		}
		if unified == "" || cmdline != "" {
			entry += "options " + strings.TrimSpace(cmdline+" rauc.slot="+s.Bootname) + "\n"
		}
		files[fmt.Sprintf("%s/%02d-%s+%d-0.conf", sdboot.Dir[1:], 50+len(slots)-i, s.Bootname, c.BootAttempts)] = entry
		files[fmt.Sprintf("%s/00-%s.off", sdboot.Dir[1:], s.Bootname)] = entry
	}
	return files
}
