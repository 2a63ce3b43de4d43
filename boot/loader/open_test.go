package loader_test

import (
	"testing"

	"lifeboat/boot/loader"
	"lifeboat/config"
	"lifeboat/disk"
)

// A place that is not there is an error, whatever loader it is of: PID 1 goes on.
func TestOpenNothing(t *testing.T) {
	for _, name := range []string{"grub", "uboot", "sdboot", "barebox", "raspberrypi", "custom"} {
		for _, more := range []string{"", "offsets=0 4096\n"} {
			c, err := config.Parse([]byte("[system]\ncompatible=x\nbootloader=" + name + "\n[bootloader]\ndevice=/dev/nowhere\n" + more +
				"[slot.rootfs.0]\ndevice=/dev/nowhere1\nbootname=A\n[slot.rootfs.1]\ndevice=/dev/nowhere2\nbootname=B\n"))
			if err != nil {
				t.Fatal(err)
			}
			if l, err := loader.Open(c, loader.Place{Block: disk.Block{Name: "nowhere", Disk: "nowhere"}}); err == nil {
				t.Errorf("%s %s: opened as %v", name, more, l)
			}
		}
	}
}
