package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"lifeboat/boot/raw"
	"lifeboat/config"
	"lifeboat/staging"
)

const (
	// gap is left before, between and after partitions: flash loses neighbours of what it was writing.
	gap = 4 * mib
	// besideSize is how large staging and data are, at least, unless it is said.
	besideSize = 64 * mib
)

// Names of the partitions that hold no slot, and of their sizes.
const (
	stateLabel   = "state"
	stagingLabel = "staging"
	dataLabel    = "data"
	espLabel     = "esp"
)

// Place is a partition of a disk image.
type Place struct {
	Index int    `json:"index"` // as the kernel numbers it
	Label string `json:"label"`
	Start int64  `json:"start"` // bytes
	Size  int64  `json:"size"`
	slot  string // that it holds, or ""
	esp   bool   // it is the boot loader's
}

// layout places what the configuration needs on a disk: state, the boot loader's partition, staging, the slots, data. sizes
// has the bytes of a slot class or of "state", "esp", "staging" or "data"; every class must be in it. It returns the places in the order of the disk and
// the size of the disk.
func layout(c *config.Config, sizes map[string]int64) ([]Place, int64, error) {
	var places []Place
	disk := "" // the kernel's name of it, where the configuration says
	add := func(device, label, slot string, size int64) error {
		p := Place{Label: label, Size: roundUp(size, mib), slot: slot}
		if given, ok := config.PartLabel(device); ok {
			p.Label = given
		} else if device != "" {
			on, index, ok := splitDevice(device)
			if !ok {
				return fmt.Errorf("%s is not a partition that a disk image could have", device)
			}
			if disk != "" && disk != on {
				return fmt.Errorf("the configuration names partitions of /dev/%s and of /dev/%s, they can't be on one disk image", disk, on)
			}
			disk, p.Index = on, index
		}
		for _, other := range places {
			if other.Label == p.Label {
				return fmt.Errorf("two partitions would be labelled %s", p.Label)
			}
			if p.Index != 0 && other.Index == p.Index {
				return fmt.Errorf("two partitions would be number %d", p.Index)
			}
		}
		places = append(places, p)
		return nil
	}
	size := func(name string, otherwise int64) int64 {
		if n, ok := sizes[name]; ok {
			return n
		}
		return otherwise
	}
	state := size(stateLabel, raw.MinSize)
	if state < raw.MinSize {
		return nil, 0, fmt.Errorf("the state partition needs at least %d MiB", raw.MinSize/mib)
	}
	// A bundle for all classes, none of whose images could be made smaller, has room.
	bundle := int64(0)
	if c.StagingDevice != "" {
		bundle = staging.Start
		for class := range classes(c) {
			bundle += sizes[class]
		}
	}
	errs := []error{add(c.StateDevice, stateLabel, "", state)}
	if loaderPartition(c) {
		errs = append(errs, add(c.Loader.Device, espLabel, "", size(espLabel, besideSize)))
		places[len(places)-1].esp = true
	}
	errs = append(errs,
		add(c.StagingDevice, stagingLabel, "", size(stagingLabel, max(besideSize, bundle))),
	)
	loaders := c.Loaders() // where they lie is between partitions, or in one that is made otherwise
	for _, s := range c.Slots {
		if s.File != "" || slices.Contains(loaders, s) {
			continue // in the boot loader's partition, or a boot loader
		}
		n, ok := sizes[s.Class]
		if !ok {
			return nil, 0, fmt.Errorf("no size for slots of class %s: fill one or give --size %s=N", s.Class, s.Class)
		}
		errs = append(errs, add(s.Device, s.Name, s.Name, n))
	}
	if c.Data.Device != "" {
		errs = append(errs, add(c.Data.Device, dataLabel, "", size(dataLabel, besideSize)))
	} else if !slices.ContainsFunc(places, func(p Place) bool { return p.Label == dataLabel }) {
		errs = append(errs, add("", dataLabel, "", size(dataLabel, besideSize)))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, 0, err
	}
	taken := map[int]bool{}
	for _, p := range places {
		taken[p.Index] = true
	}
	at, index := int64(gap), 1
	for i := range places {
		p := &places[i]
		if p.Index == 0 {
			for taken[index] {
				index++
			}
			p.Index = index
			taken[index] = true
		}
		p.Start = at
		at += p.Size + gap
	}
	return places, at, nil
}

// loaderPartition says whether the boot loader has a partition of its own. It may keep its variables on the disk before
// all partitions, or not on this disk at all.
func loaderPartition(c *config.Config) bool {
	if c.Bootloader == "raw" || c.Bootloader == "custom" || config.Flash(c.Loader.Device) {
		return false
	}
	_, label := config.PartLabel(c.Loader.Device)
	_, _, numbered := splitDevice(c.Loader.Device)
	return label || numbered
}

// classes are those of the slots.
func classes(c *config.Config) map[string]bool {
	all := map[string]bool{}
	for _, s := range c.Slots {
		all[s.Class] = true
	}
	return all
}

// splitDevice takes /dev/vda2 apart into vda and 2, /dev/nvme0n1p3 into nvme0n1 and 3.
func splitDevice(device string) (disk string, index int, ok bool) {
	name := strings.TrimPrefix(device, "/dev/")
	disk = strings.TrimRight(name, "0123456789")
	index, err := strconv.Atoi(name[len(disk):])
	if err != nil || index < 1 || index > 128 {
		return "", 0, false
	}
	base, numbered := strings.CutSuffix(disk, "p")
	numbered = numbered && base != strings.TrimRight(base, "0123456789")
	for _, kind := range []string{"nvme", "mmcblk", "loop"} {
		if strings.HasPrefix(name, kind) && !numbered {
			return "", 0, false // the whole disk
		}
	}
	if numbered {
		disk = base
	}
	return disk, index, disk != ""
}

// guid gives a disk or partition its identity: the same input gives the same image.
func guid(parts ...string) string {
	sum := sha256.Sum256([]byte("lifeboat disk\x00" + strings.Join(parts, "\x00")))
	id := uuid.UUID(sum[:16])
	id[6] = id[6]&0x0f | 0x80 // version 8: made by us
	id[8] = id[8]&0x3f | 0x80
	return strings.ToUpper(id.String())
}

// ParseSize reads a number of bytes with an optional K, M, G or T (powers of 1024, also written KiB or KB).
func ParseSize(s string) (int64, error) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	unit := strings.ToUpper(s[digits:])
	shift := map[string]uint{
		"": 0, "B": 0, "K": 10, "KB": 10, "KIB": 10, "M": 20, "MB": 20, "MIB": 20,
		"G": 30, "GB": 30, "GIB": 30, "T": 40, "TB": 40, "TIB": 40,
	}
	by, ok := shift[unit]
	if err != nil || !ok || n <= 0 || n > 1<<50>>by {
		return 0, fmt.Errorf("%q is not a size like 64M or 1G", s)
	}
	return n << by, nil
}
