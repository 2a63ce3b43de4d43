package migrate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// swupdate reads swupdate.cfg, hwrevision, and a sw-description where somebody put one beside them: SWUpdate's own
// configuration does not say where the copies of the system lie.
func (d *draft) swupdate() error {
	file, b, err := d.first("etc/swupdate.cfg", "etc/swupdate/swupdate.cfg", "swupdate.cfg")
	if err != nil {
		return err
	}
	conf, err := libconfig(b)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if b, _ := d.read("etc/hwrevision"); b != nil {
		f := strings.Fields(string(b))
		if len(f) > 0 {
			d.compatible = f[0]
		}
		if len(f) > 1 {
			d.note(Lost, "/etc/hwrevision: revision %s: a bundle fits by its compatible alone. Revisions that need other images need another one (%s-%s)", f[1], f[0], f[1])
		}
	}
	globals, _ := conf["globals"].(map[string]any)
	if err := d.swupdateLoader(globals); err != nil {
		return err
	}
	devices, names, err := d.described()
	if err != nil {
		return err
	}
	if err := d.twoSlots("swupdate.cfg", devices, names); err != nil {
		return err
	}
	purpose := "smimesign"
	for _, key := range slices.Sorted(maps.Keys(globals)) {
		v := fmt.Sprint(globals[key])
		where := "swupdate.cfg globals." + key
		switch key {
		case "public-key-file":
			d.trusts(where, v)
		case "cert-purpose":
			if strings.EqualFold(v, "codeSigning") {
				purpose = "codesign"
			}
		case "no-downgrading":
			d.system = append(d.system, pair{"min-bundle-version", v})
			d.note(Other, "%s=%s: [system] min-bundle-version; besides, what has said good is never gone below", where, v)
		case "max-version", "forced-signer-name":
			d.note(Lost, "%s=%s: NOT CHECKED", where, v)
		case "no-reinstalling":
			d.note(Other, "%s: a bundle that a slot holds already is not written again", where)
		case "aes-key-file", "ca-path":
			d.note(Lost, "%s: bundles are not encrypted, and no server is asked", where)
		case "preupdatecmd", "postupdatecmd", "update-type":
			d.note(Lost, "%s=%s: no program runs while a bundle is installed", where, v)
		case "bootloader":
		default:
			d.note(Lost, "%s: it means nothing here", where)
		}
	}
	d.keyring = append(d.keyring, pair{"check-purpose", purpose})
	for _, key := range slices.Sorted(maps.Keys(conf)) {
		switch key {
		case "globals":
		case "download", "suricatta", "webserver", "gservice":
			d.note(Lost, "swupdate.cfg %s: no server is asked; a program of yours brings bundles to \"bootcount install -\" or \"bootcount stage -\"", key)
		default:
			d.note(Lost, "swupdate.cfg %s: it means nothing here", key)
		}
	}
	if b, _ := d.read("etc/sw-versions"); b != nil {
		d.note(Lost, "/etc/sw-versions: images have no versions of their own: a slot is written whole or not at all")
	}
	d.note(ByHand, ".swu files are not read: bundles are RAUC's (\"lifeboat bundle create\")")
	return nil
}

func (d *draft) swupdateLoader(globals map[string]any) error {
	loader, _ := globals["bootloader"].(string)
	if b, _ := d.read("etc/fw_env.config"); loader == "" && b != nil {
		loader = "uboot"
	}
	switch loader {
	case "uboot":
		d.bootloader = "uboot"
		if err := d.environment(); err != nil {
			return err
		}
		d.loader = append(d.loader, pair{"schema", "swupdate"})
	case "grub":
		d.bootloader = "grub"
		d.note(ByHand, "the boot loader is GRUB: install the grub.cfg of \"lifeboat bootloader grub.cfg\"; [bootloader] device= and files= say where its environment lies (by default on PARTLABEL=esp)")
	default:
		d.bootloader = "raw"
		d.note(Other, "boot loader %q: raw, which chooses the slot in early boot; the boot loader starts one kernel and initramfs", loader)
	}
	return nil
}

// described returns the copies of the system that a sw-description has: the device of the first raw image of each, and the
// value by which the boot loader knows it, as in
//
//	stable = { copy1 = { images: ( { device = "/dev/mmcblk0p2"; } ); bootenv: ( { name = "bootslot"; value = "a"; } ); };
func (d *draft) described() (devices []string, names [2]string, err error) {
	names = [2]string{"A", "B"}
	b, err := d.read("sw-description")
	if err != nil || b == nil {
		return nil, names, err
	}
	conf, err := libconfig(b)
	if err != nil {
		return nil, names, fmt.Errorf("sw-description: %w", err)
	}
	var envs [][]pair
	var visit func(m map[string]any, depth int)
	visit = func(m map[string]any, depth int) {
		images, _ := m["images"].([]any)
		for _, i := range images {
			image, _ := i.(map[string]any)
			dev, _ := image["device"].(string)
			kind, _ := image["type"].(string)
			if dev == "" || kind != "" && kind != "raw" || slices.Contains(devices, dev) {
				continue
			}
			devices, envs = append(devices, dev), append(envs, bootenv(m))
			break
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if sub, ok := m[k].(map[string]any); ok && depth > 0 {
				visit(sub, depth-1)
			}
		}
	}
	visit(conf, 4)
	if len(devices) != 2 {
		d.note(Other, "sw-description: it names %d devices of systems, not two", len(devices))
		return nil, names, nil
	}
	// The slot's variable is the first one that has a word of its own for each copy.
	for _, v := range envs[0] {
		i := slices.IndexFunc(envs[1], func(w pair) bool { return w.key == v.key })
		if i < 0 || envs[1][i].value == v.value || !word(v.value) || !word(envs[1][i].value) {
			continue
		}
		if names = [2]string{v.value, envs[1][i].value}; d.bootloader == "uboot" {
			d.loader = append(d.loader, pair{"slot-variable", v.key})
		}
		return devices, names, nil
	}
	if d.bootloader != "raw" {
		d.note(ByHand, "sw-description: no variable in its bootenv tells the copies apart: the bootnames have to be the values by which the boot loader knows the slots, [bootloader] slot-variable= is where it keeps them")
	}
	return devices, names, nil
}

// bootenv returns the variables that an update sets with a copy, in their order.
func bootenv(copy map[string]any) (vars []pair) {
	list, _ := copy["bootenv"].([]any)
	if list == nil {
		list, _ = copy["uboot"].([]any)
	}
	for _, e := range list {
		v, _ := e.(map[string]any)
		name, _ := v["name"].(string)
		value, _ := v["value"].(string)
		vars = append(vars, pair{name, value})
	}
	return vars
}

// word says whether a value may be a bootname.
func word(s string) bool {
	return s != "" && len(s) <= 31 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == ""
}
