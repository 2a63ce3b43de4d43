package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestKeysPage runs every command of docs/keys.md, in its order and in one folder. A command with "# refused: N" behind it
// has to end with that status, every other one with 0.
func TestKeysPage(t *testing.T) {
	for _, tool := range []string{"openssl", "mksquashfs", "softhsm2-util", "pkcs11-tool"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	page, err := os.ReadFile("../../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, data string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"in", "tokens"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := make([]byte, 300_000)
	rand.NewChaCha8([32]byte{2}).Read(image)
	write("in/rootfs.img", string(image))
	write("in/manifest.raucm", "[update]\ncompatible=acme-boat\nversion=1\n\n[image.rootfs]\nfilename=rootfs.img\n")
	write("softhsm2.conf", "directories.tokendir = "+dir+"/tokens\nlog.level = ERROR\n")
	env := append(os.Environ(), "SOFTHSM2_CONF="+dir+"/softhsm2.conf", "PKCS11_MODULE=/usr/lib/softhsm/libsofthsm2.so", "PKCS11_PIN=1234")
	run := func(command string) (string, int) {
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir, cmd.Env = dir, env
		out, err := cmd.CombinedOutput()
		if _, exited := err.(*exec.ExitError); err != nil && !exited {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, status := run("softhsm2-util --init-token --free --label acme --pin 1234 --so-pin 4321"); status != 0 {
		t.Fatal(out)
	}
	commands := pageCommands(string(page))
	if len(commands) < 30 {
		t.Fatalf("only %d commands were found", len(commands))
	}
	for _, command := range commands {
		want := 0
		if _, refused, ok := strings.Cut(command, "# refused: "); ok {
			if _, err := fmt.Sscan(refused, &want); err != nil {
				t.Fatalf("%s: %v", command, err)
			}
		}
		if out, status := run(command); status != want {
			t.Fatalf("%s\nends with %d, the page says %d\n%s", command, status, want, out)
		}
	}
}

// pageCommands are the commands in the blocks that are marked as sh, those on several lines as one.
func pageCommands(page string) (list []string) {
	inside, part := false, ""
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "```sh":
			inside = true
		case line == "```":
			inside = false
		case !inside:
		case strings.HasSuffix(line, `\`):
			part += line + "\n"
		default:
			list, part = append(list, part+line), ""
		}
	}
	return list
}
