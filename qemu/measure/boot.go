package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/qemu"
	"lifeboat/qemu/scene"
	"lifeboat/status"
)

// contender is an initramfs that starts the system in the first slot.
type contender struct {
	name    string
	initrd  string
	total   sample            // seconds from the kernel's start of /init to the system's first act
	counted sample            // the same by the guest's instructions
	phases  map[string]sample // of boot.json, milliseconds
	order   []string
}

// Where the machine is emulated most of the wall clock's time is the emulator's own work (translating, address spaces),
// and all of it depends on who else is busy. So a few boots are timed by what the guest executes: each instruction takes
// 1 << countedShift nanoseconds of its clock.
const (
	countedShift = 2
	countedBoots = 3
)

// boots measures the time from the kernel's start of /init to the system's: no stick, cloud kernel, dm-verity. All
// contenders start the same system on a copy of the same disk, with the same modules in the same order.
func boots(b *bench) error {
	s, err := scene.New(filepath.Join(b.dir, "boot"), scene.Options{Flavour: "cloud", Config: map[string]string{"system require-signed-verity": "true"}})
	if err != nil {
		return err
	}
	factory, err := b.bootDisk(s, nil)
	if err != nil {
		return err
	}
	floor, err := b.floorInitrd(s, factory)
	if err != nil {
		return err
	}
	script, err := b.scriptInitrd(s, factory)
	if err != nil {
		return err
	}
	ours := &contender{name: "lifeboat", initrd: s.Initrd}
	all := []*contender{ours, {name: "floor: static Go, nothing checked", initrd: floor}, {name: "busybox + dmsetup script, nothing checked", initrd: script}}
	for i := range b.repeat + countedBoots {
		for j := range all {
			c := all[(i+j)%len(all)]
			if err := b.boot(s, factory, c, i >= b.repeat); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	b.bootRows("", all, func(c *contender) sample { return c.total })
	for _, name := range ours.order {
		p := ours.phases[name]
		b.rows = append(b.rows, row{
			part: "boot", what: "  phase " + name, value: fmt.Sprintf("%.0f ms", p.median()),
			spread: fmt.Sprintf("%.0f to %.0f", slices.Min(p), slices.Max(p)),
		})
	}
	b.bootRows(fmt.Sprintf(" (%d ns for each instruction)", 1<<countedShift), all, func(c *contender) sample { return c.counted })
	return nil
}

// bootRows adds the rows of one way to tell the time: ours, floor, script.
func (b *bench) bootRows(how string, all []*contender, of func(*contender) sample) {
	ours, floor, script := of(all[0]), of(all[1]), of(all[2])
	b.seconds("boot", all[0].name+how, ours, ours.versus(floor, "floor")+", "+ours.versus(script, "script"), &goal{ours.ratio(floor), 2, "2 x floor"})
	b.seconds("boot", all[1].name+how, floor, "")
	b.seconds("boot", all[2].name+how, script, script.versus(floor, "floor"))
}

var (
	runInit = regexp.MustCompile(`(?m)^<\d+>\[ *(\d+\.\d+)\] Run /init as init process`)
	started = regexp.MustCompile(`(?m)^<\d+>\[ *(\d+\.\d+)\] WITNESS STARTS`)
)

// boot starts the device once on a fresh copy of its disk.
func (b *bench) boot(s *scene.Scene, factory string, c *contender, counted bool) error {
	file, err := s.Copy("disk.img", factory)
	if err != nil {
		return err
	}
	m := s.Machine(file)
	m.Initrd, m.NoReboot, m.Append = c.initrd, true, qemu.FastArgs+" console=ttyS0 quiet panic=-1"
	how, times := "boot", &c.total
	if counted {
		how, times = "counted boot", &c.counted
		m.Args = []string{"-icount", fmt.Sprintf("shift=%d", countedShift)}
	}
	text, err := b.console(m, 5*time.Minute)
	if b.keep != "" {
		name := fmt.Sprintf("%.8s-%d.log", strings.Map(letters, c.name), len(c.total)+len(c.counted))
		if err := errors.Join(os.MkdirAll(b.keep, 0o755), os.WriteFile(filepath.Join(b.keep, name), []byte(text), 0o644)); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	from, err1 := stamp(runInit, text)
	to, err2 := stamp(started, text)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("%w; the console:\n%s", err, tail(text))
	}
	*times = append(*times, to-from)
	b.say("%s %d, %s: %.3f s", how, len(*times), c.name, to-from)
	if r, err := report(text); err == nil && !counted { // the others leave none
		c.note(r.Phases)
	}
	return nil
}

// note keeps the times of a boot's phases.
func (c *contender) note(phases []status.Phase) {
	if c.phases == nil {
		c.phases = map[string]sample{}
	}
	for _, p := range phases {
		if c.phases[p.Name] == nil {
			c.order = append(c.order, p.Name)
		}
		c.phases[p.Name] = append(c.phases[p.Name], p.MS)
	}
}

// console starts a machine, waits until the witness has switched it off and returns all that it wrote.
func (b *bench) console(m qemu.Machine, patience time.Duration) (string, error) {
	vm, err := qemu.Start(context.Background(), m)
	if err != nil {
		return "", err
	}
	defer vm.Close()
	err = vm.Wait(patience)
	text := vm.Console()
	if err != nil {
		err = fmt.Errorf("%w; the console:\n%s", err, tail(text))
	}
	return text, err
}

func tail(text string) string { return text[max(0, len(text)-4000):] }

// report finds the boot.json that the witness printed.
func report(console string) (r status.Report, err error) {
	_, text, found := strings.Cut(console, "\n{")
	if !found {
		return r, fmt.Errorf("no boot.json; the console:\n%s", tail(console))
	}
	if err := json.NewDecoder(strings.NewReader("{" + text)).Decode(&r); err != nil {
		return r, fmt.Errorf("boot.json: %w", err)
	}
	return r, nil
}

func letters(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r
	}
	return -1
}

// stamp returns the kernel's time of a line in its log, in seconds.
func stamp(re *regexp.Regexp, log string) (float64, error) {
	m := re.FindStringSubmatch(log)
	if m == nil {
		return 0, fmt.Errorf("no line %s in the kernel log", re)
	}
	return strconv.ParseFloat(m[1], 64)
}
