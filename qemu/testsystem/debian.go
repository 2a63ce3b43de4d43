package testsystem

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrNoDebian says why a Debian system cannot be made on this machine.
var ErrNoDebian = errors.New("no Debian system")

// DebianOptions describe a minimal Debian 12 with systemd.
type DebianOptions struct {
	Version   string
	Bootcount string // file that becomes /usr/bin/bootcount
	Units     string // folder of the units that docs/system.md tells to install
	Watchdog  string // RuntimeWatchdogSec=, e.g. "60"; "" and "off": systemd feeds none
	Cache     string // folder that keeps what mmdebstrap made, named by its recipe
	Archive   bool   // a .tar.zst instead of a squashfs
}

// Marks on the kernel command line of a Debian system.
const (
	// DebianCmdline is what docs/system.md asks for, and no status lines that could tear others apart.
	DebianCmdline = "systemd.volatile=state systemd.show_status=error"
	// DebianSick lets an early unit fail: local-fs.target is not reached, systemd waits in emergency mode for ever.
	DebianSick = "test.sick"
)

const debianSuite = "bookworm"

// debianRecipe are mmdebstrap's arguments but for those that say where this machine gets its packages.
var debianRecipe = []string{
	"--quiet", "--variant=essential", "--format=tar", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
	"--include=systemd-sysv,udev,dbus,usr-is-merged", `--aptopt=APT::Install-Recommends "false"`,
	"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/info/*",
	"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/zoneinfo/*",
	"--dpkgopt=path-exclude=/usr/lib/x86_64-linux-gnu/gconv/*", "--dpkgopt=path-exclude=/lib/udev/hwdb.d/*",
}

// Debian writes an image of a Debian 12 system as an integrator makes it: docs/system.md is followed word for
// word, with a health check on top. On ttyS0 it obeys [Run] as the small systems do.
func Debian(out string, o DebianOptions) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it takes root to unpack one", ErrNoDebian)
	}
	base, err := debianBase(o.Cache)
	if err != nil {
		return err
	}
	tree, err := os.MkdirTemp("", "lifeboat-debian-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := os.Chmod(tree, 0o755); err != nil {
		return err
	}
	if err := tool("tar", "-C", tree, "-xpf", base, "--numeric-owner", "--exclude=./dev/*"); err != nil {
		return err
	}
	if err := equip(tree, o); err != nil {
		return fmt.Errorf("Debian system: %w", err)
	}
	if err := os.Remove(out); err != nil && !os.IsNotExist(err) {
		return err
	}
	if o.Archive {
		return tool("tar", "-C", tree, "--sort=name", "--numeric-owner", "--xattrs", "--acls", "--xattrs-include=*", "-I", "zstd -q -9", "-cf", out, ".")
	}
	return tool("mksquashfs", tree, out, "-noappend", "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "6")
}

// equip installs what docs/system.md tells to install, and what only the test needs.
func equip(tree string, o DebianOptions) error {
	files, err := filepath.Glob(filepath.Join(o.Units, "lifeboat-*"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no units in %s", o.Units)
	}
	for _, from := range append(files, o.Bootcount) {
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		to, mode := "etc/systemd/system/"+filepath.Base(from), os.FileMode(0o644)
		if from == o.Bootcount {
			to, mode = "usr/bin/bootcount", 0o755
		}
		if err := place(filepath.Join(tree, to), content, mode); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"etc/version": o.Version + "\n", "etc/hostname": "device\n", "etc/resolv.conf": "",
		"etc/systemd/system.conf.d/watchdog.conf":                 "[Manager]\nRuntimeWatchdogSec=" + o.Watchdog + "\n",
		"etc/systemd/system/test-health.service":                  debianHealth,
		"etc/systemd/system/test-sick.service":                    debianEarly,
		"etc/systemd/system/serial-getty@ttyS0.service.d/10.conf": debianConsole,
	} {
		if err := place(filepath.Join(tree, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := place(filepath.Join(tree, "usr/local/sbin/obey"), []byte(debianObey), 0o755); err != nil {
		return err
	}
	return tool("chroot", tree, "systemctl", "--quiet", "enable", "lifeboat-good.service", "lifeboat-trial.timer", "lifeboat-ended.service",
		"systemd-boot-check-no-failures.service", "/usr/share/systemd/tmp.mount", "test-health.service", "test-sick.service")
}

const (
	debianHealth = `[Unit]
Description=A health check
Before=boot-complete.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo HEALTH CHECKED >/dev/console'
[Install]
RequiredBy=boot-complete.target
`
	debianEarly = `[Unit]
Description=An early unit that fails where the kernel command line says so
DefaultDependencies=no
Before=local-fs.target
ConditionKernelCommandLine=` + DebianSick + `
[Service]
Type=oneshot
ExecStart=/bin/false
[Install]
RequiredBy=local-fs.target
`
	debianConsole = `[Service]
ExecStart=
ExecStart=/usr/local/sbin/obey
`
	debianObey = `#!/bin/sh
stty -echo
echo "SYSTEM UP version=$(cat /etc/version)"
echo "SYSTEM READY"
while read -r word token command; do
	[ "$word" = run ] || continue
	output=$($command 2>&1)
	exit=$?
	printf '<<%s\n%s\n>>%s exit=%d\n' "$token" "$output" "$token" "$exit"
done
`
)

// debianBase returns the archive of the untouched system. It is made once for each recipe, from the Debian mirror that
// apt of this machine is configured to use.
func debianBase(cache string) (string, error) {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return "", fmt.Errorf("%w: mmdebstrap not found: run make setup", ErrNoDebian)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	key := sha256.Sum256([]byte(debianSuite + "\n" + strings.Join(debianRecipe, "\n")))
	base := filepath.Join(cache, fmt.Sprintf("debian-%x.tar", key[:6]))
	lock, err := os.OpenFile(base+".lock", os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return "", err
	}
	defer lock.Close() // and so unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(base); err == nil {
		return base, nil
	}
	sources, err := aptSources()
	if err != nil {
		return "", err
	}
	options, err := aptOptions()
	if err != nil {
		return "", err
	}
	defer os.Remove(options)
	part := base + ".part"
	args := append([]string{"--aptopt=" + options}, debianRecipe...)
	if err := tool("mmdebstrap", append(append(args, debianSuite, part), sources...)...); err != nil {
		return "", err
	}
	return base, os.Rename(part, base)
}

// aptSources returns the lines of apt's configuration for the suite. apt names its sources only once it has their lists.
func aptSources() ([]string, error) {
	list := func() (lines []string, err error) {
		out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
			"Created-By: Packages", "Origin: Debian").Output()
		if err != nil {
			return nil, fmt.Errorf("apt-get indextargets: %w", err)
		}
		for l := range strings.Lines(string(out)) {
			if f := strings.Fields(l); len(f) == 3 && f[1] == debianSuite && f[2] == "main" {
				lines = append(lines, "deb "+strings.Join(f, " "))
			}
		}
		return lines, nil
	}
	lines, err := list()
	if err == nil && len(lines) == 0 {
		if err = tool("apt-get", "-qq", "update"); err == nil {
			lines, err = list()
		}
	}
	if err == nil && len(lines) == 0 {
		err = fmt.Errorf("%w: apt's sources have no %s of Debian", ErrNoDebian, debianSuite)
	}
	return lines, err
}

// aptOptions writes how apt of this machine reaches its sources (proxies, certificates, a clock that is not trusted).
func aptOptions() (file string, err error) {
	out, err := exec.Command("apt-config", "dump", "Acquire").Output()
	if err != nil {
		return "", fmt.Errorf("apt-config dump: %w", err)
	}
	var b bytes.Buffer
	for l := range strings.Lines(string(out)) {
		for _, prefix := range []string{"Check-", "http", "ftp", "Retries", "Proxy", "ForceIP"} {
			if strings.HasPrefix(l, "Acquire::"+prefix) {
				b.WriteString(l)
				break
			}
		}
	}
	f, err := os.CreateTemp("", "lifeboat-apt-*.conf")
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = f.Write(b.Bytes())
	return f.Name(), err
}
