package migrate

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// group is a section of a GLib key file.
type group struct {
	name string
	keys []pair
}

// keyFile reads a key file as GLib does: a section that stands twice is one, and of a key that stands twice the last
// counts. ([config.Parse] takes neither.)
func keyFile(b []byte) ([]group, error) {
	var groups []group
	at := -1
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if name, ok := strings.CutPrefix(line, "["); ok {
			if name, ok = strings.CutSuffix(name, "]"); !ok {
				return nil, fmt.Errorf("line %d: %q is not a section", n, line)
			}
			if at = slices.IndexFunc(groups, func(g group) bool { return g.name == name }); at < 0 {
				at, groups = len(groups), append(groups, group{name: name})
			}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || at < 0 {
			return nil, fmt.Errorf("line %d: %q is not key=value in a section", n, line)
		}
		p := pair{strings.TrimSpace(key), strings.TrimSpace(value)}
		keys := &groups[at].keys
		if i := slices.IndexFunc(*keys, func(o pair) bool { return o.key == p.key }); i >= 0 {
			(*keys)[i] = p
		} else {
			*keys = append(*keys, p)
		}
	}
	return groups, nil
}

func yes(v string) bool { return v == "true" || v == "1" }

// rauc reads RAUC's system.conf, from the first of the folders that RAUC looks into.
func (d *draft) rauc() error {
	file, b, err := d.first("etc/rauc/system.conf", "run/rauc/system.conf", "usr/lib/rauc/system.conf", "system.conf")
	if err != nil {
		return err
	}
	groups, err := keyFile(b)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r := &raucConf{draft: d, folder: "/" + path.Dir(file), purpose: "smimesign", grubenv: "/boot/grub/grubenv", attempts: "3", first: "3"}
	for _, g := range groups {
		name, isSlot := strings.CutPrefix(g.name, "slot.")
		if isSlot {
			r.slot(name, g.keys)
			continue
		}
		for _, p := range g.keys {
			if !r.key(g.name, p) {
				d.note(Lost, "[%s] %s: RAUC's reference does not have it", g.name, p.key)
			}
		}
	}
	r.oneClass()
	return r.finish()
}

// raucConf is RAUC's configuration while it is read.
type raucConf struct {
	*draft
	folder          string // of system.conf: relative paths start there
	purpose         string
	grubenv         string
	attempts, first string // tries of a slot that said good, and of one just installed
	formats         string
	ring            string
	backend         string
}

func (r *raucConf) key(section string, p pair) bool {
	where := "[" + section + "] " + p.key
	switch section {
	case "system":
		return r.systemKey(where, p)
	case "keyring":
		return r.keyringKey(where, p)
	case "handlers":
		if p.key == "bootloader-custom-backend" {
			r.backend = p.value
			return true
		}
		r.note(Lost, "%s=%s: no program runs while a bundle is installed; RAUC may go on installing, with \"bootcount seal\" as its post-install handler (docs/migrate.md)", where, p.value)
	case "autoinstall":
		r.note(Other, "%s=%s: \"bootcount stage\" leaves a bundle for the next boot", where, p.value)
	case "encryption":
		r.note(Lost, "%s: crypt bundles are not read", where)
	case "streaming", "polling", "casync":
		r.note(Lost, "%s: bundles come on sticks, or are brought by a program of yours to \"bootcount install -\" or \"bootcount stage -\"", where)
	default:
		switch {
		case strings.HasPrefix(section, "log."):
			r.note(Other, "%s: \"bootcount history\" says what happened", where)
		case strings.HasPrefix(section, "artifacts."):
			r.note(Lost, "%s: there are no artifacts; what belongs to the system goes into a slot with a parent (docs/groups.md)", where)
		default:
			return false
		}
	}
	return true
}

func (r *raucConf) systemKey(where string, p pair) bool {
	switch p.key {
	case "compatible":
		r.compatible = p.value
	case "bootloader":
		r.bootloader = p.value
	case "min-bundle-version":
		r.system = append(r.system, p)
	case "bundle-formats":
		r.formats = p.value
	case "grubenv":
		r.grubenv = p.value
	case "boot-attempts":
		r.attempts = p.value
	case "boot-attempts-primary":
		r.first = p.value
	case "prevent-late-fallback":
		if yes(p.value) {
			r.fallback = append(r.fallback, pair{"policy", "secure"})
			r.note(Other, "%s: [fallback] policy=secure", where)
		}
	case "activate-installed":
		if !yes(p.value) {
			r.note(Lost, "%s=%s: what is installed is tried at the next boot", where, p.value)
		}
	case "perform-pre-check":
		if yes(p.value) {
			r.note(Other, "%s: what is written is always read back, and a bundle of a stick is read whole before it is used", where)
		}
	case "variant-name", "variant-file", "variant-dtb":
		r.note(Lost, "%s=%s: images have no variants here. A bundle that has some must be made for one: give each variant a compatible of its own", where, p.value)
	case "barebox-statename", "barebox-dtbpath":
		r.note(ByHand, "%s=%s: [bootloader] device=, offsets= and size= say where the buckets of that state node lie (docs/bootloaders.md)", where, p.value)
	case "efi-use-bootnext":
		if !yes(p.value) {
			r.note(Other, "%s=%s: a slot on trial is always started by BootNext", where, p.value)
		}
	case "statusfile", "data-directory":
		r.note(Other, "%s=%s: what was installed stands in the state partition", where, p.value)
	case "mountprefix", "max-bundle-download-size", "max-bundle-signature-size":
		r.note(Lost, "%s=%s: nothing is mounted or downloaded; a signature has at most 64 KiB", where, p.value)
	default:
		return false
	}
	return true
}

func (r *raucConf) keyringKey(where string, p pair) bool {
	switch p.key {
	case "path":
		r.ring = p.value
		if !strings.HasPrefix(r.ring, "/") {
			r.ring = path.Join(r.folder, r.ring)
		}
	case "directory":
		r.note(ByHand, "%s=%s: a keyring is one file: cat its certificates into it", where, p.value)
	case "check-purpose":
		r.purpose = p.value
	case "check-crl":
		r.keyring = append(r.keyring, p)
	case "allowed-signer-cns":
		r.note(Lost, "%s=%s: NOT CHECKED: every signer that the keyring admits installs. Put only their issuer into it", where, p.value)
	case "use-bundle-signing-time":
		if yes(p.value) {
			r.note(Other, "%s: time is that of the newest signed date, which only rises (docs/security.md)", where)
		}
	case "allow-partial-chain":
		if yes(p.value) {
			r.note(Lost, "%s: a chain ends at an anchor; \"lifeboat keys keyring create\" makes an anchor of any certificate", where)
		}
	default:
		return false
	}
	return true
}

func (r *raucConf) slot(name string, keys []pair) {
	s := slot{name: name}
	booted := slices.ContainsFunc(keys, func(p pair) bool { return p.key == "bootname" })
	loader := slices.ContainsFunc(keys, func(p pair) bool { return p.key == "type" && strings.HasPrefix(p.value, "boot-") })
	for _, p := range keys {
		where := "[slot." + name + "] " + p.key
		switch p.key {
		case "device":
			if node, ok := strings.CutPrefix(p.value, "/dev/"); loader && (!ok || strings.Contains(node, "/")) {
				r.note(ByHand, "%s=%s: the boot loader is updated on a disk that early boot knows by its name, /dev/NAME: write it in", where, p.value)
				return
			}
			s.keys = append(s.keys, pair{"device", r.device(where, p.value, name)})
		case "type":
			if booted && p.value != "raw" && p.value != "ext4" {
				r.note(Other, "%s=%s: a slot that is booted is raw: its image is authenticated block by block", where, p.value)
				p.value = "raw"
			}
			s.keys = append(s.keys, p)
		case "bootname", "parent", "description":
			s.keys = append(s.keys, p)
		case "readonly":
			if yes(p.value) {
				s.keys = append(s.keys, p)
			}
		case "resize":
			if yes(p.value) {
				r.note(ByHand, "%s=true: must be off where RAUC goes on installing: the hash tree and the seal lie behind the image", where)
			}
		case "install-same", "force-install-same", "ignore-checksum":
			r.note(Other, "%s: a bundle that a slot holds already is not written again", where)
		case "allow-mounted":
			r.note(Lost, "%s: what is mounted is not written", where)
		case "efi-loader", "efi-cmdline":
			r.note(ByHand, "%s=%s: what starts this slot is told in docs/bootloaders.md", where, p.value)
		case "extra-mkfs-opts", "extra-mount-opts":
			r.note(Lost, "%s: no file system is made or mounted at install: an image is one of a file system", where)
		case "region-start", "region-size", "size-limit":
			s.keys = append(s.keys, p)
		default:
			r.note(Lost, "%s: RAUC's reference does not have it", where)
		}
	}
	switch kind := s.get("type"); kind {
	case "", "raw", "ext4", "vfat", "boot-emmc", "boot-mbr-switch", "boot-gpt-switch", "boot-raw-fallback":
	default:
		r.note(Lost, "[slot.%s] type=%s: only block devices are written", name, kind)
	}
	r.slots = append(r.slots, s)
}

// oneClass leaves the bootnames to the class that has the most: a rescue system that the boot loader starts is none of ours.
func (r *raucConf) oneClass() {
	booted := map[string]int{}
	most := ""
	for _, s := range r.slots {
		class, _, _ := strings.Cut(s.name, ".")
		if s.get("bootname") != "" {
			if booted[class]++; booted[class] > booted[most] {
				most = class
			}
		}
	}
	for i, s := range r.slots {
		if class, _, _ := strings.Cut(s.name, "."); s.get("bootname") != "" && class != most {
			r.note(Lost, "[slot.%s] bootname=%s: slots of one class are booted, those of %s; the boot loader may go on starting it by itself", s.name, s.get("bootname"), most)
			r.slots[i].keys = slices.DeleteFunc(s.keys, func(p pair) bool { return p.key == "bootname" })
		}
	}
}

// finish says what several keys say together.
func (r *raucConf) finish() error {
	switch r.bootloader {
	case "grub":
		r.files("[system] grubenv", r.grubenv)
		r.note(Other, "[system] bootloader=grub: ORDER, X_OK and X_TRY stay; install the grub.cfg of \"lifeboat bootloader grub.cfg\", which counts more than one try")
	case "uboot":
		if err := r.environment(); err != nil {
			return err
		}
	case "efi":
		r.note(ByHand, "[system] bootloader=efi: [bootloader] device= is the ESP (by default PARTLABEL=esp)")
	case "barebox":
	case "custom":
		if r.backend == "" {
			return errors.New("[system] bootloader=custom without [handlers] bootloader-custom-backend")
		}
		if !strings.HasPrefix(r.backend, "/") {
			r.backend = path.Join(r.folder, r.backend)
		}
		r.loader = append(r.loader, pair{"program", r.backend})
		r.note(Other, "[handlers] bootloader-custom-backend: it runs in the running system only, early boot never starts it")
	case "noop":
		r.bootloader = "raw"
		r.note(Other, "[system] bootloader=noop: raw, which chooses the slot in early boot")
	case "":
		return errors.New("[system] bootloader is missing")
	default:
		return fmt.Errorf("[system] bootloader=%s is not known", r.bootloader)
	}
	if r.bootloader == "uboot" || r.bootloader == "barebox" {
		r.tries("boot-attempts-primary", r.first, 9, func(v string) { r.system = append(r.system, pair{"boot-attempts", v}) })
		r.tries("boot-attempts", r.attempts, 9, func(v string) { r.fallback = append(r.fallback, pair{"confirmed-attempts", v}) })
	}
	r.bundleFormats()
	switch r.purpose {
	case "codesign", "smimesign", "any":
		r.keyring = append(r.keyring, pair{"check-purpose", r.purpose})
	default:
		r.note(Lost, "[keyring] check-purpose=%s: codesign is asked for instead, one of codesign, smimesign and any", r.purpose)
	}
	if r.ring != "" {
		r.trusts("[keyring] path", r.ring)
	} else {
		r.note(ByHand, "[keyring] path is missing: lifeboat initramfs build --keyring FILE")
	}
	return nil
}

func (r *raucConf) tries(key, value string, most int, set func(string)) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > most {
		r.note(Other, "[system] %s=%s: 1 to %d are kept", key, value, most)
		n = min(max(n, 1), most)
	}
	set(strconv.Itoa(n))
}

// bundleFormats carries over which formats are taken. RAUC takes all where nothing is said, here it is verity.
func (r *raucConf) bundleFormats() {
	on := map[string]bool{"plain": true, "verity": true, "crypt": true}
	words := strings.Fields(r.formats)
	if len(words) > 0 && !strings.ContainsAny(words[0][:1], "+-") {
		on = map[string]bool{}
	}
	for _, w := range words {
		on[strings.TrimLeft(w, "+-")] = w[0] != '-'
	}
	if on["crypt"] && r.formats != "" {
		r.note(Lost, "[system] bundle-formats: crypt bundles are not read")
	}
	switch {
	case !on["verity"] && !on["plain"]:
		r.note(Other, "[system] bundle-formats=%s: verity is taken, make such bundles", r.formats)
	case r.formats == "":
		r.note(Other, "[system] bundle-formats: verity alone is taken, RAUC takes plain too where nothing is said")
	case on["plain"] && on["verity"]:
		r.system = append(r.system, pair{"bundle-formats", "plain verity"})
	case on["plain"]:
		r.system = append(r.system, pair{"bundle-formats", "plain"})
	}
	r.note(ByHand, "bundles that \"rauc bundle\" made have no signed root hash and are refused: make them with \"lifeboat bundle create\", or say [system] require-signed-verity=false")
}
