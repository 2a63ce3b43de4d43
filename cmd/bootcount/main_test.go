package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"lifeboat/boot"
	"lifeboat/boot/raw"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/status"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		// bootcount as it is, with its folder below the script's own.
		"bootcount": func() {
			if code := exitStatus(run(os.Args[1:], filepath.Join(os.Getenv("WORK"), "run"), os.Stdout)); code != 0 {
				os.Exit(code)
			}
		},
		// device makes what early boot leaves: A (1.0) good, B (2.0) started on trial; an argument is added to system.conf.
		"device": func() {
			if err := makeDevice(os.Getenv("WORK"), os.Args[1:]...); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}

const conf = `[system]
compatible=test
bootloader=raw
[slot.rootfs.0]
device=PARTLABEL=rootfs.0
bootname=A
[slot.rootfs.1]
device=PARTLABEL=rootfs.1
bootname=B
`

func makeDevice(dir string, more ...string) error {
	text := conf
	for _, m := range more {
		if strings.HasPrefix(m, "bootloader=") {
			text = strings.Replace(text, "bootloader=raw", m, 1)
			continue
		}
		text += m + "\n"
	}
	cfg, err := config.Parse([]byte(text))
	if err != nil {
		return err
	}
	p := boot.PolicyOf(cfg, 1000)
	image := filepath.Join(dir, "state.img")
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(raw.MinSize); err != nil {
		return err
	}
	dev, err := disk.NewFile(f)
	if err != nil {
		return err
	}
	store, err := raw.New(dev)
	if err != nil {
		return err
	}
	if _, _, err := store.Load(); !errors.Is(err, boot.ErrLost) {
		return fmt.Errorf("empty state partition: %v", err)
	}
	seal := func(b byte, version string) boot.Seal {
		return boot.Seal{Status: boot.SealValid, Whole: boot.WholeRight, Manifest: boot.Hash{b}, Version: version}
	}
	s := boot.Factory(map[string]boot.Seal{"rootfs.0": seal(1, "1.0")}, p)
	if s, err = boot.Good(s, "rootfs.0", p); err != nil {
		return err
	}
	s = boot.Installed(s, "rootfs.1", seal(2, "2.0"), p)
	s, _ = boot.Begin(s, status.None, false, p)
	d := boot.Decide(s, boot.Facts{}, p)
	if d.Slot != "rootfs.1" || !d.Trial {
		return fmt.Errorf("expected a trial of rootfs.1: %+v", d)
	}
	if s, err = store.Commit(d.State); err != nil {
		return err
	}
	r := status.Report{
		State: s.Status(p), StateDev: image, Installed: []status.Installed{}, Refused: []status.Refused{},
		Booted: status.Booted{Slot: "rootfs.1", Bootname: "B", Version: "2.0", Trial: true, TriesLeft: 2, Authenticity: "every boot"},
	}
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "run/boot.json"), r.JSON(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "run/system.conf"), []byte(text), 0o644)
}
