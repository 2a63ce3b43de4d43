package verify

import (
	"bytes"
	"errors"
	"time"
)

// DER (ITU-T X.690) identifier octets that occur in a CMS.
const (
	tagBoolean     = 0x01
	tagInteger     = 0x02
	tagBitString   = 0x03
	tagOctetString = 0x04
	tagNull        = 0x05
	tagOID         = 0x06
	tagEnumerated  = 0x0a
	tagUTCTime     = 0x17
	tagTime        = 0x18 // GeneralizedTime
	tagSequence    = 0x30
	tagSet         = 0x31
	tagContext     = 0x80 // [0] IMPLICIT, primitive
	tagContext0    = 0xa0 // [0], constructed
	tagContext1    = 0xa1
	tagContext2    = 0xa2
	tagContext3    = 0xa3
)

// maxDepth is how deep values may nest; certificates with every extension stay
// below 16.
const maxDepth = 32

var (
	errDER      = errors.New("not DER")
	errTrailing = errors.New("bytes after its end")
	errMissing  = errors.New("something is missing or out of place")
)

// value is one DER value.
type value struct {
	tag  byte
	full []byte // with identifier and length
	body []byte
}

// split takes the first value off b. Identifiers of one octet and lengths of
// up to three are understood: no CMS of 64 KiB has others.
func split(b []byte) (v value, rest []byte, err error) {
	if len(b) < 2 || b[0]&0x1f == 0x1f {
		return v, nil, errDER
	}
	header, n := 2, int(b[1])
	switch {
	case n == 0x81 && len(b) >= 3 && b[2] >= 0x80:
		header, n = 3, int(b[2])
	case n == 0x82 && len(b) >= 4 && b[2] != 0:
		header, n = 4, int(b[2])<<8|int(b[3])
	case n == 0x83 && len(b) >= 5 && b[2] != 0:
		header, n = 5, int(b[2])<<16|int(b[3])<<8|int(b[4])
	case n >= 0x80: // indefinite, not minimal, too long or cut off
		return v, nil, errDER
	}
	if n > len(b)-header {
		return v, nil, errDER
	}
	return value{b[0], b[: header+n : header+n], b[header : header+n : header+n]}, b[header+n:], nil
}

// checkDER goes through everything in b, nested values as well, and refuses
// what only BER allows. Each byte is looked at no more often than it is nested.
func checkDER(b []byte, depth int) error {
	if depth > maxDepth {
		return errors.New("nested too deep")
	}
	for len(b) > 0 {
		v, rest, err := split(b)
		if err != nil {
			return err
		}
		if err := checkValue(v, depth); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

func checkValue(v value, depth int) error {
	const constructed = 0x20
	if v.tag&0xc0 != 0 { // not of the universal class
		if v.tag&constructed != 0 {
			return checkDER(v.body, depth+1)
		}
		return nil
	}
	switch v.tag {
	case tagSequence, tagSet:
		return checkDER(v.body, depth+1)
	case 0, tagSequence &^ constructed, tagSet &^ constructed:
		return errDER
	case tagBoolean:
		if len(v.body) != 1 || v.body[0] != 0 && v.body[0] != 0xff {
			return errDER
		}
	case tagInteger, tagEnumerated:
		if !minimalInteger(v.body) {
			return errDER
		}
	case tagBitString:
		if len(v.body) == 0 || v.body[0] > 7 || len(v.body) == 1 && v.body[0] != 0 ||
			v.body[len(v.body)-1]&(1<<v.body[0]-1) != 0 {
			return errDER
		}
	case tagNull:
		if len(v.body) != 0 {
			return errDER
		}
	case tagOID:
		if !minimalOID(v.body) {
			return errDER
		}
	default:
		if v.tag&constructed != 0 { // strings in pieces
			return errDER
		}
	}
	return nil
}

func minimalInteger(b []byte) bool {
	if len(b) < 2 {
		return len(b) == 1
	}
	return !(b[0] == 0 && b[1] < 0x80 || b[0] == 0xff && b[1] >= 0x80)
}

// minimalOID: numbers in base 128, none cut off or with leading zeros.
func minimalOID(b []byte) bool {
	start := true
	for _, c := range b {
		if start && c == 0x80 {
			return false
		}
		start = c < 0x80
	}
	return len(b) > 0 && start
}

// cursor reads the values of a constructed one in turn. The first error stays;
// what is returned after it is empty.
type cursor struct {
	rest []byte
	err  error
}

func (c *cursor) peek(tag byte) bool {
	return c.err == nil && len(c.rest) > 0 && c.rest[0] == tag
}

func (c *cursor) take(tag byte) value {
	if !c.peek(tag) {
		if c.err == nil {
			c.err = errMissing
		}
		return value{}
	}
	return c.any()
}

func (c *cursor) any() value {
	if c.err != nil {
		return value{}
	}
	var v value
	v, c.rest, c.err = split(c.rest)
	return v
}

func (c *cursor) more() bool { return c.err == nil && len(c.rest) > 0 }

// end returns the first error, or one if not everything was read.
func (c *cursor) end() error {
	if c.err == nil && len(c.rest) > 0 {
		c.err = errTrailing
	}
	return c.err
}

// only returns the single value that b consists of.
func only(b []byte, tag byte) (value, error) {
	c := cursor{rest: b}
	v := c.take(tag)
	return v, c.end()
}

// algorithm is an AlgorithmIdentifier (RFC 5280, section 4.1.1.2).
type algorithm struct {
	oid    string // contents octets
	params []byte // whole value; nil where absent
}

func (c *cursor) algorithm() algorithm {
	seq := cursor{rest: c.take(tagSequence).body, err: c.err}
	a := algorithm{oid: string(seq.take(tagOID).body)}
	if seq.more() {
		a.params = seq.any().full
	}
	if err := seq.end(); err != nil && c.err == nil {
		c.err = err
	}
	return a
}

// noParams: absent, or the NULL that older specifications want.
func (a algorithm) noParams() bool {
	return a.params == nil || bytes.Equal(a.params, []byte{tagNull, 0})
}

// parseTime reads UTCTime (1950 to 2049) and GeneralizedTime (other years),
// both to the second and in UTC, as RFC 5652 section 11.3 wants it.
func parseTime(v value) (time.Time, error) {
	errTime := errors.New("not a time")
	layout := ""
	switch v.tag {
	case tagUTCTime:
		layout = "060102150405Z"
	case tagTime:
		layout = "20060102150405Z"
	}
	if layout == "" || len(v.body) != len(layout) {
		return time.Time{}, errTime
	}
	t, err := time.Parse(layout, string(v.body))
	if err != nil {
		return time.Time{}, errTime
	}
	if v.tag == tagUTCTime {
		// Go's two digits turn the century at 69, ASN.1's at 50.
		if t.Year() >= 2050 {
			t = t.AddDate(-100, 0, 0)
		}
		if string(v.body) != t.Format(layout) {
			return time.Time{}, errTime
		}
	} else if t.Year() >= 1950 && t.Year() < 2050 {
		return time.Time{}, errTime
	}
	return t, nil
}

// tlv encodes a value of the given parts.
func tlv(tag byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 0, n+6)
	b = append(b, tag)
	switch {
	case n < 0x80:
		b = append(b, byte(n))
	case n < 1<<8:
		b = append(b, 0x81, byte(n))
	case n < 1<<16:
		b = append(b, 0x82, byte(n>>8), byte(n))
	case n < 1<<24:
		b = append(b, 0x83, byte(n>>16), byte(n>>8), byte(n))
	default:
		b = append(b, 0x84, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
