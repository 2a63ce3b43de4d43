// Command floor is the /init that lifeboat's boot time is measured against: it does what has to be done to start a system
// from a dm-verity slot, and nothing else. It loads the modules that lifeboat's initramfs lists, in their order, opens the
// slot with a root hash that nobody signed, and switches root. No state, no try, no signature, no way back.
package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/dm"
)

func main() {
	for _, fs := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}} {
		must(unix.Mount(fs.kind, fs.dir, fs.kind, 0, ""))
	}
	list, err := os.ReadFile("/etc/lifeboat/modules")
	must(err)
	for line := range strings.Lines(string(list)) {
		path, options, _ := strings.Cut(strings.TrimSpace(line), " ")
		f, err := os.Open(path)
		must(err)
		_ = unix.FinitModule(int(f.Fd()), options, 0) // ENODEV of a driver without its device
		f.Close()
	}
	text, err := os.ReadFile("/etc/floor") // device, data blocks, root hash, salt
	must(err)
	var slot, root, salt string
	var blocks int64
	_, err = fmt.Sscan(string(text), &slot, &blocks, &root, &salt)
	must(err)
	for unix.Access(slot, unix.R_OK) != nil {
		time.Sleep(time.Millisecond)
	}
	path, err := dm.Open("root", true, dm.VerityTable(slot, blocks, [32]byte(unhex(root)), unhex(salt)))
	must(err)
	must(unix.Mount(path, "/newroot", "squashfs", unix.MS_RDONLY, ""))
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run"} {
		must(unix.Mount(dir, "/newroot"+dir, "", unix.MS_MOVE, ""))
	}
	must(unix.Chdir("/newroot"))
	must(unix.Mount(".", "/", "", unix.MS_MOVE, ""))
	must(unix.Chroot("."))
	must(unix.Exec("/sbin/init", []string{"/sbin/init"}, nil))
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	must(err)
	return b
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
