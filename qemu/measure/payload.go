package main

import (
	"bufio"
	"errors"
	"math/rand/v2"
	"os"
)

// writeImage writes an image of size bytes: noise, or what compresses to about a third as file systems of programs and
// texts do.
func writeImage(file string, size int64, compressible bool) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	noise := rand.NewChaCha8([32]byte([]byte("lifeboat's bench, the same bytes")))
	choose := rand.New(noise)
	words := make([]byte, 64<<10+64)
	_, _ = noise.Read(words)
	w := bufio.NewWriterSize(f, 1<<20)
	line := make([]byte, 64)
	for n := int64(0); n < size; n += int64(len(line)) {
		_, _ = noise.Read(line)
		if compressible {
			// A quarter is new, the rest was seen before, at a place that the compressor's window may hold or not.
			copy(line[16:], words[n>>13&0xff<<8|choose.Int64N(256)<<2:])
		}
		_, _ = w.Write(line)
	}
	return errors.Join(w.Flush(), f.Close())
}
