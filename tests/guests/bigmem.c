/* argv[2] MiB of random 4 KiB pages (no huge pages), for measuring; still right at the end. */
#include "wl.h"
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
	wl_wait();
	s = 88172645463325252ull;
	for (i = 0; i < n; i++)
		if (p[i] != next(&s))
			fail("word %zu of %zu", i, n);
	wl_ok();
}
