package bundle

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/verify"
)

// Signing is a bundle whose signatures are to change. Its payload and what is
// signed, so its manifest hash too, stay byte for byte. It is for the PC.
type Signing struct {
	Manifest *Manifest
	// Content is what signatures are over: the manifest, or the payload of a
	// plain bundle. It is mapped from the file until Close.
	Content []byte

	f        *os.File
	payload  int64
	cms      []byte
	detached bool
}

// OpenSigning opens the bundle in a file. With o its signature has to pass as
// in [Open]; without, nobody is trusted, but the payload of a verity bundle has
// to be the one that its manifest names: nobody shall sign what is damaged.
func OpenSigning(ctx context.Context, name string, o *Options) (_ *Signing, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, verify.Refuse(verify.IO, "%w", err)
	}
	s := &Signing{f: f}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, verify.Refuse(verify.IO, "%w", err)
	}
	if o != nil {
		if _, err := Open(ctx, f, info.Size(), *o); err != nil {
			return nil, err
		}
	}
	c, err := split(f, info.Size())
	if err != nil {
		return nil, err
	}
	if encrypted(c.der) {
		return nil, verify.Refuse(verify.Policy, "the bundle is encrypted: signatures are put in before that")
	}
	cms, err := verify.ReadCMS(c.der)
	if err != nil {
		return nil, err
	}
	s.payload, s.cms, s.detached = c.payload, c.der, cms.Detached()
	if s.detached {
		if c.payload > maxPlain {
			return nil, verify.Refuse(verify.Policy, "a plain bundle of %d bytes: more than 2 GiB", c.payload)
		}
		if s.Content, err = unix.Mmap(int(f.Fd()), 0, int(c.payload), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return nil, fmt.Errorf("map the payload: %w", err)
		}
		raw, err := innerBytes(c.src, c.src, c.payload)
		if err != nil {
			return nil, err
		}
		s.Manifest, err = ParseManifest(raw)
		return s, err
	}
	s.Content = cms.Unverified()
	if s.Manifest, err = ParseManifest(s.Content); err != nil {
		return nil, err
	}
	if f := s.Manifest.Format; f != FormatVerity {
		return nil, verify.Refuse(verify.Policy, "signatures of a bundle of format %q can't be changed", f)
	}
	b, err := unsigned(f, c.payload, s.Manifest)
	if err != nil {
		return nil, err
	}
	return s, b.Check(ctx)
}

// Close ends the use of the file.
func (s *Signing) Close() error {
	if s.detached && s.Content != nil {
		unix.Munmap(s.Content)
	}
	return s.f.Close()
}

// base is the CMS that is added to, with the content where that needs it, or
// nil and the content for a new one.
func (s *Signing) base(add bool) (cms, content []byte) {
	switch {
	case !add:
		return nil, s.Content
	case s.detached:
		return s.cms, s.Content
	}
	return s.cms, nil
}

// Sign signs: beside the signers that are there, or instead of them.
func (s *Signing) Sign(add bool, key crypto.Signer, cert *x509.Certificate, intermediates []*x509.Certificate, at time.Time) error {
	cms, content := s.base(add)
	var err error
	if add {
		cms, err = verify.AddSigner(cms, content, key, cert, intermediates, at)
	} else {
		cms, err = verify.Sign(content, s.detached, key, cert, intermediates, at)
	}
	if err != nil {
		return err
	}
	s.cms = cms
	return nil
}

// Attach puts in a signature that was made elsewhere over what
// [verify.ToBeSigned] gave for Content.
func (s *Signing) Attach(add bool, cert *x509.Certificate, intermediates []*x509.Certificate, signed, signature []byte) error {
	cms, content := s.base(add)
	cms, err := verify.Assemble(cms, content, s.detached, cert, intermediates, signed, signature)
	if err != nil {
		return err
	}
	s.cms = cms
	return nil
}

// AttachCMS puts in the signers of a CMS over Content, attached or detached.
// They must have signed as lifeboat does (see [verify.ToBeSigned]).
func (s *Signing) AttachCMS(add bool, der []byte) error {
	cms, err := verify.ReadCMS(der)
	if err != nil {
		return err
	}
	if !cms.Detached() && !bytes.Equal(cms.Unverified(), s.Content) {
		return errors.New("it holds other content than the bundle's: sign what bundle digest --content writes, with openssl cms -binary")
	}
	var info struct {
		Type asn1.ObjectIdentifier
		Data struct {
			Version        int
			Digests, Encap asn1.RawValue
			Certs          asn1.RawValue `asn1:"optional,tag:0"`
			CRLs           asn1.RawValue `asn1:"optional,tag:1"`
			Signers        []struct {
				Version     int
				SID, Digest asn1.RawValue
				Attrs       asn1.RawValue `asn1:"optional,tag:0"`
				Algorithm   asn1.RawValue
				Signature   []byte
				Unsigned    asn1.RawValue `asn1:"optional,tag:1"`
			} `asn1:"set"`
		} `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return fmt.Errorf("read the CMS: %w", err)
	}
	if len(info.Data.Signers) == 0 {
		return errors.New("nobody signed it")
	}
	for i, signer := range cms.Signers() {
		if signer.Certificate == nil {
			return errors.New("it lacks the certificate of a signer")
		}
		in := info.Data.Signers[i]
		signed := bytes.Clone(in.Attrs.FullBytes)
		if len(signed) == 0 {
			return errors.New("it has no signed attributes (openssl cms -noattr)")
		}
		signed[0] = 0x31 // what is signed is the SET OF
		if err := s.Attach(add || i > 0, signer.Certificate, cms.Certificates(), signed, in.Signature); err != nil {
			return err
		}
	}
	return nil
}

// AddCRLs puts CRLs (DER) into the CMS.
func (s *Signing) AddCRLs(crls ...[]byte) error {
	if len(crls) == 0 {
		return nil
	}
	cms, err := verify.AddCRLs(s.cms, crls...)
	if err != nil {
		return err
	}
	s.cms = cms
	return nil
}

// Write writes the bundle to out, which must not exist, or with "" in the place
// of the one that was opened. It appears by rename when it is complete.
func (s *Signing) Write(ctx context.Context, out string) error {
	to := out
	if to == "" {
		to = s.f.Name()
	} else if _, err := os.Lstat(out); err == nil {
		return fmt.Errorf("write %s: %w", out, os.ErrExist)
	}
	part, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+".part-")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	defer part.Close()
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	// A file from a file: the kernel copies, or shares the blocks.
	if n, err := part.ReadFrom(io.LimitReader(s.f, s.payload)); err != nil || n != s.payload {
		return fmt.Errorf("copy the payload, %d of %d bytes: %w", n, s.payload, errors.Join(err, ctx.Err()))
	}
	if _, err := part.Write(binary.BigEndian.AppendUint64(bytes.Clone(s.cms), uint64(len(s.cms)))); err != nil {
		return err
	}
	if err := errors.Join(part.Chmod(info.Mode().Perm()), part.Sync(), ctx.Err()); err != nil {
		return err
	}
	if out == "" {
		return os.Rename(part.Name(), to)
	}
	return renameNew(part.Name(), to)
}
