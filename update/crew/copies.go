package crew

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lifeboat/boot/halves"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/update"
	"lifeboat/verify"
)

// Copies is update.Copies. A copy in a region that is not started is made a partition of its own for the time that it is
// written, which the table does not have, so that a worker can reach nothing else of the disk. It is gone at the next start at
// the latest.
type Copies struct {
	Config *config.Config
	// Vars is where the boot loader keeps its variables: never in what is switched. Zero where it has none.
	Vars disk.Block

	open map[string]string // paths, by CopyName
}

// window is the number of the partition that copy 0 is made; copy 1 is the next. No table has so many.
const window = 254

const sysfs = "/sys"

// Path returns the block device of a copy that is open.
func (c *Copies) Path(name string) (string, bool) {
	path, ok := c.open[name]
	return path, ok
}

// BootSize is the size of the smaller boot partition of an eMMC, 0 where it has none.
func BootSize(device string) int64 {
	return min(sizeOf(bootPart(device, 0)), sizeOf(bootPart(device, 1)))
}

// sizeOf is the size of a block device in bytes, 0 where it is not there.
func sizeOf(path string) int64 {
	sectors, _ := strconv.ParseInt(attr(path, "size"), 10, 54)
	return sectors * 512
}

// attr is what the kernel says of a block device; "": nothing.
func attr(path, name string) string {
	text, _ := disk.Attr(filepath.Join(sysfs, "class/block", filepath.Base(path)), name)
	return text
}

func bootPart(device string, n int) string { return device + "boot" + strconv.Itoa(n) }

// Active says which copy is started, for people; -1: the first that has a header.
func (c *Copies) Active(slot string) (int, error) {
	s, err := c.find(slot, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	if s.Switch == nil {
		return -1, nil
	}
	return s.Active()
}

func (c *Copies) Open(slot string) (st update.Stand, err error) {
	s, err := c.find(slot, os.O_RDONLY)
	if err != nil {
		return st, err
	}
	defer s.Close()
	if c.open == nil {
		c.open = map[string]string{}
	}
	st.Sector, st.Both = s.region.Sector, s.Switch == nil
	if s.Switch != nil {
		active, err := s.Active()
		if err != nil {
			return st, err
		}
		st.First = 1 - active
		if err := s.outside(c.Vars); err != nil {
			return st, err
		}
	}
	s.shut() // what one that was killed has left
	var copies [2]disk.Device
	for n := range 2 {
		path, err := s.copy(n, st.Both || n == st.First)
		if err != nil {
			return st, verify.Refuse(verify.IO, "%w", err)
		}
		c.open[update.CopyName(slot, n)] = path
		if st.Both {
			f, err := disk.Open(path, false)
			if err != nil {
				return st, verify.Refuse(verify.IO, "%w", err)
			}
			defer f.Close()
			copies[n] = f
		}
	}
	if st.Both {
		st.First, err = halves.First(copies, st.Sector)
	}
	return st, err
}

func (c *Copies) Switch(slot string, to int) error {
	s, err := c.find(slot, os.O_RDWR)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Point(to); err != nil || s.kind == halves.EMMC {
		return err
	}
	// The kernel's idea of the first partition follows, where nobody uses that; else at the next start.
	s.shut()
	if off, size := s.region.Half(to); s.part(unix.BLKPG_DEL_PARTITION, 1, 0, 0) == nil {
		_ = s.part(unix.BLKPG_ADD_PARTITION, 1, off, size)
	}
	return nil
}

// Close takes back what Open made.
func (c *Copies) Close(slot string) {
	for n := range 2 {
		delete(c.open, update.CopyName(slot, n))
	}
	if s, err := c.find(slot, os.O_RDONLY); err == nil {
		s.shut()
		s.Close()
	}
}

// place is a slot of the boot loader on this machine.
type place struct {
	halves.Switch        // nil: boot-raw-fallback
	*os.File             // the disk
	kind, disk    string // disk: /dev/NAME
	region        halves.Region
}

// find opens the disk of a slot.
func (c *Copies) find(slot string, flags int) (*place, error) {
	conf, _ := c.Config.SlotByName(slot)
	p := &place{kind: conf.Type, disk: conf.Device}
	size := sizeOf(p.disk)
	switch {
	case size == 0:
		return nil, verify.Refuse(verify.IO, "there is no disk %s", p.disk)
	case attr(p.disk, "partition") != "":
		return nil, verify.Refuse(verify.Policy, "%s is a partition and no disk", p.disk)
	}
	sector, err := strconv.ParseInt(attr(p.disk, "queue/logical_block_size"), 10, 64)
	if err != nil || sector < 512 || sector > 4096 {
		return nil, verify.Refuse(verify.IO, "%s has sectors of no size", p.disk)
	}
	p.region = halves.Region{Start: conf.Region.Start, Size: conf.Region.Size, Sector: sector}
	if p.File, err = os.OpenFile(p.disk, flags|unix.O_DIRECT, 0); err != nil {
		return nil, verify.Refuse(verify.IO, "%w", err)
	}
	dev, err := newTable(p.File, size)
	if err != nil {
		p.Close()
		return nil, verify.Refuse(verify.IO, "%w", err)
	}
	switch p.kind {
	case halves.EMMC:
		p.Switch = halves.EMMCSwitch(card{p.File, p.disk})
	case halves.MBRSwitch:
		p.Switch = halves.MBR(dev, p.region)
	case halves.GPTSwitch:
		p.Switch = halves.GPT(dev, p.region)
	default:
		err = halves.Fallback(dev, p.region)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// outside refuses (31) to switch away what the boot loader's variables lie in.
func (p *place) outside(vars disk.Block) error {
	if "/dev/"+vars.Disk == p.disk && vars.Part == 1 && p.kind != halves.EMMC {
		return verify.Refuse(verify.Policy, "the boot loader's variables lie in the partition that would be switched")
	}
	return nil
}

// copy returns the path of a copy: of one that is written a node that is nothing else, of the other that of the first partition.
func (p *place) copy(n int, write bool) (string, error) {
	if p.kind == halves.EMMC {
		path := bootPart(p.disk, n)
		if write {
			return path, p.force(n, "0")
		}
		return path, nil
	}
	off, size := p.region.Half(n)
	number := 1
	if write {
		number = window + n
		if err := p.part(unix.BLKPG_ADD_PARTITION, number, off, size); err != nil {
			return "", fmt.Errorf("the copy at byte %d is in use, or has been until the next start: %w", off, err)
		}
	}
	path := p.disk
	if last := path[len(path)-1]; last >= '0' && last <= '9' {
		path += "p"
	}
	path += strconv.Itoa(number)
	if attr(path, "start") != strconv.FormatInt(off/512, 10) {
		return "", fmt.Errorf("the kernel does not know the copy at byte %d until the next start", off)
	}
	return path, nil
}

func (p *place) shut() {
	for n := range 2 {
		if p.kind == halves.EMMC {
			_ = p.force(n, "1")
			continue
		}
		// udev looks at what is new, and has it open for a moment.
		for end := time.Now().Add(time.Second); p.part(unix.BLKPG_DEL_PARTITION, window+n, 0, 0) == unix.EBUSY && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// force makes a boot partition of an eMMC read-only ("1") or not ("0").
func (p *place) force(n int, ro string) error {
	return os.WriteFile(filepath.Join(sysfs, "class/block", filepath.Base(bootPart(p.disk, n)), "force_ro"), []byte(ro), 0)
}

// part adds a partition to what the kernel knows of the disk, or takes one away; off and size in bytes. Nothing is written.
func (p *place) part(op int32, number int, off, size int64) error {
	b := unix.BlkpgPartition{Start: off, Length: size, Pno: int32(number)}
	a := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(b)), Data: (*byte)(unsafe.Pointer(&b))}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, p.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&a))); e != 0 {
		return e
	}
	return nil
}

// table is a disk whose sectors are written one by one: through memory the kernel would write their neighbours too.
type table struct {
	*disk.Direct
	f    *os.File
	size int64
}

func newTable(f *os.File, size int64) (*table, error) {
	d, err := disk.NewDirect(f)
	return &table{d, f, size}, err
}

func (t *table) Size() int64  { return t.size }
func (t *table) Flush() error { return t.f.Sync() }

func (t *table) WriteAt(p []byte, off int64) (int, error) {
	b := disk.Aligned(len(p))
	copy(b, p)
	return t.f.WriteAt(b, off)
}

// card is halves.Card: an eMMC, asked over its node, and told over that of the boot partition that gets its turn.
type card struct {
	f      *os.File
	device string
}

// struct mmc_ioc_cmd (linux/mmc/ioctl.h), and what is in it of linux/mmc/core.h and mmc.h.
type mmcCommand struct {
	write, app          int32
	opcode, arg         uint32
	response            [4]uint32
	flags, size, blocks uint32
	sleepMin, sleepMax  uint32
	dataLimit, cmdLimit uint32
	_                   uint32
	data                uint64
}

const (
	mmcRequest = 0xc048b300 // MMC_IOC_CMD

	mmcSwitch     = 6
	mmcSendExtCSD = 8
	mmcDataFlags  = 0xb5  // MMC_RSP_SPI_R1 | MMC_RSP_R1 | MMC_CMD_ADTC
	mmcBusyFlags  = 0x49d // MMC_RSP_SPI_R1B | MMC_RSP_R1B | MMC_CMD_AC
	mmcWriteByte  = 3 << 24
	mmcNormalSet  = 1
)

func (m *mmcCommand) send(f *os.File) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), mmcRequest, uintptr(unsafe.Pointer(m))); e != 0 {
		return e
	}
	return nil
}

func (c card) ExtCSD() (csd [512]byte, err error) {
	b := disk.Aligned(len(csd)) // on the heap: the kernel is told an address
	m := mmcCommand{opcode: mmcSendExtCSD, flags: mmcDataFlags, size: 512, blocks: 1, data: uint64(uintptr(unsafe.Pointer(&b[0])))}
	err = m.send(c.f)
	copy(csd[:], b)
	runtime.KeepAlive(b)
	return csd, err
}

func (c card) SetPartConfig(v byte) error {
	// Through the boot partition's node, so that the kernel selects that before and its copy of the register is true.
	f, err := os.OpenFile(bootPart(c.device, int(v>>3&7)-1), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m := mmcCommand{write: 1, opcode: mmcSwitch, arg: mmcWriteByte | 179<<16 | uint32(v)<<8 | mmcNormalSet, flags: mmcBusyFlags}
	return errors.Join(m.send(f), f.Close())
}
