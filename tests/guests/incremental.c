/* Memory that changes between the dumps of a chain: a step at each SIGUSR1. Pages are written,
 * dropped, unmapped and mapped anew, moved, grown; a child is forked and goes. With "busy" in
 * the argument pages are written all the time, with "vm" the steps are those of another process in
 * the same address space (CLONE_VM). Each page has its number and a count in it. */
#include "wl.h"
#define PG 4096ul
#define PAGES 256

static unsigned char *area[4];
static unsigned want[4][PAGES];
static volatile sig_atomic_t steps;
static int step;

static void on_usr1(int s) { (void)s; steps++; }

static void put(int a, int page, unsigned count)
{
	pat_fill(area[a] + page * PG, PG, a * 1000 + page + count * 7919);
	want[a][page] = count;
}
static void *map(void *at, size_t pages)
{
	void *p = mmap(at, pages * PG, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
	MUST(p != MAP_FAILED);
	return p;
}
static void verify(void)
{
	static unsigned char zero[PG];
	for (int a = 0; a < 4; a++)
		for (int i = 0; i < PAGES; i++) {
			unsigned char *p = area[a] + i * PG;
			int good = want[a][i] ? pat_ok(p, PG, a * 1000 + i + want[a][i] * 7919) : !memcmp(p, zero, PG);
			if (!good)
				fail("area %d page %d is not as of count %u", a, i, want[a][i]);
		}
}
static void change(void)
{
	unsigned count = 10 + ++step;
	for (int i = step % 7; i < PAGES; i += 7) /* of area 0 every 7th, never all */
		put(0, i, count);
	for (int i = 0; i < PAGES; i++) { /* area 1: dropped, a half touched again */
		want[1][i] = 0;
	}
	MUST(!madvise(area[1], PAGES * PG, MADV_DONTNEED));
	for (int i = 0; i < PAGES; i += 2)
		put(1, i, count);
	/* area 2: unmapped, and mapped anew at the same place */
	MUST(!munmap(area[2], PAGES * PG));
	map(area[2], PAGES);
	for (int i = 0; i < PAGES; i++)
		want[2][i] = 0;
	for (int i = step; i < PAGES; i += 5)
		put(2, i, count);
	/* area 3: moved, and one page written there */
	unsigned char *to = map(NULL, PAGES + 2);
	to = mremap(area[3], PAGES * PG, PAGES * PG, MREMAP_MAYMOVE | MREMAP_FIXED, to + PG);
	MUST(to != MAP_FAILED);
	area[3] = to;
	put(3, step, count);
	unsigned char *more = sbrk(8 * PG);
	memset(more, count, 8 * PG);
}

/* The other process in our memory: it changes what it is told to. */
static volatile int to_change, changed;
static char stack[65536] __attribute__((aligned(16)));
static int serve(void *unused)
{
	struct timespec ts = { 0, 1000000 };
	(void)unused;
	for (;;) {
		if (changed != to_change) {
			change();
			changed = to_change;
		}
		syscall(SYS_nanosleep, &ts, NULL);
	}
	return 0;
}
static void take_step(int by_other)
{
	if (by_other) {
		to_change++;
		while (changed != to_change)
			usleep(1000);
	} else {
		change();
	}
	if (step == 1)
		wl_fork(NULL, NULL);
	printf("step %d\n", step);
	fflush(stdout);
}
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	int busy = argc > 2 && strstr(argv[2], "busy");
	int by_other = argc > 2 && strstr(argv[2], "vm");
	struct sigaction sa = { .sa_handler = on_usr1 };
	sigaction(SIGUSR1, &sa, NULL);
	for (int a = 0; a < 4; a++) {
		area[a] = map(NULL, PAGES + 2) + PG;
		for (int i = 0; i < PAGES; i++)
			put(a, i, 1);
	}
	if (by_other) {
		wl_kids[wl_nkids] = clone(serve, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
		MUST(wl_kids[wl_nkids++] > 0);
	}
	printf("ready\n");
	fflush(stdout);
	for (unsigned n = 0; !wl_term; n++) {
		while (step < steps)
			take_step(by_other);
		if (busy) {
			put(n % 2, n % PAGES, 100 + n);
		} else {
			struct timespec ts = { 0, 1000000 };
			nanosleep(&ts, NULL);
		}
	}
	verify();
	wl_ok();
}
