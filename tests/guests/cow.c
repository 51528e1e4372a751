/* A family that shares memory: the parent fills 24 MiB and forks children, which change a little of
 * it: pages written, dropped, unmapped, protected, an area grown. One child forks a grandchild. All
 * check everything at the end. */
#include "wl.h"
#define PG 4096ul
#define PAGES 6144
#define KIDS 6

static unsigned char *area, *small;

static void check_page(int who, size_t page, unsigned seed)
{
	if (!pat_ok(area + page * PG, PG, seed))
		fail("task %d: page %zu is not of seed %u", who, page, seed);
}
static void child_changes(int who)
{
	pat_fill(area + (10 + who) * PG, PG, 9000 + who);                 /* its own page */
	MUST(!madvise(area + (100 + who) * PG, PG, MADV_DONTNEED));       /* dropped: zeros */
	MUST(!munmap(area + (200 + 2 * who) * PG, PG));                   /* a hole */
	MUST(!mprotect(area + (300 + 2 * who) * PG, PG, PROT_READ));
	if (who % 2)
		MUST(!munmap(small, 4 * PG));
	if (who == 2) /* another mapping in the place of inherited memory */
		MUST(mmap(area + 400 * PG, 4 * PG, PROT_READ | PROT_WRITE,
			  MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED);
}
static void child_check(int who)
{
	for (size_t i = 0; i < PAGES; i++) {
		if (i == 200 + 2 * (size_t)who || (i >= 400 && i < 404 && who == 2))
			continue;
		if (i == 100 + (size_t)who) {
			for (size_t b = 0; b < PG; b++)
				MUST(area[i * PG + b] == 0);
			continue;
		}
		check_page(who, i, i == 10 + (size_t)who ? 9000u + who : i);
	}
	if (who == 2)
		for (size_t b = 0; b < 4 * PG; b++)
			MUST(area[400 * PG + b] == 0);
	if (who % 2 == 0)
		MUST(pat_ok(small, 4 * PG, 77));
	unsigned char vec;
	MUST(mincore(area + (200 + 2 * who) * PG, PG, &vec) == -1 && errno == ENOMEM);
}
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	int done[2];
	MUST(!pipe(done));
	area = mmap(NULL, PAGES * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mmap(NULL, PG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	small = mmap(NULL, 4 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (size_t i = 0; i < PAGES; i++)
		pat_fill(area + i * PG, PG, i);
	pat_fill(small, 4 * PG, 77);
	for (int who = 1; who <= KIDS; who++) {
		pid_t kid = fork();
		MUST(kid >= 0);
		if (kid == 0) {
			wl_nkids = 0;
			child_changes(who);
			if (who == 3) {
				pid_t grandchild = fork();
				MUST(grandchild >= 0);
				if (grandchild == 0)
					pat_fill(area + 500 * PG, PG, 4242);
				else
					wl_kids[wl_nkids++] = grandchild;
				while (!wl_term)
					pause();
				if (grandchild == 0) {
					check_page(33, 500, 4242);
					pat_fill(area + 500 * PG, PG, 500);
				}
			}
			while (!wl_term)
				pause();
			child_check(who);
			if (wl_nkids) {
				int status;
				kill(wl_kids[0], SIGTERM);
				MUST(waitpid(wl_kids[0], &status, 0) == wl_kids[0] && status == 0);
			}
			_exit(write(done[1], "k", 1) == 1 ? 0 : 1);
		}
		wl_kids[wl_nkids++] = kid;
	}
	pat_fill(area + 5000 * PG, PG, 31337); /* the parent's own, after the forks */
	wl_wait();
	for (size_t i = 0; i < PAGES; i++)
		check_page(0, i, i == 5000 ? 31337 : i);
	for (int i = 0; i < wl_nkids; i++) {
		int status;
		kill(wl_kids[i], SIGTERM);
		MUST(waitpid(wl_kids[i], &status, 0) == wl_kids[i] && status == 0);
	}
	wl_nkids = 0;
	wl_ok();
}
