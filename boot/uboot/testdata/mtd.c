/* Preloaded into fw_setenv and fw_printenv: /dev/mtd0 is the file $FLASH, a NOR flash ($KIND is 3) or a NAND flash (4). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <mtd/mtd-user.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { block = 4096 };
static int flash = -1;

static int is_flash(const char *path) { return strcmp(path, "/dev/mtd0") == 0; }

int open(const char *path, int flags, ...)
{
	int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
	if (!is_flash(path))
		return real(path, flags, 0666);
	return flash = real(getenv("FLASH"), flags);
}

int stat(const char *restrict path, struct stat *restrict st)
{
	if (!is_flash(path))
		return fstatat(AT_FDCWD, path, st, 0);
	memset(st, 0, sizeof(*st));
	st->st_mode = S_IFCHR | 0600;
	return 0;
}

char *realpath(const char *restrict path, char *restrict to)
{
	char *(*real)(const char *, char *) = dlsym(RTLD_NEXT, "realpath");
	if (!is_flash(path))
		return real(path, to);
	return to ? strcpy(to, path) : strdup(path);
}

/* What is written makes zeros only. */
ssize_t write(int fd, const void *data, size_t n)
{
	ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
	if (fd != flash)
		return real(fd, data, n);
	char *b = malloc(n);
	if (pread(fd, b, n, lseek(fd, 0, SEEK_CUR)) != (ssize_t)n)
		return -1;
	for (size_t i = 0; i < n; i++)
		b[i] &= ((const char *)data)[i];
	n = real(fd, b, n);
	free(b);
	return n;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	va_start(list, request);
	void *arg = va_arg(list, void *);
	va_end(list);
	if (request == MEMGETINFO) {
		struct mtd_info_user *info = arg;
		memset(info, 0, sizeof(*info));
		info->type = atoi(getenv("KIND"));
		info->size = lseek(fd, 0, SEEK_END);
		info->erasesize = block;
		info->writesize = info->type == MTD_NORFLASH ? 1 : 512;
	} else if (request == MEMERASE) {
		struct erase_info_user *e = arg;
		static char ones[block];
		memset(ones, 0xff, block);
		if (e->start % block || e->length != block || pwrite(fd, ones, block, e->start) != block)
			return -1;
	} else if (request != MEMGETBADBLOCK && request != MEMUNLOCK && request != MEMLOCK) {
		errno = ENOTTY;
		return -1;
	}
	return 0;
}
