package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/boot/sdboot"
	"lifeboat/config"
)

// newBootloaderSdboot is `lifeboat bootloader sdboot`.
func newBootloaderSdboot() *cobra.Command {
	var conf, cmdline, out string
	var uki bool
	cmd := &cobra.Command{
		Use:   "sdboot --config F --out DIR [flags]",
		Short: "systemd-boot's loader.conf, and of each slot an entry and its spare",
		Long: `Writes DIR/loader/loader.conf and DIR/loader/entries: DIR is what goes onto the ESP, with systemd-boot as
EFI/BOOT/BOOTX64.EFI, and of each slot the unified image that file= of the slot that goes with it names. Without
such a slot it is EFI/lifeboat/BOOTNAME/vmlinuz and initramfs, or with --uki EFI/lifeboat/BOOTNAME.efi.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readConfig(cmd, conf)
			if err != nil {
				return err
			}
			for name, content := range sdbootFiles(c, cmdline, uki) {
				name = filepath.Join(out, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&conf, "config", "", "system.conf")
	f.StringVar(&cmdline, "cmdline", "", "kernel command line, to which rauc.slot= is added")
	f.BoolVar(&uki, "uki", false, "the slots' kernels are unified kernel images")
	f.StringVar(&out, "out", "", "folder that is written")
	require(cmd, "config", "out")
	return cmd
}

// sdbootFiles are the files of an ESP on which the first slot is started first. What an entry starts stands in it: it is the
// same in a slot's entry and in its spare, and never changes.
func sdbootFiles(c *config.Config, cmdline string, uki bool) map[string]string {
	files := map[string]string{"loader/loader.conf": "timeout 0\neditor no\n"}
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
