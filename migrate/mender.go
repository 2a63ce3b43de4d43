package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// mender reads mender.conf, artifact_info and the device type.
func (d *draft) mender() error {
	conf := map[string]any{}
	found := false
	for _, file := range []string{"var/lib/mender/mender.conf", "data/mender/mender.conf", "etc/mender/mender.conf"} { // the last one counts
		b, err := d.read(file)
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		found = true
		if err := json.Unmarshal(b, &conf); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	if !found {
		return errors.New("there is no etc/mender/mender.conf below " + d.dir)
	}
	value := func(key string) string { v, _ := conf[key].(string); return v }
	for _, file := range []string{value("DeviceTypeFile"), "var/lib/mender/device_type", "data/mender/device_type"} {
		if d.compatible == "" && file != "" {
			d.compatible = d.assigned(file, "device_type")
		}
	}
	if name := d.assigned("etc/mender/artifact_info", "artifact_name"); name != "" {
		d.note(ByHand, "/etc/mender/artifact_info: %s runs now; a bundle's version is in its manifest ([update] version=), the first one should be newer", name)
	}
	if g := d.assigned("etc/mender/artifact_info", "artifact_group"); g != "" {
		d.note(Lost, "/etc/mender/artifact_info: artifact_group=%s: a bundle fits by its compatible alone", g)
	}

	var devices []string
	for _, key := range []string{"RootfsPartA", "RootfsPartB"} {
		if v := value(key); v != "" {
			devices = append(devices, v)
		}
	}
	names := [2]string{"A", "B"}
	if b, _ := d.read("etc/fw_env.config"); b != nil {
		d.bootloader = "uboot"
		if err := d.environment(); err != nil {
			return err
		}
		d.loader = append(d.loader, pair{"schema", "mender"})
		if d.options.Slots != nil {
			devices = d.options.Slots
		}
		for i, dev := range devices[:min(len(devices), 2)] {
			if names[i] = dev[len(strings.TrimRight(dev, "0123456789")):]; names[i] == "" {
				names[i] = string(rune('A' + i))
				d.note(ByHand, "mender.conf %s: what U-Boot knows this slot by is its partition's number: it has to be the bootname", dev)
			}
		}
		d.note(Other, "U-Boot keeps its scripts: mender_boot_part, upgrade_available and bootcount are written as they expect; a slot has one try (bootlimit=1)")
	} else {
		d.bootloader = "grub"
		d.note(Other, "there is no /etc/fw_env.config: the boot loader is GRUB. Mender's scripts and their two environments are not used: install the grub.cfg of \"lifeboat bootloader grub.cfg\"")
		d.note(ByHand, "[bootloader] device= is the ESP (by default PARTLABEL=esp)")
	}
	if err := d.twoSlots("mender.conf", devices, names); err != nil {
		return err
	}
	d.note(ByHand, "kernel and initramfs come from the system's own /boot with Mender: here they go into slots with the systems as parents (docs/bootloaders.md)")

	for _, key := range slices.Sorted(maps.Keys(conf)) {
		switch key {
		case "RootfsPartA", "RootfsPartB", "DeviceTypeFile":
		case "ArtifactVerifyKey", "ArtifactVerifyKeys":
			keys := []any{conf[key]}
			if list, ok := conf[key].([]any); ok {
				keys = list
			}
			for _, k := range keys {
				if s, ok := k.(string); ok {
					d.trusts("mender.conf "+key, s)
				}
			}
		case "StateScriptTimeoutSeconds", "StateScriptRetryTimeoutSeconds", "StateScriptRetryIntervalSeconds":
			d.note(Lost, "mender.conf %s: there are no state scripts; \"bootcount good\" is said by lifeboat-good.service when the system is well", key)
		case "ModuleTimeoutSeconds":
			d.note(Lost, "mender.conf %s: there are no update modules: a bundle has images of whole slots", key)
		default:
			// Some of these are secrets: only their names are said.
			d.note(Lost, "mender.conf %s: no server is asked; a program of yours brings bundles to \"bootcount install -\" or \"bootcount stage -\"", key)
		}
	}
	return nil
}

// assigned returns the value of a line "key=value".
func (d *draft) assigned(file, key string) string {
	b, _ := d.read(file)
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, "="); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
