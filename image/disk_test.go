package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/slots"
	"lifeboat/verify"
)

func placeOf(places []Place, slot string) Place {
	for _, p := range places {
		if p.slot == slot {
			return p
		}
	}
	return Place{}
}

func parseConfig(t *testing.T, more string) *config.Config {
	t.Helper()
	c, err := config.Parse([]byte(testConfig + more))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func needMksquashfs(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("mksquashfs"); err != nil {
		t.Skip("mksquashfs is not installed")
	}
}

func TestLayout(t *testing.T) {
	sizes := map[string]int64{"rootfs": 64 * mib, "data": 3*mib + 1}
	for _, test := range []struct {
		name, config string
		want         []Place
		size         int64
	}{
		{"labels", testConfig, []Place{
			{1, "state", 4 * mib, 8 * mib, "", false},
			{2, "staging", 16 * mib, 64 * mib, "", false},
			{3, "rootfs.0", 84 * mib, 64 * mib, "rootfs.0", false},
			{4, "rootfs.1", 152 * mib, 64 * mib, "rootfs.1", false},
			{5, "data", 220 * mib, 4 * mib, "", false},
		}, 228 * mib},
		{"boot loader", strings.Replace(testConfig, "bootloader=raw", "bootloader=grub", 1), []Place{
			{1, "state", 4 * mib, 8 * mib, "", false},
			{2, "esp", 16 * mib, 64 * mib, "", true},
			{3, "staging", 84 * mib, 64 * mib, "", false},
			{4, "rootfs.0", 152 * mib, 64 * mib, "rootfs.0", false},
			{5, "rootfs.1", 220 * mib, 64 * mib, "rootfs.1", false},
			{6, "data", 288 * mib, 4 * mib, "", false},
		}, 296 * mib},
		{"devices and other labels", strings.NewReplacer("PARTLABEL=rootfs.0", "/dev/nvme0n1p2", "PARTLABEL=rootfs.1", "PARTLABEL=system-b").Replace(testConfig) +
			"[state]\ndevice=/dev/nvme0n1p7\n[staging]\ndevice=/dev/disk/by-partlabel/drop\n", []Place{
			{7, "state", 4 * mib, 8 * mib, "", false},
			{1, "drop", 16 * mib, 65 * mib, "", false}, // a bundle for one slot
			{2, "rootfs.0", 85 * mib, 64 * mib, "rootfs.0", false},
			{3, "system-b", 153 * mib, 64 * mib, "rootfs.1", false},
			{4, "data", 221 * mib, 4 * mib, "", false},
		}, 229 * mib},
	} {
		c, err := config.Parse([]byte(test.config))
		if err != nil {
			t.Fatal(err)
		}
		got, size, err := layout(c, sizes)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(Place{})); diff != "" || size != test.size {
			t.Errorf("%s: size %d\n%s", test.name, size, diff)
		}
	}
	for want, conf := range map[string]string{
		"of /dev/vda and of /dev/vdb":        "[state]\ndevice=/dev/vda1\n[staging]\ndevice=/dev/vdb2\n",
		"two partitions would be number 1":   "[state]\ndevice=/dev/vda1\n[staging]\ndevice=/dev/vda01\n",
		"two partitions would be labelled":   "[staging]\ndevice=/dev/vda1\n[slot.x.0]\ndevice=PARTLABEL=staging\n",
		"is not a partition that a disk":     "[state]\ndevice=/dev/nvme0n1\n",
		"no size for slots of class x: fill": "[slot.x.0]\ndevice=PARTLABEL=x\n",
	} {
		sizes := map[string]int64{"rootfs": mib}
		if !strings.Contains(want, "no size") {
			sizes["x"] = mib
		}
		if _, _, err := layout(parseConfig(t, conf), sizes); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"1": 1, "4K": 4 << 10, "64M": 64 << 20, "64MiB": 64 << 20, "2g": 2 << 30, "1T": 1 << 40,
		"": -1, "M": -1, "0": -1, "-1": -1, "1.5G": -1, "1P": -1, "99999999T": -1, "9223372036854775807": -1, "9223372036854775808": -1,
	} {
		got, err := ParseSize(in)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: got %d, want %d", in, got, want)
		}
	}
}

// A disk is what the device itself would have made: the slots are read back with the device's code, tables with sgdisk.
func TestDisk(t *testing.T) {
	needMksquashfs(t)
	now := time.Now()
	signer, err := newSelf(now)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 5*mib+123) // no whole block at the end
	random := rand.NewChaCha8([32]byte{})
	random.Read(content)
	dir := writeFiles(t, map[string]string{"root.img": string(content)})
	c := parseConfig(t, "")
	o := DiskOptions{
		Config: c, Keyring: signer.keyring, Now: now,
		Fill: []Fill{{"rootfs.0", dir + "/root.img"}},
		Sign: &Signer{Key: signer.key, Cert: signer.cert, Version: "1.2"},
	}
	for _, test := range []struct {
		name string
		fill []Fill
		ring *verify.Keyring
	}{
		{"one slot", []Fill{{"rootfs.0", dir + "/root.img"}}, signer.keyring},
		{"both, by bootname", []Fill{{"B", dir + "/root.img"}, {"A", dir + "/root.img"}}, signer.keyring},
		{"no keyring here", []Fill{{"rootfs.1", dir + "/root.img"}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := o
			o.Fill, o.Keyring = test.fill, test.ring
			out := filepath.Join(t.TempDir(), "disk.img")
			report, err := Disk(context.Background(), o, out)
			if err != nil {
				t.Fatal(err)
			}
			if left, _ := filepath.Glob(filepath.Dir(out) + "/.*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			dev, err := disk.Open(out, false)
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			if dev.Size() != report.Size {
				t.Errorf("%d bytes, the report says %d", dev.Size(), report.Size)
			}
			rules := verify.Rules{Keyring: signer.keyring, AtBoot: true}
			for _, f := range report.Filled {
				place := placeOf(report.Places, f.Slot)
				slot := disk.Section(dev, place.Start, place.Size)
				seal, err := slots.ReadSeal(slot, slot.Size())
				if err != nil {
					t.Fatal(err)
				}
				facts, err := slots.Attest(context.Background(), slot, slot.Size(), seal, rules, c.Compatible, nil)
				if err != nil {
					t.Fatalf("%s: the device would refuse it: %v", f.Slot, err)
				}
				if facts.Version != "1.2" || !facts.Signed || fmt.Sprintf("%x", facts.Manifest) != f.Manifest {
					t.Errorf("%s: %+v", f.Slot, facts)
				}
				got := make([]byte, len(content))
				if _, err := slot.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s: the image is not there: %v", f.Slot, err)
				}
			}
			checkInspect(t, out, c, rules, test.fill, report)
			if sgdisk, err := exec.LookPath("sgdisk"); err == nil {
				b, err := exec.Command(sgdisk, "-v", out).CombinedOutput()
				if err != nil || !strings.Contains(string(b), "No problems found") {
					t.Errorf("sgdisk: %v\n%s", err, b)
				}
			}
		})
	}
}

func checkInspect(t *testing.T, out string, c *config.Config, rules verify.Rules, fill []Fill, report *DiskReport) {
	t.Helper()
	for _, o := range []InspectOptions{{}, {Config: c, Rules: &rules}} {
		view, err := Inspect(context.Background(), out, o)
		if err != nil {
			t.Fatal(err)
		}
		d, ok := view.(*DiskView)
		if !ok {
			t.Fatalf("inspect gives %T", view)
		}
		if d.State == nil || d.State.Sequence != 2 || len(d.State.Slots) != 2 || len(d.Seals) != 2 {
			b, _ := json.Marshal(d)
			t.Fatalf("inspect: %s", b)
		}
		for _, s := range d.Seals {
			want := "missing"
			for _, f := range report.Filled {
				if f.Slot == s.Slot {
					want = "valid"
				}
			}
			if s.Seal != want || s.Signed != (o.Rules != nil && want == "valid") || s.Bootname == "" {
				t.Errorf("seal %+v, want %s", s, want)
			}
		}
		for _, s := range d.State.Slots {
			filled := len(fill) == 2 || fill[0].Slot == s.Slot
			if (s.ManifestHash != "") != filled || (s.Tries == 3) != filled || s.Good {
				t.Errorf("state of %+v", s)
			}
		}
	}
}

func TestDiskRefuses(t *testing.T) {
	needMksquashfs(t)
	now := time.Now()
	signer, err := newSelf(now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := newSelf(now)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeFiles(t, map[string]string{"root.img": strings.Repeat("x", mib), "bad.raucb": "no bundle, this is"})
	sign := &Signer{Key: signer.key, Cert: signer.cert, Version: "1"}
	image := []Fill{{"rootfs.0", dir + "/root.img"}}
	for _, test := range []struct {
		name, want string
		code       verify.Code
		o          DiskOptions
	}{
		{"unsigned image", "only with --sign", 0, DiskOptions{Fill: image}},
		{"no such slot", `no slot "rootfs.7"`, 0, DiskOptions{Sign: sign, Fill: []Fill{{"rootfs.7", dir + "/root.img"}}}},
		{"slot twice", "filled twice", 0, DiskOptions{Sign: sign, Fill: []Fill{{"A", dir + "/root.img"}, {"rootfs.0", dir + "/root.img"}}}},
		{"nothing", "no size for slots of class rootfs", 0, DiskOptions{}},
		{"no such class", "size of rotfs: there is no such", 0, DiskOptions{Sign: sign, Fill: image, Sizes: map[string]int64{"rotfs": mib}}},
		{"too small", "image rootfs needs", verify.Policy, DiskOptions{Sign: sign, Fill: image, Sizes: map[string]int64{"rootfs": mib}}},
		{"small state", "at least 8 MiB", 0, DiskOptions{Sign: sign, Fill: image, Sizes: map[string]int64{"state": mib}}},
		{"no bundle", "bad.raucb", verify.Malformed, DiskOptions{Fill: []Fill{{"A", dir + "/bad.raucb"}}}},
		{"stranger", "root.img", verify.Untrusted, DiskOptions{Keyring: other.keyring, Sign: sign, Fill: image}},
		{"version with a line break", "is no version", 0, DiskOptions{Sign: &Signer{Version: "1\n[x]"}, Fill: image}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := test.o
			o.Config, o.Now = parseConfig(t, ""), now
			if o.Keyring == nil {
				o.Keyring = signer.keyring
			}
			out := filepath.Join(t.TempDir(), "disk.img")
			_, err := Disk(context.Background(), o, out)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			var refused *verify.Refusal
			if errors.As(err, &refused) != (test.code != 0) || test.code != 0 && refused.Code != test.code {
				t.Errorf("code of %v, want %d", err, test.code)
			}
			if left, _ := filepath.Glob(filepath.Dir(out) + "/*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// A torn seal is false, a wiped one missing; a lost record does not hide the seals.
func TestInspectDamaged(t *testing.T) {
	needMksquashfs(t)
	now := time.Now()
	signer, err := newSelf(now)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeFiles(t, map[string]string{"root.img": strings.Repeat("x", mib)})
	out := filepath.Join(dir, "disk.img")
	report, err := Disk(context.Background(), DiskOptions{
		Config: parseConfig(t, ""), Keyring: signer.keyring, Now: now, Sign: &Signer{Key: signer.key, Cert: signer.cert, Version: "1"},
		Fill: []Fill{{"A", dir + "/root.img"}, {"B", dir + "/root.img"}},
	}, out)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(out, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(b []byte, at int64) {
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	a := placeOf(report.Places, "rootfs.0")
	write([]byte("torn"), a.Start+a.Size-slots.SealSize+100)
	state := report.Places[0]
	write(make([]byte, 4096), state.Start)
	write(make([]byte, 4096), state.Start+state.Size-4096)
	view, err := Inspect(context.Background(), out, InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d := view.(*DiskView)
	if d.State != nil || !strings.Contains(d.StateError, "lost") {
		t.Errorf("state %v, %s", d.State, d.StateError)
	}
	if len(d.Seals) != 2 || d.Seals[0].Seal != "false" || d.Seals[0].Why == "" || d.Seals[1].Seal != "valid" || d.Seals[1].Version != "1" {
		t.Errorf("seals %+v", d.Seals)
	}
}

func TestInspectStick(t *testing.T) {
	needMksquashfs(t)
	signer, err := newSelf(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 10000)
	random := rand.NewChaCha8([32]byte{})
	random.Read(content)
	dir := writeFiles(t, map[string]string{
		"in/manifest.raucm": "[update]\ncompatible=example-board\nversion=3\n[image.rootfs]\nfilename=a.img\n", "in/a.img": string(content),
		"readme.txt": "hello", "broken.raucb": "broken",
	})
	good := dir + "/update.raucb"
	if err := bundle.Create(context.Background(), dir+"/in", good, bundle.CreateOptions{Key: signer.key, Cert: signer.cert}); err != nil {
		t.Fatal(err)
	}
	for _, whole := range []bool{true, false} {
		out := dir + "/stick.img"
		if err := Stick(out, StickOptions{WholeDisk: whole}, []string{good, dir + "/readme.txt", dir + "/broken.raucb"}); err != nil {
			t.Fatal(err)
		}
		view, err := Inspect(context.Background(), out, InspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		v, ok := view.(*StickView)
		if !ok || len(v.Files) != 3 {
			t.Fatalf("%T %+v", view, view)
		}
		if b := v.Files[0].Bundle; b == nil || b.Version != "3" || b.Compatible != "example-board" || b.Format != "verity" || len(b.ManifestHash) != 64 {
			t.Errorf("bundle %+v", b)
		}
		if v.Files[1].Bundle != nil || v.Files[1].Name != "readme.txt" || v.Files[1].Size != 5 {
			t.Errorf("file %+v", v.Files[1])
		}
		if v.Files[2].Bundle != nil || !strings.Contains(v.Files[2].Why, "not a bundle") {
			t.Errorf("broken bundle %+v", v.Files[2])
		}
	}
	if view, err := Inspect(context.Background(), good, InspectOptions{}); view != nil || err != nil {
		t.Errorf("bundle: %v, %v", view, err)
	}
	if _, err := Inspect(context.Background(), dir+"/readme.txt", InspectOptions{}); !errors.Is(err, ErrUnknown) {
		t.Errorf("a text: %v", err)
	}
}

// A group is filled by one bundle, of which each slot has its image; inspect shows when that is not so.
func TestDiskGroup(t *testing.T) {
	needMksquashfs(t)
	now := time.Now()
	signer, err := newSelf(now)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeFiles(t, map[string]string{"root.img": strings.Repeat("root", 20_000), "app.img": strings.Repeat("app", 30_000)})
	c := parseConfig(t, "[slot.appfs.0]\ndevice=PARTLABEL=appfs.0\nparent=rootfs.0\n[slot.appfs.1]\ndevice=PARTLABEL=appfs.1\nparent=rootfs.1\n")
	o := DiskOptions{Config: c, Keyring: signer.keyring, Now: now, Sign: &Signer{Key: signer.key, Cert: signer.cert, Version: "1.2"}}
	for want, fill := range map[string][]Fill{
		"slot appfs.0 goes with rootfs.0: it needs an image too":               {{"rootfs.0", dir + "/root.img"}},
		"slot appfs.0 goes with rootfs.0, which is to be filled too":           {{"appfs.0", dir + "/app.img"}},
		"slot rootfs.0 is to be filled twice":                                  {{"rootfs.0", dir + "/root.img"}, {"A", dir + "/root.img"}},
		"slot appfs.0 is filled by the bundle of rootfs.0, which it goes with": {{"A", "x.raucb"}, {"appfs.0", "y.raucb"}},
	} {
		o.Fill = fill
		if _, err := Disk(t.Context(), o, filepath.Join(t.TempDir(), "disk.img")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	o.Fill = []Fill{{"A", dir + "/root.img"}, {"appfs.0", dir + "/app.img"}, {"B", dir + "/app.img"}, {"appfs.1", dir + "/root.img"}}
	out := filepath.Join(t.TempDir(), "disk.img")
	r, err := Disk(t.Context(), o, out)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Filled) != 4 {
		t.Errorf("filled: %+v", r.Filled)
	}
	seals := func() (list []string) {
		v, err := Inspect(t.Context(), out, InspectOptions{Config: c})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range v.(*DiskView).Seals {
			list = append(list, s.Slot+" "+s.Seal)
		}
		return list
	}
	if d := cmp.Diff([]string{"rootfs.0 valid", "appfs.0 valid", "rootfs.1 valid", "appfs.1 valid"}, seals()); d != "" {
		t.Error(d)
	}
	// The applications change places.
	f, err := os.OpenFile(out, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, placeOf(r.Places, "appfs.0").Size)
	f.ReadAt(b, placeOf(r.Places, "appfs.1").Start)
	f.WriteAt(b, placeOf(r.Places, "appfs.0").Start)
	if d := cmp.Diff([]string{"rootfs.0 valid", "appfs.0 false", "rootfs.1 valid", "appfs.1 valid"}, seals()); d != "" {
		t.Error(d)
	}
}

// Slots that are files of the boot loader's partition have none of their own; what fills them changes nothing else there.
func TestDiskFiles(t *testing.T) {
	needMksquashfs(t)
	now := time.Now()
	signer, err := newSelf(now)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeFiles(t, map[string]string{
		"root.img": strings.Repeat("root", 20_000), "kernel.img": strings.Repeat("kernel", 30_000),
		"A.efi": string(make([]byte, 512<<10)), "B.efi": string(make([]byte, 64<<10)), "esp": string(make([]byte, 8<<20)),
	})
	for _, args := range [][]string{
		{"mkfs.fat", "-s", "8", dir + "/esp"}, {"mcopy", "-i", dir + "/esp", dir + "/A.efi", "::A.efi"}, {"mcopy", "-i", dir + "/esp", dir + "/B.efi", "::B.efi"},
	} {
		if text, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, text)
		}
	}
	c, err := config.Parse([]byte(`[system]
compatible=x
bootloader=sdboot
[slot.rootfs.0]
device=PARTLABEL=rootfs.0
bootname=A
[slot.rootfs.1]
device=PARTLABEL=rootfs.1
bootname=B
[slot.boot.0]
device=PARTLABEL=esp
file=/A.efi
parent=rootfs.0
[slot.boot.1]
device=PARTLABEL=esp
file=/B.efi
parent=rootfs.1
`))
	if err != nil {
		t.Fatal(err)
	}
	o := DiskOptions{
		Config: c, Keyring: signer.keyring, Now: now, ESP: dir + "/esp", Sign: &Signer{Key: signer.key, Cert: signer.cert, Version: "1.2"},
		Fill: []Fill{{"A", dir + "/root.img"}, {"boot.0", dir + "/kernel.img"}},
	}
	out := filepath.Join(t.TempDir(), "disk.img")
	r, err := Disk(t.Context(), o, out)
	if err != nil {
		t.Fatal(err)
	}
	var labels []string
	var esp Place
	for _, p := range r.Places {
		if labels = append(labels, p.Label); p.esp {
			esp = p
		}
	}
	if d := cmp.Diff([]string{"state", "esp", "staging", "rootfs.0", "rootfs.1", "data"}, labels); d != "" {
		t.Error(d)
	}
	v, err := Inspect(t.Context(), out, InspectOptions{Config: c})
	if err != nil {
		t.Fatal(err)
	}
	var seals []string
	for _, s := range v.(*DiskView).Seals {
		seals = append(seals, s.Slot+" "+s.Seal)
	}
	if d := cmp.Diff([]string{"rootfs.0 valid", "boot.0 valid", "rootfs.1 missing", "boot.1 missing"}, seals); d != "" {
		t.Error(d)
	}
	disk, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(dir + "/esp")
	if err != nil {
		t.Fatal(err)
	}
	first, last := -1, 0
	for i, b := range disk[esp.Start:][:len(made)] {
		if b == made[i] {
			continue
		}
		if last = i; first < 0 {
			first = i
		}
	}
	if kernel := bytes.Index(disk[esp.Start:], []byte("kernelkernel")); first != kernel || last >= first+512<<10 {
		t.Errorf("bytes from %d to %d of the partition differ, the file begins at %d", first, last, kernel)
	}

	for want, fill := range map[string][]Fill{
		"slot boot.1: open /B.efi": nil, "fill boot.1": {{"B", dir + "/root.img"}, {"boot.1", dir + "/kernel.img"}},
	} {
		o := o
		if o.Fill = fill; fill == nil {
			o.Fill = []Fill{{"B", dir + "/root.img"}, {"boot.1", dir + "/kernel.img"}}
			o.ESP = filepath.Join(t.TempDir(), "esp")
			if text, err := exec.Command("mkfs.fat", "-C", o.ESP, "8192").CombinedOutput(); err != nil {
				t.Fatalf("mkfs.fat: %v\n%s", err, text)
			}
		}
		if _, err := Disk(t.Context(), o, filepath.Join(t.TempDir(), "disk.img")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
