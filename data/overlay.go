package data

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/config"
)

// Folder is where lifeboat keeps the upper layers of overlays, below the root of the data partition:
// overlay/PATH/WHOSE/WHICH/upper and work, with "+" for "/" in PATH, WHOSE a slot or "shared", and WHICH "keep" or the first
// 16 bytes of the system's root hash.
const Folder = ".lifeboat"

const (
	trash = "trash-" // before names of what is being deleted
	fresh = "new-"   // and of what is being made
)

// Overlay makes a folder of the system writable. in is where the data partition is mounted, lower and at are paths of the
// folder and of where the overlay is mounted over it; readOnly says that nothing can be written, so that what is there is
// shown. clear keeps one upper layer for each system: that of another one (of this slot, or of all that share it) is never
// seen, and deleted for at most half a minute at each boot.
//
// A cut leaves a whole upper layer or none, never a part of one: it is made under another name, and renamed before it is
// deleted.
func Overlay(in string, o config.Overlay, slot string, root [32]byte, clear, readOnly bool, lower, at string) error {
	whose, which := "shared", "keep"
	if o.PerSlot {
		whose = slot
	}
	if clear {
		which = hex.EncodeToString(root[:16])
	}
	home := filepath.Join(in, Folder, "overlay", strings.ReplaceAll(o.Path, "/", "+"), whose)
	layer := filepath.Join(home, which)
	if readOnly {
		if _, err := os.Lstat(layer); err != nil {
			return err
		}
		return unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+layer+"/upper:"+lower)
	}
	if err := prepare(home, which, clear, lower); err != nil {
		return err
	}
	if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+lower+",upperdir="+layer+"/upper,workdir="+layer+"/work"); err != nil {
		return fmt.Errorf("mount the overlay over %s: %w", o.Path, err)
	}
	return nil
}

// prepare makes the layer which in the folder home, with owner and mode of the folder like.
func prepare(home, which string, clear bool, like string) error {
	for _, dir := range []string{filepath.Dir(filepath.Dir(filepath.Dir(home))), filepath.Dir(filepath.Dir(home)), filepath.Dir(home), home} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	layers, err := os.ReadDir(home)
	if err != nil {
		return err
	}
	there, end := false, time.Now().Add(deleting)
	for _, l := range layers {
		name := l.Name()
		switch {
		case name == which:
			there = true
			continue
		case strings.HasPrefix(name, trash):
		case clear || strings.HasPrefix(name, fresh):
			remove(home, trash+name, end) // a namesake that an earlier boot did not get rid of
			if os.Rename(filepath.Join(home, name), filepath.Join(home, trash+name)) != nil {
				continue // that was too much for this boot too; nobody asks for it
			}
			name = trash + name
		default:
			continue
		}
		remove(home, name, end)
	}
	if there {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(like, &st); err != nil {
		return err
	}
	temp := filepath.Join(home, fresh+which)
	upper := filepath.Join(temp, "upper")
	for _, dir := range []string{temp, upper, filepath.Join(temp, "work")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	err = unix.Chown(upper, int(st.Uid), int(st.Gid))
	if err == nil {
		err = unix.Chmod(upper, st.Mode&0o7777)
	}
	if err == nil {
		err = os.Rename(temp, filepath.Join(home, which)) // ext4 makes names durable in their order
	}
	return err
}

// deleting bounds how long a boot is held up by what is left of other systems.
const deleting = 30 * time.Second

// remove deletes a name in a folder and what is below it, as far as it gets until end. It follows no link and leaves other file
// systems alone.
func remove(dir, name string, end time.Time) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	removeAt(fd, name, end, 0)
}

// maxDepth bounds the recursion: what is deeper stays, out of sight.
const maxDepth = 200

func removeAt(dir int, name string, end time.Time, depth int) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Unlinkat(dir, name, 0)
		return
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for depth < maxDepth && time.Now().Before(end) {
		names, err := f.Readdirnames(256)
		for _, n := range names {
			if time.Now().After(end) {
				return
			}
			removeAt(fd, n, end, depth+1)
		}
		if err != nil {
			break
		}
	}
	_ = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
