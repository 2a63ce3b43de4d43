package image

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lifeboat/config"
)

const testConfig = `[system]
compatible=example-board
bootloader=raw
[slot.rootfs.0]
device=PARTLABEL=rootfs.0
bootname=A
[slot.rootfs.1]
device=PARTLABEL=rootfs.1
bootname=B
`

// writeFiles makes files below a new folder; contents starting with "#!" are executable.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// staticInit builds a static executable.
func staticInit(t *testing.T, dir string) string {
	t.Helper()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() { println(1) }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

// fakeKernel has modules that need each other, one built in and one whose only help is for some processors.
func fakeKernel(t *testing.T) string {
	base := "lib/modules/6.9-test/"
	files := map[string]string{
		base + "modules.dep": strings.Join([]string{
			"kernel/fs/ext4.ko: kernel/fs/jbd2.ko kernel/fs/mbcache.ko",
			"kernel/fs/jbd2.ko:", "kernel/fs/mbcache.ko:",
			"kernel/crypto/crc32c_generic.ko:", "kernel/crypto/crc32c-intel.ko:",
			"kernel/drivers/md/dm-verity.ko: kernel/drivers/md/dm-bufio.ko kernel/drivers/md/dm-mod.ko",
			"kernel/drivers/md/dm-bufio.ko: kernel/drivers/md/dm-mod.ko", "kernel/drivers/md/dm-mod.ko:",
			"kernel/scsi/sd_mod.ko: kernel/scsi/scsi_mod.ko", "kernel/scsi/scsi_mod.ko:",
			"kernel/usb/usb-storage.ko: kernel/usb/usbcore.ko kernel/scsi/scsi_mod.ko", "kernel/usb/usbcore.ko:",
			"kernel/usb/xhci-pci.ko: kernel/usb/usbcore.ko",
			"kernel/net/e1000.ko:",
			"kernel/dog/i6300esb.ko: kernel/dog/watchdog.ko", "kernel/dog/softdog.ko: kernel/dog/watchdog.ko",
			"kernel/dog/pretimeout_panic.ko: kernel/dog/watchdog.ko", "kernel/dog/watchdog.ko:",
		}, "\n") + "\n",
		base + "modules.softdep": "# Soft dependencies\nsoftdep jbd2 pre: crypto-crc32c post: e1000\n",
		base + "modules.alias":   "alias crypto-crc32c crc32c_intel\nalias crypto-crc32c crc32c_generic\n",
	}
	for _, line := range strings.Split(strings.TrimSpace(files[base+"modules.dep"]), "\n") {
		file, _, _ := strings.Cut(line, ":")
		files[base+file] = file
	}
	return writeFiles(t, files)
}

func TestModuleOrder(t *testing.T) {
	k, err := openKernel(context.Background(), fakeKernel(t))
	if err != nil {
		t.Fatal(err)
	}
	defer k.root.Close()
	nodes, count, err := moduleNodes(k, nil, []string{"e1000 debug=1"}, config.Watchdog{Softdog: true, Pretimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if count != len(nodes)-2 { // no watchdog was asked for: no list of them
		t.Errorf("%d modules in %d files", count, len(nodes))
	}
	boot, usb := nodes[len(nodes)-2], nodes[len(nodes)-1]
	const p = "/lib/modules/6.9-test/kernel/"
	want := strings.NewReplacer("~", p).Replace(`~drivers/md/dm-mod.ko
~drivers/md/dm-bufio.ko
~drivers/md/dm-verity.ko
~fs/mbcache.ko
~crypto/crc32c_generic.ko
~fs/jbd2.ko
~fs/ext4.ko
~dog/watchdog.ko
~dog/i6300esb.ko
~net/e1000.ko debug=1
`)
	if diff := cmp.Diff(want, string(boot.content)); diff != "" || boot.name != modulesName {
		t.Errorf("%s:\n%s", boot.name, diff)
	}
	want = strings.NewReplacer("~", p).Replace("~usb/usbcore.ko authorized_default=0\n~scsi/scsi_mod.ko\n~scsi/sd_mod.ko\n~usb/usb-storage.ko delay_use=0\n~usb/xhci-pci.ko\n")
	if diff := cmp.Diff(want, string(usb.content)); diff != "" || usb.name != modulesUSBName {
		t.Errorf("%s:\n%s", usb.name, diff)
	}
	if _, _, err := moduleNodes(k, nil, []string{"floppy"}, config.Watchdog{}); err == nil || !strings.Contains(err.Error(), "has no module floppy") {
		t.Errorf("a module that was asked for and is not there: %v", err)
	}
}

// Watchdogs that the configuration asks for are loaded first, the kernel's own timer only where there is no other.
func TestWatchdogModules(t *testing.T) {
	k, err := openKernel(context.Background(), fakeKernel(t))
	if err != nil {
		t.Fatal(err)
	}
	defer k.root.Close()
	const core, hard, soft, panics = "/lib/modules/6.9-test/kernel/dog/watchdog.ko\n", "/lib/modules/6.9-test/kernel/dog/i6300esb.ko\n",
		"/lib/modules/6.9-test/kernel/dog/softdog.ko soft_panic=1\n", "/lib/modules/6.9-test/kernel/dog/pretimeout_panic.ko\n"
	for _, test := range []struct {
		w        config.Watchdog
		features []string
		want     map[string]string
	}{
		{config.Watchdog{}, []string{"watchdog"}, map[string]string{modulesName: core + hard}},
		{config.Watchdog{Timeout: 30 * time.Second}, []string{"watchdog"}, map[string]string{modulesDogName: core + hard, modulesName: ""}},
		{config.Watchdog{Timeout: 30 * time.Second, Pretimeout: 5 * time.Second, Softdog: true}, []string{"usb2"}, map[string]string{modulesDogName: core + hard + panics, modulesSoftdog: soft, modulesName: ""}},
	} {
		nodes, count, err := moduleNodes(k, test.features, nil, test.w)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, n := range nodes[count:] {
			got[n.name] = string(n.content)
		}
		test.want[modulesUSBName] = ""
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%+v:\n%s", test.w, diff)
		}
	}
}

func TestOpenKernelRefuses(t *testing.T) {
	two := writeFiles(t, map[string]string{"lib/modules/1/kernel/a.ko": "", "lib/modules/2/kernel/a.ko": ""})
	for name, dir := range map[string]string{"2 kernels": two, "0 kernels": t.TempDir()} {
		if _, err := openKernel(context.Background(), dir); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Debian's packages come without modules.dep; what depmod makes for a copy of the names must not touch the package and
// give the same list.
func TestDepmod(t *testing.T) {
	dir := "../build/kernel/cloud"
	if _, err := os.Stat(dir); err != nil {
		t.Skip("no unpacked kernel: make setup")
	}
	packed, err := openKernel(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer packed.root.Close()
	bare := t.TempDir()
	folder := filepath.Join(bare, "lib/modules", packed.release)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	abs, err := filepath.Abs(filepath.Join(dir, "lib/modules", packed.release))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command("cp", "-r", abs+"/kernel", abs+"/modules.builtin", abs+"/modules.order", folder).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	k, err := openKernel(context.Background(), bare)
	if err != nil {
		t.Fatal(err)
	}
	defer k.root.Close()
	wanted, _ := wantedModules(DefaultFeatures())
	if diff := cmp.Diff(packed.order(wanted, map[string]bool{}), k.order(wanted, map[string]bool{})); diff != "" {
		t.Error(diff)
	}
	if exists(folder, "modules.dep") {
		t.Error("the package was written to")
	}
}

func TestParseSpec(t *testing.T) {
	dir := writeFiles(t, map[string]string{"a": "content"})
	got, err := parseSpec("# x\n\nfile /etc/x/a ${A} 0644 1 2\ndir /dev 0755 0 0\nnod /dev/console 0600 0 0 c 5 1\nslink /sbin ${B} 0777 0 0\npipe /p 0600 0 0\n", map[string]string{"A": dir + "/a", "B": "usr/sbin"})
	if err != nil {
		t.Fatal(err)
	}
	want := []node{
		{name: "etc/x/a", mode: unix.S_IFREG | 0o644, uid: 1, gid: 2, content: []byte("content")},
		{name: "dev", mode: unix.S_IFDIR | 0o755},
		{name: "dev/console", mode: unix.S_IFCHR | 0o600, major: 5, minor: 1},
		{name: "sbin", mode: unix.S_IFLNK | 0o777, content: []byte("usr/sbin")},
		{name: "p", mode: unix.S_IFIFO | 0o600},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(node{})); diff != "" {
		t.Error(diff)
	}
	for _, test := range []struct{ spec, want string }{
		{"\nfoo /x 0 0 0", "line 2: unknown kind"},
		{"dir /x 0755 0", "dir takes 5 words, there are 4"},
		{"dir / 0755 0 0", "not a plain path"},
		{"dir /a/../b 0755 0 0", "not a plain path"},
		{"dir /a 0999 0 0", "mode, uid or gid of a"},
		{"dir /a 0755 x 0", "mode, uid or gid of a"},
		{"file /a ${NONE} 0644 0 0", "unknown variable ${NONE}"},
		{"file /a /nonexistent/x 0644 0 0", "no such file"},
		{"nod /a 0644 0 0 x 1 1", "neither b nor c"},
		{"nod /a 0644 0 0 c -1 1", "device number of a"},
	} {
		if _, err := parseSpec(test.spec, nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v, want %q", test.spec, err, test.want)
		}
	}
}

func TestWithFolders(t *testing.T) {
	file, folder := uint64(unix.S_IFREG|0o644), uint64(unix.S_IFDIR|0o755)
	got, err := withFolders([]node{{name: "a/b/c", mode: file}, {name: "a/b", mode: folder}, {name: "a/d", mode: file}})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range got {
		names = append(names, n.name)
	}
	if diff := cmp.Diff([]string{"a", "a/b", "a/b/c", "a/d"}, names); diff != "" {
		t.Error(diff)
	}
	for want, nodes := range map[string][]node{
		"a stands twice": {{name: "a", mode: file}, {name: "a", mode: file}},
		"is no folder":   {{name: "a", mode: file}, {name: "a/b", mode: file}},
	} {
		if _, err := withFolders(nodes); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestInitramfs(t *testing.T) {
	dir := writeFiles(t, map[string]string{"system.conf": testConfig, "keyring.pem": "keys\n"})
	o := InitramfsOptions{
		Config: dir + "/system.conf", Keyring: dir + "/keyring.pem", Init: staticInit(t, dir), Kernel: fakeKernel(t),
		Build: time.Unix(1700000000, 0),
	}
	ctx := context.Background()
	for _, name := range []string{"a.zst", "b.zst", "a.cpio", "a.gz"} {
		report, err := Initramfs(ctx, o, filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if report.Release != "6.9-test" || report.Modules != 14 {
			t.Errorf("%s: %+v", name, report)
		}
		a, err := ReadArchive(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if a.Build != "1700000000" || a.Config != testConfig || len(a.Modules) != 9 || len(a.ModulesUSB) != 5 || a.RawSize != report.RawSize {
			t.Errorf("%s: build %s, %d and %d modules, raw %d of %d", name, a.Build, len(a.Modules), len(a.ModulesUSB), a.RawSize, report.RawSize)
		}
		if i := slices.IndexFunc(a.Files, func(f ArchiveFile) bool { return f.Name == "etc/lifeboat/keyring.pem" }); i < 0 || a.Files[i].Size != 5 {
			t.Errorf("%s: no keyring", name)
		}
	}
	one, err := os.ReadFile(dir + "/a.zst")
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(dir + "/b.zst")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("the same input gave different bytes")
	}
	// The kernel reads it as cpio does.
	tool, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("no cpio to compare with")
	}
	cmd := exec.Command(tool, "-itv", "--quiet")
	if cmd.Stdin, err = os.Open(dir + "/a.cpio"); err != nil {
		t.Fatal(err)
	}
	list, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, list)
	}
	for _, want := range []string{"-rwxr-xr-x", " init\n", "crw-------", "dev/console", "etc/lifeboat/modules.usb", "dr-xr-xr-x", " Jan  1  1970 "} {
		if !strings.Contains(string(list), want) {
			t.Errorf("cpio shows no %q:\n%s", want, list)
		}
	}
}

func TestInitramfsRefuses(t *testing.T) {
	dir := writeFiles(t, map[string]string{"system.conf": testConfig, "bad.conf": "[x]\n", "keyring.pem": "keys\n", "script": "#!/bin/sh\n"})
	init := staticInit(t, dir)
	for _, test := range []struct {
		want string
		o    InitramfsOptions
	}{
		{"bad.conf: line 1: unknown section", InitramfsOptions{Config: dir + "/bad.conf", Init: init, Keyring: dir + "/keyring.pem"}},
		{"script: not an executable", InitramfsOptions{Config: dir + "/system.conf", Init: dir + "/script", Keyring: dir + "/keyring.pem"}},
		{"linked dynamically", InitramfsOptions{Config: dir + "/system.conf", Init: "/bin/ls", Keyring: dir + "/keyring.pem"}},
		{"no such file", InitramfsOptions{Config: dir + "/system.conf", Init: init, Keyring: dir + "/none.pem"}},
	} {
		if _, err := Initramfs(context.Background(), test.o, dir+"/out.cpio"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		}
		if exists(dir, "out.cpio") {
			t.Error("a partial file was left")
		}
	}
}

func TestFeatures(t *testing.T) {
	const all = "virtio scsi nvme ahci mmc verity integrity squashfs erofs ext4 overlay watchdog efivars usb usb2"
	for choice, want := range map[string]string{
		"":               "virtio verity squashfs erofs ext4 watchdog usb",
		"+ahci,-ext4":    "virtio ahci verity squashfs erofs watchdog usb",
		"usb, virtio":    "virtio usb",
		"all":            all,
		"floppy":         `error: unknown feature "floppy", there are: ` + all,
		"virtio,+ahci":   "error: \"virtio,+ahci\": either all features have + or - or none",
		"-virtio,verity": "error: \"-virtio,verity\": either all features have + or - or none",
	} {
		names, err := Features(choice)
		got := strings.Join(names, " ")
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", choice, got, want)
		}
	}
}
