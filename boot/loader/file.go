//go:build !raw

package loader

import (
	"errors"
	"strconv"

	"lifeboat/disk"
	"lifeboat/dm"
	"lifeboat/fat"
)

const (
	maxRuns = 64   // in which a slot's file may lie
	block   = 4096 // bytes: nothing of the file shares one of the kernel's blocks of the partition with anything else
)

// MapFile makes a slot that is a file in the FAT file system on b a block device of its own, name for the device-mapper, and
// b that device: exactly the file's bytes, wherever they lie now. Nothing of the file system is written through it. As long
// as it is there, what was b cannot be mounted.
func MapFile(name string, b *disk.Block, file string) (err error) {
	defer alive(&err)
	dev, err := disk.Open(b.Path(), false)
	if err != nil {
		return err
	}
	table, err := tableOf(dev, strconv.Itoa(int(b.Major))+":"+strconv.Itoa(int(b.Minor))+" ", file)
	dev.Close()
	if err != nil {
		return err
	}
	_ = dm.Remove(name) // of a boot that began before more of the disk appeared
	path, err := dm.Open(name, false, table...)
	if err == nil {
		b.Name, b.Size = path[len("/dev/"):], sizeOf(table)
	}
	return err
}

// FileSize returns how many bytes a slot has that is a file in the FAT file system on b; an error where MapFile has one for
// what lies there.
func FileSize(b disk.Block, file string) (int64, error) {
	dev, err := disk.Open(b.Path(), false)
	if err != nil {
		return 0, err
	}
	defer dev.Close()
	table, err := tableOf(dev, "", file)
	if err != nil {
		return 0, err
	}
	return sizeOf(table), nil
}

func sizeOf(table []dm.Target) int64 {
	last := &table[len(table)-1]
	return int64(last.Start+last.Sectors) * 512
}

// tableOf says where the file lies on dev, the block device called on.
func tableOf(dev disk.Device, on, file string) (table []dm.Target, err error) {
	fs, err := fat.Open(dev, dev.Size())
	if err != nil {
		return nil, err
	}
	f, err := fs.Open(file)
	if err != nil {
		return nil, err
	}
	for start := int64(0); ; {
		at, n := f.Run(start)
		if n == 0 && len(table) > 0 {
			return table, nil
		}
		if (at|n)%block != 0 || n == 0 || len(table) == maxRuns {
			return nil, errors.New(file + " does not lie in whole blocks of 4096 bytes, from 1 of them on, in at most 64 pieces")
		}
		table = append(table, dm.Target{Start: uint64(start / 512), Sectors: uint64(n / 512), Type: "linear", Args: on + strconv.FormatInt(at/512, 10)})
		start += n
	}
}
