package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/verify"
)

const templateSize = 32 << 20

var features = []string{"-q", "-F", "-b", "4096", "-I", "256", "-J", "size=4", "-m", "0", "-N", "8192", "-O", "metadata_csum_seed,meta_bg,^resize_inode"}

func template(t testing.TB) []byte { return templateOf(t, templateSize) }

func templateOf(t testing.TB, size int64, more ...string) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "template")
	if err := errors.Join(os.WriteFile(name, nil, 0o644), os.Truncate(name, size)); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "mkfs.ext4", slices.Concat(features, more, []string{name})...)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := Template(f, size)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var uuid = [16]byte{1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}

// On a device full of noise the file system is what mkfs.ext4 makes, with another UUID and label; e2fsck finds nothing, also
// after it has been made larger, and Linux mounts it.
func TestFormat(t *testing.T) {
	b := template(t)
	t.Logf("figure: a template of ext4 has %d bytes", len(b))
	name := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(name, bytes.Repeat([]byte("noise"), 64<<20/5), 0o644); err != nil {
		t.Fatal(err)
	}
	dev, err := disk.Open(name, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Format(dev, b, uuid, "system"), dev.Close()); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if out, err := exec.Command("e2fsck", "-fn", name).CombinedOutput(); err != nil || strings.Contains(string(out), "Fix") {
			t.Fatalf("e2fsck: %v\n%s", err, out)
		}
	}
	check()
	out := string(run(t, nil, "dumpe2fs", "-h", name))
	for _, want := range []string{"UUID: 01020304-0506-4708-890a-0b0c0d0e0f10", "name: system", "Inodes per group: 8192"} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("dumpe2fs does not say %q:\n%s", want, out)
		}
	}
	run(t, nil, "resize2fs", name)
	check()
	needRoot(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", name, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop device here: %v %s", err, out)
	}
	_, err = Extract(dir, bytes.NewReader(archive(t, file("a", "content"))), all)
	if e := unix.Unmount(dir, 0); err != nil || e != nil {
		t.Fatal(err, e)
	}
	check()
}

// After a cut anywhere there is no file system or the whole one.
func TestFormatCut(t *testing.T) {
	const size = 1 << 20
	b := templateOf(t, size, "-O", "^has_journal", "-N", "64")
	start := crash.NewImage(size)
	super := b[templateHead+4 : templateHead+4+ext4Block]
	start.WriteAt(super, 0) // of one that was there before
	want := disk.NewMemory(size)
	if err := Format(want, b, uuid, "x"); err != nil {
		t.Fatal(err)
	}
	whole := content(t, want)
	var with, states atomic.Int32
	res := crash.Crash(t, crash.Test{
		Name: "format", Start: start, Options: crash.Options{Random: 5},
		Update: func(r *crash.Recorder) error {
			if err := Format(r, b, uuid, "x"); err != nil {
				return err
			}
			r.Mark(true)
			return nil
		},
		Check: func(c crash.State) error {
			got := make([]byte, size)
			if _, err := c.Image.ReadAt(got, 0); err != nil {
				return err
			}
			s := got[superAt:]
			mounts := s[superMagic] == 0x53 && s[superMagic+1] == 0xef && bytes.Equal(s[superUUID:superUUID+16], uuid[:]) &&
				binary.LittleEndian.Uint32(s[superChecksum:]) == superSum(s)
			if states.Add(1); mounts {
				with.Add(1)
			}
			if mounts && !bytes.Equal(got, whole) {
				return errors.New("a file system of which a part is missing")
			}
			if c.Mark != nil && !mounts {
				return errors.New("it is not there")
			}
			return nil
		},
	})
	if with.Load() == 0 || with.Load() == states.Load() || res.Flushes != 3 {
		t.Errorf("%d states of %d have one, %d flushes", with.Load(), states.Load(), res.Flushes)
	}
}

func content(t *testing.T, d disk.Device) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBadTemplates(t *testing.T) {
	good := template(t)
	for name, b := range map[string][]byte{
		"nothing": nil, "short": good[:20], "cut": good[:len(good)-1], "longer": append(bytes.Clone(good), 0),
		"damaged": flip(good, len(good)-9), "another magic": flip(good, 0), "another version": flip(good, 8), "more blocks": flip(good, 17), "a small file system": flip(flip(good, 12), 13),
	} {
		var r *verify.Refusal
		if err := Format(disk.NewMemory(templateSize), b, uuid, ""); name != "a small file system" && (!errors.As(err, &r) || r.Code != verify.Policy) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Format(disk.NewMemory(templateSize-4096), good, uuid, ""); err == nil {
		t.Error("a slot that is too small")
	}
	if _, err := Template(disk.NewMemory(1<<20), 1<<20); err == nil {
		t.Error("a template of zeros")
	}
	if err := Format(disk.NewMemory(templateSize), good, uuid, fmt.Sprintf("%17d", 1)); err == nil {
		t.Error("a long label")
	}
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0x40
	return b
}

// written notes which blocks were written.
type written struct {
	disk.Device
	blocks map[int64]bool
}

func (w written) WriteAt(p []byte, at int64) (int, error) {
	for n := at / ext4Block; n*ext4Block < at+int64(len(p)); n++ {
		w.blocks[n] = true
	}
	return w.Device.WriteAt(p, at)
}

// What Linux reads when it makes the file system larger was written, where groups may have their bitmaps and at the end, and
// little else: what is on dm-integrity and was not written cannot be read.
func TestFormatForGrowth(t *testing.T) {
	name := filepath.Join(t.TempDir(), "fs")
	const blocks = 5*ext4Group + 10
	if err := errors.Join(os.WriteFile(name, nil, 0o644), os.Truncate(name, blocks*ext4Block)); err != nil {
		t.Fatal(err)
	}
	dev, err := disk.Open(name, true)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	w := written{dev, map[int64]bool{}}
	if err := Format(w, template(t), uuid, ""); err != nil {
		t.Fatal(err)
	}
	for n := range int64(blocks) {
		want := n < templateSize/ext4Block || n%ext4Group < groupTables || n >= blocks-16
		if w.blocks[n] != want {
			t.Fatalf("block %d: written %v", n, w.blocks[n])
		}
	}
	e2fsck := exec.Command("e2fsck", "-fn", name)
	if out, err := e2fsck.CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}
