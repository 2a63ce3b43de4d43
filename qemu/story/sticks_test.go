package story

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"lifeboat/image"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// kind is a stick as people have them: what is on it and how it is plugged in.
type kind struct {
	file    string              // the bundle's name on it; its version is older than what the device has
	make    func(k *kindStick)  // writes the image
	devices func(id int) string // QEMU's devices for the block node "kindID", one a line
}

// kindStick is the image of a stick that is being made.
type kindStick struct {
	*testing.T
	path   string // of the image
	bundle string // file that goes on it
	name   string // what it is called there
}

func (k *kindStick) run(name string, args ...string) {
	k.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if name = "/usr/sbin/" + name; true {
			if _, err := os.Stat(name); err != nil {
				k.Skipf("no %s", name)
			}
		}
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8")
	if b, err := cmd.CombinedOutput(); err != nil {
		k.Fatalf("%s %q: %v\n%s", name, args, err, b)
	}
}

// size makes the image so many MiB long.
func (k *kindStick) size(mib int64) *kindStick {
	k.must(os.WriteFile(k.path, nil, 0o600))
	k.must(os.Truncate(k.path, mib<<20))
	return k
}

func (k *kindStick) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

// fat makes a FAT of so many MiB by mkfs.fat at an offset and copies the bundle there, and what else people's systems leave.
func (k *kindStick) fat(at, mib int64, mkfs ...string) {
	part := k.path + ".fat"
	k.must(os.WriteFile(part, nil, 0o600))
	k.must(os.Truncate(part, mib<<20))
	k.run("mkfs.fat", append(mkfs, "-n", "STICK", part)...)
	if k.name != "" {
		k.run("mcopy", "-i", part, k.bundle, "::"+k.name)
		k.run("mcopy", "-i", part, k.bundle, "::._"+filepath.Base(k.name))
	}
	for _, dir := range []string{"System Volume Information", ".Spotlight-V100", "$RECYCLE.BIN"} {
		k.run("mmd", "-i", part, "::"+dir)
	}
	k.put(part, at)
}

// exfat does so with an exFAT.
func (k *kindStick) exfat(at, sector int64) {
	part, file := k.path+".exfat", filepath.Join(k.TempDir(), k.name)
	b, err := os.ReadFile(k.bundle)
	k.must(err)
	k.must(os.WriteFile(file, b, 0o600))
	k.must(image.Stick(part, image.StickOptions{WholeDisk: true, ExFAT: true, Report: true, Sector: sector}, []string{file}))
	k.put(part, at)
}

func (k *kindStick) put(part string, at int64) {
	b, err := os.ReadFile(part)
	k.must(err)
	f, err := os.OpenFile(k.path, os.O_RDWR, 0)
	k.must(err)
	defer f.Close()
	_, err = f.WriteAt(b, at)
	k.must(err)
	k.must(os.Remove(part))
}

// mbr writes a table of one partition, in sectors of unit bytes.
func (k *kindStick) mbr(kind byte, at, size, unit int64) {
	b := make([]byte, 66)
	b[4] = kind
	binary.LittleEndian.PutUint32(b[8:], uint32(at/unit))
	binary.LittleEndian.PutUint32(b[12:], uint32(size/unit))
	b[64], b[65] = 0x55, 0xaa
	f, err := os.OpenFile(k.path, os.O_RDWR, 0)
	k.must(err)
	defer f.Close()
	_, err = f.WriteAt(b, 446)
	k.must(err)
}

const mib = 1 << 20

// storage is a usb-storage device on a bus.
func storage(on string) func(int) string {
	return func(id int) string { return fmt.Sprintf("usb-storage,%s,drive=kind%d", on, id) }
}

// uas is a usb-uas device on a bus.
func uas(on, disk string) func(int) string {
	return func(id int) string {
		return fmt.Sprintf("usb-uas,id=uas%d,%s\nscsi-hd,bus=uas%d.0,drive=kind%d%s", id, on, id, id, disk)
	}
}

const sectors4096 = ",logical_block_size=4096,physical_block_size=4096"

// TestStickKinds: sticks of many kinds, each file system, table, size of sector and controller, four at a boot. What lies on
// each is found, and a boot goes on as without them.
func TestStickKinds(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	old := d.bundle(t, "old.raucb", "0.9", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	features, err := image.Features("+usb2")
	if err != nil {
		t.Fatal(err)
	}
	initrd := d.Path(fileName(t) + ".initramfs")
	_, err = image.Initramfs(context.Background(), image.InitramfsOptions{
		Config: d.Conf, Keyring: d.Ring, Init: filepath.Join(d.Bin, "init"), Kernel: d.Kernel.Root, Features: features,
	}, initrd)
	if err != nil {
		t.Fatal(err)
	}
	for _, boot := range []struct {
		name   string
		buses  []string
		sticks []kind
	}{
		{"usb 3", []string{"usb-hub,bus=xhci.0,port=2"}, []kind{
			{"fat12.raucb", func(k *kindStick) { k.size(32).fat(0, 32, "-F", "12", "-s", "64") }, func(id int) string {
				return storage("bus=xhci.0,port=1")(id) + ",read-only=on"
			}},
			{"updates/fat16-mbr-hub.raucb", func(k *kindStick) {
				k.size(40).mbr(0x06, mib, 32*mib, 512)
				part := k.name
				k.name = ""
				k.fat(mib, 32, "-F", "16")
				k.run("mmd", "-i", fmt.Sprintf("%s@@%d", k.path, int64(mib)), "::updates")
				k.run("mcopy", "-i", fmt.Sprintf("%s@@%d", k.path, int64(mib)), k.bundle, "::"+part)
			}, storage("bus=xhci.0,port=2.3")},
			{"exfat-gpt-uas.raucb", func(k *kindStick) {
				k.size(80).run("sgdisk", "-n", "1:2048:0", "-t", "1:0700", "-c", "1:stick", k.path)
				k.exfat(mib, 512)
			}, uas("bus=xhci.0,port=3", "")},
			{"fat32-mbr-4kn.raucb", func(k *kindStick) {
				k.size(600).mbr(0x0c, mib, 512*mib, 4096)
				k.fat(mib, 512, "-F", "32", "-S", "4096")
			}, func(id int) string { return storage("bus=xhci.0,port=4")(id) + sectors4096 }},
		}},
		{"usb 2 and 1", []string{"usb-ehci,id=ehci", "piix3-usb-uhci,id=uhci"}, []kind{
			{"fat32-gpt-ehci.raucb", func(k *kindStick) {
				k.size(80).run("sgdisk", "-n", "1:2048:0", "-t", "1:ef00", k.path)
				k.fat(mib, 64, "-F", "32")
			}, storage("bus=ehci.0")},
			{"exfat-none-uas-ehci.raucb", func(k *kindStick) { k.size(70); k.exfat(0, 512) }, uas("bus=ehci.0", "")},
			{"exfat-mbr-uhci.raucb", func(k *kindStick) { k.size(70).mbr(0x07, mib, 64*mib, 512); k.exfat(mib, 512) }, storage("bus=uhci.0,port=1")},
			{"fat16-hybrid-uhci.raucb", func(k *kindStick) {
				k.size(40).run("sgdisk", "-n", "1:2048:+32M", "-t", "1:0700", "-h", "1", k.path)
				k.fat(mib, 32, "-F", "16")
			}, storage("bus=uhci.0,port=2")},
		}},
		{"many partitions", nil, []kind{
			{"Übergrößen, 日本語 (Kopie 2) of a bundle with a long name.raucb", func(k *kindStick) {
				k.size(200)
				cmd := exec.Command("sfdisk", "-q", k.path)
				cmd.Stdin = strings.NewReader("label: dos\nstart=2048,size=20480,type=83\nstart=32768,size=65536,type=c\ntype=5\nstart=120832,size=135168,type=b\n")
				if b, err := cmd.CombinedOutput(); err != nil {
					k.Fatalf("sfdisk: %v\n%s", err, b)
				}
				k.run("mkfs.ext4", "-q", "-E", fmt.Sprintf("offset=%d", int64(mib)), k.path, "10M")
				name := k.name
				k.name = ""
				k.fat(16*mib, 32, "-F", "16")
				k.name = name
				k.fat(120832*512, 66, "-F", "32")
			}, storage("bus=xhci.0")},
			{"exfat-mbr-uas-4kn.raucb", func(k *kindStick) { k.size(70).mbr(0x07, mib, 64*mib, 4096); k.exfat(mib, 4096) }, uas("bus=xhci.0", sectors4096)},
		}},
	} {
		t.Run(boot.name, func(t *testing.T) {
			m := d.Machine(d.disk(t, "disk"))
			m.Initrd = initrd
			for _, bus := range boot.buses {
				m.Args = append(m.Args, "-device", bus)
			}
			for i, kind := range boot.sticks {
				k := &kindStick{T: t, path: filepath.Join(t.TempDir(), fmt.Sprintf("stick%d", i)), bundle: old, name: kind.file}
				kind.make(k)
				devices, readOnly := kind.devices(i), "off"
				if rest, ro := strings.CutSuffix(devices, ",read-only=on"); ro {
					devices, readOnly = rest, "on"
				}
				m.Args = append(m.Args, "-blockdev", fmt.Sprintf("driver=raw,node-name=kind%d,read-only=%s,file.driver=file,file.filename=%s", i, readOnly, k.path))
				for dev := range strings.SplitSeq(devices, "\n") {
					m.Args = append(m.Args, "-device", dev)
				}
			}
			vm := scene.Start(t, m)
			vm.Expect(scene.Patience, `lifeboat: boot 1 slot rootfs\.0 \(A\) version 1\.0 trial tries=2\n`)
			if v := vm.Ready(); v != "1.0" {
				t.Fatalf("version %s", v)
			}
			console := vm.Console()
			for _, kind := range boot.sticks {
				found := regexp.MustCompile(`lifeboat: found ` + regexp.QuoteMeta(kind.file) + ` version 0\.9 on sd[a-d]`)
				if !found.MatchString(console) || !strings.Contains(console, "lifeboat: "+kind.file+": nothing to do: ") {
					t.Errorf("%s was not found", kind.file)
				}
			}
			if n := strings.Count(console, "lifeboat: found "); n != len(boot.sticks) {
				t.Errorf("%d bundles were found on %d sticks", n, len(boot.sticks))
			}
			r := vm.Status()
			if len(r.Refused) > 0 || len(r.Installed) > 0 {
				t.Errorf("refused %v, installed %v", r.Refused, r.Installed)
			}
			t.Logf("figure: %s: %d sticks, settled after %.0f ms, looked at in %.0f ms", boot.name, len(boot.sticks), phase(r, "usb-settle"), phase(r, "update"))
		})
	}
}
