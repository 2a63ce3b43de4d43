package confine

import "golang.org/x/sys/unix"

const (
	filterArch = unix.AUDIT_ARCH_X86_64
	filterStat = unix.SYS_NEWFSTATAT
)

func filterExtra() []uint32 {
	return []uint32{unix.SYS_EPOLL_WAIT, unix.SYS_POLL, unix.SYS_ARCH_PRCTL}
}
