package efi

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir is where efivarfs is mounted.
type Dir string

// Efivars is where everybody mounts it.
const Efivars = Dir("/sys/firmware/efi/efivars")

// Mount mounts efivarfs there if nobody has. The module must be loaded. ENODEV, ENOENT: the firmware is no UEFI, or was
// told to keep its variables to itself.
func (d Dir) Mount() error {
	err := unix.Mount("efivarfs", string(d), "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// Get reads a variable with its attributes.
func (d Dir) Get(name string) ([]byte, error) { return os.ReadFile(d.path(name)) }

// Set gives the firmware a variable in one call; the file is not truncated, which would be none.
func (d Dir) Set(name string, b []byte) error {
	return d.mutable(name, func() error {
		f, err := os.OpenFile(d.path(name), os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		return errors.Join(err, f.Close())
	})
}

// Delete removes a variable.
func (d Dir) Delete(name string) error {
	return d.mutable(name, func() error { return os.Remove(d.path(name)) })
}

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

// mutable does what the kernel forbids for variables that it does not know, once more without the flag that forbids it.
func (d Dir) mutable(name string, do func() error) error {
	err := do()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	f, e := os.Open(d.path(name))
	if e != nil {
		return err
	}
	defer f.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL
	flags, e := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if e != nil || flags&immutable == 0 || unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable) != nil {
		return err
	}
	return do()
}
