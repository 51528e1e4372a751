/* Forks ("forks") or clones threads ("threads") as fast as it can, never more than some dozens at a
 * time. What was begun must end with the right answer, and all must be counted. */
#include "wl.h"
#define WORKERS 6
#define DEPTH 3
static struct counts { volatile long begun, ended, wrong; } *n;
static volatile int *stop;

static void *leaf(void *a)
{
	__sync_fetch_and_add(&n->begun, 1);
	return (void *)((long)a * 3);
}
static void *thread_bomb(void *a)
{
	long seed = (long)a;
	while (!*stop) {
		pthread_t t[DEPTH];
		void *got;
		for (long i = 0; i < DEPTH; i++)
			if (pthread_create(&t[i], NULL, leaf, (void *)(seed + i)))
				fail("pthread_create");
		for (long i = 0; i < DEPTH; i++) {
			pthread_join(t[i], &got);
			if ((long)got != (seed + i) * 3)
				__sync_fetch_and_add(&n->wrong, 1);
			__sync_fetch_and_add(&n->ended, 1);
		}
		seed++;
	}
	return NULL;
}
/* Each process forks one more until the depth is reached; all answer by their exit status. */
static int chain(int depth)
{
	__sync_fetch_and_add(&n->begun, 1);
	pid_t p;
	int st;
	if (!depth)
		return 1;
	if ((p = fork()) == 0)
		_exit(chain(depth - 1));
	if (p < 0 || waitpid(p, &st, 0) != p || !WIFEXITED(st) || WEXITSTATUS(st) != depth)
		__sync_fetch_and_add(&n->wrong, 1);
	__sync_fetch_and_add(&n->ended, 1);
	return depth + 1;
}
static void fork_bomb(void *a)
{
	pid_t p;
	int st;
	(void)a;
	while (!*stop) {
		if ((p = fork()) == 0)
			_exit(chain(DEPTH));
		if (p < 0 || waitpid(p, &st, 0) != p || !WIFEXITED(st) || WEXITSTATUS(st) != DEPTH + 1)
			__sync_fetch_and_add(&n->wrong, 1);
		__sync_fetch_and_add(&n->ended, 1);
	}
	_exit(0);
}
int main(int argc, char **argv)
{
	pthread_t t[WORKERS];
	int threads = argc > 2 && !strcmp(argv[2], "threads"), st;
	wl_start(argc, argv);
	n = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	stop = (int *)(n + 1);
	for (long i = 0; i < WORKERS; i++) {
		if (threads)
			MUST(pthread_create(&t[i], NULL, thread_bomb, (void *)i) == 0);
		else
			wl_fork(fork_bomb, NULL);
	}
	while (n->ended < 100)
		usleep(1000);
	printf("ready\n");
	fflush(stdout);
	while (!wl_term)
		usleep(1000);
	long before = n->ended;
	while (n->ended < before + 100)
		usleep(1000);
	*stop = 1;
	for (int i = 0; i < WORKERS; i++) {
		if (threads)
			pthread_join(t[i], NULL);
		else
			MUST(waitpid(wl_kids[i], &st, 0) == wl_kids[i] && st == 0);
	}
	if (n->wrong || n->begun != n->ended)
		fail("%ld begun, %ld ended, %ld wrong", n->begun, n->ended, n->wrong);
	wl_nkids = 0;
	wl_ok();
}
