/* argv[2] MiB of pages filled by a parent that then forks argv[3] children: what is shared stays so
 * as long as nobody writes. */
#include "wl.h"
int main(int argc, char **argv)
{
	size_t n = (argc > 2 ? strtoul(argv[2], NULL, 10) : 4) << 20, i;
	int kids = argc > 3 ? atoi(argv[3]) : 2;
	wl_start(argc, argv);
	uint64_t *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(p != MAP_FAILED && !madvise(p, n, MADV_NOHUGEPAGE));
	for (i = 0; i < n / 8; i++)
		p[i] = i * 2654435761u;
	for (int kid = 0; kid < kids; kid++)
		wl_fork(NULL, NULL);
	wl_wait();
	for (i = 0; i < n / 8; i++)
		MUST(p[i] == i * 2654435761u);
	wl_ok();
}
