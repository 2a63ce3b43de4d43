package tree

import (
	"archive/tar"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// attribute is an extended attribute.
type attribute struct {
	name  string
	value []byte
}

// Where archives keep them: GNU tar, star and bsdtar in records of their own.
const (
	paxXattr   = "SCHILY.xattr."
	paxBSD     = "LIBARCHIVE.xattr."
	paxAccess  = "SCHILY.acl.access"
	paxDefault = "SCHILY.acl.default"
	paxSELinux = "RHT.security.selinux"
)

const (
	xattrAccess     = "system.posix_acl_access"
	xattrDefault    = "system.posix_acl_default"
	xattrSELinux    = "security.selinux"
	xattrCapability = "security.capability"
)

// attributes returns the extended attributes of an entry, and refuses those that the options do not allow.
func (x *extractor) attributes(name string, h *tar.Header) (all []attribute, err error) {
	program := h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeCont || h.Typeflag == tar.TypeGNUSparse
	rights := program && h.Mode&0o6000 != 0
	for key, value := range h.PAXRecords {
		a := attribute{value: []byte(value)}
		switch {
		case strings.HasPrefix(key, paxXattr):
			// A key has no "=": GNU tar writes these two bytes otherwise.
			a.name = strings.ReplaceAll(strings.ReplaceAll(key[len(paxXattr):], "%3D", "="), "%25", "%")
		case strings.HasPrefix(key, paxBSD):
			if a.name, err = url.PathUnescape(key[len(paxBSD):]); err == nil {
				a.value, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			}
		case key == paxSELinux:
			a.name, a.value = xattrSELinux, append(a.value, 0)
		case key == paxAccess || key == paxDefault:
			if a.name = xattrAccess; key == paxDefault {
				a.name = xattrDefault
			}
			if a.value, err = parseACL(value, number); err == errName {
				if x.later = append(x.later, label{name, a.name, value}); len(x.later) > maxLater {
					return nil, refuse("more than 4096 ACLs with names instead of numbers")
				}
				err = nil
				continue
			}
		default:
			continue
		}
		if err != nil {
			return nil, malformed("an attribute of", name, err)
		}
		if !carried(a.name) {
			return nil, refuse(name + " with the attribute " + strconv.Quote(a.name) + ", which is of no kind that is known")
		}
		if len(a.value) == 0 && (a.name == xattrAccess || a.name == xattrDefault) {
			continue // an ACL that says no more than the mode
		}
		rights = rights || a.name == xattrCapability
		if all = append(all, a); len(all) > maxXattrs {
			return nil, refuse(name + " with more than 64 attributes")
		}
	}
	if rights && !x.Setuid {
		return nil, refuse(name + " with the rights of somebody else (set-user-ID, set-group-ID or file capabilities), which the slot does not allow (allow-setuid=)")
	}
	return all, nil
}

// carried says which extended attributes archives bring.
func carried(name string) bool {
	kind, rest, _ := strings.Cut(name, ".")
	switch kind {
	case "user", "security", "trusted":
		return rest != "" && len(name) <= maxName && !strings.Contains(name, "\x00")
	}
	return name == xattrAccess || name == xattrDefault
}

// An ACL in an extended attribute is le32 2, and of each entry le16 tag, le16 rights, le32 number of a user or group. With a
// number the tags of user and group are twice these.
var tags = map[string]uint16{"user": 1, "group": 4, "mask": 0x10, "other": 0x20}

const noOwner = 1<<32 - 1

// parseACL reads an ACL as text, "user::rwx,user:1000:r-x,group::r-x,mask::r-x,other::---", entries between commas or line
// ends; star has a fourth field with the number. lookup finds the number of a name in "user" or "group".
func parseACL(text string, lookup func(kind, name string) (uint32, error)) ([]byte, error) {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' })
	if len(lines) == 0 {
		return nil, nil
	}
	if len(lines) > 1024 {
		return nil, errors.New("an ACL of more than 1024 entries")
	}
	for _, line := range lines {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 2 { // mask:rwx
			f = []string{f[0], "", f[1]}
		}
		if len(f) < 3 || len(f) > 4 {
			return nil, errors.New("an ACL that is none: " + line)
		}
		if short, ok := map[string]string{"u": "user", "g": "group", "m": "mask", "o": "other"}[f[0]]; ok {
			f[0] = short
		}
		tag, ok := tags[f[0]]
		var rights uint16
		for i, c := range strings.TrimSpace(f[2]) {
			bit := strings.IndexRune("xwr", c)
			switch {
			case c == '-' && i < 3:
			case bit >= 0 && i < 3:
				rights |= 1 << bit
			default:
				ok = false
			}
		}
		if !ok {
			return nil, errors.New("an ACL that is none: " + line)
		}
		id := uint32(noOwner)
		if f[1] != "" {
			if len(f) == 4 {
				f[1] = f[3]
			}
			var err error
			if id, err = lookup(f[0], f[1]); err != nil {
				return nil, err
			}
			if id == noOwner || tag > 4 {
				return nil, errors.New("an ACL that is none: " + line)
			}
			tag *= 2
		}
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, rights)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return b, nil
}

// label is an ACL with names, which are those of the tree's own etc/passwd and etc/group: it is set when all is there.
type label struct{ file, attribute, text string }

const maxLater = 4096

var errName = errors.New("an ACL with a name that is neither a number nor in the tree's etc/passwd or etc/group")

func number(_, name string) (uint32, error) {
	id, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		return 0, errName
	}
	return uint32(id), nil
}

// finish sets the ACLs with names.
func (x *extractor) finish() error {
	if len(x.later) == 0 {
		return nil
	}
	known := map[string]string{"user": x.text("etc/passwd"), "group": x.text("etc/group")}
	lookup := func(kind, name string) (uint32, error) {
		if id, err := number(kind, name); err == nil {
			return id, nil
		}
		for line := range strings.SplitSeq(known[kind], "\n") {
			if f := strings.SplitN(line, ":", 4); len(f) == 4 && f[0] == name {
				return number(kind, f[2])
			}
		}
		return 0, errName
	}
	for _, l := range x.later {
		acl, err := parseACL(l.text, lookup)
		if err != nil {
			return malformed("an attribute of", l.file, err)
		}
		fd, err := x.open(l.file, unix.O_PATH)
		if err == nil {
			unix.Close(fd)
			err = xattr.LSet(path.Join(x.root, l.file), l.attribute, acl)
		}
		if err != nil {
			return failed("make", l.file, err)
		}
	}
	return nil
}

// text returns the first MiB of a file in the tree, "" if there is none.
func (x *extractor) text(name string) string {
	fd, err := x.open(name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return ""
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 1<<20))
	return string(b)
}
