/* argv[2] mappings of one page each, no two of which can be merged, all written. */
#include "wl.h"
int main(int argc, char **argv)
{
	size_t n = argc > 2 ? strtoul(argv[2], NULL, 10) : 100, i;
	wl_start(argc, argv);
	unsigned char *p = mmap(NULL, 2 * n * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(p != MAP_FAILED && !munmap(p, 2 * n * 4096));
	for (i = 0; i < n; i++) {
		unsigned char *q = mmap(p + 2 * i * 4096, 4096, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		MUST(q != MAP_FAILED);
		pat_fill(q, 64, i);
	}
	wl_wait();
	for (i = 0; i < n; i++)
		MUST(pat_ok(p + 2 * i * 4096, 64, i));
	wl_ok();
}
