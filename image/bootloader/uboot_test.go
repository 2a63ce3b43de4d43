package bootloader

import (
	"strings"
	"testing"

	"lifeboat/config"
)

const conf = `[system]
compatible=x
bootloader=uboot
[bootloader]
MORE
[keyring]
path=k
[slot.rootfs.0]
device=PARTLABEL=rootfs.0
bootname=A
[slot.rootfs.1]
device=PARTLABEL=rootfs.1
bootname=B
[slot.boot.0]
device=BOOT0
parent=rootfs.0
[slot.boot.1]
device=/dev/vda12
parent=rootfs.1
`

func parse(t *testing.T, more, boot0 string) *config.Config {
	t.Helper()
	c, err := config.Parse([]byte(strings.NewReplacer("MORE", more, "BOOT0", boot0).Replace(conf)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What the script does is tested with the real U-Boot (qemu/loaders).
func TestUBootScript(t *testing.T) {
	text, err := UBoot(parse(t, "", "PARTLABEL=boot.0"), UBootOptions{Append: "console=ttyS0", Keep: []string{"ethaddr"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"part number ${devtype} ${devnum} boot.0 lb_part\n", "setenv lb_part c\n", `setenv bootargs "console=ttyS0 rauc.slot=B"`,
		" BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT ethaddr;", "for lb_s in ${lb_order} A B; do", "zboot ", "\nreset\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the script lacks %q:\n%s", want, text)
		}
	}
	if text, err = UBoot(parse(t, "", "PARTLABEL=boot.0"), UBootOptions{FIT: true}); err != nil || strings.Contains(text, "vmlinuz") || !strings.Contains(text, "\nbootm ") {
		t.Errorf("with FIT images: %v\n%s", err, text)
	}
	text, err = UBoot(parse(t, "offsets=0x100000 0x200000\ndevice=/dev/mmcblk0", "PARTLABEL=boot.0"), UBootOptions{SaveEnv: true, Arch: "arm64"})
	if err != nil || !strings.Contains(text, "\nsaveenv\n") || !strings.Contains(text, "booti ") || strings.Contains(text, "fatwrite") {
		t.Errorf("with saveenv: %v\n%s", err, text)
	}
}

func TestUBootRefuses(t *testing.T) {
	for _, test := range []struct {
		more, boot0, want string
		o                 UBootOptions
	}{
		{"schema=mender", "PARTLABEL=boot.0", "mender", UBootOptions{}},
		{"files=/uboot.env", "PARTLABEL=boot.0", "name two", UBootOptions{}},
		{"files=/uboot.env /uboot-redund.env", "PARTLABEL=boot.0", "folder", UBootOptions{}},
		{"files=/a;b /c", "PARTLABEL=boot.0", "/a;b", UBootOptions{}},
		{"offsets=0 0x4000", "PARTLABEL=boot.0", "saveenv", UBootOptions{}},
		{"", "PARTLABEL=12", "label", UBootOptions{}},
		{"", "/dev/vda", "partition", UBootOptions{}},
		{"", "PARTLABEL=boot.0", "mips", UBootOptions{Arch: "mips"}},
		{"", "PARTLABEL=boot.0", "arguments", UBootOptions{Append: "a';reset"}},
		{"", "PARTLABEL=boot.0", "x y", UBootOptions{Keep: []string{"x y"}}},
	} {
		if _, err := UBoot(parse(t, test.more, test.boot0), test.o); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %s %v: %v", test.more, test.boot0, test.o, err)
		}
	}
}
