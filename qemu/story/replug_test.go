package story

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// The stick is pulled out at random moments of an update, LIFEBOAT_PULLS of them (3), and plugged in again, or another one
// with the same bundle: the update goes on and is right. At last it is pulled out and a stick with another bundle comes: the
// system that was there runs, and says why.
func TestReplug(t *testing.T) {
	t.Parallel()
	pulls := 3
	if n, err := strconv.Atoi(os.Getenv("LIFEBOAT_PULLS")); err == nil {
		pulls = n
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	d := special(t, scene.Options{Config: map[string]string{"usb replug": "15s"}})
	noise := make([]byte, 12<<20)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte("noise"))).Read(noise)
	file := d.Path("noise")
	if err := os.WriteFile(file, noise, 0o644); err != nil {
		t.Fatal(err)
	}
	files := testsystem.Options{Files: map[string]string{"/usr/noise": file}}
	two := d.bundle(t, "two.raucb", "2.0", testsystem.Good, files, scene.BundleOptions{})
	three := d.bundle(t, "three.raucb", "3.0", testsystem.Good, files, scene.BundleOptions{})
	same := []string{d.stick(t, "first", two), d.stick(t, "second", two)}
	last := d.stick(t, "three", three)

	const most = 8 // in one boot; an install waits ten times at most
	for left := pulls; left > 0; left -= most {
		t.Run(fmt.Sprintf("%d to go", left), func(t *testing.T) {
			vm := scene.Start(t, d.Machine(d.disk(t, "disk")))
			if v := vm.Ready(); v != "1.0" {
				t.Fatalf("version %s", v)
			}
			name := "stick0"
			vm.PlugStick(qemu.Stick{Name: name, File: same[0]})
			vm.Reset()
			said := vm.Expect(scene.Patience, `lifeboat: (checking|writing) \d+ %`)
			for n := range min(left, most) {
				time.Sleep(time.Duration(random.Int64N(int64(1200 * time.Millisecond))))
				vm.PullStick(name)
				step := strings.Count(vm.Console(), "lifeboat: installing 2.0")
				got := vm.Expect(scene.Patience, `lifeboat: (\S+ was pulled out: waiting 15s for it|installed 2\.0)`)
				if got[1] == "installed 2.0" {
					t.Logf("pull %d came too late: the stick was not needed any more", n)
					break
				}
				t.Logf("pull %d, after %s, installing %d", n, said[1], step)
				name = fmt.Sprintf("again%d", n)
				vm.PlugStick(qemu.Stick{Name: name, File: same[n%2]})
				vm.Expect(scene.Patience, `lifeboat: sd\S+ has the bundle: going on\n`)
				said = vm.Expect(scene.Patience, `lifeboat: (checking|writing|reading back) \d+ %`)
			}
			if v := vm.Ready(); v != "2.0" {
				t.Fatalf("version %s", v)
			}
			if strings.Contains(vm.Console(), "lifeboat: refused") {
				t.Error("something was refused")
			}
			if left > most {
				return
			}
			_ = vm.VM.PullStick(name)
			vm.PlugStick(qemu.Stick{Name: "three", File: last})
			vm.Reset()
			vm.Expect(scene.Patience, `lifeboat: writing [1-9]\d* %`)
			vm.PullStick("three")
			vm.Expect(scene.Patience, `lifeboat: \S+ was pulled out: waiting 15s for it\n`)
			vm.PlugStick(qemu.Stick{Name: "other", File: same[0]})
			vm.Expect(scene.Patience, `lifeboat: the bundle is not on sd\S+\n`)
			vm.Expect(scene.Patience, `lifeboat: the stick did not come back\n`)
			vm.Expect(scene.Patience, `lifeboat: refused code=40 three\.raucb: its stick was pulled out and did not come back\n`)
			boots(t, vm, 3, "B", "2.0", "confirmed")
		})
	}
}
