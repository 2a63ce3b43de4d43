package powercut

import (
	"os"
	"testing"

	"lifeboat/disk/crash"
)

// treeSlots is a configuration whose slots take archives.
func treeSlots() map[string]string {
	all := map[string]string{"system require-signed-verity": "false"}
	for _, s := range []string{"slot.rootfs.0", "slot.rootfs.1"} {
		all[s+" type"], all[s+" integrity"] = "ext4", "none"
	}
	return all
}

func treeScenarios(t *testing.T, add func(name string, d *Device, start *crash.Image, want Want, run func(w *Watch))) {
	if os.Getuid() != 0 {
		t.Log("scenarios with archives are left out: files get owners only from root")
		return
	}
	k := newKit(t, treeSlots())
	d, disk := one(k)
	k.trees = true
	d.Stick = k.stick(k.bundle("2", 0, Healthy))
	add("an archive", d, disk, Want{Version: "2"}, nil)

	disk = k.settled(d, disk, "2")
	d = k.device(disk, k.stick(k.bundle("3", 0, Healthy)))
	add("an archive over the image, a tree runs", d, disk, Want{Version: "3"}, nil)

	d = k.device(disk, k.stick(k.bundle("4", 0, Silent)))
	add("fallback from an archive to a tree", d, disk, Want{Version: "2"}, nil)
}
