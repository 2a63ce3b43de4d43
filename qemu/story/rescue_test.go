package story

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/image"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/status"
	"lifeboat/verify"
)

// Whoever holds the key while the device starts gets to rescue, and says so on the screen.
func TestRescueKey(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"rescue key": "66", "rescue retry": "5s"}}) // F8
	raw, err := os.ReadFile(d.Ring)
	if err != nil {
		t.Fatal(err)
	}
	keyring, err := verify.ParseKeyring(raw)
	if err != nil {
		t.Fatal(err)
	}
	_, err = image.Initramfs(context.Background(), image.InitramfsOptions{
		Config: d.Conf, Keyring: d.Ring, Init: filepath.Join(d.Bin, "init"), Kernel: d.Kernel.Root,
		Build: keyring.NewestNotBefore(), Modules: []string{"evdev"},
	}, d.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	vm := scene.Start(t, d.Machine(d.disk(t, "key")))
	done := make(chan struct{})
	go func() { // as a keyboard repeats a key that is held
		for {
			select {
			case <-done:
				return
			case <-time.After(30 * time.Millisecond):
				_ = vm.Key("f8", true)
			}
		}
	}()
	vm.Expect(scene.Patience, `lifeboat: rescue reason=requested\n`)
	close(done)
	vm.Expect(scene.Patience, `Rescue was asked for\.\n`)
	boots(t, vm, 1, "A", "1.0", "trial tries=2") // after a while
}

// A device without any console, both slots dead, is repaired by a stick all the same.
func TestRescueNoConsole(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	file := d.disk(t, "mute")
	edit(t, file, "rootfs.0", func(b []byte) { clear(b[len(b)-128<<10:]) })
	m := d.Machine(file, d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{}))
	m.Append = qemu.FastArgs + " console=ttyS9"
	vm := scene.Start(t, m)
	for end := time.Now().Add(scene.Patience); ; time.Sleep(500 * time.Millisecond) {
		out, _ := exec.Command(filepath.Join(d.Bin, "lifeboat"), "inspect", "--json", file).Output()
		var r struct {
			State status.State `json:"state"`
		}
		if json.Unmarshal(out, &r) == nil {
			for _, s := range r.State.Slots {
				if s.Version == "2.0" && s.Good {
					return
				}
			}
		}
		if time.Now().After(end) {
			t.Fatalf("not repaired: %s\n%s", out, vm.Console())
		}
	}
}

// A disk on which neither the state nor a seal can be read ends in rescue, which goes on looking for sticks and says why they
// do not help.
func TestRescueBadDisk(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	m := d.Machine(d.disk(t, "bad"))
	f, err := os.Open(m.Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	parts, err := disk.Partitions(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		bad := []int64{p.Start, p.Start + p.Size - 4096} // the copies of the record
		if p.Name != "state" {
			bad = []int64{p.Start + p.Size - 128<<10} // the seal
		}
		for _, off := range bad {
			m.Faults = append(m.Faults, qemu.Fault{Sector: off / 512})
		}
	}
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `lifeboat: rescue reason=no-slot\n`)
	vm.Expect(scene.Patience, `rootfs\.0 \(A\)  version \S+: it cannot be read\n`)
	vm.Expect(scene.Patience, `Sticks: none seen\n`)
	vm.PlugStick(qemu.Stick{Name: "repair", File: d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})})
	vm.Expect(scene.Patience, `lifeboat: refused code=40 update\.raucb: `)
	vm.Expect(scene.Patience, `update\.raucb was refused \(code 40\): `)
}

// The initramfs for developers: our /init is its init, and in rescue u-root's shell runs beside it.
func TestDebugInitramfs(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "list", "-m", "github.com/u-root/u-root@latest").CombinedOutput(); err != nil {
		t.Skipf("no Go module proxy, so no newest u-root: %v\n%s", err, out)
	}
	initrd := d.Path("debug.cpio")
	cmd := exec.Command("../../scripts/debug-initramfs.sh", initrd, "--config", d.Conf, "--keyring", d.Ring, "--kernel", d.Kernel.Root)
	cmd.Env = append(os.Environ(), "COMMANDS=gosh ls cat")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := d.Machine(d.disk(t, "debug"))
	m.Initrd = initrd
	m.Append += " lifeboat.rescue"
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `lifeboat: rescue reason=requested\n`)
	vm.Expect(scene.Patience, `toggle key help`) // the prompt's
	vm.Type("ls /etc/lifeboat\n")
	vm.Expect(scene.Patience, `\nbuild\nkeyring\.pem\nmodules\nmodules\.usb\nsystem\.conf\n`)
}
