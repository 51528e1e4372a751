/*
 * What the machine needs at least, in milliseconds: to open N files of the working directory and
 * give them a position ("files N"), to fork N children and end them ("children N"), to start and
 * end N threads ("threads N"), to map and write N single pages ("maps N"). No guest: it is run to
 * its end, beside those that do as much.
 */
#include "wl.h"
#include <sys/resource.h>
static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
static void *sleeper(void *a)
{
	pthread_barrier_wait(a);
	return NULL;
}
static void files(int n)
{
	struct rlimit l;
	char name[32];
	MUST(!getrlimit(RLIMIT_NOFILE, &l));
	l.rlim_cur = l.rlim_max;
	MUST(!setrlimit(RLIMIT_NOFILE, &l));
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "file%d", i);
		int fd = open(name, O_RDWR);
		MUST(fd >= 0 && lseek(fd, 1, SEEK_SET) == 1);
	}
}
static void children(int n)
{
	pid_t *pids = calloc(n, sizeof(*pids));
	for (int i = 0; i < n; i++) {
		MUST((pids[i] = fork()) >= 0);
		if (!pids[i])
			for (;;)
				pause();
	}
	for (int i = 0; i < n; i++)
		MUST(!kill(pids[i], SIGKILL) && waitpid(pids[i], NULL, 0) == pids[i]);
}
static void threads(int n)
{
	pthread_t *ids = calloc(n, sizeof(*ids));
	pthread_barrier_t all;
	pthread_attr_t at;
	pthread_attr_init(&at);
	pthread_attr_setstacksize(&at, 65536);
	pthread_barrier_init(&all, NULL, n);
	for (int i = 0; i < n; i++)
		MUST(!pthread_create(&ids[i], &at, sleeper, &all));
	for (int i = 0; i < n; i++)
		MUST(!pthread_join(ids[i], NULL));
}
static void maps(int n)
{
	size_t len = 2ul * n * 4096;
	char *p = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(p != MAP_FAILED && !munmap(p, len));
	for (int i = 0; i < n; i++) {
		char *q = mmap(p + 2ul * i * 4096, 4096, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		MUST(q != MAP_FAILED);
		*q = 1;
	}
}
int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(int); } all[] = {
		{ "files", files }, { "children", children }, { "threads", threads }, { "maps", maps },
	};
	MUST(argc == 4 && !chdir(argv[1]));
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		if (strcmp(all[i].name, argv[2]))
			continue;
		double start = now();
		all[i].run(atoi(argv[3]));
		printf("%f\n", now() - start);
		return 0;
	}
	return 2;
}
