package bootloader

import (
	"bytes"
	"debug/pe"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func stub(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("../../build/loaders/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if err != nil {
		t.Skipf("systemd's stub is not there: make setup (%v)", err)
	}
	return b
}

// The image has the stub's sections and ours, none in the place of another, and binutils read it.
func TestUnified(t *testing.T) {
	u := Unified{
		Stub: stub(t), Kernel: bytes.Repeat([]byte("kernel"), 70_001), Initrd: bytes.Repeat([]byte("initrd"), 50_000),
		Cmdline: "console=ttyS0 quiet", OSRelease: []byte("ID=x\n"),
	}
	b, err := u.Image()
	if err != nil {
		t.Fatal(err)
	}
	again, _ := u.Image()
	if !bytes.Equal(b, again) {
		t.Error("the same input gives other bytes")
	}
	old, err := pe.NewFile(bytes.NewReader(u.Stub))
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{".osrel": u.OSRelease, ".cmdline": []byte(u.Cmdline), ".linux": u.Kernel, ".initrd": u.Initrd}
	for _, s := range old.Sections {
		if want[s.Name], err = s.Data(); err != nil {
			t.Fatal(err)
		}
	}
	opt := f.OptionalHeader.(*pe.OptionalHeader64)
	file, image := opt.SizeOfHeaders, opt.SizeOfHeaders
	for _, s := range f.Sections {
		data, err := s.Data()
		if err != nil || !bytes.HasPrefix(data, want[s.Name]) || len(data) >= len(want[s.Name])+int(opt.FileAlignment) {
			t.Errorf("section %s has %d bytes, not %d: %v", s.Name, len(data), len(want[s.Name]), err)
		}
		delete(want, s.Name)
		if s.Offset < file || s.VirtualAddress < image || s.Offset%opt.FileAlignment != 0 {
			t.Errorf("section %s is at %#x and %#x, before the end of the one before: %#x, %#x", s.Name, s.Offset, s.VirtualAddress, file, image)
		}
		file, image = s.Offset+s.Size, s.VirtualAddress+s.VirtualSize
	}
	if len(want) > 0 || opt.SizeOfImage < image || opt.SizeOfImage > image+opt.SectionAlignment || int(file) != len(b) {
		t.Errorf("missing %d sections; image of %#x bytes, not %#x; file of %#x, not %#x", len(want), opt.SizeOfImage, image, len(b), file)
	}
	name := filepath.Join(t.TempDir(), "x.efi")
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("objdump", "-h", name).CombinedOutput(); err != nil || !strings.Contains(string(out), ".initrd       000493e0") {
		t.Errorf("objdump: %v\n%s", err, out)
	}
	u.Cmdline, u.OSRelease = "", nil
	if b, err = u.Image(); err == nil {
		f, err = pe.NewFile(bytes.NewReader(b))
	}
	if err != nil || f.Section(".cmdline") != nil || f.Section(".osrel") != nil || f.Section(".initrd") == nil {
		t.Errorf("an image without a command line: %v", err)
	}
}

func TestUnifiedRefuses(t *testing.T) {
	s := stub(t)
	u := Unified{Stub: s, Kernel: []byte("k"), Initrd: []byte("i")}
	whole, err := u.Image()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"nothing": nil, "text": []byte("stub"), "cut off": s[:40_000], "an image": whole, "another program": bytes.ReplaceAll(s, []byte(".sdmagic"), []byte(".nomagic"))} {
		if _, err := (Unified{Stub: b, Kernel: []byte("k"), Initrd: []byte("i")}).Image(); err == nil || !strings.Contains(err.Error(), "the stub") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzUnified(f *testing.F) {
	f.Add(stub(f), []byte("kernel"))
	f.Fuzz(func(t *testing.T, stub, kernel []byte) {
		b, err := Unified{Stub: stub, Kernel: kernel, Initrd: []byte("i")}.Image()
		if err == nil && !bytes.Contains(b, kernel) {
			t.Error("the kernel is not in it")
		}
	})
}
