package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Slot is one [slot.CLASS.INDEX].
type Slot struct {
	Name        string // "rootfs.0"
	Class       string // "rootfs"
	Index       int
	Device      string // as written; see [PartLabel]
	File        string // absolute path in the FAT file system on Device; "": the slot is all of Device
	Type        string // RAUC's slot type, "raw" by default
	Bootname    string // "" if the slot isn't booted itself
	Parent      string // Name of the slot that this one goes with, or ""
	Mount       string // where early boot mounts a slot with a parent, below the new root; "": it does not
	Description string
	ReadOnly    bool

	Tree *Tree // the slot takes archives of file trees beside images; nil: images only

	Region *Region // of a slot of the boot loader itself ([Config.Loaders]); nil for others

	// bootloader=efi: the file that the firmware starts, and what it is told. The file is in the partition of the slot that
	// goes with this one and is not mounted, by default vmlinuz, or that slot's File; where there is none, on the boot
	// loader's Device.
	EFILoader, EFICmdline string
}

// Tree says how a slot takes an archive: it becomes a file system of its own, which the system may write to.
type Tree struct {
	Integrity string // dm-integrity below the file system: none, crc32c, sha256 or hmac-sha256
	Devices   bool   // the archive may hold device nodes
	Setuid    bool   // and programs with more rights than who starts them
	Label     string // of the file system, at most 16 bytes
}

// Region is where the two copies of a boot loader lie on a disk, and the most that an image may have in a boot partition of an
// eMMC, which has no region; bytes.
type Region struct{ Start, Size, Limit int64 }

// SlotByName finds a slot by its name ("rootfs.0") or its bootname ("A").
func (c *Config) SlotByName(name string) (Slot, bool) {
	if name == "" {
		return Slot{}, false
	}
	for _, s := range c.Slots {
		if s.Name == name || s.Bootname == name {
			return s, true
		}
	}
	return Slot{}, false
}

// BootSlots returns the slots that have a bootname, by class and index.
func (c *Config) BootSlots() []Slot {
	var boot []Slot
	for _, s := range c.Slots {
		if s.Bootname != "" {
			boot = append(boot, s)
		}
	}
	return boot
}

// Group returns the slots that go with a boot slot, by class: one bundle fills all of them.
func (c *Config) Group(parent string) []Slot {
	var group []Slot
	for _, s := range c.Slots {
		if s.Parent == parent {
			group = append(group, s)
		}
	}
	return group
}

// raucSection tells sections that RAUC knows and that mean nothing here.
func raucSection(name string) bool {
	switch name {
	case "streaming", "polling", "encryption", "casync", "autoinstall", "handlers":
		return true
	}
	return strings.HasPrefix(name, "log.") || strings.HasPrefix(name, "artifacts.")
}

func (c *Config) slot(name string, s section) (Slot, error) {
	slot := Slot{Name: name, Type: "raw"}
	class, index, ok := strings.Cut(name, ".")
	n, err := strconv.Atoi(index)
	if !ok || !isName(class) || err != nil || n < 0 || n > 99 || strconv.Itoa(n) != index {
		return slot, fmt.Errorf("line %d: [%s] is not [slot.CLASS.N] with a class of 1 to 16 of A-Z a-z 0-9 _ - and N of 0 to 99", s.line, clip(s.name))
	}
	slot.Class, slot.Index = class, n
	for _, e := range s.keys {
		if err := c.slotKey(&slot, e); err != nil {
			return slot, fmt.Errorf("line %d: [%s] %s: %w", e.line, s.name, clip(e.key), err)
		}
	}
	if slot.Device == "" {
		return slot, fmt.Errorf("line %d: [%s] has no device=", s.line, s.name)
	}
	if slot.Bootname != "" && slot.Parent != "" {
		return slot, fmt.Errorf("line %d: [%s] has both bootname= and parent=", s.line, s.name)
	}
	if slot.Mount != "" && slot.Parent == "" {
		return slot, fmt.Errorf("line %d: [%s] has mount= and no parent=: what is booted is the root", s.line, s.name)
	}
	if slot.Bootname != "" && slot.Type != "raw" && slot.Type != "ext4" {
		return slot, fmt.Errorf("line %d: [%s] is booted and can't be of type %s, use raw", s.line, s.name, slot.Type)
	}
	return slot, nil
}

func (c *Config) slotKey(slot *Slot, e entry) error {
	switch e.key {
	case "device":
		return device(&slot.Device, e.value)
	case "type":
		return choice(&slot.Type, e.value, "raw", "ext4", "vfat", "nand", "nor", "ubivol", "ubifs", "jffs2",
			"boot-emmc", "boot-mbr-switch", "boot-gpt-switch", "boot-raw-fallback")
	case "bootname":
		if !isName(e.value) {
			return fmt.Errorf("%q is not 1 to 16 of A-Z a-z 0-9 _ -", clip(e.value))
		}
		slot.Bootname = e.value
		return nil
	case "file":
		return absolute(&slot.File, e.value)
	case "parent":
		return text(&slot.Parent, e.value, 32)
	case "mount":
		return absolute(&slot.Mount, e.value)
	case "description":
		return text(&slot.Description, e.value, 255)
	case "readonly":
		return boolean(&slot.ReadOnly, e.value)
	case "efi-loader":
		return text(&slot.EFILoader, e.value, 255)
	case "efi-cmdline":
		return text(&slot.EFICmdline, e.value, 2048)
	case "region-start", "region-size", "size-limit":
		if Slim {
			return nil
		}
		return slot.loaderKey(e)
	case "integrity", "allow-devices", "allow-setuid", "label":
		if Slim {
			return nil
		}
		return slot.treeKey(e)
	case "allow-mounted", "extra-mkfs-opts", "extra-mount-opts", "install-same", "force-install-same", "ignore-checksum", "resize":
		c.warn(e.line, "[slot.%s] %s means nothing here", slot.Name, e.key)
		return nil
	}
	return errUnknownKey
}

// checkSlots looks at what concerns several slots. lines has each slot's.
func (c *Config) checkSlots(lines map[string]int) error {
	bootnames := map[string]string{}
	devices := map[string]string{}
	perClass := map[string]int{}
	boot, most := 0, 0
	for _, taken := range []struct{ device, by string }{{c.StateDevice, "[state]"}, {c.StagingDevice, "[staging]"}, {c.Data.Device, "[data]"}} {
		if taken.device == "" {
			continue
		}
		if by, dup := devices[deviceKey(taken.device)]; dup {
			return fmt.Errorf("%s and %s both have device %s", by, taken.by, taken.device)
		}
		devices[deviceKey(taken.device)] = taken.by
	}
	for _, s := range c.Slots {
		line := lines[s.Name]
		if strings.HasPrefix(s.Type, "boot-") {
			continue // a slot of the boot loader: on the disk of all the others
		}
		key := deviceKey(s.Device)
		by, dup := devices[key]
		if s.File != "" {
			if s.Parent == "" || s.Mount != "" || s.Type != "raw" || c.Bootloader != "sdboot" && c.Bootloader != "efi" {
				return fmt.Errorf("line %d: [slot.%s] has file=: that is for sdboot and efi, with parent=, of type raw, without mount=", line, s.Name)
			}
			if !dup {
				devices[key] = files
			}
			dup = dup && by != files
			if !dup {
				key += strings.ToLower(s.File)
				by, dup = devices[key]
			}
		}
		if dup {
			return fmt.Errorf("line %d: %s and [slot.%s] both have device %s", line, by, s.Name, s.Device+s.File)
		}
		devices[key] = "[slot." + s.Name + "]"
		if s.Parent != "" {
			p, ok := c.SlotByName(s.Parent)
			if !ok || p.Name != s.Parent {
				return fmt.Errorf("line %d: parent %q of [slot.%s] is no slot", line, clip(s.Parent), s.Name)
			}
			if p.Parent != "" {
				return fmt.Errorf("line %d: parent %q of [slot.%s] has a parent itself", line, clip(s.Parent), s.Name)
			}
		}
		if s.Bootname == "" {
			continue
		}
		if by, dup := bootnames[s.Bootname]; dup {
			return fmt.Errorf("line %d: bootname %s of [slot.%s] is taken by [slot.%s]", line, s.Bootname, s.Name, by)
		}
		bootnames[s.Bootname] = s.Name
		boot++
		perClass[s.Class]++
		most = max(most, perClass[s.Class])
	}
	if most < 2 {
		return errors.New("fewer than two slots of one class have a bootname: an update needs one to boot and one to write")
	}
	if boot > MaxBootSlots {
		return fmt.Errorf("%d slots have a bootname, at most %d can", boot, MaxBootSlots)
	}
	if len(perClass) > 1 {
		return fmt.Errorf("slots of %d classes have a bootname: a bundle's image for one could not be booted in the other", len(perClass))
	}
	if !Slim {
		if err := errors.Join(c.checkLoaders(lines, perClass), c.checkData()); err != nil {
			return err
		}
	}
	if err := c.checkGroups(lines); err != nil || Slim {
		return err
	}
	return c.checkTrees(lines)
}

// checkGroups sees to it that a bundle for one boot slot's group is one for every other's.
func (c *Config) checkGroups(lines map[string]int) error {
	classes := func(group []Slot) (all []string) {
		for _, s := range group {
			all = append(all, s.Class)
		}
		return all
	}
	var first []string
	for i, b := range c.BootSlots() {
		group := c.Group(b.Name)
		for j, s := range group {
			line := lines[s.Name]
			switch {
			case s.Class == b.Class:
				return fmt.Errorf("line %d: [slot.%s] is of its parent's class", line, s.Name)
			case s.Class == "root":
				return fmt.Errorf("line %d: [slot.%s]: the class root would be the mapped device lifeboat-root, which is the parent's", line, s.Name)
			case slices.ContainsFunc(group[:j], func(o Slot) bool { return o.Class == s.Class }):
				return fmt.Errorf("line %d: [slot.%s] is the second of its class with the parent %s", line, s.Name, b.Name)
			case s.Mount != "" && slices.ContainsFunc(group, func(o Slot) bool {
				return o.Name != s.Name && strings.HasPrefix(s.Mount+"/", o.Mount+"/") && o.Mount != ""
			}):
				return fmt.Errorf("line %d: [slot.%s] has mount=%s in the place of another", line, s.Name, s.Mount)
			case s.Type != "raw" && s.Type != "ext4" && s.Type != "vfat":
				return fmt.Errorf("line %d: [slot.%s] goes with a slot that is booted and can't be of type %s, use raw", line, s.Name, s.Type)
			}
		}
		if len(group) > MaxChildren {
			return fmt.Errorf("%d slots have the parent %s, at most %d can", len(group), b.Name, MaxChildren)
		}
		if i == 0 {
			first = classes(group)
		} else if !slices.Equal(classes(group), first) {
			return fmt.Errorf("line %d: with [slot.%s] go the classes %q, with [slot.%s] %q: a bundle fits only where they are the same",
				lines[b.Name], b.Name, classes(group), c.BootSlots()[0].Name, first)
		}
	}
	return nil
}

// files says who has a device whose files are slots.
const files = "slots in files"

// deviceKey makes both ways to name a partition label equal.
func deviceKey(device string) string {
	if label, ok := PartLabel(device); ok {
		return "PARTLABEL=" + label
	}
	return device
}
