package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"lifeboat/image/bootloader"
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
			for name, content := range bootloader.Sdboot(c, cmdline, uki) {
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
