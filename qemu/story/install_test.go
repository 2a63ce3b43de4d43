package story

import (
	"os"
	"testing"

	"lifeboat/disk/crash"
	"lifeboat/qemu/scene"
	"lifeboat/qemu/testsystem"
	"lifeboat/qemu/writelog"
)

// A stick updates a device: whoever made the bundle, whatever it is compressed with, whatever file system is in it.
func TestInstall(t *testing.T) {
	for _, tt := range []struct {
		name   string
		rsa    int
		system testsystem.Options
		bundle scene.BundleOptions
		auth   string
	}{
		{"rauc gzip EC", 0, testsystem.Options{}, scene.BundleOptions{Rauc: true, Compression: "gzip"}, "at install only"},
		{"rauc xz EC", 0, testsystem.Options{}, scene.BundleOptions{Rauc: true, Compression: "xz"}, "at install only"},
		{"rauc zstd RSA", 2048, testsystem.Options{}, scene.BundleOptions{Rauc: true}, "at install only"},
		{"ours zstd", 0, testsystem.Options{}, scene.BundleOptions{}, "every boot"},
		{"ours lz4 RSA, ext4", 2048, testsystem.Options{Format: "ext4", Size: 14 << 20}, scene.BundleOptions{Compression: "lz4"}, "every boot"},
		{"ours zstd, erofs", 0, testsystem.Options{Format: "erofs"}, scene.BundleOptions{}, "every boot"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := needDevice(t)
			if tt.rsa != 0 {
				d = needRSA(t)
			}
			stick := d.update(t, "2.0", testsystem.Good, tt.system, tt.bundle)
			m := d.Machine(d.disk(t, "install"), stick)
			log := stick + ".log"
			m.Sticks[0].Log = log
			vm := scene.Start(t, m)
			vm.Expect(scene.Patience, `lifeboat: found update\.raucb version 2\.0 on sda\n`)
			vm.Expect(scene.Patience, `lifeboat: installing 2\.0 to rootfs\.1 \(B\)\n`)
			vm.Expect(scene.Patience, `lifeboat: installed 2\.0 to rootfs\.1 \(B\)\n`)
			vm.Expect(scene.Patience, `lifeboat: boot 1 slot rootfs\.1 \(B\) version 2\.0 trial tries=2\n`)
			vm.Expect(scene.Patience, `lifeboat: starting /sbin/init\n`)
			if v := vm.Ready(); v != "2.0" {
				t.Fatalf("version %s", v)
			}
			r := vm.Status()
			b := slot(r, "B")
			if r.Booted.Slot != "rootfs.1" || r.Booted.Authenticity != tt.auth || !b.Good || b.Tries != 8 || len(r.Installed) != 1 {
				t.Errorf("status %+v", r)
			}
			peak := r.InitRSS
			for _, w := range r.Workers {
				peak = max(peak, r.InitRSS+w.MaxRSSKiB)
			}
			t.Logf("peak of PID 1 and worker: %d KiB", peak)
			if peak > 24<<10 {
				t.Errorf("PID 1 and worker together took %d KiB, more than 24 MiB", peak)
			}
			// A stick that stays in does not loop.
			vm.Reset()
			vm.Expect(scene.Patience, `lifeboat: update\.raucb: nothing to do: already installed in rootfs\.1\n`)
			vm.Expect(scene.Patience, `lifeboat: boot 2 slot rootfs\.1 \(B\) version 2\.0 confirmed\n`)
			if v := vm.Ready(); v != "2.0" {
				t.Fatalf("version %s", v)
			}
			vm.Cut()
			unwritten(t, stick, log)
		})
	}
}

// unwritten checks that nothing was written to a stick.
func unwritten(t *testing.T, stick, log string) {
	t.Helper()
	info, err := os.Stat(stick)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	logInfo, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	l, err := writelog.Read(f, logInfo.Size(), info.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range l.Ops {
		if op.Kind != crash.Flush {
			t.Errorf("the stick was written to: %d bytes at %d", op.Len, op.Off)
		}
	}
}
