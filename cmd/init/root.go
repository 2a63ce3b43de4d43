package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"

	"lifeboat/boot"
	"lifeboat/boot/loader"
	"lifeboat/config"
	"lifeboat/disk"
	"lifeboat/dm"
	"lifeboat/slots"
	"lifeboat/status"
	"lifeboat/update"
	"lifeboat/update/crew"
)

const (
	newRoot  = "/newroot"
	rootName = "lifeboat-root" // device-mapper name of the slot that is started
)

func (d *device) slotPath(slot string) string {
	if !config.Slim && d.copies != nil {
		if path, ok := d.copies(slot); ok {
			return path
		}
	}
	b, ok := d.slots[slot]
	if !ok {
		return "/dev/slot-that-is-not-there"
	}
	return b.Path()
}

// mapFiles makes each slot that is a file a device of its own, from where the file lies now.
func (d *device) mapFiles() {
	d.slots = map[string]disk.Block{}
	for i := range d.cfg.Slots {
		s := &d.cfg.Slots[i]
		b, ok := d.found.slots[s.Name]
		if ok && s.File != "" {
			if err := loader.MapFile(filePrefix+s.Name, &b, s.File); err != nil {
				d.con.say("slot " + s.Name + ": " + err.Error())
				ok = false
			}
		}
		if ok {
			d.slots[s.Name] = b
		}
	}
}

// filePrefix and a slot is the device-mapper name of a slot that is a file.
const filePrefix = "lifeboat-file-"

// mappedName is the device-mapper name of a slot that goes with it.
func mappedName(class string) string { return "lifeboat-" + class }

// slotDoor is update.Slots: what PID 1 itself does to slots.
type slotDoor struct {
	crew.Slots
	d     *device
	trees *crew.Trees // nil: no slot takes archives
}

// Start opens the slot through dm-verity with the root hash of its seal, reads its first and last block (a wrong root
// hash shows only at the first read) and mounts it; then what goes with it, below it.
func (s *slotDoor) Start(slot string, f slots.Facts, with []update.Member) (err error) {
	defer func() {
		if err != nil {
			s.close(with)
		}
	}()
	s.close(with) // of a slot that did not start
	if err := s.open(slot, rootName, f, newRoot); err != nil {
		return err
	}
	init := filepath.Join(newRoot, s.d.cfg.Init)
	if info, err := os.Lstat(init); err != nil || info.IsDir() {
		return fault(status.VerityError, fmt.Errorf("slot %s has no %s", s.d.slotName(slot), s.d.cfg.Init))
	}
	for _, m := range with {
		c, _ := s.d.cfg.SlotByName(m.Slot)
		if c.File != "" {
			continue // the kernel was started from it, and the system has no other use for it
		}
		at := c.Mount
		if at != "" {
			dir, err := folderIn(newRoot, at)
			if err != nil {
				return fault(status.VerityError, fmt.Errorf("slot %s has no folder %s to mount %s: %w", s.d.slotName(slot), at, m.Slot, err))
			}
			defer dir.Close()
			at = fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
		}
		if err := s.open(m.Slot, mappedName(m.Class), m.Facts, at); err != nil {
			return err
		}
	}
	if !config.Slim && s.d.cfg.Data.Device != "" {
		return s.data(slot, f)
	}
	return nil
}

func (s *slotDoor) close(with []update.Member) {
	for _, m := range with {
		if c, _ := s.d.cfg.SlotByName(m.Slot); c.Mount != "" {
			if dir, err := folderIn(newRoot, c.Mount); err == nil {
				_ = unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), unix.MNT_DETACH)
				dir.Close()
			}
		}
	}
	_ = unix.Unmount(newRoot, unix.MNT_DETACH)
	for _, m := range with {
		_ = dm.Remove(mappedName(m.Class))
		s.closeTree(mappedName(m.Class))
	}
	_ = dm.Remove(rootName)
	s.closeTree(rootName)
}

// folderIn opens a folder of a mounted system without ever leaving that.
func folderIn(root, name string) (*os.File, error) {
	r, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(r)
	fd, err := unix.Openat2(r, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func fault(r status.Reason, err error) error { return &update.Fault{Reason: r, Err: err} }

// open opens a slot through dm-verity and mounts it, read-only; at "" it is not mounted, and may hold anything.
func (s *slotDoor) open(slot, name string, f slots.Facts, at string) error {
	if !config.Slim && f.Integrity != "" {
		return s.openTree(slot, name, at)
	}
	path, err := dm.Open(name, true, s.d.table(slot, f))
	if err != nil {
		return fault(status.Unreadable, fmt.Errorf("open slot %s through dm-verity: %w", s.d.slotName(slot), err))
	}
	head, err := ends(path, f.DataBlocks)
	if err != nil {
		return fault(status.VerityError, fmt.Errorf("slot %s: %w", s.d.slotName(slot), err))
	}
	if at == "" {
		return nil
	}
	kind := fileSystem(head)
	if kind == "" {
		return fault(status.VerityError, fmt.Errorf("slot %s holds no squashfs, ext4 or erofs", s.d.slotName(slot)))
	}
	if _, err := mount.Mount(path, at, kind, "", unix.MS_RDONLY); err != nil {
		return fault(mountFault(err), err)
	}
	return nil
}

func (d *device) table(slot string, f slots.Facts, opts ...string) dm.Target {
	b := d.slots[slot]
	return dm.VerityTable(fmt.Sprintf("%d:%d", b.Major, b.Minor), f.DataBlocks, f.RootHash, f.Salt, opts...)
}

func mountFault(err error) status.Reason {
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EUCLEAN) {
		return status.VerityError
	}
	return status.Unreadable
}

// ends reads the first and the last block of the verified device and returns the first.
func ends(path string, blocks int64) ([]byte, error) {
	f, err := disk.Open(path, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head, tail := make([]byte, dm.VerityBlock), make([]byte, dm.VerityBlock)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read the first block: %w", err)
	}
	if _, err := f.ReadAt(tail, (blocks-1)*dm.VerityBlock); err != nil {
		return nil, fmt.Errorf("read the last block: %w", err)
	}
	return head, nil
}

// fileSystem tells the file system of a block that dm-verity vouched for.
func fileSystem(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte("hsqs")):
		return "squashfs"
	case bytes.Equal(head[1024:1028], []byte{0xe2, 0xe1, 0xf5, 0xe0}):
		return "erofs"
	case bytes.Equal(head[1024+56:1024+58], []byte{0x53, 0xef}):
		return "ext4"
	}
	return ""
}

// handOver leaves the running system what it needs, makes a corrupt block restart the device from now on, and becomes
// the system's init.
func (d *device) handOver(s update.Started) {
	d.doors.open()
	if err := d.leave(s); err != nil {
		d.con.say("leave the report: " + err.Error())
	}
	forgetPanic()
	restart := func(name, slot string, f slots.Facts) {
		if f.Integrity != "" {
			return
		}
		if err := dm.Reload(name, true, d.table(slot, f, "restart_on_corruption")); err != nil {
			d.con.say("a corrupt block will be an I/O error, not a restart: " + err.Error())
		}
	}
	restart(rootName, s.Slot, s.Facts)
	for i := range s.With {
		m := &s.With[i]
		if d.slots[m.Slot].Name == d.found.slots[m.Slot].Name {
			restart(mappedName(m.Class), m.Slot, m.Facts)
		}
	}
	for slot := range d.slots {
		_ = dm.Remove(filePrefix + slot) // the running system may mount what the files lie in
	}
	if !config.Slim {
		_ = unix.Unmount(dataDir, unix.MNT_DETACH) // the system has it
	}
	d.show.shell.close()
	d.con.say(status.StartingLine(d.cfg.Init))
	d.con.unhush()
	d.enter("hand-over", stepLimit)
	d.keep.Feed() // what comes next closes it, armed, and has a whole timeout until somebody must feed it
	if err := switchRoot(newRoot, d.cfg.Init); err != nil {
		// The try was counted: after enough of them the other slot has its turn.
		d.con.alarm("start " + d.cfg.Init + ": " + err.Error())
		unix.Sync()
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
}

// leave writes /run/lifeboat.
func (d *device) leave(s update.Started) error {
	e := s.State.Entry(s.Slot)
	r := d.report
	r.State = s.State.Status(boot.PolicyOf(d.cfg, d.trust.Floor))
	if d.found.state.Name != "" {
		r.StateDev = d.found.state.Path()
	}
	r.Booted = status.Booted{
		Slot: s.Slot, Bootname: d.bootname(s.Slot), Version: e.Version, Trial: s.Trial, TriesLeft: int(e.Tries),
		Authenticity: authenticity(s.Facts), RootHash: fmt.Sprintf("%x", s.Facts.RootHash), Device: d.slotPath(s.Slot),
	}
	for _, m := range s.With {
		if !m.Facts.Signed {
			r.Booted.Authenticity = authenticity(m.Facts)
		}
		c, _ := d.cfg.SlotByName(m.Slot)
		w := status.With{
			Slot: m.Slot, RootHash: fmt.Sprintf("%x", m.Facts.RootHash), Device: d.slotPath(m.Slot), Mapped: dm.Path(mappedName(m.Class)), Mount: c.Mount,
		}
		if c.File != "" {
			w.Device, w.Mapped = d.found.slots[m.Slot].Path(), ""
		}
		r.Booted.With = append(r.Booted.With, w)
	}
	r.InitRSS = peakRSS()
	d.clock.phase("hand-over")
	r.Phases = d.clock.phases
	if err := os.MkdirAll(status.Dir, 0o755); err != nil {
		return err
	}
	left := map[string][]byte{"boot.json": r.JSON(), "system.conf": d.cfg.Raw, "keyring.pem": d.keyring, "trust": d.trust.Stored}
	if !config.Slim && d.cfg.Trees() {
		// `bootcount install` says what is missing.
		left[status.Template], _ = os.ReadFile(filepath.Join(config.Dir, status.Template))
		left[status.Key], _ = os.ReadFile(d.cfg.IntegrityKey)
	}
	for name, content := range left {
		if len(content) == 0 {
			continue
		}
		mode := fs.FileMode(0o644)
		if name == status.Key {
			mode = 0o600
		}
		if err := os.WriteFile(filepath.Join(status.Dir, name), content, mode); err != nil {
			return err
		}
	}
	return nil
}

// switchRoot moves what is mounted into the new root, frees the initramfs and becomes init. Arguments and environment
// are those that the kernel gave to us.
func switchRoot(root, init string) error {
	for _, m := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := mount.MoveMount(m, root+m); err != nil {
			// A system without that folder gets along without it.
			_ = unix.Unmount(m, unix.MNT_DETACH)
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	old, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := mount.MoveMount(root, "/"); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	free(old)
	return unix.Exec(init, append([]string{init}, os.Args[1:]...), os.Environ())
}

// free deletes everything on the file system of an open folder, which nothing can name any more: the initramfs's memory.
func free(dir int) {
	var self unix.Stat_t
	if unix.Fstat(dir, &self) != nil {
		return
	}
	f := os.NewFile(uintptr(dir), "initramfs")
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	for _, name := range names {
		sub, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			_ = unix.Unlinkat(dir, name, 0)
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(sub, &st) == nil && st.Dev == self.Dev {
			free(sub)
			_ = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		} else {
			unix.Close(sub)
		}
	}
}
