package config

import (
	"bytes"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const slots = `
[slot.rootfs.0]
device=PARTLABEL=rootfs.0
bootname=A
[slot.rootfs.1]
device=/dev/disk/by-partlabel/rootfs.1
bootname=B
`

const minimal = "[system]\ncompatible=board\nbootloader=raw\n" + slots

// fileSlots is a configuration whose slots' kernels are files.
func fileSlots(more string) string {
	return strings.Replace(minimal, "bootloader=raw", "bootloader=sdboot", 1) +
		"[slot.boot.0]\ndevice=PARTLABEL=esp\nfile=/A.efi\nparent=rootfs.0\n" + more +
		"\n[slot.boot.1]\ndevice=PARTLABEL=esp\nfile=/B.efi\nparent=rootfs.1\n"
}

func TestFiles(t *testing.T) {
	c, err := Parse([]byte(fileSlots("")))
	if err != nil {
		t.Fatal(err)
	}
	if g := c.Group("rootfs.1"); len(g) != 1 || g[0].File != "/B.efi" || g[0].Device != "PARTLABEL=esp" {
		t.Errorf("with rootfs.1 goes %+v", g)
	}
}

func defaults(raw string) *Config {
	return &Config{
		Compatible: "board", Bootloader: "raw", BootAttempts: 3, BundleFormats: []string{"verity"},
		RequireSignedVerity: true, Init: "/sbin/init", KeyringPath: "/etc/lifeboat/keyring.pem", IntegrityKey: "/etc/lifeboat/integrity.key", Ext4: Ext4{Journal: 4 << 20}, CheckPurpose: "codesign", Role: "release",
		Slots: []Slot{
			{Name: "rootfs.0", Class: "rootfs", Index: 0, Device: "PARTLABEL=rootfs.0", Type: "raw", Bootname: "A"},
			{Name: "rootfs.1", Class: "rootfs", Index: 1, Device: "/dev/disk/by-partlabel/rootfs.1", Type: "raw", Bootname: "B"},
		},
		StateDevice: "PARTLABEL=state", Fallback: "available", ConfirmedAttempts: 8, TrialDeadline: 10 * time.Minute,
		USB: USB{Settle: 5 * time.Second, Policy: "newer", Replug: 30 * time.Second}, Rescue: Rescue{Retry: 2 * time.Minute}, SkipOver: 64 << 20, Raw: []byte(raw),
	}
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name, raw string
		change    func(*Config)
	}{
		{"minimal", minimal, func(*Config) {}},
		{"crlf", strings.ReplaceAll(minimal, "\n", "\r\n"), func(*Config) {}},
		{"all", "# all\n[system]\n\n  compatible = board\nbootloader=raw\nboot-attempts=9\nbundle-formats=+plain\nmin-bundle-version=1.0\n" +
			"require-signed-verity=false\ninit=/lib/systemd/systemd\n[keyring]\npath=/keys/k.pem\ncheck-purpose=smimesign\ncheck-crl=true\nrole=dev\n" +
			"[state]\ndevice=/dev/vda1\n[staging]\ndevice=PARTLABEL=staging\n[usb]\nsettle=1500ms\n[rescue]\nretry=90\n" +
			"[fallback]\npolicy=secure\nconfirmed-attempts=1\ntrial-deadline=1h30min\n" + slots, func(c *Config) {
			c.BootAttempts, c.BundleFormats, c.RequireSignedVerity = 9, []string{"plain", "verity"}, false
			c.MinVersion = "1.0"
			c.Init, c.KeyringPath, c.CheckPurpose, c.CheckCRL, c.Role = "/lib/systemd/systemd", "/keys/k.pem", "smimesign", true, "dev"
			c.StateDevice, c.StagingDevice = "/dev/vda1", "PARTLABEL=staging"
			c.USB.Settle, c.Rescue.Retry = 1500*time.Millisecond, 90*time.Second
			c.Fallback, c.ConfirmedAttempts, c.TrialDeadline = "secure", 1, 90*time.Minute
		}},
		{"ways in", minimal + "[usb]\npolicy=different\nfiles=*.raucb;updates/dev-?.raucb\nrequire=/unlock.txt\nreplug=0\nled=board:green:status\n" +
			"[watchdog]\ntimeout=1min\npretimeout=10\ndevice=/dev/watchdog1\nsoftdog=true\nstops-at-close=allow\n" +
			"[rescue]\nrepair=true\ngpio=gpiochip0:17:low\nkey=66\n[fallback]\ncount=failures\n", func(c *Config) {
			c.USB = USB{
				Settle: 5 * time.Second, Policy: "different", Files: []string{"*.raucb", "updates/dev-?.raucb"},
				Require: "unlock.txt", LED: "board:green:status",
			}
			c.Watchdog = Watchdog{Timeout: time.Minute, Pretimeout: 10 * time.Second, Device: "/dev/watchdog1", Softdog: true, StopsAtClose: true}
			c.Rescue = Rescue{Retry: 2 * time.Minute, Repair: true, GPIO: "gpiochip0:17:low", Key: 66}
			c.PowerLossFree = true
		}},
		{"everything is compared", minimal + "[install]\nskip-unchanged=yes\n", func(c *Config) { c.SkipOver = -1 }},
		{"nothing is compared", minimal + "[install]\nskip-unchanged=no\n", func(c *Config) { c.SkipOver = math.MaxInt64 }},
		{"large images are compared", minimal + "[install]\nskip-unchanged=auto\n", func(*Config) {}},
		{"keyring beside the configuration", minimal + "[keyring]\npath=release.keyring.pem\n", func(c *Config) {
			c.KeyringPath = "/etc/lifeboat/release.keyring.pem"
		}},
		{"rauc's own keys are a warning", "[handlers]\npost-install=/bin/x\n[log.all]\nfilename=x\n" +
			strings.Replace(minimal, "bootname=A", "bootname=A\nextra-mount-opts=ro\ninstall-same=false", 1) +
			"[keyring]\nuse-bundle-signing-time=true\n", func(c *Config) {
			c.Warnings = []string{
				"line 1: section [handlers] means nothing here",
				"line 3: section [log.all] means nothing here",
				"line 12: [slot.rootfs.0] extra-mount-opts means nothing here",
				"line 13: [slot.rootfs.0] install-same means nothing here",
				"line 18: [keyring] use-bundle-signing-time means nothing here",
			}
		}},
		{"a group", minimal + "[slot.app.10]\ndevice=/dev/vda9\nparent=rootfs.0\nmount=/opt/app\ntype=ext4\nreadonly=true\ndescription=a\\sb\n" + "[slot.app.11]\ndevice=/dev/vda10\nparent=rootfs.1\n", func(c *Config) {
			app := Slot{Name: "app.10", Class: "app", Index: 10, Device: "/dev/vda9", Type: "ext4", Parent: "rootfs.0", Mount: "/opt/app", ReadOnly: true, Description: "a b"}
			c.Slots = append([]Slot{app, {Name: "app.11", Class: "app", Index: 11, Device: "/dev/vda10", Type: "raw", Parent: "rootfs.1"}}, c.Slots...)
		}},
		{"slots of the boot loader", minimal + "[slot.bootloader.0]\ndevice=/dev/mmcblk0\ntype=boot-gpt-switch\nregion-start=1024K\nregion-size=64m\n[slot.spl.0]\ndevice=/dev/mmcblk0\ntype=boot-raw-fallback\nregion-start=32k\nregion-size=65536\n" +
			"[slot.tpl.0]\ndevice=/dev/mmcblk0\ntype=boot-emmc\nsize-limit=1G\n", func(c *Config) {
			c.Slots = append([]Slot{{Name: "bootloader.0", Class: "bootloader", Device: "/dev/mmcblk0", Type: "boot-gpt-switch", Region: &Region{Start: 1 << 20, Size: 64 << 20}}}, c.Slots...)
			c.Slots = append(c.Slots, Slot{Name: "spl.0", Class: "spl", Device: "/dev/mmcblk0", Type: "boot-raw-fallback", Region: &Region{Start: 32 << 10, Size: 64 << 10}},
				Slot{Name: "tpl.0", Class: "tpl", Device: "/dev/mmcblk0", Type: "boot-emmc", Region: &Region{Limit: 1 << 30}})
		}},
		{"slots of trees", treeSlots("integrity=hmac-sha256\nallow-devices=true\nlabel=system\n", "integrity=hmac-sha256\nallow-devices=true\n") + "[integrity]\nkey=k\n[ext4]\njournal-size=16M\nreserved=5\n", func(c *Config) {
			c.Ext4 = Ext4{16 << 20, 5}
			for i := range c.Slots {
				c.Slots[i].Type, c.Slots[i].Tree = "ext4", &Tree{Integrity: "hmac-sha256", Devices: true, Setuid: true}
			}
			c.Slots[0].Tree.Label, c.IntegrityKey = "system", "/etc/lifeboat/k"
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse([]byte(test.raw))
			if err != nil {
				t.Fatal(err)
			}
			want := defaults(test.raw)
			test.change(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// treeSlots are slots of type ext4, with more in each.
func treeSlots(a, b string) string {
	s := strings.Replace(minimal, "bootname=A\n", "bootname=A\ntype=ext4\n"+a, 1)
	return strings.Replace(s, "bootname=B\n", "bootname=B\ntype=ext4\n"+b, 1)
}

// loader is a slot of the boot loader.
func loader(device, kind, more string) string {
	return minimal + "[slot.bootloader.0]\ndevice=" + device + "\ntype=" + kind + "\n" + more
}

func TestParseRefuses(t *testing.T) {
	system := func(line string) string { return "[system]\n" + line + "\n" }
	for _, test := range []struct{ name, raw, want string }{
		{"nothing", "", "compatible= is missing"},
		{"no boot loader", "[system]\ncompatible=x\n" + slots, "bootloader= is missing"},
		{"unknown section", "\n[sytem]\n", "line 2: unknown section [sytem]"},
		{"later section", "[network]\n", "line 1: unknown section [network]"},
		{"unknown key", system("compatable=x"), "line 2: [system] compatable: unknown key"},
		{"unknown key of a small section", "[rescue]\n\nretries=1\n", "line 3: [rescue] retries: unknown key"},
		{"unknown slot key", "[slot.rootfs.0]\nbotname=A\n", "line 2: [slot.rootfs.0] botname: unknown key"},
		{"localised key", system("compatible[de]=x"), "line 2: [system] compatible[de]: unknown key"},
		{"key twice", system("compatible=x\ncompatible=x"), `line 3: key "compatible" in [system] stands twice, first in line 2`},
		{"section twice", "[system]\n[system]\n", "line 2: section [system] stands twice, first in line 1"},
		{"no section", "a=b\n", "line 1: \"a=b\" stands before the first section"},
		{"not a pair", system("compatible"), "line 2: \"compatible\" is neither a section, a comment nor key=value"},
		{"open section", "[system\n", "line 1: \"[system\" is not a section"},
		{"no boot loader of ours", system("bootloader=noop"), "no counterpart here"},
		{"three copies", "[bootloader]\nfiles=/a /b /c\n", "line 2: [bootloader] files: one or two copies are expected"},
		{"an offset in words", "[bootloader]\noffsets=1M\n", `"1M" is no offset in bytes`},
		{"a copy that is too small", "[bootloader]\nsize=100\n", "a size in bytes from 512"},
		{"no slot variable", "[bootloader]\nslot-variable=\n", "[bootloader] slot-variable"},
		{"schema of nobody", "[bootloader]\nschema=android\n", "[bootloader] schema"},
		{"boot loader of nobody", system("bootloader=lilo"), `unknown boot loader "lilo"`},
		{"no attempts", system("boot-attempts=0"), `line 2: [system] boot-attempts: "0" is not a number from 1 to 9`},
		{"ten attempts", system("boot-attempts=10"), "from 1 to 9"},
		{"empty number", system("boot-attempts="), "from 1 to 9"},
		{"empty value", system("compatible="), "line 2: [system] compatible: the value is empty"},
		{"format", system("bundle-formats=verity zip"), `unknown bundle format "zip"`},
		{"format mix", system("bundle-formats=verity +plain"), "either all"},
		{"no format", system("bundle-formats=-verity"), "no bundle format is left"},
		{"empty format", system("bundle-formats="), "no bundle format is left"},
		{"yes is not true", system("require-signed-verity=yes"), `"yes" is neither true nor false`},
		{"relative init", system("init=sbin/init"), "not a plain absolute path"},
		{"init with dots", system("init=/sbin/../init"), "not a plain absolute path"},
		{"rauc's signer list", "[keyring]\nallowed-signer-cns=x\n", "not supported"},
		{"role", "[keyring]\nrole=keyring\n", "release"},
		{"purpose", "[keyring]\ncheck-purpose=codesgin\n", "is none of: codesign, smimesign, any"},
		{"climbing keyring", "[keyring]\npath=../x.pem\n", "not a plain absolute path"},
		{"by-uuid", "[state]\ndevice=/dev/disk/by-uuid/1\n", "no links but"},
		{"device elsewhere", "[state]\ndevice=/tmp/x\n", "is none of /dev/NAME"},
		{"device with folder", "[state]\ndevice=/dev/mapper/x\n", "is none of /dev/NAME"},
		{"long label", "[state]\ndevice=PARTLABEL=" + strings.Repeat("x", 37) + "\n", "is none of /dev/NAME"},
		{"no time", "[rescue]\nretry=soon\n", `line 2: [rescue] retry: "soon" is not a time`},
		{"time without end", "[rescue]\nretry=99999999999999999999\n", "is not a time"},
		{"overflowing time", "[rescue]\nretry=4294967295h\n", "is not a time"},
		{"mixed time", "[rescue]\nretry=1h30\n", "is not a time"},
		{"empty time", "[rescue]\nretry=\n", "is not a time"},
		{"slot name", "[slot.root fs.0]\n", "line 1: [slot.root fs.0] is not [slot.CLASS.N]"},
		{"slot number", "[slot.rootfs.00]\n", "is not [slot.CLASS.N]"},
		{"long class", "[slot." + strings.Repeat("x", 17) + ".0]\n", "is not [slot.CLASS.N]"},
		{"slot without device", "[slot.rootfs.0]\n", "line 1: [slot.rootfs.0] has no device="},
		{"bootname", "[slot.rootfs.0]\nbootname=A B\n", "line 2: [slot.rootfs.0] bootname: \"A B\" is not"},
		{"slot type", "[slot.rootfs.0]\ntype=zfs\n", `"zfs" is none of`},
		{"booted flash", "[slot.rootfs.0]\ndevice=/dev/x\nbootname=A\ntype=nand\n", "can't be of type nand"},
		{"child that boots", "[slot.rootfs.0]\ndevice=/dev/x\nbootname=A\nparent=x.0\n", "both bootname= and parent="},
		{"one slot", "[system]\ncompatible=x\nbootloader=raw\n[slot.rootfs.0]\ndevice=/dev/x\nbootname=A\n", "fewer than two slots"},
		{"two classes", "[system]\ncompatible=x\nbootloader=raw\n[slot.a.0]\ndevice=/dev/x\nbootname=A\n[slot.b.0]\ndevice=/dev/y\nbootname=B\n", "fewer than two slots"},
		{"bootname twice", strings.Replace(minimal, "bootname=B", "bootname=A", 1), "line 8: bootname A of [slot.rootfs.1] is taken by [slot.rootfs.0]"},
		{"device twice", strings.Replace(minimal, "by-partlabel/rootfs.1", "by-partlabel/rootfs.0", 1), "line 8: [slot.rootfs.0] and [slot.rootfs.1] both have device"},
		{"slot on the state", minimal + "[state]\ndevice=PARTLABEL=rootfs.1\n", "[state] and [slot.rootfs.1] both have device"},
		{"orphan", minimal + "[slot.a.0]\ndevice=/dev/x\nparent=rootfs.7\n", `line 11: parent "rootfs.7" of [slot.a.0] is no slot`},
		{"parent by bootname", minimal + "[slot.a.0]\ndevice=/dev/x\nparent=A\n", "is no slot"},
		{"own parent", minimal + "[slot.a.0]\ndevice=/dev/x\nparent=a.0\n", "has a parent itself"},
		{"five boot slots", minimal + "[slot.a.0]\ndevice=/dev/x\nbootname=C\n[slot.a.1]\ndevice=/dev/y\nbootname=D\n[slot.a.2]\ndevice=/dev/z\nbootname=E\n", "5 slots have a bootname, at most 4 can"},
		{"boot slots of two classes", minimal + "[slot.a.0]\ndevice=/dev/x\nbootname=C\n", "slots of 2 classes have a bootname"},
		{"policy of a stick", "[usb]\npolicy=any\n", "is none of: newer, different, rescue-only, off"},
		{"pattern that climbs", "[usb]\nfiles=*.raucb;../x\n", "not the path of a file on a stick"},
		{"pattern that is none", "[usb]\nfiles=[\n", "is not a pattern"},
		{"nine patterns", "[usb]\nfiles=a;b;c;d;e;f;g;h;i\n", "9 patterns, at most 8"},
		{"LED elsewhere", "[usb]\nled=../x\n", "not the name of a device"},
		{"watchdog elsewhere", "[watchdog]\ndevice=/dev/dog\n", "not /dev/watchdogN"},
		{"watchdog of a blink", "[watchdog]\ntimeout=1\n", "is not a time from 5s"},
		{"watchdog of half seconds", "[watchdog]\ntimeout=5500ms\n", "whole number of seconds"},
		{"pretimeout after the end", minimal + "[watchdog]\ntimeout=10\npretimeout=10\n", "not below timeout="},
		{"gpio", "[rescue]\ngpio=17\n", "is not like gpiochip0:17"},
		{"key without a code", "[rescue]\nkey=F8\n", "not a number from 1 to 767"},
		{"what is skipped", "[install]\nskip-unchanged=true\n", "is none of: auto, yes, no"},
		{"unknown key of an install", "[install]\nskip=yes\n", "line 2: [install] skip: unknown key"},
		{"count", "[fallback]\ncount=none\n", "is none of: all, failures"},
		{"mounted root", "[slot.rootfs.0]\ndevice=/dev/x\nbootname=A\nmount=/x\n", "has mount= and no parent="},
		{"a group of one boot slot only", minimal + "[slot.a.0]\ndevice=/dev/x\nparent=rootfs.0\n", `line 8: with [slot.rootfs.1] go the classes [], with [slot.rootfs.0] ["a"]`},
		{"groups of different classes", minimal + "[slot.a.0]\ndevice=/dev/x\nparent=rootfs.0\n[slot.b.0]\ndevice=/dev/y\nparent=rootfs.1\n", `go the classes ["b"]`},
		{"child of its parent's class", minimal + "[slot.rootfs.2]\ndevice=/dev/x\nparent=rootfs.0\n", "is of its parent's class"},
		{"child of the root's mapped name", minimal + "[slot.root.0]\ndevice=/dev/x\nparent=rootfs.0\n", "would be the mapped device lifeboat-root"},
		{"two children of a class", minimal + "[slot.a.0]\ndevice=/dev/x\nparent=rootfs.0\n[slot.a.1]\ndevice=/dev/y\nparent=rootfs.0\n", "is the second of its class"},
		{"two children in one place", minimal + "[slot.a.0]\ndevice=/dev/x\nparent=rootfs.0\nmount=/m\n[slot.b.0]\ndevice=/dev/y\nparent=rootfs.0\nmount=/m\n", "has mount=/m in the place of another"},
		{"a child in a child", minimal + "[slot.a.0]\ndevice=/dev/x\nparent=rootfs.0\nmount=/m/n\n[slot.b.0]\ndevice=/dev/y\nparent=rootfs.0\nmount=/m\n", "[slot.a.0] has mount=/m/n in the place of another"},
		{"child on flash", minimal + "[slot.a.0]\ndevice=/dev/x\nparent=rootfs.0\ntype=nand\n", "can't be of type nand"},
		{"four children", minimal + "[slot.a.0]\ndevice=/dev/w\nparent=rootfs.0\n[slot.b.0]\ndevice=/dev/x\nparent=rootfs.0\n[slot.c.0]\ndevice=/dev/y\nparent=rootfs.0\n[slot.d.0]\ndevice=/dev/z\nparent=rootfs.0\n", "4 slots have the parent rootfs.0, at most 3 can"},
		{"a file of a slot that boots", strings.Replace(minimal, "bootname=B", "bootname=B\nfile=/B.efi", 1), "[slot.rootfs.1] has file=: that is for sdboot and efi"},
		{"a file with raw", minimal + "[slot.boot.0]\ndevice=PARTLABEL=esp\nfile=/A.efi\nparent=rootfs.0\n", "line 11: [slot.boot.0] has file="},
		{"a mounted file", fileSlots("mount=/x"), "has file="},
		{"a relative file", strings.Replace(fileSlots(""), "file=/B.efi", "file=B.efi", 1), "not a plain absolute path"},
		{"one file twice", strings.Replace(fileSlots(""), "file=/B.efi", "file=/a.EFI", 1), "[slot.boot.0] and [slot.boot.1] both have device PARTLABEL=esp/a.EFI"},
		{"a slot under files", fileSlots("") + "[slot.z.0]\ndevice=PARTLABEL=esp\n", "slots in files and [slot.z.0] both have device PARTLABEL=esp"},
		{"files on a slot", fileSlots("") + "[slot.a.0]\ndevice=PARTLABEL=esp\n", "[slot.a.0] and [slot.boot.0] both have device PARTLABEL=esp/A.efi"},
		{"boot loader on a partition", loader("PARTLABEL=boot", "boot-emmc", ""), "device= is the disk"},
		{"boot loader with a parent", loader("/dev/x", "boot-emmc", "parent=rootfs.0\n"), "it goes with no other slot"},
		{"boot loader without a region", loader("/dev/x", "boot-mbr-switch", "region-start=1M\n"), "region-start= and region-size= are two halves"},
		{"half a sector", loader("/dev/x", "boot-mbr-switch", "region-start=100\nregion-size=1M\n"), "whole sectors of 512 bytes"},
		{"halves of half a sector", loader("/dev/x", "boot-raw-fallback", "region-start=1M\nregion-size=512\n"), "whole sectors of 512 bytes"},
		{"no number of bytes", loader("/dev/x", "boot-mbr-switch", "region-start=1MB\n"), `[slot.bootloader.0] region-start: "1MB" is no number of bytes`},
		{"too many bytes", loader("/dev/x", "boot-mbr-switch", "region-start=2048T\n"), "is no number of bytes"},
		{"nothing but a unit", loader("/dev/x", "boot-mbr-switch", "region-start=K\n"), "is no number of bytes"},
		{"two slots of a boot loader's class", loader("/dev/x", "boot-emmc", "[slot.bootloader.1]\ndevice=/dev/y\n"), "there is one slot of its class"},
		{"a boot loader of the booted class", minimal + "[slot.rootfs.2]\ndevice=/dev/x\ntype=boot-emmc\n", "there is one slot of its class"},
		{"regions that meet", loader("/dev/x", "boot-raw-fallback", "region-start=1M\nregion-size=1M\n[slot.spl.0]\ndevice=/dev/x\ntype=boot-raw-fallback\nregion-start=2044K\nregion-size=1M\n"), "it lies where another one does"},
		{"two switches in one table", loader("/dev/x", "boot-mbr-switch", "region-start=1M\nregion-size=1M\n[slot.spl.0]\ndevice=/dev/x\ntype=boot-mbr-switch\nregion-start=8M\nregion-size=1M\n"), "it lies where another one does"},
		{"four boot loaders", loader("/dev/a", "boot-emmc", "[slot.b.0]\ndevice=/dev/b\ntype=boot-emmc\n[slot.c.0]\ndevice=/dev/c\ntype=boot-emmc\n[slot.d.0]\ndevice=/dev/d\ntype=boot-emmc\n"), "4 slots of the boot loader, at most 3"},
		{"trees in one slot only", treeSlots("integrity=none\n", ""), "[slot.rootfs.1] and [slot.rootfs.0] differ in integrity="},
		{"trees of two kinds", treeSlots("integrity=none\n", "integrity=crc32c\n"), "differ in integrity="},
		{"a label without a tree", treeSlots("label=x\n", "label=x\n"), "has no integrity="},
		{"a long label", treeSlots("label=seventeen-letters\n", ""), "label"},
		{"integrity of nobody", treeSlots("integrity=md5\n", ""), "is none of: none, crc32c, sha256, hmac-sha256"},
		{"trees in raw slots", strings.ReplaceAll(treeSlots("integrity=none\n", "integrity=none\n"), "type=ext4", "type=raw"), "that is for slots of type=ext4"},
		{"a journal of nothing", "[ext4]\njournal-size=1M\n", "from 4M to 1G"},
		{"all for root", "[ext4]\nreserved=51\n", "from 0 to 50"},
		{"integrity without a key", "[integrity]\nkey=\n", "[integrity] key"},
		{"control character", system("compatible=a\x1bb"), "line 2: control character 0x1b"},
		{"nul", system("compatible=a\x00b"), "line 2: control character"},
		{"byte order mark", "\xef\xbb\xbf[system]\n", "line 1: starts with a byte order mark"},
		{"latin-1", system("compatible=\xe4"), "line 2: is not UTF-8"},
		{"lone backslash", system(`compatible=a\`), "lone backslash"},
		{"unknown escape", system(`compatible=a\x`), "unknown escape"},
		{"line break in a value", system(`compatible=a\nb`), "line break"},
		{"too large", strings.Repeat("#\n", maxSize/2) + "#", "at most 65536 are read"},
		{"sections without end", func() string {
			var b strings.Builder
			for i := range maxSections + 1 {
				b.WriteString("[log." + strings.Repeat("x", i+1) + "]\n")
			}
			return b.String()
		}(), "line 65: more than 64 sections"},
		{"keys without end", func() string {
			b := "[log.x]\n"
			for i := range maxKeys + 1 {
				b += strings.Repeat("x", i+1) + "=1\n"
			}
			return b
		}(), "line 66: more than 64 keys in [log.x]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse([]byte(test.raw))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one with %q", err, test.want)
			}
		})
	}
}

// The example must parse as it is, and with every default written out it must still mean the same.
func TestExample(t *testing.T) {
	raw, err := os.ReadFile("../docs/system.conf.example")
	if err != nil {
		t.Fatal(err)
	}
	short, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	var full []byte
	for line := range bytes.Lines(raw) {
		if len(line) > 2 && line[0] == '#' && line[1] != ' ' {
			line = line[1:]
		}
		full = append(full, line...)
	}
	long, err := Parse(full)
	if err != nil {
		t.Fatal(err)
	}
	if len(long.Slots) != 5 || long.StagingDevice != "PARTLABEL=staging" || len(long.Warnings) != 0 {
		t.Errorf("keys behind # are not all there: %+v", long)
	}
	if l := long.Loaders(); len(l) != 1 || l[0].Region.Start == 0 || l[0].Region.Size == 0 || l[0].Region.Limit == 0 {
		t.Errorf("the slot of the boot loader: %+v", l)
	}
	long.Slots = long.Slots[3:] // appfs.0, appfs.1, bootloader.0
	long.Slots[0].Description = ""
	long.StagingDevice, long.MinVersion = "", ""
	// What has no default stands there as an example.
	if long.USB.Files == nil || long.USB.Require == "" || long.USB.LED == "" || long.Watchdog.Pretimeout == 0 || long.Watchdog.Device == "" || long.Rescue.GPIO == "" || long.Rescue.Key == 0 ||
		long.Loader.Device != "PARTLABEL=esp" || len(long.Loader.Files) != 2 || len(long.Loader.Offsets) != 2 || long.Loader.Program == "" {
		t.Errorf("keys behind # are not all there: %+v", long)
	}
	long.USB.Files, long.USB.Require, long.USB.LED, long.Watchdog, long.Rescue.GPIO, long.Rescue.Key = nil, "", "", Watchdog{}, "", 0
	if d := long.Data; d.Device == "" || d.Mount == "" || len(d.Overlays) != 2 {
		t.Errorf("the data partition: %+v", d)
	}
	long.Loader, long.Data = short.Loader, short.Data
	long.Raw = short.Raw
	if diff := cmp.Diff(short, long); diff != "" {
		t.Errorf("defaults in the example differ from the real ones:\n%s", diff)
	}
}

func TestSlotByName(t *testing.T) {
	c, err := Parse([]byte(minimal + "[slot.app.0]\ndevice=/dev/x\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"rootfs.1": "rootfs.1", "B": "rootfs.1", "A": "rootfs.0", "app.0": "app.0", "C": "", "": ""} {
		got, ok := c.SlotByName(name)
		if got.Name != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v", name, got.Name, ok)
		}
	}
	if boot := c.BootSlots(); len(boot) != 2 || boot[0].Bootname != "A" || boot[1].Bootname != "B" {
		t.Errorf("boot slots: %+v", boot)
	}
}

func FuzzConfig(f *testing.F) {
	example, err := os.ReadFile("../docs/system.conf.example")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Add([]byte(minimal))
	f.Add([]byte(loader("/dev/x", "boot-gpt-switch", "region-start=1M\nregion-size=64K\n")))
	f.Add([]byte("[system]\ncompatible=a\\sb\nbundle-formats=+plain -verity\n[rescue]\nretry=1h30min\n"))
	f.Add([]byte("[slot.rootfs.0]\nparent=rootfs.0\n\xef\xbb\xbf"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := Parse(raw)
		if err != nil {
			return
		}
		if n := len(c.BootSlots()); n < 2 || n > MaxBootSlots {
			t.Errorf("%d boot slots", n)
		}
		if c.BootAttempts < 1 || c.BootAttempts > 9 || len(c.BundleFormats) == 0 || c.Rescue.Retry <= 0 || c.TrialDeadline <= 0 {
			t.Errorf("out of bounds: %+v", c)
		}
		for _, s := range c.Slots {
			if got, ok := c.SlotByName(s.Name); !ok || got.Name != s.Name {
				t.Errorf("slot %q is not found by its name", s.Name)
			}
		}
	})
}

func TestData(t *testing.T) {
	c, err := Parse([]byte(minimal + "[data]\ndevice=PARTLABEL=data\ntype=ext4\nmount=/data\nintegrity=crc32c\n[overlay]\n/var=per-slot\n/etc=shared\non-update=clear\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := Data{
		Device: "PARTLABEL=data", Mount: "/data", Integrity: "crc32c", OnError: "continue",
		Overlays: []Overlay{{Path: "/etc"}, {Path: "/var", PerSlot: true}}, Clear: true,
	}
	if d := cmp.Diff(want, c.Data); d != "" {
		t.Error(d)
	}
	if got := c.Integrities(); len(got) != 1 || got[0] != "crc32c" {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{
		"[data]\nmount=/data\n", "[overlay]\n/etc=shared\n", "[data]\ndevice=PARTLABEL=data\ntype=xfs\n", "[data]\ndevice=PARTLABEL=state\n",
		"[data]\ndevice=PARTLABEL=data\non-error=panic\n", "[data]\ndevice=PARTLABEL=data\nlabel=seventeen letters\n",
		"[data]\ndevice=PARTLABEL=data\nmount=/var\n[overlay]\n/var/lib=shared\n", "[data]\ndevice=PARTLABEL=data\n[overlay]\n/etc=shared\n/etc/x=shared\n",
		"[data]\ndevice=PARTLABEL=data\n[overlay]\n/etc=yes\n", "[data]\ndevice=PARTLABEL=data\n[overlay]\netc=shared\n", "[data]\ndevice=PARTLABEL=data\n[overlay]\n/a,b=shared\n",
	} {
		if c, err := Parse([]byte(minimal + bad)); err == nil {
			t.Errorf("%q: %+v", bad, c.Data)
		}
	}
}
