package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"lifeboat/boot"
	"lifeboat/boot/custom"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/boot/sdboot"
	"lifeboat/config"
	"lifeboat/disk"
)

// tells opens the boot loader's own place, so that the loader is told of each record. Where that cannot be opened the record
// is still read, and a change of it says that the loader was not told.
func (s *session) tells(record *raw.Store) boot.Store {
	l, err := s.loader()
	if err != nil {
		l = loader.Dead{Err: err}
	}
	s.policy.Most = l.Most()
	return &loader.Store{
		Store: record, Loader: l, Policy: s.policy,
		Say: func(line string) { fmt.Fprintln(os.Stderr, "bootcount:", line) },
	}
}

func (s *session) loader() (boot.Loader, error) {
	if s.cfg.Bootloader == "custom" {
		if s.cfg.Loader.Program == "" {
			return nil, errors.New("[bootloader] program= is missing")
		}
		return custom.New(s.cfg.Loader.Program, s.policy.Bootnames), nil
	}
	at := loader.Place{}
	blocks, err := disk.Blocks("/sys")
	if err != nil {
		return nil, err
	}
	if at.Slots, err = slotBlocks(s.cfg, blocks, s.report.Booted); err != nil {
		return nil, err
	}
	if dev := s.cfg.Loader.Device; config.Flash(dev) {
		at.Block.Name = filepath.Base(dev)
	} else if at.Block, err = beside(dev, blocks, s.report.Booted); err != nil && s.cfg.Bootloader != "efi" {
		return nil, err
	}
	if on := mountOf(at.Block.Path()); on != "" {
		at.Folder = sdboot.Mounted(on)
		at.File = func(path string) (disk.Device, error) { return disk.Open(filepath.Join(on, path), true) }
	}
	return loader.Open(s.cfg, at)
}

// mountOf returns where a device's file system is mounted for writing, "" where it is not.
func mountOf(device string) string {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 3 && f[0] == device && strings.HasPrefix(f[3]+",", "rw,") {
			return unescape(f[1])
		}
	}
	return ""
}

// unescape undoes what the kernel does to a path in /proc/mounts.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// loaderView is what a boot loader's own variables say.
type loaderView struct {
	Name    string       `json:"name"`
	Next    string       `json:"next,omitempty"` // bootname of the slot that is started once
	Order   []loaderTurn `json:"order"`
	Differs string       `json:"differs,omitempty"` // what the record would have it say, where that is something else
	Error   string       `json:"error,omitempty"`
}

type loaderTurn struct {
	Bootname string `json:"bootname"`
	Tries    *uint8 `json:"tries,omitempty"` // left out where the loader does not count
}

// view asks the boot loader, and compares its answer with the record; nil where no loader chooses.
func (s *session) view() *loaderView {
	if !s.policy.Loader {
		return nil
	}
	v := &loaderView{Name: s.cfg.Bootloader, Order: []loaderTurn{}}
	var l boot.Loader
	var err error
	if told, ok := s.store.(*loader.Store); ok {
		l = told.Loader
	} else if l, err = s.loader(); err != nil {
		v.Error = err.Error()
		return v
	}
	vars, err := l.Read()
	if err != nil {
		v.Error = err.Error()
		return v
	}
	most := l.Most()
	v.Next = vars.Next
	for _, t := range vars.Order {
		turn := loaderTurn{Bootname: t.Name}
		if most > 0 {
			turn.Tries = &t.Tries
		}
		v.Order = append(v.Order, turn)
	}
	p := s.policy
	p.Most = most
	if st, _, err := s.record.Load(); err == nil {
		if want := st.Vars(p); !want.Equal(vars, most) {
			v.Differs = said(want, most)
		}
	}
	return v
}

// said says variables in words: "A 3 tries, B 9 tries", "A, B; B once".
func said(v boot.Vars, most uint8) string {
	var turns []string
	for _, t := range v.Order {
		switch {
		case most == 0:
			turns = append(turns, t.Name)
		case t.Tries == 1:
			turns = append(turns, t.Name+" 1 try")
		case t.Tries > 0:
			turns = append(turns, fmt.Sprintf("%s %d tries", t.Name, t.Tries))
		}
	}
	text := strings.Join(turns, ", ")
	if text == "" {
		text = "no slot"
	}
	if v.Next != "" {
		text = v.Next + " once; " + text
	}
	return text
}

func (v *loaderView) String() string {
	if v.Error != "" {
		return v.Name + ": " + v.Error
	}
	vars, most := boot.Vars{Next: v.Next}, uint8(0)
	for _, t := range v.Order {
		turn := boot.Turn{Name: t.Bootname}
		if t.Tries != nil {
			turn.Tries, most = *t.Tries, 1
		}
		vars.Order = append(vars.Order, turn)
	}
	text := v.Name + ": " + said(vars, most)
	if v.Differs != "" {
		text += "; it differs from the record, which says " + v.Differs
	}
	return text
}
