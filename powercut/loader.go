package powercut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"lifeboat/boot"
	"lifeboat/boot/barebox"
	"lifeboat/boot/efi"
	"lifeboat/boot/grub"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/boot/sdboot"
	"lifeboat/boot/uboot"
	"lifeboat/disk"
	"lifeboat/fat"
	"lifeboat/update"
)

// Loader is a boot loader in front of a device. Its variables lie in the partition that [bootloader] device= names.
type Loader struct {
	Open func(area disk.Device, names []string) (boot.Loader, error)
	// Start is what the loader does at power on: it counts, in its own place, and returns the bootname of the slot whose
	// kernel it starts, "" for none.
	Start func(area disk.Device, names []string) (started string, err error)
	// Make writes what a device leaves the factory with; nil: nothing.
	Make func(area disk.Device, names []string) error
	// Atomic says that this loader is safe only where a medium writes a sector whole or not at all.
	Atomic bool
}

// LoaderPart names the boot loader's partition; see [Device.Part].
const LoaderPart = "bootloader"

// store is the record's, and the boot loader's where one chooses.
func (d *Device) store(on disk.Device) (boot.Store, error) {
	record, err := raw.New(d.section(on, "state"))
	if err != nil || d.Loader == nil {
		return record, err
	}
	l, err := d.Loader.Open(d.section(on, LoaderPart), d.policy.Bootnames)
	if err != nil {
		return nil, err
	}
	return &loader.Store{Store: record, Loader: l, Policy: d.policy, Say: func(string) {}}, nil
}

// starts lets the boot loader start a kernel, and tells the sequence which.
func (d *Device) starts(u *update.Device, on disk.Device, b *Boot) error {
	name, err := d.Loader.Start(d.section(on, LoaderPart), d.policy.Bootnames)
	if err != nil {
		return err
	}
	s, ok := d.Config.SlotByName(name)
	if !ok {
		return fmt.Errorf("the boot loader started %q", name)
	}
	b.Kernel = s.Name
	store, ok := u.Store.(*toldStore).Store.(*loader.Store)
	if !ok {
		return errors.New("a device without a boot loader's variables")
	}
	store.Started = s.Name
	return nil
}

// places finds the two copies of a loader's variables in its partition, size bytes each.
type places func(area disk.Device, size int64) ([]disk.Device, error)

// apart are two copies as far apart as two files are.
func apart(d disk.Device, size int64) ([]disk.Device, error) {
	return []disk.Device{disk.Section(d, 0, size), disk.Section(d, 64<<10, size)}, nil
}

// files are copies in a FAT file system. One that is not there, or has another size, can neither be read nor written.
func files(names ...string) places {
	return func(area disk.Device, size int64) (all []disk.Device, err error) {
		esp, err := fat.Open(area, area.Size())
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			f, err := esp.Open(name)
			if err != nil || f.Size() != size {
				all = append(all, missing{})
			} else {
				all = append(all, &inFAT{f, area})
			}
		}
		return all, nil
	}
}

type inFAT struct {
	*fat.File
	area disk.Device
}

func (f *inFAT) Flush() error { return f.area.Flush() }

// missing is a file that is not there.
type missing struct{}

func (missing) ReadAt([]byte, int64) (int, error)  { return 0, fs.ErrNotExist }
func (missing) WriteAt([]byte, int64) (int, error) { return 0, fs.ErrNotExist }
func (missing) Flush() error                       { return fs.ErrNotExist }
func (missing) Size() int64                        { return 0 }

// starting makes the Start of a loader of what it does to the bytes of its copies. What it changed it writes, and that is
// durable before a kernel is started.
func starting(at places, size int64, whole func([]byte) bool, run func(copies [][]byte, names []string, loads func(string) bool) string) func(disk.Device, []string) (string, error) {
	return func(area disk.Device, names []string) (string, error) {
		places, err := at(area, size)
		if err != nil {
			return "", err
		}
		var copies, before [][]byte
		for _, d := range places {
			b := make([]byte, size)
			if _, err := d.ReadAt(b, 0); errors.Is(err, fs.ErrNotExist) {
				b = nil
			} else if err != nil {
				return "", err
			}
			copies, before = append(copies, slices.Clone(b)), append(before, b)
		}
		started := run(copies, names, func(string) bool { return true })
		order := []int{0, 1}
		if whole(before[0]) {
			order = []int{1, 0} // never the only one that is whole
		}
		for _, i := range order {
			if before[i] == nil {
				continue
			}
			d := places[i]
			for at := 0; at < len(copies[i]); at += 512 {
				if now := copies[i][at:min(at+512, len(copies[i]))]; string(now) != string(before[i][at:at+len(now)]) {
					if _, err := d.WriteAt(now, int64(at)); err != nil {
						return "", err
					}
				}
			}
			if err := d.Flush(); err != nil {
				return "", err
			}
		}
		return started, nil
	}
}

const ubootSize = 4096

// Loaders are the boot loaders whose variables lie on the disk, by the name that bootloader= has for them: two copies at 0
// and 64 KiB of their area; barebox's three 4 KiB apart; systemd-boot's a FAT file system of 128 KiB; the firmware's own
// variables (efi) a sector each, as the firmware promises that each is whole or not changed.
var Loaders = map[string]*Loader{
	"grub":  grubLoader(apart),
	"uboot": ubootLoader(apart, ubootSize),
	"sdboot": {
		Open: func(area disk.Device, names []string) (boot.Loader, error) {
			fs, err := fat.Open(area, espSize)
			return sdboot.New(sdboot.Unmounted{FS: fs}, nil, names), err
		},
		Start: startSdboot, Make: makeESP, Atomic: true,
	},
	"efi": {
		Open: func(area disk.Device, names []string) (boot.Loader, error) {
			var all []efi.Slot
			for _, n := range names {
				all = append(all, efi.Slot{Name: n, File: `\vmlinuz`})
			}
			return efi.New(firmware{area}, all, func(string) (efi.Partition, error) { return efi.Partition{Number: 1}, nil }), nil
		},
		Start: func(area disk.Device, names []string) (string, error) {
			started, err := efi.Run(firmware{area}, func(name string) bool { return slices.Contains(names, name) })
			if started == "" {
				started = names[0] // from the removable path
			}
			return started, err
		},
		Atomic: true,
	},
	"barebox": {
		Open: func(area disk.Device, names []string) (boot.Loader, error) {
			return barebox.New(area, bareboxLayout(names), names)
		},
		Start: func(area disk.Device, names []string) (string, error) {
			return barebox.Run(area, bareboxLayout(names), names, func(string) bool { return true })
		},
	},
}

// InFiles are boot loaders whose variables are files of the default names in the FAT file system of their partition, as
// those of real devices are.
var InFiles = map[string]*Loader{
	"grub":  grubLoader(files(grub.File, grub.Shadow)),
	"uboot": ubootLoader(files(uboot.Files...), uboot.Size),
}

func grubLoader(at places) *Loader {
	return &Loader{
		Open: func(area disk.Device, names []string) (boot.Loader, error) {
			copies, err := at(area, grub.Size)
			if err != nil {
				return nil, err
			}
			return grub.New(copies, names)
		},
		Start: starting(at, grub.Size, func([]byte) bool { return false }, grub.Run),
	}
}

func ubootLoader(at places, size int64) *Loader {
	return &Loader{
		Open: func(area disk.Device, names []string) (boot.Loader, error) {
			copies, err := at(area, size)
			if err != nil {
				return nil, err
			}
			return uboot.New(copies, names, uboot.RAUC)
		},
		Start: starting(at, size, func(b []byte) bool { _, ok := uboot.Parse(b, true); return ok }, func(copies [][]byte, names []string, loads func(string) bool) string {
			started, after := uboot.Run([2][]byte(copies), int(size), names, loads)
			copies[0], copies[1] = after[0], after[1]
			return started
		}),
	}
}

// Behind puts the device behind a boot loader. on is a disk of it, to which what the loader leaves the factory with is written.
func (d *Device) Behind(l *Loader, on disk.Device) error {
	if l.Make != nil {
		if err := l.Make(d.section(on, LoaderPart), d.policy.Bootnames); err != nil {
			return err
		}
	}
	o, err := l.Open(d.section(on, LoaderPart), d.policy.Bootnames)
	if err != nil {
		return err
	}
	d.Loader, d.policy.Most = l, o.Most()
	return nil
}

// startSdboot is systemd-boot with the firmware's FAT driver: the name that it gives the entry is one write of one sector.
func startSdboot(area disk.Device, names []string) (string, error) {
	fs, err := fat.Open(area, espSize)
	if err != nil {
		return "", err
	}
	folder := sdboot.Unmounted{FS: fs}
	files, err := folder.Names()
	if err != nil {
		return "", err
	}
	started, after := sdboot.Run(files, names)
	for i, to := range after {
		if to != files[i] {
			return started, folder.Rename(files[i], to)
		}
	}
	return started, nil
}

// firmware keeps variables in a disk, as [efi.Vars]: each in a sector, its name, 0, the length of the value (2), the value.
type firmware struct{ disk.Device }

// find returns the sector of a variable, or else of none, and its value.
func (f firmware) find(name string) (at int64, value []byte, err error) {
	free := int64(-1)
	for at := int64(0); at < 64<<10; at += 512 {
		b := make([]byte, 512)
		if _, err := f.ReadAt(b, at); err != nil {
			return 0, nil, err
		}
		n, rest, _ := bytes.Cut(b, []byte{0})
		switch {
		case string(n) == name:
			return at, rest[2:][:binary.LittleEndian.Uint16(rest)], nil
		case len(n) == 0 && free < 0:
			free = at
		}
	}
	return free, nil, fs.ErrNotExist
}

func (f firmware) write(at int64, b []byte) error {
	_, err := f.WriteAt(append(b, make([]byte, 512-len(b))...), at)
	return errors.Join(err, f.Flush())
}

func (f firmware) Get(name string) ([]byte, error) {
	_, b, err := f.find(name)
	return b, err
}

func (f firmware) Set(name string, b []byte) error {
	at, _, err := f.find(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return f.write(at, slices.Concat([]byte(name), []byte{0, byte(len(b)), byte(len(b) >> 8)}, b))
}

func (f firmware) Delete(name string) error {
	at, _, err := f.find(name)
	if err != nil {
		return err
	}
	return f.write(at, nil)
}

const espSize = 128 << 10

// makeESP makes a FAT12 file system with /loader/entries in it: of each slot an entry and its spare, which hold nothing.
func makeESP(area disk.Device, names []string) error {
	const boot, table, root, loader, entries = 0, 512, 1024, 1536, 2048 // bytes, a sector each
	b := make([]byte, 5*512)
	copy(b[boot:], "\xeb\x3c\x90lifeboat\x00\x02\x01\x01\x00\x01\x10\x00\x00\x01\xf8\x01\x00")
	copy(b[510:], "\x55\xaa")
	copy(b[table:], "\xf8\xff\xff\xff\xff\xff") // the two folders are a cluster each
	record := func(at int, name string, attr, cluster byte) {
		copy(b[at:], name)
		b[at+11], b[at+26] = attr, cluster
	}
	record(root, "LOADER     ", 0x10, 2)
	record(loader, ".          ", 0x10, 2)
	record(loader+32, "..         ", 0x10, 0)
	record(loader+64, "ENTRIES    ", 0x10, 3)
	record(entries, ".          ", 0x10, 3)
	record(entries+32, "..         ", 0x10, 2)
	var short, long []string
	for i, name := range names {
		for _, to := range []string{fmt.Sprintf("%d-%s+3-0.conf", 50+len(names)-i, name), "00-" + name + ".off"} {
			short, long = append(short, fmt.Sprintf("E%d", len(short))), append(long, to)
			record(entries+32+32*len(short), fmt.Sprintf("%-11s", short[len(short)-1]), 0x20, 0)
		}
	}
	if _, err := area.WriteAt(b, 0); err != nil {
		return err
	}
	fs, err := fat.Open(area, espSize)
	for i, to := range long {
		if err == nil {
			err = fs.Rename(sdboot.Dir, short[i], to)
		}
	}
	return err
}

// bareboxLayout is what a device tree may say of these slots.
func bareboxLayout(names []string) barebox.Layout {
	l := barebox.Layout{Magic: 0x4d433230, Stride: 4096, At: map[string]int{}}
	for _, n := range names {
		l.At["bootstate."+n+".remaining_attempts"], l.At["bootstate."+n+".priority"] = len(l.Fresh), len(l.Fresh)+4
		l.Fresh = append(l.Fresh, 3, 0, 0, 0, 1, 0, 0, 0)
	}
	return l
}
