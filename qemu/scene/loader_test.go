package scene

import (
	"testing"

	"lifeboat/qemu"
	"lifeboat/qemu/testsystem"
)

// Each firmware comes to where a boot loader starts kernel and initramfs out of a boot slot, and these the system.
func TestFirmware(t *testing.T) {
	qemu.NeedKernel(t, "generic")
	o := LoaderConfig("grub")
	s, err := New(t.TempDir(), Options{Config: o})
	if err != nil {
		t.Fatal(err)
	}
	system, err := s.System("1.0.img", testsystem.Options{Version: "1.0", Behaviour: testsystem.Good})
	if err != nil {
		t.Fatal(err)
	}
	boot, err := s.BootImage("boot.img", "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Bundle("1.0.raucb", system, BundleOptions{Version: "1.0", With: map[string]string{"boot": boot}})
	if err != nil {
		t.Fatal(err)
	}
	const grub = `regexp --set=1:disk '^([^,]*)' "$root"
echo GRUB starts from $root
linux ($disk,gpt4)/vmlinuz ` + FirmwareCmdline + ` rauc.slot=A
initrd ($disk,gpt4)/initramfs
boot
`
	image, err := s.LoaderDisk("disk.img", map[string][]byte{"grub/grub.cfg": []byte(grub)}, map[string]string{"A": b}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFAT(image, "esp", "grub/grub.cfg"); err != nil || string(got) != grub {
		t.Errorf("read back: %q, %v", got, err)
	}
	for _, firmware := range []Firmware{SeaBIOS, OVMF, UBoot} {
		t.Run(string(firmware), func(t *testing.T) {
			if firmware != UBoot {
				if err := s.GRUB(image, firmware); err != nil {
					t.Fatal(err)
				}
			}
			m, err := s.FirmwareMachine(firmware, image)
			if err != nil {
				t.Fatal(err)
			}
			vm := Start(t, m)
			if firmware == UBoot {
				vm.Expect(Patience, `U-Boot 2023\.01`)
				vm.Expect(Patience, `(?i)virtio`)
				return
			}
			vm.Expect(Patience, `GRUB starts from `)
			if v := vm.Ready(); v != "1.0" {
				t.Errorf("version %s", v)
			}
		})
	}
}
