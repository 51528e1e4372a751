/* argv[2] MiB of random 4 KiB pages (no huge pages), for measuring; still right at the end. At each
 * SIGUSR1 it forks, and writes how many microseconds that took. */
#include "wl.h"
static void on_usr1(int s)
{
	static int count;
	struct timespec before, after;
	(void)s;
	clock_gettime(CLOCK_MONOTONIC, &before);
	pid_t kid = fork();
	if (!kid)
		_exit(0);
	clock_gettime(CLOCK_MONOTONIC, &after);
	waitpid(kid, NULL, 0);
	long us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
	dprintf(1, "fork %d: %ld\n", ++count, us);
}
static uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	return *s ^= *s << 17;
}
int main(int argc, char **argv)
{
	size_t n = (argc > 2 ? strtoul(argv[2], NULL, 10) : 16) << 17, i; /* words */
	uint64_t s = 88172645463325252ull;
	wl_start(argc, argv);
	uint64_t *p = mmap(NULL, n * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(p != MAP_FAILED && madvise(p, n * 8, MADV_NOHUGEPAGE) == 0);
	for (i = 0; i < n; i++)
		p[i] = next(&s);
	signal(SIGUSR1, on_usr1);
	wl_wait();
	s = 88172645463325252ull;
	for (i = 0; i < n; i++)
		if (p[i] != next(&s))
			fail("word %zu of %zu", i, n);
	wl_ok();
}
