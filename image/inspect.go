package image

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/fat"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/verify"
)

// DiskView is what lies on the disk of a device.
type DiskView struct {
	Kind       string        `json:"kind"`  // "disk"
	State      *status.State `json:"state"` // null if no record is valid
	StateError string        `json:"state_error,omitempty"`
	Seals      []SealView    `json:"seals"`
	Partitions []Place       `json:"partitions"`
}

// SealView is a slot's own word about what it holds.
type SealView struct {
	Slot         string `json:"slot"`
	Bootname     string `json:"bootname"`
	Seal         string `json:"seal"` // "valid", "missing" or "false"
	Version      string `json:"version"`
	ManifestHash string `json:"manifest_hash"`
	Kind         string `json:"kind,omitempty"`    // "verity-image" or "local"
	Signed       bool   `json:"signature_checked"` // with a keyring; else only the form was
	Why          string `json:"why,omitempty"`     // it is false
}

// StickView is what lies on a stick, as early boot would find it.
type StickView struct {
	Kind  string      `json:"kind"` // "stick"
	Files []StickFile `json:"files"`
}

// StickFile is a file in a folder of a stick in which bundles are looked for.
type StickFile struct {
	Partition int         `json:"partition"` // 0: no partition table
	Name      string      `json:"name"`      // with its folder
	Size      int64       `json:"size"`      // bytes
	Bundle    *StickOffer `json:"bundle,omitempty"`
	Why       string      `json:"why,omitempty"` // a file called *.raucb is none
}

// StickOffer is what a bundle says of itself, nothing of it checked.
type StickOffer struct {
	Compatible   string `json:"compatible"`
	Version      string `json:"version"`
	Format       string `json:"format"`
	ManifestHash string `json:"manifest_hash"`
}

// InspectOptions help to understand a disk.
type InspectOptions struct {
	Config *config.Config // names of the slots; nil: the partition labels are them
	Rules  *verify.Rules  // to verify seals with; nil: only their form is looked at
}

// ErrUnknown says that a file is nothing that Inspect knows.
var ErrUnknown = errors.New("neither a disk, a stick, an initramfs nor a bundle")

// Inspect looks into a disk, a stick or an initramfs and returns a *DiskView, a *StickView or an *Archive. For a bundle it
// returns a nil view: what a bundle says is the bundle package's to tell. Nothing is written.
func Inspect(ctx context.Context, name string, o InspectOptions) (any, error) {
	dev, err := disk.Open(name, false)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	parts, err := disk.Partitions(dev, dev.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if view, ok := inspectDisk(dev, parts, o); ok {
		return view, nil
	}
	if view, ok, err := inspectStick(dev, parts); ok {
		return view, err
	}
	if _, err := bundle.Peek(dev, dev.Size()); err == nil || filepath.Ext(name) == ".raucb" {
		return nil, nil
	}
	view, err := ReadArchive(name)
	if errors.Is(err, errNotArchive) {
		return nil, fmt.Errorf("%s is %w", name, ErrUnknown)
	}
	if err != nil {
		return nil, err
	}
	return view, nil
}

// inspectDisk reads state and seals, and false if there is neither.
func inspectDisk(dev *disk.File, parts []disk.Partition, o InspectOptions) (*DiskView, bool) {
	view := &DiskView{Kind: "disk", Seals: []SealView{}, Partitions: []Place{}}
	var state boot.State
	stateErr := fmt.Errorf("no partition %s", stateName(o.Config))
	found := false
	for _, p := range parts {
		view.Partitions = append(view.Partitions, Place{Index: p.Index, Label: p.Name, Start: p.Start, Size: p.Size})
		if !isDevice(p, stateName(o.Config), stateLabel) {
			continue
		}
		found = true
		if store, err := raw.New(disk.Section(dev, p.Start, p.Size)); err != nil {
			stateErr = err
		} else {
			state, _, stateErr = store.Load()
		}
	}
	// Without a configuration the record knows which slots there are; in the order of a configuration, by which its
	// events count them.
	var names []config.Slot
	if o.Config != nil {
		for _, s := range o.Config.BootSlots() {
			names = append(append(names, s), o.Config.Group(s.Name)...)
		}
	} else {
		for _, n := range state.Names {
			names = append(names, config.Slot{Name: n.Slot, Bootname: n.Bootname})
		}
		for _, p := range parts {
			if hasSeal(dev, p) && !slices.ContainsFunc(names, func(s config.Slot) bool { return s.Name == p.Name }) {
				names = append(names, config.Slot{Name: p.Name})
			}
		}
	}
	if !found && len(names) == 0 {
		return nil, false
	}
	p := boot.Policy{}
	if o.Config != nil {
		p = boot.PolicyOf(o.Config, 0)
	} else {
		for _, s := range names {
			p.Slots = append(p.Slots, s.Name)
			p.Bootnames = append(p.Bootnames, s.Bootname)
		}
	}
	if stateErr == nil {
		s := state.Status(p)
		view.State = &s
	} else {
		view.StateError = stateErr.Error()
	}
	for _, s := range names {
		v := SealView{Slot: s.Name, Bootname: s.Bootname, Seal: "missing", Why: "no such partition"}
		label := s.Name
		if s.File != "" {
			label = espLabel
		}
		for _, part := range parts {
			if !isDevice(part, cmp.Or(s.Device, "PARTLABEL="+s.Name), label) {
				continue
			}
			slot := disk.Section(dev, part.Start, part.Size)
			if s.File != "" {
				var err error
				if slot, err = loader.FileIn(slot, s.File); err != nil {
					v.Why = err.Error()
					continue
				}
			}
			v = inspectSeal(v, io.NewSectionReader(slot, 0, slot.Size()), o)
		}
		for _, parent := range view.Seals {
			if parent.Slot == s.Parent && parent.Seal == "valid" && v.Seal == "valid" && v.ManifestHash != parent.ManifestHash {
				v.Seal, v.Why = "false", "it is of another bundle than "+parent.Slot+", with which it goes"
			}
		}
		view.Seals = append(view.Seals, v)
	}
	return view, true
}

func stateName(c *config.Config) string {
	if c == nil {
		return "PARTLABEL=" + stateLabel
	}
	return c.StateDevice
}

// isDevice reports whether a partition is the one that device= names; label is its label where that is a kernel name.
func isDevice(p disk.Partition, device, label string) bool {
	if given, ok := config.PartLabel(device); ok {
		return p.Name == given
	}
	_, index, ok := splitDevice(device)
	return ok && p.Index == index && (p.Name == "" || p.Name == label)
}

func hasSeal(dev *disk.File, p disk.Partition) bool {
	_, err := slots.ReadSeal(io.NewSectionReader(dev, p.Start, p.Size), p.Size)
	return err == nil || errors.Is(err, slots.ErrFalse)
}

func inspectSeal(v SealView, slot *io.SectionReader, o InspectOptions) SealView {
	v.Why = ""
	seal, err := slots.ReadSeal(slot, slot.Size())
	if errors.Is(err, slots.ErrMissing) {
		return v
	}
	v.Seal = "false"
	if err != nil {
		v.Why = err.Error()
		return v
	}
	v.Kind = seal.Kind.String()
	cms, err := verify.ReadCMS(seal.CMS)
	if err != nil {
		v.Why = err.Error()
		return v
	}
	said := cms.Unverified()
	if cms.Detached() {
		said = seal.Manifest
	}
	m, err := bundle.ParseManifest(said)
	if err != nil {
		v.Why = err.Error()
		return v
	}
	hash := m.Hash()
	v.Version, v.ManifestHash = m.Version, hex.EncodeToString(hash[:])
	if o.Rules != nil {
		rules := *o.Rules
		rules.AtBoot = true
		compatible := ""
		if o.Config != nil {
			compatible = o.Config.Compatible
		}
		if _, err := seal.Verify(rules, compatible); err != nil {
			v.Why = err.Error()
			return v
		}
		v.Signed = true
	} else if !slices.ContainsFunc(m.Images, func(i bundle.Image) bool { return i.Key() == seal.Image }) {
		v.Why = fmt.Sprintf("the manifest has no image %q", seal.Image)
		return v
	}
	if o.Config != nil {
		if s, ok := o.Config.SlotByName(v.Slot); ok && s.Class != seal.Image {
			v.Why = fmt.Sprintf("it is of an image for %q", seal.Image)
			return v
		}
	}
	v.Seal = "valid"
	return v
}

// inspectStick lists the files of every FAT file system, and false if there is none.
func inspectStick(dev *disk.File, parts []disk.Partition) (*StickView, bool, error) {
	if len(parts) == 0 {
		parts = []disk.Partition{{Size: dev.Size()}}
	}
	view := &StickView{Kind: "stick", Files: []StickFile{}}
	found := false
	for _, p := range parts {
		fs, err := fat.Open(io.NewSectionReader(dev, p.Start, p.Size), p.Size)
		if errors.Is(err, fat.ErrNotFAT) {
			continue
		}
		found = true
		if err != nil {
			return nil, true, fmt.Errorf("partition %d: %w", p.Index, err)
		}
		root, err := fs.ReadDir("")
		if err != nil {
			return nil, true, fmt.Errorf("partition %d: %w", p.Index, err)
		}
		for _, e := range root {
			if !e.Dir {
				view.Files = append(view.Files, stickFile(fs, p.Index, e.Name, e.Size))
				continue
			}
			if !strings.EqualFold(e.Name, "updates") {
				continue
			}
			updates, err := fs.ReadDir(e.Name)
			if err != nil {
				return nil, true, fmt.Errorf("partition %d: %s: %w", p.Index, e.Name, err)
			}
			for _, u := range updates {
				if !u.Dir {
					view.Files = append(view.Files, stickFile(fs, p.Index, path.Join(e.Name, u.Name), u.Size))
				}
			}
		}
	}
	return view, found, nil
}

func stickFile(fs *fat.FS, partition int, name string, size int64) StickFile {
	f := StickFile{Partition: partition, Name: name, Size: size}
	if !strings.EqualFold(path.Ext(name), ".raucb") {
		return f
	}
	file, err := fs.Open(name)
	if err != nil {
		f.Why = err.Error()
		return f
	}
	info, err := bundle.Peek(file, file.Size())
	if err != nil {
		f.Why = err.Error()
		return f
	}
	if info.Encrypted {
		f.Bundle = &StickOffer{Format: bundle.FormatCrypt}
		return f
	}
	hash := info.Manifest.Hash()
	f.Bundle = &StickOffer{
		Compatible: info.Manifest.Compatible, Version: info.Manifest.Version, Format: info.Manifest.Format,
		ManifestHash: hex.EncodeToString(hash[:]),
	}
	return f
}
