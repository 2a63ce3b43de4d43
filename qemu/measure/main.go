// Command measure is `make bench`: the numbers that lifeboat promises, each beside what it is compared with, taken in turn
// in the same run. The machine may be busy with other things, so every figure is the median of several repetitions and
// what counts are ratios.
//
// Where there is a goal the last column says whether it was met. Exit status 1 means that something could not be measured;
// a missed goal is no failure.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"lifeboat/qemu/scene"
)

func main() {
	var o options
	flag.StringVar(&o.part, "part", "", "boot, install or memory; all where empty")
	flag.IntVar(&o.repeat, "repeat", 5, "how often each thing is measured")
	flag.Int64Var(&o.size, "size", 256, "MiB of the images that are installed")
	flag.StringVar(&o.keep, "keep", "", "folder for logs of the virtual device")
	peaksOnly := flag.Bool("peaks", false, "for memory: STICK KEYRING TARGET; update the target and print the peaks of the workers")
	root := flag.String("root", "", "for -peaks: the source tree")
	flag.Parse()
	runtime.LockOSThread() // what this thread has started ends with it, however that comes about
	do := func() error { return run(o) }
	if *peaksOnly {
		do = func() error { return peaks(*root, flag.Args()) }
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	part   string
	repeat int
	size   int64 // MiB
	keep   string
}

// parts of the bench, in their order.
var parts = []struct {
	name    string
	what    string
	measure func(b *bench) error
}{
	{"boot", "the virtual device from the kernel's start of /init to the system, beside a floor and a script", boots},
	{"install", "images from bundles to the disk of this machine, beside dd, rauc and swupdate", installs},
	{"memory", "peaks of PID 1 and its workers, with a small and a large bundle", memory},
}

func run(o options) error {
	root, err := scene.Build()
	if err != nil {
		return err
	}
	// Beside the sources and not in /tmp, which may be memory: installs are to end on the same disk as on a developer's day.
	if err := os.MkdirAll(filepath.Join(root, "out"), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Join(root, "out"), "bench-")
	if err != nil {
		return err
	}
	b := &bench{options: o, root: root, dir: dir}
	b.atEnd(func() { os.RemoveAll(dir) })
	defer b.end()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-interrupted
		b.end()
		os.Exit(1)
	}()
	before := load()
	known := false
	for _, p := range parts {
		if o.part != "" && o.part != p.name {
			continue
		}
		known = true
		b.say("%s: %s", p.name, p.what)
		if err := p.measure(b); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if !known {
		return fmt.Errorf("no part %q: there are boot, install and memory", o.part)
	}
	fmt.Println()
	b.print(os.Stdout)
	fmt.Printf("\n%d processors, load %s when it began, %s at the end. What is busy beside the bench slows down those who compute more than those who wait.\n", runtime.NumCPU(), before, load())
	return nil
}

// load is how many processes wanted to run in the last minute.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// bench is one run.
type bench struct {
	options
	root string // of the source tree
	dir  string // for everything that is made, removed at the end
	rows []row

	mu   sync.Mutex
	last []func() // what has to be done at the end, the last first
}

// atEnd keeps what has to be done however the run ends.
func (b *bench) atEnd(do func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = append(b.last, do)
}

func (b *bench) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, do := range slices.Backward(b.last) {
		do()
	}
	b.last = nil
}

// say tells whoever waits what is going on.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintln(os.Stderr, "bench: "+strings.TrimSpace(fmt.Sprintf(format, args...)))
}
