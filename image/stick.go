package image

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/partition/mbr"
)

const (
	sector = 512
	mib    = 1 << 20

	// stickStart is where the partition of a stick begins, in bytes.
	stickStart = 1 * mib
)

// Stick writes a FAT32 image with the files in its root folder to the new file out: with an MBR and one partition, or
// without a table if wholeDisk. It is as large as the files need, at least 64 MiB (what FAT32 should not be smaller than),
// and sparse. No partial file is left.
func Stick(out string, wholeDisk bool, files []string) (err error) {
	size := int64(0)
	seen := map[string]string{}
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a file", name)
		}
		if info.Size() > maxFATFile {
			return fmt.Errorf("%s has %d bytes, a file on FAT32 has at most %d", name, info.Size(), int64(maxFATFile))
		}
		base := filepath.Base(name)
		if strings.ContainsAny(base, `"*:<>?\|`) || len(base) > 255 {
			return fmt.Errorf("%s can't have that name on FAT32", name)
		}
		// FAT does not tell upper from lower case.
		if first, dup := seen[strings.ToLower(base)]; dup {
			return fmt.Errorf("%s and %s would have the same name on the stick", first, name)
		}
		seen[strings.ToLower(base)] = name
		size += info.Size()
	}
	// The two tables need 8 bytes for each cluster of 512 (up to 260 MiB) or 4096.
	size = roundUp(max(size+size/32+8*mib, 64*mib), mib)

	return create(out, func(f *os.File) error {
		start := int64(0)
		if !wholeDisk {
			start = stickStart
		}
		if err := f.Truncate(start + size); err != nil {
			return err
		}
		if !wholeDisk {
			table := &mbr.Table{
				LogicalSectorSize: sector, PhysicalSectorSize: sector,
				Partitions: []*mbr.Partition{{Type: mbr.Fat32LBA, Start: uint32(start / sector), Size: uint32(size / sector)}},
			}
			if err := table.Write(f, start+size); err != nil {
				return fmt.Errorf("partition table: %w", err)
			}
		}
		return newVolume(f, start, size, "LIFEBOAT").fill(files)
	})
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// create makes the file out with fill. It appears by rename when it is complete; an older one is replaced.
func create(out string, fill func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}
