package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/status"
	"lifeboat/update"
)

func TestBytesOf(t *testing.T) {
	for in, want := range map[string]int64{
		"": 0, "65536": 65536, "64K": 65536, "4M": 4 << 20, "2G": 2 << 30, "1": -1, "63K": -1, "-4M": -1, "M": -1, "4MB": -1, "0x10000": -1, "9999999999": -1,
	} {
		got, err := bytesOf(in)
		if want < 0 != (err != nil) || want >= 0 && got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
}

// Slots lie on the disk from which the system was started; a double on another disk is not theirs, one on the same disk is
// nobody's.
func TestSlotBlocks(t *testing.T) {
	c, err := config.Parse([]byte(conf))
	if err != nil {
		t.Fatal(err)
	}
	a, b := disk.Block{Name: "vda2", Disk: "vda", PartName: "rootfs.0"}, disk.Block{Name: "vda3", Disk: "vda", PartName: "rootfs.1"}
	other := disk.Block{Name: "sda2", Disk: "sda", PartName: "rootfs.0", USB: true}
	double := disk.Block{Name: "vda4", Disk: "vda", PartName: "rootfs.1"}
	booted := status.Booted{Slot: "rootfs.1", Device: "/dev/vda3"}
	for _, tt := range []struct {
		name   string
		blocks []disk.Block
		booted status.Booted
		fails  string
	}{
		{"there", []disk.Block{a, b}, booted, ""},
		{"a double elsewhere", []disk.Block{a, b, other}, booted, ""},
		{"only elsewhere", []disk.Block{b, other}, booted, "there is no PARTLABEL=rootfs.0"},
		{"a double on the disk", []disk.Block{a, b, double}, booted, "/dev/vda3 and /dev/vda4 both are"},
		{"labels were changed", []disk.Block{a, b}, status.Booted{Slot: "rootfs.0", Device: "/dev/vda3"}, "rootfs.0 is /dev/vda2 now"},
		{"its disk is gone", nil, booted, "there is no"},
	} {
		found, err := slotBlocks(c, tt.blocks, tt.booted)
		switch {
		case tt.fails != "":
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%s: %v", tt.name, err)
			}
		case err != nil || found["rootfs.0"].Name != "vda2" || found["rootfs.1"].Name != "vda3":
			t.Errorf("%s: %v, %v", tt.name, found, err)
		}
	}
}

// shown feeds a meter with three seconds of writing 100 MiB.
func shown(asJSON, tty bool) (out, err string) {
	var o, e bytes.Buffer
	now := time.Unix(1000, 0)
	m := &meter{out: &o, err: &e, json: asJSON, tty: tty, now: func() time.Time { return now }}
	m.begin("writing")
	for range 3 {
		now = now.Add(time.Second)
		m.progress(int64(now.Unix()-1000)*10<<20, 100<<20)
		m.progress(int64(now.Unix()-1000)*10<<20+1, 100<<20) // too soon for another line
	}
	m.say("installed 2 to rootfs.1 (B)")
	m.end(event{Event: "installed", Version: "2", Slot: "rootfs.1", Bootname: "B", Unchanged: 99 << 20})
	return o.String(), e.String()
}

func TestMeter(t *testing.T) {
	for _, tt := range []struct {
		name      string
		json, tty bool
		out, err  string
	}{
		{"lines", false, false, "version 2 is in rootfs.1 (B): the next boot tries it\n", `writing      [##                  ]  10 %  10.0 MiB/s  0:09 left
writing      [####                ]  20 %  10.0 MiB/s  0:08 left
writing      [######              ]  30 %  10.0 MiB/s  0:07 left
installed 2 to rootfs.1 (B)
`},
		{"terminal", false, true, "version 2 is in rootfs.1 (B): the next boot tries it\n", "\r\x1b[Kwriting      [##                  ]  10 %  10.0 MiB/s  0:09 left" +
			"\r\x1b[Kwriting      [####                ]  20 %  10.0 MiB/s  0:08 left" +
			"\r\x1b[Kwriting      [######              ]  30 %  10.0 MiB/s  0:07 left" +
			"\r\x1b[Kinstalled 2 to rootfs.1 (B)\n"},
		{"JSON", true, true, `{"event":"progress","step":"writing","done":10485760,"total":104857600,"percent":10,"bytes_per_second":10485760,"seconds_left":9}
{"event":"progress","step":"writing","done":20971520,"total":104857600,"percent":20,"bytes_per_second":10485760,"seconds_left":8}
{"event":"progress","step":"writing","done":31457280,"total":104857600,"percent":30,"bytes_per_second":10485760,"seconds_left":7}
{"event":"note","text":"installed 2 to rootfs.1 (B)"}
{"event":"installed","version":"2","slot":"rootfs.1","bootname":"B","unchanged":103809024}
`, ""},
	} {
		out, err := shown(tt.json, tt.tty)
		if diff := cmp.Diff(tt.out, out) + cmp.Diff(tt.err, err); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
	}
}

// A pipe is taken in whole, and no more than a bundle can have.
func TestSpool(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	quiet := newMeter(io.Discard, os.Stderr, true)
	const room = 1 << 20
	for n, code := range map[int]int{1: 0, 3 << 19: 0, 1 << 22: exitPolicy} {
		want := bytes.Repeat([]byte("bundle"), n/6+1)[:n]
		f, size, err := spool(bytes.NewReader(want), room, quiet)
		var r update.Refusal
		if errors.As(err, &r); r.Code != code || code == 0 && err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if err != nil {
			continue
		}
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, want) || size != int64(n) {
			t.Errorf("%d bytes: got %d, size %d, %v", n, len(got), size, err)
		}
		f.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r, w := io.Pipe()
	defer w.Close()
	if _, _, err := spool(&stoppable{ctx, r}, room, quiet); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if _, _, err := spool(bytes.NewReader(nil), room, quiet); err == nil || !strings.Contains(err.Error(), "nothing came") {
		t.Errorf("an empty pipe: %v", err)
	}
	left, err := os.ReadDir(os.TempDir())
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	t.Setenv("TMPDIR", "/nowhere")
	if _, _, err := spool(bytes.NewReader(nil), room, quiet); err == nil || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("no folder: %v", err)
	}
}
