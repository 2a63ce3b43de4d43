package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"lifeboat/qemu/scene"
)

// description of an image that goes to the device while it is read. The sum is of what lies in the archive.
const description = `software =
{
	version = "1";
	hardware-compatibility: [ "1" ];
	images: (
		{
			filename = "image";
			device = "%s";
			type = "raw";
			%sinstalled-directly = true;
			sha256 = "%x";
		}
	);
}
`

// swu makes an update for swupdate: description, its CMS signature, image, in a cpio archive with sums.
func (b *bench) swu(s *scene.Scene, t *target, image, kind, compressed string) (string, error) {
	dir, err := os.MkdirTemp(b.dir, "swu-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	payload := filepath.Join(dir, "image")
	line := ""
	if compressed == "" {
		err = os.Link(image, payload)
	} else {
		line = fmt.Sprintf("compressed = \"%s\";\n\t\t\t", compressed)
		err = command(dir, "zstd", "-q", "-6", "-T0", image, "-o", payload)
	}
	if err != nil {
		return "", err
	}
	sum, err := fileSum(payload)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "sw-description"), fmt.Appendf(nil, description, t.path, line, sum), 0o644); err != nil {
		return "", err
	}
	err = command(dir, "openssl", "cms", "-sign", "-binary", "-nosmimecap", "-in", "sw-description", "-out", "sw-description.sig",
		"-signer", s.Key("release.cert.pem"), "-inkey", s.Key("release.key.pem"), "-outform", "DER")
	if err != nil {
		return "", err
	}
	out := s.Path(strings.Trim(kind+"."+compressed, ".") + ".swu")
	cmd := exec.Command("cpio", "--quiet", "--create", "--format=crc", "--file="+out)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader("sw-description\nsw-description.sig\nimage\n")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cpio: %w\n%s", err, text)
	}
	return out, nil
}

func fileSum(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}

// swupdate is what is measured: the program that `make setup` unpacked.
func (b *bench) swupdate(s *scene.Scene, file string) (spent, error) {
	peers := filepath.Join(b.root, "build/peers")
	libs, err := filepath.Glob(filepath.Join(peers, "usr/lib/*-linux-gnu"))
	if err != nil {
		return spent{}, err
	}
	cmd := exec.Command(filepath.Join(peers, "usr/bin/swupdate"), "-M", "-m", "-H", "bench:1", "--cert-purpose", "codeSigning",
		"-k", s.Key("release.keyring.pem"), "-i", file)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libs, ":"), "TMPDIR="+b.dir)
	return spentBy(cmd)
}
