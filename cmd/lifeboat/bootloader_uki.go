package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"lifeboat/image/bootloader"
)

// newBootloaderUKI is `lifeboat bootloader uki`.
func newBootloaderUKI() *cobra.Command {
	var stub, kernel, initrd, release, out string
	var u bootloader.Unified
	cmd := &cobra.Command{
		Use:   "uki --linux vmlinuz --initrd initramfs --out F [flags]",
		Short: "a unified kernel image, for slots that are files on the ESP",
		Long: `Joins a kernel and an initramfs with systemd's stub into one PE file. The same image serves in every slot: say
nothing of a slot on its command line.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			for _, in := range []struct {
				file string
				to   *[]byte
			}{{stub, &u.Stub}, {kernel, &u.Kernel}, {initrd, &u.Initrd}, {release, &u.OSRelease}} {
				if in.file == "" {
					continue
				}
				var err error
				if *in.to, err = os.ReadFile(in.file); err != nil {
					return err
				}
			}
			b, err := u.Image()
			if err != nil {
				return fmt.Errorf("uki: %w", err)
			}
			return os.WriteFile(out, b, 0o644)
		},
	}
	f := cmd.Flags()
	f.StringVar(&stub, "stub", "/usr/lib/systemd/boot/efi/linuxx64.efi.stub", "systemd's stub")
	f.StringVar(&kernel, "linux", "", "the kernel")
	f.StringVar(&initrd, "initrd", "", "the initramfs")
	f.StringVar(&u.Cmdline, "cmdline", "", "the kernel's command line (default: what the boot loader's entry says)")
	f.StringVar(&release, "os-release", "", "the system's os-release, optional")
	f.StringVar(&out, "out", "", "file that is written")
	require(cmd, "linux", "initrd", "out")
	return cmd
}
