package tree

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"

	"lifeboat/verify"
)

var all = Options{Devices: true, Setuid: true, Max: 1 << 30}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("owners and device nodes need root")
	}
}

// describe says of each file below root all that an archive has to bring.
func describe(t testing.TB, root string) map[string]string {
	t.Helper()
	found, first := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(file, &st); err != nil {
			return err
		}
		name := file[len(root):]
		text := fmt.Sprintf("mode %o owner %d:%d time %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if to, ok := first[st.Ino]; ok {
				text += " is " + to
			}
			first[st.Ino] = name
			text += fmt.Sprintf(" links %d", st.Nlink)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" size %d sparse %v sha256 %.8x", st.Size, st.Blocks*512 < st.Size-4096, sha256.Sum256(b))
		case unix.S_IFLNK:
			to, _ := os.Readlink(file)
			text += " to " + to
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		names, err := xattr.LList(file)
		if err != nil {
			return err
		}
		slices.Sort(names)
		for _, a := range names {
			b, err := xattr.LGet(file, a)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %s=%x", a, b)
		}
		found[name] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// names is this machine's list, which tar writes names of into ACLs.
func names(t testing.TB, file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// oddities makes a tree with every kind of file.
func oddities(t testing.TB) string {
	t.Helper()
	needRoot(t)
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("long-", 45)
	deep := strings.Repeat(long+"/", 8)
	for _, d := range []string{"etc", "usr/bin", "sticky", "setgid", "empty", deep, "dev", "no-rights"} {
		must(os.MkdirAll(at(d), 0o755))
	}
	for name, b := range map[string]string{
		"etc/passwd": names(t, "/etc/passwd"), "etc/group": names(t, "/etc/group"), "usr/bin/su": "setuid", "usr/bin/ping": "capable", "empty-file": "", "no-rights/file": "x",
		"setgid/f": "", deep + "file": "deep", "spaces and\nline end": "1", "ü\xff": "not UTF-8", "-rf": "", "acl": "acl", "label": "label",
		"big": strings.Repeat("0123456789abcdef", 40000), "zeros": strings.Repeat("\x00", 20000), long + "file": "",
	} {
		must(os.WriteFile(at(name), []byte(b), 0o644))
	}
	for name, holes := range map[string][]int64{"sparse": {0, 1 << 20, 5 << 20}, "hole": nil, "ends-in-hole": {4096 * 3}} {
		f, err := os.Create(at(name))
		must(err)
		must(f.Truncate(8 << 20))
		for _, off := range holes {
			_, err = f.WriteAt([]byte("data in the middle"), off+100)
			must(err)
		}
		must(f.Close())
	}
	must(os.Symlink("passwd", at("etc/link")))
	must(os.Symlink("/nowhere/"+long, at("dangling")))
	must(os.Symlink("../"+deep, at("usr/far")))
	must(os.Link(at("etc/passwd"), at("usr/passwd-again")))
	must(os.Link(at("etc/passwd"), at("zz-third")))
	must(unix.Mkfifo(at("fifo"), 0o622))
	must(unix.Mknod(at("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(at("dev/sda"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 300))))
	must(os.Link(at("fifo"), at("fifo-again")))
	for name, owner := range map[string][2]int{"usr/bin/su": {0, 42}, "dangling": {1000, 1001}, "big": {70000, 3000000}, "sticky": {33, 33}, "fifo": {5, 6}, "dev/sda": {0, 6}} {
		must(os.Lchown(at(name), owner[0], owner[1]))
	}
	for name, mode := range map[string]uint32{"usr/bin/su": 0o4755, "usr/bin/ping": 0o755, "sticky": 0o1777, "setgid": 0o2775, "no-rights": 0, "no-rights/file": 0, "acl": 0o640} {
		must(unix.Chmod(at(name), mode))
	}
	capability := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for name, a := range map[string][2]string{
		"usr/bin/ping": {"security.capability", string(capability)}, "label": {"security.selinux", "system_u:object_r:etc_t:s0\x00"},
		"etc": {"user.note", "of a folder\x00\xff"}, "big": {"user.=%=3D", "odd"}, "dangling": {"trusted.of-a-link", "1"}, "fifo": {"trusted.of-a-fifo", "2"},
	} {
		must(xattr.LSet(at(name), a[0], []byte(a[1])))
	}
	acl, err := parseACL("user::rw-,user:1000:r--,group::r--,group:4294967294:rwx,mask::r--,other::---", number)
	must(err)
	must(xattr.Set(at("acl"), xattrAccess, acl))
	acl, err = parseACL("u::rwx,u:7:rwx,g::r-x,m::rwx,o::---", number)
	must(err)
	must(xattr.Set(at("empty"), xattrDefault, acl))
	stamp := time.Unix(1_000_000_000, 123_456_789)
	must(filepath.WalkDir(root, func(file string, _ fs.DirEntry, err error) error {
		stamp = stamp.Add(1000*time.Second + 7)
		ts, e := unix.TimeToTimespec(stamp)
		return errors.Join(err, e, unix.UtimesNanoAt(unix.AT_FDCWD, file, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}))
	before := time.Unix(-86400, 5)
	must(os.Chtimes(at("empty-file"), before, before))
	return root
}

func run(t testing.TB, stdin io.Reader, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = stdin
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, text.Bytes())
	}
	return out.Bytes()
}

var gnu = []string{"--numeric-owner", "-p", "--xattrs", "--xattrs-include=*", "--acls"}

func unpack(t testing.TB, archive []byte) map[string]string {
	t.Helper()
	root := t.TempDir()
	run(t, bytes.NewReader(archive), "tar", append([]string{"-x", "-C", root}, gnu...)...)
	return describe(t, root)
}

func extract(t testing.TB, archive []byte, o Options) map[string]string {
	t.Helper()
	root := t.TempDir()
	if _, err := Extract(root, bytes.NewReader(archive), o); err != nil {
		t.Fatal(err)
	}
	return describe(t, root)
}

// Whatever GNU tar makes of a tree with every oddity, in each of its dialects, becomes what GNU tar makes of it again.
func TestAsTar(t *testing.T) {
	root := oddities(t)
	for _, flags := range []string{
		"--format=posix", "--format=gnu", "--format=oldgnu", "--format=posix -S", "--format=posix -S --sparse-version=0.0",
		"--format=posix -S --sparse-version=0.1", "--format=gnu -S", "--format=posix --sort=name --hard-dereference", "--format=posix -b 1",
	} {
		t.Run(flags, func(t *testing.T) {
			has := gnu
			if !strings.HasPrefix(flags, "--format=posix") {
				has = gnu[:2]
			}
			archive := run(t, nil, "tar", slices.Concat([]string{"-c", "-C", root}, has, strings.Fields(flags), []string{"."})...)
			if d := cmp.Diff(unpack(t, archive), extract(t, archive, all)); d != "" {
				t.Errorf("tar's, and ours:\n%s", d)
			}
			if strings.HasPrefix(flags, "--format=posix -S") {
				want, got := describe(t, root), extract(t, archive, all)
				for _, name := range []string{"/fifo", "/fifo-again"} { // tar writes such a link as two files
					delete(want, name)
					delete(got, name)
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("the tree, and ours:\n%s", d)
				}
			}
		})
	}
}

// What an archive in the oldest dialects can hold.
func TestOldDialects(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	for name, b := range map[string]string{"a": "1", "d/b": "2", strings.Repeat("d/", 30) + strings.Repeat("p", 90) + "/f": "3"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o750), os.WriteFile(filepath.Join(root, name), []byte(b), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"ustar", "v7"} {
		flags := []string{"-c", "-C", root, "--format=" + format, "a", "d/b"}
		if format == "ustar" {
			flags[len(flags)-1] = "d"
		}
		archive := run(t, nil, "tar", flags...)
		got, want := extract(t, archive, all), unpack(t, archive)
		delete(got, "") // the top folder is in neither
		delete(want, "")
		for _, m := range []map[string]string{got, want} {
			if format == "v7" {
				delete(m, "/d") // not in the archive: made as it comes
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: tar's, and ours:\n%s", format, d)
		}
	}
}

// Our archive is what both read as the tree, and is the same each time.
func TestWrite(t *testing.T) {
	root := oddities(t)
	var archive, again bytes.Buffer
	for _, w := range []*bytes.Buffer{&archive, &again} {
		if err := Write(w, root, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archive.Bytes(), again.Bytes()) {
		t.Error("the same tree gives different archives")
	}
	want := describe(t, root)
	for name := range want { // our archives have no holes
		want[name] = strings.Replace(want[name], "sparse true", "sparse false", 1)
	}
	if d := cmp.Diff(want, extract(t, archive.Bytes(), all)); d != "" {
		t.Errorf("the tree, and what becomes of our archive:\n%s", d)
	}
	want["/label"], _, _ = strings.Cut(want["/label"], " security.selinux") // tar sets it where there is SELinux
	if d := cmp.Diff(want, unpack(t, archive.Bytes())); d != "" {
		t.Errorf("the tree, and what tar makes of our archive:\n%s", d)
	}
	latest := time.Unix(1_000_000_000, 0)
	archive.Reset()
	if err := Write(&archive, root, latest); err != nil {
		t.Fatal(err)
	}
	for name, text := range extract(t, archive.Bytes(), all) {
		if !strings.Contains(text, "time 1000000000.000000000") && name != "/empty-file" {
			t.Errorf("%q is later than the latest: %s", name, text)
		}
	}
}

// entry is one of an archive that is made for a test.
type entry struct {
	tar.Header
	body string
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Size == 0 {
			e.Size = int64(len(e.body))
		}
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		if e.Mode == 0 {
			e.Mode = 0o644
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil && !errors.Is(err, tar.ErrWriteTooLong) && int64(len(b.Bytes())) == 0 {
		t.Fatal(err)
	}
	return append(b.Bytes(), make([]byte, 1024)...)
}

func file(name, body string) entry { return entry{tar.Header{Name: name}, body} }

func special(kind byte, name, to string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: to}, ""}
}

// What an archive may not do is refused, with a code that says why, and nothing outside the folder changes.
func TestHostile(t *testing.T) {
	needRoot(t)
	many := make([]entry, 0, 100_000)
	for i := range 100_000 {
		many = append(many, special(tar.TypeSymlink, fmt.Sprintf("s%d", i), "x"))
	}
	pax := func(e entry, key, value string) entry {
		e.PAXRecords, e.Format = map[string]string{key: value}, tar.FormatPAX
		return e
	}
	huge := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(huge, "huge"), nil, 0o600), os.Truncate(filepath.Join(huge, "huge"), 1<<40)); err != nil {
		t.Fatal(err)
	}
	holes := run(t, nil, "tar", "-c", "-S", "--format=posix", "-C", huge, ".")
	whole := archive(t, file("a", strings.Repeat("x", 4000)))
	damaged := bytes.Clone(whole)
	damaged[100] ^= 1
	for name, test := range map[string]struct {
		archive []byte
		o       Options
		code    verify.Code
	}{
		"81 ..":                      {archive(t, file("../outside/new", "x")), all, 31},
		"81 .. in the middle":        {archive(t, file("a/../../outside/new", "x")), all, 31},
		"82 absolute":                {archive(t, file("/etc/new", "x")), all, 31},
		"83 through a link":          {archive(t, special(tar.TypeSymlink, "l", "../outside"), file("l/new", "x")), all, 31},
		"83 through an absolute one": {archive(t, special(tar.TypeSymlink, "l", os.TempDir()), file("l/new", "x")), all, 31},
		"83 in place of a folder": {archive(t, entry{tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
			special(tar.TypeSymlink, "d", "../outside"), file("d/new", "x")), all, 20},
		"83 a folder that is a link": {archive(t, special(tar.TypeSymlink, "l", "../outside"), entry{tar.Header{Name: "l/", Typeflag: tar.TypeDir, Mode: 0o777}, ""}), all, 31},
		"84 hard link outside":       {archive(t, special(tar.TypeLink, "h", "../outside/old")), all, 31},
		"84 absolute":                {archive(t, special(tar.TypeLink, "h", "/etc/shadow")), all, 31},
		"84 through a link":          {archive(t, special(tar.TypeSymlink, "l", "../outside"), special(tar.TypeLink, "h", "l/old")), all, 31},
		"84 to nothing":              {archive(t, special(tar.TypeLink, "h", "none")), all, 31},
		"84 to itself":               {archive(t, file("h", ""), special(tar.TypeLink, "h", "h")), all, 20},
		"84 of a folder":             {archive(t, special(tar.TypeLink, "h", ".")), all, 20},
		"85 device":                  {archive(t, entry{tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}, ""}), Options{Max: 1 << 20}, 31},
		"85 block device":            {archive(t, entry{tar.Header{Name: "d", Typeflag: tar.TypeBlock, Devmajor: 8}, ""}), Options{Max: 1 << 20}, 31},
		"86 setuid":                  {archive(t, entry{tar.Header{Name: "su", Mode: 0o4755}, ""}), Options{Max: 1 << 20}, 31},
		"86 setgid":                  {archive(t, entry{tar.Header{Name: "su", Mode: 0o2755}, ""}), Options{Max: 1 << 20}, 31},
		"86 capabilities":            {archive(t, pax(file("su", ""), "SCHILY.xattr.security.capability", "\x01\x00\x00\x02")), Options{Max: 1 << 20}, 31},
		"90 1 TB of holes":           {holes, all, 31},
		"91 100000 entries":          {archive(t, many...), all, 31},
		"92 a path of 5000":          {archive(t, file(strings.Repeat("abcd/", 1000)+"f", "")), all, 31},
		"92 a name of 300":           {archive(t, file(strings.Repeat("n", 300), "")), all, 31},
		"more than there is":         {archive(t, file("a", strings.Repeat("x", 4000))), Options{Max: 3999}, 31},
		"more, in all":               {archive(t, file("a", "12345"), file("b", "67890")), Options{Max: 9}, 31},
		"an odd attribute":           {archive(t, pax(file("a", ""), "SCHILY.xattr.system.odd", "x")), all, 31},
		"an ACL by name":             {archive(t, pax(file("a", ""), "SCHILY.acl.access", "user::rw-,user:lisa:rw-,group::r--,mask::rw-,other::r--")), all, 20},
		"an ACL of nothing":          {archive(t, pax(file("a", ""), "SCHILY.acl.access", "rubbish")), all, 20},
		"a top that is none":         {archive(t, special(tar.TypeSymlink, ".", "x")), all, 20},
		"a folder on a file":         {archive(t, file("a", ""), file("a/b", "")), all, 20},
		"a file on a folder":         {archive(t, file("a/b", ""), file("a", "")), all, 20},
		"cut short":                  {whole[:2000], all, 20},
		"a wrong checksum":           {damaged, all, 20},
		"no archive":                 {bytes.Repeat([]byte("garbage "), 1000), all, 20},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			root, outside := filepath.Join(dir, "root"), filepath.Join(dir, "outside")
			if err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "old"), []byte("old"), 0o600)); err != nil {
				t.Fatal(err)
			}
			before := describe(t, outside)
			_, err := Extract(root, bytes.NewReader(test.archive), test.o)
			var r *verify.Refusal
			if !errors.As(err, &r) || r.Code != test.code {
				t.Errorf("%v, want code %d", err, test.code)
			}
			if d := cmp.Diff(before, describe(t, outside)); d != "" {
				t.Errorf("outside: %s", d)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 2 {
				t.Errorf("beside the folder: %v", entries)
			}
		})
	}
}

// A device that the medium fails, or whose archive cannot be read further, is 40 or what the reader said.
func TestReaderFails(t *testing.T) {
	needRoot(t)
	b := archive(t, file("a", strings.Repeat("x", 100_000)))
	want := verify.Refuse(verify.PayloadHash, "a block is not what was signed")
	_, err := Extract(t.TempDir(), io.MultiReader(bytes.NewReader(b[:50_000]), failing{want}), all)
	if !errors.Is(err, want) {
		t.Error(err)
	}
	if _, err := Extract(filepath.Join(t.TempDir(), "none"), bytes.NewReader(b), all); err == nil {
		t.Error("a folder that is not there")
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A later entry of the same name counts; what it took the place of is gone.
func TestTwice(t *testing.T) {
	needRoot(t)
	b := archive(t, file("a", "old"), special(tar.TypeLink, "b", "a"), special(tar.TypeSymlink, "c", "b"), file("a", "new"), file("c", "not through the link"),
		entry{tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o700}, ""}, file("d/f", ""), entry{tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o750, ModTime: time.Unix(99, 0)}, ""}, file("d/g", ""))
	root := t.TempDir()
	got, err := Extract(root, bytes.NewReader(b), all)
	if err != nil || got.Entries != 9 {
		t.Fatal(got, err)
	}
	for name, want := range map[string]string{"a": "new", "b": "old", "c": "not through the link"} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != want {
			t.Errorf("%s is %q: %v", name, b, err)
		}
	}
	st, err := os.Stat(filepath.Join(root, "d"))
	if err != nil || st.Mode().Perm() != 0o750 || st.ModTime().Unix() != 99 {
		t.Errorf("the folder: %v, %v", st, err)
	}
	if st.Sys().(*syscall.Stat_t).Atim.Sec != 99 {
		t.Error("its time of access")
	}
}

// sums makes the checksums of all that looks like a header right, so that what comes behind them is looked at.
func sums(b []byte) []byte {
	b = bytes.Clone(b)
	for h := range slices.Chunk(b, 512) {
		if len(h) < 512 || string(h[257:262]) != "ustar" {
			continue
		}
		copy(h[148:156], "        ")
		n := 0
		for _, c := range h {
			n += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", n))
	}
	return b
}

// No archive reaches beyond the folder, or is more than it may be.
func FuzzExtract(f *testing.F) {
	needRoot(f)
	f.Add(archive(f, file("a", "1"), special(tar.TypeSymlink, "l", "../outside"), file("d/e/f", "2"), special(tar.TypeLink, "h", "a"), special(tar.TypeFifo, "p", "")))
	f.Add(archive(f, entry{tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.acl.access": "user::rw-,user:5:r--,group::r--,mask::r--,other::---"}, Format: tar.FormatPAX}, "y"}))
	f.Add(archive(f, special(tar.TypeSymlink, "l", ".."), file("l/outside/new", "")))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir, err := os.MkdirTemp("/dev/shm", "lifeboat-tree-") // in memory: nothing waits for the disk
		if err != nil {
			t.Skip(err)
		}
		defer os.RemoveAll(dir)
		root, outside := filepath.Join(dir, "root"), filepath.Join(dir, "outside")
		if err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(outside, 0o755)); err != nil {
			t.Fatal(err)
		}
		got, err := Extract(root, bytes.NewReader(sums(b)), Options{Max: 1 << 20})
		var r *verify.Refusal
		if err != nil && !errors.As(err, &r) {
			t.Errorf("no refusal: %v", err)
		}
		if got.Bytes > 1<<20 {
			t.Errorf("%d bytes", got.Bytes)
		}
		for _, d := range []string{dir, outside} {
			if entries, _ := os.ReadDir(d); len(entries) != map[string]int{dir: 2, outside: 0}[d] {
				t.Errorf("in %s: %v", d, entries)
			}
		}
		filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
			if err == nil && e.Type()&fs.ModeDevice != 0 {
				t.Errorf("%s is a device node", file)
			}
			return nil
		})
		unix.Chmod(root, 0o755)
	})
}

func FuzzACL(f *testing.F) {
	f.Add("user::rwx,user:1000:r-x,group::r-x,mask::r-x,other::---")
	f.Add("u::rwx\ng::r--\no::---#effective")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := parseACL(text, number)
		if err != nil || len(b) == 0 {
			return
		}
		again, err := formatACL(b)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if c, err := parseACL(again, number); err != nil || !bytes.Equal(b, c) {
			t.Errorf("%q became %q: %v", text, again, err)
		}
	})
}
