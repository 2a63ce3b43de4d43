package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"lifeboat/boot"
	"lifeboat/boot/raspberrypi"
	"lifeboat/config"
	"lifeboat/disk"
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
		newBootloaderScript("grub.cfg", "GRUB's configuration", grubScript),
		newBootScr(),
		newBootloaderSdboot(),
		newBootloaderScript("autoboot.txt", "what the Raspberry Pi's boot loader goes by; the same bytes are autoboot.old", autoboot),
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

// bootPartition is where the kernel and the initramfs of a slot lie.
type bootPartition struct {
	name  string // bootname of the slot that it goes with
	label string // "" where it goes by its number alone
	index int    // as the kernel numbers it, 0: not known
}

// slots returns the boot partitions of all boot slots, in the order of the configuration: those of class boot that go with
// them.
func (s script) slots() ([]bootPartition, error) {
	known := map[string]int{}
	if s.disk != "" {
		d, err := disk.Open(s.disk, false)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		parts, err := disk.Partitions(d, d.Size())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.disk, err)
		}
		for _, p := range parts {
			known[p.Name] = p.Index
		}
	}
	var all []bootPartition
	for _, slot := range s.config.BootSlots() {
		kernel, err := bootloader.KernelSlot(s.config, slot)
		if err != nil {
			return nil, err
		}
		p := bootPartition{name: slot.Bootname}
		if label, ok := config.PartLabel(kernel.Device); ok {
			p.label, p.index = label, known[label]
			if s.disk != "" && p.index == 0 {
				return nil, fmt.Errorf("%s has no partition %s", s.disk, label)
			}
		} else if p.index, err = bootloader.PartitionNumber(kernel.Device); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// autoboot makes the autoboot.txt of a device that leaves the factory, as long as it will ever be.
func autoboot(s script) ([]byte, error) {
	all, err := s.slots()
	if err != nil {
		return nil, err
	}
	var names []string
	var parts []int
	var v boot.Vars
	for _, p := range all {
		if p.index == 0 {
			return nil, fmt.Errorf("slot %s: the boot loader knows partitions by their number: --disk says it", p.name)
		}
		names, parts, v.Order = append(names, p.name), append(parts, p.index), append(v.Order, boot.Turn{Name: p.name})
	}
	file := disk.NewMemory(raspberrypi.Size)
	if err := raspberrypi.New([]disk.Device{file}, names, parts, raspberrypi.Firmware{}).Write(v); err != nil {
		return nil, err
	}
	b := make([]byte, file.Size())
	_, err = file.ReadAt(b, 0)
	return b, err
}
