package writelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/disk/crash"
)

// entry is one of a log, data filled up to whole sectors by whoever makes it.
func entry(sector, count, flags uint64, data []byte) []byte {
	b := make([]byte, sectorSize)
	for i, n := range []uint64{sector, count, flags, 0} {
		binary.LittleEndian.PutUint64(b[8*i:], n)
	}
	return append(b, data...)
}

func mark(text string) []byte {
	b := entry(0, 0, flagMark, nil)
	binary.LittleEndian.PutUint64(b[24:], uint64(len(text)))
	copy(b[headerSize:], text)
	return b
}

func super(entries uint64) []byte {
	b := make([]byte, sectorSize)
	binary.LittleEndian.PutUint64(b, magic)
	binary.LittleEndian.PutUint64(b[8:], version)
	binary.LittleEndian.PutUint64(b[16:], entries)
	binary.LittleEndian.PutUint32(b[24:], sectorSize)
	return b
}

const diskSize = 64 << 10

func read(b []byte) (*Log, error) { return Read(bytes.NewReader(b), int64(len(b)), diskSize) }

func sectors(n int, with byte) []byte { return bytes.Repeat([]byte{with}, n*sectorSize) }

func TestRead(t *testing.T) {
	raw := bytes.Join([][]byte{
		super(1), // what it says of the number of entries is not looked at
		entry(8, 2, 0, sectors(2, 1)),
		entry(0, 0, flagFlush, nil),
		entry(16, 32, flagDiscard, nil), // no data follows
		entry(1, 1, flagFUA, sectors(1, 2)),
		entry(2, 1, flagFlush|flagFUA, sectors(1, 3)),
		mark("half time"),
		entry(127, 1, 0, sectors(1, 4)),
	}, nil)
	want := []crash.Op{
		{Kind: crash.Write, Off: 4096, Len: 1024, Data: sectors(2, 1)},
		{Kind: crash.Flush},
		{Kind: crash.Discard, Off: 8192, Len: 16384},
		{Kind: crash.Write, Off: 512, Len: 512, Data: sectors(1, 2)},
		{Kind: crash.Flush},
		{Kind: crash.Flush},
		{Kind: crash.Write, Off: 1024, Len: 512, Data: sectors(1, 3)},
		{Kind: crash.Flush},
		{Kind: crash.Mark, Mark: "half time"},
		{Kind: crash.Write, Off: 127 * 512, Len: 512, Data: sectors(1, 4)},
	}
	l, err := read(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, l.Ops); diff != "" {
		t.Error(diff)
	}
	if got := l.End[len(l.End)-1]; got != int64(len(raw)) {
		t.Errorf("the last entry ends at %d of %d", got, len(raw))
	}
	// QEMU was killed: the superblock was never written, the last entry only in part.
	clear(raw[:sectorSize])
	for _, cut := range []int{1, 511, 512, 513, 1023} {
		l, err := read(raw[:len(raw)-cut])
		if err != nil || len(l.Ops) != len(want)-1 {
			t.Errorf("%d bytes less: %d operations, %v", cut, len(l.Ops), err)
		}
	}
	if l, err := read(nil); err != nil || len(l.Ops) != 0 {
		t.Errorf("an empty file: %v, %v", l, err)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"magic":            append([]byte{1}, super(0)[1:]...),
		"sector size":      func() []byte { b := super(0); b[25] = 0x10; return b }(),
		"past the end":     append(super(1), entry(127, 2, 0, sectors(2, 0))...),
		"sector overflows": append(super(1), entry(1<<63, 1, 0, sectors(1, 0))...),
		"count overflows":  append(super(1), entry(1, 1<<64-1, 0, nil)...),
		"flags":            append(super(1), entry(0, 1, 16, sectors(1, 0))...),
		"text in a write":  append(super(1), func() []byte { b := entry(0, 1, 0, sectors(1, 0)); b[24] = 1; return b }()...),
		"long mark":        append(super(1), func() []byte { b := mark("x"); b[25] = 2; return b }()...),
	} {
		if _, err := read(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A mark never stands before what had been written when it became true.
func TestMark(t *testing.T) {
	raw := bytes.Join([][]byte{super(0), entry(0, 1, 0, sectors(1, 1)), entry(0, 0, flagFlush, nil), entry(1, 1, 0, sectors(1, 1))}, nil)
	l, err := read(raw)
	if err != nil {
		t.Fatal(err)
	}
	l.Mark(Mark{0, "start"}, Mark{2048, "flushed"}, Mark{2100, "torn"}, Mark{int64(len(raw)), "end"})
	got := ""
	for _, op := range l.Ops {
		switch op.Kind {
		case crash.Write:
			got += "W "
		case crash.Flush:
			got += "F "
		case crash.Mark:
			got += op.Mark.(string) + " "
		}
	}
	if want := "start W F flushed torn W end "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(bytes.Join([][]byte{super(1), entry(8, 2, 0, sectors(2, 1)), entry(0, 0, flagFlush, nil), entry(16, 32, flagDiscard, nil), mark("m")}, nil))
	f.Add(append(super(9), entry(1, 1, flagFlush|flagFUA, sectors(1, 3))...))
	f.Add(append(make([]byte, sectorSize), entry(127, 2, 0, sectors(2, 0))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := read(b)
		if err != nil {
			return
		}
		image := crash.NewImage(diskSize)
		last := int64(0)
		for i, op := range l.Ops {
			if l.End[i] < last || l.End[i] > int64(len(b)) {
				t.Fatalf("operation %d ends at %d", i, l.End[i])
			}
			last = l.End[i]
			if op.Kind == crash.Write {
				if _, err := image.WriteAt(op.Data, op.Off); err != nil || op.Len != int64(len(op.Data)) {
					t.Fatalf("operation %d: %v", i, err)
				}
			}
		}
	})
}
