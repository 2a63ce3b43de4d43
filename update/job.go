package update

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"lifeboat/boot"
	"lifeboat/config"
	"lifeboat/slots"
)

// Roles of workers. Each has a uid of its own in early boot.
const (
	RoleScan    = "scan"    // reads a stick and says which bundles lie on it
	RoleCheck   = "check"   // reads every block of one bundle before a slot is touched
	RoleInstall = "install" // writes one bundle's image and tree to one slot
	RoleCompare = "compare" // reads an image of a bundle and a slot: whether they are the same
	RoleSeal    = "seal"    // reads a slot's seal
	RoleAttest  = "attest"  // reads a slot's seal and the whole slot
	RoleReport  = "report"  // writes the report over the one on a stick, whose only writer it is
	RoleRepair  = "repair"  // copies a slot's image and tree over another's
	RoleLoader  = "loader"  // writes one bundle's image to one copy of the boot loader
	RoleLoaded  = "loaded"  // reads a slot's seal and a copy of the boot loader: whether it is what that bundle brings
	RoleTree    = "tree"    // makes a slot's file system hold the tree of a bundle's archive; that file system is all that it sees
	RoleFiles   = "files"   // reads a slot's seal and the whole tree that lies in the slot
	RoleTrust   = "trust"   // judges keyrings and revocation lists that a scanner found, and has nothing else
)

// job is what one worker is to do: its input, encoded by PID 1, which the worker trusts.
type job struct {
	Trust Trust
	Class string // install, seal, attest, loader, loaded: image class of the slot
	Parts []part // scan, check, install: what a bundle has to hold, no more and no less; the boot slots' class first

	Loaders []part // scan, check, install: what a bundle may hold beside that, for slots of the boot loader

	Sector int64 // loader: bytes of a sector of the disk

	Files   []string // scan: path patterns of bundles, nil: bundleFiles
	Require string   // scan: a file without which nothing is taken, "": none
	Rate    int64    // bytes per second that are read or written at most; 0: any

	SkipOver int64 // install: what is in the slot already is not written of an image of more bytes

	// Which bundle; scan uses only where a lone one lies.
	Lone         bool  // the source holds one bundle and no file system
	Offset, Size int64 // of the partition with the file system, or of a lone bundle, in bytes on the source
	Path         string
	Manifest     boot.Hash
	From         int64 // install: bytes of the bundle's images that are in the slots already

	Seal      []byte // seal, attest, loaded: the seal that is to be judged instead of the one on the slot
	Candidate []byte // trust: a trust file
	Text      []byte // report: what is written
}

// part is an image class of a bundle.
type part struct {
	Class string
	Room  int64        // bytes of the smallest slot, of a slot of the boot loader all that an image may have; 0: not known
	Tree  *config.Tree // its slots take archives too; nil: they do not
}

// Frames of a worker's answer. All numbers little endian; a string is its length in one byte and its bytes.
// docs/formats.md lists the bodies.
const (
	frameFound    = 'F' // scan: a bundle
	frameRefused  = 'R' // scan: a file that is no acceptable bundle
	frameProgress = 'P' // bytes done u64, bytes in all u64
	frameSeal     = 'S' // the next part of a seal, zeros at its end left out
	frameReport   = 'L' // scan: there is a report to write over
	frameTrust    = 'T' // scan, trust: the next part of the trust file that is to be stored
	frameKeys     = 'K' // trust: which keyring is in it
	frameFacts    = 'A' // attest: what the seal says and whether it is right
	frameError    = 'E' // the worker's refusal: code u8, text, hint
	frameDone     = 'D' // the last frame of a worker that did what it was told; install: manifest hash
)

// maxAnswers is how many bundles and refusals one source may have.
const maxAnswers = 32

var errAnswer = errors.New("a worker's answer is malformed")

type encoder struct{ b []byte }

func (e *encoder) u8(v uint8)   { e.b = append(e.b, v) }
func (e *encoder) u32(v uint32) { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *encoder) i64(v int64)  { e.b = binary.LittleEndian.AppendUint64(e.b, uint64(v)) }
func (e *encoder) raw(v []byte) { e.b = append(e.b, v...) }
func (e *encoder) flag(v bool) {
	if v {
		e.u8(1)
	} else {
		e.u8(0)
	}
}

// maxString is the longest string in an answer, in bytes.
const maxString = 255

// str cuts what is longer than maxString.
func (e *encoder) str(v string) {
	v = v[:min(len(v), maxString)]
	e.u8(uint8(len(v)))
	e.b = append(e.b, v...)
}
func (e *encoder) blob(v []byte) { e.u32(uint32(len(v))); e.raw(v) }

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) raw(n int) []byte {
	if n < 0 || len(d.b) < n {
		d.err, d.b = errAnswer, nil
		return make([]byte, min(max(n, 0), 64))
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}
func (d *decoder) u8() uint8      { return d.raw(1)[0] }
func (d *decoder) u32() uint32    { return binary.LittleEndian.Uint32(d.raw(4)) }
func (d *decoder) i64() int64     { return int64(binary.LittleEndian.Uint64(d.raw(8))) }
func (d *decoder) flag() bool     { return d.u8() != 0 }
func (d *decoder) str() string    { return string(d.raw(int(d.u8()))) }
func (d *decoder) hash() [32]byte { return [32]byte(d.raw(32)) }
func (d *decoder) blob() []byte {
	n := d.u32()
	if int64(n) > int64(len(d.b)) {
		d.err = errAnswer
		return nil
	}
	return d.raw(int(n))
}

// end reports whether all of it was understood and nothing is left.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.err = errAnswer
	}
	return d.err
}

func (j *job) encode() []byte {
	e := &encoder{}
	e.blob(j.Trust.Keyring)
	e.blob(j.Trust.Stored)
	e.blob(j.Trust.Pending)
	e.str(j.Trust.Compatible)
	e.str(j.Trust.Purpose)
	e.str(j.Trust.Role)
	e.str(j.Trust.Serial)
	e.flag(j.Trust.RequireCRL)
	e.u8(uint8(len(j.Trust.Formats)))
	for _, f := range j.Trust.Formats {
		e.str(f)
	}
	e.flag(j.Trust.RequireSigned)
	e.i64(j.Trust.Floor)
	e.str(j.Class)
	all := j.Parts
	if !config.Slim {
		e.u8(uint8(len(j.Loaders)))
		all = append(slices.Clone(j.Loaders), all...)
		e.i64(j.Sector)
	}
	e.u8(uint8(len(all)))
	for _, p := range all {
		e.str(p.Class)
		e.i64(p.Room)
		if !config.Slim {
			e.tree(p.Tree)
		}
	}
	e.i64(j.Rate)
	e.i64(j.SkipOver)
	e.flag(j.Lone)
	e.i64(j.Offset)
	e.i64(j.Size)
	e.str(j.Path)
	e.raw(j.Manifest[:])
	e.i64(j.From)
	e.blob(j.Seal)
	e.blob(j.Candidate)
	e.u8(uint8(len(j.Files)))
	for _, f := range j.Files {
		e.str(f)
	}
	e.str(j.Require)
	e.blob(j.Text)
	return e.b
}

func decodeJob(b []byte) (*job, error) {
	d := &decoder{b: b}
	j := &job{}
	j.Trust.Keyring, j.Trust.Stored, j.Trust.Pending = d.blob(), d.blob(), d.blob()
	j.Trust.Compatible, j.Trust.Purpose, j.Trust.Role = d.str(), d.str(), d.str()
	j.Trust.Serial, j.Trust.RequireCRL = d.str(), d.flag()
	for range d.u8() {
		j.Trust.Formats = append(j.Trust.Formats, d.str())
	}
	j.Trust.RequireSigned, j.Trust.Floor = d.flag(), d.i64()
	j.Class = d.str()
	var loaders uint8
	if !config.Slim {
		loaders, j.Sector = d.u8(), d.i64()
	}
	for range d.u8() {
		p := part{Class: d.str(), Room: d.i64()}
		if !config.Slim {
			p.Tree = d.tree()
		}
		j.Parts = append(j.Parts, p)
	}
	if n := int(loaders); !config.Slim && n > 0 {
		if n > len(j.Parts) {
			return nil, errAnswer
		}
		j.Loaders, j.Parts = j.Parts[:n:n], j.Parts[n:]
	}
	j.Rate, j.SkipOver = d.i64(), d.i64()
	j.Lone = d.flag()
	j.Offset, j.Size, j.Path, j.Manifest, j.From = d.i64(), d.i64(), d.str(), d.hash(), d.i64()
	j.Seal, j.Candidate = d.blob(), d.blob()
	for range d.u8() {
		j.Files = append(j.Files, d.str())
	}
	j.Require = d.str()
	j.Text = d.blob()
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("decode job: %w", err)
	}
	return j, nil
}

// Found is a bundle that a scanner found and would install: container, signature, compatible and manifest are right,
// its payload has not been read.
type Found struct {
	Offset, Size int64 // of the partition with the file system, or of a lone bundle
	Path         string
	Offer        boot.Offer
	Loaders      uint8 // bit n: it has an image for the n-th slot of the boot loader
	Trees        uint8 // bit n: its image for the n-th class is an archive; the boot slots' class is class 0
}

func (f Found) encode() []byte {
	e := &encoder{}
	e.i64(f.Offset)
	e.i64(f.Size)
	e.str(f.Path)
	e.raw(f.Offer.Manifest[:])
	e.str(f.Offer.Version)
	e.u32(f.Offer.Epoch)
	e.flag(f.Offer.Lifted)
	e.u8(f.Loaders)
	e.u8(f.Trees)
	return e.b
}

func decodeFound(b []byte) (f Found, err error) {
	d := &decoder{b: b}
	f.Offset, f.Size, f.Path = d.i64(), d.i64(), d.str()
	f.Offer = boot.Offer{Manifest: d.hash(), Version: d.str(), Epoch: d.u32(), Lifted: d.flag()}
	f.Loaders, f.Trees = d.u8(), d.u8()
	if f.Offset < 0 || f.Size < 0 || !printable(f.Path) || !printable(f.Offer.Version) {
		d.err = errAnswer
	}
	return f, d.end()
}

// place is where the report lies on a source.
type place struct {
	Offset, Size int64 // of the partition with the file system
	Path         string
}

func (p place) encode() []byte {
	e := &encoder{}
	e.i64(p.Offset)
	e.i64(p.Size)
	e.str(p.Path)
	return e.b
}

func decodePlace(b []byte) (p place, err error) {
	d := &decoder{b: b}
	p = place{d.i64(), d.i64(), d.str()}
	if p.Offset < 0 || p.Size < 0 || !printable(p.Path) {
		d.err = errAnswer
	}
	return p, d.end()
}

// Refusal is a file that was refused, with the code of reference/trust.md section 1.
type Refusal struct {
	Path string
	Code int
	Text string
	Hint string
}

func (r Refusal) Error() string { return r.Text }

func (r Refusal) encode() []byte {
	e := &encoder{}
	e.str(r.Path)
	e.u8(uint8(r.Code))
	e.str(r.Text)
	e.str(r.Hint)
	return e.b
}

func decodeRefusal(b []byte) (r Refusal, err error) {
	d := &decoder{b: b}
	r.Path, r.Code, r.Text, r.Hint = d.str(), int(d.u8()), d.str(), d.str()
	if r.Code == 0 {
		d.err = errAnswer
	}
	r.Path, r.Text, r.Hint = clean(r.Path), clean(r.Text), clean(r.Hint)
	return r, d.end()
}

// attested is what an attester says.
type attested struct {
	Seal  boot.Seal
	Facts slots.Facts
}

func (a attested) encode() []byte {
	e := &encoder{}
	e.u8(uint8(a.Seal.Status))
	e.u8(uint8(a.Seal.Whole))
	e.raw(a.Facts.Manifest[:])
	e.str(a.Facts.Version)
	e.u32(a.Facts.Epoch)
	e.i64(a.Facts.Created)
	e.i64(a.Facts.DataBlocks)
	e.str(string(a.Facts.Salt))
	e.raw(a.Facts.RootHash[:])
	e.flag(a.Facts.Signed)
	e.str(a.Facts.FS)
	e.str(a.Facts.Integrity)
	return e.b
}

func decodeAttested(b []byte) (a attested, err error) {
	d := &decoder{b: b}
	a.Seal.Status, a.Seal.Whole = boot.SealStatus(d.u8()), boot.Whole(d.u8())
	f := &a.Facts
	f.Manifest, f.Version, f.Epoch, f.Created = d.hash(), d.str(), d.u32(), d.i64()
	f.DataBlocks, f.Salt, f.RootHash, f.Signed, f.FS, f.Integrity = d.i64(), []byte(d.str()), d.hash(), d.flag(), d.str(), d.str()
	if a.Seal.Status == boot.SealUnknown || a.Seal.Status > boot.SealUnreadable || a.Seal.Whole > boot.WholeDamaged ||
		f.DataBlocks < 0 || !printable(f.Version) || !printable(f.FS) || !printable(f.Integrity) {
		d.err = errAnswer
	}
	s := &a.Seal
	s.Manifest, s.Version, s.Epoch, s.Created, s.Local = boot.Hash(f.Manifest), f.Version, f.Epoch, f.Created, !f.Signed
	return a, d.end()
}

func printable(s string) bool { return s == clean(s) }

// clean makes a worker's words fit for a console: control characters become spaces.
func clean(s string) string {
	out := []rune(s)
	for i, r := range out {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffd || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e {
			out[i] = ' '
		}
	}
	return string(out)
}
