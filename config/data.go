package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Data is what [data] and [overlay] say: a partition that the systems write to and that outlives them.
type Data struct {
	Device    string // as written; see [PartLabel]. "": there is none
	Integrity string // "none", "crc32c", "sha256" or "hmac-sha256"
	Mount     string // absolute path in the system, "": only overlays use it
	Label     string // of the file system, at most 16 bytes
	OnError   string // "continue", "readonly" or "rescue"

	Overlays []Overlay // by path
	Clear    bool      // an overlay is empty again when another system starts
}

// Overlay is a folder of the root file system that can be written to.
type Overlay struct {
	Path    string // absolute
	PerSlot bool   // each slot has its own; else all have one
}

// maxOverlays is how many folders [overlay] may have.
const maxOverlays = 8

func (c *Config) data(e entry) error {
	d := &c.Data
	switch e.key {
	case "device":
		return device(&d.Device, e.value)
	case "integrity":
		return choice(&d.Integrity, e.value, "none", "crc32c", "sha256", "hmac-sha256")
	case "mount":
		return absolute(&d.Mount, e.value)
	case "type":
		var kind string
		return choice(&kind, e.value, "ext4")
	case "label":
		return text(&d.Label, e.value, 16)
	case "on-error":
		return choice(&d.OnError, e.value, "continue", "readonly", "rescue")
	}
	return errUnknownKey
}

func (c *Config) overlay(e entry) error {
	if e.key == "on-update" {
		var what string
		err := choice(&what, e.value, "keep", "clear")
		c.Data.Clear = what == "clear"
		return err
	}
	o := Overlay{}
	if err := absolute(&o.Path, e.key); err != nil {
		return errUnknownKey
	}
	for _, r := range []byte(o.Path) { // it becomes part of a mount's options
		if !isWord(r) && r != '/' && r != '.' {
			return fmt.Errorf("%q is not a path of A-Z a-z 0-9 _ - . /", clip(o.Path))
		}
	}
	var whose string
	if err := choice(&whose, e.value, "per-slot", "shared"); err != nil {
		return err
	}
	o.PerSlot = whose == "per-slot"
	c.Data.Overlays = append(c.Data.Overlays, o)
	return nil
}

// checkData looks at what concerns several keys of [data] and [overlay].
func (c *Config) checkData() error {
	d := &c.Data
	slices.SortFunc(d.Overlays, func(a, b Overlay) int { return strings.Compare(a.Path, b.Path) })
	switch {
	case d.Device == "" && (d.Mount != "" || d.Label != "" || d.Integrity != "" || d.OnError != ""):
		return errors.New("[data] device= is missing")
	case d.Device == "" && len(d.Overlays) > 0:
		return errors.New("[overlay] needs a [data] device= to lie on")
	case len(d.Overlays) > maxOverlays:
		return fmt.Errorf("[overlay] has %d folders, at most %d are taken", len(d.Overlays), maxOverlays)
	case d.Device == "":
		return nil
	}
	if d.Integrity == "" {
		d.Integrity = "none"
	}
	if d.OnError == "" {
		d.OnError = "continue"
	}
	for i, o := range d.Overlays {
		for _, p := range slices.Concat([]string{d.Mount}, paths(d.Overlays[:i])) {
			if p != "" && (inFolder(o.Path, p) || inFolder(p, o.Path)) {
				return fmt.Errorf("[overlay] %s and %s are one in the other", o.Path, p)
			}
		}
	}
	return nil
}

func paths(all []Overlay) (p []string) {
	for _, o := range all {
		p = append(p, o.Path)
	}
	return p
}

func inFolder(a, b string) bool { return strings.HasPrefix(a+"/", b+"/") }
