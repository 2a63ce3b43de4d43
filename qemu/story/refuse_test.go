package story

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/badinputs"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// withOld is a disk with 1.0 in slot A and 0.9 in slot B, so that whatever is done to slot B is seen.
func (d *staged) withOld(t *testing.T) string {
	t.Helper()
	old := d.bundle(t, "old.raucb", "0.9", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	out, err := d.Scene.Disk(fileName(t)+"-old.img", map[string]string{"A": d.Path("1.0.raucb"), "B": old}, map[string]int64{"rootfs": slotSize})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRefused gives the device one bundle of each row of the list of bad inputs, 32 at a boot on four sticks. Each is
// refused with its code, A boots, and nothing on either slot, of the floors or of what is known of slot B has changed.
func TestRefused(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	set, err := badinputs.Load(d.Keys)
	if err != nil {
		t.Fatal(err)
	}
	k := badinputs.New(t, set, scene.Compatible)
	var some []badinputs.Input
	rows := map[string]bool{"0": true}
	for _, in := range k.Inputs() {
		if in.Device != 0 && !in.Plain && !in.Wipes && in.Keyring == nil && in.Floor == 0 && !rows[in.Row] {
			rows[in.Row] = true
			some = append(some, in)
		}
	}
	const sticks, bundles = 4, 8 // at most
	count, refused, peak := 0, 0, int64(0)
	for boot := range slices.Chunk(some, sticks*bundles) {
		count++
		t.Run(fmt.Sprintf("%s to %s", boot[0].Row, boot[len(boot)-1].Row), func(t *testing.T) {
			want := map[string]int{}
			var plugged []string
			for inputs := range slices.Chunk(boot, bundles) {
				var files []string
				for _, in := range inputs {
					file := filepath.Join(t.TempDir(), in.File())
					if err := os.WriteFile(file, in.Make(), 0o600); err != nil {
						t.Fatal(err)
					}
					files = append(files, file)
					want[in.File()] = int(in.Device)
				}
				plugged = append(plugged, d.stick(t, fmt.Sprint(len(plugged)), files...))
			}
			image := d.withOld(t)
			before := partitions(t, image)
			vm := scene.Start(t, d.Machine(image, plugged...))
			vm.Expect(scene.Patience, `lifeboat: boot 1 slot rootfs\.0 \(A\) version 1\.0 trial tries=2\n`)
			if v := vm.Ready(); v != "1.0" {
				t.Fatalf("version %s", v)
			}
			r := vm.Status()
			got := map[string]int{}
			for _, f := range r.Refused {
				got[f.File] = f.Code
				if line := fmt.Sprintf("lifeboat: refused code=%02d %s: ", f.Code, f.File); !strings.Contains(vm.Console(), line) {
					t.Errorf("the console does not say %q", line)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
			refused += len(got)
			for _, w := range r.Workers {
				peak = max(peak, w.MaxRSSKiB)
			}
			if b := slot(r, "B"); b.Version != "0.9" || b.Reason != "" || r.State.Floors.Version != "0.9" || r.State.Floors.Epoch != 0 {
				t.Errorf("state: B %+v, floors %+v", b, r.State.Floors)
			}
			vm.Cut()
			for name, b := range partitions(t, image) {
				if !bytes.Equal(b, before[name]) {
					t.Errorf("%s was touched", name)
				}
			}
		})
	}
	t.Logf("figure: bad inputs: %d bundles of %d rows refused in the virtual device, in %d boots; the largest worker took %.1f MiB",
		refused, len(rows)-1, count, float64(peak)/1024)
	if peak > 24<<10 {
		t.Errorf("a worker took %d KiB, more than 24 MiB", peak)
	}
}

// partitions are the bytes of both slots.
func partitions(t *testing.T, image string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, name := range []string{"rootfs.0", "rootfs.1"} {
		b, err := scene.Partition(image, name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = b
	}
	return all
}

// TestBadSticks: a stick whose root folder never ends (row 93), one with another file system under the label of ours (110)
// and one with an older bundle keep nothing from being installed from the fourth (109).
func TestBadSticks(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	older := d.bundle(t, "older.raucb", "1.5", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	newer := d.bundle(t, "newer.raucb", "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	loop := d.stick(t, "loop", older)
	change(t, loop, 1<<20, func(fs []byte) {
		le := binary.LittleEndian
		table := int(le.Uint16(fs[14:])) * 512
		le.PutUint32(fs[table+4*2:], 2)
		root := fs[table+2*512*int(le.Uint32(fs[36:])):][:512]
		for ; len(root) > 0; root = root[32:] {
			copy(root, "FILE    TXT\x20")
		}
	})
	other := d.Path(fileName(t) + "-ext4.stick")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-L", "LIFEBOAT", "-d", filepath.Dir(newer), other, "256M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	vm := scene.Start(t, d.Machine(d.disk(t, "disk"), loop, other, d.stick(t, "older", older), d.stick(t, "newer", newer)))
	vm.Expect(scene.Patience, `lifeboat: refused code=\d+ /: `)
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	if v := vm.Ready(); v != "2.0" {
		t.Fatalf("version %s", v)
	}
}

// change edits the first 32 MiB of an image from an offset on.
func change(t *testing.T, file string, off int64, change func(b []byte)) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 32<<20)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	change(b)
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// A device that wants signed root hashes refuses a stock bundle and takes ours.
func TestSignedVerityRequired(t *testing.T) {
	t.Parallel()
	d := special(t, scene.Options{Config: map[string]string{"system require-signed-verity": "true"}})
	stock := d.bundle(t, "stock.raucb", "3.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{Rauc: true})
	ours := d.bundle(t, "ours.raucb", "2.0", testsystem.Good, testsystem.Options{}, scene.BundleOptions{})
	vm := scene.Start(t, d.Machine(d.disk(t, "strict"), d.stick(t, "both", stock, ours)))
	vm.Expect(scene.Patience, `lifeboat: refused code=31 stock\.raucb: `)
	vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
	if v := vm.Ready(); v != "2.0" {
		t.Fatalf("version %s", v)
	}
	if r := vm.Status(); r.Booted.Authenticity != "every boot" {
		t.Errorf("%+v", r.Booted)
	}
}
