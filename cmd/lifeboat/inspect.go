package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/image"
)

// newInspect is `lifeboat inspect`.
func newInspect() *cobra.Command {
	var t trust
	var conf string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect [--json] DISK|STICK|INITRAMFS|BUNDLE",
		Short: "look into a disk, a stick, an initramfs or a bundle",
		Long: `Of a disk it shows the boot state and what each slot's seal says, of a stick its bundles, of an initramfs its parts
and their sizes. Nothing is written. Without a configuration the slots have no bootnames; without a keyring a seal
is "valid" if its form is right, with one if its signature is.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var o image.InspectOptions
			var err error
			if conf != "" {
				if o.Config, err = readConfig(cmd, conf); err != nil {
					return err
				}
			}
			if t.keyring != "" {
				rules, err := t.rules()
				if err != nil {
					return err
				}
				o.Rules = &rules
			}
			view, err := image.Inspect(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			if view == nil {
				return showBundle(cmd, args[0], t, asJSON)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), view)
			}
			switch v := view.(type) {
			case *image.DiskView:
				printDisk(cmd.OutOrStdout(), v)
			case *image.StickView:
				printStick(cmd.OutOrStdout(), v)
			case *image.Archive:
				printArchive(cmd.OutOrStdout(), v)
			}
			return nil
		},
	}
	t.flags(cmd)
	cmd.Flags().StringVar(&conf, "config", "", "system.conf of the device")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printDisk(w io.Writer, v *image.DiskView) {
	for _, p := range v.Partitions {
		fmt.Fprintf(w, "partition %d %-12s %6d MiB at %d\n", p.Index, printable(p.Label), p.Size>>20, p.Start)
	}
	if v.State == nil {
		fmt.Fprintf(w, "state: %s\n", printable(v.StateError))
	} else {
		s := v.State
		fmt.Fprintf(w, "state: record %d, boot %d, floors version %q epoch %d time %d\n", s.Sequence, s.Boot, s.Floors.Version, s.Floors.Epoch, s.Floors.Time)
		for _, e := range s.Slots {
			good := "not good yet"
			if e.Good {
				good = "good"
			}
			if e.ManifestHash == "" {
				good = "empty"
			}
			fmt.Fprintf(w, "  %s %s: version %q epoch %d tries %d %s %s\n", e.Slot, e.Bootname, e.Version, e.Epoch, e.Tries, good, e.Reason)
		}
		if g := s.Staged; g != nil {
			fmt.Fprintf(w, "  staged: version %q, %d bytes, manifest %s\n", g.Version, g.Size, g.ManifestHash)
		}
		for _, e := range s.Events {
			fmt.Fprintf(w, "  boot %d: %s %s %s\n", e.Boot, e.Event, e.Slot, e.Reason)
		}
	}
	for _, s := range v.Seals {
		fmt.Fprintf(w, "seal of %s %s: %s", printable(s.Slot), s.Bootname, s.Seal)
		if s.ManifestHash != "" {
			how := "signature not checked"
			if s.Signed {
				how = "signature checked"
			}
			fmt.Fprintf(w, ", version %q, manifest %s, %s, %s", s.Version, s.ManifestHash, s.Kind, how)
		}
		if s.Why != "" {
			fmt.Fprintf(w, ", %s", printable(s.Why))
		}
		fmt.Fprintln(w)
	}
}

func printStick(w io.Writer, v *image.StickView) {
	for _, f := range v.Files {
		where := "whole disk"
		if f.Partition > 0 {
			where = fmt.Sprintf("partition %d", f.Partition)
		}
		fmt.Fprintf(w, "%s: %s, %d bytes", where, printable(f.Name), f.Size)
		if b := f.Bundle; b != nil {
			fmt.Fprintf(w, ", bundle for %q version %q format %s", b.Compatible, b.Version, b.Format)
		}
		if f.Why != "" {
			fmt.Fprintf(w, ", %s", printable(f.Why))
		}
		fmt.Fprintln(w)
	}
}

func printArchive(w io.Writer, v *image.Archive) {
	fmt.Fprintf(w, "initramfs: %d bytes (%s), %d uncompressed, %d files\n", v.Size, v.Compression, v.RawSize, len(v.Files))
	var seconds int64
	if _, err := fmt.Sscan(v.Build, &seconds); err == nil {
		fmt.Fprintf(w, "build time: %s\n", time.Unix(seconds, 0).UTC().Format(time.RFC3339))
	}
	for _, p := range v.Parts {
		fmt.Fprintf(w, "part %-12s %3d files %9d bytes, %8d compressed alone\n", p.Name, p.Files, p.Size, p.Packed)
	}
	for _, f := range v.Files {
		fmt.Fprintf(w, "%06o %9d %s", f.Mode, f.Size, printable(f.Name))
		if f.Target != "" {
			fmt.Fprintf(w, " -> %s", printable(f.Target))
		}
		fmt.Fprintln(w)
	}
}
