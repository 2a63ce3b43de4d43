package loaders

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/boot"
	"lifeboat/boot/uboot"
	"lifeboat/disk"
	"lifeboat/qemu/scene"
)

func vars(words ...string) map[string]string {
	m := map[string]string{}
	for _, w := range words {
		name, value, _ := strings.Cut(w, "=")
		m[name] = value
	}
	return m
}

// boots is what a board's script does with its environment, nil: none is valid.
func boots(b scene.Tried, names [2]string, env map[string]string) (started string, after map[string]string) {
	v := vars(b.Slot+"="+names[0], b.State+"=0", "bootcount=0", "bootlimit="+strconv.Itoa(b.Limit))
	maps.Copy(v, env)
	if slices.Contains(b.On, v[b.State]) {
		n, _ := strconv.Atoi(v["bootcount"])
		v["bootcount"] = strconv.Itoa(n + 1)
		if limit, _ := strconv.Atoi(v["bootlimit"]); n+1 > limit {
			v[b.State] = b.Back
			if v[b.Slot] == names[0] {
				v[b.Slot] = names[1]
			} else {
				v[b.Slot] = names[0]
			}
		}
		return v[b.Slot], v
	}
	return v[b.Slot], env
}

// trials are the environments of a board, with words in them what else is there.
func trials(b scene.Tried, names [2]string, others ...string) (all []map[string]string) {
	all = append(all, nil)
	for _, state := range append([]string{"0", "3", "4", "7", ""}, b.On...) {
		for _, slot := range names {
			for _, n := range [][2]string{{"0", ""}, {"1", ""}, {"0", "3"}, {"2", "3"}, {"3", "3"}, {"9", "3"}} {
				v := vars(append(slices.Clone(others), b.Slot+"="+slot, "bootcount="+n[0])...)
				if state != "" {
					v[b.State] = state
				}
				if n[1] != "" {
					v["bootlimit"] = n[1]
				}
				all = append(all, v)
			}
		}
	}
	return all
}

// lawful checks what lifeboat reads before a start against what the start is, and what it reads after it: one try less where
// it was one, the same order else.
func lawful(t *testing.T, b scene.Tried, names [2]string, before, after []byte, started string) {
	t.Helper()
	v, err := loaderOf(t, b, names, before).Read()
	if err != nil {
		if started != names[0] {
			t.Errorf("nothing is read (%v), and %s is started", err, started)
		}
		return
	}
	want := v.Next
	if want == "" {
		want = v.Order[0].Name
	}
	if started != want {
		t.Errorf("%+v is read, and %s is started", v, started)
	}
	w, err := loaderOf(t, b, names, after).Read()
	if err != nil || !cmp.Equal(w.Order, v.Order) || w.Next != "" && w.Next != v.Next {
		t.Errorf("%+v before the start, after it %+v, %v", v, w, err)
	}
}

func loaderOf(t *testing.T, b scene.Tried, names [2]string, env []byte) *uboot.Loader {
	t.Helper()
	d := disk.NewMemory(int64(len(env)))
	d.WriteAt(env, 0)
	l, err := uboot.New([]disk.Device{d}, names[:], b.Schema)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Boards that SWUpdate and Mender update, with scripts of their recommended semantics run by the real U-Boot: what is started,
// and what is left, is what lifeboat reads out of their environment, in all states of a trial, in those that lifeboat writes,
// and in those that the real swupdate leaves one after the other while it installs.
func TestTriedBoards(t *testing.T) {
	rom, _ := needUBoot(t)
	for _, test := range []struct {
		board  scene.Tried
		names  [2]string
		others []string
	}{
		{scene.SWUpdate, [2]string{"A", "B"}, []string{"recovery_status=in_progress"}},
		{scene.Mender, [2]string{"2", "3"}, []string{"mender_saveenv_canary=1", "mender_boot_part_hex=2"}},
	} {
		t.Run(test.board.Schema, func(t *testing.T) {
			b, names := test.board, test.names
			var states [][]byte
			add := func(v map[string]string) {
				if v == nil {
					states = append(states, bytes.Repeat([]byte("garbage "), copySize/8))
				} else {
					states = append(states, uboot.Env{Vars: v}.Encode(copySize, false))
				}
			}
			for _, v := range trials(b, names, test.others...) {
				add(v)
			}
			// What lifeboat writes.
			for _, v := range []boot.Vars{
				{Order: []boot.Turn{{Name: names[0]}, {Name: names[1]}}},
				{Next: names[1], Order: []boot.Turn{{Name: names[0]}, {Name: names[1]}}},
				{Order: []boot.Turn{{Name: names[1]}, {Name: names[0]}}},
				{Next: names[0], Order: []boot.Turn{{Name: names[1]}, {Name: names[0]}}},
			} {
				for _, from := range [][]byte{states[0], states[1], states[len(states)-1]} {
					d := disk.NewMemory(copySize)
					d.WriteAt(from, 0)
					l, err := uboot.New([]disk.Device{d}, names[:], b.Schema)
					if err != nil {
						t.Fatal(err)
					}
					if err := l.Write(v); err != nil {
						t.Fatal(err)
					}
					e := make([]byte, copySize)
					d.ReadAt(e, 0)
					states = append(states, e)
				}
			}
			if b.Schema == scene.SWUpdate.Schema {
				states = append(states, stores(t)...)
			}
			script := func(start string) string {
				return b.Script(copySize, names, [2]string{"setenv lb_s " + names[0] + "; " + start, "setenv lb_s " + names[1] + "; " + start})
			}
			n := 0
			for some := range slices.Chunk(states, 30) {
				var before [][][]byte
				for _, s := range some {
					before = append(before, [][]byte{s})
				}
				started, after := through(t, rom, "AB", script, []string{b.File}, before)
				for i, s := range some {
					var env map[string]string
					if e, ok := uboot.Parse(s, false); ok {
						env = e.Vars
					}
					want, left := boots(b, names, env)
					if started[i] != want {
						t.Errorf("%v: U-Boot starts %q, its model %s", env, started[i], want)
					}
					if left == nil {
						if !bytes.Equal(after[i][0], s) {
							t.Errorf("%v: U-Boot has written", env)
						}
					} else if e, ok := uboot.Parse(after[i][0], false); !ok || !cmp.Equal(e.Vars, left) {
						t.Errorf("%v: U-Boot leaves %v, its model %v", env, e.Vars, left)
					}
					lawful(t, b, names, s, after[i][0], started[i])
					n++
				}
			}
			t.Logf("%d states", n)
		})
	}
}

// stores has Debian's swupdate install an update into copy 2, and returns the environments that it left one after the other:
// its own, the one that `fw_setenv ustate 0` makes of the last, and that of an update that fails.
func stores(t *testing.T) (all [][]byte) {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	root, err := scene.Build()
	if err != nil {
		t.Fatal(err)
	}
	peers := filepath.Join(root, "build/peers")
	libs, err := filepath.Glob(filepath.Join(peers, "usr/lib/*-linux-gnu"))
	if _, missing := os.Stat(filepath.Join(peers, "usr/bin/swupdate")); err != nil || missing != nil {
		t.Skip("swupdate is not there: make setup")
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", at("stores.so"), "testdata/stores.c").CombinedOutput(); err != nil {
		t.Skipf("gcc: %v\n%s", err, out)
	}
	image := strings.Repeat("a new system ", 5000)
	description := fmt.Sprintf(`software = { version = "2"; hardware-compatibility: [ "1.0" ];
stable = { copy2 = { images: ( { filename = "rootfs.img"; type = "raw"; device = "%s"; sha256 = "%x"; } );
bootenv: ( { name = "bootslot"; value = "B"; }, { name = "bootcount"; value = "0"; } ); }; }; }
`, at("slot"), sha256.Sum256([]byte(image)))
	for name, content := range map[string]string{
		"rootfs.img": image, "slot": strings.Repeat("x", len(image)), "sw-description": description, "config": fmt.Sprintf("%s 0x0 %#x\n", at("uboot.env"), copySize),
		"uboot.env": string(uboot.Env{Vars: vars("bootslot=A", "ustate=0", "bootcount=0", "bootlimit=1")}.Encode(copySize, false)),
	} {
		if err := os.WriteFile(at(name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	in("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "ca.pem", "-days", "3650",
		"-subj", "/CN=board", "-addext", "extendedKeyUsage=emailProtection")
	in("openssl", "cms", "-sign", "-in", "sw-description", "-out", "sw-description.sig", "-signer", "ca.pem", "-inkey", "key.pem",
		"-outform", "DER", "-nosmimecap", "-binary")
	// install says whether swupdate has, as it says it does: its exit status is now and then another one.
	install := func() (ok bool, text string) {
		cmd := exec.Command("cpio", "--quiet", "--create", "--format=crc", "--file=update.swu")
		cmd.Dir, cmd.Stdin = dir, strings.NewReader("sw-description\nsw-description.sig\nrootfs.img\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cpio: %v\n%s", err, out)
		}
		cmd = exec.Command(filepath.Join(peers, "usr/bin/swupdate"), "-B", "uboot", "-H", "board:1.0", "-e", "stable,copy2", "-k", at("ca.pem"), "-i", at("update.swu"))
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libs, ":"), "TMPDIR="+t.TempDir(), "LD_PRELOAD="+at("stores.so"), "CONFIG="+at("config"), "ENVIRONMENT="+at("uboot.env"))
		log, err := os.Create(at("log")) // a pipe may be held open by a process that it leaves
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		failed := cmd.Run()
		b, err := os.ReadFile(at("log"))
		if err != nil {
			t.Fatal(err)
		}
		text = fmt.Sprintf("%v\n%s", failed, b)
		return strings.Contains(text, "SWUPDATE successful"), text
	}
	take := func() (n int) {
		for ; ; n++ {
			b, err := os.ReadFile(at(fmt.Sprintf("uboot.env.%d", n)))
			if err != nil {
				return n
			}
			all = append(all, b)
			os.Remove(at(fmt.Sprintf("uboot.env.%d", n)))
		}
	}
	if ok, text := install(); !ok {
		t.Fatalf("swupdate: %s", text)
	}
	if n := take(); n != 5 {
		t.Errorf("swupdate stored the environment %d times", n)
	}
	last, _ := uboot.Parse(all[len(all)-1], false)
	if want := vars("bootslot=B", "ustate=1", "bootcount=0", "bootlimit=1"); !cmp.Equal(last.Vars, want) {
		t.Errorf("swupdate leaves %v", last.Vars)
	}
	// What lifeboat says of a slot on trial is what swupdate says. (libubootenv leaves behind the variables what it had in its
	// memory, here: bytes are not compared.)
	l := loaderOf(t, scene.SWUpdate, [2]string{"A", "B"}, uboot.Env{Vars: vars("bootslot=A", "ustate=0", "bootcount=1", "bootlimit=1")}.Encode(copySize, false))
	if err := l.Write(boot.Vars{Next: "B", Order: []boot.Turn{{Name: "A"}, {Name: "B"}}}); err != nil {
		t.Fatal(err)
	}
	v, err := l.Read()
	w, err2 := loaderOf(t, scene.SWUpdate, [2]string{"A", "B"}, all[len(all)-1]).Read()
	if err != nil || err2 != nil || !cmp.Equal(v, w) || v.Next != "B" {
		t.Errorf("lifeboat makes %+v, swupdate %+v, %v, %v", v, w, err, err2)
	}
	in("fw_setenv", "-c", at("config"), "-f", at("config"), "ustate", "0")
	b, err := os.ReadFile(at("uboot.env"))
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, b)
	// The image is not the one that was signed.
	if err := os.WriteFile(at("rootfs.img"), []byte(strings.Repeat("a bad system ", 5000)), 0o644); err != nil {
		t.Fatal(err)
	}
	if ok, text := install(); ok {
		t.Errorf("swupdate takes a bad image: %s", text)
	}
	take()
	return all
}
