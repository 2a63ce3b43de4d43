package image

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/partition/mbr"

	"lifeboat/fat"
)

// What is on a stick is checked with dosfstools and mtools, which know FAT from elsewhere.
func TestStick(t *testing.T) {
	for _, tool := range []string{"fsck.fat", "mcopy", "mdir"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	files := map[string]string{
		"update-1.2.raucb": strings.Repeat("bundle", 100_000), "SHORT.TXT": "short", "empty": "",
		"thirteen_char": "13", "Ümläut ~1 (copy).raucb": "x", "a.b.c": strings.Repeat("z", 4096),
		strings.Repeat("n", 200) + ".raucb": "long name",
	}
	for i := range 100 {
		files[fmt.Sprintf("another file that makes the folder larger than a cluster %d", i)] = fmt.Sprint(i)
	}
	// One that makes the stick larger than 260 MiB, where clusters become 4 KiB; sparse.
	dir := writeFiles(t, files)
	large := filepath.Join(t.TempDir(), "large.raucb")
	if err := os.WriteFile(large, []byte("large"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, 300*mib); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		whole bool
		large bool
	}{{"partition", false, false}, {"whole disk", true, false}, {"large", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			var list []string
			for name := range files {
				list = append(list, filepath.Join(dir, name))
			}
			if test.large {
				list = []string{large, filepath.Join(dir, "empty")}
			}
			out := filepath.Join(t.TempDir(), "stick.img")
			if err := Stick(out, StickOptions{WholeDisk: test.whole}, list); err != nil {
				t.Fatal(err)
			}
			at := ""
			if !test.whole {
				f, err := os.Open(out)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				table, err := mbr.Read(f, sector, sector)
				if err != nil {
					t.Fatal(err)
				}
				if p := table.Partitions[0]; p.Start != stickStart/sector || p.Type != mbr.Fat32LBA {
					t.Errorf("partition %+v", p)
				}
				b, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				part := out + ".part"
				if err := os.WriteFile(part, b[stickStart:], 0o644); err != nil {
					t.Fatal(err)
				}
				out, at = part, "@@0"
			}
			if b, err := exec.Command("fsck.fat", "-n", out).CombinedOutput(); err != nil {
				t.Errorf("fsck.fat: %v\n%s", err, b)
			}
			for _, name := range list {
				base := filepath.Base(name)
				cmd := exec.Command("mcopy", "-i", out+at, "::/"+base, "-")
				cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MTOOLS_SKIP_CHECK=1")
				got, err := cmd.Output()
				if err != nil {
					t.Errorf("mcopy %.40s: %v", base, err)
					continue
				}
				want, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%.40s: %d bytes came back, %d went", base, len(got), len(want))
				}
			}
		})
	}
}

// What is on an exFAT stick is checked with exfatprogs, and with the reader that sticks of others are read by.
func TestStickExFAT(t *testing.T) {
	fsck, err := exec.LookPath("/usr/sbin/fsck.exfat")
	if err != nil {
		t.Skip("exfatprogs are not installed")
	}
	files := map[string]string{
		"update-1.2.raucb": strings.Repeat("bundle", 100_000), "empty": "", "fifteen_chars_x": "15", "Ümläut 日本 (copy).raucb": "x",
		strings.Repeat("n", 240) + ".raucb": "long name",
	}
	for i := range 100 {
		files[fmt.Sprintf("another file that makes the folder larger than a cluster %d", i)] = fmt.Sprint(i)
	}
	dir := writeFiles(t, files)
	var list []string
	for name := range files {
		list = append(list, filepath.Join(dir, name))
	}
	// What does not fit on FAT32 makes it exFAT by itself; the images are sparse.
	for name, c := range map[string]struct {
		o    StickOptions
		size int64
	}{
		"small":      {StickOptions{WholeDisk: true, ExFAT: true, Report: true}, 0},
		"4096":       {StickOptions{WholeDisk: true, ExFAT: true, Sector: 4096}, 0},
		"300 MiB":    {StickOptions{WholeDisk: true, ExFAT: true}, 300 * mib},
		"a full FAT": {StickOptions{WholeDisk: true}, maxFATFile + 1},
	} {
		t.Run(name, func(t *testing.T) {
			list := list
			if c.size > 0 {
				large := filepath.Join(t.TempDir(), "large.raucb")
				if err := os.WriteFile(large, []byte("large"), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(large, c.size); err != nil {
					t.Fatal(err)
				}
				list = append(list, large)
			}
			out := filepath.Join(t.TempDir(), "stick.img")
			if err := Stick(out, c.o, list); err != nil {
				t.Fatal(err)
			}
			if b, err := exec.Command(fsck, "-n", out).CombinedOutput(); err != nil {
				t.Errorf("fsck.exfat: %v\n%s", err, b)
			}
			f, err := os.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			fsys, err := fat.Open(f, info.Size())
			if err != nil {
				t.Fatal(err)
			}
			entries, err := fsys.ReadDir("")
			if want := len(list); err != nil || len(entries) != want && !(c.o.Report && len(entries) == want+1) {
				t.Fatalf("%d entries, %v", len(entries), err)
			}
			for _, e := range entries {
				want, known := files[e.Name]
				if e.Name == Report {
					want, known = string(blank(ReportSize)), true
				}
				file, err := fsys.Open(e.Name)
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, min(file.Size(), mib))
				if n, err := file.ReadAt(got, 0); n != len(got) {
					t.Fatal(err)
				}
				if known && string(got) != want || !known && (!strings.HasPrefix(string(got), "large") || file.Size() != c.size) {
					t.Errorf("%.40s: %d bytes", e.Name, file.Size())
				}
			}
		})
	}
}

func TestStickRefuses(t *testing.T) {
	dir := writeFiles(t, map[string]string{"a": "", "b/A": "", "c:d": ""})
	for want, files := range map[string][]string{
		"same name on the stick": {dir + "/a", dir + "/b/A"},
		"can't have that name":   {dir + "/c:d"},
		"is not a file":          {dir},
		"no such file":           {dir + "/none"},
	} {
		out := filepath.Join(t.TempDir(), "out.img")
		if err := Stick(out, StickOptions{}, files); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if left, _ := filepath.Glob(filepath.Dir(out) + "/*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// TestPrepareDevice: a device that had a GPT, here a file, becomes a stick with the files.
func TestPrepareDevice(t *testing.T) {
	dir := writeFiles(t, map[string]string{"a.raucb": "bundle"})
	device := filepath.Join(dir, "device")
	if err := os.WriteFile(device, bytes.Repeat([]byte("EFI PART"), 100*mib/8), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prepareDevice(device, StickOptions{Report: true}, []string{dir + "/a.raucb"}); err != nil {
		t.Fatal(err)
	}
	view, err := Inspect(t.Context(), device, InspectOptions{})
	if v, ok := view.(*StickView); err != nil || !ok || len(v.Files) != 2 {
		t.Errorf("%+v, %v", view, err)
	}
	b, err := os.ReadFile(device)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != 100*mib || len(bytes.Trim(b[99*mib:], "\x00")) > 0 {
		t.Errorf("%d bytes, the end is as it was", len(b))
	}
	part := device + ".part"
	if err := os.WriteFile(part, b[stickStart:65*mib], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("fsck.fat", "-n", part).CombinedOutput(); err != nil {
		t.Errorf("fsck.fat: %v\n%s", err, out)
	}
	if err := os.Truncate(device, 10*mib); err != nil {
		t.Fatal(err)
	}
	if err := prepareDevice(device, StickOptions{}, []string{dir + "/a.raucb"}); err == nil || !strings.Contains(err.Error(), "are needed") {
		t.Errorf("a device of 10 MiB: %v", err)
	}
}
