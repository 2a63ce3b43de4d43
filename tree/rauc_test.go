package tree

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// RAUC's own handler fills a slot from an archive that was made here, and the files are those of the folder. Debian's rauc 1.8 does not
// ask tar for extended attributes, nor does it find holes again. (A smaller slot gets blocks of 1 KiB, too small for long links.)
func TestRAUCTakesOurs(t *testing.T) {
	from := oddities(t)
	if _, err := exec.LookPath("rauc"); err != nil {
		t.Skip("rauc is not installed: make setup")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	f, err := os.Create(at("image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Write(f, from, time.Time{}), f.Close(), os.WriteFile(at("slot"), nil, 0o600), os.Truncate(at("slot"), 600<<20), os.Mkdir(at("top"), 0o700)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", at("slot")).Output()
	if err != nil {
		t.Skipf("no loop device: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", loop).Run() })
	conf := fmt.Sprintf("[system]\ncompatible=x\nbootloader=noop\nmountprefix=%s\nstatusfile=%s\n\n[slot.rootfs.0]\ndevice=%s\ntype=ext4\nbootname=A\n", at("mnt"), at("status"), loop)
	if err := os.WriteFile(at("system.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("rauc", "-c", at("system.conf"), "write-slot", "rootfs.0", at("image.tar")).CombinedOutput(); err != nil {
		t.Fatalf("rauc write-slot: %v\n%s", err, text)
	}
	if err := unix.Mount(loop, at("top"), "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(at("top"), unix.MNT_DETACH)
	plain := func(files map[string]string) map[string]string {
		delete(files, "/lost+found")
		for name, text := range files {
			files[name] = regexp.MustCompile(` sparse \w+| \S+=\S+`).ReplaceAllString(text, "")
		}
		return files
	}
	if d := cmp.Diff(plain(describe(t, from)), plain(describe(t, at("top")))); d != "" {
		t.Errorf("the folder, and RAUC's slot:\n%s", d)
	}
}
