package bundle

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Extract writes all files of the payload to the new directory dir, which
// appears only when it is complete. Every byte is authenticated when it is
// read, images are compared with their size and SHA-256. For the PC.
func (b *Bundle) Extract(ctx context.Context, dir string) (err error) {
	f, err := b.open()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("extract to %s: %w", dir, os.ErrExist)
	}
	dir = filepath.Clean(dir)
	tmp, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".part-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	images := map[string]int{}
	for i := range b.Manifest.Images {
		images[b.Manifest.Images[i].Filename] = i
	}
	for _, e := range f.entries {
		if i, ok := images[e.Name]; ok {
			err = b.extractImage(ctx, i, filepath.Join(tmp, e.Name))
		} else {
			err = b.extractOther(f, e.Name, filepath.Join(tmp, e.Name))
		}
		if err != nil {
			return err
		}
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return renameNew(tmp, dir)
}

func (b *Bundle) extractImage(ctx context.Context, i int, path string) error {
	r, err := b.Image(i)
	if err != nil {
		return err
	}
	return create(path, func(w io.Writer) error {
		_, err := r.WriteToContext(ctx, w)
		return err
	})
}

func (b *Bundle) extractOther(f *files, name, path string) error {
	r, err := f.fs.Open(name)
	if err != nil {
		return b.src.judge("open "+name, err)
	}
	return create(path, func(w io.Writer) error {
		if _, err := io.Copy(w, r); err != nil {
			return b.src.judge("read "+name, err)
		}
		return nil
	})
}

// create makes the file path and fills it.
func create(path string, fill func(io.Writer) error) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err := fill(out); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
