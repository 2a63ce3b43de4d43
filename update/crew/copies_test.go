package crew

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"lifeboat/boot/halves"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/update"
	"lifeboat/verify"
)

// loop is a disk of this machine with a table, if it may have one.
type loop struct {
	t    *testing.T
	path string
	conf string // RAUC's system.conf
}

const (
	regionStart = 1 << 20
	halfSize    = 2 << 20
)

var tables = map[string]string{
	halves.MBRSwitch:   "label: dos\nlabel-id: 0x11febea7\nstart=2048, size=4096, type=c, bootable\nstart=10240, size=2048, type=83\n",
	halves.GPTSwitch:   "label: gpt\nstart=2048, size=4096, type=U, name=boot\nstart=10240, size=2048, type=L, name=state\n",
	halves.RawFallback: "label: dos\nstart=10240, size=2048, type=83\n",
}

func newLoop(t *testing.T, kind string) *loop {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a loop device needs root")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 16<<20); err != nil {
		t.Fatal(err)
	}
	l := &loop{t: t, conf: filepath.Join(dir, "system.conf")}
	cmd := exec.Command("sfdisk", "-q", file)
	cmd.Stdin = strings.NewReader(tables[kind])
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--partscan", file).Output()
	if err != nil {
		t.Skipf("no loop device: %v", err)
	}
	l.path = strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", l.path).Run() })
	text := fmt.Sprintf("[system]\ncompatible=x\nbootloader=noop\n\n[slot.rootfs.0]\ndevice=/dev/none0\nbootname=A\n\n[slot.rootfs.1]\ndevice=/dev/none1\nbootname=B\n\n"+
		"[slot.bootloader.0]\ndevice=%s\ntype=%s\nregion-start=1M\nregion-size=4096K\n", l.path, kind)
	if err := os.WriteFile(l.conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// copies are those of RAUC's configuration, read by ours.
func (l *loop) copies() *Copies {
	l.t.Helper()
	b, err := os.ReadFile(l.conf)
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := config.Parse(bytes.Replace(b, []byte("=noop"), []byte("=raw"), 1))
	if err != nil {
		l.t.Fatal(err)
	}
	return &Copies{Config: c}
}

// knows makes the kernel know the first partition, as one that reads the table does.
func (l *loop) knows(half int) {
	l.t.Helper()
	_ = exec.Command("delpart", l.path, "1").Run()
	if out, err := exec.Command("addpart", l.path, "1", fmt.Sprint(2048+4096*half), "4096").CombinedOutput(); err != nil {
		l.t.Fatalf("addpart: %v\n%s", err, out)
	}
}

func (l *loop) half(n, size int) []byte {
	l.t.Helper()
	f, err := os.Open(l.path)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, regionStart+int64(n)*halfSize); err != nil {
		l.t.Fatal(err)
	}
	return b
}

// rauc writes the slot with RAUC's own handler.
func (l *loop) rauc(image []byte) {
	l.t.Helper()
	file := filepath.Join(l.t.TempDir(), "image.img")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		l.t.Fatal(err)
	}
	if out, err := exec.Command("rauc", "-c", l.conf, "write-slot", "bootloader.0", file).CombinedOutput(); err != nil {
		l.t.Fatalf("rauc write-slot: %v\n%s", err, out)
	}
}

// ours writes it as update.Device does, without workers, and switches.
func (l *loop) ours(c *Copies, image []byte) (st update.Stand) {
	l.t.Helper()
	st, err := c.Open("bootloader.0")
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close("bootloader.0")
	for n := range 2 {
		if n != st.First && !st.Both {
			continue
		}
		path, _ := c.Path(update.CopyName("bootloader.0", n))
		f, err := os.OpenFile(path, os.O_RDWR|direct, 0)
		if err != nil {
			l.t.Fatal(err)
		}
		dev, err := disk.NewFile(f)
		if err == nil && dev.Size() != halfSize {
			l.t.Errorf("%s has %d bytes: more than a copy can be reached", path, dev.Size())
		}
		if err == nil {
			err = halves.Write(dev, st.Sector, int64(len(image)), func(w io.Writer) error { _, err := w.Write(image); return err }, nil)
		}
		if err != nil {
			l.t.Fatal(err)
		}
		f.Close()
	}
	if !st.Both {
		if err := c.Switch("bootloader.0", st.First); err != nil {
			l.t.Fatal(err)
		}
	}
	return st
}

const direct = 0o40000 // O_DIRECT

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// RAUC and ours take turns on one disk, with one configuration: each finds what the other one left, writes the copy that is not
// started, and switches; sfdisk and sgdisk see a right table all the time.
func TestSwitchWithRAUC(t *testing.T) {
	for _, kind := range []string{halves.MBRSwitch, halves.GPTSwitch} {
		t.Run(kind, func(t *testing.T) {
			l := newLoop(t, kind)
			c := l.copies()
			half := 0
			l.knows(half)
			for turn, who := range []string{"ours", "rauc", "rauc", "ours", "ours", "rauc"} {
				image, other := random(100_000+turn), l.half(half, halfSize)
				if who == "rauc" {
					l.rauc(image)
				} else if st := l.ours(c, image); st.First != 1-half {
					t.Fatalf("turn %d: copy %d is written", turn, st.First)
				}
				half = 1 - half
				if n, err := c.Active("bootloader.0"); err != nil || n != half {
					t.Fatalf("turn %d, %s: copy %d is started (%v), want %d", turn, who, n, err, half)
				}
				if !bytes.Equal(l.half(half, len(image)), image) || !bytes.Equal(l.half(1-half, halfSize), other) {
					t.Fatalf("turn %d, %s: the copies are not what they should be", turn, who)
				}
				out, err := exec.Command("sfdisk", "-d", l.path).CombinedOutput()
				if want := fmt.Sprintf("start=%12d, size=%12d", 2048+4096*half, 4096); err != nil || !strings.Contains(string(out), want) {
					t.Fatalf("turn %d, %s: sfdisk sees (%v)\n%s", turn, who, err, out)
				}
				if kind == halves.GPTSwitch {
					if out, err := exec.Command("sgdisk", "-v", l.path).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
						t.Fatalf("turn %d, %s: sgdisk: %v\n%s", turn, who, err, out)
					}
				}
				if who == "rauc" {
					// The kernel still has the old idea, so that the copy to be written is in use: a restart helps.
					if _, err := c.Open("bootloader.0"); verify.CodeOf(err) != verify.IO || !strings.Contains(fmt.Sprint(err), "until the next start") {
						t.Fatalf("turn %d: %v", turn, err)
					}
					c.Close("bootloader.0")
					l.knows(half)
				}
			}
		})
	}
}

func TestFallbackWithRAUC(t *testing.T) {
	l := newLoop(t, halves.RawFallback)
	c := l.copies()
	for turn, who := range []string{"rauc", "ours", "rauc", "ours"} {
		image := random(100_000 + turn)
		if who == "rauc" {
			l.rauc(image)
		} else if st := l.ours(c, image); !st.Both || st.First != 1 {
			t.Fatalf("turn %d: %+v", turn, st)
		}
		for n := range 2 {
			if !bytes.Equal(l.half(n, len(image)), image) {
				t.Fatalf("turn %d, %s: copy %d is another one", turn, who, n)
			}
		}
		if n, err := c.Active("bootloader.0"); n != -1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	// RAUC was cut before it wrote the header of the first copy: ours begins there.
	f, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 512), regionStart); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if st, err := c.Open("bootloader.0"); err != nil || st.First != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	c.Close("bootloader.0")
}

// Copies that are open are the only partitions that are added, and are gone when they are closed; what is wrong is refused with
// its code.
func TestCopies(t *testing.T) {
	l := newLoop(t, halves.MBRSwitch)
	l.knows(0)
	c := l.copies()
	parts := func() (all []string) {
		names, _ := filepath.Glob(l.path + "p*")
		for _, n := range names {
			all = append(all, strings.TrimPrefix(n, l.path))
		}
		return all
	}
	if _, err := c.Open("bootloader.0"); err != nil {
		t.Fatal(err)
	}
	if now := parts(); !slices.Equal(now, []string{"p1", "p255"}) {
		t.Errorf("partitions %q", now)
	}
	if path, ok := c.Path("bootloader.0/0"); !ok || path != l.path+"p1" {
		t.Errorf("copy 0 is %q", path)
	}
	if path, ok := c.Path("bootloader.0/1"); !ok || path != l.path+"p255" {
		t.Errorf("copy 1 is %q", path)
	}
	c.Close("bootloader.0")
	if now := parts(); !slices.Equal(now, []string{"p1"}) {
		t.Errorf("partitions %q", now)
	}
	if _, ok := c.Path("bootloader.0/1"); ok {
		t.Error("it is open still")
	}

	c.Vars = disk.Block{Disk: filepath.Base(l.path), Part: 1}
	if _, err := c.Open("bootloader.0"); verify.CodeOf(err) != verify.Policy || !strings.Contains(fmt.Sprint(err), "variables lie") {
		t.Errorf("variables in the partition: %v", err)
	}
	c.Vars = disk.Block{}
	i := slices.IndexFunc(c.Config.Slots, func(s config.Slot) bool { return s.Name == "bootloader.0" })
	for device, want := range map[string]verify.Code{"/dev/nothing": verify.IO, l.path + "p1": verify.Policy} {
		c.Config.Slots[i].Device = device
		if _, err := c.Open("bootloader.0"); verify.CodeOf(err) != want {
			t.Errorf("%s: %v", device, err)
		}
	}
	c.Config.Slots[i].Device, c.Config.Slots[i].Type = l.path, halves.EMMC
	if _, err := c.Open("bootloader.0"); verify.CodeOf(err) != verify.IO || !strings.Contains(fmt.Sprint(err), "EXT_CSD") {
		t.Errorf("a disk that is no eMMC: %v", err)
	}
}

// The command of an eMMC is laid out as in linux/mmc/ioctl.h.
func TestCommand(t *testing.T) {
	var m mmcCommand
	if size := unsafe.Sizeof(m); size != 72 || mmcRequest != 3<<30|size<<16|179<<8 {
		t.Errorf("%d bytes, request %#x", size, mmcRequest)
	}
	for name, at := range map[string][2]uintptr{
		"opcode": {unsafe.Offsetof(m.opcode), 8}, "arg": {unsafe.Offsetof(m.arg), 12}, "response": {unsafe.Offsetof(m.response), 16},
		"flags": {unsafe.Offsetof(m.flags), 32}, "size": {unsafe.Offsetof(m.size), 36}, "blocks": {unsafe.Offsetof(m.blocks), 40}, "data": {unsafe.Offsetof(m.data), 64},
	} {
		if at[0] != at[1] {
			t.Errorf("%s is at %d, in the kernel's at %d", name, at[0], at[1])
		}
	}
}
