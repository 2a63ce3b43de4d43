package story

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

// Threat E2: a stick that shows the scanner one content and later readers another. Whatever changes, and whenever: the slot
// gets the signed image bit by bit, or the bundle is refused and nothing of it is booted.
func TestStickChanges(t *testing.T) {
	t.Parallel()
	d := special(t, patient)
	filler := d.Path("filler") // so that an install takes a while
	noise := make([]byte, 6<<20)
	rand.Read(noise)
	if err := os.WriteFile(filler, noise, 0o644); err != nil {
		t.Fatal(err)
	}
	o := testsystem.Options{Files: map[string]string{"etc/filler": filler}}
	bundle := d.bundle(t, "update.raucb", "2.0", testsystem.Good, o, scene.BundleOptions{})
	raw, good := read(t, bundle), read(t, d.stick(t, "good", bundle))
	image := read(t, d.Path(fileName(t)+"/2.0.img"))
	other := read(t, d.stick(t, "other", d.bundle(t, "update.raucb", "3.0", testsystem.Good, o, scene.BundleOptions{})))
	start := bytes.Index(good, raw[:4096]) // a stick is filled from its start, so the file is in one piece
	if start < 0 || !bytes.Equal(good[start:start+len(raw)], raw) {
		t.Fatal("the bundle does not lie in one piece on the stick")
	}
	type change struct {
		what string
		at   int    // on the stick
		put  []byte // what lies there from now on
	}
	evil := bytes.Repeat([]byte("EVIL"), 1024)
	payload := len(raw) - cmsSize(raw)
	part := 1 << 20 // where image.Stick puts the file system
	changes := []change{
		{"boot sector", part, evil},
		{"FAT and folder", part + 512, make([]byte, start-part-512)},
		{"begin of the payload", start, evil},
		{"middle of the payload", start + payload/2&^4095, evil},
		{"end of the payload", start + payload&^4095 - 3*4096, evil},
		{"hash tree", start + payload&^4095 - 4096, evil},
		{"signature", start + len(raw) - 1024, evil[:512]},
		{"another signed bundle", 0, other},
	}
	type moment struct {
		name, line string // "": to and fro all the time
		change
	}
	var moments []moment
	for _, c := range changes {
		moments = append(moments, moment{"scanned", `lifeboat: found update\.raucb version \S+ on \S+\n`, c})
	}
	for _, c := range []change{changes[3], changes[4], changes[7]} { // what is read late
		moments = append(
			moments,
			moment{"checked", `lifeboat: installing 2\.0 to rootfs\.1 \(B\)\n`, c},
			moment{"being installed", `lifeboat: writing [1-9]\d? % of \d+ MiB`, c},
		)
	}
	moments = append(moments, moment{change: changes[3]}, moment{change: changes[6]})
	disk := d.disk(t, "changes")
	m := d.Machine(disk)
	m.Append += " lifeboat.rescue"
	vm := scene.Start(t, m)
	vm.Expect(scene.Patience, `Sticks: none seen`)
	installed, refused := 0, 0
	for i, c := range moments {
		name := fmt.Sprintf("s%d", i)
		file := d.Path(name + ".stick")
		if err := os.WriteFile(file, good, 0o644); err != nil {
			t.Fatal(err)
		}
		stop := func() {}
		what := ""
		if c.line == "" {
			what = c.what + ", all the time"
			stop = flicker(t, file, c.put, good[c.at:c.at+len(c.put)], c.at)
			vm.PlugStick(qemu.Stick{Name: name, File: file})
		} else {
			what = c.what + ", when it was " + c.name
			vm.PlugStick(qemu.Stick{Name: name, File: file})
			vm.Expect(scene.Patience, c.line)
			write(t, file, c.put, c.at)
		}
		got := vm.Expect(scene.Patience, `lifeboat: (refused code=\d+ [^\n]*|installed \S+ [^\n]*)\n`)
		stop()
		t.Logf("%s: %s", what, got[1])
		if got[1][:7] == "refused" {
			refused++
			vm.PullStick(name)
			vm.Expect(scene.Patience, `Sticks: none seen`)
			os.Remove(file)
			continue
		}
		installed++
		version := vm.Ready()
		vm.PullStick(name)
		vm.Cut()
		slot, err := scene.Partition(disk, "rootfs.1")
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case version == "3.0": // a stick that holds another signed bundle by the time it is scanned again
		case version != "2.0" || !bytes.HasPrefix(slot, image):
			t.Fatalf("%s: version %s came up, and what is in the slot is the signed image: %v", what, version, bytes.HasPrefix(slot, image))
		}
		if _, err := d.Copy(fileName(t)+"-changes.img", d.Disk); err != nil { // as it was
			t.Fatal(err)
		}
		vm.PowerOn()
		vm.Expect(scene.Patience, `Sticks: none seen`)
	}
	t.Logf("figure: a stick that changes: %d times refused, %d times installed bit by bit", refused, installed)
	if refused < len(changes) {
		t.Errorf("only %d of the changes were noticed", refused)
	}
	// After all that an honest stick updates the device.
	file := d.Path("honest.stick")
	if err := os.WriteFile(file, good, 0o644); err != nil {
		t.Fatal(err)
	}
	vm.PlugStick(qemu.Stick{Name: "honest", File: file})
	if v := vm.Ready(); v != "2.0" {
		t.Errorf("version %s", v)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// write changes a file in place.
func write(t *testing.T, file string, b []byte, at int) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// flicker writes one thing and the other in turn until it is stopped.
func flicker(t *testing.T, file string, a, b []byte, at int) (stop func()) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer f.Close()
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			case <-time.After(3 * time.Millisecond):
				f.WriteAt([][]byte{a, b}[i%2], int64(at))
			}
		}
	}()
	return func() { close(end); <-ended }
}

// cmsSize is the length of the CMS at the end of a bundle.
func cmsSize(b []byte) int { return int(binary.BigEndian.Uint64(b[len(b)-8:])) }
