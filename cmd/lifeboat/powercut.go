package main

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/disk/crash"
	"lifeboat/powercut"
)

// newPowercut is `lifeboat powercut`.
func newPowercut() *cobra.Command {
	var conf, keyring, image, bundle string
	var random, limit, most int
	var seed uint64
	var asJSON, lying bool
	cmd := &cobra.Command{
		Use:   "powercut --config system.conf --disk disk.img --bundle new.raucb [flags]",
		Short: "cut the power of your own device at every write of an update",
		Long: `Runs the update of a device by a bundle in memory, with the code of early boot, and for every state that a power cut
may leave on the disk boots the device again: it must come up by itself, lawfully, and finish the update
(docs/powercut.md). The disk image is only read. Exit status 1: a state broke a law; it is named, and the same
command with the same --seed finds it again.

Small images are looked at whole. For large ones --limit bounds the states of each part of the update and --most the
states in all; both spread what they leave.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readConfig(cmd, conf)
			if err != nil {
				return err
			}
			if keyring == "" {
				keyring = keyringBeside(conf, c)
			}
			pem, err := os.ReadFile(keyring)
			if err != nil {
				return err
			}
			start, err := crash.LoadFile(image)
			if err != nil {
				return err
			}
			d, err := powercut.Open(c, pem, start)
			if err != nil {
				return err
			}
			own, err := powercut.OpenOwn(d, start, bundle)
			if err != nil {
				return err
			}
			defer own.Close()
			test := own.Test("update to "+own.Want.Version, crash.Options{Random: random, Limit: limit, Seed: seed, Lying: lying})
			test.Most = most
			if lying {
				own.Want.Version, own.Want.Loose = "*", true
			}
			begin := time.Now()
			res, err := test.Run()
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				if err := e.Encode(map[string]any{
					"scenario": res.Name, "writes": res.Writes, "flushes": res.Flushes, "states": res.States, "distinct": res.Distinct,
					"readable": res.Masked, "seed": seed, "seconds": time.Since(begin).Seconds(), "failures": failures(res),
				}); err != nil {
					return err
				}
			} else {
				cmd.Println(res)
				for _, f := range res.Failures {
					cmd.Println(f)
				}
			}
			if len(res.Failures) > 0 {
				return errors.New("a power cut can break this update")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&conf, "config", "", "system.conf")
	f.StringVar(&keyring, "keyring", "", "keyring of the device (default: that of the configuration)")
	f.StringVar(&image, "disk", "", "image of the device's disk")
	f.StringVar(&bundle, "bundle", "", "bundle that the device takes")
	f.IntVar(&random, "random", 200, "random states between two flushes beside the systematic ones")
	f.IntVar(&limit, "limit", 2000, "systematic states between two flushes, at most (0: all)")
	f.IntVar(&most, "most", 0, "distinct states that are looked at, at most (0: all)")
	f.Uint64Var(&seed, "seed", 1, "of what is random")
	f.BoolVar(&lying, "lying-disk", false, "the disk says that it flushed and did not: what survives is only that a confirmed, signed system runs")
	f.BoolVar(&asJSON, "json", false, "for programs")
	require(cmd, "config", "disk", "bundle")
	return cmd
}

func failures(r *crash.Result) []string {
	out := []string{}
	for _, f := range r.Failures {
		out = append(out, f.String())
	}
	return out
}
