package main

import (
	"bytes"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/qemu"
	"lifeboat/qemu/testsystem"
)

// typist is a screen with a person who types when the right words appear.
type typist struct {
	text     []byte
	read     int
	script   [][2]string // words to wait for, keys to type
	keyboard io.Writer
}

func (p *typist) Write(b []byte) (int, error) {
	p.text = append(p.text, b...)
	for len(p.script) > 0 {
		words, keys := p.script[0][0], p.script[0][1]
		i := bytes.Index(p.text[p.read:], []byte(words))
		if i < 0 {
			break
		}
		p.read += i + len(words)
		p.script = p.script[1:]
		go io.WriteString(p.keyboard, keys) // the keys go where this write comes from
	}
	return len(b), nil
}

func TestVMRun(t *testing.T) {
	k := qemu.NeedKernel(t, "generic")
	dir := t.TempDir()
	initrd, off, stick := filepath.Join(dir, "initramfs"), filepath.Join(dir, "off"), filepath.Join(dir, "stick.img")
	system := testsystem.Options{Version: "7", KernelRoot: k.Root, Modules: []string{"crct10dif_generic", "sd_mod", "xhci_pci", "usb_storage"}}
	if err := testsystem.Initramfs(initrd, system); err != nil {
		t.Fatal(err)
	}
	if err := testsystem.Initramfs(off, testsystem.Options{Behaviour: testsystem.Off}); err != nil {
		t.Fatal(err)
	}
	if err := testsystem.Build(stick, testsystem.Options{}); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		args    []string
		script  [][2]string
		console string // what the console shows in the end
		desk    string // what standard error shows in the end
		err     string
	}{
		{
			name: "seen", args: []string{"--initrd", initrd, "--until", `version=\d+`, "--timeout", "2m"},
			console: "SYSTEM UP version=7",
		},
		{
			name: "not in time", args: []string{"--initrd", initrd, "--until", "NEVER", "--timeout", "200ms"},
			err: `"NEVER" was not seen within 200ms`,
		},
		{
			name: "off before", args: []string{"--initrd", off, "--until", "NEVER", "--timeout", "2m"},
			console: "SYSTEM UP", err: `"NEVER" was not seen: the virtual device is off`,
		},
		{name: "no expression", args: []string{"--until", "("}, err: "--until: error parsing regexp"},
		{name: "no disk", args: []string{"--disk", "/absent"}, err: "/absent"},
		{
			name: "commands", args: []string{"--initrd", initrd, "--timeout", "3m", "--stick", stick},
			script: [][2]string{
				{"SYSTEM READY", ""},
				{"Attached SCSI", "\x1du"},
				{"USB disconnect", "\x1du\x1dp"},
				{"Attached SCSI", "\x1dr"},
				{"SYSTEM READY", "\x1dc"},
				{"SYSTEM READY", "run a cat /etc/version\n"},
				{">>a exit=0", "\x1dq"},
			},
			console: "<<a\r\n7\r\n",
			desk:    "pulled out " + stick + "; no stick to pull out; plugged in " + stick + "; reset; the power was cut and is back",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			qemu.Reserve(t)
			stdin, keyboard := io.Pipe()
			screen := &typist{script: tt.script, keyboard: keyboard}
			var desk bytes.Buffer
			serial := filepath.Join(t.TempDir(), "serial")

			cmd := newVM()
			cmd.SilenceUsage, cmd.SilenceErrors = true, true
			cmd.SetArgs(append([]string{"run", "--kernel", k.Image, "--append", qemu.FastArgs + " console=ttyS0", "--serial", serial}, tt.args...))
			cmd.SetIn(stdin)
			cmd.SetOut(screen)
			cmd.SetErr(&desk)
			err := cmd.Execute()

			if (tt.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if !bytes.Contains(screen.text, []byte(tt.console)) {
				t.Errorf("console does not show %q", tt.console)
			}
			said := strings.ReplaceAll(strings.TrimSpace(strings.ReplaceAll(desk.String(), "[vm] ", "")), "\r\n\r\n", "; ")
			if said != tt.desk {
				t.Errorf("the desk said %q, want %q", said, tt.desk)
			}
			if t.Failed() {
				t.Logf("%s", screen.text)
			}
		})
	}
}
