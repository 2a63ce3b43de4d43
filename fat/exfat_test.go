package fat_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"lifeboat/badinputs"
	"lifeboat/fat"
	"lifeboat/image"
)

var le = binary.LittleEndian

// tool runs a program of exfatprogs.
func tool(t testing.TB, name string, args ...string) {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			t.Skipf("no %s: %v", name, err)
		}
	}
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// ex is an exFAT image and where it says what.
type ex struct {
	t       testing.TB
	b       []byte
	unit    int // bytes of a sector
	cluster int
	table   int // bytes
	heap    int
	root    uint32
}

func exOf(t testing.TB, b []byte) *ex {
	unit := 1 << b[108]
	return &ex{
		t: t, b: b, unit: unit, cluster: unit << b[109], table: int(le.Uint32(b[80:])) * unit,
		heap: int(le.Uint32(b[88:])) * unit, root: le.Uint32(b[96:]),
	}
}

// exStick makes a stick whose root has the files.
func exStick(t testing.TB, files map[string][]byte) *ex {
	t.Helper()
	dir := t.TempDir()
	var names []string
	for name, b := range files {
		names = append(names, filepath.Join(dir, name))
		if err := os.WriteFile(names[len(names)-1], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(names)
	out := filepath.Join(dir, "image of a stick")
	if err := image.Stick(out, image.StickOptions{WholeDisk: true, ExFAT: true}, names); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return exOf(t, b)
}

// formatted makes an empty stick with mkfs.exfat.
func formatted(t testing.TB, size int64, args ...string) *ex {
	t.Helper()
	out := filepath.Join(t.TempDir(), "stick")
	if err := os.WriteFile(out, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(out, size); err != nil {
		t.Fatal(err)
	}
	tool(t, "mkfs.exfat", append(args, out)...)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return exOf(t, b)
}

// fsck lets exfatprogs judge the stick.
func (x *ex) fsck() {
	x.t.Helper()
	name := filepath.Join(x.t.TempDir(), "judged")
	if err := os.WriteFile(name, x.b, 0o600); err != nil {
		x.t.Fatal(err)
	}
	tool(x.t, "fsck.exfat", "-n", name)
}

func (x *ex) at(cluster uint32) []byte { return x.b[x.heap+int(cluster-2)*x.cluster:][:x.cluster] }

func (x *ex) link(cluster, to uint32) { le.PutUint32(x.b[x.table+4*int(cluster):], to) }

func (x *ex) next(cluster uint32) uint32 { return le.Uint32(x.b[x.table+4*int(cluster):]) }

// set finds the entries of a file in the folder at cluster.
func (x *ex) set(cluster uint32, name string) []byte {
	x.t.Helper()
	dir := x.at(cluster)
	for at := 0; at < len(dir); at += 32 {
		if dir[at] != 0x85 {
			continue
		}
		set := dir[at : at+32*(1+int(dir[at+1]))]
		var units []uint16
		for i := range int(set[35]) {
			units = append(units, le.Uint16(set[64+32*(i/15)+2+2*(i%15):]))
		}
		if string(utf16.Decode(units)) == name {
			return set
		}
	}
	x.t.Fatalf("no file %s", name)
	return nil
}

func (x *ex) named(name string) []byte { return x.set(x.root, name) }

// sum gives a set its checksum.
func sum(set []byte) {
	s := uint16(0)
	for i, c := range set {
		if i != 2 && i != 3 {
			s = (s>>1 | s<<15) + uint16(c)
		}
	}
	le.PutUint16(set[2:], s)
}

// bootSum gives the boot sectors their checksum.
func (x *ex) bootSum() {
	s := uint32(0)
	for i, c := range x.b[:11*x.unit] {
		if i != 106 && i != 107 && i != 112 {
			s = (s>>1 | s<<31) + uint32(c)
		}
	}
	for i := 11 * x.unit; i < 12*x.unit; i += 4 {
		le.PutUint32(x.b[i:], s)
	}
}

// free takes a cluster that nothing lies in.
func (x *ex) free(from uint32) uint32 {
	bitmap := x.b[x.heap:] // it comes first
	for c := from; ; c++ {
		if bitmap[(c-2)/8]&(1<<((c-2)%8)) == 0 {
			bitmap[(c-2)/8] |= 1 << ((c - 2) % 8)
			return c
		}
	}
}

// add puts a file or folder into the folder at dir, its clusters step apart, so that they need a chain where step is not 1.
func (x *ex) add(dir uint32, name string, contents []byte, folder bool, step uint32) uint32 {
	x.t.Helper()
	text := utf16.Encode([]rune(name))
	parts := (len(text) + 14) / 15
	set := make([]byte, 32*(2+parts))
	set[0], set[1], set[4], set[32], set[33], set[35] = 0x85, byte(1+parts), 0x20, 0xc0, 0x01, byte(len(text))
	if folder {
		set[4] = 0x10
	}
	hash := uint16(0)
	for i, u := range text {
		set[64+32*(i/15)] = 0xc1
		le.PutUint16(set[64+32*(i/15)+2+2*(i%15):], u)
		if u < 0x80 {
			u = uint16(strings.ToUpper(string(rune(u)))[0])
		}
		hash = (hash>>1 | hash<<15) + u&0xff
		hash = (hash>>1 | hash<<15) + u>>8
	}
	for i := range parts {
		set[64+32*i] = 0xc1
	}
	le.PutUint16(set[36:], hash)
	first, last := uint32(0), uint32(0)
	from := uint32(100)
	if step == 1 {
		from = 500 // where nothing in pieces lies
	}
	for ; len(contents) > 0; from += step {
		c := x.free(from)
		if from = c; first == 0 {
			first = c
		} else {
			x.link(last, c)
		}
		last = c
		n := copy(x.at(c), contents)
		contents = contents[n:]
		le.PutUint64(set[56:], le.Uint64(set[56:])+uint64(n))
	}
	if step == 1 {
		set[33] |= 0x02
		for c := first; c != last; c++ {
			x.link(c, 0)
		}
	} else if last != 0 {
		x.link(last, 0xffffffff)
	}
	copy(set[40:48], set[56:64])
	le.PutUint32(set[52:], first)
	sum(set)
	for b := x.at(dir); ; b = b[32:] {
		if b[0] == 0 {
			copy(b[:len(set):len(b)], set)
			return first
		}
	}
}

func TestReadsExFAT(t *testing.T) {
	files := map[string][]byte{
		"update.raucb": fat.Noise(1, 200_001), "README.TXT": []byte("hello"), "empty": nil,
		"._update.raucb": fat.Noise(2, 4096), ".hidden": {1},
		"a rather long name, with blanks and ümläuts 日本語.raucb": fat.Noise(3, 65_536),
		strings.Repeat("x", 255): []byte("longest"),
	}
	x := exStick(t, files)
	dir := x.add(x.root, "Updates", make([]byte, 2*x.cluster), true, 1)
	x.add(dir, "v2.raucb", fat.Noise(4, 33_333), false, 2)
	x.add(dir, "v3.raucb", fat.Noise(5, 33_333), false, 1)
	// A deleted file in front, an entry of another kind of each sort, and one after the end of the name.
	gone := x.add(x.root, "gone.raucb", []byte("gone"), false, 1)
	x.fsck()
	set := x.set(x.root, "gone.raucb")
	for i := 0; i < len(set); i += 32 {
		set[i] &^= 0x80
	}
	clear(x.at(gone))
	f := fat.OpenTest(t, x.b)
	entries, err := f.ReadDir("/")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if e.Dir {
			e.Name += "/"
		}
		got = append(got, fmt.Sprintf("%s %d", e.Name, e.Size))
	}
	want := []string{"Updates/ 0"}
	for name, b := range files {
		want = append(want, fmt.Sprintf("%s %d", name, len(b)))
	}
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	files["UPDATES/V2.RAUCB"] = fat.Noise(4, 33_333)
	files["updates//v3.raucb"] = fat.Noise(5, 33_333)
	files["A RATHER LONG NAME, WITH BLANKS AND ÜMLÄUTS 日本語.RAUCB"] = files["a rather long name, with blanks and ümläuts 日本語.raucb"]
	for name, want := range files {
		got, err := fat.Read(f, name)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for _, name := range []string{"gone.raucb", "LIFEBOAT", "updates/v4", "update.raucb/x", ".", ".."} {
		if _, err := f.Open(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open %s: %v", name, err)
		}
	}
	if file, err := f.Open("updates/v2.raucb"); err != nil || file.Pieces() < 5 {
		t.Errorf("a file in pieces: %v, %v", file, err)
	}
}

// What exfatprogs formats, with sectors and clusters of every kind, and their up-case table.
func TestReadsFormattedExFAT(t *testing.T) {
	for _, c := range []struct {
		size int64
		args []string
	}{
		{1 << 20, []string{"-c", "512", "-b", "64K"}},
		{16 << 20, []string{"-L", "ÜBUNG"}},
		{100 << 20, []string{"-c", "128K", "-b", "16M"}},
		{160 << 20, []string{"-c", "32M"}},
	} {
		t.Run(fmt.Sprintf("%d MiB %s", c.size>>20, strings.Join(c.args, " ")), func(t *testing.T) {
			x := formatted(t, c.size, c.args...)
			want := fat.Noise(1, 70_001)
			if len(x.b)/x.cluster > 700 {
				x.add(x.root, "update.raucb", want, false, 2)
				x.fsck()
			}
			f := fat.OpenTest(t, x.b)
			entries, err := f.ReadDir("")
			if err != nil {
				t.Fatal(err)
			}
			if len(x.b)/x.cluster <= 700 {
				if len(entries) > 0 {
					t.Errorf("%v", entries)
				}
				return
			}
			got, err := fat.Read(f, "UPDATE.RAUCB")
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// thin is a stick of which only the beginning and the end of the file are there.
type thin struct {
	head []byte
	size int64
	at   int64 // where tail lies
	tail []byte
}

func (s thin) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	if off < int64(len(s.head)) {
		copy(p[:n], s.head[off:])
	}
	for i := range n {
		if at := off + int64(i) - s.at; at >= 0 && at < int64(len(s.tail)) {
			p[i] = s.tail[at]
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// A file of 5 GiB, and one whose end was never written.
func TestLargeExFATFile(t *testing.T) {
	const size = 5<<30 + 12345
	tail := fat.Noise(1, 5000)
	// Nobody writes gigabytes of zeros for a test: the stick of a small file is made to say that it is large.
	x := exStick(t, map[string][]byte{"large.raucb": fat.Noise(2, 5000)})
	set := x.set(x.root, "large.raucb")
	first := le.Uint32(set[52:])
	le.PutUint64(set[40:], size)
	le.PutUint64(set[56:], size)
	sum(set)
	const clusters = size/4096 + 1000
	le.PutUint64(x.b[72:], uint64(x.heap)/512+clusters*8)
	le.PutUint32(x.b[84:], clusters*4/512+1)
	// The table becomes longer, and the heap moves behind it.
	heap := int64(x.heap)
	le.PutUint32(x.b[92:], clusters)
	table := clusters*4/512 + 1
	moved := int64(24+table+7)/8*8*512 - heap
	head := append(slices.Concat(x.b[:x.heap], make([]byte, moved)), x.b[x.heap:x.heap+64<<10]...)
	le.PutUint32(head[88:], uint32((heap+moved)/512))
	le.PutUint64(head[72:], uint64(heap+moved)/512+clusters*8)
	big := exOf(t, head)
	big.bootSum()
	medium := thin{head: head, size: heap + moved + clusters*4096, tail: tail}
	medium.at = heap + moved + int64(first-2)*4096 + size - 5000
	fsys, err := fat.Open(medium, medium.size)
	if err != nil {
		t.Fatal(err)
	}
	file, err := fsys.Open("large.raucb")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5000)
	if n, err := file.ReadAt(got, size-5000); n != 5000 || err != nil || !bytes.Equal(got, tail) || file.Size() != size {
		t.Errorf("%d bytes of %d, %v", n, file.Size(), err)
	}

	x = exStick(t, map[string][]byte{"half.raucb": fat.Noise(2, 50_000)})
	set = x.set(x.root, "half.raucb")
	le.PutUint64(set[40:], 20_000)
	sum(set)
	rw := &memory{x.b}
	if fsys, err = fat.Open(rw, int64(len(x.b))); err != nil {
		t.Fatal(err)
	}
	want := append(fat.Noise(2, 50_000)[:20_000:20_000], make([]byte, 30_000)...)
	for _, c := range [][2]int{{0, 50_000}, {19_990, 20}, {20_000, 1}, {30_000, 20_000}, {0, 20_000}} {
		got, err := fat.Read(fsys, "half.raucb")
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%v: %d bytes, %v", c, len(got), err)
		}
		file, err := fsys.Open("half.raucb")
		if err != nil {
			t.Fatal(err)
		}
		part := make([]byte, c[1])
		if n, err := file.ReadAt(part, int64(c[0])); n != c[1] || err != nil || !bytes.Equal(part, want[c[0]:c[0]+c[1]]) {
			t.Errorf("%v: %d bytes, %v", c, n, err)
		}
		n, err := file.WriteAt(fat.Noise(byte(c[0]), c[1]), int64(c[0]))
		if fits := c[0]+c[1] <= 20_000; fits != (err == nil) || fits != (n == c[1]) {
			t.Errorf("write %v where 20000 bytes were written: %d, %v", c, n, err)
		} else if fits {
			copy(want[c[0]:], fat.Noise(byte(c[0]), c[1]))
		}
	}
}

type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	return copy(m.b[off:], p), nil
}

const exFile = "update with a long name.raucb"

// smallEx is what hostile cases and mutants start from: little, so that each is quick.
func smallEx(t testing.TB) *ex {
	x := formatted(t, 1<<20, "-c", "512", "-b", "64K")
	x.add(x.root, exFile, fat.Noise(1, 20_000), false, 2)
	x.add(x.root, "README.TXT", []byte("hello"), false, 1)
	dir := x.add(x.root, "updates", make([]byte, 1024), true, 3)
	x.add(dir, "v2.raucb", fat.Noise(2, 3000), false, 1)
	x.fsck()
	return x
}

// Hostile sticks as those of FAT, by the rows of the list of bad inputs.
func TestHostileExFAT(t *testing.T) {
	clean := smallEx(t)
	boot := func(edit func(b []byte)) func(*ex) { return func(x *ex) { edit(x.b); x.bootSum() } }
	entry := func(name string, edit func(set []byte)) func(*ex) {
		return func(x *ex) { s := x.set(x.root, name); edit(s); sum(s) }
	}
	upper := func(edit func(e []byte)) func(*ex) {
		return func(x *ex) {
			for e := x.at(x.root); ; e = e[32:] {
				if e[0] == 0x82 {
					edit(e)
					return
				}
			}
		}
	}
	list := func(dir string) func(*fat.FS) error {
		return func(f *fat.FS) error { _, err := f.ReadDir(dir); return err }
	}
	get := func(name string) func(*fat.FS) error {
		return func(f *fat.FS) error { _, err := fat.Read(f, name); return err }
	}
	var meter badinputs.Meter
	for _, c := range []struct {
		name string
		edit func(x *ex)
		use  func(*fat.FS) error // nil: Open refuses
	}{
		{"93 root directory in a loop", func(x *ex) {
			for e := x.at(x.root); len(e) > 0; e = e[32:] {
				if e[0] == 0 {
					e[0] = 0x05
				}
			}
			x.link(x.root, x.root)
		}, nil},
		{"94 file in a loop", func(x *ex) { c := le.Uint32(x.set(x.root, exFile)[52:]); x.link(c, c) }, get(exFile)},
		{"94 file in a wide loop", func(x *ex) {
			c := le.Uint32(x.set(x.root, exFile)[52:])
			x.link(x.next(x.next(c)), c)
		}, get(exFile)},
		{"94 file that ends too soon", func(x *ex) { x.link(le.Uint32(x.set(x.root, exFile)[52:]), 0xffffffff) }, get(exFile)},
		{"95 no sectors", boot(func(b []byte) { clear(b[72:80]) }), nil},
		{"95 no table", boot(func(b []byte) { clear(b[84:88]) }), nil},
		{"95 no tables", boot(func(b []byte) { b[110] = 0 }), nil},
		{"95 three tables", boot(func(b []byte) { b[110] = 3 }), nil},
		{"95 no clusters", boot(func(b []byte) { clear(b[92:96]) }), nil},
		{"96 larger than the medium", boot(func(b []byte) { le.PutUint64(b[72:], 1<<63) }), nil},
		{"96 more clusters than the table has", boot(func(b []byte) { le.PutUint32(b[92:], 1<<32-11) }), nil},
		{"96 heap behind the end", boot(func(b []byte) { le.PutUint32(b[88:], 1<<32-1) }), nil},
		{"96 table over the heap", boot(func(b []byte) { le.PutUint32(b[84:], 1<<20) }), nil},
		{"97 file larger than the medium", entry("README.TXT", func(s []byte) {
			le.PutUint64(s[40:], 1<<40)
			le.PutUint64(s[56:], 1<<40)
		}), list("/")},
		{"97 file of 2^64 bytes", entry("README.TXT", func(s []byte) { le.PutUint64(s[56:], 1<<64-1) }), list("/")},
		{"97 more written than there is", entry("README.TXT", func(s []byte) { s[40] = 6 }), list("/")},
		{"98 cluster beyond the end", func(x *ex) { x.link(le.Uint32(x.set(x.root, exFile)[52:]), 1<<30) }, get(exFile)},
		{"98 bad cluster", func(x *ex) { x.link(le.Uint32(x.set(x.root, exFile)[52:]), 0xfffffff7) }, get(exFile)},
		{"98 file beyond the end", entry("README.TXT", func(s []byte) { le.PutUint32(s[52:], 1<<31) }), get("README.TXT")},
		{"98 file without clusters", entry("README.TXT", func(s []byte) { le.PutUint32(s[52:], 0) }), get("README.TXT")},
		{"98 file over the end", entry("README.TXT", func(s []byte) {
			le.PutUint32(s[52:], le.Uint32(clean.b[92:])+1)
			le.PutUint64(s[56:], 1024)
		}), get("README.TXT")},
		{"98 root beyond the end", boot(func(b []byte) { le.PutUint32(b[96:], 1<<31) }), nil},
		{"99 sectors of 256", boot(func(b []byte) { b[108] = 8 }), nil},
		{"99 sectors of 8192", boot(func(b []byte) { b[108] = 13 }), nil},
		{"99 clusters of 2^255", boot(func(b []byte) { b[109] = 255 }), nil},
		{"99 clusters of 64 MiB", boot(func(b []byte) { b[109] = 17 }), nil},
		{"99 revision", boot(func(b []byte) { b[105] = 2 }), nil},
		{"100 folder that is the root", entry("updates", func(s []byte) { le.PutUint32(s[52:], clean.root) }), list("/")},
		{"100 folder without clusters", entry("updates", func(s []byte) { le.PutUint32(s[52:], 0) }), list("/")},
		{"100 folder of half a cluster", entry("updates", func(s []byte) { le.PutUint64(s[56:], 100) }), list("/")},
		{"100 folder of all clusters", entry("updates", func(s []byte) {
			s[33] |= 2
			le.PutUint64(s[56:], 1<<30)
		}), list("/")},
		{"102 checksum of a file", func(x *ex) { x.set(x.root, exFile)[64+5]++ }, list("/")},
		{"102 hash of a name", entry(exFile, func(s []byte) { s[36]++ }), list("/")},
		{"102 name without length", entry(exFile, func(s []byte) { s[35] = 0 }), list("/")},
		{"102 name longer than its entries", entry("README.TXT", func(s []byte) { s[35] = 16 }), list("/")},
		{"102 no stream", entry("README.TXT", func(s []byte) { s[32] = 0xc1 }), list("/")},
		{"102 set of one", func(x *ex) { x.set(x.root, "README.TXT")[1] = 0 }, list("/")},
		{"102 set of 255", func(x *ex) { x.set(x.root, "README.TXT")[1] = 255 }, list("/")},
		{"102 set that is cut", func(x *ex) { x.set(x.root, "README.TXT")[64] = 0x05 }, list("/")},
		{"102 set at the end", func(x *ex) { x.set(x.root, "updates")[64] = 0 }, list("/")},
		{"111 folder with the name of the bundle", entry(exFile, func(s []byte) {
			s[4], s[33] = 0x10, 0x03
			le.PutUint64(s[40:], 512)
			le.PutUint64(s[56:], 512)
		}), func(f *fat.FS) error {
			file, err := f.Open(exFile)
			if file == nil && err != nil && strings.Contains(err.Error(), "is a folder") {
				return fat.ErrDamaged
			}
			if err == nil && file.Size() == 20_000 {
				return nil // as it was
			}
			return fmt.Errorf("opened: %v", err)
		}},
		{"boot checksum", func(x *ex) { x.b[200] ^= 1 }, nil},
		{"boot checksum, last sector", func(x *ex) { x.b[11*512+508] ^= 1 }, nil},
		{"no up-case table", upper(func(e []byte) { e[0] = 0x02 }), nil},
		{"up-case table of another checksum", upper(func(e []byte) { e[4]++ }), nil},
		{"up-case table of no bytes", upper(func(e []byte) { clear(e[24:]) }), nil},
		{"up-case table of an odd length", upper(func(e []byte) { e[24]++ }), nil},
		{"up-case table of 2^63 bytes", upper(func(e []byte) { e[31] = 0x80 }), nil},
		{"up-case table beyond the end", upper(func(e []byte) { le.PutUint32(e[20:], 1<<31) }), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := *clean
			x.t, x.b = t, bytes.Clone(clean.b)
			if c.use != nil {
				if err := c.use(fat.OpenTest(t, x.b)); err != nil {
					t.Fatalf("the stick before it is made hostile: %v", err)
				}
			}
			c.edit(&x)
			meter.Run(t, func() {
				f, err := fat.Open(bytes.NewReader(x.b), int64(len(x.b)))
				if c.use != nil {
					if err != nil {
						t.Fatal(err)
					}
					err = c.use(f)
				}
				if !errors.Is(err, fat.ErrDamaged) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
	t.Logf("figure: hostile exFAT: %v", &meter)

	// What is sound beside a damaged file is there all the same.
	x := *clean
	x.b = bytes.Clone(clean.b)
	x.set(x.root, exFile)[2]++
	entries, err := fat.OpenTest(t, x.b).ReadDir("/")
	if len(entries) != 2 || !errors.Is(err, fat.ErrDamaged) {
		t.Errorf("beside a damaged file: %v, %v", entries, err)
	}
}

// Row 102: names that deceive are passed over, without an error.
func TestExFATNames(t *testing.T) {
	for name, want := range map[string]bool{
		"../../etc/passwd": false, `..\evil`: false, "evil\x1b[2J": false, "a\nlifeboat: installed": false, "a\u202eb": false, "..": false, ".": false,
		"a\x00b": false, "日　本.raucb": true, "𝄞": true, ".hidden": true,
	} {
		x := formatted(t, 1<<20, "-c", "512", "-b", "64K")
		x.add(x.root, name, []byte("x"), false, 1)
		x.add(x.root, "AFTER", []byte("x"), false, 1)
		entries, err := fat.OpenTest(t, x.b).ReadDir("")
		if err != nil || len(entries) == 0 || entries[len(entries)-1].Name != "AFTER" || (len(entries) == 2) != want {
			t.Errorf("%q: %v, %v", name, entries, err)
		}
	}
}

// Row 101: of twenty thousand files the first are listed, each is found, and a folder has an end.
func TestManyExFATFiles(t *testing.T) {
	x := formatted(t, 8<<20, "-c", "512", "-b", "64K")
	file := bytes.Clone(exStick(t, map[string][]byte{"F00000": nil}).named("F00000"))
	const n = 20_000
	var folder []byte
	for i := range n {
		copy(file[66:], binary.LittleEndian.AppendUint16(nil, uint16('F')))
		hash := uint16(0)
		for at, c := range fmt.Sprintf("F%05d", i) {
			le.PutUint16(file[66+2*at:], uint16(c))
			hash = (hash>>1 | hash<<15) + uint16(c)
			hash = hash>>1 | hash<<15
		}
		le.PutUint16(file[36:], hash)
		sum(file)
		folder = append(folder, file...)
	}
	end := bytes.IndexByte(x.at(x.root), 0x82) / 32 * 32
	for x.at(x.root)[end] != 0 {
		end += 32
	}
	put := func(b []byte) {
		n := copy(x.at(x.root)[end:], b)
		at := x.root
		for b = b[n:]; len(b) > 0; b = b[n:] {
			c := x.free(500)
			x.link(at, c)
			x.link(c, 0xffffffff)
			n, at = copy(x.at(c), b), c
		}
	}
	clean := bytes.Clone(x.b)
	put(folder)
	f := fat.OpenTest(t, x.b)
	var meter badinputs.Meter
	meter.Run(t, func() {
		entries, err := f.ReadDir("")
		if !errors.Is(err, fat.ErrTooMany) || len(entries) != 4096 || entries[4095].Name != "F04095" {
			t.Errorf("%d entries, %v", len(entries), err)
		}
		if _, err := f.Open("f19999"); err != nil {
			t.Error(err)
		}
	})
	copy(x.b, clean)
	put(slices.Concat(folder, folder[:96*3000])) // 2.2 MB
	meter.Run(t, func() {
		if _, err := fat.Open(bytes.NewReader(x.b), int64(len(x.b))); !errors.Is(err, fat.ErrDamaged) {
			t.Errorf("a folder of more than 2 MiB: %v", err)
		}
	})
	t.Logf("figure: large exFAT folders: %v", &meter)
}

// TestExFATMutants damages a file system where it describes itself, with right checksums or without, and walks it.
func TestExFATMutants(t *testing.T) {
	clean := smallEx(t)
	x := *clean
	x.b = bytes.Clone(clean.b)
	f := fat.OpenTest(t, clean.b)
	if file, err := f.Open(exFile); err != nil || file.Pieces() < 10 {
		t.Fatalf("%v, %v", file, err)
	}
	names := []string{exFile, "README.TXT", "updates"}
	var at [][2]int // where the sets lie
	for _, name := range names {
		set := clean.set(clean.root, name)
		i := bytes.Index(clean.b, set)
		at = append(at, [2]int{i, i + len(set)})
	}
	fields := []int{72, 76, 80, 84, 88, 92, 96, 104, 106, 108, 109, 110}
	number := func(rng *rand.Rand, clean uint32) uint32 {
		return []uint32{0, 1, 2, 3, clean - 1, clean + 1, clean << 1, clean ^ 1<<rng.IntN(32), 1 << rng.IntN(32), 0xfffffff7, 0xfffffff8, 0xffffffff, rng.Uint32(), rng.Uint32N(2000)}[rng.IntN(14)]
	}
	rng := rand.New(rand.NewPCG(7, 8))
	var meter badinputs.Meter
	opened := 0
	for i := range fat.Mutants() / 9 {
		for range 1 + rng.IntN(3) {
			switch rng.IntN(5) {
			case 0:
				n := fields[rng.IntN(len(fields))]
				le.PutUint32(x.b[n:], number(rng, le.Uint32(x.b[n:])))
				if n > 100 {
					copy(x.b[n+1:n+4], clean.b[n+1:])
				}
			case 1: // a link
				c := 2 + rng.Uint32N(200)
				x.link(c, number(rng, c+1))
			case 2: // numbers of a set
				s := at[rng.IntN(len(at))]
				n := s[0] + []int{1, 4, 33, 35, 36, 40, 52, 56, 60}[rng.IntN(9)]
				le.PutUint32(x.b[n:], number(rng, le.Uint32(x.b[n:])))
				copy(x.b[n+4:s[1]], clean.b[n+4:])
			case 3: // a byte of a set or of the root
				n := x.heap + int(x.root-2)*x.cluster + rng.IntN(512)
				x.b[n] = []byte{0, 1, 2, 0x05, 0x81, 0x82, 0x85, 0xc0, 0xc1, 0xff, byte(rng.Uint32())}[rng.IntN(11)]
			default:
				n := rng.IntN(120)
				x.b[n] ^= 1 << rng.IntN(8)
			}
		}
		if rng.IntN(8) > 0 {
			x.bootSum()
		}
		for _, s := range at {
			if rng.IntN(8) > 0 {
				sum(x.b[s[0]:s[1]])
			}
		}
		var err error
		meter.Run(t, func() { err = fat.Walk(x.b) })
		if err != nil {
			t.Fatalf("mutant %d: %v", i, err)
		}
		if _, err := fat.Open(bytes.NewReader(x.b), int64(len(x.b))); err == nil {
			opened++
		}
		copy(x.b[:x.heap], clean.b)
		copy(x.b[x.heap:][:64<<10], clean.b[x.heap:])
	}
	t.Logf("figure: exFAT mutants: %v; %d of them could be opened", &meter, opened)
	if opened < meter.Runs/4 || opened == meter.Runs {
		t.Error("the mutants do not test what they should")
	}
}

// FuzzExFAT gives the boot sectors and the sets of the root their checksums before it walks what comes of it.
func FuzzExFAT(f *testing.F) {
	x := smallEx(f)
	used := x.b[:x.heap+200<<10]
	f.Add(used)
	f.Add(used[:x.heap+8<<10])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		b = bytes.Clone(b)
		if len(b) > 6144 && b[108] == 9 {
			y := exOf(t, b)
			y.bootSum()
			if at := uint64(y.heap) + uint64(y.root-2)*uint64(y.cluster); y.root >= 2 && at < uint64(len(b)) {
				for d := b[at:]; len(d) >= 32 && d[0] != 0; d = d[32:] {
					if n := 32 * (1 + int(d[1])); d[0] == 0x85 && n <= len(d) {
						sum(d[:n])
					}
				}
			}
		}
		if err := fat.Walk(b); err != nil {
			t.Error(err)
		}
	})
}
