package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

var kinds = []Integrity{{Hash: "crc32c"}, {Hash: "sha256"}, {Hash: "hmac-sha256", Key: bytes.Repeat([]byte{0xa5}, 32)}}

func TestIntegrityTable(t *testing.T) {
	key := strings.Repeat("a5", 32)
	for i, want := range []string{
		"/dev/vda5 0 - J 3 block_size:4096 fix_padding internal_hash:crc32c",
		"/dev/vda5 0 - J 3 block_size:4096 fix_padding internal_hash:sha256",
		"/dev/vda5 0 - J 5 block_size:4096 fix_padding internal_hash:hmac(sha256):" + key + " fix_hmac journal_mac:hmac(sha256):" + key,
	} {
		got, err := IntegrityTable("/dev/vda5", 80, kinds[i])
		if want := (Target{Sectors: 80, Type: "integrity", Args: want}); err != nil || got != want {
			t.Errorf("%v %v\nwant %v", got, err, want)
		}
	}
	for _, bad := range []Integrity{{}, {Hash: "md5"}, {Hash: "hmac-sha256"}, {Hash: "hmac-sha256", Key: make([]byte, 15)}, {Hash: "hmac-sha256", Key: make([]byte, 65)}} {
		if got, err := IntegrityTable("/dev/vda5", 80, bad); err == nil {
			t.Errorf("%v: %v", bad, got)
		}
		if err := FormatIntegrity("x", "/dev/null", bad); err == nil {
			t.Errorf("formatted as %v", bad)
		}
	}
}

// super is a superblock as Linux 6.1 writes it for one of kinds on a device of 64 MiB.
func super(kind int) []byte {
	b := make([]byte, 512)
	copy(b, "integrt\x00")
	b[8], b[9] = 4, 15
	e := binary.LittleEndian
	e.PutUint16(b[10:], []uint16{4, 32, 32}[kind])
	e.PutUint32(b[12:], 10)
	e.PutUint64(b[16:], 129000)
	e.PutUint32(b[24:], []uint32{8, 8, 0x1b &^ 2}[kind])
	b[28] = 3
	return b
}

func TestSuperblock(t *testing.T) {
	for i, in := range kinds {
		if n, err := superblock(super(i), in, 131072); n != 129000 || err != nil {
			t.Errorf("%s: %d, %v", in.Hash, n, err)
		}
	}
	for name, change := range map[string]func(b []byte){
		"zero": func(b []byte) { clear(b) }, "magic": func(b []byte) { b[3] ^= 1 }, "tag": func(b []byte) { b[10] = 4 },
		"bitmap mode": func(b []byte) { b[24] |= 4 }, "recalculating": func(b []byte) { b[24] |= 2 }, "inline": func(b []byte) { b[24] |= 32 },
		"no journal MAC": func(b []byte) { b[24] &^= 1 }, "the old HMAC": func(b []byte) { b[24] &^= 16 }, "blocks of 512": func(b []byte) { b[28] = 0 },
		"empty": func(b []byte) { clear(b[16:24]) }, "odd": func(b []byte) { b[16]++ }, "too large": func(b []byte) { b[18] = 2 }, "huge": func(b []byte) { b[23] = 0xff },
	} {
		b := super(2)
		change(b)
		if n, err := superblock(b, kinds[2], 131072); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	for _, pair := range [][2]int{{0, 1}, {1, 0}, {1, 2}, {2, 1}} {
		if _, err := superblock(super(pair[0]), kinds[pair[1]], 131072); !errors.Is(err, ErrIntegrity) {
			t.Errorf("kind %d is taken for kind %d: %v", pair[0], pair[1], err)
		}
	}
	if _, err := superblock(super(0)[:511], kinds[0], 131072); !errors.Is(err, ErrIntegrity) {
		t.Error(err)
	}
}

func FuzzSuperblock(f *testing.F) {
	for i := range kinds {
		f.Add(super(i), uint64(131072), i)
	}
	f.Fuzz(func(t *testing.T, b []byte, room uint64, kind int) {
		if kind < 0 || kind >= len(kinds) {
			return
		}
		n, err := superblock(b, kinds[kind], room)
		if err == nil && (n == 0 || n >= room || n%8 != 0) || err != nil && (n != 0 || !errors.Is(err, ErrIntegrity)) {
			t.Errorf("%d, %v", n, err)
		}
	})
}

var scratch = flag.String("scratch", "", "a block device that the test of dm-integrity may write to")

// What Linux makes of it: written blocks are read, others are not; keys, kinds and changed superblocks are told apart.
// qemu/story runs it in a device.
func TestIntegrity(t *testing.T) {
	if *scratch == "" {
		t.Skip("needs -scratch and device-mapper")
	}
	block := bytes.Repeat([]byte("written "), IntegrityBlock/8)
	for _, in := range kinds {
		if err := FormatIntegrity("scratch", *scratch, in); err != nil {
			t.Fatal(err)
		}
		path, err := OpenIntegrity("scratch", *scratch, in, false)
		if err != nil {
			t.Fatal(err)
		}
		dev, err := disk.Open(path, true)
		if err != nil {
			t.Fatal(err)
		}
		room := disk.Device(dev).Size()
		if _, err := dev.WriteAt(block, room-IntegrityBlock); err != nil {
			t.Error(err)
		}
		if err := errors.Join(dev.Flush(), dev.Close(), Remove("scratch")); err != nil {
			t.Fatal(err)
		}
		t.Logf("figure: %s: %d bytes", in.Hash, room)

		path, err = OpenIntegrity("scratch", *scratch, in, true)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := IntegrityMismatches("scratch"); n != 0 || err != nil {
			t.Errorf("%s: %d mismatches, %v", in.Hash, n, err)
		}
		f, err := disk.OpenDirect(path)
		if err != nil {
			t.Fatal(err)
		}
		got := disk.Aligned(IntegrityBlock)
		if _, err := f.ReadAt(got, room-IntegrityBlock); err != nil || !bytes.Equal(got, block) {
			t.Errorf("%s: what was written: %v", in.Hash, err)
		}
		if _, err := f.ReadAt(got, room/2/IntegrityBlock*IntegrityBlock); !errors.Is(err, unix.EILSEQ) {
			t.Errorf("%s: what was not: %v", in.Hash, err)
		}
		if n, err := IntegrityMismatches("scratch"); n != 1 || err != nil {
			t.Errorf("%s: %d mismatches, %v", in.Hash, n, err)
		}
		if w, err := disk.Open(path, true); err == nil {
			if _, err := w.WriteAt(block, 0); err == nil {
				t.Errorf("%s: what was opened to be read takes writes", in.Hash)
			}
			w.Close()
		}
		f.Close()
		if err := Remove("scratch"); err != nil {
			t.Fatal(err)
		}
		for _, other := range kinds {
			if other.Hash == in.Hash {
				continue
			}
			if _, err := OpenIntegrity("scratch", *scratch, other, false); !errors.Is(err, ErrIntegrity) {
				t.Errorf("%s is opened as %s: %v", in.Hash, other.Hash, err)
			}
		}
	}
	in := kinds[2]
	if _, err := OpenIntegrity("scratch", *scratch, Integrity{Hash: in.Hash, Key: bytes.Repeat([]byte{0xa6}, 32)}, false); !errors.Is(err, ErrIntegrityKey) {
		t.Errorf("another key: %v", err)
	}
	raw, err := disk.Open(*scratch, true)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	b := make([]byte, 1)
	raw.ReadAt(b, 300)
	b[0] ^= 1
	if _, err := raw.WriteAt(b, 300); err != nil || raw.Flush() != nil {
		t.Fatal(err)
	}
	if _, err := OpenIntegrity("scratch", *scratch, in, false); !errors.Is(err, ErrIntegrityKey) {
		t.Errorf("a changed superblock: %v", err)
	}
	if _, err := raw.WriteAt(make([]byte, IntegrityBlock), 0); err != nil || raw.Flush() != nil {
		t.Fatal(err)
	}
	if _, err := OpenIntegrity("scratch", *scratch, in, false); !errors.Is(err, ErrIntegrity) {
		t.Errorf("a wiped superblock: %v", err)
	}
	if _, err := Status("scratch"); !errors.Is(err, unix.ENXIO) {
		t.Errorf("left open: %v", err)
	}
}
