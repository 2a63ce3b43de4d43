package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"

	"lifeboat/disk/crash"
	"lifeboat/fat"
)

// fatFiles reads files from a FAT file system with lifeboat's own reader, which takes the first table and the first
// entry of a name, as GRUB, U-Boot, EDK2 and Linux do.
func fatFiles(image string, names ...string) (Content, error) {
	c := Content{}
	err := onFAT(image, func(f *fat.FS, err error) {
		for _, name := range names {
			c[name] = fatFile(f, err, name)
		}
	})
	return c, err
}

func onFAT(image string, do func(f *fat.FS, err error)) error {
	file, err := os.Open(image)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	do(fat.Open(file, info.Size()))
	return nil
}

func fatFile(f *fat.FS, err error, name string) string {
	if err != nil {
		return absent(err)
	}
	file, err := f.Open(name)
	if err != nil {
		return absent(err)
	}
	b, err := io.ReadAll(io.NewSectionReader(file, 0, file.Size()))
	if err != nil {
		return absent(err)
	}
	return string(b)
}

// fatRegion names what lies at an offset of a FAT32 file system before its clusters.
func fatRegion(img *crash.Image, off int64) string {
	var bs [512]byte
	if _, err := img.ReadAt(bs[:], 0); err != nil {
		return "?"
	}
	le := binary.LittleEndian
	sector := int64(le.Uint16(bs[11:]))
	if sector == 0 {
		return "?"
	}
	reserved, size := int64(le.Uint16(bs[14:])), int64(le.Uint32(bs[36:]))
	switch n := off / sector; {
	case n == 0:
		return "boot sector"
	case n == int64(le.Uint16(bs[48:])):
		return "FSINFO"
	case n < reserved:
		return "reserved sectors"
	case n < reserved+size:
		return "first FAT"
	case n < reserved+2*size:
		return "second FAT"
	}
	return ""
}

// directory reports whether a sector looks like entries of a FAT directory.
func directory(b []byte) bool {
	if len(b) < 32 {
		return false
	}
	for _, e := range [][]byte{b[:11], b[len(b)-512:][:11]} {
		if e[0] == '.' || e[0] == 0xe5 {
			continue
		}
		for _, c := range e {
			if c < ' ' && c != 0 || c > 0x7e {
				return attribute(b[11])
			}
		}
	}
	return attribute(b[11])
}

func attribute(a byte) bool { return a == 0x0f || a == 0x10 || a == 0x20 || a == 0x08 }

// makeFAT makes a FAT32 file system of 264 MiB with files in it; above 260 MB mkfs.fat takes clusters of 4 KiB, so
// that a block of GRUB's fits into one. makeSmallFAT makes one of 40 MiB, whose clusters are sectors.
func makeFAT(name string, files map[string]string, dirs ...string) error {
	return makeFATSize(name, 264<<20, 8, files, dirs...)
}

func makeSmallFAT(name string, files map[string]string, dirs ...string) error {
	return makeFATSize(name, 40<<20, 1, files, dirs...)
}

func makeFATSize(name string, size int64, cluster int, files map[string]string, dirs ...string) error {
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(name, size); err != nil {
		return err
	}
	if err := run("mkfs.fat", "-F", "32", "-s", strconv.Itoa(cluster), "-i", "1f0b0a70", name); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := run("mmd", "-i", name, "::"+d); err != nil {
			return err
		}
	}
	for _, to := range sorted(files) {
		tmp := name + ".part"
		if err := os.WriteFile(tmp, []byte(files[to]), 0o644); err != nil {
			return err
		}
		if err := run("mcopy", "-m", "-i", name, tmp, "::"+to); err != nil {
			return fmt.Errorf("%s: %w", path.Base(to), err)
		}
		os.Remove(tmp)
	}
	return nil
}

// ext4Region names what lies at an offset of an ext4 file system as makeExt4 makes it.
func ext4Region(data []byte, off int64) string {
	switch {
	case off < 4096:
		return "superblock"
	case len(data) >= 4 && bytes.Equal(data[:4], []byte{0xc0, 0x3b, 0x39, 0x98}):
		return "journal"
	}
	return ""
}
