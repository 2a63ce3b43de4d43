package loaders

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/boot"
	"lifeboat/boot/grub"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
)

// grubState is what a copy of the environment and its shadow hold (nil: there is no such file), and what GRUB made of them.
type grubState struct {
	copies [2][]byte
	dead   string // slots whose kernel does not load
}

// grubStates are the same at each run: what lifeboat writes, what RAUC writes, and what is no environment at all.
func grubStates(t *testing.T, n int) []grubState {
	random := rand.New(rand.NewPCG(3, 5))
	words := []string{"A", "B", "C", "A B", "B A", "A B A", ""}
	lines := func() string {
		var s strings.Builder
		for _, line := range []string{"ORDER=" + words[random.IntN(len(words))], "A_OK=", "A_TRY=", "A_LEFT=", "B_OK=", "B_TRY=", "B_LEFT=", "other=x"} {
			if random.IntN(6) == 0 {
				continue
			}
			if strings.HasSuffix(line, "=") {
				line += []string{"0", "1", "1", "2", "9", "10", ""}[random.IntN(7)]
			}
			s.WriteString(line + "\n")
		}
		return s.String()
	}
	fill := func(text string) []byte {
		b := []byte("# GRUB Environment Block\n" + text)
		return append(b, bytes.Repeat([]byte("#"), grub.Size-len(b))...)
	}
	ours := func() []byte {
		m := disk.NewMemory(grub.Size)
		l, err := grub.New([]disk.Device{m}, []string{"A", "B"})
		if err != nil {
			t.Fatal(err)
		}
		v := boot.Vars{Order: []boot.Turn{{Name: "A", Tries: uint8(random.IntN(10))}, {Name: "B", Tries: uint8(random.IntN(4))}}}
		if random.IntN(2) == 0 {
			slices.Reverse(v.Order)
		}
		if err := l.Write(v); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, grub.Size)
		if _, err := m.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b
	}
	garbage := func() []byte {
		b := make([]byte, grub.Size)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	one := func() []byte {
		switch random.IntN(9) {
		case 0:
			return nil
		case 1:
			return garbage()
		case 2:
			return fill("")
		case 3: // rauc's
			return fill("ORDER=B A\nA_OK=1\nA_TRY=" + fmt.Sprint(random.IntN(2)) + "\nB_OK=1\nB_TRY=" + fmt.Sprint(random.IntN(2)) + "\n")
		case 4:
			return fill(lines())
		case 5: // torn in the middle of what counts
			b := ours()
			copy(b[len("# GRUB Environment Block\n"):], "LIFEBOAT=0815")
			return b
		case 6: // a sector of garbage
			b := ours()
			copy(b[512*random.IntN(2):], garbage()[:512])
			return b
		}
		return ours()
	}
	var all []grubState
	for range n {
		all = append(all, grubState{[2][]byte{one(), one()}, []string{"", "", "", "A", "B", "AB"}[random.IntN(6)]})
	}
	return all
}

// grubCuts are what a power cut leaves of lifeboat's writes, with GRUB's own between them.
func grubCuts(t *testing.T) (all []grubState) {
	const second = 8192
	names := []string{"A", "B"}
	at := func(d disk.Device) []disk.Device {
		return []disk.Device{disk.Section(d, 0, grub.Size), disk.Section(d, second, grub.Size)}
	}
	read := func(d disk.Device) (copies [2][]byte) {
		for i, c := range at(d) {
			copies[i] = make([]byte, grub.Size)
			if _, err := c.ReadAt(copies[i], 0); err != nil {
				t.Fatal(err)
			}
		}
		return copies
	}
	r := crash.Record(crash.NewImage(second + grub.Size))
	l, err := grub.New(at(r), names)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint8(3) {
		order := []boot.Turn{{Name: "A", Tries: 3 - i}, {Name: "B", Tries: 9}}
		if i == 1 {
			slices.Reverse(order)
		}
		if err := l.Write(boot.Vars{Order: order}); err != nil {
			t.Fatal(err)
		}
		copies := read(r)
		grub.Run(copies[:], names, func(string) bool { return true })
		if _, err := r.WriteAt(copies[0], 0); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	r.Trace().States(crash.Options{}, func(s crash.State) bool {
		copies := read(s.Image)
		if key := string(copies[0]) + string(copies[1]); !seen[key] {
			seen[key] = true
			all = append(all, grubState{copies: copies})
		}
		return true
	})
	return all
}

// GRUB itself, on BIOS and on UEFI, does with any environment what boot/grub's model of the script says: it starts the same
// slot and leaves the same bytes. The script is the one that `lifeboat bootloader grub.cfg` makes, but that a slot's start is
// a line on the console, after which nothing is saved.
func TestGRUBModel(t *testing.T) {
	qemu.NeedKernel(t, "generic")
	s, err := scene.New(t.TempDir(), scene.Options{Config: scene.LoaderConfig("grub")})
	if err != nil {
		t.Fatal(err)
	}
	states, cuts := grubStates(t, 60), grubCuts(t)
	if os.Getenv("LIFEBOAT_FAULTS") == "all" {
		states = grubStates(t, 400)
	} else {
		cuts = every(cuts, 20)
	}
	states = append(states, cuts...)
	disk, err := s.LoaderDisk("disk.img", nil, nil, map[string]int64{"rootfs": 4 << 20, "boot": 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	script := grubScript(t, s, disk)
	change := func(old, new string) {
		t.Helper()
		if strings.Count(script, old) != 1 {
			t.Fatalf("the script has %q %d times", old, strings.Count(script, old))
		}
		script = strings.Replace(script, old, new, 1)
	}
	const once = `[ -z "$started" ]`
	change(`  if linux "($lb_disk,$2)/vmlinuz" `+scene.FirmwareCmdline+` "rauc.slot=$1"; then`, `  if [ -f "($lb_here)/s/$n/$1" ]; then`)
	change(`if initrd "($lb_disk,$2)/initramfs"; then boot; fi`, "if "+once+`; then echo "STATE $n STARTS $1."; set started=1; fi`)
	change(`lb_load "($lb_here)/grub/grubenv"`, `lb_load "($lb_here)/s/$n/one"`)
	change(`lb_load "($lb_here)/grub/grubenv.2"`, `lb_load "($lb_here)/s/$n/two"`)
	change("sleep 30\nreboot\n", "if "+once+"; then echo \"STATE $n STARTS none.\"; fi\n")
	for _, slot := range []string{"A", "B"} {
		save := fmt.Sprintf(`save_env --file "$lb_env" %[1]s_TRY %[1]s_LEFT`, slot)
		change(save, "if "+once+"; then "+save+"; fi")
	}
	var numbers strings.Builder
	for i := range states {
		fmt.Fprintf(&numbers, " %d", i)
	}
	files := map[string][]byte{
		"grub/body.cfg": []byte(script),
		"grub/grub.cfg": []byte("for n in" + numbers.String() + "; do set started=; source \"$prefix/body.cfg\"; done\necho \"ALL DONE.\"\nsleep 100000\n"),
	}
	for i, state := range states {
		dir := fmt.Sprintf("s/%d/", i)
		for c, name := range []string{"one", "two"} {
			if state.copies[c] != nil {
				files[dir+name] = state.copies[c]
			}
		}
		for _, slot := range []string{"A", "B"} {
			if !strings.Contains(state.dead, slot) {
				files[dir+slot] = []byte("it loads")
			}
		}
	}
	for _, firmware := range []scene.Firmware{scene.SeaBIOS, scene.OVMF} {
		t.Run(string(firmware), func(t *testing.T) {
			if err := scene.WriteFAT(disk, "esp", files); err != nil {
				t.Fatal(err)
			}
			if err := s.GRUB(disk, firmware); err != nil {
				t.Fatal(err)
			}
			m, err := s.FirmwareMachine(firmware, disk)
			if err != nil {
				t.Fatal(err)
			}
			vm := scene.Start(t, m)
			want := make([]string, len(states))
			for i, state := range states {
				copies := [][]byte{slices.Clone(state.copies[0]), slices.Clone(state.copies[1])}
				want[i] = grub.Run(copies, []string{"A", "B"}, func(n string) bool { return !strings.Contains(state.dead, n) })
				if want[i] == "" {
					want[i] = "none"
				}
			}
			for i := range states {
				got := vm.Expect(20*time.Second, `STATE (\d+) STARTS (\w+)\.`)
				if got[1] != fmt.Sprint(i) || got[2] != want[i] {
					t.Errorf("state %d: GRUB starts %s of state %s, the model %s\n%q\n%q", i, got[2], got[1], want[i], states[i].copies[0], states[i].copies[1])
				}
			}
			vm.Expect(scene.Patience, `ALL DONE\.`)
			vm.Cut()
			tree := s.Path(string(firmware))
			if err := os.Mkdir(tree, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := scene.CopyFAT(disk, "esp", "s", tree); err != nil {
				t.Fatal(err)
			}
			for i, state := range states {
				copies := [][]byte{slices.Clone(state.copies[0]), slices.Clone(state.copies[1])}
				grub.Run(copies, []string{"A", "B"}, func(n string) bool { return !strings.Contains(state.dead, n) })
				for c, name := range []string{"one", "two"} {
					if copies[c] == nil {
						continue
					}
					got, err := os.ReadFile(filepath.Join(tree, "s", fmt.Sprint(i), name))
					if err != nil || !bytes.Equal(got, copies[c]) {
						t.Errorf("state %d, copy %s: %v\nwas   %q\nmodel %q\nGRUB  %q", i, name, err, state.copies[c], copies[c], got)
					}
				}
			}
			t.Logf("figure: GRUB on %s agrees with its model in %d environments, %d of them left by power cuts", firmware, len(states), len(cuts))
		})
	}
}

// every takes about n of all.
func every[T any](all []T, n int) (some []T) {
	for i := 0; i < len(all); i += max(1, len(all)/n) {
		some = append(some, all[i])
	}
	return some
}

// raucScript does what RAUC's example configuration for GRUB does: one try for each slot, saved as X_TRY.
const raucScript = `set ORDER="A B"
set A_OK=0
set B_OK=0
set A_TRY=0
set B_TRY=0
load_env --file "$prefix/$n"
set slot=
for s in $ORDER; do
  if [ -z "$slot" -a "$s" = A -a "$A_OK" -eq 1 -a "$A_TRY" -eq 0 ]; then set A_TRY=1; set slot=A; fi
  if [ -z "$slot" -a "$s" = B -a "$B_OK" -eq 1 -a "$B_TRY" -eq 0 ]; then set B_TRY=1; set slot=B; fi
done
save_env --file "$prefix/$n" A_TRY B_TRY
if [ -z "$slot" ]; then set slot=rescue; fi
echo "STATE $n STARTS $slot."
`

// With RAUC's own script a slot has one try, and what it leaves is understood: lifeboat writes RAUC's environment as it found it.
func TestGRUBRauc(t *testing.T) {
	qemu.NeedKernel(t, "generic")
	s, err := scene.New(t.TempDir(), scene.Options{Config: scene.LoaderConfig("grub")})
	if err != nil {
		t.Fatal(err)
	}
	orders := []boot.Vars{
		{Order: []boot.Turn{{Name: "A", Tries: 1}, {Name: "B", Tries: 1}}},
		{Order: []boot.Turn{{Name: "B", Tries: 1}, {Name: "A", Tries: 1}}},
		{Order: []boot.Turn{{Name: "B", Tries: 0}, {Name: "A", Tries: 1}}},
		{Order: []boot.Turn{{Name: "B", Tries: 1}}},
		{Order: []boot.Turn{{Name: "A", Tries: 0}, {Name: "B", Tries: 0}}},
	}
	open := func(b []byte) (*grub.Loader, disk.Device) {
		m := disk.NewMemory(int64(len(b)))
		if _, err := m.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		l, err := grub.New([]disk.Device{m}, []string{"A", "B"})
		if err != nil {
			t.Fatal(err)
		}
		return l, m
	}
	stock := []byte("# GRUB Environment Block\nORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=0\n")
	stock = append(stock, bytes.Repeat([]byte("#"), grub.Size-len(stock))...)
	files := map[string][]byte{
		"grub/body.cfg": []byte(raucScript),
		"grub/grub.cfg": []byte("for n in 0 1 2 3 4; do source \"$prefix/body.cfg\"; done\nsleep 100000\n"),
	}
	for i, v := range orders {
		l, m := open(stock)
		if err := l.Write(v); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, grub.Size)
		if _, err := m.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		files[fmt.Sprintf("grub/%d", i)] = b
	}
	image, err := s.LoaderDisk("disk.img", files, nil, map[string]int64{"rootfs": 4 << 20, "boot": 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.GRUB(image, scene.SeaBIOS); err != nil {
		t.Fatal(err)
	}
	m, err := s.FirmwareMachine(scene.SeaBIOS, image)
	if err != nil {
		t.Fatal(err)
	}
	vm := scene.Start(t, m)
	for i, want := range []string{"A", "B", "A", "B", "rescue"} {
		if got := vm.Expect(scene.Patience, `STATE (\d) STARTS (\w+)\.`); got[1] != fmt.Sprint(i) || got[2] != want {
			t.Errorf("%s, want %s of state %d", got[0], want, i)
		}
	}
	vm.Cut()
	for i, v := range orders {
		b, err := scene.ReadFAT(image, "esp", fmt.Sprintf("grub/%d", i))
		if err != nil {
			t.Fatal(err)
		}
		for n, turn := range v.Order {
			if turn.Tries > 0 {
				v.Order[n].Tries = 0
				break
			}
		}
		l, _ := open(b)
		if got, err := l.Read(); err != nil || !cmp.Equal(got, v) || l.Most() != 1 {
			t.Errorf("state %d: read is %v, most %d, want %v: %v", i, got, l.Most(), v, err)
		}
	}
}

// grubScript is grub.cfg for a disk of the scene.
func grubScript(t *testing.T, s *scene.Scene, disk string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(s.Bin, "lifeboat"), "bootloader", "grub.cfg", "--config", s.Conf, "--disk", disk, "--cmdline", scene.FirmwareCmdline).Output()
	if err != nil {
		t.Fatalf("lifeboat bootloader grub.cfg: %v", err)
	}
	return string(out)
}
