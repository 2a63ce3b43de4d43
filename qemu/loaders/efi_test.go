package loaders

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"lifeboat/boot"
	"lifeboat/boot/efi"
	"lifeboat/boot/sdboot"
	"lifeboat/fat"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
)

// program is an EFI program that writes text to the first serial port, waits there for a byte, and returns an error: then
// whoever started it goes on. Firmware cannot take the byte away, as it gets no interrupt meanwhile; nor does anybody wait
// afterwards who calls Stall, in whose place CheckEvent now stands, which refuses what is no event.
func program(text string) []byte {
	code := []byte("\xfa" + // cli
		"\x48\x8b\x42\x60" + // mov rax, [rdx+0x60]: boot services
		"\x4c\x8b\x48\x78" + // mov r9, [rax+120]: CheckEvent
		"\x4c\x89\x88\xf8\x00\x00\x00" + // mov [rax+248], r9: Stall
		"\x4c\x8d\x05\x2c\x00\x00\x00" + // lea r8, [text]
		"\x41\x8a\x08" + // next: mov cl, [r8]
		"\x49\xff\xc0" + // inc r8
		"\x66\xba\xfd\x03" + // mov dx, 0x3fd: line status
		"\x84\xc9" + // test cl, cl
		"\x74\x0c" + // jz wait
		"\xec" + // full: in al, dx
		"\xa8\x20" + // test al, 0x20
		"\x74\xfb" + // jz full
		"\x88\xc8" + // mov al, cl
		"\xb2\xf8" + // mov dl, 0xf8: data
		"\xee" + // out dx, al
		"\xeb\xe6" + // jmp next
		"\xec" + // wait: in al, dx
		"\xa8\x01" + // test al, 1
		"\x74\xfb" + // jz wait
		"\xb2\xf8" + // mov dl, 0xf8
		"\xec" + // in al, dx
		"\xfb" + // sti
		"\x6a\x15\x58" + // push 21; pop rax
		"\x48\x0f\xba\xe8\x3f" + // bts rax, 63: EFI_ABORTED
		"\xc3") // ret
	code = append(append(code, text...), 0)
	const align, header = 0x1000, 0x200
	le := binary.LittleEndian
	b := make([]byte, header, header+len(code)+512)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	pe := b[0x40:]
	copy(pe, "PE\x00\x00")
	le.PutUint16(pe[4:], 0x8664) // machine
	le.PutUint16(pe[6:], 1)      // sections
	le.PutUint16(pe[20:], 240)   // size of the optional header
	le.PutUint16(pe[22:], 0x22)  // executable, large addresses
	opt := pe[24:]
	le.PutUint16(opt, 0x20b) // PE32+
	size := uint32(len(code)+511) / 512 * 512
	le.PutUint32(opt[4:], size)     // code
	le.PutUint32(opt[16:], align)   // entry
	le.PutUint32(opt[20:], align)   // base of code
	le.PutUint32(opt[32:], align)   // section alignment
	le.PutUint32(opt[36:], 512)     // file alignment
	le.PutUint32(opt[56:], 2*align) // image
	le.PutUint32(opt[60:], header)  // headers
	le.PutUint16(opt[68:], 10)      // EFI application
	le.PutUint32(opt[108:], 16)     // directories, all empty
	s := opt[240:]
	copy(s, ".text")
	le.PutUint32(s[8:], uint32(len(code)))
	le.PutUint32(s[12:], align)
	le.PutUint32(s[16:], size)
	le.PutUint32(s[20:], header)
	le.PutUint32(s[36:], 0xe0000020)
	return append(append(b, code...), make([]byte, int(size)-len(code))...)
}

// nvram are the variables in the flash that OVMF has for them, as [efi.Vars]. They lie in it one after the other behind two
// headers: start 0x55aa (2), state, reserved, attributes (4), count (8), time (16), key (4), size of the name (4) and of the
// value (4), vendor (16), name, value, and so on from the next multiple of 4.
type nvram map[string][]byte

const varHead = 60

func load(file string) (nvram, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	v := nvram{}
	le := binary.LittleEndian
	for b = b[le.Uint16(b[48:])+28:]; le.Uint16(b) == 0x55aa; {
		name, value := int(le.Uint32(b[36:])), int(le.Uint32(b[40:]))
		if b[2] == 0x3f { // neither deleted nor about to be
			v[utf16le(b[varHead:varHead+name-2])+"-"+guid(b[44:60])] = slices.Concat(b[4:8], b[varHead+name:varHead+name+value])
		}
		b = b[(varHead+name+value+3)&^3:]
	}
	return v, nil
}

// save writes them to a flash of which nothing else is used.
func (v nvram) save(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	store := b[le.Uint16(b[48:]):]
	store = store[28:le.Uint32(store[16:])]
	var all []byte
	for _, name := range slices.Sorted(maps.Keys(v)) {
		text, vendor, _ := strings.Cut(name, "-")
		h := make([]byte, varHead)
		h[0], h[1], h[2] = 0xaa, 0x55, 0x3f
		copy(h[4:], v[name][:4])
		le.PutUint32(h[36:], uint32(2*len(text)+2))
		le.PutUint32(h[40:], uint32(len(v[name])-4))
		copy(h[44:], vendorOf(vendor))
		all = append(all, h...)
		for i := range len(text) {
			all = append(all, text[i], 0)
		}
		all = append(append(all, 0, 0), v[name][4:]...)
		for len(all)%4 > 0 {
			all = append(all, 0xff)
		}
	}
	if len(all) > len(store) {
		return errors.New("too many variables")
	}
	copy(store[copy(store, all):], bytes.Repeat([]byte{0xff}, len(store)-len(all)))
	return os.WriteFile(file, b, 0o644)
}

func utf16le(b []byte) string {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u))
}

func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

func vendorOf(text string) []byte {
	var a uint32
	var b, c uint16
	var d, e []byte
	fmt.Sscanf(text, "%08x-%04x-%04x-%x-%x", &a, &b, &c, &d, &e)
	le := binary.LittleEndian
	return slices.Concat(le.AppendUint16(le.AppendUint16(le.AppendUint32(nil, a), b), c), d, e)
}

func (v nvram) Get(name string) ([]byte, error) {
	if b, ok := v[name]; ok {
		return bytes.Clone(b), nil
	}
	return nil, fs.ErrNotExist
}

func (v nvram) Set(name string, b []byte) error { v[name] = bytes.Clone(b); return nil }
func (v nvram) Delete(name string) error        { delete(v, name); return nil }

// parts makes a disk of file systems, the content of each given, and returns where each lies, in bytes.
func parts(t *testing.T, s *scene.Scene, contents []map[string][]byte) (image string, at []int64) {
	t.Helper()
	const size = 8 << 20
	image = s.Path("disk.img")
	disk, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := disk.Truncate(int64(len(contents))*size + 2<<20); err != nil {
		t.Fatal(err)
	}
	table := "label: gpt\n"
	for i, files := range contents {
		at = append(at, 1<<20+int64(i)*size)
		table += fmt.Sprintf("start=%d, size=%d, type=U\n", at[i]/512, size/512)
		one, err := s.FAT("part.img", size, files)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(one)
		if err == nil {
			_, err = disk.WriteAt(b, at[i])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sfdisk", "-q", image)
	cmd.Stdin = strings.NewReader(table)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	return image, at
}

// firmware is a machine that OVMF starts from a disk, and the file of its variables. QEMU does not say that the disk is to be
// started first (bootindex), as no real machine does: OVMF would take entries whose file is not there out of BootOrder.
func firmware(t *testing.T, s *scene.Scene, image string) (m qemu.Machine, vars string) {
	t.Helper()
	m, err := s.FirmwareMachine(scene.OVMF, image)
	if err != nil {
		t.Fatal(err)
	}
	m.Disk, m.Memory = "", 128
	m.Args = append(m.Args, "-drive", "if=none,id=disk,format=raw,file="+image, "-device", "virtio-blk-pci,drive=disk")
	return m, image + ".vars"
}

// The real systemd-boot starts what the model does, and leaves the names that it does: in what this program writes, and in
// what a cut, a person or other tools leave. What is started gives up, and the firmware starts systemd-boot again: one power on
// is enough for all.
func TestSystemdBoot(t *testing.T) {
	qemu.NeedKernel(t, "generic")
	s := scene.At(t.TempDir(), "", qemu.Kernel{})
	loaders, err := scene.Loaders()
	if err != nil {
		t.Fatal(err)
	}
	loader, err := os.ReadFile(filepath.Join(loaders, "usr/lib/systemd/boot/efi/systemd-bootx64.efi"))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"A", "B"}
	chains := []struct {
		starts int
		files  []string
	}{
		{2, []string{"53-B+3-0.conf", "53-B+2-1.conf", "52-A+2-0.conf"}},        // the next name is taken: it does not count
		{4, []string{"53-B+3-1.conf", "53-B+3-0.conf", "52-A+2-0.conf"}},        // what is written instead
		{6, []string{"53-B+3-0.conf", "52-A+2-0.conf", "00-A.off", "00-B.off"}}, // and on when nothing has tries left
		{4, []string{"53-B+1-0.conf", "51-B.conf", "52-A+1-0.conf", "00-B.off"}},
		{3, []string{"52-A.conf", "53-B+0-3.conf"}},
		{7, []string{"52-A+2.conf", "53-b+4-7.conf"}},
		{9, []string{"99-A+1-0.conf", "00-B+9-0.conf", "00-A.off"}},
		{3, []string{"52-A+2-1.conf", "53-B+3-0.off"}},
		{5, []string{"10-A+2-9.conf", "09-B+2-99.conf"}},
		{4, []string{"53-B+0-1.conf", "54-A+0-1.conf"}},
		{12, []string{"50-A+9-0.conf", "60-B+2-0.conf"}},
	}
	var contents []map[string][]byte
	var starts []efi.Slot // one after the other
	place := map[string]int{}
	var order boot.Vars
	for i, chain := range chains {
		esp := map[string][]byte{"EFI/BOOT/BOOTX64.EFI": loader, "loader/loader.conf": []byte("timeout 0\n")}
		for _, slot := range names {
			esp["EFI/lifeboat/"+slot+".efi"] = program("STARTED " + slot + "\n")
		}
		for _, f := range chain.files {
			slot := strings.ToUpper(f[3:4])
			esp["loader/entries/"+f] = []byte("title " + slot + "\nsort-key 0\nefi /EFI/lifeboat/" + slot + ".efi\n")
		}
		contents = append(contents, esp)
		for n := range chain.starts {
			name := fmt.Sprintf("chain %d start %d", i, n)
			starts = append(starts, efi.Slot{Name: name, File: `\EFI\BOOT\BOOTX64.EFI`})
			place[name] = i + 1
			order.Order = append(order.Order, boot.Turn{Name: name})
		}
	}
	image, at := parts(t, s, contents)
	disk, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	m, file := firmware(t, s, image)
	vars, err := load(file)
	if err != nil {
		t.Fatal(err)
	}
	err = efi.New(vars, starts, func(name string) (efi.Partition, error) { return efi.FindPartition(disk, 512, place[name]) }).Write(order)
	if err := errors.Join(err, vars.save(file)); err != nil {
		t.Fatal(err)
	}
	vm := qemu.Test(t, m)
	states := 0
	for i, chain := range chains {
		files := chain.files
		for range chain.starts {
			want, after := sdboot.Run(files, names)
			got := vm.Expect(scene.Patience, `STARTED ([AB])`)[1]
			b := make([]byte, 8<<20)
			if _, err := disk.ReadAt(b, at[i]); err != nil {
				t.Fatal(err)
			}
			f, err := fat.Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			now, err := sdboot.Unmounted{FS: f}.Names()
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(now)
			after = slices.Sorted(slices.Values(after))
			if got != want || !slices.EqualFunc(now, after, strings.EqualFold) {
				t.Errorf("%q: starts %s and leaves %q, the model %s and %q", files, got, now, want, after)
			}
			states++
			files = now
			vm.Type("\n")
		}
	}
	t.Logf("figure: systemd-boot: %d states as its model says", states)
}

// The real firmware starts what the model does, and leaves of the slots' variables what it does: of what this program writes, of
// what a cut leaves of that, of what others make of it, and of any numbers. LIFEBOAT_LOADERS=all: all of them; each is a power on.
func TestFirmware(t *testing.T) {
	qemu.NeedKernel(t, "generic")
	s := scene.At(t.TempDir(), "", qemu.Kernel{})
	esp := map[string][]byte{"EFI/BOOT/BOOTX64.EFI": program("STARTED removable\n")}
	names := []string{"A", "B", "C"}
	for _, name := range names {
		esp[name+".efi"] = program("STARTED " + name + "\n")
	}
	image, _ := parts(t, s, []map[string][]byte{esp})
	m, file := firmware(t, s, image)
	disk, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	part, err := efi.FindPartition(disk, 512, 1)
	if err != nil {
		t.Fatal(err)
	}
	// dead slots have a file that is not there.
	open := func(v efi.Vars, dead string) *efi.Loader {
		var slots []efi.Slot
		for _, name := range names {
			f := `\` + name + ".efi"
			if strings.Contains(dead, name) {
				f = `\none.efi`
			}
			slots = append(slots, efi.Slot{Name: name, File: f})
		}
		return efi.New(v, slots, func(string) (efi.Partition, error) { return part, nil })
	}
	vm := qemu.Test(t, m)
	// starts is the description of what is started.
	starts := func() string {
		t.Helper()
		name := vm.Expect(scene.Patience, `BdsDxe: starting Boot\w{4} "([^"]*)"`)[1]
		if slices.Contains(names, name) {
			vm.Expect(scene.Patience, `STARTED `+name+`\n`)
		}
		return name
	}
	removable := starts() // from its path, by an entry that the firmware has made
	vm.Expect(scene.Patience, `STARTED removable\n`)
	vm.Cut()
	factory, err := load(file)
	if err != nil {
		t.Fatal(err)
	}
	all := firmwareStates(t, factory, open)
	if os.Getenv("LIFEBOAT_LOADERS") != "all" {
		few := all[:0]
		for i := 0; i < len(all); i += len(all) / 5 {
			few = append(few, all[i])
		}
		all = few
	}
	for _, state := range all {
		if err := state.vars.save(file); err != nil {
			t.Fatal(err)
		}
		model := nvram(maps.Clone(state.vars))
		want, err := efi.Run(model, func(name string) bool {
			return !strings.Contains(state.dead, name)
		})
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = removable // firmware that finds nothing looks for that
		}
		wants, _ := open(model, "").Read()
		vm.PowerOn()
		got := starts()
		vm.Cut()
		now, err := load(file)
		if err != nil {
			t.Fatal(err)
		}
		leaves, _ := open(now, "").Read()
		if got != want || !cmp.Equal(leaves, wants) {
			t.Errorf("%s, %s is dead: it starts %s and leaves %v, the model %s and %v", state.what, state.dead, got, leaves, want, wants)
		}
		if next := "BootNext" + efi.Global; !bytes.Equal(now[next], model[next]) {
			t.Errorf("%s: BootNext is %x, the model's %x", state.what, now[next], model[next])
		}
	}
	t.Logf("figure: OVMF: %d states as the model says", len(all))
}

type firmwareState struct {
	what string
	vars nvram
	dead string
}

var errCut = errors.New("the power is gone")

// failing are variables that take so many changes, and no more.
type failing struct {
	nvram
	left int
}

func (f *failing) Set(name string, b []byte) error {
	if f.left--; f.left < 0 {
		return errCut
	}
	return f.nvram.Set(name, b)
}

func (f *failing) Delete(name string) error {
	if f.left--; f.left < 0 {
		return errCut
	}
	return f.nvram.Delete(name)
}

// firmwareStates are the same at each run.
func firmwareStates(t *testing.T, factory nvram, open func(v efi.Vars, dead string) *efi.Loader) (all []firmwareState) {
	written := func(dead, next string, order ...string) nvram {
		v := nvram(maps.Clone(factory))
		vars := boot.Vars{Next: next}
		for _, name := range order {
			vars.Order = append(vars.Order, boot.Turn{Name: name})
		}
		if err := open(v, dead).Write(vars); err != nil {
			t.Fatal(err)
		}
		return v
	}
	entry := func(v nvram, slot string) string {
		for name, b := range v {
			if strings.HasPrefix(name, "Boot0") && strings.HasPrefix(utf16le(b[10:]), slot+"\x00") {
				return name
			}
		}
		t.Fatalf("there is no entry %s", slot)
		return ""
	}
	number := func(name string) (n uint16) {
		fmt.Sscanf(name, "Boot%04X", &n)
		return n
	}
	list := func(numbers ...uint16) []byte {
		b := []byte{7, 0, 0, 0}
		for _, n := range numbers {
			b = binary.LittleEndian.AppendUint16(b, n)
		}
		return b
	}
	const order, next = "BootOrder" + efi.Global, "BootNext" + efi.Global

	// What lifeboat writes.
	for _, dead := range []string{"", "A", "B"} {
		for _, next := range []string{"", "A", "B"} {
			all = append(all, firmwareState{"A first, next " + next, written(dead, next, "A", "B"), dead}, firmwareState{"B first, next " + next, written(dead, next, "B", "A"), dead})
		}
	}
	all = append(all, firmwareState{"both", written("AB", "A", "B", "A"), "AB"})
	// What a cut leaves of that.
	for left := range 4 {
		for i, v := range []nvram{maps.Clone(factory), written("", "A", "A", "B"), written("", "B", "A", "B")} {
			open(&failing{v, left}, "").Write(boot.Vars{Next: []string{"B", "B", ""}[i], Order: []boot.Turn{{Name: "B"}, {Name: "A"}}})
			all = append(all, firmwareState{fmt.Sprintf("change %d, cut after %d", i, left), v, ""})
		}
	}
	// What others leave, and what is damaged.
	for _, c := range []struct {
		what string
		edit func(v nvram, a, b string)
	}{
		{"BootOrder is lost", func(v nvram, a, b string) { delete(v, order) }},
		{"BootOrder is empty", func(v nvram, a, b string) { v[order] = list() }},
		{"BootOrder ends in half a number", func(v nvram, a, b string) { v[order] = v[order][:7] }},
		{"BootOrder names B twice", func(v nvram, a, b string) { v[order] = list(number(b), number(b), number(a)) }},
		{"BootOrder names one that is not there", func(v nvram, a, b string) { v[order] = list(0x77, number(a), number(b)) }},
		{"the entry of B is lost", func(v nvram, a, b string) { delete(v, b) }},
		{"both entries are lost", func(v nvram, a, b string) { delete(v, a); delete(v, b) }},
		{"all is lost", func(v nvram, a, b string) { clear(v) }},
		{"B is not active", func(v nvram, a, b string) { v[b][4] = 0 }},
		{"B is not active and next", func(v nvram, a, b string) { v[b][4] = 0; v[next] = list(number(b)) }},
		{"B is a setup menu", func(v nvram, a, b string) { v[b][5] = 1 }},
		{"B is a setup menu and next", func(v nvram, a, b string) { v[b][5] = 1; v[next] = list(number(b)) }},
		{"next is lost", func(v nvram, a, b string) { v[next] = list(0x77) }},
		{"next has four bytes", func(v nvram, a, b string) { v[next] = list(number(a), 0) }},
		{"next has one byte", func(v nvram, a, b string) { v[next] = list(number(a))[:5] }},
		{"the entry of B is short", func(v nvram, a, b string) { v[b] = v[b][:9] }},
		{"the entry of B ends in its path", func(v nvram, a, b string) { v[b] = v[b][:40] }},
		{"the entry of B has no path", func(v nvram, a, b string) { v[b][8], v[b][9] = 0, 0 }},
		{"the entry of B is garbage", func(v nvram, a, b string) { copy(v[b][4:], bytes.Repeat([]byte{0xa5, 0x3c, 7}, 40)) }},
		{"next is garbage", func(v nvram, a, b string) { v[next] = bytes.Repeat([]byte{7, 0, 0, 0, 0xa5}, 40) }},
	} {
		v := written("", "", "B", "A")
		c.edit(v, entry(v, "A"), entry(v, "B"))
		all = append(all, firmwareState{c.what, v, ""})
	}
	// Any numbers.
	random := rand.New(rand.NewPCG(7, 11))
	for i := range 20 {
		dead := []string{"", "A", "B", "C", "AC"}[random.IntN(5)]
		v := written(dead, "", "A", "B", "C")
		some := []uint16{0x77, 0x1234}
		for name := range v {
			if strings.HasPrefix(name, "Boot0") {
				some = append(some, number(name))
			}
		}
		slices.Sort(some)
		var numbers []uint16
		for range random.IntN(6) {
			numbers = append(numbers, some[random.IntN(len(some))])
		}
		v[order] = list(numbers...)
		if random.IntN(2) == 0 {
			v[next] = list(some[random.IntN(len(some))])
		}
		if random.IntN(3) == 0 {
			v[entry(v, []string{"A", "B", "C"}[random.IntN(3)])][4] ^= 1
		}
		all = append(all, firmwareState{fmt.Sprintf("random %d: %x", i, v[order][4:]), v, dead})
	}
	return all
}
