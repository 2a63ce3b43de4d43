package verify

import (
	"bytes"
	"encoding/asn1"
	"testing"
)

// FuzzDER: what is taken for DER splits into values that are whole, can be written again from their parts to the same bytes,
// and is nothing that encoding/asn1 refuses to split.
func FuzzDER(f *testing.F) {
	_, all := vectors(f)
	for _, der := range all {
		f.Add(der)
	}
	f.Add(tlv(tagSequence, tlv(tagInteger, []byte{0, 0x80}), tlv(tagBitString, []byte{3, 0xf8}), tlv(tagOID, []byte(oidData)), []byte{tagNull, 0}))
	f.Add([]byte{tagSequence, 0x80, 0, 0})
	f.Add([]byte{tagSequence, 0x82, 0, 1, 0})
	f.Add(bytes.Repeat([]byte{tagSequence, 2}, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > MaxCMS || checkDER(b, 0) != nil {
			return
		}
		for rest := b; len(rest) > 0; {
			v, next, err := split(rest)
			if err != nil {
				t.Fatalf("checked, and then not: %v", err)
			}
			if !bytes.Equal(tlv(v.tag, v.body), v.full) || len(v.full)+len(next) != len(rest) {
				t.Fatalf("%x is not its parts", v.full)
			}
			var raw asn1.RawValue
			if _, err := asn1.Unmarshal(v.full, &raw); err != nil {
				t.Fatalf("%x: %v", v.full, err)
			}
			rest = next
		}
	})
}
