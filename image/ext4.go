package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"lifeboat/tree"
)

// templateSize is how large the empty file system is that the device makes larger: the smallest slot that takes an archive.
const templateSize = 32 << 20

// emptyExt4 makes the empty file system that goes into the initramfs. The device gives it its UUID and its label, and the kernel
// makes it as large as the slot; meta_bg has that work for any size. The journal stays as large as it is.
func emptyExt4(ctx context.Context) ([]byte, error) {
	const journal = 4 // MiB
	f, err := os.CreateTemp("", "lifeboat-ext4-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(templateSize); err != nil {
		return nil, err
	}
	tool, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		if tool = "/sbin/mkfs.ext4"; !exists("/sbin", "mkfs.ext4") {
			return nil, errors.New("a slot takes archives, and there is no mkfs.ext4 to make their file system: install e2fsprogs")
		}
	}
	// The same at each build: identity and times are fixed, those that count are set on the device.
	cmd := exec.CommandContext(ctx, tool, "-q", "-F", "-b", "4096", "-I", "256", "-J", "size="+strconv.Itoa(journal), "-m", "0", "-N", "8192",
		"-O", "metadata_csum_seed,meta_bg,^resize_inode", "-U", "6c696665-626f-4174-8000-000000000000", "-E", "hash_seed=6c696665-626f-4174-8000-000000000001", f.Name())
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1000000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return tree.Template(f, templateSize)
}
