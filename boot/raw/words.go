package raw

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"lifeboat/boot"
)

// The kernel's last words lie in one block behind the trust files: a header of 32 bytes (magic, boot number, length, CRC-32C
// of all that the block holds with this field zero), then the text. They are written after a panic and at no other time,
// and nothing is decided by them.
const (
	WordsAt = 15 << 19 // in bytes from the start of the state partition

	wordsMagic  = "lfbtWORD"
	wordsHeader = 32
)

// MaxWords is how much of the text is kept, in bytes: its end.
const MaxWords = boot.RecordSize - wordsHeader

func wordsCRC(b []byte) uint32 {
	t := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(b[:20], t), t, b[24:])
}

// SaveWords writes the end of w's text over what was kept before, and flushes. A cut leaves the old, the new or nothing.
func (s *Store) SaveWords(w boot.Words) error {
	b := make([]byte, boot.RecordSize)
	n := copy(b[wordsHeader:], w.Text[max(0, len(w.Text)-MaxWords):])
	copy(b, wordsMagic)
	binary.LittleEndian.PutUint64(b[8:], w.Boot)
	binary.LittleEndian.PutUint32(b[16:], uint32(n))
	binary.LittleEndian.PutUint32(b[20:], wordsCRC(b))
	if _, err := s.dev.WriteAt(b, WordsAt); err != nil {
		return fmt.Errorf("write the kernel's last words: %w", err)
	}
	if err := s.dev.Flush(); err != nil {
		return fmt.Errorf("flush the kernel's last words: %w", err)
	}
	return nil
}

// LoadWords returns what was kept last, and false when there is nothing whole.
func (s *Store) LoadWords() (boot.Words, bool) {
	b := make([]byte, boot.RecordSize)
	if _, err := s.dev.ReadAt(b, WordsAt); err != nil {
		return boot.Words{}, false
	}
	n := binary.LittleEndian.Uint32(b[16:])
	if string(b[:8]) != wordsMagic || n > MaxWords || wordsCRC(b) != binary.LittleEndian.Uint32(b[20:]) {
		return boot.Words{}, false
	}
	return boot.Words{Boot: binary.LittleEndian.Uint64(b[8:]), Text: b[wordsHeader : wordsHeader+n]}, true
}
