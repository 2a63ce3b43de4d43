package badinputs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/badinputs"
	"lifeboat/disk/crash"
	"lifeboat/image"
	"lifeboat/powercut"
	"lifeboat/qemu/scene"
	"lifeboat/status"
	"lifeboat/verify/keys"
)

// volume is the FAT32 on the image of a stick: one table entry and directory entry after the other, by their offsets.
type volume struct {
	*crash.Image
	table, data int64
}

const partition = 1 << 20 // where the file system begins

func volumeOf(i *crash.Image) volume {
	v := volume{Image: i, table: partition + 512*int64(half(i, partition+14))}
	v.data = v.table + 2*512*int64(word(i, partition+36))
	return v
}

func half(i *crash.Image, at int64) uint16 {
	var b [2]byte
	i.ReadAt(b[:], at)
	return binary.LittleEndian.Uint16(b[:])
}

func word(i *crash.Image, at int64) uint32 {
	return uint32(half(i, at)) | uint32(half(i, at+2))<<16
}

func (v volume) put(at int64, n uint64, size int) {
	b := binary.LittleEndian.AppendUint64(nil, n)
	v.WriteAt(b[:size], at)
}

func (v volume) link(cluster, to uint32) { v.put(v.table+4*int64(cluster), uint64(to), 4) }

// entry is where the short entry of the only file lies: behind the label and two parts of its long name at most.
func (v volume) entry() int64 {
	for at := v.data; ; at += 32 {
		var b [32]byte
		v.ReadAt(b[:], at)
		if b[11] == 0x20 {
			return at
		}
	}
}

func (v volume) first() uint32 { return uint32(half(v.Image, v.entry()+26)) }

// fill makes the root folder's cluster look as if it went on.
func (v volume) fill() {
	v.WriteAt(bytes.Repeat([]byte("FILE    TXT\x20                    "), 16), v.data)
}

// TestSticks gives the device a stick with the good bundle that was made hostile, rows 93 to 103 of the bad inputs: nothing is
// installed, what is said has its code, and the device boots.
func TestSticks(t *testing.T) {
	set, err := keys.New(keys.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k := kit{badinputs.New(t, set, scene.Compatible), t, t.TempDir()}
	d := k.device(0, nil, false)
	const name = "good.raucb"
	file, out := filepath.Join(k.dir, name), filepath.Join(k.dir, "stick")
	k.must(os.WriteFile(file, k.Good(), 0o600))
	k.must(image.Stick(out, image.StickOptions{}, []string{file}))
	clean, err := crash.LoadFile(out)
	k.must(err)
	root, bundle, table, passed := map[string]int{"/": 40}, map[string]int{name: 40}, map[string]int{"stick": 40}, map[string]int{}
	field := func(at int64, n uint64, size int) func(volume) {
		return func(v volume) { v.put(partition+at, n, size) }
	}
	for _, c := range []struct {
		name string
		edit func(v volume)
		want map[string]int // file: code; nil: installed
	}{
		{"0 as it was", func(volume) {}, nil},
		{"93 root folder in a loop", func(v volume) { v.link(2, 2); v.fill() }, root},
		{"94 bundle in a loop", func(v volume) { v.link(v.first()+3, v.first()) }, bundle},
		{"95 tables of no sectors", field(36, 0, 4), root},
		{"96 tables of 2^32-1 sectors", field(36, 1<<32-1, 4), root},
		{"96 tables of 2^23 sectors", field(36, 1<<23-1, 4), root},
		{"97 bundle of 4 GiB", func(v volume) { v.put(v.entry()+28, 1<<32-1, 4) }, bundle},
		{"98 bundle that begins beyond the end", func(v volume) { v.put(v.entry()+20, 0x0fff, 2) }, bundle},
		{"98 chain that leads beyond the end", func(v volume) { v.link(v.first(), 0x0ffffff0) }, bundle},
		{"98 root folder beyond the end", field(44, 1<<27, 4), root},
		{"99 sectors of 0 bytes", field(11, 0, 2), root},
		{"99 sectors of 32768 bytes", field(11, 32768, 2), root},
		{"100 folder that is the root", func(v volume) {
			at := v.entry()
			v.WriteAt([]byte("UPDATES    \x10"), at)
			v.put(at+26, 2, 2)
			v.WriteAt([]byte{0xe5}, at-32) // its long name
		}, passed},
		{"101 ten thousand files", func(v volume) {
			for i := range 10_000 {
				v.WriteAt(fmt.Appendf(nil, "F%07dTXT\x20", i), v.data+int64(i)*32)
			}
			for c := range uint32(10_000 / 16) {
				v.link(2+c, 3+c)
			}
		}, root},
		{"102 bundle under the long name of another", func(v volume) { v.WriteAt([]byte{0xff}, v.entry()-32+13) }, passed},
		{"102 name with an escape sequence", func(v volume) { v.WriteAt([]byte{0x1b}, v.entry()-32+1) }, passed},
		{"103 no table is sound", func(v volume) { v.gpt(func([]byte) {}); v.put(512+16, 0, 4) }, table},
		{"103 partitions overlap", func(v volume) {
			v.gpt(func(e []byte) { copy(e[128:], e[:128]) })
		}, table},
		{"103 partition up to 2^64", func(v volume) {
			v.gpt(func(e []byte) { binary.LittleEndian.PutUint64(e[40:], 1<<64-1) })
		}, table},
		{"103 the same table and right", func(v volume) { v.gpt(func([]byte) {}) }, nil},
		{"111 folder instead of the bundle", func(v volume) { v.put(v.entry()+11, 0x10, 1) }, passed},
	} {
		t.Run(c.name, func(t *testing.T) {
			stick := clean.Clone()
			c.edit(volumeOf(stick))
			d.Stick = stick
			on := d.disk.Clone()
			b, err := d.Boot(on, status.None, powercut.Observer{})
			if err != nil {
				t.Fatal(err)
			}
			if c.want == nil {
				if len(b.Report.Installed) != 1 {
					t.Errorf("not installed: %q", b.Lines)
				}
				return
			}
			got := map[string]int{}
			for _, r := range b.Report.Refused {
				got[r.File] = r.Code
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("refused (-want +got):\n%s%q", diff, b.Lines)
			}
			if b.Slot != "rootfs.0" || len(b.Report.Installed) > 0 {
				t.Errorf("slot %q started, installed %+v", b.Slot, b.Report.Installed)
			}
			for _, slot := range []string{"rootfs.0", "rootfs.1"} {
				if !bytes.Equal(part(d, d.disk, slot), part(d, on, slot)) {
					t.Errorf("slot %s was touched", slot)
				}
			}
		})
	}
}

// gpt puts a GPT of one partition, the one that is there, in the place of the MBR, without a backup. edit changes its entries.
func (v volume) gpt(edit func(entries []byte)) {
	le := binary.LittleEndian
	last := uint64(v.Size()/512) - 1
	mbr, header, entries := make([]byte, 66), make([]byte, 92), make([]byte, 128*128)
	mbr[4], mbr[8], mbr[12], mbr[64], mbr[65] = 0xee, 1, 0xff, 0x55, 0xaa
	entries[0] = 1
	le.PutUint64(entries[32:], partition/512)
	le.PutUint64(entries[40:], last)
	edit(entries)
	copy(header, "EFI PART\x00\x00\x01\x00\x5c")
	for at, n := range map[int]uint64{24: 1, 32: last, 40: 34, 48: last, 72: 2} {
		le.PutUint64(header[at:], n)
	}
	le.PutUint32(header[80:], 128)
	le.PutUint32(header[84:], 128)
	le.PutUint32(header[88:], crc32.ChecksumIEEE(entries))
	le.PutUint32(header[16:], crc32.ChecksumIEEE(header))
	v.WriteAt(mbr, 446)
	v.WriteAt(header, 512)
	v.WriteAt(entries, 1024)
}

// fickle is a stick that from its nth read on fails or shows other bytes, or that ends before it says.
type fickle struct {
	*crash.Image
	reads, from int
	flip        bool
	end         int64 // what lies behind reads as zeros; 0: nothing does
}

func (f *fickle) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.Image.ReadAt(p, off)
	f.reads++
	if f.end > 0 && off+int64(n) > f.end {
		clear(p[max(f.end-off, 0):n])
	}
	switch {
	case f.from == 0 || f.reads < f.from:
	case f.flip && n > 0:
		p[n/2] ^= 4
	case !f.flip:
		return 0, errors.New("medium error")
	}
	return n, err
}

// TestFickleSticks: a stick that is pulled out or fails at any of its reads (rows 104 and 105), that shows other bytes from then
// on (106), or that is smaller than it says (107). Either the good bundle is installed and is what runs, to the byte, or 1.0
// runs; what lies in slot B is never taken for something that it is not.
func TestFickleSticks(t *testing.T) {
	set, err := keys.New(keys.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k := kit{badinputs.New(t, set, scene.Compatible), t, t.TempDir()}
	d := k.device(0, nil, false)
	file := filepath.Join(k.dir, "good.raucb")
	good := k.Good()
	k.must(os.WriteFile(file, good, 0o600))
	_, err = d.LearnBundle(file, powercut.Healthy)
	k.must(err)
	for _, o := range []image.StickOptions{{}, {ExFAT: true}} {
		out := filepath.Join(k.dir, "stick")
		k.must(image.Stick(out, o, []string{file}))
		medium, err := crash.LoadFile(out)
		k.must(err)
		fickleStick(t, d, medium, good, fmt.Sprintf("exFAT %t", o.ExFAT))
	}
}

func fickleStick(t *testing.T, d rig, medium *crash.Image, good []byte, name string) {
	codes := map[string]map[int]int{"fails": {}, "flips": {}, "ends": {}}
	// try reports whether the bundle was installed.
	try := func(f fickle) (installed bool, reads int) {
		t.Helper()
		f.Image = medium
		d.Stick = &f
		on := d.disk.Clone()
		b, err := d.Boot(on, status.None, powercut.Observer{})
		if err != nil {
			t.Fatal(err)
		}
		kind := "fails"
		if f.flip {
			kind = "flips"
		} else if f.end > 0 {
			kind = "ends"
		}
		for _, r := range b.Report.Refused {
			codes[kind][r.Code]++
			if kind == "fails" && r.Code != 40 || kind == "ends" && r.Code != 20 {
				t.Errorf("it %s, from read %d, end %d: code %d: %s", kind, f.from, f.end, r.Code, r.Text)
			}
		}
		installed = len(b.Report.Installed) == 1
		want := map[bool]string{true: "rootfs.1", false: "rootfs.0"}[installed]
		if b.Slot != want || b.Rescue || len(b.Damaged) > 0 {
			t.Errorf("read %d, flip %v, end %d: slot %q started, damaged %v: %q", f.from, f.flip, f.end, b.Slot, b.Damaged, b.Lines)
		}
		return installed, f.reads
	}
	installed, reads := try(fickle{})
	if !installed || reads < 20 {
		t.Fatalf("the stick as it is: installed %v after %d reads", installed, reads)
	}
	boots := 0
	for from := 1; from <= reads; from++ {
		for _, flip := range []bool{false, true} {
			boots++
			if ok, _ := try(fickle{from: from, flip: flip}); ok && from < reads/2 {
				t.Errorf("installed although read %d of %d was bad (flip %v)", from, reads, flip)
			}
		}
	}
	all := make([]byte, medium.Size())
	if _, err := medium.ReadAt(all, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	at := bytes.Index(all, good)
	if at < 0 {
		t.Fatal("the bundle does not lie in one piece")
	}
	for end := int64(at) + 512; end < int64(at+len(good)); end += 4096 {
		boots++
		if ok, _ := try(fickle{end: end}); ok {
			t.Errorf("installed from a stick that ends at %d", end)
		}
	}
	t.Logf("figure: fickle sticks, %s: %d boots, refusals by code %v", name, boots, codes)
}
