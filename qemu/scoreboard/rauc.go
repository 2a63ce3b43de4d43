package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// raucDo marks a script that rauc shall make: `rauc status ARGS` of its two slots A and B.
const raucDo = "rauc status "

// raucScripts lets rauc itself say what it does: its service runs here, in a folder, on a boot state of its own, with
// grub-editenv, fw_setenv and fw_printenv that note their arguments before they work. Scripts that begin with raucDo
// become the commands that changed something, for the virtual device.
func (l *lab) raucScripts(backend string, steps []Step) error {
	dir := filepath.Join(l.dir, "rauc")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	conf := "[system]\ncompatible=board\nbootloader=" + backend + "\nstatusfile=" + at("status") + "\n"
	if backend == "grub" {
		conf += "grubenv=/boot/grubenv\n"
	}
	conf += "[keyring]\npath=" + at("ca.pem") + "\n[slot.rootfs.0]\ndevice=" + at("a") + "\nbootname=A\n[slot.rootfs.1]\ndevice=" + at("b") + "\nbootname=B\n"
	bus := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path=` + at("bus") + `</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
`
	wrapper := func(tool, args string) string {
		return "#!/bin/sh" + `
{ printf %s ` + tool + `; for a in "$@"; do printf " '%s'" "$a"; done; echo; } >>` + at("log") + "\n" + args + "\n"
	}
	grubEditenv, err := l.tool("grub-editenv")
	if err != nil {
		return err
	}
	fwSetenv, err := l.tool("fw_setenv")
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		"system.conf": conf, "bus.conf": bus, "ca.pem": "", "a": "", "b": "", "log": "",
		"grubenv":          newBlock("ORDER", "A B", "A_OK", "1", "A_TRY", "0", "B_OK", "1", "B_TRY", "0"),
		"uboot.env":        firstEnv().encode(false),
		"fw.config":        fmt.Sprintf("%s 0x0 %#x\n", at("uboot.env"), envSize),
		"bin/grub-editenv": wrapper("grub-editenv", "shift; exec "+grubEditenv+" "+at("grubenv")+` "$@"`),
		"bin/fw_setenv":    wrapper("fw_setenv", "exec "+fwSetenv+" -c "+at("fw.config")+` "$@"`),
		"bin/fw_printenv":  wrapper("fw_printenv", "exec "+filepath.Join(filepath.Dir(fwSetenv), "fw_printenv")+" -c "+at("fw.config")+` "$@"`),
	} {
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at(name), []byte(content), 0o755); err != nil {
			return err
		}
	}
	address := "unix:path=" + at("bus")
	env := append(os.Environ(), "PATH="+at("bin")+":"+os.Getenv("PATH"), "DBUS_STARTER_BUS_TYPE=session",
		"DBUS_STARTER_ADDRESS="+address, "DBUS_SESSION_BUS_ADDRESS="+address)
	service := func(name string, args ...string) (stop func(), err error) {
		cmd := exec.Command(name, args...)
		cmd.Env = env
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		return func() { cmd.Process.Kill(); cmd.Wait() }, nil // how it ends does not matter
	}
	stopBus, err := service("dbus-daemon", "--config-file="+at("bus.conf"), "--nofork", "--nopidfile")
	if err != nil {
		return err
	}
	defer stopBus()
	for range 100 {
		if _, err := os.Stat(at("bus")); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	stopRauc, err := service("rauc", "-c", at("system.conf"), "--override-boot-slot=A", "service")
	if err != nil {
		return err
	}
	defer stopRauc()
	rauc := func(args ...string) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "rauc", append([]string{"-c", at("system.conf"), "status"}, args...)...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("rauc status %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	for range 40 { // until the service is there
		if err = rauc("mark-good", "rootfs.0"); err == nil {
			break
		}
		time.Sleep(250 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	for _, s := range steps {
		for k := range s.Ops {
			args, ok := strings.CutPrefix(s.Ops[k].Script, raucDo)
			if !ok {
				continue
			}
			if err := os.WriteFile(at("log"), nil, 0o644); err != nil {
				return err
			}
			if err := rauc(strings.Fields(args)...); err != nil {
				return err
			}
			log, err := os.ReadFile(at("log"))
			if err != nil {
				return err
			}
			s.Ops[k].Script = ""
			for line := range strings.Lines(string(log)) {
				if strings.HasPrefix(line, "fw_setenv ") || strings.Contains(line, " 'set' ") {
					s.Ops[k].Script += line
				}
			}
			if s.Ops[k].Script == "" {
				return fmt.Errorf("rauc status %s changed nothing: %s", args, log)
			}
			l.logf("rauc status %s: %s", args, strings.TrimSpace(s.Ops[k].Script))
		}
	}
	return nil
}
