package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs"
	gptmake "github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"

	"lifeboat/badinputs"
)

// tool runs a program that makes partition tables over a file of size bytes and returns the file.
func tool(t *testing.T, size int64, stdin, name string, args ...string) []byte {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			t.Skipf("no %s: %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append(args, path)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func partitions(b []byte) ([]Partition, error) {
	return Partitions(bytes.NewReader(b), int64(len(b)))
}

const (
	typeLinux = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	typeData  = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"
)

func sgdiskImage(t *testing.T) []byte {
	return tool(t, 4<<20, "", "sgdisk", "-a", "1", "-n", "3:2048:4095", "-c", "3:rootfs.0", "-n", "1:100:199", "-c", "1:größe 𝄞", "-t", "1:0700")
}

func TestPartitionsOfTools(t *testing.T) {
	twoOfSgdisk := []Partition{
		{Index: 1, Start: 100 * 512, Size: 100 * 512, Name: "größe 𝄞", Type: typeData},
		{Index: 3, Start: 1 << 20, Size: 1 << 20, Name: "rootfs.0", Type: typeLinux},
	}
	logical := "label: dos\nstart=10,size=10,type=c\nstart=100,size=2000,type=5\nstart=3000,size=100,type=83\n" +
		"start=110,size=10\nstart=200,size=20,type=b\nstart=400,size=30\n"
	for _, c := range []struct {
		name string
		make func(t *testing.T) []byte
		want []Partition
	}{
		{"sgdisk", sgdiskImage, twoOfSgdisk},
		{"sgdisk, primary header lost", func(t *testing.T) []byte { b := sgdiskImage(t); clear(b[512:1024]); return b }, twoOfSgdisk},
		{"sgdisk, primary entries damaged", func(t *testing.T) []byte { b := sgdiskImage(t); b[1024+60]++; return b }, twoOfSgdisk},
		{"sgdisk, backup lost", func(t *testing.T) []byte { b := sgdiskImage(t); clear(b[len(b)-34*512:]); return b }, twoOfSgdisk},
		{"sgdisk hybrid", func(t *testing.T) []byte {
			return tool(t, 4<<20, "", "sgdisk", "-a", "1", "-n", "1:100:199", "-c", "1:x", "-t", "1:8300", "-h", "1")
		}, []Partition{{Index: 1, Start: 100 * 512, Size: 100 * 512, Name: "x", Type: typeLinux}}},
		{"sgdisk, no partition", func(t *testing.T) []byte { return tool(t, 4<<20, "", "sgdisk", "-o") }, nil},
		{"sfdisk gpt", func(t *testing.T) []byte {
			return tool(t, 4<<20, "label: gpt\nstart=64,size=8,name=state\n", "sfdisk", "-q")
		}, []Partition{{Index: 1, Start: 64 * 512, Size: 8 * 512, Name: "state", Type: typeLinux}}},
		{"sfdisk dos with logical partitions", func(t *testing.T) []byte { return tool(t, 4<<20, logical, "sfdisk", "-q") }, []Partition{
			{Index: 1, Start: 10 * 512, Size: 10 * 512, Type: "0x0c"},
			{Index: 3, Start: 3000 * 512, Size: 100 * 512, Type: "0x83"},
			{Index: 5, Start: 110 * 512, Size: 10 * 512, Type: "0x83"},
			{Index: 6, Start: 200 * 512, Size: 20 * 512, Type: "0x0b"},
			{Index: 7, Start: 400 * 512, Size: 30 * 512, Type: "0x83"},
		}},
		{"FAT on the whole disk", func(t *testing.T) []byte { return tool(t, 4<<20, "", "mkfs.fat", "-I") }, nil},
		{"FAT in a dos partition of 4096-byte sectors", func(t *testing.T) []byte {
			disk := make([]byte, 8<<20)
			copy(disk, table(mbrEntry{kind: 0x0c, start: 256, count: 1024}))
			copy(disk[1<<20:], tool(t, 4<<20, "", "mkfs.fat", "-I", "-S", "4096"))
			return disk
		}, []Partition{{Index: 1, Start: 1 << 20, Size: 4 << 20, Type: "0x0c"}}},
		{"exFAT in a dos partition of 4096-byte sectors", func(t *testing.T) []byte {
			disk := make([]byte, 8<<20)
			copy(disk, table(mbrEntry{kind: 0x07, start: 256, count: 1024}))
			boot := disk[1<<20:][:4096]
			copy(boot, "\xeb\x76\x90EXFAT   ")
			boot[108], boot[510], boot[511] = 12, 0x55, 0xaa
			return disk
		}, []Partition{{Index: 1, Start: 1 << 20, Size: 4 << 20, Type: "0x07"}}},
		{
			"go-diskfs", func(t *testing.T) []byte { return diskfsImage(t, 512) },
			[]Partition{{Index: 1, Start: 1 << 20, Size: 1 << 20, Name: "made", Type: typeLinux}},
		},
		{
			"go-diskfs, 4096", func(t *testing.T) []byte { return diskfsImage(t, 4096) },
			[]Partition{{Index: 1, Start: 1 << 20, Size: 1 << 20, Name: "made", Type: typeLinux}},
		},
		{
			"go-diskfs, 4096, primary lost", func(t *testing.T) []byte { b := diskfsImage(t, 4096); clear(b[4096:8192]); return b },
			[]Partition{{Index: 1, Start: 1 << 20, Size: 1 << 20, Name: "made", Type: typeLinux}},
		},
		{"nothing", func(*testing.T) []byte { return make([]byte, 4<<20) }, nil},
		{"no bytes", func(*testing.T) []byte { return nil }, nil},
		{"half a sector", func(*testing.T) []byte { return make([]byte, 256) }, nil},
		{"a leftover GPT under a new MBR", func(t *testing.T) []byte {
			b := sgdiskImage(t)
			copy(b, table(mbrEntry{kind: 0x0c, start: 64, count: 64}))
			return b
		}, []Partition{{Index: 1, Start: 64 * 512, Size: 64 * 512, Type: "0x0c"}}},
		{"an MBR partition that goes on beyond the end", func(*testing.T) []byte {
			return append(table(mbrEntry{kind: 0x0c, start: 2, count: 1 << 31}), make([]byte, 4096-512)...)
		}, []Partition{{Index: 1, Start: 1024, Size: 3072, Type: "0x0c"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := partitions(c.make(t))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func diskfsImage(t *testing.T, sector int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	d, err := diskfs.Create(path, 4<<20, diskfs.SectorSize(sector))
	if err != nil {
		t.Fatal(err)
	}
	err = d.Partition(&gptmake.Table{
		LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true,
		Partitions: []*gptmake.Partition{{Index: 1, Start: uint64(1 << 20 / sector), End: uint64(2<<20/sector) - 1, Type: gptmake.LinuxFilesystem, Name: "made"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// table is an MBR, or a link of the extended chain.
func table(entries ...mbrEntry) []byte {
	b := make([]byte, 512)
	for i, e := range entries {
		p := b[446+16*i:]
		p[0], p[4] = e.status, e.kind
		binary.LittleEndian.PutUint32(p[8:], e.start)
		binary.LittleEndian.PutUint32(p[12:], e.count)
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

// hostileGPT makes a disk of 100 sectors with one partition in both tables, lets edit change header and
// entries, and then sets right checksums.
func hostileGPT(edit func(header, entries []byte)) []byte {
	le := binary.LittleEndian
	b := make([]byte, 100*512)
	copy(b, table(mbrEntry{kind: mbrProtective, start: 1, count: 99}))
	for _, at := range []struct{ header, entries int }{{1, 2}, {99, 67}} {
		header, entries := b[at.header*512:][:512], b[at.entries*512:][:32*512]
		copy(header, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
		le.PutUint64(header[24:], uint64(at.header))
		le.PutUint64(header[40:], 34)
		le.PutUint64(header[48:], 66)
		le.PutUint64(header[72:], uint64(at.entries))
		le.PutUint32(header[80:], 128)
		le.PutUint32(header[84:], 128)
		entries[0] = 1
		le.PutUint64(entries[32:], 40)
		le.PutUint64(entries[40:], 49)
		edit(header, entries)
		le.PutUint32(header[88:], crc32.ChecksumIEEE(entries[:min(len(entries), int(le.Uint32(header[80:])*le.Uint32(header[84:])%(1<<20)))]))
		clear(header[16:20])
		le.PutUint32(header[16:], crc32.ChecksumIEEE(header[:min(512, le.Uint32(header[12:]))]))
	}
	return b
}

func TestHostileTables(t *testing.T) {
	le := binary.LittleEndian
	if parts, err := partitions(hostileGPT(func(_, _ []byte) {})); err != nil || len(parts) != 1 {
		t.Fatalf("the table before it is made hostile: %v, %v", parts, err)
	}
	used := func(e []byte, first, last uint64) { e[0] = 1; le.PutUint64(e[32:], first); le.PutUint64(e[40:], last) }
	chain := func(links ...mbrEntry) []byte { // sector 0, then one link per sector from 1
		b := make([]byte, 512*200)
		copy(b, table(mbrEntry{kind: 5, start: 1, count: 199}))
		for i, l := range links {
			copy(b[512*(1+i):], table(mbrEntry{kind: 0x83, start: 70, count: 1}, l))
		}
		return b
	}
	var long []mbrEntry
	for i := range 66 {
		long = append(long, mbrEntry{kind: 5, start: uint32(i + 1), count: 1})
	}
	var meter badinputs.Meter
	for name, b := range map[string][]byte{
		"103 both checksums wrong":       func() []byte { b := hostileGPT(func(_, _ []byte) {}); b[512+50]++; b[99*512+50]++; return b }(),
		"103 both entry checksums wrong": func() []byte { b := hostileGPT(func(_, _ []byte) {}); b[1024]++; b[67*512]++; return b }(),
		"103 header in the wrong place":  hostileGPT(func(h, _ []byte) { le.PutUint64(h[24:], 5) }),
		"103 header of 2^32 bytes":       hostileGPT(func(h, _ []byte) { le.PutUint32(h[12:], 1<<32-1) }),
		"103 header of no bytes":         hostileGPT(func(h, _ []byte) { le.PutUint32(h[12:], 0) }),
		"103 revision 2":                 hostileGPT(func(h, _ []byte) { h[10] = 2 }),
		"103 overlap":                    hostileGPT(func(_, e []byte) { used(e[128:], 49, 60) }),
		"103 same partition twice":       hostileGPT(func(_, e []byte) { used(e[128:], 40, 49) }),
		"103 one inside the other":       hostileGPT(func(_, e []byte) { used(e[128:], 42, 43) }),
		"103 LBA 2^64-1":                 hostileGPT(func(_, e []byte) { used(e, 40, 1<<64-1) }),
		"103 start LBA 2^64-1":           hostileGPT(func(_, e []byte) { used(e, 1<<64-1, 1<<64-1) }),
		"103 start 2^55 overflows":       hostileGPT(func(_, e []byte) { used(e, 1<<55+40, 1<<55+49) }),
		"103 end before start":           hostileGPT(func(_, e []byte) { used(e, 50, 40) }),
		"103 over the header":            hostileGPT(func(_, e []byte) { used(e, 0, 40) }),
		"103 over the backup":            hostileGPT(func(_, e []byte) { used(e, 60, 99) }),
		"103 usable beyond the disk":     hostileGPT(func(h, e []byte) { le.PutUint64(h[48:], 1000); used(e, 40, 900) }),
		"103 usable 2^64":                hostileGPT(func(h, _ []byte) { le.PutUint64(h[48:], 1<<64-1) }),
		"103 129 entries":                hostileGPT(func(h, _ []byte) { le.PutUint32(h[80:], 129) }),
		"103 2^32 entries":               hostileGPT(func(h, _ []byte) { le.PutUint32(h[80:], 1<<32-1) }),
		"103 entries of 0 bytes":         hostileGPT(func(h, _ []byte) { le.PutUint32(h[84:], 0) }),
		"103 entries of 192 bytes":       hostileGPT(func(h, _ []byte) { le.PutUint32(h[84:], 192) }),
		"103 entries of 2^31 bytes":      hostileGPT(func(h, _ []byte) { le.PutUint32(h[84:], 1<<31) }),
		"103 entries at 2^64-1":          hostileGPT(func(h, _ []byte) { le.PutUint64(h[72:], 1<<64-1) }),
		"103 entries at 0":               hostileGPT(func(h, _ []byte) { le.PutUint64(h[72:], 0) }),
		"103 entries in a partition":     hostileGPT(func(h, _ []byte) { le.PutUint64(h[72:], 35) }),
		"103 protective MBR only":        append(table(mbrEntry{kind: mbrProtective, start: 1, count: 9}), make([]byte, 512*9)...),
		"103 protective MBR, one sector": table(mbrEntry{kind: mbrProtective, start: 1, count: 9}),

		"103 dos overlap":              append(table(mbrEntry{kind: 1, start: 1, count: 5}, mbrEntry{kind: 1, start: 5, count: 1}), make([]byte, 512*9)...),
		"103 dos beyond the disk":      append(table(mbrEntry{kind: 1, start: 10, count: 1}), make([]byte, 512*9)...),
		"103 dos over the table":       append(table(mbrEntry{kind: 1, start: 0, count: 1}), make([]byte, 512*9)...),
		"103 link to itself":           chain(mbrEntry{kind: 5, start: 0, count: 1}),
		"103 links in a circle":        chain(mbrEntry{kind: 5, start: 1, count: 1}, mbrEntry{kind: 5, start: 2, count: 1}, mbrEntry{kind: 5, start: 1, count: 1}),
		"103 link beyond the extended": chain(mbrEntry{kind: 5, start: 1 << 31, count: 1}),
		"103 66 links":                 chain(long...),
		"103 extended at 0":            append(table(mbrEntry{kind: 5, start: 0, count: 9}), make([]byte, 512*9)...),
		"103 extended beyond the disk": append(table(mbrEntry{kind: 15, start: 1 << 31, count: 1 << 31}), make([]byte, 512*9)...),
		"103 logical beyond its extended": func() []byte {
			b := chain()
			copy(b[512:], table(mbrEntry{kind: 0x83, start: 1 << 31, count: 1}))
			return b
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			meter.Run(t, func() {
				parts, err := partitions(b)
				if !errors.Is(err, ErrTable) || parts != nil {
					t.Errorf("%v, %v", parts, err)
				}
			})
		})
	}
	t.Logf("figure: hostile partition tables: %v", &meter)
}

// The backup may speak only where the primary has nothing sound to say.
func TestBackupOnlyWherePrimaryIsBad(t *testing.T) {
	first := true
	b := hostileGPT(func(_, e []byte) {
		if first { // the primary, which is made first
			binary.LittleEndian.PutUint64(e[40:], 1<<40)
		}
		first = false
	})
	if parts, err := partitions(b); !errors.Is(err, ErrTable) {
		t.Errorf("a primary with right checksums and a wrong partition: %v, %v", parts, err)
	}
	b[512+16]++
	if parts, err := partitions(b); err != nil || len(parts) != 1 {
		t.Errorf("the same with a wrong checksum: %v, %v", parts, err)
	}
}

type failing struct {
	io.ReaderAt
	from int64
}

var errMedium = errors.New("medium error")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errMedium
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestMediumErrorIsNoBadTable(t *testing.T) {
	b := hostileGPT(func(_, _ []byte) {})
	for _, from := range []int64{0, 512, 1024} {
		_, err := Partitions(failing{bytes.NewReader(b), from}, int64(len(b)))
		if !errors.Is(err, errMedium) || errors.Is(err, ErrTable) {
			t.Errorf("unreadable from %d: %v", from, err)
		}
	}
}

// sane checks what every answer must keep, however hostile the bytes.
func sane(b []byte) error {
	parts, err := partitions(b)
	if err != nil && parts != nil {
		return fmt.Errorf("partitions and an error: %v", err)
	}
	if len(parts) > maxEntries {
		return fmt.Errorf("%d partitions", len(parts))
	}
	for i, p := range parts {
		if p.Start <= 0 || p.Size <= 0 || p.Start > int64(len(b)) || p.Size > int64(len(b))-p.Start || p.Index < 1 {
			return fmt.Errorf("%+v on %d bytes", p, len(b))
		}
		if strings.ContainsAny(p.Name, "\x00\n\x1b") {
			return fmt.Errorf("name %q", p.Name)
		}
		for _, q := range parts[:i] {
			if p.Start < q.Start+q.Size && q.Start < p.Start+p.Size {
				return fmt.Errorf("%+v overlaps %+v", p, q)
			}
		}
	}
	return nil
}

// fixed sets the checksums of a GPT right, so that mutants get past them.
func fixed(b []byte) {
	le := binary.LittleEndian
	if len(b) < 34*512 {
		return
	}
	h := b[512:1024]
	if n := uint64(le.Uint32(h[80:])) * uint64(le.Uint32(h[84:])); n <= 32*512 {
		le.PutUint32(h[88:], crc32.ChecksumIEEE(b[1024:1024+n]))
	}
	if n := le.Uint32(h[12:]); n <= 512 {
		clear(h[16:20])
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:n]))
	}
}

var mutants = flag.Int("mutants", 40_000, "partition tables that TestPartitionMutants damages and reads")

// TestPartitionMutants damages tables of both kinds, field by field and at random, half of the GPTs with right checksums.
func TestPartitionMutants(t *testing.T) {
	le := binary.LittleEndian
	gpt := hostileGPT(func(_, e []byte) { e[128] = 1; le.PutUint64(e[160:], 50); le.PutUint64(e[168:], 60) })
	dos := tool(t, 512*100, "label: dos\nstart=2,size=8,type=c\nstart=20,size=70,type=5\nstart=25,size=5\nstart=35,size=5\n", "sfdisk", "-q")
	var links []int // the table and the chain of logical partitions
	for at := 0; at < len(dos); at += 512 {
		if dos[at+510] == 0x55 && dos[at+511] == 0xaa {
			links = append(links, at)
		}
	}
	if len(links) != 3 {
		t.Fatalf("links at %v", links)
	}
	// Of a GPT: the fields of the header and of the first three entries.
	fields := []int{512, 520, 524, 528, 536, 544, 552, 560, 584, 592, 596, 600}
	for i := range 3 {
		for _, at := range []int{0, 16, 32, 40, 48, 56} {
			fields = append(fields, 1024+128*i+at)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	number := func(clean uint64) uint64 {
		return []uint64{0, 1, 2, clean - 1, clean + 1, clean ^ 1<<rng.IntN(64), 33, 34, 66, 67, 99, 100, 1<<31 - 1, 1<<32 - 1, 1<<55 + clean, 1<<63 - 1, 1 << 63, 1<<64 - 1, rng.Uint64(), rng.Uint64N(101)}[rng.IntN(20)]
	}
	var meter badinputs.Meter
	refused := 0
	for i := range *mutants {
		clean := [][]byte{gpt, dos}[i%2]
		b := bytes.Clone(clean)
		for range 1 + rng.IntN(3) {
			var at int
			switch field := rng.IntN(3) > 0; {
			case field && i%2 == 0:
				at = fields[rng.IntN(len(fields))]
				v := number(le.Uint64(b[at:]))
				if rng.IntN(2) == 0 {
					le.PutUint32(b[at:], uint32(v))
				} else {
					le.PutUint64(b[at:], v)
				}
			case field:
				at = links[rng.IntN(len(links))] + 446 + 16*rng.IntN(4) + []int{0, 4, 8, 12}[rng.IntN(4)]
				if at&3 == 2 && rng.IntN(2) == 0 { // start or count: the entries are not aligned
					le.PutUint32(b[at:], uint32(number(uint64(le.Uint32(b[at:])))))
				} else {
					b[at] = []byte{0, 5, 0x0f, 0x80, 0x85, 0xee, 0x0c, byte(rng.Uint32())}[rng.IntN(8)]
				}
			case i%2 == 0:
				b[rng.IntN(512*4)] = byte(rng.Uint32())
			default:
				b[links[rng.IntN(len(links))]+rng.IntN(512)] = byte(rng.Uint32())
			}
		}
		if i%4 == 0 {
			fixed(b)
		}
		if i%8 < 4 {
			clear(b[99*512:]) // no backup
		}
		var err error
		meter.Run(t, func() { err = sane(b) })
		if err != nil {
			t.Fatalf("mutant %d: %v", i, err)
		}
		if _, err := partitions(b); err != nil {
			refused++
		}
	}
	t.Logf("figure: partition table mutants: %v; %d refused", &meter, refused)
	if refused < *mutants/4 || refused == *mutants {
		t.Error("the mutants do not test what they should")
	}
}

func FuzzPartitions(f *testing.F) {
	f.Add(hostileGPT(func(_, _ []byte) {}))
	f.Add(table(mbrEntry{kind: 0x0c, start: 1, count: 1}))
	b := make([]byte, 512*12)
	copy(b, table(mbrEntry{kind: 5, start: 1, count: 10}))
	copy(b[512:], table(mbrEntry{kind: 0x83, start: 1, count: 1}, mbrEntry{kind: 5, start: 4, count: 2}))
	copy(b[512*5:], table(mbrEntry{kind: 0x83, start: 1, count: 1}))
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		if err := sane(b); err != nil {
			t.Error(err)
		}
		b = bytes.Clone(b)
		fixed(b)
		if err := sane(b); err != nil {
			t.Errorf("with right checksums: %v", err)
		}
	})
}
