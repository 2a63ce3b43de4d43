package usb

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// interfaces makes the descriptors of a device with one configuration: class, subclass and protocol of each interface, and
// an endpoint behind it.
func interfaces(triples ...[3]byte) []byte {
	b := make([]byte, 18)
	b[0], b[1], b[17] = 18, 1, 1
	return append(b, configuration(triples...)...)
}

func configuration(triples ...[3]byte) []byte {
	c := []byte{9, 2, 0, 0, byte(len(triples)), 1, 0, 0x80, 50}
	for i, t := range triples {
		c = append(c, 9, 4, byte(i), 0, 1, t[0], t[1], t[2], 0, 7, 5, 0x81, 2, 0, 2, 0)
	}
	binary.LittleEndian.PutUint16(c[2:], uint16(len(c)))
	return c
}

var (
	bot      = [3]byte{8, 6, 0x50}
	uas      = [3]byte{8, 6, 0x62}
	hubOne   = [3]byte{9, 0, 0}
	keyboard = [3]byte{3, 1, 1}
)

func TestClassify(t *testing.T) {
	cut := func(b []byte, n int) []byte { return b[:len(b)-n] }
	set := func(b []byte, at int, v byte) []byte { b[at] = v; return b }
	for name, c := range map[string]struct {
		b    []byte
		want kind
	}{
		"bulk-only":                      {interfaces(bot), stick},
		"uas with bulk-only beside it":   {interfaces(bot, uas), stick},
		"hub":                            {interfaces(hubOne), hub},
		"hub with two translators":       {interfaces(hubOne, [3]byte{9, 0, 2}), hub},
		"keyboard":                       {interfaces(keyboard), other},
		"stick with a keyboard":          {interfaces(bot, keyboard), other},
		"keyboard with a stick":          {interfaces(keyboard, bot), other},
		"stick with a serial port":       {interfaces(bot, [3]byte{2, 2, 1}), other},
		"hub with a stick":               {interfaces(hubOne, bot), other},
		"keyboard in the second config":  {append(interfaces(bot), configuration(keyboard)...), other},
		"stick in both configs":          {append(interfaces(bot), configuration(bot)...), stick},
		"floppy":                         {interfaces([3]byte{8, 4, 1}), other},
		"bulk-only of the vendor":        {interfaces([3]byte{0xff, 6, 0x50}), other},
		"unknown protocol":               {interfaces([3]byte{8, 6, 0}), other},
		"no interface":                   {interfaces(), other},
		"no configuration":               {interfaces(bot)[:18], other},
		"nothing":                        {nil, other},
		"cut in an endpoint":             {cut(interfaces(bot), 3), other},
		"descriptor of length 0":         {set(interfaces(bot), 18+9, 0), other},
		"descriptor beyond its config":   {set(interfaces(bot), 18+9+9, 200), other},
		"config beyond the end":          {set(interfaces(bot), 18+2, 250), other},
		"config shorter than its header": {set(interfaces(bot), 18+2, 3), other},
		"short interface":                {set(interfaces(bot), 18+9, 8), other},
		"interface outside any config":   {append(interfaces(bot), 9, 4, 0, 0, 0, 3, 1, 1, 0), other},
	} {
		if got := classify(c.b); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// What is let in has no interface but those of hubs and sticks, wherever one looks.
func FuzzDescriptors(f *testing.F) {
	for _, b := range [][]byte{interfaces(bot), interfaces(bot, uas), interfaces(hubOne), interfaces(bot, keyboard), append(interfaces(bot), configuration(bot)...)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := classify(b)
		if got == other {
			return
		}
		count := 0
		for at := 18; at < len(b); at += int(b[at]) { // the kernel goes from length to length too
			if b[at] < 2 {
				t.Fatalf("descriptor of length %d", b[at])
			}
			if b[at+1] != 4 {
				continue
			}
			count++
			if class := b[at+5]; got == hub && class != 9 || got == stick && (class != 8 || b[at+6] != 6 || b[at+7] != 0x50 && b[at+7] != 0x62) {
				t.Fatalf("kind %d with an interface % x", got, b[at+5:at+8])
			}
		}
		if count == 0 {
			t.Fatal("let in without an interface")
		}
	})
}

// waits plugs in a device that is not authorised.
func (m machine) waits(path, name, class string, descriptors []byte) {
	m.device(path, name, class)
	m.file(path+"/bConfigurationValue", "\n")
	m.file(path+"/authorized", "0\n")
	m.file(path+"/devnum", name+"\n")
	m.file(path+"/descriptors", string(descriptors))
}

func (m machine) authorized(t *testing.T) []string {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(m.sysfs(), devices, "*/authorized"))
	var in []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil {
			t.Error(err)
		} else if strings.TrimSpace(string(b)) == "1" {
			in = append(in, filepath.Base(filepath.Dir(f)))
		}
	}
	return in
}

// Of all that waits only hubs and sticks are let in, and of these no more than there may be; nothing else is waited for.
func TestSettleAdmits(t *testing.T) {
	m := newMachine(t)
	m.device(bus, "usb2", "09")
	m.file(bus+"/power/runtime_status", "suspended\n")
	m.waits(bus+"/2-1", "2-1", "09", interfaces(hubOne))
	for i, d := range [][]byte{interfaces(keyboard), interfaces(bot, keyboard), nil} {
		name := "2-1." + string(rune('1'+i))
		m.waits(bus+"/2-1/"+name, name, "00", d)
	}
	for i := range 6 {
		name := "2-2." + string(rune('1'+i))
		m.waits(bus+"/2-2/"+name, name, "00", interfaces(bot))
	}
	go func() { // as the kernel does
		for range 100 {
			time.Sleep(10 * time.Millisecond)
			for _, name := range m.authorized(t) {
				m.replace(filepath.Join(devices, name, "bConfigurationValue"), "1\n")
				if name == "2-1" {
					m.replace(filepath.Join(devices, name, "power/runtime_status"), "suspended\n")
				}
			}
		}
	}()
	took := settle(m, 5*time.Second)
	if took > plugged {
		t.Errorf("took %v: it waited for a device that was not let in", took)
	}
	want := []string{"2-1", "2-2.1", "2-2.2", "2-2.3", "2-2.4"}
	if diff := cmp.Diff(want, m.authorized(t)); diff != "" {
		t.Errorf("let in (-want +got):\n%s", diff)
	}
	m.remove("sys/bus/usb/devices/2-2.2") // one is pulled out: there is room for the next
	settle(m, 5*time.Second)
	want = []string{"2-1", "2-2.1", "2-2.3", "2-2.4", "2-2.5"}
	if diff := cmp.Diff(want, m.authorized(t)); diff != "" {
		t.Errorf("let in after one was pulled out (-want +got):\n%s", diff)
	}
}

// replace changes an attribute in one step.
func (m machine) replace(path, text string) {
	file, err := filepath.EvalSymlinks(filepath.Join(m.sysfs(), filepath.Dir(path)))
	if err != nil {
		return
	}
	temp := filepath.Join(file, "new")
	if os.WriteFile(temp, []byte(text), 0o644) == nil {
		os.Rename(temp, filepath.Join(file, filepath.Base(path)))
	}
}

// Shut closes what is there and what will be; Open gives back what was, or what the command line asks for.
func TestGuard(t *testing.T) {
	for _, c := range []struct {
		before, wanted string
		after          string
		all            bool
	}{
		{"-1", "", "1", true},
		{"1", "", "1", true},
		{"", "", "1", true},
		{"0", "", "0", false},
		{"2", "", "2", false},
		{"1", "0", "0", false},
		{"", "2", "2", false},
		{"0", "1", "1", true},
		{"1", "nonsense", "1", true},
	} {
		m := newMachine(t)
		m.device(bus, "usb2", "09")
		m.file(bus+"/authorized_default", "1\n")
		m.waits(bus+"/2-1", "2-1", "00", interfaces(keyboard))
		m.device(bus+"/2-2", "2-2", "09") // a hub that is in
		m.waits(bus+"/2-2/2-2.4", "2-2.4", "00", interfaces(keyboard))
		if c.before != "" {
			m.file("sys/"+parameters+"/authorized_default", c.before+"\n")
		}
		get := func() []string {
			var all []string
			for _, f := range []string{"bus/usb/devices/usb2", parameters} {
				b, _ := os.ReadFile(filepath.Join(m.sysfs(), f, "authorized_default"))
				all = append(all, strings.TrimSpace(string(b)))
			}
			return all
		}
		g := Shut(m.sysfs(), c.wanted)
		if got := get(); got[0] != "0" || c.before != "" && got[1] != "0" {
			t.Errorf("%+v: shut %q", c, got)
		}
		m.file("sys/"+parameters+"/authorized_default", "0\n") // the module's, loaded since
		g.Open()
		if got := get(); got[0] != c.after || got[1] != c.after {
			t.Errorf("%+v: open %q", c, got)
		}
		if got := slices.Equal(m.authorized(t), []string{"2-1", "2-2.4"}); got != c.all {
			t.Errorf("%+v: the devices that waited are in: %v", c, m.authorized(t))
		}
	}
}
