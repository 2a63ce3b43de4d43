package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/config"
	"lifeboat/image"
	"lifeboat/verify"
)

// newInitramfs is `lifeboat initramfs`.
func newInitramfs() *cobra.Command {
	cmd := &cobra.Command{Use: "initramfs", Short: "make the initramfs with /init"}
	cmd.AddCommand(newInitramfsBuild())
	return cmd
}

func newInitramfsBuild() *cobra.Command {
	var o image.InitramfsOptions
	var spec, features, out string
	cmd := &cobra.Command{
		Use:   "build --config F --keyring F --kernel DIR --out F [flags]",
		Short: "put /init, configuration, keyring and kernel modules into an initramfs",
		Long: `DIR is the root of an unpacked kernel package ("dpkg-deb -x linux-image-....deb DIR"). What is compressed how
follows from the name: .gz gzip, .cpio not at all, everything else zstd. The same input gives the same bytes.

The time of the build is the earliest that the device believes in: SOURCE_DATE_EPOCH, else the newest
beginning of validity in the keyring.

--features chooses groups of modules: names, changes like "+nvme,-erofs", or "all". There are
  virtio scsi nvme ahci mmc verity integrity squashfs erofs ext4 overlay watchdog efivars usb usb2
and by default it has virtio verity squashfs erofs ext4 watchdog usb.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keyring, err := readKeyring(o.Keyring)
			if err != nil {
				return err
			}
			if o.Build, err = buildTime(keyring); err != nil {
				return err
			}
			if o.Features, err = image.Features(features); err != nil {
				return usagef("--features: %w", err)
			}
			if spec != "" {
				b, err := os.ReadFile(spec)
				if err != nil {
					return err
				}
				o.Spec = string(b)
			}
			if o.Init == "" {
				if o.Init, err = besideExecutable(initFor(o.Config)); err != nil {
					return err
				}
			}
			r, err := image.Initramfs(cmd.Context(), o, out)
			if err != nil {
				return err
			}
			for _, w := range r.Config.Warnings {
				cmd.PrintErrf("lifeboat: warning: %s: %s\n", o.Config, w)
			}
			kernel := "no kernel modules"
			if r.Release != "" {
				kernel = fmt.Sprintf("%d modules of kernel %s (%s)", r.Modules, r.Release, strings.Join(o.Features, " "))
			}
			cmd.Printf("made %s: %d bytes (%s) of %d, %s, build time %s\n",
				out, r.Size, r.Compression, r.RawSize, kernel, o.Build.UTC().Format(time.RFC3339))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Config, "config", "", "system.conf")
	f.StringVar(&o.Keyring, "keyring", "", "what bundles are checked against: certificates (PEM) or the text of a keyring (keys keyring create)")
	f.StringVar(&o.Kernel, "kernel", "", "root of an unpacked kernel package")
	f.StringVar(&out, "out", "", "the initramfs")
	f.StringVar(&spec, "spec", "", "list of files in the form of gen_init_cpio (default: the built-in initramfs.cpio.spec)")
	f.StringVar(&o.Init, "init", "", `the static program that becomes /init (default: beside this program "init", "init-raw" for bootloader=raw, "init-full" where the boot loader is updated or slots take archives)`)
	f.StringVar(&o.IntegrityKey, "integrity-key", "", "key for integrity=hmac-sha256: 16 to 64 random bytes; who has it can change what it protects")
	f.StringVar(&features, "features", "", "groups of kernel modules")
	f.StringArrayVar(&o.Modules, "module", nil, `one more kernel module, with its options after a space (may be repeated)`)
	require(cmd, "config", "keyring", "kernel", "out")
	return cmd
}

func buildTime(k *verify.Keyring) (time.Time, error) {
	s := os.Getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		return k.NewestNotBefore(), nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%q is not a number of seconds", s)
	}
	return time.Unix(n, 0), nil
}

func besideExecutable(name string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(exe), name)
	if _, err := os.Stat(path); missing(err) {
		return "", fmt.Errorf("there is no %s: give --init F", path)
	}
	return path, nil
}

// initFor returns the name of the /init for a configuration.
func initFor(conf string) string {
	if b, err := os.ReadFile(conf); err == nil {
		if c, err := config.Parse(b); err == nil {
			name := image.InitFor(c)
			if _, err := besideExecutable(name); err == nil || name == "init-full" {
				return name
			}
		}
	}
	return "init" // what is wrong with the configuration is said by who reads it
}
