package qemu

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pierrec/lz4/v4"
)

// ErrNoKernel says that a kernel was not found where `make setup` puts it.
var ErrNoKernel = errors.New("kernel not found: run make setup")

// Kernel is an unpacked kernel package.
type Kernel struct {
	Image   string // for Machine.Kernel: vmlinux where it could be extracted, else vmlinuz
	Root    string // has boot/ and lib/modules/RELEASE/
	Release string // as uname -r
}

// FindKernel finds the "cloud" or the "generic" kernel of the nearest build/ folder in or above the working directory.
// Debian's cloud kernel starts faster; only the generic one has USB, AHCI and the i6300esb watchdog.
func FindKernel(flavour string) (Kernel, error) {
	build, err := buildDir()
	if err != nil {
		return Kernel{}, err
	}
	root := filepath.Join(build, "kernel", flavour)
	modules, err := filepath.Glob(filepath.Join(root, "lib/modules/*"))
	if err != nil || len(modules) != 1 {
		return Kernel{}, fmt.Errorf("%s: %w", root, ErrNoKernel)
	}
	k := Kernel{Image: filepath.Join(root, "vmlinuz"), Root: root, Release: filepath.Base(modules[0])}
	if _, err := os.Stat(k.Image); err != nil {
		return Kernel{}, fmt.Errorf("%s: %w", k.Image, ErrNoKernel)
	}
	if image, err := Vmlinux(k.Image); err == nil {
		k.Image = image
	}
	return k, nil
}

// buildDir is the nearest build/ folder that `make setup` filled.
func buildDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		build := filepath.Join(dir, "build")
		if _, err := os.Stat(filepath.Join(build, "kernel")); err == nil {
			return build, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", ErrNoKernel
		}
		dir = parent
	}
}

// maxVmlinux bounds an extracted kernel, in bytes.
const maxVmlinux = 256 << 20

// Vmlinux extracts the ELF kernel from a bzImage with an LZ4 or XZ payload (what Debian ships) to "vmlinux" beside it
// and returns its path; a newer file that is already there is taken as it is. QEMU starts it through its PVH entry,
// which saves the guest the decompression. XZ needs the command xz: the payload has an x86 filter.
func Vmlinux(bzImage string) (string, error) {
	from, err := os.Stat(bzImage)
	if err != nil {
		return "", err
	}
	out := filepath.Join(filepath.Dir(bzImage), "vmlinux")
	if to, err := os.Stat(out); err == nil && !to.ModTime().Before(from.ModTime()) {
		return out, nil
	}
	image, err := os.ReadFile(bzImage)
	if err != nil {
		return "", err
	}
	payload, err := bzPayload(image)
	if err != nil {
		return "", fmt.Errorf("extract %s: %w", bzImage, err)
	}
	file, err := os.CreateTemp(filepath.Dir(out), ".vmlinux-")
	if err != nil {
		return "", err
	}
	defer os.Remove(file.Name()) // gone already when all went well
	defer file.Close()
	if err := decompress(file, payload); err != nil {
		return "", fmt.Errorf("extract %s: %w", bzImage, err)
	}
	if _, err := elf.NewFile(file); err != nil {
		return "", fmt.Errorf("extract %s: %w", bzImage, err)
	}
	if err := file.Chmod(0o644); err != nil {
		return "", err
	}
	return out, os.Rename(file.Name(), out)
}

// bzPayload is the compressed kernel within a bzImage, without the uncompressed size that the kernel's build puts
// behind it (4 bytes). Offsets: Documentation/x86/boot.rst, setup_sects 0x1f1, header 0x202, payload_offset 0x248.
func bzPayload(image []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" || le.Uint16(image[0x206:]) < 0x208 {
		return nil, errors.New("not a bzImage")
	}
	start := (int64(image[0x1f1])+1)*512 + int64(le.Uint32(image[0x248:]))
	end := start + int64(le.Uint32(image[0x24c:])) - 4
	if end <= start || end > int64(len(image)) {
		return nil, errors.New("bzImage: payload outside the file")
	}
	return image[start:end], nil
}

func decompress(w io.Writer, payload []byte) error {
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}): // LZ4 legacy frame
		n, err := io.Copy(w, io.LimitReader(lz4.NewReader(bytes.NewReader(payload)), maxVmlinux))
		if err == nil && n == maxVmlinux {
			err = errors.New("kernel too large")
		}
		return err
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ")):
		cmd := exec.Command("xz", "-dc")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(payload), w
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("xz: %w", err)
		}
		return nil
	}
	return errors.New("payload is neither LZ4 nor XZ")
}
