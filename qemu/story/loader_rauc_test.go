package story

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// programs returns the files of programs of this machine and of the libraries that they need, as testsystem.Options.Files.
func programs(t *testing.T, files ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, f := range files {
		all[strings.TrimPrefix(f, "/")] = f
		out, err := exec.Command("ldd", f).Output()
		if err != nil {
			t.Skipf("%s is not installed here", f)
		}
		for _, lib := range regexp.MustCompile(`(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
			all[strings.TrimPrefix(lib[1], "/")] = lib[1]
		}
	}
	return all
}

const raucBus = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
`

// rauc is what a device with RAUC has, by its boot loader.
type rauc struct {
	loader   string
	firmware scene.Firmware
	tools    []string // of this machine, which RAUC's backend runs
	system   string   // in [system] of RAUC's system.conf
	begin    string   // in the device before RAUC runs
	show     string   // shows the variables
	told     string   // what is shown when B is to be started
	text     map[string]string
}

var raucs = []rauc{
	{
		loader: "grub", firmware: scene.SeaBIOS, tools: []string{"/usr/bin/grub-editenv"}, system: "grubenv=/run/esp/grub/grubenv",
		show: "grub-editenv /run/esp/grub/grubenv list", told: `\nORDER=B A\n`,
	},
	{
		loader: "uboot", firmware: scene.UBoot, tools: []string{"/usr/bin/fw_setenv", "/usr/bin/fw_printenv"},
		begin: "busybox mount -t tmpfs none /var/lock", show: "fw_printenv", told: `\nBOOT_B_LEFT=3\nBOOT_ORDER=B A`,
		text: map[string]string{
			"etc/fw_env.config": "/run/esp/env1/uboot.env 0x0 0x4000\n/run/esp/env2/uboot.env 0x0 0x4000\n", "var/lock/file": "",
		},
	},
}

// raucInstall is a script that runs in the device: RAUC as a system has it, without and with the handler.
const raucInstall = `export PATH=/bin:/usr/bin DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/bus
for d in /run/esp /run/rauc; do busybox mkdir -p $d; done
busybox mount -t vfat -o iocharset=ascii ESP /run/esp || exit 101
dbus-daemon --config-file=/etc/bus.conf --nopidfile --fork || exit 102
BEGIN
rauc -c $1 service >/run/service 2>&1 &
for n in 1 2 3 4 5 6 7 8 9; do rauc -c $1 status >/dev/null 2>&1 && break; busybox sleep 1; done
rauc -c $1 install /2.0.raucb
code=$?
busybox cat /run/service
SHOW
busybox umount /run/esp || exit 103
exit $code
`

// Stock RAUC installs from the running system of a device that GRUB or U-Boot starts, with its own backend. Without the handler
// the slot that it wrote is refused, and the device goes on; with it the slot is sealed, started and confirmed.
func TestRAUCInstalls(t *testing.T) {
	for _, r := range raucs {
		t.Run(r.loader, func(t *testing.T) {
			if r.loader != "grub" && os.Getenv("LIFEBOAT_LOADERS") != "all" {
				t.Skip("of two alike one; LIFEBOAT_LOADERS=all is both")
			}
			t.Parallel()
			qemu.NeedKernel(t, "generic")
			r.installs(t)
		})
	}
}

func (r rauc) installs(t *testing.T) {
	busybox, err := filepath.Abs("../../build/peers/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("there is no busybox: make setup")
	}
	s, err := scene.New(filepath.Join(workDir, fileName(t)), scene.Options{Config: scene.LoaderConfig(r.loader)})
	if err != nil {
		t.Fatal(err)
	}
	d := &staged{Scene: s}
	kernel, err := s.BootImage("boot.img", "")
	if err != nil {
		t.Fatal(err)
	}
	with := scene.BundleOptions{With: map[string]string{"boot": kernel}}
	update := d.bundle(t, "2.0.raucb", "2.0", testsystem.Good, testsystem.Options{}, with)

	// The disk is made once with another system, to know its partitions: they stand in the first one's files.
	sizes := map[string]int64{"rootfs": 160 << 20}
	blank := d.bundle(t, "0.raucb", "0", testsystem.Good, testsystem.Options{}, with)
	parts := map[string]string{}
	image, err := s.LoaderDisk("disk.img", nil, map[string]string{"A": blank}, sizes)
	if err != nil {
		t.Fatal(err)
	}
	f, err := disk.Open(image, false)
	if err != nil {
		t.Fatal(err)
	}
	table, err := disk.Partitions(f, f.Size())
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range table {
		parts[p.Name] = fmt.Sprintf("/dev/vda%d", p.Index)
	}
	conf := "[system]\ncompatible=" + scene.Compatible + "\nbootloader=" + r.loader + "\n" + r.system + "\nmountprefix=/run/rauc\nstatusfile=/run/central.raucs\n" +
		"[keyring]\npath=/etc/rauc/ca.pem\ncheck-purpose=any\n"
	for _, n := range []string{"0", "1"} {
		conf += fmt.Sprintf("[slot.rootfs.%[1]s]\ndevice=%[2]s\nbootname=%[3]s\n[slot.boot.%[1]s]\ndevice=%[4]s\nparent=rootfs.%[1]s\n",
			n, parts["rootfs."+n], map[string]string{"0": "A", "1": "B"}[n], parts["boot."+n])
	}
	files := programs(t, append([]string{"/usr/bin/rauc", "/usr/bin/dbus-daemon"}, r.tools...)...)
	handler := s.Path("post-install")
	if err := os.WriteFile(handler, []byte("#!/bin/sh\nexec /usr/bin/bootcount seal\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	files["bin/sh"], files["bin/busybox"], files["2.0.raucb"], files["etc/rauc/handler"], files["etc/rauc/ca.pem"] = busybox, busybox, update, handler, s.Ring
	script := strings.NewReplacer("ESP", parts["esp"], "BEGIN", r.begin, "SHOW", r.show).Replace(raucInstall)
	text := map[string]string{
		"etc/bus.conf": raucBus, "etc/passwd": "root:x:0:0:root:/:/bin/sh\n", "install": script,
		"etc/rauc/system.conf": conf, "etc/rauc/seal.conf": conf + "[handlers]\npost-install=/etc/rauc/handler\n",
	}
	maps.Copy(text, r.text)
	first := d.bundle(t, "1.0.raucb", "1.0", testsystem.Good, testsystem.Options{
		Files: files, Modules: []string{"loop", "vfat", "nls_cp437", "nls_ascii"}, KernelRoot: s.Kernel.Root, Text: text,
	}, with)
	if image, err = s.StartedBy(r.firmware, "disk.img", map[string]string{"A": first}, sizes); err != nil {
		t.Fatal(err)
	}
	m, err := s.FirmwareMachine(r.firmware, image)
	if err != nil {
		t.Fatal(err)
	}
	m.Memory = 512
	vm := scene.Start(t, m)
	starts := func(slot, version string) {
		t.Helper()
		vm.Expect(scene.Patience, fmt.Sprintf(`lifeboat: boot \d+ slot rootfs\.%d \(%s\) version %s`, slot[0]-'A', slot, version))
		if v := vm.Ready(); v != version {
			t.Fatalf("version %s", v)
		}
	}
	starts("A", "1.0")

	installed := `(?s)Installing .* succeeded.*` + r.told
	exits(t, vm, 0, installed, "/bin/sh", "/install", "/etc/rauc/system.conf")
	vm.Reset()
	vm.Expect(scene.Patience, `lifeboat: restarting into slot A\n`) // the loader started B
	starts("A", "1.0")
	if e := slot(vm.Status(), "B"); e.ManifestHash != "" {
		t.Errorf("without the handler: %+v", e)
	}
	exits(t, vm, 1, `(?s)rauc .*RAUC is here and seals nothing.*bootcount seal`, "/usr/bin/bootcount", "doctor")

	exits(t, vm, 0, installed, "/bin/sh", "/install", "/etc/rauc/seal.conf")
	if e := slot(vm.Status(), "B"); e.Version != "2.0" || e.Reason != "" || e.Good {
		t.Errorf("after the handler: %+v", e)
	}
	vm.Reset()
	starts("B", "2.0")
	if e := slot(vm.Status(), "B"); !e.Good || e.Version != "2.0" {
		t.Errorf("at the end: %+v", e)
	}
}
