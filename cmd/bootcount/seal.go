package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lifeboat/config"
)

// handler is what RAUC tells the program that it runs after an install.
type handler struct {
	root string // where /proc, /sys and RAUC's configuration are
	env  func(string) string
}

// written returns the boot slot to which RAUC has just written, itself or one that goes with it.
func (h handler) written(c *config.Config) (string, error) {
	slot := ""
	for _, n := range strings.Fields(h.env("RAUC_TARGET_SLOTS")) {
		name := h.env("RAUC_SLOT_NAME_" + n)
		s, ok := c.SlotByName(name)
		if !ok || s.Name != name || s.Bootname == "" && s.Parent == "" {
			continue // none of those that are booted
		}
		boot := s.Name
		if s.Parent != "" {
			boot = s.Parent
		}
		if slot != "" && slot != boot {
			return "", fmt.Errorf("RAUC has written to %s and to %s: they do not go together here", slot, boot)
		}
		slot = boot
	}
	if slot == "" {
		return "", errors.New("RAUC does not say to which slot it has written (RAUC_TARGET_SLOTS): run this as its post-install handler")
	}
	if file := h.env("RAUC_SYSTEM_CONFIG"); file != "" {
		conf, err := os.ReadFile(filepath.Join(h.root, file))
		if err != nil {
			return "", err
		}
		for _, s := range resized(conf) {
			if t, ok := c.SlotByName(s); ok && (t.Name == slot || t.Parent == slot) {
				return "", fmt.Errorf("%s has resize=true in [slot.%s]: the file system then covers the place of hash tree and seal. Remove it and install again", file, s)
			}
		}
	}
	return slot, nil
}

// resized returns the slots whose file system RAUC grows after it has written them.
func resized(conf []byte) (slots []string) {
	eachSaid(conf, "resize", func(section, v string) {
		if v == "true" || v == "1" {
			slots = append(slots, strings.TrimPrefix(section, "slot."))
		}
	})
	return slots
}

// eachSaid calls do for each time that a key stands in a configuration of RAUC.
func eachSaid(conf []byte, key string, do func(section, value string)) {
	section := ""
	for line := range strings.Lines(string(conf)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		}
		if k, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(k) == key {
			do(section, strings.TrimSpace(value))
		}
	}
}

// bundle returns the file of the bundle that RAUC has mounted: its mount is that of a loop device, or of a dm-verity device
// over one.
func (h handler) bundle() (string, error) {
	at := h.env("RAUC_BUNDLE_MOUNT_POINT")
	if at == "" {
		at = h.env("RAUC_UPDATE_SOURCE")
	}
	mounts, err := os.ReadFile(filepath.Join(h.root, "proc/self/mountinfo"))
	if err != nil {
		return "", err
	}
	device := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); at != "" && len(f) > 4 && f[4] == strings.TrimSuffix(at, "/") {
			device = f[2]
		}
	}
	under := []string{filepath.Join(h.root, "sys/dev/block", device)}
	for depth := 0; device != "" && depth < 4 && len(under) > 0; depth++ { // crypt over verity over loop
		for _, dir := range under {
			if b, err := os.ReadFile(filepath.Join(dir, "loop/backing_file")); err == nil {
				return strings.TrimSpace(string(b)), nil
			}
		}
		var next []string
		for _, dir := range under {
			more, _ := filepath.Glob(filepath.Join(dir, "slaves/*"))
			next = append(next, more...)
		}
		under = next
	}
	return "", errors.New("the bundle that RAUC has mounted is no file here: bootcount seal BUNDLE")
}
