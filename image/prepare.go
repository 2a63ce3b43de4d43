package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

// ErrErase says that the target is a whole device, which would be overwritten.
var ErrErase = errors.New("what is on it would be erased")

// Prepare puts files and room for the report on a stick. The target is the folder where it is mounted, a block device, which
// is overwritten if erase says so, or the name of an image to be made. In a folder files that are there are replaced by whole
// ones, and a report that devices have written into is kept.
func Prepare(target string, o StickOptions, erase bool, files []string) error {
	o.Report = true
	info, err := os.Stat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Stick(target, o, files)
	case err != nil:
		return err
	case info.IsDir():
		return prepareFolder(target, files)
	case info.Mode()&fs.ModeDevice == 0:
		return Stick(target, o, files)
	case !erase:
		return fmt.Errorf("%s: %w", target, ErrErase)
	}
	return prepareDevice(target, o, files)
}

func prepareFolder(dir string, files []string) error {
	var on []cargo
	for _, name := range files {
		c, err := fileOf(name)
		if err != nil {
			return err
		}
		on = append(on, c)
	}
	if info, err := os.Stat(filepath.Join(dir, Report)); err != nil || info.Size() != ReportSize {
		on = append(on, cargo{name: Report, size: ReportSize})
	}
	for _, c := range on {
		if err := c.replace(dir); err != nil {
			return fmt.Errorf("copy %s: %w", c.name, err)
		}
	}
	// The folder itself, so that the stick may be pulled out.
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// replace puts the file into a folder: as a whole or not at all. Its mode is the folder's business, as FAT has none.
func (c cargo) replace(dir string) (err error) {
	f, err := os.CreateTemp(dir, ".lifeboat-*")
	if err != nil {
		return err
	}
	err = c.copy(f)
	if err == nil {
		err = f.Truncate(c.size) // zeros at the end are not written
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, c.name))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// prepareDevice writes the image of a stick over a device that is not in use.
func prepareDevice(target string, o StickOptions, files []string) error {
	to, err := os.OpenFile(target, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is in use: unmount it first", target)
	}
	if err != nil {
		return err
	}
	defer to.Close()
	dir, err := os.MkdirTemp("", "lifeboat-stick-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "stick")
	if err := Stick(image, o, files); err != nil {
		return err
	}
	from, err := os.Open(image)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	device, err := disk.NewFile(to)
	if err != nil {
		return err
	}
	if info.Size() > device.Size() {
		return fmt.Errorf("%s has %d bytes, %d are needed", target, device.Size(), info.Size())
	}
	if _, err := io.CopyBuffer(io.NewOffsetWriter(to, 0), struct{ io.Reader }{from}, make([]byte, mib)); err != nil {
		return err
	}
	// A GPT that was there has its copy in the last sectors.
	if left := device.Size() - info.Size(); left > 0 {
		if _, err := to.WriteAt(make([]byte, min(left, mib)), device.Size()-min(left, mib)); err != nil {
			return err
		}
	}
	return to.Sync()
}
