//go:build !slim

package crew

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/dm"
	"lifeboat/slots"
	"lifeboat/tree"
	"lifeboat/verify"
)

// Trees makes and opens the file systems of slots that hold a tree. Below each lies a device of exactly the slot without its
// seal, which nothing that is written to the file system reaches.
type Trees struct {
	Config   *config.Config
	Path     func(slot string) string // of a slot's block device
	Template string                   // file with the empty file system, as tree.Template makes it
	Key      string                   // file with the key for integrity=hmac-sha256
}

// treeName is the device-mapper name of a tree that is written or read whole, one at a time, treeDir where it is mounted.
const (
	treeName = "lifeboat-tree"
	treeDir  = "/run/lifeboat-tree"
)

// Open makes a device of the file system in a slot. Close(name) takes it away.
func (t *Trees) Open(name, slot string, ro bool) (path string, err error) {
	return t.open(name, slot, ro, false)
}

// open is Open; with format the device is made empty.
func (t *Trees) open(name, slot string, ro, format bool) (path string, err error) {
	s, _ := t.Config.SlotByName(slot)
	in := dm.Integrity{Hash: s.Tree.Integrity}
	if in.Hash == config.Keyed {
		if in.Key, err = os.ReadFile(t.Key); err != nil {
			return "", err
		}
	}
	f, err := disk.Open(t.Path(slot), false)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.File().Fd()), &st); err != nil {
		return "", err
	}
	blocks := (f.Size() - slots.SealSize) / tree.Block
	if blocks <= 0 {
		return "", errors.New("the slot is smaller than a seal")
	}
	return dm.OpenFirst(name, fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), uint64(blocks)*(tree.Block/512), in, ro, format)
}

// Close takes away what Open made, where it is there.
func (t *Trees) Close(name string) error { return dm.CloseFirst(name) }

// make makes an empty file system in a slot and opens its top folder.
func (t *Trees) make(slot string) (folder *os.File, err error) {
	t.close() // of one that was killed
	template, err := os.ReadFile(t.Template)
	if err != nil {
		return nil, fmt.Errorf("the empty file system for slots: %w", err)
	}
	path, err := t.open(treeName, slot, false, true)
	if err != nil {
		return nil, err
	}
	f, err := disk.OpenWait(path, true, 0)
	if err != nil {
		return nil, err
	}
	var uuid [16]byte
	_, _ = rand.Read(uuid[:])
	uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80
	conf, _ := t.Config.SlotByName(slot)
	size := f.Size()
	err = errors.Join(tree.Format(f, template, uuid, conf.Tree.Label), f.Close())
	if err != nil {
		return nil, err
	}
	if folder, err = t.mount(path, 0); err != nil {
		return nil, err
	}
	if err := tree.Grow(folder, uint64(size)/tree.Block); err != nil {
		folder.Close()
		return nil, err
	}
	return folder, nil
}

// Folder opens the top folder of the file system in a slot: of an empty one that is made, or of what is there, read-only. done
// returns when all of it is on the medium and nothing is left of the mount.
func (t *Trees) Folder(slot string, empty bool) (folder *os.File, done func() error, err error) {
	if empty {
		folder, err = t.make(slot)
	} else {
		t.close()
		var path string
		if path, err = t.Open(treeName, slot, true); err == nil {
			folder, err = t.mount(path, unix.MS_RDONLY)
		}
	}
	if err != nil {
		t.close()
		return nil, nil, verify.Refuse(verify.IO, "slot %s: %w", slot, err)
	}
	return folder, func() error {
		var err error
		if empty {
			fd, e := unix.Open(treeDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if e == nil {
				e = unix.Syncfs(fd)
				unix.Close(fd)
			}
			err = e
		}
		return errors.Join(err, folder.Close(), t.close())
	}, nil
}

// mount mounts where workers, who get the folder, are the only ones to use it.
func (t *Trees) mount(path string, flags uintptr) (*os.File, error) {
	if err := os.MkdirAll(treeDir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount(path, treeDir, "ext4", flags|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, ""); err != nil {
		return nil, fmt.Errorf("mount the file system: %w", err)
	}
	f, err := os.Open(treeDir)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (t *Trees) close() error {
	err := unix.Unmount(treeDir, 0)
	if err == unix.EINVAL || err == unix.ENOENT {
		err = nil // it is not mounted
	}
	return errors.Join(err, t.Close(treeName))
}
