package data

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/dm"
	"lifeboat/tree"
)

// Name is the data partition for the device-mapper, without its label.
const Name = "lifeboat-data"

// Volume is the data partition as the kernel opens it.
type Volume struct {
	Block disk.Block
	Key   []byte // of hmac-sha256
}

// Open opens what Make made and returns the path of the block device with the file system. dm.ErrIntegrity and
// dm.ErrIntegrityKey say that something else is there.
func (v Volume) Open(l Label) (path string, err error) { return v.open(l, false) }

func (v Volume) open(l Label, format bool) (path string, err error) {
	v.Close()
	dev := strconv.Itoa(int(v.Block.Major)) + ":" + strconv.Itoa(int(v.Block.Minor))
	return dm.OpenFirst(Name, dev, uint64(Room(v.Block.Size)/512), dm.Integrity{Hash: l.Integrity, Key: v.Key}, false, format)
}

// Close takes the devices of Open away; those that are not there are no error.
func (v Volume) Close() { _ = dm.CloseFirst(Name) }

// Make makes the partition what l says, with an empty ext4 of its whole size: from template, and made larger by the kernel, for
// which it is mounted at dir for a moment. It is durable when Make returns; after a cut before, anything is there.
func (v Volume) Make(l Label, template []byte, label, dir string) error {
	path, err := v.open(l, true)
	if err != nil {
		return err
	}
	defer v.Close()
	dev, err := disk.Open(path, true)
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := tree.Format(dev, template, l.ID, label); err != nil {
		return err
	}
	if err := unix.Mount(path, dir, "ext4", unix.MS_NODEV|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("mount the new data partition: %w", err)
	}
	folder, err := os.Open(dir)
	if err == nil {
		err = errors.Join(tree.Grow(folder, uint64(dev.Size())/tree.Block), folder.Close())
	}
	return errors.Join(err, unix.Unmount(dir, 0), dev.Flush())
}

// Mount mounts the file system; what a power cut left in its journal is written first. After an error that the kernel finds in it
// later nothing more is written. salvage mounts it for reading even where that is not possible.
func Mount(path, dir string, salvage bool) (readOnly bool, err error) {
	const flags = unix.MS_NODEV | unix.MS_NOSUID
	err = unix.Mount(path, dir, "ext4", flags, "errors=remount-ro")
	if err == nil || !salvage {
		return false, err
	}
	for _, options := range []string{"", "noload"} { // the latter leaves a journal alone that cannot be read
		if unix.Mount(path, dir, "ext4", flags|unix.MS_RDONLY, options) == nil {
			return true, err
		}
	}
	return false, err
}
