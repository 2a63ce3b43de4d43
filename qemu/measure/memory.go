package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/slots"
	"lifeboat/update"
)

// mostMemory is what PID 1 and the worker that runs may take together, in MiB.
const mostMemory = 24

// memory measures the peak resident memory of the confined workers that install a small and a large bundle here, and of
// PID 1 and its workers where they belong: in the virtual device, which updates itself from a stick.
func memory(b *bench) error {
	s, err := scene.New(filepath.Join(b.dir, "memory"), scene.Options{})
	if err != nil {
		return err
	}
	init, workers, err := b.deviceMemory(s)
	if err != nil {
		return err
	}
	b.memoryRows("virtual device, bundle of 16 MiB", workers, init)
	for _, size := range []int64{16, 1024} {
		peak, err := b.workerMemory(s, size<<20)
		if err != nil {
			return err
		}
		b.memoryRows(fmt.Sprintf("here, bundle of %d MiB", size), peak, init)
	}
	return nil
}

// memoryRows adds a row for each worker and one for the largest and PID 1 together; peaks are in KiB.
func (b *bench) memoryRows(where string, workers map[string]int64, init int64) {
	mib := func(kib int64) string { return fmt.Sprintf("%.1f MiB", float64(kib)/1024) }
	text := ""
	for _, role := range []string{update.RoleScan, update.RoleCheck, update.RoleInstall, update.RoleSeal, update.RoleAttest} {
		text += fmt.Sprintf("%s %.1f, ", role, float64(workers[role])/1024)
	}
	largest := slices.Max(slices.Collect(maps.Values(workers)))
	g := goal{float64(init+largest) / 1024, mostMemory, fmt.Sprintf("%d MiB", mostMemory)}
	b.rows = append(b.rows, row{
		part: "memory", what: where + ": largest worker and PID 1", value: mib(init + largest),
		ratio: text + fmt.Sprintf("PID 1 %.1f", float64(init)/1024), goal: g.String(),
	})
}

// workerMemory installs a bundle with an image of size bytes and returns the peak of each worker in KiB.
func (b *bench) workerMemory(s *scene.Scene, size int64) (map[string]int64, error) {
	b.say("memory: bundle of %d MiB", size>>20)
	image := s.Path("image.img")
	if err := writeImage(image, size, true); err != nil {
		return nil, err
	}
	defer os.Remove(image)
	stick, err := b.stick(s, image, fmt.Sprint(size), "zstd -Xcompression-level 3")
	if err != nil {
		return nil, err
	}
	defer os.Remove(stick)
	t, err := b.newTarget(slots.Need(size), false)
	if err != nil {
		return nil, err
	}
	defer t.close()
	// A small process of its own starts the workers, as PID 1 is: the kernel says of a child's peak that it was at least
	// its parent's at the time.
	cmd := exec.Command("/proc/self/exe", "-peaks", "-root", b.root, stick, s.Key("release.keyring.pem"), t.path)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	peak := map[string]int64{}
	if err := json.Unmarshal(out, &peak); err != nil {
		return nil, err
	}
	return peak, t.same(image)
}

// peaks is that process: it updates a target from a stick and prints the peak of each worker in KiB.
func peaks(root string, args []string) error {
	if len(args) != 3 {
		return errors.New("-peaks wants stick, keyring and target")
	}
	t := &target{path: args[2]}
	if err := t.with(func(f slot) error { t.size = f.Size(); return nil }); err != nil {
		return err
	}
	u, err := updateFrom(root, args[0], args[1], t, true)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(u.peak)
}

// deviceMemory returns the peaks of PID 1 and its workers in KiB that boot.json has after an update from a stick.
func (b *bench) deviceMemory(s *scene.Scene) (init int64, workers map[string]int64, err error) {
	b.say("memory: the virtual device updates itself")
	factory, err := b.bootDisk(s, map[string]int64{"rootfs": 32 << 20})
	if err != nil {
		return 0, nil, err
	}
	tree := s.Path("witness")
	if err := writeImage(filepath.Join(tree, "ballast"), 16<<20, false); err != nil {
		return 0, nil, err
	}
	if err := command(b.root, "mksquashfs", tree, s.Path("large.img"), "-quiet", "-no-progress", "-all-root", "-comp", "zstd"); err != nil {
		return 0, nil, err
	}
	file, err := s.Bundle("large.raucb", s.Path("large.img"), scene.BundleOptions{Version: "2"})
	if err != nil {
		return 0, nil, err
	}
	stick, err := s.Stick("large.stick", file)
	if err != nil {
		return 0, nil, err
	}
	m := s.Machine(factory, stick)
	m.NoReboot, m.CPU, m.Append = true, "max", qemu.FastArgs+" console=ttyS0 panic=-1"
	text, err := b.console(m, 5*time.Minute)
	if err != nil {
		return 0, nil, err
	}
	r, err := report(text)
	if err != nil {
		return 0, nil, err
	}
	if len(r.Installed) != 1 {
		return 0, nil, fmt.Errorf("the virtual device installed nothing:\n%s", text)
	}
	workers = map[string]int64{}
	for _, w := range r.Workers {
		workers[w.Role] = max(workers[w.Role], w.MaxRSSKiB)
	}
	return r.InitRSS, workers, nil
}
