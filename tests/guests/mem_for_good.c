/* What a program has asked for all of its memory or for good: sealed areas (mseal), memory that never
 * becomes executable (PR_SET_MDWE), merging of equal pages (PR_SET_MEMORY_MERGE), huge pages only where
 * advised (a flag of PR_SET_THP_DISABLE). A child is made before, and has none of it. */
#include "wl.h"
#define PG 4096ul
#define SYS_MSEAL 462
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#define EXCEPT_ADVISED 2
static int *sh;

static void child(void *a)
{
	(void)a;
	for (;;) {
		if (sh[0] == 1) {
			sh[1] = prctl(PR_GET_MDWE, 0, 0, 0, 0) | prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
			sh[2] = munmap((void *)(uintptr_t)((unsigned long *)sh)[4], PG);
			sh[0] = 2;
		}
		usleep(1000);
	}
}

static unsigned char *anon(size_t pages, int prot)
{
	unsigned char *p = mmap(NULL, pages * PG, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(p != MAP_FAILED);
	return p;
}

int main(int argc, char **argv)
{
	wl_start(argc, argv);
	sh = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	MUST(sh != MAP_FAILED);
	unsigned char *data = anon(8, PROT_READ | PROT_WRITE), *code = anon(1, PROT_READ | PROT_EXEC);
	pat_fill(data, 8 * PG, 1);
	((unsigned long *)sh)[4] = (unsigned long)data;
	wl_fork(child, NULL);
	int seals = !syscall(SYS_MSEAL, data + 2 * PG, 4 * PG, 0);
	MUST(!mprotect(data + 7 * PG, PG, PROT_READ));
	if (seals)
		MUST(!syscall(SYS_MSEAL, data + 7 * PG, PG, 0));
	int mdwe = !prctl(PR_SET_MDWE, 3, 0, 0, 0) ? prctl(PR_GET_MDWE, 0, 0, 0, 0) : 0;
	int merge = !prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
	int thp = !prctl(PR_SET_THP_DISABLE, 1, EXCEPT_ADVISED, 0, 0);
	if (!thp)
		MUST(!prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	int disabled = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
	wl_wait();
	MUST(pat_ok(data, 8 * PG, 1));
	if (seals) {
		MUST(munmap(data + 3 * PG, PG) == -1 && errno == EPERM);
		MUST(mprotect(data + 7 * PG, PG, PROT_READ | PROT_WRITE) == -1 && errno == EPERM);
		MUST(!munmap(data + PG, PG) && !munmap(data + 6 * PG, PG));
	}
	MUST(prctl(PR_GET_MDWE, 0, 0, 0, 0) == mdwe);
	if (mdwe)
		MUST(mprotect(data, PG, PROT_READ | PROT_EXEC) == -1 && errno == EACCES);
	MUST(!mprotect(code, PG, PROT_READ));
	MUST(prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == merge);
	MUST(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == disabled);
	sh[0] = 1;
	while (sh[0] != 2)
		usleep(1000);
	MUST(sh[1] == 0 && sh[2] == 0);
	wl_ok();
}
