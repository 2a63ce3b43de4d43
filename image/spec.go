package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// node is one file, folder, device or link of an initramfs.
type node struct {
	name    string // without a leading slash
	mode    uint64 // type and permissions as in stat(2)
	uid     uint64
	gid     uint64
	major   uint64 // of a device
	minor   uint64
	content []byte // of a file; the target of a link
}

// parseSpec reads lines in the form of the kernel's usr/gen_init_cpio:
//
//	file NAME LOCATION MODE UID GID
//	dir NAME MODE UID GID
//	nod NAME MODE UID GID b|c MAJOR MINOR
//	slink NAME TARGET MODE UID GID
//	pipe NAME MODE UID GID
//	sock NAME MODE UID GID
//
// with "#" comments. ${NAME} stands for a variable; one that is not in vars is an error. Locations are relative to the
// working folder.
func parseSpec(spec string, vars map[string]string) ([]node, error) {
	var nodes []node
	for i, line := range strings.Split(spec, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		n, err := specLine(words, vars)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func specLine(words []string, vars map[string]string) (node, error) {
	for i, w := range words {
		var unknown error
		words[i] = os.Expand(w, func(name string) string {
			v, ok := vars[name]
			if !ok {
				unknown = fmt.Errorf("unknown variable ${%s}", name)
			}
			return v
		})
		if unknown != nil {
			return node{}, unknown
		}
	}
	forms := map[string]struct {
		words int
		kind  uint64
		extra int // words between name and mode
	}{
		"file": {6, unix.S_IFREG, 1}, "dir": {5, unix.S_IFDIR, 0}, "nod": {8, 0, 0},
		"slink": {6, unix.S_IFLNK, 1}, "pipe": {5, unix.S_IFIFO, 0}, "sock": {5, unix.S_IFSOCK, 0},
	}
	form, ok := forms[words[0]]
	if !ok {
		return node{}, fmt.Errorf("unknown kind %q, there are file, dir, nod, slink, pipe and sock", words[0])
	}
	if len(words) != form.words {
		return node{}, fmt.Errorf("%s takes %d words, there are %d", words[0], form.words, len(words))
	}
	n := node{name: strings.TrimPrefix(words[1], "/"), mode: form.kind}
	if n.name == "" || path.Clean("/"+n.name) != "/"+n.name {
		return node{}, fmt.Errorf("%q is not a plain path", words[1])
	}
	numbers := words[2+form.extra:]
	perm, err := strconv.ParseUint(numbers[0], 8, 12)
	uid, err1 := strconv.ParseUint(numbers[1], 10, 32)
	gid, err2 := strconv.ParseUint(numbers[2], 10, 32)
	if err := errors.Join(err, err1, err2); err != nil {
		return node{}, fmt.Errorf("mode, uid or gid of %s: %w", n.name, err)
	}
	n.mode |= perm
	n.uid, n.gid = uid, gid
	switch words[0] {
	case "file":
		if n.content, err = os.ReadFile(words[2]); err != nil {
			return node{}, err
		}
	case "slink":
		n.content = []byte(words[2])
	case "nod":
		switch words[5] {
		case "b":
			n.mode |= unix.S_IFBLK
		case "c":
			n.mode |= unix.S_IFCHR
		default:
			return node{}, fmt.Errorf("%q is neither b nor c", words[5])
		}
		n.major, err = strconv.ParseUint(words[6], 10, 12)
		n.minor, err1 = strconv.ParseUint(words[7], 10, 20)
		if err := errors.Join(err, err1); err != nil {
			return node{}, fmt.Errorf("device number of %s: %w", n.name, err)
		}
	}
	return n, nil
}

// withFolders puts the folders that are missing in front of what lies in them: the kernel does not make them. A name
// that stands twice is an error.
func withFolders(nodes []node) ([]node, error) {
	var all []node
	seen := map[string]uint64{}
	for _, n := range nodes {
		if mode, ok := seen[n.name]; ok {
			if mode&unix.S_IFMT == unix.S_IFDIR && n.mode == mode {
				continue
			}
			return nil, fmt.Errorf("%s stands twice: %w", n.name, fs.ErrExist)
		}
		for i, c := range n.name {
			if c != '/' {
				continue
			}
			parent := n.name[:i]
			mode, ok := seen[parent]
			if ok && mode&unix.S_IFMT != unix.S_IFDIR {
				return nil, fmt.Errorf("%s is in %s, which is no folder", n.name, parent)
			}
			if !ok {
				seen[parent] = unix.S_IFDIR | 0o755
				all = append(all, node{name: parent, mode: unix.S_IFDIR | 0o755})
			}
		}
		seen[n.name] = n.mode
		all = append(all, n)
	}
	return all, nil
}
