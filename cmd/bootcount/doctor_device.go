package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/boot/raw"
	"lifeboat/config"
	"lifeboat/disk"
)

// partitions looks at the partitions of the state and the slots: that each is there once, has a size that serves, and begins
// where flash likes it.
func (p *patient) partitions() finding {
	blocks, err := disk.Blocks(filepath.Join(p.root, "sys"))
	f := finding{level: isBad, what: "disk", fix: "lifeboat image disk makes the partitions of a device (docs/device.md)"}
	switch {
	case err != nil:
		f.text = err.Error()
		return f
	case len(blocks) == 0:
		return finding{} // nothing is known of this machine
	}
	smallest := map[string]disk.Block{}
	n := 0
	for _, s := range slices.Concat([][3]string{{"state", p.cfg.StateDevice}}, p.slotDevices()) {
		found := disk.Find(blocks, s[1])
		if len(found) > 1 { // a stick may have them too
			found = slices.DeleteFunc(found, func(b disk.Block) bool { return b.USB })
		}
		switch {
		case len(found) == 0:
			f.text = fmt.Sprintf("%s: there is no %s", s[0], s[1])
			return f
		case len(found) > 1:
			f.text, f.fix = fmt.Sprintf("%s: %s and %s are both %s", s[0], found[0].Path(), found[1].Path(), s[1]), "give one another label (sgdisk --change-name)"
			return f
		}
		b := found[0]
		n++
		if s[0] == "state" && b.Size < raw.MinSize {
			f.text = fmt.Sprintf("%s, the state partition, has %d bytes, at least %d are needed", b.Path(), b.Size, raw.MinSize)
			return f
		}
		start, err := strconv.ParseInt(p.read("sys/class/block/"+b.Name+"/start"), 10, 64)
		if err == nil && start*512%alignment != 0 {
			f.level, f.text = isWarn, fmt.Sprintf("%s (%s) begins at byte %d, no multiple of 1 MiB: writing it may spoil its neighbour on flash", b.Path(), s[0], start*512)
			return f
		}
		if s[2] != "" {
			if b.Size, err = loader.FileSize(b, s[2]); err != nil {
				f.text, f.fix = s[0]+" on "+b.Path()+": "+err.Error(), "make the file anew, of its full size, and install (docs/bootloaders.md)"
				return f
			}
		}
		class, _, _ := strings.Cut(s[0], ".")
		if was, ok := smallest[class]; ok && was.Size != b.Size {
			f.level, f.text = isWarn, fmt.Sprintf("%s has %d bytes and %s %d: what fits into one may not fit into the other", was.Path(), was.Size, b.Path(), b.Size)
			f.fix = "make the slots of a class equal; a bundle is refused where it does not fit into all"
			return f
		}
		smallest[class] = b
	}
	f.level, f.text, f.fix = isOK, fmt.Sprintf("%d partitions, aligned", n), ""
	return f
}

// alignment is what partition tools use today: no erase block of eMMC is larger by much.
const alignment = 1 << 20

// slotDevices are the slots that are booted or go with one, each with its device and its file.
func (p *patient) slotDevices() (all [][3]string) {
	for _, s := range p.cfg.Slots {
		if s.Bootname != "" || s.Parent != "" {
			all = append(all, [3]string{s.Name, s.Device, s.File})
		}
	}
	return all
}

// copies looks whether a power cut may cost the boot loader's variables.
func (p *patient) copies() finding {
	l := p.cfg.Loader
	f := finding{level: isOK, what: "variables", text: "two copies"}
	switch name := p.cfg.Bootloader; {
	case name != "grub" && name != "uboot" && name != "raspberrypi":
		return finding{}
	case len(l.Offsets) == 1 || len(l.Offsets) == 0 && len(l.Files) == 1:
		f.level, f.text = isWarn, "one copy of "+name+"'s variables: a power cut while they are written may lose them"
		f.fix = "[bootloader] offsets= or files= with two; U-Boot: CONFIG_SYS_REDUNDAND_ENVIRONMENT"
	case len(l.Offsets) == 2:
		gap := max(l.Offsets[0], l.Offsets[1]) - min(l.Offsets[0], l.Offsets[1])
		switch {
		case gap < max(l.Size, 512):
			f.level, f.text, f.fix = isBad, fmt.Sprintf("the copies at %d and %d cover each other", l.Offsets[0], l.Offsets[1]), "[bootloader] offsets= as in fw_env.config"
		case l.Offsets[0]%512 != 0 || l.Offsets[1]%512 != 0:
			f.level, f.text, f.fix = isWarn, fmt.Sprintf("the copies at %d and %d do not begin with a sector: a cut may spoil both", l.Offsets[0], l.Offsets[1]), "offsets that are multiples of 4096"
		}
	}
	if block, err := strconv.ParseInt(p.flash("erasesize"), 10, 64); err == nil {
		for _, off := range l.Offsets {
			if off%max(block, 1) != 0 {
				f.level, f.text = isBad, fmt.Sprintf("the copy at %d of %s does not begin with an erase block (%d): it cannot be written", off, l.Device, block)
				f.fix = "[bootloader] offsets= that are multiples of it, as in fw_env.config"
			}
		}
	}
	return f
}

// flash returns what sysfs says of the raw flash with the boot loader's variables, "" where there is none.
func (p *patient) flash(attr string) string {
	if !config.Flash(p.cfg.Loader.Device) {
		return ""
	}
	text, _ := disk.Attr(filepath.Join(p.root, "sys/class/mtd", filepath.Base(p.cfg.Loader.Device)), attr)
	return text
}

// loader asks the boot loader's own place, and compares it with the record.
func (p *patient) loader() finding {
	s := &session{dir: p.dir, report: p.report, cfg: p.cfg, policy: p.policy}
	if !p.policy.Loader {
		return finding{}
	}
	if p.report.StateDev != "" {
		if dev, err := disk.Open(p.report.StateDev, false); err == nil {
			defer dev.Close()
			s.record, _ = raw.New(dev)
		}
	}
	v := s.view()
	f := finding{level: isOK, what: "loader", text: v.String()}
	switch {
	case v.Error != "":
		f.level, f.fix = isBad, "[bootloader] has to say where its variables lie (docs/bootloaders.md)"
		if strings.Contains(v.Error, boot.ErrNoVars.Error()) {
			f.fix = "bootcount good, or a restart: they are written again"
		}
	case v.Differs != "":
		f.level, f.fix = isWarn, "a restart brings them together; if it comes again, something else writes them"
	}
	return f
}

// rauc looks at a RAUC that installs on this device too.
func (p *patient) rauc() finding {
	f := finding{level: isBad, what: "rauc"}
	var conf []byte
	for _, dir := range []string{"etc", "run", "usr/lib"} {
		var err error
		if conf, err = os.ReadFile(filepath.Join(p.root, dir, "rauc/system.conf")); err == nil {
			break
		}
	}
	if conf == nil {
		return finding{}
	}
	handler := ""
	eachSaid(conf, "post-install", func(_, value string) { handler = value })
	for _, name := range resized(conf) {
		if s, ok := p.cfg.SlotByName(name); ok && (s.Bootname != "" || s.Parent != "") {
			f.text, f.fix = "RAUC grows the file system in "+name+" over the place of hash tree and seal", "remove resize=true from [slot."+name+"] of RAUC's system.conf"
			return f
		}
	}
	script, _ := os.ReadFile(filepath.Join(p.root, handler))
	switch {
	case handler == "":
		f.text = "RAUC is here and seals nothing: a slot that it writes is refused at the next boot"
	case !strings.Contains(string(script)+handler, "bootcount"):
		f.level, f.text = isWarn, "RAUC's post-install handler "+handler+" does not seem to run bootcount seal: a slot without a seal is refused"
	default:
		f.level, f.text = isOK, "what RAUC writes is sealed by "+handler
		return f
	}
	f.fix = "[handlers] post-install= with a script that runs \"bootcount seal\" (docs/migrate.md)"
	return f
}
