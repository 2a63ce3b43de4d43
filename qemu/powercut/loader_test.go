package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"lifeboat/boot"
	"lifeboat/boot/grub"
	"lifeboat/boot/uboot"
	"lifeboat/disk"
	"lifeboat/disk/crash"
	"lifeboat/fat"
	"lifeboat/powercut"
	"lifeboat/qemu"
	"lifeboat/qemu/scene"
)

var loaderStages = map[string]func() (*stage, error){
	"grub":  sync.OnceValues(func() (*stage, error) { return openStage("grub", func(string, ...any) {}) }),
	"uboot": sync.OnceValues(func() (*stage, error) { return openStage("uboot", func(string, ...any) {}) }),
}

// eachLoader runs a test for each boot loader beside the others; LIFEBOAT_LOADERS=all: all is wanted.
func eachLoader(t *testing.T, test func(t *testing.T, s *stage, all bool)) {
	t.Parallel()
	qemu.NeedKernel(t, "generic")
	if testing.Short() {
		t.Skip("recording a story with a boot loader takes minutes under emulation")
	}
	for name, open := range loaderStages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := open()
			if err != nil {
				t.Fatal(err)
			}
			test(t, s, os.Getenv("LIFEBOAT_LOADERS") == "all")
		})
	}
}

// A boot loader chooses and counts, and each slot goes on with its own kernel: an update that is good, one that never says
// so. Then its own tool reads what it has to.
func TestLoaderStory(t *testing.T) {
	eachLoader(t, func(t *testing.T, s *stage, _ bool) {
		st := s.stories()[0]
		console, err := os.ReadFile(s.recorded(st.name).console)
		if err != nil {
			t.Fatal(err)
		}
		rest := string(console)
		boots := func(slot, version, how string) string {
			return fmt.Sprintf(`starts slot %[1]s\r?\n(?s:[^\x00]*?)lifeboat: boot \d+ slot rootfs\.%[2]d \(%[1]s\) version %[3]s %[4]s`, slot, slot[0]-'A', version, how)
		}
		for _, pattern := range []string{
			boots("A", "1.0", ""), `SYSTEM GOOD\n`,
			`starts slot A\r?\n`, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`, boots("B", "2.0", "trial tries=1\n"), `SYSTEM GOOD\n`,
			`starts slot B\r?\n`, `lifeboat: installed 3\.0 to rootfs\.0 \(A\)\n`, boots("A", "3.0", "trial tries=1\n"), boots("A", "3.0", "trial tries=0\n"),
			`starts slot B\r?\n`, `lifeboat: fallback from A to B reason=exhausted\n`, `SYSTEM GOOD\n`,
		} {
			at := regexp.MustCompile(pattern).FindStringIndex(rest)
			if at == nil {
				t.Fatalf("the console does not go on with %q:\n%s", pattern, rest)
			}
			rest = rest[at[1]:]
		}
		r, err := s.load(st.name, "")
		if err != nil {
			t.Fatal(err)
		}
		end, err := r.state(cut{Entry: len(r.Trace.Ops)})
		if err != nil {
			t.Fatal(err)
		}
		disk := filepath.Join(t.TempDir(), "disk.img")
		if err := end.Image.SaveFile(disk); err != nil {
			t.Fatal(err)
		}
		var said []string
		for i, name := range files[s.Loader] {
			b, err := scene.ReadFAT(disk, esp, name)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), fmt.Sprint(i))
			if err := os.WriteFile(file, b, 0o644); err != nil {
				t.Fatal(err)
			}
			said = append(said, file)
		}
		switch s.Loader {
		case "grub":
			for i, file := range said {
				out, err := exec.Command("grub-editenv", file, "list").Output()
				if err != nil {
					t.Fatalf("grub-editenv: %v", err)
				}
				said[i] = string(out)
			}
			if list := said[0]; !strings.Contains(list, "\nORDER=B A\n") || !strings.Contains(list, "\nB_OK=1\nB_TRY=0\n") || strings.Contains(list, "\nA_OK=1\nA_TRY=0\n") {
				t.Errorf("grub-editenv lists\n%s", list)
			}
			if said[0] != said[1] {
				t.Errorf("the copies differ after `good`:\n%s\n%s", said[0], said[1])
			}
		case "uboot":
			conf := filepath.Join(t.TempDir(), "fw_env.config")
			if err := os.WriteFile(conf, fmt.Appendf(nil, "%s 0 0x%x\n%s 0 0x%[2]x\n", said[0], uboot.Size, said[1]), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("fw_printenv", "-c", conf).Output()
			// U-Boot has taken one of B for this start.
			if want := "BOOT_A_LEFT=0\nBOOT_B_LEFT=8\nBOOT_ORDER=B A\n"; err != nil || string(out) != want {
				t.Errorf("fw_printenv says %q, want %q: %v", out, want, err)
			}
		}
	})
}

// files are the two copies of a boot loader's variables on the ESP.
var files = map[string][]string{"grub": {grub.File, grub.Shadow}, "uboot": uboot.Files}

// What a power cut leaves of all that boot loader, early boot and system write is started by the boot loader from power on,
// until a version is up that the law allows; what then stands on the disk is judged in memory.
func TestLoaderReplay(t *testing.T) {
	eachLoader(t, func(t *testing.T, s *stage, all bool) {
		c := sample(2)
		if all {
			c = sample(20)
		}
		c.Stories, c.say, c.place = s.names(), t.Logf, qemu.Place
		var err error
		if c.memory, err = s.inMemory(); err != nil {
			t.Fatal(err)
		}
		res, err := c.run(context.Background(), s)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range res.Failures {
			t.Errorf("%s, %s (%s): %s%s\n%s\n%s", f.ID, f.How, f.Moment, f.Err, f.Judged, f.Repeat, f.Console)
		}
		if res.Booted != c.Images {
			t.Errorf("%d images, want %d", res.Booted, c.Images)
		}
		t.Logf("figure: %s: %d crash images started by the boot loader from cold, %d updated, %d failed; %.1f s each", s.Loader, res.Booted, res.Updated, res.Failed, res.FromCold.Seconds)
	})
}

func TestLoaderInMemory(t *testing.T) {
	eachLoader(t, func(t *testing.T, s *stage, all bool) {
		limit := 3
		if all {
			limit = 60
		}
		inMemory(t, s, limit)
	})
}

// Whatever stands in the place of a boot loader's variables, a slot that is right boots, with its own kernel.
func TestLoaderEnvironments(t *testing.T) {
	eachLoader(t, func(t *testing.T, s *stage, all bool) {
		r, err := s.load(s.names()[0], "")
		if err != nil {
			t.Fatal(err)
		}
		base, err := r.at("2.0 is good")
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.inMemory()
		if err != nil {
			t.Fatal(err)
		}
		n := 1
		if all {
			n = 100
		}
		for i := range n {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				image := base.Clone()
				how := disturb(t, m, s.Loader, image, rand.New(rand.NewPCG(uint64(i), uint64(len(s.Loader)))))
				qemu.Reserve(t)
				got := s.boot(image, moment{Alone: []string{"1.0", "2.0"}}, way{Cold: true}, m, t.TempDir())
				if got.Err != nil {
					t.Fatalf("%s: %v\n%s", how, got.Err, lastLines(got.console, 80))
				}
				t.Logf("%s: version %s, %d starts, %.1f s", how, got.Up, got.Alone, got.Seconds)
			})
		}
	})
}

// disturb makes something else of the boot loader's variables on a disk and says what.
func disturb(t *testing.T, m *memory, loader string, image *crash.Image, random *rand.Rand) (how string) {
	t.Helper()
	at := m.device.Part(powercut.LoaderPart)
	area := disk.Section(image, at.Off, at.Len)
	fs, err := fat.Open(area, at.Len)
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		t.Helper()
		f, err := fs.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, f.Size())
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b
	}
	var before [][]byte
	for _, name := range files[loader] {
		before = append(before, read(name))
	}
	// Somebody else's: any order and any tries, which are told as lifeboat tells them.
	vars := boot.Vars{Order: []boot.Turn{{Name: "A", Tries: uint8(random.IntN(4))}, {Name: "B", Tries: uint8(random.IntN(4))}}}
	if random.IntN(2) == 0 {
		vars.Order[0], vars.Order[1] = vars.Order[1], vars.Order[0]
	}
	l, err := m.device.Loader.Open(area, m.device.Policy().Bootnames)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Write(vars); err != nil {
		t.Fatal(err)
	}
	noise := func(b []byte) {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
	}
	for i, name := range files[loader] {
		b := bytes.Clone(before[i])
		other := read(name)
		kind := []string{"as it was", "other", "zeros", "ones", "random", "a sector of garbage", "torn", "a bit", "no variables"}[random.IntN(9)]
		switch kind {
		case "other":
			b = other
		case "zeros":
			clear(b)
		case "ones":
			b = bytes.Repeat([]byte{255}, len(b))
		case "random":
			noise(b)
		case "a sector of garbage":
			k := random.IntN(len(b) / 512)
			noise(b[k*512 : k*512+512])
		case "torn":
			copy(b, other[:random.IntN(200)])
		case "a bit":
			b[random.IntN(200)] ^= 1 << random.IntN(8)
		case "no variables":
			b = map[string][]byte{"grub": blankGRUB(), "uboot": uboot.Env{}.Encode(uboot.Size, true)}[loader]
		}
		how += "; " + kind
		f, err := fs.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
	}
	return strings.TrimPrefix(how, "; ")
}

func blankGRUB() []byte {
	b := bytes.Repeat([]byte("#"), grub.Size)
	copy(b, "# GRUB Environment Block\n")
	return b
}
