package disk

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// devices are all the kinds of Device there are, each of size bytes.
func devices(t *testing.T, size int64) map[string]Device {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return map[string]Device{"memory": NewMemory(size), "file": f, "section": Section(NewMemory(size+100), 50, size)}
}

func TestDevice(t *testing.T) {
	const size = 10000
	for name, d := range devices(t, size) {
		t.Run(name, func(t *testing.T) {
			if d.Size() != size {
				t.Fatalf("size %d", d.Size())
			}
			if n, err := d.WriteAt([]byte("end"), size-3); n != 3 || err != nil {
				t.Errorf("last bytes: %d, %v", n, err)
			}
			for _, off := range []int64{size - 2, size, size + 1, -1, 1<<63 - 1} {
				if n, err := d.WriteAt([]byte("end"), off); n != 0 || !errors.Is(err, ErrBounds) {
					t.Errorf("write at %d: %d, %v", off, n, err)
				}
			}
			if err := d.Flush(); err != nil {
				t.Error(err)
			}
			buf := make([]byte, 8)
			if n, err := d.ReadAt(buf, size-3); n != 3 || err != io.EOF || string(buf[:n]) != "end" {
				t.Errorf("read over the end: %q, %v", buf[:n], err)
			}
			for _, off := range []int64{size, size + 1} {
				if n, err := d.ReadAt(buf, off); n != 0 || err != io.EOF {
					t.Errorf("read at %d: %d, %v", off, n, err)
				}
			}
			if n, err := d.ReadAt(buf, -1); n != 0 || err == nil {
				t.Errorf("read before the start: %d, %v", n, err)
			}
		})
	}
}

func TestSectionStaysInside(t *testing.T) {
	m := NewMemory(100)
	for _, c := range []struct{ off, n, want int64 }{
		{0, 100, 100}, {90, 20, 10}, {100, 1, 0}, {200, 1, 0}, {-5, 10, 10}, {5, -1, 0}, {1, 1<<63 - 1, 99},
	} {
		if got := Section(m, c.off, c.n).Size(); got != c.want {
			t.Errorf("section of %d at %d: %d bytes, want %d", c.n, c.off, got, c.want)
		}
	}
	s := Section(Section(m, 10, 50), 10, 10)
	if _, err := s.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := m.ReadAt(b[:], 20); err != nil || b[0] != 1 {
		t.Errorf("nested section wrote elsewhere: %v, %v", b, err)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir, false); err == nil {
		t.Error("a folder is a device")
	}
	if _, err := Open("/dev/null", false); err == nil {
		t.Error("a character device is a device")
	}
	if _, err := Open(filepath.Join(dir, "new"), true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// The kernel tells of lost pages once; a second flush that says yes would be a lie.
func TestFailedFlushStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 10), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	lost := errors.New("lost")
	d.failed = lost
	for range 2 {
		if err := d.Flush(); !errors.Is(err, lost) {
			t.Errorf("flush after a failed one: %v", err)
		}
	}
	if err := d.DropCache(); !errors.Is(err, lost) {
		t.Errorf("drop after a failed flush: %v", err)
	}
}

func TestDropAndDiscard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.DropCache(); err != nil {
		t.Error(err)
	}
	err = d.Discard(4096, 8192)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("no discard here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 64<<10)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if got[4095] != 7 || got[4096] != 0 || got[12287] != 0 || got[12288] != 7 {
		t.Error("discarded the wrong bytes")
	}
	for _, c := range [][2]int64{{-1, 1}, {0, 1 << 20}, {1 << 62, 1 << 62}, {4096, -1}} {
		if err := d.Discard(c[0], c[1]); !errors.Is(err, ErrBounds) {
			t.Errorf("discard %d at %d: %v", c[1], c[0], err)
		}
	}
}

func TestOpenWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "late")
	start := time.Now()
	if _, err := OpenWait(path, false, 60*time.Millisecond); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what never comes: %v", err)
	}
	if took := time.Since(start); took < 60*time.Millisecond || took > 5*time.Second {
		t.Errorf("waited %v", took)
	}
	time.AfterFunc(50*time.Millisecond, func() { os.WriteFile(path, []byte("x"), 0o600) })
	d, err := OpenWait(path, false, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	// What can't get better is not waited for.
	start = time.Now()
	if _, err := OpenWait(t.TempDir(), false, 5*time.Second); err == nil || time.Since(start) > time.Second {
		t.Errorf("a folder: %v after %v", err, time.Since(start))
	}
}

func TestDirect(t *testing.T) {
	for _, size := range []int{0, 1, 4095, 4096, 4097, 1<<20 + 512, 1<<20 + 513} {
		want := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(size)}).Read(want)
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, open := range []func(string) (*os.File, error){OpenDirect, os.Open} {
			f, err := open(path)
			if err != nil {
				t.Fatal(err)
			}
			d, err := NewDirect(f)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes, direct %v", size, d.Direct())
			compareReads(t, bytes.NewReader(want), d, size)
			if err := errors.Join(d.Close(), d.Close(), f.Close()); err != nil {
				t.Error(err)
			}
		}
	}
}

// compareReads reads at many offsets, aligned and not, from four goroutines, into memory that is aligned
// (big Go slices are) and not.
func compareReads(t *testing.T, want, got io.ReaderAt, size int) {
	t.Helper()
	var wg sync.WaitGroup
	defer wg.Wait()
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			a, b := make([]byte, 2<<20), make([]byte, 2<<20)
			for range 100 {
				off := int64(rng.IntN(size + 5000))
				n := rng.IntN(len(a) - 1)
				if rng.IntN(2) == 0 {
					n = rng.IntN(10000)
				}
				shift := rng.IntN(2)
				if rng.IntN(3) == 0 {
					off, n = off&^4095, n&^4095
				}
				if n == 0 {
					continue // whether that is the end is up to each reader
				}
				wn, werr := want.ReadAt(a[:n], off)
				gn, gerr := got.ReadAt(b[shift:shift+n], off)
				if wn != gn || (werr == nil) != (gerr == nil) || !bytes.Equal(a[:wn], b[shift:shift+gn]) {
					t.Errorf("read %d at %d of %d: %d, %v, want %d, %v", n, off, size, gn, gerr, wn, werr)
					return
				}
			}
		})
	}
}

func TestDirectPassesTheCacheBy(t *testing.T) {
	f, err := OpenDirect("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := NewDirect(f)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if !d.Direct() {
		t.Skip("no O_DIRECT on this file system")
	}
	if d.buf == nil || len(d.buf)%align != 0 {
		t.Errorf("bounce buffer of %d bytes", len(d.buf))
	}
}

// sysfs writes a tree; a value that starts with -> is a symbolic link relative to its place.
func sysfs(t *testing.T, tree map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, text := range tree {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "->"); ok {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestBlocks(t *testing.T) {
	const (
		pci   = "devices/pci0000:00/"
		stick = pci + "0000:00:01.0/usb2/2-1/2-1:1.0/host0/target0:0:0/0:0:0:0/block/sda/"
	)
	root := sysfs(t, map[string]string{
		pci + "virtio1/block/vda/dev":             "254:0\n",
		pci + "virtio1/block/vda/size":            "163840\n",
		pci + "virtio1/block/vda/ro":              "0\n",
		pci + "virtio1/block/vda/uevent":          "MAJOR=254\nMINOR=0\nDEVNAME=vda\nDEVTYPE=disk\n",
		pci + "virtio1/block/vda/vda10/dev":       "254:10\n",
		pci + "virtio1/block/vda/vda10/size":      "8\n",
		pci + "virtio1/block/vda/vda10/ro":        "1\n",
		pci + "virtio1/block/vda/vda10/partition": "10\n",
		pci + "virtio1/block/vda/vda10/uevent":    "MAJOR=254\nPARTN=10\nPARTNAME=rootfs.0\nPARTNAME=again\n",
		pci + "virtio1/block/vda/vda2/dev":        "254:2\n",
		pci + "virtio1/block/vda/vda2/size":       "16384\n",
		pci + "virtio1/block/vda/vda2/partition":  "2\n",
		pci + "virtio1/block/vda/vda2/uevent":     "PARTNAME=the state\n",
		stick + "dev":                             "8:0\n",
		stick + "size":                            "131072\n",
		stick + "sda1/dev":                        "8:1\n",
		stick + "sda1/size":                       "2048\n",
		stick + "sda1/partition":                  "1\n",
		stick + "sda1/uevent":                     "PARTNAME=rootfs.0\n",
		pci + "usbish/block/sdaa/dev":             "65:160\n", // not a bus
		pci + "usbish/block/sdaa/size":            "1\n",
		pci + "reader/block/sdb/dev":              "8:16\n",
		pci + "reader/block/sdb/size":             "0\n",
		pci + "nvme/nvme0c0n1/size":               "100\n", // hidden: no number
		pci + "cciss/block/cciss!c0d0/dev":        "104:0\n",
		pci + "cciss/block/cciss!c0d0/size":       "8\n",
		"devices/virtual/block/loop0/dev":         "7:0\n",
		"devices/virtual/block/loop0/size":        "8\n",
		"devices/virtual/block/dm-0/dev":          "253:0\n",
		"devices/virtual/block/dm-0/size":         "8\n",
		"devices/virtual/block/ram0/size":         "8\n",
		"class/block/vda":                         "->../../" + pci + "virtio1/block/vda",
		"class/block/vda10":                       "->../../" + pci + "virtio1/block/vda/vda10",
		"class/block/vda2":                        "->../../" + pci + "virtio1/block/vda/vda2",
		"class/block/sda":                         "->../../" + stick,
		"class/block/sda1":                        "->../../" + stick + "sda1",
		"class/block/sdaa":                        "->../../" + pci + "usbish/block/sdaa",
		"class/block/sdb":                         "->../../" + pci + "reader/block/sdb",
		"class/block/sdz":                         "->../../" + pci + "pulled/block/sdz",
		"class/block/nvme0c0n1":                   "->../../" + pci + "nvme/nvme0c0n1",
		"class/block/cciss!c0d0":                  "->../../" + pci + "cciss/block/cciss!c0d0",
		"class/block/loop0":                       "->../../devices/virtual/block/loop0",
		"class/block/dm-0":                        "->../../devices/virtual/block/dm-0",
		"class/block/ram0":                        "->../../devices/virtual/block/ram0",
	})
	blocks, err := Blocks(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []Block{
		{Name: "sda", Disk: "sda", Size: 64 << 20, Major: 8, USB: true},
		{Name: "sda1", Disk: "sda", PartName: "rootfs.0", Part: 1, Size: 1 << 20, Major: 8, Minor: 1, USB: true},
		{Name: "vda", Disk: "vda", Size: 80 << 20, Major: 254},
		{Name: "vda2", Disk: "vda", PartName: "the state", Part: 2, Size: 8 << 20, Major: 254, Minor: 2},
		{Name: "vda10", Disk: "vda", PartName: "rootfs.0", Part: 10, Size: 4096, Major: 254, Minor: 10, ReadOnly: true},
		{Name: "sdaa", Disk: "sdaa", Size: 512, Major: 65, Minor: 160},
		{Name: "cciss!c0d0", Disk: "cciss!c0d0", Size: 4096, Major: 104},
	}
	if d := cmp.Diff(want, blocks); d != "" {
		t.Fatal(d)
	}
	for device, want := range map[string][]string{
		"/dev/vda2":                           {"vda2"},
		"/dev/cciss/c0d0":                     {"cciss!c0d0"},
		"PARTLABEL=rootfs.0":                  {"sda1", "vda10"},
		"PARTLABEL=the state":                 {"vda2"},
		"PARTLABEL=again":                     nil,
		"/dev/disk/by-partlabel/rootfs.0":     {"sda1", "vda10"},
		`/dev/disk/by-partlabel/the\x20state`: {"vda2"},
		"PARTLABEL=":                          nil,
		"/dev/disk/by-partlabel/":             nil,
		"vda2":                                nil,
		"":                                    nil,
		"PARTLABEL=ROOTFS.0":                  nil,
	} {
		var got []string
		for _, b := range Find(blocks, device) {
			got = append(got, b.Name)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q: %s", device, d)
		}
	}
	if got, err := Blocks(t.TempDir()); got != nil || err != nil {
		t.Errorf("no block class: %v, %v", got, err)
	}
}

func TestUSBPath(t *testing.T) {
	for dir, want := range map[string]string{
		"/sys/devices/pci0000:00/usb2/2-1": "/sys/devices/pci0000:00/usb2",
		"/sys/devices/usb12":               "/sys/devices/usb12",
		"/sys/devices/usb/x":               "",
		"/sys/devices/usbx/x":              "",
		"/sys/devices/xusb1/x":             "",
		"":                                 "",
		"/":                                "",
	} {
		if got, ok := USBPath(dir); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", dir, got, ok)
		}
	}
}

func TestConcerns(t *testing.T) {
	for msg, want := range map[string]bool{
		"add@/devices/x/block/sda\x00ACTION=add\x00SUBSYSTEM=block\x00": true,
		"add@/devices/usb1\x00SUBSYSTEM=usb\x00":                        true,
		"add@/devices/x\x00SUBSYSTEM=net\x00":                           false,
		"add@/devices/x\x00SUBSYSTEM=usbmon\x00":                        false,
		"libudev\x00garbage":                                            false,
		"":                                                              false,
	} {
		if got := concerns([]byte(msg)); got != want {
			t.Errorf("%q: %v", msg, got)
		}
	}
}

// An event is provoked by writing to a device's uevent file; nothing in user space may fake one.
func TestWatch(t *testing.T) {
	w, err := Watch()
	if err != nil {
		t.Skipf("no uevent socket here: %v", err)
	}
	defer w.Close()
	start := time.Now()
	for { // what the machine itself has to say
		ok, err := w.Wait(50 * time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if time.Since(start) > 5*time.Second {
			t.Skip("this machine's devices never rest")
		}
	}
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("waited %v for nothing", took)
	}
	t.Run("kernel", func(t *testing.T) {
		if err := os.WriteFile("/sys/class/block/loop0/uevent", []byte("change"), 0); err != nil {
			t.Skipf("can't provoke an event: %v", err)
		}
		if ok, err := w.Wait(5 * time.Second); !ok || err != nil {
			t.Errorf("a change of loop0: %v, %v", ok, err)
		}
		if ok, err := w.Wait(20 * time.Millisecond); ok || err != nil {
			t.Errorf("the same event again: %v, %v", ok, err)
		}
	})
	t.Run("user space", func(t *testing.T) {
		if err := forge("add@/devices/x/block/sda\x00ACTION=add\x00SUBSYSTEM=block\x00"); err != nil {
			t.Skipf("can't send a forged event: %v", err)
		}
		if ok, err := w.Wait(50 * time.Millisecond); ok || err != nil {
			t.Errorf("a forged event: %v, %v", ok, err)
		}
	})
	time.AfterFunc(50*time.Millisecond, func() { w.Close() })
	if _, err := w.Wait(10 * time.Second); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed while waiting: %v", err)
	}
}

// FuzzUevent: only what names a subsystem of ours, in a field of its own, is an event of ours.
func FuzzUevent(f *testing.F) {
	f.Add([]byte("add@/devices/x\x00ACTION=add\x00SUBSYSTEM=block\x00SEQNUM=1\x00"))
	f.Add([]byte("add@/devices/x\x00SUBSYSTEM=usb"))
	f.Add([]byte("add@/SUBSYSTEM=block\x00SUBSYSTEM=net\x00SUBSYSTEM=usb\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		framed := "\x00" + string(msg) + "\x00"
		if got := concerns(msg); got && !strings.Contains(framed, "\x00SUBSYSTEM=block\x00") && !strings.Contains(framed, "\x00SUBSYSTEM=usb\x00") {
			t.Errorf("%q concerns us", msg)
		}
	})
}
