package powercut

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"time"

	"lifeboat/bundle"
	"lifeboat/disk"
	"lifeboat/slots"
	"lifeboat/tree"
	"lifeboat/unpack"
	"lifeboat/update"
	"lifeboat/verify/verity"
)

// There is no kernel here to make a file system: a slot that takes an archive holds what tree.Write writes of its files, from
// byte 0, and a file system that is mounted is a folder of this machine. That of the kernel is tested in the virtual device, the
// one that is made before it in package tree.

// everything is what a tree may hold that is known to be signed.
var everything = tree.Options{Devices: true, Setuid: true, Max: 1 << 40}

// inFolder does a worker's job on the files of a slot: of one that is made empty, whose files lie on the disk then, not flushed,
// or of what is there.
func (r *doors) inFolder(role, slot string, work func(folder string) error) error {
	dir, err := os.MkdirTemp("", "lifeboat-tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	folder := filepath.Join(dir, "top")
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	on := disk.Section(r.slot(slot), 0, r.slot(slot).Size()-slots.SealSize)
	if role == update.RoleFiles {
		if _, err := tree.Extract(folder, io.NewSectionReader(on, 0, on.Size()), everything); err != nil {
			return err
		}
		return work(folder)
	}
	if err := work(folder); err != nil {
		return err
	}
	b, err := packed(folder)
	if err != nil {
		return err
	}
	_, err = on.WriteAt(b, 0)
	return err
}

// packed is what a slot with these files holds.
func packed(folder string) ([]byte, error) {
	var b bytes.Buffer
	if err := tree.Write(&b, folder, time.Time{}); err != nil {
		return nil, err
	}
	b.Write(make([]byte, -b.Len()&(verity.BlockSize-1)))
	return b.Bytes(), nil
}

// treeContent is what a slot holds that an archive of a bundle was installed in.
func treeContent(b *bundle.Bundle, image int) (c Content, err error) {
	src, err := b.Image(image)
	if err != nil {
		return c, err
	}
	plain, err := unpack.NewReader(src)
	if err != nil {
		return c, err
	}
	dir, err := os.MkdirTemp("", "lifeboat-tree-")
	if err != nil {
		return c, err
	}
	defer os.RemoveAll(dir)
	if _, err := tree.Extract(dir, plain, everything); err != nil {
		return c, err
	}
	p, err := packed(dir)
	return Content{int64(len(p)), sha256.Sum256(p)}, err
}
