package tree

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// Write makes a tar archive (PAX) of what is in the folder root, with all that [Extract] takes. The same tree gives the same
// bytes: names are in order, owners are numbers, times of access and change are left out. Times after latest become latest;
// the zero time leaves them alone. Sockets are left out, as tar does.
func Write(w io.Writer, root string, latest time.Time) error {
	t := tar.NewWriter(w)
	first := map[[2]uint64]string{} // of files with several names
	err := filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSocket != 0 {
			return nil
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		h, err := header(file, name, info, latest)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if !info.IsDir() && st.Nlink > 1 {
			inode := [2]uint64{st.Dev, st.Ino}
			if to, ok := first[inode]; ok {
				h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, to, 0, nil
			} else {
				first[inode] = h.Name
			}
		}
		if err := t.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyN(t, f, h.Size)
		return err
	})
	if err != nil {
		return err
	}
	return t.Close()
}

func header(file, name string, info fs.FileInfo, latest time.Time) (*tar.Header, error) {
	st := info.Sys().(*syscall.Stat_t)
	h := &tar.Header{
		Name: "./" + filepath.ToSlash(name), Uid: int(st.Uid), Gid: int(st.Gid), Mode: int64(st.Mode & 0o7777), ModTime: info.ModTime(),
		Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	if name == "." {
		h.Name = "."
	}
	if !latest.IsZero() && h.ModTime.After(latest) {
		h.ModTime = latest
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case unix.S_IFLNK:
		to, err := os.Readlink(file)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, to
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
	default:
		return nil, errors.New("is of a kind that no archive knows")
	}
	names, err := xattr.LList(file)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return nil, err
	}
	for _, a := range names {
		if !carried(a) {
			continue
		}
		value, err := xattr.LGet(file, a)
		if err != nil {
			return nil, err
		}
		key, text := paxXattr+strings.ReplaceAll(strings.ReplaceAll(a, "%", "%25"), "=", "%3D"), string(value)
		switch a {
		case xattrSELinux:
			key, text = paxSELinux, strings.TrimSuffix(text, "\x00")
		case xattrAccess, xattrDefault:
			if key = paxAccess; a == xattrDefault {
				key = paxDefault
			}
			if text, err = formatACL(value); err != nil {
				return nil, err
			}
		}
		h.PAXRecords[key] = text
	}
	return h, nil
}

// formatACL is the reverse of parseACL.
func formatACL(b []byte) (string, error) {
	if len(b) < 4 || len(b)%8 != 4 || binary.LittleEndian.Uint32(b) != 2 {
		return "", errors.New("an ACL of a kind that is not known")
	}
	var all []string
	for b = b[4:]; len(b) > 0; b = b[8:] {
		tag, rights, id := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])
		text := ""
		for word, plain := range tags {
			switch {
			case tag == plain:
				text = word + "::"
			case tag == 2*plain && plain <= 4:
				text = fmt.Sprintf("%s:%d:", word, id)
			}
		}
		if text == "" {
			return "", errors.New("an ACL of a kind that is not known")
		}
		for i, c := range "rwx" {
			if rights&(4>>i) == 0 {
				c = '-'
			}
			text += string(c)
		}
		all = append(all, text)
	}
	return strings.Join(all, ","), nil
}
