package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The layouts are those of 64-bit little-endian machines, the only ones that are built for.

func TestRequest(t *testing.T) {
	// _IOWR(0xfd, n, struct dm_ioctl), as strace prints them.
	for cmd, want := range map[uintptr]uintptr{
		cmdDevCreate: 0xc138fd03, cmdDevRemove: 0xc138fd04, cmdDevSuspend: 0xc138fd06,
		cmdTableLoad: 0xc138fd09, cmdTableClear: 0xc138fd0a, cmdTableStatus: 0xc138fd0c,
	} {
		if got := request | cmd; got != want {
			t.Errorf("command %d: %#x, want %#x", cmd, got, want)
		}
	}
}

func TestEncode(t *testing.T) {
	data, err := encodeTargets([]Target{
		{Sectors: 8, Type: "zero"},
		{Start: 8, Sectors: 0x0102030405, Type: "linear", Args: "254:1 2048"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := encode("rootfs", flagReadOnly, data, 2)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 312+48+56)
	put := func(at int, b ...byte) { copy(want[at:], b) }
	put(0, 4)
	put(12, 0xa0, 0x01) // 416
	put(16, 0x38, 0x01) // 312
	put(20, 2)
	put(28, 1)
	put(48, []byte("rootfs")...)
	put(312+8, 8)
	put(312+20, 48)
	put(312+24, []byte("zero")...)
	put(360, 8)
	put(360+8, 5, 4, 3, 2, 1)
	put(360+20, 56)
	put(360+24, []byte("linear")...)
	put(360+40, []byte("254:1 2048")...)
	if !bytes.Equal(got, want) {
		t.Errorf("\n got % x\nwant % x", got, want)
	}
}

func TestVerityTable(t *testing.T) {
	root := [32]byte{0xab, 31: 0x01}
	hexRoot := "ab" + strings.Repeat("00", 30) + "01"
	for _, c := range []struct {
		salt []byte
		opts []string
		want string
	}{
		{[]byte{0xde, 0xad}, nil, "1 /dev/vda3 /dev/vda3 4096 4096 1000 1000 sha256 " + hexRoot + " dead"},
		{nil, nil, "1 /dev/vda3 /dev/vda3 4096 4096 1000 1000 sha256 " + hexRoot + " -"},
		{nil, []string{"restart_on_corruption"}, "1 /dev/vda3 /dev/vda3 4096 4096 1000 1000 sha256 " + hexRoot + " - 1 restart_on_corruption"},
		{nil, []string{"use_fec_from_device", "/dev/vdb"}, "1 /dev/vda3 /dev/vda3 4096 4096 1000 1000 sha256 " + hexRoot + " - 2 use_fec_from_device /dev/vdb"},
	} {
		want := Target{Sectors: 8000, Type: "verity", Args: c.want}
		if diff := cmp.Diff(want, VerityTable("/dev/vda3", 1000, root, c.salt, c.opts...)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestBadTables(t *testing.T) {
	for name, targets := range map[string][]Target{
		"none":        nil,
		"no type":     {{Sectors: 8}},
		"long type":   {{Sectors: 8, Type: "sixteen-letters-"}},
		"NUL":         {{Sectors: 8, Type: "zero", Args: "a\x00b"}},
		"empty":       {{Type: "zero"}},
		"late start":  {{Start: 8, Sectors: 8, Type: "zero"}},
		"hole":        {{Sectors: 8, Type: "zero"}, {Start: 16, Sectors: 8, Type: "zero"}},
		"overlap":     {{Sectors: 8, Type: "zero"}, {Start: 4, Sectors: 8, Type: "zero"}},
		"wraps":       {{Sectors: 8, Type: "zero"}, {Start: 8, Sectors: ^uint64(0), Type: "zero"}},
		"too many":    make([]Target, maxTargets+1),
		"large":       {{Sectors: 8, Type: "zero", Args: strings.Repeat("x", maxArgs+1)}},
		"no sectors ": {VerityTable("/dev/vda", 0, [32]byte{}, nil)},
	} {
		if b, err := encodeTargets(targets); err == nil {
			t.Errorf("%s: % x", name, b)
		}
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"rootfs": true, "rootfs.0-A": true, strings.Repeat("n", 127): true,
		"": false, strings.Repeat("n", 128): false, "a/b": false, "a b": false, "a\x00b": false, "a\nb": false,
	} {
		if _, err := encode(name, 0, nil, 0); (err == nil) != ok || (!ok && !errors.Is(err, ErrName)) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// reply is what the kernel answers to a status of a device 254:258.
func reply() []byte {
	e := binary.LittleEndian
	b := make([]byte, headerSize+4096)
	e.PutUint32(b[12:], uint32(len(b)))
	e.PutUint32(b[16:], headerSize)
	e.PutUint32(b[20:], 2)
	e.PutUint64(b[40:], 254<<8|258&0xff|1<<20)
	d := b[headerSize:]
	e.PutUint64(d[8:], 8)
	e.PutUint32(d[20:], 48)
	copy(d[24:], "zero")
	e.PutUint64(d[48:], 8)
	e.PutUint64(d[48+8:], 16)
	e.PutUint32(d[48+20:], 96) // counts from the start of the data
	copy(d[48+24:], "verity")
	copy(d[48+40:], "V")
	return b
}

func TestDecode(t *testing.T) {
	a, err := decode(reply())
	if err != nil {
		t.Fatal(err)
	}
	if want := unix.Mkdev(254, 258); a.dev != want {
		t.Errorf("device %#x, want %#x", a.dev, want)
	}
	got, err := decodeTargets(a.data, a.count)
	if err != nil {
		t.Fatal(err)
	}
	want := []Target{{Sectors: 8, Type: "zero"}, {Start: 8, Sectors: 16, Type: "verity", Args: "V"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// An answer without data: the kernel gives the size up to the data field.
func TestDecodeShort(t *testing.T) {
	b := reply()[:headerSize]
	binary.LittleEndian.PutUint32(b[12:], 305)
	a, err := decode(b)
	if err != nil || a.dev != unix.Mkdev(254, 258) || len(a.data) != 0 {
		t.Errorf("%+v, %v", a, err)
	}
	binary.LittleEndian.PutUint32(b[12:], headerSize+1)
	if _, err := decode(b); err == nil {
		t.Error("more data than the buffer holds")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(reply())
	f.Add(reply()[:headerSize+60])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			t.Skip("longer than the test's limit")
		}
		a, err := decode(b)
		if err != nil {
			return
		}
		targets, err := decodeTargets(a.data, a.count)
		if err == nil && len(targets) != int(a.count) {
			t.Errorf("%d targets of %d", len(targets), a.count)
		}
	})
}

func TestNodes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making device nodes needs root")
	}
	dir := t.TempDir()
	dev := unix.Mkdev(254, 300)
	for range 2 { // made, then found
		path, err := node(dir, dev)
		if err != nil || path != filepath.Join(dir, "dm-300") {
			t.Fatal(path, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || uint64(st.Rdev) != dev || st.Mode != unix.S_IFBLK|0o600 {
			t.Errorf("%v: device %#x mode %o", err, st.Rdev, st.Mode)
		}
	}
	if path, err := node(dir, unix.Mkdev(253, 300)); err == nil {
		t.Errorf("%s is taken for another device", path)
	}
	control1 := filepath.Join(dir, "mapper", "control")
	fd, err := control(control1)
	if err == nil {
		unix.Close(fd)
	}
	var st unix.Stat_t
	if err := unix.Stat(control1, &st); err != nil || st.Rdev != unix.Mkdev(10, 236) || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		t.Errorf("control node: %v, device %#x mode %o", err, st.Rdev, st.Mode)
	}
}
