package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/status"
	"lifeboat/verify/keys"
)

// Each check, well and sick, with what to do about it.
func TestDoctor(t *testing.T) {
	set, err := keys.New(keys.Options{})
	if err != nil {
		t.Fatal(err)
	}
	keyring := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: set.ReleaseAnchor.Raw}))
	feeds := func(t *testing.T, root, to string) {
		if err := os.MkdirAll(filepath.Join(root, "proc/1/fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(root, "proc/1/fd/7")); err != nil {
			t.Fatal(err)
		}
	}
	dog := &status.Armed{Device: "/dev/watchdog0", Identity: "i6300ESB timer", Timeout: 30}
	const on = "[watchdog]\ntimeout=30\n"
	for _, tt := range []struct {
		name   string
		conf   string
		report func(*status.Report)
		root   map[string]string
		more   func(t *testing.T, dir, root string)
		want   string // with one blank for several
		sick   bool
	}{
		{name: "no watchdog wanted", want: "ok watchdog off"},
		{name: "no watchdog wanted and one there", root: map[string]string{"sys/class/watchdog/watchdog0/identity": "iTCO_wdt"}, want: "/dev/watchdog0 (iTCO_wdt) could do it"},
		{name: "wanted and not found", conf: on, report: func(r *status.Report) { r.Notes = []string{"watchdog: the kernel has none"} }, want: "fail watchdog early boot had none: watchdog: the kernel has none", sick: true},
		{name: "fed", conf: on, report: func(r *status.Report) { r.Watchdog = dog }, more: func(t *testing.T, _, root string) { feeds(t, root, "/dev/watchdog0") }, want: "ok watchdog /dev/watchdog0 (i6300ESB timer) 30 s, fed by systemd (1)"},
		{name: "fed by its other name", conf: on, report: func(r *status.Report) { r.Watchdog = dog }, more: func(t *testing.T, _, root string) { feeds(t, root, "/dev/watchdog") }, want: "fed by systemd (1)"},
		{name: "another one is fed", conf: on, report: func(r *status.Report) { r.Watchdog = dog }, more: func(t *testing.T, _, root string) { feeds(t, root, "/dev/watchdog1") }, want: "nobody feeds it", sick: true},
		{name: "not fed", conf: on, report: func(r *status.Report) { r.Watchdog = dog }, want: "fix: RuntimeWatchdogSec=30 in /etc/systemd/system.conf", sick: true},
		{name: "stops", conf: on, report: func(r *status.Report) { d := *dog; d.Stops = true; r.Watchdog = &d }, want: "warn watchdog /dev/watchdog0 (i6300ESB timer) protects early boot only"},
		{name: "a panic hangs", root: map[string]string{"proc/sys/kernel/panic": "0"}, want: "fail panic kernel.panic=0", sick: true},
		{name: "a panic restarts", want: "ok panic kernel.panic=10"},
		{name: "failures without a watchdog", conf: "[fallback]\ncount=failures\n", want: "warn count count=failures without a watchdog: a system that hangs until somebody cuts the power is left only after 11 times"},
		{name: "keyring", want: "ok keyring version 0, anchors: 1"},
		{name: "no keyring", more: func(t *testing.T, dir, _ string) { os.Remove(filepath.Join(dir, "run/keyring.pem")) }, want: "fail keyring there is none", sick: true},
		{name: "empty keyring", more: func(t *testing.T, dir, _ string) { os.WriteFile(filepath.Join(dir, "run/keyring.pem"), nil, 0o644) }, want: "fail keyring", sick: true},
		{name: "state", want: "ok state", report: func(*status.Report) {}},
		{name: "a lost copy", more: func(t *testing.T, dir, _ string) { scratch(t, dir, 8<<20-4096) }, want: "one copy of the record"},
		{name: "both lost", more: func(t *testing.T, dir, _ string) { scratch(t, dir, 0); scratch(t, dir, 8<<20-4096) }, want: "fail state both copies", sick: true},
		{name: "no state", report: func(r *status.Report) { r.StateDev = "" }, want: "fail state there is no state partition", sick: true},
		{name: "two slots", want: "ok slots 2 can be booted"},
		{name: "nothing to fall back on", report: func(r *status.Report) { r.State.Slots[1].Reason = "panic" }, want: "warn slots nothing to fall back on: rootfs.0 (A) panic"},
		{name: "no staging partition", conf: "[staging]\ndevice=PARTLABEL=staging\n", root: map[string]string{"sys/class/block/x": ""}, want: "fail staging PARTLABEL=staging is not there", sick: true},
		{name: "partitions", root: blocks(nil), want: "ok disk 3 partitions, aligned"},
		{name: "a slot is missing", root: blocks(map[string]string{"vda3 name": "other"}), want: "fail disk rootfs.1: there is no PARTLABEL=rootfs.1", sick: true},
		{name: "a label twice", root: blocks(map[string]string{"vda3 name": "rootfs.0"}), want: "fail disk rootfs.0: /dev/vda2 and /dev/vda3 are both PARTLABEL=rootfs.0", sick: true},
		{name: "small state", root: blocks(map[string]string{"vda1 size": "2048"}), want: "fail disk /dev/vda1, the state partition, has 1048576 bytes", sick: true},
		{name: "not aligned", root: blocks(map[string]string{"vda2 start": "18495"}), want: "warn disk /dev/vda2 (rootfs.0) begins at byte 9469440, no multiple of 1 MiB"},
		{name: "unequal slots", root: blocks(map[string]string{"vda3 size": "60000"}), want: "warn disk /dev/vda2 has 33554432 bytes and /dev/vda3 30720000"},
		{name: "one copy", conf: "bootloader=uboot\n[bootloader]\noffsets=0x1000\nsize=0x4000\n", want: "warn variables one copy of uboot's variables", sick: true},
		{name: "copies over each other", conf: "bootloader=uboot\n[bootloader]\noffsets=0x1000 0x2000\nsize=0x4000\n", want: "fail variables the copies at 4096 and 8192 cover each other", sick: true},
		{name: "crooked copies", conf: "bootloader=uboot\n[bootloader]\noffsets=0x1100 0x8000\nsize=0x4000\n", want: "warn variables the copies at 4352 and 32768 do not begin", sick: true},
		{
			name: "copies in one erase block", conf: "bootloader=uboot\n[bootloader]\ndevice=/dev/mtd0\noffsets=0x0 0x8000\nsize=0x4000\n", sick: true,
			root: map[string]string{"sys/class/mtd/mtd0/erasesize": "65536\n"}, want: "fail variables the copy at 32768 of /dev/mtd0 does not begin with an erase block (65536)",
		},
		{name: "two copies", conf: "bootloader=grub\n", want: "ok variables two copies", sick: true},
		{
			name: "variables that would move", conf: "bootloader=uboot\n[bootloader]\ndevice=PARTLABEL=state\n[slot.bootloader.0]\ndevice=/dev/block\ntype=boot-gpt-switch\nregion-start=1M\nregion-size=16M\n",
			report: func(r *status.Report) { r.Booted.Device = "/dev/vda2" }, root: blocks(nil), want: "fail boot the boot loader's variables lie in the first partition of /dev/block", sick: true,
		},
		{name: "a boot loader's disk that is not there", conf: "[slot.bootloader.0]\ndevice=/dev/nowhere\ntype=boot-emmc\n", want: "fail boot bootloader.0: there is no disk /dev/nowhere", sick: true},
		{name: "a loader that cannot be asked", conf: "bootloader=custom\n", want: "fail loader custom: [bootloader] program= is missing", sick: true},
		{name: "a loader that cannot be run", conf: "bootloader=custom\n[bootloader]\nprogram=/nowhere/x\n", want: "fail loader custom: /nowhere/x get-primary", sick: true},
		{name: "rauc without a handler", root: map[string]string{"etc/rauc/system.conf": "[system]\ncompatible=x"}, want: "fail rauc RAUC is here and seals nothing", sick: true},
		{name: "rauc with another handler", root: map[string]string{"etc/rauc/system.conf": "[handlers]\npost-install=/usr/bin/own", "usr/bin/own": "exit 0"}, want: "warn rauc RAUC's post-install handler /usr/bin/own does not seem"},
		{name: "rauc that seals", root: map[string]string{"usr/lib/rauc/system.conf": "[handlers]\npost-install = /usr/bin/own", "usr/bin/own": "exec bootcount seal"}, want: "ok rauc what RAUC writes is sealed by /usr/bin/own"},
		{name: "rauc that resizes", root: map[string]string{"etc/rauc/system.conf": "[slot.rootfs.1]\nresize=true\n[handlers]\npost-install=bootcount"}, want: "fail rauc RAUC grows the file system in rootfs.1", sick: true},
		{name: "clock", want: "ok clock"},
		{name: "old clock", report: func(r *status.Report) { r.State.Floors.Time = 4e9 }, want: "warn clock it says 20"},
		{name: "no units", root: map[string]string{"etc/systemd/system/multi-user.target.wants/lifeboat-trial.timer": ""}, want: "warn systemd lifeboat-good.service, lifeboat-ended.service not enabled: nobody says good"},
		{name: "units", want: "ok systemd"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, root := t.TempDir(), t.TempDir()
			loader, conf, chosen := strings.Cut(tt.conf, "\n")
			if !chosen || !strings.HasPrefix(loader, "bootloader=") {
				loader, conf = "", tt.conf
			}
			if err := makeDevice(dir, loader, conf); err != nil {
				t.Fatal(err)
			}
			files := map[string]string{"proc/1/comm": "systemd", "proc/sys/kernel/panic": "10"}
			if tt.name != "no units" {
				for _, u := range []string{"lifeboat-good.service", "lifeboat-trial.timer", "lifeboat-ended.service"} {
					files["etc/systemd/system/sysinit.target.wants/"+u] = ""
				}
			}
			for name, content := range tt.root {
				files[name] = content
			}
			for name, content := range files {
				name = filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(content+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "run/keyring.pem"), []byte(keyring), 0o644); err != nil {
				t.Fatal(err)
			}
			if tt.report != nil {
				s, err := read(filepath.Join(dir, "run"))
				if err != nil {
					t.Fatal(err)
				}
				s.close()
				tt.report(&s.report)
				if err := os.WriteFile(filepath.Join(dir, "run/boot.json"), s.report.JSON(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if tt.more != nil {
				tt.more(t, dir, root)
			}
			var out bytes.Buffer
			err := doctor(filepath.Join(dir, "run"), root, time.Now(), &out)
			if tt.sick != errors.Is(err, errSick) {
				t.Errorf("%v", err)
			}
			if text := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(text, tt.want) {
				t.Errorf("no %q in\n%s", tt.want, out.String())
			}
			if !tt.sick && strings.Contains(out.String(), "fail ") {
				t.Errorf("a device that is well:\n%s", out.String())
			}
		})
	}
}

// blocks are the files of sysfs for a disk with three partitions, with changes.
func blocks(changes map[string]string) map[string]string {
	files := map[string]string{"sys/class/block/vda/size": "200000", "sys/class/block/vda/dev": "254:0"}
	for i, p := range [][3]string{{"state", "16384", "2048"}, {"rootfs.0", "65536", "18432"}, {"rootfs.1", "65536", "83968"}} {
		name := fmt.Sprintf("vda%d", i+1)
		for j, what := range []string{"name", "size", "start"} {
			if v, ok := changes[name+" "+what]; ok {
				p[j] = v
			}
		}
		at := "sys/class/block/" + name + "/"
		files[at+"size"], files[at+"start"], files[at+"partition"], files[at+"dev"] = p[1], p[2], fmt.Sprint(i+1), fmt.Sprintf("254:%d", i+1)
		files[at+"uevent"] = fmt.Sprintf("MAJOR=254\nMINOR=%d\nDEVNAME=%s\nDEVTYPE=partition\nPARTN=%d\nPARTNAME=%s", i+1, name, i+1, p[0])
	}
	return files
}

// scratch damages 4 KiB of the state partition.
func scratch(t *testing.T, dir string, at int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "state.img"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, 4096), at); err != nil {
		t.Fatal(err)
	}
}
