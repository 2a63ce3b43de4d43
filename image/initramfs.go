// Package image makes on the PC what a device starts from: the initramfs with /init, disk images with filled slots and
// sticks with bundles; and it looks into them again.
package image

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"debug/elf"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"

	"lifeboat/config"
	"lifeboat/status"
)

// Names in the initramfs that /init reads.
const (
	configName     = "etc/lifeboat/system.conf"
	buildName      = "etc/lifeboat/build"
	modulesName    = "etc/lifeboat/modules"
	modulesUSBName = "etc/lifeboat/modules.usb"
	modulesDogName = "etc/lifeboat/modules.watchdog"
	modulesSoftdog = "etc/lifeboat/modules.softdog"
	templateName   = "etc/lifeboat/" + status.Template
)

// DefaultSpec is the list of files that is used where none is given.
//
//go:embed initramfs.cpio.spec
var DefaultSpec string

// InitramfsOptions says what goes into an initramfs.
type InitramfsOptions struct {
	Config   string    // path of system.conf
	Keyring  string    // path of the keyring
	Init     string    // path of /init, a static executable
	Kernel   string    // root of an unpacked kernel package, "" for a kernel without modules
	Spec     string    // content of an initramfs.cpio.spec, "" for DefaultSpec
	Features []string  // groups of modules, nil for DefaultFeatures
	Modules  []string  // more modules, each with its options after a space; they must be there
	Build    time.Time // lowest time that the device believes in

	IntegrityKey string // path of the key for integrity=hmac-sha256, which must be there where something has that
}

// InitramfsReport says what was made.
type InitramfsReport struct {
	Release     string // of the kernel whose modules are in it
	Modules     int
	Compression string // "zstd -19", or which one was used instead
	Size        int64  // bytes of the file
	RawSize     int64  // uncompressed
	Config      *config.Config
}

// Initramfs writes an initramfs to the file out: gzip if its name ends in .gz, uncompressed for .cpio, zstd for
// everything else. The same input gives the same bytes, if the same zstd compresses them. No partial file is left.
func Initramfs(ctx context.Context, o InitramfsOptions, out string) (*InitramfsReport, error) {
	raw, err := os.ReadFile(o.Config)
	if err != nil {
		return nil, err
	}
	c, err := config.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Config, err)
	}
	if err := checkStatic(o.Init); err != nil {
		return nil, err
	}
	nodes, err := parseSpec(cmp.Or(o.Spec, DefaultSpec), map[string]string{
		"INIT": o.Init, "CONFIG": o.Config, "KEYRING": o.Keyring, "KEYRING_PATH": c.KeyringPath,
	})
	if err != nil {
		return nil, fmt.Errorf("initramfs.cpio.spec: %w", err)
	}
	report := &InitramfsReport{Config: c}
	nodes = append(nodes, textNode(buildName, strconv.FormatInt(o.Build.Unix(), 10)+"\n"))
	if c.Trees() || c.Data.Device != "" {
		template, err := emptyExt4(ctx, c.Ext4)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, textNode(templateName, string(template)))
	}
	integrities := c.Integrities()
	if slices.Contains(integrities, config.Keyed) {
		if o.IntegrityKey == "" {
			return nil, fmt.Errorf("integrity=%s takes a key: --integrity-key FILE, of 16 to 64 random bytes", config.Keyed)
		}
		key, err := os.ReadFile(o.IntegrityKey)
		if err != nil {
			return nil, fmt.Errorf("the key for integrity=%s: %w", config.Keyed, err)
		}
		if len(key) < 16 || len(key) > 64 {
			return nil, fmt.Errorf("the key in %s has %d bytes, want 16 to 64", o.IntegrityKey, len(key))
		}
		nodes = append(nodes, node{name: strings.TrimPrefix(c.IntegrityKey, "/"), mode: unix.S_IFREG | 0o600, content: key})
	}
	if o.Kernel != "" {
		k, err := openKernel(ctx, o.Kernel)
		if err != nil {
			return nil, err
		}
		defer k.root.Close()
		features := o.Features
		if features == nil {
			features = DefaultFeatures()
		}
		features = slices.Clone(features)
		if c.Bootloader == "efi" || c.Bootloader == "sdboot" {
			features = append(features, efiFeature)
		}
		if len(integrities) > 0 {
			features = append(features, integrityFeature)
		}
		if c.Data.Device != "" {
			features = append(features, "ext4")
		}
		if len(c.Data.Overlays) > 0 {
			features = append(features, "overlay")
		}
		modules, count, err := moduleNodes(k, features, o.Modules, c.Watchdog)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, modules...)
		report.Release, report.Modules = k.release, count
	}
	if nodes, err = withFolders(nodes); err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	var archive bytes.Buffer
	if err := writeArchive(&archive, nodes); err != nil {
		return nil, err
	}
	report.RawSize = int64(archive.Len())
	packed, how, err := compress(ctx, archive.Bytes(), filepath.Ext(out))
	if err != nil {
		return nil, err
	}
	report.Compression, report.Size = how, int64(len(packed))
	if err := renameio.WriteFile(out, packed, 0o644); err != nil {
		return nil, fmt.Errorf("write initramfs: %w", err)
	}
	return report, nil
}

// checkStatic refuses an /init that the initramfs could not start.
func checkStatic(name string) error {
	f, err := elf.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("init: %w", err)
	}
	if err != nil {
		return fmt.Errorf("init %s: not an executable: %w", name, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("init %s is linked dynamically, there are no libraries in the initramfs: build it with CGO_ENABLED=0", name)
		}
	}
	return nil
}

func textNode(name, content string) node {
	return node{name: name, mode: unix.S_IFREG | 0o644, content: []byte(content)}
}

// moduleNodes returns the modules, of which there are count, and then the lists of them, those of modules and modules.usb
// last.
func moduleNodes(k *kernel, features, more []string, w config.Watchdog) (nodes []node, count int, err error) {
	loaded := map[string]bool{}
	list := func(wanted []string) (string, error) {
		names := make([]string, 0, len(wanted))
		options := map[string]string{}
		for _, w := range wanted {
			name, opts, _ := strings.Cut(w, " ")
			name = strings.ReplaceAll(name, "-", "_")
			names = append(names, name)
			options[name] = opts
		}
		var text strings.Builder
		for _, name := range k.order(names, loaded) {
			content, err := k.read(name)
			if err != nil {
				return "", err
			}
			nodes = append(nodes, node{name: k.path(name), mode: unix.S_IFREG | 0o644, content: content})
			text.WriteString("/" + k.path(name))
			if options[name] != "" {
				text.WriteString(" " + options[name])
			}
			text.WriteString("\n")
		}
		return text.String(), nil
	}
	for _, m := range more {
		name, _, _ := strings.Cut(m, " ")
		if _, ok := k.file[strings.ReplaceAll(name, "-", "_")]; !ok {
			return nil, 0, fmt.Errorf("kernel %s has no module %s", k.release, name)
		}
	}
	if features == nil {
		features = DefaultFeatures()
	}
	boot, late := wantedModules(features)
	hard, soft := watchdogModules(w)
	var lists []node
	for _, l := range []struct {
		name  string
		wants []string
	}{{modulesDogName, hard}, {modulesSoftdog, soft}, {modulesName, slices.Concat(boot, more)}, {modulesUSBName, late}} {
		text, err := list(l.wants)
		if err != nil {
			return nil, 0, err
		}
		if text != "" || l.name == modulesName || l.name == modulesUSBName {
			lists = append(lists, textNode(l.name, text))
		}
	}
	return append(nodes, lists...), len(nodes), nil
}

// writeArchive writes nodes as a newc archive: times 0, inode numbers counted from 1.
func writeArchive(w io.Writer, nodes []node) error {
	archive := cpio.Newc.Writer(w)
	for i, n := range nodes {
		r := cpio.Record{Info: cpio.Info{
			Name: n.name, Ino: uint64(i + 1), Mode: n.mode, UID: n.uid, GID: n.gid, NLink: 1,
			Rmajor: n.major, Rminor: n.minor, FileSize: uint64(len(n.content)),
		}}
		if n.mode&unix.S_IFMT == unix.S_IFDIR {
			r.NLink = 2
		}
		if len(n.content) > 0 {
			r.ReaderAt = bytes.NewReader(n.content)
		}
		if err := archive.WriteRecord(r); err != nil {
			return fmt.Errorf("archive %s: %w", n.name, err)
		}
	}
	if err := cpio.WriteTrailer(archive); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	return nil
}

// compress packs b for the kernel, as the extension of its file says. zstd is the program where it is installed: its
// level 19 saves a tenth over the best that there is in Go.
func compress(ctx context.Context, b []byte, ext string) (packed []byte, how string, err error) {
	var to bytes.Buffer
	switch ext {
	case ".cpio":
		return b, "uncompressed", nil
	case ".gz":
		z, err := gzip.NewWriterLevel(&to, gzip.BestCompression)
		if err != nil {
			return nil, "", err
		}
		_, err = z.Write(b)
		if err := errors.Join(err, z.Close()); err != nil {
			return nil, "", fmt.Errorf("gzip: %w", err)
		}
		return to.Bytes(), "gzip -9", nil
	}
	if tool, err := exec.LookPath("zstd"); err == nil {
		var stderr bytes.Buffer
		// One thread: the result of several depends on how they share the work. The size lets the kernel get by with
		// a window no larger than the archive.
		cmd := exec.CommandContext(ctx, tool, "-q", "-c", "-19", "--single-thread", "--no-check", "--stream-size="+strconv.Itoa(len(b)))
		cmd.Env = append(os.Environ(), "ZSTD_CLEVEL=", "ZSTD_NBTHREADS=")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(b), &to, &stderr
		if err := cmd.Run(); err != nil {
			return nil, "", fmt.Errorf("zstd: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
		}
		return to.Bytes(), "zstd -19", nil
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, "", fmt.Errorf("zstd: %w", err)
	}
	defer z.Close()
	return z.EncodeAll(b, nil), "zstd in Go, about -11 (no zstd program here)", nil
}

// InitFor returns which of the programs that `make build` makes is the /init of a configuration: "init-full" updates boot loaders,
// knows variables on raw flash and slots that take archives, "init" does not, "init-raw" talks to none.
func InitFor(c *config.Config) string {
	switch {
	case len(c.Loaders()) > 0, c.Trees(), c.Data.Device != "", c.Bootloader != "raw" && config.Flash(c.Loader.Device):
		return "init-full"
	case c.Bootloader == "raw":
		return "init-raw"
	}
	return "init"
}
