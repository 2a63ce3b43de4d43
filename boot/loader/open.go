//go:build !raw

package loader

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"lifeboat/boot"
	"lifeboat/boot/efi"
	"lifeboat/boot/grub"
	"lifeboat/boot/sdboot"
	"lifeboat/boot/uboot"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/fat"
)

// Place is where the variables of a boot loader are found on this machine.
type Place struct {
	Block disk.Block            // that [bootloader] device= means; of a raw flash its name is enough
	Slots map[string]disk.Block // by name
	// Where the file system on Block is mounted: how its files are opened, and the folder of systemd-boot's entries. nil
	// where it is not: then files are written in place.
	File   func(path string) (disk.Device, error)
	Folder sdboot.Folder
}

// Open opens the place of the configured boot loader. What it opens stays open: it is needed as long as the program runs.
func Open(c *config.Config, at Place) (l boot.Loader, err error) {
	defer alive(&err)
	var names []string
	for _, s := range c.BootSlots() {
		names = append(names, s.Bootname)
	}
	switch c.Bootloader {
	case "grub":
		var env []disk.Device
		if env, err = copies(c, at, []string{grub.File, grub.Shadow}, grub.Size); err == nil {
			l, err = grub.New(env, names)
		}
	case "uboot":
		var env []disk.Device
		if env, err = copies(c, at, uboot.Files, uboot.Size); err == nil {
			var u *uboot.Loader
			if u, err = uboot.New(env, names, c.Loader.Schema); err == nil {
				u.SlotVar = c.Loader.SlotVar
				if l = u; config.Flash(c.Loader.Device) {
					kind, _ := disk.Attr("/sys/class/mtd/"+at.Block.Name, "type")
					u.NOR = kind == "nor"
				}
			}
		}
	case "sdboot":
		dir := at.Folder
		if dir == nil {
			var fs *fat.FS
			if fs, _, err = openFAT(at.Block); err != nil {
				return nil, err
			}
			dir = sdboot.Unmounted{FS: fs}
		}
		l = sdboot.New(dir, variables(), names)
	case "efi":
		var slots []efi.Slot
		for _, b := range c.BootSlots() {
			s := efi.Slot{Name: b.Bootname, File: `\vmlinuz`, Args: `initrd=\initramfs`}
			for _, g := range c.Group(b.Name) {
				if g.File != "" { // a unified image brings both
					s.File, s.Args = strings.ReplaceAll(g.File, "/", `\`), ""
				}
			}
			s.File, s.Args = cmp.Or(b.EFILoader, s.File), cmp.Or(b.EFICmdline, s.Args)
			slots = append(slots, s)
		}
		l = efi.New(variables(), slots, func(name string) (efi.Partition, error) { return partition(kernelOf(c, at, name)) })
	case "barebox", "raspberrypi":
		l, err = board(c, at, names)
	default:
		err = errors.New("[system] bootloader=" + c.Bootloader + " is not written by this program")
	}
	if err != nil {
		return nil, err
	}
	return guarded{l}, nil
}

// variables are the firmware's. Where they are not there, who reads them says so.
func variables() efi.Dir {
	_ = efi.Efivars.Mount()
	return efi.Efivars
}

// kernelOf finds the partition with a slot's kernel: the one of the slot that goes with it and is not mounted, else the boot
// loader's.
func kernelOf(c *config.Config, at Place, bootname string) disk.Block {
	s, _ := c.SlotByName(bootname)
	for _, g := range c.Group(s.Name) {
		if b, ok := at.Slots[g.Name]; ok && g.Mount == "" {
			return b
		}
	}
	return at.Block
}

// partition reads what a device path says of a partition.
func partition(b disk.Block) (efi.Partition, error) {
	whole, err := disk.Open(disk.Block{Name: b.Disk}.Path(), false)
	if err != nil {
		return efi.Partition{}, err
	}
	defer whole.Close()
	return efi.FindPartition(whole, 512, b.Part)
}

func openFAT(b disk.Block) (fs *fat.FS, dev *disk.File, err error) {
	if dev, err = disk.Open(b.Path(), true); err == nil {
		fs, err = fat.Open(dev, dev.Size())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", b.Path(), err)
	}
	return fs, dev, nil
}

// copies are the one or two places of a loader's variables, each as a device of exactly its bytes. One that cannot be
// opened is a device that fails. files and size are the loader's defaults.
func copies(c *config.Config, at Place, files []string, size int64) (out []disk.Device, err error) {
	l := c.Loader
	if len(l.Files) > 0 {
		files = l.Files
	}
	if l.Size > 0 {
		size = l.Size
	}
	if len(l.Offsets) > 0 {
		dev, err := disk.Open(at.Block.Path(), true)
		if err != nil {
			return nil, err
		}
		for _, off := range l.Offsets {
			out = append(out, disk.Section(dev, off, size))
		}
		return out, nil
	}
	open := at.File
	if open == nil {
		fs, dev, err := openFAT(at.Block)
		if err != nil {
			return nil, err
		}
		open = func(path string) (disk.Device, error) {
			f, err := fs.Open(path)
			return &inFAT{f, dev}, err
		}
	}
	for _, file := range files {
		f, err := open(file)
		if err != nil {
			f = dead{err}
		}
		out = append(out, f)
	}
	return out, nil
}

// FileIn opens a file in the FAT file system on dev, which nobody has mounted.
func FileIn(dev disk.Device, path string) (disk.Device, error) {
	fs, err := fat.Open(dev, dev.Size())
	if err != nil {
		return nil, err
	}
	f, err := fs.Open(path)
	return &inFAT{f, dev}, err
}

// inFAT is a file in a FAT file system that nobody has mounted.
type inFAT struct {
	*fat.File
	dev disk.Device
}

func (f *inFAT) Flush() error { return f.dev.Flush() }

// dead is a copy that cannot be opened.
type dead struct{ err error }

func (d dead) ReadAt([]byte, int64) (int, error)  { return 0, d.err }
func (d dead) WriteAt([]byte, int64) (int, error) { return 0, d.err }
func (d dead) Flush() error                       { return d.err }
func (d dead) Size() int64                        { return 0 }
