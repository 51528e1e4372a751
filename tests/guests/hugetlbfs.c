/* A file of hugetlbfs: open, mapped shared by two processes, mapped privately, where one page is the
 * program's own, and only read. The file system is mounted by the test. */
#include "wl.h"
#define HUGE (2ul << 20)
static unsigned char *shared;
static int *sh;
static void child(void *a)
{
	(void)a;
	for (;;) {
		if (sh[0] == 1) {
			shared[2 * HUGE + 3] = 91;
			sh[0] = 2;
		}
		usleep(1000);
	}
}
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = open("/tmp/crust-golden/huge/file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	MUST(fd >= 0 && !ftruncate(fd, 3 * HUGE));
	shared = mmap(NULL, 3 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(shared != MAP_FAILED);
	pat_fill(shared, 2 * HUGE, 1);
	wl_fork(child, NULL);
	unsigned char *own = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, HUGE);
	unsigned char *read_only = mmap(NULL, HUGE, PROT_READ, MAP_SHARED, fd, HUGE);
	MUST(own != MAP_FAILED && read_only != MAP_FAILED);
	memset(own + 4096, 7, 4096);
	wl_wait();
	unsigned char *want = malloc(2 * HUGE);
	pat_fill(want, 2 * HUGE, 1);
	MUST(pat_ok(shared, 2 * HUGE, 1) && !memcmp(read_only, want + HUGE, HUGE));
	MUST(!memcmp(own, want + HUGE, 4096) && own[4096] == 7 && own[8191] == 7);
	MUST(!memcmp(own + 8192, want + HUGE + 8192, HUGE - 8192));
	sh[0] = 1;
	while (sh[0] != 2)
		usleep(1000);
	MUST(shared[2 * HUGE + 3] == 91 && own[HUGE + 3] == 91);
	shared[HUGE + 4096] = 8;
	MUST(read_only[4096] == 8 && own[4096] == 7);
	struct stat st;
	MUST(!fstat(fd, &st) && st.st_size == (off_t)(3 * HUGE) && st.st_blksize == (blksize_t)HUGE);
	wl_ok();
}
