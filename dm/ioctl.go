package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// struct dm_ioctl, native byte order, 312 bytes:
//
//	  0 u32[3] version     12 u32 data_size (whole buffer)
//	 16 u32 data_start     20 u32 target_count
//	 24 s32 open_count     28 u32 flags
//	 32 u32 event_nr       36 u32 padding
//	 40 u64 dev            48 char[128] name
//	176 char[129] uuid    305 char[7] data
//
// struct dm_target_spec, 40 bytes, 8-byte aligned, its parameters behind it as
// a NUL-terminated string:
//
//	0 u64 sector_start   8 u64 length   16 s32 status   20 u32 next   24 char[16] target_type
//
// next counts from the start of this spec when a table is loaded, and from
// data_start when the kernel answers.
const (
	headerSize = 312
	specSize   = 40
	nameSize   = 128
	typeSize   = 16

	request      = 3<<30 | headerSize<<16 | 0xfd<<8 // _IOWR(0xfd, cmd, struct dm_ioctl)
	controlMinor = 236                              // MAPPER_CTRL_MINOR

	cmdDevCreate   = 3
	cmdDevRemove   = 4
	cmdDevSuspend  = 6
	cmdTableLoad   = 9
	cmdTableClear  = 10
	cmdTableStatus = 12

	flagReadOnly    = 1 << 0
	flagStatusTable = 1 << 4
	flagBufferFull  = 1 << 8

	maxTargets = 1024
	maxArgs    = 64 << 10
)

type answer struct {
	flags, count uint32
	dev          uint64
	data         []byte // from data_start on
}

// encode makes the argument of one ioctl: the header, then data.
func encode(name string, flags uint32, data []byte, targets uint32) ([]byte, error) {
	if name == "" || len(name) >= nameSize {
		return nil, fmt.Errorf("%w: %q", ErrName, name)
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c == '/' || c == 0x7f {
			return nil, fmt.Errorf("%w: %q", ErrName, name)
		}
	}
	buf := make([]byte, headerSize+len(data))
	e := binary.NativeEndian
	e.PutUint32(buf[0:], 4)
	e.PutUint32(buf[12:], uint32(len(buf)))
	e.PutUint32(buf[16:], headerSize)
	e.PutUint32(buf[20:], targets)
	e.PutUint32(buf[28:], flags)
	copy(buf[48:48+nameSize], name)
	copy(buf[headerSize:], data)
	return buf, nil
}

func decode(buf []byte) (answer, error) {
	if len(buf) < headerSize {
		return answer{}, errors.New("short answer from the kernel")
	}
	e := binary.NativeEndian
	size, start := e.Uint32(buf[12:]), e.Uint32(buf[16:])
	a := answer{flags: e.Uint32(buf[28:]), count: e.Uint32(buf[20:])}
	d := e.Uint64(buf[40:]) // huge_encode_dev
	a.dev = unix.Mkdev(uint32(d>>8&0xfff), uint32(d&0xff|d>>12&0xfff00))
	if size < headerSize { // 305, up to the data field: an answer without data
		return a, nil
	}
	if uint64(size) > uint64(len(buf)) || start > size {
		return answer{}, fmt.Errorf("answer from the kernel of %d bytes with data at %d", size, start)
	}
	a.data = buf[start:size]
	return a, nil
}

func encodeTargets(targets []Target) ([]byte, error) {
	if len(targets) == 0 || len(targets) > maxTargets {
		return nil, fmt.Errorf("%d targets, want 1 to %d", len(targets), maxTargets)
	}
	var out []byte
	e := binary.NativeEndian
	next := uint64(0)
	for _, t := range targets {
		switch {
		case t.Type == "" || len(t.Type) >= typeSize || bytes.IndexByte([]byte(t.Type), 0) >= 0:
			return nil, fmt.Errorf("bad target type %q", t.Type)
		case len(t.Args) > maxArgs || bytes.IndexByte([]byte(t.Args), 0) >= 0:
			return nil, fmt.Errorf("bad parameters of target %s", t.Type)
		case t.Start != next || t.Sectors == 0 || t.Start+t.Sectors < t.Start:
			return nil, fmt.Errorf("target %s at sector %d with %d sectors: want a table without holes from sector 0", t.Type, t.Start, t.Sectors)
		}
		next = t.Start + t.Sectors
		size := (specSize + len(t.Args) + 1 + 7) &^ 7
		spec := make([]byte, size)
		e.PutUint64(spec[0:], t.Start)
		e.PutUint64(spec[8:], t.Sectors)
		e.PutUint32(spec[20:], uint32(size))
		copy(spec[24:], t.Type)
		copy(spec[specSize:], t.Args)
		out = append(out, spec...)
	}
	return out, nil
}

func decodeTargets(data []byte, count uint32) ([]Target, error) {
	if count > maxTargets {
		return nil, fmt.Errorf("%d targets, want at most %d", count, maxTargets)
	}
	var out []Target
	e := binary.NativeEndian
	at := 0
	for range count {
		if at < 0 || at > len(data)-specSize {
			return nil, errors.New("table ends inside a target")
		}
		spec := data[at:]
		args := spec[specSize:]
		end := bytes.IndexByte(args, 0)
		if end < 0 {
			return nil, errors.New("parameters without end")
		}
		typ := spec[24 : 24+typeSize]
		if i := bytes.IndexByte(typ, 0); i >= 0 {
			typ = typ[:i]
		}
		out = append(out, Target{
			Start:   e.Uint64(spec[0:]),
			Sectors: e.Uint64(spec[8:]),
			Type:    string(typ),
			Args:    string(args[:end]),
		})
		next := int(e.Uint32(spec[20:]))
		if next < at+specSize && len(out) < int(count) {
			return nil, errors.New("targets out of order")
		}
		at = next
	}
	return out, nil
}
