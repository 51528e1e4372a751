/* Kinds of private memory beyond the common ones: named areas, locks on fault, content behind
 * PROT_NONE, guard regions, droppable memory, a huge sparse mapping, a private mapping of a deleted
 * file, shared /dev/zero, a stack that has grown. */
#include "wl.h"
#include <sys/prctl.h>
#define PG 4096ul
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#define MAP_DROPPABLE 8
#define SPARSE (100ul << 30)

/* The lines of smaps of the area that starts at addr: whether one has this text. */
static int smaps_has(void *addr, const char *text)
{
	static char line[4096];
	char head[64];
	int in = 0, found = 0;
	FILE *f = fopen("/proc/self/smaps", "r");
	MUST(f);
	snprintf(head, sizeof(head), "%lx-", (unsigned long)addr);
	while (fgets(line, sizeof(line), f)) {
		int is_head = line[0] >= 'a' ? 1 : line[0] >= '0' && line[0] <= '9';
		if (is_head)
			in = !strncmp(line, head, strlen(head));
		if (in && strstr(line, text))
			found = 1;
	}
	fclose(f);
	return found;
}
static unsigned char *anon(size_t pages, int prot, int flags)
{
	unsigned char *p = mmap(NULL, (pages + 2) * PG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(p != MAP_FAILED);
	if (!(flags & 15))
		flags |= MAP_PRIVATE;
	p = mmap(p + PG, pages * PG, prot, MAP_FIXED | MAP_ANONYMOUS | flags, -1, 0);
	return p;
}
static int grow(int depth)
{
	volatile char room[65536];
	memset((void *)room, depth, sizeof(room));
	return depth ? grow(depth - 1) + room[5] : 0;
}
int main(int argc, char **argv)
{
	const int rw = PROT_READ | PROT_WRITE;
	wl_start(argc, argv);
	unsigned char *named = anon(6, rw, 0);
	pat_fill(named, 6 * PG, 1);
	int has_names = !prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named + 2 * PG, 2 * PG, "a name: \"x\"");
	unsigned char *lazy = anon(4, rw, 0);
	lazy[PG] = 7;
	int on_fault = !syscall(SYS_mlock2, lazy, 4 * PG, 1);
	unsigned char *hidden = anon(3, rw, 0);
	pat_fill(hidden, 3 * PG, 2);
	MUST(!mprotect(hidden, 3 * PG, PROT_NONE));
	unsigned char *guarded = anon(8, rw, 0);
	pat_fill(guarded, 8 * PG, 3);
	int guards = !madvise(guarded + 2 * PG, 2 * PG, MADV_GUARD_INSTALL);
	unsigned char *droppable = anon(2, rw, MAP_DROPPABLE);
	if (droppable != MAP_FAILED)
		pat_fill(droppable, 2 * PG, 4);
	unsigned char *sparse = mmap(NULL, SPARSE, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(sparse != MAP_FAILED);
	for (int i = 0; i < 64; i++)
		pat_fill(sparse + i * (SPARSE / 64), PG, 100 + i);
	int fd = open("gone", O_RDWR | O_CREAT | O_TRUNC, 0600);
	unsigned char buf[4 * PG];
	pat_fill(buf, sizeof(buf), 5);
	MUST(write(fd, buf, sizeof(buf)) == sizeof(buf));
	unsigned char *gone = mmap(NULL, 4 * PG, rw, MAP_PRIVATE, fd, 0);
	unsigned char *gone_shared = mmap(NULL, 4 * PG, PROT_READ, MAP_SHARED, fd, 0);
	MUST(gone != MAP_FAILED && gone_shared != MAP_FAILED);
	close(fd);
	unlink("gone");
	memset(gone + PG, 0x55, PG);
	int zfd = open("/dev/zero", O_RDWR);
	unsigned char *zero = mmap(NULL, 2 * PG, rw, MAP_SHARED, zfd, 0);
	MUST(zero != MAP_FAILED);
	close(zfd);
	zero[3] = 9;
	MUST(grow(20) > 0);
	wl_wait();
	MUST(pat_ok(named, 6 * PG, 1));
	if (has_names)
		MUST(smaps_has(named + 2 * PG, "[anon:a name: \"x\"]") && !smaps_has(named, "anon:"));
	MUST(lazy[PG] == 7 && lazy[0] == 0);
	if (on_fault)
		MUST(smaps_has(lazy, " lo ") && smaps_has(lazy, " lf "));
	MUST(!mprotect(hidden, 3 * PG, PROT_READ) && pat_ok(hidden, 3 * PG, 2));
	MUST(pat_ok(guarded, 2 * PG, 3));
	if (guards) {
		int p[2];
		MUST(!pipe(p));
		MUST(write(p[1], guarded + 2 * PG, 1) == -1 && errno == EFAULT);
		MUST(write(p[1], guarded + 4 * PG, 1) == 1);
	}
	if (droppable != MAP_FAILED)
		MUST(smaps_has(droppable, " dp ") && pat_ok(droppable, 2 * PG, 4));
	for (int i = 0; i < 64; i++)
		MUST(pat_ok(sparse + i * (SPARSE / 64), PG, 100 + i));
	MUST(sparse[PG] == 0 && smaps_has(sparse, " nr "));
	MUST(!memcmp(gone, buf, PG) && gone[PG] == 0x55 && !memcmp(gone + 2 * PG, buf + 2 * PG, 2 * PG));
	MUST(!memcmp(gone_shared, buf, sizeof(buf)) && zero[3] == 9 && zero[PG] == 0);
	MUST(grow(20) > 0);
	wl_ok();
}
