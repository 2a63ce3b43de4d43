package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lifeboat/boot"
	"lifeboat/boot/efi"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/boot/sdboot"
	"lifeboat/disk"
)

// tells opens the boot loader's own place, so that the loader is told of each record.
func (s *session) tells(record *raw.Store) (boot.Store, error) {
	l, err := s.loader()
	if err != nil {
		return nil, fmt.Errorf("open the boot loader's variables: %w", err)
	}
	s.policy.Most = l.Most()
	return &loader.Store{
		Store: record, Loader: l, Policy: s.policy,
		Say: func(line string) { fmt.Fprintln(os.Stderr, "bootcount:", line) },
	}, nil
}

func (s *session) loader() (boot.Loader, error) {
	at := loader.Place{EFIVars: efi.Efivars}
	blocks, err := disk.Blocks("/sys")
	if err != nil {
		return nil, err
	}
	if at.Slots, err = slotBlocks(s.cfg, blocks, s.report.Booted); err != nil {
		return nil, err
	}
	if at.Block, err = beside(s.cfg.Loader.Device, blocks, s.report.Booted); err != nil && s.cfg.Bootloader != "efi" {
		return nil, err
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	if on := mountOf(string(mounts), at.Block.Path()); on != "" {
		at.Folder = sdboot.Mounted(on)
		at.File = func(path string) (disk.Device, error) { return disk.Open(filepath.Join(on, path), true) }
	}
	return loader.Open(s.cfg, at)
}

// mountOf returns where a device's file system is mounted for writing, "" where it is not.
func mountOf(mounts, device string) string {
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) > 3 && f[0] == device && strings.HasPrefix(f[3]+",", "rw,") {
			return unescape(f[1])
		}
	}
	return ""
}

// unescape undoes what the kernel does to a path in /proc/mounts.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
