package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/qemu/scene"
	"lifeboat/slots"
)

// kind is one kind of content.
type kind struct {
	name         string
	compressible bool
}

// quick are arguments of mksquashfs for each compressor: lower levels than its own, which only cost time here. All
// bundles that are compared have the same.
var quick = map[string]string{"zstd": "zstd -Xcompression-level 6", "gzip": "gzip -Xcompression-level 6", "xz": "xz"}

// installer is one way to bring an image to the target, with its times in seconds.
type installer struct {
	name  string
	short string // of a peer
	goal  bool   // it has to keep to the goal
	run   func(t *target) (spent, error)
	times sample
	cpu   sample
	more  map[string]*sample // parts of it, and more than it
}

// spent is what an install took: time by the clock, and of processors.
type spent struct{ wall, cpu time.Duration }

// installs measures on the host how long an image takes from the bundle to the medium: our workers as early boot runs
// them, with the read-back that the others do not have, against dd of the image as it is, `rauc install` of a plain
// bundle and swupdate of a streamed image. Sources lie in memory for all of them, the target is on the disk.
func installs(b *bench) error {
	dir := filepath.Join(b.dir, "install")
	s, err := scene.New(dir, scene.Options{Flavour: "cloud", Config: map[string]string{"system require-signed-verity": "true"}})
	if err != nil {
		return err
	}
	t, err := b.newTarget(slots.Need(b.size<<20), true)
	if err != nil {
		return err
	}
	defer t.close()
	rauc, err := b.startRauc(s, t)
	if err != nil {
		return err
	}
	b.atEnd(rauc.close)
	for _, kind := range []kind{{"compressible", true}, {"incompressible", false}} {
		b.say("making bundles of %d MiB, %s", b.size, kind.name)
		image := s.Path(kind.name + ".img")
		if err := writeImage(image, b.size<<20, kind.compressible); err != nil {
			return err
		}
		all, err := b.installers(s, t, rauc, image, kind)
		if err != nil {
			return err
		}
		for i := range b.repeat {
			for j := range all {
				c := all[(i+j)%len(all)]
				if err := b.installOnce(t, c, image); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				b.say("install %d of %d, %s, %s: %.3f s", i+1, b.repeat, kind.name, c.name, c.times[len(c.times)-1])
			}
		}
		b.installRows(kind.name, all)
		if !kind.compressible {
			if err := b.again(s, t, image); err != nil {
				return err
			}
		}
		for _, made := range []string{"img", "zstd.stick", "gzip.stick", "xz.stick", "plain.raucb", "swu", "zstd.swu"} {
			_ = os.Remove(s.Path(kind.name + "." + made))
		}
	}
	return nil
}

// installers makes what they install; dd is the first.
func (b *bench) installers(s *scene.Scene, t *target, rauc *rauc, image string, kind kind) ([]*installer, error) {
	all := []*installer{{name: "dd bs=1M conv=fsync of the image", run: func(t *target) (spent, error) {
		return spentBy(exec.Command("dd", "if="+image, "of="+t.path, "bs=1M", "conv=fsync,notrunc", "status=none"))
	}}}
	compressions := []string{"zstd", "gzip", "xz"}
	if !kind.compressible {
		compressions = compressions[:1] // mksquashfs stores what does not shrink: they would all be the same
	}
	for _, compression := range compressions {
		stick, err := b.stick(s, image, kind.name+"."+compression, quick[compression])
		if err != nil {
			return nil, err
		}
		c := &installer{name: "lifeboat, " + compression, goal: compression == "zstd", more: map[string]*sample{}}
		c.run = func(t *target) (spent, error) {
			u, err := updateFrom(b.root, stick, s.Key("release.keyring.pem"), t, false)
			if err != nil {
				return spent{}, err
			}
			for name, d := range u.spent {
				if c.more[name] == nil {
					c.more[name] = &sample{}
				}
				c.more[name].add(d)
			}
			return spent{u.install, u.cpu["install"] + u.cpu["attest"]}, nil
		}
		all = append(all, c)
	}
	plain, err := s.Bundle(kind.name+".plain.raucb", image, scene.BundleOptions{Version: "1", Format: "plain", Rauc: true, Compression: quick["zstd"]})
	if err != nil {
		return nil, err
	}
	all = append(all, &installer{name: "rauc install, plain bundle", short: "rauc", run: func(*target) (spent, error) {
		return rauc.install(plain)
	}})
	for _, compressed := range []string{"", "zstd"} {
		file, err := b.swu(s, t, image, kind.name, compressed)
		if err != nil {
			return nil, err
		}
		all = append(all, &installer{name: "swupdate, streamed, " + cmp.Or(compressed, "not compressed"), short: strings.TrimSpace("swupdate " + compressed), run: func(*target) (spent, error) {
			return b.swupdate(s, file)
		}})
	}
	return all, nil
}

// again installs an image of which a hundredth of the blocks, here and there, is not what is on the target, and counts what gets
// to its disk: the changed blocks, a hash tree with another salt, two seals.
func (b *bench) again(s *scene.Scene, t *target, image string) error {
	stat := filepath.Join("/sys/class/block", filepath.Base(t.path), "stat")
	if _, err := os.Stat(stat); err != nil {
		b.say("no loop device: what an install writes is not counted")
		return nil
	}
	changed := s.Path("changed.img")
	if err := errors.Join(command(b.dir, "cp", image, changed), changeBlocks(changed)); err != nil {
		return err
	}
	first, err := b.stick(s, image, "first", quick["zstd"])
	if err != nil {
		return err
	}
	second, err := b.stick(s, changed, "second", quick["zstd"])
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range []string{changed, first, second} {
			_ = os.Remove(f)
		}
	}()
	var times, written sample
	for range b.repeat {
		var u *updater
		var before int64
		for _, stick := range []string{first, second} {
			if err := t.with(func(f slot) error { return slots.Wipe(f) }); err != nil {
				return err
			}
			if before, err = sectorsWritten(stat); err != nil {
				return err
			}
			if u, err = updateFrom(b.root, stick, s.Key("release.keyring.pem"), t, true); err != nil {
				return err
			}
		}
		after, err := sectorsWritten(stat)
		if err != nil {
			return err
		}
		written = append(written, float64(after-before)*512/float64(b.size<<20))
		times.add(u.install)
		if err := t.same(changed); err != nil {
			return err
		}
	}
	b.seconds("install", "1 % changed: lifeboat, zstd", times, "")
	b.rows = append(b.rows, row{
		part: "install", what: "  written, of the image", value: fmt.Sprintf("%.2f %%", 100*written.median()),
		spread: fmt.Sprintf("%.2f to %.2f", 100*slices.Min(written), 100*slices.Max(written)), goal: goalText([]*goal{{written.median(), 0.02, "2 %"}}),
	})
	return nil
}

// changeBlocks changes a byte of every hundredth block of 4 KiB.
func changeBlocks(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	for off := int64(1234); off < info.Size(); off += 100 * 4096 {
		if _, err := f.ReadAt(b, off); err != nil {
			return err
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
	}
	return nil
}

// sectorsWritten reads the seventh number of a block device's stat.
func sectorsWritten(stat string) (int64, error) {
	text, err := os.ReadFile(stat)
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(text))
	if len(f) < 7 {
		return 0, fmt.Errorf("%s: %q", stat, text)
	}
	return strconv.ParseInt(f[6], 10, 64)
}

func (b *bench) installOnce(t *target, c *installer, image string) error {
	if err := t.with(func(f slot) error { return slots.Wipe(f) }); err != nil {
		return err
	}
	if err := t.forget(); err != nil {
		return err
	}
	used, err := c.run(t)
	if err != nil {
		return err
	}
	// Who has not flushed has not finished. For those who have it takes no time.
	more, err := stopwatch(t.flush)
	if err != nil {
		return err
	}
	c.times.add(used.wall + more)
	c.cpu.add(used.cpu)
	return t.same(image)
}

func (b *bench) installRows(kind string, all []*installer) {
	dd := all[0].times
	for _, c := range all {
		ratio, goals := "", []*goal{}
		if c != all[0] {
			ratio = c.times.versus(dd, "dd")
		}
		if c.goal {
			goals = append(goals, &goal{c.times.ratio(dd), 1 / 0.7, "1.43 x dd (70 % of its speed)"})
			for _, peer := range all {
				if peer.short != "" {
					ratio += ", " + c.times.versus(peer.times, peer.short)
					goals = append(goals, &goal{c.times.ratio(peer.times), 1, "faster than " + peer.short})
				}
			}
		}
		b.seconds("install", kind+": "+c.name, c.times, ratio, goals...)
		b.rows[len(b.rows)-1].cpu = fmt.Sprintf("%.2f s", c.cpu.median())
		if c.goal {
			for _, name := range []string{"worker install", "flush", "worker attest", "whole update"} {
				if m := c.more[name]; m != nil {
					b.seconds("install", "  "+name, *m, m.versus(dd, "dd"))
				}
			}
		}
	}
}

// spentBy runs a command; what its children took counts as its own.
func spentBy(cmd *exec.Cmd) (spent, error) {
	begin := time.Now()
	text, err := cmd.CombinedOutput()
	s := spent{wall: time.Since(begin)}
	if err != nil {
		return s, fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, text)
	}
	s.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return s, nil
}

func stopwatch(do func() error) (time.Duration, error) {
	begin := time.Now()
	err := do()
	return time.Since(begin), err
}
