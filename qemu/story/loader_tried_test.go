package story

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/boot/uboot"
	"lifeboat/disk"
	"lifeboat/image/bootloader"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// A board that SWUpdate updated keeps U-Boot, its script and its variables, and gets lifeboat's initramfs: an update that is good,
// one that never says so, one that crashes, and what its own tool leaves in the variables while it installs.
func TestTriedBoards(t *testing.T) {
	if os.Getenv("LIFEBOAT_LOADERS") != "all" {
		t.Skip("qemu/loaders has their scripts without Linux; LIFEBOAT_LOADERS=all has it")
	}
	for _, test := range []struct {
		board scene.Tried
		names [2]string
		left  []string // by tools, of an install into the first slot, with S for its bootname and G for the other one's
	}{
		{scene.SWUpdate, [2]string{"A", "B"}, []string{
			"bootslot=G ustate=0 recovery_status=in_progress", "bootslot=G ustate=7 recovery_status=in_progress", "bootslot=S ustate=7 recovery_status=in_progress",
			"bootslot=S ustate=7", "bootslot=S ustate=1 bootcount=0", "bootslot=G ustate=3 recovery_status=failed",
		}},
	} {
		t.Run(test.board.Schema, func(t *testing.T) {
			t.Parallel()
			qemu.NeedKernel(t, "generic")
			d := triedBoard(t, test.board, test.names)
			a, b := test.names[0], test.names[1]
			d.starts(a, "1.0", "")
			d.updates("2.0", testsystem.Good, b)
			d.starts(b, "2.0", "trial tries=1\n")

			d.updates("3.0", testsystem.Silent, a)
			d.Expect(scene.Patience, `version 3\.0 trial tries=1\n`)
			d.Expect(scene.Patience, `version 3\.0 trial tries=0\n`)
			d.Expect(scene.Patience, `lifeboat: fallback from `+a+` to `+b+` reason=exhausted\n`)
			d.starts(b, "2.0", "confirmed")

			d.updates("4.0", testsystem.Panic, a)
			d.Expect(scene.Patience, `version 4\.0 trial tries=1\n`)
			d.Expect(scene.Patience, `version 4\.0 trial tries=0\n`)
			d.Expect(scene.Patience, `lifeboat: fallback from `+a+` to `+b+` reason=panic\n`)
			d.starts(b, "2.0", "confirmed")

			for _, left := range append(test.left, "") {
				d.Cut()
				env := []byte(strings.Repeat("garbage ", uboot.Size/8))
				if left != "" {
					e := uboot.Env{Vars: map[string]string{"serial": "LB01"}}
					for _, word := range strings.Fields(strings.NewReplacer("=S", "="+a, "=G", "="+b).Replace(left)) {
						name, value, _ := strings.Cut(word, "=")
						e.Vars[name] = value
					}
					env = e.Encode(uboot.Size, false)
				}
				if err := scene.WriteFAT(d.image, "esp", map[string][]byte{d.board.File: env}); err != nil {
					t.Fatal(err)
				}
				d.PowerOn()
				d.starts(b, "2.0", "confirmed")
				t.Logf("%q: %s runs", left, b)
			}
		})
	}
}

// tried is a device of a board.
type tried struct {
	*staged
	*scene.Device
	t     *testing.T
	board scene.Tried
	image string
	names [2]string
	with  scene.BundleOptions
}

// triedBoard starts a device with system 1.0 in its first slot, and two tries for a slot.
func triedBoard(t *testing.T, board scene.Tried, names [2]string) *tried {
	t.Helper()
	conf := scene.LoaderConfig("uboot")
	conf["system boot-attempts"], conf["bootloader schema"], conf["bootloader files"] = "2", board.Schema, "/"+board.File
	conf["slot.rootfs.0 bootname"], conf["slot.rootfs.1 bootname"] = names[0], names[1]
	s, err := scene.New(filepath.Join(workDir, fileName(t)), scene.Options{Config: conf})
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := s.BootImage("boot.img", "")
	if err != nil {
		t.Fatal(err)
	}
	d := &tried{staged: &staged{Scene: s}, t: t, board: board, names: names, with: scene.BundleOptions{With: map[string]string{"boot": kernel}}}
	// As their scripts do, it says which slot it is by root=.
	var start [2]string
	for i := range names {
		start[i] = fmt.Sprintf(`echo board: slot %s
if load ${devtype} ${devnum}:%d 2000000 /vmlinuz; then
setenv lb_size ${filesize}
if load ${devtype} ${devnum}:%[2]d 8000000 /initramfs; then
setenv bootargs "%s root=/dev/vda%d"
zboot 2000000 ${lb_size} 8000000 ${filesize}
fi
fi`, names[i], 4+i, scene.Cmdline, 6+i)
	}
	script, err := bootloader.UBootImage(board.Script(uboot.Size, names, start), "")
	if err != nil {
		t.Fatal(err)
	}
	first := d.bundle(t, "1.0.raucb", "1.0", testsystem.Good, testsystem.Options{}, d.with)
	env := uboot.Env{Vars: map[string]string{"serial": "LB01", board.Slot: names[0], board.State: "0", "bootcount": "0"}}
	d.image, err = s.LoaderDisk("disk.img", map[string][]byte{"boot.scr": script, board.File: env.Encode(uboot.Size, false)},
		map[string]string{names[0]: first}, map[string]int64{"rootfs": slotSize})
	if err != nil {
		t.Fatal(err)
	}
	f, err := disk.Open(d.image, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := disk.Partitions(f, f.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range table {
		for i, label := range []string{"", "", "", "", "boot.0", "boot.1", "rootfs.0", "rootfs.1"} {
			if p.Name == label && p.Index != i {
				t.Fatalf("%s is partition %d", label, p.Index)
			}
		}
	}
	m, err := s.FirmwareMachine(scene.UBoot, d.image)
	if err != nil {
		t.Fatal(err)
	}
	d.Device = scene.Start(t, m)
	return d
}

// starts waits until a slot runs, and obeys.
func (d *tried) starts(name, version, how string) {
	d.t.Helper()
	n := 0
	if name == d.names[1] {
		n = 1
	}
	d.Expect(2*scene.Patience, fmt.Sprintf(`lifeboat: boot \d+ slot rootfs\.%d \(%s\) version %s %s`, n, name, version, how))
	if v := d.Ready(); v != version {
		d.t.Fatalf("version %s", v)
	}
}

// updates plugs a stick in that installs into a slot, and restarts.
func (d *tried) updates(version string, does testsystem.Behaviour, slot string) {
	d.t.Helper()
	d.PlugStick(qemu.Stick{Name: "update", File: d.update(d.t, version, does, testsystem.Options{}, d.with)})
	d.Reset()
	d.Expect(2*scene.Patience, `lifeboat: installed `+version+` to rootfs\.\d \(`+slot+`\)\n`)
	d.PullStick("update")
}
