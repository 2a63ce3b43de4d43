package confine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MaxFrame is the size in bytes of the largest frame, header included.
const MaxFrame = 4096

// MaxBody is the size in bytes of the largest body of a frame.
const MaxBody = MaxFrame - headerSize

// A frame is, little endian:
//
//	0 u8 magic 0x4c   1 u8 kind   2 u16 length of body, 0..4092   4 body
//
// Kinds and bodies belong to the role. Frames follow each other without
// padding; a frame is written by one write, which a pipe keeps whole.
const (
	headerSize = 4
	frameMagic = 0x4c
)

func appendFrame(b []byte, kind byte, body []byte) ([]byte, error) {
	if len(body) > MaxBody {
		return b, fmt.Errorf("frame body of %d bytes, want at most %d", len(body), MaxBody)
	}
	b = append(b, frameMagic, kind)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...), nil
}

// frames reads frames from a worker. It never reads beyond a frame and holds
// one at a time.
type frames struct {
	r    io.Reader
	left int64 // bytes of answer still allowed
	buf  [MaxFrame]byte
}

// next returns the next frame; body is valid until the call after. The end
// between two frames is io.EOF, any other breach of the format wraps ErrAnswer.
func (f *frames) next() (kind byte, body []byte, err error) {
	if _, err := io.ReadFull(f.r, f.buf[:headerSize]); err != nil {
		return 0, nil, cutShort(err)
	}
	n := int(binary.LittleEndian.Uint16(f.buf[2:]))
	if f.buf[0] != frameMagic || n > MaxBody {
		return 0, nil, fmt.Errorf("%w: no frame in % x", ErrAnswer, f.buf[:headerSize])
	}
	f.left -= int64(max(headerSize+n, minCharge))
	if f.left < 0 {
		return 0, nil, fmt.Errorf("%w: too much of it", ErrAnswer)
	}
	body = f.buf[headerSize : headerSize+n]
	if _, err := io.ReadFull(f.r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, cutShort(err)
	}
	return f.buf[1], body, nil
}

func cutShort(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends inside a frame", ErrAnswer)
	}
	return err
}
