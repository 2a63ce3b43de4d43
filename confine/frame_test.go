package confine

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// The vector that docs/formats.md shows.
func TestFrameBytes(t *testing.T) {
	b, err := appendFrame(nil, 0x70, []byte("ok!"))
	if want := []byte{0x4c, 0x70, 3, 0, 'o', 'k', '!'}; err != nil || !bytes.Equal(b, want) {
		t.Errorf("% x, %v", b, err)
	}
	if b, err = appendFrame(nil, 1, make([]byte, MaxBody)); err != nil || len(b) != MaxFrame {
		t.Errorf("largest frame: %d bytes, %v", len(b), err)
	}
	if _, err = appendFrame(nil, 1, make([]byte, MaxBody+1)); err == nil {
		t.Error("a frame of more than 4 KiB was made")
	}
}

func FuzzFrames(f *testing.F) {
	good, _ := appendFrame(nil, 1, []byte("body"))
	good, _ = appendFrame(good, 2, nil)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{frameMagic, 0, 0xfc, 0x0f})
	f.Add([]byte{frameMagic, 0, 0xfd, 0x0f})
	f.Add(bytes.Repeat([]byte{frameMagic, 0, 0, 0}, 100))
	f.Add([]byte{})
	const most = 4096
	f.Fuzz(func(t *testing.T, in []byte) {
		r := frames{r: bytes.NewReader(in), left: most}
		var again []byte
		for n := 0; ; n++ {
			kind, body, err := r.next()
			if err == io.EOF {
				// What was taken whole is what was sent.
				if !bytes.Equal(again, in) {
					t.Errorf("read % x of % x", again, in)
				}
				return
			}
			if err != nil {
				if !errors.Is(err, ErrAnswer) {
					t.Errorf("%v is no ErrAnswer", err)
				}
				return
			}
			if again, err = appendFrame(again, kind, body); err != nil {
				t.Fatal(err)
			}
			if n >= most/minCharge || len(again) > most {
				t.Fatalf("%d frames of %d bytes", n+1, len(again))
			}
		}
	})
}
