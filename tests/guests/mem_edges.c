/* Memory at its edges: mappings that go on behind the end of their file, also because it was cut beneath
 * them, one far into a sparse file, code that cannot
 * be read, a stack that has grown down to just above its neighbour, huge pages collapsed from small
 * ones, pages moved and swapped (mremap), private /dev/zero, memory behind three ways of not being read,
 * a heap that is gone. */
#include "wl.h"
#include <setjmp.h>
#define PG 4096ul
#define HUGE (2ul << 20)
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
static sigjmp_buf back;
static void on_fault(int s) { siglongjmp(back, s); }

/* The signal that a read at this address ends with, 0 for none. */
static int read_at(const volatile unsigned char *p)
{
	int got = sigsetjmp(back, 1);
	if (!got)
		(void)*p;
	return got;
}
static unsigned char *map(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
	unsigned char *p = mmap(at, len, prot, flags, fd, off);
	MUST(p != MAP_FAILED);
	return p;
}
static int file(const char *name, size_t len, unsigned seed)
{
	static unsigned char buf[4 * PG];
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	pat_fill(buf, len, seed);
	MUST(fd >= 0 && write(fd, buf, len) == (ssize_t)len);
	return fd;
}

int main(int argc, char **argv)
{
	const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	struct sigaction sa = { .sa_handler = on_fault };
	wl_start(argc, argv);
	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);

	int fd = file("short", PG, 1);
	unsigned char *tail = map(NULL, 4 * PG, rw, MAP_PRIVATE, fd, 0);
	unsigned char *shared_tail = map(NULL, 4 * PG, rw, MAP_SHARED, fd, 0);
	tail[5] = 77;
	close(fd);
	fd = file("cut", 4 * PG, 2);
	unsigned char *cut = map(NULL, 4 * PG, rw, MAP_PRIVATE, fd, 0);
	memset(cut, 3, PG);
	memset(cut + 3 * PG, 3, PG);
	MUST(!ftruncate(fd, 2 * PG));
	close(fd);
	fd = file("sparse", PG, 3);
	MUST(pwrite(fd, "far", 3, 6l << 30) == 3);
	unsigned char *far = map(NULL, PG, PROT_READ, MAP_SHARED, fd, 6l << 30);
	close(fd);

	unsigned char *code = map(NULL, PG, rw, anon, -1, 0);
	memcpy(code, "\xb8\x2b\x00\x00\x00\xc3", 6); /* mov eax,43 ; ret */
	MUST(!mprotect(code, PG, PROT_EXEC));

	unsigned char *room = map(NULL, 4096 * PG, PROT_NONE, anon, -1, 0);
	MUST(!munmap(room, 4096 * PG));
	unsigned char *grown = map(room + 4000 * PG, 2 * PG, rw, anon | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	for (int i = 1; i <= 20; i++)
		grown[-i * (long)PG] = i;
	unsigned char *below = map(grown - 21 * PG, PG, rw, anon | MAP_FIXED, -1, 0);
	below[0] = 9;

	unsigned char *raw = map(NULL, 2 * HUGE, rw, anon, -1, 0);
	unsigned char *huge = (unsigned char *)(((uintptr_t)raw + HUGE - 1) & ~(HUGE - 1));
	pat_fill(huge, HUGE, 6);
	int collapsed = !madvise(huge, HUGE, MADV_COLLAPSE);

	unsigned char *moved = map(NULL, 4 * PG, rw, anon, -1, 0), *to = map(NULL, 6 * PG, PROT_NONE, anon, -1, 0);
	pat_fill(moved, 4 * PG, 7);
	MUST(mremap(moved + PG, PG, PG, MREMAP_MAYMOVE | MREMAP_FIXED, to + 3 * PG) == to + 3 * PG);
	int zfd = open("/dev/zero", O_RDWR);
	unsigned char *zero = map(NULL, 3 * PG, rw, MAP_PRIVATE, zfd, 0);
	zero[PG] = 8;
	close(zfd);
	unsigned char *none = map(NULL, 3 * PG, rw, anon, -1, 0);
	pat_fill(none, 3 * PG, 8);
	MUST(!mprotect(none, PG, PROT_NONE) && !mprotect(none + PG, PG, PROT_EXEC));
	MUST(!brk(sbrk(0)));
	wl_wait();

	MUST(tail[5] == 77 && read_at(tail + PG) == SIGBUS && read_at(shared_tail + 3 * PG) == SIGBUS);
	MUST(pat_ok(shared_tail, PG, 1));
	MUST(cut[0] == 3 && read_at(cut + 2 * PG) == SIGBUS && read_at(cut + 3 * PG) == SIGBUS);
	fd = open("cut", O_RDWR);
	MUST(fd >= 0 && !ftruncate(fd, 4 * PG) && read_at(cut + 3 * PG) == 0 && cut[3 * PG] == 0);
	fd = open("short", O_RDWR);
	MUST(fd >= 0 && !ftruncate(fd, 2 * PG) && read_at(tail + PG) == 0);
	shared_tail[PG] = 5;
	MUST(tail[PG] == 5);
	MUST(!memcmp(far, "far", 3));
	MUST(((int (*)(void))code)() == 43);
	for (int i = 1; i <= 20; i++)
		MUST(grown[-i * (long)PG] == i);
	MUST(below[0] == 9 && pat_ok(huge, HUGE, 6) && collapsed >= 0);
	MUST(pat_ok(moved, PG, 7) && read_at(moved + PG) == SIGSEGV && read_at(to + 2 * PG) == SIGSEGV);
	unsigned char copy[4 * PG];
	pat_fill(copy, sizeof(copy), 7);
	MUST(!memcmp(to + 3 * PG, copy + PG, PG) && !memcmp(moved + 2 * PG, copy + 2 * PG, 2 * PG));
	MUST(zero[0] == 0 && zero[PG] == 8 && read_at(none) == SIGSEGV);
	MUST(!mprotect(none, 3 * PG, PROT_READ) && pat_ok(none, 3 * PG, 8));
	wl_ok();
}
