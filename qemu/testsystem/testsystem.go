// Package testsystem makes the small systems that run in the virtual device in tests: one static program as PID 1 in a
// squashfs, ext4 or erofs image ([Build]) or in an initramfs ([Initramfs]).
//
// The program mounts what is missing (proc, sys, dev, run, tmp, pstore), loads the modules it was given and prints
//
//	SYSTEM UP version=VERSION
//	BOOT.JSON BEGIN ... BOOT.JSON END      where /run/lifeboat/boot.json exists
//
// then behaves as told (see [Behaviour]), prints SYSTEM READY and obeys lines on the serial console:
//
//	run TOKEN COMMAND ARGS...   prints <<TOKEN, the output, >>TOKEN exit=N (-1: could not run); see [Run]
//	                            built in: cat F, ls DIR, head N F (hexadecimal), write F TEXT, dmesg,
//	                            begin F COMMAND ARGS... (in the background, output to F), signal NUMBER PID,
//	                            feed F COMMAND ARGS... (F through a pipe)
//	reboot | poweroff | panic | hang
//	starve                      no longer feeds the watchdog, which it does where there is a file /etc/feeds
package testsystem

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Behaviour is what a system does after it has said that it is up.
type Behaviour string

const (
	Wait   Behaviour = ""       // obeys
	Good   Behaviour = "good"   // runs `bootcount good`, prints SYSTEM GOOD or SYSTEM NOT GOOD: why, obeys
	Person Behaviour = "person" // the same for a person: with a prompt, and any command without "run TOKEN"
	Silent Behaviour = "silent" // reboots in order after 1 s
	Reboot Behaviour = "reboot" // reboots in order at once
	Off    Behaviour = "off"    // powers off
	Panic  Behaviour = "panic"  // crashes the kernel
	Hang   Behaviour = "hang"   // arms /dev/watchdog0 with 5 s, prints SYSTEM HANGS: <nil> and stops
)

// Options describe a system.
type Options struct {
	Version   string
	Behaviour Behaviour

	Format      string // "squashfs" (default), "ext4", "erofs"; archives: "tar", "tar.gz", "tar.xz", "tar.zst", "tar.lz4"
	Compression string // of squashfs: "zstd" (default), "gzip", "xz", "lz4"

	Bootcount string            // file that becomes /usr/bin/bootcount; optional
	Files     map[string]string // further files: path in the system to file on the host
	Text      map[string]string // further files: path in the system to content

	KernelRoot string   // an unpacked kernel package, for Modules
	Modules    []string // loaded by PID 1 with what they depend on, e.g. "i6300esb"

	Size int64 // of an ext4 image in bytes; 0: 16 MiB
}

// Build writes the image of a system to out. The tools are mksquashfs, mke2fs and mkfs.erofs. Same options, same bytes
// (but for ext4's and erofs's UUID).
func Build(out string, o Options) error {
	tree, err := os.MkdirTemp("", "lifeboat-system-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := populate(tree, o); err != nil {
		return fmt.Errorf("test system: %w", err)
	}
	if err := os.Remove(out); err != nil && !os.IsNotExist(err) {
		return err
	}
	switch o.Format {
	case "", "squashfs":
		comp := o.Compression
		if comp == "" {
			comp = "zstd"
		}
		return tool("mksquashfs", tree, out, "-noappend", "-quiet", "-no-progress", "-all-root",
			"-comp", comp, "-mkfs-time", "0", "-all-time", "0")
	case "ext4":
		size := o.Size
		if size == 0 {
			size = 16 << 20
		}
		return tool("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-E", "root_owner=0:0", "-d", tree,
			out, strconv.FormatInt(size/4096, 10))
	case "erofs":
		return tool("mkfs.erofs", "-T0", "--all-root", "--quiet", out, tree)
	case "tar", "tar.gz", "tar.xz", "tar.zst", "tar.lz4":
		pack := map[string]string{"tar": "cat", "tar.gz": "gzip", "tar.xz": "xz", "tar.zst": "zstd -q", "tar.lz4": "lz4 -q"}[o.Format]
		return tool("tar", "-C", tree, "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--xattrs", "-I", pack, "-cf", out, ".")
	}
	return fmt.Errorf("test system: format %q", o.Format)
}

// Initramfs writes an uncompressed cpio whose /init is the test system. Format, Compression and Size are not looked at.
func Initramfs(out string, o Options) error {
	tree, err := os.MkdirTemp("", "lifeboat-system-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := populate(tree, o); err != nil {
		return fmt.Errorf("test system: %w", err)
	}
	if err := os.Rename(filepath.Join(tree, "sbin/init"), filepath.Join(tree, "init")); err != nil {
		return err
	}
	return writeCPIO(out, tree)
}

// populate makes the tree of a system.
func populate(tree string, o Options) error {
	if err := os.Chmod(tree, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "var", "etc", "sbin", "usr/bin", "lib/modules"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w",
		"-o", filepath.Join(tree, "sbin/init"), "lifeboat/qemu/testsystem/system")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	text := map[string]string{"etc/version": o.Version + "\n", "etc/behaviour": string(o.Behaviour) + "\n"}
	files := map[string]string{}
	if o.Bootcount != "" {
		files["usr/bin/bootcount"] = o.Bootcount
	}
	if len(o.Modules) > 0 {
		order, err := modules(o.KernelRoot, o.Modules)
		if err != nil {
			return err
		}
		var list strings.Builder
		for _, m := range order {
			name := path.Base(m)
			files["lib/modules/"+name] = m
			list.WriteString(name + "\n")
		}
		text["lib/modules/order"] = list.String()
	}
	for name, from := range o.Files {
		files[name] = from
	}
	for name, content := range o.Text {
		text[name] = content
	}
	for name, from := range files {
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := place(filepath.Join(tree, name), content, info.Mode().Perm()); err != nil {
			return err
		}
	}
	for name, content := range text {
		if err := place(filepath.Join(tree, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func place(file string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, content, mode)
}

// modules returns the .ko files of the named modules and all they depend on, in the order in which to load them.
// Names of modules that are built into the kernel are passed over.
func modules(root string, names []string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(root, "lib/modules/*/modules.dep"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("no modules.dep below %s", root)
	}
	dir := filepath.Dir(found[0])
	dep, err := os.ReadFile(found[0])
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	plain := func(file string) string { // "kernel/a/b-c.ko" is module b_c
		return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
	}
	lines := map[string][]string{} // module to its file and those it depends on, in reverse order of loading
	for l := range strings.Lines(string(dep)) {
		file, needs, ok := strings.Cut(strings.TrimSpace(l), ":")
		if ok {
			lines[plain(file)] = append([]string{file}, strings.Fields(needs)...)
		}
	}
	in := map[string]bool{}
	for l := range strings.Lines(string(builtin)) {
		in[plain(strings.TrimSpace(l))] = true
	}
	var order []string
	for _, name := range names {
		chain, ok := lines[strings.ReplaceAll(name, "-", "_")]
		if !ok && !in[strings.ReplaceAll(name, "-", "_")] {
			return nil, fmt.Errorf("module %s: not in %s", name, found[0])
		}
		for _, file := range slices.Backward(chain) {
			if full := filepath.Join(dir, file); !slices.Contains(order, full) {
				order = append(order, full)
			}
		}
	}
	return order, nil
}

func tool(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// Console is the part of a running virtual device that Run needs.
type Console interface {
	Type(text string) error
	Expect(timeout time.Duration, pattern string) ([]string, error)
}

// Run executes a command in the test system and returns what it wrote and its exit status. Console output up to the
// answer counts as read.
func Run(c Console, timeout time.Duration, command ...string) (output string, status int, err error) {
	token := "t" + strconv.FormatInt(time.Now().UnixNano(), 36)
	if err := c.Type("run " + token + " " + strings.Join(command, " ") + "\n"); err != nil {
		return "", 0, err
	}
	q := regexp.QuoteMeta(token)
	m, err := c.Expect(timeout, `(?s)<<`+q+`\n(.*?)\n>>`+q+` exit=(-?\d+)\n`)
	if err != nil {
		return "", 0, fmt.Errorf("run %q in the test system: %w", command, err)
	}
	status, err = strconv.Atoi(m[2])
	return m[1], status, err
}
