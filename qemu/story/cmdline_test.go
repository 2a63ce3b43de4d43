package story

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lifeboat/image"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/status"
)

// Threat I2, row 116: forty parameters on one command line that elsewhere get round verification. What is booted from where, and what is
// said of a bundle of another signer, is as without them.
func TestHostileCmdline(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	raw, err := os.ReadFile(filepath.Join("..", "..", "config", "testdata", "cmdlines.txt"))
	if err != nil {
		t.Fatal(err)
	}
	words := strings.ReplaceAll(strings.TrimSpace(string(raw)), "\n", " ")
	stick := d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{Signer: "develop"})
	boot := func(t *testing.T, name, more string) (status.Booted, []status.Refused) {
		m := d.Machine(d.disk(t, name), stick)
		m.Append += more
		vm := scene.Start(t, m)
		vm.Expect(scene.Patience, `lifeboat: refused code=22 update\.raucb: `)
		vm.Expect(scene.Patience, `lifeboat: boot 1 slot rootfs\.0 \(A\) version 1\.0 trial tries=2\n`)
		vm.Expect(scene.Patience, `lifeboat: starting /sbin/init\n`)
		if v := vm.Ready(); v != "1.0" {
			t.Fatalf("version %s", v)
		}
		if got := vm.Run("cat", "/proc/cmdline"); !strings.HasSuffix(got, strings.TrimSpace(more)) {
			t.Errorf("the kernel cut the command line: %s", got)
		}
		r := vm.Status()
		vm.Cut()
		return r.Booted, r.Refused
	}
	var booted, hostileBooted status.Booted
	var refused, hostileRefused []status.Refused
	// One after the other: a test has its place for a device until it ends.
	t.Run("plain", func(t *testing.T) { booted, refused = boot(t, "plain", "") })
	t.Run("hostile", func(t *testing.T) { hostileBooted, hostileRefused = boot(t, "hostile", " "+words) })
	if diff := cmp.Diff(booted, hostileBooted); diff != "" {
		t.Errorf("booted (-plain +hostile):\n%s", diff)
	}
	if diff := cmp.Diff(refused, hostileRefused); diff != "" {
		t.Errorf("refused (-plain +hostile):\n%s", diff)
	}
}

// Who plays with the keys in rescue gets no prompt, and the device goes on as if nobody had.
func TestKeys(t *testing.T) {
	t.Parallel()
	d := special(t, patient)
	stick := d.update(t, "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	m := d.Machine(d.disk(t, "keys"))
	m.Append += " lifeboat.rescue"
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `What to do: plug in a USB stick`)
	before := len(vm.Console())
	keys := rand.New(rand.NewPCG(1, 2))
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b := make([]byte, 16)
		for i := range b {
			// Not the signs that prompts are made of: a terminal may show what is typed.
			if b[i] = byte(keys.IntN(128)); strings.IndexByte("#$%>:", b[i]) >= 0 {
				b[i] = '\n'
			}
		}
		vm.Type(string(b))
	}
	vm.Type("\x11\n") // goes on where a key has stopped the console
	for _, command := range []string{"id", "ls /", "root", "exit", "\x03", "\x04", "\x1a", "\x1c", "\x1b[A", "b", "shell"} {
		vm.Type(command + "\n")
	}
	time.Sleep(2 * time.Second)
	if got := vm.Console()[before:]; regexp.MustCompile(`[#$%>:] ?$|uid=|login:|SYSTEM|panic|rescue reason`).MatchString(got) {
		t.Errorf("the console says:\n%q", got)
	}
	vm.PlugStick(qemu.Stick{Name: "update", File: stick})
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	if v := vm.Ready(); v != "2.0" {
		t.Fatalf("version %s", v)
	}
}

// What an initramfs does not hold nobody can make early boot start or load: one program, no shell, no driver for what
// is typed on, or connects.
func TestInitramfsHoldsNoMore(t *testing.T) {
	t.Parallel()
	a, err := image.ReadArchive(needDevice(t).Initrd)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range a.Files {
		if regular := f.Mode&unix.S_IFMT == unix.S_IFREG; regular && f.Mode&0o111 != 0 && f.Name != "init" || strings.HasSuffix(f.Name, "sh") || strings.Contains(f.Name, "busybox") {
			t.Errorf("there is %s, mode %o", f.Name, f.Mode)
		}
		if m := regexp.MustCompile(`/(hid|usbhid|input|net|tty|serial|bluetooth|thunderbolt|firewire|sound|nfc|usbnet|cdc\w+|vfat|fat|ntfs3?|exfat|isofs|udf)(/|\.ko$)`).FindString(f.Name); m != "" {
			t.Errorf("there is %s", f.Name)
		}
	}
	if len(a.Files) < 20 {
		t.Errorf("only %d files were looked at", len(a.Files))
	}
}
