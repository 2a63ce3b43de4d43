package powercut

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strings"

	"lifeboat/boot/halves"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/update"
)

// A slot of the boot loader lies on a disk of its own, which is a partition of the image: /dev/NAME is the one with the label
// NAME. An eMMC is not simulated here: its switch is one register.

const loaderSector = 512

func loaderRegion(s config.Slot) halves.Region {
	return halves.Region{Start: s.Region.Start, Size: s.Region.Size, Sector: loaderSector}
}

// findCopies notes where the disk of a slot and its copies lie.
func (d *Device) findCopies(s config.Slot, find func(name, device string) error) error {
	if err := find(s.Name, "PARTLABEL="+strings.TrimPrefix(s.Device, "/dev/")); err != nil {
		return err
	}
	for n := range 2 {
		off, size := loaderRegion(s).Half(n)
		d.parts[update.CopyName(s.Name, n)] = crash.Range{Off: d.parts[s.Name].Off + off, Len: size}
	}
	return nil
}

// switcher is nil for a slot of which the first copy with a header is started.
func (d *Device) switcher(on disk.Device, s config.Slot) halves.Switch {
	switch s.Type {
	case halves.MBRSwitch:
		return halves.MBR(d.section(on, s.Name), loaderRegion(s))
	case halves.GPTSwitch:
		return halves.GPT(d.section(on, s.Name), loaderRegion(s))
	}
	return nil
}

// Open, Switch and Close make doors update.Copies.
func (r *doors) Open(slot string) (st update.Stand, err error) {
	s, _ := r.d.Config.SlotByName(slot)
	st.Sector = loaderSector
	sw := r.d.switcher(r.on, s)
	if st.Both = sw == nil; st.Both {
		st.First, err = halves.First([2]disk.Device{r.slot(update.CopyName(slot, 0)), r.slot(update.CopyName(slot, 1))}, loaderSector)
		return st, err
	}
	active, err := sw.Active()
	st.First = 1 - active
	return st, err
}

func (r *doors) Switch(slot string, to int) error {
	s, _ := r.d.Config.SlotByName(slot)
	return r.d.switcher(r.on, s).Point(to)
}

func (r *doors) Close(string) {}

// StartedLoader returns the version of the boot loader that the machine starts from a disk: that of the half which the table
// names, or of the first copy whose header is one that is known. It is an error where that one is not whole.
func (d *Device) StartedLoader(on disk.Device, slot string) (version string, err error) {
	s, _ := d.Config.SlotByName(slot)
	copies := []int{0, 1}
	if sw := d.switcher(on, s); sw != nil {
		active, err := sw.Active()
		if err != nil {
			return "", err
		}
		copies = []int{active}
	}
	for _, n := range copies {
		c := d.section(on, update.CopyName(slot, n))
		header := make([]byte, loaderSector)
		if _, err := c.ReadAt(header, 0); err != nil {
			return "", err
		}
		for _, sys := range d.Systems {
			l, brings := sys.Loaders[s.Class]
			if !brings || sha256.Sum256(header) != l.Header {
				continue
			}
			h := sha256.New()
			if _, err := io.Copy(h, io.NewSectionReader(c, 0, l.Size)); err != nil || [32]byte(h.Sum(nil)) != l.Sum {
				return "", fmt.Errorf("the boot loader of version %s that would be started is not whole (%v)", sys.Version, err)
			}
			return sys.Version, nil
		}
	}
	return "", fmt.Errorf("no boot loader would be started from %s", slot)
}

// table reports whether bytes are those of the partition table in which a slot's switch stands.
func (d *Device) table(s config.Slot, off, n int64) bool {
	p := d.parts[s.Name]
	head, tail := int64(loaderSector), int64(0)
	if s.Type == halves.GPTSwitch {
		head, tail = 34*loaderSector, 33*loaderSector
	}
	return s.Type != halves.RawFallback && (off >= p.Off && off+n <= p.Off+head || off >= p.Off+p.Len-tail && off+n <= p.Off+p.Len)
}

// mayWriteLoader reports whether early boot may write there: to the table, and to a copy that is not started.
func (d *Device) mayWriteLoader(on disk.Device, off, n int64) bool {
	for _, s := range d.Config.Loaders() {
		if d.table(s, off, n) {
			return true
		}
		for i := range 2 {
			if p := d.parts[update.CopyName(s.Name, i)]; off < p.Off || off+n > p.Off+p.Len {
				continue
			}
			sw := d.switcher(on, s)
			if sw == nil {
				return true
			}
			active, err := sw.Active()
			return err == nil && active != i
		}
	}
	return false
}

// loaders asserts that each boot loader that the machine would start now is whole.
func (w *Watch) loaders() {
	for _, s := range w.d.Config.Loaders() {
		if _, err := w.d.StartedLoader(w.rec.Peek(), s.Name); err != nil && !w.Loose {
			w.broken(I12, "%v", err)
		}
	}
}
