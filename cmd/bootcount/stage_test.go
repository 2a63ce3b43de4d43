package main

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"testing/iotest"
	"time"

	"lifeboat/disk"
	"lifeboat/status"
)

// A partition is meant that is on the disk from which the system was started, or the one that is named.
func TestBeside(t *testing.T) {
	block := func(name, on, label string) disk.Block { return disk.Block{Name: name, Disk: on, PartName: label} }
	blocks := []disk.Block{block("sda1", "sda", "staging"), block("vda1", "vda", "rootfs.0"), block("vda2", "vda", "staging"), block("vdb1", "vdb", "other")}
	booted := status.Booted{Device: "/dev/vda1"}
	for device, want := range map[string]string{"PARTLABEL=staging": "/dev/vda2", "/dev/vdb1": "/dev/vdb1", "PARTLABEL=other": "", "/dev/vdc": ""} {
		got, err := beside(device, blocks, booted)
		if (err == nil) != (want != "") || err == nil && got.Path() != want {
			t.Errorf("%s is %v, %v; want %q", device, got, err, want)
		}
	}
}

// A pipe that brings nothing does not keep a command that was told to stop.
func TestStoppable(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := (&stoppable{ctx, r}).Read(make([]byte, 10)); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if err := iotest.TestReader(&stoppable{context.Background(), io.NewSectionReader(zeros{}, 0, 600<<10)}, make([]byte, 600<<10)); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

func TestInput(t *testing.T) {
	name := t.TempDir() + "/bundle"
	for content, want := range map[string]int64{"": -1, "12345": 5} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f, size, err := input(name)
		if want < 0 != (err != nil) || err == nil && size != want {
			t.Errorf("%q: %d bytes, %v", content, size, err)
		}
		f.Close()
	}
	for _, name := range []string{t.TempDir(), "/nothing"} {
		if _, _, err := input(name); err == nil {
			t.Errorf("%s is no bundle", name)
		}
	}
	if f, size, err := input("/dev/null"); err != nil || size != 0 {
		t.Errorf("no regular file: %d bytes, %v", size, err)
	} else {
		f.Close()
	}
}
