package testsystem

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// writeCPIO writes a tree of folders and files as a newc archive (Documentation/driver-api/early-userspace/
// buffer-format.rst) of root's, with /dev/console, which the kernel opens before /init has mounted anything.
func writeCPIO(out, tree string) error {
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	defer file.Close()
	w := bufio.NewWriter(file)
	inode := 0
	entry := func(name string, mode uint32, major, minor int, content []byte) {
		inode++
		fmt.Fprintf(w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
			inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0)
		w.WriteString(name)
		w.Write(make([]byte, 1+padding(110+len(name)+1)))
		w.Write(content)
		w.Write(make([]byte, padding(len(content))))
	}
	err = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == tree {
			return err
		}
		name, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch mode := uint32(info.Mode().Perm()); {
		case d.IsDir():
			entry(name, 0o040000|mode, 0, 0, nil)
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			entry(name, 0o100000|mode, 0, 0, content)
		default:
			return fmt.Errorf("%s: neither folder nor file", path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	entry("dev/console", 0o020600, 5, 1, nil)
	entry("TRAILER!!!", 0, 0, 0, nil)
	if err := w.Flush(); err != nil {
		return err
	}
	return file.Close()
}

func padding(n int) int { return -n & 3 }
