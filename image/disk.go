package image

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/slots"
	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// DiskOptions says how a disk image is made.
type DiskOptions struct {
	Config  *config.Config
	Keyring *verify.Keyring // that the device will have; nil: content is checked and its signer is not
	Fill    []Fill
	Sizes   map[string]int64 // bytes of the slots of a class, or of state, esp, staging or data
	ESP     string           // image of the boot loader's partition, made elsewhere; "": it is left empty
	Sign    *Signer          // for images that are no bundles
	Now     time.Time        // present time, trusted

	purpose string // "": that of the configuration
	self    *self  // stands in for a keyring
}

// Fill puts a file into a slot. A bundle fills a boot slot and those that go with it; of images each slot has its own, and
// those of a group become one bundle.
type Fill struct {
	Slot string // name or bootname
	File string // a bundle (*.raucb), or an image, which is signed by DiskOptions.Sign
}

// Signer signs images.
type Signer struct {
	Key           crypto.Signer
	Cert          *x509.Certificate
	Intermediates []*x509.Certificate
	Version       string
}

// DiskReport says what was made.
type DiskReport struct {
	Size   int64
	Places []Place
	Filled []Filled
}

// Filled is a slot with a system in it.
type Filled struct {
	Slot, Bootname, File string
	Version              string
	Manifest             string // hash in hex
	Used, Size           int64  // bytes with hash tree and seal, and of the slot
	Signed               bool   // authentic at every boot, not at install only
}

// filling is a bundle on its way into a slot.
type filling struct {
	Fill
	slot   config.Slot
	file   *disk.File
	bundle *bundle.Bundle
	cms    []byte // for the seal
	image  int
	need   int64 // bytes of the slot
}

// Disk writes the image of a device's disk to the file out: a GPT with the partitions of the configuration, the slots
// filled and sealed by what also installs on the device, and a state record that gives each filled slot its tries. The
// keyring must accept what goes into the slots: the device would refuse to boot anything else. The file is sparse. No
// partial file is left; an older one is replaced.
func Disk(ctx context.Context, o DiskOptions, out string) (*DiskReport, error) {
	if o.Keyring == nil {
		var err error
		if o.self, err = newSelf(o.Now); err != nil {
			return nil, err
		}
		o.Keyring, o.purpose = o.self.keyring, "codesign"
	}
	temp, err := os.MkdirTemp(filepath.Dir(out), "."+filepath.Base(out)+".sign-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)

	sizes := map[string]int64{}
	var fillings []*filling
	defer func() {
		for _, f := range fillings {
			f.file.Close()
		}
	}()
	fills, err := o.bundles(ctx, temp)
	if err != nil {
		return nil, err
	}
	for _, fill := range fills {
		f, err := o.open(ctx, fill)
		if err != nil {
			return nil, err
		}
		fillings = append(fillings, f)
		// Room for the next versions: a quarter more, and never less than 32 MiB.
		sizes[f.slot.Class] = max(sizes[f.slot.Class], roundUp(f.need+f.need/4, 4*mib), 32*mib)
	}
	for name, n := range o.Sizes {
		known := name == stateLabel || name == espLabel && loaderPartition(o.Config) || name == stagingLabel || name == dataLabel
		for _, s := range o.Config.Slots {
			known = known || s.Class == name
		}
		if !known {
			return nil, fmt.Errorf("size of %s: there is no such slot class or partition", name)
		}
		sizes[name] = n
	}
	var esp cargo
	if o.ESP != "" {
		if !loaderPartition(o.Config) {
			return nil, fmt.Errorf("%s: the boot loader %s has no partition of its own", o.ESP, o.Config.Bootloader)
		}
		if esp, err = fileOf(o.ESP); err != nil {
			return nil, err
		}
		sizes[espLabel] = max(sizes[espLabel], esp.size)
	}
	places, size, err := layout(o.Config, sizes)
	if err != nil {
		return nil, err
	}
	report := &DiskReport{Size: size, Places: places}
	err = create(out, func(f *os.File) error {
		if err := f.Truncate(size); err != nil {
			return err
		}
		if err := writeGPT(f, o.Config.Compatible, places, size); err != nil {
			return fmt.Errorf("partition table: %w", err)
		}
		dev, err := disk.NewFile(f)
		if err != nil {
			return err
		}
		for _, p := range places {
			if p.esp && esp.size > 0 {
				if err := esp.copy(io.NewOffsetWriter(f, p.Start)); err != nil {
					return fmt.Errorf("copy %s: %w", o.ESP, err)
				}
			}
		}
		sealed := map[string]boot.Seal{}
		for _, f := range fillings {
			to, err := slotOn(dev, places, f.slot)
			if err != nil {
				return fmt.Errorf("slot %s: %w", f.slot.Name, err)
			}
			facts, err := o.fill(ctx, to, f)
			if err != nil {
				return fmt.Errorf("fill %s with %s: %w", f.slot.Name, f.File, err)
			}
			report.Filled = append(report.Filled, Filled{
				Slot: f.slot.Name, Bootname: f.slot.Bootname, File: f.File, Version: facts.Version,
				Manifest: hex.EncodeToString(facts.Manifest[:]), Used: f.need, Size: to.Size(), Signed: facts.Signed,
			})
			if f.slot.Bootname != "" {
				sealed[f.slot.Name] = boot.Seal{
					Status: boot.SealValid, Whole: boot.WholeRight, Manifest: boot.Hash(facts.Manifest),
					Version: facts.Version, Epoch: facts.Epoch, Created: facts.Created, Local: !facts.Signed,
				}
			}
		}
		return firstState(disk.Section(dev, places[0].Start, places[0].Size), sealed, o.Config)
	})
	if err != nil {
		return nil, err
	}
	return report, nil
}

// slotOn is a slot as a device: its partition, or its file in the boot loader's.
func slotOn(dev disk.Device, places []Place, slot config.Slot) (disk.Device, error) {
	for _, p := range places {
		on := disk.Section(dev, p.Start, p.Size)
		switch {
		case slot.File != "" && p.esp:
			return loader.FileIn(on, slot.File)
		case slot.File == "" && p.slot == slot.Name:
			return on, nil
		}
	}
	return nil, errors.New("it has no partition")
}

// bundled is one slot's share of a bundle.
type bundled struct {
	Fill // as it was asked for
	slot config.Slot
	path string // of the bundle
}

// bundles makes bundles of plain images and says what of each bundle goes where.
func (o *DiskOptions) bundles(ctx context.Context, temp string) ([]bundled, error) {
	var all []bundled
	file := map[string]string{}
	for _, fill := range o.Fill {
		slot, ok := o.Config.SlotByName(fill.Slot)
		if !ok {
			return nil, fmt.Errorf("the configuration has no slot %q", fill.Slot)
		}
		if file[slot.Name] != "" {
			return nil, fmt.Errorf("slot %s is to be filled twice", slot.Name)
		}
		file[slot.Name] = fill.File
	}
	for _, slot := range o.Config.Slots {
		first := file[slot.Name]
		if p, ok := o.Config.SlotByName(slot.Parent); ok && p.Bootname != "" {
			if first != "" && file[p.Name] == "" {
				return nil, fmt.Errorf("slot %s goes with %s, which is to be filled too", slot.Name, p.Name)
			}
			continue
		}
		if first == "" {
			continue
		}
		group := []config.Slot{slot}
		if slot.Bootname != "" {
			group = append(group, o.Config.Group(slot.Name)...)
		}
		whole := filepath.Ext(first) == ".raucb"
		if !whole && o.Sign == nil {
			return nil, fmt.Errorf("%s is not a bundle (*.raucb): an image is sealed only with --sign CERT:KEY", first)
		}
		for _, s := range group[1:] {
			switch f := file[s.Name]; {
			case whole && f != "" && f != first:
				return nil, fmt.Errorf("slot %s is filled by the bundle of %s, which it goes with", s.Name, slot.Name)
			case !whole && (f == "" || filepath.Ext(f) == ".raucb"):
				return nil, fmt.Errorf("slot %s goes with %s: it needs an image too", s.Name, slot.Name)
			case whole:
				file[s.Name] = first
			}
		}
		path := first
		if !whole {
			var err error
			if path, err = o.sign(ctx, group, file, temp); err != nil {
				return nil, fmt.Errorf("sign %s: %w", first, err)
			}
		}
		for _, s := range group {
			all = append(all, bundled{Fill{s.Name, file[s.Name]}, s, path})
		}
	}
	return all, nil
}

// open verifies a bundle as the device would and finds the image for the slot.
func (o *DiskOptions) open(ctx context.Context, fill bundled) (*filling, error) {
	file, err := disk.Open(fill.path, false)
	if err != nil {
		return nil, err
	}
	f := &filling{Fill: fill.Fill, slot: fill.slot, file: file}
	if err := o.openBundle(ctx, f); err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", fill.File, err)
	}
	blocks := f.bundle.Manifest.Images[f.image].Blocks()
	f.need = (blocks+verity.TreeBlocks(blocks))*verity.BlockSize + slots.SealSize
	return f, nil
}

func (o *DiskOptions) openBundle(ctx context.Context, f *filling) error {
	var r io.ReaderAt = f.file
	size := f.file.Size()
	var original []byte
	if o.self != nil {
		info, err := bundle.Peek(r, size)
		if err != nil {
			return err
		}
		if info.Encrypted || info.CMS.Detached() {
			return verify.Refuse(verify.KeyMissing, "there is no keyring, and without one only bundles of format verity can be used")
		}
		original = make([]byte, info.CMSSize)
		if _, err := r.ReadAt(original, info.PayloadSize); err != nil {
			return err
		}
		if r, size, err = o.self.resigned(r, info, o.Now); err != nil {
			return err
		}
	}
	var err error
	f.bundle, err = bundle.Open(ctx, r, size, bundle.Options{
		Rules: o.rules(), Formats: o.Config.BundleFormats, Compatible: o.Config.Compatible,
		RequireSignedVerity: o.Config.RequireSignedVerity,
	})
	if err != nil {
		return err
	}
	if f.cms = f.bundle.CMS; o.self != nil {
		f.cms = original
	}
	m := f.bundle.Manifest
	if f.slot.Bootname != "" {
		for _, s := range o.Config.Group(f.slot.Name) {
			if _, err := m.Find(s.Class); err != nil {
				return err
			}
		}
		n := 1 + len(o.Config.Group(f.slot.Name))
		for _, s := range o.Config.Loaders() {
			// The boot loader that a bundle brings comes with the device in another way.
			if _, err := m.Find(s.Class); err == nil {
				n++
			}
		}
		if len(m.Images) > n {
			return verify.Refuse(verify.Policy, "it has %d images, the device takes %d", len(m.Images), n)
		}
	}
	if f.image, err = m.Find(f.slot.Class); err == nil && m.Images[f.image].Archive() {
		return verify.Refuse(verify.Policy, "image %s is an archive, of which only a device makes a file system: leave the slot empty, and start the disk with this bundle on a stick", f.slot.Class)
	}
	return err
}

func (o *DiskOptions) rules() verify.Rules {
	return verify.Rules{Keyring: o.Keyring, Purpose: cmp.Or(o.purpose, o.Config.CheckPurpose), Now: o.Now, Trusted: true}
}

// sign makes a bundle of the images of a group below temp and returns its path. The same images make one bundle, however
// many slots are filled with them.
func (o *DiskOptions) sign(ctx context.Context, group []config.Slot, file map[string]string, temp string) (string, error) {
	if strings.ContainsAny(o.Sign.Version, "\\\n\r") {
		return "", fmt.Errorf("%q is no version", o.Sign.Version)
	}
	var identity []string
	for _, s := range group {
		abs, err := filepath.Abs(file[s.Name])
		if err != nil {
			return "", err
		}
		identity = append(identity, s.Class, abs)
	}
	out := filepath.Join(temp, guid(identity...)+".raucb")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	indir, err := os.MkdirTemp(temp, "in-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(indir)
	var m strings.Builder
	fmt.Fprintf(&m, "[update]\ncompatible=%s\nversion=%s\n", o.Config.Compatible, o.Sign.Version)
	for _, s := range group {
		kind, err := imageKind(file[s.Name])
		if err != nil {
			return "", err
		}
		name := s.Class + "." + kind
		if err := linkOrCopy(file[s.Name], filepath.Join(indir, name)); err != nil {
			return "", err
		}
		fmt.Fprintf(&m, "\n[image.%s]\nfilename=%s\n", s.Class, name)
	}
	if err := os.WriteFile(filepath.Join(indir, bundle.ManifestName), []byte(m.String()), 0o644); err != nil {
		return "", err
	}
	err = bundle.Create(ctx, indir, out, bundle.CreateOptions{
		Key: o.Sign.Key, Cert: o.Sign.Cert, Intermediates: o.Sign.Intermediates,
		// It lives for a moment: fast is better than small.
		SquashfsArgs: []string{"-noI", "-noD", "-noF"},
	})
	return out, err
}

// imageKind tells file systems by their magic; the result is the extension by which a bundle knows them.
func imageKind(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var head [2048]byte
	if _, err := io.ReadFull(f, head[:]); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	switch {
	case bytes.HasPrefix(head[:], []byte("hsqs")):
		return "squashfs", nil
	case bytes.Equal(head[1024:1028], []byte{0xe2, 0xe1, 0xf5, 0xe0}):
		return "erofs", nil
	case head[1024+56] == 0x53 && head[1024+57] == 0xef:
		return "ext4", nil
	}
	return "img", nil
}

func linkOrCopy(from, to string) error {
	if info, err := os.Lstat(from); err == nil && info.Mode().IsRegular() && os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// fill installs, attests and seals, in the order in which the device does it.
func (o *DiskOptions) fill(ctx context.Context, dev disk.Device, f *filling) (slots.Facts, error) {
	if err := slots.Wipe(dev); err != nil {
		return slots.Facts{}, err
	}
	seal, err := slots.Install(ctx, dev, f.bundle, f.image, nil)
	if err != nil {
		return slots.Facts{}, err
	}
	if err := dev.Flush(); err != nil {
		return slots.Facts{}, err
	}
	facts, err := slots.Attest(ctx, dev, dev.Size(), &seal, o.rules(), o.Config.Compatible, nil)
	if err != nil {
		return slots.Facts{}, err
	}
	seal.CMS = f.cms
	b, err := seal.Encode()
	if err != nil {
		return slots.Facts{}, err
	}
	return facts, slots.WriteSeal(dev, b)
}

// firstState writes both copies of the state record of a device that was never started.
func firstState(dev disk.Device, sealed map[string]boot.Seal, c *config.Config) error {
	store, err := raw.New(dev)
	if err != nil {
		return err
	}
	if _, _, err := store.Load(); !errors.Is(err, boot.ErrLost) {
		return cmp.Or(err, errors.New("the new state partition is not empty"))
	}
	state := boot.Factory(sealed, boot.PolicyOf(c, 0))
	for range 2 {
		if state, err = store.Commit(state); err != nil {
			return err
		}
	}
	return nil
}

func writeGPT(f *os.File, compatible string, places []Place, size int64) error {
	table := &gpt.Table{
		LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, GUID: guid(compatible),
	}
	for _, p := range places {
		kind := gpt.LinuxFilesystem
		if p.esp {
			kind = gpt.EFISystemPartition
		}
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: p.Index, Start: uint64(p.Start / sector), Size: uint64(p.Size), Type: kind,
			Name: p.Label, GUID: guid(compatible, p.Label),
		})
	}
	return table.Write(f, size)
}
