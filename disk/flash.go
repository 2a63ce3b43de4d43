package disk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mtd does a MEM* call on a raw flash. words are a mtd_info_user or an erase_info_user (begin and length in bytes).
func (d *File) mtd(request uintptr, words *[8]uint32) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), request, uintptr(unsafe.Pointer(words)))
	return errno
}

// Erase makes all bits of whole blocks of a flash ones. They are unlocked for it, and stay so.
func (d *File) Erase(off, n int64) error {
	on := [8]uint32{uint32(off), uint32(n)}
	d.mtd(unix.MEMUNLOCK, &on) // many a flash cannot lock
	if errno := d.mtd(unix.MEMERASE, &on); errno != 0 {
		return errno
	}
	return nil
}

// EraseSize and WriteSize are a flash's sizes in bytes, of what is erased and of what is written as one.
func (d *File) EraseSize() int64 { return d.erase }
func (d *File) WriteSize() int64 { return d.page }

// rewrite erases the blocks of a flash that p touches, and writes them anew.
func (d *File) rewrite(p []byte, off int64) (int, error) {
	into := off % d.erase
	b := make([]byte, (into+int64(len(p))+d.erase-1)/d.erase*d.erase)
	_, err := d.f.ReadAt(b, off-into)
	if err == nil {
		copy(b[into:], p)
		err = d.Erase(off-into, int64(len(b)))
	}
	if err == nil {
		_, err = d.f.WriteAt(b, off-into)
	}
	return len(p), err
}
