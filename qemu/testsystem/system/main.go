// Command system is PID 1 of a test system: it says that it is up, behaves as /etc/behaviour tells it, and then obeys
// the serial console. It stands both in a slot's file system and, for tests of the virtual device itself, in an initramfs.
// See package testsystem for what it prints and reads.
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	os.Setenv("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
	os.Setenv("TMPDIR", "/tmp") // /var cannot be written
	mount()
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		fatal(err)
	}
	os.Stdin, os.Stdout, os.Stderr = console, console, console
	for fd := range 3 {
		unix.Dup3(int(console.Fd()), fd, 0)
	}
	version, behaviour := line("/etc/version"), line("/etc/behaviour")
	if behaviour != "person" {
		raw(0)
	}
	if err := modules(); err != nil {
		fmt.Println("SYSTEM MODULES:", err)
	}
	if line("/etc/feeds") != "" {
		if err := feed(); err != nil {
			fmt.Println("SYSTEM FEEDS:", err)
		}
	}
	fmt.Printf("SYSTEM UP version=%s\n", version)
	if boot, err := os.ReadFile("/run/lifeboat/boot.json"); err == nil && behaviour != "person" {
		say("BOOT.JSON BEGIN\n" + strings.TrimRight(string(boot), "\n") + "\nBOOT.JSON END\n")
	}
	behave(behaviour)
	if behaviour == "person" {
		talk()
	}
	obey()
	fatal(errors.New("end of the console"))
}

// mount makes the usual mounts that are not there yet.
func mount() {
	for _, m := range []struct{ dir, fs string }{
		{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/run", "tmpfs"}, {"/tmp", "tmpfs"},
	} {
		var dir, parent unix.Stat_t
		if unix.Stat(m.dir, &dir) == nil && unix.Stat("/", &parent) == nil && dir.Dev != parent.Dev {
			continue
		}
		os.Mkdir(m.dir, 0o755)
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			fmt.Fprintf(os.Stderr, "SYSTEM MOUNT %s: %v\n", m.dir, err)
		}
	}
	if err := unix.Mount("pstore", "/sys/fs/pstore", "pstore", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		fmt.Fprintf(os.Stderr, "SYSTEM MOUNT pstore: %v\n", err)
	}
}

// modules loads what /lib/modules/order lists, one path of a .ko file below /lib/modules in a line.
func modules() error {
	order, err := os.ReadFile("/lib/modules/order")
	if err != nil {
		return nil
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open("/lib/modules/" + name)
		if err != nil {
			return err
		}
		var options string
		if strings.HasSuffix(name, "usb-storage.ko") {
			options = "delay_use=0"
		}
		err = unix.FinitModule(int(f.Fd()), options, 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func behave(behaviour string) {
	switch behaviour {
	case "good", "person":
		out, err := exec.Command("/usr/bin/bootcount", "good").CombinedOutput()
		if err != nil {
			say(fmt.Sprintf("SYSTEM NOT GOOD: %v: %s\n", err, bytes.TrimSpace(out)))
			return
		}
		say(string(out) + "SYSTEM GOOD\n")
	case "silent":
		time.Sleep(time.Second)
		restart(unix.LINUX_REBOOT_CMD_RESTART)
	case "reboot":
		restart(unix.LINUX_REBOOT_CMD_RESTART)
	case "off":
		restart(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "panic":
		crash()
	case "hang":
		fmt.Println("SYSTEM HANGS:", hang())
		for { // not select{}: Go would call that a deadlock and end
			time.Sleep(time.Hour)
		}
	}
}

// hang leaves an armed watchdog alone: 5 s later the machine is reset.
func hang() error {
	dog, err := os.OpenFile("/dev/watchdog0", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := unix.IoctlSetPointerInt(int(dog.Fd()), unix.WDIOC_SETTIMEOUT, 5); err != nil {
		return err
	}
	_, err = dog.Write([]byte{0}) // not 'V': closing does not stop it
	return err
}

// starving ends the meals.
const starving = "/tmp/starving"

// feed takes the watchdog over that early boot has armed, and feeds it until somebody says "starve".
func feed() error {
	dog, err := os.OpenFile("/dev/watchdog0", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	go func() {
		for line(starving) == "" {
			dog.Write([]byte{0})
			time.Sleep(time.Second)
		}
	}()
	return nil
}

func crash() {
	os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	os.Exit(1) // PID 1 that ends is a panic too
}

func restart(how int) {
	unix.Sync()
	fatal(unix.Reboot(how))
}

// obey reads commands, one in a line.
func obey() {
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("SYSTEM READY")
	for in.Scan() {
		words := strings.Fields(in.Text())
		if len(words) == 0 {
			continue
		}
		switch {
		case words[0] == "run": // run TOKEN COMMAND ARGS...
			if len(words) > 2 {
				run(words[1], words[2], words[3:])
			}
		case !order(words[0]):
			fmt.Printf("SYSTEM DOES NOT KNOW %q\n", words[0])
		}
	}
}

// talk is obey for a person.
func talk() {
	fmt.Println("\nCommands: bootcount status|good|bad|next, cat F, ls DIR, dmesg, reboot, poweroff, panic, hang")
	in := bufio.NewScanner(os.Stdin)
	for fmt.Print("# "); in.Scan(); fmt.Print("# ") {
		words := strings.Fields(in.Text())
		if len(words) == 0 {
			continue
		}
		if !order(words[0]) {
			out, err := execute(words[0], words[1:])
			say(string(bytes.TrimRight(out, "\n")) + "\n")
			if err != nil {
				fmt.Println(err)
			}
		}
	}
}

// order does what one word asks for, and reports whether it knows the word.
func order(word string) bool {
	switch word {
	case "reboot":
		restart(unix.LINUX_REBOOT_CMD_RESTART)
	case "poweroff":
		restart(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "panic":
		crash()
	case "hang":
		fmt.Println("SYSTEM HANGS:", hang())
	case "starve":
		fmt.Println("SYSTEM STARVES:", os.WriteFile(starving, []byte("yes"), 0o644))
	default:
		return false
	}
	return true
}

// run executes a command and prints what it wrote between two lines with the token.
func run(token, name string, args []string) {
	out, err := execute(name, args)
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		code = -1
		out = append(out, err.Error()...)
	}
	say(fmt.Sprintf("<<%s\n%s\n>>%s exit=%d\n", token, bytes.TrimRight(out, "\n"), token, code))
}

// execute runs a program, or one of the few built in, and returns what it wrote.
func execute(name string, args []string) (out []byte, err error) {
	switch {
	case name == "cat" && len(args) == 1:
		out, err = os.ReadFile(args[0])
	case name == "ls" && len(args) == 1:
		var entries []os.DirEntry
		entries, err = os.ReadDir(args[0])
		for _, e := range entries {
			out = append(out, e.Name()+"\n"...)
		}
	case name == "head" && len(args) == 2: // first bytes of a file or device, in hexadecimal
		var n int
		if n, err = strconv.Atoi(args[0]); err == nil {
			out, err = head(args[1], n)
		}
	case name == "write" && len(args) == 2:
		err = os.WriteFile(args[0], []byte(args[1]), 0o644)
		unix.Sync()
	case name == "begin" && len(args) > 1: // FILE COMMAND ARGS...: in the background, what it writes goes to the file
		return begin(args[0], args[1], args[2:])
	case name == "signal" && len(args) == 2: // NUMBER PID
		var n, pid int
		if n, err = strconv.Atoi(args[0]); err == nil {
			if pid, err = strconv.Atoi(args[1]); err == nil {
				err = unix.Kill(pid, unix.Signal(n))
			}
		}
	case name == "feed" && len(args) > 1: // FILE COMMAND ARGS...: the file comes through a pipe
		var f *os.File
		if f, err = os.Open(args[0]); err != nil {
			return nil, err
		}
		defer f.Close()
		c := exec.Command(args[1], args[2:]...)
		c.Stdin = io.MultiReader(f) // no file, so that it is a pipe
		out, err = c.CombinedOutput()
	case name == "dmesg":
		out = make([]byte, 1<<20)
		var n int
		n, err = unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, out)
		out = out[:max(n, 0)]
	default:
		out, err = exec.Command(name, args...).CombinedOutput()
	}
	return out, err
}

// begin starts a program, returns its PID, and writes "exit N" behind what it wrote to the file when it has ended.
func begin(file, name string, args []string) ([]byte, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.Wait()
		fmt.Fprintf(f, "exit %d\n", c.ProcessState.ExitCode())
		f.Close()
	}()
	return []byte(strconv.Itoa(c.Process.Pid)), nil
}

func head(name string, n int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	_, err = io.ReadFull(f, b)
	return []byte(hex.EncodeToString(b)), err
}

// say prints without letting the kernel's messages in between.
func say(text string) {
	const consoleLevel = 8 // SYSLOG_ACTION_CONSOLE_LEVEL
	unixSyslog(consoleLevel, 1)
	os.Stdout.WriteString(text)
	unixSyslog(consoleLevel, 7)
}

func unixSyslog(action, value int) {
	unix.Syscall(unix.SYS_SYSLOG, uintptr(action), 0, uintptr(value))
}

// raw lets bytes pass the terminal as they are: no echo, no signals.
func raw(fd int) {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return
	}
	t.Lflag &^= unix.ECHO | unix.ISIG
	unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

func line(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "SYSTEM FAILED:", err)
	select {}
}
