/* As many threads ("threads N") or child processes ("children N") as asked for, all asleep. */
#include "wl.h"
static volatile int wrong;
static __thread long mine;
static volatile int go;
static pthread_barrier_t up;

static void *sleeper(void *a)
{
	mine = (long)a * 7;
	pthread_barrier_wait(&up);
	while (!go)
		syscall(SYS_futex, &go, 0 /* FUTEX_WAIT */, 0, NULL, NULL, 0);
	if (mine != (long)a * 7)
		wrong = 1;
	return NULL;
}
int main(int argc, char **argv)
{
	int n = argc > 3 ? atoi(argv[3]) : 1, threads = argc > 2 && !strcmp(argv[2], "threads"), st;
	long *ids = calloc(n, sizeof(long));
	pthread_attr_t at;
	wl_start(argc, argv);
	pthread_attr_init(&at);
	pthread_attr_setstacksize(&at, 65536);
	pthread_barrier_init(&up, NULL, n);
	for (long i = 1; i < n; i++) {
		if (threads) {
			MUST(!pthread_create((pthread_t *)&ids[i], &at, sleeper, (void *)i));
			continue;
		}
		MUST((ids[i] = fork()) >= 0);
		if (!ids[i]) {
			signal(SIGUSR1, SIG_IGN);
			for (;;)
				pause();
		}
	}
	if (threads)
		pthread_barrier_wait(&up);
	wl_wait();
	if (threads) {
		go = 1;
		syscall(SYS_futex, &go, 1 /* FUTEX_WAKE */, n, NULL, NULL, 0);
	}
	for (long i = 1; i < n; i++) {
		if (threads) {
			MUST(!pthread_join((pthread_t)ids[i], NULL));
			continue;
		}
		kill(ids[i], SIGKILL);
		MUST(waitpid(ids[i], &st, 0) == ids[i] && WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL);
	}
	MUST(!wrong);
	wl_ok();
}
