package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/qemu/scene"
)

// rauc is Debian's RAUC with the service that its `rauc install` talks to, on a message bus of its own.
type rauc struct {
	conf string
	bus  *exec.Cmd
	env  []string
	serv *exec.Cmd
	log  string

	mount string // where rauc has a bundle while it installs it
}

const raucConfig = `[system]
compatible=%s
bootloader=noop
mountprefix=%s
statusfile=%s

[keyring]
path=%s
check-purpose=codesign

[slot.rootfs.0]
device=/dev/null
type=raw
bootname=A

[slot.rootfs.1]
device=%s
type=raw
bootname=B
`

// startRauc starts bus and service; the device that rauc believes in runs from slot 0, and slot 1 is the target.
func (b *bench) startRauc(s *scene.Scene, t *target) (_ *rauc, err error) {
	dir := s.Path("rauc")
	mounts := filepath.Join(dir, "mnt")
	if err := os.MkdirAll(mounts, 0o755); err != nil {
		return nil, err
	}
	r := &rauc{conf: filepath.Join(dir, "system.conf"), log: filepath.Join(dir, "log"), mount: filepath.Join(mounts, "bundle")}
	conf := fmt.Sprintf(raucConfig, scene.Compatible, mounts, filepath.Join(dir, "status"), s.Key("release.keyring.pem"), t.path)
	if err := os.WriteFile(r.conf, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	r.bus = exec.Command("dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address", "--address=unix:tmpdir=/tmp")
	r.bus.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := r.bus.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.bus.Start(); err != nil {
		return nil, err
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("dbus-daemon: %w", err)
	}
	r.env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+strings.TrimSpace(address))
	log, err := os.Create(r.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r.serv = exec.Command("rauc", "--conf="+r.conf, "--override-boot-slot=A", "service")
	r.serv.Env, r.serv.Stdout, r.serv.Stderr = r.env, log, log
	r.serv.SysProcAttr = r.bus.SysProcAttr
	if err := r.serv.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command("rauc", "status")
		cmd.Env = r.env
		text, err := cmd.CombinedOutput()
		if err == nil {
			return r, nil
		}
		if time.Now().After(end) {
			return nil, r.explain("rauc status", err, text)
		}
	}
}

// install is what is measured.
func (r *rauc) install(bundle string) (spent, error) {
	cmd := exec.Command("rauc", "install", bundle)
	cmd.Env = r.env
	before := r.cpu()
	s, err := spentBy(cmd)
	if err != nil {
		return s, r.explain("rauc install", err, nil)
	}
	s.cpu += r.cpu() - before
	return s, nil
}

// cpu is what the service, which does the work, has taken so far.
func (r *rauc) cpu() (d time.Duration) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.serv.Process.Pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	const utime, cstime, perSecond = 11, 14, 100 // proc(5) counts from 1 and before the name; USER_HZ
	for i := utime; i <= cstime && i < len(fields); i++ {
		n, _ := strconv.Atoi(fields[i])
		d += time.Duration(n) * time.Second / perSecond
	}
	return d
}

func (r *rauc) explain(doing string, err error, text []byte) error {
	log, _ := os.ReadFile(r.log)
	return fmt.Errorf("%s: %w\n%s\n%s", doing, err, strings.TrimSpace(string(text)), strings.TrimSpace(string(log)))
}

func (r *rauc) close() {
	for _, cmd := range []*exec.Cmd{r.serv, r.bus} {
		if cmd != nil && cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	_ = unix.Unmount(r.mount, unix.MNT_DETACH) // of an install that was interrupted
}
