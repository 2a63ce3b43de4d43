package main

import (
	"fmt"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"lifeboat/migrate"
)

// newConfig is `lifeboat config`.
func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "make a device's system.conf of what another updater's configuration says",
	}
	cmd.AddCommand(newConfigImport())
	return cmd
}

func newConfigImport() *cobra.Command {
	var o migrate.Options
	var out string
	cmd := &cobra.Command{
		Use:   "import rauc|mender|swupdate DIR",
		Short: "move a device over from another updater",
		Long: `DIR is the device's root file system, or a folder with the files of its /etc in etc/. The system.conf goes to standard
output. On standard error stands, a line each, what it does not say as the other configuration did: "lost" has no
counterpart, "other" is so in another way, "by hand" remains to be done. docs/migrate.md has the way as a whole.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := migrate.Import(args[0], args[1], o)
			for _, n := range r.Notes {
				fmt.Fprintln(cmd.ErrOrStderr(), n)
			}
			if err != nil {
				return err
			}
			if out != "" {
				return renameio.WriteFile(out, r.Conf, 0o644)
			}
			_, err = cmd.OutOrStdout().Write(r.Conf)
			return err
		},
	}
	cmd.Flags().StringVar(&o.Compatible, "compatible", "", "what this device is, where no file says it")
	cmd.Flags().StringArrayVar(&o.Slots, "slot", nil, "device of a copy of the system, twice (mender, swupdate)")
	cmd.Flags().StringVar(&out, "out", "", "write it there instead")
	return cmd
}
