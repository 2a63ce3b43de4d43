package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"
)

// maxArchive is the most bytes of an uncompressed initramfs that are looked at.
const maxArchive = 512 << 20

// ArchiveFile is a file in an initramfs.
type ArchiveFile struct {
	Name   string `json:"name"`
	Mode   uint32 `json:"mode"` // type and permissions as in stat(2)
	Size   int64  `json:"size"`
	Target string `json:"target,omitempty"` // of a link
}

// Part is a group of files of an initramfs.
type Part struct {
	Name   string `json:"name"`
	Files  int    `json:"files"`
	Size   int64  `json:"size"`   // bytes uncompressed
	Packed int64  `json:"packed"` // bytes if it were compressed alone
}

// Archive is what is known of an initramfs.
type Archive struct {
	Compression string        `json:"compression"`
	Size        int64         `json:"size"`     // bytes of the file
	RawSize     int64         `json:"raw_size"` // uncompressed
	Build       string        `json:"build"`    // decimal seconds since 1970
	Config      string        `json:"config"`   // system.conf as it is
	Modules     []string      `json:"modules"`
	ModulesUSB  []string      `json:"modules_usb"`
	ModulesDog  []string      `json:"modules_watchdog,omitempty"` // loaded first
	Parts       []Part        `json:"parts"`
	Files       []ArchiveFile `json:"files"`
}

// errNotArchive says that a file is no initramfs.
var errNotArchive = errors.New("not an initramfs (zstd, gzip or plain newc cpio)")

// openArchive returns the uncompressed bytes of an initramfs and how it is packed.
func openArchive(f *os.File) (r io.Reader, how string, done func(), err error) {
	in := bufio.NewReader(f)
	magic, _ := in.Peek(6)
	switch {
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxMemory(maxArchive), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, "", nil, err
		}
		return z, "zstd", z.Close, nil
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		return z, "gzip", func() {}, err
	case bytes.HasPrefix(magic, []byte("070701")):
		return in, "none", func() {}, nil
	}
	return nil, "", nil, errNotArchive
}

// ReadArchive looks into an initramfs.
func ReadArchive(name string) (*Archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, how, done, err := openArchive(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer done()
	raw, err := io.ReadAll(io.LimitReader(r, maxArchive+1))
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", name, err)
	}
	if len(raw) > maxArchive {
		return nil, fmt.Errorf("%s is larger than %d bytes unpacked", name, maxArchive)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	a := &Archive{Compression: how, Size: info.Size(), RawSize: int64(len(raw))}
	groups := map[string]*bytes.Buffer{}
	counts := map[string]int{}
	usb := map[string]bool{}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(raw)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	content := map[string][]byte{}
	for _, rec := range records {
		file := ArchiveFile{Name: rec.Name, Mode: uint32(rec.Mode), Size: int64(rec.FileSize)}
		var b []byte
		if rec.FileSize > 0 && rec.ReaderAt != nil {
			if rec.FileSize > uint64(len(raw)) {
				return nil, fmt.Errorf("%s: file %s is larger than the archive", name, rec.Name)
			}
			b = make([]byte, rec.FileSize)
			if n, err := rec.ReadAt(b, 0); n != len(b) {
				return nil, fmt.Errorf("%s: file %s: %w", name, rec.Name, err)
			}
		}
		if rec.Mode&unix.S_IFMT == unix.S_IFLNK {
			file.Target = string(b)
		}
		content[rec.Name] = b
		a.Files = append(a.Files, file)
	}
	a.Build = strings.TrimSpace(string(content[buildName]))
	a.Config = string(content[configName])
	a.Modules = lines(content[modulesName])
	a.ModulesUSB = lines(content[modulesUSBName])
	a.ModulesDog = append(lines(content[modulesDogName]), lines(content[modulesSoftdog])...)
	for _, line := range a.ModulesUSB {
		file, _, _ := strings.Cut(line, " ")
		usb[strings.TrimPrefix(file, "/")] = true
	}
	order := []string{"init", "modules", "usb modules", "rest"}
	for _, f := range a.Files {
		group := "rest"
		switch {
		case f.Name == "init":
			group = "init"
		case usb[f.Name]:
			group = "usb modules"
		case filepath.Ext(f.Name) == ".ko":
			group = "modules"
		}
		if groups[group] == nil {
			groups[group] = &bytes.Buffer{}
		}
		groups[group].Write(content[f.Name])
		counts[group]++
	}
	for _, name := range order {
		if groups[name] == nil {
			continue
		}
		packed, err := packedSize(groups[name].Bytes())
		if err != nil {
			return nil, err
		}
		a.Parts = append(a.Parts, Part{Name: name, Files: counts[name], Size: int64(groups[name].Len()), Packed: packed})
	}
	return a, nil
}

func lines(b []byte) []string {
	text := strings.TrimSuffix(string(b), "\n")
	if text == "" {
		return []string{}
	}
	return strings.Split(text, "\n")
}

// packedSize is what b needs compressed alone. The parts of an archive need a little more alone than together.
func packedSize(b []byte) (int64, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return 0, fmt.Errorf("zstd: %w", err)
	}
	defer z.Close()
	return int64(len(z.EncodeAll(b, nil))), nil
}
