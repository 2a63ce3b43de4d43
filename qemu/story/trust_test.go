package story

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/status"
)

// pki is a folder of `lifeboat keys`, and what the tests want of it.
type pki struct {
	t   *testing.T
	dir string
	bin string
}

func (p pki) run(args ...string) {
	p.t.Helper()
	cmd := exec.Command(p.bin, args...)
	cmd.Dir = p.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("lifeboat %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// keyring writes the text of a keyring whose release anchor is that of a folder of keys, and whose role keyring is
// develop's anchor of the device's own folder; signed by develop unless it is version 1.
func (p pki) keyring(version int, release string) string {
	p.t.Helper()
	text := filepath.Join(p.dir, fmt.Sprintf("v%d.txt", version))
	p.run("keys", "keyring", "create", "--version", fmt.Sprint(version), "--anchor", "release="+release+"/release.keyring.pem:release",
		"--anchor", "keyring=own/develop.keyring.pem:keyring", text)
	if version == 1 {
		return text
	}
	out := filepath.Join(p.dir, fmt.Sprintf("v%d.keyring", version))
	p.run("keys", "keyring", "sign", "--cert", "own/develop.cert.pem", "--key", "own/develop.key.pem", text, out)
	return out
}

// D1, A1, B2, H1 and the rotation of keyrings on a real device, in one life: floors, a revoked signer, another device's
// bundle, and a keyring that is on trial until its system says good.
func TestTrust(t *testing.T) {
	t.Parallel()
	root, err := scene.Build()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(workDir, "pki")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := pki{t, dir, filepath.Join(root, "bin/lifeboat")}
	p.run("keys", "init", "--out", "own")
	p.run("keys", "init", "--out", "new")
	p.run("keys", "issue", "--dir", "own", "--under", "release", "laptop")
	d := special(t, scene.Options{Keys: filepath.Join(dir, "own"), Keyring: p.keyring(1, "own")})
	v2 := p.keyring(2, "new")
	disk := d.disk(t, "trust")

	// boot boots with a stick, in a test of its own, which ends with its machine's place.
	boot := func(name, version string, files []string, what func(vm *scene.Device)) {
		t.Helper()
		ok := t.Run(name, func(t *testing.T) {
			m := d.Machine(disk, d.stick(t, "stick", files...))
			m.Args = append(m.Args, "-smbios", "type=1,serial=4711")
			vm := scene.Start(t, m)
			what(vm)
			if v := vm.Ready(); v != version {
				t.Fatalf("version %s", v)
			}
			if name == "refused" {
				r := vm.Status()
				for file, code := range map[string]int{"stolen.raucb": 24, "far.raucb": 31, "other.raucb": 27, "stale.raucb": 29} {
					if !slices.ContainsFunc(r.Refused, func(f status.Refused) bool { return f.File == file && f.Code == code }) {
						t.Errorf("%s is not refused with %d: %+v", file, code, r.Refused)
					}
				}
			}
		})
		if !ok {
			t.FailNow()
		}
	}
	bundle := func(file, version string, o scene.BundleOptions) string {
		return d.bundle(t, file, version, testsystem.Good, testsystem.Options{}, o)
	}
	// Who revokes is the release CA; its list comes with the next update.
	stolen := bundle("stolen.raucb", "5.0", scene.BundleOptions{Epoch: 2, Signer: "laptop"})
	p.run("keys", "revoke", "--dir", "own", "laptop")
	list := filepath.Join(dir, "own", "release-ca.crl")
	if _, err := os.Stat(list); err != nil {
		t.Fatal(err)
	}
	says := func(lines ...string) func(vm *scene.Device) {
		return func(vm *scene.Device) {
			for _, line := range lines {
				vm.Expect(scene.Patience, `lifeboat: `+line)
			}
		}
	}
	boot("list", "2.0", []string{bundle("two.raucb", "2.0", scene.BundleOptions{Epoch: 2}), list},
		says(`newer revocation lists are in force\n`, `installed 2\.0 to`))
	boot("refused", "3.0", []string{
		stolen,
		bundle("far.raucb", "6.0", scene.BundleOptions{Epoch: 19}),
		bundle("other.raucb", "7.0", scene.BundleOptions{Epoch: 2, Meta: "serials=4712"}),
		bundle("stale.raucb", "8.0", scene.BundleOptions{Epoch: 2, Meta: "valid-until=2001-01-01T00:00:00Z"}),
		bundle("ours.raucb", "3.0", scene.BundleOptions{Epoch: 2, Meta: "serials=4711"}),
	}, says())
	// Both slots were good with epoch 2: what is below is refused, and so is what the new keyring alone would take.
	newer := bundle("newer.raucb", "10.0", scene.BundleOptions{Epoch: 2, Keys: filepath.Join(dir, "new")})
	boot("below the floor", "3.0", []string{bundle("old.raucb", "9.0", scene.BundleOptions{Epoch: 1}), newer}, says(`refused code=28 old\.raucb`))
	boot("keyring", "10.0", []string{v2, newer}, says(`keyring version 2 is on trial until a system says good\n`, `installed 10\.0 to`))
	boot("old keys", "10.0", []string{bundle("before.raucb", "11.0", scene.BundleOptions{Epoch: 2})}, says(`refused code=22 before\.raucb`))
}
