package loaders

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/boot/uboot"
	"lifeboat/disk/crash"
	"lifeboat/fat"
	"lifeboat/image/bootloader"
	"lifeboat/qemu/writelog"
)

// The power goes while the real U-Boot saves: in every state that this leaves the script finds the variables of before or
// those of after. A few of the states (LIFEBOAT_FAULTS=all: all) are started by the real U-Boot alone, which does what its model
// says, byte by byte; qemu/powercut starts what a whole update leaves, through to the system.
// Where a file is missing it is made, and a sector of the table of clusters that is torn then loses what it names.
func TestUBootCuts(t *testing.T) {
	rom, c := needUBoot(t)
	one, two := copyOf(1, left("B A", "3", "3")...), copyOf(2, left("B A", "3", "2")...)
	torn := bytes.Clone(one)
	torn[100] ^= 1
	for _, test := range []state{
		{"two copies", [2][]byte{one, two}},
		{"one is damaged", [2][]byte{torn, two}},
	} {
		t.Run(test.what, func(t *testing.T) {
			text, err := bootloader.UBoot(c, bootloader.UBootOptions{Start: "echo started ${lb_s}; reset"})
			if err != nil {
				t.Fatal(err)
			}
			script, err := bootloader.UBootImage(text, "")
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			files := []string{"boot.scr"}
			for name, b := range map[string][]byte{"boot.scr": script, "env1/uboot.env": test.copies[0], "env2/uboot.env": test.copies[1]} {
				if b == nil {
					continue
				}
				if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), b, 0o644)); err != nil {
					t.Fatal(err)
				}
				if name != "boot.scr" {
					files = append(files, name)
				}
			}
			disk := ubootDisk(t, dir, "AB", files)
			base, err := crash.LoadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			log := filepath.Join(dir, "writes.log")
			if err := os.WriteFile(log, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			console := ubootOn(t, rom, "-blockdev", "driver=blklogwrites,node-name=d,log-sector-size=512,file.driver=file,file.filename="+disk+
				",log.driver=file,log.filename="+log)
			if !strings.Contains(console, "started B\r\n") {
				t.Fatalf("U-Boot does not start B:\n%s", console)
			}
			trace := readTrace(t, log, base)
			both := func(string) bool { return true }
			names := []string{"A", "B"}
			_, after := uboot.Run(test.copies, copySize, names, both)
			var sample []crash.State
			res := crash.Test{
				Name: test.what, Options: crash.Options{Random: 100},
				Check: func(s crash.State) error {
					copies, err := copiesIn(s.Image)
					if err != nil {
						return err
					}
					if v := variables(copies); v != variables(test.copies) && v != variables(after) {
						return fmt.Errorf("the variables are %q", v)
					}
					return nil
				},
			}.Judge(trace)
			for _, f := range res.Failures {
				t.Errorf("%s", f)
			}
			seen := map[crash.Hash]bool{}
			trace.States(crash.Options{Random: 100}, func(s crash.State) bool {
				if h := s.Image.Hash(); !seen[h] {
					seen[h] = true
					if os.Getenv("LIFEBOAT_FAULTS") == "all" || len(seen)%10 == 0 {
						sample = append(sample, s)
					}
				}
				return true
			})
			t.Logf("%s; %d are started", res, len(sample))
			for _, s := range sample {
				if err := s.Image.SaveFile(disk); err != nil {
					t.Fatal(err)
				}
				copies, err := copiesIn(s.Image)
				if err != nil {
					t.Fatal(err)
				}
				want, after := uboot.Run(copies, copySize, names, both)
				console := ubootRun(t, rom, disk)
				left, err := crash.LoadFile(disk)
				if err != nil {
					t.Fatal(err)
				}
				got, err := copiesIn(left)
				if err != nil || !strings.Contains(console, "started "+want+"\r\n") || !slices.EqualFunc(got[:], after[:], bytes.Equal) {
					t.Errorf("%s: U-Boot does not do what its model does (%v), which starts %s:\n%s", s, err, want, console)
				}
			}
		})
	}
}

// variables are those that count in two copies, "" if none do.
func variables(copies [2][]byte) string {
	var newest uboot.Env
	for _, b := range copies {
		if e, ok := uboot.Parse(b, true); ok && (newest.Vars == nil || e.Flag > newest.Flag) {
			newest = e
		}
	}
	if newest.Vars == nil {
		return ""
	}
	return fmt.Sprint(newest.Vars)
}

// copiesIn reads the files of a disk with our own reader.
func copiesIn(img *crash.Image) (copies [2][]byte, err error) {
	fs, err := fat.Open(io.NewSectionReader(img, espStart, espSize), espSize)
	if err != nil {
		return copies, err
	}
	for i, name := range uboot.Files {
		f, err := fs.Open(name)
		if err != nil {
			continue
		}
		b := make([]byte, min(f.Size(), 2*copySize))
		if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
			continue
		}
		copies[i] = b
	}
	return copies, nil
}

func readTrace(t *testing.T, name string, base *crash.Image) *crash.Trace {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	l, err := writelog.Read(f, info.Size(), base.Size())
	if err != nil {
		t.Fatal(err)
	}
	return &crash.Trace{Base: base, Ops: l.Ops}
}
