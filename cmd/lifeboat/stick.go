package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"lifeboat/image"
)

// newStick is `lifeboat stick`.
func newStick() *cobra.Command {
	cmd := &cobra.Command{Use: "stick", Short: "make a USB stick ready for devices"}
	cmd.AddCommand(newStickPrepare())
	return cmd
}

func newStickPrepare() *cobra.Command {
	var o image.StickOptions
	var erase bool
	cmd := &cobra.Command{
		Use:   "prepare [--erase] TARGET BUNDLE...",
		Short: "put bundles on a stick, and room for the device's report",
		Long: `TARGET is the folder where the stick is mounted, its device (/dev/sdX, with --erase: all that is on it is lost), or
the name of an image to be made.

Beside the bundles goes ` + image.Report + `, blank: a device that finds it writes into it what it did. It is not made
by the device, which never changes more on a stick than the bytes of that file. On a mounted stick it is kept where it is
there already.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := image.Prepare(args[0], o, erase, args[1:]); err != nil {
				if errors.Is(err, image.ErrErase) {
					return fmt.Errorf("%w (--erase allows it)", err)
				}
				return fmt.Errorf("prepare %s: %w", args[0], err)
			}
			cmd.Printf("%s is ready: %d files and %s\n", args[0], len(args)-1, image.Report)
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&erase, "erase", false, "TARGET is a device, and all that is on it may be lost")
	f.BoolVar(&o.ExFAT, "exfat", false, "exFAT also where FAT32 would do (device and image)")
	f.BoolVar(&o.WholeDisk, "whole-disk", false, "no partition table (device and image)")
	return cmd
}
