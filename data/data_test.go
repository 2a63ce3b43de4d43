package data

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/disk/crash"
)

const (
	stateSize = 8 << 20
	partSize  = 1 << 20
)

// pair cuts one device into a state partition and a data partition.
func pair(d disk.Device) (part, state disk.Device) {
	return disk.Section(d, stateSize, partSize), disk.Section(d, 0, stateSize)
}

// content is what making writes: blocks that depend on the label, in two steps with a flush between them.
func content(l Label) []byte { return bytes.Repeat(l.ID[:], 3*4096/16) }

func making(part disk.Device) func(Label) error {
	return func(l Label) error {
		for at := range 3 {
			if _, err := part.WriteAt(content(l)[at*4096:(at+1)*4096], int64(at)*4096*10); err != nil {
				return err
			}
			if err := part.Flush(); err != nil {
				return err
			}
		}
		return nil
	}
}

func whole(part disk.Device, l Label) bool {
	for at := range 3 {
		b := make([]byte, 4096)
		if _, err := part.ReadAt(b, int64(at)*4096*10); err != nil || !bytes.Equal(b, content(l)[at*4096:(at+1)*4096]) {
			return false
		}
	}
	return true
}

// After a cut anywhere the next boot opens the whole partition or makes it; once whole, it is never made again.
func TestCut(t *testing.T) {
	var again, opened atomic.Int32
	res := crash.Crash(t, crash.Test{
		Name: "make", Start: crash.NewImage(stateSize + partSize), Options: crash.Options{Random: 20},
		Update: func(r *crash.Recorder) error {
			part, state := pair(r)
			_, made, err := Prepare(part, state, "sha256", making(part))
			if err == nil && !made {
				err = errors.New("it was not made")
			}
			r.Mark(true)
			return err
		},
		Check: func(c crash.State) error {
			part, state := pair(c.Image)
			var had Label // a system may have used it already
			for _, off := range Copies {
				if l, _ := at(state, off); l.Whole {
					had = l
				}
			}
			l, made, err := Prepare(part, state, "sha256", making(part))
			switch {
			case err != nil:
				return err
			case !whole(part, l):
				return errors.New("a part of it is missing")
			case made && (had.Whole || c.Mark != nil):
				return errors.New("what was whole was made again")
			case made:
				again.Add(1)
			default:
				opened.Add(1)
			}
			if next, made, err := Prepare(part, state, "sha256", making(part)); made || err != nil || next != l {
				return errors.New("the boot after that finds something else")
			}
			return nil
		},
	})
	if again.Load() == 0 || opened.Load() == 0 {
		t.Errorf("made again %d, opened %d", again.Load(), opened.Load())
	}
	t.Logf("figure: %s", res)
}

// Whatever is lost or damaged: data that were whole once are never made again.
func TestNeverAgain(t *testing.T) {
	d := disk.NewMemory(stateSize + partSize)
	part, state := pair(d)
	first, made, err := Prepare(part, state, "none", making(part))
	if !made || err != nil {
		t.Fatal(made, err)
	}
	wipe := func(d disk.Device, at, n int64) {
		if _, err := d.WriteAt(make([]byte, n), at); err != nil {
			t.Fatal(err)
		}
	}
	noise := bytes.Repeat([]byte{0x5a}, 4096)
	for name, change := range map[string]func(part, state disk.Device){
		"nothing":            func(_, _ disk.Device) {},
		"an erased label":    func(part, _ disk.Device) { wipe(part, Room(partSize), 4096) },
		"a damaged label":    func(part, _ disk.Device) { part.WriteAt(noise, Room(partSize)) },
		"all of it erased":   func(part, _ disk.Device) { wipe(part, 0, partSize) },
		"a new state":        func(_, state disk.Device) { wipe(state, 0, stateSize) },
		"a copy of the note": func(_, state disk.Device) { wipe(state, Copies[0], 4096) },
		"the other copy":     func(_, state disk.Device) { state.WriteAt(noise, Copies[1]) },
	} {
		c := disk.NewMemory(stateSize + partSize)
		b := make([]byte, c.Size())
		d.ReadAt(b, 0)
		c.WriteAt(b, 0)
		part, state := pair(c)
		change(part, state)
		l, made, err := Prepare(part, state, "none", func(Label) error { t.Errorf("%s: made again", name); return nil })
		if made || err != nil || l != first {
			t.Errorf("%s: %+v %v %v", name, l, made, err)
		}
		if own, _ := at(part, Room(partSize)); own != first {
			t.Errorf("%s: the label is not written again", name)
		}
	}
	never := func(Label) error { t.Error("made"); return nil }
	if _, _, err := Prepare(part, state, "crc32c", never); !errors.Is(err, ErrOther) {
		t.Errorf("another kind: %v", err)
	}
	other := disk.NewMemory(partSize)
	if _, _, err := Prepare(other, disk.NewMemory(stateSize), "none", making(other)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Prepare(other, state, "none", never); !errors.Is(err, ErrOther) {
		t.Errorf("another device's: %v", err)
	}
	for _, at := range []int64{1024, blankEnds - 1, partSize - blankEnds, partSize - 1} {
		foreign := disk.NewMemory(partSize)
		foreign.WriteAt([]byte{1}, at)
		if _, _, err := Prepare(foreign, disk.NewMemory(stateSize), "none", never); !errors.Is(err, ErrForeign) {
			t.Errorf("a byte at %d: %v", at, err)
		}
	}
	if _, _, err := Prepare(disk.NewMemory(partSize), nil, "none", never); err == nil {
		t.Error("made without a state partition")
	}
}

func FuzzLabel(f *testing.F) {
	f.Add(Label{Integrity: "none"}.encode(), false)
	f.Add(Label{Whole: true, Integrity: "hmac-sha256", ID: [16]byte{1, 2}}.encode(), true)
	f.Fuzz(func(t *testing.T, b []byte, sum bool) {
		if sum && len(b) == labelSize {
			s := checksum(b)
			b = bytes.Clone(b)
			b[12], b[13], b[14], b[15] = byte(s), byte(s>>8), byte(s>>16), byte(s>>24)
		}
		l, ok := decode(b)
		if ok && !bytes.Equal(l.encode(), b) {
			t.Errorf("%+v is written in another way", l)
		}
	})
}

// One layer for each system, whole or not there; others are out of sight at once.
func TestLayers(t *testing.T) {
	base := t.TempDir()
	home, like := filepath.Join(base, Folder, "overlay", "+etc", "rootfs.0"), filepath.Join(base, "etc")
	if err := os.Mkdir(like, 0o751); err != nil {
		t.Fatal(err)
	}
	names := func() (all []string) {
		files, err := os.ReadDir(home)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			all = append(all, f.Name())
		}
		return all
	}
	step := func(which string, clear bool, want ...string) {
		t.Helper()
		if err := prepare(home, which, clear, like); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, names()); d != "" {
			t.Error(d)
		}
	}
	step("keep", false, "keep")
	if info, err := os.Stat(filepath.Join(home, "keep", "upper")); err != nil || info.Mode().Perm() != 0o751 {
		t.Errorf("%v %v", info, err)
	}
	file := filepath.Join(home, "keep", "upper", "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	step("keep", false, "keep")
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	step("aa", true, "aa")
	for _, left := range []string{"new-bb/upper", "trash-cc/upper/x/y", "trash-aa/work", "dd/upper"} {
		if err := os.MkdirAll(filepath.Join(home, left), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(file, filepath.Join(home, "trash-cc", "link")); err != nil {
		t.Fatal(err)
	}
	step("bb", true, "bb")
	// Nothing is left to do it in: what is deleted stays under its other name.
	if err := os.MkdirAll(filepath.Join(home, "trash-ee", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	remove(home, "trash-ee", time.Now().Add(-time.Second))
	if d := cmp.Diff([]string{"bb", "trash-ee"}, names()); d != "" {
		t.Error(d)
	}
}

// The kernel lays a layer over a folder: what is written is there at the next boot, and shown where nothing can be written; it
// is not there for another system.
func TestOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	base, lower := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Skip("no mounts here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(lower, "old"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	o := config.Overlay{Path: "/etc"}
	boot := func(root byte, readOnly bool) {
		t.Helper()
		if err := Overlay(base, o, "rootfs.0", [32]byte{root}, true, readOnly, lower, lower); err != nil {
			t.Skipf("no overlay here: %v", err)
		}
	}
	end := func() {
		t.Helper()
		if err := unix.Unmount(lower, 0); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string { b, _ := os.ReadFile(filepath.Join(lower, name)); return string(b) }
	boot(1, false)
	if err := os.WriteFile(filepath.Join(lower, "new"), []byte("new"), 0o644); err != nil {
		t.Error(err)
	}
	end()
	if read("new") != "" {
		t.Error("it was written to the folder itself")
	}
	for _, readOnly := range []bool{false, true} {
		boot(1, readOnly)
		if read("new") != "new" || read("old") != "old" {
			t.Errorf("read-only %v: %q %q", readOnly, read("new"), read("old"))
		}
		if err := os.WriteFile(filepath.Join(lower, "more"), nil, 0o644); (err != nil) != readOnly {
			t.Errorf("read-only %v: %v", readOnly, err)
		}
		end()
	}
	boot(2, false)
	if read("new") != "" || read("old") != "old" {
		t.Errorf("another system sees %q", read("new"))
	}
	end()
}

// A file system whose journal cannot be read is mounted for reading where that is asked for, and not at all where it is not.
func TestSalvage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	image, dir := filepath.Join(t.TempDir(), "fs"), t.TempDir()
	top := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(top, "file"), []byte("content"), 0o644), os.WriteFile(image, nil, 0o600), os.Truncate(image, 32<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-d", top, image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	journal := bytes.Index(b, []byte{0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 4}) // its superblock
	if journal < 0 {
		t.Fatal("no journal")
	}
	copy(b[journal:], "damage")
	if err := os.WriteFile(image, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skipf("no loop device: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", loop).Run() })
	if readOnly, err := Mount(loop, dir, false); err == nil || readOnly {
		t.Fatalf("mounted: %v, %v", readOnly, err)
	}
	readOnly, err := Mount(loop, dir, true)
	if err == nil || !readOnly {
		t.Fatalf("not mounted for reading: %v, %v", readOnly, err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if got, err := os.ReadFile(filepath.Join(dir, "file")); string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("written to: %v", err)
	}
}
