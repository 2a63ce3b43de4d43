package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/config"
)

const grouped = `[system]
compatible=x
bootloader=raw
[slot.rootfs.0]
device=PARTLABEL=a
bootname=A
[slot.rootfs.1]
device=PARTLABEL=b
bootname=B
[slot.appfs.0]
device=PARTLABEL=c
parent=rootfs.0
[slot.appfs.1]
device=PARTLABEL=d
parent=rootfs.1
[slot.extra.0]
device=PARTLABEL=e
`

// at is a handler that RAUC runs: its environment, and files below its root.
func at(t *testing.T, env, files map[string]string) handler {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return handler{root, func(name string) string { return env[name] }}
}

func TestWrittenSlot(t *testing.T) {
	c, err := config.Parse([]byte(grouped))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{"RAUC_SLOT_NAME_1": "rootfs.0", "RAUC_SLOT_NAME_2": "rootfs.1", "RAUC_SLOT_NAME_3": "appfs.1", "RAUC_SLOT_NAME_4": "extra.0", "RAUC_SLOT_NAME_5": "A"}
	const conf = "[system]\ncompatible=x\n[slot.rootfs.0]\nresize=true\n[slot.appfs.1]\nresize = 1\n[slot.rootfs.1]\nresize=false\n"
	for targets, want := range map[string]string{
		"1": "rootfs.0", "2": "rootfs.1", "3": "rootfs.1", "2 3": "rootfs.1", "4 2": "rootfs.1", "": "RAUC_TARGET_SLOTS", "4": "RAUC_TARGET_SLOTS", "5": "RAUC_TARGET_SLOTS",
		"9": "RAUC_TARGET_SLOTS", "1 3": "do not go together",
	} {
		env := map[string]string{"RAUC_TARGET_SLOTS": targets}
		for k, v := range names {
			env[k] = v
		}
		slot, err := at(t, env, nil).written(c)
		if err != nil && !strings.Contains(err.Error(), want) || err == nil && slot != want {
			t.Errorf("%q: %s, %v, not %s", targets, slot, err, want)
		}
		// RAUC's resize where it would touch what is sealed.
		env["RAUC_SYSTEM_CONFIG"] = "/etc/rauc/system.conf"
		slot, resize := at(t, env, map[string]string{"etc/rauc/system.conf": conf}).written(c)
		if err == nil && (resize == nil || !strings.Contains(resize.Error(), "resize=true")) {
			t.Errorf("%q: %s with resize=true", targets, slot)
		}
		slot, resize = at(t, env, map[string]string{"etc/rauc/system.conf": strings.ReplaceAll(conf, "=true", "=false")}).written(c)
		if err == nil && want == "rootfs.0" && (resize != nil || slot != want) {
			t.Errorf("%q: %s, %v without resize=true", targets, slot, resize)
		}
	}
}

func TestMountedBundle(t *testing.T) {
	const mounts = "25 1 254:0 / / rw - ext4 /dev/root rw\n66 25 252:3 / /mnt/rauc/bundle ro,nosuid - squashfs /dev/dm-3 ro\n67 25 7:1 / /mnt/plain ro - squashfs /dev/loop1 ro\n"
	files := map[string]string{
		"proc/self/mountinfo": mounts,
		"sys/dev/block/252:3/slaves/dm-2/slaves/loop0/loop/backing_file": "/data/update.raucb\n",
		"sys/dev/block/7:1/loop/backing_file":                            "/data/plain.raucb\n",
	}
	for env, want := range map[string]string{
		"RAUC_BUNDLE_MOUNT_POINT=/mnt/rauc/bundle": "/data/update.raucb", "RAUC_UPDATE_SOURCE=/mnt/rauc/bundle/": "/data/update.raucb",
		"RAUC_UPDATE_SOURCE=/mnt/plain": "/data/plain.raucb", "RAUC_UPDATE_SOURCE=/": "", "RAUC_UPDATE_SOURCE=/mnt": "", "X=": "",
	} {
		name, value, _ := strings.Cut(env, "=")
		file, err := at(t, map[string]string{name: value}, files).bundle()
		if file != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", env, file, err)
		}
	}
}
