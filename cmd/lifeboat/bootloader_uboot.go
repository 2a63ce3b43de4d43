package main

import (
	"github.com/spf13/cobra"

	"lifeboat/image/bootloader"
)

// newBootScr is `lifeboat bootloader boot.scr`.
func newBootScr() *cobra.Command {
	var o bootloader.UBootOptions
	var text bool
	cmd := newBootloaderScript("boot.scr", "U-Boot's script", func(s script) ([]byte, error) {
		o.Append = s.cmdline
		script, err := bootloader.UBoot(s.config, o)
		if err != nil || text {
			return []byte(script), err
		}
		return bootloader.UBootImage(script, o.Arch)
	})
	f := cmd.Flags()
	f.StringVar(&o.Arch, "arch", "x86", "x86, arm or arm64: how U-Boot starts a kernel")
	f.BoolVar(&o.FIT, "fit", false, "a boot slot is a FIT image; else a FAT file system with vmlinuz and initramfs")
	f.BoolVar(&o.SaveEnv, "saveenv", false, "U-Boot keeps its environment itself; else the script does, in two files")
	f.Uint64Var(&o.Scratch, "scratch", 0, "address of 8 MiB of RAM for the script, without --saveenv (default: by --arch)")
	f.StringSliceVar(&o.Keep, "keep", nil, "further variables that stay in the files")
	f.BoolVar(&text, "text", false, "the script itself, without the header that U-Boot wants")
	return cmd
}
