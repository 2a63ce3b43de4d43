/* Preloaded into barebox-state: the state's backend is the file $BACKEND, and with $ERASESIZE a flash that is it. */
#define _GNU_SOURCE
#include <errno.h>
#include <mtd/mtd-user.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <unistd.h>

int of_get_devicepath(void *node, char **path, off_t *offset, size_t *size)
{
	*path = strdup(getenv("BACKEND"));
	*offset = 0;
	*size = 0;
	return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	va_start(list, request);
	void *arg = va_arg(list, void *);
	va_end(list);
	if (!getenv("ERASESIZE")) {
		errno = ENOTTY;
		return -1;
	}
	int erase = atoi(getenv("ERASESIZE"));
	if (request == MEMGETINFO) {
		struct mtd_info_user *info = arg;
		memset(info, 0, sizeof(*info));
		info->type = MTD_NORFLASH;
		info->flags = MTD_CAP_NORFLASH;
		info->size = lseek(fd, 0, SEEK_END);
		info->erasesize = erase;
		info->writesize = atoi(getenv("WRITESIZE"));
	} else if (request == MEMERASE) {
		struct erase_info_user *e = arg;
		char *ones = malloc(e->length);
		memset(ones, 0xff, e->length);
		if (pwrite(fd, ones, e->length, e->start) != (ssize_t)e->length)
			return -1;
		free(ones);
	}
	return 0;
}
