/*
 * Many descriptors of a kind: `files`, `pipes` with data or unix `pairs` with data, so many in each
 * of so many processes; with a fifth argument the processes share them. All are looked at
 * afterwards.
 */
#include "wl.h"
#include <sys/resource.h>
static int count, *fds;
static const char *kind;
static char *done;
static int shared;
static void make(void)
{
	char name[32];
	fds = calloc(2 * count, sizeof(int));
	for (int i = 0; i < count; i++) {
		int *p = fds + 2 * i;
		if (!strcmp(kind, "files")) {
			snprintf(name, sizeof(name), "file%d", i);
			MUST((p[0] = open(name, O_CREAT | O_RDWR, 0600)) >= 0);
			MUST(!ftruncate(p[0], 100) && lseek(p[0], i % 97, SEEK_SET) == i % 97);
			continue;
		}
		MUST(!(*kind == 'p' && kind[1] == 'i' ? pipe(p) : socketpair(AF_UNIX, SOCK_STREAM, 0, p)));
		MUST(write(p[1], &i, sizeof(i)) == sizeof(i));
	}
}
static int good(void)
{
	for (int i = 0; i < count; i++) {
		int *p = fds + 2 * i, got = -1;
		if (!strcmp(kind, "files")) {
			if (lseek(p[0], 0, SEEK_CUR) != i % 97)
				return 0;
		} else if (read(p[0], &got, sizeof(got)) != sizeof(got) || got != i) {
			return 0;
		}
	}
	return 1;
}
static void child(void *at)
{
	char *mine = done + (long)at;
	if (!shared)
		make();
	*mine = 1;
	while (*(volatile char *)mine != 2)
		usleep(10000);
	*mine = good() ? 3 : 4;
}
int main(int argc, char **argv)
{
	struct rlimit l;
	int tasks;
	wl_start(argc, argv);
	MUST(argc == 5 || argc == 6);
	shared = argc == 6;
	kind = argv[2];
	count = atoi(argv[3]);
	tasks = atoi(argv[4]);
	MUST(!getrlimit(RLIMIT_NOFILE, &l));
	l.rlim_cur = l.rlim_max;
	MUST(!setrlimit(RLIMIT_NOFILE, &l));
	done = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared)
		make();
	for (long i = 1; i < tasks; i++)
		wl_fork(child, (void *)i);
	if (!shared)
		make();
	for (int i = 1; i < tasks; i++)
		while (*(volatile char *)(done + i) != 1)
			usleep(1000);
	wl_wait();
	MUST(good());
	for (int i = 1; i < tasks; i++)
		done[i] = 2;
	for (int i = 1; i < tasks; i++) {
		while (*(volatile char *)(done + i) < 3)
			usleep(1000);
		MUST(done[i] == 3);
	}
	wl_ok();
}
