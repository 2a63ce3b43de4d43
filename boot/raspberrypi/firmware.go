package raspberrypi

import "os"

// ReadFirmware reads what the boot loader says of this boot in the device tree, and the kernel's identity of it. proc is
// where /proc is.
func ReadFirmware(proc string) (f Firmware) {
	cell := func(name string) int {
		b, _ := os.ReadFile(proc + "/device-tree/chosen/bootloader/" + name)
		if len(b) != 4 {
			return 0
		}
		return int(b[2])<<8 | int(b[3]) // small numbers, big endian
	}
	id, _ := os.ReadFile(proc + "/sys/kernel/random/boot_id")
	f.Partition, f.Tried = cell("partition"), cell("tryboot") != 0
	f.Boot = string(id[:min(len(id), 8)])
	return f
}
