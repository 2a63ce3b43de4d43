package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"lifeboat/config"
)

// feature is a group of modules that early boot may want; what they need comes with them. What a kernel has built in
// or does not have is left out.
type feature struct {
	name    string
	always  bool // in DefaultFeatures
	modules []string
}

// features stand in the order in which they are loaded. Those that are not in the default set cost more than most
// devices want to pay for: with Debian's generic kernel ahci 210 KB, mmc 200, usb2 110, nvme 100, overlay 75, scsi 15,
// compressed; with its cloud kernel, which has no USB, scsi 165 and ahci 150. Of usb2, ehci is 51 and uhci 24: a board without
// xHCI is known to who builds for it. uas is 11 and stays in: without it a fast disk is driven as a slow stick.
var features = []feature{
	{"virtio", true, []string{"virtio_pci", "virtio_mmio", "virtio_blk"}},
	{"scsi", false, []string{"sd_mod", "virtio_scsi"}},
	{"nvme", false, []string{"nvme"}},
	{"ahci", false, []string{"sd_mod", "ahci", "ahci_platform", "ata_piix"}},
	{"mmc", false, []string{"mmc_block", "sdhci_pci", "sdhci_acpi", "sdhci_iproc", "sdhci_of_arasan", "dw_mmc_rockchip", "meson_gx_mmc", "sunxi_mmc"}},
	{"verity", true, []string{"dm_verity"}},
	{integrityFeature, false, []string{"crc32c", "sha256", "hmac", "dm_integrity"}},
	{"squashfs", true, []string{"squashfs"}},
	{"erofs", true, []string{"erofs"}},
	{"ext4", true, []string{"ext4"}},
	{"overlay", false, []string{"overlay"}},
	{"watchdog", true, []string{"i6300esb"}},
	{efiFeature, false, []string{"efivarfs"}},
	// Loaded after the boot is counted. The storage drivers stand in front of the host controllers: a stick then has its
	// driver when it is found. authorized_default=0: usb.Settle says which devices come in.
	{usbFeature, true, []string{"usbcore authorized_default=0", "usb_storage delay_use=0", "uas", "xhci_pci", "xhci_plat_hcd"}},
	{"usb2", false, []string{"ehci_pci", "ehci_platform", "uhci_hcd", "ohci_pci", "ohci_platform"}},
}

const (
	usbFeature = "usb"     // usb and all that follow are loaded late
	efiFeature = "efivars" // comes by itself with a boot loader that keeps something there

	integrityFeature = "integrity" // comes by itself with integrity= in the configuration
)

// watchdogModules are the drivers of watchdogs that early boot arms, where [watchdog] asks for it: before all others, so that
// nothing can get stuck without one. Those that guess at ports (Super I/O chips) are left to --module. 60 KB compressed
// with Debian's generic kernel.
func watchdogModules(w config.Watchdog) (hard, soft []string) {
	if w.Timeout == 0 {
		return nil, nil
	}
	hard = []string{
		"i6300esb", "lpc_ich", "i2c_i801", "iTCO_wdt", "sp5100_tco", "wdat_wdt", "hpwdt", "simatic_ipc_wdt", "ie6xx_wdt", "via_wdt",
		"bcm2835_wdt", "imx2_wdt", "imx7ulp_wdt", "imx_sc_wdt", "sunxi_wdt", "meson_gxbb_wdt", "dw_wdt", "sbsa_gwdt", "sp805_wdt", "armada_37xx_wdt",
		"orion_wdt", "omap_wdt", "rti_wdt", "s3c2410_wdt", "qcom_wdt", "mtk_wdt", "tegra_wdt", "renesas_wdt", "cadence_wdt", "arm_smc_wdt",
	}
	if w.Pretimeout > 0 {
		hard = append(hard, "pretimeout_panic")
	}
	if w.Softdog {
		// Its end is a panic, which leaves evidence where there is a pstore; a restart would leave none.
		soft = []string{"softdog soft_panic=1"}
	}
	return hard, soft
}

// Features reads a choice of module groups: names with commas or spaces between, or changes of the default like
// "+ahci,-ext4", or "all". The result stands in the order of loading; "" is the default.
func Features(choice string) ([]string, error) {
	words := strings.FieldsFunc(choice, func(r rune) bool { return r == ',' || r == ' ' })
	relative := len(words) == 0 || words[0][0] == '+' || words[0][0] == '-'
	on := map[string]bool{}
	for _, f := range features {
		on[f.name] = relative && f.always || choice == "all"
	}
	if choice == "all" {
		words = nil
	}
	for _, w := range words {
		name := strings.TrimLeft(w[:1], "+-") + w[1:]
		if _, known := on[name]; !known {
			return nil, fmt.Errorf("unknown feature %q, there are: %s", name, strings.Join(featureNames(func(feature) bool { return true }), " "))
		}
		if (name != w) != relative {
			return nil, fmt.Errorf("%q: either all features have + or - or none", choice)
		}
		on[name] = w[0] != '-'
	}
	return featureNames(func(f feature) bool { return on[f.name] }), nil
}

// DefaultFeatures are the module groups of an initramfs for which none are chosen.
func DefaultFeatures() []string { return featureNames(func(f feature) bool { return f.always }) }

func featureNames(in func(feature) bool) []string {
	names := []string{}
	for _, f := range features {
		if in(f) {
			names = append(names, f.name)
		}
	}
	return names
}

// wantedModules splits the modules of features into those loaded at once and those loaded late.
func wantedModules(names []string) (boot, usb []string) {
	late := false
	for _, f := range features {
		late = late || f.name == usbFeature
		switch {
		case !slices.Contains(names, f.name):
		case late:
			usb = append(usb, f.modules...)
		default:
			boot = append(boot, f.modules...)
		}
	}
	return boot, usb
}

// kernel is the lib/modules/RELEASE folder of an unpacked kernel package.
type kernel struct {
	release string
	root    *os.Root            // lib/modules/RELEASE
	file    map[string]string   // module name: path below root
	needs   map[string][]string // module name: modules before it
	before  map[string][]string // from modules.softdep, names or aliases
	generic map[string]string   // alias: the module that implements it on every machine
}

// openKernel reads what depmod knows of the one kernel below dir. Where modules.dep or modules.softdep is missing it
// runs depmod, on a copy of the names; dir is not written to.
func openKernel(ctx context.Context, dir string) (*kernel, error) {
	var found []string
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		if some, _ := filepath.Glob(filepath.Join(dir, lib, "*", "kernel")); len(some) > 0 {
			found = some
			break
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%s has %d kernels below lib/modules, it must be the root of one unpacked kernel package", dir, len(found))
	}
	folder := filepath.Dir(found[0])
	release := filepath.Base(folder)
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, fmt.Errorf("open modules: %w", err)
	}
	k := &kernel{
		release: release, root: root,
		file: map[string]string{}, needs: map[string][]string{}, before: map[string][]string{}, generic: map[string]string{},
	}
	tables := folder
	if !exists(folder, "modules.dep") || !exists(folder, "modules.softdep") {
		temp, err := os.MkdirTemp("", "lifeboat-modules-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(temp)
		tables = filepath.Join(temp, "lib/modules", release)
		if err := depmod(ctx, folder, temp, tables, release); err != nil {
			return nil, err
		}
	}
	if err := k.readTables(tables); err != nil {
		root.Close()
		return nil, err
	}
	return k, nil
}

func exists(folder, name string) bool {
	_, err := os.Stat(filepath.Join(folder, name))
	return err == nil
}

// depmod makes the tables of the modules in folder in tables, which is below temp.
func depmod(ctx context.Context, folder, temp, tables, release string) error {
	if err := os.MkdirAll(tables, 0o755); err != nil {
		return err
	}
	folder, err := filepath.Abs(folder)
	if err != nil {
		return err
	}
	for _, name := range []string{"kernel", "modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		if exists(folder, name) {
			if err := os.Symlink(filepath.Join(folder, name), filepath.Join(tables, name)); err != nil {
				return err
			}
		}
	}
	tool, err := exec.LookPath("depmod")
	if err != nil {
		if tool = "/sbin/depmod"; !exists("/sbin", "depmod") {
			return fmt.Errorf("%s has no modules.dep and there is no depmod to make it: install kmod", folder)
		}
	}
	if out, err := exec.CommandContext(ctx, tool, "-b", temp, release).CombinedOutput(); err != nil {
		return fmt.Errorf("depmod of %s: %w: %s", folder, err, bytes.TrimSpace(out))
	}
	return nil
}

// moduleName is how the kernel calls the module in a file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func (k *kernel) readTables(folder string) error {
	err := eachLine(filepath.Join(folder, "modules.dep"), func(line string) {
		file, needs, ok := strings.Cut(line, ":")
		if !ok {
			return
		}
		name := moduleName(file)
		k.file[name] = file
		// modules.dep has the nearest first, the last is loaded first.
		for _, n := range strings.Fields(needs) {
			k.needs[name] = append([]string{moduleName(n)}, k.needs[name]...)
		}
	})
	if err != nil {
		return err
	}
	// The kernel does not say it: without the driver of SCSI disks a stick has no block device.
	k.before["usb_storage"] = []string{"sd_mod"}
	err = eachLine(filepath.Join(folder, "modules.softdep"), func(line string) {
		// softdep NAME pre: a b post: c
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != "softdep" {
			return
		}
		pre := false
		for _, w := range words[2:] {
			if strings.HasSuffix(w, ":") {
				pre = w == "pre:"
			} else if pre {
				name := strings.ReplaceAll(words[1], "-", "_")
				k.before[name] = append(k.before[name], w)
			}
		}
	})
	if err != nil {
		return err
	}
	return eachLine(filepath.Join(folder, "modules.alias"), func(line string) {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == "alias" && strings.HasSuffix(words[2], "_generic") {
			k.generic[words[1]] = words[2]
		}
	})
}

func eachLine(name string, f func(string)) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	scan := bufio.NewScanner(file)
	for scan.Scan() {
		f(scan.Text())
	}
	if err := scan.Err(); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// order returns the modules to load for the wanted ones, in order and without those in loaded, which it adds to. Of what
// a module would like to have before it (softdep) only the implementation for every machine is taken: the faster ones
// for some processors fail to load on others.
func (k *kernel) order(wanted []string, loaded map[string]bool) []string {
	var list []string
	var visit func(name string)
	visit = func(name string) {
		if _, ok := k.file[name]; !ok || loaded[name] {
			return
		}
		loaded[name] = true
		for _, soft := range k.before[name] {
			if generic, ok := k.generic[soft]; ok {
				soft = generic
			}
			visit(strings.ReplaceAll(soft, "-", "_"))
		}
		for _, need := range k.needs[name] {
			visit(need)
		}
		list = append(list, name)
	}
	for _, name := range wanted {
		visit(name)
	}
	return list
}

// read returns a module's bytes, decompressed: early boot hands them to the kernel as they are.
func (k *kernel) read(name string) ([]byte, error) {
	file := k.file[name]
	f, err := k.root.Open(file)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", name, err)
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(file) {
	case ".ko":
	case ".xz":
		r, err = xz.NewReader(f)
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(f); err == nil {
			defer z.Close()
			r = z
		}
	default:
		err = errors.New("unknown compression")
	}
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	return b, nil
}

// path is where a module lies in the initramfs, without the leading slash.
func (k *kernel) path(name string) string {
	file, _, _ := strings.Cut(k.file[name], ".ko")
	return "lib/modules/" + k.release + "/" + file + ".ko"
}
