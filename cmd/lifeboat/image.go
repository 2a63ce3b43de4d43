package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lifeboat/config"
	"lifeboat/image"
	"lifeboat/status"
	"lifeboat/verify"
)

// newImage is `lifeboat image`.
func newImage() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "make images of disks and sticks"}
	cmd.AddCommand(newImageDisk(), newImageStick())
	return cmd
}

func newImageDisk() *cobra.Command {
	var t trust
	var s signer
	var conf, esp, sign, version, out string
	var slots, sizes []string
	cmd := &cobra.Command{
		Use:   "disk --config F --slot CLASS.N=BUNDLE|IMAGE ... --out disk.img [flags]",
		Short: "make a disk with filled slots and a first boot state",
		Long: `Makes a GPT with the partitions that the configuration names (state, esp, staging, each slot, data), fills slots as
the device itself would, and seals them. An IMAGE that is no bundle (*.raucb) needs --sign and --version: it gets
a signed manifest and its root hash is under the signature.

The keyring that the device will have must accept what goes into its slots. It is the one of the configuration,
relative to it (/etc/lifeboat stands for its folder), or --keyring; where there is none here, content is checked and
the signer is not.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readConfig(cmd, conf)
			if err != nil {
				return err
			}
			o := image.DiskOptions{Config: c, ESP: esp, Sizes: map[string]int64{}}
			for _, fill := range slots {
				slot, file, ok := strings.Cut(fill, "=")
				if !ok || slot == "" || file == "" {
					return usagef("--slot %q is not like rootfs.0=FILE", fill)
				}
				o.Fill = append(o.Fill, image.Fill{Slot: slot, File: file})
			}
			for _, size := range sizes {
				name, text, ok := strings.Cut(size, "=")
				if !ok {
					return usagef("--size %q is not like rootfs=64M", size)
				}
				if o.Sizes[name], err = image.ParseSize(text); err != nil {
					return usagef("--size %s: %w", name, err)
				}
			}
			if o.Now, err = t.now(); err != nil {
				return err
			}
			if o.Keyring, err = deviceKeyring(cmd, conf, c, t.keyring); err != nil {
				return err
			}
			if sign != "" {
				var ok bool
				if s.cert, s.key.name, ok = strings.Cut(sign, ":"); !ok {
					return usagef("--sign %q is not CERT:KEY", sign)
				}
				if version == "" {
					return usagef("--sign needs --version")
				}
				o.Sign = &image.Signer{Version: version}
				if o.Sign.Key, o.Sign.Cert, o.Sign.Intermediates, err = s.load(cmd.Context()); err != nil {
					return err
				}
			}
			r, err := image.Disk(cmd.Context(), o, out)
			if err != nil {
				return err
			}
			for _, f := range r.Filled {
				authentic := "at every boot"
				if !f.Signed {
					authentic = "at install only"
				}
				name := f.Slot
				if f.Bootname != "" {
					name = status.SlotName(f.Slot, f.Bootname)
				}
				cmd.Printf("%s: version %s of %s, %d of %d bytes, authentic %s\n", name, f.Version, f.File, f.Used, f.Size, authentic)
			}
			cmd.Printf("made %s: %d bytes, %d partitions\n", out, r.Size, len(r.Places))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&conf, "config", "", "system.conf")
	f.StringArrayVar(&slots, "slot", nil, "fill a slot, named like rootfs.0 or by its bootname, with a bundle or an image (may be repeated)")
	f.StringVar(&esp, "esp", "", "image of the boot loader's partition, a FAT file system with the loader in it (docs/bootloaders.md)")
	f.StringVar(&sign, "sign", "", "CERT:KEY, signer of images that are no bundles (PEM files)")
	f.StringArrayVar(&s.intermediates, "intermediate", nil, "certificate that goes along in the signature (may be repeated)")
	f.StringVar(&version, "version", "", "version of images that are no bundles")
	f.StringArrayVar(&sizes, "size", nil, "size of the slots of a class, or of state, esp, staging or data, like rootfs=64M (may be repeated)")
	f.StringVar(&t.keyring, "keyring", "", "keyring that the device will have (default: that of the configuration)")
	f.StringVar(&t.at, "at", "", "judge signatures as at this time (RFC 3339) instead of now")
	f.StringVar(&out, "out", "", "the disk image")
	require(cmd, "config", "out")
	return cmd
}

// deviceKeyring finds the keyring that the device will have, nil if it isn't on this PC.
func deviceKeyring(cmd *cobra.Command, conf string, c *config.Config, given string) (*verify.Keyring, error) {
	if given != "" {
		return readKeyring(given)
	}
	name := keyringBeside(conf, c)
	k, err := readKeyring(name)
	if missing(err) {
		cmd.PrintErrf("lifeboat: warning: no keyring %s: signers of what goes into the slots are not checked here (--keyring F)\n", name)
		return nil, nil
	}
	return k, err
}

// keyringBeside returns where the keyring of a configuration lies on this PC.
func keyringBeside(conf string, c *config.Config) string {
	if inside, ok := strings.CutPrefix(c.KeyringPath, config.Dir+"/"); ok {
		return filepath.Join(filepath.Dir(conf), inside)
	}
	return c.KeyringPath
}

func newImageStick() *cobra.Command {
	var o image.StickOptions
	var out string
	cmd := &cobra.Command{
		Use:   "stick [--whole-disk] [--exfat] [--report] --out stick.img FILE...",
		Short: "make a stick with files in its root folder",
		Long: `Makes a FAT32 stick, or an exFAT one where a file has 4 GiB or more. --report adds ` + image.Report + `, blank, in which
the device then writes what it did.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			if err := image.Stick(out, o, files); err != nil {
				return fmt.Errorf("make %s: %w", out, err)
			}
			cmd.Printf("made %s with %d files\n", out, len(files))
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.WholeDisk, "whole-disk", false, "no partition table: the file system is the whole stick")
	f.BoolVar(&o.ExFAT, "exfat", false, "exFAT also where FAT32 would do")
	f.BoolVar(&o.Report, "report", false, "with room for the device's report")
	f.StringVar(&out, "out", "", "the stick image")
	require(cmd, "out")
	return cmd
}
