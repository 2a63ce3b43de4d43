package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"lifeboat/config"
	"lifeboat/tree"
)

// templateSize is how large the empty file system is that the device makes larger, with the default journal: the smallest slot
// that takes an archive.
const (
	templateSize = 32 << 20
	journalSize  = 4 << 20
)

// emptyExt4 makes the empty file system that goes into the initramfs. The device gives it its UUID and its label, and the kernel
// makes it as large as the slot; meta_bg has that work for any size. The journal stays as large as it is, and so does the
// share that is root's.
func emptyExt4(ctx context.Context, o config.Ext4) ([]byte, error) {
	journal := o.Journal >> 20                                 // MiB
	size := templateSize + max(0, journal<<20-journalSize)*5/2 // mkfs.ext4 gives a journal half of the room at most
	f, err := os.CreateTemp("", "lifeboat-ext4-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	tool, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		if tool = "/sbin/mkfs.ext4"; !exists("/sbin", "mkfs.ext4") {
			return nil, errors.New("a slot takes archives, and there is no mkfs.ext4 to make their file system: install e2fsprogs")
		}
	}
	// The same at each build: identity and times are fixed, those that count are set on the device.
	cmd := exec.CommandContext(ctx, tool, "-q", "-F", "-b", "4096", "-I", "256", "-J", "size="+strconv.FormatInt(journal, 10), "-m", strconv.Itoa(o.Reserved), "-N", "8192",
		"-O", "metadata_csum_seed,meta_bg,^resize_inode", "-U", "6c696665-626f-4174-8000-000000000000", "-E", "hash_seed=6c696665-626f-4174-8000-000000000001", f.Name())
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1000000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return tree.Template(f, size)
}
