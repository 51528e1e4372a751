/* Private memory in huge pages: written, read-only and untouched parts. */
#include "wl.h"
#define HUGE (2ul << 20)
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << 26);
	unsigned char *p = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
	unsigned char *q = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (p == MAP_FAILED || q == MAP_FAILED)
		fail("mmap of huge pages");
	pat_fill(p, HUGE, 1);
	pat_fill(q, HUGE, 2);
	MUST(!mprotect(q, HUGE, PROT_READ));
	wl_wait();
	MUST(pat_ok(p, HUGE, 1) && pat_ok(q, HUGE, 2));
	p[HUGE + 5] = 3;
	MUST(p[HUGE + 6] == 0);
	char line[256];
	int sizes = 0;
	FILE *f = fopen("/proc/self/smaps", "r");
	while (fgets(line, sizeof(line), f))
		sizes += !strncmp(line, "KernelPageSize:", 15) && strstr(line, " 2048 kB");
	MUST(sizes == 2);
	wl_ok();
}
