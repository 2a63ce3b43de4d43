package main

import (
	"fmt"
	"path/filepath"

	"github.com/u-root/u-root/pkg/mount"

	"lifeboat/boot"
	"lifeboat/config"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/update/crew"
)

// treeSlots wires the slots that take archives; nil where there are none.
func (d *device) treeSlots() *crew.Trees {
	if config.Slim || !d.cfg.Trees() {
		return nil
	}
	return &crew.Trees{Config: d.cfg, Path: d.slotPath, Template: filepath.Join(config.Dir, status.Template), Key: d.cfg.IntegrityKey}
}

// openTree mounts the file system of a slot that was made of an archive; its system may write to it.
func (s *slotDoor) openTree(slot, name, at string) error {
	path, err := s.trees.Open(name, slot, false)
	if err != nil {
		return fault(status.Unreadable, fmt.Errorf("open slot %s: %w", s.d.slotName(slot), err))
	}
	if at == "" {
		return nil
	}
	// What cannot be written any more goes read-only; the journal is replayed here.
	if _, err := mount.Mount(path, at, "ext4", "errors=remount-ro", 0); err != nil {
		return fault(mountFault(err), err)
	}
	return nil
}

func (s *slotDoor) closeTree(name string) {
	if !config.Slim && s.trees != nil {
		_ = s.trees.Close(name)
	}
}

// authenticity says in words what is known of a slot's files at each boot.
func authenticity(f slots.Facts) string {
	switch f.Integrity {
	case "":
		return boot.Authenticity(!f.Signed)
	case "none":
		return boot.Authenticity(true)
	case config.Keyed:
		return "keyed integrity"
	}
	return "corruption only"
}
