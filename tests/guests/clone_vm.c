/* Two processes in one address space (clone with CLONE_VM, not vfork). */
#include "wl.h"
static volatile int seen, go;
static char stack[65536] __attribute__((aligned(16)));
static int other(void *a)
{
	(void)a;
	seen = 1;
	while (!go)
		syscall(SYS_sched_yield);
	seen = 2;
	return 5;
}
int main(int argc, char **argv)
{
	int st;
	wl_start(argc, argv);
	pid_t p = clone(other, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
	MUST(p > 0);
	while (!seen)
		usleep(1000);
	wl_wait();
	MUST(seen == 1);
	go = 1;
	MUST(waitpid(p, &st, 0) == p && WEXITSTATUS(st) == 5 && seen == 2);
	wl_ok();
}
