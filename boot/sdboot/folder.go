package sdboot

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lifeboat/fat"
)

// Unmounted is the folder in a file system that nobody has mounted.
type Unmounted struct{ FS *fat.FS }

// Names lists the files.
func (u Unmounted) Names() (names []string, err error) {
	err = u.FS.Each(Dir, func(e fat.Entry) error {
		if !e.Dir {
			names = append(names, e.Name)
		}
		return nil
	})
	return names, err
}

// Rename is one write of one sector, or two; see [fat.FS.Rename].
func (u Unmounted) Rename(from, to string) error { return u.FS.Rename(Dir, from, to) }

// Mounted is the folder where the running system has the ESP.
type Mounted string

func (m Mounted) path(name string) string { return filepath.Join(string(m), Dir, name) }

// Names lists the files.
func (m Mounted) Names() ([]string, error) {
	f, err := os.Open(m.path(""))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Rename leaves it to the kernel in which order the folder's sectors are written: where the names lie in two, a cut may
// take both. Spares are there for that.
func (m Mounted) Rename(from, to string) error {
	if _, err := os.Lstat(m.path(to)); err == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: os.ErrExist}
	}
	if err := os.Rename(m.path(from), m.path(to)); err != nil {
		return err
	}
	f, err := os.Open(m.path(""))
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(f.Sync(), unix.Syncfs(int(f.Fd())))
}
