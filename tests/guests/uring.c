/*
 * Rings of io_uring, idle: one that has read and holds a completion not taken and a request not
 * submitted; one of wide entries without an index, inherited by a child; one never used; one more
 * that has given more completions than it has taken requests, whose descriptor is closed on exec.
 */
#include "wl.h"
#include <linux/io_uring.h>
#ifndef IORING_SETUP_NO_SQARRAY /* Linux 6.6 */
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif
struct ring {
	int fd;
	unsigned char *rings, *sqes;
	struct io_uring_params p;
};
static unsigned *at(struct ring *r, unsigned offset)
{
	return (unsigned *)(r->rings + offset);
}
static struct ring make(unsigned entries, unsigned flags)
{
	struct ring r = { 0 };
	r.p.flags = flags;
	MUST((r.fd = syscall(SYS_io_uring_setup, entries, &r.p)) >= 0);
	size_t wide = flags & IORING_SETUP_SQE128 ? 128 : 64;
	r.rings = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, IORING_OFF_SQ_RING);
	r.sqes = mmap(NULL, r.p.sq_entries * wide, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, IORING_OFF_SQES);
	MUST(r.rings != MAP_FAILED && r.sqes != MAP_FAILED);
	return r;
}
/* Puts a request into the queue. */
static struct io_uring_sqe *put(struct ring *r, int op, unsigned long data)
{
	unsigned tail = *at(r, r->p.sq_off.tail), index = tail & *at(r, r->p.sq_off.ring_mask);
	size_t wide = r->p.flags & IORING_SETUP_SQE128 ? 128 : 64;
	struct io_uring_sqe *sqe = (void *)(r->sqes + index * wide);
	memset(sqe, 0, wide);
	sqe->opcode = op;
	sqe->fd = -1;
	sqe->user_data = data;
	if (!(r->p.flags & IORING_SETUP_NO_SQARRAY))
		at(r, r->p.sq_off.array)[index] = index;
	__atomic_store_n(at(r, r->p.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
	return sqe;
}
static void enter(struct ring *r, unsigned submit, unsigned wait)
{
	int n;
	do
		n = syscall(SYS_io_uring_enter, r->fd, submit, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
	while (n < 0 && errno == EINTR);
	MUST(n == (int)submit);
}
/* Takes the next completion. */
static int take(struct ring *r, unsigned long data)
{
	unsigned head = *at(r, r->p.cq_off.head);
	MUST(head != __atomic_load_n(at(r, r->p.cq_off.tail), __ATOMIC_ACQUIRE));
	size_t wide = r->p.flags & IORING_SETUP_CQE32 ? 32 : 16;
	unsigned char *cqe = r->rings + r->p.cq_off.cqes + (head & *at(r, r->p.cq_off.ring_mask)) * wide;
	struct io_uring_cqe c;
	memcpy(&c, cqe, sizeof(c));
	MUST(c.user_data == data);
	__atomic_store_n(at(r, r->p.cq_off.head), head + 1, __ATOMIC_RELEASE);
	return c.res;
}
static int f;
static char room[64];
static void read_file(struct ring *r, unsigned long data, off_t from, unsigned n)
{
	struct io_uring_sqe *sqe = put(r, IORING_OP_READ, data);
	sqe->fd = f;
	sqe->addr = (unsigned long)room;
	sqe->len = n;
	sqe->off = from;
}
static struct ring plain, wide, fresh, ahead;
static void child(void *a)
{
	(void)a;
	while (!wl_term)
		usleep(1000);
	put(&wide, IORING_OP_NOP, 77);
	enter(&wide, 1, 1);
	MUST(take(&wide, 77) == 0);
	_exit(0);
}
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	MUST((f = open("uring.txt", O_RDWR | O_CREAT | O_TRUNC, 0600)) >= 0 && write(f, "0123456789", 10) == 10);
	plain = make(4, 0);
	for (int i = 0; i < 11; i++) {
		read_file(&plain, 100 + i, i % 5, 2);
		enter(&plain, 1, 1);
		MUST(take(&plain, 100 + i) == 2 && room[0] == '0' + i % 5);
	}
	read_file(&plain, 500, 7, 3);
	enter(&plain, 1, 1);
	memset(room, 0, sizeof(room));
	read_file(&plain, 501, 4, 4); /* in the queue, not submitted */
	wide = make(64, IORING_SETUP_SQE128 | IORING_SETUP_CQE32 | IORING_SETUP_NO_SQARRAY | IORING_SETUP_COOP_TASKRUN);
	put(&wide, IORING_OP_NOP, 1);
	enter(&wide, 1, 1);
	MUST(take(&wide, 1) == 0);
	fresh = make(2, IORING_SETUP_SUBMIT_ALL);
	ahead = make(8, 0);
	for (int i = 0; i < 3; i++) { /* a message to itself: two completions */
		struct io_uring_sqe *sqe = put(&ahead, IORING_OP_MSG_RING, 7);
		sqe->fd = ahead.fd;
		sqe->off = 9;
		sqe->len = 5;
		enter(&ahead, 1, 2);
		for (int k = 0; k < 2; k++) {
			unsigned head = *at(&ahead, ahead.p.cq_off.head);
			__atomic_store_n(at(&ahead, ahead.p.cq_off.head), head + 1, __ATOMIC_RELEASE);
		}
	}
	MUST(fcntl(fresh.fd, F_SETFD, 0) == 0);
	pid_t p = fork();
	if (!p)
		child(NULL);
	wl_kids[wl_nkids++] = p;
	wl_wait();
	MUST(take(&plain, 500) == 3);
	enter(&plain, 1, 1);
	MUST(take(&plain, 501) == 4 && !memcmp(room, "4567", 4));
	for (int i = 0; i < 9; i++) {
		read_file(&plain, 600 + i, i, 1);
		enter(&plain, 1, 1);
		MUST(take(&plain, 600 + i) == 1 && room[0] == '0' + i);
	}
	put(&fresh, IORING_OP_NOP, 8);
	put(&fresh, IORING_OP_NOP, 9);
	enter(&fresh, 2, 2);
	MUST(take(&fresh, 8) == 0 && take(&fresh, 9) == 0);
	put(&ahead, IORING_OP_NOP, 10);
	enter(&ahead, 1, 1);
	MUST(take(&ahead, 10) == 0);
	MUST(fcntl(plain.fd, F_GETFD) == FD_CLOEXEC && fcntl(fresh.fd, F_GETFD) == 0);
	int st;
	kill(p, SIGTERM);
	MUST(waitpid(p, &st, 0) == p && st == 0);
	wl_nkids = 0;
	put(&wide, IORING_OP_NOP, 78);
	enter(&wide, 1, 1);
	MUST(take(&wide, 78) == 0);
	wl_ok();
}
