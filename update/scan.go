package update

import (
	"context"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"lifeboat/boot"
	"lifeboat/bundle"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/fat"
	"lifeboat/staging"
	"lifeboat/status"
	"lifeboat/verify"
)

// Limits of what is looked at on one source (reference/trust.md section 3).
const (
	maxBundles    = 8
	maxTrustFiles = 8
	maxVolumes    = 16
	maxComplaints = 4  // about file systems
	maxFolders    = 32 // that are read: a pattern may name many
)

// Where bundles and trust files are looked for, unless the configuration says otherwise for bundles.
var (
	bundleFiles = []string{"*.raucb", "updates/*.raucb"}
	trustFiles  = []string{"*.keyring", "updates/*.keyring", "*.crl", "updates/*.crl"}
)

// volume is a file system on a source, and what its folders list.
type volume struct {
	disk.Partition
	*fat.FS
	folders map[string][]fat.Entry
	left    *int  // folders that may still be read of the source
	err     error // of the first folder that could not be read
}

// list reads a folder, once.
func (v *volume) list(dir string) []fat.Entry {
	entries, known := v.folders[dir]
	if !known && *v.left > 0 {
		*v.left--
		var err error
		entries, err = v.ReadDir(dir)
		v.folders[dir] = entries
		if v.err == nil {
			v.err = err
		}
	}
	return entries
}

// match appends the files of the folder dir that a pattern names, in the form of path.Match, case ignored. Systems leave
// files of their own on sticks: "._x" beside each x (macOS), what was thrown away in $RECYCLE.BIN and
// .Trashes; a pattern that begins otherwise does not mean them.
func (v *volume) match(to []string, dir, pattern string) []string {
	first, rest, deeper := strings.Cut(pattern, "/")
	first = strings.ToLower(first)
	for _, e := range v.list(dir) {
		name := strings.ToLower(e.Name)
		if ok, _ := path.Match(first, name); !ok || e.Dir != deeper || strings.ContainsRune(".$", rune(name[0])) && name[0] != first[0] {
			continue
		}
		if at := path.Join(dir, e.Name); len(to) > maxAnswers {
			break // more than are looked at
		} else if deeper {
			to = v.match(to, at, rest)
		} else if !slices.Contains(to, at) {
			to = append(to, at)
		}
	}
	return to
}

// files calls f for the files of the source that the patterns name, most at most.
func (w *worker) files(volumes []*volume, most int, patterns []string, f func(v *volume, name string) error) error {
	for _, v := range volumes {
		var names []string
		for _, p := range patterns {
			names = v.match(names, "", p)
		}
		for _, name := range names {
			if most--; most < 0 {
				return w.refuse(name, verify.Refuse(verify.Policy, "more files of its kind on one stick than are looked at"))
			}
			if err := f(v, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// refuse answers that a file is not accepted.
func (w *worker) refuse(name string, err error) error {
	return w.send(frameRefused, Refusal{Path: name, Code: int(verify.CodeOf(err)), Text: err.Error(), Hint: verify.HintOf(err)}.encode())
}

// scan walks every partition of the source. Keyrings and revocation lists come first, for they decide what is
// acceptable; then each bundle is answered, acceptable or not.
func (w *worker) scan(ctx context.Context) error {
	if w.job.Lone {
		return w.scanLone(ctx)
	}
	parts, err := disk.Partitions(w.media.Source, w.media.SourceSize)
	if err != nil {
		return verify.Refuse(verify.IO, "read the partition table: %w", err)
	}
	if len(parts) == 0 {
		parts = []disk.Partition{{Size: w.media.SourceSize}}
	}
	var (
		volumes []*volume
		bad     []error
		left    = maxFolders
	)
	for _, p := range parts {
		fs, err := fat.Open(io.NewSectionReader(w.media.Source, p.Start, p.Size), p.Size)
		switch {
		case errors.Is(err, fat.ErrNotFAT): // another kind of file system: not ours to judge
		case err != nil:
			bad = append(bad, err)
		case len(volumes) < maxVolumes:
			volumes = append(volumes, &volume{Partition: p, FS: fs, folders: map[string][]fat.Entry{}, left: &left})
		}
	}
	if err := w.findReport(volumes); err != nil {
		return err
	}
	n, err := w.job.Trust.news()
	if err != nil {
		return err
	}
	if err := w.bring(ctx, volumes, n); err != nil {
		return err
	}
	for _, v := range volumes {
		if v.err != nil {
			bad = append(bad, v.err)
		}
	}
	for _, err := range bad[:min(len(bad), maxComplaints)] {
		if err := w.refuse("/", verify.Refuse(verify.IO, "%w", err)); err != nil {
			return err
		}
	}
	if err := w.sendNews(n); err != nil {
		return err
	}
	return w.send(frameDone, nil)
}

// bring answers what lies on the file systems of a source, if it has the file that is required.
func (w *worker) bring(ctx context.Context, volumes []*volume, n *news) error {
	bundles := w.job.Files
	if bundles == nil {
		bundles = bundleFiles
	}
	if file := w.job.Require; file != "" && !slices.ContainsFunc(volumes, func(v *volume) bool { _, err := v.Open(file); return err == nil }) {
		return w.files(volumes, 1, bundles, func(_ *volume, name string) error {
			return w.refuse(name, verify.Refuse(verify.Policy, "nothing is taken from a stick without the file %s", file))
		})
	}
	err := w.files(volumes, maxTrustFiles, trustFiles, func(v *volume, name string) error { return w.trustFile(v, name, n) })
	if err != nil {
		return err
	}
	return w.files(volumes, maxBundles, bundles, func(v *volume, name string) error {
		b, err := w.openIn(ctx, v.FS, name, w.options(n))
		return w.offer(b, err, Found{Offset: v.Start, Size: v.Size, Path: name}, n)
	})
}

// trustFile takes in a file with keyrings or revocation lists.
func (w *worker) trustFile(v *volume, name string, n *news) error {
	f, err := v.Open(name)
	if err != nil {
		return w.refuse(name, verify.Refuse(verify.IO, "open %s: %w", name, err))
	}
	if f.Size() > boot.MaxTrust {
		return w.refuse(name, verify.Refuse(verify.Policy, "%d bytes, more than %d", f.Size(), boot.MaxTrust))
	}
	b := make([]byte, f.Size())
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return w.refuse(name, verify.Refuse(verify.IO, "read %s: %w", name, err))
	}
	if notes := n.add(b); len(notes) > 0 {
		return w.refuse(name, notes[0]) // the first says enough
	}
	return nil
}

// scanLone answers what the only bundle of a source is.
func (w *worker) scanLone(ctx context.Context) error {
	at := staging.Area{Offset: w.job.Offset, Size: w.job.Size}
	n, err := w.job.Trust.news()
	if err == nil && at.Size == 0 {
		at, err = staging.Find(w.media.Source, w.media.SourceSize)
		if errors.Is(err, staging.ErrNone) {
			return w.send(frameDone, nil)
		}
	}
	if err != nil {
		return err
	}
	b, err := w.openLone(ctx, at, w.options(n))
	if err := w.offer(b, err, Found{Offset: at.Offset, Size: at.Size, Path: status.StagedFile}, n); err != nil {
		return err
	}
	if err := w.sendNews(n); err != nil {
		return err
	}
	return w.send(frameDone, nil)
}

// openLone is openIn for a bundle that lies on the source itself.
func (w *worker) openLone(ctx context.Context, at staging.Area, o bundle.Options) (*bundle.Bundle, error) {
	if at.Offset < 0 || at.Size < 0 || at.Offset > w.media.SourceSize || at.Size > w.media.SourceSize-at.Offset {
		return nil, verify.Refuse(verify.Malformed, "%d bytes at %d are not on a source of %d", at.Size, at.Offset, w.media.SourceSize)
	}
	return w.openBundle(ctx, io.NewSectionReader(w.media.Source, at.Offset, at.Size), at.Size, o)
}

// offer answers what a bundle is, or why it was refused when it was opened.
func (w *worker) offer(b *bundle.Bundle, err error, f Found, n *news) error {
	name := f.Path
	switch {
	case err != nil:
	case len(name) > maxString || !printable(name):
		err = verify.Refuse(verify.Policy, "its name is longer than %d bytes or cannot be shown: give the file another one", maxString)
	case len(b.Manifest.Version) > boot.MaxVersion || !printable(b.Manifest.Version):
		err = verify.Refuse(verify.Policy, "its version is longer than %d bytes or cannot be shown", boot.MaxVersion)
	}
	var keyring []byte
	if err == nil {
		keyring, err = b.Keyring()
	}
	var cms *verify.CMS
	if err == nil {
		cms, err = verify.ReadCMS(b.CMS)
	}
	if err != nil {
		return w.refuse(name, err)
	}
	f.Offer = boot.Offer{
		Manifest: b.Manifest.Hash(), Version: b.Manifest.Version, Epoch: b.Manifest.Epoch, Lifted: cms.RenewsKeyring(n.rules(&w.job.Trust)),
	}
	if !config.Slim {
		f.Loaders, f.Trees = w.loadersIn(b.Manifest), w.treesIn(b.Manifest)
	}
	// What is older or wrong in what it brings along is no reason to refuse the bundle.
	for _, list := range cms.CRLs() {
		n.add(list)
	}
	n.add(keyring)
	return w.send(frameFound, f.encode())
}
