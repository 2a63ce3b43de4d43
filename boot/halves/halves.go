// Package halves updates the boot loader itself, where the machine has room for two copies of it: in the boot partitions of an
// eMMC, in two halves of a region of a disk of which the first entry of the partition table names one, or in two halves of which
// the machine's ROM takes the first that has a header. The slot types and what is on the disk are RAUC's (boot-emmc,
// boot-mbr-switch, boot-gpt-switch, boot-raw-fallback).
//
// An update writes the copy that is not started ([Write]), has it read back by somebody else, and points at it
// ([Switch].Point); of a boot-raw-fallback it writes one copy and then the other, in the order of [First]. After a power cut at
// any point the old or the new boot loader is whole and is the one that is started. A switch is one write of one sector (MBR), of
// the backup table and then of the primary one (GPT), or of one register (eMMC). An MBR has no second copy: that its sector is
// written whole or not at all is the medium's promise, as it is for everybody who writes one.
package halves

import (
	"encoding/binary"
	"errors"

	"lifeboat/disk"
	"lifeboat/verify"
)

// Slot types, in RAUC's words.
const (
	EMMC        = "boot-emmc"
	MBRSwitch   = "boot-mbr-switch"
	GPTSwitch   = "boot-gpt-switch"
	RawFallback = "boot-raw-fallback"
)

// Region is the place of two copies on a disk, in bytes. Both are Size/2 long.
type Region struct {
	Start, Size int64
	Sector      int64 // of the disk: 512 or 4096
}

// Half returns where a copy lies, 0 or 1.
func (r Region) Half(n int) (off, size int64) { return r.Start + int64(n)*(r.Size/2), r.Size / 2 }

// check refuses (31) a region that is none on a disk of size bytes, or begins before first.
func (r Region) check(first, size int64) error {
	if r.Start < first || r.Size <= 0 || r.Start%r.Sector != 0 || r.Size%(2*r.Sector) != 0 || r.Size > size || r.Start > size-r.Size {
		return foreign("the region does not lie on the disk, or not in whole sectors")
	}
	return nil
}

// active says which half begins at a sector, and refuses (31) a partition that is none of them.
func (r Region) active(start, sectors uint64) (int, error) {
	half := uint64(r.Size / 2 / r.Sector)
	for n := range 2 {
		if start == uint64(r.Start/r.Sector)+uint64(n)*half && sectors > 0 && sectors <= half {
			return n, nil
		}
	}
	return 0, foreign("the first partition is neither half of the region")
}

// meets reports whether a partition has sectors in the region.
func (r Region) meets(start, end uint64) bool { // end: the first that is not in it
	return start < uint64((r.Start+r.Size)/r.Sector) && end > uint64(r.Start/r.Sector)
}

// Switch is where it stands which of two copies is started. Nothing else of it is changed, and one that is not understood is
// refused (31); an error of the medium is 40.
type Switch interface {
	Active() (int, error)
	// Point makes another copy the one that is started, and returns when that is durable.
	Point(to int) error
}

// Fallback refuses (31) a region of a boot-raw-fallback that does not lie on dev.
func Fallback(dev disk.Device, r Region) error { return r.check(0, dev.Size()) }

func foreign(text string) error { return verify.Refuse(verify.Policy, "%w", errors.New(text)) }

func failed(doing string, err error) error {
	if err == nil {
		return nil
	}
	return verify.Refuse(verify.IO, "%s: %w", doing, err)
}

// MBR is a master boot record at the beginning of dev, whose first partition is the one that is started.
func MBR(dev disk.Device, r Region) Switch { return &mbr{dev, r} }

type mbr struct {
	dev disk.Device
	r   Region
}

const (
	mbrTable      = 446
	mbrEntry      = 16
	mbrProtective = 0xee
)

func signed(sector []byte) bool { return sector[510] == 0x55 && sector[511] == 0xaa }

func (m *mbr) load() (b []byte, active int, err error) {
	if err := m.r.check(m.r.Sector, m.dev.Size()); err != nil {
		return nil, 0, err
	}
	b = make([]byte, m.r.Sector)
	if n, err := m.dev.ReadAt(b, 0); n < len(b) {
		return nil, 0, failed("read the MBR", err)
	}
	if !signed(b) {
		return nil, 0, foreign("there is no MBR")
	}
	for i := range 4 {
		e := b[mbrTable+mbrEntry*i:]
		start, count := uint64(binary.LittleEndian.Uint32(e[8:])), uint64(binary.LittleEndian.Uint32(e[12:]))
		switch {
		case e[0]&0x7f != 0 || e[4] == mbrProtective:
			return nil, 0, foreign("there is no MBR, or one of a GPT")
		case i == 0:
			if active, err = m.r.active(start, count); err == nil && e[4] == 0 {
				err = foreign("the MBR has no first partition")
			}
			if err != nil {
				return nil, 0, err
			}
		case e[4] != 0 && m.r.meets(start, start+count):
			return nil, 0, foreign("another partition lies in the region")
		}
	}
	return b, active, nil
}

func (m *mbr) Active() (int, error) {
	_, active, err := m.load()
	return active, err
}

func (m *mbr) Point(to int) error {
	b, active, err := m.load()
	if err != nil || active == to {
		return err
	}
	off, size := m.r.Half(to)
	start, count := off/m.r.Sector, size/m.r.Sector
	if start+count > 1<<32 {
		return foreign("the region ends where an MBR cannot name it")
	}
	e := b[mbrTable:]
	chs(e[1:], start)
	chs(e[5:], start+count-1)
	binary.LittleEndian.PutUint32(e[8:], uint32(start))
	binary.LittleEndian.PutUint32(e[12:], uint32(count))
	if _, err := m.dev.WriteAt(b, 0); err != nil {
		return failed("write the MBR", err)
	}
	return failed("write the MBR", m.dev.Flush())
}

// chs puts a sector as cylinder, head and sector of a disk with 255 heads of 63 sectors, as all tools do today; one that
// has no such name is the highest that has one.
func chs(b []byte, lba int64) {
	c, h, s := lba/(255*63), lba/63%255, lba%63+1
	if c > 1023 {
		c, h, s = 1023, 254, 63
	}
	b[0], b[1], b[2] = byte(h), byte(s|c>>2&0xc0), byte(c)
}

// Card is an eMMC.
type Card interface {
	ExtCSD() (csd [512]byte, err error)
	// SetPartConfig writes PARTITION_CONFIG, byte 179, and returns when the card has it.
	SetPartConfig(v byte) error
}

// EMMCSwitch is the BOOT_PARTITION_ENABLE of an eMMC: copy 0 is boot0, copy 1 boot1. Where none is enabled boot1 counts as the
// one that is started, so that boot0 is written and enabled.
func EMMCSwitch(c Card) Switch { return emmc{c} }

type emmc struct{ c Card }

const (
	partConfig = 179
	bootAck    = 1 << 6
	bootEnable = 7 << 3
)

func (e emmc) load() (config byte, active int, err error) {
	csd, err := e.c.ExtCSD()
	if err != nil {
		return 0, 0, failed("read the eMMC's EXT_CSD", err)
	}
	config = csd[partConfig]
	switch config & bootEnable >> 3 {
	case 1:
		return config, 0, nil
	case 0, 2:
		return config, 1, nil
	}
	return 0, 0, foreign("the eMMC starts from its user area")
}

func (e emmc) Active() (int, error) {
	_, active, err := e.load()
	return active, err
}

// Point keeps BOOT_ACK; which partition is accessed is the kernel's matter. It is read back: kernels that kept a copy of the
// register lost the change.
func (e emmc) Point(to int) error {
	config, _, err := e.load()
	want := byte(to+1) << 3
	if err != nil || config&bootEnable == want {
		return err
	}
	if err := e.c.SetPartConfig(config&bootAck | want); err != nil {
		return failed("write the eMMC's EXT_CSD", err)
	}
	if config, _, err = e.load(); err == nil && config&bootEnable != want {
		err = verify.Refuse(verify.IO, "the eMMC did not keep which boot partition is enabled")
	}
	return err
}
