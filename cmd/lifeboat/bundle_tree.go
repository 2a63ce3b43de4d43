package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"lifeboat/bundle"
	"lifeboat/tree"
)

// treeImages makes images of folders out of --tree CLASS=DIR.
func treeImages(trees []string) (map[string]bundle.MakeImage, error) {
	all := map[string]bundle.MakeImage{}
	for _, t := range trees {
		class, dir, ok := strings.Cut(t, "=")
		if !ok || class == "" || all[class] != nil {
			return nil, usagef("--tree %s: want CLASS=DIR, once for a class", t)
		}
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return nil, errors.Join(err, fmt.Errorf("--tree %s: no folder", t))
		}
		all[class] = func(w io.Writer, filename string, latest time.Time) error {
			c, err := compressor(w, filename)
			if err != nil {
				return err
			}
			return errors.Join(tree.Write(c, dir, latest), c.Close())
		}
	}
	return all, nil
}

// compressor compresses by what a file is called.
func compressor(w io.Writer, name string) (io.WriteCloser, error) {
	switch {
	case strings.HasSuffix(name, ".tar"):
		return plain{w}, nil
	case strings.HasSuffix(name, ".tar.gz"), strings.HasSuffix(name, ".tgz"):
		return gzip.NewWriterLevel(w, gzip.BestCompression)
	case strings.HasSuffix(name, ".tar.zst"):
		// The window is what an extractor of 24 MiB has room for.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(4<<20))
	case strings.HasSuffix(name, ".tar.xz"):
		return xz.WriterConfig{DictCap: 4 << 20}.NewWriter(w)
	}
	return nil, fmt.Errorf("filename=%s is none of .tar, .tar.gz, .tar.zst, .tar.xz", name)
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }
