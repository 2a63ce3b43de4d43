package story

import (
	"path"
	"regexp"
	"strings"
	"testing"
	"time"

	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/status"
)

// zoo is what may hang on a device beside a stick: two keyboards, one behind five hubs in a row, what else QEMU has, and
// a stick that is a keyboard too.
func zoo(t *testing.T) []string {
	args := []string{
		"-chardev", "null,id=zoo-null", "-audiodev", "none,id=zoo-none", "-netdev", "user,id=zoo-net,restrict=on",
	}
	for _, d := range []string{
		"usb-hub,port=2",
		"usb-kbd,port=2.1", "usb-mouse,port=2.2", "usb-tablet,port=2.3", "usb-net,port=2.4,netdev=zoo-net",
		"usb-serial,port=2.5,chardev=zoo-null,always-plugged=on", "usb-audio,port=2.6,audiodev=zoo-none", "usb-mtp,port=2.7,rootdir=" + t.TempDir(),
		"usb-ccid,port=2.8",
		"usb-hub,port=3", "usb-hub,port=3.1", "usb-hub,port=3.1.1", "usb-hub,port=3.1.1.1", "usb-hub,port=3.1.1.1.1",
		"usb-kbd,port=3.1.1.1.1.1",
	} {
		args = append(args, "-device", strings.Replace(d, ",", ",bus=xhci.0,", 1))
	}
	return append(args, composite(t, "4")...)
}

// Keyboards, a network card and the like beside the stick are seen by no driver while something from outside is read; the
// stick updates the device, and the system that starts has them all. Row 108 of the bad inputs.
func TestUSBOthers(t *testing.T) {
	t.Parallel()
	d := needDevice(t)
	stick := d.update(t, "2.0", testsystem.Good, testsystem.Options{
		KernelRoot: d.Kernel.Root, Modules: []string{"usbhid", "hid_generic"},
	}, scene.BundleOptions{})

	boot := func(t *testing.T, name string, args []string) (*scene.Device, *status.Report) {
		m := d.Machine(d.disk(t, name), stick)
		m.Args = args
		vm := scene.Start(t, m)
		vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
		boots(t, vm, 1, "B", "2.0", "trial tries=2")
		return vm, vm.Status()
	}
	var plain *status.Report
	t.Run("plain", func(t *testing.T) { _, plain = boot(t, "plain", nil) }) // ends before the next needs the stick
	vm, report := boot(t, "others", zoo(t))
	t.Logf("figure: USB: settled after %.0f ms with a stick, %.0f ms with 16 other devices beside it; hand-over %.0f and %.0f ms",
		phase(plain, "usb-settle"), phase(report, "usb-settle"), phase(plain, "hand-over"), phase(report, "hand-over"))

	// The kernel's log in its order: our lines are in it.
	log := vm.Run("dmesg")
	before, _, found := strings.Cut(log, "lifeboat: starting /sbin/init")
	if !found {
		t.Fatalf("no word of the start in the kernel's log:\n%s", log)
	}
	shut := regexp.MustCompile(`usb (\S+): Device is not authorized for usage`)
	waited := map[string]bool{}
	for _, m := range shut.FindAllStringSubmatch(before, -1) {
		waited[m[1]] = true
	}
	// Five hubs in a row may take longer to find than early boot waits.
	for _, name := range []string{"2-1", "1-2", "1-2.1", "1-2.2", "1-2.3", "1-2.4", "1-2.5", "1-2.6", "1-2.7", "1-2.8", "1-3", "1-4"} {
		if !waited[name] {
			t.Errorf("%s did not have to wait", name)
		}
	}
	if m := regexp.MustCompile(`input: .*USB|cdc_|rndis|ttyUSB|usbhid|hid-generic`).FindString(before); m != "" {
		t.Errorf("the kernel's log of before the start has %q", m)
	}

	// Everything has its interfaces now, and a keyboard works where the system has the driver.
	const devices = "/sys/bus/usb/devices"
	keyboards := map[string]bool{}
	for end := time.Now().Add(scene.Patience); !keyboards["1-3.1.1.1.1.1:1.0"] && time.Now().Before(end); time.Sleep(time.Second) {
		for name := range strings.FieldsSeq(vm.Run("ls", "/sys/bus/usb/drivers/usbhid")) {
			keyboards[name] = true
		}
	}
	if !keyboards["1-2.1:1.0"] || !keyboards["1-3.1.1.1.1.1:1.0"] {
		t.Errorf("the keyboards do not work: %v", keyboards)
	}
	for name := range strings.FieldsSeq(vm.Run("ls", devices)) {
		if strings.HasPrefix(name, "usb") {
			if got := vm.Run("cat", path.Join(devices, name, "authorized_default")); got != "1" {
				t.Errorf("%s: authorized_default is %s", name, got)
			}
		}
		if !strings.Contains(name, ":") {
			if got := vm.Run("cat", path.Join(devices, name, "authorized")); got != "1" {
				t.Errorf("%s: authorized is %s after the start", name, got)
			}
		}
	}
	if got := vm.Run("cat", "/sys/module/usbcore/parameters/authorized_default"); got != "1" {
		t.Errorf("authorized_default of later buses is %s", got)
	}
	if got := vm.Run("cat", "/proc/sys/kernel/modprobe"); got != "/sbin/modprobe" {
		t.Errorf("modprobe is %q after the start", got)
	}
}

func phase(r *status.Report, name string) float64 {
	for _, p := range r.Phases {
		if p.Name == name {
			return p.MS
		}
	}
	return -1
}
