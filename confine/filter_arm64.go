package confine

import "golang.org/x/sys/unix"

const (
	filterArch = unix.AUDIT_ARCH_AARCH64
	filterStat = unix.SYS_FSTATAT
)

func filterExtra() []uint32 { return nil }
