package raw

import (
	"bytes"
	"testing"

	"lifeboat/boot"
	"lifeboat/disk"
)

// The end of a long text is kept; what a cut leaves of the block is the old words, the new ones or none, never a mixture.
func TestWords(t *testing.T) {
	dev := disk.NewMemory(MinSize)
	s, err := New(dev)
	if err != nil {
		t.Fatal(err)
	}
	if w, ok := s.LoadWords(); ok {
		t.Errorf("from nothing: %+v", w)
	}
	block := func(w boot.Words) []byte {
		t.Helper()
		if err := s.SaveWords(w); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, boot.RecordSize)
		if _, err := dev.ReadAt(b, WordsAt); err != nil {
			t.Fatal(err)
		}
		return b
	}
	long := bytes.Repeat([]byte("0123456789"), 1000)
	first := block(boot.Words{Boot: 3, Text: long})
	if w, ok := s.LoadWords(); !ok || w.Boot != 3 || !bytes.Equal(w.Text, long[len(long)-MaxWords:]) {
		t.Errorf("%v boot %d, %d bytes", ok, w.Boot, len(w.Text))
	}
	short := []byte("Kernel panic - not syncing")
	second := block(boot.Words{Boot: 9, Text: short})
	for at := 512; at < boot.RecordSize; at += 512 {
		for name, rest := range map[string][]byte{"old": first[at:], "zeros": make([]byte, boot.RecordSize-at), "garbage": bytes.Repeat([]byte{0xa5}, boot.RecordSize-at)} {
			torn := append(bytes.Clone(second[:at]), rest...)
			if _, err := dev.WriteAt(torn, WordsAt); err != nil {
				t.Fatal(err)
			}
			if w, ok := s.LoadWords(); ok != (name == "zeros") || ok && string(w.Text) != string(short) {
				t.Errorf("torn at %d, then %s: %v %q", at, name, ok, w.Text)
			}
		}
	}
	for bit := range (wordsHeader + len(short)) * 8 {
		b := bytes.Clone(second)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := dev.WriteAt(b, WordsAt); err != nil {
			t.Fatal(err)
		}
		if w, ok := s.LoadWords(); ok {
			t.Fatalf("bit %d flipped: %+v", bit, w)
		}
	}
	// They touch neither a copy of the record nor a trust file.
	if WordsAt < TrustEnd || WordsAt+boot.RecordSize > MinSize-boot.RecordSize {
		t.Error("the areas overlap")
	}
}

func FuzzWords(f *testing.F) {
	f.Add([]byte(wordsMagic), true)
	f.Fuzz(func(t *testing.T, b []byte, sum bool) {
		dev := disk.NewMemory(MinSize)
		block := make([]byte, boot.RecordSize)
		copy(block, b)
		if sum {
			copy(block, wordsMagic)
			c := wordsCRC(block)
			block[20], block[21], block[22], block[23] = byte(c), byte(c>>8), byte(c>>16), byte(c>>24)
		}
		if _, err := dev.WriteAt(block, WordsAt); err != nil {
			t.Fatal(err)
		}
		s, err := New(dev)
		if err != nil {
			t.Fatal(err)
		}
		if w, ok := s.LoadWords(); ok && len(w.Text) > MaxWords {
			t.Fatalf("%d bytes", len(w.Text))
		}
	})
}
