package efi

import (
	"errors"
	"os"

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

// Set gives the firmware a variable in one call; the file is not truncated, which would be none. The kernel guards the
// variables that it does not know by a flag of their files; those that UEFI defines have none.
func (d Dir) Set(name string, b []byte) error {
	f, err := os.OpenFile(d.path(name), os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		_, err = f.Write(b)
		f.Close() // has nothing more to say
	}
	return err
}

// Delete removes a variable.
func (d Dir) Delete(name string) error { return os.Remove(d.path(name)) }

func (d Dir) path(name string) string { return string(d) + "/" + name }
