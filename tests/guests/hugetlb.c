/* Memory in huge pages: private (written, read-only and untouched parts), shared with a child and
 * anonymous, and a memfd that is mapped twice, once privately, and sealed. */
#include "wl.h"
#define HUGE (2ul << 20)
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << 26);
	int shared_flags = (flags & ~MAP_PRIVATE) | MAP_SHARED;
	unsigned char *s = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, shared_flags, -1, 0);
	MUST(s != MAP_FAILED);
	pat_fill(s, HUGE, 4);
	int mfd = memfd_create("huge", MFD_HUGETLB | MFD_ALLOW_SEALING | (21u << 26));
	MUST(mfd >= 0 && !ftruncate(mfd, 2 * HUGE) && !fcntl(mfd, F_ADD_SEALS, F_SEAL_SHRINK));
	unsigned char *m = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, mfd, 0);
	unsigned char *c = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, mfd, HUGE);
	MUST(m != MAP_FAILED && c != MAP_FAILED);
	pat_fill(m + HUGE, HUGE, 5);
	pat_fill(c, 4096, 6);
	/* Before the private ones: the kernel shows one file for those that a fork has copied. */
	wl_fork(NULL, NULL);
	unsigned char *p = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
	unsigned char *q = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (p == MAP_FAILED || q == MAP_FAILED)
		fail("mmap of huge pages");
	pat_fill(p, HUGE, 1);
	pat_fill(q, HUGE, 2);
	MUST(!mprotect(q, HUGE, PROT_READ));
	wl_wait();
	MUST(pat_ok(s, HUGE, 4) && pat_ok(m + HUGE, HUGE, 5));
	MUST(pat_ok(c, 4096, 6) && !memcmp(c + 4096, m + HUGE + 4096, HUGE - 4096));
	MUST(s[HUGE + 9] == 0 && m[9] == 0 && fcntl(mfd, F_GET_SEALS) == F_SEAL_SHRINK);
	unsigned char *again = mmap(NULL, HUGE, PROT_READ, MAP_SHARED, mfd, 0);
	m[9] = 8;
	MUST(again != MAP_FAILED && again[9] == 8 && !munmap(again, HUGE));
	MUST(pat_ok(p, HUGE, 1) && pat_ok(q, HUGE, 2));
	p[HUGE + 5] = 3;
	MUST(p[HUGE + 6] == 0);
	char line[256];
	int sizes = 0;
	FILE *f = fopen("/proc/self/smaps", "r");
	while (fgets(line, sizeof(line), f))
		sizes += !strncmp(line, "KernelPageSize:", 15) && strstr(line, " 2048 kB");
	MUST(sizes == 5);
	wl_ok();
}
