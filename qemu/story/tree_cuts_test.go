package story

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"lifeboat/disk/crash"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/qemu/writelog"
)

// What a power cut leaves of a system that writes to its own file system on dm-integrity is mounted at the next boot, can be read
// to the last byte, and neither e2fsck nor dm-integrity finds anything.
func TestTreeCuts(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: treeConfig("hmac-sha256")})
	files := withLibraries(t, "/sbin/e2fsck")
	busybox, err := filepath.Abs("../../build/peers/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("there is no busybox: make setup")
	}
	files["bin/busybox"] = busybox
	work := "cd /var\nfor i in 1 2 3 4 5 6 7 8 9; do\n/bin/busybox head -c ${i}0000 /dev/urandom >a$i; /bin/busybox mkdir d$i; /bin/busybox cp a$i d$i/b\n" +
		"/bin/busybox mv a$i a; /bin/busybox ln d$i/b c$i; [ $i = 5 ] && /bin/busybox rm -r d2 c3; /bin/busybox sync\ndone\n"
	look := "/bin/busybox find / -xdev -type f -exec /bin/busybox cat {} + >/dev/null || exit 1\n/bin/busybox mount -o remount,ro / || exit 2\n/sbin/e2fsck -fn /dev/mapper/lifeboat-root\n"
	stick := d.update(t, "2.0", testsystem.Good, testsystem.Options{Format: "tar.zst", Files: files, Text: map[string]string{"work": work, "look": look}},
		scene.BundleOptions{ImageName: "rootfs.tar.zst"})
	image := treeDisk(t, d)
	trace := &crash.Trace{}
	t.Run("writes", func(t *testing.T) {
		vm := scene.Start(t, d.Machine(image, stick))
		if v := vm.Ready(); v != "2.0" {
			t.Fatalf("version %s", v)
		}
		vm.Run("/bin/busybox", "sync")
		vm.Cut()
	})
	if trace.Base, err = crash.LoadFile(image); err != nil {
		t.Fatal(err)
	}
	t.Run("is recorded", func(t *testing.T) {
		m := d.Machine(image)
		m.Log = d.Path("cuts.log")
		vm := scene.Start(t, m)
		if v := vm.Ready(); v != "2.0" {
			t.Fatalf("version %s", v)
		}
		vm.Run("/bin/busybox", "sh", "/work")
		vm.Cut()
		f, err := os.Open(m.Log)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		log, err := writelog.Read(f, info.Size(), trace.Base.Size())
		if err != nil {
			t.Fatal(err)
		}
		trace.Ops = log.Ops
	})
	n := 2
	if os.Getenv("LIFEBOAT_TREES") == "all" {
		n = 50
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		// dm-integrity relies on sectors being written whole. Where one in its journal is not, the kernel refuses the device, and
		// the other slot boots.
		torn := i%5 == 4
		o := crash.Options{}
		if !torn {
			o.Atomic = crash.Range{Len: trace.Base.Size()}
		}
		state := trace.Pick(rng, o)
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			disk := filepath.Join(t.TempDir(), "disk.img")
			if err := state.Image.SaveFile(disk); err != nil {
				t.Fatal(err)
			}
			vm := scene.Start(t, d.Machine(disk))
			v := vm.Ready()
			if v == "1.0" && torn && strings.Contains(vm.Console(), "fallback from B to A reason=verity-error\n") {
				t.Logf("%s: the other slot", state)
				return
			}
			if v != "2.0" {
				t.Fatalf("%s: version %s", state, v)
			}
			exits(t, vm, 0, "Pass 5", "/bin/busybox", "sh", "/look")
			if out := vm.Run("/usr/bin/bootcount", "status"); strings.Contains(out, "Damage") {
				t.Errorf("%s: %s", state, out)
			}
		})
	}
	t.Logf("figure: a tree on dm-integrity: %d writes, %d flushes recorded, %d crash images booted, read, checked by e2fsck", trace.Writes(), trace.Flushes(), n)
}

// withLibraries is a program of this machine with its libraries.
func withLibraries(t *testing.T, program string) map[string]string {
	t.Helper()
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Skipf("%s is not installed: make setup (%v)", program, err)
	}
	files := map[string]string{program: program}
	for _, lib := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
		files[lib[1]] = lib[1]
	}
	return files
}
