/* Handlers that want an alternate stack where there is none, in a thread that has one, and in a child. */
#include "wl.h"
static char stack[65536];
static volatile sig_atomic_t main_ran, thread_ran;
static volatile int stop, *child_ran;
static void handler(int s)
{
	int here = (char *)&s >= stack && (char *)&s < stack + sizeof(stack);
	if (s == SIGUSR1)
		main_ran = !here;
	else
		thread_ran = here;
}
static void child_handler(int s) { (void)s; *child_ran = 1; }
static void child(void *a)
{
	struct sigaction sa = { .sa_handler = child_handler, .sa_flags = SA_ONSTACK };
	(void)a;
	sigaction(SIGUSR1, &sa, NULL);
	*child_ran = 2;
}
static void *run(void *a)
{
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof(stack) };
	MUST(sigaltstack(&ss, NULL) == 0);
	while (!stop)
		usleep(1000);
	return a;
}
int main(int argc, char **argv)
{
	pthread_t t;
	stack_t ss;
	struct sigaction sa = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	wl_start(argc, argv);
	child_ran = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sigaction(SIGUSR1, &sa, NULL);
	sigaction(SIGUSR2, &sa, NULL);
	MUST(pthread_create(&t, NULL, run, NULL) == 0);
	pid_t p = wl_fork(child, NULL);
	while (*child_ran != 2)
		usleep(1000);
	wl_wait();
	MUST(sigaltstack(NULL, &ss) == 0 && ss.ss_flags == SS_DISABLE);
	raise(SIGUSR1);
	MUST(main_ran == 1);
	MUST(pthread_kill(t, SIGUSR2) == 0 && kill(p, SIGUSR1) == 0);
	for (int i = 0; i < 5000 && !(thread_ran == 1 && *child_ran == 1); i++)
		usleep(1000);
	MUST(thread_ran == 1 && *child_ran == 1);
	stop = 1;
	MUST(pthread_join(t, NULL) == 0);
	wl_ok();
}
