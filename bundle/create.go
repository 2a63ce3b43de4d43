package bundle

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/verify"
	"lifeboat/verify/verity"
)

// CreateOptions says how a bundle is made.
type CreateOptions struct {
	Key           crypto.Signer
	Cert          *x509.Certificate
	Intermediates []*x509.Certificate

	// SourceDate makes the bundle reproducible but for the signature: it is
	// the time in manifest and payload, and salts are derived from it and the
	// content. Zero: SOURCE_DATE_EPOCH if set, else the present time and
	// random salts.
	SourceDate time.Time

	// CRLs (DER) go into the CMS.
	CRLs [][]byte

	// Keyring are signed keyrings and CRLs, one behind the other, by which
	// devices that take the bundle renew their trust. They become a file of
	// the payload.
	Keyring []byte

	// Images make the images of classes, whose files are not in the folder then.
	Images map[string]MakeImage

	// SquashfsArgs are further arguments of mksquashfs. Without -comp among
	// them the payload is compressed with zstd.
	SquashfsArgs []string

	// Mksquashfs is the program, "mksquashfs" if empty.
	Mksquashfs string
}

// MakeImage writes the image that the manifest calls filename. Where latest is not zero the bundle is reproducible, and no time
// in the image is later.
type MakeImage func(w io.Writer, filename string, latest time.Time) error

// Create makes the bundle out of the manifest and the images in the folder
// indir, as `rauc bundle` does, and writes what RAUC has no key for to
// [meta.lifeboat]: created, and the dm-verity root hash and salt of each image
// that can be installed as it is. It is for the PC and needs mksquashfs.
//
// The manifest is an author's: size and sha256 of images are computed, format=
// may be missing (then it is verity), security-epoch= and valid-until= in
// [meta.lifeboat] stay as they are. Files that the manifest does not name are
// left out. out must not exist; it appears by rename when it is complete and
// has been read back.
func Create(ctx context.Context, indir, out string, o CreateOptions) (err error) {
	if _, err := os.Lstat(out); err == nil {
		return fmt.Errorf("create %s: %w", out, os.ErrExist)
	}
	made, reproducible, err := o.time()
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(out), "."+filepath.Base(out)+".part-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	m := maker{o: o, made: made, reproducible: reproducible, indir: indir, tmp: tmp}
	if err := m.readDraft(); err != nil {
		return fmt.Errorf("create %s: %w", out, err)
	}
	for class := range o.Images {
		if !slices.ContainsFunc(m.manifest.Images, func(i Image) bool { return i.Class == class && i.Filename != "" }) {
			return fmt.Errorf("create %s: the manifest has no [image.%s] with a filename=", out, class)
		}
	}
	for i := range m.manifest.Images {
		if err := m.addImage(ctx, &m.manifest.Images[i]); err != nil {
			return fmt.Errorf("create %s: %w", out, err)
		}
	}
	if err := m.addKeyring(); err != nil {
		return fmt.Errorf("create %s: %w", out, err)
	}
	path, err := m.build(ctx)
	if err != nil {
		return fmt.Errorf("create %s: %w", out, err)
	}
	return renameNew(path, out)
}

// time returns the time of the bundle and whether it shall be reproducible.
func (o *CreateOptions) time() (time.Time, bool, error) {
	if !o.SourceDate.IsZero() {
		return o.SourceDate.UTC().Truncate(time.Second), true, nil
	}
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			return time.Time{}, false, fmt.Errorf("SOURCE_DATE_EPOCH=%q is not a number of seconds", s)
		}
		return time.Unix(n, 0).UTC(), true, nil
	}
	return time.Now().UTC().Truncate(time.Second), false, nil
}

// maker is a bundle being made.
type maker struct {
	o            CreateOptions
	made         time.Time
	reproducible bool
	indir, tmp   string

	file     *keyFile
	manifest *Manifest
	names    []string // files of the payload beside the manifest
}

func (m *maker) readDraft() error {
	raw, err := os.ReadFile(filepath.Join(m.indir, ManifestName))
	if err != nil {
		return err
	}
	if m.file, err = parseKeyFile(raw); err != nil {
		return err
	}
	if m.manifest, err = readManifest(m.file, raw, draftManifest); err != nil {
		return err
	}
	if g := m.file.ensure("bundle"); m.manifest.Format == FormatPlain {
		if _, ok := g.get("format"); !ok {
			m.manifest.Format = FormatVerity
			g.set("format", FormatVerity)
		}
	}
	if f := m.manifest.Format; f != FormatVerity && f != FormatPlain {
		return verify.Refuse(verify.Policy, "bundles of format %q can't be made", f)
	}
	if len(m.manifest.Images) == 0 {
		return malformed(0, "has no [image.CLASS]")
	}
	if m.manifest.Keyring != "" {
		return verify.Refuse(verify.Malformed, "keyring= in [meta.lifeboat] is written by bundle create --keyring-update FILE")
	}
	if m.manifest.Created.IsZero() {
		m.file.ensure("meta.lifeboat").set("created", m.made.Format(time.RFC3339))
	}
	return nil
}

// addImage computes what the manifest says of an image: size, SHA-256 and
// root hash, and the list of block hashes where adaptive= asks for it.
func (m *maker) addImage(ctx context.Context, img *Image) error {
	if img.Filename == "" {
		return nil
	}
	path := filepath.Join(m.indir, img.Filename)
	if fill := m.o.Images[img.Class]; fill != nil {
		path = filepath.Join(m.tmp, img.Filename)
		if err := m.makeImage(path, fill); err != nil {
			return fmt.Errorf("image %s: %w", img.Key(), err)
		}
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("image %s: %s is not a regular file", img.Key(), path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, &reader{ctx, f})
	if err != nil {
		return err
	}
	img.Size, img.SHA256 = n, [32]byte(sum.Sum(nil))
	g := m.file.group("image." + img.Key())
	g.set("sha256", hex.EncodeToString(img.SHA256[:]))
	g.set("size", strconv.FormatInt(n, 10))
	if !slices.Contains(m.names, path) {
		m.names = append(m.names, path)
		if slices.Contains(img.Adaptive, indexSuffix[1:]) {
			if err := m.addIndex(f, img); err != nil {
				return err
			}
		}
	}
	if img.Installable() != nil {
		return nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	salt, err := m.salt("image", img.Key(), img.SHA256[:])
	if err != nil {
		return err
	}
	root, err := RootHash(&reader{ctx, f}, img.Size, salt)
	if err != nil {
		return err
	}
	meta := m.file.ensure("meta.lifeboat")
	meta.set(img.Key()+".verity-hash", hex.EncodeToString(root[:]))
	meta.set(img.Key()+".verity-salt", hex.EncodeToString(salt))
	return nil
}

func (m *maker) makeImage(path string, fill MakeImage) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	var latest time.Time
	if m.reproducible {
		latest = m.made
	}
	return errors.Join(fill(f, filepath.Base(path), latest), f.Close())
}

// keyringName is the name of the payload's file with keyrings and CRLs.
const keyringName = "lifeboat.keyring"

// addKeyring adds the file by which devices renew their trust.
func (m *maker) addKeyring() error {
	if m.o.Keyring == nil {
		return nil
	}
	if n := len(m.o.Keyring); n > verify.MaxTrust {
		return verify.Refuse(verify.Policy, "keyrings of %d bytes, more than %d", n, verify.MaxTrust)
	}
	path := filepath.Join(m.tmp, keyringName)
	if slices.ContainsFunc(m.names, func(name string) bool { return filepath.Base(name) == keyringName }) {
		return fmt.Errorf("an image has the name %s, which is the keyring's", keyringName)
	}
	sum := sha256.Sum256(m.o.Keyring)
	meta := m.file.ensure("meta.lifeboat")
	meta.set("keyring", keyringName)
	meta.set("keyring-sha256", hex.EncodeToString(sum[:]))
	meta.set("keyring-size", strconv.Itoa(len(m.o.Keyring)))
	m.names = append(m.names, path)
	return os.WriteFile(path, m.o.Keyring, 0o644)
}

// addIndex writes the list of block hashes that adaptive=block-hash-index
// promises: the SHA-256 of each block of 4096 bytes.
func (m *maker) addIndex(f *os.File, img *Image) error {
	if img.Size%verity.BlockSize != 0 {
		return fmt.Errorf("image %s: adaptive=block-hash-index needs a multiple of %d bytes", img.Key(), verity.BlockSize)
	}
	var index bytes.Buffer
	block := make([]byte, verity.BlockSize)
	for off := int64(0); off < img.Size; off += verity.BlockSize {
		if _, err := f.ReadAt(block, off); err != nil {
			return err
		}
		sum := sha256.Sum256(block)
		index.Write(sum[:])
	}
	path := filepath.Join(m.tmp, img.Filename+indexSuffix)
	m.names = append(m.names, path)
	return os.WriteFile(path, index.Bytes(), 0o644)
}

// salt is 32 random bytes, or derived from what it is for, its content and
// the time of the bundle.
func (m *maker) salt(use, name string, content []byte) ([]byte, error) {
	if m.reproducible {
		h := sha256.New()
		fmt.Fprintf(h, "lifeboat salt %s %q %d\n", use, name, m.made.Unix())
		h.Write(content)
		return h.Sum(nil), nil
	}
	salt := make([]byte, 32)
	_, err := rand.Read(salt)
	return salt, err
}

// build makes the file and returns its path.
func (m *maker) build(ctx context.Context) (string, error) {
	inner := filepath.Join(m.tmp, ManifestName)
	if err := os.WriteFile(inner, m.file.encode(), 0o644); err != nil {
		return "", err
	}
	path := filepath.Join(m.tmp, "payload")
	if err := m.squash(ctx, append([]string{inner}, m.names...), path); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	cms, size, err := m.sign(ctx, f)
	if err != nil {
		return "", err
	}
	if len(m.o.CRLs) > 0 {
		if cms, err = verify.AddCRLs(cms, m.o.CRLs...); err != nil {
			return "", err
		}
	}
	if len(cms) > MaxCMS {
		return "", verify.Refuse(verify.Policy, "the signature has %d bytes, more than %d", len(cms), MaxCMS)
	}
	tail := binary.BigEndian.AppendUint64(cms, uint64(len(cms)))
	if _, err := f.WriteAt(tail, size); err != nil {
		return "", err
	}
	if err := f.Chmod(0o644); err != nil {
		return "", err
	}
	return path, f.Sync()
}

func (m *maker) squash(ctx context.Context, files []string, out string) error {
	name := m.o.Mksquashfs
	if name == "" {
		name = "mksquashfs"
	}
	stamp := strconv.FormatInt(m.made.Unix(), 10)
	args := append(slices.Clone(files), out, "-all-root", "-noappend", "-no-progress", "-no-xattrs", "-quiet", "-mkfs-time", stamp, "-all-time", stamp)
	if !slices.Contains(m.o.SquashfsArgs, "-comp") {
		args = append(args, "-comp", "zstd")
	}
	cmd := exec.CommandContext(ctx, name, append(args, m.o.SquashfsArgs...)...)
	// mksquashfs refuses the variable together with the options.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "SOURCE_DATE_EPOCH=") })
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(msg))
	}
	return nil
}

// sign appends the hash tree, reads the payload back as a device would, and
// signs. It returns the CMS and where it belongs.
func (m *maker) sign(ctx context.Context, f *os.File) ([]byte, int64, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	size := info.Size()
	if m.manifest.Format == FormatPlain {
		return m.signPlain(f, size)
	}
	// A tree needs two blocks; RAUC refuses a bundle without one.
	size = max(2*verity.BlockSize, (size+verity.BlockSize-1)/verity.BlockSize*verity.BlockSize)
	if err := f.Truncate(size); err != nil {
		return nil, 0, err
	}
	salt, err := m.salt("payload", "", m.file.encode())
	if err != nil {
		return nil, 0, err
	}
	blocks := size / verity.BlockSize
	tree := verity.NewBuilder(f, size, blocks, salt)
	if _, err := io.Copy(tree, &reader{ctx, io.NewSectionReader(f, 0, size)}); err != nil {
		return nil, 0, err
	}
	root, err := tree.Finish()
	if err != nil {
		return nil, 0, err
	}
	treeSize := verity.TreeBlocks(blocks) * verity.BlockSize
	g := m.file.ensure("bundle")
	g.set("verity-hash", hex.EncodeToString(root[:]))
	g.set("verity-salt", hex.EncodeToString(salt))
	g.set("verity-size", strconv.FormatInt(treeSize, 10))
	raw := m.file.encode()
	manifest, err := ParseManifest(raw)
	if err != nil {
		return nil, 0, err
	}
	size += treeSize
	b, err := unsigned(f, size, manifest)
	if err != nil {
		return nil, 0, err
	}
	if err := b.Check(ctx); err != nil {
		return nil, 0, fmt.Errorf("read the bundle back: %w", err)
	}
	cms, err := verify.Sign(raw, false, m.o.Key, m.o.Cert, m.o.Intermediates, m.made)
	return cms, size, err
}

// signPlain signs the payload as a whole; it is mapped, not read to memory.
func (m *maker) signPlain(f *os.File, size int64) ([]byte, int64, error) {
	if size > maxPlain {
		return nil, 0, verify.Refuse(verify.Policy, "a plain bundle of %d bytes: more than 2 GiB", size)
	}
	payload, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, 0, fmt.Errorf("map the payload: %w", err)
	}
	defer unix.Munmap(payload)
	cms, err := verify.Sign(payload, true, m.o.Key, m.o.Cert, m.o.Intermediates, m.made)
	return cms, size, err
}

// RootHash is the dm-verity root of an image of size bytes, filled up with
// zeros to a whole block.
func RootHash(r io.Reader, size int64, salt []byte) ([32]byte, error) {
	blocks := (size + verity.BlockSize - 1) / verity.BlockSize
	tree := verity.NewBuilder(nowhere{}, 0, blocks, salt)
	n, err := io.CopyBuffer(struct{ io.Writer }{tree}, r, make([]byte, 1<<20))
	if err != nil {
		return [32]byte{}, err
	}
	if n != size {
		return [32]byte{}, fmt.Errorf("image has %d bytes instead of %d", n, size)
	}
	if _, err := tree.Write(make([]byte, blocks*verity.BlockSize-size)); err != nil {
		return [32]byte{}, err
	}
	return tree.Finish()
}

// nowhere takes a hash tree of which only the root is wanted.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// renameNew renames without replacing.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system without it
		if _, err := os.Lstat(to); err == nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: os.ErrExist}
		}
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
