package bootloader

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Unified is what a unified kernel image is made of.
type Unified struct {
	Stub      []byte // systemd's, linuxx64.efi.stub or linuxaa64.efi.stub, version 252 or newer
	Kernel    []byte // with an EFI stub of its own
	Initrd    []byte
	Cmdline   string // "": what the boot loader passes
	OSRelease []byte // as /etc/os-release; may be empty
}

// Image returns a PE file that firmware and systemd-boot start: the stub, and behind its sections those that it looks for
// (UAPI group, "Unified Kernel Image"). The same input gives the same bytes.
func (u Unified) Image() ([]byte, error) {
	f, err := pe.NewFile(bytes.NewReader(u.Stub))
	if err != nil {
		return nil, fmt.Errorf("the stub: %w", err)
	}
	opt, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || len(u.Stub) > 1<<20 || f.Section(".sdmagic") == nil || f.Section(".linux") != nil {
		return nil, errors.New("the stub is not systemd's (linuxx64.efi.stub)")
	}
	le := binary.LittleEndian
	at := func(n, align uint32) uint32 { return (n + align - 1) / align * align }
	file, image := opt.SizeOfHeaders, uint32(0)
	for _, s := range f.Sections {
		file, image = max(file, s.Offset+s.Size), max(image, s.VirtualAddress+max(s.VirtualSize, s.Size))
	}
	if int64(file) > int64(len(u.Stub)) || opt.FileAlignment == 0 || opt.SectionAlignment == 0 {
		return nil, errors.New("the stub is cut off")
	}
	out := bytes.Clone(u.Stub[:file]) // what follows are symbols
	coff := le.Uint32(out[0x3c:]) + 4
	header := coff + 20
	table := header + uint32(f.SizeOfOptionalHeader)
	sections := uint32(f.NumberOfSections)
	for _, s := range []struct {
		name string
		data []byte
	}{{".osrel", u.OSRelease}, {".cmdline", []byte(u.Cmdline)}, {".linux", u.Kernel}, {".initrd", u.Initrd}} {
		if len(s.data) == 0 {
			continue
		}
		entry := table + 40*sections
		if entry+40 > opt.SizeOfHeaders || len(s.data) > math.MaxInt32-len(out) {
			return nil, errors.New("there is no room for the section " + s.name)
		}
		image = at(image, max(opt.SectionAlignment, 4096))
		out = append(out, make([]byte, int(at(uint32(len(out)), opt.FileAlignment))-len(out))...)
		e := out[entry:][:40]
		clear(e)
		copy(e, s.name)
		le.PutUint32(e[8:], uint32(len(s.data)))
		le.PutUint32(e[12:], image)
		le.PutUint32(e[16:], at(uint32(len(s.data)), opt.FileAlignment))
		le.PutUint32(e[20:], uint32(len(out)))
		le.PutUint32(e[36:], pe.IMAGE_SCN_CNT_INITIALIZED_DATA|pe.IMAGE_SCN_MEM_READ)
		out = append(out, s.data...)
		image += uint32(len(s.data))
		sections++
	}
	out = append(out, make([]byte, int(at(uint32(len(out)), opt.FileAlignment))-len(out))...)
	le.PutUint16(out[coff+2:], uint16(sections))
	clear(out[coff+8 : coff+16]) // where the symbols were
	le.PutUint32(out[header+56:], at(image, opt.SectionAlignment))
	clear(out[header+64 : header+68]) // a checksum that nobody looks at
	return out, nil
}
