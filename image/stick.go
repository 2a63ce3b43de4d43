package image

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/partition/mbr"

	"lifeboat/status"
)

const (
	sector = 512
	mib    = 1 << 20

	// stickStart is where the partition of a stick begins, in bytes.
	stickStart = 1 * mib
)

// Report is the file on a stick in which devices write what they did; it is only ever overwritten in place, so it is there
// from the start, with ReportSize bytes.
const (
	Report     = status.ReportFile
	ReportSize = 64 << 10
)

// StickOptions say what a stick is like.
type StickOptions struct {
	WholeDisk bool  // without a partition table
	ExFAT     bool  // also where FAT32 would do: exFAT is taken where a file is too large for that
	Report    bool  // with room for the report
	Sector    int64 // bytes, 0: 512; others on exFAT only
}

// Stick writes a FAT32 or exFAT image with the files in its root folder to the new file out: with an MBR and one partition, or
// without a table. It is as large as the files need, at least 64 MiB (what FAT32 should not be smaller than),
// and sparse. No partial file is left.
func Stick(out string, o StickOptions, files []string) (err error) {
	var on []cargo
	size := int64(0)
	seen := map[string]string{}
	add := func(file cargo) error {
		if strings.ContainsAny(file.name, `"*:<>?\|`) || len(file.name) > 255 {
			return fmt.Errorf("%s can't have that name on a stick", file.from)
		}
		// FAT does not tell upper from lower case.
		if first, dup := seen[strings.ToLower(file.name)]; dup {
			return fmt.Errorf("%s and %s would have the same name on the stick", first, file.from)
		}
		seen[strings.ToLower(file.name)] = file.from
		o.ExFAT = o.ExFAT || file.size > maxFATFile
		size += file.size
		on = append(on, file)
		return nil
	}
	for _, name := range files {
		file, err := fileOf(name)
		if err == nil {
			err = add(file)
		}
		if err != nil {
			return err
		}
	}
	if o.Report {
		if err := add(cargo{name: Report, size: ReportSize}); err != nil {
			return err
		}
	}
	// The two tables of FAT32 need 8 bytes for each cluster of 512 (up to 260 MiB) or 4096.
	size = roundUp(max(size+size/32+8*mib, 64*mib), mib)

	unit := cmp.Or(o.Sector, sector)
	if unit != sector && (!o.ExFAT || unit != 4096) {
		return fmt.Errorf("sectors of %d bytes: exFAT may have 512 or 4096, FAT32 has 512 here", unit)
	}

	return create(out, func(f *os.File) error {
		start := int64(0)
		if !o.WholeDisk {
			start = stickStart
		}
		if err := f.Truncate(start + size); err != nil {
			return err
		}
		kind := mbr.Fat32LBA
		if o.ExFAT {
			kind = mbr.NTFS // 7, which exFAT shares
		}
		if !o.WholeDisk {
			table := &mbr.Table{
				LogicalSectorSize: int(unit), PhysicalSectorSize: int(unit),
				Partitions: []*mbr.Partition{{Type: kind, Start: uint32(start / unit), Size: uint32(size / unit)}},
			}
			if err := table.Write(f, start+size); err != nil {
				return fmt.Errorf("partition table: %w", err)
			}
		}
		if o.ExFAT {
			return newExVolume(f, start, size, unit, "LIFEBOAT").fill(on)
		}
		return newVolume(f, start, size, "LIFEBOAT").fill(on)
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
