/*
 * Rings of io_uring that no image holds, and what each is refused for: requests under way, files, buffers
 * and an eventfd registered with it, one whose use belongs to a thread.
 */
#include "wl.h"
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <linux/io_uring.h>
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
static char buffer[4096];
static int make(unsigned flags, const char *why)
{
	struct io_uring_params p = { .flags = flags };
	int ring = syscall(SYS_io_uring_setup, 4, &p);
	MUST(ring >= 0);
	printf("%d %s\n", ring, why);
	return ring;
}
static int with(int ring, int op, void *what, unsigned count)
{
	return syscall(SYS_io_uring_register, ring, op, what, count);
}
int main(int argc, char **argv)
{
	struct __kernel_timespec never = { .tv_sec = 100000 };
	struct io_uring_params p = { 0 };
	int none = -1, event;
	struct iovec v = { buffer, sizeof(buffer) };
	wl_start(argc, argv);
	int busy = syscall(SYS_io_uring_setup, 4, &p);
	MUST(busy >= 0 && (event = eventfd(0, 0)) >= 0);
	printf("%d 1 of its requests are under way\n", busy);
	char *rings = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, busy, IORING_OFF_SQ_RING);
	struct io_uring_sqe *sqe = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, busy, IORING_OFF_SQES);
	MUST(rings != MAP_FAILED && sqe != MAP_FAILED);
	sqe->opcode = IORING_OP_TIMEOUT;
	sqe->fd = -1;
	sqe->addr = (unsigned long)&never;
	sqe->len = 1;
	*(unsigned *)(rings + p.sq_off.tail) = 1;
	MUST(syscall(SYS_io_uring_enter, busy, 1, 0, 0, NULL, 0) == 1);
	MUST(!with(make(0, "files are registered"), IORING_REGISTER_FILES, &none, 1));
	MUST(!with(make(0, "buffers are registered"), IORING_REGISTER_BUFFERS, &v, 1));
	MUST(!with(make(0, "an eventfd is registered"), IORING_REGISTER_EVENTFD, &event, 1));
	make(IORING_SETUP_SINGLE_ISSUER, "it was made with IORING_SETUP_SINGLE_ISSUER");
	wl_wait();
	MUST(syscall(SYS_io_uring_enter, busy, 0, 0, 0, NULL, 0) == 0);
	wl_ok();
}
