//go:build !slim

package update

import (
	"cmp"
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"time"

	"lifeboat/slots"
	"lifeboat/tree"
	"lifeboat/unpack"
	"lifeboat/verify"
)

// tree makes the file system in Media.Folder, which is empty, hold an archive.
func (w *worker) tree(ctx context.Context) error {
	b, err := w.open(ctx)
	if err != nil {
		return err
	}
	i, err := b.Manifest.Find(w.job.Class)
	if err != nil {
		return err
	}
	p := w.part()
	rule := p.Tree
	if rule == nil || !b.Manifest.Images[i].Archive() {
		return verify.Refuse(verify.Policy, "image %s is no archive for this slot", w.job.Class)
	}
	src, err := b.Image(i)
	if err != nil {
		return err
	}
	before, total := w.share(b.Manifest)
	from := &metered{r: src, tell: func(n int64) { w.progress(before+n, total) }}
	plain, err := unpack.NewReader(from)
	if err != nil {
		err = verify.Refuse(verify.Malformed, "image %s: %w", w.job.Class, err)
	} else {
		_, err = tree.Extract(w.media.Folder, plain, tree.Options{Devices: rule.Devices, Setuid: rule.Setuid, Max: cmp.Or(p.Room, maxTree)})
	}
	if from.err != nil && from.err != io.EOF {
		return from.err // of the bundle, whatever was made of it
	}
	if err != nil {
		return err
	}
	// The archive may end before its file does, and only there is the SHA-256 compared.
	if _, err := io.Copy(io.Discard, from); err != nil {
		return err
	}
	digest, err := w.digest()
	if err != nil {
		return err
	}
	seal, err := slots.TreeSeal(b, i, rule.Integrity, digest)
	if err != nil {
		return err
	}
	if err := w.sendSeal(&seal); err != nil {
		return err
	}
	m := b.Manifest.Hash()
	return w.send(frameDone, m[:])
}

// maxTree bounds the bytes of all files, holes included, where the slot's size is not known.
const maxTree = 1 << 44

// metered counts what is read, and keeps the error.
type metered struct {
	r    io.Reader
	n    int64
	err  error
	tell func(int64)
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	m.err = err
	m.tell(m.n)
	return n, err
}

// readTree reads all files of a slot; those that have just been installed have to be what the installer saw.
func (w *worker) readTree(seal *slots.Seal) error {
	digest, err := w.digest()
	if err == nil && len(w.job.Seal) > 0 && digest != seal.RootHash {
		err = verify.Refuse(verify.PayloadHash, "read the tree back: its files are not what was written")
	}
	return err
}

// digest reads the whole tree.
func (w *worker) digest() ([32]byte, error) {
	sum := &living{sha256.New(), w}
	if err := tree.Write(sum, w.media.Folder, time.Time{}); err != nil {
		return [32]byte{}, verify.Refuse(verify.IO, "read the tree: %w", err)
	}
	return [32]byte(sum.Sum(nil)), nil
}

// living says that the worker lives with all that is hashed.
type living struct {
	hash.Hash
	w *worker
}

func (l *living) Write(p []byte) (int, error) {
	l.w.alive()
	l.w.pace(len(p))
	return l.Hash.Write(p)
}
