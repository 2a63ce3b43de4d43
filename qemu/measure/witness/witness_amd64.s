#include "textflag.h"

#define SYS_read 0
#define SYS_write 1
#define SYS_open 2
#define SYS_getpid 39
#define SYS_syslog 103
#define SYS_reboot 169
#define SYS_exit_group 231

#define SIZE 0x8000

// witness is the entry of the program.
TEXT ·witness(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	// Whoever starts it on their own machine shall not see it switched off.
	MOVL $SYS_getpid, AX
	SYSCALL
	CMPL AX, $1
	JEQ  first
	MOVL $2, DI
	MOVL $SYS_exit_group, AX
	SYSCALL

first:
	// open("/dev/kmsg", O_WRONLY), write
	LEAQ kmsg<>(SB), DI
	MOVL $1, SI
	MOVL $SYS_open, AX
	SYSCALL
	MOVL AX, DI
	LEAQ started<>(SB), SI
	MOVL $18, DX
	MOVL $SYS_write, AX
	SYSCALL

	// R12 = open("/dev/ttyS0", O_WRONLY)
	LEAQ tty<>(SB), DI
	MOVL $1, SI
	MOVL $SYS_open, AX
	SYSCALL
	MOVL AX, R12

	// open("/run/lifeboat/boot.json", O_RDONLY), read, write
	LEAQ report<>(SB), DI
	XORL SI, SI
	MOVL $SYS_open, AX
	SYSCALL
	MOVL AX, DI
	LEAQ text<>(SB), SI
	MOVL $SIZE, DX
	MOVL $SYS_read, AX
	SYSCALL
	CMPQ AX, $0
	JLE  log
	MOVL R12, DI
	LEAQ text<>(SB), SI
	MOVL AX, DX
	MOVL $SYS_write, AX
	SYSCALL

log:
	// syslog(SYSLOG_ACTION_READ_ALL): the last SIZE bytes; write
	MOVL $3, DI
	LEAQ text<>(SB), SI
	MOVL $SIZE, DX
	MOVL $SYS_syslog, AX
	SYSCALL
	MOVL R12, DI
	LEAQ text<>(SB), SI
	MOVL AX, DX
	MOVL $SYS_write, AX
	SYSCALL

	// reboot(LINUX_REBOOT_CMD_POWER_OFF)
	MOVL $0xfee1dead, DI
	MOVL $0x28121969, SI
	MOVL $0x4321fedc, DX
	MOVL $SYS_reboot, AX
	SYSCALL
	INT  $3

DATA kmsg<>+0(SB)/8, $"/dev/kms"
DATA kmsg<>+8(SB)/2, $"g\x00"
GLOBL kmsg<>(SB), RODATA|NOPTR, $10
DATA started<>+0(SB)/8, $"<6>WITNE"
DATA started<>+8(SB)/8, $"SS START"
DATA started<>+16(SB)/2, $"S\n"
GLOBL started<>(SB), RODATA|NOPTR, $18
DATA tty<>+0(SB)/8, $"/dev/tty"
DATA tty<>+8(SB)/3, $"S0\x00"
GLOBL tty<>(SB), RODATA|NOPTR, $11
DATA report<>+0(SB)/8, $"/run/lif"
DATA report<>+8(SB)/8, $"eboat/bo"
DATA report<>+16(SB)/8, $"ot.json\x00"
GLOBL report<>(SB), RODATA|NOPTR, $24
GLOBL text<>(SB), NOPTR, $SIZE
