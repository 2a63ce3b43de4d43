package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"lifeboat/config"
	"lifeboat/image/bootloader"
)

// script is what a boot loader's script is made for.
type script struct {
	config  *config.Config
	disk    string // image or device where the partitions of the configuration are found; "": none is at hand
	cmdline string // of the kernel, before rauc.slot=
}

// newBootloader is `lifeboat bootloader`.
func newBootloader() *cobra.Command {
	cmd := &cobra.Command{Use: "bootloader", Short: "make the scripts by which a boot loader chooses the slot"}
	cmd.AddCommand(
		newBootloaderScript("grub.cfg", "GRUB's configuration", func(s script) ([]byte, error) {
			return bootloader.GRUB(s.config, s.disk, s.cmdline)
		}),
		newBootScr(),
		newBootloaderSdboot(),
		newBootloaderUKI(),
		newBootloaderScript("autoboot.txt", "what the Raspberry Pi's boot loader goes by; the same bytes are autoboot.old", func(s script) ([]byte, error) {
			return bootloader.Autoboot(s.config, s.disk)
		}),
	)
	return cmd
}

// newBootloaderScript is the command for one kind of script, which make makes.
func newBootloaderScript(name, what string, make func(script) ([]byte, error)) *cobra.Command {
	var s script
	var conf, out string
	cmd := &cobra.Command{
		Use:   name + " --config F [flags]",
		Short: what,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if s.config, err = readConfig(cmd, conf); err != nil {
				return err
			}
			b, err := make(s)
			if errors.Is(err, bootloader.ErrLabel) {
				return usagef("%s: %v: --disk IMAGE|DEVICE says the rest", name, err)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if out == "" {
				_, err = cmd.OutOrStdout().Write(b)
				return err
			}
			return os.WriteFile(out, b, 0o644)
		},
	}
	f := cmd.Flags()
	f.StringVar(&conf, "config", "", "system.conf")
	f.StringVar(&s.disk, "disk", "", "image or device with the partitions that the configuration names by label")
	f.StringVar(&s.cmdline, "cmdline", "", "kernel command line, to which rauc.slot= is added")
	f.StringVar(&out, "out", "", "file that is written (default: standard output)")
	require(cmd, "config")
	return cmd
}
