package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk/crash"
	"lifeboat/qemu"
)

func block(set ...string) string { return setBlock(blockMagic, set...) }

func same(c Content) View { return View{c, maps.Clone(c)} }

func env(content string) View { return same(Content{grubenv: content}) }

// Every scheme can say each of the classes that its format allows.
func TestJudge(t *testing.T) {
	raucOld := block("ORDER", "A B", "A_OK", "1", "A_TRY", "0", "B_OK", "0", "B_TRY", "0")
	raucNew := block("ORDER", "B A", "A_OK", "1", "A_TRY", "0", "B_OK", "1", "B_TRY", "0")
	swuOld := func(slot string) View { return env(block("bootslot", slot, "ustate", "0", "bootcount", "0")) }
	swuNew := func(slot string) View { return env(block("bootslot", slot, "ustate", "1", "bootcount", "0")) }

	mend := func(part, available string, change ...string) View {
		e := block("bootcount", "0", "mender_boot_part", part, "upgrade_available", available)
		free := block("editing", "0")
		c := Content{mEnv1: e, mEnv2: e, mLock1: free, mLock2: free, mSum1: menderSum(free), mSum2: menderSum(free)}
		for i := 0; i < len(change); i += 2 {
			c[change[i]] = change[i+1]
		}
		return same(c)
	}
	locked := block("editing", "1")

	uenvs := func(order string, flags ...byte) Content {
		c := Content{}
		for i, f := range flags {
			e := firstEnv()
			e.flag, e.vars["BOOT_ORDER"] = f, order
			c[fmt.Sprintf("env%d", i+1)] = e.encode(len(flags) > 1)
		}
		return c
	}
	torn := func(c Content, name string) View {
		c = maps.Clone(c)
		c[name] = c[name][:512] + strings.Repeat("\x00", 512) + c[name][1024:]
		return same(c)
	}

	esp := func(entries ...string) View {
		c := Content{loaderEFI: "readable", "linux": "readable", "initrd": "readable"}
		for _, name := range entries {
			slot, version := "A", "1"
			if name[0] == 'b' {
				slot, version = "B", "2"
			}
			c[entryDir+"/"+name] = sdEntry(slot, version)
		}
		return same(c)
	}

	noSeal := boot.Seal{Status: boot.SealMissing}
	own := func(n int) View { return lifeboatAt(t, n) }
	ownTorn := func(names ...string) View {
		v := own(2)
		for _, name := range names {
			v.Loader[name] = strings.Repeat("x", boot.RecordSize)
		}
		return v
	}

	for _, c := range []struct {
		name               string
		scheme             Scheme
		before, after, cut View
		unproven           string
		want               Class
		why                string
	}{
		{"rauc, as after", raucGRUB{}, env(raucOld), env(raucNew), env(raucNew), "B", Fine, ""},
		{"rauc, empty", raucGRUB{}, env(raucOld), env(raucNew), env(""), "B", Lost, "rescue entry"},
		{"rauc, missing", raucGRUB{}, env(raucOld), env(raucNew), env(missing), "B", Lost, "rescue entry"},
		{
			"rauc, the journal brings an empty file",
			raucGRUB{},
			env(raucOld), env(raucNew),
			View{Content{grubenv: raucOld}, Content{grubenv: ""}},
			"B", Lost, "rescue entry",
		},
		{"rauc, empty, confident", raucGRUB{true}, env(raucOld), env(raucNew), env(""), "B", Weak, "no further update"},
		{"rauc, empty, confident in the wrong slot", raucGRUB{true}, env(raucNew), env(strings.Replace(raucNew, "B A", "A B", 1)), env(""), "A", Lost, "again and again"},
		{"rauc, the fallback forgotten", raucGRUB{}, env(raucNew), env(raucNew), env(strings.Replace(raucNew, "A_OK=1", "A_OK=0", 1)), "", Weak, "no fallback"},

		{"swupdate, as before", swupdateGRUB{}, swuOld("a"), swuNew("b"), swuOld("a"), "b", Fine, ""},
		{"swupdate, trial", swupdateGRUB{}, swuOld("a"), swuNew("b"), env(block("bootslot", "b", "ustate", "1", "bootcount", "1")), "b", Fine, ""},
		{"swupdate, empty, the default is the good slot", swupdateGRUB{}, swuOld("a"), swuNew("b"), env(""), "b", Weak, "refuse"},
		{"swupdate, empty, the default is the new slot", swupdateGRUB{}, swuOld("b"), swuNew("a"), env(""), "a", Lost, "again and again"},

		{"mender, lock 2 set", mender{}, mend("2", "0"), mend("3", "1"), mend("2", "0", mLock2, locked), "B", Fine, ""},
		{"mender, environment 2 empty", mender{}, mend("2", "0"), mend("3", "1"), mend("2", "0", mLock2, locked, mEnv2, ""), "B", Weak, "environment 2"},
		{"mender, environment 1 empty", mender{}, mend("3", "0"), mend("2", "1"), mend("2", "1", mLock1, locked, mEnv1, ""), "A", Lost, "again and again"},

		{"U-Boot, one torn", raucUBoot{}, same(uenvs("B A", 0)), same(uenvs("B A", 0)), torn(uenvs("B A", 0), "env1"), "", Weak, "compiled-in"},
		{"U-Boot, no slot", raucUBoot{}, same(uenvs("B A", 0)), same(uenvs("B A", 0)), same(uenvs("C", 0)), "", Lost, "BOOT_ORDER"},
		{"U-Boot, file system gone", raucUBoot{}, same(uenvs("B A", 0)), same(uenvs("A B", 0)), same(Content{"env1": unreadable + "no FAT"}), "A", Lost, "again and again"},
		{"U-Boot redundant, newer torn", raucUBoot{true}, same(uenvs("A B", 7, 6)), same(uenvs("A B", 7, 8)), torn(uenvs("A B", 7, 8), "env2"), "", Fine, ""},
		{"U-Boot redundant, flag wraps", raucUBoot{true}, same(uenvs("A B", 255, 254)), same(uenvs("A B", 255, 0)), same(uenvs("A B", 255, 0)), "", Fine, ""},

		{"systemd-boot, old name", sdBoot{}, esp("a.conf", "b+3.conf"), esp("a.conf", "b+2-1.conf"), esp("a.conf", "b+3.conf"), "B", Fine, ""},
		{"systemd-boot, both names", sdBoot{}, esp("a.conf", "b+3.conf"), esp("a.conf", "b+2-1.conf"), esp("a.conf", "b+3.conf", "b+2-1.conf"), "B", Lost, "again and again"},
		{"systemd-boot, neither name", sdBoot{}, esp("a.conf", "b+3.conf"), esp("a.conf", "b+2-1.conf"), esp("a.conf"), "B", Weak, "is gone"},
		{"systemd-boot, no entry", sdBoot{}, esp("a.conf", "b+3.conf"), esp("a.conf", "b+2-1.conf"), esp(), "B", Lost, "no entry"},

		{"lifeboat, record 1 torn", lifeboat{seals: sealsAt(2)}, own(2), own(3), ownTorn("record 1"), "B", Fine, ""},
		{"lifeboat, record 2 torn", lifeboat{seals: sealsAt(2)}, own(2), own(3), ownTorn("record 2"), "B", Fine, ""},
		{"lifeboat, both torn", lifeboat{seals: sealsAt(2)}, own(2), own(3), ownTorn("record 1", "record 2"), "B", Fine, ""},
		{"lifeboat, both torn and no slot sealed", lifeboat{seals: map[string]boot.Seal{slotA: noSeal, slotB: noSeal}}, own(2), own(3), ownTorn("record 1", "record 2"), "", Lost, "rescue"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := judge(c.scheme, c.cut, c.unproven, profileOf(c.scheme, c.before, c.unproven), profileOf(c.scheme, c.after, c.unproven))
			if v.Class != c.want || !strings.Contains(v.Why, c.why) {
				t.Errorf("%s: %s, want %s: %s", v.Class, v.Why, c.want, c.why)
			}
		})
	}
}

// lifeboatAt is lifeboat's state before operation n.
func lifeboatAt(t *testing.T, n int) View {
	img := crash.NewImage(stateSize)
	for i := -1; i < n; i++ {
		if err := (lifeboat{seals: sealsAt(i)}).operate(img, i); err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
	}
	name := filepath.Join(t.TempDir(), "state")
	if err := img.SaveFile(name); err != nil {
		t.Fatal(err)
	}
	v, err := lifeboat{}.read(name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("%s not found: run make setup", tool)
	}
}

// What this program takes for an environment block, and what it makes of it, is what grub-editenv does.
func TestBlock(t *testing.T) {
	need(t, "grub-editenv")
	file := filepath.Join(t.TempDir(), "env")
	start := newBlock("ORDER", "A B", "A_OK", "1", "A_TRY", "0")
	blocks := []string{
		"", "#", blockMagic, start, block("a", "1"), start[:512], start[:512] + strings.Repeat("\x00", 512),
		strings.Repeat("\x00", 512) + start[512:], start[:300] + "B=1", blockMagic + "a=b\\\\c\n###", strings.Repeat("#", 1024),
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		b := []byte(start)
		for range 1 + rng.IntN(4) {
			b[rng.IntN(len(b))] = "\n=#A\\ "[rng.IntN(6)]
		}
		blocks = append(blocks, string(b))
	}
	for _, b := range blocks {
		if err := os.WriteFile(file, []byte(b), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("grub-editenv", file, "list").Output()
		vars, ok := parseBlock(b)
		if ok != (err == nil) {
			t.Errorf("%q: valid %v, grub-editenv: %v", b, ok, err)
			continue
		}
		if !ok {
			continue
		}
		want, got := strings.Split(string(out), "\n"), []string{""}
		for name, value := range vars {
			got = append(got, strings.Split(name+"="+value, "\n")...)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, grub-editenv: %q", b, got, want)
		}
	}
	b := start
	if err := os.WriteFile(file, []byte(b), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, set := range [][2]string{{"A_TRY", "1"}, {"B_OK", "1"}, {"ORDER", "B A"}, {"ORDER", "A"}} {
		if err := run("grub-editenv", file, "set", set[0]+"="+set[1]); err != nil {
			t.Fatal(err)
		}
		b = setBlock(b, set[0], set[1])
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != b {
			t.Errorf("set %s: %q, grub-editenv %q", set, b, got)
		}
	}
}

// fw_printenv takes the same copy of an environment as this program, and fw_setenv writes what it expects.
func TestEnvironment(t *testing.T) {
	need(t, "fw_printenv")
	for _, c := range []struct {
		flags []byte
		torn  int // copy, -1: none
	}{{[]byte{0}, -1}, {[]byte{0}, 0}, {[]byte{2, 1}, -1}, {[]byte{1, 2}, -1}, {[]byte{2, 1}, 0}, {[]byte{1, 2}, 1}, {[]byte{255, 0}, -1}, {[]byte{0, 255}, -1}, {[]byte{1, 2}, 2}} {
		dir := t.TempDir()
		image, config := filepath.Join(dir, "image"), filepath.Join(dir, "config")
		img, lines := crash.NewImage(4<<20), ""
		s := raucUBoot{len(c.flags) > 1}
		for i, f := range c.flags {
			e := firstEnv()
			e.flag, e.vars["copy"] = f, fmt.Sprint(i+1)
			b := []byte(e.encode(s.redundant))
			if c.torn == i || c.torn == 2 {
				b[700] ^= 1
			}
			img.WriteAt(b, envCopies[i])
			lines += fmt.Sprintf("%s %#x %#x\n", image, envCopies[i], envSize)
		}
		if err := img.SaveFile(image); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(config, []byte(lines), 0o644); err != nil {
			t.Fatal(err)
		}
		v, err := readRawEnv(s.redundant)(image)
		if err != nil {
			t.Fatal(err)
		}
		e, at := s.pick(v.System)
		out, err := exec.Command("fw_printenv", "-c", config, "-n", "copy").Output()
		if (at >= 0) != (err == nil) || at >= 0 && e.vars["copy"] != strings.TrimSpace(string(out)) {
			t.Errorf("%v torn %d: copy %d, fw_printenv %q (%v)", c.flags, c.torn, at+1, out, err)
		}
		if at < 0 {
			continue
		}
		if err := run("fw_setenv", "-c", config, "BOOT_A_LEFT", "2"); err != nil {
			t.Fatal(err)
		}
		e.vars["BOOT_A_LEFT"] = "2"
		s.save(&v, e.vars)
		got, err := readRawEnv(s.redundant)(image)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := s.pick(v.System)
		if now, _ := s.pick(got.System); !maps.Equal(now.vars, want.vars) || now.flag != want.flag {
			t.Errorf("%v torn %d: fw_setenv wrote %v flag %d, expected %v flag %d", c.flags, c.torn, now.vars, now.flag, want.vars, want.flag)
		}
	}
}

// lifeboat's own rows, simulated: nothing is lost, nothing is weak; with systemd-boot where sectors are written whole.
func TestLifeboat(t *testing.T) {
	for _, p := range peers() {
		if p.Record == nil {
			continue
		}
		row, err := runPeer(t.Context(), p, t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		s := row.sum()
		if p.Name == "lifeboat-sdboot" {
			if s.Torn.Lost == 0 {
				t.Error("the page says that a torn sector loses systemd-boot's entries")
			}
			s.Torn = Count{}
		}
		if s.Distinct < 100 || s.Whole.Lost+s.Whole.Weak+s.Torn.Lost+s.Torn.Weak > 0 {
			t.Errorf("%+v", s)
		}
	}
}

// One peer from its tools to the verdicts, with Linux and GRUB in the virtual device: the losses that are known are
// found, and where they are.
func TestRAUC(t *testing.T) {
	qemu.NeedKernel(t, "cloud")
	for _, tool := range []string{"rauc", "dbus-daemon", "grub-editenv", "grub-mkimage", "grub-fstest", "fw_setenv", "mkfs.fat"} {
		need(t, tool)
	}
	qemu.Reserve(t)
	for _, p := range peers() {
		if p.Name != "rauc-grub-small-fat" {
			continue
		}
		p.Steps = p.Steps[:2]
		row, err := runPeer(context.Background(), p, t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		if row.Booted == 0 || row.Agreed != row.Booted {
			t.Errorf("GRUB itself chose what was expected in %d of %d states", row.Agreed, row.Booted)
		}
		lost := map[string][2]bool{}
		for _, o := range row.Tallies {
			lost[o.Op] = [2]bool{o.Whole.Lost > 0, o.Torn.Lost > 0}
		}
		for op, want := range map[string][2]bool{
			"install into B begins (mark-bad)": {true, true},
			"B is installed (mark-active)":     {true, true},
			"first boot of B (boot loader)":    {false, true},
		} {
			if lost[op] != want {
				t.Errorf("%s: lost with whole sectors and with torn ones %v, want %v", op, lost[op], want)
			}
		}
	}
}
