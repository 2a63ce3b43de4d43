// Command demo plays the story of lifeboat in the virtual device and says what it saw:
//
//	go run ./qemu/demo [-v] [-dir DIR]     plays it; exit status 0 only if every step was observed
//	go run ./qemu/demo -prepare DIR        makes initramfs, disk.img and stick.img of the same device, for `make run`
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
)

func main() {
	verbose := flag.Bool("v", false, "show the device's console")
	dir := flag.String("dir", "", "stage in this new folder and keep it (default: a temporary one, kept only after a failure)")
	prepare := flag.String("prepare", "", "only make what `make run` needs in this folder; a disk that is there is kept")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := func() error {
		if *prepare != "" {
			return prepareRun(*prepare)
		}
		return demo(ctx, *dir, *verbose)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo stages and plays the story in dir, or in a temporary folder.
func demo(ctx context.Context, dir string, verbose bool) (err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", "lifeboat-demo-"); err != nil {
			return err
		}
		defer func() {
			if err == nil {
				os.RemoveAll(dir)
			}
		}()
	} else if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	t := newTeller(os.Stdout, verbose)
	err = play(ctx, t, dir)
	t.report()
	if err != nil {
		return fmt.Errorf("%w\nwhat was staged, the disk and the console (serial.log) are in %s", err, dir)
	}
	return nil
}

// slotSize has room for any of the demo's systems.
const slotSize = 16 << 20

// product is what exists before the device is switched on for the first time.
type product struct {
	*scene.Scene
	disk           string // 1.0 in slot A
	stick1, stick2 string // with 2.0 made by rauc, with 3.0 made by lifeboat
}

// manufacture makes the product. A disk that is there is kept.
func manufacture(dir string, first testsystem.Behaviour) (p *product, err error) {
	s, err := scene.New(dir, scene.Options{})
	if err != nil {
		return nil, err
	}
	p = &product{Scene: s}
	bundle := func(version string, behaviour testsystem.Behaviour, rauc bool) (string, error) {
		image, err := s.System("system-"+version+".img", testsystem.Options{Version: version, Behaviour: behaviour})
		if err != nil {
			return "", err
		}
		return s.Bundle("update-"+version+".raucb", image, scene.BundleOptions{Version: version, Rauc: rauc})
	}
	one, err := bundle("1.0", first, false)
	if err != nil {
		return nil, err
	}
	two, err := bundle("2.0", first, true)
	if err != nil {
		return nil, err
	}
	three, err := bundle("3.0", testsystem.Silent, false)
	if err != nil {
		return nil, err
	}
	if p.disk, err = s.Disk("disk.img", map[string]string{"A": one}, map[string]int64{"rootfs": slotSize}); err != nil {
		return nil, err
	}
	if p.stick1, err = s.Stick("stick.img", two); err != nil {
		return nil, err
	}
	p.stick2, err = s.Stick("stick2.img", three)
	return p, err
}

// prepareRun makes the demo's device for a person at the terminal.
func prepareRun(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "disk.img")); err == nil {
		_, err := scene.New(dir, scene.Options{}) // the initramfs of today's /init; keys are kept
		return err
	}
	if _, err := qemu.FindKernel("generic"); err != nil {
		return err
	}
	if _, err := manufacture(dir, testsystem.Person); err != nil {
		return err
	}
	fmt.Printf("The device in %s has version 1.0 in slot A; stick.img holds version 2.0, stick2.img a 3.0 that never says good.\n", dir)
	return nil
}
